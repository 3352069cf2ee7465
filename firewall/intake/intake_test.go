//go:build linux

package intake

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/firewall/hit"
	"rblnft/firewall/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// A desk is a Receiver, and a socket to send to it.
type desk struct {
	t        *testing.T
	receiver *Receiver
	conn     *net.UnixConn
	to       chan []hit.Hit
	log      bytes.Buffer
	sender   int
	cancel   context.CancelFunc
	running  sync.WaitGroup
	err      error
}

func newDesk(t *testing.T, bursts int) *desk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	d := &desk{t: t, to: make(chan []hit.Hit, bursts), cancel: func() {}}
	var err error
	if d.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	if d.sender, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(d.sender, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if d.receiver, err = New(d.conn, slog.New(slog.NewTextHandler(&d.log, nil))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.stop()
		d.conn.Close()
		unix.Close(d.sender)
	})
	return d
}

func (d *desk) run() *desk {
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	d.running.Go(func() { d.err = d.receiver.Run(ctx, d.to) })
	return d
}

// stop ends the receiver, and takes what it has for nobody.
func (d *desk) stop() {
	d.cancel()
	go func() {
		for range d.to {
		}
	}()
	d.running.Wait()
}

func line(i int) string {
	return fmt.Sprintf("rblnft/1 addr=192.0.2.%d zone=z%d.example code=127.0.0.2 answer=553 listed\n", i%256, i/256)
}

func (d *desk) send(data string, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	return unix.Sendmsg(d.sender, []byte(data), oob, nil, 0)
}

func (d *desk) mustSend(data string) {
	d.t.Helper()
	if err := d.send(data); err != nil {
		d.t.Fatal(err)
	}
}

// until waits for something that happens soon.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 20 s: ", what)
		}
	}
}

func TestHitsComeInBursts(t *testing.T) {
	d := newDesk(t, 100)
	for i := range 100 {
		d.mustSend(line(i * 100))
	}
	d.run()
	n, bursts := 0, 0
	for n < 100 {
		burst := <-d.to
		bursts++
		for _, h := range burst {
			want := hit.Hit{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(n * 100)}), Zone: fmt.Sprintf("z%d.example", n*100/256), Code: netip.AddrFrom4([4]byte{127, 0, 0, 2})}
			if h != want { // without what the client was told
				t.Errorf("%d: %+v, want %+v", n, h, want)
			}
			n++
		}
	}
	if bursts != 4 || d.receiver.Received() != 100 || d.receiver.Refused() != 0 {
		t.Errorf("%d bursts, %d received, %d refused", bursts, d.receiver.Received(), d.receiver.Refused())
	}
	d.mustSend(line(7)) // and one that comes while the receiver waits
	if burst := <-d.to; len(burst) != 1 || burst[0].Addr != netip.MustParseAddr("192.0.2.7") {
		t.Errorf("%+v", burst)
	}
	d.cancel()
	if _, open := <-d.to; open {
		t.Error("open after the end")
	}
	if d.running.Wait(); d.err != nil {
		t.Error(d.err)
	}
}

func TestRefusals(t *testing.T) {
	d := newDesk(t, 100)
	for range 100 {
		d.mustSend("hello")
	}
	d.mustSend("")
	long := strings.TrimSuffix(line(1), "\n")
	d.mustSend(long + strings.Repeat("x", hit.MaxLen-len(long)))
	d.mustSend(long + strings.Repeat("x", hit.MaxLen-len(long)+1))
	d.mustSend(long + strings.Repeat("x", 5000))
	d.mustSend(line(2))
	d.run()
	if burst := <-d.to; len(burst) != 2 || burst[0].Addr != netip.MustParseAddr("192.0.2.1") || burst[1].Addr != netip.MustParseAddr("192.0.2.2") {
		t.Errorf("%+v", burst)
	}
	d.cancel()
	d.running.Wait()
	if r := d.receiver; r.Received() != 105 || r.Refused() != 103 {
		t.Errorf("%d received, %d refused", r.Received(), r.Refused())
	}
	log := d.log.String()
	if strings.Count(log, "\n") != 3 || strings.Count(log, "refused=1\n") != 3 || !strings.Contains(log, "want \\\"rblnft/1\\\"") && !strings.Contains(log, "hello") {
		t.Error(log)
	}
}

// Of many refusals a few are logged, and how many there were.
func TestRefusalsAreLoggedSparsely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, 1)
		close(d.to)
		for range 1000 {
			d.receiver.refuse(hit.ErrSyntax)
		}
		time.Sleep(10*time.Second + time.Millisecond)
		d.receiver.refuse(hit.ErrSyntax)
		d.receiver.refuse(hit.ErrSyntax)
		if log := d.log.String(); strings.Count(log, "\n") != 4 || !strings.HasSuffix(log, "refused=998\n") {
			t.Error(log)
		}
		if d.receiver.Refused() != 1002 {
			t.Error(d.receiver.Refused())
		}
	})
}

// What nobody takes waits in the socket, where its sender learns of it.
func TestNobodyTakes(t *testing.T) {
	d := newDesk(t, 0).run()
	sent := 0
	full := func() bool {
		for {
			switch err := d.send(line(sent)); err {
			case nil:
				sent++
			case unix.EAGAIN:
				return true
			default:
				t.Fatal(err)
			}
			if sent > 10_000 {
				return false
			}
		}
	}
	until(t, "the receiver has a burst", func() bool { return full() && d.receiver.Received() > 0 && full() })
	if !full() {
		t.Fatal("a queue without an end")
	}
	if d.receiver.Busy() != 0 {
		t.Error("to wait for the taker is no system call")
	}
	n := 0
	for n < sent {
		burst := <-d.to
		for _, h := range burst {
			if want := netip.AddrFrom4([4]byte{192, 0, 2, byte(n % 256)}); h.Addr != want {
				t.Fatalf("%d: %v, want %v", n, h.Addr, want)
			}
			n++
		}
	}
}

// What was sent before the end is received.
func TestEndDrains(t *testing.T) {
	d := newDesk(t, 100)
	for i := range 200 {
		d.mustSend(line(i))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.receiver.Run(ctx, d.to); err != nil {
		t.Error(err)
	}
	n := 0
	for burst := range d.to {
		n += len(burst)
	}
	if n != 200 {
		t.Errorf("%d of 200", n)
	}
}

// Whoever goes on sending does not keep the receiver from its end.
func TestEndIsBounded(t *testing.T) {
	d := newDesk(t, 0)
	stop := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				d.send(line(1))
			}
		}
	})
	d.run()
	<-d.to
	d.cancel()
	for range d.to {
	}
	d.running.Wait()
	close(stop)
	sending.Wait()
}

func TestSocketThatIsClosed(t *testing.T) {
	d := newDesk(t, 1).run()
	d.conn.Close()
	if _, open := <-d.to; open {
		t.Error("open")
	}
	if d.running.Wait(); d.err == nil || !strings.HasPrefix(d.err.Error(), "hits socket: ") {
		t.Error(d.err)
	}
	if _, err := New(d.conn, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a closed socket is taken")
	}
}

// passesRights reports whether this kernel hands over descriptors whatever the
// receiver asks for, which it does before Linux 6.16.
func passesRights(d *desk) bool {
	raw, _ := d.conn.SyscallConn()
	var err error
	raw.Control(func(fd uintptr) { _, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSRIGHTS) })
	return err != nil
}

// Descriptors are turned away or, by kernels that cannot, closed.
func TestDescriptors(t *testing.T) {
	d := newDesk(t, 100).run()
	pipe := make([]int, 2)
	if err := unix.Pipe2(pipe, unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadDir("/proc/self/fd")
	for range 20 {
		err := d.send(line(1), pipe[1], pipe[1])
		if old := passesRights(d); !old && err != unix.EPERM || old && err != nil {
			t.Fatalf("descriptors sent: %v", err)
		}
	}
	d.mustSend(line(2))
	for h := range d.to {
		if h[len(h)-1].Addr == netip.MustParseAddr("192.0.2.2") {
			break
		}
	}
	if after, _ := os.ReadDir("/proc/self/fd"); len(after) != len(before) {
		t.Errorf("%d descriptors, before %d", len(after), len(before))
	}
	unix.Close(pipe[1])
	if n, err := unix.Read(pipe[0], make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("the pipe's other end is open somewhere: %d, %v", n, err)
	}
	unix.Close(pipe[0])
}

// A descriptor whose closing takes an hour does not stop the receiver, where the
// kernel turns it away.
func TestDescriptorThatLingers(t *testing.T) {
	d := newDesk(t, 100).run()
	l, err := net.Listen("tcp", "192.0.2.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := client.(*net.TCPConn).SyscallConn()
	raw.Control(func(fd uintptr) {
		unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 3600})
		client.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		for { // what nobody reads
			if _, err := unix.Write(int(fd), make([]byte, 1<<16)); err != nil {
				break
			}
		}
		if !passesRights(d) {
			if err := d.send(line(1), int(fd)); err != unix.EPERM {
				t.Error(err)
			}
		}
		unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	})
	client.Close()
	d.mustSend(line(2))
	if h := <-d.to; h[0].Addr != netip.MustParseAddr("192.0.2.2") {
		t.Errorf("%+v", h)
	}
}

func TestBusy(t *testing.T) {
	d := newDesk(t, 100)
	if d.receiver.Busy() != 0 {
		t.Error("busy before the start")
	}
	d.run()
	d.mustSend(line(1))
	<-d.to
	if d.receiver.Busy() > time.Second {
		t.Error("busy while it waits")
	}
	until(t, "the receiver waits", func() bool { return d.receiver.Busy() == 0 })
	go func() {
		for range d.to {
		}
	}()
	until(t, "the receiver is in its system call", func() bool {
		d.send(line(1))
		for range 100 {
			if d.receiver.Busy() != 0 {
				return true
			}
		}
		return false
	})
	until(t, "the receiver waits again", func() bool { return d.receiver.Busy() == 0 })
	d.receiver.busy.Store(time.Now().Add(-time.Minute).UnixNano())
	if b := d.receiver.Busy(); b < time.Minute || b > 2*time.Minute {
		t.Error(b)
	}
	d.receiver.busy.Store(0)
	// The system call itself is watched: the clock goes from before it.
	during := make(chan time.Duration, 1)
	raw := func(read func(uintptr) bool) error {
		read(^uintptr(0)) // no descriptor: EBADF
		during <- d.receiver.Busy()
		return nil
	}
	d.cancel()
	d.running.Wait()
	if err := d.receiver.receive(raw, d.to); err != unix.EBADF || <-during != 0 {
		t.Error(err)
	}
}
