// Package firewall keeps listed addresses away from the mail port: an nftables
// table with the sets of blocked and allowed addresses, changed in batches,
// watched, and put back when somebody else removes it.
package firewall

import (
	"iter"
	"net/netip"
	"time"
)

// A Block keeps one address, or one IPv6 network, away from the mail port for
// a limited time. It is one element of the set blocked4 or blocked6.
type Block struct {
	Prefix  netip.Prefix // masked: a /32 for IPv4, a /64 for IPv6
	Expires time.Time    // wall clock; the element's timeout is what is left until then
	Zone    string       // the DNSBL that lists the address; the element's comment
}

// PrefixOf returns what is blocked when addr is listed: the address itself if
// it is IPv4, its /64 if it is IPv6, the network that one customer gets
// (RFC 6177). IPv4-mapped addresses count as IPv4.
func PrefixOf(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(addr, bits).Masked()
}

// State is what a [Table] restores from after somebody else changed the
// ruleset, and what it tells about such changes. Its methods are called from
// one goroutine, and must not wait for the table.
type State interface {
	// Blocks are all blocks that are in force.
	Blocks() iter.Seq[Block]
	// Added says that somebody else added an element.
	Added(Block)
	// Removed says that somebody else deleted an element by hand, or that
	// the kernel let it expire.
	Removed(netip.Prefix)
}
