//go:build linux

package firewall

import (
	"fmt"
	"maps"

	"rblnft/firewall/book"
)

// A Status is how the loop is doing.
type Status struct {
	Blocked, Remembered int
	Waiting             int                      // changes that the kernel has not been told of
	Decided             map[book.Decision]uint64 // hits
	Problem             string                   // what is wrong now, or ""
}

// Status returns the last one, which is of the end of a turn.
func (f *Firewall) Status() Status { return *f.status.Load() }

// show makes the status.
func (f *Firewall) show() {
	s := &Status{Decided: maps.Clone(f.told.counts), Problem: f.problem()}
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
			return fmt.Sprintf("there is no set %s in table %s", s.name, f.cfg.Ruleset.Table)
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
