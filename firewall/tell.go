//go:build linux

package firewall

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"rblnft/firewall/book"
	"rblnft/firewall/store"
)

const (
	// Of so many hits a second, where they last, each has its line in the log.
	linesPerSecond = 200
	linesAtOnce    = 2000
	// moreInterval is how often it is logged how many others there were.
	moreInterval = 10 * time.Second
	// fullInterval is how often it is logged that there is no room for more.
	fullInterval = 10 * time.Minute
)

// logPushed says what the kernel does from now on: it drops a client's connections,
// or drops them no more.
func (f *Firewall) logPushed(p book.Pending, now book.Time) {
	r, blocked, had := f.book.Wants(p.Key, now)
	if blocked && p.Restored() || !blocked && !had || !f.hasLine() {
		return
	}
	if !blocked {
		f.log.Info("unblocked", "addr", p.Key.Prefix())
		return
	}
	decision := book.Blocked
	if had {
		decision = book.Renewed
	}
	set, left := f.cfg.Ruleset.Blocked[p.Key.Family], r.Expires.Sub(now)
	f.log.Info("blocked", "addr", p.Client().String(), "zone", r.Zone, "code", text(p.Code()), "decision", string(decision),
		"prefix", r.Key.Prefix().String(), "timeout", left.Round(time.Second),
		"expires", time.Now().Add(left).UTC().Format("2006-01-02T15:04:05.000Z"), "returns", r.Returns, "batch", f.batches+1,
		"element", fmt.Sprintf("%s %s { %s }", f.cfg.Ruleset.Table, set, p.Key.Addr())) // as "nft delete element" takes it
}

// hasLine reports whether another hit may have a line in the log.
func (f *Firewall) hasLine() bool {
	ok := f.lines.Allow()
	if !ok {
		f.unlogged++
	}
	if f.unlogged > 0 {
		f.moreLog.Do(func() {
			f.log.Info("more hits than are logged one by one", "more", f.unlogged)
			f.unlogged = 0
		})
	}
	return ok
}

func text(code netip.Addr) string {
	if !code.IsValid() {
		return "-"
	}
	return code.String()
}

// setValue are the names of the store's values that say which sets are filled.
var setValue = [2]string{"set4", "set6"}

// tellStore tells the store a part of everything that it is to have in a new file.
// While the disk is behind it waits.
func (f *Firewall) tellStore(now time.Time) {
	if now.Before(f.tellAt) || f.tell == nil && !f.store.Wanted() {
		return
	}
	if f.tell == nil {
		f.store.Begin()
		f.store.Value("names", f.names)
		for i, s := range f.sets {
			f.store.Value(setValue[i], s.filled)
		}
		f.tell, _ = iter.Pull(f.book.Keys())
	}
	const part = 500
	for range part {
		k, ok := f.tell()
		if !ok {
			f.store.End()
			f.tell = nil
			return
		}
		// Of what is dirty it hears when the kernel has been told.
		if r, ok := f.book.Get(k); ok && !f.book.Dirty(k) && !f.store.Tell(r) {
			f.tellAt = now.Add(store.Interval)
			return
		}
	}
}

// A Status is how the loop is doing.
type Status struct {
	Blocked, Remembered int    // addresses
	Waiting             int    // changes that the kernel has not been told of
	Problem             string // what is wrong now, the worst of it, or ""
}

// Status returns the last one, which is of the end of a turn.
func (f *Firewall) Status() Status { return *f.status.Load() }

// show makes the status.
func (f *Firewall) show() {
	var s Status
	s.Blocked, s.Remembered = f.book.Len()
	var unusable, refused, missing, full, stored string
	if f.unusable != nil {
		unusable = fmt.Sprintf("the table cannot be put right: %v", f.unusable)
	}
	for i, set := range f.sets {
		s.Waiting += f.book.Waiting(book.Family(i)) + f.book.Refilling(book.Family(i))
		if set.refused != nil && set.id != "" {
			refused = fmt.Sprintf("not committed: %v", set.refused)
		}
		if set.id == "" && f.cfg.Ruleset.Families()[i] && missing == "" {
			missing = fmt.Sprintf("there is no set %s in table %s", f.cfg.Ruleset.Blocked[i], f.cfg.Ruleset.Table)
		}
	}
	if f.book.Full() {
		full = "max_elements is reached, and others are not blocked"
	}
	if err := f.store.Failure(); err != nil {
		stored = fmt.Sprintf("not persisted: %v", err)
	}
	s.Problem = cmp.Or(unusable, refused, missing, full, stored)
	f.status.Store(&s)
}
