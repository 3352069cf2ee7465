package resolver

import (
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// conn is a socket to one server, for one lookup.
type conn struct {
	fd     int // -1 when dropped
	server int
	id     uint16 // of the query
	tcp    bool
	unsent []byte // of the query, TCP only
	read   []byte // of the length and the answer, TCP only
}

// dial opens a socket that talks to one server alone, so that the kernel keeps
// out what others send, and tells when nobody listens there (udp(7)).
func dial(addr netip.Addr, kind int) (fd int, err error) {
	family, to := unix.AF_INET, unix.Sockaddr(nil)
	if addr.Is4() {
		to = &unix.SockaddrInet4{Port: dnsPort, Addr: addr.As4()}
	} else {
		family = unix.AF_INET6
		to = &unix.SockaddrInet6{Port: dnsPort, Addr: addr.As16(), ZoneId: zoneID(addr.Zone())}
	}
	fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, to); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// trouble is what an error of a socket means for the server.
type trouble uint8

const (
	exhausted   trouble = iota // nothing: this host has no more to give at the moment
	absent                     // nobody listens there, which may be a restart
	unreachable                // it will not answer: no route, forbidden, no such protocol
)

func troubleOf(err error) trouble {
	switch err {
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EAGAIN, unix.EINTR:
		return exhausted
	case unix.ECONNREFUSED:
		return absent
	}
	return unreachable
}

// zoneID returns the index of the interface that a link-local address is on.
func zoneID(name string) uint32 {
	if name == "" {
		return 0
	}
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n)
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	ifreq, err := unix.NewIfreq(name)
	if err != nil || unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifreq) != nil {
		return 0
	}
	return ifreq.Uint32()
}

func (c *conn) wants() int16 {
	if len(c.unsent) > 0 {
		return unix.POLLOUT
	}
	return unix.POLLIN
}

func (c *conn) drop() {
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// progress is how far a conn has come.
type progress uint8

const (
	waiting  progress = iota // for more
	complete                 // a message is there
	broken                   // it will not come
)

// step writes or reads as much as there is. The message is valid until the
// next step; err is why a datagram will not come.
func (c *conn) step() (message []byte, p progress, err error) {
	if c.fd < 0 {
		return nil, waiting, nil
	}
	if !c.tcp {
		var buf [maxUDP + 1]byte
		n, err := unix.Read(c.fd, buf[:])
		switch {
		case err != nil && troubleOf(err) == exhausted, n > maxUDP:
			return nil, waiting, nil
		case err != nil:
			return nil, broken, err
		}
		return buf[:n], complete, nil
	}
	if len(c.unsent) > 0 {
		n, err := unix.SendmsgN(c.fd, c.unsent, nil, nil, unix.MSG_NOSIGNAL)
		if err == unix.EAGAIN || err == unix.EINTR {
			return nil, waiting, nil
		}
		if err != nil {
			return nil, broken, err
		}
		c.unsent = c.unsent[n:]
		return nil, waiting, nil
	}
	message, p = c.readTCP()
	return message, p, nil
}

// readTCP reads the two bytes of length (RFC 7766, section 8), then as many.
func (c *conn) readTCP() ([]byte, progress) {
	want := 2
	if len(c.read) >= 2 {
		want = 2 + int(c.read[0])<<8 + int(c.read[1])
	}
	if want > maxTCP {
		return nil, broken
	}
	if cap(c.read) < want {
		c.read = append(make([]byte, 0, want), c.read...)
	}
	n, err := unix.Read(c.fd, c.read[len(c.read):want])
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return nil, waiting
	case err != nil || n == 0:
		return nil, broken
	}
	c.read = c.read[:len(c.read)+n]
	if len(c.read) == want && want > 2 {
		return c.read[2:], complete
	}
	return nil, waiting
}
