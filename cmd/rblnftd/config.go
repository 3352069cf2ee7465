package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"rblnft/dnsbl"
	"rblnft/firewall"
	"rblnft/firewall/book"
	"rblnft/firewall/ruleset"
)

// defaultFile is the configuration that is read where it exists.
const defaultFile = "/etc/rblnft/rblnftd.toml"

// A config is the checked configuration.
type config struct {
	firewall.Config
	// socketGroup may report: the hits socket's group, where it is our own; -1:
	// as it comes.
	socketGroup int
}

// never are the networks that no DNSBL can speak for, and that are never blocked:
// loopback, private (RFC 1918, RFC 4193), shared (RFC 6598) and link-local ones. The
// machine's own addresses are added to them.
var never = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("fc00::/7"),
}

// own are the machine's own addresses.
func own() (networks []netip.Prefix) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				addr = addr.Unmap()
				networks = append(networks, netip.PrefixFrom(addr, addr.BitLen()))
			}
		}
	}
	return networks
}

// load reads the file at path. Where it does not exist, and need not, it
// returns the defaults. An error has a line "file:line: key: what" for
// everything that is wrong.
func load(path string, must bool) (config, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && !must {
		data, err = nil, nil
	}
	if err != nil {
		return config{}, err
	}
	c, err := parse(path, data)
	c.Policy.Allow = append(c.Policy.Allow, own()...)
	return c, err
}

// parse checks a configuration and fills in the defaults.
func parse(file string, data []byte) (config, error) {
	c := config{Config: firewall.Config{Ruleset: ruleset.Default(), Batch: 250 * time.Millisecond}, socketGroup: -1}
	p, t := &c.Policy, &c.Ruleset
	*p = book.Policy{Hits: 1, Window: 10 * time.Minute, Expiry: time.Hour, Escalate: 2, MaxElements: 1_000_000}
	p.Allow = slices.Clone(never)
	const year = 365 * 24 * time.Hour
	keys := map[string]setter{
		"expiry":       duration(&p.Expiry, time.Second, year),
		"hits":         integer(&p.Hits, 1, book.MaxHits),
		"window":       duration(&p.Window, time.Second, year),
		"escalate":     float(&p.Escalate, 1, 1000),
		"max_expiry":   duration(&p.MaxExpiry, time.Second, year),
		"max_elements": integer(&p.MaxElements, 1, 100_000_000),
		"allow":        list(`an array of networks such as "192.0.2.0/24" and addresses`, network(&p.Allow)),
		"ignore":       list(`an array of zones and return codes such as "zen.example=127.0.0.[10;11]"`, listing(&p.Ignore)),
		"batch":        duration(&c.Batch, 0, time.Minute),
		"ports":        ports(&t.Ports),
		"socket_group": group(&c.socketGroup),

		"nftables.table":    text(func(s string) (err error) { t.Table, err = ruleset.ParseTable(s); return err }),
		"nftables.blocked4": word(&t.Blocked[0]),
		"nftables.blocked6": word(&t.Blocked[1]),
		"nftables.allowed4": word(&t.Allowed[0]),
		"nftables.allowed6": word(&t.Allowed[1]),
		"nftables.rules":    typed("true or false", func(b bool) error { t.Rules = b; return nil }),
		"nftables.chain":    word(&t.Chain),
		"nftables.hook":     choice(&t.Hook, ruleset.HookInput, ruleset.HookForward, ruleset.HookPrerouting),
		"nftables.verdict":  choice(&t.Verdict, ruleset.Drop, ruleset.Reject),
	}
	doc, err := readTOML(file, data)
	if err != nil {
		return config{}, err
	}
	doc.set(keys)
	if !doc.has("socket_group") {
		group(&c.socketGroup)("nofiles") // if there is one
	}
	if !doc.has("max_expiry") {
		p.MaxExpiry = max(8*time.Hour, p.Expiry)
	} else if p.MaxExpiry < p.Expiry && len(doc.problems) == 0 {
		doc.bad("max_expiry", fmt.Errorf("%s, want no less than expiry, %s", p.MaxExpiry, p.Expiry))
	}
	if len(doc.problems) == 0 {
		for _, problem := range t.Check() {
			doc.bad("nftables."+problem.Key, errors.New(problem.Text))
		}
	}
	return c, doc.err()
}

// A setter takes the value of a key, or says what is wrong with it.
type setter func(v any) error

// typed takes a value of one type. Wanted describes what it should be.
func typed[T any](wanted string, set func(T) error) setter {
	return func(v any) error {
		if x, ok := v.(T); ok {
			return set(x)
		}
		return fmt.Errorf("%s, want %s", describe(v), wanted)
	}
}

// describe shows a value as it would stand in the file, as far as it matters.
func describe(v any) string {
	switch v := v.(type) {
	case string:
		return strconv.Quote(v)
	case []any:
		return "an array"
	case map[string]any:
		return "a table"
	}
	return fmt.Sprint(v)
}

func duration(into *time.Duration, least, most time.Duration) setter {
	const wanted = `a duration such as "90s", "30m", "1h30m", "1d" or "2w"`
	return typed(wanted, func(s string) error {
		d, err := parseDuration(s)
		if err != nil {
			return fmt.Errorf("%q, want %s", s, wanted)
		}
		if d < least || d > most {
			return fmt.Errorf("%q, want %s to %s", s, least, most)
		}
		*into = d
		return nil
	})
}

// parseDuration is [time.ParseDuration] that knows days and weeks too: a number of
// them, and nothing else.
func parseDuration(s string) (time.Duration, error) {
	for suffix, unit := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if n, ok := strings.CutSuffix(s, suffix); ok {
			count, err := strconv.ParseUint(n, 10, 16)
			return time.Duration(count) * unit, err
		}
	}
	return time.ParseDuration(s)
}

func integer(into *int, least, most int) setter {
	wanted := fmt.Sprintf("a number from %d to %d", least, most)
	return typed(wanted, func(n int64) error {
		if n < int64(least) || n > int64(most) {
			return fmt.Errorf("%d, want %s", n, wanted)
		}
		*into = int(n)
		return nil
	})
}

func float(into *float64, least, most float64) setter {
	wanted := fmt.Sprintf("a number from %g to %g", least, most)
	set := typed(wanted, func(x float64) error {
		if !(x >= least && x <= most) {
			return fmt.Errorf("%g, want %s", x, wanted)
		}
		*into = x
		return nil
	})
	return func(v any) error {
		if n, ok := v.(int64); ok {
			v = float64(n)
		}
		return set(v)
	}
}

func text(set func(string) error) setter { return typed("a text", set) }

func word(into *string) setter { return text(func(s string) error { *into = s; return nil }) }

func choice[T ~string](into *T, choices ...T) setter {
	wanted := fmt.Sprintf("one of %q", choices)
	return typed(wanted, func(s string) error {
		if !slices.Contains(choices, T(s)) {
			return fmt.Errorf("%q, want %s", s, wanted)
		}
		*into = T(s)
		return nil
	})
}

// list takes an array, each element of it by itself.
func list(wanted string, each func(wanted string) setter) setter {
	return typed(wanted, func(all []any) error {
		var errs []error
		for _, v := range all {
			errs = append(errs, each(wanted)(v))
		}
		return errors.Join(errs...)
	})
}

func ports(into *[]uint16) setter {
	var all []uint16
	read := list("an array of port numbers, 1 to 65535", func(wanted string) setter {
		return func(v any) error {
			n, ok := v.(int64)
			if !ok || n < 1 || n > 65535 {
				return fmt.Errorf("%s, want %s", describe(v), wanted)
			}
			if !slices.Contains(all, uint16(n)) {
				all = append(all, uint16(n))
			}
			return nil
		}
	})
	return func(v any) error {
		err := read(v)
		if err == nil && len(all) == 0 {
			return errors.New("empty, want at least one port")
		}
		*into = all
		return err
	}
}

func network(into *[]netip.Prefix) func(string) setter {
	return func(wanted string) setter {
		return typed(wanted, func(s string) error {
			p, err := parseNetwork(s)
			if err == nil {
				*into = append(*into, p)
			}
			return err
		})
	}
}

// parseNetwork reads a network, or an address that stands for itself.
func parseNetwork(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%q is neither a network nor an address", s)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%q has bits after its length, want %q or %q", s, p.Masked(), p.Addr())
	case p.Addr().Is4In6() && p.Bits() < 96:
		return netip.Prefix{}, fmt.Errorf("%q is neither IPv4 nor IPv6", s)
	case p.Addr().Is4In6():
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p, nil
}

// listing takes what blocks nobody, in the syntax of rblsmtpd -r.
func listing(into *[]book.Listing) func(string) setter {
	return func(wanted string) setter {
		return typed(wanted, func(s string) error {
			source := dnsbl.ParseList(s)
			switch {
			case source.Err != nil:
				return fmt.Errorf("%q: %w", s, source.Err)
			case source.Fixed:
				return fmt.Errorf("%q has a message, want %s", s, wanted)
			}
			*into = append(*into, book.Listing{Zone: source.Zone, Codes: source.Codes})
			return nil
		})
	}
}

// group takes a group, by name or number.
func group(into *int) setter {
	return func(v any) error {
		if n, ok := v.(int64); ok {
			v = strconv.FormatInt(n, 10)
		}
		return typed("the name or the number of a group", func(s string) error {
			number := s
			if g, err := user.LookupGroup(s); err == nil {
				number = g.Gid
			}
			gid, err := strconv.ParseUint(number, 10, 31)
			if err != nil {
				return fmt.Errorf("there is no group %q", s)
			}
			*into = int(gid)
			return nil
		})(v)
	}
}
