package book

import "net/netip"

// A Pending is a change that the kernel is yet to be told of, with what of the last
// hit that made it is worth a line in the log.
type Pending struct {
	Key  Key
	low  uint64 // the rest of the client's IPv6 address
	code uint32 // the return code; 0: none
	hit  bool
}

// Restored reports whether no hit is the reason.
func (p Pending) Restored() bool { return !p.hit }

// Client is the address that was hit.
func (p Pending) Client() netip.Addr { return p.Key.with(p.low) }

// Code is what the DNSBL answered; invalid if it has no A record, or if no hit was
// the reason.
func (p Pending) Code() netip.Addr {
	if p.code == 0 {
		return netip.Addr{}
	}
	return Key{IPv4, uint64(p.code)}.Addr()
}

// mark stores a record of which the kernel is yet to be told. It waits once.
func (b *Book) mark(k Key, r record, p Pending) {
	q := &b.queue[k.Family]
	if r.flags&dirty == 0 {
		r.flags |= dirty
		r.turn = b.gone[k.Family] + uint32(len(*q))
		*q = append(*q, p)
	} else if p.hit {
		(*q)[r.turn-b.gone[k.Family]] = p
	}
	b.set(k, r)
}

// pop takes the first n out of the queue.
func (b *Book) pop(f Family, n int) {
	b.gone[f] += uint32(n)
	if b.queue[f] = b.queue[f][n:]; len(b.queue[f]) == 0 {
		b.queue[f] = nil
	}
}

// Next returns the first n of what the kernel is yet to be told of a family, at
// most. It is valid until the book changes.
func (b *Book) Next(f Family, n int) []Pending { return b.queue[f][:min(n, len(b.queue[f]))] }

// Waiting returns how many changes of a family wait, but for those of a refill.
func (b *Book) Waiting(f Family) int { return len(b.queue[f]) }

// Dirty reports whether the kernel is yet to be told of an address.
func (b *Book) Dirty(k Key) bool { return b.records[k.Family][k.bits].flags&dirty != 0 }

// Wants says what the kernel should have: until when, or that it should have no
// element. Had is whether it has one, as far as we know.
func (b *Book) Wants(k Key, now Time) (r Record, blocked, had bool) {
	rec := b.records[k.Family][k.bits]
	return b.record(k, rec), rec.expires > now, rec.flags&told != 0
}

// Done says that the kernel was told, at now, of the first n of Next.
func (b *Book) Done(f Family, n int, now Time) {
	for _, p := range b.Next(f, n) {
		r := b.records[f][p.Key.bits]
		r.flags &^= dirty | told
		if r.expires > now {
			r.flags |= told
		}
		if b.set(p.Key, r); r.expires == never {
			b.drop(p.Key)
		}
	}
	b.pop(f, n)
}

// Postpone has the first of Next wait behind all others.
func (b *Book) Postpone(f Family) {
	p := b.queue[f][0]
	b.pop(f, 1)
	r := b.records[f][p.Key.bits]
	r.flags &^= dirty
	b.mark(p.Key, r, p)
}

// Refill says that the kernel's set of a family is empty: all blocks have to be
// put into it.
func (b *Book) Refill(f Family, now Time) {
	b.bulk[f] = nil
	for bits, r := range b.records[f] {
		r.flags &^= told
		b.records[f][bits] = r
		if r.expires > now && r.flags&dirty == 0 {
			b.bulk[f] = append(b.bulk[f], bits)
		}
	}
}

// NextBulk returns n addresses, at most, that a refill has yet to put into the set:
// those that are still blocked, and do not wait in the queue meanwhile.
func (b *Book) NextBulk(f Family, n int, now Time) (keys []Key) {
	seen := 0
	for _, bits := range b.bulk[f] {
		if len(keys) == n {
			break
		}
		seen++
		if r := b.records[f][bits]; r.expires > now && r.flags&(told|dirty) == 0 {
			keys = append(keys, Key{f, bits})
		}
	}
	b.bulk[f] = b.bulk[f][seen-len(keys):]
	for i, k := range keys {
		b.bulk[f][i] = k.bits
	}
	return keys
}

// DoneBulk says that the kernel was told of the first n of NextBulk.
func (b *Book) DoneBulk(f Family, n int) {
	for _, bits := range b.bulk[f][:n] {
		r := b.records[f][bits]
		r.flags |= told
		b.records[f][bits] = r
	}
	if b.bulk[f] = b.bulk[f][n:]; len(b.bulk[f]) == 0 {
		b.bulk[f] = nil
	}
}

// QueueBulk has the first of NextBulk wait in the queue instead.
func (b *Book) QueueBulk(f Family) {
	k := Key{f, b.bulk[f][0]}
	b.mark(k, b.records[f][k.bits], Pending{Key: k})
	b.bulk[f] = b.bulk[f][1:]
}

// Refilling returns how many addresses a refill has yet to put into the set, at
// most.
func (b *Book) Refilling(f Family) int { return len(b.bulk[f]) }
