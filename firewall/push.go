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
	// Between these is the wait after a failure.
	shortestBackoff = 5 * time.Millisecond
	longestBackoff  = 10 * time.Second
)

// push pushes a transaction for each set that has something to be told: what is left
// of its batch or, if the pause is over, of a new one; else a part of a refill.
func (f *Firewall) push(now time.Time) {
	pushed := false
	for i := range f.sets {
		s, family := &f.sets[i], book.Family(i)
		if s.id == "" || now.Before(s.retryAt) {
			continue
		}
		if s.batch == 0 && !now.Before(f.pauseEnd) {
			s.batch = f.book.Waiting(family)
		}
		if s.batch > 0 {
			pushed = f.pushSet(s, family, now) || pushed
		} else if f.book.Refilling(family) > 0 {
			f.pushSet(s, family, now)
		}
		// What a refill left to the queue has to be told too.
		if s.filled != s.id && f.book.Refilling(family)+f.book.Waiting(family) == 0 {
			s.filled = s.id
			f.store.Value(setValue[i], s.id)
		}
	}
	if pushed && f.sets[0].batch+f.sets[1].batch == 0 {
		f.pauseEnd = time.Now().Add(f.pause())
		f.batches++
	}
}

// pause is how long others are left in peace after a batch.
func (f *Firewall) pause() time.Duration {
	blocked, _ := f.book.Len()
	return max(f.cfg.Batch, min(listing*time.Duration(blocked), longestPause))
}

// pushSet tells the kernel of the first of what waits, or of a refill. It reports
// whether that was taken.
func (f *Firewall) pushSet(s *set, family book.Family, now time.Time) bool {
	at := store.Monotonic()
	refill := s.batch == 0
	var pending []book.Pending
	if refill {
		for _, k := range f.book.NextBulk(family, s.size, at) {
			pending = append(pending, book.Pending{Key: k})
		}
	} else {
		pending = f.book.Next(family, min(s.size, s.batch))
	}
	var put []nft.Element
	var del []netip.Addr
	news := true // the set has elements of none of them, as far as we know
	for _, p := range pending {
		r, blocked, had := f.book.Wants(p.Key, at)
		news = news && blocked && !had
		if blocked {
			put = append(put, nft.Element{Key: p.Key.Addr(), Timeout: r.Expires.Sub(at), Comment: r.Zone})
		} else {
			del = append(del, p.Key.Addr())
		}
	}
	table, name := f.cfg.Ruleset.Table, f.cfg.Ruleset.Blocked[family]
	err := error(unix.EEXIST)
	f.busy(true)
	if news {
		err = f.conn.Add(table, name, put)
	}
	if errors.Is(err, unix.EEXIST) {
		err = f.conn.Apply(table, name, put, del)
	}
	f.busy(false)
	if err != nil {
		f.refusal(s, family, err, len(pending), now)
		return false
	}
	if s.refused != nil {
		f.log.Info("blocks can be committed again", "set", name)
	}
	s.refused, s.backoff = nil, 0
	s.size = min(2*s.size, perTransaction)
	if refill {
		f.book.DoneBulk(family, len(pending))
		s.restored += len(pending)
		if f.book.Refilling(family) == 0 && s.restored > 0 {
			f.log.Info("elements restored", "set", name, "restored", s.restored, "took", time.Since(s.began).Round(time.Millisecond))
		}
		return true
	}
	for _, p := range pending {
		f.logPushed(p, at)
		if r, ok := f.book.Get(p.Key); ok {
			f.store.Put(r)
		} else {
			f.store.Drop(p.Key)
		}
	}
	s.batch -= len(pending)
	f.book.Done(family, len(pending), at)
	return true
}

// refusal deals with a transaction of n elements that was not done: half as many may
// fit. One for which a set of the administrator's has no room is for later.
func (f *Firewall) refusal(s *set, family book.Family, err error, n int, now time.Time) {
	full := errors.Is(err, unix.ENFILE)
	switch {
	case n > 1 && (full || errors.Is(err, unix.EMSGSIZE)):
		s.size = n / 2
		return
	case full && s.batch == 0:
		f.book.QueueBulk(family)
	case full:
		f.book.Postpone(family)
	}
	if s.refused == nil {
		f.log.Error("blocks cannot be committed; they wait, and are tried again",
			"set", f.cfg.Ruleset.Blocked[family], "waiting", f.book.Waiting(family), "error", err)
	}
	f.ensureSoon()
	s.batch, s.refused = 0, err
	s.backoff = min(max(2*s.backoff, shortestBackoff), longestBackoff)
	s.retryAt = now.Add(s.backoff)
}
