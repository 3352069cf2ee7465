package book

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rblnft/firewall"
	"rblnft/firewall/intake"
)

// unreliable is a real table of which some calls fail before they reach it.
type unreliable struct {
	*firewall.Table
	fails   atomic.Int64 // how many of the next calls do
	full    atomic.Int64 // how many of the next calls say that there was no room
	commits atomic.Int64
	slow    atomic.Int64 // nanoseconds that every call takes longer
}

var errBroken = errors.New("netlink is broken")

func (u *unreliable) Commit(ctx context.Context, blocks []firewall.Block) error {
	u.commits.Add(1)
	time.Sleep(time.Duration(u.slow.Load()))
	if u.fails.Add(-1) >= 0 {
		return errBroken
	}
	err := u.Table.Commit(ctx, blocks)
	if err == nil && u.full.Add(-1) >= 0 {
		return fmt.Errorf("test: %w", firewall.ErrFull)
	}
	return err
}

func (u *unreliable) Restore(ctx context.Context, blocks []firewall.Block) error {
	u.commits.Add(1)
	if u.fails.Add(-1) >= 0 {
		return errBroken
	}
	return u.Table.Restore(ctx, blocks)
}

func (u *unreliable) Remove(ctx context.Context, prefixes []netip.Prefix) error {
	if u.fails.Add(-1) >= 0 {
		return errBroken
	}
	return u.Table.Remove(ctx, prefixes)
}

// A household is a keeper at work on a real table.
type household struct {
	t      *testing.T
	book   *Book
	queue  *intake.Queue
	table  *unreliable
	keeper *Keeper
	log    func() string
	stop   func()
}

func keep(t *testing.T, b *Book) *household {
	t.Helper()
	return keepIn(t, b, firewall.DefaultConfig())
}

func keepIn(t *testing.T, b *Book, cfg firewall.Config) *household {
	t.Helper()
	table, err := firewall.Open(cfg, discard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	old, err := table.Elements(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var prefixes []netip.Prefix
	for _, e := range old {
		prefixes = append(prefixes, e.Prefix)
	}
	if err := table.Remove(context.Background(), prefixes); err != nil {
		t.Fatal(err)
	}
	h := &household{t: t, book: b, table: &unreliable{Table: table}}
	var log *slog.Logger
	log, h.log = logged()
	h.queue = intake.NewQueue(100_000, b.Renews)
	h.keeper = NewKeeper(b, h.queue, h.table, log)
	var running sync.WaitGroup
	h.stop = sync.OnceFunc(func() {
		h.queue.Close()
		running.Wait()
	})
	t.Cleanup(h.stop)
	running.Go(func() { h.keeper.Run(context.Background()) })
	return h
}

// elements are what the kernel's sets hold.
func (h *household) elements() map[string]firewall.Block {
	h.t.Helper()
	blocks, err := h.table.Elements(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	all := map[string]firewall.Block{}
	for _, b := range blocks {
		all[b.Prefix.String()] = b
	}
	return all
}

// until waits for something to be so.
func until(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !so(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so after 20 s: %s", what)
		}
	}
}

func (h *household) hits(addrs ...string) {
	for _, a := range addrs {
		h.queue.Put(report(a, time.Now()))
	}
}

func TestHitsReachTheKernel(t *testing.T) {
	h := keep(t, New(testPolicy(), discard()))
	h.hits("192.0.2.1", "2001:db8::7", "10.0.0.1", "192.0.2.1")
	h.stop()
	got := h.elements()
	if len(got) != 2 {
		t.Fatalf("elements %v", got)
	}
	for _, p := range []string{"192.0.2.1/32", "2001:db8::/64"} {
		if left := time.Until(got[p].Expires); got[p].Zone != "bl.example" || left > time.Hour || left < time.Hour-time.Minute {
			t.Errorf("%s: %+v", p, got[p])
		}
	}
	for _, want := range []string{
		"msg=blocked addr=192.0.2.1 zone=bl.example code=- decision=blocked prefix=192.0.2.1/32 timeout=1h0m0s",
		"msg=blocked addr=2001:db8::7 ", "decision=renewed", "prefix=2001:db8::/64",
		`msg="not blocked" addr=10.0.0.1 zone=bl.example code=- decision=allowed`,
	} {
		if !strings.Contains(h.log(), want) {
			t.Errorf("%q is missing in the log:\n%s", want, h.log())
		}
	}
}

// While one transaction is in flight the next batch gathers.
func TestFloodIsFewBatches(t *testing.T) {
	h := keep(t, New(testPolicy(), discard()))
	h.table.slow.Store(int64(20 * time.Millisecond))
	const n = 10_000
	for i := range n {
		r := report("192.0.2.1", time.Now())
		r.Addr = numbered(i)
		h.queue.Put(r)
	}
	h.stop()
	if got := len(h.elements()); got != n {
		t.Errorf("%d elements, want %d", got, n)
	}
	if commits := h.table.commits.Load(); commits > n/100 {
		t.Errorf("%d hits took %d commits", n, commits)
	}
	lines := strings.Count(h.log(), "\n")
	if lines > 8000 || !strings.Contains(h.log(), "more hits than are logged") {
		t.Errorf("%d lines in the log about %d hits", lines, n)
	}
}

func TestNothingIsLostWhileCommitsFail(t *testing.T) {
	h := keep(t, New(testPolicy(), discard()))
	h.table.fails.Store(14)
	h.hits("192.0.2.1")
	until(t, "failing", func() bool { return h.keeper.Failing() != nil })
	h.hits("192.0.2.2", "2001:db8::1")
	until(t, "said", func() bool { return strings.Contains(h.log(), "netlink is broken") })
	if strings.Contains(h.log(), "msg=blocked") {
		t.Errorf("said to be blocked before it is: %s", h.log())
	}
	h.hits("192.0.2.3")
	until(t, "all in", func() bool { return len(h.elements()) == 4 })
	until(t, "all logged", func() bool { return strings.Count(h.log(), "msg=blocked") == 4 })
	if h.keeper.Failing() != nil {
		t.Errorf("failing still: %v", h.keeper.Failing())
	}
	if n := strings.Count(h.log(), "\n"); n > 10 {
		t.Errorf("%d lines: %s", n, h.log())
	}
	// And it works as before.
	h.hits("192.0.2.4")
	h.stop()
	if len(h.elements()) != 5 || strings.Count(h.log(), "msg=blocked") != 5 {
		t.Errorf("%v; %s", h.elements(), h.log())
	}
}

// The book holds what could not be committed before the end.
func TestEndWhileCommitsFail(t *testing.T) {
	dir := t.TempDir()
	b, err := Open(dir, testPolicy(), discard())
	if err != nil {
		t.Fatal(err)
	}
	h := keep(t, b)
	h.table.fails.Store(1 << 40)
	h.hits("192.0.2.1", "192.0.2.2")
	h.stop()
	b.Close()
	if len(h.elements()) != 0 {
		t.Fatalf("elements %v", h.elements())
	}
	if b, err = Open(dir, testPolicy(), discard()); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	h = keep(t, b)
	if n := h.keeper.CommitWaiting(); n != 2 {
		t.Errorf("%d are waiting, want 2", n)
	}
	until(t, "both in", func() bool { return len(h.elements()) == 2 })
	if n := len(b.waiting()); n != 0 {
		t.Errorf("%d are waiting", n)
	}
}

// A full set is tried again when others may have expired.
func TestFullSet(t *testing.T) {
	h := keep(t, New(testPolicy(), discard()))
	h.table.full.Store(1)
	h.hits("192.0.2.1")
	until(t, "refused", func() bool { return h.table.commits.Load() == 1 })
	h.hits("192.0.2.2")
	until(t, "in", func() bool { return len(h.elements()) == 2 })
	time.Sleep(50 * time.Millisecond)
	if strings.Contains(h.log(), "addr=192.0.2.1 ") {
		t.Errorf("said to be blocked though it may not be: %s", h.log())
	}
	until(t, "tried again and logged", func() bool { return strings.Contains(h.log(), "msg=blocked addr=192.0.2.1 ") })
}

func TestRemovalIsTriedAgain(t *testing.T) {
	h := keep(t, New(testPolicy(), discard()))
	h.hits("192.0.2.1", "192.0.2.2")
	until(t, "in", func() bool { return len(h.elements()) == 2 })
	h.table.fails.Store(3)
	p := testPolicy()
	p.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}
	h.keeper.Remove(h.book.SetPolicy(p))
	until(t, "out", func() bool { _, in := h.elements()["192.0.2.1/32"]; return !in })
	h.stop()
	if len(h.elements()) != 1 {
		t.Errorf("elements %v", h.elements())
	}
}

// New hits do not wait for all that is missing at the start.
func TestHitsDoNotWaitForTheBacklog(t *testing.T) {
	dir := t.TempDir()
	b, err := Open(dir, testPolicy(), discard())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	var reports []intake.Report
	const n = 50_000
	for i := range n {
		r := report("192.0.2.1", now)
		r.Addr = numbered(i)
		reports = append(reports, r)
	}
	b.Record(reports)
	b.Close()
	if b, err = Open(dir, testPolicy(), discard()); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	h := keep(t, b)
	h.table.slow.Store(int64(10 * time.Millisecond)) // so that all take half a second
	if got := h.keeper.CommitWaiting(); got != n {
		t.Errorf("%d are missing, want %d", got, n)
	}
	until(t, "some are in", func() bool { return h.table.commits.Load() > 2 })
	h.hits("192.0.2.1")
	until(t, "the hit is in", func() bool { return strings.Contains(h.log(), "addr=192.0.2.1 ") })
	if len(b.waiting()) == 0 {
		t.Error("the hit came last")
	}
	until(t, "all are in", func() bool { return len(b.waiting()) == 0 })
	h.stop()
	if got := len(h.elements()); got != n+1 {
		t.Errorf("%d elements, want %d", got, n+1)
	}
}

// In a table of IPv4 alone, IPv6 addresses wait, and IPv4 ones do not.
func TestOneFamilyMissing(t *testing.T) {
	if out, err := exec.Command("nft", "add table ip only4; add set ip only4 blocked4 { type ipv4_addr; flags timeout; }").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cfg := firewall.DefaultConfig()
	cfg.Table, cfg.Rules = "ip only4", false
	h := keepIn(t, New(testPolicy(), discard()), cfg)
	h.hits("2001:db8::1", "192.0.2.1", "2001:db8:0:1::1")
	until(t, "IPv4 is in", func() bool { return len(h.elements()) == 1 })
	until(t, "said", func() bool { return strings.Contains(h.log(), "blocks cannot be committed") })
	start := time.Now()
	for i := range 50 {
		h.hits(fmt.Sprintf("192.0.2.%d", 2+i), "2001:db8::1")
		until(t, "logged", func() bool { return strings.Contains(h.log(), fmt.Sprintf("addr=192.0.2.%d ", 2+i)) })
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("IPv4 waited for IPv6: 50 hits took %s", took)
	}
	p := testPolicy()
	p.Allow = []netip.Prefix{netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("192.0.2.1/32")}
	h.keeper.Remove(h.book.SetPolicy(p))
	until(t, "unblocked", func() bool { return len(h.elements()) == 50 })
	h.stop()
	if n := len(h.keeper.lanes[1].backlog); n > 2 {
		t.Errorf("%d wait, of two addresses", n)
	}
	if strings.Contains(h.log(), "addr=2001:db8::1 ") {
		t.Errorf("said to be blocked: %s", h.log())
	}
}
