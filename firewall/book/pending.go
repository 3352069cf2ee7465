package book

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// A Pending is a change that the kernel is yet to be told of, with what of the hit
// that made it is worth a line in the log.
type Pending struct {
	Key  Key
	low  uint64 // the client's IPv6 address
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
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], p.code)
	return netip.AddrFrom4(b)
}

func code(addr netip.Addr) uint32 {
	if !addr.Is4() {
		return 0
	}
	b := addr.As4()
	return binary.BigEndian.Uint32(b[:])
}

// mark queues an address, unless it waits already.
func (b *Book) mark(k Key, r record, p Pending) {
	if r.flags&dirty == 0 {
		r.flags |= dirty
		b.queue[k.Family] = append(b.queue[k.Family], p)
	}
	b.records[k.Family][k.bits] = r
}

// Next returns the first n of what the kernel is yet to be told of a family, at
// most. It is valid until the book changes.
func (b *Book) Next(f Family, n int) []Pending { return b.queue[f][:min(n, len(b.queue[f]))] }

// Waiting returns how many changes of a family wait, but for those of a refill.
func (b *Book) Waiting(f Family) int { return len(b.queue[f]) }

// Wants says what the kernel should have: until when, or that it should have no
// element. Had is whether it has one, as far as we know.
func (b *Book) Wants(k Key, now Time) (r Record, blocked, had bool) {
	rec := b.records[k.Family][k.bits]
	return Record{k, rec.expires, b.zones.name(rec.zone), int(rec.returns)}, rec.expires > now, rec.flags&told != 0
}

// Done says that the kernel was told of the first n of Next.
func (b *Book) Done(f Family, n int, now Time) {
	for _, p := range b.queue[f][:n] {
		r := b.records[f][p.Key.bits]
		if r.expires == never {
			b.drop(p.Key)
			continue
		}
		r.flags &^= dirty | told
		if r.expires > now {
			r.flags |= told
		}
		b.records[f][p.Key.bits] = r
	}
	b.queue[f] = b.queue[f][n:]
	if len(b.queue[f]) == 0 {
		b.queue[f] = nil
	}
}

// Postpone has the first of Next wait behind all others.
func (b *Book) Postpone(f Family) { b.queue[f] = append(b.queue[f][1:], b.queue[f][0]) }

// Refill says that the kernel's set of a family is empty: all blocks have to be
// put into it.
func (b *Book) Refill(f Family, now Time) {
	b.bulk[f], b.part[f] = nil, nil
	for bits, r := range b.records[f] {
		r.flags &^= told
		b.records[f][bits] = r
		if r.expires > now && r.flags&dirty == 0 {
			b.bulk[f] = append(b.bulk[f], bits)
		}
	}
}

// NextBulk returns n addresses, at most, that a refill has yet to put into the set.
// It is valid until the book changes.
func (b *Book) NextBulk(f Family, n int, now Time) []Key {
	done := func(k Key) bool {
		r := b.records[f][k.bits]
		return r.flags&(told|dirty) != 0 || r.expires <= now
	}
	part := slices.DeleteFunc(b.part[f], done)
	for len(part) < n && len(b.bulk[f]) > 0 {
		if k := (Key{f, b.bulk[f][0]}); !done(k) {
			part = append(part, k)
		}
		b.bulk[f] = b.bulk[f][1:]
	}
	if b.part[f] = part; len(part) == 0 {
		b.part[f], b.bulk[f] = nil, nil
	}
	return part[:min(n, len(part))]
}

// DoneBulk says that the kernel was told of the first n of NextBulk.
func (b *Book) DoneBulk(f Family, n int) {
	for _, k := range b.part[f][:n] {
		r := b.records[f][k.bits]
		r.flags |= told
		b.records[f][k.bits] = r
	}
	b.part[f] = b.part[f][n:]
}

// QueueBulk has the first of NextBulk wait in the queue instead.
func (b *Book) QueueBulk(f Family) {
	k := b.part[f][0]
	b.mark(k, b.records[f][k.bits], Pending{Key: k})
	b.part[f] = b.part[f][1:]
}

// Refilling returns how many addresses a refill has yet to put into the set, at
// most.
func (b *Book) Refilling(f Family) int { return len(b.bulk[f]) + len(b.part[f]) }
