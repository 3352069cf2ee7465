//go:build linux

package nft

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A Transaction is what lies between NFNL_MSG_BATCH_BEGIN and
// NFNL_MSG_BATCH_END. Its messages are numbered from 0, in the order in which
// they are added. The zero Transaction is empty.
type Transaction struct {
	buf  []byte
	n    int // messages so far
	last int // where the last one starts in buf
}

// Len returns how many messages the transaction has.
func (t *Transaction) Len() int { return t.n }

// reset empties the transaction.
func (t *Transaction) reset() { *t = Transaction{buf: t.buf[:0]} }

// message adds a message: kind is one of the NFT_MSG_…, and fill appends its
// attributes.
func (t *Transaction) message(kind, flags uint16, f Family, fill func([]byte) []byte) {
	if t.n == 0 {
		t.control(unix.NFNL_MSG_BATCH_BEGIN, 0)
	}
	t.last = len(t.buf)
	t.n++
	t.buf = appendHeader(t.buf, unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, uint32(t.n))
	t.buf = append(t.buf, byte(f), unix.NFNETLINK_V0, 0, 0)
	t.buf = fill(t.buf)
	binary.NativeEndian.PutUint32(t.buf[t.last:], uint32(len(t.buf)-t.last))
}

// control adds the begin or the end of the batch.
func (t *Transaction) control(kind uint16, seq uint32) {
	t.buf = appendHeader(t.buf, kind, 0, seq)
	t.buf = append(t.buf, unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES)
}

// end ends the transaction, has its last message acknowledged, and returns it.
func (t *Transaction) end() []byte {
	flags := t.buf[t.last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	t.control(unix.NFNL_MSG_BATCH_END, uint32(t.n)+1)
	return t.buf
}

// appendHeader appends a struct nlmsghdr, whose length is that of a message
// without attributes.
func appendHeader(b []byte, kind, flags uint16, seq uint32) []byte {
	b = binary.NativeEndian.AppendUint32(b, unix.SizeofNlMsghdr+sizeofNfgenmsg)
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	return binary.NativeEndian.AppendUint32(b, 0) // the kernel knows the sender's port
}

// listRoom is how many bytes of elements a message takes: a list of them is an
// attribute, which has 64 KiB at most.
const listRoom = 1<<16 - 1 - 512

// elements adds messages about n elements of a set, which one appends.
func (t *Transaction) elements(kind, flags uint16, at Table, set string, n int, one func(b []byte, i int) []byte) {
	for i := 0; i < n; {
		t.message(kind, flags, at.Family, func(b []byte) []byte {
			b = appendFields(b, setFields(at, set))
			list := len(b)
			b = openAttr(b, unix.NLA_F_NESTED|unix.NFTA_SET_ELEM_LIST_ELEMENTS)
			for ; i < n && len(b)-list < listRoom; i++ {
				b = one(b, i)
			}
			return closeAttr(b, list)
		})
	}
}

// Message adds a message about an object of a table: kind is one of the NFT_MSG_…,
// flags are those of netlink(7).
func (t *Transaction) Message(kind, flags uint16, at Table, fields ...Field) {
	t.message(kind, flags, at.Family, func(b []byte) []byte { return appendFields(b, fields) })
}

// An Interval is the addresses from First to Last, both included.
type Interval struct{ First, Last netip.Addr }

// SetIntervals replaces what an interval set holds. The intervals are in order,
// and between two of them is at least one address.
func (t *Transaction) SetIntervals(at Table, set string, intervals []Interval) {
	t.Message(unix.NFT_MSG_DELSETELEM, 0, at, setFields(at, set)...)
	t.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, at, set, len(intervals), func(b []byte, i int) []byte {
		b = appendBound(b, intervals[i].First, false)
		if end := intervals[i].Last.Next(); end.IsValid() {
			b = appendBound(b, end, true)
		}
		return b
	})
}

// setFields name a set in messages about its elements.
func setFields(at Table, set string) []Field {
	return []Field{{unix.NFTA_SET_ELEM_LIST_TABLE, at.Name}, {unix.NFTA_SET_ELEM_LIST_SET, set}}
}
