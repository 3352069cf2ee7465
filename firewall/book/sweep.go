package book

import (
	"math"
	"slices"
	"time"
)

// hasRoom reports whether another address of a family may be blocked. To find out
// which blocks have expired takes long, and is done once in two seconds at most.
func (b *Book) hasRoom(f Family, now Time) bool {
	if b.full(f) && now.Sub(b.swept) >= 2*time.Second {
		b.Sweep(now)
	}
	return !b.full(f)
}

// Sweep counts the blocks in force anew, and cuts those that last longer than
// MaxExpiry from now. It forgets who was not heard of for as long as anybody is
// blocked. Of those that are only remembered a quarter of MaxElements is kept, the
// latest.
func (b *Book) Sweep(now Time) {
	b.swept, b.counted = now, [2]int{}
	b.hits.sweep(now.Add(-b.policy.Window))
	longest, oldest := now.Add(b.policy.MaxExpiry), now.Add(-b.policy.MaxExpiry)
	var remembered []Time
	var used [math.MaxUint16 + 1]bool
	for k := range b.Keys() {
		r := b.records[k.Family][k.bits]
		used[r.zone] = true
		b.counted[k.Family] += b.counts(r)
		switch {
		case b.counts(r) == 0:
			r.flags = 0
			b.set(k, r)
			remembered = append(remembered, r.expires)
		case r.expires > longest:
			r.expires = longest
			b.mark(k, r, Pending{Key: k})
		}
	}
	b.zones.keep(&used)
	if most := b.policy.MaxElements / 4; len(remembered) > most {
		slices.Sort(remembered)
		oldest = max(oldest, remembered[len(remembered)-most-1]+1)
	}
	for k := range b.Keys() {
		if r := b.records[k.Family][k.bits]; b.counts(r) == 0 && r.expires < oldest {
			b.drop(k)
		}
	}
}
