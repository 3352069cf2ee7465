//go:build linux

package firewall

import (
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"rblnft/firewall/book"
	"rblnft/firewall/nft"
	"rblnft/firewall/ruleset"
	"rblnft/firewall/store"
)

const (
	// ensureInterval is how often at most the ruleset is put right.
	ensureInterval = 100 * time.Millisecond
	// ensureRetry is how often it is tried where that fails, if nothing changes.
	ensureRetry = 10 * time.Second
	// watchRetry is the pause before the watch is begun again.
	watchRetry = time.Second
)

// watch begins to hear what others change of the table, and goes on until unwatch.
func (f *Firewall) watch() error {
	f.unwatch()
	at := f.cfg.Ruleset.Table
	own := f.conn.Port()
	w, err := nft.Watch(at, own)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	var current atomic.Pointer[nft.Watcher]
	current.Store(w)
	f.unwatch = func() {
		close(done)
		current.Load().Close()
		f.unwatch = func() {}
	}
	to := f.changes
	go func() {
		for {
			c, err := current.Load().Receive()
			if err != nil {
				// Begin again, and have everything looked at.
				select {
				case <-done:
					return
				case <-time.After(watchRetry):
				}
				current.Load().Close()
				if w, err := nft.Watch(at, own); err == nil {
					current.Store(w)
				}
				c = nft.Change{Lost: true}
			}
			select {
			case to <- c:
			case <-done:
				return
			}
		}
	}()
	return nil
}

// hint deals with what somebody else changed.
func (f *Firewall) hint(c nft.Change) {
	if c.Structure || c.Lost {
		f.ensure = true
		f.ensureAt = f.ensured.Add(ensureInterval)
	}
	if c.By != "" {
		f.by = c.By
	}
	if c.Lost {
		for _, name := range f.cfg.Ruleset.Allowed {
			f.rules.Touched(name)
		}
	}
	var deleted [2][]netip.Addr
	for _, e := range c.Elements {
		for i, s := range f.sets {
			if e.Set == s.name && e.Deleted && book.KeyOf(e.Key).Addr() == e.Key && book.KeyOf(e.Key).Family == book.Family(i) {
				deleted[i] = append(deleted[i], e.Key)
			}
		}
		if f.rules.Touched(e.Set) {
			f.ensure = true
		}
	}
	for i := range deleted {
		if len(deleted[i]) > 0 && f.sets[i].id != "" {
			f.forget(&f.sets[i], deleted[i], c.By)
		}
	}
}

// forget forgets those blocks of which the set has no element any more.
func (f *Firewall) forget(s *set, keys []netip.Addr, by string) {
	var found []bool
	err := f.ask(func() (err error) {
		found, err = f.conn.Ask(f.cfg.Ruleset.Table, s.name, keys)
		return err
	})
	if err != nil {
		f.ensure = true // the set may be gone
		return
	}
	const few = 20
	forgotten := 0
	for i, addr := range keys {
		k := book.KeyOf(addr)
		if found[i] || !f.book.Forget(k, store.Monotonic()) {
			continue
		}
		f.store.Drop(k)
		if forgotten++; forgotten <= few {
			f.log.Info("element deleted by somebody else: forgotten", "addr", k.Prefix(), "set", s.name, "by", by)
		}
	}
	if forgotten > few {
		f.log.Info("element deleted by somebody else: forgotten", "more", forgotten-few, "set", s.name, "by", by)
	}
}

// ensureNow puts the ruleset right.
func (f *Firewall) ensureNow(now time.Time) {
	f.ensure = false
	var state ruleset.State
	err := f.ask(func() (err error) {
		state, err = f.rules.Ensure()
		return err
	})
	f.ensured, f.ensureAt = now, now.Add(ensureInterval)
	if err != nil {
		if f.unusable == nil || f.unusable.Error() != err.Error() {
			f.log.Error("the table cannot be put right", "error", err, "by", f.by)
		}
		f.unusable = err
		for i := range f.sets {
			f.sets[i].id = ""
		}
		f.ensure = true
		var inTheWay *ruleset.InTheWay
		if errors.As(err, &inTheWay) {
			f.ensureAt = now.Add(ensureRetry) // or when it changes
		}
		return
	}
	f.unusable = nil
	if len(state.Found) > 0 {
		f.log.Warn("the table is not as it should be: put right", "table", f.cfg.Ruleset.Table, "found", strings.Join(state.Found, ", "), "by", f.by)
	}
	f.by = ""
	f.take(state)
}

// take takes note of which sets there are. One that is not the one that was told
// everything is filled.
func (f *Firewall) take(state ruleset.State) {
	now := store.Monotonic()
	for i := range f.sets {
		s, family := &f.sets[i], book.Family(i)
		s.name = f.cfg.Ruleset.Blocked[i]
		id := state.Set[i]
		if !f.cfg.Ruleset.Families()[i] {
			id = ""
		}
		f.book.Limit(family, state.Size[i])
		known := s.id
		s.id = id
		if s.size == 0 {
			s.size = perTransaction
		}
		if id == "" || id == s.filled || id == known && f.book.Refilling(family) > 0 {
			continue
		}
		s.restored, s.began, s.filled = 0, time.Now(), ""
		f.book.Refill(family, now)
		if f.book.Refilling(family) == 0 {
			f.filled(s, family)
		}
	}
}
