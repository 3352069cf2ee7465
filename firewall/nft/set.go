//go:build linux

package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An Element is an element of a set of addresses.
type Element struct {
	Key     netip.Addr
	Timeout time.Duration // rounded up to milliseconds; 0: it stays for ever
	Comment string        // what nft cannot print of it is left out; "": none
}

// An Interval is the addresses from First to Last, both included.
type Interval struct{ First, Last netip.Addr }

// attempts bounds how often a change is tried that others keep getting in the
// way of.
const attempts = 20

// Apply makes put stand in a set as they are, whether the set has elements with
// their keys or not, and takes away the elements with the keys in del, in one
// transaction: packets meet the old elements or the new ones. Put and del have no
// key in common.
func (c *Conn) Apply(at Table, set string, put []Element, del []netip.Addr) error {
	keys := make([]netip.Addr, 0, len(put)+len(del))
	for _, e := range put {
		keys = append(keys, e.Key)
	}
	keys = append(keys, del...)
	if !c.NoDestroy {
		return c.replace(at, set, msgDestroySetElem, keys, put)
	}
	// A timeout changes only if the element is made anew, and to delete one that
	// is not there fails.
	for try := 1; ; try++ {
		found, err := c.Ask(at, set, keys)
		if err != nil {
			return err
		}
		var old []netip.Addr
		for i, key := range keys {
			if found[i] {
				old = append(old, key)
			}
		}
		// An element that has expired or was added or deleted meanwhile: ask again.
		err = c.replace(at, set, unix.NFT_MSG_DELSETELEM, old, put)
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EEXIST) || try == attempts {
			return err
		}
	}
}

// Add adds elements to a set that has none with their keys: otherwise the error is
// EEXIST. It takes half the time of [Conn.Apply].
func (c *Conn) Add(at Table, set string, put []Element) error {
	return c.replace(at, set, 0, nil, put)
}

// replace deletes elements, by one of two messages, and adds others. With
// NLM_F_EXCL one that is there is an error; otherwise it would be left as it is in
// silence.
func (c *Conn) replace(at Table, set string, deletion uint16, del []netip.Addr, put []Element) error {
	c.tx.reset()
	elements(&c.tx, deletion, 0, at, set, del, appendKey)
	elements(&c.tx, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE|unix.NLM_F_EXCL, at, set, put, appendElement)
	return c.Commit(&c.tx)
}

// questions is how many keys are asked about at once: the answers have to fit into
// the receive buffer.
const questions = 200

// Ask asks which keys a set has an element of. The time does not depend on the
// size of the set. Where there is no such set the error is ENOENT.
func (c *Conn) Ask(at Table, set string, keys []netip.Addr) (found []bool, err error) {
	found = make([]bool, len(keys))
	for start := 0; start < len(keys); start += questions {
		part := keys[start:min(start+questions, len(keys))]
		c.tx.reset()
		for i := range part {
			elements(&c.tx, unix.NFT_MSG_GETSETELEM, 0, at, set, part[i:i+1], appendKey)
		}
		answered := 0
		for m, err := range c.exchange(c.tx.buf) {
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return nil, err
			}
			if i := int(m.Header.Seq) - 1; i >= 0 && i < len(part) {
				answered++
				found[start+i] = err == nil
			}
		}
		if answered != len(part) {
			return nil, fmt.Errorf("netlink receive: %d answers to %d questions", answered, len(part))
		}
	}
	return found, nil
}

// SetIntervals replaces what an interval set holds. The intervals are in order,
// and between two of them is at least one address.
func (t *Transaction) SetIntervals(at Table, set string, intervals []Interval) {
	t.Message(unix.NFT_MSG_DELSETELEM, 0, at, Field{unix.NFTA_SET_ELEM_LIST_TABLE, at.Name}, Field{unix.NFTA_SET_ELEM_LIST_SET, set})
	elements(t, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, at, set, intervals, func(b []byte, i Interval) []byte {
		b = appendKey(b, i.First)
		if end := i.Last.Next(); end.IsValid() {
			b = appendFields(b, []Field{{unix.NFTA_LIST_ELEM, []Field{{unix.NFTA_SET_ELEM_KEY, []Field{{unix.NFTA_DATA_VALUE, end}}},
				{unix.NFTA_SET_ELEM_FLAGS, uint32(unix.NFT_SET_ELEM_INTERVAL_END)}}}})
		}
		return b
	})
}

// listRoom is how many bytes of elements a message takes: a list of them is an
// attribute, which has 64 KiB at most.
const listRoom = 1<<16 - 1 - 512

// elements adds messages about elements of a set, each of which one appends. The
// fewer messages there are the faster is the kernel.
func elements[E any](t *Transaction, kind, flags uint16, at Table, set string, all []E, one func([]byte, E) []byte) {
	list := func(b []byte) []byte {
		for start := len(b); len(all) > 0 && len(b)-start < listRoom; all = all[1:] {
			b = one(b, all[0])
		}
		return b
	}
	for len(all) > 0 {
		t.Message(kind, flags, at, Field{unix.NFTA_SET_ELEM_LIST_TABLE, at.Name}, Field{unix.NFTA_SET_ELEM_LIST_SET, set},
			Field{unix.NFTA_SET_ELEM_LIST_ELEMENTS, list})
	}
}

// appendElement appends an element to a list of them.
func appendElement(b []byte, e Element) []byte {
	fields := [3]Field{{unix.NFTA_SET_ELEM_KEY, []Field{{unix.NFTA_DATA_VALUE, e.Key}}}}
	n := 1
	if e.Timeout > 0 {
		fields[n] = Field{unix.NFTA_SET_ELEM_TIMEOUT, milliseconds(e.Timeout)}
		n++
	}
	if c := cleanComment(e.Comment); c != "" {
		const udata = 0 // NFTNL_UDATA_SET_ELEM_COMMENT
		fields[n] = Field{unix.NFTA_SET_ELEM_USERDATA, Comment{udata, c}}
		n++
	}
	return appendFields(b, []Field{{unix.NFTA_LIST_ELEM, fields[:n]}})
}

// appendKey appends an element of which only the key matters.
func appendKey(b []byte, key netip.Addr) []byte {
	return appendFields(b, []Field{{unix.NFTA_LIST_ELEM, []Field{{unix.NFTA_SET_ELEM_KEY, []Field{{unix.NFTA_DATA_VALUE, key}}}}}})
}

// milliseconds rounds up: a timeout of 0 would mean that there is none.
func milliseconds(d time.Duration) uint64 {
	return uint64((d + time.Millisecond - 1) / time.Millisecond)
}

// cleanComment is what of a comment nft(8) can print and read back: printable
// ASCII without the quotation mark, and of that what its include/rule.h allows
// (NFTNL_UDATA_COMMENT_MAXLEN).
func cleanComment(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 32 || r > 126 || r == '"' {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), 128)]
}
