package main

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"rblnft/firewall"
	"rblnft/firewall/book"
	"rblnft/firewall/intake"
)

// defaultFile is the configuration that is read where it exists.
const defaultFile = "/etc/rblnft/rblnftd.toml"

// A config is the checked configuration.
type config struct {
	book   book.Policy
	intake intake.Policy
	table  firewall.Config

	// The hits socket's, where it is our own.
	socketMode  os.FileMode
	socketGroup int // -1: as it comes
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
	return parse(path, data)
}

// parse checks a configuration and fills in the defaults.
func parse(file string, data []byte) (config, error) {
	r := &reader{file: file}
	if err := r.read(data); err != nil {
		return config{}, err
	}
	c := config{table: firewall.DefaultConfig()}

	p := &c.book
	*p = book.Policy{Hits: 1, Window: 10 * time.Minute, Expiry: time.Hour, Escalate: 2, MaxExpiry: 168 * time.Hour}
	const year = 365 * 24 * time.Hour
	r.duration("expiry", &p.Expiry, time.Second, year)
	r.integer("hits", &p.Hits, 1, book.MaxHits)
	r.duration("window", &p.Window, time.Second, year)
	r.float("escalate", &p.Escalate, 1, 1000)
	p.MaxExpiry = max(p.MaxExpiry, p.Expiry)
	r.duration("max_expiry", &p.MaxExpiry, p.Expiry, year)
	r.integer("max_elements", &c.table.MaxElements, 1, 100_000_000)
	p.MaxElements = c.table.MaxElements
	r.networks("allow", &c.table.Allow)
	p.Allow = c.table.Allow
	r.ports("ports", &c.table.Ports)

	c.intake.Ports = c.table.Ports
	c.intake.Peer = intake.Verify
	r.text("peer", (*string)(&c.intake.Peer), string(intake.Require), string(intake.Verify), string(intake.Ignore))
	r.ids("allow_uid", &c.intake.Senders.UIDs, lookupUser)
	r.ids("allow_group", &c.intake.Senders.GIDs, lookupGroup)
	if !r.has("allow_uid") && !r.has("allow_group") {
		c.intake.Senders = defaultSenders()
	}

	c.socketMode, c.socketGroup = 0o666, -1
	if len(c.intake.Senders.GIDs) > 0 {
		c.socketMode, c.socketGroup = 0o660, int(c.intake.Senders.GIDs[0])
	}
	r.mode("socket_mode", &c.socketMode)

	t := &c.table
	r.text("nftables.table", &t.Table)
	r.text("nftables.blocked4", &t.Blocked4)
	r.text("nftables.blocked6", &t.Blocked6)
	r.text("nftables.allowed4", &t.Allowed4)
	r.text("nftables.allowed6", &t.Allowed6)
	r.boolean("nftables.rules", &t.Rules)
	r.text("nftables.chain", &t.Chain)
	r.text("nftables.hook", (*string)(&t.Hook), string(firewall.HookInput), string(firewall.HookForward), string(firewall.HookPrerouting))
	r.text("nftables.verdict", (*string)(&t.Verdict), string(firewall.Drop), string(firewall.Reject))

	r.unknown()
	if len(r.problems) == 0 {
		r.table(t)
	}
	return c, r.err()
}

// defaultSenders are root, the daemon's own user, the user that qmail's run
// scripts start the filter as, and anybody else with proof.
func defaultSenders() intake.Senders {
	s := intake.Senders{UIDs: []uint32{0}, Others: true}
	if own := uint32(os.Geteuid()); own != 0 {
		s.UIDs = append(s.UIDs, own)
	}
	if qmaild, err := lookupUser("qmaild"); err == nil {
		s.UIDs = append(s.UIDs, qmaild)
	}
	return s
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
	const wanted = `a duration such as "90s", "30m" or "1h"`
	s, ok := get[string](r, key, wanted)
	if !ok {
		return
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		r.bad(key, "%q, want %s", s, wanted)
	case d < least || d > most:
		r.bad(key, "%q, want %s to %s", s, least, most)
	default:
		*into = d
	}
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

// ids takes users or groups, by number or name.
func (r *reader) ids(key string, into *[]uint32, lookup func(string) (uint32, error)) {
	var ids []uint32
	const wanted = "an array of names and numbers"
	ok := r.list(key, wanted, func(v any) error {
		switch v := v.(type) {
		case int64:
			// The highest one means none (chown(2)).
			if v < 0 || v >= math.MaxUint32 {
				return fmt.Errorf("%d, want 0 to %d", v, uint32(math.MaxUint32-1))
			}
			ids = append(ids, uint32(v))
		case string:
			id, err := lookup(v)
			if err != nil {
				return err
			}
			ids = append(ids, id)
		default:
			return fmt.Errorf("%s, want %s", describe(v), wanted)
		}
		return nil
	})
	if ok {
		*into = ids
	}
}

func lookupUser(name string) (uint32, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, fmt.Errorf("there is no user %q", name)
	}
	id, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(id), err
}

func lookupGroup(name string) (uint32, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("there is no group %q", name)
	}
	id, err := strconv.ParseUint(g.Gid, 10, 32)
	return uint32(id), err
}

func (r *reader) mode(key string, into *os.FileMode) {
	const wanted = `permissions such as "0660"`
	s, ok := get[string](r, key, wanted)
	if !ok {
		return
	}
	mode, err := strconv.ParseUint(s, 8, 32)
	if err != nil || mode > 0o777 {
		r.bad(key, "%q, want %s", s, wanted)
		return
	}
	*into = os.FileMode(mode)
}

// table has package firewall check what only it knows.
func (r *reader) table(t *firewall.Config) {
	err := t.Validate()
	if err == nil {
		return
	}
	errs := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		errs = joined.Unwrap()
	}
	for _, err := range errs {
		// The errors begin with the name of the field, as the key has it.
		text := strings.TrimPrefix(err.Error(), "set ")
		key, _, _ := strings.Cut(text, " ")
		key = "nftables." + strings.TrimSuffix(key, ":")
		if !slices.Contains(r.asked, key) {
			key = "nftables"
		}
		r.bad(key, "%s", err)
	}
}
