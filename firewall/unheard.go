package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// manyElements is from how many elements on a transaction is done unheard.
const manyElements = 100

// unheard does work while the listener is not listening, and reports whether
// others may have made changes meanwhile. Its error means that the listener has
// failed. It is called with mu held, and so is work.
//
// The kernel composes a notification for every element even if the only
// listener wants none of them, and needs as much time for that as for adding
// the element. What others do meanwhile is seen from the generation of the
// ruleset, which a transaction raises before it notifies (nf_tables_commit).
func (t *Table) unheard(work func()) (missed bool, err error) {
	t.isUnheard = true
	defer func() { t.isUnheard = false }()
	t.markGeneration()
	// What is of the mark's generation may be notifying still.
	if err := t.conn.waitForOthers(); err != nil {
		t.mark.generation = 0
	}
	if err := t.listener.leave(); err != nil {
		return false, fmt.Errorf("stop listening for changes: %w", err)
	}
	work()
	if err := t.listener.join(); err != nil {
		return false, fmt.Errorf("listen for changes: %w", err)
	}
	return t.othersChanged(), nil
}

// applyUnheard does the changes in one transaction as applyLocked does, unheard.
// What others did meanwhile is for Run to find out.
func (t *Table) applyUnheard(apply func() (full int, err error)) (full int, err error) {
	missed, failed := t.unheard(func() { full, err = apply() })
	if missed || failed != nil {
		t.missed, t.deaf = true, failed
		t.poke()
	}
	return full, errors.Join(err, failed)
}

// takeMissed reports whether changes may have been missed while blocks were
// committed. Its error means that the listener has failed.
func (t *Table) takeMissed() (missed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	missed, t.missed = t.missed, false
	return missed, t.deaf
}

// A mark is a generation of the ruleset, and how many transactions we had done
// by then. Without a generation, 0, it is not known.
type mark struct{ generation, done uint32 }

// markGeneration remembers the present generation for othersChanged.
func (t *Table) markGeneration() {
	t.mark = mark{t.generation(), t.conn.done}
	t.conn.vague = false
}

// othersChanged reports whether transactions were done since the mark that were
// not ours, or may not have been.
func (t *Table) othersChanged() bool {
	generation := t.generation()
	return t.conn.vague || generation == 0 || t.mark.generation == 0 ||
		generation-t.mark.generation != t.conn.done-t.mark.done
}

// generation is the generation of the ruleset, or 0.
func (t *Table) generation() uint32 {
	generation, err := t.conn.generation()
	if err != nil {
		t.log.Debug("whether others changed the ruleset is not known", "error", err)
	}
	return generation
}

// generation returns the number of the ruleset's generation, which every
// transaction that changes something raises by one (nf_tables_commit). It is
// never 0.
func (c *conn) generation() (uint32, error) {
	var b batch
	b.header(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, unix.NLM_F_REQUEST, 0)
	b.buf = append(b.buf, unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0)
	if err := c.send(b.buf); err != nil {
		return 0, err
	}
	n, err := c.receive()
	if err != nil {
		return 0, fmt.Errorf("netlink receive: %w", err)
	}
	const header = unix.SizeofNlMsghdr + sizeofNfgenmsg
	if n < header || binary.NativeEndian.Uint16(c.in[4:]) != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
		c.drain()
		return 0, errors.New("netlink receive: no answer about the generation")
	}
	return generationOf(c.in[unix.SizeofNlMsghdr:n])
}

// waitForOthers waits until no transaction is under way: one of ours without
// any message, which changes nothing, has to wait for it
// (nf_tables_valid_genid).
func (c *conn) waitForOthers() error {
	var b batch
	b.reset(unix.AF_UNSPEC, "", 0)
	b.header(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, 1)
	b.control()
	return c.send(b.buf)
}

// send sends messages that the kernel has dealt with when it returns.
func (c *conn) send(messages []byte) (err error) {
	if ctl := c.raw.Control(func(fd uintptr) {
		err = unix.Sendto(int(fd), messages, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}); ctl != nil {
		return ctl
	}
	if err != nil {
		return fmt.Errorf("netlink send: %w", err)
	}
	return nil
}
