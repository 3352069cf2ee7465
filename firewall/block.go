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
	Prefix netip.Prefix // masked: a /32 for IPv4, a /64 for IPv6

	// Expires is wall clock; the element's timeout is what is left until
	// then. It is zero for an element that somebody else added without a
	// timeout, which stays until somebody deletes it; [Table.Commit] adds no
	// such element, it is only ever restored.
	Expires time.Time

	// Zone is the DNSBL that lists the address, and the element's comment.
	// For an element that somebody else added it is whatever comment that
	// has, which may be none.
	Zone string

	// New says that the set is believed to have no element for Prefix. That
	// saves [Table.Commit] half of the work, and if it is wrong costs time
	// and nothing else.
	New bool
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
// ruleset, and what it tells about such changes. Its methods are called by
// [Table.Run], Blocks from several goroutines and the others from one, and must
// not wait for the table: it may be in the midst of a transaction.
type State interface {
	// Blocks are all blocks that are in force. The table is written to
	// between two steps of the sequence, so an implementation holds no lock
	// while it yields. A block that came into force after the sequence
	// started may be missing from it if it is committed afterwards.
	Blocks() iter.Seq[Block]
	// Added says that somebody else added elements, or changed the timeout
	// of some.
	Added(...Block)
	// Removed says that somebody else deleted elements by hand. The kernel
	// does not tell when it lets one expire, so that is the state's own to
	// know, but it may be said to be removed too.
	Removed(...netip.Prefix)
	// Compared says how the sets differ from what Blocks yielded a while ago,
	// where what others did was not heard: which of these they lack, and what
	// they hold beside them. What is not as Blocks had it any more, or was
	// not committed then, is not meant.
	Compared(missing, added []Block)
}
