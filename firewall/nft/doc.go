//go:build linux

// Package nft speaks netlink with the kernel's nf_tables, as nft(8) does, and
// knows nothing of rblnft. It has no state but its sockets.
//
// A [Transaction] is built message by message and done as a whole or not at all
// ([Conn.Commit]). [Conn.Get] asks for objects. [Conn.Apply], [Conn.Add] and
// [Conn.Ask] are what the owner of a set of addresses needs; the encoder of
// elements is some ten times as fast as that of google/nftables. A [Watcher] hears
// what others change.
//
// Numbers and names are those of linux/netfilter/nf_tables.h and nfnetlink.h.
package nft

import (
	"golang.org/x/sys/unix"
)

// A Family is a table's address family, NFPROTO_… of linux/netfilter.h.
type Family uint8

// The families that a table with sets of addresses can have.
const (
	INet Family = unix.NFPROTO_INET
	IPv4 Family = unix.NFPROTO_IPV4
	IPv6 Family = unix.NFPROTO_IPV6
)

// String returns the family as nft(8) writes it.
func (f Family) String() string {
	switch f {
	case INet:
		return "inet"
	case IPv4:
		return "ip"
	case IPv6:
		return "ip6"
	}
	return "unknown"
}

// A Table is where everything else is.
type Table struct {
	Family Family
	Name   string
}

// String returns the table as nft(8) writes it: "inet rblnft".
func (t Table) String() string { return t.Family.String() + " " + t.Name }

// NFT_MSG_DESTROYSETELEM, since Linux 6.3, which golang.org/x/sys/unix lacks.
const msgDestroySetElem = 30

const sizeofNfgenmsg = 4

// MaxComment is the length in bytes of the longest comment that nft(8) can read
// back (NFTNL_UDATA_COMMENT_MAXLEN of nftables' include/rule.h).
const MaxComment = 128

// udataElement is the type of a comment in an element's user data
// (NFTNL_UDATA_SET_ELEM_COMMENT of libnftnl's udata.h).
const udataElement = 0
