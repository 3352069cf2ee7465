//go:build linux

package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"rblnft/firewall/book"
	"rblnft/firewall/firewalltest"
	"rblnft/firewall/hit"
	"rblnft/firewall/intake"
)

// stored makes a journal of n blocks.
func stored(t testing.TB, dir string, n int) {
	t.Helper()
	c, err := parse("", nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := book.Open(dir, c.book, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for i := 0; i < n; {
		var reports []intake.Report
		for ; i < n && len(reports) < 1000; i++ {
			reports = append(reports, intake.Report{
				Hit:      hit.Hit{Addr: numbered(i), Zone: "zen.spamhaus.example", Code: netip.AddrFrom4([4]byte{127, 0, 0, 2})},
				Received: now,
			})
		}
		b.Record(reports)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// With a million blocks in the journal and no table, as after a reboot, a
// start takes no more than twice the time that inserting as many elements
// takes, and hits do not wait for it.
func TestStartWithAMillion(t *testing.T) {
	const n = 1_000_000
	dir := filepath.Join(t.TempDir(), "state")
	stored(t, dir, n)
	// The machine may do other things as well: the best of some attempts
	// counts.
	const attempts = 4
	for attempt := 1; ; attempt++ {
		alone := firewalltest.InsertRaw(t, n, numbered)
		s := newSite(t, "")
		s.state = dir
		start := time.Now()
		s.launch()
		// The socket is there long before the journal is read.
		for {
			if _, err := os.Lstat(s.socket); err == nil {
				if sent, _ := send(s.socket, hitOf("192.0.2.1"), -1); sent {
					break
				}
			}
			if time.Since(start) > time.Minute {
				t.Fatal("no hit could be sent")
			}
			time.Sleep(time.Millisecond)
		}
		received := time.Since(start)
		s.await(0, "blocked addr=192.0.2.1 ")
		first := time.Since(start)
		line := s.await(0, "elements restored", "set=blocked4")
		took := time.Since(start)
		if !regexp.MustCompile(fmt.Sprintf(` restored=%d| restored=%d`, n, n+1)).MatchString(line) {
			t.Fatalf("not all were restored: %s", line)
		}
		t.Logf("raw insertion %s; a hit could be sent after %s and was blocked after %s, all were after %s", alone, received, first, took)
		s.kill()
		if took <= 2*alone {
			return
		}
		if attempt == attempts {
			t.Fatalf("the start took %s, raw insertion %s", took, alone)
		}
	}
}
