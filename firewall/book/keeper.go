package book

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"rblnft/firewall"
	"rblnft/firewall/intake"
)

// A Table is where addresses are blocked: a [firewall.Table].
type Table interface {
	Commit(context.Context, []firewall.Block) error
	Restore(context.Context, []firewall.Block) error
	Remove(context.Context, []netip.Prefix) error
	Element(netip.Prefix) string
}

// A Source gives hits: an [intake.Queue].
type Source interface {
	Take(ctx context.Context, wake <-chan struct{}, room []intake.Report) (n int, open bool)
}

// A Keeper takes hits, has the book decide about them, and tells the kernel.
// While one batch is being committed the next one gathers, so that a lone hit
// is in the kernel at once and a flood costs few transactions.
//
// What cannot be committed waits in the book, and is tried again until it can.
type Keeper struct {
	book   *Book
	source Source
	table  Table
	log    *slog.Logger
	hits   *rate.Limiter // lines of the log about hits

	wake      chan struct{}
	busySince atomic.Int64 // Unix nanoseconds; 0: waiting for hits
	failing   atomic.Pointer[error]

	mu       sync.Mutex
	removals []netip.Prefix // to be taken out of the kernel
	adoption []key          // waiting since the start

	// What follows is Run's own.
	lanes     [2]lane
	others    []*Outcome // of the batch under way, those that block nobody
	unlogged  int        // hits for which there was no line
	nextCount time.Time
}

// A lane is what waits of one address family: where one set is not there, or
// is full, the other one does not suffer.
type lane struct {
	// Of the batch under way, in the same order.
	outcomes []*Outcome
	blocks   []firewall.Block
	keys     []key

	backlog   []key // waiting to be committed, the last one first
	full      []key // did not fit; for the backlog when it is time
	fullUntil time.Time
	late      []late // what is to be logged when all that waits is committed
	unlogged  int
	backoff   time.Duration
	notBefore time.Time
	nextWarn  time.Time
	err       error // why the last commit failed
}

type late struct {
	Outcome
	batch int
}

const (
	// batchSize is how many hits are decided about at once, at most.
	batchSize = 2000
	// chunkSize is how much of the backlog is committed between two batches.
	chunkSize = 1000

	firstBackoff = 10 * time.Millisecond
	maxBackoff   = 5 * time.Second
	fullPause    = 10 * time.Second
	warnInterval = 30 * time.Second
	// countInterval is how often it is logged how many hits were not logged.
	countInterval = 10 * time.Second
	maxLate       = 20_000

	// These keep below what systemd-journald takes of one service in thirty
	// seconds, 10,000 lines (journald.conf(5), RateLimitBurst=): from then on
	// it would drop lines of all kinds.
	linesPerSecond = 200
	linesAtOnce    = 2000
)

// NewKeeper returns a Keeper. It logs one line for each hit; of more than 200
// hits a second, where they last, it logs from time to time how many more there
// were.
func NewKeeper(book *Book, source Source, table Table, log *slog.Logger) *Keeper {
	return &Keeper{
		book: book, source: source, table: table, log: log,
		hits: rate.NewLimiter(linesPerSecond, linesAtOnce),
		wake: make(chan struct{}, 1),
	}
}

// Run keeps the kernel's sets as the book says, until the source is closed and
// empty, or ctx is done. It returns nil.
func (k *Keeper) Run(ctx context.Context) error {
	reports := make([]intake.Report, batchSize)
	var outcomes []Outcome
	for {
		n, open := k.source.Take(ctx, k.wake, reports)
		k.busySince.Store(time.Now().UnixNano())
		outcomes = k.book.record(outcomes[:0], reports[:n])
		k.commit(ctx, outcomes)
		k.remove(ctx)
		k.catchUp(ctx)
		k.busySince.Store(0)
		if !open || ctx.Err() != nil {
			return nil
		}
	}
}

// Busy returns for how long the batch under way has been under way.
func (k *Keeper) Busy() time.Duration {
	since := k.busySince.Load()
	if since == 0 {
		return 0
	}
	return time.Since(time.Unix(0, since))
}

// Failing returns why nothing can be committed at the moment, or nil.
func (k *Keeper) Failing() error {
	if err := k.failing.Load(); err != nil {
		return *err
	}
	return nil
}

// CommitWaiting commits what waits in the book since it was opened: what the
// kernel's sets lack.
func (k *Keeper) CommitWaiting() (n int) {
	keys := k.book.waiting()
	k.mu.Lock()
	k.adoption = append(k.adoption, keys...)
	k.mu.Unlock()
	k.poke()
	return len(keys)
}

// Remove takes addresses out of the kernel's sets, which the book has forgotten.
func (k *Keeper) Remove(prefixes []netip.Prefix) {
	if len(prefixes) == 0 {
		return
	}
	k.mu.Lock()
	k.removals = append(k.removals, prefixes...)
	k.mu.Unlock()
	k.poke()
}

func (k *Keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// commit tells the kernel of a batch.
func (k *Keeper) commit(ctx context.Context, outcomes []Outcome) {
	batch := 0
	k.others = k.others[:0]
	for f := range k.lanes {
		k.lanes[f].clear()
	}
	for i := range outcomes {
		o := &outcomes[i]
		if o.Decision == Blocked || o.Decision == Renewed {
			k.lanes[keyOf(o.Prefix).family].add(o)
			batch++
		} else {
			k.others = append(k.others, o)
		}
	}
	k.logHits(k.others, 0)
	for f := range k.lanes {
		k.commitFamily(ctx, &k.lanes[f], batch)
	}
}

func (l *lane) clear() {
	l.outcomes, l.blocks, l.keys = l.outcomes[:0], l.blocks[:0], l.keys[:0]
}

func (l *lane) add(o *Outcome) {
	l.outcomes = append(l.outcomes, o)
	l.blocks = append(l.blocks, firewall.Block{Prefix: o.Prefix, Expires: o.Expires, Zone: o.Zone, New: o.isNew})
	l.keys = append(l.keys, keyOf(o.Prefix))
}

func (k *Keeper) commitFamily(ctx context.Context, l *lane, batch int) {
	if len(l.outcomes) == 0 {
		return
	}
	var err error
	if !time.Now().Before(l.notBefore) {
		if err = k.table.Commit(ctx, l.blocks); err == nil {
			k.book.committed(l.keys)
			k.succeeded(l)
			k.logHits(l.outcomes, batch)
			return
		}
	}
	k.postpone(l, l.keys, err)
	for _, o := range l.outcomes {
		if len(l.late) < maxLate {
			l.late = append(l.late, late{*o, batch})
		} else {
			l.unlogged++
		}
	}
}

// postpone puts blocks off that were not committed because of err, or because
// it is not the time to try, where err is nil.
func (k *Keeper) postpone(l *lane, keys []key, err error) {
	keys = k.book.setWaiting(keys) // those that do not wait already
	if errors.Is(err, firewall.ErrFull) {
		// Which ones did not fit is not known. All are tried again, when
		// others may have expired.
		if len(l.full) == 0 {
			l.fullUntil = time.Now().Add(fullPause)
			time.AfterFunc(fullPause, k.poke)
		}
		l.full = append(l.full, keys...)
		if len(l.backlog) > 0 {
			k.poke()
		}
		return
	}
	l.backlog = append(l.backlog, keys...)
	if err != nil {
		k.failed(l, err)
	}
}

// failed makes the next attempt wait.
func (k *Keeper) failed(l *lane, err error) {
	l.err = err
	k.failing.Store(&err)
	l.backoff = min(max(2*l.backoff, firstBackoff), maxBackoff)
	now := time.Now()
	l.notBefore = now.Add(l.backoff)
	time.AfterFunc(l.backoff, k.poke)
	// A ruleset that is being reloaded is no news.
	if l.backoff > 16*firstBackoff && now.After(l.nextWarn) {
		l.nextWarn = now.Add(warnInterval)
		k.log.Error("blocks cannot be committed; they wait, and are tried again",
			"waiting", len(l.backlog), "error", err)
	}
}

func (k *Keeper) succeeded(l *lane) {
	if l.backoff == 0 {
		return
	}
	if l.backoff > 16*firstBackoff {
		k.log.Info("blocks can be committed again", "waiting", len(l.backlog))
		l.nextWarn = time.Time{}
	}
	l.backoff, l.err = 0, nil
	k.failing.Store(nil)
	for i := range k.lanes {
		if err := k.lanes[i].err; err != nil {
			k.failing.Store(&err)
		}
	}
}

// remove takes out of the kernel what is to be taken out.
func (k *Keeper) remove(ctx context.Context) {
	k.mu.Lock()
	all := k.removals
	k.removals = nil
	k.mu.Unlock()
	var prefixes [2][]netip.Prefix
	// What was blocked again meanwhile stays.
	for _, p := range k.book.notInForce(all) {
		f := keyOf(p).family
		prefixes[f] = append(prefixes[f], p)
	}
	for f := range k.lanes {
		l := &k.lanes[f]
		if len(prefixes[f]) == 0 {
			continue
		}
		if time.Now().Before(l.notBefore) {
			k.removeLater(prefixes[f])
			continue
		}
		err := k.table.Remove(ctx, prefixes[f])
		if errors.Is(err, firewall.ErrMissing) {
			continue // there is nothing to take them out of
		}
		if err != nil {
			k.removeLater(prefixes[f])
			k.failed(l, err)
			continue
		}
		k.succeeded(l)
		for _, p := range prefixes[f] {
			k.log.Info("unblocked", "addr", p, "decision", string(Allowed))
		}
	}
}

// removeLater has prefixes taken out of the kernel when the next attempt is
// made.
func (k *Keeper) removeLater(prefixes []netip.Prefix) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.removals = append(k.removals, prefixes...)
}

// catchUp commits a part of what waits.
func (k *Keeper) catchUp(ctx context.Context) {
	k.mu.Lock()
	adoption := k.adoption
	k.adoption = nil
	k.mu.Unlock()
	for f := range k.lanes {
		l := &k.lanes[f]
		if len(adoption) > 0 {
			var first []key
			for _, x := range adoption {
				if int(x.family) == f {
					first = append(first, x)
				}
			}
			l.backlog = append(first, l.backlog...)
		}
		now := time.Now()
		if len(l.full) > 0 && !now.Before(l.fullUntil) {
			l.backlog = append(l.full, l.backlog...)
			l.full = nil
		}
		if len(l.backlog) > 0 && !now.Before(l.notBefore) {
			k.catchUpFamily(ctx, l)
		}
	}
}

func (k *Keeper) catchUpFamily(ctx context.Context, l *lane) {
	rest := max(0, len(l.backlog)-chunkSize)
	chunk := l.backlog[rest:]
	l.backlog = l.backlog[:rest:rest]
	if blocks := k.book.due(chunk); len(blocks) > 0 {
		if err := k.table.Restore(ctx, blocks); err != nil {
			k.postpone(l, chunk, err)
			return
		}
		k.book.committed(chunk)
		k.succeeded(l)
	}
	if rest > 0 {
		k.poke()
		return
	}
	l.backlog = nil
	if len(l.full) > 0 {
		return
	}
	for _, x := range l.late {
		// It may have been unblocked meanwhile.
		if k.book.isBlocked(x.Addr) {
			k.logHit(&x.Outcome, x.batch)
		}
	}
	if l.unlogged > 0 {
		k.log.Info("hits committed late", "more", l.unlogged)
	}
	l.late, l.unlogged = nil, 0
}

// logHits logs hits one by one, unless they are too many.
func (k *Keeper) logHits(outcomes []*Outcome, batch int) {
	now := time.Now()
	for i, o := range outcomes {
		if !k.hits.AllowN(now, 1) {
			k.unlogged += len(outcomes) - i
			break
		}
		k.logHit(o, batch)
	}
	if k.unlogged > 0 && now.After(k.nextCount) {
		k.log.Info("more hits than are logged one by one", "more", k.unlogged)
		k.unlogged, k.nextCount = 0, now.Add(countInterval)
	}
}

// logHit writes the line that says what became of a hit. For a block it is
// written when the block is in the kernel, and in the journal unless that fails,
// which has a line of its own.
func (k *Keeper) logHit(o *Outcome, batch int) {
	code := "-"
	if o.Code.IsValid() {
		code = o.Code.String()
	}
	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs,
		slog.String("addr", o.Addr.String()),
		slog.String("zone", o.Zone),
		slog.String("code", code),
		slog.String("decision", string(o.Decision)))
	message := "not blocked"
	switch o.Decision {
	case Blocked, Renewed, Kept:
		message = "blocked"
		attrs = append(attrs,
			slog.String("prefix", o.Prefix.String()),
			slog.Duration("timeout", o.Timeout.Round(time.Millisecond)),
			slog.String("expires", o.Expires.UTC().Format("2006-01-02T15:04:05.000Z")),
			slog.Int("returns", o.Returns),
			slog.Int("batch", batch))
	case Counted:
		attrs = append(attrs, slog.Int("hits", o.Hits))
	}
	attrs = append(attrs, slog.Bool("proven", o.Proven))
	if message == "blocked" {
		attrs = append(attrs, slog.String("element", k.table.Element(o.Prefix)))
	}
	k.log.LogAttrs(context.Background(), slog.LevelInfo, message, attrs...)
}

// waiting returns what waits for being committed.
func (b *Book) waiting() (keys []key) {
	for chunk := range b.chunks() {
		for _, e := range chunk {
			if e.flags&waiting != 0 {
				keys = append(keys, e.key)
			}
		}
	}
	return keys
}

// setWaiting marks records as not committed, and returns those that were not
// marked before.
func (b *Book) setWaiting(keys []key) (marked []key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range keys {
		rec, known := b.records[k.family][k.bits]
		if !known {
			continue
		}
		if rec.flags&waiting == 0 {
			marked = append(marked, k)
		}
		rec.flags = rec.flags&^underway | waiting
		b.records[k.family][k.bits] = rec
	}
	return marked
}

// isBlocked reports whether addr is blocked.
func (b *Book) isBlocked(addr netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.blocks(addr, time.Now().UnixMilli())
}

// committed takes the marks from records of which the kernel has been told.
func (b *Book) committed(keys []key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range keys {
		if rec, known := b.records[k.family][k.bits]; known && rec.flags&(waiting|underway) != 0 {
			rec.flags &^= waiting | underway
			b.records[k.family][k.bits] = rec
		}
	}
}

// due returns those blocks that are in force and marked as waiting: the kernel
// is about to be told of them.
func (b *Book) due(keys []key) (blocks []firewall.Block) {
	now := time.Now().UnixMilli()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range keys {
		rec, known := b.records[k.family][k.bits]
		if !known || rec.flags&waiting == 0 {
			continue
		}
		rec.flags &^= waiting
		if rec.inForce(now) {
			rec.flags |= underway
			e := b.entryOf(k, rec)
			blocks = append(blocks, e.block())
		}
		b.records[k.family][k.bits] = rec
	}
	return blocks
}

// notInForce returns those prefixes that are not blocked.
func (b *Book) notInForce(prefixes []netip.Prefix) (rest []netip.Prefix) {
	now := time.Now().UnixMilli()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range prefixes {
		k := keyOf(p)
		if !b.records[k.family][k.bits].inForce(now) {
			rest = append(rest, p)
		}
	}
	return rest
}
