//go:build linux

package firewall

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rblnft/firewall/book"
	"rblnft/firewall/firewalltest"
	"rblnft/firewall/hit"
	"rblnft/firewall/netlab"
	"rblnft/firewall/ruleset"
	"rblnft/firewall/store"
)

func TestMain(m *testing.M) { netlab.Main(m) }

var nftRun, script, flush = firewalltest.NFT, firewalltest.Script, firewalltest.Flush

func testConfig() Config {
	return Config{
		Ruleset: ruleset.Default(),
		Policy: book.Policy{
			Hits: 1, Window: time.Minute, Expiry: time.Hour, Escalate: 2, MaxExpiry: 8 * time.Hour, MaxElements: 1_000_000,
			Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
		},
		Batch: 20 * time.Millisecond,
	}
}

// A logbook is a log that a test can read.
type logbook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A bench is a loop at work.
type bench struct {
	*Firewall
	t    testing.TB
	log  *logbook
	in   chan []hit.Hit
	stop func() // as SIGTERM does
	kill func() // as SIGKILL does
}

// old has loops work as on a kernel without NFT_MSG_DESTROYSETELEM.
var old bool

// eachPath runs a test on the kernel that there is, and as on one without
// NFT_MSG_DESTROYSETELEM.
func eachPath(t *testing.T, test func(t *testing.T)) {
	for _, old = range []bool{false, true} {
		t.Run(map[bool]string{false: "as it is", true: "without DESTROY"}[old], test)
	}
	old = false
}

// start starts a loop in the ruleset that there is. With a directory it has a store.
func start(t testing.TB, cfg Config, dir string) *bench {
	t.Helper()
	b := &bench{t: t, log: &logbook{}, in: make(chan []hit.Hit, 1000)}
	log := slog.New(slog.NewTextHandler(b.log, nil))
	var s *store.Store
	var err error
	if dir != "" {
		if s, err = store.Open(dir, store.Now, log); err != nil {
			t.Fatal(err)
		}
	}
	if b.Firewall, err = Open(cfg, s, log); err != nil {
		t.Fatal(err)
	}
	b.conn.NoDestroy = b.conn.NoDestroy || old
	ctx, cancel := context.WithCancel(context.Background())
	storing, stopStoring := context.WithCancel(context.Background())
	var running, stored sync.WaitGroup
	running.Go(func() {
		if err := b.Run(ctx, b.in); err != nil {
			t.Error(err)
		}
	})
	stored.Go(func() { s.Run(storing) })
	end := func(first func()) func() {
		return func() {
			first()
			running.Wait()
			stopStoring()
			stored.Wait()
			b.Close()
			cancel()
		}
	}
	var once sync.Once
	b.stop = func() {
		once.Do(end(func() {
			close(b.in)
			time.AfterFunc(10*time.Second, cancel)
		}))
	}
	b.kill = func() { once.Do(end(cancel)) }
	t.Cleanup(func() {
		b.stop()
		if t.Failed() {
			t.Logf("the log:\n%s", b.log)
		}
	})
	return b
}

// fresh is start in an empty ruleset.
func fresh(t testing.TB, cfg Config) *bench {
	t.Helper()
	flush(t)
	return start(t, cfg, "")
}

func hitOf(addr string) hit.Hit {
	return hit.Hit{Addr: netip.MustParseAddr(addr), Zone: "bl.example", Code: netip.MustParseAddr("127.0.0.2")}
}

// hits sends hits, one by one.
func (b *bench) hits(addrs ...string) {
	for _, a := range addrs {
		b.in <- []hit.Hit{hitOf(a)}
	}
}

// quiet waits until the kernel was told of everything that came, and the ruleset is
// as it should be.
func (b *bench) quiet() {
	b.t.Helper()
	eventually(b.t, "nothing waits", func() bool {
		idle := false
		b.Do(b.t.Context(), func() {
			idle = len(b.in) == 0 && len(b.changes) == 0 && b.ensureAt.IsZero() && b.book.Waiting(0)+b.book.Waiting(1)+b.book.Refilling(0)+b.book.Refilling(1) == 0
		})
		return idle
	})
}

// eventually waits for what should happen at once, as long as a noisy machine may
// need.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			out, _ := exec.Command("nft", "-t", "list", "ruleset").CombinedOutput()
			t.Fatalf("not within 30 s: %s\n%s", what, out)
		}
	}
}

// A listed element is one as nft lists it.
type listed struct {
	left    time.Duration // 0: it stays
	comment string
}

var elementPattern = regexp.MustCompile(`([0-9a-f.:]+)(?: timeout [0-9a-z]+ expires ([0-9a-z]+))?(?: comment "([^"]*)")?[,\s]`)

// elements are what both sets of blocked addresses hold, by key; nil where one is
// away.
func elements(t testing.TB) map[string]listed {
	t.Helper()
	all := map[string]listed{}
	for _, set := range []string{"blocked4", "blocked6"} {
		out, err := exec.Command("nft", "list", "set", "inet", "rblnft", set).Output()
		if err != nil {
			return nil
		}
		_, text, _ := strings.Cut(string(out), "elements = {")
		for _, m := range elementPattern.FindAllStringSubmatch(text, -1) {
			all[m[1]] = listed{duration(t, m[2]), m[3]}
		}
	}
	return all
}

// duration reads a time as nft writes it.
func duration(t testing.TB, s string) (d time.Duration) {
	t.Helper()
	units := map[string]time.Duration{"d": 24 * time.Hour, "h": time.Hour, "m": time.Minute, "s": time.Second, "ms": time.Millisecond}
	for _, m := range regexp.MustCompile(`(\d+)([a-z]+)`).FindAllStringSubmatch(s, -1) {
		var n int
		if _, err := fmt.Sscan(m[1], &n); err != nil || units[m[2]] == 0 {
			t.Fatalf("%q is no time", s)
		}
		d += time.Duration(n) * units[m[2]]
	}
	return d
}

func keys[V any](m map[string]V) []string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

// has waits until the sets hold the given keys and no others.
func (b *bench) has(want ...string) {
	b.t.Helper()
	slices.Sort(want)
	var got []string
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		m := elements(b.t)
		if got = keys(m); m != nil && slices.Equal(got, want) {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("elements %v, want %v", got, want)
		}
	}
}

// says waits for a line of the log with all words.
func (b *bench) says(words ...string) string {
	b.t.Helper()
	line := ""
	eventually(b.t, fmt.Sprintf("a line with %q", words), func() bool {
		for line = range strings.Lines(b.log.String()) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				return true
			}
		}
		return false
	})
	return line
}
