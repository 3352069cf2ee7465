package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"rblnft/cmd/internal/build"
	"rblnft/dnsbl/dnsbltest"
)

// The filter for arm64, whose entry point is another one, under qemu-user: lookups,
// a conversation, an alarm in it, and what the next program inherits. qemu-user starts
// that one as the kernel would; threads at its entry it does not know.
func TestArm64(t *testing.T) {
	t.Setenv("GOARCH", "arm64")
	dir := t.TempDir()
	if err := build.Program(dir, "rblsmtpd"); err != nil {
		t.Fatal(err)
	}
	filter := filepath.Join(dir, "rblsmtpd")
	dns, err := dnsbltest.Start(netip.MustParseAddr("192.0.2.54"), dnsbltest.Standard())
	if err != nil {
		t.Fatal(err)
	}
	defer dns.Close()
	const greeting, listed = "220 rblsmtpd.local\r\n", "553 listed 192.0.2.9\r\n"
	for _, c := range []struct {
		name, script string // $0 is the filter, run by qemu
		in, out      string
		log          string // without what every line begins with
		code         int
	}{
		{"listed", `exec $0 -b -r noname.test -r list.test true`, "ehlo x\r\nrcpt\r\nquit\r\n", greeting + "250 rblsmtpd.local\r\n" + listed + "221 rblsmtpd.local\r\n", "553 listed 192.0.2.9\n", 0},
		{"not listed", `exec $0 -b -r noname.test -a nodata.test echo passed`, "", "passed\n", "", 0},
		{"arguments and environment", `exec env A=1 $0 -- sh -c "echo \$A \$# \$2" x "" " -b"`, "", "1 2 -b\n", "", 0},
		{"signals", `exec env --ignore-signal=USR1 --block-signal=USR2 $0 -r noname.test grep -E "^Sig(Blk|Ign)" /proc/self/status`, "", "SigBlk:\t0000000000000800\nSigIgn:\t0000000000000200\n", "", 0},
		{"limits", `exec prlimit --nofile=50:60 --stack=4000000: $0 -r noname.test sh -c "ulimit -n; ulimit -s"`, "", "50\n3906\n", "", 0},
		{"closed descriptors", `exec $0 -r noname.test test ! -e /proc/self/fd/0 <&-`, "", "", "", 0},
		{"no program", `exec $0 -r noname.test no-such-program`, "", "", "rblsmtpd: fatal: unable to run no-such-program: file does not exist\n", 111},
		{"usage", `exec $0 -r`, "", "", "rblsmtpd: option requires an argument -- r\n" + usage, 100},
	} {
		cmd := exec.Command("sh", "-c", c.script, "qemu-aarch64-static "+filter)
		cmd.Env = []string{"PATH=/usr/bin:/bin", "TCPREMOTEIP=192.0.2.9", "DNSCACHEIP=192.0.2.54", "RBLNFT_SOCKET="}
		cmd.Stdin = strings.NewReader(c.in)
		var out, log strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &log
		cmd.Run()
		got := strings.ReplaceAll(log.String(), fmt.Sprintf("rblsmtpd: 192.0.2.9 pid %d: ", cmd.Process.Pid), "")
		got = strings.TrimPrefix(got, filter+": ")
		if out.String() != c.out || got != c.log || cmd.ProcessState.ExitCode() != c.code {
			t.Errorf("%s: %v, %q, log %q, want %d, %q, %q", c.name, cmd.ProcessState, &out, got, c.code, c.out, c.log)
		}
	}

	// An alarm ends the conversation, and the filter with exit code 0.
	cmd := exec.Command("qemu-aarch64-static", filter, "true")
	cmd.Env = []string{"RBLSMTPD=-no"}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	b := make([]byte, 100)
	if n, err := r.Read(b); string(b[:n]) != greeting {
		t.Errorf("%q, %v", b[:n], err)
	}
	cmd.Process.Signal(syscall.SIGALRM)
	if err := cmd.Wait(); err != nil {
		t.Error("with an alarm:", err)
	}
}
