package hit

import (
	"golang.org/x/sys/unix"
)

// A Sender sends one hit, without ever waiting.
type Sender struct {
	fd     int
	client int // the descriptor to attach, or -1
	line   []byte
}

// NewSender opens a socket to send h from to the socket at path. The client's
// own connection, the descriptor client, goes with it if it is a socket; -1
// attaches nothing. The error is the system's: ENOENT where there is no socket,
// ECONNREFUSED where nobody listens (unix(7)).
func NewSender(path string, h Hit, client int) (*Sender, error) {
	if !isSocket(client) {
		client = -1
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &Sender{fd: fd, client: client, line: h.Append(make([]byte, 0, 512))}, nil
}

func isSocket(fd int) bool {
	var st unix.Stat_t
	return fd >= 0 && unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK
}

// FD is a descriptor that poll(2) reports writable when the receiver's queue
// has room again.
func (s *Sender) FD() int { return s.fd }

// Send sends the hit if the receiver's queue has room. It returns false and no
// error where it has none: wait for [Sender.FD] and try again.
func (s *Sender) Send() (sent bool, err error) {
	err = s.send()
	if err == unix.ETOOMANYREFS {
		// Too many descriptors are in flight already (unix(7)). The hit
		// is worth more than its proof.
		s.client = -1
		err = s.send()
	}
	switch err {
	case nil:
		return true, nil
	case unix.EAGAIN, unix.EINTR:
		return false, nil
	}
	return false, err
}

func (s *Sender) send() error {
	var rights []byte
	if s.client >= 0 {
		rights = unix.UnixRights(s.client)
	}
	return unix.Sendmsg(s.fd, s.line, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

// Attached reports whether the client's connection goes with the hit. It then
// stays open until the receiver has closed its copy too.
func (s *Sender) Attached() bool { return s.client >= 0 }

// Close closes the socket. What has been sent stays sent.
func (s *Sender) Close() error { return unix.Close(s.fd) }
