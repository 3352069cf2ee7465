package hit

import "golang.org/x/sys/unix"

// A Sender sends one hit, without ever waiting.
type Sender struct {
	fd   int
	line []byte
}

// NewSender opens a socket to send h from to the socket at path. The error is
// the system's: ENOENT where there is no socket, ECONNREFUSED where nobody
// listens, EACCES where the caller may not report (unix(7)).
func NewSender(path string, h Hit) (*Sender, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &Sender{fd: fd, line: h.Append(make([]byte, 0, 512))}, nil
}

// FD is a descriptor that poll(2) reports writable when the receiver's queue
// has room again.
func (s *Sender) FD() int { return s.fd }

// Send sends the hit if the receiver's queue has room. It returns false and no
// error where it has none: wait for [Sender.FD] and try again.
func (s *Sender) Send() (sent bool, err error) {
	err = unix.Send(s.fd, s.line, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if err == unix.EAGAIN || err == unix.EINTR {
		return false, nil
	}
	return err == nil, err
}

// Close closes the socket. What has been sent stays sent.
func (s *Sender) Close() error { return unix.Close(s.fd) }
