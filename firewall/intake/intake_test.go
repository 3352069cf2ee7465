//go:build linux

package intake

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/firewall/hit"
	"rblnft/firewall/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

const good = "rblnft/1 addr=192.0.2.7 zone=bl.example code=127.0.0.2 answer=553 listed\n"

var client = netip.MustParseAddr("192.0.2.7")

// own admits the tests' own user.
var own = Senders{UIDs: []uint32{uint32(os.Getuid())}}

// A desk is a Receiver at work, and a socket to send to it.
type desk struct {
	t        *testing.T
	receiver *Receiver
	queue    *Queue
	log      *bytes.Buffer
	sender   int
	stop     func()
}

// open opens a desk. Datagrams that before sends are in the socket before
// anybody asks for credentials.
func open(t *testing.T, policy Policy, before func(*desk)) *desk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{t: t, log: new(bytes.Buffer), queue: NewQueue(100, none)}
	if d.sender, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(d.sender, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if before != nil {
		before(d)
	}
	if d.receiver, err = New(conn, policy, d.queue, slog.New(slog.NewTextHandler(d.log, nil))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := d.receiver.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	d.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		conn.Close()
		unix.Close(d.sender)
	})
	t.Cleanup(d.stop)
	return d
}

// send sends a datagram with descriptors attached.
func (d *desk) send(data string, fds ...int) {
	d.t.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(d.sender, []byte(data), oob, nil, 0); err != nil {
		d.t.Fatal(err)
	}
}

// received waits until n datagrams have been dealt with.
func (d *desk) received(n uint64) {
	d.t.Helper()
	for end := time.Now().Add(10 * time.Second); d.receiver.Received() < n; {
		if time.Now().After(end) {
			d.t.Fatalf("%d datagrams received, want %d", d.receiver.Received(), n)
		}
		time.Sleep(time.Millisecond)
	}
}

// taken stops the receiver and returns what it put into the queue.
func (d *desk) taken() []Report {
	d.stop()
	reports, open := take(d.queue, nil, 1000)
	if open {
		d.t.Error("the queue is open after the receiver's end")
	}
	return reports
}

// connection returns both ends of a TCP connection from addr to port 25 of
// another address.
func connection(t *testing.T, addr string, port int) (server, client *net.TCPConn) {
	t.Helper()
	to := "198.51.100.25"
	if strings.Contains(addr, ":") {
		to = "2001:db8::25"
	}
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.ParseIP(to), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.DialTCP("tcp", &net.TCPAddr{IP: net.ParseIP(addr)}, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		server.Close()
	})
	return server, client
}

// fd returns a copy of a connection's descriptor.
func fd(t *testing.T, c syscall.Conn) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := -1
	raw.Control(func(fd uintptr) { n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(n) })
	return n
}

// elsewhere returns a connection from addr to port 25 in a network namespace
// where somebody gave himself that address.
func elsewhere(t *testing.T, addr string) int {
	t.Helper()
	result := make(chan int, 1)
	go func() {
		// The thread is not unlocked, and ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			result <- -1
			return
		}
		if err := netlab.Up(); err != nil {
			t.Error(err)
			result <- -1
			return
		}
		server, _ := connection(t, addr, 25)
		result <- fd(t, server)
	}()
	n := <-result
	if n < 0 {
		t.FailNow()
	}
	return n
}

// openFDs are the process's descriptors, as /proc/self/fd shows them.
func openFDs(t *testing.T) map[string]string {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	fds := map[string]string{}
	for _, e := range dir {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			fds[e.Name()] = target
		}
	}
	return fds
}

func TestHits(t *testing.T) {
	ports := []uint16{25}
	tests := []struct {
		name   string
		policy Policy
		data   string
		proof  func(*testing.T) []int
		proven bool
		addr   netip.Addr
	}{
		{name: "trusted sender", policy: Policy{Senders: own, Peer: Verify}},
		{name: "without a line feed", policy: Policy{Senders: own, Peer: Verify}, data: strings.TrimSpace(good)},
		{name: "by group", policy: Policy{Senders: Senders{GIDs: []uint32{uint32(os.Getgid())}}, Peer: Verify}},
		{name: "with proof", policy: Policy{Senders: own, Peer: Verify}, proven: true,
			proof: func(t *testing.T) []int {
				s, _ := connection(t, "192.0.2.7", 2525)
				return []int{fd(t, s)}
			}},
		{name: "proof required", policy: Policy{Senders: own, Peer: Require, Ports: ports}, proven: true,
			proof: func(t *testing.T) []int {
				s, _ := connection(t, "192.0.2.7", 25)
				return []int{fd(t, s)}
			}},
		{name: "anybody with proof", policy: Policy{Senders: Senders{Others: true}, Peer: Ignore, Ports: ports}, proven: true,
			proof: func(t *testing.T) []int {
				s, _ := connection(t, "192.0.2.7", 25)
				return []int{fd(t, s)}
			}},
		{name: "IPv6", policy: Policy{Senders: own, Peer: Require, Ports: ports}, proven: true,
			data: "rblnft/1 addr=2001:db8::7 zone=bl.example code=- answer=451 x", addr: netip.MustParseAddr("2001:db8::7"),
			proof: func(t *testing.T) []int {
				s, _ := connection(t, "2001:db8::7", 25)
				return []int{fd(t, s)}
			}},
		{name: "IPv4-mapped", policy: Policy{Senders: own, Peer: Require, Ports: ports}, proven: true,
			data: "rblnft/1 addr=::ffff:192.0.2.7 zone=bl.example code=- answer=451 x",
			proof: func(t *testing.T) []int {
				l, err := net.ListenTCP("tcp", &net.TCPAddr{Port: 25}) // [::]:25, both families
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				c, err := net.DialTCP("tcp", &net.TCPAddr{IP: net.ParseIP("192.0.2.7")}, &net.TCPAddr{IP: net.ParseIP("198.51.100.25"), Port: 25})
				if err != nil {
					t.Fatal(err)
				}
				s, err := l.AcceptTCP()
				if err != nil {
					t.Fatal(err)
				}
				n := fd(t, s)
				if name, err := unix.Getpeername(n); err != nil {
					t.Fatal(err)
				} else if _, ok := name.(*unix.SockaddrInet6); !ok {
					t.Fatalf("the peer is %T, want an IPv4-mapped one", name)
				}
				t.Cleanup(func() { c.Close(); s.Close() })
				return []int{n}
			}},
		{name: "half closed", policy: Policy{Senders: own, Peer: Verify}, proven: true,
			proof: func(t *testing.T) []int {
				s, c := connection(t, "192.0.2.7", 25)
				c.CloseWrite()
				return []int{fd(t, s)}
			}},
		{name: "closed", policy: Policy{Senders: own, Peer: Verify}, proven: true, proof: ended("192.0.2.7")},
		{name: "closed, proof required", policy: Policy{Senders: own, Peer: Require, Ports: ports}, proven: true, proof: ended("192.0.2.7")},
		{name: "closed IPv6", policy: Policy{Senders: own, Peer: Require, Ports: ports}, proven: true,
			data: "rblnft/1 addr=2001:db8::7 zone=bl.example code=- answer=451 x", addr: netip.MustParseAddr("2001:db8::7"),
			proof: ended("2001:db8::7")},
		{name: "proof ignored", policy: Policy{Senders: own, Peer: Ignore},
			proof: func(t *testing.T) []int {
				s, _ := connection(t, "192.0.2.8", 25)
				return []int{fd(t, s)}
			}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := open(t, test.policy, nil)
			var fds []int
			if test.proof != nil {
				fds = test.proof(t)
			}
			if test.data == "" {
				test.data = good
			}
			if !test.addr.IsValid() {
				test.addr = client
			}
			before := len(openFDs(t))
			d.send(test.data, fds...)
			d.received(1)
			leaked(t, before)
			got := d.taken()
			if len(got) != 1 {
				t.Fatalf("%d hits came through, want 1; log: %s", len(got), d.log)
			}
			if got[0].Addr != test.addr || got[0].Zone != "bl.example" || got[0].Proven != test.proven || time.Since(got[0].Received) > time.Minute {
				t.Errorf("got %+v", got[0])
			}
		})
	}
}

// ended returns a function that makes a connection from addr that both sides
// have closed.
func ended(addr string) func(*testing.T) []int {
	return func(t *testing.T) []int {
		s, c := connection(t, addr, 25)
		n := fd(t, s)
		s.CloseWrite()
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if _, err := io.Copy(io.Discard, s); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, err := unix.Getpeername(n); err == unix.ENOTCONN {
				return []int{n}
			} else if time.Now().After(end) {
				t.Fatalf("getpeername: %v, want ENOTCONN", err)
			}
		}
	}
}

// leaked waits until no more descriptors are open than before.
func leaked(t *testing.T, before int) {
	t.Helper()
	var now map[string]string
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if now = openFDs(t); len(now) <= before {
			return
		}
	}
	t.Errorf("%d descriptors were open before, and now %d: %v", before, len(now), now)
}

func TestSpoofing(t *testing.T) {
	ports := []uint16{25}
	verify := Policy{Senders: own, Peer: Verify, Ports: ports}
	require := Policy{Senders: own, Peer: Require, Ports: ports}
	with := func(connect func(t *testing.T) (server, client *net.TCPConn)) func(*testing.T) []int {
		return func(t *testing.T) []int {
			s, _ := connect(t)
			return []int{fd(t, s)}
		}
	}
	honest := with(func(t *testing.T) (*net.TCPConn, *net.TCPConn) { return connection(t, "192.0.2.7", 25) })
	tests := []struct {
		name   string
		policy Policy
		data   string // good if empty
		fds    func(*testing.T) []int
		early  bool // sent before credentials are asked for
		want   Reason
	}{
		{name: "wrong user", policy: Policy{Senders: Senders{UIDs: []uint32{1234}}}, want: WrongSender},
		{name: "wrong group", policy: Policy{Senders: Senders{GIDs: []uint32{1234}}}, want: WrongSender},
		{name: "wrong user with proof", policy: Policy{Senders: Senders{UIDs: []uint32{1234}}, Peer: Require, Ports: ports}, fds: honest, want: WrongSender},
		{name: "another user without proof", policy: Policy{Senders: Senders{UIDs: []uint32{1234}, Others: true}, Peer: Ignore}, want: NoProof},
		{name: "no credentials", policy: verify, early: true, want: NoCredentials},
		{name: "no credentials with proof", policy: verify, early: true, fds: honest, want: NoCredentials},
		{name: "required proof missing", policy: require, want: NoProof},
		{name: "another peer", policy: verify, want: BadProof,
			fds: with(func(t *testing.T) (*net.TCPConn, *net.TCPConn) { return connection(t, "192.0.2.8", 25) })},
		{name: "another peer, closed", policy: verify, want: BadProof, fds: ended("192.0.2.8")},
		{name: "IPv6 peer of an IPv4 address", policy: verify, want: BadProof,
			fds: with(func(t *testing.T) (*net.TCPConn, *net.TCPConn) { return connection(t, "2001:db8::7", 25) })},
		{name: "a file", policy: verify, want: BadProof,
			fds: func(t *testing.T) []int {
				f, err := os.Open("/proc/self/status")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { f.Close() })
				return []int{fd(t, f)}
			}},
		{name: "a pipe", policy: verify, want: BadProof,
			fds: func(t *testing.T) []int {
				var p [2]int
				if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
				return p[:1]
			}},
		{name: "a Unix socket", policy: verify, want: BadProof,
			fds: func(t *testing.T) []int {
				p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
				return p[:1]
			}},
		{name: "a datagram socket with that peer", policy: verify, want: BadProof,
			fds: func(t *testing.T) []int {
				c, err := net.Dial("udp", "192.0.2.7:25")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				return []int{fd(t, c.(*net.UDPConn))}
			}},
		{name: "a listening socket", policy: verify, want: BadProof,
			fds: func(t *testing.T) []int {
				l, err := net.Listen("tcp", "192.0.2.7:25")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { l.Close() })
				return []int{fd(t, l.(*net.TCPListener))}
			}},
		{name: "a connection that was reset", policy: verify, want: BadProof,
			fds: func(t *testing.T) []int {
				s, c := connection(t, "192.0.2.7", 25)
				c.SetLinger(0)
				c.Close()
				if _, err := s.Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Fatalf("read: %v, want a reset", err)
				}
				return []int{fd(t, s)}
			}},
		{name: "a connection that does not stand yet", policy: verify, want: BadProof,
			fds: func(t *testing.T) []int {
				// A listener whose queue is full does not answer.
				l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { unix.Close(l) })
				to := &unix.SockaddrInet4{Port: 2526, Addr: client.As4()}
				if err := unix.Bind(l, to); err != nil {
					t.Fatal(err)
				}
				if err := unix.Listen(l, 0); err != nil {
					t.Fatal(err)
				}
				for range 10 {
					c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { unix.Close(c) })
					if err := unix.Connect(c, to); err != nil && err != unix.EINPROGRESS {
						t.Fatal(err)
					}
					time.Sleep(10 * time.Millisecond)
					if _, err := unix.Getpeername(c); err == unix.ENOTCONN {
						return []int{c}
					}
				}
				t.Fatal("all connections stand")
				return nil
			}},
		{name: "a connection that he made himself", policy: require, want: BadProof,
			fds: func(t *testing.T) []int {
				l, err := net.Listen("tcp", "192.0.2.7:25")
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				c, err := net.Dial("tcp", "192.0.2.7:25")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				return []int{fd(t, c.(*net.TCPConn))}
			}},
		{name: "accepted on another port", policy: require, want: BadProof,
			fds: with(func(t *testing.T) (*net.TCPConn, *net.TCPConn) { return connection(t, "192.0.2.7", 2525) })},
		{name: "in another network namespace", policy: require, want: BadProof,
			fds: func(t *testing.T) []int { return []int{elsewhere(t, "192.0.2.7")} }},
		{name: "two descriptors", policy: verify, want: BadControl,
			fds: func(t *testing.T) []int { n := honest(t)[0]; return []int{n, n} }},
		{name: "as many descriptors as there can be", policy: verify, want: BadControl,
			fds: func(t *testing.T) []int { return bytesOf(honest(t)[0], 253) }},
		{name: "two descriptors, ignored", policy: Policy{Senders: own, Peer: Ignore}, want: BadControl,
			fds: func(t *testing.T) []int { n := honest(t)[0]; return []int{n, n} }},
		{name: "oversize", policy: verify, data: good + strings.Repeat("x", hit.MaxLen), fds: honest, want: BadHit},
		{name: "oversize by one byte", policy: verify, data: pad(good, hit.MaxLen+1), want: BadHit},
		{name: "empty", policy: verify, data: "\n", fds: honest, want: BadHit},
		{name: "NUL", policy: verify, data: strings.Replace(good, "listed", "lis\x00ted", 1), fds: honest, want: BadHit},
		{name: "NUL at the end", policy: verify, data: good + "\x00", fds: honest, want: BadHit},
		{name: "bad UTF-8", policy: verify, data: strings.Replace(good, "listed", "\xff\xfe", 1), fds: honest, want: BadHit},
		{name: "UTF-8", policy: verify, data: strings.Replace(good, "listed", "gelistet für", 1), fds: honest, want: BadHit},
		{name: "two lines", policy: verify, data: good + good, fds: honest, want: BadHit},
		{name: "version 0", policy: verify, data: strings.Replace(good, "rblnft/1", "rblnft/0", 1), fds: honest, want: BadHit},
		{name: "version 2", policy: verify, data: strings.Replace(good, "rblnft/1", "rblnft/2", 1), fds: honest, want: BadHit},
		{name: "version 10", policy: verify, data: strings.Replace(good, "rblnft/1", "rblnft/10", 1), fds: honest, want: BadHit},
		{name: "no version", policy: verify, data: strings.TrimPrefix(good, "rblnft/1 "), fds: honest, want: BadHit},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.data == "" {
				test.data = good
			}
			var fds []int
			if test.fds != nil {
				fds = test.fds(t)
			}
			var d *desk
			var before int
			if test.early {
				d = open(t, test.policy, func(d *desk) {
					d.send(test.data, fds...)
					before = len(openFDs(t))
				})
			} else {
				d = open(t, test.policy, nil)
				before = len(openFDs(t))
				d.send(test.data, fds...)
			}
			d.received(1)
			leaked(t, before)
			// It goes on receiving.
			if !test.early && test.want == BadHit {
				d.send(good)
				d.received(2)
				if got := d.taken(); len(got) != 1 {
					t.Errorf("%d hits came through, want the good one", len(got))
				}
			} else if got := d.taken(); len(got) != 0 {
				t.Errorf("came through: %+v", got)
			}
			for _, why := range Reasons() {
				want := uint64(0)
				if why == test.want {
					want = 1
				}
				if got := d.receiver.Refused(why); got != want {
					t.Errorf("refused because of %s: %d, want %d; log: %s", why, got, want, d.log)
				}
			}
			if lines := strings.Count(d.log.String(), "\n"); lines != 1 {
				t.Errorf("%d lines in the log, want 1: %s", lines, d.log)
			}
		})
	}
}

func bytesOf(fd, n int) (fds []int) {
	for range n {
		fds = append(fds, fd)
	}
	return fds
}

func pad(line string, n int) string {
	line = strings.TrimSuffix(line, "\n")
	return line + strings.Repeat("x", n-len(line))
}

// With no descriptor free, one that is attached is lost; the hit is refused,
// and nothing else is.
func TestNoDescriptorFree(t *testing.T) {
	s, _ := connection(t, "192.0.2.7", 25)
	d := open(t, Policy{Senders: own, Peer: Verify}, nil)
	conn := fd(t, s)
	before := len(openFDs(t))

	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	d.send(good, conn)
	d.received(1)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if got := d.receiver.Refused(BadControl); got != 1 {
		t.Errorf("refused: %d, want 1", got)
	}
	d.send(good, conn)
	d.received(2)
	leaked(t, before)
	if got := d.taken(); len(got) != 1 {
		t.Errorf("%d hits came through, want 1", len(got))
	}
}

// A connection whose last close would wait must not hold up the receiver.
func TestLingeringConnection(t *testing.T) {
	d := open(t, Policy{Senders: own, Peer: Verify}, nil)
	s, c := connection(t, "192.0.2.7", 25)
	s.SetLinger(60)
	// More bytes than the client, which does not read, has room for.
	s.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	s.Write(make([]byte, 16<<20))
	n := fd(t, s)
	d.send(good, n)
	// The receiver's copy becomes the last one if these go first; whoever
	// comes last, closing must not take a minute.
	s.SetLinger(60)
	unix.SetsockoptLinger(n, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{})
	start := time.Now()
	d.send(good)
	d.received(2)
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("the next hit waited for %s", took)
	}
	c.SetLinger(0)
	c.Close()
}

func TestFloodOfBadDatagramsIsAFewLines(t *testing.T) {
	d := open(t, Policy{Senders: own, Peer: Verify}, nil)
	const n = 20_000
	for i := range n {
		d.send(fmt.Sprintf("nonsense %d", i))
	}
	d.send(good)
	d.received(n + 1)
	if got := d.receiver.Refused(BadHit); got != n {
		t.Errorf("refused: %d, want %d", got, n)
	}
	if got := d.taken(); len(got) != 1 {
		t.Errorf("%d hits came through, want 1", len(got))
	}
	if lines := strings.Count(d.log.String(), "\n"); lines < 1 || lines > 6 {
		t.Errorf("%d lines in the log, want a few: %s", lines, d.log)
	}
}

// What the socket holds when the end comes is received.
func TestEndReceivesWhatTheSocketHolds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	queue := NewQueue(100, none)
	r, err := New(conn, Policy{Senders: own, Peer: Verify}, queue, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const n = 5 // as many as fit into a socket's queue in any namespace
	for range n {
		if _, err := c.Write([]byte(good)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if queue.Len() != n {
		t.Errorf("%d hits in the queue, want %d", queue.Len(), n)
	}
}

func FuzzJudge(f *testing.F) {
	f.Add([]byte(good), []byte{}, 0)
	f.Add([]byte(good), unix.UnixCredentials(&unix.Ucred{Pid: 1, Uid: uint32(os.Getuid())}), 0)
	f.Add([]byte(good), append(unix.UnixCredentials(&unix.Ucred{Pid: 1, Uid: 77}), unix.UnixCredentials(&unix.Ucred{Pid: 1})...), 0)
	f.Add([]byte(strings.Repeat("x", hit.MaxLen+1)), unix.UnixCredentials(&unix.Ucred{Pid: 1}), unix.MSG_TRUNC)
	f.Add([]byte("rblnft/1 addr=::1 zone=a code=- answer=553 "), []byte{1, 2, 3}, unix.MSG_CTRUNC)
	log := slog.New(slog.DiscardHandler)
	f.Fuzz(func(t *testing.T, data, oob []byte, flags int) {
		// Descriptors that a fuzzer makes up would be somebody else's.
		if bytes.Contains(oob, []byte{unix.SOL_SOCKET, 0, 0, 0, unix.SCM_RIGHTS, 0, 0, 0}) {
			return
		}
		r := &Receiver{queue: NewQueue(1, none)}
		r.refusals.log = log
		r.policy.Store(&Policy{Senders: Senders{UIDs: []uint32{0}}, Peer: Verify})
		report, refusal := r.judge(data, oob, flags)
		if (refusal == nil) != report.Addr.IsValid() {
			t.Fatalf("both or neither: %+v, %+v", report, refusal)
		}
		if refusal != nil {
			return
		}
		if len(data) > hit.MaxLen || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || report.Proven || report.Zone == "" {
			t.Errorf("%q with flags %#x is good: %+v", data, flags, report)
		}
	})
}
