package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rblnft/cmd/internal/build"
	"rblnft/dnsbl/dnsbltest"
)

// go test keeps the result of a test until a file changes that the test has opened.
func TestSourcesOfTheFilter(t *testing.T) {
	if err := build.Open("rblsmtpd"); err != nil {
		t.Fatal(err)
	}
}

// startDNSBL starts a DNS server at 192.0.2.54.
func startDNSBL(t *testing.T) {
	t.Helper()
	dns, err := dnsbltest.Start(netip.MustParseAddr("192.0.2.54"), dnsbltest.Standard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dns.Close)
}

// fullSocket is a hits socket whose queue has no room, and how many datagrams are
// in it.
func fullSocket(t *testing.T) (*net.UnixConn, int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for total := 0; ; {
		// One sender alone may have no room for so many in its own buffer.
		c, err := net.Dial("unixgram", path)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for ; err == nil; n++ {
			c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
			_, err = c.Write([]byte("full"))
		}
		c.Close()
		if n == 1 {
			return l, total
		}
		total += n - 1
	}
}

// A client that is sent away at once gets its answer first; a hit that found the
// queue full is tried for a moment more.
func TestFullQueueAfterTheAnswer(t *testing.T) {
	startDNSBL(t)
	reported := 0
	for range 30 {
		l, n := fullSocket(t)
		path := l.LocalAddr().String()
		cmd := exec.Command(program, "-b", "-t0", "-r", "list.test:no", "true")
		cmd.Env = []string{"TCPREMOTEIP=192.0.2.9", "DNSCACHEIP=192.0.2.54", "RBLNFT_SOCKET=" + path}
		var log bytes.Buffer
		cmd.Stderr = &log
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		b := make([]byte, 1024)
		if n, err := r.Read(b); string(b[:n]) != "553 no\r\n" {
			t.Errorf("the client got %q, %v", b[:n], err)
		}
		time.Sleep(3 * time.Millisecond)
		for range n {
			if _, err := l.Read(b); err != nil {
				t.Fatal(err)
			}
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		r.Close()
		l.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		size, _ := l.Read(b)
		arrived := strings.HasPrefix(string(b[:size]), "rblnft/1 addr=192.0.2.9 zone=list.test code=127.0.0.2 answer=553 no\n")
		said := strings.HasSuffix(log.String(), "hit not reported: "+path+": the queue is full\n")
		if arrived == said {
			t.Errorf("reported %q, log %q", b[:size], &log)
		}
		if arrived {
			if reported++; reported == 3 {
				return
			}
		}
	}
	t.Errorf("reported %d of 30 times", reported)
}

// Without room the log says what was not reported, and the filter ends.
func TestFullQueue(t *testing.T) {
	startDNSBL(t)
	l, _ := fullSocket(t)
	path := l.LocalAddr().String()
	cmd := exec.Command(program, "-b", "-t0", "-r", "list.test:no", "true")
	cmd.Env = []string{"TCPREMOTEIP=192.0.2.9", "DNSCACHEIP=192.0.2.54", "RBLNFT_SOCKET=" + path}
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	err := cmd.Run()
	prefix := fmt.Sprintf("rblsmtpd: 192.0.2.9 pid %d: ", cmd.Process.Pid)
	if want := prefix + "553 no\n" + prefix + "hit not reported: " + path + ": the queue is full\n"; err != nil || log.String() != want || out.String() != "553 no\r\n" {
		t.Errorf("%v, the client got %q, log %q, want %q", err, &out, &log, want)
	}
}

// Who tries by hand what a list says of somebody does not have him blocked.
func TestByHand(t *testing.T) {
	startDNSBL(t)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	for name, input := range map[string]*os.File{"a terminal": terminal, "none": nil} {
		cmd := exec.Command(program, "-b", "-t0", "-r", "list.test:no", "true")
		cmd.Env = []string{"TCPREMOTEIP=192.0.2.9", "DNSCACHEIP=192.0.2.54", "RBLNFT_SOCKET=" + path}
		var out, log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &log
		if input != nil {
			cmd.Stdin = input
		}
		if err := cmd.Run(); err != nil || out.String() != "553 no\r\n" {
			t.Errorf("%s: %v, %q", name, err, &out)
		}
		l.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, _ := l.Read(make([]byte, 1024))
		said := strings.Contains(log.String(), "hit not reported: "+path+": descriptor 0 is a terminal\n")
		if (n > 0) == (input != nil) || said != (input != nil) {
			t.Errorf("%s: %d bytes reported, log %q", name, n, &log)
		}
	}
}

// With -i the next program runs whatever the lists say, and finds in $RBLSMTPD what
// they say, in a form that another rblsmtpd rejects with 451. Nothing is reported to
// the daemon.
func TestOnlyReport(t *testing.T) {
	startDNSBL(t)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, c := range []struct {
		options string
		env     string // of the filter, besides
		found   string // the variables that prog finds, those of every case apart
		log     string
	}{
		{"-i -b -r list.test", "", "RBLSMTPD=listed 192.0.2.9", "553 listed 192.0.2.9"},
		{"-iv -r list.test", "", "RBLSMTPD=listed 192.0.2.9", "451 listed 192.0.2.9"},
		{"-i -r list.test:--no", "", "RBLSMTPD=no", "451 --no"},
		{"-i -r list.test:", "", "RBLSMTPD=listed by list.test", "451 "},
		{"-i -r list.test:-", "", "RBLSMTPD=listed by list.test", "451 -"},
		{"-i -r control.test", "", "RBLSMTPD=a??250 ok??b?c?[2Jd??rblsmtpd: forged?", "451 a??250 ok??b?c?[2Jd??rblsmtpd: forged?"},
		{"-i -r noname.test", "A=1", "A=1", ""},
		{"-i -r list.test:no", "A=1", "A=1 RBLSMTPD=no", "451 no"},
		{"-i -r list.test:no", "RBLSMTPD=", "RBLSMTPD=", ""},
		{"-i -b -r list.test:no", "RBLSMTPD=-mine", "RBLSMTPD=-mine", "553 mine"},
		{"-i -c -r failure.test", "", "RBLSMTPD=temporary RBL lookup error", "451 temporary RBL lookup error"},
	} {
		cmd := exec.Command(program, append(strings.Fields(c.options), "env")...)
		base := []string{"PATH=/usr/bin:/bin", "TCPREMOTEIP=192.0.2.9", "DNSCACHEIP=192.0.2.54", "RBLNFT_SOCKET=" + socket}
		cmd.Env = base
		if c.env != "" {
			cmd.Env = append(cmd.Env, c.env)
		}
		cmd.Stdin = strings.NewReader("quit\r\n")
		var out, log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &log
		if err := cmd.Run(); err != nil {
			t.Errorf("%s: %v", c.options, err)
		}
		want := ""
		if c.log != "" {
			want = fmt.Sprintf("rblsmtpd: 192.0.2.9 pid %d: %s\n", cmd.Process.Pid, c.log)
		}
		found := strings.ReplaceAll(strings.TrimPrefix(out.String(), strings.Join(base, "\n")+"\n"), "\n", " ")
		if strings.TrimSpace(found) != c.found || log.String() != want {
			t.Errorf("%s, %s: prog found %q, want %q, log %q, want %q", c.options, c.env, found, c.found, &log, want)
		}
	}
	l.SetReadDeadline(time.Now().Add(time.Millisecond))
	b := make([]byte, 1024)
	if n, err := l.Read(b); err == nil {
		t.Errorf("reported %q", b[:n])
	}
}

// That a program cannot be executed is said under the limits that the filter was
// started with.
func TestNoProgUnderSoftlimit(t *testing.T) {
	cmd := exec.Command("softlimit", "-m", "9000000", program, "-r", "bl.example", "no/such/program")
	cmd.Env = []string{"TCPREMOTEIP=", "RBLNFT_SOCKET="}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log, _ := io.ReadAll(stderr)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 111 || !strings.HasSuffix(string(log), "rblsmtpd: fatal: unable to run no/such/program: file does not exist\n") {
		t.Errorf("%d, %q", code, log)
	}
}
