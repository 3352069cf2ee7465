package chain

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// deliver sends one mail and returns it as it was delivered.
func deliver(t *testing.T, from, mail, body string) string {
	t.Helper()
	c := connect(t, from)
	c.expect("220 ")
	c.say("EHLO client.example", "250 ")
	c.say("MAIL FROM:<a@client.example>", "250 ")
	c.say("RCPT TO:<b@mail.example>", "250 ")
	c.say("DATA", "354 ")
	c.say("Subject: "+body+"\r\n\r\n"+body+"\r\n.", "250 ")
	c.say("QUIT", "221 ")
	var delivered string
	await(t, "the mail", func() bool {
		files, _ := filepath.Glob(filepath.Join(mail, "[0-9]*"))
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), body) {
				delivered = string(b)
				return true
			}
		}
		return false
	})
	return delivered
}

// rejected holds a whole conversation with a blocked client.
func rejected(t *testing.T, from, line string) {
	t.Helper()
	c := connect(t, from)
	c.expect("220 rblsmtpd.local")
	c.say("EHLO client.example", "250 rblsmtpd.local")
	c.say("MAIL FROM:<a@client.example>", "250 rblsmtpd.local")
	c.say("RCPT TO:<b@mail.example>", line+"\r\n")
	c.say("DATA", line+"\r\n")
	c.say("QUIT", "221 rblsmtpd.local")
	c.end()
}

func TestRunScript(t *testing.T) {
	startDNSBL(t)
	hits := filepath.Join(publicDir(t), "hits.sock")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: hits, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	os.Chmod(hits, 0o666)
	reported := func() string {
		b := make([]byte, 2048)
		socket.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := socket.Read(b)
		if err != nil {
			return ""
		}
		return string(b[:n])
	}
	tcpserver, mail := startServer(t, hits)

	for _, c := range []struct{ name, from, line, hit, log string }{
		{
			"listed by the first", byOne, "553 one says " + byOne,
			"rblnft/1 addr=192.0.2.101 zone=one.example code=127.0.0.2 answer=553 one says 192.0.2.101\n",
			`(?m)^rblsmtpd: 192\.0\.2\.101 pid \d+: 553 one says 192\.0\.2\.101\nrblsmtpd: blocked 192\.0\.2\.101 - -$`,
		},
		{
			"listed by the second", byTwo, "553 two says no",
			"rblnft/1 addr=192.0.2.102 zone=two.example code=127.0.0.4 answer=553 two says no\n",
			`(?m)^rblsmtpd: 192\.0\.2\.102 pid \d+: 553 two says no\nrblsmtpd: blocked 192\.0\.2\.102 - -$`,
		},
		{
			"blocked by the cdb, which is no listing", forbidden, "553 Go away", "",
			`(?m)^rblsmtpd: 192\.0\.2\.104 pid \d+: 553 Go away\nrblsmtpd: blocked 192\.0\.2\.104 - -$`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			rejected(t, c.from, c.line)
			if got := reported(); got != c.hit {
				t.Errorf("reported %q, want %q", got, c.hit)
			}
			if !regexp.MustCompile(c.log).MatchString(tcpserver.log.String()) {
				t.Errorf("the log has no %s", c.log)
			}
		})
	}
	for name, from := range map[string]string{"not listed": unlisted, "listed, and exempt by the cdb": exempt} {
		t.Run(name, func(t *testing.T) {
			body := "mail from " + from
			if got := deliver(t, from, mail, body); !strings.Contains(got, "Subject: "+body) {
				t.Errorf("delivered %q", got)
			}
			if got := reported(); got != "" {
				t.Errorf("reported %q", got)
			}
		})
	}
	if strings.Contains(tcpserver.log.String(), "not reported") {
		t.Error("something was not reported")
	}
}

// The checks that administrators make by hand.
func TestByHand(t *testing.T) {
	startDNSBL(t)
	for _, c := range []struct{ arg, line string }{
		{"one.example:test ", "553 test "},
		{"one.example", "553 Listed by one, see http://one.example/?127.0.0.2"},
	} {
		cmd := exec.Command(filepath.Join(programs, "rblsmtpd"), "-b", "-v", "-r", c.arg, "/var/qmail/bin/qmail-smtpd")
		cmd.Env = []string{"TCPREMOTEIP=127.0.0.2", "DNSCACHEIP=" + dnsbl, "RBLNFT_SOCKET="}
		cmd.Stdin = strings.NewReader("rcpt\nquit\n")
		var log bytes.Buffer
		cmd.Stderr = &log
		out, err := cmd.Output()
		if want := "220 rblsmtpd.local\r\n" + c.line + "\r\n221 rblsmtpd.local\r\n"; err != nil || string(out) != want {
			t.Errorf("%s: %v, %q, want %q", c.arg, err, out, want)
		}
		want := fmt.Sprintf("rblsmtpd: 127.0.0.2 pid %d: %s\nrblsmtpd: blocked 127.0.0.2 - -\n", cmd.Process.Pid, c.line)
		if log.String() != want {
			t.Errorf("%s: logged %q, want %q", c.arg, &log, want)
		}
	}
}

// silent is how long a client waits to be sure of not getting an answer: two
// SYN packets more are sent in this time.
const silent = 3500 * time.Millisecond

func TestBlockedWhileTheConversationGoesOn(t *testing.T) {
	startDNSBL(t)
	_, hits := startDaemon(t, "expiry = \"15s\"\n")
	startServer(t, hits)

	c := connect(t, byOne)
	c.expect("220 rblsmtpd.local")
	await(t, "the address in the set", func() bool { return isBlocked(byOne) })
	if set := blocked4(t); !regexp.MustCompile(regexp.QuoteMeta(byOne) + ` timeout (15s|14s\d+ms) expires 1\d(s\d+m)?s\d* comment "one.example"`).MatchString(set) {
		t.Errorf("the set is\n%s", set)
	}
	c.say("EHLO x", "250 ")
	c.say("MAIL FROM:<>", "250 ")
	c.say("RCPT TO:<b@mail.example>", "553 one says "+byOne)
	if conn, err := dial(byOne, silent); err == nil {
		conn.Close()
		t.Error("its next connection was accepted")
	} else if n := net.Error(nil); !errors.As(err, &n) || !n.Timeout() {
		t.Errorf("its next connection ended with %v, want no answer", err)
	}
	connect(t, unlisted).expect("220 ")
	c.say("NOOP", "250 rblsmtpd.local")
	c.say("QUIT", "221 rblsmtpd.local")
	c.end()

	await(t, "the end of the block", func() bool { return !isBlocked(byOne) })
	rejected(t, byOne, "553 one says "+byOne)
}

func TestManyClientsAtOnce(t *testing.T) {
	startDNSBL(t)
	_, hits := startDaemon(t, "")
	tcpserver, _ := startServer(t, hits)

	const clients = 120
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() { rejected(t, fmt.Sprintf("192.0.2.%d", 128+i), fmt.Sprintf("553 one says 192.0.2.%d", 128+i)) })
	}
	all.Wait()
	await(t, "all addresses in the set", func() bool { return strings.Count(blocked4(t), "one.example") == clients })
	if strings.Contains(tcpserver.log.String(), "not reported") {
		t.Errorf("something was not reported:\n%s", tcpserver.log)
	}
}

// Whatever is wrong with the daemon, the client gets the same bytes as soon,
// and the log says once what was not reported.
func TestWithoutDaemon(t *testing.T) {
	startDNSBL(t)
	dir := publicDir(t)
	dead := filepath.Join(dir, "dead.sock")
	full := filepath.Join(dir, "full.sock")
	for _, path := range []string{dead, full} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		if path == dead {
			l.Close()
			continue
		}
		defer l.Close()
		fill(t, path)
	}
	_, alive := startDaemon(t, "")

	converse := func(path string) (bytes, log string, took time.Duration) {
		cmd := exec.Command(filepath.Join(programs, "rblsmtpd"), "-b", "-r", "one.example", "/bin/false")
		cmd.Env = []string{"TCPREMOTEIP=" + byOne, "DNSCACHEIP=" + dnsbl, "RBLNFT_SOCKET=" + path}
		cmd.Stdin = strings.NewReader("EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<b>\r\nQUIT\r\n")
		var out, errors strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errors
		began := time.Now()
		if err := cmd.Run(); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		took = time.Since(began)
		return out.String(), strings.ReplaceAll(errors.String(), fmt.Sprintf(" pid %d:", cmd.Process.Pid), " pid PID:"), took
	}
	const blocked = "rblsmtpd: 192.0.2.101 pid PID: 553 Listed by one, see http://one.example/?192.0.2.101\n"
	const lost = "rblsmtpd: 192.0.2.101 pid PID: hit not reported: "
	cases := []struct{ name, path, log string }{
		{"reporting nothing", "", blocked},
		{"a daemon", alive, blocked},
		{"no socket", filepath.Join(dir, "none.sock"), blocked + lost + filepath.Join(dir, "none.sock") + ": no such file or directory\n"},
		{"a dead socket", dead, blocked + lost + dead + ": connection refused\n"},
		{"a full queue", full, blocked + lost + full + ": the queue is full\n"},
	}
	const rounds = 21
	times := make([][]time.Duration, len(cases))
	for range rounds {
		for i, c := range cases {
			out, log, took := converse(c.path)
			if want := "220 rblsmtpd.local\r\n250 rblsmtpd.local\r\n250 rblsmtpd.local\r\n553 Listed by one, see http://one.example/?192.0.2.101\r\n221 rblsmtpd.local\r\n"; out != want {
				t.Errorf("%s: the client got %q", c.name, out)
			}
			if log != c.log {
				t.Errorf("%s: logged %q, want %q", c.name, log, c.log)
			}
			times[i] = append(times[i], took)
		}
	}
	for i, c := range cases {
		slices.Sort(times[i])
		t.Logf("%-18s median %v", c.name, times[i][rounds/2])
		if median, bare := times[i][rounds/2], times[0][rounds/2]; median > 3*bare+20*time.Millisecond {
			t.Errorf("%s: the conversation took %v, and %v when nothing was to be reported", c.name, median, bare)
		}
	}
}

// A hit that finds the queue full is sent when there is room, while the
// conversation goes on.
func TestFullQueueThatDrains(t *testing.T) {
	startDNSBL(t)
	path := filepath.Join(publicDir(t), "hits.sock")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	os.Chmod(path, 0o666)
	filled := fill(t, path)
	tcpserver, _ := startServer(t, path)
	c := connect(t, byOne)
	c.expect("220 ")
	c.say("EHLO x", "250 ")
	b := make([]byte, 2048)
	for range filled {
		if n, err := l.Read(b); err != nil || string(b[:n]) != "full" {
			t.Fatalf("read %q, %v", b[:n], err)
		}
	}
	l.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, err := l.Read(b)
	if want := "rblnft/1 addr=" + byOne + " "; err != nil || !strings.HasPrefix(string(b[:n]), want) {
		t.Errorf("read %q, %v, want %q", b[:n], err, want)
	}
	c.say("QUIT", "221 ")
	c.end()
	if strings.Contains(tcpserver.log.String(), "not reported") {
		t.Error("the log says that it was not reported")
	}
}

// fill fills the queue of a datagram socket, and returns with how many. One
// sender alone may have no room for so many in its own buffer.
func fill(t *testing.T, path string) (total int) {
	t.Helper()
	for {
		c, err := net.Dial("unixgram", path)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for err == nil {
			c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			if _, err = c.Write([]byte("full")); err == nil {
				n++
			}
		}
		c.Close()
		if total += n; n == 0 {
			return total
		}
	}
}

// Every limit that leaves Debian's own programs alive leaves the filter alive.
func TestSoftlimit(t *testing.T) {
	startDNSBL(t)
	works := func(limit int, program string) bool {
		cmd := exec.Command("softlimit", "-m", fmt.Sprint(limit), program, "-b", "-t0", "-r", "one.example", "/bin/false")
		cmd.Env = []string{"TCPREMOTEIP=" + byOne, "DNSCACHEIP=" + dnsbl, "RBLNFT_SOCKET="}
		out, err := cmd.Output()
		return err == nil && strings.HasPrefix(string(out), "553 ")
	}
	smallest := func(program string) int {
		low, high := 100_000, 9_000_000
		if !works(high, program) {
			t.Fatalf("%s does not work under %d", program, high)
		}
		for high-low > 10_000 {
			if middle := (low + high) / 2; works(middle, program) {
				high = middle
			} else {
				low = middle
			}
		}
		return high
	}
	ours, theirs := smallest(filepath.Join(programs, "rblsmtpd")), smallest("/usr/bin/rblsmtpd")
	t.Logf("the smallest softlimit -m: %d, and %d for %s", ours, theirs, "/usr/bin/rblsmtpd")
	if ours > 4_000_000 {
		t.Errorf("the filter needs %d bytes", ours)
	}
}
