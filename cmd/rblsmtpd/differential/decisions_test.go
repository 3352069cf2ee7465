package differential

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// one makes a case of a command line; the client says what is given and listens.
func one(said string, env []string, args ...string) *testCase {
	return &testCase{
		name:   "rblsmtpd",
		prog:   args,
		env:    append(env, "DNSCACHEIP=127.0.0.1", "RBLNFT_SOCKET="),
		client: client{transport: "socket", script: []event{{do: "send", data: said}, {do: "shut"}}},
	}
}

var listedClient = []string{"TCPREMOTEIP=192.0.2.1"}

// The filter asks four lists at once, rblsmtpd one after the other. The ratio
// is compared, within one run, so that a busy machine does not matter.
func TestDecidesAsFastAsTheSlowestList(t *testing.T) {
	l := theLab(t)
	for _, test := range []struct {
		name  string
		zones []string
		most  float64 // of the time of rblsmtpd
	}{
		// One question for each list.
		{"not listed", []string{"a.slownot50.test", "b.slownot50.test", "c.slownot50.test", "d.slownot50.test"}, 0.6},
		// The list that lists is asked for the A record then, 50 ms more.
		{"listed by the last", []string{"a.slownot50.test", "b.slownot50.test", "c.slownot50.test", "d.slow50.test"}, 0.8},
	} {
		t.Run(test.name, func(t *testing.T) {
			var args []string
			for _, zone := range test.zones {
				args = append(args, "-r", zone)
			}
			c := one("quit\r\n", listedClient, append(args, "/bin/true")...)
			ours, theirs := time.Hour, time.Hour
			for range 5 {
				for _, p := range []struct {
					path string
					best *time.Duration
				}{{l.filter, &ours}, {reference, &theirs}} {
					r, err := l.run(program{path: p.path}, c)
					if err != nil {
						t.Fatal(err)
					}
					if r.exit != "exit 0" {
						t.Fatalf("%s: %s, log %q", p.path, r.exit, r.stderr)
					}
					*p.best = min(*p.best, r.took)
				}
			}
			ratio := ours.Seconds() / theirs.Seconds()
			t.Logf("the filter %v, rblsmtpd %v, ratio %.2f", ours.Round(100*time.Microsecond), theirs.Round(100*time.Microsecond), ratio)
			if ratio > test.most {
				t.Errorf("the filter takes %.2f of the time of rblsmtpd, at most %.2f are expected", ratio, test.most)
			}
		})
	}
}

// A list that does not answer costs the time until the deadline, and the right
// to bounce.
func TestDeadListBeforeAListing(t *testing.T) {
	l := theLab(t)
	for _, order := range [][]string{
		{"-b", "-r", "silent.test", "-r", "list.test"},
		{"-b", "-r", "silent.test", "-r", "list.test:listed 192.0.2.1"},
		{"-s", "-b", "-r", "silent.test", "-r", "list.test"},
	} {
		t.Run(strings.Join(order, " "), func(t *testing.T) {
			t.Parallel()
			args := append([]string{"-T", "2"}, order...)
			r, err := l.run(program{path: l.filter}, one("rcpt\r\nquit\r\n", listedClient, append(args, "/bin/true")...))
			if err != nil {
				t.Fatal(err)
			}
			if slices.Contains(order, "-s") {
				// One after the other, the second has no time left.
				if r.client != "" || r.exit != "exit 0" {
					t.Errorf("the client got %q, log %q, %s", r.client, r.stderr, r.exit)
				}
			} else if want := "220 rblsmtpd.local\r\n451 listed 192.0.2.1\r\n221 rblsmtpd.local\r\n"; r.client != want {
				t.Errorf("the client got %q, want %q, log %q", r.client, want, r.stderr)
			}
			if r.took < 1900*time.Millisecond || r.took > 8*time.Second {
				t.Errorf("decided after %v, the deadline is 2s", r.took)
			}
		})
	}
}

// Where no server can be reached the client gets through, no later than with
// rblsmtpd; where one can, it decides.
func TestUnreachableServers(t *testing.T) {
	l := theLab(t)
	for _, test := range []struct{ servers, instead, client string }{
		{farServer, farServer, ""},
		{barredServer, barredServer, ""},
		{farServer + "." + barredServer + "." + farServer, farServer + "." + barredServer + "." + farServer, ""},
		{"2001:db8:ffff::53", farServer, ""}, // rblsmtpd knows no IPv6
		{"fe80::53%none", farServer, ""},
		{farServer + ".127.0.0.1", farServer + ".127.0.0.1", "553 listed 192.0.2.1\r\n"},
		{barredServer + ".127.0.0.1", barredServer + ".127.0.0.1", "553 listed 192.0.2.1\r\n"},
		{"2001:db8:ffff::53 127.0.0.1", farServer + ".127.0.0.1", "553 listed 192.0.2.1\r\n"},
	} {
		t.Run(test.servers, func(t *testing.T) {
			c := one("", []string{"TCPREMOTEIP=192.0.2.1", "DNSCACHEIP=" + test.instead}, "-b", "-t", "0", "-r", "list.test", "/bin/true")
			theirs, err := l.run(referenceProgram, c)
			if err != nil {
				t.Fatal(err)
			}
			c.setenv("DNSCACHEIP", test.servers)
			c.client.script = []event{{do: "wait"}}
			ours, err := l.run(program{path: l.filter}, c)
			if err != nil {
				t.Fatal(err)
			}
			for name, r := range map[string]*result{"rblsmtpd": theirs, "the filter": ours} {
				if r.client != test.client || r.exit != "exit 0" {
					t.Errorf("%s: the client got %q, %s, log %q", name, r.client, r.exit, r.stderr)
				}
			}
			t.Logf("the filter %v, rblsmtpd %v", ours.took, theirs.took)
			if ours.took > theirs.took+100*time.Millisecond {
				t.Errorf("the filter took %v, rblsmtpd %v", ours.took, theirs.took)
			}
		})
	}
}

// Under the limit of a usual run script, with ten lists at once.
func TestTenListsUnderSoftlimit(t *testing.T) {
	l := theLab(t)
	args := []string{"-b"}
	for _, zone := range []string{"a.noname.test", "b.noname.test", "a.nodata.test", "b.nodata.test", "alias4.test", "big.test", "tcp.test", "long.test", "records.test"} {
		args = append(args, "-r", zone+"=127.0.0.77") // a code that none has
	}
	args = append(args, "-r", "list.test", "/bin/true")
	c := one("rcpt\r\nquit\r\n", listedClient, args...)
	c.launch = []string{"/usr/bin/softlimit", "-m", "9000000"}
	r, err := l.run(program{path: l.filter}, c)
	if err != nil {
		t.Fatal(err)
	}
	if want := "220 rblsmtpd.local\r\n553 listed 192.0.2.1\r\n221 rblsmtpd.local\r\n"; r.client != want {
		t.Errorf("the client got %q, want %q, log %q", r.client, want, r.stderr)
	}
}

// A client that leaves while its lists are asked takes the filter with it.
func TestEndsWithItsClient(t *testing.T) {
	l := theLab(t)
	for _, transport := range []string{"socket", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			c := one("", listedClient, "-r", "silent.test", "/bin/true")
			c.client = client{transport, []event{{do: "pause"}, {do: "close"}}}
			r, err := l.run(program{path: l.filter}, c)
			if err != nil {
				t.Fatal(err)
			}
			if r.exit != "exit 0" || r.stderr != "" {
				t.Errorf("%s, log %q", r.exit, r.stderr)
			}
			if r.took > 5*time.Second {
				t.Errorf("ended %v after it was started, its client left at once", r.took)
			}
		})
	}
}

// With nobody to ask there is nothing to say of the servers.
func TestGreetDelayAsksNobody(t *testing.T) {
	l := theLab(t)
	c := one("", listedClient, "-w", "0", "/bin/true")
	c.setenv("DNSCACHEIP", "x")
	r, err := l.run(program{path: l.filter}, c)
	if err != nil {
		t.Fatal(err)
	}
	if r.exit != "exit 0" || r.stderr != "" {
		t.Errorf("%s, log %q", r.exit, r.stderr)
	}
}
