//go:build linux

// Package nft speaks netlink with the kernel's nf_tables, as nft(8) does, and
// knows nothing of rblnft. It has no state but its sockets.
//
// A [Transaction] is built message by message and done as a whole or not at all
// ([Conn.Commit]). [Conn.Get] asks for objects. [Conn.Apply], [Conn.Add] and
// [Conn.Ask] are what the owner of a set of addresses needs; the encoder of
// elements is some ten times as fast as that of google/nftables. A [Watcher] hears
// what others change.
//
// Numbers and names are those of linux/netfilter/nf_tables.h and nfnetlink.h.
package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What golang.org/x/sys/unix lacks of those.
const (
	msgDestroySetElem = 30 // NFT_MSG_DESTROYSETELEM, since Linux 6.3
	sizeofNfgenmsg    = 4  // of struct nfgenmsg, with which a message's body begins
)

// A Family is a table's address family, NFPROTO_… of linux/netfilter.h.
type Family uint8

// The families that a table with sets of addresses can have.
const (
	INet Family = unix.NFPROTO_INET
	IPv4 Family = unix.NFPROTO_IPV4
	IPv6 Family = unix.NFPROTO_IPV6
)

// String returns the family as nft(8) writes it.
func (f Family) String() string {
	return map[Family]string{INet: "inet", IPv4: "ip", IPv6: "ip6"}[f]
}

// A Table is where everything else is.
type Table struct {
	Family Family
	Name   string
}

// String returns the table as nft(8) writes it: "inet rblnft".
func (t Table) String() string { return t.Family.String() + " " + t.Name }

const (
	// sendBuffer bounds a transaction, which has to fit into the socket's send
	// buffer as a whole (netlink_sendmsg, EMSGSIZE). It is a bound, nothing is
	// reserved: some 2.5 million networks fit, or a thousand thousand elements.
	sendBuffer = 128 << 20
	// receiveBuffer holds the answers to one call, each of which takes up to
	// 4 KiB of it.
	receiveBuffer = 8 << 20
)

// A socket is a netlink socket. Its buffers are as large as is asked for with
// CAP_NET_ADMIN in the initial user namespace, otherwise as net.core.wmem_max and
// rmem_max permit.
type socket struct {
	nl  *netlink.Conn
	raw syscall.RawConn
}

// dial opens a socket, and has setup configure it.
func dial(setup func(*netlink.Conn) error) (s socket, err error) {
	if s.nl, err = netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{MessageBufferSize: 1 << 16}); err != nil {
		return s, fmt.Errorf("netlink: %w", err)
	}
	if s.raw, err = s.nl.SyscallConn(); err == nil {
		err = setup(s.nl)
	}
	if err != nil {
		s.nl.Close()
		return s, fmt.Errorf("netlink: %w", err)
	}
	return s, nil
}

// Close closes the socket. Whoever waits for something from it gets an error.
func (s *socket) Close() error { return s.nl.Close() }

// call makes a system call on the socket, again if a signal ended it.
func (s *socket) call(f func(fd int) error) error {
	err := net.ErrClosed // then there is no call
	s.raw.Control(func(fd uintptr) {
		for err = unix.EINTR; err == unix.EINTR; {
			err = f(int(fd))
		}
	})
	return err
}

// receive reads one datagram; the error is EAGAIN if there is none.
func (s *socket) receive(b []byte) (n int, err error) {
	err = s.call(func(fd int) (err error) {
		n, _, err = unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
		return err
	})
	return n, err
}

// drain throws away what the socket has received.
func (s *socket) drain() {
	for err := error(nil); err == nil || err == unix.ENOBUFS; {
		_, err = s.receive(make([]byte, 1))
	}
}

// A Conn is a netlink socket through which everything is asked and changed, so
// that what the kernel notifies of our changes can be told from the rest by the
// socket's port. It is for one goroutine.
type Conn struct {
	socket
	tx Transaction
	in []byte

	// NoDestroy says that the kernel has no NFT_MSG_DESTROYSETELEM (before
	// Linux 6.3), and that Apply has to ask first. Dial finds out.
	NoDestroy bool
}

// Dial opens a connection. To change anything CAP_NET_ADMIN is needed; without it
// the error is EPERM.
func Dial() (*Conn, error) {
	s, err := dial(func(nl *netlink.Conn) error {
		// With CapAcknowledge error messages do not quote what they are about.
		return errors.Join(nl.SetWriteBuffer(sendBuffer), nl.SetReadBuffer(receiveBuffer), nl.SetOption(netlink.CapAcknowledge, true))
	})
	if err != nil {
		return nil, err
	}
	c := &Conn{socket: s, in: make([]byte, 1<<16)}
	// A message that it does not know the kernel says is invalid, whatever it is
	// about; there is no such table.
	elements(&c.tx, msgDestroySetElem, 0, Table{INet, "no.such.table"}, "s", []netip.Addr{netip.IPv4Unspecified()}, appendKey)
	err = c.Commit(&c.tx)
	c.NoDestroy = errors.Is(err, unix.EINVAL)
	if !c.NoDestroy && !errors.Is(err, unix.ENOENT) {
		c.Close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return c, nil
}

// Port is the socket's netlink port.
func (c *Conn) Port() uint32 { return c.nl.PID() }

// What a transaction lies between.
var (
	batchBegin = appendHeader(nil, unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.AF_UNSPEC)
	batchEnd   = appendHeader(nil, unix.NFNL_MSG_BATCH_END, 0, 0, unix.AF_UNSPEC)
)

// Commit does a transaction; an empty one is done. If the kernel refuses it, nothing
// of it is done, and the error is the first that the kernel has with it, a
// [unix.Errno] with the number of the message; -1 is all of them.
func (c *Conn) Commit(t *Transaction) error {
	if t.n == 0 {
		return nil
	}
	// One message asks for an answer if all is well.
	binary.NativeEndian.PutUint16(t.buf[6:], binary.NativeEndian.Uint16(t.buf[6:])|unix.NLM_F_ACK)
	done := false
	for _, err := range c.exchange(batchBegin, t.buf, batchEnd) {
		if err != nil {
			return err
		}
		done = true
	}
	if !done {
		return errors.New("netlink receive: no answer")
	}
	return nil
}

// Get asks for objects of a table: kind is one of the NFT_MSG_GET…, flags are those
// of netlink(7), fields say which. What is not there is no error.
func (c *Conn) Get(kind, flags uint16, at Table, fields ...Field) (all []Attrs, err error) {
	c.tx.reset()
	c.tx.Message(kind, flags, at, fields...)
	for m, err := range c.exchange(c.tx.buf) {
		if errors.Is(err, unix.ENOENT) {
			return nil, nil
		}
		if err == nil && m.Header.Type == unix.NLMSG_DONE { // the end of a list
			return all, nil
		}
		var a Attrs
		if err == nil {
			a, err = parse(m.Data)
		}
		if err != nil {
			return nil, fmt.Errorf("netlink: %w", err)
		}
		all = append(all, a)
	}
	return all, nil
}

// A refusal is the kernel's error with a message, or with all of them, -1.
type refusal struct {
	message int
	errno   unix.Errno
}

func (r *refusal) Error() string {
	return fmt.Sprintf("message %d of the transaction: %v", r.message, r.errno)
}

func (r *refusal) Unwrap() error { return r.errno }

// exchange sends messages in one datagram, and yields every answer, or the error
// that it is: a refusal, or what ends the exchange. The kernel answers before the
// system call returns, so there is nothing to wait for. An answer is there until
// there is the next one.
func (c *Conn) exchange(request ...[]byte) iter.Seq2[syscall.NetlinkMessage, error] {
	return func(yield func(syscall.NetlinkMessage, error) bool) {
		err := c.call(func(fd int) error {
			_, err := unix.SendmsgBuffers(fd, request, nil, nil, 0)
			return err
		})
		if err != nil {
			yield(syscall.NetlinkMessage{}, fmt.Errorf("netlink send: %w", err))
			return
		}
		for {
			n, err := c.receive(c.in)
			if err == unix.EAGAIN {
				return
			}
			messages, malformed := syscall.ParseNetlinkMessage(c.in[:max(n, 0)])
			if err = errors.Join(err, malformed); err != nil {
				c.drain()
				yield(syscall.NetlinkMessage{}, fmt.Errorf("netlink receive: %w", err))
				return
			}
			for _, m := range messages {
				var err error
				if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES && len(m.Data) >= 4 {
					if n := int32(binary.NativeEndian.Uint32(m.Data)); n != 0 { // of NLMSG_ERROR and NLMSG_DONE
						err = &refusal{int(m.Header.Seq) - 1, unix.Errno(-n)}
					}
				}
				if !yield(m, err) {
					c.drain()
					return
				}
			}
		}
	}
}
