//go:build linux

package nft

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// An Element is an element of a set of addresses.
type Element struct {
	Key     netip.Addr
	Timeout time.Duration // rounded up to milliseconds; 0: it stays for ever
	Comment string        // what nft cannot print of it is left out; "": none
}

// appendElement appends an element to a list of them.
func appendElement(b []byte, e Element) []byte {
	element := len(b)
	b = openAttr(b, unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM)
	b = appendKey(b, e.Key)
	if e.Timeout > 0 {
		b = appendField(b, Field{unix.NFTA_SET_ELEM_TIMEOUT, milliseconds(e.Timeout)})
	}
	if c := cleanComment(e.Comment); c != "" {
		b = appendField(b, Field{unix.NFTA_SET_ELEM_USERDATA, Comment{UData: udataElement, Text: c}})
	}
	return closeAttr(b, element)
}

// appendBound appends an element of an interval set: the start of an interval,
// or the first address after its end.
func appendBound(b []byte, key netip.Addr, end bool) []byte {
	element := len(b)
	b = openAttr(b, unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM)
	b = appendKey(b, key)
	if end {
		b = appendField(b, Field{unix.NFTA_SET_ELEM_FLAGS, uint32(unix.NFT_SET_ELEM_INTERVAL_END)})
	}
	return closeAttr(b, element)
}

func appendKey(b []byte, key netip.Addr) []byte {
	nested := len(b)
	b = openAttr(b, unix.NLA_F_NESTED|unix.NFTA_SET_ELEM_KEY)
	value := len(b)
	b = openAttr(b, unix.NFTA_DATA_VALUE)
	if key.Is4() {
		a := key.As4()
		b = append(b, a[:]...)
	} else {
		a := key.As16()
		b = append(b, a[:]...)
	}
	return closeAttr(closeAttr(b, value), nested)
}

// milliseconds rounds up: a timeout of 0 would mean that there is none.
func milliseconds(d time.Duration) uint64 {
	return uint64((d + time.Millisecond - 1) / time.Millisecond)
}

// elementKeys reads the body of a NFT_MSG_NEWSETELEM or DELSETELEM: the elements'
// keys that are addresses, and whose they are.
func elementKeys(body []byte) (table, set string, keys []netip.Addr, err error) {
	a, err := parse(body)
	if err != nil {
		return "", "", nil, err
	}
	err = each(a[unix.NFTA_SET_ELEM_LIST_ELEMENTS], func(_ uint16, element []byte) error {
		e, err := parseNested(element)
		if addr, ok := netip.AddrFromSlice(e.Nested(unix.NFTA_SET_ELEM_KEY)[unix.NFTA_DATA_VALUE]); ok {
			keys = append(keys, addr)
		}
		return err
	})
	return a.Text(unix.NFTA_SET_ELEM_LIST_TABLE), a.Text(unix.NFTA_SET_ELEM_LIST_SET), keys, err
}
