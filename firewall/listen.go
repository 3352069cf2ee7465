package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// listenBuffer is the listener's receive buffer: what others may change
// before the kernel starts to lose notifications, some 30,000 elements.
const listenBuffer = 16 << 20

// A listener receives what the kernel notifies of others' changes of one
// table (NFNLGRP_NFTABLES; nft monitor shows the same).
type listener struct {
	nl *netlink.Conn
	at *nftables.Table
}

// listen starts to listen. Changes made through the netlink port own are not
// heard of: a filter in the kernel throws them away.
func listen(at *nftables.Table, own uint32) (*listener, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{MessageBufferSize: 1 << 16})
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	filter, err := bpf.Assemble([]bpf.Instruction{
		// nlmsg_pid is the port of who made the change. It is in the
		// host's byte order, which the load takes for the network's.
		bpf.LoadAbsolute{Off: 12, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, own)), SkipTrue: 1},
		bpf.RetConstant{Val: 1<<32 - 1},
		bpf.RetConstant{Val: 0},
	})
	l := &listener{nl: nl, at: at}
	if err == nil {
		err = errors.Join(nl.SetBPF(filter), nl.SetReadBuffer(listenBuffer), l.join())
	}
	if err != nil {
		nl.Close()
		return nil, fmt.Errorf("netlink: listen for changes: %w", err)
	}
	return l, nil
}

func (l *listener) join() error  { return l.nl.JoinGroup(unix.NFNLGRP_NFTABLES) }
func (l *listener) leave() error { return l.nl.LeaveGroup(unix.NFNLGRP_NFTABLES) }

func (l *listener) close() { l.nl.Close() }

// A transaction is what somebody else changed of the table at once.
type transaction struct {
	structure bool         // the table, or a set, chain or rule of it
	elements  []elementSet // of its sets, in order
	by        string       // the process that did it
	lost      bool         // notifications were lost before this one
	err       error        // the last one: the listener has failed
}

// An elementSet is elements that were added to a set, or deleted.
type elementSet struct {
	set      string
	added    bool
	elements []element
	at       time.Time
}

// run sends every transaction that concerns the table, until done is closed or
// the listener fails.
func (l *listener) run(done <-chan struct{}, to chan<- transaction) {
	var tx transaction
	send := func() bool {
		defer func() { tx = transaction{} }()
		if !tx.structure && !tx.lost && tx.err == nil && len(tx.elements) == 0 {
			return true
		}
		select {
		case to <- tx:
			return true
		case <-done:
			return false
		}
	}
	for {
		messages, err := l.nl.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			tx = transaction{lost: true}
			if !send() {
				return
			}
			continue
		}
		if err != nil {
			select {
			case <-done:
			default:
				tx = transaction{err: fmt.Errorf("netlink receive: %w", err)}
				send()
			}
			return
		}
		for _, m := range messages {
			if l.read(m, &tx) && !send() {
				return
			}
		}
	}
}

// read adds what a message says to tx, and reports whether it is the last one
// of its transaction.
func (l *listener) read(m netlink.Message, tx *transaction) (last bool) {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES {
		return false
	}
	kind := m.Header.Type & 0xff
	if kind == unix.NFT_MSG_NEWGEN {
		tx.by = process(m.Data)
		return true
	}
	if len(m.Data) < sizeofNfgenmsg || m.Data[0] != byte(l.at.Family) {
		return false
	}
	switch kind {
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
		table, set, elements, err := decodeElements(m.Data)
		if err != nil {
			tx.lost = true // a message that cannot be read is as good as lost
		} else if table == l.at.Name {
			tx.elements = append(tx.elements, elementSet{set, kind == unix.NFT_MSG_NEWSETELEM, elements, time.Now()})
		}
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN,
		unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE, unix.NFT_MSG_NEWSET, unix.NFT_MSG_DELSET:
		err := eachAttr(m.Data, func(ad *netlink.AttributeDecoder) {
			// NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE and
			// NFTA_SET_TABLE are all 1.
			if ad.Type() == unix.NFTA_TABLE_NAME && ad.String() == l.at.Name {
				tx.structure = true
			}
		})
		if err != nil {
			tx.lost = true
		}
	}
	return false
}

// process says which process made a change, from a NFT_MSG_NEWGEN.
func process(body []byte) string {
	var pid uint32
	var name string
	err := eachAttr(body, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_GEN_PROC_PID:
			pid = ad.Uint32()
		case unix.NFTA_GEN_PROC_NAME:
			name = ad.String()
		}
	})
	if err != nil || pid == 0 {
		return "unknown"
	}
	return fmt.Sprintf("%s[%d]", cleanComment(name), pid)
}
