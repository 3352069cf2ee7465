package book

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rblnft/firewall"
	"rblnft/firewall/hit"
	"rblnft/firewall/intake"
	"rblnft/firewall/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// testPolicy is the default one, nearly.
func testPolicy() Policy {
	return Policy{
		Hits: 1, Window: 10 * time.Minute,
		Expiry: time.Hour, Escalate: 2, MaxExpiry: 168 * time.Hour,
		MaxElements: 1_000_000,
		Allow:       []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8:a::/48"), netip.MustParsePrefix("192.0.2.200/32"), netip.MustParsePrefix("2001:db8:b::25/128")},
	}
}

func report(addr string, at time.Time) intake.Report {
	return intake.Report{Hit: hit.Hit{Addr: netip.MustParseAddr(addr), Zone: "bl.example"}, Received: at}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// state is what a book says is in force.
func state(b *Book) map[string]firewall.Block {
	all := map[string]firewall.Block{}
	for block := range b.Blocks() {
		all[block.Prefix.String()] = block
	}
	return all
}

func TestDecisions(t *testing.T) {
	start := time.Now().Truncate(time.Millisecond)
	type step struct {
		after   time.Duration // since start
		addr    string
		want    Decision
		timeout time.Duration
		returns int
	}
	tests := []struct {
		name   string
		change func(*Policy)
		steps  []step
	}{
		{"one hit blocks", nil, []step{
			{0, "192.0.2.1", Blocked, time.Hour, 0},
			{0, "192.0.2.2", Blocked, time.Hour, 0},
		}},
		{"a hit while blocked renews, and is no return", nil, []step{
			{0, "192.0.2.1", Blocked, time.Hour, 0},
			{time.Minute, "192.0.2.1", Renewed, time.Hour, 0},
			{2 * time.Minute, "192.0.2.1", Renewed, time.Hour, 0},
		}},
		{"who returns stays longer, up to a limit", nil, []step{
			{0, "192.0.2.1", Blocked, time.Hour, 0},
			{2 * time.Hour, "192.0.2.1", Blocked, 2 * time.Hour, 1},
			{3 * time.Hour, "192.0.2.1", Renewed, 2 * time.Hour, 1},
			{6 * time.Hour, "192.0.2.1", Blocked, 4 * time.Hour, 2},
			{11 * time.Hour, "192.0.2.1", Blocked, 8 * time.Hour, 3},
			{20 * time.Hour, "192.0.2.1", Blocked, 16 * time.Hour, 4},
			{40 * time.Hour, "192.0.2.1", Blocked, 32 * time.Hour, 5},
			{80 * time.Hour, "192.0.2.1", Blocked, 64 * time.Hour, 6},
			{150 * time.Hour, "192.0.2.1", Blocked, 128 * time.Hour, 7},
			{300 * time.Hour, "192.0.2.1", Blocked, 168 * time.Hour, 8},
			{500 * time.Hour, "192.0.2.1", Blocked, 168 * time.Hour, 9},
			{500 * time.Hour, "192.0.2.2", Blocked, time.Hour, 0},
		}},
		{"no escalation", func(p *Policy) { p.Escalate = 1 }, []step{
			{0, "192.0.2.1", Blocked, time.Hour, 0},
			{2 * time.Hour, "192.0.2.1", Blocked, time.Hour, 1},
		}},
		{"the allow list", nil, []step{
			{0, "10.1.2.3", Allowed, 0, 0},
			{0, "11.1.2.3", Blocked, time.Hour, 0},
			{0, "192.0.2.200", Allowed, 0, 0},
			{0, "192.0.2.201", Blocked, time.Hour, 0},
			{0, "2001:db8:a:1::1", Allowed, 0, 0},
			{0, "2001:db8:b::25", Allowed, 0, 0},
			{0, "2001:db8:b::26", Blocked, time.Hour, 0},
		}},
		{"IPv6 by its /64", nil, []step{
			{0, "2001:db8::1", Blocked, time.Hour, 0},
			{0, "2001:db8::ffff:ffff:ffff:ffff", Renewed, time.Hour, 0},
			{0, "2001:db8:0:1::1", Blocked, time.Hour, 0},
		}},
		{"an IPv6 network is not the IPv4 address of the same bits", nil, []step{
			{0, "::192.0.2.1", Blocked, time.Hour, 0},
			{0, "0:0:c000:201::1", Blocked, time.Hour, 0},
			{0, "192.0.2.1", Blocked, time.Hour, 0},
		}},
		{"three hits within the window", func(p *Policy) { p.Hits = 3 }, []step{
			{0, "192.0.2.1", Counted, 0, 0},
			{time.Minute, "192.0.2.1", Counted, 0, 0},
			{time.Minute, "192.0.2.2", Counted, 0, 0},
			{10 * time.Minute, "192.0.2.1", Counted, 0, 0}, // the first one is out
			{10*time.Minute + 59*time.Second, "192.0.2.1", Blocked, time.Hour, 0},
			{11 * time.Minute, "192.0.2.1", Renewed, time.Hour, 0},
			{3 * time.Hour, "192.0.2.1", Counted, 0, 0},
			{3 * time.Hour, "192.0.2.1", Counted, 0, 0},
			{3 * time.Hour, "192.0.2.1", Blocked, 2 * time.Hour, 1},
		}},
		{"no more than max_elements of each family", func(p *Policy) { p.MaxElements = 4 }, []step{
			{0, "192.0.2.1", Blocked, time.Hour, 0},
			{0, "192.0.2.2", Blocked, time.Hour, 0},
			{0, "192.0.2.3", Blocked, time.Hour, 0},
			{time.Minute, "192.0.2.4", Blocked, time.Hour, 0},
			{time.Minute, "192.0.2.5", Full, 0, 0},
			{time.Minute, "192.0.2.1", Renewed, time.Hour, 0},
			{time.Minute, "2001:db8::1", Blocked, time.Hour, 0},
			{time.Hour, "192.0.2.5", Blocked, time.Hour, 0}, // .2 and .3 are over
			{time.Hour, "192.0.2.6", Blocked, time.Hour, 0},
			{time.Hour, "192.0.2.7", Full, 0, 0},
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := testPolicy()
			if test.change != nil {
				test.change(&p)
			}
			b := New(p, discard())
			for i, s := range test.steps {
				at := start.Add(s.after)
				o := b.Record([]intake.Report{report(s.addr, at)})[0]
				if o.Decision != s.want || o.Timeout != s.timeout || o.Returns != s.returns {
					t.Fatalf("step %d, %s after %s: %s for %s, return %d; want %s for %s, return %d",
						i, s.addr, s.after, o.Decision, o.Timeout, o.Returns, s.want, s.timeout, s.returns)
				}
				if s.want == Blocked && !o.Expires.Equal(at.Add(s.timeout)) {
					t.Fatalf("step %d: expires %s, want %s later", i, o.Expires, s.timeout)
				}
			}
		})
	}
}

func TestAddedAndRemovedByHand(t *testing.T) {
	now := time.Now().Truncate(time.Millisecond)
	b := New(testPolicy(), discard())
	one := netip.MustParsePrefix("192.0.2.1/32")

	long := firewall.Block{Prefix: one, Expires: now.Add(1000 * time.Hour), Zone: "by hand"}
	b.Added(long)
	if got := state(b)["192.0.2.1/32"]; got != long {
		t.Errorf("got %+v, want %+v", got, long)
	}
	if o := b.Record([]intake.Report{report("192.0.2.1", now)})[0]; o.Decision != Kept {
		t.Errorf("a hit of what is blocked for longer: %s, want %s", o.Decision, Kept)
	}
	never := firewall.Block{Prefix: one, Zone: "never"}
	b.Added(never)
	if got := state(b)["192.0.2.1/32"]; got != never {
		t.Errorf("got %+v, want %+v", got, never)
	}
	b.Removed(one)
	if len(state(b)) != 0 {
		t.Errorf("in force after it was removed: %v", state(b))
	}
	// Who was unblocked by hand has not been blocked before.
	if o := b.Record([]intake.Report{report("192.0.2.1", now)})[0]; o.Decision != Blocked || o.Returns != 0 {
		t.Errorf("got %s, return %d", o.Decision, o.Returns)
	}
	// What the kernel let go is remembered.
	b.Record([]intake.Report{report("192.0.2.2", now.Add(-time.Hour))})
	b.committed([]key{keyOf(firewall.PrefixOf(netip.MustParseAddr("192.0.2.2")))})
	b.Removed(netip.MustParsePrefix("192.0.2.2/32"))
	if o := b.Record([]intake.Report{report("192.0.2.2", now)})[0]; o.Decision != Blocked || o.Returns != 1 {
		t.Errorf("expired, removed by the kernel, back again: %s, return %d", o.Decision, o.Returns)
	}
	// A hit of this very moment outweighs what somebody did a moment ago.
	has := func() bool { _, ok := state(b)["192.0.2.1/32"]; return ok }
	b.Removed(one)
	if !has() {
		t.Error("a block of which the kernel is being told was removed")
	}
	// In the midst of a batch that did not fit may be one that did.
	b.setWaiting([]key{keyOf(one)})
	b.Removed(one)
	if has() {
		t.Error("a block that waits was not removed")
	}
}

// What a comparison finds may be old by then.
func TestCompared(t *testing.T) {
	now := time.Now().Truncate(time.Millisecond)
	b := New(testPolicy(), discard())
	one := firewall.PrefixOf(netip.MustParseAddr("192.0.2.1"))
	hit := func(at time.Time) firewall.Block {
		b.Record([]intake.Report{report("192.0.2.1", at)})
		return state(b)["192.0.2.1/32"]
	}
	has := func() bool { _, ok := state(b)["192.0.2.1/32"]; return ok }
	seen := hit(now)
	if b.Compared([]firewall.Block{seen}, nil); !has() {
		t.Error("missing, as the kernel was being told: forgotten")
	}
	b.setWaiting([]key{keyOf(one)})
	if b.Compared([]firewall.Block{seen}, nil); !has() {
		t.Error("missing, as it was waiting: forgotten")
	}
	b.committed([]key{keyOf(one)})
	later := hit(now.Add(time.Second))
	b.committed([]key{keyOf(one)})
	if b.Compared([]firewall.Block{seen}, nil); !has() {
		t.Error("missing, but renewed since: forgotten")
	}
	// Somebody's element that the book has for longer by now.
	b.Compared(nil, []firewall.Block{{Prefix: one, Expires: now.Add(time.Minute)}})
	if got := state(b)["192.0.2.1/32"]; got != later {
		t.Errorf("got %+v, want %+v", got, later)
	}
	if b.Compared([]firewall.Block{later}, nil); has() {
		t.Error("deleted unheard: still in force")
	}
	allowed := firewall.Block{Prefix: firewall.PrefixOf(netip.MustParseAddr("10.0.0.1")), Expires: now.Add(time.Hour)}
	added := firewall.Block{Prefix: firewall.PrefixOf(netip.MustParseAddr("192.0.2.9")), Expires: now.Add(time.Hour), Zone: "by hand"}
	b.Compared(nil, []firewall.Block{allowed, added})
	if got := state(b); len(got) != 1 || got["192.0.2.9/32"] != added {
		t.Errorf("in force: %v", got)
	}
}

func TestSetPolicyUnblocksWhatItAllows(t *testing.T) {
	now := time.Now()
	b := New(testPolicy(), discard())
	for _, a := range []string{"192.0.2.1", "192.0.2.2", "198.51.100.1", "2001:db8:c:1::1", "2001:db8:d::1"} {
		b.Record([]intake.Report{report(a, now)})
	}
	p := testPolicy()
	p.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/30"), netip.MustParsePrefix("2001:db8:c::/48"), netip.MustParsePrefix("2001:db8:d::1/128")}
	var got []string
	for _, prefix := range b.SetPolicy(p) {
		got = append(got, prefix.String())
	}
	slices.Sort(got)
	if want := []string{"192.0.2.1/32", "192.0.2.2/32", "2001:db8:c:1::/64"}; !slices.Equal(got, want) {
		t.Errorf("unblocked %v, want %v", got, want)
	}
	left := slices.Sorted(maps.Keys(state(b)))
	if want := []string{"198.51.100.1/32", "2001:db8:d::/64"}; !slices.Equal(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
	if o := b.Record([]intake.Report{report("192.0.2.1", now)})[0]; o.Decision != Allowed {
		t.Errorf("%s, want %s", o.Decision, Allowed)
	}
}

// numbered returns the nth address of 2^24.
func numbered(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, byte(n >> 16), byte(n >> 8), byte(n)})
}

func TestMemoryIsBounded(t *testing.T) {
	p := testPolicy()
	p.MaxElements = 1000
	p.Expiry, p.MaxExpiry = time.Minute, time.Hour
	b := New(p, discard())
	now := time.Now()
	for round := range 100 {
		at := now.Add(time.Duration(round) * 70 * time.Second)
		var reports []intake.Report
		for n := range 1000 {
			addr := numbered(round*1000 + n)
			reports = append(reports, intake.Report{Hit: hit.Hit{Addr: addr, Zone: fmt.Sprintf("bl%d.example", round*1000+n)}, Received: at})
		}
		for i, o := range b.Record(reports) {
			if o.Decision != Blocked {
				t.Fatalf("round %d, hit %d: %s", round, i, o.Decision)
			}
		}
		if n := len(b.records[0]); n > 1000+1000/4+1 {
			t.Fatalf("round %d: %d records, want no more than are in force and a quarter of it", round, n)
		}
	}
	if n := len(b.zones.number); n > 1300 {
		t.Errorf("%d names of zones are kept, want no more than there are records", n)
	}
	// Of those that are remembered it is the latest.
	at := now.Add(100 * 70 * time.Second)
	if o := b.Record([]intake.Report{{Hit: hit.Hit{Addr: numbered(99_999), Zone: "a"}, Received: at}})[0]; o.Returns != 1 {
		t.Errorf("return %d, want 1", o.Returns)
	}
	// Who was not heard of for max_expiry is forgotten.
	b.sweep(at.Add(3*time.Hour), func() {})
	if n := len(b.records[0]); n != 0 {
		t.Errorf("%d records, want none", n)
	}
}

func TestCountingIsBounded(t *testing.T) {
	p := testPolicy()
	p.Hits = MaxHits
	b := New(p, discard())
	now := time.Now()
	for n := range 3 * maxCounted {
		b.Record([]intake.Report{{Hit: hit.Hit{Addr: numbered(n)}, Received: now}})
	}
	if n := len(b.counts.seen); n > maxCounted {
		t.Errorf("%d addresses are counted, want %d at most", n, maxCounted)
	}
	if b.counts.evicted == 0 {
		t.Error("none was forgotten")
	}
}

func TestMoreZonesThanNumbers(t *testing.T) {
	var z zones
	for n := range 70_000 {
		name := fmt.Sprintf("bl%d.example", n)
		number := z.use(name)
		if got := z.name(number); n < 65535 && got != name || n >= 65535 && got != "" {
			t.Fatalf("zone %d is %q", n, got)
		}
	}
	z.release(77)
	if n := z.use("another.example"); n != 77 || z.name(77) != "another.example" {
		t.Errorf("number %d, want the one that is free again", n)
	}
}

// Everything may happen at once.
func TestConcurrentUse(t *testing.T) {
	b, err := Open(t.TempDir(), testPolicy(), discard())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	now := time.Now()
	var all sync.WaitGroup
	for worker := range 3 {
		all.Go(func() {
			for n := range 5000 {
				b.Record([]intake.Report{{Hit: hit.Hit{Addr: numbered(n), Zone: fmt.Sprint("z", worker)}, Received: now}})
				b.isBlocked(numbered(n))
			}
		})
	}
	all.Go(func() {
		for n := range 500 {
			prefix := firewall.PrefixOf(numbered(10_000 + n))
			b.Added(firewall.Block{Prefix: prefix, Expires: now.Add(time.Hour)})
			b.Removed(prefix)
			b.SetPolicy(testPolicy())
		}
	})
	all.Go(func() {
		for range 50 {
			for range b.Blocks() {
			}
			b.Len()
			b.mu.Lock()
			b.sweep(time.Now(), func() { b.mu.Unlock(); b.mu.Lock() })
			b.mu.Unlock()
			b.journal.mu.Lock()
			b.journal.lines = 1 << 30
			b.journal.mu.Unlock()
			b.journal.compact(context.Background(), 0, b.chunks())
		}
	})
	all.Wait()
	if n := len(state(b)); n != 5000 {
		t.Errorf("%d blocks, want 5000", n)
	}
	if b.live != [2]int{5000, 0} {
		t.Errorf("%v are counted as in force, want 5000", b.live)
	}
}

func TestTakeOver(t *testing.T) {
	now := time.Now().Truncate(time.Millisecond)
	dir := t.TempDir()
	b, err := Open(dir, testPolicy(), discard())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"} {
		b.Record([]intake.Report{report(a, now)})
	}
	b.Close()
	if b, err = Open(dir, testPolicy(), discard()); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	block := func(addr string, left time.Duration) firewall.Block {
		return firewall.Block{Prefix: firewall.PrefixOf(netip.MustParseAddr(addr)), Expires: now.Add(left), Zone: "kernel.example"}
	}
	elements := []firewall.Block{
		block("192.0.2.1", time.Hour+300*time.Millisecond), // the same
		block("192.0.2.2", time.Minute),                    // the commit did not come through
		block("192.0.2.3", 3*time.Hour),                    // somebody made it longer
		// 192.0.2.4 is missing
		block("192.0.2.5", 2*time.Hour), // by hand, or without a journal
		block("10.0.0.1", time.Hour),    // allowed
		block("192.0.2.6", time.Hour),   // deleted meanwhile
		block("192.0.2.7", time.Hour),   // hit meanwhile
	}
	unwanted, err := b.TakeOver(func() ([]firewall.Block, error) {
		b.Removed(netip.MustParsePrefix("192.0.2.6/32"))
		b.Record([]intake.Report{report("192.0.2.7", now.Add(time.Minute))})
		return elements, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(unwanted) != 1 || unwanted[0].String() != "10.0.0.1/32" {
		t.Errorf("unwanted %v, want 10.0.0.1/32", unwanted)
	}
	want := map[string]time.Duration{"192.0.2.1/32": time.Hour, "192.0.2.2/32": time.Hour, "192.0.2.3/32": 3 * time.Hour,
		"192.0.2.4/32": time.Hour, "192.0.2.5/32": 2 * time.Hour, "192.0.2.7/32": time.Hour + time.Minute}
	got := map[string]time.Duration{}
	for p, block := range state(b) {
		got[p] = block.Expires.Sub(now)
	}
	if !maps.Equal(got, want) {
		t.Errorf("in force %v, want %v", got, want)
	}
	var waits []string
	for _, k := range b.waiting() {
		waits = append(waits, k.prefix().String())
	}
	slices.Sort(waits)
	if want := []string{"192.0.2.2/32", "192.0.2.4/32"}; !slices.Equal(waits, want) {
		t.Errorf("waiting %v, want %v", waits, want)
	}
	b.LeaveToTable(true)
	if n := len(b.waiting()); n != 2 {
		t.Errorf("%d are waiting, want two", n)
	}
	b.LeaveToTable(false)
	if n := len(b.waiting()); n != 0 {
		t.Errorf("%d are waiting, want none", n)
	}
	failure := errors.New("no list")
	if _, err := b.TakeOver(func() ([]firewall.Block, error) { return nil, failure }); err != failure {
		t.Errorf("got %v, want %v", err, failure)
	}
}

// A clock that was wrong, or a longer max_expiry, blocks nobody for longer than
// is allowed now.
func TestStoredTimesAreCutAtMaxExpiry(t *testing.T) {
	dir := t.TempDir()
	b, err := Open(dir, testPolicy(), discard())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	b.Record([]intake.Report{report("192.0.2.1", now.Add(10_000*time.Hour))})
	b.Added(firewall.Block{Prefix: netip.MustParsePrefix("192.0.2.2/32"), Expires: now.Add(20_000 * time.Hour)})
	b.Close()
	if b, err = Open(dir, testPolicy(), discard()); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if left := time.Until(state(b)["192.0.2.1/32"].Expires); left > 168*time.Hour || left < 167*time.Hour {
		t.Errorf("%s left, want 168h", left)
	}
	if left := time.Until(state(b)["192.0.2.2/32"].Expires); left < 19_999*time.Hour {
		t.Errorf("%s left of what was made by hand, want it all", left)
	}
}

// logged returns a logger and what it logged.
func logged() (*slog.Logger, func() string) {
	var mu sync.Mutex
	var buf bytes.Buffer
	h := slog.NewTextHandler(writer(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return buf.Write(p)
	}), nil)
	return slog.New(h), func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Clone(buf.String())
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
