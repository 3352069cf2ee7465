//go:build linux

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

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
	nl   *netlink.Conn
	raw  syscall.RawConn
	at   Table
	left []netlink.Message // received, not looked at yet
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

// changeSize bounds the elements of a Change.
const changeSize = 1000

// Watch starts to watch a table. Changes made through the netlink port own are
// not heard of: a filter in the kernel throws them away.
func Watch(at Table, own uint32) (*Watcher, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{MessageBufferSize: 1 << 16})
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	filter, err := bpf.Assemble([]bpf.Instruction{
		// nlmsg_pid is the port of who made the change. It is in the host's
		// byte order, which the load takes for the network's.
		bpf.LoadAbsolute{Off: 12, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, own)), SkipTrue: 1},
		bpf.RetConstant{Val: 1<<32 - 1},
		bpf.RetConstant{Val: 0},
	})
	var raw syscall.RawConn
	if err == nil {
		raw, err = nl.SyscallConn()
	}
	if err == nil {
		err = errors.Join(nl.SetBPF(filter), setBuffer(raw, unix.SO_RCVBUFFORCE, watchBuffer), nl.JoinGroup(unix.NFNLGRP_NFTABLES))
	}
	if err != nil {
		nl.Close()
		return nil, fmt.Errorf("netlink: watch: %w", err)
	}
	return &Watcher{nl: nl, raw: raw, at: at}, nil
}

// Close ends the watch, and Receive with an error.
func (w *Watcher) Close() error { return w.nl.Close() }

// Receive waits for a change that concerns the table.
func (w *Watcher) Receive() (Change, error) {
	var c Change
	for {
		if len(w.left) == 0 {
			messages, err := w.nl.Receive()
			if errors.Is(err, unix.ENOBUFS) {
				// The kernel says so once, until the queue is empty: what it
				// loses of the rest must not go unnoticed.
				w.discard()
				return Change{Lost: true}, nil
			}
			if err != nil {
				return Change{}, fmt.Errorf("netlink receive: %w", err)
			}
			w.left = messages
		}
		m := w.left[0]
		w.left = w.left[1:]
		if w.read(m, &c) && (c.Structure || c.Lost || len(c.Elements) > 0) {
			return c, nil
		}
	}
}

// discard empties the queue.
func (w *Watcher) discard() {
	b := make([]byte, 1<<16)
	w.raw.Control(func(fd uintptr) {
		for err := error(nil); err == nil || err == unix.EINTR || err == unix.ENOBUFS; {
			_, _, err = unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT)
		}
	})
}

// read adds what a message says to c, and reports whether c is complete.
func (w *Watcher) read(m netlink.Message, c *Change) (complete bool) {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES {
		return false
	}
	kind := m.Header.Type & 0xff
	if kind == unix.NFT_MSG_NEWGEN {
		c.By = process(m.Data)
		return true
	}
	if len(m.Data) < sizeofNfgenmsg || m.Data[0] != byte(w.at.Family) {
		return false
	}
	var err error
	switch kind {
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
		var table, set string
		var keys []netip.Addr
		if table, set, keys, err = elementKeys(m.Data); err == nil && table == w.at.Name {
			for _, key := range keys {
				c.Elements = append(c.Elements, SetElement{set, key, kind == unix.NFT_MSG_DELSETELEM})
			}
		}
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_NEWRULE,
		unix.NFT_MSG_DELRULE, unix.NFT_MSG_NEWSET, unix.NFT_MSG_DELSET, unix.NFT_MSG_NEWOBJ, unix.NFT_MSG_DELOBJ:
		// NFTA_TABLE_NAME, and the table of all other objects, are 1.
		var a Attrs
		a, err = parse(m.Data)
		c.Structure = c.Structure || a.Text(unix.NFTA_TABLE_NAME) == w.at.Name
	}
	c.Lost = c.Lost || err != nil // what cannot be read is as good as lost
	return len(c.Elements) >= changeSize
}

// process says which process made a change, from a NFT_MSG_NEWGEN.
func process(body []byte) string {
	a, err := parse(body)
	if err != nil || a[unix.NFTA_GEN_PROC_PID] == nil {
		return ""
	}
	return fmt.Sprintf("%s[%d]", cleanComment(a.Text(unix.NFTA_GEN_PROC_NAME)), a.Number(unix.NFTA_GEN_PROC_PID))
}
