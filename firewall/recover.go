//go:build linux

package firewall

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"rblnft/firewall/book"
	"rblnft/firewall/nft"
	"rblnft/firewall/ruleset"
	"rblnft/firewall/store"
)

const (
	// ensureInterval is how often at most the ruleset is put right.
	ensureInterval = 100 * time.Millisecond
	// ensureRetry is how often that is tried where something is in the way, if
	// nothing changes.
	ensureRetry = 10 * time.Second
	// watchRetry is the pause after the watch has failed.
	watchRetry = time.Second
)

// watch hears what others change of a table, until unwatch.
func (f *Firewall) watch(at nft.Table) error {
	w, err := nft.Watch(at, f.conn.Port())
	if err != nil {
		return err
	}
	f.unwatch()
	ctx, cancel := context.WithCancel(context.Background())
	f.unwatch = func() {
		cancel()
		w.Close()
	}
	go func() {
		for {
			c, err := w.Receive()
			if err != nil && ctx.Err() == nil {
				c = nft.Change{Lost: true}
				time.Sleep(watchRetry)
			}
			select {
			case <-ctx.Done():
				return
			case f.changes <- c:
			}
		}
	}()
	return nil
}

// ensureSoon has the ruleset looked at.
func (f *Firewall) ensureSoon() { f.ensureAt = f.ensured.Add(ensureInterval) }

// doubt has everything but the blocks looked at, or written anew.
func (f *Firewall) doubt() {
	f.ensureSoon()
	for _, name := range f.cfg.Ruleset.Allowed {
		f.rules.Touched(name)
	}
}

// hint deals with what somebody else changed.
func (f *Firewall) hint(c nft.Change) {
	if c.By != "" {
		f.by = c.By
	}
	if c.Structure {
		f.ensureSoon()
	}
	if c.Lost {
		f.doubt()
	}
	var deleted [2][]netip.Addr
	for _, e := range c.Elements {
		if f.rules.Touched(e.Set) {
			f.ensureSoon()
		}
		k := book.KeyOf(e.Key)
		if e.Deleted && e.Set == f.cfg.Ruleset.Blocked[k.Family] && k.Addr() == e.Key {
			deleted[k.Family] = append(deleted[k.Family], e.Key)
		}
	}
	for family, keys := range deleted {
		if len(keys) > 0 && f.sets[family].id != "" {
			f.forget(f.cfg.Ruleset.Blocked[family], keys, c.By)
		}
	}
}

// forget forgets those blocks of which the set has no element any more.
func (f *Firewall) forget(set string, keys []netip.Addr, by string) {
	f.busy(true)
	found, err := f.conn.Ask(f.cfg.Ruleset.Table, set, keys)
	f.busy(false)
	if err != nil {
		f.ensureSoon() // the set may be gone
		return
	}
	const message, few = "element deleted by somebody else: forgotten", 20
	forgotten := 0
	for i, addr := range keys {
		k := book.KeyOf(addr)
		if found[i] || !f.book.Forget(k, store.Monotonic()) {
			continue
		}
		f.store.Drop(k)
		if forgotten++; forgotten <= few {
			f.log.Info(message, "addr", k.Prefix(), "set", set, "by", by)
		}
	}
	if forgotten > few {
		f.log.Info(message, "more", forgotten-few, "set", set, "by", by)
	}
}

// ensure puts the ruleset right.
func (f *Firewall) ensure(now time.Time) {
	f.busy(true)
	state, err := f.rules.Ensure()
	f.busy(false)
	f.ensured = now
	if err != nil {
		if f.unusable == nil || f.unusable.Error() != err.Error() {
			f.log.Error("the table cannot be put right", "error", err, "by", f.by)
		}
		f.unusable = err
		for i := range f.sets {
			f.sets[i].id, f.sets[i].batch = "", 0
		}
		f.ensureSoon()
		var inTheWay *ruleset.InTheWay
		if errors.As(err, &inTheWay) {
			f.ensureAt = now.Add(ensureRetry) // or when it changes
		}
		return
	}
	if len(state.Found) > 0 {
		f.log.Warn("the table is not as it should be: put right",
			"table", f.cfg.Ruleset.Table, "found", strings.Join(state.Found, ", "), "by", f.by)
	}
	f.by, f.ensureAt = "", time.Time{}
	f.take(state)
}

// take takes note of which sets there are. One that is not the one that was told
// everything is filled.
func (f *Firewall) take(state ruleset.State) {
	f.unusable = nil
	for i := range f.sets {
		s, family, known := &f.sets[i], book.Family(i), f.sets[i].id
		f.book.Limit(family, state.Size[i])
		if s.id = state.Set[i]; s.id == "" || !f.cfg.Ruleset.Families()[i] {
			s.id, s.batch = "", 0
			continue
		}
		if s.id != s.filled && s.id != known {
			s.filled, s.restored, s.began, s.retryAt = "", 0, time.Now(), time.Time{}
			f.book.Refill(family, store.Monotonic())
		}
	}
}
