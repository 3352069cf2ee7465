//go:build linux

package main

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"rblnft/dnsbl"
	"rblnft/firewall/book"
	"rblnft/firewall/nft"
	"rblnft/firewall/ruleset"
)

func TestGoodConfigurations(t *testing.T) {
	def, err := parse("none", nil)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]func(*config){
		"empty": func(*config) {},
		"full": func(c *config) {
			c.Ruleset = ruleset.Config{
				Table: nft.Table{Family: nft.INet, Name: "mail"}, Blocked: [2]string{"b4", "b6"}, Allowed: [2]string{"a4", "a6"},
				Rules: true, Chain: "mail-in", Hook: ruleset.HookPrerouting, Verdict: ruleset.Reject, Ports: []uint16{25, 2525},
			}
			codes, err := dnsbl.ParseCodes("127.0.0.[10;11]")
			if err != nil {
				t.Fatal(err)
			}
			c.Policy = book.Policy{Hits: 3, Window: 5 * time.Minute, Expiry: 90 * time.Minute, Escalate: 3,
				MaxExpiry: 24 * time.Hour, MaxElements: 5000, Ignore: []book.Listing{{Zone: "zen.example", Codes: codes}, {Zone: "all.example"}},
				Allow: append(c.Policy.Allow,
					netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.7/32"), netip.MustParsePrefix("2001:db8::/48"),
					netip.MustParsePrefix("2001:db8:1::1/128"), netip.MustParsePrefix("203.0.113.0/24")),
			}
			c.Batch, c.socketGroup = time.Second, 0
		},
		"set-only": func(c *config) {
			c.Ruleset.Table.Name, c.Ruleset.Rules = "filter", false
		},
		"long-expiry": func(c *config) {
			c.Policy.Expiry, c.Policy.MaxExpiry = 336*time.Hour, 336*time.Hour
			c.Batch, c.socketGroup = 0, 2108
		},
	}
	files, err := filepath.Glob("testdata/good/*.toml")
	if err != nil || len(files) != len(tests) {
		t.Fatalf("files %v, want %d", files, len(tests))
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			want, _ := parse("none", nil)
			change(&want)
			got, err := load("testdata/good/"+name+".toml", true)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got\n%+v, want\n%+v", got, want)
			}
		})
	}

	if p := def.Policy; p.Expiry != time.Hour || p.Hits != 1 || p.Escalate != 2 || p.MaxExpiry != 8*time.Hour || p.MaxElements != 1_000_000 ||
		def.Batch != 250*time.Millisecond || !reflect.DeepEqual(def.Ruleset, ruleset.Default()) || len(p.Allow) != 9 {
		t.Errorf("defaults %+v", def)
	}
}

// Nobody has to know that loopback, private networks and the machine's own addresses
// are not to be blocked.
func TestNeverBlocked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte("allow = [\"198.51.100.0/24\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ip", "address", "add", "203.0.113.25/24", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	defer exec.Command("ip", "address", "del", "203.0.113.25/24", "dev", "lo").Run()
	c, err := load(file, true)
	if err != nil {
		t.Fatal(err)
	}
	b := book.New(c.Policy)
	for _, addr := range []string{"127.0.0.1", "10.1.2.3", "172.16.5.4", "192.168.1.1", "100.64.0.1", "169.254.0.1", "198.51.100.7", "203.0.113.25",
		"::1", "fe80::1", "fd12::1", "203.0.113.26"} {
		c.Policy.Families = [2]bool{true, true}
		b.SetPolicy(c.Policy)
		d, _ := b.Hit(hitOf(addr), 1)
		if want := addr != "203.0.113.26"; (d == book.Allowed) != want {
			t.Errorf("%s: %s", addr, d)
		}
	}
}

// Each bad file says itself what must be said of it.
func TestBadConfigurations(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = load(file, true)
			if err == nil {
				t.Fatal("taken for good")
			}
			lines := strings.Split(err.Error(), "\n")
			wanted := 0
			for line := range strings.Lines(string(data)) {
				want, ok := strings.CutPrefix(line, "# want: ")
				if !ok {
					continue
				}
				want = strings.TrimSuffix(want, "\n")
				if wanted >= len(lines) || !strings.HasPrefix(lines[wanted], "testdata/bad/"+want) {
					t.Errorf("line %d of the error is not %q; the error is:\n%v", wanted+1, want, err)
				}
				wanted++
			}
			if wanted == 0 || wanted != len(lines) {
				t.Errorf("%d lines, want %d:\n%v", len(lines), wanted, err)
			}
		})
	}
}

func TestAbsentConfiguration(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent.toml")
	if _, err := load(absent, false); err != nil {
		t.Errorf("absent: %v", err)
	}
	if _, err := load(absent, true); err == nil || !strings.Contains(err.Error(), absent) {
		t.Errorf("absent, but given: %v", err)
	}
	if _, err := load(t.TempDir(), false); err == nil {
		t.Error("a directory is taken for a configuration")
	}
}

func FuzzConfig(f *testing.F) {
	files, err := filepath.Glob("testdata/*/*.toml")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse("f.toml", data)
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				if !strings.HasPrefix(line, "f.toml:") {
					t.Errorf("an error without its place: %q", err)
				}
			}
			return
		}
		p := c.Policy
		if problems := c.Ruleset.Check(); problems != nil || p.Hits < 1 || p.Hits > book.MaxHits || p.Window < time.Second || p.Expiry < time.Second ||
			p.MaxExpiry < p.Expiry || !(p.Escalate >= 1) || p.MaxElements < 1 || len(c.Ruleset.Ports) == 0 {
			t.Errorf("good: %+v, %v", c, problems)
		}
	})
}
