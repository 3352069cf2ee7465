package differential

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// costs are the cases whose cost counts: nearly every connection is one of
// them.
func costs() []struct {
	name string
	c    *testCase
	want string // what the client gets
} {
	accepted := one("", listedClient, "-b", "-r", "noname.test", "/bin/true")
	accepted.client.script = []event{{do: "wait"}} // a client that is silent, and there
	blocked := one("ehlo x\r\nmail from:<a@b.test>\r\nrcpt to:<c@d.test>\r\nquit\r\n", listedClient, "-b", "-r", "list.test", "/bin/true")
	return []struct {
		name string
		c    *testCase
		want string
	}{
		{"accepted", accepted, ""},
		{"blocked", blocked, "220 rblsmtpd.local\r\n250 rblsmtpd.local\r\n250 rblsmtpd.local\r\n553 listed 192.0.2.1\r\n221 rblsmtpd.local\r\n"},
	}
}

// BenchmarkConnection measures the processor time of one connection with one
// list, of the filter and of rblsmtpd by turns, so that whatever else the
// machine does meets both. An accepted connection ends with the next program,
// /bin/true; its own time is measured too, and counted in ratio-with-next alone.
//
//	go test ./cmd/rblsmtpd/differential -run '^$' -bench Connection -benchtime 1000x
func BenchmarkConnection(b *testing.B) {
	l := theLab(b)
	for _, cost := range costs() {
		b.Run(cost.name, func(b *testing.B) {
			var ours, theirs, next time.Duration
			for b.Loop() {
				for _, p := range []struct {
					program
					cpu *time.Duration
				}{{program{path: l.filter}, &ours}, {referenceProgram, &theirs}, {program{path: "/bin/true"}, &next}} {
					r, err := l.run(p.program, cost.c)
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
			if cost.name != "accepted" {
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
			for _, cost := range costs() {
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
