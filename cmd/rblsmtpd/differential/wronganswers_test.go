package differential

import (
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"rblnft/firewall/hit"
)

// TestWrongAnswers says for everything that may come instead of an answer what
// the client gets, what is logged, and what the daemon hears. Every list has -b
// before it, so that a wrong listing would bounce mail.
func TestWrongAnswers(t *testing.T) {
	const passed = "" // the next program runs
	// What is logged beside the line about a block: words of each line.
	type words = []string
	ip := "192.0.2.1"
	failure := func(zone string) []words { return []words{{zone, "fail"}} }
	noAnswer := func(zone string) []words { return []words{{zone, "no answer"}} }
	complaint := func(zone, code, meaning string) []words {
		return []words{{zone, code, meaning, "temporary failure"}}
	}
	parked := func(zone string) []words { return []words{{zone, "203.0.113.1", "outside 127.0.0.0/8"}} }
	sick := func(zone string) []words { return []words{{zone, "lists 127.0.0.1", "no listing"}} }
	hits := func(zone, code, answer string) *hit.Hit {
		h := &hit.Hit{Addr: netip.MustParseAddr(ip), Zone: zone, Answer: answer}
		if code != "" {
			h.Code = netip.MustParseAddr(code)
		}
		return h
	}

	tests := []struct {
		options string
		client  string // the error line
		log     []words
		hit     *hit.Hit
	}{
		// Codes that are no listing.
		{"-r code252.test", passed, complaint("code252.test", "127.255.255.252", "mistyped"), nil},
		{"-r code254.test", passed, complaint("code254.test", "127.255.255.254", "resolver"), nil},
		{"-r code255.test", passed, complaint("code255.test", "127.255.255.255", "too often"), nil},
		{"-r code1.test", passed, complaint("code1.test", "127.255.255.1", "error code"), nil},
		{"-r codemixed.test", passed, complaint("codemixed.test", "127.255.255.254", "resolver"), nil},
		{"-r code252.test:text", passed, complaint("code252.test", "127.255.255.252", "mistyped"), nil},
		{"-r code254.test:text", passed, complaint("code254.test", "127.255.255.254", "resolver"), nil},
		{"-r code255.test:text", passed, complaint("code255.test", "127.255.255.255", "too often"), nil},
		{"-r codemixed.test:text", passed, complaint("codemixed.test", "127.255.255.254", "resolver"), nil},
		{"-a code254.test -r list.test", passed, complaint("code254.test", "127.255.255.254", "resolver"), nil},
		{"-c -r code254.test", "451 temporary RBL lookup error", complaint("code254.test", "127.255.255.254", "resolver"), nil},
		{"-c -r code254.test:text", "451 temporary RBL lookup error", complaint("code254.test", "127.255.255.254", "resolver"), nil},
		{"-c -a code254.test -r list.test", "451 listed 192.0.2.1", complaint("code254.test", "127.255.255.254", "resolver"),
			hits("list.test", "127.0.0.2", "451 listed 192.0.2.1")},
		{"-r code254.test -r list.test", "451 listed 192.0.2.1", complaint("code254.test", "127.255.255.254", "resolver"),
			hits("list.test", "127.0.0.2", "451 listed 192.0.2.1")},
		{"-s -r list.test -r code254.test", "553 listed 192.0.2.1", nil, hits("list.test", "127.0.0.2", "553 listed 192.0.2.1")},

		// Zones that answer everything.
		{"-r wildcard.test", passed, sick("wildcard.test"), nil},
		{"-r wildcard.test:text", passed, sick("wildcard.test"), nil},
		{"-c -r wildcard.test", passed, sick("wildcard.test"), nil},
		{"-r wildcard.test -r list.test", "553 listed 192.0.2.1", sick("wildcard.test"), hits("list.test", "127.0.0.2", "553 listed 192.0.2.1")},
		{"-r wildcardaddr.test", passed, nil, nil},
		{"-r wildcardaddr.test:%IP%", passed, sick("wildcardaddr.test"), nil},
		{"-r wildcardtext.test", passed, sick("wildcardtext.test"), nil},
		{"-r wildcardtext.test:text", passed, nil, nil},
		{"-r parked.test", passed, parked("parked.test"), nil},
		{"-r parked.test:text", passed, parked("parked.test"), nil},
		{"-r parkedaddr.test", passed, nil, nil},
		{"-r parkedaddr.test:text", passed, parked("parkedaddr.test"), nil},
		{"-r parked.test -r list.test", "553 listed 192.0.2.1", parked("parked.test"), hits("list.test", "127.0.0.2", "553 listed 192.0.2.1")},
		{"-r parkedlist.test:text", passed, sick("parkedlist.test"), nil},
		{"-a parkedaddr.test -r list.test", "553 listed 192.0.2.1", parked("parkedaddr.test"), hits("list.test", "127.0.0.2", "553 listed 192.0.2.1")},
		{"-a wildcard.test -r list.test", passed, nil, nil},

		// What a list says of the address that no list may list.
		{"-r testaddr.test", passed, sick("testaddr.test"), nil},
		{"-r testaddr.test=127.0.0.2:text", passed, sick("testaddr.test"), nil},
		{"-r testparked.test", passed, sick("testparked.test"), nil},
		{"-r testtext.test", "553 listed 192.0.2.1", nil, hits("testtext.test", "127.0.0.2", "553 listed 192.0.2.1")},
		{"-r testtext.test:text", "553 text", nil, hits("testtext.test", "127.0.0.2", "553 text")},
		{"-r testcode.test:text", "553 text", []words{{"testcode.test", "127.0.0.1", "too often", "counts"}}, hits("testcode.test", "127.0.0.2", "553 text")},
		{"-r testfailure.test:text", "553 text", []words{{"testfailure.test", "127.0.0.1", "failed", "counts"}}, hits("testfailure.test", "127.0.0.2", "553 text")},
		{"-T 2 -r testsilent.test", "553 listed 192.0.2.1", []words{{"testsilent.test", "127.0.0.1", "in time", "counts"}}, hits("testsilent.test", "127.0.0.2", "553 listed 192.0.2.1")},

		{"-T 2 -r silent.test -r wildcard.test -r list.test", "451 listed 192.0.2.1", append(noAnswer("silent.test"), sick("wildcard.test")...), hits("list.test", "127.0.0.2", "451 listed 192.0.2.1")},

		// Codes that were not asked for.
		{"-r list.test=127.0.0.2", "553 listed 192.0.2.1", nil, hits("list.test", "127.0.0.2", "553 listed 192.0.2.1")},
		{"-r list.test=127.0.0.[3..9]", passed, nil, nil},
		{"-r list.test=127.0.0.[3..9]:text", passed, nil, nil},
		{"-r codes.test=127.1.[0..9].[3;4]:text", "553 text", nil, hits("codes.test", "127.1.2.3", "553 text")},
		{"-r textonly.test=127.0.0.2", passed, nil, nil},
		{"-r list.test=127.0.0.256", passed, []words{{"list.test", "256"}}, nil},
		{"-c -r list.test=127.0.0", "451 temporary RBL lookup error", []words{{"list.test", "four octets"}}, nil},

		// Servers that fail.
		{"-r failure.test", passed, failure("failure.test"), nil},
		{"-r refused.test", passed, failure("refused.test"), nil},
		{"-r format.test", passed, failure("format.test"), nil},
		{"-r notimplemented.test", passed, failure("notimplemented.test"), nil},
		{"-r failurelisting.test", passed, failure("failurelisting.test"), nil},
		{"-r failure.test:text", passed, failure("failure.test"), nil},
		{"-c -r failure.test", "451 temporary RBL lookup error", failure("failure.test"), nil},
		{"-r failure.test -r list.test", "451 listed 192.0.2.1", failure("failure.test"), hits("list.test", "127.0.0.2", "451 listed 192.0.2.1")},
		{"-a failure.test -r list.test", passed, failure("failure.test"), nil},
		{"-r tcpclosed.test", passed, failure("tcpclosed.test"), nil},
		{"-r tcphalf.test", passed, failure("tcphalf.test"), nil},
		{"-r tcplength.test", passed, failure("tcplength.test"), nil},
		{"-r tcptruncated.test", passed, failure("tcptruncated.test"), nil},
		{"-r tcpid.test", passed, failure("tcpid.test"), nil},
		{"-r tcpquestion.test", passed, failure("tcpquestion.test"), nil},
		{"-r tcpfailure.test", passed, failure("tcpfailure.test"), nil},
		{"-r tcpempty.test", passed, failure("tcpempty.test"), nil},
		{"-r huge.test", passed, failure("huge.test"), nil},

		// Answers that cannot be read.
		{"-r half.test", passed, failure("half.test"), nil},
		{"-r half.test:text", passed, failure("half.test"), nil},
		{"-r halfheader.test", passed, failure("halfheader.test"), nil},
		{"-r count.test", passed, failure("count.test"), nil},
		{"-r rdlength.test", passed, failure("rdlength.test"), nil},
		{"-r garbagerest.test", passed, failure("garbagerest.test"), nil},
		{"-r badlabel.test", passed, failure("badlabel.test"), nil},
		{"-r stringlength.test", passed, failure("stringlength.test"), nil},
		{"-r pointer.test", passed, failure("pointer.test"), nil},
		{"-r pointerself.test", passed, failure("pointerself.test"), nil},
		{"-r half.test -r list.test", "451 listed 192.0.2.1", failure("half.test"), hits("list.test", "127.0.0.2", "451 listed 192.0.2.1")},

		// What is no answer to the question, or none at all.
		{"-T 2 -r silent.test", passed, noAnswer("silent.test"), nil},
		{"-T 2 -r id.test", passed, noAnswer("id.test"), nil},
		{"-T 2 -r question.test", passed, noAnswer("question.test"), nil},
		{"-T 2 -r noquestion.test", passed, noAnswer("noquestion.test"), nil},
		{"-T 2 -r port.test", passed, noAnswer("port.test"), nil},
		{"-T 2 -r addr.test", passed, noAnswer("addr.test"), nil},
		{"-T 2 -r garbage.test", passed, noAnswer("garbage.test"), nil},
		{"-T 2 -r short.test", passed, noAnswer("short.test"), nil},
		{"-T 2 -r oversize.test", passed, noAnswer("oversize.test"), nil},
		{"-T 2 -r empty.test", passed, noAnswer("empty.test"), nil},
		{"-T 2 -r query.test", passed, noAnswer("query.test"), nil},
		{"-T 2 -r echo.test", passed, noAnswer("echo.test"), nil},
		{"-T 2 -r tcpsilent.test", passed, noAnswer("tcpsilent.test"), nil},
		{"-T 1 -r slow2000.test", passed, noAnswer("slow2000.test"), nil},
		{"-T 2 -c -r silent.test", "451 temporary RBL lookup error", noAnswer("silent.test"), nil},
		{"-T 2 -r silent.test -r list.test", "451 listed 192.0.2.1", noAnswer("silent.test"), hits("list.test", "127.0.0.2", "451 listed 192.0.2.1")},
		{"-T 2 -r id.test -r list.test", "451 listed 192.0.2.1", noAnswer("id.test"), hits("list.test", "127.0.0.2", "451 listed 192.0.2.1")},
		{"-T 2 -a silent.test -r list.test", passed, noAnswer("silent.test"), nil},
		{"-T 2 -c -a silent.test -r list.test", "451 listed 192.0.2.1", noAnswer("silent.test"), hits("list.test", "127.0.0.2", "451 listed 192.0.2.1")},

		// A wrong answer, and then the right one.
		{"-r secondid.test", "553 listed 192.0.2.1", nil, hits("secondid.test", "127.0.0.2", "553 listed 192.0.2.1")},
		{"-r secondquestion.test", "553 listed 192.0.2.1", nil, hits("secondquestion.test", "127.0.0.2", "553 listed 192.0.2.1")},
		{"-r secondnone.test", "553 listed 192.0.2.1", nil, hits("secondnone.test", "127.0.0.2", "553 listed 192.0.2.1")},
		{"-r secondport.test", "553 listed 192.0.2.1", nil, hits("secondport.test", "127.0.0.2", "553 listed 192.0.2.1")},
		{"-r secondaddr.test", "553 listed 192.0.2.1", nil, hits("secondaddr.test", "127.0.0.2", "553 listed 192.0.2.1")},
		{"-r secondgarbage.test", "553 listed 192.0.2.1", nil, hits("secondgarbage.test", "127.0.0.2", "553 listed 192.0.2.1")},
		{"-r secondshort.test", "553 listed 192.0.2.1", nil, hits("secondshort.test", "127.0.0.2", "553 listed 192.0.2.1")},
		{"-r wrong.once.test", "553 listed 192.0.2.1", nil, hits("wrong.once.test", "127.0.0.2", "553 listed 192.0.2.1")},

		// Texts without an address, and the other way about.
		{"-r textonly.test", "553 listed 192.0.2.1", nil, hits("textonly.test", "", "553 listed 192.0.2.1")},
		{"-r textnoname.test", "553 listed 192.0.2.1", nil, hits("textnoname.test", "", "553 listed 192.0.2.1")},
		{"-r textfailure.test", passed, failure("textfailure.test"), nil},
		{"-r texttcpclosed.test", passed, failure("texttcpclosed.test"), nil},
		{"-T 2 -r textsilent.test", passed, noAnswer("textsilent.test"), nil},
		{"-r textparked.test", passed, parked("textparked.test"), nil},
		{"-r addressonly.test", passed, nil, nil},
		{"-r emptytext.test", passed, nil, nil},
		{"-r emptystrings.test", passed, nil, nil},
		{"-r nonamelisting.test", passed, nil, nil},
		{"-r noname.test -r nodata.test -r class.test -r type.test -r authority.test -r additional.test -r nordata.test", passed, nil, nil},
		{"-r noname.test:t -r nodata.test:t -r class.test:t -r type.test:t -r authority.test:t -r additional.test:t -r nordata.test:t -r addresslength.test:t", passed, nil, nil},

		// Answers that are right, but odd.
		{"-r alias12.test", "553 listed 192.0.2.1", nil, hits("alias12.test", "127.0.0.2", "553 listed 192.0.2.1")},
		{"-r aliasnoname.test -r aliasloop.test", passed, nil, nil},
		{"-r uppercase.test", "553 listed 192.0.2.1", nil, hits("uppercase.test", "127.0.0.2", "553 listed 192.0.2.1")},
		{"-r mixed.test", "553 listed 192.0.2.1", nil, hits("mixed.test", "127.0.0.2", "553 listed 192.0.2.1")},
		{"-r records.test", "553 first 192.0.2.1 secondthird", nil, hits("records.test", "127.0.0.2", "553 first 192.0.2.1 secondthird")},
		{"-r strings.test", "553 one, two, three", nil, hits("strings.test", "127.0.0.2", "553 one, two, three")},
		{"-r big.test", "553 " + strings.Repeat("big text ", 300)[:200], nil, hits("big.test", "127.0.0.2", "553 "+strings.Repeat("big text ", 300)[:200])},
		{"-r partial.test", "553 listed 192.0.2.1", nil, hits("partial.test", "127.0.0.2", "553 listed 192.0.2.1")},
		{"-r control.test", "553 a??250 ok??b?c?[2Jd??rblsmtpd: forged?", nil, hits("control.test", "127.0.0.2", "553 a??250 ok??b?c?[2Jd??rblsmtpd: forged?")},
		{"-r utf8.test", "553 gesperrt f??r %s%d%n ???", nil, hits("utf8.test", "127.0.0.2", "553 gesperrt f??r %s%d%n ???")},
	}
	l := theLab(t)
	t.Parallel()
	// Many of them wait, so more run at once than there are processors; but not all,
	// lest the time is over before a processor is found.
	var running sync.WaitGroup
	defer running.Wait()
	places := make(chan struct{}, 16)
	for _, test := range tests {
		running.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			t.Run(test.options, func(t *testing.T) {
				box := newMailbox(t)
				args := append([]string{"-v", "-b"}, strings.Split(test.options, " ")...)
				c := &testCase{
					name:   "rblsmtpd",
					prog:   append(args, "/bin/true"),
					env:    []string{"TCPREMOTEIP=" + ip, "TCPREMOTEHOST=host.test", "DNSCACHEIP=127.0.0.1", "RBLNFT_SOCKET=" + box.path},
					client: client{"socket", []event{{do: "send", data: "helo x\r\nrcpt to:<a@b.test>\r\nquit\r\n"}, {do: "shut"}}},
				}
				r, err := l.run(program{path: l.filter}, c)
				if err != nil {
					t.Fatal(err)
				}

				want := ""
				log := test.log
				if test.client != passed {
					want = "220 rblsmtpd.local\r\n250 rblsmtpd.local\r\n" + test.client + "\r\n221 rblsmtpd.local\r\n"
					log = append(log[:len(log):len(log)], words{"rblsmtpd: 192.0.2.1 pid PID: " + test.client}, words{"rblsmtpd: blocked 192.0.2.1 host.test -"})
				}
				if r.client != want || r.exit != "exit 0" {
					t.Errorf("the client got %q, %s, want %q", r.client, r.exit, want)
				}
				lines := strings.SplitAfter(strings.TrimSuffix(r.stderr, "\n"), "\n")
				if r.stderr == "" {
					lines = nil
				}
				if len(lines) != len(log) {
					t.Errorf("log %q, want %d lines %q", lines, len(log), log)
				} else {
					for i, line := range lines {
						for _, word := range log[i] {
							if !strings.Contains(line, word) {
								t.Errorf("log line %q does not contain %q", line, word)
							}
						}
					}
				}
				got := box.read(t)
				switch {
				case test.hit == nil && len(got) > 0:
					t.Errorf("reported: %+v, want nothing", got)
				case test.hit != nil && (len(got) != 1 || got[0] != *test.hit):
					t.Errorf("reported: %+v, want %+v", got, *test.hit)
				}
			})
		})
	}
}

// mailbox is the daemon's socket.
type mailbox struct {
	path string
	conn *net.UnixConn
	mu   sync.Mutex
	got  []string
	done chan struct{}
}

func newMailbox(t *testing.T) *mailbox {
	b := &mailbox{path: filepath.Join(t.TempDir(), "s"), done: make(chan struct{})}
	var err error
	if b.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: b.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.conn.Close() })
	go b.receive()
	return b
}

// receive takes what comes, and closes the descriptors that come with it.
func (b *mailbox) receive() {
	defer close(b.done)
	data, control := make([]byte, 4096), make([]byte, 1024)
	for {
		n, m, _, _, err := b.conn.ReadMsgUnix(data, control)
		if err != nil || n == 0 {
			return
		}
		if messages, err := unix.ParseSocketControlMessage(control[:m]); err == nil {
			for _, message := range messages {
				fds, _ := unix.ParseUnixRights(&message)
				for _, fd := range fds {
					syscall.Close(fd)
				}
			}
		}
		b.mu.Lock()
		b.got = append(b.got, string(data[:n]))
		b.mu.Unlock()
	}
}

// read returns all hits that have been sent up to now.
func (b *mailbox) read(t *testing.T) []hit.Hit {
	t.Helper()
	// An empty datagram comes after all that has been sent.
	end, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: b.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	if _, err := end.Write(nil); err != nil {
		t.Fatal(err)
	}
	<-b.done
	var hits []hit.Hit
	for _, line := range b.got {
		h, err := hit.Parse([]byte(line))
		if err != nil {
			t.Errorf("reported: %q: %v", line, err)
		}
		hits = append(hits, h)
	}
	return hits
}
