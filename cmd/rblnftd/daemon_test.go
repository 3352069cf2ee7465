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

	"rblnft/cmd/internal/build"
	"rblnft/firewall/firewalltest"
	"rblnft/firewall/hit"
	"rblnft/firewall/netlab"
	"rblnft/firewall/ruleset"
)

// program is the file of the real program.
var program string

func TestMain(m *testing.M) {
	if path := os.Getenv(attacker); path != "" {
		attack(path)
		os.Exit(0)
	}
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
	at    []time.Time // when each of them was read

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
			s.lines, s.at = append(s.lines, lines.Text()), append(s.at, time.Now())
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

// kill kills the daemon, and returns what wait does: -1, if it had not ended.
func (s *site) kill() int {
	s.t.Helper()
	s.cmd.Process.Kill()
	return s.wait()
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
func send(path string, h hit.Hit) (sent bool, err error) {
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
		sent, err := send(s.socket, hitOf(a))
		if !sent {
			s.t.Fatalf("hit of %s not sent: %v", a, err)
		}
		s.await(from, "addr="+a+" ")
	}
}

var nftRun, flush = firewalltest.NFT, firewalltest.Flush

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
			left, err := nftDuration(m[3])
			if err != nil {
				t.Fatalf("%q: %v", m[0], err)
			}
			all[m[1]] = element{before.Add(left), after.Add(left), m[4]}
		}
	}
	return all, nil
}

// nftDuration reads a time as nft writes it: 1d2h3m4s5ms.
func nftDuration(s string) (time.Duration, error) {
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
	s.await(from, "configuration read again")
	s.await(from, "unblocked addr=192.0.2.2")
	if got := sorted(elements(t)); !slices.Equal(got, []string{"192.0.2.1", "198.51.100.1"}) {
		t.Errorf("elements %v", got)
	}
	if set := nftRun(t, "list", "set", "inet", "rblnft", "allowed4"); !strings.Contains(set, "192.0.2.2") || !strings.Contains(set, "10.0.0.0/8") {
		t.Errorf("the kernel's allow list: %s", set)
	}
	from = s.logged()
	s.hits("192.0.2.2", "192.0.2.3", "10.0.0.1")
	s.await(from, "addr=10.0.0.1", "decision=allowed") // which the file cannot take away
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
	if got := sorted(elements(t)); !slices.Equal(got, []string{"192.0.2.1", "192.0.2.3", "192.0.2.4", "198.51.100.1"}) {
		t.Errorf("elements %v", got)
	}

	// Whatever changes is in force: the ports, the names.
	from = s.logged()
	s.configure("ports = [26]\n[nftables]\nblocked4 = \"bots\"\n")
	s.signal(syscall.SIGHUP)
	s.await(from, "configuration read again")
	if table := nftRun(t, "list", "table", "inet", "rblnft"); !strings.Contains(table, "tcp dport 26") || strings.Contains(table, "tcp dport 25") ||
		!strings.Contains(table, "set bots") || strings.Contains(table, "set blocked4") {
		t.Errorf("the table: %s", table)
	}

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
		sent, err := send(s.socket, hitOf(addr))
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
	if chain := nftRun(t, "list", "chain", "inet", "rblnft", "input"); !strings.Contains(chain, "@blocked4") {
		t.Errorf("the chain does not stay: %s", chain)
	}
}

// One daemon has a state directory, whatever else is different.
func TestOneDaemonOfAState(t *testing.T) {
	s := newSite(t, "")
	s.start()
	other := &site{t: t, config: s.config, socket: s.socket + "2", state: s.state}
	other.launch()
	if code := other.wait(); code != exitFailure || !strings.Contains(other.tail(5), "state directory "+s.state+": another rblnftd uses it") {
		t.Errorf("exit code %d: %s", code, other.tail(5))
	}
	// The first one is none the worse for it, and a killed one holds nothing.
	s.hits("192.0.2.1")
	s.kill()
	s.start()
	s.end()
	info, err := os.Lstat(filepath.Join(s.state, "lock"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the lock: %v, %v", info, err)
	}
}

func TestOwnSocket(t *testing.T) {
	s := newSite(t, "socket_group = 4321\n")

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
		if err != nil || info.Mode() != os.ModeSocket|0o660 || info.Sys().(*syscall.Stat_t).Gid != 4321 {
			t.Errorf("%v, %v", info, err)
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
	// Hits that come before the daemon wait in the socket.
	if sent, err := send(s.socket, hitOf("192.0.2.1")); !sent {
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
	if want := "operation not permitted: CAP_NET_ADMIN is needed"; err == nil || !strings.Contains(string(out), want) {
		t.Errorf("without CAP_NET_ADMIN: %v, %q, want %q", err, out, want)
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
			s.lines, s.at = append(s.lines, lines.Text()), append(s.at, time.Now())
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
	if out := nftRun(t, "list", "ruleset"); out != "" {
		t.Errorf("it made a table: %s", out)
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

	time.Sleep(time.Second) // a kill -9 may cost the last moments
	s.kill()
	same("after a kill", elements(t), want)
	flush(t)
	s.start()
	eventually("without a table", want)

	s.kill()
	nftRun(t, "delete", "element", "inet", "rblnft", "blocked4", "{ 192.0.2.2 }")
	let := want["192.0.2.2"]
	delete(want, "192.0.2.2")
	s.start()
	eventually("with an element deleted meanwhile", want)
	want["192.0.2.2"] = let // of which nobody knows when all are restored

	// By hand, while it runs.
	from := s.logged()
	nftRun(t, "delete", "element", "inet", "rblnft", "blocked4", "{ 192.0.2.3 }")
	s.await(from, "element deleted by somebody else", "addr=192.0.2.3", "by=nft[")
	delete(want, "192.0.2.3")
	flush(t)
	eventually("after a flush", want)
	s.kill()
	flush(t)
	s.start()
	eventually("after a kill and a flush", want)

	// Without a state directory what the kernel holds stays there.
	s.end()
	s.state = ""
	s.start()
	eventually("without a state", want)
	s.end()
}

func TestElementPattern(t *testing.T) {
	if d, err := nftDuration("6d23h59m59s680ms"); err != nil || d != 7*24*time.Hour-320*time.Millisecond {
		t.Errorf("%s, %v", d, err)
	}
	if at := ruleset.Default().Table; at.String() != "inet rblnft" {
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

// -d removes what a daemon has left, and nothing else.
func TestRemove(t *testing.T) {
	s := newSite(t, "[nftables]\ntable = \"inet mine\"\n")
	nftRun(t, "add table inet rblnft")
	s.start()
	s.hits("192.0.2.1")
	s.end()
	run := func() {
		t.Helper()
		if out, err := exec.Command(program, "-d", "-c", s.config).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%v, %q", err, out)
		}
	}
	tables := func() string { return strings.TrimSpace(nftRun(t, "list tables")) }
	if got, want := tables(), "table inet rblnft\ntable inet mine"; got != want {
		t.Errorf("before: %q, want %q", got, want)
	}
	for range 2 {
		run()
		if got, want := tables(), "table inet rblnft"; got != want {
			t.Errorf("after: %q, want %q", got, want)
		}
	}
	firewalltest.Script(t, "table inet filter { chain input { type filter hook input priority 0; tcp dport 22 accept; }; set blocked4 { type ipv4_addr; flags timeout; }; }")
	before := nftRun(t, "list ruleset")
	s.configure("[nftables]\ntable = \"inet filter\"\n")
	run()
	s.configure("[nftables]\ntable = \"inet filter\"\nrules = false\n")
	run()
	if after := nftRun(t, "list ruleset"); after != before {
		t.Errorf("somebody else's table was\n%s\nand is\n%s", before, after)
	}
}

// A table of somebody else's is a reason not to start, and stays as it is.
func TestInTheWay(t *testing.T) {
	s := newSite(t, "[nftables]\ntable = \"inet filter\"\n")
	firewalltest.Script(t, "table inet filter { chain input { type filter hook input priority 0; tcp dport 22 accept; }; }")
	before := nftRun(t, "list ruleset")
	s.launch()
	if code := s.wait(); code != exitUsage || !strings.Contains(s.tail(3), "chain input of table inet filter is there, and not rblnftd's") {
		t.Errorf("exit code %d: %s", code, s.tail(3))
	}
	if after := nftRun(t, "list ruleset"); after != before {
		t.Errorf("it was\n%s\nand is\n%s", before, after)
	}
}

// What keeps addresses from being blocked is in the line that systemctl status
// shows.
func TestStatusSaysWhatIsWrong(t *testing.T) {
	for config, want := range map[string]string{
		"":                   "; all is well",
		"max_elements = 1\n": "; max_elements is reached, and others are not blocked",
		"[nftables]\nrules = false\ntable = \"inet none\"\n": "; there is no set blocked4 in table inet none",
	} {
		s := newSite(t, config)
		for _, set := range []string{"blocked4 { type ipv4_addr; flags timeout; }", "blocked6 { type ipv6_addr; flags timeout; }"} {
			nftRun(t, "add table inet filter; add set inet filter "+set)
		}
		path := filepath.Join(t.TempDir(), "notify")
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("NOTIFY_SOCKET", path)
		s.start()
		for _, addr := range []string{"192.0.2.1", "192.0.2.2"} {
			if sent, err := send(s.socket, hitOf(addr)); !sent {
				t.Fatal(err)
			}
		}
		if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		status, buf := "", make([]byte, 4096)
		for !strings.Contains(status, "; 2 hits received,") || !strings.Contains(status, want) {
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
