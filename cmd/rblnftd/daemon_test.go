//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/cmd/internal/build"
	"rblnft/firewall"
	"rblnft/firewall/firewalltest"
	"rblnft/firewall/hit"
	"rblnft/firewall/netlab"
)

// program is the file of the real program.
var program string

func TestMain(m *testing.M) {
	netlab.Main(build.Before(m, func(dir string) { program = filepath.Join(dir, "rblnftd") }, "rblnftd"))
}

// A site is a place for daemons to run at, one after another: a configuration,
// a socket, a state directory, and what all of them logged.
type site struct {
	t      testing.TB
	config string
	socket string
	state  string // "": none

	mu    sync.Mutex
	lines []string

	cmd     *exec.Cmd
	reading sync.WaitGroup
	used    time.Duration // CPU, by the last one that ended
}

func newSite(t testing.TB, config string) *site {
	t.Helper()
	flush(t)
	dir := t.TempDir()
	s := &site{t: t, config: filepath.Join(dir, "rblnftd.toml"), socket: filepath.Join(dir, "hits.sock"), state: filepath.Join(dir, "state")}
	s.configure(config)
	t.Cleanup(func() {
		if s.cmd != nil {
			s.kill()
		}
		if t.Failed() {
			t.Logf("the log's end:\n%s", s.tail(60))
			t.Logf("all that it says of the daemon itself:\n%s", s.news(500))
		}
	})
	return s
}

func (s *site) configure(text string) {
	s.t.Helper()
	if err := os.WriteFile(s.config, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// launch starts a daemon and does not wait.
func (s *site) launch() {
	s.t.Helper()
	if s.cmd != nil {
		s.t.Fatal("one is running")
	}
	cmd := exec.Command(program, "-c", s.config, "-s", s.socket)
	cmd.Env = append(os.Environ(), "STATE_DIRECTORY="+s.state)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd = cmd
	s.reading.Go(func() {
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			s.mu.Lock()
			s.lines = append(s.lines, lines.Text())
			s.mu.Unlock()
		}
	})
}

// start starts a daemon and waits until it is ready.
func (s *site) start() {
	s.t.Helper()
	from := s.logged()
	s.launch()
	s.await(from, "rblnftd: ready")
}

// logged returns how many lines there are in the log.
func (s *site) logged() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.lines)
}

// log returns the lines from the given one on.
func (s *site) log(from int) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lines[from:])
}

// news returns the last lines of those that are not about hits.
func (s *site) news(n int) string {
	all := slices.DeleteFunc(s.log(0), func(line string) bool { return strings.Contains(line, "blocked addr=") })
	return strings.Join(all[max(0, len(all)-n):], "\n")
}

func (s *site) tail(n int) string {
	all := s.log(0)
	return strings.Join(all[max(0, len(all)-n):], "\n")
}

// await waits for a line that contains all words, from the given one on.
func (s *site) await(from int, words ...string) string {
	s.t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(2 * time.Millisecond) {
		for _, line := range s.log(from) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				return line
			}
		}
		if time.Now().After(end) {
			s.t.Fatalf("no line with %q in the log", words)
		}
	}
}

func (s *site) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// wait waits for the daemon's end and returns its exit code, -1 for a signal.
func (s *site) wait() int {
	s.t.Helper()
	s.reading.Wait()
	s.cmd.Wait()
	code := s.cmd.ProcessState.ExitCode()
	s.used = s.cmd.ProcessState.UserTime() + s.cmd.ProcessState.SystemTime()
	s.cmd = nil
	return code
}

func (s *site) kill() {
	s.t.Helper()
	s.cmd.Process.Kill()
	s.wait()
}

// end has the daemon end as it should.
func (s *site) end() {
	s.t.Helper()
	s.signal(syscall.SIGTERM)
	if code := s.wait(); code != 0 {
		s.t.Errorf("exit code %d after SIGTERM", code)
	}
}

// hitOf is a hit of an address.
func hitOf(addr string) hit.Hit {
	return hit.Hit{Addr: netip.MustParseAddr(addr), Zone: "bl.example", Code: netip.MustParseAddr("127.0.0.2"), Answer: "553 listed"}
}

// send sends a hit as the filter does.
func send(path string, h hit.Hit, client int) (sent bool, err error) {
	s, err := hit.NewSender(path, h)
	if err != nil {
		return false, err
	}
	defer s.Close()
	return s.Send()
}

// hits sends hits and waits until each was decided about.
func (s *site) hits(addrs ...string) {
	s.t.Helper()
	for _, a := range addrs {
		from := s.logged()
		sent, err := send(s.socket, hitOf(a), -1)
		if !sent {
			s.t.Fatalf("hit of %s not sent: %v", a, err)
		}
		s.await(from, "addr="+a+" ")
	}
}

var nft, flush = firewalltest.NFT, firewalltest.Flush

// An element is one as nft lists it.
type element struct {
	earliest, latest time.Time // when it expires, as far as the listing tells
	comment          string
}

var elementPattern = regexp.MustCompile(`([0-9a-f.:]+) timeout ([0-9a-z]+) expires ([0-9a-z]+)(?: comment "([^"]*)")?`)

// elements are what nft says that the two sets of blocked addresses hold, by
// their first address.
func elements(t testing.TB) map[string]element {
	t.Helper()
	all, err := listed(t)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// listed is elements, with an error where a set is away.
func listed(t testing.TB) (map[string]element, error) {
	t.Helper()
	all := map[string]element{}
	for _, set := range []string{"blocked4", "blocked6"} {
		before := time.Now()
		out, err := exec.Command("nft", "list", "set", "inet", "rblnft", set).Output()
		after := time.Now()
		if err != nil {
			return nil, fmt.Errorf("nft list set inet rblnft %s: %v", set, err)
		}
		matches := elementPattern.FindAllStringSubmatch(string(out), -1)
		if n := strings.Count(string(out), "expires"); n != len(matches) {
			t.Fatalf("%d of %d elements were read of\n%.3000s", len(matches), n, out)
		}
		for _, m := range matches {
			left, err := duration(m[3])
			if err != nil {
				t.Fatalf("%q: %v", m[0], err)
			}
			all[m[1]] = element{before.Add(left), after.Add(left), m[4]}
		}
	}
	return all, nil
}

// duration reads a time as nft writes it: 1d2h3m4s5ms.
func duration(s string) (time.Duration, error) {
	var days time.Duration
	if d, rest, ok := strings.Cut(s, "d"); ok {
		n, err := time.ParseDuration(d + "h")
		if err != nil {
			return 0, err
		}
		if days = 24 * n; rest == "" {
			return days, nil
		}
		s = rest
	}
	d, err := time.ParseDuration(s)
	return days + d, err
}

func sorted(m map[string]element) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// connect tries to connect from one address to port 25 of another.
func connect(from, to string) error {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 300 * time.Millisecond}
	c, err := d.Dial("tcp", net.JoinHostPort(to, "25"))
	if err == nil {
		c.Close()
	}
	return err
}

func TestListedClientIsKeptAway(t *testing.T) {
	for _, to := range []string{"198.51.100.25", "2001:db8:0:25::1"} {
		l, err := net.Listen("tcp", net.JoinHostPort(to, "25"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
			}
		}()
	}
	s := newSite(t, `expiry = "4s"`)
	s.start()
	tests := []struct{ client, neighbour, other, server string }{
		{"192.0.2.1", "192.0.2.1", "192.0.2.2", "198.51.100.25"},
		{"2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "2001:db8:0:25::1"},
	}
	for _, test := range tests {
		for _, from := range []string{test.client, test.neighbour, test.other} {
			if err := connect(from, test.server); err != nil {
				t.Fatalf("%s before the hit: %v", from, err)
			}
		}
		s.hits(test.client)
		for _, from := range []string{test.client, test.neighbour} {
			if err := connect(from, test.server); err == nil {
				t.Errorf("%s gets through after the hit", from)
			}
		}
		if err := connect(test.other, test.server); err != nil {
			t.Errorf("%s after the hit: %v", test.other, err)
		}
	}
	got := elements(t)
	if keys := sorted(got); !slices.Equal(keys, []string{"192.0.2.1", "2001:db8::"}) {
		t.Errorf("elements %v", keys)
	}
	for k, e := range got {
		if e.comment != "bl.example" || time.Until(e.latest) > 4*time.Second {
			t.Errorf("%s: %+v", k, e)
		}
	}
	for _, test := range tests {
		for end := time.Now().Add(20 * time.Second); connect(test.client, test.server) != nil; {
			if time.Now().After(end) {
				t.Fatalf("%s is blocked long after its block has expired", test.client)
			}
		}
	}
	// It comes back, and stays for longer.
	from := s.logged()
	s.hits("192.0.2.1")
	s.await(from, "addr=192.0.2.1", "timeout=8s", "returns=1")
	s.end()
}

func TestAllowed(t *testing.T) {
	s := newSite(t, "")
	s.start()
	s.hits("10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "169.254.1.1", "::1", "fe80::1", "fd00::1", "::ffff:10.0.0.1"[7:])
	if got := elements(t); len(got) != 0 {
		t.Errorf("blocked %v", sorted(got))
	}
}

func TestHitsBeforeBlocking(t *testing.T) {
	s := newSite(t, "hits = 3")
	s.start()
	s.hits("192.0.2.1", "192.0.2.1")
	if got := elements(t); len(got) != 0 {
		t.Errorf("blocked after two hits: %v", sorted(got))
	}
	s.hits("192.0.2.1")
	if got := elements(t); len(got) != 1 {
		t.Errorf("blocked after three hits: %v", sorted(got))
	}
}

func TestReload(t *testing.T) {
	s := newSite(t, "")
	s.start()
	s.hits("192.0.2.1", "192.0.2.2", "198.51.100.1")

	from := s.logged()
	s.configure("allow = [\"192.0.2.2\"]\nexpiry = \"30m\"\n")
	s.signal(syscall.SIGHUP)
	s.await(from, "configuration read again", "unblocked=1")
	s.await(from, "unblocked addr=192.0.2.2")
	if got := sorted(elements(t)); !slices.Equal(got, []string{"192.0.2.1", "198.51.100.1"}) {
		t.Errorf("elements %v", got)
	}
	if set := nft(t, "list", "set", "inet", "rblnft", "allowed4"); !strings.Contains(set, "192.0.2.2") || strings.Contains(set, "10.0.0.0/8") {
		t.Errorf("the kernel's allow list: %s", set)
	}
	from = s.logged()
	s.hits("192.0.2.2", "192.0.2.3", "10.0.0.1")
	s.await(from, "addr=192.0.2.2", "decision=allowed")
	s.await(from, "addr=192.0.2.3", "timeout=30m0s")

	// A bad file changes nothing.
	from = s.logged()
	s.configure("expiry = \"1m\"\nallow = [\n\"198.51.100.0/24\",\n\"nonsense\"]\n")
	s.signal(syscall.SIGHUP)
	line := s.await(from, "the configuration is bad")
	if !strings.Contains(line, s.config+":2: allow: ") {
		t.Errorf("where it is bad is not said: %s", line)
	}
	from = s.logged()
	s.hits("192.0.2.2", "192.0.2.4")
	s.await(from, "addr=192.0.2.2", "decision=allowed")
	s.await(from, "addr=192.0.2.4", "timeout=30m0s")
	if got := sorted(elements(t)); !slices.Equal(got, []string{"10.0.0.1", "192.0.2.1", "192.0.2.3", "192.0.2.4", "198.51.100.1"}) {
		t.Errorf("elements %v", got)
	}

	// Who may report changes too; what cannot change says so.
	from = s.logged()
	s.configure("allow_uid = [12345]\nports = [26]\n")
	s.signal(syscall.SIGHUP)
	s.await(from, "configuration read again")
	s.await(from, "warning:", "started again")
	if sent, err := send(s.socket, hitOf("192.0.2.9"), -1); !sent {
		t.Fatal(err)
	}
	s.await(from, "datagram refused", "reason=wrong_sender")

	// What was unblocked stays so, whoever starts next.
	s.configure("")
	s.end()
	s.start()
	if _, ok := elements(t)["192.0.2.2"]; ok {
		t.Error("blocked again by another start")
	}
}

// SIGTERM finishes what was received, and what is in the socket.
func TestTerminationFinishesWhatWasReceived(t *testing.T) {
	s := newSite(t, "")
	s.start()
	s.signal(syscall.SIGSTOP)
	var want []string
	for i := range 200 {
		addr := fmt.Sprintf("192.0.2.%d", i+1)
		sent, err := send(s.socket, hitOf(addr), -1)
		if err != nil {
			t.Fatal(err)
		}
		if !sent {
			break // the socket is full
		}
		want = append(want, addr)
	}
	if len(want) < 5 {
		t.Fatalf("the socket took %d hits", len(want))
	}
	s.signal(syscall.SIGTERM)
	s.signal(syscall.SIGCONT)
	if code := s.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	slices.Sort(want)
	if got := sorted(elements(t)); !slices.Equal(got, want) {
		t.Errorf("elements %v, want %v", got, want)
	}
	if _, err := os.Lstat(s.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
	if chain := nft(t, "list", "chain", "inet", "rblnft", "input"); !strings.Contains(chain, "@blocked4") {
		t.Errorf("the chain does not stay: %s", chain)
	}
}

func TestOneDaemonOfATable(t *testing.T) {
	s := newSite(t, "")
	s.start()
	other := &site{t: t, config: s.config, socket: s.socket + "2", state: s.state + "2"}
	other.launch()
	if code := other.wait(); code != exitFailure {
		t.Errorf("exit code %d, want %d", code, exitFailure)
	}
	want := fmt.Sprintf("another rblnftd keeps table inet rblnft: process %d of user %d", s.cmd.Process.Pid, os.Getuid())
	if !strings.Contains(other.tail(5), want) {
		t.Errorf("%q is not said: %s", want, other.tail(5))
	}
	// Another table is another matter, but not the same state directory.
	second := &site{t: t, config: s.config + "2", socket: s.socket + "2", state: s.state}
	second.configure("[nftables]\ntable = \"inet second\"\n")
	second.launch()
	if code := second.wait(); code != exitFailure || !strings.Contains(second.tail(5), "in use by another process") {
		t.Errorf("with the same state: exit code %d: %s", code, second.tail(5))
	}
	second.state += "2"
	second.start()
	second.hits("192.0.2.7")
	if set := nft(t, "list", "set", "inet", "second", "blocked4"); !strings.Contains(set, "192.0.2.7") {
		t.Errorf("the second table: %s", set)
	}
	if got := elements(t); len(got) != 0 {
		t.Errorf("the first table: %v", got)
	}
	second.end()
	// The first one is none the worse for it.
	s.hits("192.0.2.1")
	s.kill()
	s.start()
	s.end()
}

func TestOwnSocket(t *testing.T) {
	s := newSite(t, "socket_mode = \"0640\"\nallow_group = ["+fmt.Sprint(os.Getgid())+"]\n")

	t.Run("a file is not replaced", func(t *testing.T) {
		if err := os.WriteFile(s.socket, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		s.launch()
		if code := s.wait(); code != exitFailure || !strings.Contains(s.tail(3), s.socket+" is there, and is no socket") {
			t.Errorf("exit code %d: %s", code, s.tail(3))
		}
		if data, err := os.ReadFile(s.socket); err != nil || string(data) != "precious" {
			t.Errorf("the file: %q, %v", data, err)
		}
		os.Remove(s.socket)
	})
	t.Run("a socket in use is not replaced", func(t *testing.T) {
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.socket, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		s.launch()
		if code := s.wait(); code != exitFailure || !strings.Contains(s.tail(3), "another process receives on "+s.socket) {
			t.Errorf("exit code %d: %s", code, s.tail(3))
		}
		c.Close() // which leaves a stale socket
	})
	t.Run("a stale one is", func(t *testing.T) {
		s.start()
		s.hits("192.0.2.1")
		info, err := os.Lstat(s.socket)
		if err != nil || info.Mode() != os.ModeSocket|0o640 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		s.kill()
		s.start() // after a kill it is stale as well
		s.hits("192.0.2.2")
	})
	t.Run("somebody else's stays at the end", func(t *testing.T) {
		os.Remove(s.socket)
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.socket, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s.end()
		if _, err := os.Lstat(s.socket); err != nil {
			t.Error(err)
		}
	})
}

// A socket that systemd hands over is used, and left where it is.
func TestActivation(t *testing.T) {
	s := newSite(t, "")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	if err != nil {
		t.Fatal(err)
	}
	// Hits that come before the daemon wait in the socket.
	if sent, err := send(s.socket, hitOf("192.0.2.1"), -1); !sent {
		t.Fatal(err)
	}
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	activated := func(prefix ...string) *exec.Cmd {
		args := append([]string{"-c", `LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=hits exec "$@"`, "sh"}, prefix...)
		cmd := exec.Command("sh", append(args, program, "-c", s.config)...)
		cmd.Env = append(os.Environ(), "STATE_DIRECTORY="+s.state)
		cmd.ExtraFiles = []*os.File{f}
		return cmd
	}
	// They go on waiting while it cannot start, and it leaves no trace.
	if err := os.Mkdir(s.state, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := activated("setpriv", "--bounding-set=-net_admin").CombinedOutput()
	if want := "nftables: CAP_NET_ADMIN is needed: "; err == nil || !strings.Contains(string(out), want) {
		t.Errorf("without CAP_NET_ADMIN: %v, %q, want %q", err, out, want)
	}
	if files, err := os.ReadDir(s.state); err != nil || len(files) > 0 {
		t.Errorf("the state directory has %v (%v)", files, err)
	}
	cmd := activated()
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.cmd = cmd
	s.reading.Go(func() {
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			s.mu.Lock()
			s.lines = append(s.lines, lines.Text())
			s.mu.Unlock()
		}
	})
	s.await(0, "addr=192.0.2.1", "decision=blocked")
	s.hits("192.0.2.2")
	s.end()
	if got := sorted(elements(t)); !slices.Equal(got, []string{"192.0.2.1", "192.0.2.2"}) {
		t.Errorf("elements %v", got)
	}
	if _, err := os.Lstat(s.socket); err != nil {
		t.Errorf("systemd's socket: %v", err)
	}
}

func TestExitCodes(t *testing.T) {
	flush(t)
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.toml")
	if err := os.WriteFile(bad, []byte("hits = 1\nhist = 2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(dir, "good.toml")
	if err := os.WriteFile(good, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args []string
		code int
		want string // how standard error begins
	}{
		{[]string{"-x"}, 100, "rblnftd: flag provided but not defined: -x\nusage: rblnftd "},
		{[]string{"-c"}, 100, "rblnftd: flag needs an argument: -c\nusage: "},
		{[]string{"extra"}, 100, "rblnftd: unexpected argument \"extra\"\nusage: "},
		{[]string{"-h"}, 100, "usage: "},
		{[]string{"-t", "-d"}, 100, "rblnftd: -t and -d exclude each other\nusage: "},
		{[]string{"-t", "-c", filepath.Join(dir, "absent")}, 100, "open " + dir + "/absent: no such file"},
		{[]string{"-t", "-c", bad}, 100, bad + ":2: hist: unknown key\n"},
		{[]string{"-c", bad, "-s", filepath.Join(dir, "s")}, 100, bad + ":2: hist: unknown key\n"},
		{[]string{"-t", "-c", good}, 0, ""},
		{[]string{"-c", good}, 111, "rblnftd: error: rblnftd ends error=\"no hits socket"},
		{[]string{"-c", good, "-s", "/proc/no/such"}, 111, "rblnftd: error: rblnftd ends error=\"hits socket: "},
	}
	for _, test := range tests {
		cmd := exec.Command(program, test.args...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != test.code || !strings.HasPrefix(stderr.String(), test.want) || test.want == "" && stderr.Len() > 0 {
			t.Errorf("%v: exit code %d, want %d; standard error %q, want %q", test.args, got, test.code, stderr.String(), test.want)
		}
	}
	if out := nft(t, "list", "ruleset"); out != "" {
		t.Errorf("it made a table: %s", out)
	}
}

// Nothing that a daemon refuses has any effect, or keeps anything open.
func TestSpoofing(t *testing.T) {
	s := newSite(t, "peer = \"require\"\nports = [25]\n")
	s.start()
	l, err := net.Listen("tcp", "198.51.100.25:25")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("192.0.2.1")}}).Dial("tcp", "198.51.100.25:25")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	f, err := accepted.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	proof := int(f.Fd())

	time.Sleep(100 * time.Millisecond)
	before := s.descriptors()
	from := s.logged()
	for range 20 {
		for _, h := range []hit.Hit{hitOf("192.0.2.2"), hitOf("2001:db8::1")} {
			if sent, err := send(s.socket, h, proof); !sent {
				t.Fatal(err)
			}
		}
		if sent, err := send(s.socket, hitOf("192.0.2.1"), -1); !sent {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.await(from, "reason=bad_proof", "the socket's peer is 192.0.2.1")
	s.await(from, "reason=no_proof")
	if sent, err := send(s.socket, hitOf("192.0.2.1"), proof); !sent {
		t.Fatal(err)
	}
	s.await(from, "addr=192.0.2.1", "decision=blocked", "proven=true")
	if got := sorted(elements(t)); !slices.Equal(got, []string{"192.0.2.1"}) {
		t.Errorf("elements %v", got)
	}
	if n := len(s.log(from)); n > 5 {
		t.Errorf("%d lines", n)
	}
	for end := time.Now().Add(5 * time.Second); s.descriptors() > before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d descriptors are open, %d before", s.descriptors(), before)
		}
	}
}

// descriptors returns how many the daemon has open.
func (s *site) descriptors() int {
	s.t.Helper()
	dir, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	return len(dir)
}

func TestRecoveryAtTheStart(t *testing.T) {
	s := newSite(t, "")
	s.start()
	s.hits("192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1")
	want := elements(t)
	same := func(when string, got, want map[string]element) {
		t.Helper()
		if !slices.Equal(sorted(got), sorted(want)) {
			t.Fatalf("%s: elements %v, want %v", when, sorted(got), sorted(want))
		}
		for k, e := range want {
			if g := got[k]; g.latest.Before(e.earliest.Add(-time.Second)) || g.earliest.After(e.latest.Add(time.Second)) || g.comment != e.comment {
				t.Errorf("%s: %s is %+v, want %+v", when, k, g, e)
			}
		}
	}
	eventually := func(when string, want map[string]element) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			// After a flush the table may be away.
			if all, err := listed(t); err == nil && len(all) == len(want) {
				break
			}
		}
		same(when, elements(t), want)
	}

	s.kill()
	same("after a kill", elements(t), want)
	flush(t)
	s.start()
	eventually("without a table", want)

	s.kill()
	nft(t, "delete", "element", "inet", "rblnft", "blocked4", "{ 192.0.2.2 }")
	s.start()
	eventually("without an element", want)

	s.end()
	nft(t, "add", "element", "inet", "rblnft", "blocked4", `{ 192.0.2.9 timeout 2h comment "by hand" }`)
	nft(t, "flush", "set", "inet", "rblnft", "blocked6")
	want = elements(t)
	want["2001:db8::"] = element{want["192.0.2.3"].earliest, want["192.0.2.3"].latest.Add(time.Second), "bl.example"}
	s.start()
	eventually("with another element", want)

	// By hand, while it runs.
	from := s.logged()
	nft(t, "delete", "element", "inet", "rblnft", "blocked4", "{ 192.0.2.3 }")
	s.await(from, "unblocked by hand addr=192.0.2.3")
	nft(t, "add", "element", "inet", "rblnft", "blocked4", `{ 192.0.2.10 timeout 3h }`)
	s.await(from, "blocked by hand addr=192.0.2.10")
	want = elements(t)
	if _, ok := want["192.0.2.3"]; ok || len(want) != 5 {
		t.Fatalf("elements %v", sorted(want))
	}
	flush(t)
	eventually("after a flush", want)
	s.kill()
	flush(t)
	s.start()
	eventually("after a kill and a flush", want)

	// Without a state directory it is the kernel that remembers.
	s.end()
	s.state = ""
	s.start()
	eventually("without a journal", want)
	flush(t)
	eventually("without a journal, after a flush", want)
	s.end()
}

func TestElementPattern(t *testing.T) {
	if d, err := duration("6d23h59m59s680ms"); err != nil || d != 7*24*time.Hour-320*time.Millisecond {
		t.Errorf("%s, %v", d, err)
	}
	if firewall.DefaultConfig().Table != "inet rblnft" {
		t.Error("the tests look at another table than the default one")
	}
}

// What the log says of a block is what nft takes to end it.
func TestLoggedElementIsDeleted(t *testing.T) {
	s := newSite(t, "")
	s.start()
	for _, addr := range []string{"192.0.2.1", "2001:db8::66"} {
		s.hits(addr)
		line := s.await(0, "addr="+addr, "decision=blocked")
		element := regexp.MustCompile(`element="([^"]+)"`).FindStringSubmatch(line)
		if element == nil {
			t.Fatalf("no element in %q", line)
		}
		if out, err := exec.Command("sh", "-c", "nft delete element "+element[1]).CombinedOutput(); err != nil {
			t.Errorf("%s: %v, %s", element[1], err, out)
		}
	}
	if left := elements(t); len(left) > 0 {
		t.Errorf("elements %v are left", left)
	}
	s.end()
}

// -d deletes the table that a daemon has left, and no other.
func TestDeleteTable(t *testing.T) {
	s := newSite(t, "[nftables]\ntable = \"inet mine\"\n")
	nft(t, "add table inet rblnft")
	s.start()
	run := func(want int, says string) {
		t.Helper()
		cmd := exec.Command(program, "-d", "-c", s.config)
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != want || !strings.Contains(string(out), says) {
			t.Errorf("exit code %d, %q, want %d, %q", got, out, want, says)
		}
	}
	run(111, "another rblnftd keeps table inet mine: process ")
	s.end()
	tables := func() string { return strings.TrimSpace(nft(t, "list tables")) }
	if got, want := tables(), "table inet rblnft\ntable inet mine"; got != want {
		t.Errorf("before: %q, want %q", got, want)
	}
	for range 2 {
		run(0, "")
		if got, want := tables(), "table inet rblnft"; got != want {
			t.Errorf("after: %q, want %q", got, want)
		}
	}
	s.configure("[nftables]\ntable = \"inet rblnft\"\nrules = false\n")
	run(111, "table inet rblnft: the table is not made by rblnftd")
	if got, want := tables(), "table inet rblnft"; got != want {
		t.Errorf("not ours: %q, want %q", got, want)
	}
}

// What keeps addresses from being blocked is in the line that systemctl status
// shows.
func TestStatusSaysWhatIsWrong(t *testing.T) {
	for config, want := range map[string]string{
		"":                   "; all is well",
		"max_elements = 1\n": "; max_elements is reached, and others are not blocked: 1 hits",
		"[nftables]\nrules = false\ntable = \"inet filter\"\n": "; the ruleset is not complete, and not ours to mend: see the log",
	} {
		s := newSite(t, config)
		for _, set := range []string{"blocked4 { type ipv4_addr; flags timeout; }", "blocked6 { type ipv6_addr; flags timeout; }"} {
			nft(t, "add table inet filter; add set inet filter "+set)
		}
		path := filepath.Join(t.TempDir(), "notify")
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("NOTIFY_SOCKET", path)
		s.start()
		for _, addr := range []string{"192.0.2.1", "192.0.2.2"} {
			if sent, err := send(s.socket, hitOf(addr), -1); !sent {
				t.Fatal(err)
			}
		}
		if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		status, buf := "", make([]byte, 4096)
		for !strings.Contains(status, "; 2 hits,") || !strings.Contains(status, want) {
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatalf("%q: the last status is %q: %v", config, status, err)
			}
			if text := string(buf[:n]); strings.HasPrefix(text, "STATUS=") {
				status = text
			}
		}
		s.end()
		conn.Close()
	}
}
