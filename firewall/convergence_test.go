//go:build linux

package firewall

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"rblnft/firewall/book"
	"rblnft/firewall/hit"
	"rblnft/firewall/store"
)

// However hits, deletions by hand, flushes and changes of the allow list meet: when
// all is quiet, the kernel has what the book has, for as long, and nothing else but
// what was added by hand.
func TestConvergence(t *testing.T) {
	eachPath(t, testConvergence)
}

func testConvergence(t *testing.T) {
	cfg := testConfig()
	cfg.Batch = time.Millisecond
	b := fresh(t, cfg)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const n = 3000
	addr := func(i int) netip.Addr {
		if i%4 == 3 {
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 0, byte(i >> 8), byte(i), 15: 1})
		}
		return netip.AddrFrom4([4]byte{100, 0, byte(i >> 8), byte(i)})
	}
	key := func(i int) string { return book.KeyOf(addr(i)).Addr().String() }
	set := func(i int) string {
		if i%4 == 3 {
			return "blocked6"
		}
		return "blocked4"
	}
	stop := make(chan struct{})
	var running sync.WaitGroup
	goOn := func(do func(r *rand.Rand)) {
		r := rand.New(rand.NewPCG(seed, rand.Uint64()))
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					do(r)
				}
			}
		})
	}
	goOn(func(r *rand.Rand) {
		var burst []hit.Hit
		for range 1 + r.IntN(20) {
			burst = append(burst, hit.Hit{Addr: addr(r.IntN(n)), Zone: "bl.example"})
		}
		b.in <- burst
		time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond)
	})
	for range 2 {
		goOn(func(r *rand.Rand) {
			var lines strings.Builder
			for range 1 + r.IntN(10) {
				i := r.IntN(n)
				// destroy is not in nft 1.0.6: one that is not there fails alone.
				fmt.Fprintf(&lines, "delete element inet rblnft %s { %s }\n", set(i), key(i))
			}
			for line := range strings.Lines(lines.String()) {
				cmd := exec.Command("nft", "-f", "-")
				cmd.Stdin = strings.NewReader(line)
				cmd.Run()
			}
		})
	}
	goOn(func(r *rand.Rand) {
		time.Sleep(time.Duration(r.IntN(700)) * time.Millisecond)
		exec.Command("nft", []string{"flush ruleset", "delete table inet rblnft", "flush set inet rblnft blocked4"}[r.IntN(3)]).Run()
	})
	goOn(func(r *rand.Rand) {
		time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
		next := cfg
		if r.IntN(2) == 0 {
			next.Policy.Allow = append([]netip.Prefix{netip.PrefixFrom(addr(r.IntN(n)), 24)}, cfg.Policy.Allow...)
		}
		if err := b.Reload(t.Context(), next); err != nil {
			b.t.Errorf("reload: %v", err)
		}
	})
	if testing.Short() {
		time.Sleep(3 * time.Second)
	} else {
		time.Sleep(6 * time.Second)
	}
	close(stop)
	running.Wait()
	if err := b.Reload(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	for i := range 40 { // whatever the last flush has left
		b.in <- []hit.Hit{{Addr: addr(i), Zone: "bl.example"}}
	}
	b.quiet()

	before := store.Monotonic()
	got := elements(t)
	b.Do(t.Context(), func() {
		now := store.Monotonic()
		want := 0
		for k := range b.book.Keys() {
			r, blocked, had := b.book.Wants(k, now)
			if !blocked {
				continue
			}
			want++
			e, ok := got[k.Addr().String()]
			if !ok || !had || e.left > r.Expires.Sub(before)+2*time.Second || e.left < r.Expires.Sub(now)-2*time.Second {
				t.Errorf("%s: the kernel has %v (%t), the book %s", k.Addr(), e, ok, r.Expires.Sub(now))
			}
			delete(got, k.Addr().String())
		}
		t.Logf("%d blocks", want)
		if want < 10 {
			t.Error("too few to show anything")
		}
	})
	if len(got) > 0 {
		t.Errorf("the kernel alone has %v", got)
	}
}
