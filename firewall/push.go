//go:build linux

package firewall

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/firewall/book"
	"rblnft/firewall/nft"
	"rblnft/firewall/store"
)

const (
	// perTransaction is how many elements a transaction has at most: more are
	// hardly faster, and a hit waits for them.
	perTransaction = 1000
	// listing is how long nft takes to list a set, for each element. It begins
	// again with every transaction of anybody.
	listing = 20 * time.Microsecond
	// longestPause bounds the wait between two batches: a client needs longer to
	// come back.
	longestPause = 3 * time.Second
	// longestBackoff bounds the wait after a failure.
	longestBackoff = 10 * time.Second
)

// push pushes a transaction for each set that has something to be told: what is
// left of the batch under way or, if the pause is over, a new one; else a part of a
// refill.
func (f *Firewall) push(now time.Time) {
	if f.sets[0].batch == 0 && f.sets[1].batch == 0 && !now.Before(f.pauseEnd) {
		for i := range f.sets {
			f.sets[i].batch = f.book.Waiting(book.Family(i))
		}
		if f.sets[0].batch > 0 || f.sets[1].batch > 0 {
			f.told.batch++
		}
	}
	batch := false
	for i := range f.sets {
		s, family := &f.sets[i], book.Family(i)
		if s.id == "" {
			s.batch = 0
			continue
		}
		if s.batch > 0 {
			batch = true
			f.pushQueue(s, family, now)
		} else if f.book.Refilling(family) > 0 {
			f.pushBulk(s, family, now)
		}
	}
	if batch && f.sets[0].batch == 0 && f.sets[1].batch == 0 {
		f.pauseEnd = time.Now().Add(f.pause())
	}
}

// pause is how long others are left in peace after a batch.
func (f *Firewall) pause() time.Duration {
	blocked, _ := f.book.Len()
	return max(f.cfg.Batch, min(listing*time.Duration(blocked), longestPause))
}

// pushQueue tells the kernel of the first of what waits.
func (f *Firewall) pushQueue(s *set, family book.Family, now time.Time) {
	at := store.Monotonic()
	pending := f.book.Next(family, min(s.size, s.batch))
	if len(pending) == 0 {
		s.batch = 0
		return
	}
	put := make([]nft.Element, 0, len(pending))
	var del []netip.Addr
	for _, p := range pending {
		if r, blocked, _ := f.book.Wants(p.Key, at); blocked {
			put = append(put, element(r, at))
		} else {
			del = append(del, p.Key.Addr())
		}
	}
	err := f.ask(func() error { return f.conn.Apply(f.cfg.Ruleset.Table, s.name, put, del) })
	if err != nil {
		f.refusal(s, family, err, len(pending), now, f.book.Postpone)
		return
	}
	f.succeeded(s)
	s.batch -= len(pending)
	for _, p := range pending {
		r, blocked, had := f.book.Wants(p.Key, at)
		switch {
		case blocked && !p.Restored():
			f.told.blocked(p, r, had, r.Expires.Sub(at), f.elementName(s, p.Key))
		case !blocked && had:
			f.told.unblocked(p)
		}
	}
	done := make([]book.Key, len(pending))
	for i, p := range pending {
		done[i] = p.Key
	}
	f.book.Done(family, len(pending), at)
	for _, k := range done {
		f.persist(k)
	}
}

// element is the element of a record.
func element(r book.Record, now book.Time) nft.Element {
	return nft.Element{Key: r.Key.Addr(), Timeout: r.Expires.Sub(now), Comment: r.Zone}
}

// elementName is an element as "nft delete element" takes it.
func (f *Firewall) elementName(s *set, k book.Key) string {
	return f.cfg.Ruleset.Table.String() + " " + s.name + " { " + k.Addr().String() + " }"
}

// persist tells the store what is known of an address.
func (f *Firewall) persist(k book.Key) {
	if r, ok := f.book.Get(k); ok {
		f.store.Put(r)
	} else {
		f.store.Drop(k)
	}
}

// pushBulk puts a part of a refill into the set.
func (f *Firewall) pushBulk(s *set, family book.Family, now time.Time) {
	at := store.Monotonic()
	keys := f.book.NextBulk(family, s.size, at)
	put := make([]nft.Element, 0, len(keys))
	for _, k := range keys {
		r, _, _ := f.book.Wants(k, at)
		put = append(put, element(r, at))
	}
	err := f.ask(func() error {
		err := f.conn.Add(f.cfg.Ruleset.Table, s.name, put)
		if errors.Is(err, unix.EEXIST) {
			err = f.conn.Apply(f.cfg.Ruleset.Table, s.name, put, nil)
		}
		return err
	})
	if err != nil {
		f.refusal(s, family, err, len(put), now, f.book.QueueBulk)
		return
	}
	f.succeeded(s)
	f.book.DoneBulk(family, len(keys))
	s.restored += len(keys)
	if f.book.Refilling(family) == 0 {
		f.filled(s, family)
	}
}

// filled says that a set has all blocks.
func (f *Firewall) filled(s *set, family book.Family) {
	s.filled = s.id
	f.store.Value(setValue(int(family)), s.id)
	if s.restored > 0 {
		f.log.Info("elements restored", "set", s.name, "restored", s.restored, "took", time.Since(s.began).Round(time.Millisecond))
	}
}

// refusal deals with a transaction of n elements that was not done: half as many may
// fit. One for which a set of the administrator's has no room is for later.
func (f *Firewall) refusal(s *set, family book.Family, err error, n int, now time.Time, later func(book.Family)) {
	full := errors.Is(err, unix.ENFILE)
	if n > 1 && (full || errors.Is(err, unix.EMSGSIZE)) {
		s.size = n / 2
		return
	}
	if full {
		later(family)
		s.batch = max(s.batch-1, 0)
	}
	if f.refused == nil {
		f.log.Error("blocks cannot be committed; they wait, and are tried again", "set", s.name, "waiting", f.book.Waiting(family), "error", err)
	}
	f.refused = err
	f.ensure = true
	f.retryAt = now.Add(min(5*time.Millisecond<<f.failures, longestBackoff))
	f.failures = min(f.failures+1, 20)
}

// full logs that there is no room for more, now and then.
func (f *Firewall) full(now time.Time, attrs ...any) {
	if now.After(f.fullLogged.Add(10 * time.Minute)) {
		f.fullLogged = now
		f.log.Warn("a set is full: addresses are left out until others expire", attrs...)
	}
}

// succeeded is for after a transaction that was done.
func (f *Firewall) succeeded(s *set) {
	if f.refused != nil {
		f.log.Info("blocks can be committed again", "set", s.name)
	}
	f.refused, f.failures = nil, 0
	s.size = min(2*s.size, perTransaction)
}
