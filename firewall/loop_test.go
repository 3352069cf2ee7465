//go:build linux

package firewall

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rblnft/dnsbl"
	"rblnft/firewall/book"
	"rblnft/firewall/hit"
	"rblnft/firewall/nft"
	"rblnft/firewall/ruleset"
	"rblnft/firewall/store"
)

func TestHitsReachTheKernel(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		b := fresh(t, testConfig())
		b.hits("192.0.2.1", "2001:db8::1", "2001:db8::2", "10.0.0.1", "fd00::1", "::ffff:192.0.2.1"[7:], "192.0.2.2")
		b.has("192.0.2.1", "192.0.2.2", "2001:db8::")
		for k, e := range elements(t) {
			if e.comment != "bl.example" || e.left > time.Hour || e.left < 59*time.Minute {
				t.Errorf("%s: %+v", k, e)
			}
		}
		b.says("msg=blocked addr=2001:db8::", "zone=bl.example code=127.0.0.2 decision=blocked prefix=2001:db8::/64", `element="inet rblnft blocked6 { 2001:db8:: }"`)
		b.says(`msg="not blocked" addr=10.0.0.1`, "decision=allowed")
		b.quiet()
		b.hits("192.0.2.1")
		b.says(`msg=blocked addr=192.0.2.1`, "decision=renewed")
	})
}

// A block that has ended and comes back lasts longer.
func TestReturns(t *testing.T) {
	cfg := testConfig()
	cfg.Policy.Expiry = time.Second
	b := fresh(t, cfg)
	b.hits("192.0.2.1")
	b.says("addr=192.0.2.1", "returns=0")
	b.has()
	b.hits("192.0.2.1")
	b.says("addr=192.0.2.1", "returns=1", "timeout=2s")
}

// A listing whose return code says whose network it is blocks nobody.
func TestIgnoredCodes(t *testing.T) {
	cfg := testConfig()
	codes, err := dnsbl.ParseCodes("127.0.0.[4;5]")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Policy.Ignore = []book.Listing{{Zone: "bl.example", Codes: codes}}
	b := fresh(t, cfg)
	send := func(addr, zone, code string) {
		b.in <- []hit.Hit{{Addr: netip.MustParseAddr(addr), Zone: zone, Code: netip.MustParseAddr(code)}}
	}
	send("192.0.2.1", "zen.example", "127.0.0.10")
	send("192.0.2.2", "zen.example", "127.0.0.2")
	send("192.0.2.3", "bl.example", "127.0.0.4")
	send("192.0.2.4", "bl.example", "127.0.0.10")
	b.has("192.0.2.2", "192.0.2.4")
	b.says("addr=192.0.2.1", "decision=ignored")
}

// Whatever is removed is back, with all elements and what is left of their time.
func TestRecovery(t *testing.T) {
	for name, what := range map[string]string{
		"flush ruleset":    "flush ruleset",
		"delete table":     "delete table inet rblnft",
		"delete chain":     "flush chain inet rblnft input\ndelete chain inet rblnft input",
		"delete set":       "flush chain inet rblnft input\ndelete set inet rblnft blocked4",
		"delete both sets": "flush chain inet rblnft input\ndelete set inet rblnft blocked4\ndelete set inet rblnft blocked6",
		"delete allowed":   "flush chain inet rblnft input\ndelete set inet rblnft allowed4",
		"flush allowed":    "flush set inet rblnft allowed4",
		"flush chain":      "flush chain inet rblnft input",
		"policy":           "chain inet rblnft input { policy drop; }",
		"dormant":          "table inet rblnft { flags dormant; }",
		"delete rule":      "", // below
		"restored file":    "", // below
	} {
		t.Run(name, func(t *testing.T) {
			b := fresh(t, testConfig())
			stored := nftRun(t, "list", "ruleset")
			want := []string{"192.0.2.1", "192.0.2.2", "2001:db8::", "2001:db8:0:1::"}
			b.hits(want...)
			b.has(want...)
			layout := nftRun(t, "-t", "list", "ruleset")
			for range 2 {
				switch name {
				case "delete rule":
					for line := range strings.Lines(nftRun(t, "-a", "list", "chain", "inet", "rblnft", "input")) {
						if _, handle, ok := strings.Cut(strings.TrimSpace(line), "# handle "); ok && strings.Contains(line, "blocked6") {
							nftRun(t, "delete", "rule", "inet", "rblnft", "input", "handle", handle)
						}
					}
				case "restored file":
					script(t, "flush ruleset\n"+stored)
				default:
					script(t, what+"\n")
				}
				b.has(want...)
				eventually(t, "all is as it was", func() bool {
					out, _ := exec.Command("nft", "-t", "list", "ruleset").Output()
					return alike(string(out), layout)
				})
			}
			for k, e := range elements(t) {
				if e.left > time.Hour || e.left < 59*time.Minute || e.comment != "bl.example" {
					t.Errorf("%s: %+v", k, e)
				}
			}
			if got := nftRun(t, "list", "set", "inet", "rblnft", "allowed4"); !strings.Contains(got, "10.0.0.0/8") {
				t.Errorf("the allow list: %s", got)
			}
			if name != "flush allowed" && name != "restored file" { // which is as it should be, but empty
				b.says("the table is not as it should be", "by=nft[")
			}
		})
	}
}

// alike compares rulesets without the names of sets.
func alike(a, b string) bool {
	lines := func(s string) (all []string) {
		for line := range strings.Lines(s) {
			if !strings.Contains(line, `comment "rblnft `) && !strings.Contains(line, "packets") {
				all = append(all, strings.TrimSpace(line))
			}
		}
		slices.Sort(all)
		return all
	}
	return slices.Equal(lines(a), lines(b))
}

// What is done with plain nft is nft's.
func TestByHand(t *testing.T) {
	dir := t.TempDir()
	flush(t)
	b := start(t, testConfig(), dir)
	b.hits("192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8:0:1::1")
	b.has("192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::", "2001:db8:0:1::")
	b.quiet()
	nftRun(t, "delete", "element", "inet", "rblnft", "blocked4", "{ 192.0.2.1, 192.0.2.2 }")
	nftRun(t, "delete", "element", "inet", "rblnft", "blocked6", "{ 2001:db8:: }")
	nftRun(t, "add", "element", "inet", "rblnft", "blocked4", "{ 192.0.2.9 timeout 1h, 192.0.2.10 }")
	b.says("deleted by somebody else", "addr=192.0.2.2", "by=nft[")
	b.says("deleted by somebody else", "addr=2001:db8::/64")
	b.has("192.0.2.3", "192.0.2.9", "192.0.2.10", "2001:db8:0:1::")
	// A restore brings back what is ours alone.
	nftRun(t, "flush", "ruleset")
	b.has("192.0.2.3", "2001:db8:0:1::")
	// One that was let go and hit again was never blocked before.
	b.hits("192.0.2.1")
	b.says("addr=192.0.2.1", "decision=blocked", "returns=0")
	// A hit of what was added by hand makes it ours.
	nftRun(t, "add", "element", "inet", "rblnft", "blocked4", "{ 192.0.2.9 timeout 1m comment \"mine\" }")
	b.hits("192.0.2.9")
	b.says("addr=192.0.2.9", "decision=blocked")
	if e := elements(t)["192.0.2.9"]; e.left < 59*time.Minute {
		t.Errorf("%+v", e)
	}
	// Many at once, and a whole set.
	nftRun(t, "flush", "set", "inet", "rblnft", "blocked4")
	b.says("deleted by somebody else", "addr=192.0.2.9")
	eventually(t, "all are forgotten", func() bool { return b.Status().Blocked == 1 })
	b.stop()
	flush(t)
	b = start(t, testConfig(), dir)
	b.has("2001:db8:0:1::")
}

// Elements come and go with nobody told, and the loop keeps to what the kernel says.
func TestLostNotifications(t *testing.T) {
	b := fresh(t, testConfig())
	b.hits("192.0.2.1")
	b.has("192.0.2.1")
	for _, what := range []string{"flush ruleset", "flush chain inet rblnft input", "flush set inet rblnft allowed4"} {
		// The kernel says nothing but that something was lost.
		b.Do(t.Context(), func() {
			b.unwatch()
			script(t, what+"\n")
			b.changes <- nft.Change{Lost: true}
			if err := b.watch(b.cfg.Ruleset.Table); err != nil {
				t.Error(err)
			}
		})
		b.has("192.0.2.1")
		eventually(t, "rules and allow list are back", func() bool {
			out, _ := exec.Command("nft", "list", "table", "inet", "rblnft").Output()
			return strings.Count(string(out), "@blocked") == 2 && strings.Contains(string(out), "10.0.0.0/8")
		})
	}
}

// A bulk load into another table concerns nobody here, however large.
func TestBulkLoadElsewhere(t *testing.T) {
	b := fresh(t, testConfig())
	b.hits("192.0.2.1")
	b.has("192.0.2.1")
	b.quiet()
	var load strings.Builder
	load.WriteString("table inet other { set s { type ipv4_addr; flags timeout; timeout 1h; elements = {")
	n := 100_000
	if testing.Short() {
		n = 10_000
	}
	for i := range n {
		fmt.Fprintf(&load, "11.%d.%d.%d,", i>>16, i>>8&255, i&255)
	}
	load.WriteString("}; }; }\n")
	script(t, load.String())
	b.hits("192.0.2.2")
	b.has("192.0.2.1", "192.0.2.2")
	if strings.Contains(b.log.String(), "not as it should be") || strings.Contains(b.log.String(), "restored") {
		t.Errorf("log:\n%s", b.log)
	}
}

// Somebody else's set in the place of ours is neither filled nor removed, and as soon
// as it is gone all is as before.
func TestInTheWayWhileRunning(t *testing.T) {
	b := fresh(t, testConfig())
	b.hits("192.0.2.1", "2001:db8::1")
	b.has("192.0.2.1", "2001:db8::")
	const theirs = "table inet rblnft { set blocked4 { type ipv4_addr; flags timeout; comment \"theirs\"; }; }\n"
	script(t, "flush ruleset\n"+theirs)
	b.says("the table cannot be put right", "set blocked4 of table inet rblnft is there, and not rblnftd's")
	b.hits("192.0.2.2")
	eventually(t, "the status says so", func() bool { return strings.Contains(b.Status().Problem, "not rblnftd's") })
	time.Sleep(50 * time.Millisecond)
	if got := nftRun(t, "list", "ruleset"); strings.Contains(got, "192.0.2") || !strings.Contains(got, "theirs") {
		t.Errorf("theirs:\n%s", got)
	}
	script(t, "delete set inet rblnft blocked4\n")
	b.has("192.0.2.1", "192.0.2.2", "2001:db8::")
	eventually(t, "the status is good", func() bool { return b.Status().Problem == "" })
}

// At a start it is an error.
func TestInTheWayAtTheStart(t *testing.T) {
	flush(t)
	script(t, "table inet filter { chain input { type filter hook input priority 0; tcp dport 22 accept; }; }\n")
	before := nftRun(t, "list", "ruleset")
	cfg := testConfig()
	cfg.Ruleset.Table.Name = "filter"
	_, err := Open(cfg, nil, slog.New(slog.DiscardHandler))
	var e *ruleset.InTheWay
	if !errors.As(err, &e) || !strings.Contains(err.Error(), "chain input of table inet filter") {
		t.Errorf("%v", err)
	}
	if after := nftRun(t, "list", "ruleset"); after != before {
		t.Errorf("changed\n%s\nto\n%s", before, after)
	}
}

// The allow list is in force at a start, at a reload and after a change by others, for
// those blocked before too.
func TestAllowList(t *testing.T) {
	dir := t.TempDir()
	flush(t)
	b := start(t, testConfig(), dir)
	b.hits("192.0.2.1", "192.0.2.2", "2001:db8::1")
	b.has("192.0.2.1", "192.0.2.2", "2001:db8::")
	cfg := testConfig()
	cfg.Policy.Allow = append(cfg.Policy.Allow, netip.MustParsePrefix("192.0.2.2/32"), netip.MustParsePrefix("2001:db8::77/128"))
	if err := b.Reload(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	b.has("192.0.2.1", "2001:db8::")
	b.says("msg=unblocked", "addr=192.0.2.2")
	eventually(t, "the kernel's list", func() bool {
		return strings.Contains(nftRun(t, "list", "set", "inet", "rblnft", "allowed4"), "192.0.2.2") &&
			strings.Contains(nftRun(t, "list", "set", "inet", "rblnft", "allowed6"), "2001:db8::77")
	})
	b.hits("192.0.2.2")
	b.says("addr=192.0.2.2", "decision=allowed")
	b.stop()
	// Another list at a start, the kernel's sets being the same.
	cfg.Policy.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}
	b = start(t, cfg, dir)
	b.has("2001:db8::")
	if got := nftRun(t, "list", "set", "inet", "rblnft", "allowed4"); strings.Contains(got, "192.0.2.2") || !strings.Contains(got, "192.0.2.1") {
		t.Errorf("the kernel's list: %s", got)
	}
	b.stop()
	flush(t)
	b = start(t, testConfig(), dir)
	b.has("2001:db8::")
}

// What has another name in another configuration does not stay behind, at a reload or
// at a start, and all blocks are where they should be.
func TestRename(t *testing.T) {
	for _, reload := range []bool{true, false} {
		t.Run(fmt.Sprintf("reload %t", reload), func(t *testing.T) {
			dir := t.TempDir()
			flush(t)
			b := start(t, testConfig(), dir)
			b.hits("192.0.2.1")
			b.has("192.0.2.1")
			cfg := testConfig()
			cfg.Ruleset.Table.Name, cfg.Ruleset.Blocked[0], cfg.Ruleset.Ports = "mail", "bots", []uint16{25, 26}
			if reload {
				if err := b.Reload(t.Context(), cfg); err != nil {
					t.Fatal(err)
				}
			} else {
				b.stop()
				b = start(t, cfg, dir)
			}
			eventually(t, "it is in the new set", func() bool {
				out, _ := exec.Command("nft", "list", "set", "inet", "mail", "bots").Output()
				return strings.Contains(string(out), "192.0.2.1 timeout")
			})
			if tables := nftRun(t, "list", "tables"); strings.Contains(tables, "rblnft") {
				t.Errorf("left behind: %s", tables)
			}
			// The new table is the one that is watched.
			nftRun(t, "flush", "ruleset")
			eventually(t, "it is there again", func() bool {
				out, _ := exec.Command("nft", "list", "set", "inet", "mail", "bots").Output()
				return strings.Contains(string(out), "192.0.2.1 timeout")
			})
			b.quiet()
			bad := cfg
			bad.Ruleset.Table.Name = "filter"
			script(t, "table inet filter { set bots { type ipv4_addr; }; }\n")
			if err := b.Reload(t.Context(), bad); err == nil {
				t.Error("a reload into somebody else's table")
			}
			b.hits("192.0.2.2")
			eventually(t, "the old configuration is in force", func() bool {
				return strings.Contains(nftRun(t, "list", "set", "inet", "mail", "bots"), "192.0.2.2")
			})
		})
	}
}

// At a start nothing is done to a set that was told everything, and every other one
// is filled, however it came about, kill -9 included.
func TestStart(t *testing.T) {
	dir := t.TempDir()
	flush(t)
	want := []string{"192.0.2.1", "192.0.2.2", "2001:db8::"}
	b := start(t, testConfig(), dir)
	b.hits(want...)
	b.has(want...)
	b.quiet()
	time.Sleep(300 * time.Millisecond) // until it is on disk
	for name, between := range map[string]string{
		"nothing":           "",
		"flushed":           "flush ruleset",
		"one set gone":      "flush chain inet rblnft input\ndelete set inet rblnft blocked6",
		"another ruleset":   "flush ruleset\ntable inet filter { chain input { type filter hook input priority 0; }; }",
		"same, read back":   "", // below
		"flushed, and back": "flush ruleset",
	} {
		for _, kill := range []bool{false, true} {
			if kill {
				b.kill()
			} else {
				b.stop()
			}
			if name == "same, read back" {
				script(t, "flush ruleset\n"+nftRun(t, "list", "ruleset"))
			} else {
				script(t, between+"\n")
			}
			b = start(t, testConfig(), dir)
			b.has(want...)
			b.quiet()
			for k, e := range elements(t) {
				if e.left > time.Hour || e.left < 58*time.Minute {
					t.Errorf("%s: %s: %+v", name, k, e)
				}
			}
			if restored := strings.Contains(b.log.String(), "elements restored"); restored != (name != "nothing" && between != "" || name == "same, read back") {
				t.Errorf("%s: restored: %t\n%s", name, restored, b.log)
			}
			time.Sleep(300 * time.Millisecond)
		}
	}
	// What was deleted meanwhile is let go.
	b.stop()
	nftRun(t, "delete", "element", "inet", "rblnft", "blocked4", "{ 192.0.2.1 }")
	b = start(t, testConfig(), dir)
	b.has("192.0.2.2", "2001:db8::")
	b.hits("192.0.2.1")
	b.has(want...)
}

// A lone hit is in the kernel at once; the next ones wait until the pause is over, and
// are one transaction.
func TestBatches(t *testing.T) {
	cfg := testConfig()
	cfg.Batch = 700 * time.Millisecond
	b := fresh(t, cfg)
	w, err := nft.Watch(cfg.Ruleset.Table, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	b.hits("192.0.2.1")
	first, err := w.Receive()
	if err != nil || len(first.Elements) != 1 {
		t.Fatalf("%+v, %v", first, err)
	}
	told := time.Now()
	for i := range 50 {
		b.hits(fmt.Sprintf("192.0.2.%d", 10+i))
	}
	second, err := w.Receive()
	if err != nil || len(second.Elements) != 50 {
		t.Errorf("%d elements in the next transaction, %v", len(second.Elements), err)
	}
	if waited := time.Since(told); waited < cfg.Batch*9/10 {
		t.Errorf("the next one came after %s", waited)
	}
}

// The pause is as long as nft takes to list the sets, and three seconds at most.
func TestPause(t *testing.T) {
	b := &Firewall{cfg: testConfig(), book: book.New(book.Policy{
		Hits: 1, Expiry: time.Hour, MaxExpiry: time.Hour, Escalate: 1, MaxElements: 1_000_000, Families: [2]bool{true, true},
	})}
	for n, want := range map[int]time.Duration{0: 20 * time.Millisecond, 10_000: 200 * time.Millisecond, 100_000: 2 * time.Second, 200_000: 3 * time.Second} {
		for i := range n {
			b.book.Hit(hit.Hit{Addr: netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), Zone: "z"}, 0)
		}
		blocked, _ := b.book.Len()
		if got := b.pause(); blocked == n && got != want {
			t.Errorf("%d elements: %s, want %s", n, got, want)
		}
	}
}

// Only max_elements are blocked; the rest is told so, and renewals go on.
func TestFull(t *testing.T) {
	cfg := testConfig()
	cfg.Policy.MaxElements = 3
	b := fresh(t, cfg)
	b.hits("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "2001:db8::1", "192.0.2.1")
	b.has("192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::")
	b.says("addr=192.0.2.4", "decision=full")
	b.says("a set is full")
	eventually(t, "the status says so", func() bool { return strings.Contains(b.Status().Problem, "max_elements") })
	nftRun(t, "delete", "element", "inet", "rblnft", "blocked4", "{ 192.0.2.2 }")
	eventually(t, "the status is good", func() bool { return b.Status().Problem == "" })
	b.hits("192.0.2.4")
	b.has("192.0.2.1", "192.0.2.3", "192.0.2.4", "2001:db8::")
}

// With rules = false the administrator's sets of blocked addresses are filled, and
// nothing else of his is touched.
func TestForeignSets(t *testing.T) {
	cfg := testConfig()
	cfg.Ruleset.Rules, cfg.Ruleset.Table.Name = false, "filter"
	cfg.Policy.Allow = append(cfg.Policy.Allow, netip.MustParsePrefix("2001:db8:0:7::25/128"))
	flush(t)
	dir := t.TempDir()
	b := start(t, cfg, dir)
	b.hits("192.0.2.1")
	eventually(t, "the status says that there is no set", func() bool {
		return b.Status().Problem == "there is no set blocked4 in table inet filter"
	})
	const table = `table inet filter {
	set blocked4 { type ipv4_addr; flags timeout; size 5; }
	set blocked6 { type ipv6_addr; flags timeout; }
	set allowed4 { type ipv4_addr; elements = { 198.51.100.9 }; }
	chain input { type filter hook input priority 0; tcp dport 25 ip saddr @blocked4 drop; }
}
`
	script(t, table)
	set := func(name string) string {
		out, _ := exec.Command("nft", "list", "set", "inet", "filter", name).Output()
		return string(out)
	}
	eventually(t, "it is in the set", func() bool { return strings.Contains(set("blocked4"), "192.0.2.1 timeout") })
	b.hits("2001:db8::1", "2001:db8:0:7::1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6", "192.0.2.7", "192.0.2.1")
	b.says("addr=2001:db8:0:7::1", "decision=allowed") // no rule would let the other one pass
	b.says("addr=192.0.2.6", "decision=full")
	eventually(t, "what fits is in the sets", func() bool {
		return strings.Count(set("blocked4"), "timeout 1h")+strings.Count(set("blocked4"), "timeout 59m") == 5 && strings.Contains(set("blocked6"), "2001:db8:: timeout")
	})
	cfg.Policy.Allow = cfg.Policy.Allow[:1]
	if err := b.Reload(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	script(t, "flush ruleset\n"+table)
	eventually(t, "all are back", func() bool { return strings.Count(set("blocked4"), "expires") == 5 })
	b.stop()
	b = start(t, cfg, dir)
	eventually(t, "all are there after another start", func() bool { return strings.Count(set("blocked4"), "expires") == 5 })
	got := nftRun(t, "list", "ruleset")
	for _, want := range []string{"198.51.100.9", "tcp dport 25 ip saddr @blocked4 drop"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is gone:\n%s", want, got)
		}
	}
	for _, wrong := range []string{"10.0.0.0/8", "dropped4", "rblnft"} {
		if strings.Contains(got, wrong) {
			t.Errorf("there is %q:\n%s", wrong, got)
		}
	}
}

// An administrator's set that is filled by others has room for a renewal all the same,
// and takes what waits when there is room again.
func TestForeignSetFilledByOthers(t *testing.T) {
	cfg := testConfig()
	cfg.Ruleset.Rules, cfg.Ruleset.Table.Name = false, "filter"
	flush(t)
	script(t, "table inet filter { set blocked4 { type ipv4_addr; flags timeout; size 4; }; set blocked6 { type ipv6_addr; flags timeout; }; }\n")
	b := start(t, cfg, "")
	set := func() string { return nftRun(t, "list", "set", "inet", "filter", "blocked4") }
	b.hits("192.0.2.1")
	eventually(t, "it is in the set", func() bool { return strings.Contains(set(), "192.0.2.1 ") })
	nftRun(t, "add element inet filter blocked4 { 198.51.100.1, 198.51.100.2 }")
	b.hits("192.0.2.2", "192.0.2.3")
	eventually(t, "one is in the set", func() bool { return strings.Contains(set(), "192.0.2.2 ") })
	eventually(t, "the status says so", func() bool { return strings.Contains(b.Status().Problem, "not committed") })
	nftRun(t, "delete element inet filter blocked4 { 198.51.100.1 }")
	eventually(t, "the other is too", func() bool { return strings.Contains(set(), "192.0.2.3 ") })
	eventually(t, "the status is good", func() bool { return b.Status().Problem == "" })
}

// What waits for room in an administrator's set is not forgotten by another start,
// although all else was restored before it.
func TestWaitingForRoomAtTheNextStart(t *testing.T) {
	cfg := testConfig()
	cfg.Ruleset.Rules, cfg.Ruleset.Table.Name = false, "filter"
	flush(t)
	const table = "table inet filter { set blocked4 { type ipv4_addr; flags timeout; size 4; }; set blocked6 { type ipv6_addr; flags timeout; }; }\n"
	script(t, table)
	dir := t.TempDir()
	b := start(t, cfg, dir)
	ours := func() int {
		return strings.Count(nftRun(t, "list", "set", "inet", "filter", "blocked4"), "192.0.2.")
	}
	b.hits("192.0.2.1", "192.0.2.2", "192.0.2.3")
	eventually(t, "all are in the set", func() bool { return ours() == 3 })
	script(t, "flush ruleset\n"+table+"add element inet filter blocked4 { 198.51.100.1, 198.51.100.2, 198.51.100.3 }\n")
	b.says("blocks cannot be committed")
	eventually(t, "one is in the set, the others wait", func() bool { return ours() == 1 && b.Status().Waiting == 2 })
	time.Sleep(300 * time.Millisecond) // until that is on disk
	b.kill()
	b = start(t, cfg, dir)
	nftRun(t, "delete element inet filter blocked4 { 198.51.100.1, 198.51.100.2 }")
	eventually(t, "all are in the set again", func() bool { return ours() == 3 })
}

// A set that takes nothing does not keep the other one waiting.
func TestOneSetRefuses(t *testing.T) {
	b := fresh(t, testConfig())
	b.Do(t.Context(), func() { b.sets[0].retryAt = time.Now().Add(time.Hour) })
	b.hits("192.0.2.1", "2001:db8::1")
	b.has("2001:db8::")
	b.Do(t.Context(), func() { b.sets[0].retryAt = time.Time{} })
	b.has("192.0.2.1", "2001:db8::")
}

// A push that was refused, for the set being gone, is no batch to pause after.
func TestNoPauseAfterARefusal(t *testing.T) {
	cfg := testConfig()
	cfg.Batch = 10 * time.Second
	b := fresh(t, cfg)
	b.quiet()
	began := time.Now()
	b.Do(t.Context(), func() {
		nftRun(t, "flush", "ruleset")
		b.book.Hit(hitOf("192.0.2.1"), store.Monotonic())
	})
	b.says("blocks cannot be committed")
	b.has("192.0.2.1")
	if took := time.Since(began); took > cfg.Batch/2 {
		t.Errorf("it took %s", took)
	}
}

// While the disk is behind the loop waits for it, and does not spin.
func TestDiskIsBehind(t *testing.T) {
	s, err := store.Open(t.TempDir(), store.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	b := &Firewall{cfg: cfg, book: book.New(cfg.policy()), store: s}
	s.Load(func(book.Record) {}, func(book.Key) {})
	for i := range 400_000 {
		b.book.Hit(hit.Hit{Addr: netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), Zone: "zen.spamhaus.example"}, 0)
	}
	b.book.Done(book.IPv4, b.book.Waiting(book.IPv4), 0)
	now := time.Now()
	for range 1000 {
		b.tellStore(now)
		if wait := b.next(now); b.tell == nil || wait >= store.Interval {
			break
		}
	}
	if b.tell == nil || b.next(now) < store.Interval {
		t.Errorf("told all: %t; the next part after %s", b.tell == nil, b.next(now))
	}
}

// In a table of one family hits of the other one are said to block nobody, and pile
// up nowhere.
func TestTableOfOneFamily(t *testing.T) {
	cfg := testConfig()
	cfg.Ruleset.Rules, cfg.Ruleset.Table = false, nft.Table{Family: nft.IPv4, Name: "mangle"}
	flush(t)
	script(t, "table ip mangle { set blocked4 { type ipv4_addr; flags timeout; }; }\n")
	b := start(t, cfg, "")
	for i := range 200 {
		b.hits(fmt.Sprintf("2001:db8:0:%x::1", i))
	}
	b.hits("192.0.2.1")
	eventually(t, "it is in the set", func() bool {
		return strings.Contains(nftRun(t, "list", "set", "ip", "mangle", "blocked4"), "192.0.2.1")
	})
	b.says("addr=2001:db8:0:1::1", `decision="no set"`)
	b.quiet()
	if s := b.Status(); s.Blocked != 1 || s.Waiting != 0 || s.Problem != "" {
		t.Errorf("%+v", s)
	}
}

// Hits go on while the ruleset is removed again and again, and all are there in the
// end.
func TestHitsDuringRecovery(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		b := fresh(t, testConfig())
		stop := make(chan struct{})
		var running sync.WaitGroup
		for range 2 {
			running.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						exec.Command("nft", []string{"flush ruleset", "delete table inet rblnft", "flush chain inet rblnft input"}[rand.IntN(3)]).Run()
						time.Sleep(time.Duration(rand.IntN(15)) * time.Millisecond)
					}
				}
			})
		}
		var want []string
		n := 2000
		if testing.Short() {
			n = 300
		}
		for i := range n {
			a := fmt.Sprintf("100.64.%d.%d", i>>8, i&255)
			want = append(want, a)
			b.hits(a)
			time.Sleep(time.Millisecond)
		}
		close(stop)
		running.Wait()
		b.quiet()
		b.has(want...)
	})
}

// Two hundred thousand are back after a flush, and hits do not wait for them.
func TestLargeRefill(t *testing.T) {
	b := fresh(t, testConfig())
	n := 200_000
	if testing.Short() {
		n = 5_000
	}
	var burst []hit.Hit
	for i := range n {
		burst = append(burst, hit.Hit{Addr: netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), Zone: "zen.spamhaus.example"})
		if len(burst) == 32 {
			b.in <- burst
			burst = nil
		}
	}
	b.quiet()
	began := time.Now()
	nftRun(t, "flush", "ruleset")
	b.hits("192.0.2.1")
	b.says("elements restored", "set=blocked4", fmt.Sprintf("restored=%d", n))
	t.Logf("all elements were in after %s", time.Since(began))
	b.quiet()
	if got := strings.Count(nftRun(t, "list", "set", "inet", "rblnft", "blocked4"), "expires"); got != n+1 {
		t.Errorf("%d elements", got)
	}
}

func TestOldKernel(t *testing.T) {
	if err := checkKernel(); err != nil {
		t.Error(err)
	}
	for release, ok := range map[string]bool{"6.1.0-40-cloud-amd64": true, "6.18.1": true, "7.0": true, "6.0.19": false, "5.10.0-9": false} {
		if err := checkRelease(release); (err == nil) != ok {
			t.Errorf("%s: %v", release, err)
		}
	}
}
