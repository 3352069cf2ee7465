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
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"rblnft/firewall/nft"
)

// counters are the named counters of dropped packets, IPv4 and IPv6. They outlive
// the rules.
var counters = [2]string{"dropped4", "dropped6"}

// A Ruleset is what there is to be in the kernel. It is for one goroutine.
type Ruleset struct {
	conn    *nft.Conn
	cfg     Config
	table   *object
	sets    []*object // blocked and allowed ones
	objects []*object // all but the table: sets, counters, chain
	chain   *object
	rules   []rule
	ours    []foundRule // of the chain's rules
	foreign bool        // the chain has others
	allow   [2][]nft.Interval
	stale   bool // the allow list is not what the kernel's sets hold, as far as is known
}

// New returns the ruleset of a configuration that has no [Config.Check] problems,
// with the networks that are never blocked. Nothing is changed yet.
func New(conn *nft.Conn, cfg Config, allow []netip.Prefix) (*Ruleset, error) {
	r := &Ruleset{conn: conn, cfg: cfg, table: tableObject(cfg.Table)}
	for family := range 2 {
		r.sets = append(r.sets, setObject(cfg.Table, cfg.Blocked[family], family, unix.NFT_SET_TIMEOUT))
	}
	if !cfg.Rules {
		return r, nil
	}
	for family := range 2 {
		r.sets = append(r.sets, setObject(cfg.Table, cfg.Allowed[family], family, unix.NFT_SET_INTERVAL))
	}
	r.objects = append(r.objects, r.sets...)
	for _, name := range counters {
		r.objects = append(r.objects, counterObject(cfg.Table, name))
	}
	r.chain = chainObject(cfg.Table, cfg.chain(), cfg.Hook)
	r.objects = append(r.objects, r.chain)
	r.SetAllow(allow)
	var err error
	if r.rules, err = wantedRules(&cfg); err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	return r, nil
}

// SetAllow has the next Ensure put other networks into the allowed sets.
func (r *Ruleset) SetAllow(networks []netip.Prefix) {
	r.allow = intervals(networks)
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
		if err := r.look(); err != nil {
			return State{}, err
		}
		if !r.cfg.Rules {
			return r.state(nil), r.checkSets()
		}
		var t nft.Transaction
		wrong, err := r.compare(&t)
		if err != nil {
			return State{}, err
		}
		if t.Len() == 0 {
			return r.state(found), nil
		}
		found = append(found, wrong...)
		if try == attempts {
			return State{}, fmt.Errorf("somebody else keeps changing table %s: %s", r.cfg.Table, strings.Join(found, ", "))
		}
		switch err := r.conn.Commit(&t); {
		case err == nil:
			r.stale = false
		case errors.Is(err, unix.EBUSY):
			return State{}, &InTheWay{fmt.Sprintf("somebody else's rules use what has to be made anew: %s", strings.Join(wrong, ", "))}
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EEXIST): // not changed since we looked
			return State{}, fmt.Errorf("table %s: %w", r.cfg.Table, err)
		}
	}
}

// A foundRule is a rule of ours that there is.
type foundRule struct {
	handle  uint64
	comment string
}

// look asks the kernel what there is under our names.
func (r *Ruleset) look() error {
	for _, o := range append([]*object{r.table, r.sets[0], r.sets[1]}, r.objects...) {
		o.have = nil
		if o != r.table && r.table.have == nil {
			continue
		}
		all, err := r.conn.Get(o.kind+1, 0, r.cfg.Table, o.name...)
		if err != nil {
			return fmt.Errorf("look at %s: %w", o.what, err)
		}
		for _, a := range all {
			o.have = a
		}
	}
	r.ours, r.foreign = nil, false
	if r.chain == nil || r.chain.have == nil {
		return nil
	}
	all, err := r.conn.Get(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, r.cfg.Table, r.ruleFields()...)
	for _, a := range all {
		if comment := a.Comment(unix.NFTA_RULE_USERDATA, 0); strings.HasPrefix(comment, mark+" ") {
			r.ours = append(r.ours, foundRule{a.Number(unix.NFTA_RULE_HANDLE), comment})
		} else {
			r.foreign = true
		}
	}
	return err
}

// ruleFields say where our rules are, and what else is said of one.
func (r *Ruleset) ruleFields(rest ...nft.Field) []nft.Field {
	return append([]nft.Field{field(unix.NFTA_RULE_TABLE, r.cfg.Table.Name), field(unix.NFTA_RULE_CHAIN, r.cfg.chain())}, rest...)
}

func (r *Ruleset) state(found []string) State {
	s := State{Found: found}
	for i, o := range r.sets[:2] {
		if o.have != nil {
			name, ours := strings.CutPrefix(o.have.Comment(o.comment, o.udata), setMark)
			if !ours {
				name = "foreign"
			}
			s.Size[i] = setSize(o.have)
			s.Set[i] = fmt.Sprintf("%s.%d.%d", name, r.table.have.Number(tableHandle), o.have.Number(setHandle))
		}
	}
	return s
}

// checkSets checks the administrator's sets of blocked addresses, which may have a
// size and a timeout of their own.
func (r *Ruleset) checkSets() error {
	for i, o := range r.sets {
		if o.have == nil || !r.cfg.Families()[i] {
			continue
		}
		delete(o.have, unix.NFTA_SET_DESC)
		delete(o.have, unix.NFTA_SET_TIMEOUT)
		if o.fits(o.have) != fine {
			return &InTheWay{fmt.Sprintf("%s: want type %s and flags timeout", o.what, []string{"ipv4_addr", "ipv6_addr"}[i])}
		}
	}
	return nil
}

// compare finds what is wrong, and adds to t what puts it right.
func (r *Ruleset) compare(t *nft.Transaction) (wrong []string, err error) {
	owner := r.table.have.Number(tableOwner)
	switch {
	case r.table.have == nil:
		wrong = append(wrong, "no "+r.table.what)
		r.table.make(t, r.cfg.Table)
	case owner != 0:
		return nil, &InTheWay{fmt.Sprintf("%s has an owner (flags owner), netlink port %d: nobody else may change it", r.table.what, owner)}
	case r.table.fits(r.table.have) == fine:
	case !r.table.isOurs():
		return nil, &InTheWay{r.table.what + " is dormant, and not rblnftd's to wake"}
	default:
		wrong = append(wrong, r.table.what+" is dormant")
		r.table.make(t, r.cfg.Table)
	}
	fits := map[*object]fit{}
	anew := false
	for _, o := range r.objects {
		switch {
		case o.have == nil:
			wrong = append(wrong, "no "+o.what)
			fits[o] = replace
			continue
		case !o.isOurs():
			return nil, &InTheWay{o.what + " is there, and not rblnftd's"}
		}
		if fits[o] = o.fits(o.have); fits[o] != fine {
			wrong = append(wrong, "another "+o.what)
			anew = anew || fits[o] == replace
		}
	}
	// Rules let go of what they use before that is made anew.
	sameRules := !anew && slices.EqualFunc(r.ours, r.rules, func(f foundRule, w rule) bool { return f.comment == w.comment })
	if !sameRules {
		if r.chain.have != nil {
			wrong = append(wrong, "other rules in "+r.chain.what)
		}
		r.deleteRules(t)
	}
	for _, o := range r.objects {
		if fits[o] == fine {
			continue
		}
		if o.have != nil && fits[o] == replace {
			o.delete(t, r.cfg.Table)
		}
		o.make(t, r.cfg.Table)
	}
	for i, o := range r.sets[2:] {
		if r.stale || fits[o] != fine {
			t.SetIntervals(r.cfg.Table, r.cfg.Allowed[i], r.allow[i])
		}
	}
	for _, w := range r.rules {
		if !sameRules {
			t.Message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, r.cfg.Table, r.ruleFields(
				field(unix.NFTA_RULE_EXPRESSIONS, w.expressions), field(unix.NFTA_RULE_USERDATA, nft.Comment{Text: w.comment}))...)
		}
	}
	return wrong, nil
}

// deleteRules deletes the rules that are ours.
func (r *Ruleset) deleteRules(t *nft.Transaction) {
	for _, f := range r.ours {
		t.Message(unix.NFT_MSG_DELRULE, 0, r.cfg.Table, r.ruleFields(field(unix.NFTA_RULE_HANDLE, f.handle))...)
	}
}

// Remove takes away what is ours under the names of a configuration: rules, chain,
// sets and counters and, if nothing else is in it, the table; but not what a second
// one, which may be nil, has a use for. What others use of it stays, and is an
// [InTheWay].
func Remove(conn *nft.Conn, cfg Config, keep *Config) error {
	r, err := New(conn, cfg, nil)
	if err != nil || !cfg.Rules {
		return err
	}
	if err := r.look(); err != nil || r.table.have == nil {
		return err
	}
	kept := map[string]bool{}
	if keep != nil {
		k, err := New(conn, *keep, nil)
		if err != nil {
			return err
		}
		for _, o := range k.objects {
			kept[o.what] = true
		}
	}
	var t nft.Transaction
	if !kept[r.chain.what] {
		r.deleteRules(&t)
	}
	for _, o := range r.objects {
		if o.have != nil && o.isOurs() && !kept[o.what] && !(o == r.chain && r.foreign) {
			o.delete(&t, cfg.Table)
		}
	}
	err = conn.Commit(&t)
	if errors.Is(err, unix.EBUSY) {
		return &InTheWay{fmt.Sprintf("table %s: somebody else's rules use rblnftd's sets or counters", cfg.Table)}
	}
	if err == nil {
		err = r.look()
	}
	if err == nil && r.table.have != nil && r.table.isOurs() && r.table.have.Number(unix.NFTA_TABLE_USE) == 0 {
		var t nft.Transaction
		r.table.delete(&t, cfg.Table)
		err = conn.Commit(&t)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) { // somebody was faster
		return fmt.Errorf("remove table %s: %w", cfg.Table, err)
	}
	return nil
}
