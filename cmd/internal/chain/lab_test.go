package chain

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"rblnft/cmd/internal/build"
	"rblnft/firewall/firewalltest"
	"rblnft/firewall/netlab"
)

// Who is who. Both DNSBLs list what stands in their zone files below.
const (
	server    = "192.0.2.25"
	dnsbl     = "192.0.2.53"
	unlisted  = "198.51.100.7"
	byOne     = "192.0.2.101" // listed by one.example
	byTwo     = "192.0.2.102" // listed by two.example
	exempt    = "192.0.2.103" // listed by both, and exempt by the cdb
	forbidden = "192.0.2.104" // listed by neither, and blocked by the cdb
)

var zoneFiles = map[string]string{
	"one": ":127.0.0.2:Listed by one, see http://one.example/?$\n127.0.0.2\n192.0.2.101\n192.0.2.103\n192.0.2.128/25\n",
	"two": ":127.0.0.4:Listed by two\n127.0.0.2\n192.0.2.102\n192.0.2.103\n",
	// For tcpserver, which looks up clients' names: there are none.
	"arpa": "",
}

// programs is the directory of the real programs.
var programs string

func TestMain(m *testing.M) {
	netlab.Main(build.Before(m, func(dir string) { programs = dir }, build.Programs...))
}

// daemon is a program in the background.
type daemon struct {
	cmd *exec.Cmd
	log *buffer
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// start starts a program until the end of the test.
func start(t testing.TB, env []string, name string, args ...string) *daemon {
	t.Helper()
	d := &daemon{exec.Command(name, args...), &buffer{}}
	d.cmd.Env = append([]string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin"}, env...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.cmd.WaitDelay = time.Second
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.stop()
		if t.Failed() {
			t.Logf("%s said:\n%s", filepath.Base(name), d.log)
		}
	})
	return d
}

// stop ends the program, and what it has started.
func (d *daemon) stop() {
	if d.cmd.ProcessState != nil {
		return
	}
	syscall.Kill(-d.cmd.Process.Pid, syscall.SIGTERM)
	done := make(chan struct{})
	go func() { d.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL)
		<-done
	}
}

// await waits until something is true.
func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not seen in 20 s:", what)
		}
	}
}

// write makes a file.
func write(t testing.TB, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// publicDir is a temporary directory that every user may read.
func publicDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "chain")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// startDNSBL starts rbldnsd.
func startDNSBL(t testing.TB) {
	t.Helper()
	dir := publicDir(t)
	for name, text := range zoneFiles {
		write(t, filepath.Join(dir, name), "$SOA 60 ns.example. admin.example. 0 600 300 86400 60\n"+text, 0o644)
	}
	start(t, nil, "rbldnsd", "-n", "-b", dnsbl+"/53", "-r", dir, "-w", "/",
		"one.example:ip4set:one", "two.example:ip4set:two", "in-addr.arpa:generic:arpa")
	await(t, "an answer of the DNSBL", func() bool {
		c, err := net.Dial("udp", dnsbl+":53")
		if err != nil {
			return false
		}
		defer c.Close()
		// A query for the A record of 2.0.0.127.one.example (RFC 1035, section 4.1).
		c.Write([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x012\x010\x010\x03127\x03one\x07example\x00\x00\x01\x00\x01"))
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := c.Read(make([]byte, 512))
		return err == nil && n > 12
	})
}

// nobody is the user, and the group, that the filter runs as.
const nobody = 65534

// startServer starts the chain of a qmail run script, the SMTP server apart.
// It returns tcpserver, whose log is the filter's too, and the directory that
// mail is delivered to.
func startServer(t testing.TB, hits string) (*daemon, string) {
	t.Helper()
	dir := publicDir(t)
	env := filepath.Join(dir, "env")
	mail := filepath.Join(dir, "mail")
	for _, d := range []string{env, mail} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(mail, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(env, "DNSCACHEIP"), dnsbl+"\n", 0o644)
	if hits != "default" {
		write(t, filepath.Join(env, "RBLNFT_SOCKET"), hits+"\n", 0o644)
	}

	cdb := filepath.Join(dir, "tcp.cdb")
	rules := exec.Command("tcprules", cdb, cdb+".tmp")
	rules.Stdin = strings.NewReader(exempt + `:allow,RBLSMTPD=""` + "\n" + forbidden + `:allow,RBLSMTPD="-Go away"` + "\n:allow\n")
	if out, err := rules.CombinedOutput(); err != nil {
		t.Fatalf("tcprules: %v\n%s", err, out)
	}
	// msmtpd takes the mail and has this program deliver it. It needs more
	// memory than softlimit leaves it, unlike qmail-smtpd.
	deliver := write(t, filepath.Join(dir, "deliver"), "#!/bin/sh\numask 022\ncat > "+mail+"/.$$ && mv "+mail+"/.$$ "+mail+"/$$\n", 0o755)

	d := start(t, nil, "softlimit", "-m", "9000000",
		"envdir", env,
		"tcpserver", "-b", "200", "-v", "-R", "-l", "mail.example", "-x", cdb, "-c", "40",
		"-u", fmt.Sprint(nobody), "-g", fmt.Sprint(nobody), server, "25",
		filepath.Join(programs, "rblsmtpd"), "-b", "-v", "-r", "one.example:one says %IP%",
		"-b", "-v", "-r", "two.example:two says no",
		"softlimit", "-m", "200000000", "msmtpd", "--inetd", "--command="+deliver)
	await(t, "tcpserver listening", func() bool { return strings.Contains(d.log.String(), "tcpserver: status: 0/40") })
	return d, mail
}

// startDaemon starts rblnftd with a configuration, on a socket of its own.
func startDaemon(t testing.TB, config string) (d *daemon, socket string) {
	t.Helper()
	dir := publicDir(t)
	socket = filepath.Join(dir, "hits.sock")
	file := write(t, filepath.Join(dir, "rblnftd.toml"), fmt.Sprintf("socket_group = %d\n%s", nobody, config), 0o644)
	d = start(t, nil, filepath.Join(programs, "rblnftd"), "-c", file, "-s", socket)
	await(t, "the daemon's socket", func() bool {
		c, err := net.Dial("unixgram", socket)
		if err != nil {
			return false
		}
		c.Close()
		return strings.Contains(d.log.String(), "ready")
	})
	t.Cleanup(func() {
		d.stop()
		exec.Command("nft", "delete", "table", "inet", "rblnft").Run()
	})
	return d, socket
}

var nft = firewalltest.NFT

// blocked4 is what nft says of the set of blocked IPv4 addresses.
func blocked4(t testing.TB) string { return nft(t, "list", "set", "inet", "rblnft", "blocked4") }

// isBlocked reports whether an address is in the set.
func isBlocked(addr string) bool {
	return exec.Command("nft", "get", "element", "inet", "rblnft", "blocked4", "{ "+addr+" }").Run() == nil
}

// client is an SMTP client.
type client struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
	said strings.Builder // by the server
}

// dial connects from an address to the mail server.
func dial(from string, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))}
	return d.Dial("tcp4", server+":25")
}

func connect(t testing.TB, from string) *client {
	t.Helper()
	conn, err := dial(from, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	return &client{t: t, conn: conn, in: bufio.NewReader(conn)}
}

// expect reads one reply, of one line or several, and checks its beginning.
func (c *client) expect(want string) {
	c.t.Helper()
	for {
		line, err := c.in.ReadString('\n')
		c.said.WriteString(line)
		if err != nil {
			c.t.Fatalf("the server said %q and no more: %v, want %q", c.said.String(), err, want)
		}
		if len(line) > 3 && line[3] == '-' {
			continue
		}
		if !strings.HasPrefix(line, want) || !strings.HasSuffix(line, "\r\n") {
			c.t.Fatalf("the server said %q, want %q", line, want)
		}
		return
	}
}

func (c *client) say(line, want string) {
	c.t.Helper()
	if _, err := c.conn.Write([]byte(line + "\r\n")); err != nil {
		c.t.Fatal(err)
	}
	c.expect(want)
}

// end checks that the server has closed the connection.
func (c *client) end() {
	c.t.Helper()
	if b, err := c.in.ReadByte(); err == nil {
		c.t.Errorf("the server goes on, with %q", b)
	}
}
