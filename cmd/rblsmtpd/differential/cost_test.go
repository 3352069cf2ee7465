package differential

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cost is a case whose cost counts: nearly every connection is one of them.
type cost struct {
	name     string
	c        *testCase
	want     string // what the client gets
	accepted bool
}

// costs are a client that is not listed and one that is, with a list that answers
// after some milliseconds, by its text or with a message that is given. A server
// that answers at once hides what waiting costs.
func costs() (all []cost) {
	for _, ms := range []string{"0", "5", "50"} {
		no, yes := "slownot"+ms+".test", "slow"+ms+".test"
		if ms == "0" {
			no, yes = "noname.test", "slow0.test"
		}
		accepted := one("", listedClient, "-b", "-r", no, "/bin/true")
		accepted.client.script = []event{{do: "wait"}} // a client that is silent, and there
		const said = "ehlo x\r\nmail from:<a@b.test>\r\nrcpt to:<c@d.test>\r\nquit\r\n"
		const want = "220 rblsmtpd.local\r\n250 rblsmtpd.local\r\n250 rblsmtpd.local\r\n553 slow\r\n221 rblsmtpd.local\r\n"
		all = append(all,
			cost{"accepted-" + ms + "ms", accepted, "", true},
			cost{"blocked-" + ms + "ms", one(said, listedClient, "-b", "-r", yes+":slow", "/bin/true"), want, false},
			cost{"blocked-by-text-" + ms + "ms", one(said, listedClient, "-b", "-r", yes, "/bin/true"), want, false},
		)
	}
	return all
}

// BenchmarkConnection measures the processor time of one connection with one
// list, of the filter and of rblsmtpd by turns, so that whatever else the
// machine does meets both. rblsmtpd knows no message on the command line, and asks
// for the text instead, once in any case. An accepted connection ends with the next
// program, /bin/true; its own time is measured too, and counted in ratio-with-next
// alone.
//
//	go test ./cmd/rblsmtpd/differential -run '^$' -bench Connection -benchtime 1000x
func BenchmarkConnection(b *testing.B) {
	l := theLab(b)
	// A file that has just been linked lies in the page cache otherwise than one
	// that was installed.
	filter := filepath.Join(b.TempDir(), "rblsmtpd")
	if out, err := exec.Command("cp", l.filter, filter).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	for _, cost := range costs() {
		theirCase := cost.c.clone()
		theirCase.prog = slices.Clone(theirCase.prog)
		for i, arg := range theirCase.prog {
			theirCase.prog[i], _, _ = strings.Cut(arg, ":")
		}
		b.Run(cost.name, func(b *testing.B) {
			var ours, theirs, next time.Duration
			for b.Loop() {
				for _, p := range []struct {
					program
					c   *testCase
					cpu *time.Duration
				}{{program{path: filter}, cost.c, &ours}, {referenceProgram, theirCase, &theirs}, {program{path: "/bin/true"}, cost.c, &next}} {
					r, err := l.run(p.program, p.c)
					if err != nil {
						b.Fatal(err)
					}
					if p.path != "/bin/true" && (r.client != cost.want || r.exit != "exit 0") {
						b.Fatalf("%s: %s, the client got %q, log %q", p.path, r.exit, r.client, r.stderr)
					}
					*p.cpu += r.cpu
				}
			}
			whole := ours.Seconds() / theirs.Seconds()
			if !cost.accepted {
				next = 0
			}
			ms := func(d time.Duration) float64 { return d.Seconds() * 1000 / float64(b.N) }
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ms(ours-next), "filter-ms")
			b.ReportMetric(ms(theirs-next), "rblsmtpd-ms")
			b.ReportMetric(ms(ours-next)/ms(theirs-next), "ratio")
			if next > 0 {
				b.ReportMetric(whole, "ratio-with-next")
			}
		})
	}
}

var peak = regexp.MustCompile(`(?m)^VmHWM:\s*(\d+) kB$`)

// BenchmarkMemory measures the most memory that a process has had resident when
// it greets a client that is listed, and the smallest softlimit(8) -m under
// which each case still ends as it should.
//
//	go test ./cmd/rblsmtpd/differential -run '^$' -bench Memory -benchtime 1x
func BenchmarkMemory(b *testing.B) {
	l := theLab(b)
	for b.Loop() {
		for _, p := range []struct {
			program
			name string
		}{{program{path: l.filter}, "filter"}, {referenceProgram, "rblsmtpd"}} {
			resident := 0
			c := one("", listedClient, "-b", "-r", "list.test", "/bin/true")
			c.client.script = []event{{do: "await", lines: 1}, {do: "call"}, {do: "send", data: "rcpt\r\n"}, {do: "await", lines: 2}, {do: "call"}, {do: "shut"}}
			c.during = func(pid int) {
				status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
				if err != nil {
					b.Error(err)
				} else if m := peak.FindSubmatch(status); m == nil {
					b.Errorf("no VmHWM in %q", status)
				} else {
					resident, _ = strconv.Atoi(string(m[1]))
				}
			}
			if _, err := l.run(p.program, c); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(resident)/1000, p.name+"-peak-MB")
			for _, cost := range costs()[:3:3] {
				if p.name == "rblsmtpd" && strings.HasPrefix(cost.name, "blocked-0") {
					continue // it knows no such option
				}
				b.ReportMetric(float64(l.smallestLimit(b, p.program, cost.c, cost.want))/1e6, p.name+"-"+cost.name+"-limit-MB")
			}
		}
		b.ReportMetric(0, "ns/op")
	}
}

// smallestLimit returns the smallest limit in bytes under which a program does
// what is wanted.
func (l *lab) smallestLimit(b *testing.B, p program, c *testCase, want string) int {
	c = c.clone()
	works := func(limit int) bool {
		c.launch = []string{"/usr/bin/softlimit", "-m", strconv.Itoa(limit)}
		r, err := l.run(p, c)
		if err != nil {
			b.Fatal(err)
		}
		return r.exit == "exit 0" && r.client == want
	}
	low, high := 0, 64<<20
	if !works(high) {
		b.Fatalf("%s does not work under softlimit -m %d", p.path, high)
	}
	const page = 4096
	for high-low > page {
		if middle := (low + high) / 2; works(middle) {
			high = middle
		} else {
			low = middle
		}
	}
	return high
}
