//go:build linux

package intake

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Peer says what is done with the client's connection that a hit may carry.
type Peer string

// The values of Peer.
const (
	// Ignore believes the address in the hit.
	Ignore Peer = "ignore"
	// Verify refuses a hit whose connection is to another address, and
	// believes one that carries none.
	Verify Peer = "verify"
	// Require refuses a hit without a connection too, and one with a
	// connection that was not accepted on a mail port of this network
	// namespace: anybody can connect to the address he wants blocked, or
	// make a namespace in which he has it himself.
	Require Peer = "require"
)

// checkPeer reports whether fd is a TCP connection with addr.
func checkPeer(fd int, addr netip.Addr) error {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err == unix.ENOTSOCK {
		return errors.New("the descriptor is no socket")
	}
	if err != nil {
		return fmt.Errorf("SO_PROTOCOL: %w", err)
	}
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("SO_DOMAIN: %w", err)
	}
	// A datagram socket has whatever peer it was told to have.
	if family != unix.AF_INET && family != unix.AF_INET6 || protocol != unix.IPPROTO_TCP && protocol != unix.IPPROTO_MPTCP {
		return errors.New("the socket is not a TCP one")
	}
	peer, err := peerOf(fd, family)
	if err != nil {
		return err
	}
	if peer != addr {
		return fmt.Errorf("the socket's peer is %s", peer)
	}
	return nil
}

// peerOf returns the peer of a TCP connection that stands, or has stood: hits
// wait in the socket until the daemon is up, and clients do not.
func peerOf(fd, family int) (netip.Addr, error) {
	name, err := unix.Getpeername(fd)
	if err == nil {
		peer, _ := addrPort(name)
		return peer, nil
	}
	if err != unix.ENOTCONN {
		return netip.Addr{}, fmt.Errorf("getpeername: %w", err)
	}
	// What was received, a FIN included, tells a connection that has ended
	// from one that never was (tcp(7), TCP_INFO).
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("TCP_INFO: %w", err)
	}
	if info.State != unix.BPF_TCP_CLOSE || info.Bytes_received == 0 {
		return netip.Addr{}, errors.New("the socket is not connected")
	}
	// SO_PEERNAME is getpeername(2) for such a connection too (inet_getname). It
	// wants the very size of the family's addresses (sk_getsockopt).
	var raw unix.RawSockaddrInet6
	size := uint32(unix.SizeofSockaddrInet6)
	if family == unix.AF_INET {
		size = unix.SizeofSockaddrInet4
	}
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERNAME,
		uintptr(unsafe.Pointer(&raw)), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
		return netip.Addr{}, fmt.Errorf("SO_PEERNAME: %w", errno)
	}
	if family == unix.AF_INET {
		return netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(&raw)).Addr), nil
	}
	return netip.AddrFrom16(raw.Addr).Unmap(), nil
}

// checkAccepted reports whether the TCP connection fd was made by its peer: to
// connect from a port as low as these takes privileges, or the port's being
// free.
func checkAccepted(fd int, ports []uint16, netns uint64) error {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return fmt.Errorf("SO_NETNS_COOKIE: %w", err)
	}
	if netns == 0 || cookie != netns {
		return errors.New("the socket is of another network namespace")
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	if _, port := addrPort(name); !slices.Contains(ports, port) {
		return fmt.Errorf("the socket's own port is %d, which is no mail port", port)
	}
	return nil
}

// addrPort returns the address, IPv4 where it is IPv4-mapped, and the port.
func addrPort(name unix.Sockaddr) (netip.Addr, uint16) {
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(name.Addr), uint16(name.Port)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(name.Addr).Unmap(), uint16(name.Port)
	}
	return netip.Addr{}, 0
}

// closer closes descriptors that somebody else made, so that closing them may
// take as long as he likes.
type closer struct{ slots chan struct{} }

// slow is how many descriptors that are no sockets are being closed at most.
const slow = 64

func (c *closer) close(fd int) {
	linger, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LINGER)
	if err == nil {
		// The last close of a connection waits where SO_LINGER says so
		// (socket(7)). We have no bytes of ours in it.
		if linger != 0 {
			unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{})
		}
		unix.Close(fd)
		return
	}
	// A file may be of a file system that answers when it pleases (FUSE).
	if c.slots == nil {
		c.slots = make(chan struct{}, slow)
	}
	select {
	case c.slots <- struct{}{}:
		go func() {
			unix.Close(fd)
			<-c.slots
		}()
	default:
		unix.Close(fd)
	}
}
