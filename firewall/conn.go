package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// sendBuffer is what is asked of the kernel for a transaction, which has
	// to fit into the socket's send buffer as a whole (netlink_sendmsg,
	// EMSGSIZE). Without CAP_NET_ADMIN in the initial user namespace the
	// kernel gives net.core.wmem_max.
	sendBuffer = 1 << 20
	// receiveBuffer holds the error messages of one transaction, each of
	// which takes some 800 bytes of it.
	receiveBuffer = 4 << 20
	// replyTimeout bounds the wait for an answer of the kernel, which gives
	// it before the system call that asks returns.
	replyTimeout = 5 * time.Second
)

// A conn is the one netlink socket through which everything is changed, so
// that what the kernel notifies of our changes can be told from the rest by
// the socket's port.
type conn struct {
	nl  *netlink.Conn
	raw syscall.RawConn
	nft *nftables.Conn // makes tables, sets, chains and rules through nl
	max int            // bytes that a transaction may have
	seq uint32
	in  []byte

	// done counts the transactions that were done, each of which is a
	// generation of the ruleset. It is vague if one may have changed nothing.
	done  uint32
	vague bool
}

func dial() (*conn, error) {
	c := &conn{in: make([]byte, 1<<16)}
	var err error
	c.nft, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(nl *netlink.Conn) error {
		c.nl = nl
		return nil
	}))
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	if c.raw, err = c.nl.SyscallConn(); err == nil {
		err = c.buffers()
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return c, nil
}

func (c *conn) close() { c.nft.CloseLasting() }

// buffers sizes the socket's buffers, and bounds transactions by what it got.
func (c *conn) buffers() error {
	if err := c.nl.SetWriteBuffer(sendBuffer); err != nil {
		return err
	}
	if err := c.nl.SetReadBuffer(receiveBuffer); err != nil {
		return err
	}
	// Error messages need not quote what they are about.
	if err := c.nl.SetOption(netlink.CapAcknowledge, true); err != nil {
		return err
	}
	got, err := c.nl.WriteBuffer()
	if err != nil {
		return err
	}
	c.max = got - 32 // netlink_sendmsg
	return nil
}

// fits reports whether b, once ended, is small enough for one transaction.
func (c *conn) fits(b *batch) bool { return len(b.buf)+unix.SizeofNlMsghdr+sizeofNfgenmsg <= c.max }

// portID tells our transactions in the kernel's notifications.
func (c *conn) portID() uint32 { return c.nl.PID() }

// structure runs change, which queues changes of tables, sets, chains and
// rules, and does all of them in one transaction.
func (c *conn) structure(change func(*nftables.Conn) error) error {
	if err := change(c.nft); err != nil {
		return err
	}
	if err := c.nl.SetReadDeadline(time.Now().Add(replyTimeout)); err != nil {
		return err
	}
	err := c.nft.Flush()
	if err != nil {
		c.drain()
	} else {
		c.done++
	}
	return errors.Join(err, c.nl.SetReadDeadline(time.Time{}))
}

// A failure is the kernel's refusal of one message of a batch.
type failure struct {
	message int // its number in the batch; -1 for the batch as a whole
	errno   unix.Errno
}

// start resets b for a transaction on this connection.
func (c *conn) start(b *batch, table *nftables.Table) {
	c.seq += 1 << 16
	b.reset(byte(table.Family), table.Name, c.seq)
}

// commit does the transaction. Every message that the kernel refuses is among
// the failures, and if there is one then nothing was done. An error means that
// the transaction was not sent or that its fate is unknown.
func (c *conn) commit(b *batch) ([]failure, error) {
	if err := c.send(b.end()); err != nil {
		return nil, err
	}
	var failures []failure
	for {
		n, err := c.receive()
		if err != nil {
			c.drain()
			return nil, fmt.Errorf("netlink receive: %w", err)
		}
		replies := c.in[:n]
		for len(replies) >= unix.SizeofNlMsghdr+4 {
			size := int(binary.NativeEndian.Uint32(replies))
			kind := binary.NativeEndian.Uint16(replies[4:])
			message := int(int32(binary.NativeEndian.Uint32(replies[8:]) - b.seq - 1))
			if size < unix.SizeofNlMsghdr+4 || size > len(replies) {
				c.drain()
				return nil, errors.New("netlink receive: malformed reply")
			}
			if kind == unix.NLMSG_ERROR && message >= -1 && message < b.n {
				errno := unix.Errno(-int32(binary.NativeEndian.Uint32(replies[unix.SizeofNlMsghdr:])))
				if errno != 0 {
					failures = append(failures, failure{message, errno})
				}
				// The replies come in the order of the messages, unless
				// the batch fails as a whole.
				if message == b.n-1 || message == -1 {
					if len(failures) == 0 {
						c.done++
					}
					return failures, nil
				}
			}
			replies = replies[min((size+3)&^3, len(replies)):]
		}
	}
}

// receive reads one datagram into c.in. The kernel answers a transaction
// before sendto returns, so there is nothing to wait for.
func (c *conn) receive() (n int, err error) {
	if ctl := c.raw.Control(func(fd uintptr) {
		n, _, err = unix.Recvfrom(int(fd), c.in, unix.MSG_DONTWAIT)
	}); ctl != nil {
		return 0, ctl
	}
	return n, err
}

// drain throws away what was not read of the replies to a failed transaction.
func (c *conn) drain() {
	for {
		if _, err := c.receive(); err != nil && err != unix.ENOBUFS {
			return
		}
	}
}
