package differential

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/cmd/internal/build"
	"rblnft/dnsbl/dnsbltest"
	"rblnft/firewall/netlab"
)

func TestMain(m *testing.M) { netlab.Main(tests{m}) }

// tests leaves nothing behind.
type tests struct{ *testing.M }

func (t tests) Run() int {
	defer func() { os.RemoveAll(labDir) }()
	return t.M.Run()
}

var labDir string // empty until there is a lab

// reference is the program that the filter is to be mistaken for.
const reference = "/usr/bin/rblsmtpd"

// lab is what all cases run in: a directory and DNS servers.
type lab struct {
	dir    string // the working directory of every program
	filter string
	dns    *dnsbltest.Server // at 127.0.0.1
	marker string            // what the file here in dir holds; it stands nowhere else
}

// The name servers besides the one at 127.0.0.1, where all zones are: where
// nobody listens, one that fails, one that is silent, the one that resolv.conf(5)
// names, and those that cannot be reached: where there is no route to, and where a
// rule of this host's keeps packets from.
const (
	absentServer  = "127.0.0.3"
	failingServer = "127.0.0.4"
	silentServer  = "127.0.0.5"
	systemServer  = "192.0.2.53"
	farServer     = "203.0.113.53"
	barredServer  = "192.0.2.99"
)

var newLab = sync.OnceValues(func() (*lab, error) {
	for _, name := range []string{reference, "/usr/bin/prlimit", "/usr/bin/env", "/usr/bin/find", "/usr/bin/perl", "/usr/bin/softlimit"} {
		if _, err := os.Stat(name); err != nil {
			return nil, fmt.Errorf("%w: run go run ./cmd/setup check", err)
		}
	}
	dir, err := os.MkdirTemp("", "differential")
	if err != nil {
		return nil, err
	}
	labDir = dir
	l := &lab{dir: dir, filter: filepath.Join(dir, "bin", "rblsmtpd"), marker: "\n--- " + filepath.Base(dir) + " ---\n"}
	if err := errors.Join(build.Open("rblsmtpd"), build.Program(filepath.Join(dir, "bin"), "rblsmtpd")); err != nil {
		return nil, err
	}
	for name, mode := range map[string]os.FileMode{"here": 0o644, "noexec/cat": 0o644, "noformat/cat": 0o755, "dir/cat/x": 0o644, "out/x": 0o644} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(l.marker), mode); err != nil {
			return nil, err
		}
	}

	// The system's server differs in what it says.
	others := dnsbltest.Standard()
	others["list.test"] = dnsbltest.Test(dnsbltest.NoName(), dnsbltest.Lists([]string{"127.0.0.2"}, "the system's server lists %a"))
	for addr, zones := range map[string]dnsbltest.Zones{
		failingServer: {"": dnsbltest.Rcode(2)},
		silentServer:  {"": dnsbltest.Silence()},
		systemServer:  others,
	} {
		if _, err := dnsbltest.Start(netip.MustParseAddr(addr), zones); err != nil {
			return nil, err
		}
	}
	if l.dns, err = dnsbltest.Start(netip.MustParseAddr("127.0.0.1"), dnsbltest.Standard()); err != nil {
		return nil, err
	}
	rules := "add table inet lab; add chain inet lab out { type filter hook output priority 0; }; add rule inet lab out ip daddr " + barredServer + " drop"
	if out, err := exec.Command("nft", rules).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("nft %s: %w: %s", rules, err, out)
	}
	resolvConf := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(resolvConf, []byte("search test\nnameserver "+systemServer+"\n"), 0o644); err != nil {
		return nil, err
	}
	if err := unix.Mount(resolvConf, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("bind a file of our own over /etc/resolv.conf: %w", err)
	}
	return l, nil
})

func theLab(t testing.TB) *lab {
	t.Helper()
	l, err := newLab()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// program is a program under test, and what stands before it on a command line.
type program struct {
	path string
	wrap []string
}

// result is all that could be noticed of a program.
type result struct {
	client string // what the client got, unless the next program ran
	stderr string // with PID for the process's ID
	exit   string
	ran    bool   // the next program
	state  string // in which it found itself, a line for each thing

	took time.Duration
	cpu  time.Duration // of the processor, with the next program's
}

// patience is how long a program may take before it is killed. The reference
// takes a minute for a server that does not answer.
const patience = 150 * time.Second

var runs atomic.Uint64

// run runs a program with a case.
func (l *lab) run(p program, c *testCase) (*result, error) {
	conn, err := connect(c.client.transport)
	if err != nil {
		return nil, err
	}
	defer conn.close()
	var log [2]int
	if err := unix.Pipe2(log[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	logged := os.NewFile(uintptr(log[0]), "log")
	defer logged.Close()

	files := []uintptr{uintptr(conn.childIn), uintptr(conn.childOut), uintptr(log[1])}
	names := map[uint64]string{}
	name := func(fd int, name string) {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil {
			names[st.Ino] = name
		}
	}
	name(conn.childIn, "client")
	name(conn.childOut, "client")
	if conn.childIn != conn.childOut {
		name(conn.childIn, "from client")
	}
	name(log[1], "log")
	for _, fd := range c.closed {
		files[fd] = ^uintptr(0)
	}
	for _, fd := range c.extra {
		for len(files) <= fd {
			files = append(files, ^uintptr(0))
		}
		null, err := os.Open("/dev/null")
		if err != nil {
			return nil, err
		}
		defer null.Close()
		files[fd] = null.Fd()
	}

	argv := append(append([]string{}, c.launch...), p.wrap...)
	args := c.args()
	if len(argv) == 0 {
		argv = append(argv, args[0])
	} else {
		argv = append(argv, p.path)
	}
	argv = append(argv, args[1:]...)
	id := fmt.Sprintf("u%07d", runs.Add(1))
	for i := range argv {
		argv[i] = strings.ReplaceAll(argv[i], runID, id)
	}
	path := p.path
	if len(c.launch)+len(p.wrap) > 0 {
		path = argv[0]
	}

	rest := conn.before(c.client.script)
	began := time.Now()
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Dir: l.dir, Env: c.env, Files: files})
	unix.Close(log[1])
	conn.started()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	conn.during = func() { c.during(pid) }
	talked := make(chan struct{})
	go func() {
		conn.talk(rest)
		close(talked)
	}()
	var stderr bytes.Buffer
	loggedAll := make(chan struct{})
	go func() {
		io.Copy(&stderr, logged)
		close(loggedAll)
	}()

	var mu sync.Mutex
	ended, killed := false, false
	timer := time.AfterFunc(patience, func() {
		mu.Lock()
		defer mu.Unlock()
		if !ended {
			killed = true
			syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	var status syscall.WaitStatus
	var usage syscall.Rusage
	var info unix.Siginfo
	for {
		// Leave the process a zombie until nobody can kill it any more.
		if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			break
		}
	}
	took := time.Since(began)
	mu.Lock()
	ended = true
	mu.Unlock()
	timer.Stop()
	for {
		if _, err := syscall.Wait4(pid, &status, 0, &usage); err != syscall.EINTR {
			break
		}
	}
	<-loggedAll
	conn.ended()
	<-talked

	r := &result{took: took, cpu: time.Duration(usage.Utime.Nano() + usage.Stime.Nano())}
	switch {
	case killed:
		r.exit = fmt.Sprintf("still running after %v", patience)
	case status.Signaled():
		r.exit = fmt.Sprintf("signal %d", status.Signal())
	default:
		r.exit = fmt.Sprintf("exit %d", status.ExitStatus())
	}
	r.stderr = strings.ReplaceAll(stderr.String(), " pid "+strconv.Itoa(pid)+": ", " pid PID: ")
	l.observe(c, r, conn, names)
	r.client = strings.ReplaceAll(r.client, id, runID)
	r.stderr = strings.ReplaceAll(r.stderr, id, runID)
	return r, nil
}

// observe finds out whether the next program ran, and how it found itself.
func (l *lab) observe(c *testCase, r *result, conn *connection, names map[uint64]string) {
	got := conn.got()
	out := filepath.Join(l.dir, outFile(c))
	if found, err := os.ReadFile(out); err == nil {
		os.Remove(out)
		r.ran = true
		r.state = describeFound(string(found), names)
		r.client = got
		return
	}
	head, dump, ran := strings.Cut(got, l.marker)
	r.client, r.ran = head, ran
	if !ran {
		return
	}
	if conn.closedByClient {
		// The next program may have got as far as it likes.
		r.exit = "whatever"
		r.stderr = regexp.MustCompile(`(?m)^\S*cat: .*\n`).ReplaceAllString(r.stderr, "")
		return
	}
	r.state = l.describeDump(c, dump, names)
}

// statusFields are the fields of /proc/self/status that a program inherits.
var statusFields = regexp.MustCompile(`(?m)^(Umask|Uid|Gid|Groups|SigBlk|SigIgn|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Threads):.*$`)

var dumped = []string{"environ", "cmdline", "limits", "status", "timerslack_ns", "personality", "oom_score_adj"}

const descriptors = 12

// dumpProg is a next program that tells how it finds itself: all that the
// kernel says about it, with the file here, which is found in the right
// working directory alone, before each part.
func dumpProg() []string {
	prog := []string{"cat"}
	for _, name := range dumped {
		prog = append(prog, "here", "/proc/self/"+name)
	}
	for fd := range descriptors {
		prog = append(prog, "here", "/proc/self/fdinfo/"+strconv.Itoa(fd))
	}
	return prog
}

func (l *lab) describeDump(c *testCase, dump string, names map[uint64]string) string {
	parts := strings.Split(dump, l.marker)
	var b strings.Builder
	for i, part := range parts {
		if fd := i - len(dumped); fd >= 0 && fd < descriptors {
			if part == "" {
				continue
			}
			fmt.Fprintf(&b, "descriptor %d:", fd)
			for _, field := range strings.Split(strings.TrimSpace(part), "\n") {
				key, value, _ := strings.Cut(field, ":")
				value = strings.TrimSpace(value)
				switch key {
				case "flags", "pos":
					fmt.Fprintf(&b, " %s %s", key, value)
				case "ino":
					ino, _ := strconv.ParseUint(value, 10, 64)
					fmt.Fprintf(&b, " is %s", nameOf(ino, names))
				}
			}
			b.WriteString("\n")
			continue
		} else if fd >= descriptors {
			fmt.Fprintf(&b, "more: %q\n", part)
			continue
		}
		switch dumped[i] {
		case "environ":
			if part == strings.Join(append(append([]string{}, c.env...), ""), "\x00") {
				part = "as given"
			}
			fmt.Fprintf(&b, "environment: %q\n", part)
		case "limits":
			b.WriteString(strings.TrimSpace(part) + "\n")
		case "status":
			for _, field := range statusFields.FindAllString(part, -1) {
				b.WriteString(field + "\n")
			}
		default:
			fmt.Fprintf(&b, "%s: %q\n", dumped[i], part)
		}
	}
	return b.String()
}

// foundProg is a next program that tells which descriptors it has, and does so
// on none of 0, 1 and 2.
func foundProg(c *testCase) []string {
	return []string{"find", "/proc/self/fd", "/proc/self/cwd", "-maxdepth", "1", "-fprintf", outFile(c), "%p is %l\\n"}
}

func outFile(c *testCase) string { return fmt.Sprintf("out/%d-%d", c.seed, c.number) }

var (
	linked = regexp.MustCompile(`(socket|pipe):\[(\d+)\]`)
	number = regexp.MustCompile(`/proc/\d+/`)
)

func describeFound(found string, names map[uint64]string) string {
	found = number.ReplaceAllString(found, "/proc/PID/")
	return linked.ReplaceAllStringFunc(found, func(link string) string {
		m := linked.FindStringSubmatch(link)
		ino, _ := strconv.ParseUint(m[2], 10, 64)
		return m[1] + " " + nameOf(ino, names)
	})
}

func nameOf(ino uint64, names map[uint64]string) string {
	if name, ok := names[ino]; ok {
		return name
	}
	var st unix.Stat_t
	if unix.Stat("/dev/null", &st) == nil && st.Ino == ino {
		return "/dev/null"
	}
	return "unknown"
}
