//go:build linux

package ruleset

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/firewall/firewalltest"
	"rblnft/firewall/netlab"
	"rblnft/firewall/nft"
)

func TestMain(m *testing.M) { netlab.Main(m) }

var run, script, flush = firewalltest.NFT, firewalltest.Script, firewalltest.Flush

func dial(t testing.TB) *nft.Conn {
	t.Helper()
	c, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func networks(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// open returns the ruleset of a configuration, which is in the kernel.
func open(t testing.TB, cfg Config, allow ...string) (*Ruleset, State) {
	t.Helper()
	r, err := New(dial(t), cfg, networks(allow...))
	if err != nil {
		t.Fatal(err)
	}
	return r, ensure(t, r)
}

func ensure(t testing.TB, r *Ruleset) State {
	t.Helper()
	s, err := r.Ensure()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// inTheWay checks that Ensure refuses, says what is in the way, and changes nothing.
func inTheWay(t *testing.T, r *Ruleset, what string) {
	t.Helper()
	before := run(t, "list", "ruleset")
	_, err := r.Ensure()
	var e *InTheWay
	if !errors.As(err, &e) || !strings.Contains(err.Error(), what) {
		t.Errorf("%v, want %q in the way", err, what)
	}
	if after := run(t, "list", "ruleset"); after != before {
		t.Errorf("changed from\n%s\nto\n%s", before, after)
	}
}

// listing is the ruleset without what is random.
func listing(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(run(t, "list", "ruleset")) {
		if strings.Contains(line, `comment "rblnft `) {
			line = "\t\tcomment \"rblnft ...\"\n"
		}
		if i := strings.Index(line, `comment "rblnftd `); i >= 0 {
			line = line[:i] + "comment \"rblnftd ...\"\n"
		}
		b.WriteString(line)
	}
	return b.String()
}

func TestLayout(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Config)
		want   []string
	}{
		"default": {func(*Config) {}, []string{
			"table inet rblnft {", "type filter hook input priority filter - 10; policy accept;",
			`tcp dport 25 tcp flags syn / fin,syn,rst,ack ip saddr @blocked4 ip saddr != @allowed4 counter name "dropped4" drop`,
			`tcp dport 25 tcp flags syn / fin,syn,rst,ack ip6 saddr & ffff:ffff:ffff:ffff:: == @blocked6 ip6 saddr != @allowed6 counter name "dropped6" drop`,
			"gc-interval 1m", "elements = { 10.0.0.0/7, 192.0.2.7 }", "elements = { fd00::/8 }",
		}},
		"ports, reject, names": {func(c *Config) {
			c.Ports, c.Verdict, c.Chain = []uint16{25, 2525}, Reject, "mail-in"
			c.Blocked, c.Allowed, c.Table.Name = [2]string{"b4", "b6"}, [2]string{"a4", "a6"}, "mail"
		}, []string{
			"table inet mail {", "chain mail-in {",
			`tcp dport 25 tcp flags syn / fin,syn,rst,ack ip saddr @b4 ip saddr != @a4 counter name "dropped4" reject with tcp reset`,
			`tcp dport 2525 tcp flags syn / fin,syn,rst,ack ip6 saddr & ffff:ffff:ffff:ffff:: == @b6 ip6 saddr != @a6 counter name "dropped6" reject with tcp reset`,
		}},
		"forward":    {func(c *Config) { c.Hook = HookForward }, []string{"chain forward {", "type filter hook forward priority filter - 10;"}},
		"prerouting": {func(c *Config) { c.Hook = HookPrerouting }, []string{"chain prerouting {", "type filter hook prerouting priority dstnat - 10;"}},
	} {
		t.Run(name, func(t *testing.T) {
			flush(t)
			cfg := Default()
			tt.change(&cfg)
			r, first := open(t, cfg, "10.0.0.0/8", "11.0.0.0/8", "10.1.0.0/16", "192.0.2.7/32", "fd00::/8")
			got := listing(t)
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("no %q in\n%s", want, got)
				}
			}
			// Again it changes nothing, nor does another process with the same wishes.
			if s := ensure(t, r); s.Set != first.Set || len(s.Found) > 0 {
				t.Errorf("again: %+v, first %+v", s, first)
			}
			if _, s := open(t, cfg); s.Set != first.Set || len(s.Found) > 0 {
				t.Errorf("another: %+v, first %+v", s, first)
			}
			// What nft prints it takes.
			text := run(t, "list", "ruleset")
			script(t, "flush ruleset\n"+text)
			if again := run(t, "list", "ruleset"); again != text {
				t.Errorf("read back\n%s\nwas\n%s", again, text)
			}
			r.SetAllow(nil)
			if s := ensure(t, r); s.Set == first.Set || s.Set[0] == "" || len(s.Found) > 0 {
				t.Errorf("a set that is not the one that was filled is not told: %+v, first %+v", s, first)
			}
			if err := Remove(r.conn, cfg, nil); err != nil {
				t.Error(err)
			}
			if left := run(t, "list", "ruleset"); left != "" {
				t.Errorf("left\n%s", left)
			}
		})
	}
}

// Whatever of ours somebody else removes or changes is as it was afterwards, the
// counters where they can be, and nothing else is touched.
func TestRepair(t *testing.T) {
	for name, tt := range map[string]struct {
		script string
		other  [2]bool // whether the sets are others afterwards
	}{
		"flush ruleset":    {"flush ruleset\n", [2]bool{true, true}},
		"delete table":     {"delete table inet rblnft\n", [2]bool{true, true}},
		"delete chain":     {"flush chain inet rblnft input\ndelete chain inet rblnft input\n", [2]bool{}},
		"delete set":       {"flush chain inet rblnft input\ndelete set inet rblnft blocked4\n", [2]bool{true, false}},
		"delete allowed":   {"flush chain inet rblnft input\ndelete set inet rblnft allowed6\n", [2]bool{}},
		"flush chain":      {"flush chain inet rblnft input\n", [2]bool{}},
		"delete counter":   {"flush chain inet rblnft input\ndelete counter inet rblnft dropped4\n", [2]bool{}},
		"policy":           {"chain inet rblnft input { policy drop; }\n", [2]bool{}},
		"dormant":          {"table inet rblnft { flags dormant; }\n", [2]bool{}},
		"ours, another":    {"flush ruleset\ntable inet rblnft { comment \"rblnftd\"; set blocked4 { type inet_service; comment \"rblnft x\"; }; }\n", [2]bool{true, true}},
		"ours, other hook": {"flush chain inet rblnft input\ndelete chain inet rblnft input\nadd chain inet rblnft input { type filter hook forward priority 0; comment \"rblnftd\"; }\n", [2]bool{}},
		"ours, with size":  {"flush chain inet rblnft input\ndelete set inet rblnft blocked6\nadd set inet rblnft blocked6 { type ipv6_addr; flags timeout; size 10; comment \"rblnft x\"; }\n", [2]bool{false, true}},
		"another of ours":  {"add rule inet rblnft input tcp dport 25 drop comment \"rblnftd 0\"\n", [2]bool{}},
	} {
		t.Run(name, func(t *testing.T) {
			flush(t)
			r, first := open(t, Default(), "10.0.0.0/8")
			want := listing(t)
			script(t, tt.script)
			s := ensure(t, r)
			if len(s.Found) == 0 {
				t.Error("nothing was found")
			}
			for i := range s.Set {
				if (s.Set[i] != first.Set[i]) != tt.other[i] {
					t.Errorf("set %d was %s, is %s", i, first.Set[i], s.Set[i])
				}
			}
			if got := listing(t); sortedLines(got) != sortedLines(want) { // in whatever order
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// Others' rules, sets and chains stay where they are, even in our table and chain,
// and even where they cannot be read.
func TestOthersStay(t *testing.T) {
	flush(t)
	const theirs = `
table ip filter { chain input { type filter hook input priority 0; tcp dport 25 ct original ip saddr 192.0.2.0/24 accept; }; }
table inet rblnft { set theirs { type ipv4_addr; elements = { 192.0.2.1 }; }; chain other { ip saddr @theirs accept; }; }
`
	script(t, theirs)
	r, _ := open(t, Default(), "10.0.0.0/8")
	script(t, "insert rule inet rblnft input ct original ip saddr 198.51.100.0/24 accept\nadd rule inet rblnft input ip saddr @theirs counter\n")
	nothing := ensure(t, r)
	if len(nothing.Found) > 0 {
		t.Errorf("others' rules are found wrong: %v", nothing.Found)
	}
	before := listing(t)
	for _, handle := range handles(t, "tcp dport 25") {
		run(t, "delete", "rule", "inet", "rblnft", "input", "handle", handle)
	}
	ensure(t, r)
	after := listing(t)
	for line := range strings.Lines(before) {
		if !strings.Contains(after, line) {
			t.Errorf("%q is gone", line)
		}
	}
	if strings.Index(after, "198.51.100.0/24") > strings.Index(after, "tcp dport 25 tcp flags") {
		t.Errorf("the inserted rule is not the first any more:\n%s", after)
	}
	if err := Remove(r.conn, r.cfg, nil); err != nil {
		t.Fatal(err)
	}
	left := listing(t)
	for _, want := range []string{"set theirs", "chain other", "chain input", "ct original ip saddr 198.51.100.0/24 accept", "ip saddr @theirs counter"} {
		if !strings.Contains(left, want) {
			t.Errorf("Remove took %q away:\n%s", want, left)
		}
	}
	for _, gone := range []string{"blocked4", "blocked6", "allowed4", "allowed6", "dropped4", "rblnftd \""} {
		if strings.Contains(left, gone) {
			t.Errorf("Remove left %q:\n%s", gone, left)
		}
	}
}

// handles are those of the rules of our chain that have a text.
func handles(t *testing.T, text string) (all []string) {
	t.Helper()
	for line := range strings.Lines(run(t, "-a", "list", "chain", "inet", "rblnft", "input")) {
		if strings.Contains(line, text) {
			_, handle, _ := strings.Cut(strings.TrimSpace(line), "# handle ")
			all = append(all, handle)
		}
	}
	return all
}

func TestInTheWay(t *testing.T) {
	for name, tt := range map[string]struct{ script, want string }{
		"chain":         {"table inet rblnft { chain input { type filter hook input priority 0; tcp dport 22 accept; }; }", "chain input of table inet rblnft is there, and not rblnftd's"},
		"set":           {"table inet rblnft { set blocked4 { type ipv4_addr; flags timeout; elements = { 192.0.2.1 }; }; }", "set blocked4 of table inet rblnft is there"},
		"allowed":       {"table inet rblnft { set allowed6 { type ipv6_addr; flags interval; }; }", "set allowed6 of table inet rblnft is there"},
		"counter":       {"table inet rblnft { counter dropped6 { }; }", "counter dropped6 of table inet rblnft is there"},
		"dormant":       {"table inet rblnft { flags dormant; }", "table inet rblnft is dormant"},
		"used by rules": {"table inet rblnft { comment \"rblnftd\"; set blocked4 { type inet_service; comment \"rblnft x\"; }; chain c { tcp dport @blocked4 accept; }; }", "somebody else's rules use"},
	} {
		t.Run(name, func(t *testing.T) {
			flush(t)
			script(t, tt.script)
			r, err := New(dial(t), Default(), nil)
			if err != nil {
				t.Fatal(err)
			}
			inTheWay(t, r, tt.want)
			// Nor is it deleted with what is ours.
			before := run(t, "list", "ruleset")
			if err := Remove(r.conn, r.cfg, nil); err != nil && name != "used by rules" {
				t.Error(err)
			}
			if after := run(t, "list", "ruleset"); after != before {
				t.Errorf("Remove changed\n%s\nto\n%s", before, after)
			}
			flush(t)
			ensure(t, r)
		})
	}
}

// A table that belongs to another process (flags owner) says so.
func TestOwner(t *testing.T) {
	flush(t)
	const ownerFlag = uint32(2) // NFT_TABLE_F_OWNER
	var tx nft.Transaction
	tx.Message(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, Default().Table, field(unix.NFTA_TABLE_NAME, "rblnft"), field(unix.NFTA_TABLE_FLAGS, ownerFlag))
	if err := dial(t).Commit(&tx); err != nil {
		t.Fatal(err)
	}
	r, err := New(dial(t), Default(), nil)
	if err != nil {
		t.Fatal(err)
	}
	inTheWay(t, r, "table inet rblnft has an owner (flags owner)")
}

// The allowed sets have the configuration's networks at a start, after a change, and
// after somebody else's.
func TestAllow(t *testing.T) {
	flush(t)
	r, first := open(t, Default(), "10.0.0.0/8", "2001:db8::/32")
	set := func(name string) string {
		t.Helper()
		_, elements, _ := strings.Cut(run(t, "list", "set", "inet", "rblnft", name), "elements = ")
		elements, _, _ = strings.Cut(elements, "\n")
		return elements
	}
	check := func(when, want4, want6 string) {
		t.Helper()
		if got4, got6 := set("allowed4"), set("allowed6"); got4 != want4 || got6 != want6 {
			t.Errorf("%s: %q, %q, want %q, %q", when, got4, got6, want4, want6)
		}
	}
	check("first", "{ 10.0.0.0/8 }", "{ 2001:db8::/32 }")
	// Another start, with another list, and with the same sets.
	r, s := open(t, Default(), "192.0.2.0/24", "0.0.0.0/1", "255.255.255.254/31", "::/0")
	if s.Set != first.Set {
		t.Errorf("sets %v, first %v", s.Set, first.Set)
	}
	check("another start", "{ 0.0.0.0/1, 192.0.2.0/24,", "{ ::/0 }")
	script(t, "flush set inet rblnft allowed4\n")
	if !r.Touched("allowed4") || r.Touched("blocked4") || r.Touched("other") {
		t.Error("which sets are ours to put right")
	}
	ensure(t, r)
	check("flushed by somebody", "{ 0.0.0.0/1, 192.0.2.0/24,", "{ ::/0 }")
	r.SetAllow(nil)
	ensure(t, r)
	check("none", "", "")
}

// A country's list has hundreds of thousands of networks.
func TestHugeAllowList(t *testing.T) {
	flush(t)
	n := 300_000
	if testing.Short() {
		n = 30_000
	}
	all := make([]netip.Prefix, n)
	for i := range all {
		all[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(1 + i>>15), byte(i >> 7), byte(i << 1), 0}), 24)
	}
	start := time.Now()
	r, err := New(dial(t), Default(), all)
	if err != nil {
		t.Fatal(err)
	}
	ensure(t, r)
	t.Logf("%d networks took %s", n, time.Since(start))
	for _, last := range []netip.Prefix{all[0], all[n/2], all[n-1]} {
		found, err := r.conn.Ask(r.cfg.Table, "allowed4", []netip.Addr{last.Addr()})
		if err != nil || !found[0] {
			t.Errorf("%s: %v, %v", last, found, err)
		}
	}
}

// The administrator's sets are looked at, and nothing of his is changed.
func TestForeignSets(t *testing.T) {
	cfg := Default()
	cfg.Rules, cfg.Table.Name = false, "filter"
	flush(t)
	r, err := New(dial(t), cfg, networks("10.0.0.0/8"))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := r.Ensure(); err != nil || s.Set != [2]string{} {
		t.Errorf("nothing there: %+v, %v", s, err)
	}
	script(t, "table inet filter { set blocked4 { type ipv4_addr; flags timeout; size 500; timeout 1d; }; set allowed4 { type ipv4_addr; elements = { 192.0.2.9 }; }; }")
	before := run(t, "list", "ruleset")
	s, err := r.Ensure()
	if err != nil || s.Set[0] == "" || s.Set[1] != "" || s.Size != [2]int{500, 0} {
		t.Errorf("one set there: %+v, %v", s, err)
	}
	r.Touched("allowed4")
	if again := ensure(t, r); again.Set != s.Set {
		t.Errorf("another: %v, %v", again, s)
	}
	if after := run(t, "list", "ruleset"); after != before {
		t.Errorf("changed\n%s\nto\n%s", before, after)
	}
	script(t, "delete set inet filter blocked4\nadd set inet filter blocked4 { type ipv4_addr; flags timeout; }\n")
	if again := ensure(t, r); again.Set == s.Set {
		t.Error("another set is taken for the same")
	}
	script(t, "delete set inet filter blocked4\nadd set inet filter blocked4 { type ipv4_addr; flags interval; }\n")
	inTheWay(t, r, "set blocked4 of table inet filter: want type ipv4_addr and flags timeout")
	if err := Remove(r.conn, cfg, nil); err != nil {
		t.Error(err)
	}
	if !strings.Contains(run(t, "list", "ruleset"), "192.0.2.9") {
		t.Error("removed")
	}
}

// What has other names in another configuration does not stay behind, and what has
// the same is not touched.
func TestRemoveOld(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"table":   func(c *Config) { c.Table.Name = "mail" },
		"sets":    func(c *Config) { c.Blocked[0], c.Allowed[1] = "bots", "friends6" },
		"chain":   func(c *Config) { c.Chain = "mail" },
		"hook":    func(c *Config) { c.Hook = HookPrerouting },
		"no more": func(c *Config) { c.Rules, c.Table.Name = false, "filter" },
		"nothing": func(c *Config) { c.Ports = []uint16{26} },
	} {
		t.Run(name, func(t *testing.T) {
			flush(t)
			_, first := open(t, Default())
			cfg := Default()
			change(&cfg)
			r, s := open(t, cfg)
			want := cfg
			fresh := ""
			old, ok := ParseNames((&Config{Table: Default().Table, Hook: HookInput, Blocked: Default().Blocked, Allowed: Default().Allowed, Rules: true}).Names())
			if !ok {
				t.Fatal("the names cannot be read")
			}
			if err := Remove(r.conn, old, &cfg); err != nil {
				t.Fatal(err)
			}
			got := listing(t)
			if again := ensure(t, r); again.Set != s.Set || len(again.Found) > 0 {
				t.Errorf("something of the new one is gone: %+v", again)
			}
			if name == "chain" && s.Set != first.Set {
				t.Error("the sets are others")
			}
			flush(t)
			if want.Rules {
				open(t, want)
				fresh = listing(t)
			}
			// The order of what was there before is of no importance.
			if a, b := sortedLines(got), sortedLines(fresh); a != b {
				t.Errorf("got\n%s\nwant\n%s", got, fresh)
			}
		})
	}
}

func sortedLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	m := map[string]int{}
	for _, l := range lines {
		m[l]++
	}
	return fmt.Sprint(m)
}

func TestCheck(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"":                                   func(*Config) {},
		"blocked4 empty name":                func(c *Config) { c.Blocked[0] = "" },
		`blocked6 "a b" is no name`:          func(c *Config) { c.Blocked[1] = "a b" },
		`allowed4 "4a" is no name`:           func(c *Config) { c.Allowed[0] = "4a" },
		`allowed6 the name "blocked4" is`:    func(c *Config) { c.Allowed[1] = "blocked4" },
		`chain "a\"b" is no name`:            func(c *Config) { c.Chain = `a"b` },
		"table \"ip rblnft\": rules of ours": func(c *Config) { c.Table.Family = nft.IPv4 },
		`blocked4 "aaaaaaaaaaaaaaaaaaaa"...`: func(c *Config) { c.Blocked[0] = strings.Repeat("a", 129) },
	} {
		cfg := Default()
		change(&cfg)
		got := ""
		for _, p := range cfg.Check() {
			got += p.Key + " " + p.Text
		}
		if want == "" && got != "" || !strings.HasPrefix(strings.Replace(got, `table "inet`, "", 0), want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for text, want := range map[string]string{
		"inet rblnft": "inet rblnft", "rblnft": "inet rblnft", " ip  x ": "ip x", "ip6 x": "ip6 x",
		"": "error", "a b c": "error", "bridge x": "error", "inet 1x": "error", "inet x;flush": "error",
	} {
		at, err := ParseTable(text)
		if got := at.String(); err == nil && got != want || (err != nil) != (want == "error") {
			t.Errorf("ParseTable(%q) = %q, %v", text, got, err)
		}
	}
}

// Without a privilege the error is the kernel's.
func TestKernelErrors(t *testing.T) {
	flush(t)
	r, _ := open(t, Default())
	r.conn.Close()
	if _, err := r.Ensure(); err == nil {
		t.Error("no error on a closed connection")
	}
	if err := Remove(r.conn, r.cfg, nil); err == nil || errors.Is(err, unix.ENOENT) {
		t.Errorf("Remove: %v", err)
	}
}

// What the README says stays fast asks for no blocked addresses; what it says does
// not, does.
func TestPlainNft(t *testing.T) {
	flush(t)
	r, _ := open(t, Default())
	commit(t, r, "192.0.2.1", "192.0.2.2")
	for command, want := range map[string]bool{
		"-t list ruleset": false,
		"delete element inet rblnft blocked4 { 192.0.2.1 }":         false,
		"add element inet rblnft blocked4 { 192.0.2.3 timeout 1h }": false,
		"list set inet rblnft blocked4":                             true,
		"list chain inet rblnft input":                              true,
		"list counters table inet rblnft":                           true,
	} {
		out, err := exec.Command("strace", append([]string{"--follow-forks", "--trace=sendmsg,sendto", "--string-limit=200", "nft"}, strings.SplitN(command, " ", 3)...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		if !strings.Contains(string(out), "NFNL_SUBSYS_NFTABLES") {
			t.Fatalf("%s: strace shows no question\n%s", command, out)
		}
		blocked := fmt.Sprintf("% x", "blocked4") // as strace shows it, with \x for each space
		asks := regexp.MustCompile(`GETSETELEM.*\\x` + strings.ReplaceAll(blocked, " ", `\\x`)).Match(out)
		if asks != want {
			t.Errorf("nft %s asks for elements: %t\n%s", command, asks, out)
		}
	}
}
