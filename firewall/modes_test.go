package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const ownRuleset = `table inet filter {
	set bad4 { type ipv4_addr; flags timeout; }
	set bad6 { type ipv6_addr; flags timeout; size 1000; }
	chain in {
		type filter hook input priority filter; policy accept;
		tcp dport 25 ip saddr @bad4 counter reject
		tcp dport 25 ip6 saddr & ffff:ffff:ffff:ffff:: @bad6 counter drop
	}
}
`

func setOnlyConfig() Config {
	cfg := testConfig()
	cfg.Table, cfg.Blocked4, cfg.Blocked6, cfg.Rules = "inet filter", "bad4", "bad6", false
	return cfg
}

func TestSetOnly(t *testing.T) {
	clean(t)
	nftInput(t, ownRuleset)
	nft(t, "add", "element", "inet", "filter", "bad4", "{ 192.0.2.99 timeout 1h }")
	before := nft(t, "list", "ruleset")
	table, log := reopen(t, setOnlyConfig())
	if got := nft(t, "list", "ruleset"); withoutTimes(got) != withoutTimes(before) || log.String() != "" {
		t.Errorf("the ruleset was changed to\n%s\nlog %s", got, log)
	}
	state := newMemory()
	run(t, table, state)
	mail6 := listen25(t, "[2001:db8::51]:25")
	blocks := []Block{block("192.0.2.10", "zen.example", time.Hour), block("2001:db8:0:7::9", "zen.example", time.Hour)}
	commit(t, table, blocks...)
	for _, b := range blocks {
		state.mu.Lock()
		state.blocks[b.Prefix] = b
		state.mu.Unlock()
	}
	mustDrop(t, "2001:db8:0:7::1", mail6)
	if got := nft(t, "list", "set", "inet", "filter", "bad4"); !strings.Contains(got, "192.0.2.10 timeout 1h") || !strings.Contains(got, "192.0.2.99") {
		t.Errorf("bad4 is\n%s", got)
	}
	if err := table.SetAllow(t.Context(), prefixes("192.0.2.0/24")); err != nil {
		t.Error(err)
	}

	// Reloading the admin's file empties the sets; we fill them again, and
	// put nothing else back.
	nftInput(t, "flush ruleset\n"+ownRuleset)
	eventually(t, "two elements are back", func() bool { return count(t, table) == 2 })
	mustDrop(t, "2001:db8:0:7::1", mail6)
	nft(t, "flush", "ruleset")
	eventually(t, "it is said", func() bool {
		return strings.Contains(log.String(), "table inet filter has no set") || strings.Contains(log.String(), "no set bad4")
	})
	if got := nft(t, "list", "ruleset"); got != "" {
		t.Errorf("there is something of ours:\n%s", got)
	}
	if err := table.Commit(t.Context(), blocks); !errors.Is(err, ErrMissing) {
		t.Errorf("commit to a missing set: %v, want ErrMissing", err)
	}
	nftInput(t, ownRuleset)
	eventually(t, "two elements are back again", func() bool { return count(t, table) == 2 })
}

func TestSetOnlySaysWhatIsMissing(t *testing.T) {
	for name, tt := range map[string]struct {
		ruleset string
		want    []string
	}{
		"all": {"", []string{
			"no set bad4: nft add set inet filter bad4 '{ type ipv4_addr; flags timeout; size 50000; }'",
			"no set bad6: nft add set inet filter bad6 '{ type ipv6_addr; flags timeout; size 50000; }'"}},
		"rules": {"table inet filter { set bad4 { type ipv4_addr; flags timeout; }; set bad6 { type ipv6_addr; flags timeout; }; chain in { type filter hook input priority 0; }; }", []string{
			"no rule uses set bad4, so it blocks nobody: nft add rule inet filter CHAIN tcp dport 25 tcp flags '& (fin | syn | rst | ack)' == syn ip saddr @bad4 counter drop",
			"no rule uses set bad6, so it blocks nobody: nft add rule inet filter CHAIN tcp dport 25 tcp flags '& (fin | syn | rst | ack)' == syn ip6 saddr '& ffff:ffff:ffff:ffff::' @bad6 counter drop"}},
		"no timeout, intervals": {"table inet filter { set bad4 { type ipv4_addr; }; set bad6 { type ipv6_addr; flags interval, timeout; }; }", []string{
			"set bad4 is not of type ipv4_addr with flags timeout", "set bad6 is not of type ipv6_addr with flags timeout"}},
	} {
		t.Run(name, func(t *testing.T) {
			clean(t)
			nftInput(t, tt.ruleset)
			table, log := reopen(t, setOnlyConfig())
			for _, want := range tt.want {
				if !strings.Contains(log.String(), want) {
					t.Errorf("the log lacks %q:\n%s", want, log)
				}
			}
			if strings.Count(log.String(), "\n") != 1 {
				t.Errorf("more than one line:\n%s", log)
			}
			err := table.Commit(t.Context(), []Block{block("192.0.2.1", "zen.example", time.Hour)})
			if name == "rules" && err != nil || name != "rules" && !errors.Is(err, ErrMissing) {
				t.Errorf("commit: %v", err)
			}
			// What we say can be done as it stands.
			for _, line := range tt.want {
				if _, command, ok := strings.Cut(line, ": nft "); ok {
					if name == "all" {
						nft(t, "add", "table", "inet", "filter")
					}
					sh(t, "nft "+strings.Replace(command, "CHAIN", "in", 1))
				}
			}
		})
	}
}

func sh(t *testing.T, command string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", command, err, out)
	}
}

func TestSetOnlyInATableOfOneFamily(t *testing.T) {
	clean(t)
	nftInput(t, "table ip filter { set bad4 { type ipv4_addr; flags timeout; }; chain in { type filter hook input priority 0; ip saddr @bad4 drop; }; }")
	cfg := setOnlyConfig()
	cfg.Table = "ip filter"
	table, log := reopen(t, cfg)
	commit(t, table, block("192.0.2.1", "zen.example", time.Hour))
	if count(t, table) != 1 {
		t.Error("the element is not there")
	}
	if err := table.Commit(t.Context(), []Block{block("2001:db8::1", "zen.example", time.Hour), block("192.0.2.2", "zen.example", time.Hour)}); !errors.Is(err, ErrMissing) {
		t.Errorf("commit of an IPv6 block: %v, want ErrMissing", err)
	}
	if count(t, table) != 2 {
		t.Error("the IPv4 block beside it is not there")
	}
	if strings.Contains(log.String(), "level=WARN") {
		t.Errorf("log\n%s", log)
	}
}

func TestReject(t *testing.T) {
	for _, hook := range []Hook{HookInput, HookPrerouting} {
		t.Run(string(hook), func(t *testing.T) {
			cfg := testConfig()
			cfg.Hook, cfg.Verdict, cfg.Ports = hook, Reject, []uint16{25, 587}
			table, _ := open(t, cfg)
			mail := listen25(t, "192.0.2.61:25")
			mail6 := listen25(t, "[2001:db8::61]:587")
			other := listen25(t, "192.0.2.61:465")
			before := mustConnect(t, "192.0.2.10", mail)
			commit(t, table, block("192.0.2.10", "zen.example", time.Hour), block("2001:db8:0:7::9", "zen.example", time.Hour))
			mustRefuse(t, "192.0.2.10", mail)
			mustRefuse(t, "2001:db8:0:7::1", mail6)
			mustConnect(t, "192.0.2.11", mail)
			mustConnect(t, "192.0.2.10", other)
			echo(t, before)
		})
	}
}

func TestPrerouting(t *testing.T) {
	cfg := testConfig()
	cfg.Hook = HookPrerouting
	table, _ := open(t, cfg)
	mail := listen25(t, "192.0.2.62:25")
	before := mustConnect(t, "192.0.2.10", mail)
	commit(t, table, block("192.0.2.10", "zen.example", time.Hour))
	mustDrop(t, "192.0.2.10", mail)
	mustConnect(t, "192.0.2.11", mail)
	echo(t, before)
}

// TestForward sends SYNs through the kernel from one TUN device to another, as
// a router gets them.
func TestForward(t *testing.T) {
	cfg := testConfig()
	cfg.Hook = HookForward
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
	commit(t, table, block("198.18.0.10", "zen.example", time.Hour))
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

// A second table beside the first has its own name, and both stand.
func TestTwoTables(t *testing.T) {
	first, _ := open(t, testConfig())
	cfg := testConfig()
	cfg.Table, cfg.Ports = "inet submission", []uint16{587}
	second, _ := reopen(t, cfg)
	run(t, first, newMemory())
	run(t, second, newMemory())
	filled(t, first)
	filled(t, second)
	nft(t, "flush", "ruleset")
	eventually(t, "both stand", func() bool { return count(t, first) == 0 && count(t, second) == 0 })
	commit(t, second, block("192.0.2.10", "zen.example", time.Hour))
	if count(t, first) != 0 || count(t, second) != 1 {
		t.Errorf("%d and %d elements, want 0 and 1", count(t, first), count(t, second))
	}
}

func TestRunEndsWithTheListener(t *testing.T) {
	table, _ := open(t, testConfig())
	done := make(chan error, 1)
	go func() { done <- table.Run(context.Background(), newMemory()) }()
	filled(t, table)
	table.listener.close()
	select {
	case err := <-done:
		if err == nil || errors.Is(err, net.ErrClosed) {
			t.Errorf("error %v, want one that says that nothing can be received", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Run goes on without a listener")
	}
}
