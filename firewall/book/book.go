// Package book keeps account of offenders: it decides whether a hit blocks an
// address and for how long, remembers who was blocked before, has it all
// written down in a journal before the kernel is told, and knows at any time
// what should be in the nftables sets.
package book

import (
	"iter"
	"log/slog"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"rblnft/firewall"
	"rblnft/firewall/intake"
)

// A Policy says who is blocked, and for how long.
type Policy struct {
	// Hits is how many hits within Window block an address. From 1 to MaxHits.
	Hits   int
	Window time.Duration

	// Expiry is how long an address is blocked. Each time that it comes
	// back, hit again after a block of it has ended, it is blocked Escalate
	// times as long as the time before, up to MaxExpiry.
	Expiry    time.Duration
	Escalate  float64
	MaxExpiry time.Duration

	// MaxElements is how many addresses of one family are blocked at once.
	MaxElements int

	// Allow are the networks of which no address is blocked.
	Allow []netip.Prefix
}

// MaxHits bounds Policy.Hits, and with it the memory that counting takes.
const MaxHits = 100

// A Decision is what becomes of a hit.
type Decision string

// The decisions.
const (
	Blocked Decision = "blocked" // the address was not blocked, and is now
	Renewed Decision = "renewed" // it was, and is for longer
	Kept    Decision = "kept"    // it was, by somebody else and for longer
	Counted Decision = "counted" // it was seen too seldom yet
	Allowed Decision = "allowed" // it is on the allow list
	Full    Decision = "full"    // too many are blocked already
)

// Decisions are all decisions there are.
func Decisions() []Decision { return []Decision{Blocked, Renewed, Kept, Counted, Allowed, Full} }

// An Outcome is what was decided about one hit.
type Outcome struct {
	intake.Report
	Decision Decision
	Prefix   netip.Prefix  // what is blocked
	Timeout  time.Duration // how long, from when the hit was received
	Expires  time.Time     // until when
	Returns  int           // how often it came back
	Hits     int           // how many of Policy.Hits were seen
	isNew    bool          // the kernel has no element of it, as far as is known
}

// A record is what the book knows of one address. It has no pointer, so that a
// million of them cost the garbage collector nothing.
type record struct {
	expires int64 // Unix time in milliseconds, or forever
	zone    uint16
	returns uint8
	flags   flags
}

type flags uint8

const (
	live     flags = 1 << iota // counted as in force
	waiting                    // the kernel has not been told yet
	byHand                     // somebody else made it
	underway                   // the kernel is being told
)

const forever = math.MaxInt64

func (r record) inForce(now int64) bool { return r.expires > now }

// A key is an IPv4 address or the upper half of an IPv6 one.
type key struct {
	family uint8 // 0: IPv4, 1: IPv6
	bits   uint64
}

func keyOf(p netip.Prefix) key {
	if p.Addr().Is4() {
		b := p.Addr().As4()
		return key{0, uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])}
	}
	b := p.Addr().As16()
	var k key
	k.family = 1
	for _, x := range b[:8] {
		k.bits = k.bits<<8 | uint64(x)
	}
	return k
}

func (k key) prefix() netip.Prefix {
	if k.family == 0 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(k.bits >> 24), byte(k.bits >> 16), byte(k.bits >> 8), byte(k.bits)}), 32)
	}
	var b [16]byte
	for i := range 8 {
		b[i] = byte(k.bits >> (56 - 8*i))
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// A Book is the state of all offenders. It is a [firewall.State]. Its methods
// may be called from several goroutines; none of them waits for the table.
type Book struct {
	log     *slog.Logger
	journal *journal // nil: nothing is persisted

	// writing is held while something changes and the change is written
	// down, so that both happen in the same order. It is taken before mu.
	writing sync.Mutex
	entries []entry // room for record

	mu      sync.Mutex // guards what follows; never held while waiting for anything
	policy  Policy
	allow   allowList
	records [2]map[uint64]record // by key.bits
	live    [2]int               // records with flag live
	zones   zones
	counts  counter
	swept   time.Time
	removed map[key]bool // by somebody else, while TakeOver is at work
	decided [len(decisionOrder)]atomic.Uint64
}

var decisionOrder = [...]Decision{Blocked, Renewed, Kept, Counted, Allowed, Full}

var _ firewall.State = (*Book)(nil)

// New returns an empty book that is persisted nowhere.
func New(policy Policy, log *slog.Logger) *Book {
	b := &Book{log: log, records: [2]map[uint64]record{{}, {}}}
	b.counts.seen = map[key][]int64{}
	b.setPolicy(policy)
	return b
}

func (b *Book) setPolicy(p Policy) {
	b.policy = p
	b.allow = newAllowList(p.Allow)
}

// Record decides about hits, in their order, and writes the decisions down. An
// error of the journal is logged and changes no decision.
func (b *Book) Record(reports []intake.Report) []Outcome { return b.record(nil, reports) }

// record is Record, which appends the decisions to outcomes.
func (b *Book) record(outcomes []Outcome, reports []intake.Report) []Outcome {
	if len(reports) == 0 {
		return outcomes
	}
	b.writing.Lock()
	defer b.writing.Unlock()
	entries := b.entries[:0]
	for done := 0; done < len(reports); {
		// Others may have the lock between two parts.
		part := reports[done:min(done+64, len(reports))]
		b.mu.Lock()
		for i := range part {
			outcomes = append(outcomes, Outcome{Report: part[i]})
			o := &outcomes[len(outcomes)-1]
			if e, changed := b.decide(o); changed {
				entries = append(entries, e)
			}
			b.count(o.Decision)
		}
		b.mu.Unlock()
		done += len(part)
	}
	b.journal.append(entries)
	b.entries = entries
	return outcomes
}

func (b *Book) count(d Decision) {
	for i, x := range decisionOrder {
		if x == d {
			b.decided[i].Add(1)
		}
	}
}

// Decided returns how many hits were decided so.
func (b *Book) Decided(d Decision) uint64 {
	for i, x := range decisionOrder {
		if x == d {
			return b.decided[i].Load()
		}
	}
	return 0
}

// decide decides about the hit in o, and changes the record of its address. It
// returns the entry that says so.
func (b *Book) decide(o *Outcome) (e entry, changed bool) {
	o.Prefix = firewall.PrefixOf(o.Addr)
	k := keyOf(o.Prefix)
	if b.allow.contains(o.Addr) {
		o.Decision = Allowed
		return e, false
	}
	now := o.Received.UnixMilli()
	rec, known := b.records[k.family][k.bits]
	blocked := known && rec.inForce(now)
	if !blocked {
		if o.Hits = b.counts.add(k, now, &b.policy); o.Hits < b.policy.Hits {
			o.Decision = Counted
			return e, false
		}
		if b.live[k.family] >= b.policy.MaxElements && !b.makeRoom(k.family, o.Received) {
			o.Decision = Full
			return e, false
		}
		o.isNew = !known || !rec.inForce(now-expiring.Milliseconds())
		if known && rec.returns < math.MaxUint8 {
			rec.returns++
		}
	}
	o.Returns = int(rec.returns)
	o.Timeout = b.policy.timeout(o.Returns)
	o.Expires = time.UnixMilli(o.Received.Add(o.Timeout).UnixMilli())
	o.Decision = Blocked
	if blocked {
		o.Decision = Renewed
		if rec.expires > o.Expires.UnixMilli() {
			// It is blocked for longer already; the timeout that somebody
			// chose is not shortened.
			o.Decision = Kept
			return e, false
		}
	}
	rec.expires = o.Expires.UnixMilli()
	rec.flags = rec.flags&^byHand | underway
	return b.entryOf(k, b.put(k, rec, o.Zone)), true
}

// timeout is how long an address is blocked that came back so many times.
func (p *Policy) timeout(returns int) time.Duration {
	t := float64(p.Expiry) * math.Pow(p.Escalate, float64(returns))
	if !(t < float64(p.MaxExpiry)) {
		return p.MaxExpiry
	}
	return time.Duration(t)
}

// put stores a record that is in force, and returns it. Its zone is the one
// given.
func (b *Book) put(k key, rec record, zone string) record {
	old, known := b.records[k.family][k.bits]
	rec.zone = b.zones.use(zone)
	if known {
		b.zones.release(old.zone)
	}
	if !known || old.flags&live == 0 {
		b.live[k.family]++
	}
	rec.flags |= live
	b.records[k.family][k.bits] = rec
	return rec
}

// drop forgets a record.
func (b *Book) drop(k key) {
	rec, known := b.records[k.family][k.bits]
	if !known {
		return
	}
	if rec.flags&live != 0 {
		b.live[k.family]--
	}
	b.zones.release(rec.zone)
	delete(b.records[k.family], k.bits)
}

// Renews says which hits would renew a block.
func (b *Book) Renews(reports []intake.Report) []bool {
	renews := make([]bool, len(reports))
	now := time.Now().UnixMilli()
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range reports {
		renews[i] = b.blocks(reports[i].Addr, now)
	}
	return renews
}

// blocks reports whether addr is blocked. It is called with mu held.
func (b *Book) blocks(addr netip.Addr, now int64) bool {
	k := keyOf(firewall.PrefixOf(addr))
	return b.records[k.family][k.bits].inForce(now)
}

// Blocks returns all blocks in force. It holds no lock while it yields.
func (b *Book) Blocks() iter.Seq[firewall.Block] {
	return func(yield func(firewall.Block) bool) {
		now := time.Now().UnixMilli()
		for chunk := range b.chunks() {
			for _, e := range chunk {
				if e.inForce(now) && !yield(e.block()) {
					return
				}
			}
		}
	}
}

// chunks returns all records, without a lock held while it yields. What changes
// meanwhile may be seen or not.
func (b *Book) chunks() iter.Seq[[]entry] {
	const size = 1000
	return func(yield func([]entry) bool) {
		chunk := make([]entry, 0, size)
		b.mu.Lock()
		defer b.mu.Unlock()
		emit := func() bool {
			b.mu.Unlock()
			defer b.mu.Lock()
			more := yield(chunk)
			chunk = chunk[:0]
			return more
		}
		for family := range b.records {
			// A map may change while it is ranged over; the lock is held
			// whenever the range goes on.
			for bits, rec := range b.records[family] {
				chunk = append(chunk, b.entryOf(key{uint8(family), bits}, rec))
				if len(chunk) == size && !emit() {
					return
				}
			}
		}
		if len(chunk) > 0 {
			emit()
		}
	}
}

// Added says that somebody else blocked addresses, or changed for how long. An
// address that is being blocked this very moment is left alone.
func (b *Book) Added(blocks ...firewall.Block) {
	b.writing.Lock()
	defer b.writing.Unlock()
	var entries []entry
	var news []firewall.Block
	b.inParts(len(blocks), func(i int) {
		k := keyOf(blocks[i].Prefix)
		if b.records[k.family][k.bits].flags&underway == 0 {
			entries = append(entries, b.add(blocks[i]))
			news = append(news, blocks[i])
		}
	})
	b.journal.append(entries)
	b.logByHand("blocked by hand", news)
}

func (b *Book) add(block firewall.Block) entry {
	k := keyOf(block.Prefix)
	rec := b.records[k.family][k.bits]
	rec.expires = milli(block.Expires)
	rec.flags = rec.flags&^waiting | byHand
	return b.entryOf(k, b.put(k, rec, block.Zone))
}

// expiring is how much of its time an element may have left that the kernel
// has let go already, or have had that the kernel still holds.
const expiring = time.Second

// Removed says that somebody else unblocked addresses. They are forgotten, and
// when they come back they are not treated as ones that were blocked before. An
// address that is being blocked this very moment stays.
func (b *Book) Removed(prefixes ...netip.Prefix) {
	b.writing.Lock()
	defer b.writing.Unlock()
	var gone []firewall.Block
	b.inParts(len(prefixes), func(i int) {
		k := keyOf(prefixes[i])
		if b.removed != nil {
			b.removed[k] = true
		}
		if b.records[k.family][k.bits].flags&underway == 0 {
			gone = b.remove(gone, k)
		}
	})
	b.forgotten(gone)
}

// remove forgets a block that is in force, which it appends to gone.
func (b *Book) remove(gone []firewall.Block, k key) []firewall.Block {
	rec, known := b.records[k.family][k.bits]
	if !known || !rec.inForce(time.Now().Add(expiring).UnixMilli()) {
		return gone
	}
	b.drop(k)
	return append(gone, firewall.Block{Prefix: k.prefix()})
}

// forgotten writes down what was removed. It is called with writing held.
func (b *Book) forgotten(gone []firewall.Block) {
	entries := make([]entry, len(gone))
	for i, block := range gone {
		entries[i] = entry{key: keyOf(block.Prefix), deleted: true}
	}
	b.journal.append(entries)
	b.logByHand("unblocked by hand", gone)
}

// Compared says how the kernel's sets differ from what Blocks yielded a while
// ago. A block that a hit renewed since then, or of which the kernel is yet to
// be told, is left alone, and so is an address that was unblocked meanwhile
// because the allow list has it.
func (b *Book) Compared(missing, added []firewall.Block) {
	b.writing.Lock()
	defer b.writing.Unlock()
	var gone []firewall.Block
	b.inParts(len(missing), func(i int) {
		k := keyOf(missing[i].Prefix)
		rec := b.records[k.family][k.bits]
		if rec.flags&(waiting|underway) == 0 && rec.expires == milli(missing[i].Expires) {
			gone = b.remove(gone, k)
		}
	})
	b.forgotten(gone)
	var entries []entry
	var news []firewall.Block
	now := time.Now().UnixMilli()
	b.inParts(len(added), func(i int) {
		k := keyOf(added[i].Prefix)
		if !b.records[k.family][k.bits].inForce(now) && !b.allow.covers(added[i].Prefix) {
			entries = append(entries, b.add(added[i]))
			news = append(news, added[i])
		}
	})
	b.journal.append(entries)
	b.logByHand("blocked by hand", news)
}

// inParts calls do with 0 to n-1, with mu held but between two parts.
func (b *Book) inParts(n int, do func(i int)) {
	const part = 500
	for i := 0; i < n; {
		b.mu.Lock()
		for end := min(i+part, n); i < end; i++ {
			do(i)
		}
		b.mu.Unlock()
	}
}

// logByHand logs what somebody did by hand, each for itself unless they are
// many.
func (b *Book) logByHand(message string, blocks []firewall.Block) {
	const few = 20
	for _, block := range blocks[:min(few, len(blocks))] {
		if block.Zone == "" && block.Expires.IsZero() {
			b.log.Info(message, "addr", block.Prefix)
			continue
		}
		b.log.Info(message, "addr", block.Prefix, "zone", block.Zone, "expires", block.Expires)
	}
	if more := len(blocks) - few; more > 0 {
		b.log.Info(message, "more", more)
	}
}

// SetPolicy replaces the policy. The blocks that the new allow list does not
// permit end, and are returned, for them to be taken out of the kernel's sets.
func (b *Book) SetPolicy(p Policy) (unblocked []netip.Prefix) {
	b.writing.Lock()
	defer b.writing.Unlock()
	b.mu.Lock()
	b.setPolicy(p)
	b.mu.Unlock()
	return b.unblockAllowed()
}

// unblockAllowed drops what the allow list covers. It is called with writing
// held.
func (b *Book) unblockAllowed() (unblocked []netip.Prefix) {
	var entries []entry
	for chunk := range b.chunks() {
		for _, e := range chunk {
			if p := e.prefix(); b.allow.covers(p) {
				unblocked = append(unblocked, p)
				entries = append(entries, entry{key: e.key, deleted: true})
			}
		}
	}
	b.mu.Lock()
	for _, e := range entries {
		b.drop(e.key)
	}
	b.mu.Unlock()
	b.journal.append(entries)
	return unblocked
}

// Len returns how many addresses are blocked, those among them included that
// expired within the last half minute, and how many are remembered.
func (b *Book) Len() (blocked, remembered int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	blocked = b.live[0] + b.live[1]
	return blocked, len(b.records[0]) + len(b.records[1]) - blocked
}

// NotPersisted returns why what happens is not written down at the moment, or
// nil. Without a directory it is nil.
func (b *Book) NotPersisted() error { return b.journal.failure() }

// Close writes down what is not on the disk yet.
func (b *Book) Close() error { return b.journal.close() }

func milli(t time.Time) int64 {
	if t.IsZero() {
		return forever
	}
	return t.UnixMilli()
}
