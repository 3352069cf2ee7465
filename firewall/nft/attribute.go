//go:build linux

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// openAttr appends a struct nlattr (netlink(7)), whose length closeAttr fills in.
func openAttr(b []byte, kind uint16) []byte {
	b = append(b, 0, 0)
	return binary.NativeEndian.AppendUint16(b, kind)
}

// closeAttr ends the attribute that starts at b[at:], and pads it.
func closeAttr(b []byte, at int) []byte {
	binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// A Field is an attribute to be sent: its type, and a value that is a string, a
// uint32 or uint64, []byte, [Comment], or []Field, which are nested in it.
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

// appendField appends a field. It panics at a value of a type that no field has.
func appendField(b []byte, f Field) []byte {
	at := len(b)
	b = openAttr(b, f.Type)
	switch v := f.Value.(type) {
	case string:
		b = append(append(b, v...), 0)
	case uint32:
		b = binary.BigEndian.AppendUint32(b, v)
	case uint64:
		b = binary.BigEndian.AppendUint64(b, v)
	case []byte:
		b = append(b, v...)
	case Comment:
		b = append(b, v.UData, byte(len(v.Text)+1))
		b = append(append(b, v.Text...), 0)
	case []Field:
		binary.NativeEndian.PutUint16(b[at+2:], f.Type|unix.NLA_F_NESTED)
		b = appendFields(b, v)
	default:
		panic(fmt.Sprintf("nft: a field of type %T", v))
	}
	return closeAttr(b, at)
}

func appendFields(b []byte, fields []Field) []byte {
	for _, f := range fields {
		b = appendField(b, f)
	}
	return b
}

// cleanComment is what of a comment nft(8) can print and read back: printable
// ASCII without the quotation mark, [MaxComment] bytes at most.
func cleanComment(s string) string {
	bad := func(r rune) bool { return r < 32 || r > 126 || r == '"' }
	if strings.ContainsFunc(s, bad) {
		s = strings.Map(func(r rune) rune {
			if bad(r) {
				return -1
			}
			return r
		}, s)
	}
	return s[:min(len(s), MaxComment)]
}

// Attrs are the attributes of a message that was received, or of one of them, by
// their types. Of several of one type it has the last.
type Attrs map[uint16][]byte

// parse reads the body of a message.
func parse(body []byte) (Attrs, error) {
	if len(body) < sizeofNfgenmsg {
		return nil, fmt.Errorf("netlink: message of %d bytes", len(body))
	}
	return parseNested(body[sizeofNfgenmsg:])
}

func parseNested(b []byte) (Attrs, error) {
	a := Attrs{}
	err := each(b, func(kind uint16, value []byte) error {
		a[kind] = value
		return nil
	})
	return a, err
}

// each calls f at every attribute of b.
func each(b []byte, f func(kind uint16, value []byte) error) error {
	for len(b) > 0 {
		size := 0
		if len(b) >= unix.SizeofNlAttr {
			size = int(binary.NativeEndian.Uint16(b))
		}
		if size < unix.SizeofNlAttr || size > len(b) {
			return errors.New("netlink: malformed attribute")
		}
		kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if err := f(kind, b[unix.SizeofNlAttr:size]); err != nil {
			return err
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
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

// Nested are the attributes within an attribute, as far as they can be read.
func (a Attrs) Nested(kind uint16) Attrs {
	inner, _ := parseNested(a[kind])
	return inner
}

// Comment is the comment in user data: type, length, value; "" if there is none.
func (a Attrs) Comment(kind uint16, udata byte) string {
	for data := a[kind]; len(data) >= 2 && len(data) >= 2+int(data[1]); data = data[2+int(data[1]):] {
		if data[0] == udata {
			return strings.TrimSuffix(string(data[2:2+data[1]]), "\x00")
		}
	}
	return ""
}
