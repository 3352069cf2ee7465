package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"rblnft/cmd/internal/build"
	"rblnft/firewall/netlab"
)

// program is the file of the real program.
var program string

func TestMain(m *testing.M) {
	netlab.Main(build.Before(m, func(dir string) { program = filepath.Join(dir, "rblsmtpd") }, "rblsmtpd"))
}

// filter is the real program, waiting for the DNS server at 192.0.2.53, which
// takes questions and never answers, with one end of a TCP connection as its
// descriptors 0 and 1.
type filter struct {
	client *net.TCPConn
	cmd    *exec.Cmd
	log    bytes.Buffer
	ran    string // the file that prog makes
	asked  *net.UDPConn
	began  time.Time
}

func startFilter(t *testing.T, args ...string) *filter {
	t.Helper()
	f := &filter{ran: filepath.Join(t.TempDir(), "ran")}
	var err error
	if f.asked, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(192, 0, 2, 53), Port: 53}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.asked.Close() })

	l, err := net.Listen("tcp", "192.0.2.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	f.client = c.(*net.TCPConn)
	t.Cleanup(func() { f.client.Close() })
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	socket, err := s.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()

	f.cmd = exec.Command(program, append(args, "/usr/bin/touch", f.ran)...)
	f.cmd.Env = []string{"TCPREMOTEIP=192.0.2.9", "DNSCACHEIP=192.0.2.53", "RBLNFT_SOCKET=", "GREETDELAY=1"}
	f.cmd.Stdin, f.cmd.Stdout, f.cmd.Stderr = socket, socket, &f.log
	f.began = time.Now()
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return f
}

// awaitQuestion waits until the filter looks something up.
func (f *filter) awaitQuestion(t *testing.T) {
	t.Helper()
	f.asked.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, _, err := f.asked.ReadFrom(make([]byte, 512)); err != nil {
		t.Fatal("the filter asked nothing:", err)
	}
}

// end waits for the filter, and checks that prog ran, or did not, that the log
// has no line but those wanted, and that it took between least and most.
func (f *filter) end(t *testing.T, ran bool, least, most time.Duration, log ...string) {
	t.Helper()
	if err := f.cmd.Wait(); err != nil {
		t.Error("the filter:", err)
	}
	if took := time.Since(f.began); took < least || took > most {
		t.Errorf("it took %v, want %v to %v", took, least, most)
	}
	if _, err := os.Stat(f.ran); (err == nil) != ran {
		t.Errorf("prog ran: %v, want %v", err == nil, ran)
	}
	prefix := fmt.Sprintf("rblsmtpd: 192.0.2.9 pid %d: ", f.cmd.Process.Pid)
	want := ""
	for _, line := range log {
		want += prefix + line + "\n"
	}
	if f.log.String() != want {
		t.Errorf("logged %q, want %q", &f.log, want)
	}
}

const never = time.Minute

func TestClientThatLeavesDuringLookups(t *testing.T) {
	f := startFilter(t, "-v", "-T50", "-r", "bl.example")
	f.awaitQuestion(t)
	f.client.Close()
	f.end(t, false, 0, 25*time.Second, "client gone before the decision")
}

func TestClientThatIsResetDuringLookups(t *testing.T) {
	f := startFilter(t, "-T50", "-r", "bl.example")
	f.client.Write([]byte("EHLO x\r\n"))
	f.awaitQuestion(t)
	f.client.SetLinger(0)
	f.client.Close()
	f.end(t, false, 0, 25*time.Second)
}

func TestClientThatLeavesDuringTheGreetDelay(t *testing.T) {
	f := startFilter(t, "-w50")
	f.client.Close()
	f.end(t, false, 0, 25*time.Second)
}

// A client that has sent all its commands at once, and ended its half of the
// connection, still wants the answers.
func TestClientThatOnlyListens(t *testing.T) {
	f := startFilter(t, "-T1", "-r", "bl.example")
	f.client.Write([]byte("EHLO x\r\nQUIT\r\n"))
	f.client.CloseWrite()
	f.awaitQuestion(t)
	f.end(t, true, time.Second, never)
}

func TestClientThatStays(t *testing.T) {
	f := startFilter(t, "-v", "-T1", "-r", "bl.example")
	f.end(t, true, time.Second, never, "bl.example: no answer in time")
}

func TestLookupsFailClosed(t *testing.T) {
	f := startFilter(t, "-bc", "-t0", "-T1", "-r", "bl.example:no")
	f.end(t, false, time.Second, never, "451 temporary RBL lookup error")
	reply := make([]byte, 100)
	n, _ := f.client.Read(reply)
	if got := string(reply[:n]); got != "451 temporary RBL lookup error\r\n" {
		t.Errorf("the client got %q", got)
	}
}

func TestGreetDelays(t *testing.T) {
	f := startFilter(t, "-w1", "-W")
	f.end(t, true, 2*time.Second, never)
}

// The delay does not shorten the time for lookups, nor the lookups the delay.
func TestDelayAndLookups(t *testing.T) {
	f := startFilter(t, "-vs", "-w1", "-T1", "-r", "bl.example")
	f.end(t, true, 2*time.Second, never, "bl.example: no answer in time")
	f.asked.Close()
	f = startFilter(t, "-v", "-w2", "-T1", "-r", "bl.example")
	f.end(t, true, 2*time.Second, never, "bl.example: no answer in time")
}

// A wait costs next to nothing, whatever it is for: lookups, a delay, or a delay
// that lasts longer than lookups may take.
func TestWaitingIsIdle(t *testing.T) {
	for _, args := range [][]string{{"-T3", "-r", "bl.example"}, {"-w3"}, {"-w3", "-T1", "-r", "bl.example"}, {"-T0", "-r", "bl.example", "-w3"}} {
		f := startFilter(t, args...)
		f.end(t, true, 3*time.Second, never)
		f.asked.Close()
		used := f.cmd.ProcessState.SystemTime() + f.cmd.ProcessState.UserTime()
		var switches int64
		if u, ok := f.cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
			switches = u.Nvcsw
		}
		t.Logf("%q: %v, %d context switches", args, used, switches)
		// A filter that the runtime interrupts a hundred times a second has
		// some 480; one that spins has few, and uses seconds.
		if switches > 300 || used > time.Second {
			t.Errorf("%q: %v, %d context switches in three seconds of waiting", args, used, switches)
		}
	}
}

// So does one for lookups that find no descriptor.
func TestWaitingWithoutDescriptorsIsIdle(t *testing.T) {
	cmd := exec.Command("prlimit", "--nofile=4:4", program, "-T2", "-r", "one.example", "-r", "two.example", "/bin/true")
	cmd.Env = []string{"TCPREMOTEIP=192.0.2.9", "DNSCACHEIP=127.0.0.9", "RBLNFT_SOCKET="}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v, %s", err, out)
	}
	if used := cmd.ProcessState.SystemTime() + cmd.ProcessState.UserTime(); used > time.Second {
		t.Errorf("%v in two seconds of waiting", used)
	}
}

func TestClientThatLeavesAfterTheLookups(t *testing.T) {
	f := startFilter(t, "-T0", "-w50", "-r", "bl.example")
	time.Sleep(200 * time.Millisecond)
	f.client.Close()
	f.end(t, false, 0, 25*time.Second)
}

// A DNS server that is started again while the filter looks up is no failure.
func TestServerThatComesBack(t *testing.T) {
	f := startFilter(t, "-v", "-T8", "-r", "bl.example")
	f.awaitQuestion(t)
	f.asked.Close()
	time.Sleep(300 * time.Millisecond)
	asked, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(192, 0, 2, 53), Port: 53})
	if err != nil {
		t.Fatal(err)
	}
	defer asked.Close()
	f.asked = asked
	f.awaitQuestion(t)
	f.client.Close()
	f.end(t, false, 0, 7*time.Second, "client gone before the decision")
}

func TestClientThatSpeaksEarly(t *testing.T) {
	f := startFilter(t, "-w2")
	f.client.Write([]byte("EHLO x\r\n"))
	time.Sleep(100 * time.Millisecond)
	f.client.Write([]byte("MAIL FROM:<>\r\n"))
	f.end(t, true, 2*time.Second, never, "client speaks before the greeting")
}

// The conversation ends in time whatever the client does: one that says
// nothing, one that dribbles, and one that asks and never reads.
func TestConversationEnds(t *testing.T) {
	for name, client := range map[string]func(*filter){
		"silent":   func(*filter) {},
		"dribbler": func(f *filter) { dribble(f.client) },
		"deaf":     func(f *filter) { f.client.Write(bytes.Repeat([]byte("RCPT\n"), 1<<20)) },
	} {
		t.Run(name, func(t *testing.T) {
			f := startFilter(t, "-bc", "-t2", "-T0", "-r", "bl.example:no")
			go client(f)
			f.end(t, false, 2*time.Second, never, "451 temporary RBL lookup error")
		})
	}
}

func dribble(c net.Conn) {
	for _, err := c.Write([]byte("N")); err == nil; _, err = c.Write([]byte("N")) {
		time.Sleep(50 * time.Millisecond)
	}
}

// What the run script's softlimit takes away is there again for prog, and
// everything else that the filter was started with.
func TestProgInheritsTheProcess(t *testing.T) {
	env := []string{"RBLSMTPD=", "A=1", "odd", "A=2", "GODEBUG=no", "GOMAXPROCS=7", "=", "B"}
	start := []string{
		"/usr/bin/setpriv", "--pdeathsig=TERM",
		"/usr/bin/prlimit", "--nofile=100:200", "--nproc=2000", "--stack=4000000:",
		"/usr/bin/env", "--ignore-signal=USR1", "--ignore-signal=PIPE", "--ignore-signal=HUP", "--block-signal=USR2", "--block-signal=URG",
		"/usr/bin/softlimit", "-m", "9000000", "-c", "0", "-f", "1000000",
	}
	// Package os/exec would mend the environment, and open descriptor 0.
	run := func(args ...string) string {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p, err := os.StartProcess(args[0], args, &os.ProcAttr{Dir: "/proc", Env: env, Files: []*os.File{nil, w, w}})
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		out, _ := io.ReadAll(r)
		r.Close()
		if state, err := p.Wait(); err != nil || !state.Success() {
			t.Fatalf("%q: %v, %v\n%s", args, state, err, out)
		}
		return string(out)
	}
	for what, c := range map[string]struct {
		prog []string
		want string // without which the comparison shows nothing
	}{
		"limits":      {[]string{"/bin/cat", "/proc/self/limits"}, "9000000"},
		"signals":     {[]string{"/bin/grep", "-E", "^(Sig[PBIC]|Shd|Cap|Seccomp|NoNew|Umask)", "/proc/self/status"}, "SigIgn:\t0000000000001201\n"},
		"parent":      {[]string{"/usr/bin/setpriv", "--dump"}, "Parent death signal: TERM\n"},
		"environment": {[]string{"/bin/cat", "/proc/self/environ"}, strings.Join(env, "\x00")},
		"descriptors": {[]string{"/bin/ls", "/proc/self/fd"}, "0\n1\n"},
		"directory":   {[]string{"/bin/readlink", "/proc/self/cwd"}, "/proc\n"},
		"arguments":   {[]string{"/bin/echo", "", "-b", "\xff"}, " -b \xff\n"},
	} {
		want := run(append(start, c.prog...)...)
		got := run(append(append(start, program, "-b", "-r", "bl.example"), c.prog...)...)
		if got != want {
			t.Errorf("%s: without the filter:\n%q\nwith it:\n%q", what, want, got)
		}
		if !strings.Contains(want, c.want) {
			t.Errorf("%s: the comparison shows nothing: %q", what, want)
		}
	}
}

// Whatever the process is like that the filter is started as, a client that is
// not listed gets to the next program. In most cases that one is the filter again,
// without arguments: it says how it is used, and exits 100. The kernel begins a
// stack at a random place: with less than 16 KB nothing can be executed for sure.
func TestPassesWhateverTheProcessIsLike(t *testing.T) {
	root := t.TempDir() // without /dev/null
	if out, err := exec.Command("cp", program, root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, script := range map[string]string{
		"small stack":               `for i in $(seq 20); do softlimit -s 16384 "$0" -r bl.example "$0"; [ $? = 100 ] || exit; done; exit 100`,
		"log at the limit of files": `exec prlimit --fsize=0:0 "$0" -r bl.example sh -c "exit 100" 2>"$1/log"`,
		"no input, no /dev/null":    `exec chroot "$1" /rblsmtpd -r bl.example /rblsmtpd <&-`,
		"nothing, no /dev/null":     `exec chroot "$1" /rblsmtpd -r bl.example /rblsmtpd <&- >&- 2>&-`,
		"no log, no /dev/null":      `exec chroot "$1" /rblsmtpd -r bl.example /rblsmtpd 2>&-`,
	} {
		cmd := exec.Command("sh", "-c", script, program, root)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"} // the log has a line: no $TCPREMOTEIP
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState; got.ExitCode() != 100 {
			t.Errorf("%s: %v, %s", name, got, out)
		}
	}
}

// An alarm clock that was set before ends a filter that looks up, and no conversation.
func TestAlarmThatWasSetBefore(t *testing.T) {
	cmd := exec.Command("perl", "-e", "alarm 1; exec {$ARGV[0]} @ARGV", program, "true")
	cmd.Env = []string{"RBLSMTPD=-no"}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond)
	in.Write([]byte("quit\r\n"))
	got, _ := io.ReadAll(out)
	if err := cmd.Wait(); err != nil || string(got) != "220 rblsmtpd.local\r\n221 rblsmtpd.local\r\n" {
		t.Errorf("%v, %q", err, got)
	}
}

// Where the Go runtime cannot start, for want of threads or of memory that hard limits
// keep from it, the next program runs at once and a line says why. With just enough
// the filter works. In no case does the runtime say anything.
func TestPassesWithoutRuntime(t *testing.T) {
	const uid = "54321" // nobody else's, as processes are counted by user
	type limits struct {
		option   string
		low, top int
		step     int
	}
	for _, l := range []limits{{"--nproc", 1, 8, 1}, {"--as", 20, 900, 40}, {"--data", 4, 80, 4}} {
		looked := 0
		for limit := l.low; limit <= l.top; limit += l.step {
			value := limit
			if l.option != "--nproc" {
				value <<= 20
			}
			cmd := exec.Command("setpriv", "--reuid="+uid, "--regid="+uid, "--clear-groups",
				"prlimit", fmt.Sprintf("%s=%d:%d", l.option, value, value), program, "-v", "-r", "bl.example", "sh", "-c", "exit 7")
			cmd.Env = []string{"PATH=/usr/bin:/bin", "TCPREMOTEIP=192.0.2.9", "DNSCACHEIP=203.0.113.1", "RBLNFT_SOCKET="}
			var log bytes.Buffer
			cmd.Stderr = &log
			cmd.Run()
			filtered := strings.HasSuffix(log.String(), ": bl.example: the DNS servers failed\n")
			why := "memory"
			if l.option == "--nproc" {
				why = "thread"
			}
			unfiltered := strings.HasPrefix(log.String(), fmt.Sprintf("rblsmtpd: 192.0.2.9 pid %d: no %s for the filter to start (", cmd.Process.Pid, why))
			if cmd.ProcessState.ExitCode() != 7 || filtered == unfiltered || strings.Count(log.String(), "\n") != 1 {
				t.Errorf("%s=%d: %v, log %q", l.option, value, cmd.ProcessState, &log)
			}
			if filtered {
				looked++
			} else if looked > 0 {
				t.Errorf("%s=%d: not enough, and less was", l.option, value)
			}
		}
		if looked == 0 {
			t.Errorf("%s: never enough", l.option)
		}
	}
}

// There the command line is read as otherwise.
func TestWithoutRuntimeFindsProg(t *testing.T) {
	run := func(args ...string) (string, int) {
		cmd := exec.Command("prlimit", append([]string{"--data=8000000:8000000", program}, args...)...)
		cmd.Env = []string{"TCPREMOTEIP=\x1b[2Jx ", "PATH=/nowhere::/usr/bin"}
		cmd.Dir = t.TempDir()
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 100 && !strings.HasPrefix(string(out), fmt.Sprintf("rblsmtpd: ?[2Jx  pid %d: no memory", cmd.Process.Pid)) {
			t.Errorf("%q: %q", args, out)
		}
		_, said, _ := strings.Cut(string(out), "not looked up\n")
		return said, cmd.ProcessState.ExitCode()
	}
	for _, args := range [][]string{
		{"echo", "-r", "x"},
		{"-bvr", "bl.example", "-t0", "-a", "z", "echo", "-r", "x"},
		{"-rbl.example", "-BcCisvW", "-T", "1", "-w", "", "--", "echo", "-r", "x"},
		{"/bin/echo", "-r", "x"},
	} {
		if out, code := run(args...); out != "-r x\n" || code != 0 {
			t.Errorf("%q: %q, %d", args, out, code)
		}
	}
	for _, args := range [][]string{{}, {"-b"}, {"-r"}, {"-x", "echo"}, {"-rz", "--"}} {
		if out, code := run(args...); code != 100 {
			t.Errorf("%q: %q, %d", args, out, code)
		}
	}
	for prog, want := range map[string]string{"no-such": "file does not exist", "/": "access denied", "/dev/null": "access denied"} {
		if out, code := run(prog); out != "rblsmtpd: fatal: unable to run "+prog+": "+want+"\n" || code != 111 {
			t.Errorf("%q: %q, %d", prog, out, code)
		}
	}
}

// A resolv.conf that cannot be read names nobody to ask; mail passes.
func TestUnreadableResolvConf(t *testing.T) {
	root := t.TempDir()
	if out, err := exec.Command("cp", program, root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.MkdirAll(filepath.Join(root, "etc/resolv.conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("chroot", root, "/rblsmtpd", "-r", "bl.example", "/rblsmtpd")
	cmd.Env = []string{"TCPREMOTEIP=192.0.2.9", "RBLNFT_SOCKET="}
	out, _ := cmd.CombinedOutput()
	if !strings.Contains(string(out), ": /etc/resolv.conf: is a directory; nothing is looked up\n") || cmd.ProcessState.ExitCode() != 100 {
		t.Errorf("%v, %s", cmd.ProcessState, out)
	}
}

// A log that nobody reads any more stops no mail.
func TestPassesThoughTheLogIsFull(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := w.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = w.Write(make([]byte, 4096))
	}
	var out bytes.Buffer
	cmd := exec.Command("sh", "-c", `exec "$0" -r bl.example echo passed 2>&3`, program) // without $TCPREMOTEIP there is a line for the log
	w.Fd()                                                                               // from now on it blocks
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	defer stop.Stop()
	if err := cmd.Wait(); err != nil || out.String() != "passed\n" {
		t.Errorf("%v, output %q", err, &out)
	}
}
