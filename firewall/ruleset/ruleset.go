//go:build linux

// Package ruleset makes the kernel have what a configuration asks for: a table,
// two sets of blocked and two of allowed addresses, a chain and its rules, each in
// one transaction that changes what is not so and nothing else ([Ruleset.Ensure]).
// With the default configuration nft prints it as
//
//	table inet rblnft {
//		comment "rblnftd"
//		counter dropped4 { comment "rblnftd" packets 0 bytes 0 }
//		counter dropped6 { comment "rblnftd" packets 0 bytes 0 }
//		set blocked4 { type ipv4_addr; flags timeout; gc-interval 1m; comment "rblnft 5f0c2a…"; }
//		set blocked6 { type ipv6_addr; flags timeout; gc-interval 1m; comment "rblnft 88d1e0…"; }
//		set allowed4 { type ipv4_addr; flags interval; comment "rblnft …"; elements = { … } }
//		set allowed6 { type ipv6_addr; flags interval; comment "rblnft …"; elements = { … } }
//		chain input {
//			comment "rblnftd"
//			type filter hook input priority filter - 10; policy accept;
//			tcp dport 25 tcp flags syn / fin,syn,rst,ack ip saddr @blocked4 ip saddr != @allowed4 counter name "dropped4" drop comment "rblnftd 3f2a…"
//			tcp dport 25 tcp flags syn / fin,syn,rst,ack ip6 saddr & ffff:ffff:ffff:ffff:: == @blocked6 ip6 saddr != @allowed6 counter name "dropped6" drop comment "rblnftd 9b40…"
//		}
//	}
//
// By the comments it knows what is ours, by the checksum in a rule's whether it is
// as it should be, and by a set's whether it is the one that was filled. What has
// no such comment is somebody else's: it is neither read nor changed, and where it
// has a name that we need the error is an [InTheWay].
//
// An element of blocked6 is a /64 by the mask in the rule, and not by being an
// interval: a hash table takes a new element in a thirtieth of the time that a
// tree of intervals needs, and a person deletes one by the network's first
// address, as it is listed.
package ruleset

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"rblnft/firewall/nft"
)

// gcInterval is how often the kernel collects what has expired, in milliseconds:
// with nft's default of a second it spends 65 to 90 ms of each on a million
// elements.
const gcInterval = 60_000

// counters are the named counters of dropped packets, IPv4 and IPv6. They outlive
// the rules.
var counters = [2]string{"dropped4", "dropped6"}

// A Ruleset is what there is to be in the kernel. It is for one goroutine.
type Ruleset struct {
	conn  *nft.Conn
	cfg   Config
	rules []rule
	allow [2][]nft.Interval
	stale bool // the allow list is not what the kernel's sets hold, as far as is known
}

// New returns the ruleset of a configuration that has no [Config.Check] problems,
// with the networks that are never blocked. Nothing is changed yet.
func New(conn *nft.Conn, cfg Config, allow []netip.Prefix) (*Ruleset, error) {
	rules, err := wantedRules(&cfg)
	if err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	r := &Ruleset{conn: conn, cfg: cfg, rules: rules}
	r.SetAllow(allow)
	return r, nil
}

// SetAllow has the next Ensure put other networks into the allowed sets.
func (r *Ruleset) SetAllow(networks []netip.Prefix) {
	r.allow = [2][]nft.Interval{intervals(networks, false), intervals(networks, true)}
	r.stale = true
}

// Touched says that somebody else changed the elements of a set, by its name. It
// reports whether the next Ensure has to put the set right: an allowed one of ours.
func (r *Ruleset) Touched(set string) bool {
	ours := r.cfg.Rules && slices.Contains(r.cfg.Allowed[:], set)
	r.stale = r.stale || ours
	return ours
}

// A State is what there is in the kernel.
type State struct {
	// Set tells a set of blocked addresses from any other one of its name in this
	// boot: its random name, if it is ours, and the kernel's handles. It is empty
	// for a set that is not there, which of ours none is.
	Set [2]string
	// Size is how many elements the sets may have, where the administrator says so.
	Size [2]int
	// Found is what was not as it should be, for people; nothing, where nothing was.
	Found []string
}

// InTheWay is something that is not ours and has a name that we need, or keeps
// what is ours from being as it should be.
type InTheWay struct{ What string }

func (e *InTheWay) Error() string { return e.What }

// attempts bounds how often Ensure looks.
const attempts = 5

// Ensure looks and, where anything is not as wanted, makes it so in one
// transaction, and looks again.
func (r *Ruleset) Ensure() (State, error) {
	var found []string
	for try := 1; ; try++ {
		l, err := r.look()
		if err != nil {
			return State{}, err
		}
		if !r.cfg.Rules {
			return r.state(l, nil), r.checkSets(l)
		}
		c, wrong, err := r.compare(l)
		if err != nil {
			return State{}, err
		}
		if c.Len() == 0 {
			return r.state(l, found), nil
		}
		found = append(found, wrong...)
		if try == attempts {
			return State{}, fmt.Errorf("somebody else keeps changing table %s: %s", r.cfg.Table, strings.Join(found, ", "))
		}
		switch err := r.conn.Commit(&c.Transaction); {
		case err == nil:
			r.stale = false
		case errors.Is(err, unix.EBUSY):
			return State{}, &InTheWay{fmt.Sprintf("table %s: somebody else's rules use what has to be made anew: %s", r.cfg.Table, strings.Join(wrong, ", "))}
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EEXIST):
			// It has changed since we looked.
		default:
			return State{}, fmt.Errorf("table %s: %w", r.cfg.Table, err)
		}
	}
}

func (r *Ruleset) state(l layout, found []string) State {
	s := State{Found: found}
	for i, name := range r.cfg.Blocked {
		if have, ok := l.sets[name]; ok {
			name, _ := strings.CutPrefix(have.comment, setMark)
			if !have.ours {
				name = "foreign"
			}
			s.Size[i] = int(have.size)
			s.Set[i] = fmt.Sprintf("%s.%d.%d", name, l.table.handle, have.handle)
		}
	}
	return s
}

// wantedSet is how a set should be.
func (r *Ruleset) wantedSet(i int) set {
	flags := uint32(unix.NFT_SET_TIMEOUT)
	if i >= 2 {
		flags = unix.NFT_SET_INTERVAL
	}
	return set{flags: flags, keyType: keyTypes[i%2], keyLen: keyLens[i%2]}
}

// checkSets checks the administrator's sets of blocked addresses.
func (r *Ruleset) checkSets(l layout) error {
	for i, name := range r.cfg.Blocked {
		if have, ok := l.sets[name]; ok && r.cfg.Families()[i] {
			want := r.wantedSet(i)
			if have.keyType != want.keyType || have.flags&^unix.NFT_SET_EVAL != want.flags {
				return &InTheWay{fmt.Sprintf("set %s of table %s: want type %s and flags timeout alone", name, r.cfg.Table, []string{"ipv4_addr", "ipv6_addr"}[i])}
			}
		}
	}
	return nil
}

// compare finds what is wrong with l, and what puts it right.
func (r *Ruleset) compare(l layout) (c *change, wrong []string, err error) {
	c = &change{at: r.cfg.Table}
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	foreign := func(format string, args ...any) (*change, []string, error) {
		return nil, nil, &InTheWay{fmt.Sprintf(format, args...) + " is there and not rblnftd's"}
	}
	t, chain := l.table, r.cfg.chain()
	hook, priority := r.cfg.hook()
	switch {
	case t.ownedBy != 0:
		return nil, nil, &InTheWay{fmt.Sprintf("table %s belongs to the owner of netlink port %d (flags owner): nobody else may change it", r.cfg.Table, t.ownedBy)}
	case t.flags&tableDormant != 0 && !t.ours:
		return nil, nil, &InTheWay{fmt.Sprintf("table %s is dormant, and not rblnftd's to wake", r.cfg.Table)}
	case !t.exists:
		say("no table %s", r.cfg.Table)
		c.addTable()
	case t.flags&tableDormant != 0:
		say("table %s is dormant", r.cfg.Table)
		c.addTable()
	}
	if l.chain.exists && !l.chain.ours {
		return foreign("chain %s of table %s", chain, r.cfg.Table)
	}
	sameChain := l.chain.kind == "filter" && l.chain.hook == hook && l.chain.priority == priority
	var anew []int // sets
	for i, name := range append(r.cfg.Blocked[:], r.cfg.Allowed[:]...) {
		switch have, ok := l.sets[name]; {
		case !ok:
			say("no set %s", name)
		case !have.ours:
			return foreign("set %s of table %s", name, r.cfg.Table)
		case have.set != r.wantedSet(i):
			say("set %s is of another kind", name)
		default:
			continue
		}
		anew = append(anew, i)
	}

	// Rules let go of what they use before that is made anew.
	sameRules := slices.Equal(ours(l.rules), comments(r.rules)) && sameChain
	for _, i := range anew {
		_, exists := l.sets[r.setName(i)]
		sameRules = sameRules && !exists
	}
	if !sameRules {
		if l.chain.exists {
			say("other rules in chain %s", chain)
		}
		for _, have := range l.rules {
			if have.ours {
				c.delRule(chain, have.handle)
			}
		}
	}
	for _, i := range anew {
		name := r.setName(i)
		if _, exists := l.sets[name]; exists {
			c.delSet(name)
		}
		gc := uint32(0)
		if i < 2 {
			gc = gcInterval
		}
		c.addSet(name, r.wantedSet(i), gc, setMark+randomName())
	}
	for i, name := range r.cfg.Allowed {
		if r.stale || slices.Contains(anew, i+2) {
			c.SetIntervals(r.cfg.Table, name, r.allow[i])
		}
	}
	for _, name := range counters {
		if isOurs, exists := l.counters[name]; !exists {
			c.addCounter(name)
		} else if !isOurs {
			return foreign("counter %s of table %s", name, r.cfg.Table)
		}
	}
	switch {
	case !l.chain.exists:
		say("no chain %s", chain)
		c.addChain(chain, hook, priority)
	case !sameChain:
		say("chain %s has another hook", chain)
		c.delChain(chain)
		c.addChain(chain, hook, priority)
	case l.chain.policy != accept:
		say("chain %s has another policy", chain)
		c.addChain(chain, hook, priority)
	}
	if !sameRules {
		for _, w := range r.rules {
			c.addRule(chain, w)
		}
	}
	return c, wrong, nil
}

// setName is the name of the ith set: blocked4, blocked6, allowed4, allowed6.
func (r *Ruleset) setName(i int) string {
	if i < 2 {
		return r.cfg.Blocked[i]
	}
	return r.cfg.Allowed[i-2]
}

// randomName names a set that is made, so that it is told from every other one.
func randomName() string {
	var b [8]byte
	rand.Read(b[:]) // which never fails
	return hex.EncodeToString(b[:])
}

func isOurs(comment, mark string) bool { return strings.HasPrefix(comment, mark) }

func ours(rules []foundRule) (all []string) {
	for _, r := range rules {
		if r.ours {
			all = append(all, r.comment)
		}
	}
	return all
}

func comments(rules []rule) (all []string) {
	for _, r := range rules {
		all = append(all, r.comment)
	}
	return all
}

// Remove takes away what is ours under the names of a configuration: rules, chain,
// sets and counters and, if nothing else is in it, the table; but not what a second
// one, which may be nil, has a use for. What others use of it stays, and is an
// [InTheWay].
func Remove(conn *nft.Conn, cfg Config, keep *Config) error {
	if !cfg.Rules {
		return nil
	}
	r := &Ruleset{conn: conn, cfg: cfg}
	l, err := r.look()
	if err != nil || !l.table.exists {
		return err
	}
	sameTable := keep != nil && keep.Rules && keep.Table == cfg.Table
	c := &change{at: cfg.Table}
	if !sameTable || keep.chain() != cfg.chain() {
		foreign := false
		for _, have := range l.rules {
			if have.ours {
				c.delRule(cfg.chain(), have.handle)
			}
			foreign = foreign || !have.ours
		}
		if l.chain.ours && !foreign {
			c.delChain(cfg.chain())
		}
	}
	for i := range 4 {
		name := r.setName(i)
		if l.sets[name].ours && !(sameTable && (slices.Contains(keep.Blocked[:], name) || slices.Contains(keep.Allowed[:], name))) {
			c.delSet(name)
		}
	}
	for _, name := range counters {
		if l.counters[name] && !sameTable {
			c.delCounter(name)
		}
	}
	err = conn.Commit(&c.Transaction)
	if errors.Is(err, unix.EBUSY) {
		return &InTheWay{fmt.Sprintf("table %s: somebody else's rules use rblnftd's sets or counters", cfg.Table)}
	}
	if err == nil {
		l, err = r.look()
	}
	if err == nil && l.table.ours && l.table.use == 0 {
		c := &change{at: cfg.Table}
		c.delTable()
		err = conn.Commit(&c.Transaction)
	}
	if errors.Is(err, unix.ENOENT) { // somebody was faster
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove table %s: %w", cfg.Table, err)
	}
	return nil
}
