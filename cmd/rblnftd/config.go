package main

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"rblnft/dnsbl"
	"rblnft/firewall"
	"rblnft/firewall/book"
	"rblnft/firewall/nft"
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
	r := &reader{file: file}
	if err := r.read(data); err != nil {
		return config{}, err
	}
	c := config{Config: firewall.Config{Ruleset: ruleset.Default(), Batch: 250 * time.Millisecond}}

	p := &c.Policy
	*p = book.Policy{Hits: 1, Window: 10 * time.Minute, Expiry: time.Hour, Escalate: 2, MaxExpiry: 8 * time.Hour, MaxElements: 1_000_000}
	const year = 365 * 24 * time.Hour
	r.duration("expiry", &p.Expiry, time.Second, year)
	r.integer("hits", &p.Hits, 1, book.MaxHits)
	r.duration("window", &p.Window, time.Second, year)
	r.float("escalate", &p.Escalate, 1, 1000)
	p.MaxExpiry = max(p.MaxExpiry, p.Expiry)
	r.duration("max_expiry", &p.MaxExpiry, p.Expiry, year)
	r.integer("max_elements", &p.MaxElements, 1, 100_000_000)
	r.networks("allow", &p.Allow)
	p.Allow = append(slices.Clone(never), p.Allow...)
	r.listings("ignore", &p.Ignore)
	r.duration("batch", &c.Batch, 0, time.Minute)

	t := &c.Ruleset
	r.ports("ports", &t.Ports)
	c.socketGroup = r.group("socket_group", "nofiles")
	r.table("nftables.table", &t.Table)
	r.text("nftables.blocked4", &t.Blocked[0])
	r.text("nftables.blocked6", &t.Blocked[1])
	r.text("nftables.allowed4", &t.Allowed[0])
	r.text("nftables.allowed6", &t.Allowed[1])
	r.boolean("nftables.rules", &t.Rules)
	r.text("nftables.chain", &t.Chain)
	r.text("nftables.hook", (*string)(&t.Hook), string(ruleset.HookInput), string(ruleset.HookForward), string(ruleset.HookPrerouting))
	r.text("nftables.verdict", (*string)(&t.Verdict), string(ruleset.Drop), string(ruleset.Reject))

	r.unknown()
	if len(r.problems) == 0 {
		for _, problem := range t.Check() {
			r.bad("nftables."+problem.Key, "%s", problem.Text)
		}
	}
	return c, r.err()
}

// A reader takes values out of a TOML document, key by key, and collects what
// is wrong with them. Keys in tables are written with dots.
type reader struct {
	file     string
	values   map[string]any
	lines    map[string]int
	asked    []string
	problems []problem
}

type problem struct {
	line int
	text string
}

// read parses the document. The error is that of the TOML syntax.
func (r *reader) read(data []byte) error {
	var tree map[string]any
	if err := toml.Unmarshal(data, &tree); err != nil {
		var at *toml.DecodeError
		if !errors.As(err, &at) {
			return fmt.Errorf("%s: %w", r.file, err)
		}
		line, _ := at.Position()
		key := ""
		if len(at.Key()) > 0 {
			key = strings.Join(at.Key(), ".") + ": "
		}
		return fmt.Errorf("%s:%d: %s%s", r.file, line, key, strings.TrimPrefix(at.Error(), "toml: "))
	}
	r.values, r.lines = map[string]any{}, map[string]int{}
	flatten("", tree, r.values)
	r.findLines(data)
	return nil
}

// flatten puts the values of tables under keys with dots.
func flatten(prefix string, tree, into map[string]any) {
	for k, v := range tree {
		if table, ok := v.(map[string]any); ok && len(table) > 0 {
			flatten(prefix+k+".", table, into)
		} else if ok {
			into[prefix+k] = emptyTable{}
		} else {
			into[prefix+k] = v
		}
	}
}

type emptyTable struct{}

// findLines notes at which line each key, and each table, is.
func (r *reader) findLines(data []byte) {
	var p unstable.Parser
	p.Reset(data)
	table := ""
	for p.NextExpression() {
		e := p.Expression()
		var words []string
		line := 0
		for it := e.Key(); it.Next(); {
			words = append(words, string(it.Node().Data))
			if line == 0 {
				line = p.Shape(it.Node().Raw).Start.Line
			}
		}
		key := strings.Join(words, ".")
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = key + "."
			r.note(key, line)
		case unstable.KeyValue:
			key = table + key
			r.note(key, line)
			if e.Value().Kind == unstable.InlineTable {
				for it := e.Value().Children(); it.Next(); {
					for sub := it.Node().Key(); sub.Next(); {
						r.note(key+"."+string(sub.Node().Data), p.Shape(sub.Node().Raw).Start.Line)
					}
				}
			}
		}
	}
}

func (r *reader) note(key string, line int) {
	if _, known := r.lines[key]; !known {
		r.lines[key] = line
	}
}

// line returns where key is, or what is nearest to it.
func (r *reader) line(key string) int {
	for {
		if line, ok := r.lines[key]; ok {
			return line
		}
		i := strings.LastIndexByte(key, '.')
		if i < 0 {
			return 1
		}
		key = key[:i]
	}
}

func (r *reader) bad(key, format string, args ...any) {
	r.problems = append(r.problems, problem{r.line(key), key + ": " + fmt.Sprintf(format, args...)})
}

// err returns all that is wrong, in the order of lines.
func (r *reader) err() error {
	slices.SortStableFunc(r.problems, func(a, b problem) int { return a.line - b.line })
	var errs []error
	for _, p := range r.problems {
		errs = append(errs, fmt.Errorf("%s:%d: %s", r.file, p.line, p.text))
	}
	return errors.Join(errs...)
}

func (r *reader) has(key string) bool { _, ok := r.values[key]; return ok }

// unknown complains about keys that nothing asked for.
func (r *reader) unknown() {
	for _, key := range slices.Sorted(maps.Keys(r.values)) {
		if slices.Contains(r.asked, key) {
			continue
		}
		if _, ok := r.values[key].(emptyTable); ok && key == "nftables" {
			continue
		}
		r.bad(key, "unknown key")
	}
}

// get returns the value of key, of type T. Wanted describes what it should be.
func get[T any](r *reader, key, wanted string) (value T, ok bool) {
	r.asked = append(r.asked, key)
	v, ok := r.values[key]
	if !ok {
		return value, false
	}
	if value, ok = v.(T); !ok {
		r.bad(key, "%s, want %s", describe(v), wanted)
	}
	return value, ok
}

// describe shows a value as it would stand in the file, as far as it matters.
func describe(v any) string {
	switch v := v.(type) {
	case string:
		return strconv.Quote(v)
	case []any:
		return "an array"
	case emptyTable, map[string]any:
		return "a table"
	}
	return fmt.Sprint(v)
}

func (r *reader) duration(key string, into *time.Duration, least, most time.Duration) {
	const wanted = `a duration such as "90s", "30m", "1h30m", "1d" or "2w"`
	s, ok := get[string](r, key, wanted)
	if !ok {
		return
	}
	d, err := parseDuration(s)
	switch {
	case err != nil:
		r.bad(key, "%q, want %s", s, wanted)
	case d < least || d > most:
		r.bad(key, "%q, want %s to %s", s, least, most)
	default:
		*into = d
	}
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

func (r *reader) integer(key string, into *int, least, most int) {
	wanted := fmt.Sprintf("a number from %d to %d", least, most)
	n, ok := get[int64](r, key, wanted)
	if !ok {
		return
	}
	if n < int64(least) || n > int64(most) {
		r.bad(key, "%d, want %s", n, wanted)
		return
	}
	*into = int(n)
}

func (r *reader) float(key string, into *float64, least, most float64) {
	wanted := fmt.Sprintf("a number from %g to %g", least, most)
	if n, ok := r.values[key].(int64); ok {
		r.values[key] = float64(n)
	}
	x, ok := get[float64](r, key, wanted)
	if !ok {
		return
	}
	if math.IsNaN(x) || x < least || x > most {
		r.bad(key, "%g, want %s", x, wanted)
		return
	}
	*into = x
}

func (r *reader) boolean(key string, into *bool) {
	if b, ok := get[bool](r, key, "true or false"); ok {
		*into = b
	}
}

// text takes a string; where there are choices, one of them.
func (r *reader) text(key string, into *string, choices ...string) {
	wanted := "a text"
	if len(choices) > 0 {
		wanted = `one of "` + strings.Join(choices, `", "`) + `"`
	}
	s, ok := get[string](r, key, wanted)
	if !ok {
		return
	}
	if len(choices) > 0 && !slices.Contains(choices, s) {
		r.bad(key, "%q, want %s", s, wanted)
		return
	}
	*into = s
}

// list calls each with every element of an array; each returns what is wrong
// with it.
func (r *reader) list(key, wanted string, each func(any) error) (ok bool) {
	all, ok := get[[]any](r, key, wanted)
	if !ok {
		return false
	}
	for _, v := range all {
		if err := each(v); err != nil {
			r.bad(key, "%s", err)
			ok = false
		}
	}
	return ok
}

func (r *reader) ports(key string, into *[]uint16) {
	var ports []uint16
	const wanted = "an array of port numbers, 1 to 65535"
	ok := r.list(key, wanted, func(v any) error {
		n, ok := v.(int64)
		if !ok || n < 1 || n > 65535 {
			return fmt.Errorf("%s, want %s", describe(v), wanted)
		}
		if !slices.Contains(ports, uint16(n)) {
			ports = append(ports, uint16(n))
		}
		return nil
	})
	if ok && len(ports) == 0 {
		r.bad(key, "empty, want %s", wanted)
	} else if ok {
		*into = ports
	}
}

func (r *reader) networks(key string, into *[]netip.Prefix) {
	networks := []netip.Prefix{}
	const wanted = `an array of networks such as "192.0.2.0/24" and addresses`
	ok := r.list(key, wanted, func(v any) error {
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("%s, want %s", describe(v), wanted)
		}
		p, err := parseNetwork(s)
		if err != nil {
			return err
		}
		networks = append(networks, p)
		return nil
	})
	if ok {
		*into = networks
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

// listings takes what blocks nobody, in the syntax of rblsmtpd -r.
func (r *reader) listings(key string, into *[]book.Listing) {
	const wanted = `an array of zones and return codes such as "zen.example=127.0.0.[10;11]"`
	r.list(key, wanted, func(v any) error {
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("%s, want %s", describe(v), wanted)
		}
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

// group takes a group, by name or number. Without the key it is the one named def,
// if there is one; -1 otherwise.
func (r *reader) group(key, def string) int {
	const wanted = "the name or the number of a group"
	if r.has(key) {
		if n, ok := r.values[key].(int64); ok {
			r.values[key] = strconv.FormatInt(n, 10)
		}
		def, _ = get[string](r, key, wanted)
	}
	if gid, err := strconv.ParseUint(def, 10, 31); err == nil {
		return int(gid)
	}
	g, err := user.LookupGroup(def)
	if err != nil {
		if r.has(key) && def != "" {
			r.bad(key, "there is no group %q", def)
		}
		return -1
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		r.bad(key, "group %q has number %q", def, g.Gid)
	}
	return gid
}

func (r *reader) table(key string, into *nft.Table) {
	s, ok := get[string](r, key, "a table")
	if !ok {
		return
	}
	t, err := ruleset.ParseTable(s)
	if err != nil {
		r.bad(key, "%v", err)
		return
	}
	*into = t
}
