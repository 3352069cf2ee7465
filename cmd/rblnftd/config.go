package main

import (
	"errors"
	"fmt"
	"math"
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
// loopback, private (RFC 1918, RFC 4193), shared (RFC 6598) and link-local ones.
// The machine's own addresses are added to them.
const never = "127.0.0.0/8 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 169.254.0.0/16 ::1/128 fe80::/10 fc00::/7"

// own are the machine's own addresses, but for those in known networks.
func own(known []netip.Prefix) (networks []netip.Prefix) {
	addrs, _ := net.InterfaceAddrs() // none, where it fails
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && !slices.ContainsFunc(known, func(n netip.Prefix) bool { return n.Contains(p.Addr()) }) {
			networks = append(networks, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
		}
	}
	return networks
}

// load reads the file at path. Where it does not exist, and need not, it
// returns the defaults. An error has a line "file:line: key: what" for
// everything that is wrong.
func load(path string, must bool) (config, error) {
	data, err := os.ReadFile(path)
	if err != nil && (must || !errors.Is(err, os.ErrNotExist)) {
		return config{}, err
	}
	c, err := parse(path, data)
	c.Policy.Allow = append(c.Policy.Allow, own(c.Policy.Allow)...)
	return c, err
}

// parse checks a configuration and fills in the defaults.
func parse(file string, data []byte) (config, error) {
	c := config{Config: firewall.Config{Ruleset: ruleset.Default(), Batch: 250 * time.Millisecond}, socketGroup: -1}
	p, t := &c.Policy, &c.Ruleset
	const year = 365 * 24 * time.Hour
	*p = book.Policy{Hits: 1, Window: 10 * time.Minute, Expiry: time.Hour, Escalate: 2, MaxElements: 1_000_000}
	for _, s := range strings.Fields(never) {
		p.Allow = append(p.Allow, netip.MustParsePrefix(s))
	}
	if gid, err := findGroup("nofiles"); err == nil {
		c.socketGroup = gid
	}
	d, err := readTOML(file, data)
	if err != nil {
		return config{}, err
	}
	duration(d, "expiry", &p.Expiry, time.Second, year)
	number(d, "hits", &p.Hits, 1, book.MaxHits)
	duration(d, "window", &p.Window, time.Second, year)
	number(d, "escalate", &p.Escalate, 1, 1000)
	p.MaxExpiry = max(8*time.Hour, p.Expiry)
	duration(d, "max_expiry", &p.MaxExpiry, time.Second, year)
	number(d, "max_elements", &p.MaxElements, 1, 100_000_000)
	duration(d, "batch", &c.Batch, 0, time.Minute)
	list(d, "allow", `an array of networks such as "192.0.2.0/24" and addresses`, &p.Allow, parseNetwork)
	list(d, "ignore", `an array of zones and return codes such as "zen.example=127.0.0.[10;11]"`, &p.Ignore, parseListing)
	var ports []uint16
	if list(d, "ports", "an array of port numbers, 1 to 65535", &ports, parsePort) {
		slices.Sort(ports)
		t.Ports = slices.Compact(ports)
	}
	if len(t.Ports) == 0 {
		d.bad("ports", errors.New("empty, want at least one port"))
	}
	value(d, "socket_group", "the name or the number of a group", &c.socketGroup, func(v any) (int, error) {
		switch v.(type) {
		case string, int64:
			return findGroup(fmt.Sprint(v))
		}
		return 0, errUnwanted
	})
	value(d, "nftables.table", "a text", &t.Table, ruleset.ParseTable)
	value(d, "nftables.rules", "true or false", &t.Rules, same[bool])
	for key, name := range map[string]*string{"blocked4": &t.Blocked[0], "blocked6": &t.Blocked[1],
		"allowed4": &t.Allowed[0], "allowed6": &t.Allowed[1], "chain": &t.Chain} {
		value(d, "nftables."+key, "a text", name, same[string])
	}
	choice(d, "nftables.hook", &t.Hook, ruleset.HookInput, ruleset.HookForward, ruleset.HookPrerouting)
	choice(d, "nftables.verdict", &t.Verdict, ruleset.Drop, ruleset.Reject)
	for key := range d.values {
		d.bad(key, errors.New("unknown key"))
	}
	if len(d.problems) == 0 && p.MaxExpiry < p.Expiry {
		d.bad("max_expiry", fmt.Errorf("%s, want no less than expiry, %s", p.MaxExpiry, p.Expiry))
	}
	if len(d.problems) == 0 {
		for _, problem := range t.Check() {
			d.bad("nftables."+problem.Key, errors.New(problem.Text))
		}
	}
	return c, d.err()
}

// errUnwanted stands for "want" and what is wanted.
var errUnwanted = errors.New("unwanted")

// value takes a key out of the document, and reads its value, which is to be what
// wanted describes. It reports whether there is one, and a good one.
func value[T, V any](d *document, key, wanted string, into *V, read func(T) (V, error)) bool {
	v, ok := d.values[key]
	if !ok {
		return false
	}
	delete(d.values, key)
	x, err := readAs(v, wanted, read)
	d.bad(key, err)
	if err == nil {
		*into = x
	}
	return err == nil
}

// readAs reads a value of one type.
func readAs[T, V any](v any, wanted string, read func(T) (V, error)) (x V, err error) {
	err = errUnwanted
	if t, ok := v.(T); ok {
		x, err = read(t)
	}
	if err != errUnwanted {
		return x, err
	}
	// As it would stand in the file, as far as it matters.
	switch t := v.(type) {
	case string:
		v = strconv.Quote(t)
	case []any:
		v = "an array"
	case map[string]any:
		v = "a table"
	}
	return x, fmt.Errorf("%v, want %s", v, wanted)
}

func same[T any](v T) (T, error) { return v, nil }

// list reads an array, each element of it by itself, and adds them to into.
func list[T, V any](d *document, key, wanted string, into *[]V, read func(T) (V, error)) bool {
	return value(d, key, wanted, into, func(values []any) ([]V, error) {
		all, errs := *into, []error(nil)
		for _, v := range values {
			x, err := readAs(v, wanted, read)
			all, errs = append(all, x), append(errs, err)
		}
		return all, errors.Join(errs...)
	})
}

func duration(d *document, key string, into *time.Duration, least, most time.Duration) {
	value(d, key, `a duration such as "90s", "30m", "1h30m", "1d" or "2w"`, into, func(s string) (time.Duration, error) {
		v, err := parseDuration(s)
		if err != nil {
			return 0, errUnwanted
		}
		if v < least || v > most {
			return 0, fmt.Errorf("%q, want %s to %s", s, least, most)
		}
		return v, nil
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

func number[T int | float64](d *document, key string, into *T, least, most T) {
	value(d, key, fmt.Sprintf("a number from %v to %v", least, most), into, func(v any) (T, error) {
		n := math.NaN()
		switch v := v.(type) {
		case int64:
			n = float64(v)
		case T:
			n = float64(v)
		}
		if n >= float64(least) && n <= float64(most) {
			return T(n), nil
		}
		return 0, errUnwanted
	})
}

func choice[T ~string](d *document, key string, into *T, choices ...T) {
	value(d, key, fmt.Sprintf("one of %q", choices), into, func(s string) (T, error) {
		if !slices.Contains(choices, T(s)) {
			return "", errUnwanted
		}
		return T(s), nil
	})
}

func parsePort(n int64) (uint16, error) {
	if n < 1 || n > 65535 {
		return 0, errUnwanted
	}
	return uint16(n), nil
}

// parseNetwork reads a network, or an address that stands for itself.
func parseNetwork(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if addr, noAddr := netip.ParseAddr(s); noAddr == nil && addr.Zone() == "" {
		p, err = addr.Prefix(addr.BitLen())
	}
	switch {
	case err != nil:
		err = fmt.Errorf("%q is neither a network nor an address", s)
	case p != p.Masked():
		err = fmt.Errorf("%q has bits after its length, want %q or %q", s, p.Masked(), p.Addr())
	case p.Addr().Is4In6() && p.Bits() < 96:
		err = fmt.Errorf("%q is neither IPv4 nor IPv6", s)
	case p.Addr().Is4In6():
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p, err
}

// parseListing reads what blocks nobody, in the syntax of rblsmtpd -r.
func parseListing(s string) (book.Listing, error) {
	source := dnsbl.ParseList(s)
	switch {
	case source.Err != nil:
		return book.Listing{}, fmt.Errorf("%q: %w", s, source.Err)
	case source.Fixed:
		return book.Listing{}, fmt.Errorf("%q has a message, want zones and return codes alone", s)
	}
	return book.Listing{Zone: source.Zone, Codes: source.Codes}, nil
}

// findGroup finds a group, by name or number.
func findGroup(s string) (int, error) {
	number := s
	if g, err := user.LookupGroup(s); err == nil {
		number = g.Gid
	}
	gid, err := strconv.ParseUint(number, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("there is no group %q", s)
	}
	return int(gid), nil
}
