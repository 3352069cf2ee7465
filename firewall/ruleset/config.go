//go:build linux

package ruleset

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"rblnft/firewall/nft"
)

// A Hook is the netfilter hook at which packets are looked at (nft(8), "base
// chain hooks").
type Hook string

// The hooks that a Config may name. The destination port of a packet is what
// the hook sees: with HookForward what address translation has made of it,
// with HookPrerouting what the client asked for.
const (
	HookInput      Hook = "input"      // mail servers on this host
	HookForward    Hook = "forward"    // routed and containerised mail servers
	HookPrerouting Hook = "prerouting" // both, before destination NAT
)

// A Verdict is what becomes of a packet that opens a connection from a blocked
// address.
type Verdict string

// The verdicts that a Config may name.
const (
	Drop   Verdict = "drop"   // the client waits until it gives up
	Reject Verdict = "reject" // the client gets a TCP reset at once
)

// Config says what there is to be in the kernel.
type Config struct {
	Table nft.Table

	// The names of the sets: blocked addresses, with a timeout each, and allowed
	// ones, which are intervals. IPv4 is first.
	Blocked, Allowed [2]string

	// Rules says that table, sets, chain and rules are ours to make and to keep.
	// If false, table and sets are the administrator's: only elements of the
	// blocked sets are added and deleted.
	Rules bool

	Chain string // its name; empty: that of the hook
	Hook  Hook

	// Verdict is passed on packets that open a TCP connection to one of Ports. No
	// other packet is ever dropped.
	Verdict Verdict
	Ports   []uint16
}

// Default returns the configuration of table inet rblnft, for a mail server on
// this host: packets to port 25 are dropped.
func Default() Config {
	return Config{
		Table:   nft.Table{Family: nft.INet, Name: "rblnft"},
		Blocked: [2]string{"blocked4", "blocked6"},
		Allowed: [2]string{"allowed4", "allowed6"},
		Rules:   true,
		Hook:    HookInput,
		Verdict: Drop,
		Ports:   []uint16{25},
	}
}

// chain is the name of the chain.
func (c *Config) chain() string {
	if c.Chain != "" {
		return c.Chain
	}
	return string(c.Hook)
}

// Families reports for which families, IPv4 and IPv6, the table can have a set
// that its rules can use.
func (c *Config) Families() [2]bool {
	return [2]bool{c.Table.Family != nft.IPv6, c.Table.Family != nft.IPv4}
}

// Names are the names under which there is something of ours, in one word that
// [ParseNames] reads; "" if nothing is ours.
func (c *Config) Names() string {
	if !c.Rules {
		return ""
	}
	names := append([]string{c.Table.Family.String(), c.Table.Name, c.chain()}, c.Blocked[:]...)
	return strings.Join(append(names, c.Allowed[:]...), ",")
}

// ParseNames reads what [Config.Names] returned, for [Remove].
func ParseNames(s string) (c Config, ok bool) {
	n := strings.Split(s, ",")
	if len(n) != 7 {
		return c, false
	}
	table, err := ParseTable(n[0] + " " + n[1])
	return Config{Table: table, Chain: n[2], Blocked: [2]string{n[3], n[4]}, Allowed: [2]string{n[5], n[6]}, Rules: true}, err == nil
}

// ParseTable reads a table as nft writes it, "inet rblnft"; without a family it is
// inet.
func ParseTable(s string) (nft.Table, error) {
	words := strings.Fields(s)
	if len(words) == 1 {
		words = []string{nft.INet.String(), words[0]}
	}
	if len(words) != 2 {
		return nft.Table{}, fmt.Errorf("%q: want a family and a name, as in \"inet rblnft\"", s)
	}
	for _, f := range []nft.Family{nft.INet, nft.IPv4, nft.IPv6} {
		if f.String() == words[0] {
			return nft.Table{Family: f, Name: words[1]}, checkName(words[1])
		}
	}
	return nft.Table{}, fmt.Errorf("%q: the family is none of inet, ip, ip6", s)
}

// checkName reports whether nft would take name for an identifier (its
// scanner.l: a letter, then letters, digits and / \ _ .).
func checkName(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	switch {
	case name == "":
		return errors.New("empty name")
	case len(name) > 128:
		return fmt.Errorf("%.20q... is longer than 128 bytes", name)
	case !strings.Contains(letters+"_", name[:1]) || strings.Trim(name, letters+"0123456789/\\_.-") != "":
		return fmt.Errorf("%q is no name that nft understands", name)
	}
	return nil
}

// A Problem is something that is wrong with a configuration.
type Problem struct{ Key, Text string }

// Check returns all that is wrong, by the keys of the configuration file.
func (c *Config) Check() (problems []Problem) {
	bad := func(key, format string, args ...any) {
		problems = append(problems, Problem{key, fmt.Sprintf(format, args...)})
	}
	if c.Rules && c.Table.Family != nft.INet {
		bad("table", "%q: rules of ours need family inet", c.Table)
	}
	var seen []string
	for i, name := range append(c.Blocked[:], c.Allowed[:]...) {
		key := []string{"blocked4", "blocked6", "allowed4", "allowed6"}[i]
		if err := checkName(name); err != nil {
			bad(key, "%v", err)
		} else if slices.Contains(seen, name) {
			bad(key, "the name %q is used twice", name)
		}
		seen = append(seen, name)
	}
	if err := checkName(c.chain()); err != nil {
		bad("chain", "%v", err)
	}
	return problems
}

// intervals returns networks as intervals, IPv4 and IPv6, those that touch or
// overlap as one.
func intervals(networks []netip.Prefix) (merged [2][]nft.Interval) {
	for _, p := range slices.SortedFunc(slices.Values(networks), netip.Prefix.Compare) {
		if !p.IsValid() {
			continue
		}
		all := &merged[0]
		if p.Addr().Is6() {
			all = &merged[1]
		}
		next := nft.Interval{First: p.Masked().Addr(), Last: lastOf(p)}
		n := len(*all)
		switch {
		case n == 0 || (*all)[n-1].Last.Less(next.First) && (*all)[n-1].Last.Next() != next.First:
			*all = append(*all, next)
		case (*all)[n-1].Last.Less(next.Last):
			(*all)[n-1].Last = next.Last
		}
	}
	return merged
}

// lastOf returns the last address of a network.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}
