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
	addr = addr.Unmap()
	if addr.Is4() {
		b := addr.As4()
		return Key{IPv4, uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := addr.As16()
	return Key{IPv6, binary.BigEndian.Uint64(b[:])}
}

// Addr is the first address of what is blocked, the key of its element.
func (k Key) Addr() netip.Addr { return k.with(0) }

// Prefix is what is blocked.
func (k Key) Prefix() netip.Prefix {
	if k.Family == IPv4 {
		return netip.PrefixFrom(k.Addr(), 32)
	}
	return netip.PrefixFrom(k.Addr(), 64)
}

// with is the address of the key that has low as its lower half.
func (k Key) with(low uint64) netip.Addr {
	if k.Family == IPv4 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(k.bits))
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], k.bits)
	binary.BigEndian.PutUint64(b[8:], low)
	return netip.AddrFrom16(b)
}

// low is the lower half of an IPv6 address, 0 for IPv4.
func low(addr netip.Addr) uint64 {
	if addr.Unmap().Is4() {
		return 0
	}
	b := addr.As16()
	return binary.BigEndian.Uint64(b[8:])
}
