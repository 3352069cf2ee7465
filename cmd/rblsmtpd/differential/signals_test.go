package differential

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSignals sends a signal to both programs while they talk to a client, and
// while they wait for a list. Both leave what happens then to the kernel, but
// for SIGALRM in the conversation. The filter ignores SIGPIPE besides, see the
// difference "client gone in the conversation".
func TestSignals(t *testing.T) {
	l := theLab(t)
	t.Parallel()
	var running sync.WaitGroup
	defer running.Wait()
	for _, signal := range []syscall.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGTERM, unix.SIGALRM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH, unix.SIGCONT, unix.SIGIO, unix.SIGPROF, unix.SIGVTALRM, unix.SIGXCPU, unix.SIGXFSZ, unix.SIGSYS,
	} {
		for _, when := range []string{"talking", "asking"} {
			running.Go(func() {
				t.Run(unix.SignalName(signal)+" "+when, func(t *testing.T) {
					c := one("", listedClient, "-r", "slow50.test", "/bin/true")
					c.during = func(pid int) {
						syscall.Kill(pid, signal)
						awaitTaken(pid, signal)
					}
					c.client.script = []event{{do: "await", lines: 1}, {do: "call"}, {do: "send", data: "quit\r\n"}, {do: "shut"}}
					if when == "asking" {
						// Another name each time: rblsmtpd has the same port and ID in
						// every process, and takes answers to those before it.
						c.prog[1] = runID + ".slow2000.test"
						c.client.script = []event{{do: "pause"}, {do: "call"}, {do: "await", lines: 1}, {do: "send", data: "quit\r\n"}, {do: "shut"}}
					}
					want, err := l.run(referenceProgram, c)
					if err != nil {
						t.Fatal(err)
					}
					got, err := l.run(program{path: l.filter}, c)
					if err != nil {
						t.Fatal(err)
					}
					if lines := differ(want, got); len(lines) > 0 {
						t.Errorf("%s", strings.Join(lines, "\n"))
					}
				})
			})
		}
	}
}

// awaitTaken waits until a process has begun to handle a signal, or has ended,
// so that what the client says next cannot overtake it: "ShdPnd" of
// proc_pid_status(5) has what still waits, bit 0 for signal 1.
func awaitTaken(pid int, signal syscall.Signal) {
	for {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || strings.Contains(string(status), "State:\tZ") {
			return
		}
		_, rest, _ := strings.Cut(string(status), "ShdPnd:\t")
		pending, err := strconv.ParseUint(strings.SplitN(rest, "\n", 2)[0], 16, 64)
		if err != nil || pending&(1<<(signal-1)) == 0 {
			return
		}
		time.Sleep(100 * time.Microsecond)
	}
}
