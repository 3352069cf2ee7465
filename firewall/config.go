package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
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

// A Verdict is what becomes of a packet that opens a connection from a
// blocked address.
type Verdict string

// The verdicts that a Config may name.
const (
	Drop   Verdict = "drop"   // the client waits until it gives up
	Reject Verdict = "reject" // the client gets a TCP reset at once
)

// Config says what an nftables table is to look like.
type Config struct {
	// Table is the table's family and name as nft writes them, "inet rblnft".
	// Without a family it is inet, as tables with rules of ours must be.
	Table string

	// The names of the sets: blocked addresses, with a timeout each, and
	// allowed ones, which are intervals.
	Blocked4, Blocked6, Allowed4, Allowed6 string

	// Rules says that table, sets, chain and rules are ours to make and to
	// keep. If false they are somebody else's: only elements of the sets are
	// added and deleted, and [Open] logs what is missing for them to have
	// an effect.
	Rules bool

	// Chain is the name of the chain; empty, it has the name of the hook.
	Chain string
	Hook  Hook
	// Verdict is passed on packets that open a TCP connection to one of
	// Ports. No other packet is ever dropped.
	Verdict Verdict
	Ports   []uint16

	// Allow are the networks from which nothing is dropped, whatever the
	// sets of blocked addresses say.
	Allow []netip.Prefix

	// MaxElements is the size of either set of blocked addresses. The kernel
	// reserves 16 bytes for each at once, and needs about 130 more for each
	// element there is.
	MaxElements int
}

// DefaultConfig returns the table inet rblnft, for a mail server on this host:
// packets to port 25 are dropped, none from loopback, private (RFC 1918,
// RFC 4193), shared (RFC 6598) and link-local networks, for which no DNSBL can
// speak.
func DefaultConfig() Config {
	return Config{
		Table:    "inet rblnft",
		Blocked4: "blocked4",
		Blocked6: "blocked6",
		Allowed4: "allowed4",
		Allowed6: "allowed6",
		Rules:    true,
		Hook:     HookInput,
		Verdict:  Drop,
		Ports:    []uint16{25},
		Allow: []netip.Prefix{
			netip.MustParsePrefix("127.0.0.0/8"),
			netip.MustParsePrefix("10.0.0.0/8"),
			netip.MustParsePrefix("172.16.0.0/12"),
			netip.MustParsePrefix("192.168.0.0/16"),
			netip.MustParsePrefix("100.64.0.0/10"),
			netip.MustParsePrefix("169.254.0.0/16"),
			netip.MustParsePrefix("::1/128"),
			netip.MustParsePrefix("fe80::/10"),
			netip.MustParsePrefix("fc00::/7"),
		},
		MaxElements: 1_000_000,
	}
}

// families are the families that a table with our sets can have.
var families = map[string]nftables.TableFamily{
	"inet": nftables.TableFamilyINet,
	"ip":   nftables.TableFamilyIPv4,
	"ip6":  nftables.TableFamilyIPv6,
}

// parseTable splits "inet rblnft" into family and name.
func parseTable(s string) (*nftables.Table, error) {
	words := strings.Fields(s)
	if len(words) == 1 {
		words = append([]string{"inet"}, words...)
	}
	if len(words) != 2 {
		return nil, fmt.Errorf("table %q: want a family and a name, as in \"inet rblnft\"", s)
	}
	family, ok := families[words[0]]
	if !ok {
		return nil, fmt.Errorf("table %q: family %q is none of inet, ip, ip6", s, words[0])
	}
	if err := checkName(words[1]); err != nil {
		return nil, fmt.Errorf("table %q: %w", s, err)
	}
	return &nftables.Table{Family: family, Name: words[1]}, nil
}

// familyName is the inverse of families.
func familyName(f nftables.TableFamily) string {
	for name, family := range families {
		if family == f {
			return name
		}
	}
	return fmt.Sprintf("family %d", f)
}

// checkName reports whether nft would take name for an identifier (its
// scanner.l: a letter, then letters, digits and / \ _ .).
func checkName(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	switch {
	case name == "":
		return errors.New("empty name")
	case len(name) > 128:
		return fmt.Errorf("name %.20q... is longer than 128 bytes", name)
	case !strings.Contains(letters+"_", name[:1]) || strings.Trim(name, letters+"0123456789/\\_.-") != "":
		return fmt.Errorf("%q is no name that nft understands", name)
	}
	return nil
}

// Validate reports everything that is wrong with the configuration, by the
// names of the fields.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	table, err := parseTable(c.Table)
	if err != nil {
		errs = append(errs, err)
	} else if c.Rules && table.Family != nftables.TableFamilyINet {
		bad("table %q: rules of ours need family inet", c.Table)
	}
	seen := map[string]bool{}
	for _, set := range []struct{ field, name string }{
		{"blocked4", c.Blocked4}, {"blocked6", c.Blocked6}, {"allowed4", c.Allowed4}, {"allowed6", c.Allowed6},
	} {
		if err := checkName(set.name); err != nil {
			bad("set %s: %w", set.field, err)
		} else if seen[set.name] {
			bad("set %s: the name %q is used twice", set.field, set.name)
		}
		seen[set.name] = true
	}
	if c.MaxElements < 1 || c.MaxElements > 100_000_000 {
		bad("max_elements %d: want 1 to 100000000", c.MaxElements)
	}
	for _, p := range c.Allow {
		if !p.IsValid() {
			bad("allow: %s is no network", p)
		}
	}
	if !c.Rules {
		return errors.Join(errs...)
	}
	if c.Chain != "" {
		if err := checkName(c.Chain); err != nil {
			bad("chain: %w", err)
		}
	}
	if !slices.Contains([]Hook{HookInput, HookForward, HookPrerouting}, c.Hook) {
		bad("hook %q: want input, forward or prerouting", c.Hook)
	}
	if c.Verdict != Drop && c.Verdict != Reject {
		bad("verdict %q: want drop or reject", c.Verdict)
	}
	if len(c.Ports) == 0 {
		bad("ports: none given")
	}
	if slices.Contains(c.Ports, 0) {
		bad("ports: 0 is no port")
	}
	return errors.Join(errs...)
}
