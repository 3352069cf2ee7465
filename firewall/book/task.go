package book

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"rblnft/firewall"
)

// Open returns the book that is persisted in the directory dir, made if need
// be: what was blocked when it was last written to, with the time that is left
// by the wall clock, and who was blocked before. With dir empty nothing is
// persisted. Damage and faults of the disk are logged and never an error; the
// error wraps [ErrInUse].
func Open(dir string, policy Policy, log *slog.Logger) (*Book, error) {
	b := New(policy, log)
	if dir == "" {
		return b, nil
	}
	now := time.Now()
	// A clock that was wrong must not block anybody for years.
	latest := now.Add(policy.MaxExpiry).UnixMilli()
	j, err := openJournal(dir, log, func(e entry) {
		if e.deleted {
			b.drop(e.key)
			return
		}
		if e.flags&byHand == 0 {
			e.expires = min(e.expires, latest)
		}
		e.flags |= waiting
		b.put(e.key, e.record, e.name)
	})
	if err != nil {
		return nil, err
	}
	b.journal = j
	b.mu.Lock()
	b.sweep(now, func() {})
	b.mu.Unlock()
	b.writing.Lock()
	b.unblockAllowed()
	b.writing.Unlock()
	return b, nil
}

const (
	syncInterval  = time.Second
	sweepInterval = 30 * time.Second
)

// Run keeps the book small, on the disk and in memory, until ctx is done. It
// returns nil.
func (b *Book) Run(ctx context.Context) error {
	tick := time.NewTicker(syncInterval)
	defer tick.Stop()
	for now := time.Now(); ; {
		b.journal.sync()
		b.mu.Lock()
		if now.Sub(b.swept) >= sweepInterval {
			// Others may have the lock meanwhile.
			b.sweep(now, func() {
				b.mu.Unlock()
				b.mu.Lock()
			})
		}
		records := len(b.records[0]) + len(b.records[1])
		b.mu.Unlock()
		b.journal.compact(ctx, records, b.chunks())
		select {
		case <-ctx.Done():
			return nil
		case now = <-tick.C:
		}
	}
}

// makeRoom finds out which blocks have expired, and reports whether there is
// room for another one. It does so once in two seconds at most.
func (b *Book) makeRoom(family uint8, now time.Time) bool {
	if now.Sub(b.swept).Abs() < 2*time.Second {
		return false
	}
	b.sweep(now, func() {})
	return b.live[family] < b.policy.MaxElements
}

// sweep takes blocks that have expired out of the count of those in force, and
// forgets those that were not heard of for as long as anybody is blocked. Of
// those that are only remembered a quarter of MaxElements is kept, the latest.
// It calls breathe now and then, which may release mu for a moment.
func (b *Book) sweep(now time.Time, breathe func()) {
	b.swept = now
	millis := now.UnixMilli()
	oldest := now.Add(-b.policy.MaxExpiry).UnixMilli()
	remembered := make([]int64, 0, 1024)
	n := 0
	pause := func() {
		if n++; n%1000 == 0 {
			breathe()
		}
	}
	for family, records := range b.records {
		for bits := range records {
			pause()
			rec, known := records[bits]
			switch {
			case !known || rec.inForce(millis):
			case rec.expires < oldest:
				b.drop(key{uint8(family), bits})
			default:
				if rec.flags&live != 0 {
					b.live[family]--
					rec.flags &^= live | waiting
					records[bits] = rec
				}
				remembered = append(remembered, rec.expires)
			}
		}
	}
	most := b.policy.MaxElements / 4
	if len(remembered) <= most {
		return
	}
	slices.Sort(remembered)
	excess := len(remembered) - most
	oldest = remembered[excess]
	// Of those that are as old as the oldest one kept, some have to go too.
	earlier, _ := slices.BinarySearch(remembered, oldest)
	alike := excess - earlier
	for family, records := range b.records {
		for bits := range records {
			pause()
			rec, known := records[bits]
			if !known || rec.flags&live != 0 || rec.expires > oldest {
				continue
			}
			if rec.expires == oldest {
				if alike == 0 {
					continue
				}
				alike--
			}
			b.drop(key{uint8(family), bits})
		}
	}
}

// TakeOver makes what the kernel's sets hold at the start part of the book, as
// it is; list reads it, and may take its time. A block that the journal has for
// longer, or alone, waits for being put into the kernel
// ([Keeper.CommitWaiting]). What happens meanwhile takes precedence. TakeOver
// returns what the allow list does not permit, for it to be taken out of the
// kernel's sets, and the error of list.
func (b *Book) TakeOver(list func() ([]firewall.Block, error)) (unwanted []netip.Prefix, err error) {
	b.mu.Lock()
	b.removed = map[key]bool{}
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.removed = nil
		b.mu.Unlock()
	}()
	// An element says how much time it had left at some moment of the listing.
	start := time.Now()
	elements, err := list()
	if err != nil {
		return nil, err
	}
	slack := expiring + time.Since(start)

	b.writing.Lock()
	defer b.writing.Unlock()
	var entries []entry
	for part := range slices.Chunk(elements, 1000) {
		// Others may have the lock between two parts.
		b.mu.Lock()
		for _, e := range part {
			if b.allow.covers(e.Prefix) {
				unwanted = append(unwanted, e.Prefix)
			} else if made, ok := b.takeOver(e, slack); ok {
				entries = append(entries, made)
			}
		}
		b.mu.Unlock()
	}
	b.journal.append(entries)
	return unwanted, nil
}

// takeOver makes an element part of the book, and reports whether that is news.
func (b *Book) takeOver(e firewall.Block, slack time.Duration) (news entry, ok bool) {
	k := keyOf(e.Prefix)
	rec, known := b.records[k.family][k.bits]
	expires := milli(e.Expires)
	switch {
	case b.removed[k], known && rec.flags&live != 0 && rec.flags&waiting == 0:
		// It has been dealt with by now.
		return entry{}, false
	case known && rec.expires > expires && rec.expires-expires > slack.Milliseconds():
		return entry{}, false
	case known && rec.expires >= expires-slack.Milliseconds():
		// The same, but for the time between two looks at the clock.
		rec.flags &^= waiting
		b.records[k.family][k.bits] = rec
		return entry{}, false
	}
	rec.expires = expires
	rec.flags = rec.flags&^waiting | byHand
	return b.entryOf(k, b.put(k, rec, e.Zone)), true
}

// LeaveToTable says that the table fills the kernel's set of a family with all
// blocks ([firewall.Table.ToBeFilled]), so that none waits.
func (b *Book) LeaveToTable(v6 bool) {
	var keys []key
	for _, k := range b.waiting() {
		if k.family == 1 == v6 {
			keys = append(keys, k)
		}
	}
	for part := range slices.Chunk(keys, 1000) {
		b.committed(part)
	}
}
