package resolver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"rblnft/dnsbl"
	"rblnft/dnsbl/dnsbltest"
	"rblnft/firewall/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// began is when the client's clock stands still, unless a test moves it: what
// happens then is due to answers and errors alone, not to patience.
var began = time.Now()

func addrs(list ...string) (all []netip.Addr) {
	for _, a := range list {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

// serve starts a DNS server with the standard zones, or those given.
func serve(t *testing.T, addr string, zones dnsbltest.Zones) *dnsbltest.Server {
	t.Helper()
	if zones == nil {
		zones = dnsbltest.Standard()
	}
	s, err := dnsbltest.Start(netip.MustParseAddr(addr), zones)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// await polls for the client until it has an answer, at its time now.
func await(t *testing.T, c *Client, now time.Time) dnsbl.Answer {
	t.Helper()
	for {
		if a, ok := c.Next(); ok {
			return a
		}
		if !poll(t, c, now, 20*time.Second) {
			t.Fatal("nothing happens, and there is no answer")
		}
	}
}

// idle polls for the client until nothing happens any more, in which it has no
// answer.
func idle(t *testing.T, c *Client, now time.Time) {
	t.Helper()
	for poll(t, c, now, 300*time.Millisecond) {
	}
	if a, ok := c.Next(); ok {
		t.Fatalf("an answer: %+v", a)
	}
}

// poll waits for one event of the client's, and returns false if there is none.
func poll(t *testing.T, c *Client, now time.Time, timeout time.Duration) bool {
	t.Helper()
	fds, _ := c.Poll(nil)
	n, err := unix.Poll(fds, int(timeout.Milliseconds()))
	if err != nil && err != unix.EINTR {
		t.Fatal(err)
	}
	if n > 0 {
		c.Handle(fds, now)
	}
	return n > 0 || err == unix.EINTR
}

// lookUp asks one question, and returns what it ends with at the time began.
func lookUp(t *testing.T, c *Client, kind dnsbl.Type, zone string) dnsbl.Answer {
	t.Helper()
	c.Ask(dnsbl.Question{ID: 7, Name: "1.2.0.192." + zone, Type: kind}, began)
	a := await(t, c, began)
	if a.ID != 7 {
		t.Fatalf("%s: answer %+v", zone, a)
	}
	return a
}

// silent is a server that takes queries and says nothing.
type silent struct{ fd int }

func listen(t *testing.T, addr string) silent {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: dnsPort, Addr: netip.MustParseAddr(addr).As4()})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return silent{fd}
}

// query returns the next query that has come, and the port that it came from.
func (s silent) query(t *testing.T) (*dns.Msg, int) {
	t.Helper()
	b := make([]byte, 1024)
	n, from, err := unix.Recvfrom(s.fd, b, unix.MSG_DONTWAIT)
	if err != nil {
		return nil, 0
	}
	m := new(dns.Msg)
	if err := m.Unpack(b[:n]); err != nil {
		t.Fatal(err)
	}
	return m, from.(*unix.SockaddrInet4).Port
}

// A query asks one question and wants recursion; no two of them have the same ID,
// nor the same port, be they of several lookups or of one that is asked again.
func TestQuery(t *testing.T) {
	s := listen(t, "192.0.2.53")
	c := New(addrs("192.0.2.53"))
	defer c.Close()
	ids, ports := map[uint16]bool{}, map[int]bool{}
	now := began
	for i := range 12 {
		name := fmt.Sprintf("z%d.Example", i)
		c.Ask(dnsbl.Question{Name: name, Type: dnsbl.TXT}, now)
		m, port := s.query(t)
		if m == nil || !m.RecursionDesired || m.Response || m.Opcode != dns.OpcodeQuery || len(m.Answer)+len(m.Ns)+len(m.Extra) > 0 ||
			len(m.Question) != 1 || m.Question[0] != (dns.Question{Name: name + ".", Qtype: dns.TypeTXT, Qclass: dns.ClassINET}) {
			t.Fatalf("%s: asked %v", name, m)
		}
		ids[m.Id], ports[port] = true, true
	}
	now = now.Add(firstPatience)
	fds, _ := c.Poll(nil)
	c.Handle(fds, now)
	for {
		m, port := s.query(t)
		if m == nil {
			break
		}
		ids[m.Id], ports[port] = true, true
	}
	// Two of 24 random IDs are the same once in 237 runs, three once in millions.
	if len(ids) < 23 || len(ports) != 24 {
		t.Errorf("%d IDs and %d ports for 24 queries", len(ids), len(ports))
	}
}

// An answer that is late counts, whichever query it is to.
func TestLateAnswer(t *testing.T) {
	s := listen(t, "192.0.2.53")
	c := New(addrs("192.0.2.53"))
	defer c.Close()
	c.Ask(dnsbl.Question{ID: 3, Name: "z.example", Type: dnsbl.A}, began)
	first, port := s.query(t)
	fds, _ := c.Poll(nil)
	c.Handle(fds, began.Add(firstPatience))
	if again, _ := s.query(t); again == nil {
		t.Fatal("not asked again")
	}
	m := new(dns.Msg).SetReply(first)
	rr, _ := dns.NewRR("z.example. 60 IN A 127.0.0.5")
	m.Answer = []dns.RR{rr}
	b, _ := m.Pack()
	// The client's own address is that of the server: both are local.
	if err := unix.Sendto(s.fd, b, 0, &unix.SockaddrInet4{Port: port, Addr: [4]byte{192, 0, 2, 53}}); err != nil {
		t.Fatal(err)
	}
	if a := await(t, c, began); len(a.Addrs) != 1 || a.Addrs[0].String() != "127.0.0.5" {
		t.Errorf("%+v", a)
	}
}

// Servers are asked by turns, at growing intervals; what is asked never changes
// when it wakes.
func TestBackOff(t *testing.T) {
	servers := []silent{listen(t, "192.0.2.53"), listen(t, "192.0.2.54")}
	c := New(addrs("192.0.2.53", "192.0.2.54"))
	defer c.Close()
	c.Ask(dnsbl.Question{Name: "z.example", Type: dnsbl.A}, began)
	got := ""
	look := func(after time.Duration) {
		for i, s := range servers {
			if m, _ := s.query(t); m != nil {
				got += fmt.Sprintf("%d at %v, ", i+1, after)
			}
		}
	}
	look(0)
	for after := time.Duration(0); after <= 14*time.Second; after += 50 * time.Millisecond {
		fds, wake := c.Poll(nil)
		if wake.Before(began.Add(after)) {
			t.Fatalf("at %v it wanted to be woken at %v", after, wake.Sub(began))
		}
		c.Handle(fds, began.Add(after))
		look(after)
	}
	if want := "1 at 0s, 2 at 1s, 1 at 2s, 2 at 4s, 1 at 6s, 2 at 10s, 1 at 14s, "; got != want {
		t.Errorf("asked %s want %s", got, want)
	}
	c.GiveUp()
	if a, ok := c.Next(); !ok || !errors.Is(a.Err, ErrTimeout) || c.Pending() != 0 {
		t.Errorf("given up: %+v, %v, %d pending", a, ok, c.Pending())
	}
}

// The next server is asked when one fails, and the one that has answered is asked
// first from then on.
func TestFailover(t *testing.T) {
	failing := serve(t, "192.0.2.53", dnsbltest.Zones{"": dnsbltest.Rcode(dns.RcodeServerFailure)})
	good := serve(t, "192.0.2.54", nil)
	for name, first := range map[string]string{"it fails": "192.0.2.53", "nobody listens": "192.0.2.55"} {
		c := New(addrs(first, "192.0.2.54"))
		for range 3 {
			if a := lookUp(t, c, dnsbl.TXT, "list.test"); a.Err != nil || a.Text != "listed 192.0.2.1" {
				t.Errorf("%s: %+v", name, a)
			}
		}
		c.Close()
	}
	if n := failing.Queries(""); n != 1 {
		t.Errorf("the server that failed was asked %d times, want once", n)
	}
	if n := good.Queries("list.test"); n != 6 {
		t.Errorf("the server that answers was asked %d times, want 6", n)
	}
}

// When every server has failed twice the lookup has.
func TestEveryServerFails(t *testing.T) {
	var servers []*dnsbltest.Server
	for i, rcode := range []int{dns.RcodeServerFailure, dns.RcodeRefused} {
		servers = append(servers, serve(t, fmt.Sprintf("192.0.2.%d", 60+i), dnsbltest.Zones{"": dnsbltest.Rcode(rcode)}))
	}
	c := New(addrs("192.0.2.60", "192.0.2.61"))
	defer c.Close()
	if a := lookUp(t, c, dnsbl.TXT, "list.test"); !errors.Is(a.Err, ErrServer) {
		t.Errorf("%+v", a)
	}
	for i, s := range servers {
		if n := s.Queries(""); n != failuresAllowed {
			t.Errorf("server %d was asked %d times, want %d", i+1, n, failuresAllowed)
		}
	}
	if a := lookUp(t, New(nil), dnsbl.A, "list.test"); !errors.Is(a.Err, ErrServer) {
		t.Errorf("without servers: %+v", a)
	}
	if a := lookUp(t, New(addrs("192.0.2.60")), dnsbl.A, "empty..label"); !errors.Is(a.Err, ErrName) {
		t.Errorf("no name: %+v", a)
	}
}

// A server that this host cannot reach fails at once; another is asked instead.
func TestUnreachableServer(t *testing.T) {
	serve(t, "192.0.2.54", nil)
	run(t, "nft", `add table inet lab; add chain inet lab out { type filter hook output priority 0; }; add rule inet lab out ip daddr 192.0.2.99 drop; add rule inet lab out ip6 daddr 2001:db8::99 drop`)
	defer run(t, "nft", "delete table inet lab")
	for name, c := range map[string]struct {
		server string
		want   error
	}{
		"no route":           {"203.0.113.1", unix.ENETUNREACH},
		"no route for IPv6":  {"2001:db8:ffff::1", unix.ENETUNREACH},
		"an output rule":     {"192.0.2.99", unix.EPERM},
		"one for IPv6":       {"2001:db8::99", unix.EPERM},
		"broadcast":          {"255.255.255.255", unix.ENETUNREACH},
		"no such interface":  {"fe80::1%none", unix.EINVAL},
		"an odd destination": {"240.0.0.1", unix.ENETUNREACH},
	} {
		addr := netip.MustParseAddr(c.server)
		l := &lookup{qtype: dnsbl.A}
		if err := l.pack("z.example"); err != nil {
			t.Fatal(err)
		}
		if err := l.send(0, addr); err != c.want {
			t.Errorf("%s: %v, the case is about %v", name, err, c.want)
		}
		for _, servers := range [][]netip.Addr{{addr}, {addr, addr, addr}} {
			if a := lookUp(t, New(servers), dnsbl.TXT, "list.test"); !errors.Is(a.Err, ErrServer) {
				t.Errorf("%s: %+v", name, a)
			}
		}
		if a := lookUp(t, New(append(addrs(c.server), netip.MustParseAddr("192.0.2.54"))), dnsbl.TXT, "list.test"); a.Text != "listed 192.0.2.1" {
			t.Errorf("%s, and a good server: %+v", name, a)
		}
	}
}

// What each error of a socket means; those that no test can bring about too.
func TestTroubleOf(t *testing.T) {
	for want, errs := range map[trouble][]error{
		exhausted:   {unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EAGAIN, unix.EINTR},
		absent:      {unix.ECONNREFUSED},
		unreachable: {unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.EPERM, unix.EACCES, unix.EAFNOSUPPORT, unix.EADDRNOTAVAIL, unix.EINVAL},
	} {
		for _, err := range errs {
			if got := troubleOf(err); got != want {
				t.Errorf("%v: %d, want %d", err, got, want)
			}
		}
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// A server where nobody listens is asked again when patience is over.
func TestServerThatIsStarted(t *testing.T) {
	c := New(addrs("192.0.2.53"))
	defer c.Close()
	c.Ask(dnsbl.Question{Name: "1.2.0.192.list.test", Type: dnsbl.TXT}, began)
	idle(t, c, began)
	serve(t, "192.0.2.53", nil)
	fds, wake := c.Poll(nil)
	c.Handle(fds, wake)
	if a := await(t, c, wake); a.Text != "listed 192.0.2.1" {
		t.Errorf("%+v", a)
	}
}

// IPv6 and link-local servers are asked like others, over UDP and TCP; no
// descriptor stays open.
func TestServersOfEveryKind(t *testing.T) {
	run(t, "ip", "-6", "address", "add", "fe80::53/64", "dev", "lo", "nodad")
	for _, addr := range []string{"192.0.2.53", "::1", "2001:db8::53", "fe80::53%lo", "fe80::53%1"} {
		s := serve(t, addr, nil)
		before := descriptors(t)
		for _, zone := range []string{"list.test", "tcp.test", "pieces.test", "partial.test", "tcpclosed.test", "tcphalf.test"} {
			c := New(addrs(addr)) // never closed: a lookup that has ended has nothing open
			a := lookUp(t, c, dnsbl.TXT, zone)
			if fails := zone == "tcpclosed.test" || zone == "tcphalf.test"; fails != (a.Err != nil) || !fails && a.Text != "listed 192.0.2.1" {
				t.Errorf("%s: %s: %+v", addr, zone, a)
			}
		}
		closed(t, before)
		s.Close()
	}
}

// closed waits until no more descriptors are open than before, the server's ends of
// connections among them, which it closes when it sees that the client has.
func closed(t *testing.T, before int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); descriptors(t) > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d descriptors are open, %d before", descriptors(t), before)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// Close closes what is still open.
func TestClose(t *testing.T) {
	serve(t, "192.0.2.53", nil)
	before := descriptors(t)
	c := New(addrs("192.0.2.53"))
	for _, zone := range []string{"silent.test", "tcpsilent.test"} {
		c.Ask(dnsbl.Question{Name: "1.2.0.192." + zone, Type: dnsbl.A}, began)
	}
	idle(t, c, began)
	c.Close()
	if fds, _ := c.Poll(nil); len(fds) > 0 {
		t.Errorf("waits for %d descriptors", len(fds))
	}
	closed(t, before)
}

// With fewer descriptors than lookups all of them are answered, one after the
// other, and nobody's patience grows meanwhile.
func TestFewDescriptors(t *testing.T) {
	serve(t, "192.0.2.53", nil)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	low := old
	low.Cur = uint64(descriptors(t) + 4)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	c := New(addrs("192.0.2.53"))
	defer c.Close()
	const lookups = 60
	for i := range lookups {
		c.Ask(dnsbl.Question{ID: i, Name: fmt.Sprintf("%d.2.0.192.list.test", i), Type: dnsbl.TXT}, began)
	}
	for i := range lookups {
		if a := await(t, c, began); a.Err != nil {
			t.Fatalf("%d answers, then %+v", i, a)
		}
	}
}

// A query goes out once, however little of it the connection takes at a time.
func TestQueryInPieces(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(fd, true)
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	query := make([]byte, 32<<20)
	for i := range query {
		query[i] = byte(i * 7 >> 3)
	}
	got := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(other)
		got <- b
	}()
	c := conn{fd: fd, tcp: true, unsent: query}
	pieces := 0
	for ; len(c.unsent) > 0; pieces++ {
		if c.wants() != unix.POLLOUT {
			t.Fatal("does not wait for room")
		}
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: c.wants()}}, 10_000)
		if _, state, err := c.step(); state != waiting || err != nil {
			t.Fatal(state, err)
		}
	}
	if c.wants() != unix.POLLIN {
		t.Error("does not wait for the answer")
	}
	c.drop()
	if b := <-got; !bytes.Equal(b, query) || pieces < 2 {
		t.Errorf("%d bytes in %d pieces arrived, want %d in more than one", len(b), pieces, len(query))
	}
}
