//go:build linux

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// sendBuffer bounds a transaction, which has to fit into the socket's send
	// buffer as a whole (netlink_sendmsg, EMSGSIZE). It is a bound, nothing is
	// reserved: some 2.5 million networks fit, or a thousand thousand elements.
	sendBuffer = 128 << 20
	// receiveBuffer holds the answers to one call, each of which takes up to
	// 4 KiB of it.
	receiveBuffer = 8 << 20
)

// A Conn is a netlink socket through which everything is asked and changed, so
// that what the kernel notifies of our changes can be told from the rest by the
// socket's port. It is for one goroutine.
type Conn struct {
	nl  *netlink.Conn
	raw syscall.RawConn
	tx  Transaction
	in  []byte

	// NoDestroy says that the kernel has no NFT_MSG_DESTROYSETELEM (before
	// Linux 6.3), and that Apply has to ask first. Dial finds out.
	NoDestroy bool
}

// Dial opens a connection. To change anything CAP_NET_ADMIN is needed; without it
// the error is EPERM.
func Dial() (*Conn, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{MessageBufferSize: 1 << 16})
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	c := &Conn{nl: nl, in: make([]byte, 1<<16)}
	c.raw, err = nl.SyscallConn()
	if err == nil {
		err = errors.Join(setBuffer(c.raw, unix.SO_SNDBUFFORCE, sendBuffer), setBuffer(c.raw, unix.SO_RCVBUFFORCE, receiveBuffer),
			// Error messages need not quote what they are about.
			nl.SetOption(netlink.CapAcknowledge, true))
	}
	if err == nil {
		c.NoDestroy, err = c.probe()
	}
	if err != nil {
		nl.Close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return c, nil
}

// setBuffer sizes a socket's buffer: with CAP_NET_ADMIN in the initial user
// namespace as it says, otherwise as net.core.wmem_max or rmem_max permits.
func setBuffer(raw syscall.RawConn, force, size int) (err error) {
	plain := map[int]int{unix.SO_SNDBUFFORCE: unix.SO_SNDBUF, unix.SO_RCVBUFFORCE: unix.SO_RCVBUF}[force]
	ctl := raw.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, force, size); err == unix.EPERM {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, plain, size)
		}
	})
	return errors.Join(ctl, err)
}

// probe finds out whether the kernel lacks NFT_MSG_DESTROYSETELEM, which it then
// says is invalid, whatever it is about.
func (c *Conn) probe() (lacks bool, err error) {
	at := Table{INet, "no.such.table"}
	c.tx.reset()
	c.tx.Message(msgDestroySetElem, 0, at, setFields(at, "s")...)
	err = c.Commit(&c.tx)
	switch {
	case errors.Is(err, unix.EINVAL):
		return true, nil
	case errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return false, err
}

// Close closes the socket.
func (c *Conn) Close() error { return c.nl.Close() }

// Port is the socket's netlink port.
func (c *Conn) Port() uint32 { return c.nl.PID() }

// Refused is the kernel's refusal of a transaction, of which nothing was done.
type Refused struct {
	Message int // the number of the first message that it refuses; -1: all of them
	Errno   unix.Errno
}

func (r *Refused) Error() string {
	return fmt.Sprintf("message %d of the transaction: %v", r.Message, r.Errno)
}

// Unwrap returns the kernel's error.
func (r *Refused) Unwrap() error { return r.Errno }

// Commit does a transaction; an empty one is done. An error that is no [Refused]
// means that it was not sent or that its fate is unknown.
func (c *Conn) Commit(t *Transaction) error {
	if t.n == 0 {
		return nil
	}
	if err := c.send(t.end()); err != nil {
		return fmt.Errorf("netlink send: %w", err)
	}
	var refused *Refused
	done := false
	err := c.answers(func(kind uint16, seq uint32, body []byte) {
		message := int(seq) - 1
		if kind != unix.NLMSG_ERROR || message >= t.n || len(body) < 4 {
			return
		}
		errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		switch {
		case errno != 0 && refused == nil:
			refused = &Refused{message, errno}
		case errno == 0 && message == t.n-1:
			done = true
		}
	})
	switch {
	case refused != nil:
		return refused
	case err != nil:
		return fmt.Errorf("netlink receive: %w", err)
	case !done:
		return errors.New("netlink receive: no answer")
	}
	return nil
}

// Get asks for objects of a table: kind is one of the NFT_MSG_GET…, fields say
// which. What is not there is no error.
func (c *Conn) Get(kind uint16, flags netlink.HeaderFlags, at Table, fields ...Field) (all []Attrs, err error) {
	answers, err := c.nl.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags},
		Data:   appendFields([]byte{byte(at.Family), unix.NFNETLINK_V0, 0, 0}, fields),
	})
	if err != nil {
		c.drain()
		if errors.Is(err, unix.ENOENT) {
			return nil, nil
		}
		return nil, fmt.Errorf("netlink: %w", err)
	}
	for _, m := range answers {
		a, err := parse(m.Data)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

// send sends b in one datagram. It returns when the kernel has dealt with it.
func (c *Conn) send(b []byte) (err error) {
	ctl := c.raw.Control(func(fd uintptr) {
		for {
			if err = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != unix.EINTR {
				return
			}
		}
	})
	return errors.Join(ctl, err)
}

// answers calls each with every message that the kernel has sent: it answers
// before send returns, so there is nothing to wait for.
func (c *Conn) answers(each func(kind uint16, seq uint32, body []byte)) error {
	for {
		n, err := c.receive()
		if err == unix.EAGAIN {
			return nil
		}
		if err != nil {
			c.drain()
			return err
		}
		for b := c.in[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				c.drain()
				return errors.New("malformed answer")
			}
			each(binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[unix.SizeofNlMsghdr:size])
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}

func (c *Conn) receive() (n int, err error) {
	ctl := c.raw.Control(func(fd uintptr) {
		for {
			if n, _, err = unix.Recvfrom(int(fd), c.in, unix.MSG_DONTWAIT); err != unix.EINTR {
				return
			}
		}
	})
	if ctl != nil {
		return 0, ctl
	}
	return n, err
}

// drain throws away what was not read of the answers.
func (c *Conn) drain() {
	for {
		if _, err := c.receive(); err != nil && err != unix.ENOBUFS {
			return
		}
	}
}
