package firewall

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"
)

// settle is how long an element is missing before it counts as deleted, where
// notifications were lost: a commit may be under way.
const settle = 200 * time.Millisecond

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
			t.restore(ctx, state)
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
			t.restore(ctx, state)
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

// restore fills the sets that are stale, IPv4 first.
func (t *Table) restore(ctx context.Context, state State) {
	for range attempts {
		again := false
		for i, s := range t.sets {
			if t.isStale(s) {
				again = t.refill(ctx, i, state) || again
			}
		}
		if !again {
			return
		}
	}
}

func (t *Table) isStale(s *blockedSet) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return s.stale && s.problem == nil
}

// refill puts all of state's blocks of one family into their set, and reports
// whether that has to be done again.
func (t *Table) refill(ctx context.Context, family int, state State) (again bool) {
	s := t.sets[family]
	t.mu.Lock()
	defer t.mu.Unlock()
	started, filling, n := time.Now(), s.identity, 0
	var firstErr error
	todo := make([]change, 0, perTransaction)
	flush := func() {
		err := t.applyLocked(ctx, s, fill, todo)
		if err == nil {
			n += len(todo)
		} else if firstErr == nil {
			firstErr = err
		}
		todo = todo[:0]
	}
	now := time.Now()
	for b := range state.Blocks() {
		if familyOf(b.Prefix) != family {
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
		todo = append(todo, c)
		if len(todo) < perTransaction {
			continue
		}
		flush()
		if ctx.Err() != nil || s.identity != filling {
			break
		}
		// Blocks that are new have waited long enough.
		t.mu.Unlock()
		t.mu.Lock()
		now = time.Now()
	}
	flush()
	if ctx.Err() != nil {
		return false
	}
	if s.identity != filling {
		return true
	}
	s.stale = false
	level := t.log.Info
	if firstErr != nil {
		level = t.log.Error
	}
	level("elements restored", "table", t.String(), "set", s.name, "elements", n, "took", time.Since(started), "error", firstErr)
	return false
}

// compareElements tells state how the sets differ from it.
func (t *Table) compareElements(ctx context.Context, state State) {
	missing, added, err := t.difference(state)
	if err == nil && len(missing) > 0 {
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
		}
		var still []netip.Prefix
		if still, _, err = t.difference(state); err == nil {
			gone := make(map[netip.Prefix]bool, len(still))
			for _, p := range still {
				gone[p] = true
			}
			missing = slices.DeleteFunc(missing, func(p netip.Prefix) bool { return !gone[p] })
		}
	}
	if err != nil {
		t.log.Error("the elements cannot be compared", "table", t.String(), "error", err)
		return
	}
	for _, b := range added {
		state.Added(b)
	}
	for _, p := range missing {
		state.Removed(p)
	}
	t.log.Info("elements compared", "table", t.String(), "added", len(added), "deleted", len(missing))
}

// difference returns the blocks that are in state and in no set, and those
// that are in a set and not in state. Sets that wait for being filled, or that
// are not there, are passed over.
func (t *Table) difference(state State) (missing []netip.Prefix, added []Block, err error) {
	for i, s := range t.sets {
		t.mu.Lock()
		skip := s.stale || s.problem != nil
		t.mu.Unlock()
		if skip {
			continue
		}
		blocks, err := readBlocks(t.at, s.name)
		if err != nil {
			return nil, nil, err
		}
		have := make(map[netip.Prefix]int, len(blocks))
		for n, b := range blocks {
			have[b.Prefix] = n
		}
		for b := range state.Blocks() {
			if familyOf(b.Prefix) != i {
				continue
			}
			if _, ok := have[b.Prefix]; ok {
				delete(have, b.Prefix)
			} else {
				missing = append(missing, b.Prefix)
			}
		}
		for _, n := range have {
			added = append(added, blocks[n])
		}
	}
	return missing, added, nil
}
