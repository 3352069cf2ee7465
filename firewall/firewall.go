//go:build linux

package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"rblnft/firewall/book"
	"rblnft/firewall/hit"
	"rblnft/firewall/nft"
	"rblnft/firewall/ruleset"
	"rblnft/firewall/store"
)

// Config says what to do.
type Config struct {
	Ruleset ruleset.Config
	Policy  book.Policy // Families and Whole are the ruleset's to say
	// Batch is how long after a commit the next one waits, at least.
	Batch time.Duration
}

// A Firewall is the loop and what it owns.
type Firewall struct {
	cfg      Config
	log      *slog.Logger
	conn     *nft.Conn
	rules    *ruleset.Ruleset
	book     *book.Book
	store    *store.Store
	names    string // which it has: of what is ours in the kernel
	sets     [2]set
	changes  chan nft.Change // from the watch
	commands chan func()
	unwatch  func()

	// When there is something to do.
	ensureAt time.Time // zero: there is no need
	ensured  time.Time // last
	pauseEnd time.Time
	sweepAt  time.Time
	tellAt   time.Time

	by       string                  // who made Ensure necessary
	unusable error                   // why there is no ruleset
	tell     func() (book.Key, bool) // the rest of what a new file of the store is to have

	batches  int           // that are over
	lines    *rate.Limiter // of the log
	unlogged int
	moreLog  rate.Sometimes
	fullLog  rate.Sometimes

	status atomic.Pointer[Status]
	doing  atomic.Pointer[activity] // nil: waiting
}

// An activity is what keeps the loop busy.
type activity struct {
	since  time.Time
	kernel bool // it waits for the kernel
}

// A set is one of the two sets of blocked addresses.
type set struct {
	id       string // which one is there; "": none that is ours to fill
	filled   string // the one that has all blocks, as far as we know
	restored int
	began    time.Time // of the refill
	batch    int       // what is left of the batch under way
	size     int       // of a transaction, in elements
	refused  error     // why the last push failed
	backoff  time.Duration
	retryAt  time.Time // after that
}

// Open makes the kernel have what cfg asks for, with what the store knows, which may
// be nil. An error that is a [ruleset.InTheWay] is for the administrator to mend.
func Open(cfg Config, s *store.Store, log *slog.Logger) (*Firewall, error) {
	if err := checkKernel(); err != nil {
		return nil, err
	}
	conn, err := nft.Dial()
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: CAP_NET_ADMIN is needed", err)
	}
	if err != nil {
		return nil, err
	}
	f := &Firewall{log: log, conn: conn, book: book.New(cfg.policy()), store: s,
		changes: make(chan nft.Change, 64), commands: make(chan func()), unwatch: func() {},
		lines:   rate.NewLimiter(linesPerSecond, linesAtOnce),
		moreLog: rate.Sometimes{Interval: moreInterval},
		fullLog: rate.Sometimes{Interval: fullInterval},
	}
	now := store.Monotonic()
	loaded := s.Load(func(r book.Record) { f.book.Load(r, now) }, f.book.Unload)
	f.names = loaded.Values["names"]
	for i := range f.sets {
		f.sets[i].size = perTransaction
		if loaded.SameBoot {
			f.sets[i].filled = loaded.Values[setValue[i]]
		}
	}
	if err := f.reload(cfg); err != nil {
		f.Close()
		return nil, err
	}
	f.book.Sweep(now)
	blocked, remembered := f.book.Len()
	log.Info("table ready", "table", cfg.Ruleset.Table, "blocked", blocked, "remembered", remembered,
		"to_restore", f.book.Refilling(book.IPv4)+f.book.Refilling(book.IPv6))
	f.show()
	return f, nil
}

func (c *Config) policy() book.Policy {
	p := c.Policy
	p.Families, p.Whole = c.Ruleset.Families(), !c.Ruleset.Rules
	return p
}

// Close closes what Open opened. Nothing of the kernel's changes.
func (f *Firewall) Close() {
	f.unwatch()
	f.conn.Close()
}

// Run is the loop. It ends when hits is closed and what came through it is done, or
// when ctx is done.
func (f *Firewall) Run(ctx context.Context, hits <-chan []hit.Hit) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var burst []hit.Hit
		var change nft.Change
		do, open := func() {}, true
		f.doing.Store(nil)
		select {
		case burst, open = <-hits:
		case change = <-f.changes:
		case do = <-f.commands:
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
		f.busy(false)
		f.hits(burst)
		f.hint(change)
		do()
		if !open {
			hits = nil
		}
		now := time.Now()
		if hits == nil {
			f.pauseEnd = now
		}
		f.turn(now)
		if hits == nil && f.finished() {
			return nil
		}
		timer.Reset(f.next(time.Now()))
	}
}

const (
	// turnLimit is how long may pass between two turns where nothing happens.
	turnLimit = time.Second
	// sweepInterval is how often expired blocks are taken out of the account.
	sweepInterval = 30 * time.Second
)

// turn does what there is to do at now, and not much of it.
func (f *Firewall) turn(now time.Time) {
	if now.After(f.sweepAt) {
		f.book.Sweep(store.Monotonic())
		f.sweepAt = now.Add(sweepInterval)
	}
	if !f.ensureAt.IsZero() && !now.Before(f.ensureAt) {
		f.ensure(now)
	}
	f.push(now)
	f.tellStore(now)
	f.show()
}

// next is how long until there is something to do.
func (f *Firewall) next(now time.Time) time.Duration {
	at := []time.Time{now.Add(turnLimit)}
	if !f.ensureAt.IsZero() {
		at = append(at, f.ensureAt)
	}
	if f.tell != nil {
		at = append(at, f.tellAt)
	}
	for i, s := range f.sets {
		switch family := book.Family(i); {
		case s.id == "":
		case s.batch > 0 || f.book.Refilling(family) > 0:
			at = append(at, s.retryAt)
		case f.book.Waiting(family) > 0:
			at = append(at, slices.MaxFunc([]time.Time{s.retryAt, f.pauseEnd}, time.Time.Compare))
		}
	}
	return max(slices.MinFunc(at, time.Time.Compare).Sub(now), 0)
}

// finished reports whether what came was pushed, as far as it can be, and the store
// has what it wanted.
func (f *Firewall) finished() bool {
	for i, s := range f.sets {
		if f.book.Waiting(book.Family(i)) > 0 && (s.id != "" || !f.ensureAt.IsZero()) {
			return false
		}
	}
	return f.tell == nil && !f.store.Wanted() || f.store.Failure() != nil
}

// hits takes a burst. A hit that blocks is logged when the kernel has its element.
func (f *Firewall) hits(burst []hit.Hit) {
	now := store.Monotonic()
	for _, h := range burst {
		decision, seen := f.book.Hit(h, now)
		if decision == book.Blocked || decision == book.Renewed || decision == book.Kept {
			continue
		}
		if decision == book.Full {
			f.fullLog.Do(func() {
				f.log.Warn("a set is full: addresses are left out until others expire", "max_elements", f.cfg.Policy.MaxElements)
			})
		}
		if f.hasLine() {
			attrs := []any{"addr", h.Addr.String(), "zone", h.Zone, "code", text(h.Code), "decision", string(decision)}
			if decision == book.Counted {
				attrs = append(attrs, "hits", seen)
			}
			f.log.Info("not blocked", attrs...)
		}
	}
}

// busy says that the loop begins something, or to wait for the kernel. How long that
// takes is not ours to say: another program's transaction may be under way.
func (f *Firewall) busy(kernel bool) { f.doing.Store(&activity{time.Now(), kernel}) }

// Do has do done in the loop, between two other things, and waits for it. It returns
// false where ctx is done before the loop takes it: one that has ended never does.
func (f *Firewall) Do(ctx context.Context, do func()) bool {
	done := make(chan struct{})
	select {
	case f.commands <- func() { defer close(done); do() }:
		<-done
		return true
	case <-ctx.Done():
		return false
	}
}

// Reload has another configuration in force, or returns why it cannot be, and
// leaves the old one.
func (f *Firewall) Reload(ctx context.Context, cfg Config) (err error) {
	f.Do(ctx, func() { err = f.reload(cfg) })
	return err
}

func (f *Firewall) reload(cfg Config) error {
	rules, err := ruleset.New(f.conn, cfg.Ruleset, cfg.Policy.Allow)
	if err != nil {
		return err
	}
	f.busy(true)
	state, err := rules.Ensure()
	f.busy(false)
	if err == nil && cfg.Ruleset.Table != f.cfg.Ruleset.Table {
		err = f.watch(cfg.Ruleset.Table)
	}
	if err != nil {
		if f.rules != nil {
			f.doubt() // some of it may have been done
		}
		return err
	}
	f.cfg, f.rules = cfg, rules
	f.book.SetPolicy(cfg.policy())
	f.ensureSoon() // what changed before the watch began is not known
	if names := cfg.Ruleset.Names(); names != f.names {
		if old, ok := ruleset.ParseNames(f.names); ok {
			if err := ruleset.Remove(f.conn, old, &f.cfg.Ruleset); err != nil {
				f.log.Error("what the old configuration made is not removed", "table", old.Table, "error", err)
			}
		}
		f.names = names
		f.store.Value("names", names)
	}
	f.take(state)
	return nil
}

// Busy returns for how long the loop has been at one thing, and whether that is to
// wait for the kernel.
func (f *Firewall) Busy() (d time.Duration, kernel bool) {
	if at := f.doing.Load(); at != nil {
		return time.Since(at.since), at.kernel
	}
	return 0, false
}

// checkKernel refuses kernels on which nothing was tested.
func checkKernel() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	return checkRelease(unix.ByteSliceToString(name.Release[:]))
}

func checkRelease(release string) error {
	var major, minor int
	fmt.Sscanf(release, "%d.%d", &major, &minor)
	if major < 6 || major == 6 && minor < 1 {
		return fmt.Errorf("the kernel is Linux %s, and 6.1 or newer is needed", release)
	}
	return nil
}
