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
	Remove(context.Context, []netip.Prefix) error
}

// A Source gives hits: an [intake.Queue].
type Source interface {
	Take(ctx context.Context, wake <-chan struct{}, most int) (reports []intake.Report, open bool)
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
	backlog   []key // waiting to be committed, the last one first
	full      []key // did not fit; for the backlog when it is time
	fullUntil time.Time
	late      []late // what is to be logged when all that waits is committed
	unlogged  int
	backoff   time.Duration
	notBefore time.Time
	nextWarn  time.Time
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
	maxLate      = 20_000
)

// NewKeeper returns a Keeper. It logs one line for each hit; of more than 1,000
// hits a second, where they last, it logs how many more there were.
func NewKeeper(book *Book, source Source, table Table, log *slog.Logger) *Keeper {
	return &Keeper{
		book: book, source: source, table: table, log: log,
		hits: rate.NewLimiter(1000, 5000),
		wake: make(chan struct{}, 1),
	}
}

// Run keeps the kernel's sets as the book says, until the source is closed and
// empty, or ctx is done. It returns nil.
func (k *Keeper) Run(ctx context.Context) error {
	for {
		reports, open := k.source.Take(ctx, k.wake, batchSize)
		k.busySince.Store(time.Now().UnixNano())
		k.commit(ctx, k.book.Record(reports))
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
	if len(outcomes) == 0 {
		return
	}
	blocks := make([]firewall.Block, 0, len(outcomes))
	for i := range outcomes {
		if o := &outcomes[i]; o.Decision == Blocked || o.Decision == Renewed {
			blocks = append(blocks, firewall.Block{Prefix: o.Prefix, Expires: o.Expires, Zone: o.Zone})
		}
	}
	if len(blocks) == 0 {
		k.logAll(outcomes, 0)
		return
	}
	var err error
	if wait := time.Until(k.notBefore); wait <= 0 {
		err = k.table.Commit(ctx, blocks)
		if err == nil {
			k.succeeded()
			k.logAll(outcomes, len(blocks))
			return
		}
	}
	keys := make([]key, len(blocks))
	for i, b := range blocks {
		keys[i] = keyOf(b.Prefix)
	}
	k.postpone(keys, err)
	for _, o := range outcomes {
		if len(k.late) < maxLate {
			k.late = append(k.late, late{o, len(blocks)})
		} else {
			k.unlogged++
		}
	}
}

// postpone puts blocks off that were not committed because of err, or because
// it is not the time to try, where err is nil.
func (k *Keeper) postpone(keys []key, err error) {
	k.book.setWaiting(keys)
	if errors.Is(err, firewall.ErrFull) {
		// Which ones did not fit is not known. All are tried again, when
		// others may have expired.
		if len(k.full) == 0 {
			k.fullUntil = time.Now().Add(fullPause)
			time.AfterFunc(fullPause, k.poke)
		}
		k.full = append(k.full, keys...)
		return
	}
	k.backlog = append(k.backlog, keys...)
	if err != nil {
		k.failed(err)
	}
}

// failed makes the next attempt wait.
func (k *Keeper) failed(err error) {
	k.failing.Store(&err)
	k.backoff = min(max(2*k.backoff, firstBackoff), maxBackoff)
	now := time.Now()
	k.notBefore = now.Add(k.backoff)
	time.AfterFunc(k.backoff, k.poke)
	// A ruleset that is being reloaded is no news.
	if k.backoff > 16*firstBackoff && now.After(k.nextWarn) {
		k.nextWarn = now.Add(warnInterval)
		k.log.Error("blocks cannot be committed; they wait, and are tried again",
			"waiting", len(k.backlog), "error", err)
	}
}

func (k *Keeper) succeeded() {
	if k.backoff > 16*firstBackoff {
		k.log.Info("blocks can be committed again", "waiting", len(k.backlog))
		k.nextWarn = time.Time{}
	}
	k.backoff = 0
	k.failing.Store(nil)
}

// remove takes out of the kernel what is to be taken out.
func (k *Keeper) remove(ctx context.Context) {
	k.mu.Lock()
	prefixes := k.removals
	k.removals = nil
	k.mu.Unlock()
	if len(prefixes) == 0 {
		return
	}
	// What was blocked again meanwhile stays.
	prefixes = k.book.notInForce(prefixes)
	var err error
	if time.Now().Before(k.notBefore) {
		k.Remove(prefixes)
		return
	}
	if err = k.table.Remove(ctx, prefixes); err != nil {
		k.failed(err)
		k.Remove(prefixes)
		return
	}
	for _, p := range prefixes {
		k.log.Info("unblocked", "addr", p, "decision", string(Allowed))
	}
}

// catchUp commits a part of what waits.
func (k *Keeper) catchUp(ctx context.Context) {
	k.mu.Lock()
	if len(k.adoption) > 0 {
		k.backlog = append(k.adoption, k.backlog...)
		k.adoption = nil
	}
	k.mu.Unlock()
	now := time.Now()
	if len(k.full) > 0 && now.After(k.fullUntil) {
		k.backlog = append(k.full, k.backlog...)
		k.full = nil
	}
	if len(k.backlog) == 0 || now.Before(k.notBefore) {
		return
	}
	rest := max(0, len(k.backlog)-chunkSize)
	chunk := k.backlog[rest:]
	blocks := k.book.due(chunk)
	err := k.table.Commit(ctx, blocks)
	if err != nil {
		keys := append([]key(nil), chunk...)
		k.backlog = k.backlog[:rest]
		k.postpone(keys, err)
		return
	}
	k.backlog = k.backlog[:rest]
	k.succeeded()
	if rest > 0 {
		k.poke()
		return
	}
	k.backlog = nil
	if len(k.full) > 0 {
		return
	}
	for _, l := range k.late {
		k.logHit(&l.Outcome, l.batch)
	}
	if k.unlogged > 0 {
		k.log.Info("hits committed late", "more", k.unlogged)
	}
	k.late, k.unlogged = nil, 0
}

func (k *Keeper) logAll(outcomes []Outcome, batch int) {
	for i := range outcomes {
		if !k.hits.Allow() {
			k.log.Info("more hits than are logged one by one", "more", len(outcomes)-i, "batch", batch)
			return
		}
		k.logHit(&outcomes[i], batch)
	}
}

// logHit writes the line that says what became of a hit. For a block it is
// written when the block is both in the journal and in the kernel.
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

// setWaiting marks records as not committed.
func (b *Book) setWaiting(keys []key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range keys {
		if rec, known := b.records[k.family][k.bits]; known {
			rec.flags |= waiting
			b.records[k.family][k.bits] = rec
		}
	}
}

// due returns those blocks that are in force and marked as waiting, and takes
// the mark from them: they are about to be committed.
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
		b.records[k.family][k.bits] = rec
		if rec.inForce(now) && rec.expires != forever {
			e := b.entryOf(k, rec)
			blocks = append(blocks, e.block())
		}
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
