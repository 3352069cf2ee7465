//go:build linux

package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A Field is an attribute to be sent: its type, and a value that is a string, a
// uint32 or uint64, []byte, [netip.Addr], [Comment], or []Field, which are nested
// in it.
type Field struct {
	Type  uint16
	Value any
}

// A Comment is user data that has a comment alone. Its UData is the type that
// libnftnl's udata.h gives to comments of such an object.
type Comment struct {
	UData byte
	Text  string
}

// appendFields appends fields. It panics at a value of a type that no field has.
func appendFields(b []byte, fields []Field) []byte {
	for _, f := range fields {
		at := len(b) // a struct nlattr (netlink(7)): length, type
		b = binary.NativeEndian.AppendUint16(append(b, 0, 0), f.Type)
		switch v := f.Value.(type) {
		case string:
			b = append(append(b, v...), 0)
		case uint32:
			b = binary.BigEndian.AppendUint32(b, v)
		case uint64:
			b = binary.BigEndian.AppendUint64(b, v)
		case []byte:
			b = append(b, v...)
		case netip.Addr:
			if v.Is4() {
				a := v.As4()
				b = append(b, a[:]...)
			} else {
				a := v.As16()
				b = append(b, a[:]...)
			}
		case Comment:
			b = append(b, v.UData, byte(len(v.Text)+1))
			b = append(append(b, v.Text...), 0)
		case []Field:
			binary.NativeEndian.PutUint16(b[at+2:], f.Type|unix.NLA_F_NESTED)
			b = appendFields(b, v)
		case func([]byte) []byte: // which appends what is nested
			binary.NativeEndian.PutUint16(b[at+2:], f.Type|unix.NLA_F_NESTED)
			b = v(b)
		default:
			panic("nft: a field of a type that none has") // to name it would put every value on the heap
		}
		binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return b
}

// Attrs are the attributes of a message that was received, or of one of them, by
// their types. Of several of one type it has the last.
type Attrs map[uint16][]byte

// parse reads the body of a message, and keeps nothing of it.
func parse(body []byte) (Attrs, error) {
	if len(body) < sizeofNfgenmsg {
		return nil, fmt.Errorf("netlink: message of %d bytes", len(body))
	}
	return parseNested(body[sizeofNfgenmsg:])
}

func parseNested(b []byte) (Attrs, error) {
	list, err := netlink.UnmarshalAttributes(b)
	a := Attrs{}
	for _, attr := range list {
		a[attr.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)] = attr.Data
	}
	return a, err
}

// Text is the value of an attribute that is a string; "" if there is none.
func (a Attrs) Text(kind uint16) string { return strings.TrimSuffix(string(a[kind]), "\x00") }

// Number is the value of an attribute that is a number, of whatever length, in the
// network's byte order; 0 if there is none.
func (a Attrs) Number(kind uint16) (n uint64) {
	for _, b := range a[kind] {
		n = n<<8 | uint64(b)
	}
	return n
}

// Nested are the attributes within an attribute; none, if they cannot be read.
func (a Attrs) Nested(kind uint16) Attrs {
	inner, _ := parseNested(a[kind])
	return inner
}

// Comment is the comment in user data: type, length, value; "" if there is none.
func (a Attrs) Comment(kind uint16, udata byte) string {
	for data := a[kind]; len(data) >= 2 && len(data) >= 2+int(data[1]); data = data[2+int(data[1]):] {
		if data[0] == udata {
			return strings.TrimSuffix(string(data[2:2+int(data[1])]), "\x00")
		}
	}
	return ""
}

// A Transaction is messages that the kernel obeys all together or not at all. They
// are numbered from 0, in the order in which they are added. The zero Transaction
// is empty.
type Transaction struct {
	buf []byte
	n   int // messages so far
}

// Len returns how many messages the transaction has.
func (t *Transaction) Len() int { return t.n }

// reset empties the transaction.
func (t *Transaction) reset() { *t = Transaction{buf: t.buf[:0]} }

// Message adds a message about an object of a table: kind is one of the NFT_MSG_…,
// flags are those of netlink(7).
func (t *Transaction) Message(kind, flags uint16, at Table, fields ...Field) {
	start := len(t.buf)
	t.n++
	t.buf = appendHeader(t.buf, unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, uint32(t.n), at.Family)
	t.buf = appendFields(t.buf, fields)
	binary.NativeEndian.PutUint32(t.buf[start:], uint32(len(t.buf)-start))
}

// appendHeader appends a struct nlmsghdr and a struct nfgenmsg, with the length of
// a message that ends there. It is for the kernel, which knows the sender's port.
func appendHeader(b []byte, kind, flags uint16, seq uint32, f Family) []byte {
	b = binary.NativeEndian.AppendUint32(b, unix.SizeofNlMsghdr+sizeofNfgenmsg)
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	return append(b, byte(f), unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES)
}
