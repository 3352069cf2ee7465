package firewall

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The layout of a table that is ours: with the default configuration what nft
// prints as
//
//	table inet rblnft {
//		set blocked4 { type ipv4_addr; size 1000000; flags timeout; }
//		set blocked6 { type ipv6_addr; size 1000000; flags timeout; }
//		set allowed4 { type ipv4_addr; flags interval; }
//		set allowed6 { type ipv6_addr; flags interval; }
//		chain input {
//			type filter hook input priority filter - 10; policy accept;
//			tcp dport 25 tcp flags syn / fin,syn,rst,ack ip saddr != @allowed4 ip saddr @blocked4 counter drop
//			tcp dport 25 tcp flags syn / fin,syn,rst,ack ip6 saddr != @allowed6 ip6 saddr & ffff:ffff:ffff:ffff:: == @blocked6 counter drop
//		}
//	}
//
// Everything that a rule requires of a packet it requires by itself: a
// comparison that cannot be made, with a packet that is too short, only ends
// its own rule.
//
// An element of blocked6 is a /64 by the mask in the rule, and not by being an
// interval: a hash table takes a new element in a thirtieth of the time that a
// tree of intervals needs (see BenchmarkSixtyFour), and a person deletes one
// by the network's first address, as it is listed.

const (
	tcpDestinationPort = 2  // RFC 9293, section 3.1
	tcpFlags           = 13 // the same
	ipv4Source         = 12 // RFC 791, section 3.1
	ipv6Source         = 8  // RFC 8200, section 3
	fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10
)

// setWanted is a set as it should be.
type setWanted struct {
	nftables.Set
	elements []nftables.SetElement
}

// wantedSets are the four sets.
func (t *Table) wantedSets() []setWanted {
	blocked := func(name string, key nftables.SetDatatype) setWanted {
		return setWanted{Set: nftables.Set{
			Table: t.at, Name: name, KeyType: key, KeyByteOrder: binaryutil.BigEndian,
			HasTimeout: true, Size: uint32(t.cfg.MaxElements),
		}}
	}
	allowed := func(name string, key nftables.SetDatatype, v6 bool) setWanted {
		return setWanted{
			Set:      nftables.Set{Table: t.at, Name: name, KeyType: key, Interval: true},
			elements: intervals(mergeAllowed(t.allow, v6)),
		}
	}
	return []setWanted{
		blocked(t.cfg.Blocked4, nftables.TypeIPAddr),
		blocked(t.cfg.Blocked6, nftables.TypeIP6Addr),
		allowed(t.cfg.Allowed4, nftables.TypeIPAddr, false),
		allowed(t.cfg.Allowed6, nftables.TypeIP6Addr, true),
	}
}

// is reports whether s is the set w.
func (w setWanted) is(s setInfo) bool {
	var flags uint32
	if w.HasTimeout {
		flags |= unix.NFT_SET_TIMEOUT
	}
	if w.Interval {
		flags |= unix.NFT_SET_INTERVAL
	}
	return s.flags == flags && s.keyType == w.KeyType.GetNFTMagic() && s.keyLen == w.KeyType.Bytes &&
		s.size == w.Size && s.timeout == 0
}

// wantedChain is the chain.
func (t *Table) wantedChain() *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	c := &nftables.Chain{
		Table: t.at, Name: t.cfg.Chain, Type: nftables.ChainTypeFilter, Policy: &accept,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 10),
	}
	switch t.cfg.Hook {
	case HookForward:
		c.Hooknum = nftables.ChainHookForward
	case HookPrerouting:
		c.Hooknum = nftables.ChainHookPrerouting
		c.Priority = nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest - 10)
	}
	return c
}

// anonymous is how the kernel names sets that belong to a rule.
const anonymous = "__set"

// wantedRules are the expressions of the two rules. Where there are several
// ports, these are in a set that belongs to the rule, named ports.
func (t *Table) wantedRules(ports string, id uint32) [2][]expr.Any {
	opening := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpDestinationPort, Len: 2},
	}
	if all := t.ports(); len(all) == 1 {
		opening = append(opening, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: all[0]})
	} else {
		opening = append(opening, &expr.Lookup{SourceRegister: 1, SetName: ports, SetID: id})
	}
	opening = append(opening,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlags, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{syn}},
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
	)
	counter := &expr.Counter{}
	var verdict expr.Any = &expr.Verdict{Kind: expr.VerdictDrop}
	if t.cfg.Verdict == Reject {
		verdict = &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}
	}
	source4 := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: ipv4Source, Len: 4}
	source6 := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: ipv6Source, Len: 16}
	mask := append(bytes.Repeat([]byte{0xff}, 8), make([]byte, 8)...)
	return [2][]expr.Any{
		append(slices.Clip(opening),
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
			source4, &expr.Lookup{SourceRegister: 1, SetName: t.cfg.Allowed4, Invert: true},
			source4, &expr.Lookup{SourceRegister: 1, SetName: t.cfg.Blocked4},
			counter, verdict),
		append(slices.Clip(opening),
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV6}},
			source6, &expr.Lookup{SourceRegister: 1, SetName: t.cfg.Allowed6, Invert: true},
			source6, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: mask, Xor: make([]byte, 16)},
			&expr.Lookup{SourceRegister: 1, SetName: t.cfg.Blocked6},
			counter, verdict),
	}
}

// ports are the configured ports, in order and each once, as they stand in a
// TCP header.
func (t *Table) ports() [][]byte {
	ports := slices.Compact(slices.Sorted(slices.Values(t.cfg.Ports)))
	var keys [][]byte
	for _, p := range ports {
		keys = append(keys, binary.BigEndian.AppendUint16(nil, p))
	}
	return keys
}

// A layout is what stands in the kernel under our table's name.
type layout struct {
	exists bool
	table  tableInfo
	sets   map[string]setInfo
	chains map[string]*nftables.Chain
	rules  []*nftables.Rule // of our chain
}

// readLayout asks the kernel.
func (t *Table) readLayout() (layout, error) {
	for try := 1; ; try++ {
		l, err := t.readLayoutOnce()
		if errors.Is(err, errInterrupted) && try < attempts {
			continue
		}
		return l, err
	}
}

func (t *Table) readLayoutOnce() (layout, error) {
	l := layout{chains: map[string]*nftables.Chain{}}
	var err error
	if l.table, err = readTable(t.at); errors.Is(err, unix.ENOENT) {
		return l, nil
	} else if err != nil {
		return l, fmt.Errorf("look at the table: %w", err)
	}
	l.exists = true
	if l.sets, err = readSets(t.at); err != nil {
		return l, fmt.Errorf("look at the sets: %w", err)
	}
	c, err := nftables.New()
	if err != nil {
		return l, err
	}
	chains, err := c.ListChainsOfTableFamily(t.at.Family)
	if err != nil {
		return l, fmt.Errorf("look at the chains: %w", err)
	}
	for _, chain := range chains {
		if chain.Table.Name == t.at.Name {
			l.chains[chain.Name] = chain
		}
	}
	if chain := l.chains[t.cfg.Chain]; chain != nil && t.cfg.Rules {
		// A chain that has gone by now has no rules.
		if l.rules, err = c.GetRules(t.at, chain); err != nil && !errors.Is(err, unix.ENOENT) {
			return l, fmt.Errorf("look at the rules: %w", err)
		}
	}
	return l, nil
}

// A fault is what is not as it should be.
type fault struct {
	what  []string // for the log
	table bool     // it is missing, or dormant
	chain bool     // it must be made anew
	rules bool     // they must be made anew
	sets  []setWanted
	extra bool // there is what is not ours
}

func (f fault) any() bool { return len(f.what) > 0 }

// compare finds what is wrong with l.
func (t *Table) compare(l layout) (f fault, err error) {
	say := func(format string, args ...any) { f.what = append(f.what, fmt.Sprintf(format, args...)) }
	if !l.exists {
		say("no table %s", t)
		return fault{what: f.what, table: true, chain: true, rules: true, sets: t.wantedSets()}, nil
	}
	if l.table.flags != 0 {
		say("table %s has flags %#x", t, l.table.flags)
		f.table = true
	}
	ours := map[string]bool{}
	for _, want := range t.wantedSets() {
		ours[want.Name] = true
		if have, ok := l.sets[want.Name]; !ok {
			say("no set %s", want.Name)
			f.sets = append(f.sets, want)
		} else if !want.is(have) {
			say("set %s is of another kind", want.Name)
			f.sets = append(f.sets, want)
			f.rules = true // they must let go of the set
		}
	}
	want := t.wantedChain()
	switch have := l.chains[want.Name]; {
	case have == nil:
		say("no chain %s", want.Name)
		f.chain, f.rules = true, true
	case have.Type != want.Type || have.Hooknum == nil || *have.Hooknum != *want.Hooknum || *have.Priority != *want.Priority ||
		have.Policy == nil || *have.Policy != *want.Policy:
		say("chain %s is of another kind", want.Name)
		f.chain, f.rules = true, true
	default:
		same, err := t.sameRules(l.rules)
		if err != nil {
			return f, err
		}
		if !same {
			say("other rules in chain %s", want.Name)
			f.rules = true
		}
	}
	for name := range l.sets {
		f.extra = f.extra || !ours[name] && !strings.HasPrefix(name, anonymous)
	}
	for name := range l.chains {
		f.extra = f.extra || name != want.Name
	}
	return f, nil
}

// sameRules reports whether rules are those that there should be. They are
// compared by what they look like to the kernel, without the counters.
func (t *Table) sameRules(rules []*nftables.Rule) (bool, error) {
	want := t.wantedRules(anonymous, 0)
	if len(rules) != len(want) {
		return false, nil
	}
	for i, rule := range rules {
		if len(rule.Exprs) != len(want[i]) {
			return false, nil
		}
		for j, e := range rule.Exprs {
			switch e := e.(type) {
			case *expr.Counter:
				*e = expr.Counter{}
			case *expr.Lookup:
				if strings.HasPrefix(e.SetName, anonymous) {
					same, err := t.samePorts(e.SetName)
					if err != nil || !same {
						return false, err
					}
					e.SetName = anonymous
				}
			}
			a, errA := expr.Marshal(byte(t.at.Family), e)
			b, errB := expr.Marshal(byte(t.at.Family), want[i][j])
			if err := errors.Join(errA, errB); err != nil {
				return false, err
			}
			if !bytes.Equal(a, b) {
				return false, nil
			}
		}
	}
	return true, nil
}

// samePorts reports whether the set that belongs to a rule holds our ports.
func (t *Table) samePorts(set string) (bool, error) {
	var have [][]byte
	if _, err := readElements(context.Background(), t.at, set, 0, func(e element) { have = append(have, e.key) }); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return false, nil // replaced just now
		}
		return false, err
	}
	slices.SortFunc(have, bytes.Compare)
	return slices.EqualFunc(have, t.ports(), bytes.Equal), nil
}

// stand makes the table stand as the configuration wants it, and finds out
// which sets are not the ones that were filled. At the first look, sets that
// stand are taken for filled, and there may be nothing else in the table: what
// an older configuration put there would go on dropping packets.
func (t *Table) stand(first bool) error {
	if !t.cfg.Rules {
		return t.lookForSets(first)
	}
	for try := 1; ; try++ {
		l, err := t.readLayout()
		if err != nil {
			return err
		}
		if first && try == 1 {
			t.takeOver(l)
		}
		f, err := t.compare(l)
		if err != nil {
			return err
		}
		if first && f.extra {
			f.what = append(f.what, "other sets or chains")
		}
		if !f.any() {
			t.know(l)
			return nil
		}
		if try == attempts {
			return fmt.Errorf("somebody else keeps changing it: %s", strings.Join(f.what, ", "))
		}
		if err := t.mend(l, f, first); err != nil {
			return err
		}
	}
}

// takeOver remembers the sets that stand.
func (t *Table) takeOver(l layout) {
	for _, s := range t.sets {
		if have, ok := l.sets[s.name]; ok {
			s.identity = identity{l.table.handle, have.handle}
		}
	}
}

// know remembers the sets that stand. One that is not the one remembered is
// stale, and Run is told.
func (t *Table) know(l layout) {
	for _, s := range t.sets {
		id := identity{}
		if have, ok := l.sets[s.name]; ok {
			id = identity{l.table.handle, have.handle}
		}
		if s.identity == id {
			continue
		}
		s.identity, s.stale = id, true
		t.poke()
	}
}

// mend makes right what is wrong, in one transaction, and replaces the whole
// table if that cannot be done. Elements of sets that have to be made anew are
// carried over where they fit.
func (t *Table) mend(l layout, f fault, first bool) error {
	whole := first && f.extra
	switch {
	case l.exists && first:
		t.log.Warn("the table is not what the configuration wants: putting it right", "table", t.String(), "found", strings.Join(f.what, ", "))
	case !first:
		t.log.Warn("the table is not as it should be: putting it right", "table", t.String(), "found", strings.Join(f.what, ", "))
	}
	anew := f.sets
	var kept [2][]change
	var err error
	if !whole {
		kept = t.keep(l, anew)
		err = t.conn.structure(func(c *nftables.Conn) error { return t.queueMend(c, l, f) })
		whole = errors.Is(err, unix.EBUSY)
	}
	if whole {
		t.log.Warn("replacing the table", "table", t.String())
		anew = t.wantedSets()
		kept = t.keep(l, anew)
		err = t.conn.structure(func(c *nftables.Conn) error {
			if l.exists {
				c.DelTable(t.at)
			}
			return t.queueMend(c, layout{}, fault{chain: true, rules: true, sets: anew})
		})
	}
	// That may have changed nothing.
	t.conn.vague = true
	if err != nil {
		// What is there already, or not any more, the next look shows.
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) || temporary(err) {
			return nil
		}
		return err
	}
	for i, changes := range kept {
		for part := range slices.Chunk(changes, perTransaction) {
			if _, err := t.applyLocked(context.Background(), t.sets[i], fill, part); err != nil {
				t.log.Warn("elements of the replaced set are lost", "set", t.sets[i].name, "error", err)
			}
		}
	}
	return nil
}

// keepLimit bounds how long elements of a set are read that is about to be
// replaced. State has all of them but what was added while nobody listened.
const keepLimit = 5 * time.Second

// keep returns what fills the sets of blocked addresses that are about to be
// made anew with what they hold now.
func (t *Table) keep(l layout, anew []setWanted) (kept [2][]change) {
	for i, s := range t.sets {
		for _, w := range anew {
			have, ok := l.sets[s.name]
			if !ok || w.Name != s.name || have.keyType != w.KeyType.GetNFTMagic() || have.flags&^unix.NFT_SET_EVAL != unix.NFT_SET_TIMEOUT {
				continue
			}
			complete, err := readElements(context.Background(), t.at, s.name, keepLimit, func(e element) {
				if b, ok := e.block(time.Time{}); ok {
					kept[i] = append(kept[i], change{key: b.Prefix.Addr(), timeout: e.expires, comment: e.comment})
				}
			})
			if err != nil {
				t.log.Warn("elements of the set to be replaced cannot be read", "set", s.name, "error", err)
			} else if !complete {
				t.log.Warn("the set to be replaced has too many elements to read them all: the others are restored if they are remembered",
					"set", s.name, "read", len(kept[i]))
			}
		}
	}
	return kept
}

// queueMend queues what makes f right, given l.
func (t *Table) queueMend(c *nftables.Conn, l layout, f fault) error {
	c.AddTable(t.at) // and takes its flags away
	chain := t.wantedChain()
	if l.chains[chain.Name] != nil && f.rules {
		c.FlushChain(chain)
		if f.chain {
			c.DelChain(chain)
		}
	}
	for _, w := range f.sets {
		if _, ok := l.sets[w.Name]; ok {
			c.DelSet(&w.Set)
		}
	}
	for i, w := range f.sets {
		w.ID = uint32(i + 1)
		if err := c.AddSet(&w.Set, nil); err != nil {
			return err
		}
		if err := queueElements(c, &w.Set, w.elements); err != nil {
			return err
		}
	}
	if f.chain {
		c.AddChain(chain)
	}
	if !f.rules {
		return nil
	}
	for i := range 2 {
		ports := &nftables.Set{
			Table: t.at, ID: uint32(100 + i), Name: anonymous + "%d", Anonymous: true, Constant: true,
			KeyType: nftables.TypeInetService,
		}
		if len(t.ports()) > 1 {
			var keys []nftables.SetElement
			for _, key := range t.ports() {
				keys = append(keys, nftables.SetElement{Key: key})
			}
			if err := c.AddSet(ports, keys); err != nil {
				return err
			}
		}
		c.AddRule(&nftables.Rule{Table: t.at, Chain: chain, Exprs: t.wantedRules(ports.Name, ports.ID)[i]})
	}
	return nil
}

// queueElements queues elements of an interval set, as many to a message as an
// attribute of 64 KiB holds.
func queueElements(c *nftables.Conn, s *nftables.Set, elements []nftables.SetElement) error {
	for part := range slices.Chunk(elements, 1000) {
		if err := c.SetAddElements(s, part); err != nil {
			return err
		}
	}
	return nil
}

// SetAllow replaces the allow list, in one transaction. Networks may overlap,
// and may be of either family. What others added to the sets of allowed
// addresses goes; until then it is left alone. If it fails, the old list remains
// in the kernel; the new one is used when the table has to be made anew.
func (t *Table) SetAllow(ctx context.Context, prefixes []netip.Prefix) error {
	for _, p := range prefixes {
		if !p.IsValid() {
			return fmt.Errorf("allow list: %s is no network", p)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("allow list: %w", err)
	}
	t.allow = slices.Clone(prefixes)
	t.conn.vague = true // an empty list may replace an empty list
	for try := 1; ; try++ {
		sets, err := readSets(t.at)
		if err != nil {
			return fmt.Errorf("allow list: %w", err)
		}
		err = t.conn.structure(func(c *nftables.Conn) error {
			for _, w := range t.wantedSets() {
				if have, ok := sets[w.Name]; !w.Interval || !t.cfg.Rules && (!ok || !w.is(have)) {
					continue
				}
				c.FlushSet(&w.Set)
				if err := queueElements(c, &w.Set, w.elements); err != nil {
					return err
				}
			}
			return nil
		})
		if errors.Is(err, unix.ENOENT) && t.cfg.Rules && try < attempts {
			// Somebody removed a set; it comes back with the new list.
			if err = t.stand(false); err == nil {
				continue
			}
		}
		if err != nil {
			return fmt.Errorf("allow list: %w", err)
		}
		return nil
	}
}
