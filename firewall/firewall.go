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

func (c *Config) policy() book.Policy {
	p := c.Policy
	p.Families, p.Whole = c.Ruleset.Families(), !c.Ruleset.Rules
	return p
}

// OldestKernel is the oldest kernel that is supported: what all tests run on.
const OldestKernel = "6.1"

// A Firewall is the loop and what it owns.
type Firewall struct {
	cfg      Config
	log      *slog.Logger
	conn     *nft.Conn
	rules    *ruleset.Ruleset
	book     *book.Book
	store    *store.Store
	sets     [2]set
	changes  chan nft.Change // from the watch
	commands chan func()
	unwatch  func()
	told     hitLog

	// When there is something to do.
	ensure     bool // soon
	ensureAt   time.Time
	ensured    time.Time // last
	by         string    // who made it necessary
	retryAt    time.Time
	pauseEnd   time.Time
	sweepAt    time.Time
	tell       func() (book.Key, bool) // the rest of what a new file of the store is to have
	stopTell   func()
	failures   int
	unusable   error // why there is no ruleset
	refused    error // why a push failed
	fullLogged time.Time

	status atomic.Pointer[Status]
	busy   atomic.Int64 // since when the loop is, in Unix nanoseconds; 0: waiting
	kernel atomic.Int64 // since when the kernel is, in the loop's name
}

// A set is one of the two sets of blocked addresses.
type set struct {
	name     string
	id       string // which one is there; "": none
	filled   string // the one that has all blocks, as far as we know
	restored int
	began    time.Time // of the refill
	batch    int       // what is left of the batch under way
	size     int       // of a transaction, in elements
}

// Open makes the kernel have what cfg asks for, with what the store knows, which may
// be nil. An error that is a [ruleset.InTheWay] is for the administrator to mend.
func Open(cfg Config, s *store.Store, log *slog.Logger) (*Firewall, error) {
	if err := checkKernel(); err != nil {
		return nil, err
	}
	f := &Firewall{cfg: cfg, log: log, store: s, changes: make(chan nft.Change, 64), commands: make(chan func()), unwatch: func() {}}
	f.told = newHitLog(log)
	var err error
	if f.conn, err = nft.Dial(); err != nil {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w: CAP_NET_ADMIN is needed", err)
		}
		return nil, err
	}
	f.book = book.New(cfg.policy())
	now := store.Monotonic()
	loaded := s.Load(func(r book.Record) { f.book.Load(r, now) }, f.book.Unload)
	if f.rules, err = ruleset.New(f.conn, cfg.Ruleset, cfg.Policy.Allow); err == nil {
		err = f.watch()
	}
	var state ruleset.State
	if err == nil {
		state, err = f.rules.Ensure()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	for i := range f.sets {
		if loaded.SameBoot {
			f.sets[i].filled = loaded.Values[setValue(i)]
		}
	}
	f.removeOld(loaded.Values["names"])
	f.take(state)
	f.book.Sweep(now)
	blocked, remembered := f.book.Len()
	log.Info("table ready", "table", cfg.Ruleset.Table, "blocked", blocked, "remembered", remembered,
		"to_restore", f.book.Refilling(book.IPv4)+f.book.Refilling(book.IPv6))
	f.show()
	return f, nil
}

func setValue(family int) string { return [2]string{"set4", "set6"}[family] }

// Close closes what Open opened. Nothing of the kernel's changes.
func (f *Firewall) Close() {
	f.unwatch()
	f.conn.Close()
}

// removeOld removes what is ours under names that the configuration does not have
// any more.
func (f *Firewall) removeOld(names string) {
	if names != f.cfg.Ruleset.Names() {
		if old, ok := ruleset.ParseNames(names); ok {
			if err := ruleset.Remove(f.conn, old, &f.cfg.Ruleset); err != nil {
				f.log.Error("what the old configuration made is not removed", "table", old.Table, "error", err)
			}
		}
		f.store.Value("names", f.cfg.Ruleset.Names())
	}
}

// turnLimit is how long may pass between two looks at the clock where nothing else
// happens.
const turnLimit = time.Second

// Run is the loop. It ends when hits is closed and what came through it is done, or
// when ctx is done.
func (f *Firewall) Run(ctx context.Context, hits <-chan []hit.Hit) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		f.busy.Store(0)
		select {
		case burst, ok := <-hits:
			f.work(func() { f.hits(burst) })
			if !ok {
				return f.finish(ctx)
			}
		case c := <-f.changes:
			f.work(func() { f.hint(c) })
		case do := <-f.commands:
			f.work(do)
		case <-timer.C:
			f.work(func() {})
		case <-ctx.Done():
			return nil
		}
		f.turn(time.Now())
		timer.Reset(f.next(time.Now()))
	}
}

func (f *Firewall) work(do func()) {
	f.busy.Store(time.Now().UnixNano())
	do()
}

// turn does what there is to do at now, and not much of it.
func (f *Firewall) turn(now time.Time) {
	if now.After(f.sweepAt) {
		f.book.Sweep(store.Monotonic())
		f.sweepAt = now.Add(sweepInterval)
	}
	if f.ensure && !now.Before(f.ensureAt) {
		f.ensureNow(now)
	}
	if !now.Before(f.retryAt) {
		f.push(now)
	}
	f.tellStore()
	f.show()
}

// sweepInterval is how often expired blocks are taken out of the account.
const sweepInterval = 30 * time.Second

// next is how long until there is something to do.
func (f *Firewall) next(now time.Time) time.Duration {
	at := now.Add(turnLimit)
	earlier := func(t time.Time) {
		if t.Before(at) {
			at = t
		}
	}
	if f.ensure {
		earlier(f.ensureAt)
	}
	if f.tell != nil {
		earlier(now)
	}
	for i := range f.sets {
		family := book.Family(i)
		if f.sets[i].id == "" {
			continue
		}
		if f.sets[i].batch > 0 || f.book.Refilling(family) > 0 {
			earlier(f.retryAt)
		} else if len(f.book.Next(family, 1)) > 0 {
			earlier(later(f.retryAt, f.pauseEnd))
		}
	}
	return max(at.Sub(now), 0)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// finish pushes what was received, until ctx is done.
func (f *Firewall) finish(ctx context.Context) error {
	for ctx.Err() == nil && f.book.Waiting(book.IPv4)+f.book.Waiting(book.IPv6) > 0 && f.usable() {
		now := time.Now()
		f.pauseEnd = now
		f.turn(now)
		if wait := f.next(now); wait > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
		}
	}
	for ctx.Err() == nil && (f.store.Wanted() || f.tell != nil) && f.store.Failure() == nil {
		f.tellStore()
	}
	return nil
}

// usable reports whether anything that waits can be pushed.
func (f *Firewall) usable() bool {
	for i := range f.sets {
		if f.sets[i].id != "" && len(f.book.Next(book.Family(i), 1)) > 0 {
			return true
		}
	}
	return f.ensure
}

// hits takes a burst.
func (f *Firewall) hits(burst []hit.Hit) {
	now := store.Monotonic()
	for _, h := range burst {
		decision, seen := f.book.Hit(h, now)
		f.told.decided(h, decision, seen)
		if decision == book.Full {
			f.full(time.Now(), "max_elements", f.cfg.Policy.MaxElements)
		}
	}
}

// ask has the kernel do something in the loop's name. How long that takes is not
// ours to say: another program's transaction may be under way.
func (f *Firewall) ask(do func() error) error {
	now := time.Now().UnixNano()
	f.kernel.Store(now)
	f.busy.Store(0)
	err := do()
	f.busy.Store(time.Now().UnixNano())
	f.kernel.Store(0)
	return err
}

// Do has do done in the loop, between two other things, and waits for it. It
// returns false where the loop has ended.
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
	var state ruleset.State
	err = f.ask(func() (err error) {
		state, err = rules.Ensure()
		return err
	})
	if err != nil {
		return err
	}
	old := f.cfg.Ruleset
	f.cfg, f.rules = cfg, rules
	f.book.SetPolicy(cfg.policy())
	if old.Table != cfg.Ruleset.Table {
		if err := f.watch(); err != nil {
			f.log.Error("changes by others are not heard of", "error", err)
		}
		f.ensure = true
	}
	f.removeOld(old.Names())
	f.take(state)
	return nil
}

// Busy returns for how long the loop has been at one thing, the kernel's part of it
// not counted.
func (f *Firewall) Busy() time.Duration { return since(&f.busy) }

// Waiting returns for how long the loop has been waiting for the kernel.
func (f *Firewall) Waiting() time.Duration { return since(&f.kernel) }

func since(at *atomic.Int64) time.Duration {
	if t := at.Load(); t != 0 {
		return time.Since(time.Unix(0, t))
	}
	return 0
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
	var have, want [2]int
	fmt.Sscanf(release, "%d.%d", &have[0], &have[1])
	fmt.Sscanf(OldestKernel, "%d.%d", &want[0], &want[1])
	if slices.Compare(have[:], want[:]) < 0 {
		return fmt.Errorf("the kernel is Linux %s, and %s or newer is needed", release, OldestKernel)
	}
	return nil
}
