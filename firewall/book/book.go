// Package book knows who should be blocked, until when and why, and what of that
// the kernel has not been told yet. It decides whether a hit blocks an address. It
// is for one goroutine, and has no lock, socket, file or clock.
//
// A record is clean or dirty: what is dirty waits, once, in the queue of its
// family ([Book.Next]) until the kernel has been told ([Book.Done]). When a set
// was lost, all of the family's records wait beside that queue ([Book.Refill],
// [Book.NextBulk]).
package book

import (
	"cmp"
	"iter"
	"math"
	"net/netip"
	"strings"
	"time"

	"rblnft/dnsbl"
	"rblnft/firewall/hit"
)

// A Time is a moment in milliseconds of CLOCK_MONOTONIC (clock_gettime(2)), the
// clock of the kernel's timeouts: whatever the wall clock does, a block lasts as
// long as it should.
type Time int64

// Add returns the moment d after t.
func (t Time) Add(d time.Duration) Time { return t + Time(d.Milliseconds()) }

// Sub returns how long after u the moment t is.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t-u) * time.Millisecond }

// A Policy says who is blocked, and for how long.
type Policy struct {
	// Hits is how many hits within Window block an address. From 1 to MaxHits.
	Hits   int
	Window time.Duration

	// Expiry is how long an address is blocked. Each time that it comes back, hit
	// again after a block of it has ended, it is blocked Escalate times as long as
	// the time before, up to MaxExpiry. A shorter MaxExpiry cuts blocks, with Sweep.
	Expiry    time.Duration
	Escalate  float64
	MaxExpiry time.Duration

	// MaxElements is how many addresses of one family are blocked at once.
	MaxElements int

	// Allow are the networks of which no address is blocked. Whole says that no
	// /64 is either with an address of them in it: no rule lets that one pass.
	Allow []netip.Prefix
	Whole bool

	// Ignore are listings that block nobody. Without one of a zone whose name
	// begins with zen. or pbl. that zone's 127.0.0.10 and .11 are: home users'
	// addresses, of customers perhaps.
	Ignore []Listing

	// Families are those, IPv4 and IPv6, that have a set.
	Families [2]bool
}

// A Listing is what a zone says with a return code.
type Listing struct {
	Zone  string
	Codes *dnsbl.Codes // nil: all
}

// MaxHits bounds Policy.Hits, and with it the memory that counting takes.
const MaxHits = 100

// A Decision is what becomes of a hit.
type Decision string

// The decisions.
const (
	Blocked Decision = "blocked" // the address was not blocked, and will be
	Renewed Decision = "renewed" // it was, and will be for longer
	Kept    Decision = "kept"    // it is, for longer than the hit would block it; the kernel is told again
	Counted Decision = "counted" // it was seen too seldom yet
	Allowed Decision = "allowed" // it is on the allow list
	Ignored Decision = "ignored" // the return code is one that blocks nobody
	Full    Decision = "full"    // MaxElements are blocked already
	NoSet   Decision = "no set"  // the table has no set of its family
)

// A record is what the book knows of one address. It has no pointer, so that a
// million of them cost the garbage collector nothing.
type record struct {
	expires Time   // never: the block was taken back, and the kernel is yet to be told
	turn    uint32 // its place in the queue, counted from the first one ever
	zone    uint16
	returns uint8
	flags   uint8
}

const never = Time(math.MinInt64)

const (
	told  = 1 << iota // the kernel's set has its element, as far as we know
	dirty             // it waits in the queue, and is not forgotten before the kernel is told
)

// A Book is the account of all addresses.
type Book struct {
	policy  Policy
	allow   allowList
	limit   [2]int               // of the set, where it has one
	records [2]map[uint64]record // by Key.bits
	counted [2]int               // records that count
	swept   Time
	zones   zones
	hits    counter
	queue   [2][]Pending
	gone    [2]uint32   // how many have left the queue
	bulk    [2][]uint64 // of a refill, by Key.bits
}

// New returns an empty book.
func New(p Policy) *Book {
	return &Book{policy: p, allow: newAllowList(p.Allow), records: [2]map[uint64]record{{}, {}}, zones: zones{names: []string{""}, number: map[string]uint16{"": 0}}, hits: counter{}}
}

// Hit decides about a hit that was received at now. Hits is how many of
// Policy.Hits have been seen, where that matters.
func (b *Book) Hit(h hit.Hit, now Time) (d Decision, hits int) {
	k := KeyOf(h.Addr)
	switch {
	case !b.policy.Families[k.Family]:
		return NoSet, 0
	case b.isAllowed(netip.PrefixFrom(h.Addr, h.Addr.BitLen()), k):
		return Allowed, 0
	case b.isIgnored(h):
		return Ignored, 0
	}
	r, known := b.records[k.Family][k.bits]
	d = Renewed
	if !known || r.expires <= now {
		d = Blocked
		if hits = b.hits.count(k, now, &b.policy); hits < b.policy.Hits {
			return Counted, hits
		}
		if b.counts(r) == 0 && !b.hasRoom(k.Family, now) {
			return Full, hits
		}
		delete(b.hits, k)
		if known && r.expires != never {
			r.flags &^= told
			r.returns = min(r.returns, math.MaxUint8-1) + 1
		}
	}
	until := now.Add(b.policy.timeout(r.returns))
	if d == Renewed && r.expires >= until {
		d, until = Kept, r.expires
	}
	r.expires, r.zone = until, b.zones.use(h.Zone)
	b.mark(k, r, Pending{Key: k, low: low(h.Addr), code: code(h), hit: true})
	return d, hits
}

// isAllowed reports whether p, which lies in k, is on the allow list.
func (b *Book) isAllowed(p netip.Prefix, k Key) bool {
	return b.allow.covers(p) || b.policy.Whole && b.allow.overlaps(k.Prefix())
}

func (b *Book) isIgnored(h hit.Hit) bool {
	named := false
	for _, l := range b.policy.Ignore {
		if strings.EqualFold(l.Zone, h.Zone) {
			named = true
			if l.Codes == nil || h.Code.IsValid() && l.Codes.Match(h.Code) {
				return true
			}
		}
	}
	// What policy lists such as Spamhaus' PBL answer with: who provides the network,
	// or the list, says that no mail should come from there.
	zone, policy := strings.ToLower(h.Zone), code(h) == 0x7f00000a || code(h) == 0x7f00000b
	return !named && policy && (strings.HasPrefix(zone, "zen.") || strings.HasPrefix(zone, "pbl."))
}

// code is the return code as a number; 0: none.
func code(h hit.Hit) uint32 { return uint32(KeyOf(h.Code).bits) }

// timeout is how long an address is blocked that came back so many times.
func (p *Policy) timeout(returns uint8) time.Duration {
	return time.Duration(min(float64(p.Expiry)*math.Pow(p.Escalate, float64(returns)), float64(p.MaxExpiry)))
}

// counts is 1 for a record that takes room: it was in force at the last Sweep, or is
// since then, or waits.
func (b *Book) counts(r record) int {
	if r.expires > b.swept || r.flags&dirty != 0 {
		return 1
	}
	return 0
}

// set stores a record in place of the one that is there.
func (b *Book) set(k Key, r record) {
	b.counted[k.Family] += b.counts(r) - b.counts(b.records[k.Family][k.bits])
	b.records[k.Family][k.bits] = r
}

// drop forgets a record, as soon as the kernel need not be told.
func (b *Book) drop(k Key) {
	if b.records[k.Family][k.bits].flags&dirty != 0 {
		b.takeBack(k)
		return
	}
	b.set(k, record{})
	delete(b.records[k.Family], k.bits)
}

// A Record is what is known of an address.
type Record struct {
	Key     Key
	Expires Time   // in the past for one that is only remembered
	Zone    string // the DNSBL that lists it
	Returns int    // how often it came back, 255 at most
}

func (b *Book) record(k Key, r record) Record {
	return Record{k, r.expires, b.zones.names[r.zone], int(r.returns)}
}

// Load takes a record that was stored, the last one of its address. That the kernel
// has its element is assumed until [Book.Refill]. Who has been allowed meanwhile is
// not blocked.
func (b *Book) Load(r Record, now Time) {
	rec := record{expires: r.Expires, zone: b.zones.use(r.Zone), returns: uint8(r.Returns)}
	if old := b.records[r.Key.Family][r.Key.bits]; old.flags&dirty != 0 {
		rec.flags, rec.turn = dirty, old.turn
	}
	if r.Expires > now {
		rec.flags |= told
	}
	b.set(r.Key, rec)
	if r.Expires > now && b.isAllowed(r.Key.Prefix(), r.Key) {
		b.takeBack(r.Key)
	}
}

// Unload forgets a record that was stored.
func (b *Book) Unload(k Key) { b.drop(k) }

// Get returns what is known of an address, for the store: not whether the kernel
// was told.
func (b *Book) Get(k Key) (Record, bool) {
	r, ok := b.records[k.Family][k.bits]
	return b.record(k, r), ok && r.expires != never
}

// Keys returns all addresses that something is known of.
func (b *Book) Keys() iter.Seq[Key] {
	return func(yield func(Key) bool) {
		for family, records := range b.records {
			for bits := range records {
				if !yield(Key{Family(family), bits}) {
					return
				}
			}
		}
	}
}

// Forget forgets a block whose element somebody has deleted, and who thus does not
// count as one that was blocked before. It reports whether there was one: not if
// the kernel is yet to be told of it, anew or at all.
func (b *Book) Forget(k Key, now Time) bool {
	r := b.records[k.Family][k.bits]
	if r.flags&(told|dirty) != told || r.expires <= now {
		return false
	}
	b.drop(k)
	return true
}

// SetPolicy replaces the policy, and takes back the blocks that the new one does
// not permit.
func (b *Book) SetPolicy(p Policy) {
	b.policy, b.allow = p, newAllowList(p.Allow)
	for k := range b.Keys() {
		if b.isAllowed(k.Prefix(), k) {
			b.takeBack(k)
		}
	}
}

// takeBack ends a block. The kernel is to be told.
func (b *Book) takeBack(k Key) {
	r := b.records[k.Family][k.bits]
	r.expires, r.returns = never, 0
	b.mark(k, r, Pending{Key: k})
}

// Limit says how many elements a family's set may have; 0: as many as fit.
func (b *Book) Limit(f Family, n int) { b.limit[f] = n }

// full reports whether as many addresses of a family are blocked as may be.
func (b *Book) full(f Family) bool {
	return b.counted[f] >= min(cmp.Or(b.limit[f], math.MaxInt), b.policy.MaxElements)
}

// Full reports whether as many addresses of one family are blocked as may be.
func (b *Book) Full() bool { return b.full(IPv4) || b.full(IPv6) }

// Len returns how many addresses are blocked, those among them included that
// expired since the last Sweep or wait, and how many are remembered.
func (b *Book) Len() (blocked, remembered int) {
	blocked = b.counted[0] + b.counted[1]
	return blocked, len(b.records[0]) + len(b.records[1]) - blocked
}
