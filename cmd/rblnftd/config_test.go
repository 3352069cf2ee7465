//go:build linux

package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"rblnft/firewall"
	"rblnft/firewall/book"
	"rblnft/firewall/intake"
)

func TestGoodConfigurations(t *testing.T) {
	def, err := parse("none", nil)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]func(*config){
		"empty": func(*config) {},
		"full": func(c *config) {
			c.table = firewall.Config{
				Table: "inet mail", Blocked4: "b4", Blocked6: "b6", Allowed4: "a4", Allowed6: "a6",
				Rules: true, Chain: "mail-in", Hook: firewall.HookPrerouting, Verdict: firewall.Reject,
				Ports: []uint16{25, 2525}, MaxElements: 5000,
				Allow: []netip.Prefix{
					netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.7/32"), netip.MustParsePrefix("2001:db8::/48"),
					netip.MustParsePrefix("2001:db8:1::1/128"), netip.MustParsePrefix("203.0.113.0/24"),
				},
			}
			c.book = book.Policy{Hits: 3, Window: 5 * time.Minute, Expiry: 90 * time.Minute, Escalate: 3,
				MaxExpiry: 24 * time.Hour, MaxElements: 5000, Allow: c.table.Allow}
			c.intake = intake.Policy{
				Senders: intake.Senders{UIDs: []uint32{0, 0, 7791}, GIDs: []uint32{0, 2108}},
				Peer:    intake.Require, Ports: c.table.Ports,
			}
			c.socketMode, c.socketGroup = 0o600, 0
		},
		"set-only": func(c *config) {
			c.table.Table, c.table.Rules = "inet filter", false
			c.table.Allow = []netip.Prefix{}
			c.book.Allow = c.table.Allow
		},
		"long-expiry": func(c *config) {
			c.book.Expiry, c.book.MaxExpiry = 720*time.Hour, 720*time.Hour
			c.intake.Senders = intake.Senders{GIDs: []uint32{2108}}
			c.socketMode, c.socketGroup = 0o660, 2108
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

	if def.book.Expiry != time.Hour || def.book.Hits != 1 || def.book.Escalate != 2 || def.book.MaxExpiry != 168*time.Hour ||
		def.book.MaxElements != 1_000_000 || def.intake.Peer != intake.Verify || !reflect.DeepEqual(def.table, firewall.DefaultConfig()) ||
		!reflect.DeepEqual(def.book.Allow, def.table.Allow) {
		t.Errorf("defaults %+v", def)
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
		p := c.book
		if err := c.table.Validate(); err != nil || p.Hits < 1 || p.Hits > book.MaxHits || p.Window < time.Second || p.Expiry < time.Second ||
			p.MaxExpiry < p.Expiry || !(p.Escalate >= 1) || p.MaxElements < 1 || len(c.table.Ports) == 0 {
			t.Errorf("good: %+v, %v", c, err)
		}
	})
}
