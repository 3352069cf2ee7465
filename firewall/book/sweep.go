package book

import (
	"slices"
	"time"
)

// makeRoom finds out which blocks have expired, and reports whether there is room
// for another one. It does so once in two seconds at most.
func (b *Book) makeRoom(f Family, now Time) bool {
	if now.Sub(b.swept) < 2*time.Second {
		return false
	}
	b.Sweep(now)
	return b.live[f] < b.most(f)
}

// Sweep takes blocks that have expired out of the count of those in force, and
// forgets those that were not heard of for as long as anybody is blocked. Of those
// that are only remembered a quarter of MaxElements is kept, the latest.
func (b *Book) Sweep(now Time) {
	b.swept = now
	b.counts.sweep(now.Add(-b.policy.Window))
	oldest := now.Add(-b.policy.MaxExpiry)
	var expired []Time
	for k := range b.Keys() {
		r := b.records[k.Family][k.bits]
		if r.expires > now || r.flags&dirty != 0 {
			continue
		}
		if r.flags&live != 0 {
			b.live[k.Family]--
			r.flags &^= live | told
			b.records[k.Family][k.bits] = r
		}
		expired = append(expired, r.expires)
	}
	if most := b.policy.MaxElements / 4; len(expired) > most {
		slices.Sort(expired)
		oldest = max(oldest, expired[len(expired)-most-1]+1)
	}
	for k := range b.Keys() {
		if r := b.records[k.Family][k.bits]; r.flags&(live|dirty) == 0 && r.expires < oldest {
			b.drop(k)
		}
	}
}
