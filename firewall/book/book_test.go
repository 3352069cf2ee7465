package book

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"rblnft/dnsbl"
	"rblnft/firewall/hit"
)

const start = Time(1_000_000_000) // some time after boot

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefixes(s ...string) (p []netip.Prefix) {
	for _, text := range s {
		p = append(p, netip.MustParsePrefix(text))
	}
	return p
}

// policy is the default one, nearly.
func policy(change ...func(*Policy)) Policy {
	p := Policy{
		Hits: 1, Window: 10 * time.Minute, Expiry: time.Hour, Escalate: 2, MaxExpiry: 8 * time.Hour, MaxElements: 1000,
		Allow:    prefixes("10.0.0.0/8", "2001:db8:a::/48", "192.0.2.200/32", "2001:db8:b::25/128"),
		Families: [2]bool{true, true},
	}
	for _, c := range change {
		c(&p)
	}
	return p
}

func hitOf(a string) hit.Hit {
	return hit.Hit{Addr: addr(a), Zone: "bl.example", Code: addr("127.0.0.2")}
}

// push has the kernel told of all that waits.
func push(b *Book, now Time) {
	for f := range Family(2) {
		b.Done(f, b.Waiting(f), now)
	}
}

// recount fails where the books' sums are not what counting gives.
func recount(t *testing.T, b *Book) {
	t.Helper()
	var counted [2]int
	for k := range b.Keys() {
		counted[k.Family] += b.counts(b.records[k.Family][k.bits])
	}
	if counted != b.counted {
		t.Fatalf("counted are %v, and there are %v", b.counted, counted)
	}
	for f := range b.queue {
		waiting := 0
		for _, r := range b.records[f] {
			if r.flags&dirty != 0 {
				waiting++
			}
		}
		if waiting != len(b.queue[f]) {
			t.Fatalf("%d are dirty, and %d wait", waiting, len(b.queue[f]))
		}
		for i, p := range b.queue[f] {
			if r := b.records[f][p.Key.bits]; r.flags&dirty == 0 || r.turn-b.gone[f] != uint32(i) {
				t.Fatalf("%v waits at %d: %+v", p.Key.Prefix(), i, r)
			}
		}
	}
}

func TestDecisions(t *testing.T) {
	type step struct {
		after   time.Duration // since start
		addr    string
		want    Decision
		timeout time.Duration
		returns int
	}
	for name, test := range map[string]struct {
		change func(*Policy)
		steps  []step
	}{
		"one hit blocks": {func(*Policy) {}, []step{
			{0, "192.0.2.1", Blocked, time.Hour, 0},
			{0, "192.0.2.2", Blocked, time.Hour, 0},
		}},
		"a hit while blocked renews, and is no return": {func(*Policy) {}, []step{
			{0, "192.0.2.1", Blocked, time.Hour, 0},
			{time.Minute, "192.0.2.1", Renewed, time.Hour, 0},
			{time.Hour + time.Minute - time.Millisecond, "192.0.2.1", Renewed, time.Hour, 0},
		}},
		"a block ends with its last millisecond": {func(*Policy) {}, []step{
			{0, "192.0.2.1", Blocked, time.Hour, 0},
			{time.Hour, "192.0.2.1", Blocked, 2 * time.Hour, 1},
		}},
		"the same moment": {func(*Policy) {}, []step{
			{0, "192.0.2.1", Blocked, time.Hour, 0},
			{0, "192.0.2.1", Kept, time.Hour, 0},
		}},
		"who returns stays longer, up to a limit": {func(*Policy) {}, []step{
			{0, "192.0.2.1", Blocked, time.Hour, 0},
			{2 * time.Hour, "192.0.2.1", Blocked, 2 * time.Hour, 1},
			{3 * time.Hour, "192.0.2.1", Renewed, 2 * time.Hour, 1},
			{6 * time.Hour, "192.0.2.1", Blocked, 4 * time.Hour, 2},
			{11 * time.Hour, "192.0.2.1", Blocked, 8 * time.Hour, 3},
			{20 * time.Hour, "192.0.2.1", Blocked, 8 * time.Hour, 4},
			{20 * time.Hour, "192.0.2.2", Blocked, time.Hour, 0},
		}},
		"no escalation": {func(p *Policy) { p.Escalate = 1 }, []step{
			{0, "192.0.2.1", Blocked, time.Hour, 0},
			{2 * time.Hour, "192.0.2.1", Blocked, time.Hour, 1},
		}},
		"the allow list": {func(*Policy) {}, []step{
			{0, "10.1.2.3", Allowed, 0, 0},
			{0, "11.1.2.3", Blocked, time.Hour, 0},
			{0, "192.0.2.200", Allowed, 0, 0},
			{0, "192.0.2.201", Blocked, time.Hour, 0},
			{0, "2001:db8:a:1::1", Allowed, 0, 0},
			{0, "2001:db8:b::25", Allowed, 0, 0},
			{0, "2001:db8:b::26", Blocked, time.Hour, 0},
		}},
		"the allow list without rules": {func(p *Policy) { p.Whole = true }, []step{
			{0, "2001:db8:b::26", Allowed, 0, 0},
			{0, "2001:db8:b:1::25", Blocked, time.Hour, 0},
			{0, "192.0.2.201", Blocked, time.Hour, 0},
		}},
		"IPv6 by its /64": {func(*Policy) {}, []step{
			{0, "2001:db8::1", Blocked, time.Hour, 0},
			{1, "2001:db8::ffff:ffff:ffff:ffff", Kept, time.Hour, 0},
			{0, "2001:db8:0:1::1", Blocked, time.Hour, 0},
		}},
		"an IPv6 network is not the IPv4 address of the same bits": {func(*Policy) {}, []step{
			{0, "::192.0.2.1", Blocked, time.Hour, 0},
			{0, "0:0:c000:201::1", Blocked, time.Hour, 0},
			{0, "192.0.2.1", Blocked, time.Hour, 0},
		}},
		"no set": {func(p *Policy) { p.Families = [2]bool{true, false} }, []step{
			{0, "2001:db8::1", NoSet, 0, 0},
			{0, "192.0.2.1", Blocked, time.Hour, 0},
		}},
		"three hits within the window": {func(p *Policy) { p.Hits = 3 }, []step{
			{0, "192.0.2.1", Counted, 0, 1},
			{time.Minute, "192.0.2.1", Counted, 0, 2},
			{time.Minute, "192.0.2.2", Counted, 0, 1},
			{10 * time.Minute, "192.0.2.1", Counted, 0, 2}, // the first one is out
			{11*time.Minute - time.Millisecond, "192.0.2.1", Blocked, time.Hour, 0},
			{11 * time.Minute, "192.0.2.1", Renewed, time.Hour, 0},
			{3 * time.Hour, "192.0.2.1", Counted, 0, 1},
			{3 * time.Hour, "192.0.2.1", Counted, 0, 2},
			{3 * time.Hour, "192.0.2.1", Blocked, 2 * time.Hour, 1},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			b := New(policy(test.change))
			for i, s := range test.steps {
				now := start.Add(s.after)
				d, hits := b.Hit(hitOf(s.addr), now)
				r, known := b.Get(KeyOf(addr(s.addr)))
				if d != s.want {
					t.Fatalf("step %d: %s, want %s", i, d, s.want)
				}
				if d == Counted && hits != s.returns {
					t.Errorf("step %d: %d hits, want %d", i, hits, s.returns)
				}
				if s.timeout > 0 && (!known || r.Expires.Sub(now) != s.timeout || r.Returns != s.returns || r.Zone != "bl.example") {
					t.Errorf("step %d: %+v for %s", i, r, r.Expires.Sub(now))
				}
				recount(t, b)
			}
		})
	}
}

func TestIgnoredListings(t *testing.T) {
	codes, err := dnsbl.ParseCodes("127.0.0.[2;10]")
	if err != nil {
		t.Fatal(err)
	}
	named := []Listing{{Zone: "bl.example", Codes: codes}, {Zone: "all.example"}, {Zone: "zen.example", Codes: codes}}
	for _, test := range []struct {
		zone, code string
		ignore     []Listing
		want       Decision
	}{
		{"zen.spamhaus.org", "127.0.0.10", nil, Ignored},
		{"ZEN.spamhaus.org", "127.0.0.11", nil, Ignored},
		{"pbl.spamhaus.org", "127.0.0.11", nil, Ignored},
		{"pbl.spamhaus.org", "127.0.0.10", named, Ignored},
		{"zen.spamhaus.org", "127.0.0.9", nil, Blocked},
		{"zen.spamhaus.org", "127.0.0.12", nil, Blocked},
		{"zen.spamhaus.org", "", nil, Blocked},
		{"bl.zen.example", "127.0.0.10", nil, Blocked},
		{"zenith.example", "127.0.0.10", nil, Blocked},
		{"bl.example", "127.0.0.2", named, Ignored},
		{"BL.example", "127.0.0.10", named, Ignored},
		{"bl.example", "127.0.0.3", named, Blocked},
		{"bl.example", "", named, Blocked},
		{"all.example", "", named, Ignored},
		{"all.example", "127.0.0.3", named, Ignored},
		{"zen.example", "127.0.0.10", named, Ignored},
		{"zen.example", "127.0.0.11", named, Blocked},
	} {
		b := New(policy(func(p *Policy) { p.Ignore = test.ignore }))
		h := hit.Hit{Addr: addr("192.0.2.1"), Zone: test.zone}
		if test.code != "" {
			h.Code = addr(test.code)
		}
		if d, _ := b.Hit(h, start); d != test.want {
			t.Errorf("%s %s: %s, want %s", test.zone, test.code, d, test.want)
		}
	}
}

func TestTimeoutsDoNotOverflow(t *testing.T) {
	p := policy(func(p *Policy) { p.Escalate = 1000 })
	for returns := range 256 {
		if d := p.timeout(uint8(returns)); d < time.Hour || d > 8*time.Hour {
			t.Errorf("after %d returns: %s", returns, d)
		}
	}
	b := New(p)
	now := start
	for range 300 {
		b.Hit(hitOf("192.0.2.1"), now)
		push(b, now)
		now = now.Add(8 * time.Hour)
	}
	if r, _ := b.Get(KeyOf(addr("192.0.2.1"))); r.Returns != 255 {
		t.Errorf("after 299 returns: %d", r.Returns)
	}
}

func TestFull(t *testing.T) {
	b := New(policy(func(p *Policy) { p.MaxElements, p.Hits = 2, 2 }))
	hits := func(a string, now Time, want ...Decision) {
		t.Helper()
		for i, w := range want {
			if d, n := b.Hit(hitOf(a), now); d != w || n != map[Decision]int{Counted: 1, Blocked: 2, Full: 2}[d] {
				t.Fatalf("hit %d of %s: %s, %d hits, want %s", i, a, d, n, w)
			}
		}
		recount(t, b)
	}
	hits("192.0.2.1", start, Counted, Blocked)
	hits("192.0.2.2", start.Add(time.Minute), Counted)
	if b.Full() {
		t.Error("full with one of two")
	}
	hits("192.0.2.2", start.Add(time.Minute), Blocked, Kept)
	hits("2001:db8::1", start.Add(time.Minute), Counted, Blocked)
	if !b.Full() {
		t.Error("not full")
	}
	// The hits counted are not forgotten, and those blocked are renewed.
	hits("192.0.2.3", start.Add(55*time.Minute), Counted, Full, Full)
	hits("192.0.2.2", start.Add(56*time.Minute), Renewed)
	push(b, start.Add(56*time.Minute))
	// The first has expired since the last sweep. Its own return needs no room, that
	// of others does, and for two seconds nobody looks for it.
	now := start.Add(time.Hour)
	b.Sweep(now.Add(-2*time.Second + time.Millisecond))
	hits("192.0.2.3", now, Full)
	hits("192.0.2.1", now, Counted, Blocked)
	if r, _ := b.Get(KeyOf(addr("192.0.2.1"))); r.Returns != 1 {
		t.Errorf("%+v", r)
	}
	push(b, now)
	now = start.Add(4 * time.Hour)
	hits("192.0.2.4", now, Counted, Blocked)
	if blocked, remembered := b.Len(); blocked != 1 || remembered != 0 {
		t.Errorf("%d blocked, %d remembered", blocked, remembered)
	}
}

// Nobody looks for room twice within two seconds, and everybody after them.
func TestRoomIsLookedFor(t *testing.T) {
	for _, since := range []time.Duration{2*time.Second - time.Millisecond, 2 * time.Second} {
		b := New(policy(func(p *Policy) { p.MaxElements = 1 }))
		b.Hit(hitOf("192.0.2.1"), start)
		push(b, start)
		now := start.Add(time.Hour)
		b.Sweep(now.Add(-since))
		if d, _ := b.Hit(hitOf("192.0.2.2"), now); (d == Blocked) != (since == 2*time.Second) {
			t.Errorf("%s after the last look: %s", since, d)
		}
		recount(t, b)
	}
}

// A hit makes no block shorter, as after a reload with a shorter expiry.
func TestKept(t *testing.T) {
	b := New(policy())
	k := KeyOf(addr("192.0.2.1"))
	b.Load(Record{k, start.Add(5 * time.Hour), "a.example", 0}, start)
	if d, _ := b.Hit(hitOf("192.0.2.1"), start); d != Kept || b.Waiting(IPv4) != 1 {
		t.Errorf("%s, %d wait", d, b.Waiting(IPv4))
	}
	if r, _ := b.Get(k); r.Expires != start.Add(5*time.Hour) {
		t.Errorf("%+v", r)
	}
}

func TestLimitOfASet(t *testing.T) {
	b := New(policy(func(p *Policy) { p.MaxElements = 3 }))
	b.Limit(IPv4, 1)
	b.Limit(IPv6, 5)
	for i, want := range []Decision{Blocked, Full} {
		if d, _ := b.Hit(hitOf(fmt.Sprintf("192.0.2.%d", i)), start); d != want {
			t.Errorf("%d: %s", i, d)
		}
	}
	b.Limit(IPv4, 0)
	if d, _ := b.Hit(hitOf("192.0.2.9"), start); d != Blocked {
		t.Error("without a limit:", d)
	}
	for i, want := range []Decision{Blocked, Blocked, Blocked, Full} {
		if d, _ := b.Hit(hitOf(fmt.Sprintf("2001:db8:0:%d::", i)), start); d != want {
			t.Errorf("IPv6 %d: %s", i, d)
		}
	}
	if blocked, remembered := b.Len(); blocked != 5 || remembered != 0 {
		t.Errorf("%d blocked, %d remembered", blocked, remembered)
	}
	if !b.Full() {
		t.Error("IPv6 is full")
	}
}

func TestQueue(t *testing.T) {
	b := New(policy())
	b.Hit(hit.Hit{Addr: addr("2001:db8::1"), Zone: "a.example", Code: addr("127.0.0.2")}, start)
	b.Hit(hitOf("2001:db8:0:1::1"), start)
	// A second hit has no second place, and its own line in the log.
	b.Hit(hit.Hit{Addr: addr("2001:db8::9"), Zone: "b.example"}, start.Add(time.Second))
	if b.Waiting(IPv6) != 2 || b.Waiting(IPv4) != 0 || len(b.Next(IPv6, 1)) != 1 || len(b.Next(IPv6, 9)) != 2 {
		t.Fatalf("%d wait: %+v", b.Waiting(IPv6), b.Next(IPv6, 9))
	}
	p := b.Next(IPv6, 1)[0]
	r, blocked, had := b.Wants(p.Key, start)
	if p.Client() != addr("2001:db8::9") || p.Code().IsValid() || p.Restored() || r.Zone != "b.example" || !blocked || had {
		t.Errorf("%v %v %v, %+v, %v, %v", p.Client(), p.Code(), p.Restored(), r, blocked, had)
	}
	if p := b.Next(IPv6, 2)[1]; p.Code() != addr("127.0.0.2") || p.Client() != addr("2001:db8:0:1::1") {
		t.Errorf("%v %v", p.Client(), p.Code())
	}
	b.Postpone(IPv6)
	recount(t, b)
	if p := b.Next(IPv6, 2)[1]; p.Client() != addr("2001:db8::9") {
		t.Errorf("postponed: %v", p.Client())
	}
	b.Hit(hitOf("2001:db8::7"), start.Add(2*time.Second))
	if p := b.Next(IPv6, 2)[1]; p.Client() != addr("2001:db8::7") {
		t.Errorf("hit again: %v", p.Client())
	}
	b.Done(IPv6, 1, start)
	recount(t, b)
	if b.Waiting(IPv6) != 1 {
		t.Errorf("%d wait", b.Waiting(IPv6))
	}
	if _, _, had := b.Wants(KeyOf(addr("2001:db8:0:1::")), start); !had {
		t.Error("the kernel was told")
	}
	push(b, start)
	if d, _ := b.Hit(hitOf("2001:db8::7"), start.Add(2*time.Second)); d != Kept || b.Waiting(IPv6) != 1 {
		t.Errorf("%s, and %d wait: a client that got through is told again", d, b.Waiting(IPv6))
	}
}

func TestExpiredWhileWaiting(t *testing.T) {
	b := New(policy())
	k := KeyOf(addr("192.0.2.1"))
	b.Hit(hitOf("192.0.2.1"), start)
	late := start.Add(2 * time.Hour)
	b.Sweep(late)
	recount(t, b)
	if b.Forget(k, late) {
		t.Error("forgotten while it waits")
	}
	if _, blocked, had := b.Wants(k, late); blocked || had || b.Waiting(IPv4) != 1 {
		t.Errorf("%v, %v, %d wait", blocked, had, b.Waiting(IPv4))
	}
	push(b, late)
	recount(t, b)
	if r, known := b.Get(k); !known || r.Expires != start.Add(time.Hour) {
		t.Errorf("%+v, %v", r, known)
	}
	if _, _, had := b.Wants(k, late); had {
		t.Error("the kernel never had it")
	}
	if d, _ := b.Hit(hitOf("192.0.2.1"), late); d != Blocked {
		t.Error(d)
	}
	push(b, late)
	// An element that has expired in the kernel is not one that is renewed.
	b.Hit(hitOf("192.0.2.1"), late.Add(5*time.Hour))
	if _, _, had := b.Wants(k, late.Add(5*time.Hour)); had {
		t.Error("an expired element is there")
	}
}

func TestForget(t *testing.T) {
	b := New(policy())
	k := KeyOf(addr("192.0.2.1"))
	forget := func(now Time, want bool) {
		t.Helper()
		if b.Forget(k, now) != want {
			t.Errorf("forgotten: %v", !want)
		}
		recount(t, b)
	}
	forget(start, false)
	b.Hit(hitOf("192.0.2.1"), start)
	forget(start, false) // the kernel is told in a moment
	push(b, start)
	b.Hit(hitOf("192.0.2.1"), start.Add(time.Minute))
	forget(start, false)
	push(b, start)
	forget(start.Add(2*time.Hour), false) // nobody deleted it
	forget(start.Add(time.Minute), true)
	if _, known := b.Get(k); known {
		t.Error("still known")
	}
	if d, _ := b.Hit(hitOf("192.0.2.1"), start.Add(3*time.Hour)); d != Blocked {
		t.Error(d)
	}
	if r, _ := b.Get(k); r.Returns != 0 {
		t.Error("who was deleted has not been blocked before")
	}
	push(b, start.Add(3*time.Hour))
	b.Refill(IPv4, start.Add(3*time.Hour))
	forget(start.Add(3*time.Hour), false)
}

func TestTakeBack(t *testing.T) {
	b := New(policy())
	for _, a := range []string{"192.0.2.1", "192.0.3.1", "2001:db8:c::1"} {
		b.Hit(hitOf(a), start)
	}
	push(b, start)
	b.Hit(hitOf("192.0.3.2"), start)
	allowed := policy(func(p *Policy) { p.Allow = prefixes("192.0.3.0/24", "2001:db8:c::1/128") })
	b.SetPolicy(allowed)
	b.SetPolicy(allowed)
	recount(t, b)
	if b.Waiting(IPv4) != 2 || b.Waiting(IPv6) != 0 {
		t.Fatalf("%d and %d wait", b.Waiting(IPv4), b.Waiting(IPv6))
	}
	k := KeyOf(addr("192.0.3.1"))
	if _, known := b.Get(k); known {
		t.Error("known still")
	}
	for i, want := range []struct {
		addr string
		had  bool
	}{{"192.0.3.2", false}, {"192.0.3.1", true}} {
		p := b.Next(IPv4, 2)[i]
		if _, blocked, had := b.Wants(p.Key, start); p.Client() != addr(want.addr) || blocked || had != want.had {
			t.Errorf("%v: %v, %v", p.Client(), blocked, had)
		}
	}
	if d, _ := b.Hit(hitOf("192.0.3.1"), start); d != Allowed {
		t.Error(d)
	}
	// Allowed no more, and hit before the kernel was told.
	b.SetPolicy(policy())
	if d, _ := b.Hit(hitOf("192.0.3.1"), start.Add(time.Second)); d != Blocked {
		t.Error(d)
	}
	recount(t, b)
	if p := b.Next(IPv4, 2)[1]; p.Restored() || p.Key != k || b.Waiting(IPv4) != 2 {
		t.Errorf("%+v, %d wait", p, b.Waiting(IPv4))
	}
	if r, blocked, had := b.Wants(k, start); !blocked || !had || r.Returns != 0 {
		t.Errorf("%+v, %v, %v", r, blocked, had)
	}
	push(b, start.Add(time.Second))
	recount(t, b)
	if _, known := b.records[IPv4][KeyOf(addr("192.0.3.2")).bits]; known || len(b.records[IPv4]) != 2 {
		t.Error("what was taken back is still there")
	}
	b.SetPolicy(policy(func(p *Policy) { p.Whole, p.Allow = true, prefixes("2001:db8:c::ff/128") }))
	if b.Waiting(IPv6) != 1 {
		t.Error("the /64 of an allowed address, which no rule lets pass, stays blocked")
	}
}

func TestTakeBackOfWhatIsOver(t *testing.T) {
	b := New(policy())
	b.Hit(hitOf("192.0.2.1"), start)
	push(b, start)
	b.Sweep(start.Add(2 * time.Hour))
	b.SetPolicy(policy(func(p *Policy) { p.Allow = prefixes("192.0.2.0/24") }))
	for _, p := range b.Next(IPv4, 9) {
		if _, _, had := b.Wants(p.Key, start.Add(2*time.Hour)); had {
			t.Error("the kernel has no element to take back")
		}
	}
}

func TestRefill(t *testing.T) {
	b := New(policy())
	for i := range 100 {
		b.Hit(hitOf(fmt.Sprintf("192.0.2.%d", i)), start.Add(time.Duration(i)*time.Second))
	}
	push(b, start)
	b.Hit(hitOf("2001:db8::1"), start)
	push(b, start)
	b.Hit(hitOf("192.0.2.7"), start.Add(time.Minute)) // waits
	now := start.Add(time.Hour + 2*time.Second)       // 0, 1, 2 are over
	b.Refill(IPv4, now)
	if b.Refilling(IPv4) != 96 || b.Refilling(IPv6) != 0 {
		t.Fatalf("%d and %d to refill", b.Refilling(IPv4), b.Refilling(IPv6))
	}
	if b.Refill(IPv4, now); b.Refilling(IPv4) != 96 {
		t.Fatalf("%d to refill, when the set is lost again", b.Refilling(IPv4))
	}
	part := slices.Clone(b.NextBulk(IPv4, 10, now))
	if again := b.NextBulk(IPv4, 10, now); !slices.Equal(part, again) || len(part) != 10 {
		t.Fatal("what was refused is not next")
	}
	// Meanwhile one of them is hit, one taken back.
	b.Hit(hit.Hit{Addr: part[3].Addr(), Zone: "z"}, now)
	b.SetPolicy(policy(func(p *Policy) { p.Allow = []netip.Prefix{part[5].Prefix()} }))
	if b.Waiting(IPv4) != 3 {
		t.Errorf("%d wait", b.Waiting(IPv4))
	}
	want := slices.Concat(part[:3], part[4:5], part[6:])
	if got := b.NextBulk(IPv4, 8, now); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	push(b, now) // the one taken back is forgotten with it
	b.DoneBulk(IPv4, 8)
	b.QueueBulk(IPv4)
	recount(t, b)
	if p := b.Next(IPv4, 1)[0]; !p.Restored() || p.Code().IsValid() {
		t.Errorf("%+v", p)
	}
	seen := map[Key]bool{}
	for {
		part := b.NextBulk(IPv4, 10, now)
		if len(part) == 0 {
			break
		}
		for _, k := range part {
			if seen[k] || slices.Contains(want, k) {
				t.Errorf("%v again", k)
			}
			seen[k] = true
		}
		b.DoneBulk(IPv4, len(part))
	}
	if b.Refilling(IPv4) != 0 || len(seen) != 96-2-8-1 {
		t.Errorf("%d left, %d seen", b.Refilling(IPv4), len(seen))
	}
	for k := range b.Keys() {
		if r, blocked, had := b.Wants(k, now); blocked && !had && b.Next(IPv4, 1)[0].Key != k {
			t.Errorf("%+v was not told", r)
		}
	}
}

func TestLoad(t *testing.T) {
	b := New(policy())
	k, a := KeyOf(addr("192.0.2.1")), KeyOf(addr("10.0.0.1"))
	// A store tells of an address more than once: the last is true.
	for range 3 {
		b.Load(Record{a, start.Add(time.Hour), "bl.example", 0}, start)
		b.Load(Record{k, start.Add(-time.Hour), "a.example", 1}, start)
		b.Load(Record{k, start.Add(time.Hour), "b.example", 2}, start)
		recount(t, b)
	}
	if r, known := b.Get(k); !known || r != (Record{k, start.Add(time.Hour), "b.example", 2}) {
		t.Errorf("%+v", r)
	}
	if _, blocked, had := b.Wants(k, start); !blocked || !had {
		t.Errorf("%v, %v", blocked, had)
	}
	if b.Waiting(IPv4) != 1 || b.Next(IPv4, 1)[0].Key != a {
		t.Errorf("%+v: who has been allowed is to be taken back, once", b.Next(IPv4, 9))
	}
	b.Unload(a)
	b.Unload(k)
	b.Unload(KeyOf(addr("192.0.2.99")))
	recount(t, b)
	if _, known := b.Get(k); known {
		t.Error("known still")
	}
	push(b, start)
	if blocked, remembered := b.Len(); blocked != 0 || remembered != 0 {
		t.Errorf("%d, %d", blocked, remembered)
	}
	b.Load(Record{k, start.Add(-time.Hour), "a.example", 1}, start)
	if _, blocked, had := b.Wants(k, start); blocked || had {
		t.Errorf("%v, %v", blocked, had)
	}
	if d, _ := b.Hit(hitOf("192.0.2.1"), start); d != Blocked {
		t.Error(d)
	}
	if r, _ := b.Get(k); r.Returns != 2 {
		t.Errorf("%+v", r)
	}
}

func TestSweep(t *testing.T) {
	b := New(policy(func(p *Policy) { p.MaxElements, p.Hits = 40, 2 }))
	b.Hit(hitOf("198.51.100.1"), start) // counted
	for i := range 30 {
		b.Load(Record{KeyOf(addr(fmt.Sprintf("192.0.2.%d", i))), start.Add(time.Duration(i) * time.Minute), fmt.Sprintf("z%d.example", i), 0}, start.Add(-1))
	}
	now := start.Add(19 * time.Minute) // 0 to 19 are over
	b.Sweep(now)
	recount(t, b)
	if blocked, remembered := b.Len(); blocked != 10 || remembered != 10 {
		t.Errorf("%d blocked, %d remembered", blocked, remembered)
	}
	if _, known := b.Get(KeyOf(addr("192.0.2.9"))); known {
		t.Error("older than the latest ten")
	}
	if _, known := b.Get(KeyOf(addr("192.0.2.10"))); !known {
		t.Error("one of the latest ten")
	}
	if len(b.hits) != 0 {
		t.Error("hits out of the window are remembered")
	}
	b.Sweep(now)
	if len(b.zones.number) != 21 {
		t.Errorf("%d names of zones for 20 records", len(b.zones.number)-1)
	}
	b.Sweep(start.Add(10*time.Minute + 8*time.Hour))
	if _, known := b.Get(KeyOf(addr("192.0.2.10"))); known {
		// No: of 30 ten are kept, the latest.
		t.Error("not the latest ten")
	}
	b.Sweep(start.Add(25*time.Minute + 8*time.Hour))
	if _, remembered := b.Len(); remembered != 5 {
		t.Errorf("%d remembered: 25 to 29 were heard of 8 hours ago or later", remembered)
	}
}

func TestShorterMaxExpiryCuts(t *testing.T) {
	b := New(policy(func(p *Policy) { p.Expiry = 4 * time.Hour }))
	for _, a := range []string{"192.0.2.1", "192.0.2.2"} {
		b.Hit(hitOf(a), start)
	}
	push(b, start)
	b.Hit(hitOf("192.0.2.2"), start.Add(time.Second)) // waits
	b.SetPolicy(policy(func(p *Policy) { p.MaxExpiry = time.Hour }))
	now := start.Add(time.Minute)
	b.Sweep(now)
	b.Sweep(now)
	recount(t, b)
	if b.Waiting(IPv4) != 2 {
		t.Fatalf("%d wait", b.Waiting(IPv4))
	}
	for i, restored := range []bool{false, true} {
		p := b.Next(IPv4, 2)[i]
		if r, blocked, had := b.Wants(p.Key, now); !blocked || !had || r.Expires != now.Add(time.Hour) || p.Restored() != restored {
			t.Errorf("%+v, %+v", p, r)
		}
	}
	push(b, now)
	b.Sweep(now.Add(time.Second))
	if b.Waiting(IPv4) != 0 {
		t.Error("cut again")
	}
}

func TestCountingIsBounded(t *testing.T) {
	b := New(policy(func(p *Policy) { p.Hits = 3 }))
	at := func(i int) hit.Hit {
		return hit.Hit{Addr: netip.AddrFrom4([4]byte{20, byte(i >> 16), byte(i >> 8), byte(i)})}
	}
	for i := range maxCounted {
		b.Hit(at(i), start)
	}
	if len(b.hits) != maxCounted {
		t.Fatalf("%d are counted", len(b.hits))
	}
	// One that is counted already needs no room.
	if _, hits := b.Hit(at(0), start); hits != 2 || len(b.hits) != maxCounted {
		t.Errorf("%d hits, %d counted", hits, len(b.hits))
	}
	b.Hit(at(maxCounted), start)
	if want := maxCounted - maxCounted/16 + 1; len(b.hits) != want {
		t.Errorf("%d are counted, want %d", len(b.hits), want)
	}
	if _, hits := b.Hit(at(maxCounted), start); hits != 2 {
		t.Errorf("the newest one was forgotten: %d", hits)
	}
	// Fewer hits are asked for now.
	b = New(policy(func(p *Policy) { p.Hits = 10 }))
	for range 9 {
		b.Hit(at(0), start)
	}
	b.SetPolicy(policy(func(p *Policy) { p.Hits = 4 }))
	if d, hits := b.Hit(at(0), start); d != Blocked || hits != 4 {
		t.Errorf("%s, %d", d, hits)
	}
	if len(b.hits) != 0 {
		t.Error("who is blocked is still counted")
	}
	b.Hit(at(1), start)
	b.Sweep(start.Add(10*time.Minute - 1))
	if b.Sweep(start.Add(10*time.Minute - time.Millisecond)); len(b.hits) != 1 {
		t.Error("forgotten within the window")
	}
}

func TestZonesRunOut(t *testing.T) {
	b := New(policy(func(p *Policy) { p.MaxElements = 200_000 }))
	block := func(i int, zone string, now Time) Record {
		h := hit.Hit{Addr: netip.AddrFrom4([4]byte{20, byte(i >> 16), byte(i >> 8), byte(i)}), Zone: zone}
		b.Hit(h, now)
		r, _ := b.Get(KeyOf(h.Addr))
		return r
	}
	for i := range math.MaxUint16 {
		zone := fmt.Sprintf("z%d.example", i)
		if r := block(i, zone, start); r.Zone != zone {
			t.Fatalf("%d: %q", i, r.Zone)
		}
	}
	if r := block(70000, "one.too.many", start); r.Zone != "" {
		t.Errorf("%q has a number", r.Zone)
	}
	if r := block(70001, "z9.example", start); r.Zone != "z9.example" {
		t.Errorf("a zone that has a number: %q", r.Zone)
	}
	push(b, start)
	// All end but one, and the numbers of the others' zones are free.
	late := start.Add(30 * time.Minute)
	block(5, "z5.example", late)
	push(b, late)
	b.Sweep(late.Add(8*time.Hour + 50*time.Minute))
	b.Sweep(late.Add(8*time.Hour + 50*time.Minute))
	if r, _ := b.Get(KeyOf(addr("20.0.0.5"))); r.Zone != "z5.example" {
		t.Errorf("%+v", r)
	}
	for i := range math.MaxUint16 - 1 {
		zone := fmt.Sprintf("y%d.example", i)
		if r := block(i+10, zone, late); r.Zone != zone {
			t.Fatalf("%d: %q", i, r.Zone)
		}
	}
	if r := block(70000, "one.too.many", late); r.Zone != "" || len(b.zones.names) != 1<<16 {
		t.Errorf("%q, %d names", r.Zone, len(b.zones.names))
	}
}

func TestKeys(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1":                   "192.0.2.1/32",
		"255.255.255.255":             "255.255.255.255/32",
		"::ffff:192.0.2.1":            "192.0.2.1/32",
		"2001:db8:1:2:3:4:5:6":        "2001:db8:1:2::/64",
		"ffff:ffff:ffff:ffff:ffff::1": "ffff:ffff:ffff:ffff::/64",
		"::1":                         "::/64",
	} {
		k := KeyOf(addr(in))
		if k.Prefix().String() != want || k.Addr() != k.Prefix().Addr() || k.Family == IPv4 != k.Addr().Is4() || KeyOf(k.Addr()) != k {
			t.Errorf("%s is %s, %s", in, k.Prefix(), k.Addr())
		}
	}
	b := New(policy())
	for _, a := range []string{"192.0.2.1", "2001:db8::1", "192.0.2.2"} {
		b.Hit(hitOf(a), start)
	}
	keys := slices.SortedFunc(b.Keys(), func(a, b Key) int { return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.bits, b.bits)) })
	if got := fmt.Sprint(keys); got != fmt.Sprint([]Key{KeyOf(addr("192.0.2.1")), KeyOf(addr("192.0.2.2")), KeyOf(addr("2001:db8::"))}) {
		t.Error(got)
	}
	for k := range b.Keys() {
		_ = k
		break
	}
}

func TestNamesAreNotKeptWithTheirLines(t *testing.T) {
	b := New(policy())
	line := strings.Repeat("x", 1000)
	h := hitOf("192.0.2.1")
	h.Zone = line[10:20]
	b.Hit(h, start)
	if r, _ := b.Get(KeyOf(h.Addr)); r.Zone != line[10:20] {
		t.Error(r.Zone)
	}
}
