package firewall

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// This file is the netlink form of set elements, linux/netfilter/nf_tables.h.
// google/nftables has one too, for all else that a table consists of; it needs
// many times as long for an element (see BenchmarkEncode), cannot send
// NFT_MSG_DESTROYSETELEM, and its monitor does not say of which set an element
// is.

// What golang.org/x/sys/unix lacks of linux/netfilter/nf_tables.h.
const (
	nftMsgDestroySetElem = 30 // since Linux 6.3
	sizeofNfgenmsg       = 4  // linux/netfilter/nfnetlink.h
	nftaTableHandle      = 4
	nftaSetHandle        = 16
)

// maxComment is the length in bytes of the longest comment that nft can read
// back (NFTNL_UDATA_COMMENT_MAXLEN in nftables' include/rule.h).
const maxComment = 128

// A batch is one netlink transaction: what lies between NFNL_MSG_BATCH_BEGIN
// and NFNL_MSG_BATCH_END is done by the kernel as a whole or not at all. Its
// messages are numbered from 0, in the order of the calls of message.
type batch struct {
	buf    []byte
	family byte
	table  string
	seq    uint32 // of NFNL_MSG_BATCH_BEGIN; message n has seq+1+n
	n      int    // messages so far
	last   int    // where the last one starts in buf
}

// reset starts a new transaction.
func (b *batch) reset(family byte, table string, seq uint32) {
	*b = batch{buf: b.buf[:0], family: family, table: table, seq: seq}
	b.header(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, seq)
	b.control()
}

// questions starts a row of questions, which are no transaction.
func (b *batch) questions(family byte, table string) {
	*b = batch{buf: b.buf[:0], family: family, table: table}
}

// message appends a message about the set: kind is one of the
// NFT_MSG_…SETELEM. The elements are what fill appends.
func (b *batch) message(kind, flags uint16, set string, fill func([]byte) []byte) {
	b.last = len(b.buf)
	b.header(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_REQUEST|flags, b.seq+1+uint32(b.n))
	b.n++
	b.buf = append(b.buf, b.family, unix.NFNETLINK_V0, 0, 0)
	b.buf = appendString(b.buf, unix.NFTA_SET_ELEM_LIST_TABLE, b.table)
	b.buf = appendString(b.buf, unix.NFTA_SET_ELEM_LIST_SET, set)
	list := len(b.buf)
	b.buf = appendHeader(b.buf, unix.NLA_F_NESTED|unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	b.buf = fill(b.buf)
	closeAttr(b.buf, list)
	binary.NativeEndian.PutUint32(b.buf[b.last:], uint32(len(b.buf)-b.last))
}

// end ends the transaction and has its last message acknowledged.
func (b *batch) end() []byte {
	flags := b.buf[b.last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	b.header(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, b.seq+1+uint32(b.n))
	b.control()
	return b.buf
}

// header appends a message's struct nlmsghdr, whose length is for a message
// without attributes.
func (b *batch) header(kind, flags uint16, seq uint32) {
	b.buf = binary.NativeEndian.AppendUint32(b.buf, unix.SizeofNlMsghdr+sizeofNfgenmsg)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, flags)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, seq)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, 0) // the kernel knows the sender's port
}

// control appends the struct nfgenmsg of a batch's begin and end.
func (b *batch) control() {
	b.buf = append(b.buf, unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES)
}

// appendKey appends an element that is only a key, as deletions need.
func appendKey(b []byte, key netip.Addr) []byte {
	return appendElement(b, key, 0, "")
}

// appendElement appends one set element. Without a timeout, 0, it stays for
// ever.
func appendElement(b []byte, key netip.Addr, timeout time.Duration, comment string) []byte {
	element := len(b)
	b = appendHeader(b, unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM)

	nested := len(b)
	b = appendHeader(b, unix.NLA_F_NESTED|unix.NFTA_SET_ELEM_KEY)
	value := len(b)
	b = appendHeader(b, unix.NFTA_DATA_VALUE)
	if key.Is4() {
		a := key.As4()
		b = append(b, a[:]...)
	} else {
		a := key.As16()
		b = append(b, a[:]...)
	}
	closeAttr(b, value)
	closeAttr(b, nested)

	if timeout > 0 {
		at := len(b)
		b = appendHeader(b, unix.NFTA_SET_ELEM_TIMEOUT)
		b = binary.BigEndian.AppendUint64(b, milliseconds(timeout))
		closeAttr(b, at)
	}
	if comment = cleanComment(comment); comment != "" {
		at := len(b)
		b = appendHeader(b, unix.NFTA_SET_ELEM_USERDATA)
		b = append(b, byte(userdata.NFTNL_UDATA_SET_ELEM_COMMENT), byte(len(comment)+1))
		b = append(b, comment...)
		b = append(b, 0)
		b = closePadded(b, at)
	}
	closeAttr(b, element)
	return b
}

// milliseconds rounds up: a timeout of 0 would mean that there is none.
func milliseconds(d time.Duration) uint64 {
	return uint64((d + time.Millisecond - 1) / time.Millisecond)
}

// cleanComment is what of a comment nft can print and read back: printable
// ASCII without the quotation mark, [maxComment] bytes at most.
func cleanComment(s string) string {
	for i := 0; i < len(s); i++ {
		if s[i] < 32 || s[i] > 126 || s[i] == '"' {
			s = strings.Map(func(r rune) rune {
				if r < 32 || r > 126 || r == '"' {
					return -1
				}
				return r
			}, s)
			break
		}
	}
	return s[:min(len(s), maxComment)]
}

// appendHeader appends a struct nlattr, whose length closeAttr fills in.
func appendHeader(b []byte, kind uint16) []byte {
	b = append(b, 0, 0)
	return binary.NativeEndian.AppendUint16(b, kind)
}

func closeAttr(b []byte, at int) {
	binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
}

// closePadded is closeAttr where the content may need padding to four bytes.
func closePadded(b []byte, at int) []byte {
	closeAttr(b, at)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func appendString(b []byte, kind uint16, s string) []byte {
	at := len(b)
	b = appendHeader(b, kind)
	b = append(b, s...)
	b = append(b, 0)
	return closePadded(b, at)
}

// An element is what the kernel says of a set element.
type element struct {
	key     []byte
	timeout time.Duration // 0: none, or the set's
	expires time.Duration // what is left of it; 0: never expires
	comment string
	end     bool // not an element of its own but the end of an interval
}

// block is the block that the element of a set of blocked addresses stands
// for. A key of the wrong length is no block, nor is an element with a timeout
// of which nothing is left.
func (e element) block(now time.Time) (Block, bool) {
	addr, ok := netip.AddrFromSlice(e.key)
	if !ok || e.end || e.timeout > 0 && e.expires == 0 {
		return Block{}, false
	}
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	b := Block{Prefix: netip.PrefixFrom(addr, bits).Masked(), Zone: e.comment}
	if e.expires > 0 {
		b.Expires = now.Add(e.expires)
	}
	return b, true
}

// decodeElements reads the body of a NFT_MSG_NEWSETELEM or DELSETELEM, what
// follows its struct nlmsghdr.
func decodeElements(body []byte) (table, set string, elements []element, err error) {
	if len(body) < sizeofNfgenmsg {
		return "", "", nil, fmt.Errorf("set elements: message of %d bytes", len(body))
	}
	ad, err := netlink.NewAttributeDecoder(body[sizeofNfgenmsg:])
	if err != nil {
		return "", "", nil, fmt.Errorf("set elements: %w", err)
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_SET_ELEM_LIST_TABLE:
			table = ad.String()
		case unix.NFTA_SET_ELEM_LIST_SET:
			set = ad.String()
		case unix.NFTA_SET_ELEM_LIST_ELEMENTS:
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					var e element
					list.Nested(e.decode)
					elements = append(elements, e)
				}
				return nil
			})
		}
	}
	if err := ad.Err(); err != nil {
		return "", "", nil, fmt.Errorf("set elements: %w", err)
	}
	return table, set, elements, nil
}

func (e *element) decode(ad *netlink.AttributeDecoder) error {
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_SET_ELEM_KEY:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() == unix.NFTA_DATA_VALUE {
						e.key = ad.Bytes()
					}
				}
				return nil
			})
		case unix.NFTA_SET_ELEM_FLAGS:
			e.end = ad.Uint32()&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_TIMEOUT:
			e.timeout = fromMilliseconds(ad.Uint64())
		case unix.NFTA_SET_ELEM_EXPIRATION:
			e.expires = fromMilliseconds(ad.Uint64())
		case unix.NFTA_SET_ELEM_USERDATA:
			e.comment = comment(ad.Bytes())
		}
	}
	return nil
}

// fromMilliseconds cuts what no time.Duration can hold.
func fromMilliseconds(ms uint64) time.Duration {
	const most = uint64(1<<63-1) / uint64(time.Millisecond)
	return time.Duration(min(ms, most)) * time.Millisecond
}

// comment finds the comment in an element's user data: type, length, value
// (libnftnl's include/libnftnl/udata.h).
func comment(data []byte) string {
	for len(data) >= 2 && len(data) >= 2+int(data[1]) {
		value := data[2 : 2+data[1]]
		if userdata.Type(data[0]) == userdata.NFTNL_UDATA_SET_ELEM_COMMENT {
			return strings.TrimSuffix(string(value), "\x00")
		}
		data = data[2+int(data[1]):]
	}
	return ""
}
