package smtpreply

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A client that sends many commands before it reads gets every reply, however little
// of one the connection takes at a time.
func TestEveryReplyArrives(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	f, err := accepted.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	accepted.Close()
	if err := unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUF, 4096); err != nil {
		t.Fatal(err)
	}
	line := ErrorLine(true, strings.Repeat("0123456789", 19)+"abcdefg")
	const lines = 20_000
	go func() {
		client.Write([]byte(strings.Repeat("\n", lines) + "quit\n"))
	}()
	go func() {
		New(line).Serve(int(f.Fd()), int(f.Fd()), time.Minute, nil)
		f.Close()
	}()
	time.Sleep(100 * time.Millisecond) // in which the buffers are filled
	got, err := io.ReadAll(client)
	want := greeting + strings.Repeat(line+"\r\n", lines) + goodbye
	if err != nil || !bytes.Equal(got, []byte(want)) {
		t.Errorf("%d bytes, %v, want %d", len(got), err, len(want))
	}
}
