//go:build linux

package firewall

import (
	"fmt"
	"iter"
	"net/netip"
	"time"

	"rblnft/firewall/book"
	"rblnft/firewall/hit"
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

// logDecision logs a hit that does not block its address. One that does is logged
// when the kernel has the element.
func (f *Firewall) logDecision(h hit.Hit, d book.Decision, seen int) {
	switch d {
	case book.Blocked, book.Renewed, book.Kept:
		return
	case book.Full:
		f.fullLog.Do(func() {
			f.log.Warn("a set is full: addresses are left out until others expire", "max_elements", f.cfg.Policy.MaxElements)
		})
	}
	if !f.hasLine() {
		return
	}
	attrs := []any{"addr", h.Addr.String(), "zone", h.Zone, "code", text(h.Code), "decision", string(d)}
	if d == book.Counted {
		attrs = append(attrs, "hits", seen)
	}
	f.log.Info("not blocked", attrs...)
}

// logBlocked says that the kernel drops a client's connections from now on.
func (f *Firewall) logBlocked(p book.Pending, r book.Record, decision book.Decision, left time.Duration) {
	if !f.hasLine() {
		return
	}
	cfg := &f.cfg.Ruleset
	element := cfg.Table.String() + " " + cfg.Blocked[p.Key.Family] + " { " + p.Key.Addr().String() + " }" // for "nft delete element"
	f.log.Info("blocked", "addr", p.Client().String(), "zone", r.Zone, "code", text(p.Code()), "decision", string(decision),
		"prefix", r.Key.Prefix().String(), "timeout", left.Round(time.Second), "expires", time.Now().Add(left).UTC().Format("2006-01-02T15:04:05.000Z"),
		"returns", r.Returns, "batch", f.batches, "element", element)
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

// persist tells the store what is known of an address.
func (f *Firewall) persist(k book.Key) {
	if r, ok := f.book.Get(k); ok {
		f.store.Put(r)
	} else {
		f.store.Drop(k)
	}
}

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
		if r, ok := f.book.Get(k); ok && !f.store.Tell(r) {
			f.tellAt = now.Add(store.Interval)
			return
		}
	}
}

// A Status is how the loop is doing.
type Status struct {
	Blocked, Remembered int
	Waiting             int    // changes that the kernel has not been told of
	Problem             string // what is wrong now, or ""
}

// Status returns the last one, which is of the end of a turn.
func (f *Firewall) Status() Status { return *f.status.Load() }

// show makes the status.
func (f *Firewall) show() {
	s := &Status{Problem: f.problem()}
	s.Blocked, s.Remembered = f.book.Len()
	for i := range f.sets {
		s.Waiting += f.book.Waiting(book.Family(i)) + f.book.Refilling(book.Family(i))
	}
	f.status.Store(s)
}

// problem is what is wrong, the worst first.
func (f *Firewall) problem() string {
	switch {
	case f.unusable != nil:
		return fmt.Sprintf("the table cannot be put right: %v", f.unusable)
	case f.refused != nil:
		return fmt.Sprintf("not committed: %v", f.refused)
	}
	for i, s := range f.sets {
		if s.id == "" && f.cfg.Ruleset.Families()[i] {
			return fmt.Sprintf("there is no set %s in table %s", f.cfg.Ruleset.Blocked[i], f.cfg.Ruleset.Table)
		}
	}
	if f.book.Full() {
		return "max_elements is reached, and others are not blocked"
	}
	if err := f.store.Failure(); err != nil {
		return fmt.Sprintf("not persisted: %v", err)
	}
	return ""
}
