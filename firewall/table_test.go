package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/firewall/firewalltest"
	"rblnft/firewall/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

var nft, nftInput, clean = firewalltest.NFT, firewalltest.Script, firewalltest.Flush

// A logbook is a log that a test can read.
type logbook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logbook) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// testConfig is the default one with smaller sets, as the kernel reserves
// memory for all elements of a set.
func testConfig() Config {
	cfg := DefaultConfig()
	cfg.MaxElements = 50_000
	return cfg
}

// open opens a table in an empty ruleset.
func open(t testing.TB, cfg Config) (*Table, *logbook) {
	t.Helper()
	clean(t)
	return reopen(t, cfg)
}

// reopen opens a table in the ruleset that there is.
func reopen(t testing.TB, cfg Config) (*Table, *logbook) {
	t.Helper()
	log := &logbook{}
	table, err := Open(cfg, log.logger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return table, log
}

func block(addr, zone string, d time.Duration) Block {
	return Block{Prefix: PrefixOf(netip.MustParseAddr(addr)), Zone: zone, Expires: time.Now().Add(d)}
}

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func commit(t testing.TB, table *Table, blocks ...Block) {
	t.Helper()
	if err := table.Commit(context.Background(), blocks); err != nil {
		t.Fatal(err)
	}
}

// blocked returns the table's elements by their prefixes.
func blocked(t testing.TB, table *Table) map[string]Block {
	t.Helper()
	all, err := table.Elements(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]Block{}
	for _, b := range all {
		m[b.Prefix.String()] = b
	}
	return m
}

// listener listens on a local address for as long as the test runs, and
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

func TestLayout(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Config)
		chain  string
	}{
		"default": {func(*Config) {}, `	chain input {
		type filter hook input priority filter - 10; policy accept;
		tcp dport 25 tcp flags syn / fin,syn,rst,ack ip saddr != @allowed4 ip saddr @blocked4 counter packets 0 bytes 0 drop
		tcp dport 25 tcp flags syn / fin,syn,rst,ack ip6 saddr != @allowed6 ip6 saddr & ffff:ffff:ffff:ffff:: == @blocked6 counter packets 0 bytes 0 drop
	}`},
		"forward, reject, several ports": {func(c *Config) {
			c.Hook, c.Verdict, c.Ports = HookForward, Reject, []uint16{587, 25, 25}
		}, `	chain forward {
		type filter hook forward priority filter - 10; policy accept;
		tcp dport { 25, 587 } tcp flags syn / fin,syn,rst,ack ip saddr != @allowed4 ip saddr @blocked4 counter packets 0 bytes 0 reject with tcp reset
		tcp dport { 25, 587 } tcp flags syn / fin,syn,rst,ack ip6 saddr != @allowed6 ip6 saddr & ffff:ffff:ffff:ffff:: == @blocked6 counter packets 0 bytes 0 reject with tcp reset
	}`},
		"prerouting": {func(c *Config) { c.Hook = HookPrerouting }, `	chain prerouting {
		type filter hook prerouting priority dstnat - 10; policy accept;
		tcp dport 25 tcp flags syn / fin,syn,rst,ack ip saddr != @allowed4 ip saddr @blocked4 counter packets 0 bytes 0 drop
		tcp dport 25 tcp flags syn / fin,syn,rst,ack ip6 saddr != @allowed6 ip6 saddr & ffff:ffff:ffff:ffff:: == @blocked6 counter packets 0 bytes 0 drop
	}`},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			tt.change(&cfg)
			table, log := open(t, cfg)
			commit(t, table, block("192.0.2.1", "zen.example", time.Hour), block("2001:db8:0:7::9", "six.example", time.Hour))
			ruleset := nft(t, "list", "ruleset")
			for _, want := range []string{tt.chain,
				"elements = { 192.0.2.1 timeout 1h expires ",
				"\tset blocked4 {\n\t\ttype ipv4_addr\n\t\tsize 50000\n\t\tflags timeout\n\t\telements = { 192.0.2.1",
				` comment "zen.example" }`,
				"\tset blocked6 {\n\t\ttype ipv6_addr\n\t\tsize 50000\n\t\tflags timeout\n\t\telements = { 2001:db8:0:7::",
				"\tset allowed4 {\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\telements = { 10.0.0.0/8, 100.64.0.0/10,",
				"\tset allowed6 {\n\t\ttype ipv6_addr\n\t\tflags interval\n\t\telements = { ::1,\n\t\t\t     fc00::/7,",
			} {
				if !strings.Contains(ruleset, want) {
					t.Errorf("the ruleset lacks\n%s\nit is\n%s", want, ruleset)
				}
			}
			// nft reads back what it prints, and we recognise it.
			clean(t)
			nftInput(t, ruleset)
			if got := nft(t, "list", "ruleset"); withoutTimes(got) != withoutTimes(ruleset) {
				t.Errorf("read back, the ruleset is\n%s\nit was\n%s", got, ruleset)
			}
			table.Close()
			again, log2 := reopen(t, cfg)
			if len(blocked(t, again)) != 2 {
				t.Errorf("elements %v after nft -f, want both", blocked(t, again))
			}
			if log.String()+log2.String() != "" {
				t.Errorf("logged\n%s%s", log, log2)
			}
		})
	}
}

var times = regexp.MustCompile(`(timeout|expires) [0-9dhms]+|packets .* bytes [0-9]+`)

func withoutTimes(s string) string { return times.ReplaceAllString(s, "") }

func TestBlocking(t *testing.T) {
	table, _ := open(t, testConfig())
	mail := listen25(t, "192.0.2.1:25")
	other := listen25(t, "192.0.2.1:587")
	mail6 := listen25(t, "[2001:db8::1]:25")

	before := mustConnect(t, "192.0.2.10", mail)
	commit(t, table, block("192.0.2.10", "zen.example", time.Hour))
	mustDrop(t, "192.0.2.10", mail)
	echo(t, before) // the conversation under way goes on
	mustConnect(t, "192.0.2.10", other)
	mustConnect(t, "192.0.2.11", mail)

	commit(t, table, block("2001:db8:0:7::1:2", "zen.example", time.Hour))
	mustDrop(t, "2001:db8:0:7::9", mail6)
	mustDrop(t, "2001:db8:0:7:ffff:ffff:ffff:ffff", mail6)
	mustConnect(t, "2001:db8:0:6::9", mail6)
	mustConnect(t, "2001:db8:0:8::9", mail6)

	if chain := nft(t, "list", "chain", "inet", "rblnft", "input"); !regexp.MustCompile(`@blocked4 counter packets [1-9]`).MatchString(chain) {
		t.Errorf("the counter counts nothing:\n%s", chain)
	}

	if err := table.Remove(context.Background(), prefixes("192.0.2.10/32", "192.0.2.77/32", "2001:db8:0:7::/64")); err != nil {
		t.Fatal(err)
	}
	mustConnect(t, "192.0.2.10", mail)
	mustConnect(t, "2001:db8:0:7::9", mail6)
}

func TestOtherPacketsPass(t *testing.T) {
	table, _ := open(t, testConfig())
	commit(t, table, block("192.0.2.10", "zen.example", time.Hour))
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

func TestAllow(t *testing.T) {
	cfg := testConfig()
	cfg.Allow = prefixes("192.0.2.8/29", "192.0.2.10/32", "2001:db8:0:7::5/128", "255.255.255.255/32", "0.0.0.0/8")
	table, _ := open(t, cfg)
	mail := listen25(t, "192.0.2.1:25")
	mail6 := listen25(t, "[2001:db8::1]:25")
	commit(t, table, block("192.0.2.10", "zen.example", time.Hour), block("192.0.2.20", "zen.example", time.Hour), block("2001:db8:0:7::1", "zen.example", time.Hour))
	mustConnect(t, "192.0.2.10", mail)
	mustDrop(t, "192.0.2.20", mail)
	mustConnect(t, "2001:db8:0:7::5", mail6)
	mustDrop(t, "2001:db8:0:7::6", mail6)

	// The allow list leaves the decision to other chains.
	nftInput(t, "table inet own { chain input { type filter hook input priority 0; ip saddr 192.0.2.10 tcp dport 25 drop; }; }")
	mustDrop(t, "192.0.2.10", mail)
	nft(t, "delete", "table", "inet", "own")

	if err := table.SetAllow(context.Background(), prefixes("192.0.2.0/28", "192.0.2.20/30", "::ffff:192.0.2.21/128", "192.0.0.0/30")); err != nil {
		t.Fatal(err)
	}
	mustConnect(t, "192.0.2.20", mail)
	mustDrop(t, "2001:db8:0:7::5", mail6)
	if got := nft(t, "list", "set", "inet", "rblnft", "allowed4"); !strings.Contains(got, "elements = { 192.0.0.0/30, 192.0.2.0/28,\n\t\t\t     192.0.2.20/30 }") {
		t.Errorf("allowed4 is\n%s", got)
	}
	if err := table.SetAllow(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	mustDrop(t, "192.0.2.10", mail)
	if err := table.SetAllow(context.Background(), prefixes("0.0.0.0/0", "::/0")); err != nil {
		t.Fatal(err)
	}
	mustConnect(t, "192.0.2.10", mail)
	mustConnect(t, "2001:db8:0:7::6", mail6)

	// As many networks as a country has.
	var many []netip.Prefix
	for i := range 5000 {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0}), 25))
		many = append(many, netip.PrefixFrom(netip.AddrFrom16([16]byte{0x24, 0, byte(i >> 8), byte(i)}), 33))
	}
	if err := table.SetAllow(context.Background(), many); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(nft(t, "list", "set", "inet", "rblnft", "allowed6"), "/33"); got != 5000 {
		t.Errorf("%d networks in allowed6, want 5000", got)
	}
}

func TestTimeout(t *testing.T) {
	table, _ := open(t, testConfig())
	mail := listen25(t, "192.0.2.1:25")
	commit(t, table,
		block("192.0.2.10", "zen.example", 1500*time.Millisecond),
		block("192.0.2.11", "zen.example", -time.Second),
		Block{Prefix: PrefixOf(netip.MustParseAddr("192.0.2.12"))},
		block("192.0.2.13", "zen.example", time.Nanosecond*100))
	mustDrop(t, "192.0.2.10", mail)
	mustConnect(t, "192.0.2.11", mail)
	mustConnect(t, "192.0.2.12", mail)
	if err := table.Restore(t.Context(), []Block{{Prefix: PrefixOf(netip.MustParseAddr("192.0.2.12")), Zone: "by hand"}}); err != nil {
		t.Error(err)
	}
	mustDrop(t, "192.0.2.12", mail)
	time.Sleep(1500 * time.Millisecond)
	mustConnect(t, "192.0.2.10", mail)
	mustConnect(t, "192.0.2.13", mail)
	if got := blocked(t, table); len(got) != 1 || !got["192.0.2.12/32"].Expires.IsZero() {
		t.Errorf("elements %v, want the one that never expires", got)
	}
}

func TestCommitRefuses(t *testing.T) {
	table, _ := open(t, testConfig())
	for _, p := range []netip.Prefix{{}, netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/48"),
		netip.MustParsePrefix("2001:db8::1/128"), netip.MustParsePrefix("2001:db8::1/64"), netip.MustParsePrefix("::ffff:192.0.2.1/128")} {
		if err := table.Commit(context.Background(), []Block{{Prefix: p, Expires: time.Now().Add(time.Hour)}}); err == nil {
			t.Errorf("commit of %s: no error", p)
		}
		if err := table.Remove(context.Background(), []netip.Prefix{p}); err == nil {
			t.Errorf("remove of %s: no error", p)
		}
	}
	if got := blocked(t, table); len(got) != 0 {
		t.Errorf("elements %v, want none", got)
	}
}

func TestComments(t *testing.T) {
	table, _ := open(t, testConfig())
	for zone, want := range map[string]string{
		"":                       "",
		"zen.example":            "zen.example",
		"a\"b\nc\x00d\xffé":      "abcd",
		strings.Repeat("z", 253): strings.Repeat("z", 128),
	} {
		commit(t, table, block("192.0.2.1", zone, time.Hour))
		if got := blocked(t, table)["192.0.2.1/32"].Zone; got != want {
			t.Errorf("zone %q: comment %q, want %q", zone, got, want)
		}
		ruleset := nft(t, "list", "ruleset")
		nftInput(t, "flush ruleset\n"+ruleset)
		if got := blocked(t, table)["192.0.2.1/32"].Zone; got != want {
			t.Errorf("zone %q: comment %q after nft -f, want %q", zone, got, want)
		}
	}
}

func TestRenderedAsNft(t *testing.T) {
	table, _ := open(t, testConfig())
	commit(t, table, block("192.0.2.1", "zen.example", 90*time.Minute), block("192.0.2.2", "b.example", 49*time.Hour+time.Second))
	nft(t, "add", "element", "inet", "rblnft", "blocked4", "{ 192.0.2.3 }")
	// nft puts two elements on a line.
	words := func(s string) []string { return strings.Fields(withoutTimes(s)) }
	for _, name := range []string{"blocked4", "blocked6"} {
		set, err := List("inet rblnft", name)
		if err != nil {
			t.Fatal(err)
		}
		want := nft(t, "list", "set", "inet", "rblnft", name)
		if got := set.String(); !slices.Equal(words(got), words(want)) {
			t.Errorf("rendered\n%s\nnft says\n%s", got, want)
		}
		if name == "blocked4" && !strings.Contains(set.String(), "192.0.2.1 timeout 1h30m expires 1h") {
			t.Errorf("rendered\n%s", set)
		}
		nft(t, "flush", "set", "inet", "rblnft", name)
		nftInput(t, set.String())
		if got := nft(t, "list", "set", "inet", "rblnft", name); withoutTimes(got) != withoutTimes(want) {
			t.Errorf("read back it is\n%s\nwas\n%s", got, want)
		}
	}
	for _, missing := range [][2]string{{"inet rblnft", "nosuch"}, {"inet nosuch", "blocked4"}} {
		if _, err := List(missing[0], missing[1]); !errors.Is(err, unix.ENOENT) {
			t.Errorf("list %v: %v, want ENOENT", missing, err)
		}
	}
	if _, err := List("inet rblnft", "allowed4"); err == nil {
		t.Error("list allowed4: no error, want one about intervals")
	}
}

func TestNftTime(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", time.Millisecond: "1ms", time.Hour: "1h", 25*time.Hour + 4*time.Second: "1d1h4s",
		59*time.Minute + 58*time.Second + 123*time.Millisecond: "59m58s123ms",
	} {
		if got := nftTime(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

// eachPath runs a test as on this kernel, and as on one before Linux 6.3,
// where deleting an element that is missing fails.
func eachPath(t *testing.T, f func(t *testing.T, old bool)) {
	for name, old := range map[string]bool{"destroy": false, "delete": true} {
		t.Run(name, func(t *testing.T) { f(t, old) })
	}
}

func TestRenewal(t *testing.T) {
	eachPath(t, func(t *testing.T, old bool) {
		table, _ := open(t, testConfig())
		table.failsOnMissing = old
		commit(t, table, block("192.0.2.1", "one.example", time.Hour), block("2001:db8:0:7::", "one.example", time.Hour))
		// Some are there, some are not, one comes twice, the other expires.
		commit(t, table, block("192.0.2.3", "short.example", 20*time.Millisecond))
		time.Sleep(30 * time.Millisecond)
		commit(t, table,
			block("192.0.2.2", "two.example", 2*time.Hour),
			block("192.0.2.1", "no.example", 3*time.Hour),
			block("2001:db8:0:7::1", "two.example", 2*time.Hour),
			block("192.0.2.3", "two.example", 2*time.Hour),
			block("192.0.2.1", "two.example", 2*time.Hour))
		got := blocked(t, table)
		if len(got) != 4 {
			t.Errorf("%d elements, want 4: %v", len(got), got)
		}
		for p, b := range got {
			if left := time.Until(b.Expires); b.Zone != "two.example" || left < 119*time.Minute || left > 121*time.Minute {
				t.Errorf("%s: zone %s, %v left, want two.example and 2h", p, b.Zone, left)
			}
		}
		// Shorter is as good as longer.
		commit(t, table, block("192.0.2.1", "three.example", time.Minute))
		if b := blocked(t, table)["192.0.2.1/32"]; b.Zone != "three.example" || time.Until(b.Expires) > time.Minute {
			t.Errorf("renewed to a minute: %v", b)
		}
		if err := table.Remove(context.Background(), prefixes("192.0.2.9/32", "192.0.2.1/32", "192.0.2.2/32", "192.0.2.2/32")); err != nil {
			t.Error(err)
		}
		if err := table.Remove(context.Background(), prefixes("192.0.2.9/32")); err != nil {
			t.Error(err)
		}
		if got := blocked(t, table); len(got) != 2 {
			t.Errorf("elements %v, want 2", got)
		}
	})
}

// What is said to be new may be there all the same.
func TestMistakenForNew(t *testing.T) {
	eachPath(t, func(t *testing.T, old bool) {
		table, _ := open(t, testConfig())
		table.failsOnMissing = old
		all := some(300)
		commit(t, table, all[:100]...)
		expires := time.Now().Add(3 * time.Hour)
		for i := range all {
			all[i].New, all[i].Expires, all[i].Zone = true, expires, "again.example"
		}
		twice := all[250]
		twice.New = false
		commit(t, table, append(all, all[0], twice)...)
		got := blocked(t, table)
		if len(got) != len(all) {
			t.Errorf("%d elements, want %d", len(got), len(all))
		}
		for p, b := range got {
			if left := time.Until(b.Expires); b.Zone != "again.example" || left < 179*time.Minute {
				t.Fatalf("%s: zone %s, %v left, want again.example and 3h", p, b.Zone, left)
			}
		}
	})
}

// TestRenewalLeavesNoGap renews an address as fast as it can while the address
// keeps sending SYNs.
func TestRenewalLeavesNoGap(t *testing.T) {
	eachPath(t, func(t *testing.T, old bool) {
		table, _ := open(t, testConfig())
		table.failsOnMissing = old
		mail := listen25(t, "192.0.2.1:25")
		blocks := []Block{block("192.0.2.10", "zero.example", time.Hour)}
		for i := range 50 { // in company, and alone
			blocks = append(blocks, block(fmt.Sprintf("198.51.100.%d", i), "zero.example", time.Hour))
		}
		commit(t, table, blocks...)

		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var renewals int
		done := make(chan error, 1)
		go func() {
			defer cancel()
			for ; ctx.Err() == nil && renewals < 500; renewals++ {
				some := blocks[:1]
				if renewals%2 == 0 {
					some = blocks
				}
				for i := range some {
					some[i].Expires = time.Now().Add(time.Hour)
					some[i].Zone = fmt.Sprintf("r%d.example", renewals)
				}
				if err := table.Commit(context.Background(), some); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
		sent, through := 0, 0
		for ; ctx.Err() == nil; sent++ {
			if synGetsThrough(t, "192.0.2.10", mail) {
				through++
			}
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if through > 0 {
			t.Errorf("%d of %d SYNs got through during %d renewals", through, sent, renewals)
		}
		if !synGetsThrough(t, "192.0.2.11", mail) {
			t.Error("a SYN of an address that is not blocked did not get through: the test sees nothing")
		}
		t.Logf("%d SYNs, %d renewals", sent, renewals)
		if renewals < 50 || sent < 1000 {
			t.Errorf("only %d SYNs and %d renewals", sent, renewals)
		}
	})
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

func TestFull(t *testing.T) {
	eachPath(t, func(t *testing.T, old bool) {
		cfg := testConfig()
		cfg.MaxElements = 100
		table, log := open(t, cfg)
		table.failsOnMissing = old
		var blocks []Block
		for i := range 250 {
			blocks = append(blocks, block(fmt.Sprintf("198.51.100.%d", i), "zen.example", time.Hour))
		}
		commit(t, table, blocks[:60]...)
		err := table.Commit(context.Background(), blocks)
		if !errors.Is(err, ErrFull) {
			t.Fatalf("error %v, want one that wraps ErrFull", err)
		}
		if !strings.Contains(err.Error(), "no room for 150 elements") {
			t.Errorf("error %q does not say how many are left out", err)
		}
		got := blocked(t, table)
		if len(got) != 100 {
			t.Errorf("%d elements, want 100", len(got))
		}
		for i := range 60 {
			if _, ok := got[blocks[i].Prefix.String()]; !ok {
				t.Errorf("%s was renewed, and is gone", blocks[i].Prefix)
			}
		}
		// Renewals need no room.
		commit(t, table, blocks[:60]...)
		// A lone one that does not fit, twice: logged once.
		for range 2 {
			if err := table.Commit(context.Background(), blocks[249:]); !errors.Is(err, ErrFull) {
				t.Errorf("error %v, want one that wraps ErrFull", err)
			}
		}
		if n := strings.Count(log.String(), "a set is full"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, log)
		}
		// The other set has room.
		commit(t, table, block("2001:db8:0:7::1", "zen.example", time.Hour))
		if err := table.Remove(context.Background(), []netip.Prefix{blocks[0].Prefix}); err != nil {
			t.Fatal(err)
		}
		commit(t, table, blocks[249])
	})
}

func TestHugeBatch(t *testing.T) {
	eachPath(t, func(t *testing.T, old bool) {
		table, _ := open(t, testConfig())
		table.failsOnMissing = old
		zone := strings.Repeat("long.", 50) + "zen"
		var blocks []Block
		for i := range 20_000 {
			addr := netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)})
			if i%4 == 0 {
				addr = netip.AddrFrom16([16]byte{0x24, 1: 0, 2: byte(i >> 8), 3: byte(i), 15: 1})
			}
			blocks = append(blocks, Block{Prefix: PrefixOf(addr), Zone: zone, Expires: time.Now().Add(time.Hour)})
		}
		for range 2 { // all new, then all renewed
			commit(t, table, blocks...)
			if got := blocked(t, table); len(got) != len(blocks) {
				t.Errorf("%d elements, want %d", len(got), len(blocks))
			}
		}
		// A send buffer that has no room for a normal transaction.
		table.conn.max = 10_000
		commit(t, table, blocks...)
		var all []netip.Prefix
		for _, b := range blocks {
			all = append(all, b.Prefix)
		}
		if err := table.Remove(context.Background(), all); err != nil {
			t.Fatal(err)
		}
		if got := blocked(t, table); len(got) != 0 {
			t.Errorf("%d elements, want none", len(got))
		}
	})
}

// The send buffer holds what conn.max says, and not a byte more.
func TestTransactionBound(t *testing.T) {
	table, _ := open(t, testConfig())
	c := table.conn
	for _, over := range []int{0, 4} {
		c.start(&table.batch, table.at)
		table.batch.message(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, "blocked4", func(b []byte) []byte {
			return appendElement(b, netip.MustParseAddr("192.0.2.1"), time.Hour, "")
		})
		// Padding after a batch's end is not looked at.
		table.batch.end()
		table.batch.buf = append(table.batch.buf, make([]byte, c.max+over-len(table.batch.buf))...)
		err := unix.Sendto(rawFD(t, c), table.batch.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if over == 0 && err != nil || over > 0 && err != unix.EMSGSIZE {
			t.Errorf("%d bytes more than the bound: %v", over, err)
		}
		c.drain()
	}
}

func rawFD(t *testing.T, c *conn) (n int) {
	t.Helper()
	if err := c.raw.Control(func(fd uintptr) { n = int(fd) }); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTakeOver(t *testing.T) {
	table, _ := open(t, testConfig())
	commit(t, table, block("192.0.2.1", "zen.example", time.Hour), block("2001:db8::1", "zen.example", time.Hour))
	handles := nft(t, "-a", "list", "ruleset")
	table.Close()
	if len(blocked(t, table)) != 2 {
		t.Error("the table does not stay")
	}
	again, log := reopen(t, testConfig())
	if got := nft(t, "-a", "list", "ruleset"); withoutTimes(got) != withoutTimes(handles) {
		t.Errorf("taken over, it is\n%s\nwas\n%s", got, handles)
	}
	if len(blocked(t, again)) != 2 || log.String() != "" {
		t.Errorf("elements %v, log %s", blocked(t, again), log)
	}
	if again.sets[0].stale || again.sets[1].stale {
		t.Error("sets that were taken over are to be filled")
	}
}

func TestOtherLayoutIsReplaced(t *testing.T) {
	for name, tt := range map[string]struct {
		script string
		kept   int // of two elements
	}{
		"nothing in it":        {"delete table inet rblnft; table inet rblnft { }", 0},
		"dormant":              {"table inet rblnft { flags dormant; }", 2},
		"other policy":         {"chain inet rblnft input { policy drop; }", 2},
		"no rules":             {"flush chain inet rblnft input", 2},
		"a rule more":          {"insert rule inet rblnft input accept", 2},
		"another rule":         {"flush chain inet rblnft input\nadd rule inet rblnft input tcp dport 25 drop\nadd rule inet rblnft input tcp dport 26 drop", 2},
		"no chain":             {"flush chain inet rblnft input\ndelete chain inet rblnft input", 2},
		"other chain":          {"flush chain inet rblnft input\ndelete chain inet rblnft input\nadd chain inet rblnft input { type filter hook forward priority 7; policy drop; }", 2},
		"no set":               {"flush chain inet rblnft input\ndelete set inet rblnft blocked6\ndelete set inet rblnft allowed4", 1},
		"set of another type":  {"flush chain inet rblnft input\ndelete set inet rblnft blocked6\nadd set inet rblnft blocked6 { type inet_service; elements = { 25 }; }", 1},
		"interval set":         {"flush chain inet rblnft input\ndelete set inet rblnft blocked6\nadd set inet rblnft blocked6 { type ipv6_addr; flags interval, timeout; elements = { 2001:db8::/32 }; }", 1},
		"set of another size":  {"flush chain inet rblnft input\ndelete set inet rblnft blocked6\nadd set inet rblnft blocked6 { type ipv6_addr; flags timeout; size 10; elements = { 2001:db8:: timeout 1h }; }", 2},
		"more sets and chains": {"add set inet rblnft more { type mark; }\nadd chain inet rblnft old { type filter hook input priority 0; policy drop; }", 2},
		"used elsewhere":       {"flush chain inet rblnft input\nadd chain inet rblnft own\nadd rule inet rblnft own ip saddr @allowed4 accept\nadd chain inet rblnft input { policy drop; }", 2},
		"other file's set":     {"flush ruleset\ntable inet rblnft { set blocked4 { type ipv4_addr; size 3; timeout 1d; flags timeout; }; chain c { ip saddr @blocked4 drop; }; }", 0},
	} {
		t.Run(name, func(t *testing.T) {
			table, _ := open(t, testConfig())
			want := nft(t, "list", "ruleset")
			commit(t, table, block("192.0.2.1", "zen.example", time.Hour), block("2001:db8::1", "zen.example", time.Hour))
			table.Close()
			nftInput(t, tt.script)
			table, log := reopen(t, testConfig())
			got := blocked(t, table)
			if len(got) != tt.kept {
				t.Errorf("%d elements kept, want %d", len(got), tt.kept)
			}
			for _, b := range got {
				if left := time.Until(b.Expires); left < 59*time.Minute || left > 61*time.Minute {
					t.Errorf("%v kept with %v left", b, left)
				}
			}
			nft(t, "flush", "set", "inet", "rblnft", "blocked4")
			nft(t, "flush", "set", "inet", "rblnft", "blocked6")
			if got := nft(t, "list", "ruleset"); sorted(got) != sorted(want) {
				t.Errorf("it is\n%s\nwant\n%s", got, want)
			}
			if !strings.Contains(log.String(), "putting it right") {
				t.Errorf("log:\n%s", log)
			}
		})
	}
}

// sorted makes two lists of a table comparable that name its sets in another
// order.
func sorted(s string) string {
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestOpenFailures(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"table":       func(c *Config) { c.Table = "" },
		"family":      func(c *Config) { c.Table = "bridge rblnft" },
		"ip table":    func(c *Config) { c.Table = "ip rblnft" },
		"three words": func(c *Config) { c.Table = "inet rblnft input" },
		"bad name":    func(c *Config) { c.Table = "inet rbl;nft" },
		"twice":       func(c *Config) { c.Blocked6 = c.Blocked4 },
		"no name":     func(c *Config) { c.Allowed4 = "" },
		"hook":        func(c *Config) { c.Hook = "output" },
		"verdict":     func(c *Config) { c.Verdict = "accept" },
		"no ports":    func(c *Config) { c.Ports = nil },
		"port 0":      func(c *Config) { c.Ports = []uint16{25, 0} },
		"no elements": func(c *Config) { c.MaxElements = 0 },
		"many":        func(c *Config) { c.MaxElements = 1 << 40 },
		"allow":       func(c *Config) { c.Allow = []netip.Prefix{{}} },
		"chain":       func(c *Config) { c.Chain = "a b" },
		"long name":   func(c *Config) { c.Table = strings.Repeat("x", 200) },
	} {
		cfg := testConfig()
		change(&cfg)
		table, err := Open(cfg, slog.New(slog.DiscardHandler))
		if err == nil {
			table.Close()
			t.Errorf("%s: no error", name)
		}
	}
	if cfg := DefaultConfig(); cfg.Validate() != nil {
		t.Error(cfg.Validate())
	}
}

func TestNoDescriptorLeaks(t *testing.T) {
	count := func() int {
		fds, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	clean(t)
	before := count()
	for range 20 {
		table, err := Open(testConfig(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		commit(t, table, block("192.0.2.1", "zen.example", time.Hour))
		if _, err := table.Elements(t.Context()); err != nil {
			t.Fatal(err)
		}
		table.Close()
	}
	if after := count(); after > before+2 {
		t.Errorf("%d descriptors, were %d", after, before)
	}
}

// The kernel's own answer decides which path is taken.
func TestProbe(t *testing.T) {
	table, _ := open(t, testConfig())
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	if old := major < 6 || major == 6 && minor < 3; table.failsOnMissing != old {
		t.Errorf("Linux %d.%d taken for an old kernel: %v", major, minor, table.failsOnMissing)
	}
}

// Restoring leaves alone what is there already, whatever its timeout.
func TestFillLeavesWhatIsThere(t *testing.T) {
	eachPath(t, func(t *testing.T, old bool) {
		table, _ := open(t, testConfig())
		table.failsOnMissing = old
		commit(t, table, block("192.0.2.1", "new.example", 2*time.Hour), block("192.0.2.3", "new.example", 2*time.Hour))
		var todo []change
		for i := range 4 {
			c, _, err := changeTo(new(block(fmt.Sprintf("192.0.2.%d", i), "old.example", time.Hour)), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			todo = append(todo, c)
		}
		if _, err := table.applyOne(t.Context(), table.sets[0], fill, todo); err != nil {
			t.Fatal(err)
		}
		got := blocked(t, table)
		for i, want := range []string{"old.example", "new.example", "old.example", "new.example"} {
			if b := got[fmt.Sprintf("192.0.2.%d/32", i)]; b.Zone != want {
				t.Errorf("192.0.2.%d: %q, want %q", i, b.Zone, want)
			}
		}
	})
}

func TestLearn(t *testing.T) {
	const del, destroy, add = unix.NFT_MSG_DELSETELEM, nftMsgDestroySetElem, unix.NFT_MSG_NEWSETELEM
	for _, tt := range []struct {
		name     string
		parts    []part
		failures []failure
		want     lesson
		known    [3]presence
		err      error
	}{
		{name: "one is there", parts: []part{{add, []int{0}}, {add, []int{1}}}, failures: []failure{{1, unix.EEXIST}}, known: [3]presence{1: present}},
		{name: "some are there", parts: []part{{add, []int{0, 1, 2}}}, failures: []failure{{0, unix.EEXIST}}, want: lesson{single: true}},
		{name: "one is gone", parts: []part{{del, []int{2}}, {add, []int{2}}}, failures: []failure{{0, unix.ENOENT}}, known: [3]presence{2: absent}},
		{name: "the set is gone", parts: []part{{del, []int{2}}, {add, []int{2}}}, failures: []failure{{0, unix.ENOENT}, {1, unix.ENOENT}}, known: [3]presence{2: absent}, err: unix.ENOENT},
		{name: "no room for one", parts: []part{{destroy, []int{0, 1, 2}}, {add, []int{0}}, {add, []int{1}}}, failures: []failure{{2, unix.ENFILE}}, want: lesson{out: []bool{false, true, false}, full: 1}},
		{name: "no room for some", parts: []part{{destroy, []int{0, 1, 2}}, {add, []int{0, 1, 2}}}, failures: []failure{{1, unix.ENFILE}}, want: lesson{single: true}},
		{name: "a set of another kind", parts: []part{{destroy, []int{0}}, {add, []int{0}}}, failures: []failure{{0, unix.EINVAL}, {1, unix.EINVAL}}, err: unix.EINVAL},
		{name: "not permitted", parts: []part{{add, []int{0}}}, failures: []failure{{-1, unix.EPERM}}, err: unix.EPERM},
		{name: "bad element", parts: []part{{add, []int{0}}}, failures: []failure{{0, unix.EINVAL}}, err: unix.EINVAL},
	} {
		t.Run(tt.name, func(t *testing.T) {
			todo := make([]change, 3)
			got, err := learn(tt.parts, todo, tt.failures)
			if !errors.Is(err, tt.err) || got.single != tt.want.single || got.full != tt.want.full ||
				tt.want.out != nil && !slices.Equal(got.out, tt.want.out) {
				t.Errorf("learnt %+v, error %v", got, err)
			}
			for i, c := range todo {
				if c.known != tt.known[i] {
					t.Errorf("element %d: %v, want %v", i, c.known, tt.known[i])
				}
			}
		})
	}
}
