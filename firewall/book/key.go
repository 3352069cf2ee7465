package book

import (
	"encoding/binary"
	"net/netip"
)

// A Key is what is blocked: an IPv4 address, or the /64 of an IPv6 one.
type Key struct {
	Family Family
	bits   uint64 // the address, or the upper half of it
}

// A Family is an address family, and the number of its set.
type Family uint8

// The families.
const (
	IPv4 Family = iota
	IPv6
)

// KeyOf returns what is blocked when addr is listed: the address itself if it is
// IPv4, its /64 if it is IPv6, the network that one customer gets (RFC 6177).
// IPv4-mapped addresses count as IPv4.
func KeyOf(addr netip.Addr) Key {
	if addr = addr.Unmap(); addr.Is4() {
		b := addr.As4()
		return Key{IPv4, uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := addr.As16()
	return Key{IPv6, binary.BigEndian.Uint64(b[:])}
}

// low is the rest of an IPv6 address.
func low(addr netip.Addr) uint64 {
	b := addr.As16()
	return binary.BigEndian.Uint64(b[8:])
}

// with is the address that has low as its lower half, if it is IPv6.
func (k Key) with(low uint64) netip.Addr {
	var b [16]byte
	if k.Family == IPv4 {
		binary.BigEndian.PutUint32(b[:], uint32(k.bits))
		return netip.AddrFrom4([4]byte(b[:]))
	}
	binary.BigEndian.PutUint64(b[:], k.bits)
	binary.BigEndian.PutUint64(b[8:], low)
	return netip.AddrFrom16(b)
}

// Addr is the first address of what is blocked, the key of its element.
func (k Key) Addr() netip.Addr { return k.with(0) }

// Prefix is what is blocked.
func (k Key) Prefix() netip.Prefix { return netip.PrefixFrom(k.Addr(), [...]int{32, 64}[k.Family]) }
