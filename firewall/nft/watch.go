//go:build linux

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// watchBuffer is a watcher's receive buffer: what others may change before the
// kernel starts to lose notifications, some 30,000 elements.
const watchBuffer = 16 << 20

// A Watcher hears what others change of one table (NFNLGRP_NFTABLES; nft monitor
// shows the same).
type Watcher struct {
	socket
	at Table
}

// A Change is what somebody else changed of the table, a transaction or a part of
// a large one. It is a hint: what is so now only the kernel knows.
type Change struct {
	Structure bool         // the table, or a chain, rule, set or object of it
	Elements  []SetElement // of its sets
	Lost      bool         // the kernel lost notifications, of whatever
	By        string       // "nft[4711]", the process; "": not known
}

// A SetElement is an element that was added to a set, or deleted from it.
type SetElement struct {
	Set     string
	Key     netip.Addr
	Deleted bool
}

// changeSize is how many elements a Change has before it is complete.
const changeSize = 1000

// Watch starts to watch a table. Changes made through the netlink port own are
// not heard of: a filter in the kernel throws them away.
func Watch(at Table, own uint32) (*Watcher, error) {
	s, err := dial(func(nl *netlink.Conn) error {
		filter, err := bpf.Assemble([]bpf.Instruction{
			// nlmsg_pid is the port of who made the change. It is in the host's
			// byte order, which the load takes for the network's.
			bpf.LoadAbsolute{Off: 12, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, own)), SkipTrue: 1},
			bpf.RetConstant{Val: 1<<32 - 1},
			bpf.RetConstant{Val: 0},
		})
		return errors.Join(err, nl.SetBPF(filter), nl.SetReadBuffer(watchBuffer), nl.JoinGroup(unix.NFNLGRP_NFTABLES))
	})
	if err != nil {
		return nil, err
	}
	return &Watcher{s, at}, nil
}

// Receive waits for a change that concerns the table.
func (w *Watcher) Receive() (Change, error) {
	var c Change
	for {
		messages, err := w.nl.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			// The kernel says so once, until the queue is empty: what it
			// loses of the rest must not go unnoticed.
			w.drain()
			return Change{Lost: true}, nil
		}
		if err != nil {
			return Change{}, fmt.Errorf("netlink receive: %w", err)
		}
		complete := false
		for _, m := range messages { // of one transaction
			complete = w.read(m, &c) || complete
		}
		if complete && (c.Structure || c.Lost || len(c.Elements) > 0) {
			return c, nil
		}
	}
}

// read adds what a message says to c, and reports whether c is complete.
func (w *Watcher) read(m netlink.Message, c *Change) (complete bool) {
	kind := m.Header.Type & 0xff
	switch {
	case m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES:
	case kind == unix.NFT_MSG_NEWGEN:
		c.By = process(m.Data)
		return true
	case len(m.Data) < sizeofNfgenmsg || m.Data[0] != byte(w.at.Family):
	case kind == unix.NFT_MSG_NEWSETELEM, kind == unix.NFT_MSG_DELSETELEM:
		table, set, keys, err := elementKeys(m.Data)
		for _, key := range keys {
			if table == w.at.Name {
				c.Elements = append(c.Elements, SetElement{set, key, kind == unix.NFT_MSG_DELSETELEM})
			}
		}
		c.Lost = c.Lost || err != nil // what cannot be read is as good as lost
	default:
		a, err := parse(m.Data)
		c.Lost = c.Lost || err != nil
		// NFTA_TABLE_NAME, and the table of all other objects, are 1.
		c.Structure = c.Structure || a.Text(unix.NFTA_TABLE_NAME) == w.at.Name
	}
	return len(c.Elements) >= changeSize
}

// elementKeys reads the body of a NFT_MSG_NEWSETELEM or DELSETELEM: the elements'
// keys that are addresses, and whose they are.
func elementKeys(body []byte) (table, set string, keys []netip.Addr, err error) {
	a, err := parse(body)
	list, listErr := netlink.UnmarshalAttributes(a[unix.NFTA_SET_ELEM_LIST_ELEMENTS])
	err = errors.Join(err, listErr)
	for _, element := range list {
		e, elementErr := parseNested(element.Data)
		err = errors.Join(err, elementErr)
		if addr, ok := netip.AddrFromSlice(e.Nested(unix.NFTA_SET_ELEM_KEY)[unix.NFTA_DATA_VALUE]); ok {
			keys = append(keys, addr)
		}
	}
	return a.Text(unix.NFTA_SET_ELEM_LIST_TABLE), a.Text(unix.NFTA_SET_ELEM_LIST_SET), keys, err
}

// process says which process made a change, from a NFT_MSG_NEWGEN.
func process(body []byte) string {
	a, err := parse(body)
	if err != nil || a[unix.NFTA_GEN_PROC_PID] == nil {
		return ""
	}
	return fmt.Sprintf("%s[%d]", cleanComment(a.Text(unix.NFTA_GEN_PROC_NAME)), a.Number(unix.NFTA_GEN_PROC_PID))
}
