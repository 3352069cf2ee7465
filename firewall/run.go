package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"
)

// Run watches what others do to the table, until ctx is done. A table, set,
// chain or rule that is changed or removed is put back at once, and its
// elements are restored from state. Elements that others add to or delete from
// the sets of blocked addresses are left as they are, and told to state.
//
// Sets that Open had to make are empty: Run fills them from state first.
//
// Run returns nil when ctx is done, and an error when the kernel's
// notifications can no longer be received. It may run once.
func (t *Table) Run(ctx context.Context, state State) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	transactions := make(chan transaction, 16)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		t.listener.run(ctx.Done(), transactions)
	}()
	defer func() {
		// Wakes the listener, which sees that ctx is done.
		t.listener.nl.SetReadDeadline(time.Unix(1, 0))
		<-stopped
	}()

	// Who keeps changing the table is answered ten times a second, and no
	// more often.
	often := rate.NewLimiter(rate.Every(100*time.Millisecond), 20)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake:
			if err := t.restore(ctx, state); err != nil {
				return err
			}
		case tx := <-transactions:
			if tx.err != nil {
				return tx.err
			}
			if tx.lost {
				t.log.Warn("notifications of changes were lost: comparing all elements", "table", t.String())
			}
			if tx.structure || tx.lost {
				if often.Wait(ctx) != nil {
					return nil
				}
				t.checkStructure(tx.by)
			}
			t.tell(ctx, tx, state)
			if tx.lost {
				t.compareElements(ctx, state)
			}
			if err := t.restore(ctx, state); err != nil {
				return err
			}
		}
	}
}

// checkStructure puts back what somebody changed of the table.
func (t *Table) checkStructure(by string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if by != "" {
		t.log.Info("the table was changed", "table", t.String(), "by", by)
	}
	if err := t.stand(false); err != nil {
		t.log.Error("the table cannot be put right", "table", t.String(), "error", err)
		return
	}
}

// tell tells state of elements that somebody added or deleted.
func (t *Table) tell(ctx context.Context, tx transaction, state State) {
	for _, change := range tx.elements {
		i := slices.IndexFunc(t.sets[:], func(s *blockedSet) bool { return s.name == change.set })
		if i < 0 {
			continue
		}
		for _, e := range change.elements {
			b, ok := e.block(change.at)
			if !ok {
				continue
			}
			if !change.added {
				state.Removed(b.Prefix)
				continue
			}
			state.Added(b)
			t.widen(ctx, t.sets[i], e, b)
		}
	}
}

// widen replaces an element that somebody added to blocked6 for a single
// address, which no packet would ever match, by its /64.
func (t *Table) widen(ctx context.Context, s *blockedSet, e element, b Block) {
	addr, _ := netip.AddrFromSlice(e.key)
	if addr == b.Prefix.Addr() {
		return
	}
	err := t.apply(ctx, s, renew, []change{{key: b.Prefix.Addr(), timeout: e.expires, comment: e.comment}})
	if err == nil {
		err = t.apply(ctx, s, remove, []change{{key: addr}})
	}
	t.log.Info("an address was added, and stands for its network", "set", s.name, "address", addr, "network", b.Prefix, "error", err)
}

// restore fills the sets that are stale. Its error means that the listener has
// failed.
func (t *Table) restore(ctx context.Context, state State) error {
	for range attempts {
		again, missed, err := t.refillUnheard(ctx, state)
		if err != nil {
			return err
		}
		if missed {
			t.checkStructure("")
			t.compareElements(ctx, state)
		}
		if !again && !missed || ctx.Err() != nil {
			break
		}
	}
	return nil
}

// refillUnheard fills the sets that are stale while the listener is not
// listening: the kernel composes a notification for every element even if the
// only listener wants none of them, and needs more time for that than for
// adding the element. Whether there were changes that others made meanwhile is
// seen from the generation of the ruleset.
func (t *Table) refillUnheard(ctx context.Context, state State) (again, missed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.anyStale() {
		return false, false, nil
	}
	if err := t.markGeneration(); err != nil {
		return false, false, err
	}
	if err := t.listener.leave(); err != nil {
		return false, false, fmt.Errorf("stop listening for changes: %w", err)
	}
	again, missed = t.refill(ctx, state)
	if err := t.listener.join(); err != nil {
		return false, false, fmt.Errorf("listen for changes: %w", err)
	}
	more, err := t.othersChanged()
	return again, missed || more, err
}

// A mark is a generation of the ruleset, and how many transactions we had done
// by then.
type mark struct{ generation, done uint32 }

// markGeneration remembers the present generation for othersChanged.
func (t *Table) markGeneration() error {
	generation, err := readGeneration()
	t.mark = mark{generation, t.conn.done}
	t.conn.vague = false
	return err
}

// othersChanged reports whether transactions were done since the mark that were
// not ours, or may not have been.
func (t *Table) othersChanged() (bool, error) {
	generation, err := readGeneration()
	return t.conn.vague || generation-t.mark.generation != t.conn.done-t.mark.done, err
}

// anyStale reports whether there is a set to be filled.
func (t *Table) anyStale() bool {
	return slices.ContainsFunc(t.sets[:], func(s *blockedSet) bool { return s.stale && s.problem == nil })
}

// A filling is a set that is being filled.
type filling struct {
	set      *blockedSet
	identity identity // the one that it had when it was empty
	todo     []change
	n        int   // elements that are in
	full     int   // those that there was no room for
	err      error // the first one
}

// add does what is to do for the filling.
func (t *Table) add(ctx context.Context, f *filling) {
	full, err := t.applyLocked(ctx, f.set, fill, f.todo)
	if err == nil {
		f.n += len(f.todo) - full
		f.full += full
	} else if f.err == nil {
		f.err = err
	}
	f.todo = f.todo[:0]
}

// lookEvery is after how many transactions refill looks what others do.
const lookEvery = 20

// refill puts all of state's blocks into the sets that are stale. It reports
// whether a set was made anew meanwhile, and whether others made changes.
func (t *Table) refill(ctx context.Context, state State) (again, missed bool) {
	var sets [2]*filling
	for i, s := range t.sets {
		if s.stale && s.problem == nil {
			sets[i] = &filling{set: s, identity: s.identity, todo: make([]change, 0, perTransaction)}
		}
	}
	start := time.Now()
	now := start
	transactions := 0
	for b := range state.Blocks() {
		f := sets[familyOf(b.Prefix)]
		if f == nil {
			continue
		}
		c, err := changeTo(b, now)
		if err != nil {
			t.log.Error("a block that cannot be restored", "error", err)
			continue
		}
		if b.Expires.IsZero() {
			c.timeout = 0
		} else if c.timeout <= 0 {
			continue
		}
		f.todo = append(f.todo, c)
		if len(f.todo) < perTransaction {
			continue
		}
		t.add(ctx, f)
		if transactions++; transactions%lookEvery == 0 && t.lookAfterOthers() {
			missed = true
		}
		if ctx.Err() != nil || f.set.identity != f.identity {
			break
		}
		// Commits have waited long enough.
		t.mu.Unlock()
		t.mu.Lock()
		now = time.Now()
	}
	for _, f := range sets {
		if f == nil {
			continue
		}
		if t.add(ctx, f); ctx.Err() != nil {
			return false, missed
		}
		if f.set.identity != f.identity {
			again = true
			continue
		}
		f.set.stale = false
		level := slog.LevelInfo
		switch {
		case f.err != nil || f.full > 0:
			level = slog.LevelError
		case f.n == 0:
			level = slog.LevelDebug
		}
		t.log.Log(ctx, level, "elements restored", "table", t.String(), "set", f.set.name, "elements", f.n, "no_room", f.full, "took", time.Since(start), "error", f.err)
	}
	return again, missed
}

// lookAfterOthers puts the table right if others changed something since the
// mark, which it moves, and reports whether they did.
func (t *Table) lookAfterOthers() bool {
	changed, err := t.othersChanged()
	if err == nil && changed {
		err = errors.Join(t.stand(false), t.markGeneration())
	}
	if err != nil {
		t.log.Error("the table cannot be put right", "table", t.String(), "error", err)
	}
	return changed || err != nil
}
