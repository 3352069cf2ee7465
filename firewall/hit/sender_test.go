package hit

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSender(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	h := Hit{Addr: netip.MustParseAddr("192.0.2.1"), Zone: "bl.example", Answer: "553 listed"}
	if _, err := NewSender(path, h); !errors.Is(err, unix.ENOENT) {
		t.Error("no socket:", err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	// One sender after the other, until the queue is full.
	sent := 0
	for {
		s, err := NewSender(path, h)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if flags, _ := unix.FcntlInt(uintptr(s.FD()), unix.F_GETFD, 0); flags != unix.FD_CLOEXEC {
			t.Error("the next program inherits the socket")
		}
		if ok, err := s.Send(); err != nil {
			t.Fatal(err)
		} else if ok {
			if sent++; sent > 10_000 {
				t.Fatal("a queue without an end")
			}
			s.Close()
			continue
		}
		writable := []unix.PollFd{{Fd: int32(s.FD()), Events: unix.POLLOUT}}
		if n, err := unix.Poll(writable, 0); n != 0 || err != nil {
			t.Errorf("writable without room: %d, %v", n, err)
		}
		b := make([]byte, 2*MaxLen)
		for range sent {
			n, err := conn.Read(b)
			if back, bad := Parse(b[:n]); err != nil || bad != nil || back != h {
				t.Fatalf("%q: %+v, %v, %v", b[:n], back, bad, err)
			}
		}
		if n, err := unix.Poll(writable, 10_000); n != 1 || err != nil {
			t.Errorf("with room: %d, %v", n, err)
		}
		if ok, err := s.Send(); !ok || err != nil {
			t.Errorf("with room: %v, %v", ok, err)
		}
		conn.Close()
		if ok, err := s.Send(); ok || !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("without a receiver: %v, %v", ok, err)
		}
		break
	}
	if _, err := NewSender(path, h); err == nil {
		t.Error("nobody listens")
	}
}
