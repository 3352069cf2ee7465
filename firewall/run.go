package firewall

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
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
	transactions := make(chan transaction, 16)
	w := &watch{
		t: t, state: state,
		// Who keeps changing the table is answered ten times a second, and
		// no more often.
		often:    rate.NewLimiter(rate.Every(100*time.Millisecond), 20),
		compared: make(chan comparison, 1),
	}
	var others sync.WaitGroup
	others.Go(func() { t.listener.run(ctx.Done(), transactions) })
	defer func() {
		cancel()
		// Wakes the listener, which sees that ctx is done.
		t.listener.nl.SetReadDeadline(time.Unix(1, 0))
		others.Wait()
		if w.stopComparing != nil {
			w.stopComparing()
			<-w.compared
		}
	}()
	for {
		var tx transaction
		select {
		case <-ctx.Done():
			return nil
		case <-w.compare:
			w.startComparing(ctx)
			continue
		case c := <-w.compared:
			w.finishComparing(ctx, c)
			continue
		case <-t.wake:
			t.checkStructure()
		case tx = <-transactions:
		}
		// What is put back is what state has when it knows all that was heard.
		for heard := true; heard; {
			if err := w.heard(ctx, tx); err != nil {
				return err
			}
			select {
			case tx = <-transactions:
			default:
				heard = false
			}
		}
		missed, err := t.restore(ctx, state)
		if err != nil {
			return err
		}
		more, err := t.takeMissed()
		if err != nil {
			return err
		}
		if missed || more {
			w.compareSoon()
		}
	}
}

const (
	// compareEvery is how often all elements are compared at most.
	compareEvery = 10 * time.Second
	// tryAgain is after how long that is tried again which failed.
	tryAgain = time.Second
)

// A watch is what Run has to remember.
type watch struct {
	t     *Table
	state State
	often *rate.Limiter

	compare       <-chan time.Time // when it is time to compare; nil: it need not be done
	notBefore     time.Time
	stopComparing context.CancelFunc // nil: no comparison is under way
	compared      chan comparison
}

// heard deals with a transaction, which may be an empty one. Its error means
// that the listener has failed.
func (w *watch) heard(ctx context.Context, tx transaction) error {
	t := w.t
	if tx.err != nil {
		return tx.err
	}
	if tx.lost {
		t.log.Warn("notifications of changes were lost: all elements will be compared", "table", t.String())
		w.compareSoon()
	}
	if tx.structure || tx.lost {
		if w.often.Wait(ctx) != nil {
			return nil
		}
		if tx.structure && t.cfg.Rules {
			t.log.Info("the table was changed", "table", t.String(), "by", tx.by)
		}
		t.checkStructure()
	}
	t.tell(ctx, tx, w.state)
	return nil
}

// compareSoon has all elements compared, when it is time.
func (w *watch) compareSoon() {
	if w.compare == nil {
		w.compare = time.After(max(0, time.Until(w.notBefore)))
	}
}

// startComparing compares all elements, beside all else that Run does.
func (w *watch) startComparing(ctx context.Context) {
	w.compare = nil
	if w.stopComparing != nil {
		w.notBefore = time.Now().Add(tryAgain)
		w.compareSoon()
		return
	}
	ctx, w.stopComparing = context.WithCancel(ctx)
	go func() { w.compared <- w.t.compareElements(ctx, w.state) }()
}

// finishComparing tells state what a comparison found.
func (w *watch) finishComparing(ctx context.Context, c comparison) {
	w.stopComparing()
	w.stopComparing = nil
	// A set that takes long is not compared all the time.
	w.notBefore = time.Now().Add(max(compareEvery, 10*c.took))
	t := w.t
	if c.err != nil || c.partial {
		w.compareSoon()
	}
	if c.err != nil {
		if ctx.Err() == nil {
			t.log.Error("the elements cannot be compared", "table", t.String(), "error", c.err)
		}
		return
	}
	w.state.Compared(c.missing, c.added)
	t.log.Info("elements compared", "table", t.String(), "added", len(c.added), "deleted", len(c.missing), "took", c.took.Round(time.Millisecond))
}

// poke wakes Run, which then looks at the table and fills what is stale.
func (t *Table) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// checkStructure puts back what somebody changed of the table.
func (t *Table) checkStructure() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.stand(false); err != nil {
		t.log.Error("the table cannot be put right; it will be tried again", "table", t.String(), "error", err)
		time.AfterFunc(tryAgain, t.poke)
	}
}

// tell tells state of elements that somebody added or deleted.
func (t *Table) tell(ctx context.Context, tx transaction, state State) {
	for _, s := range t.sets {
		var added, removed []Block
		for _, change := range tx.elements {
			if change.set != s.name {
				continue
			}
			for _, e := range change.elements {
				b, ok := e.block(change.at)
				switch {
				case !ok:
				case !change.added:
					removed = append(removed, b)
				case t.widen(ctx, s, e, b):
					added = append(added, b)
				}
			}
		}
		if len(removed) > 0 {
			// Somebody may have blocked it again by now, we perhaps.
			gone, err := t.missing(ctx, s, slices.Values(removed))
			if err != nil {
				gone = removed
			}
			prefixes := make(map[netip.Prefix]bool, len(gone))
			for _, b := range gone {
				prefixes[b.Prefix] = true
			}
			// It may have been added in the same transaction.
			added = slices.DeleteFunc(added, func(b Block) bool { return prefixes[b.Prefix] })
			state.Removed(slices.Collect(maps.Keys(prefixes))...)
		}
		if len(added) > 0 {
			state.Added(added...)
		}
	}
}

// widen replaces an element that somebody added to blocked6 for a single
// address, which no packet would ever match, by its /64, and reports whether
// there is anything new in that.
func (t *Table) widen(ctx context.Context, s *blockedSet, e element, b Block) (news bool) {
	addr, _ := netip.AddrFromSlice(e.key)
	if addr == b.Prefix.Addr() {
		return true
	}
	missing, err := t.missing(ctx, s, slices.Values([]Block{b}))
	news = err != nil || len(missing) > 0
	if err == nil && news {
		err = t.apply(ctx, s, renew, []change{{key: b.Prefix.Addr(), timeout: e.expires, comment: e.comment}})
	}
	if err == nil {
		err = t.apply(ctx, s, remove, []change{{key: addr}})
	}
	if err != nil {
		t.log.Error("an address was added that should stand for its network", "network", b.Prefix, "error", err)
		return news
	}
	t.log.Info("an address was added, and stands for its network", "set", s.name, "address", addr, "network", b.Prefix)
	return news
}

// restore fills the sets that are stale, and reports whether changes may have
// been missed meanwhile. Its error means that the listener has failed.
func (t *Table) restore(ctx context.Context, state State) (missed bool, err error) {
	for range attempts {
		again, more, err := t.refillUnheard(ctx, state)
		if err != nil {
			return false, err
		}
		if more {
			missed = true
			t.checkStructure()
		}
		if !again && !more || ctx.Err() != nil {
			return missed, nil
		}
	}
	// Somebody keeps changing it. Others have their turn first.
	time.AfterFunc(tryAgain, t.poke)
	return missed, nil
}

// refillUnheard fills the sets that are stale while the listener is not
// listening.
func (t *Table) refillUnheard(ctx context.Context, state State) (again, missed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.anyStale() {
		return false, false, nil
	}
	more, err := t.unheard(func() { again, missed = t.refill(ctx, state) })
	return again, missed || more, err
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
	// A set that was made anew meanwhile has to be filled from the start; the
	// other one goes on.
	passOver := func() {
		for i, f := range sets {
			if f != nil && f.set.identity != f.identity {
				sets[i], again = nil, true
			}
		}
	}
	t.unblocked = map[netip.Addr]bool{}
	defer func() { t.unblocked = nil }()
	start := time.Now()
	now := start
	transactions := 0
	for b := range state.Blocks() {
		f := sets[familyOf(b.Prefix)]
		if f == nil {
			continue
		}
		c, inForce, err := changeTo(&b, now)
		if err != nil {
			t.log.Error("a block that cannot be restored", "error", err)
			continue
		}
		if !inForce {
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
		if passOver(); ctx.Err() != nil || sets == [2]*filling{} {
			break
		}
		// Commits have waited long enough.
		t.mu.Unlock()
		t.mu.Lock()
		now = time.Now()
	}
	for _, f := range sets {
		if f != nil {
			t.add(ctx, f)
		}
	}
	t.unblockAgain(ctx)
	if ctx.Err() != nil {
		return false, missed
	}
	passOver()
	for _, f := range sets {
		if f == nil {
			continue
		}
		if f.err != nil {
			t.log.Error("elements cannot be restored; it will be tried again",
				"table", t.String(), "set", f.set.name, "restored", f.n, "error", f.err)
			time.AfterFunc(tryAgain, t.poke)
			continue
		}
		f.set.stale, f.set.crowded = false, f.full > 0
		if f.n > 0 {
			t.log.Info("elements restored", "table", t.String(), "set", f.set.name,
				"restored", f.n, "no_room", f.full, "took", time.Since(start))
		}
	}
	return again, missed
}

// unblockAgain removes what was removed since refill began, as refill may have
// put it back.
func (t *Table) unblockAgain(ctx context.Context) {
	for _, s := range t.sets {
		var todo []change
		for key := range t.unblocked {
			if key.Is6() == s.v6 {
				todo = append(todo, change{key: key})
			}
		}
		for part := range slices.Chunk(todo, perTransaction) {
			if _, err := t.applyLocked(ctx, s, remove, part); err != nil && ctx.Err() == nil {
				t.log.Error("elements that were removed may be back", "set", s.name, "error", err)
			}
		}
	}
}

// lookAfterOthers puts the table right if others changed something since the
// mark, which it moves, and reports whether they did.
func (t *Table) lookAfterOthers() bool {
	if !t.othersChanged() {
		return false
	}
	t.markGeneration()
	if err := t.stand(false); err != nil {
		t.log.Error("the table cannot be put right", "table", t.String(), "error", err)
	}
	return true
}
