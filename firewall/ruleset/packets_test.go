//go:build linux

package ruleset

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/firewall/nft"
)

// commit blocks addresses, whole networks of IPv6.
func commit(t testing.TB, r *Ruleset, addrs ...string) {
	t.Helper()
	for family := range 2 {
		var put []nft.Element
		for _, a := range addrs {
			addr := netip.MustParseAddr(a)
			if addr.Is6() == (family == 1) {
				if addr.Is6() {
					addr = netip.PrefixFrom(addr, 64).Masked().Addr()
				}
				put = append(put, nft.Element{Key: addr, Timeout: time.Hour, Comment: "zen.example"})
			}
		}
		if err := r.conn.Apply(r.cfg.Table, r.cfg.Blocked[family], put, nil); err != nil {
			t.Error(err)
		}
	}
}

// unblock takes keys out of the sets.
func unblock(t testing.TB, r *Ruleset, keys ...string) {
	t.Helper()
	for _, k := range keys {
		addr := netip.MustParseAddr(k)
		set := r.cfg.Blocked[0]
		if addr.Is6() {
			set = r.cfg.Blocked[1]
		}
		if err := r.conn.Apply(r.cfg.Table, set, nil, []netip.Addr{addr}); err != nil {
			t.Error(err)
		}
	}
}

// sh runs a command of the shell.
func sh(t testing.TB, command string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

// listen25 listens on a local address for as long as the test runs, and
// accepts everybody.
func listen25(t testing.TB, addr string) *net.TCPAddr {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // an echo, until the client has had enough
				defer c.Close()
				buf := make([]byte, 100)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					c.Write(buf[:n])
				}
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr)
}

// connect opens a TCP connection from one local address to another. A dropped
// SYN is a timeout: it is sent again after a second, so half of that tells.
func connect(from string, to *net.TCPAddr) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 500 * time.Millisecond}
	return d.Dial("tcp", to.String())
}

func mustConnect(t testing.TB, from string, to *net.TCPAddr) net.Conn {
	t.Helper()
	c, err := connect(from, to)
	if err != nil {
		t.Fatalf("from %s: %v, want a connection", from, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func mustDrop(t testing.TB, from string, to *net.TCPAddr) {
	t.Helper()
	c, err := connect(from, to)
	if err == nil {
		c.Close()
		t.Fatalf("from %s to %s: connected, want the SYN dropped", from, to)
	}
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("from %s: %v, want a timeout", from, err)
	}
}

func mustRefuse(t testing.TB, from string, to *net.TCPAddr) {
	t.Helper()
	c, err := connect(from, to)
	if err == nil {
		c.Close()
		t.Fatalf("from %s: connected, want a TCP reset", from)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("from %s: %v, want a TCP reset", from, err)
	}
}

// echo checks that a connection is alive.
func echo(t testing.TB, c net.Conn) {
	t.Helper()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Fatalf("echo: %q, %v", buf[:n], err)
	}
}

func TestBlocking(t *testing.T) {
	flush(t)
	table, _ := open(t, Default())
	mail := listen25(t, "192.0.2.1:25")
	other := listen25(t, "192.0.2.1:587")
	mail6 := listen25(t, "[2001:db8::1]:25")

	before := mustConnect(t, "192.0.2.10", mail)
	commit(t, table, "192.0.2.10")
	mustDrop(t, "192.0.2.10", mail)
	echo(t, before) // the conversation under way goes on
	mustConnect(t, "192.0.2.10", other)
	mustConnect(t, "192.0.2.11", mail)

	commit(t, table, "2001:db8:0:7::1:2")
	mustDrop(t, "2001:db8:0:7::9", mail6)
	mustDrop(t, "2001:db8:0:7:ffff:ffff:ffff:ffff", mail6)
	mustConnect(t, "2001:db8:0:6::9", mail6)
	mustConnect(t, "2001:db8:0:8::9", mail6)

	for _, name := range counters {
		if counter := run(t, "list", "counter", "inet", "rblnft", name); !regexp.MustCompile(`packets [1-9]`).MatchString(counter) {
			t.Errorf("the counter counts nothing:\n%s", counter)
		}
	}
	// They outlive the rules.
	run(t, "flush", "chain", "inet", "rblnft", "input")
	ensure(t, table)
	if counter := run(t, "list", "counter", "inet", "rblnft", "dropped4"); !regexp.MustCompile(`packets [1-9]`).MatchString(counter) {
		t.Errorf("the counter has begun again:\n%s", counter)
	}
	mustDrop(t, "192.0.2.10", mail)

	unblock(t, table, "192.0.2.10", "192.0.2.77", "2001:db8:0:7::")
	mustConnect(t, "192.0.2.10", mail)
	mustConnect(t, "2001:db8:0:7::9", mail6)
}

func TestOtherPacketsPass(t *testing.T) {
	flush(t)
	table, _ := open(t, Default())
	commit(t, table, "192.0.2.10")
	u, err := net.ListenPacket("udp", "192.0.2.1:25")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(192, 0, 2, 10)}, u.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("udp")); err != nil {
		t.Fatal(err)
	}
	u.SetDeadline(time.Now().Add(5 * time.Second))
	if _, _, err := u.ReadFrom(make([]byte, 10)); err != nil {
		t.Error("a UDP packet from a blocked address to port 25:", err)
	}
	// A blocked address's own listener answers us: SYN-ACK is no SYN.
	server := listen25(t, "192.0.2.10:2525")
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 25}, Timeout: time.Second}
	out, err := d.Dial("tcp", server.String())
	if err != nil {
		t.Fatal("a connection from port 25 to a blocked address:", err)
	}
	out.(*net.TCPConn).SetLinger(0) // and no TIME_WAIT keeps the port
	out.Close()
}

func TestAllowedPass(t *testing.T) {
	allow := []string{"192.0.2.8/29", "192.0.2.10/32", "2001:db8:0:7::5/128", "255.255.255.255/32", "0.0.0.0/8"}
	flush(t)
	table, _ := open(t, Default(), allow...)
	mail := listen25(t, "192.0.2.1:25")
	mail6 := listen25(t, "[2001:db8::1]:25")
	commit(t, table, "192.0.2.10", "192.0.2.20", "2001:db8:0:7::1")
	mustConnect(t, "192.0.2.10", mail)
	mustDrop(t, "192.0.2.20", mail)
	mustConnect(t, "2001:db8:0:7::5", mail6)
	mustDrop(t, "2001:db8:0:7::6", mail6)

	// The allow list leaves the decision to other chains.
	script(t, "table inet own { chain input { type filter hook input priority 0; ip saddr 192.0.2.10 tcp dport 25 drop; }; }")
	mustDrop(t, "192.0.2.10", mail)
	run(t, "delete", "table", "inet", "own")

	table.SetAllow(networks("192.0.2.0/28", "192.0.2.20/30", "192.0.0.0/30"))
	ensure(t, table)
	mustConnect(t, "192.0.2.20", mail)
	mustDrop(t, "2001:db8:0:7::5", mail6)
	if got := run(t, "list", "set", "inet", "rblnft", "allowed4"); !strings.Contains(got, "elements = { 192.0.0.0/30, 192.0.2.0/28,\n\t\t\t     192.0.2.20/30 }") {
		t.Errorf("allowed4 is\n%s", got)
	}
	table.SetAllow(nil)
	ensure(t, table)
	mustDrop(t, "192.0.2.10", mail)
	table.SetAllow(networks("0.0.0.0/0", "::/0"))
	ensure(t, table)
	mustConnect(t, "192.0.2.10", mail)
	mustConnect(t, "2001:db8:0:7::6", mail6)

}

func TestReject(t *testing.T) {
	for _, hook := range []Hook{HookInput, HookPrerouting} {
		t.Run(string(hook), func(t *testing.T) {
			cfg := Default()
			cfg.Hook, cfg.Verdict, cfg.Ports = hook, Reject, []uint16{25, 587}
			flush(t)
			table, _ := open(t, cfg)
			mail := listen25(t, "192.0.2.61:25")
			mail6 := listen25(t, "[2001:db8::61]:587")
			other := listen25(t, "192.0.2.61:465")
			before := mustConnect(t, "192.0.2.10", mail)
			commit(t, table, "192.0.2.10", "2001:db8:0:7::9")
			mustRefuse(t, "192.0.2.10", mail)
			mustRefuse(t, "2001:db8:0:7::1", mail6)
			mustConnect(t, "192.0.2.11", mail)
			mustConnect(t, "192.0.2.10", other)
			echo(t, before)
		})
	}
}

func TestPrerouting(t *testing.T) {
	cfg := Default()
	cfg.Hook = HookPrerouting
	flush(t)
	table, _ := open(t, cfg)
	mail := listen25(t, "192.0.2.62:25")
	before := mustConnect(t, "192.0.2.10", mail)
	commit(t, table, "192.0.2.10")
	mustDrop(t, "192.0.2.10", mail)
	mustConnect(t, "192.0.2.11", mail)
	echo(t, before)
}

// TestForward sends SYNs through the kernel from one TUN device to another, as
// a router gets them.
func TestForward(t *testing.T) {
	cfg := Default()
	cfg.Hook = HookForward
	flush(t)
	table, _ := open(t, cfg)
	outside, inside := tun(t, "tun-out"), tun(t, "tun-in")
	for _, command := range []string{
		"ip link set tun-out up", "ip link set tun-in up",
		"ip route add 203.0.113.0/24 dev tun-in",
		"ip route add 198.18.0.0/24 dev tun-out",
		"echo 1 > /proc/sys/net/ipv4/ip_forward",
		"echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter", "echo 0 > /proc/sys/net/ipv4/conf/tun-out/rp_filter",
	} {
		sh(t, command)
	}
	commit(t, table, "198.18.0.10")
	server := netip.MustParseAddr("203.0.113.1")
	for _, tt := range []struct {
		name string
		from string
		port uint16
		flag byte
		pass bool
	}{
		{"not blocked", "198.18.0.11", 25, syn, true},
		{"blocked", "198.18.0.10", 25, syn, false},
		{"blocked, ECN setup", "198.18.0.10", 25, syn | 0xc0, false},
		{"blocked, another port", "198.18.0.10", 26, syn, true},
		{"blocked, conversation under way", "198.18.0.10", 25, ack, true},
		{"blocked, answer", "198.18.0.10", 25, syn | ack, true},
		{"blocked, end", "198.18.0.10", 25, fin | ack, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := outside.Write(tcpPacket(netip.MustParseAddr(tt.from), server, tt.port, tt.flag, 0)); err != nil {
				t.Fatal(err)
			}
			if got := arrives(t, inside, outside, server); got != tt.pass {
				t.Errorf("forwarded: %v, want %v", got, tt.pass)
			}
		})
	}
	// A later fragment has no TCP header: it is none of our business.
	if _, err := outside.Write(tcpPacket(netip.MustParseAddr("198.18.0.10"), server, 0, 0, 100)); err != nil {
		t.Fatal(err)
	}
	if !arrives(t, inside, outside, server) {
		t.Error("a later fragment is dropped")
	}
}

// arrives reports whether one packet comes out, followed by a marker that
// nothing keeps from it.
func arrives(t *testing.T, inside, outside *os.File, server netip.Addr) bool {
	t.Helper()
	const marker = 9999
	if _, err := outside.Write(tcpPacket(netip.MustParseAddr("198.18.0.200"), server, marker, syn, 0)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2000)
	for got := false; ; {
		inside.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := inside.Read(buf)
		if err != nil {
			t.Fatal("the marker does not arrive:", err)
		}
		if n < 24 || buf[0]>>4 != 4 {
			continue // the kernel's own IPv6 multicast
		}
		if binary.BigEndian.Uint16(buf[22:]) == marker {
			return got
		}
		got = true
	}
}

// tun makes a TUN device, which carries IP packets without any header
// (Documentation/networking/tuntap.rst).
func tun(t *testing.T, name string) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal("open /dev/net/tun:", err)
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		t.Fatal("TUNSETIFF:", err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	return f
}

// tcpPacket is an IPv4 packet with a TCP header, or what follows it in a
// fragmented one.
func tcpPacket(from, to netip.Addr, port uint16, flags byte, fragment uint16) []byte {
	p := make([]byte, 40)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(p[2:], 40)
	binary.BigEndian.PutUint16(p[6:], fragment)
	copy(p[12:], from.AsSlice())
	copy(p[16:], to.AsSlice())
	binary.BigEndian.PutUint16(p[10:], checksum(p[:20], 0))
	tcp := p[20:]
	binary.BigEndian.PutUint16(tcp, 40000)
	binary.BigEndian.PutUint16(tcp[2:], port)
	tcp[12], tcp[13] = 5<<4, flags
	binary.BigEndian.PutUint16(tcp[14:], 1000)
	binary.BigEndian.PutUint16(tcp[16:], checksum(append(p[12:20:20], tcp...), unix.IPPROTO_TCP+20))
	return p
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte, sum uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// While a block is renewed, alone and in company, no packet meets a set without its
// element.
func TestRenewalLeavesNoGap(t *testing.T) {
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("without DESTROY %t", old), func(t *testing.T) { testRenewalLeavesNoGap(t, old) })
	}
}

func testRenewalLeavesNoGap(t *testing.T, old bool) {
	flush(t)
	table, _ := open(t, Default())
	table.conn.NoDestroy = table.conn.NoDestroy || old
	mail := listen25(t, "192.0.2.1:25")
	company := []string{"192.0.2.10"}
	for i := range 50 {
		company = append(company, fmt.Sprintf("198.51.100.%d", i))
	}
	commit(t, table, company...)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	renewals := 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		for ; ctx.Err() == nil && renewals < 500; renewals++ {
			commit(t, table, company[:1+renewals%2*50]...)
		}
	}()
	sent, through := 0, 0
	for ; ctx.Err() == nil; sent++ {
		if synGetsThrough(t, "192.0.2.10", mail) {
			through++
		}
	}
	<-done
	if through > 0 {
		t.Errorf("%d of %d SYNs got through during %d renewals", through, sent, renewals)
	}
	seen := false
	for range 1000 {
		seen = seen || synGetsThrough(t, "192.0.2.11", mail)
	}
	if !seen {
		t.Error("no SYN of an address that is not blocked gets through: the test sees nothing")
	}
	t.Logf("%d SYNs, %d renewals", sent, renewals)
	if renewals < 50 || sent < 100 {
		t.Errorf("only %d SYNs and %d renewals", sent, renewals)
	}
}

// synGetsThrough sends one SYN and reports whether it is answered. On loopback
// the answer is there before connect(2) returns.
func synGetsThrough(t testing.TB, from string, to *net.TCPAddr) bool {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// Ends with a reset, so that no port is used up.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(from).As4()}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(to.IP.To4())}); err != nil && err != unix.EINPROGRESS {
		t.Fatal(err)
	}
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		t.Fatal(err)
	}
	const synSent = 2 // TCP_SYN_SENT, include/net/tcp_states.h
	return info.State != synSent
}
