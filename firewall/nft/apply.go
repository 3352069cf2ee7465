//go:build linux

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// attempts bounds how often a change is tried that others keep getting in the
// way of.
const attempts = 20

// Apply makes put stand in a set as they are, whether the set has elements with
// their keys or not, and takes away the elements with the keys in del, in one
// transaction: packets meet the old elements or the new ones. Put and del have no
// key in common.
func (c *Conn) Apply(at Table, set string, put []Element, del []netip.Addr) error {
	if !c.NoDestroy {
		c.tx.reset()
		c.tx.elements(msgDestroySetElem, 0, at, set, len(put)+len(del), func(b []byte, i int) []byte {
			if i < len(put) {
				return appendElement(b, Element{Key: put[i].Key})
			}
			return appendElement(b, Element{Key: del[i-len(put)]})
		})
		c.tx.add(at, set, put)
		return c.Commit(&c.tx)
	}
	// A timeout changes only if the element is made anew, and to delete one that
	// is not there fails.
	for try := 1; ; try++ {
		keys := make([]netip.Addr, 0, len(put)+len(del))
		for _, e := range put {
			keys = append(keys, e.Key)
		}
		keys = append(keys, del...)
		found, err := c.Ask(at, set, keys)
		if err != nil {
			return err
		}
		old := keys[:0]
		for i, key := range keys {
			if found[i] {
				old = append(old, key)
			}
		}
		c.tx.reset()
		c.tx.elements(unix.NFT_MSG_DELSETELEM, 0, at, set, len(old), func(b []byte, i int) []byte {
			return appendElement(b, Element{Key: old[i]})
		})
		c.tx.add(at, set, put)
		// An element that has expired or was added or deleted meanwhile: ask again.
		err = c.Commit(&c.tx)
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EEXIST) || try == attempts {
			return err
		}
	}
}

// Add adds elements to a set that has none with their keys: otherwise the error is
// EEXIST. It takes half the time of [Conn.Apply].
func (c *Conn) Add(at Table, set string, put []Element) error {
	c.tx.reset()
	c.tx.add(at, set, put)
	return c.Commit(&c.tx)
}

// add adds elements. With NLM_F_EXCL one that is there is an error; otherwise it
// would be left as it is in silence.
func (t *Transaction) add(at Table, set string, put []Element) {
	t.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE|unix.NLM_F_EXCL, at, set, len(put), func(b []byte, i int) []byte {
		return appendElement(b, put[i])
	})
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
		b := c.tx.buf[:0]
		for i, key := range part {
			b = appendQuestion(b, at, set, key, uint32(i))
		}
		c.tx.buf = b
		if err := c.send(b); err != nil {
			return nil, fmt.Errorf("netlink send: %w", err)
		}
		answered := 0
		var refused error
		err := c.answers(func(kind uint16, seq uint32, body []byte) {
			if int(seq) >= len(part) {
				return
			}
			answered++
			switch {
			case kind == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWSETELEM:
				found[start+int(seq)] = true
			case kind == unix.NLMSG_ERROR && len(body) >= 4:
				if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body))); errno != unix.ENOENT {
					refused = &Refused{int(seq), errno}
				}
			}
		})
		switch {
		case err != nil:
			return nil, fmt.Errorf("netlink receive: %w", err)
		case refused != nil:
			return nil, refused
		case answered != len(part):
			return nil, fmt.Errorf("netlink receive: %d answers to %d questions", answered, len(part))
		}
	}
	return found, nil
}

// appendQuestion appends a NFT_MSG_GETSETELEM with a key.
func appendQuestion(b []byte, at Table, set string, key netip.Addr, seq uint32) []byte {
	start := len(b)
	b = appendHeader(b, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETSETELEM, 0, seq)
	b = append(b, byte(at.Family), unix.NFNETLINK_V0, 0, 0)
	b = appendFields(b, setFields(at, set))
	list := len(b)
	b = openAttr(b, unix.NLA_F_NESTED|unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	b = appendElement(b, Element{Key: key})
	b = closeAttr(b, list)
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}
