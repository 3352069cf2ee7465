package smtpreply

import (
	"time"

	"golang.org/x/sys/unix"
)

// A Background is something else that a conversation gives its waiting time to.
type Background interface {
	// FD is the descriptor that it waits for to become writable, or -1 if
	// there is nothing to wait for any more.
	FD() int
	// Writable is called when it has.
	Writable()
}

// Serve holds the conversation with the client that is read from descriptor in
// and written to descriptor out. It ends when the client quits or is gone, and
// after timeout in any case, whatever the client does or fails to do. A timeout
// of zero, or less, sends the error line alone. It never blocks on either
// descriptor, nor changes its flags.
func (c *Conversation) Serve(in, out int, timeout time.Duration, also Background) {
	s := server{in: in, out: out, deadline: time.Now().Add(timeout), also: also}
	if timeout <= 0 {
		s.deadline = time.Now()
		s.write([]byte(c.errorLine))
		return
	}
	if !s.write([]byte(greeting)) {
		return
	}
	// One reply is longer than the shortest command: what goes out is bounded
	// by reading little at a time.
	var input [512]byte
	replies := make([]byte, 0, 4096)
	for s.wait(in, unix.POLLIN) {
		n, err := readNow(in, input[:])
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		var quit bool
		replies, quit = c.Input(input[:n], replies[:0])
		if len(replies) > 0 && !s.write(replies) || quit {
			return
		}
	}
}

type server struct {
	in, out  int
	deadline time.Time
	also     Background
}

// wait waits until the descriptor is ready, or returns false at the deadline.
func (s *server) wait(fd int, events int16) bool {
	for {
		left := time.Until(s.deadline)
		if left < 0 {
			return false
		}
		fds := [2]unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: -1, Events: unix.POLLOUT}}
		if s.also != nil {
			fds[1].Fd = int32(s.also.FD())
		}
		timeout := unix.NsecToTimespec(left.Nanoseconds())
		if _, err := unix.Ppoll(fds[:], &timeout, nil); err != nil {
			if err == unix.EINTR {
				continue
			}
			return false
		}
		if fds[1].Revents != 0 {
			s.also.Writable()
		}
		if fds[0].Revents != 0 {
			return true
		}
	}
}

// write writes all of b, or returns false when the client is gone or the time
// is up. With no time at all it tries once.
func (s *server) write(b []byte) bool {
	for {
		n, err := writeNow(s.out, b)
		switch {
		case err == nil:
			b = b[n:]
		case err != unix.EAGAIN && err != unix.EINTR:
			return false
		}
		if len(b) == 0 {
			return true
		}
		if !s.wait(s.out, unix.POLLOUT) {
			return false
		}
	}
}

// readNow reads what is there.
func readNow(fd int, b []byte) (int, error) {
	n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
	if err == unix.ENOTSOCK {
		return unix.Read(fd, b)
	}
	return n, err
}

// writeNow writes what can be written without waiting. A descriptor that is no
// socket is written to only when poll(2) says that it can be; a pipe then takes
// PIPE_BUF bytes (pipe(7)).
func writeNow(fd int, b []byte) (int, error) {
	n, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if err != unix.ENOTSOCK {
		return n, err
	}
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(fds[:], 0); err != nil || n == 0 {
		return 0, unix.EAGAIN
	}
	const pipeBuf = 4096
	return unix.Write(fd, b[:min(len(b), pipeBuf)])
}
