package differential

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	seedFlag  = flag.Uint64("seed", 1, "of the generated cases")
	casesFlag = flag.Int("cases", 5000, "how many cases to generate")
	caseFlag  = flag.Int("case", -1, "only this case, and all about it")
)

// How many cases run at once: those that take the time of the processor, and
// those that wait.
const (
	busyAtOnce    = 4
	waitingAtOnce = 100
)

var referenceProgram = program{path: reference}

// waits reports whether a case takes its time.
func (c *testCase) waits() bool {
	for _, o := range c.sources() {
		zone, _, _ := strings.Cut(o.value, ":")
		if isIn(slowZones, zone) || isIn(verySlowZones, zone) || o.letter == 'a' && zone == "textfailure.test" {
			return true
		}
	}
	if ip, ok := c.getenv("DNSCACHEIP"); ok && strings.Contains(ip, failingServer) {
		return true
	}
	return c.client.script[len(c.client.script)-1].do == "wait"
}

// each calls f with every case, many at a time.
func each(seed uint64, n int, f func(*testCase)) {
	var busy, waiting []*testCase
	for i := range n {
		if c := generate(seed, i); c.waits() {
			waiting = append(waiting, c)
		} else {
			busy = append(busy, c)
		}
	}
	var workers sync.WaitGroup
	for _, pool := range []struct {
		cases  []*testCase
		atOnce int
	}{{waiting, waitingAtOnce}, {busy, busyAtOnce}} {
		var next atomic.Int64
		for range pool.atOnce {
			workers.Go(func() {
				for {
					i := int(next.Add(1)) - 1
					if i >= len(pool.cases) {
						return
					}
					f(pool.cases[i])
				}
			})
		}
	}
	workers.Wait()
}

// compare runs a case with the reference and with the filter, and returns how
// they differ beyond what is meant.
func (l *lab) compare(c *testCase, meant []difference) (lines []string, used []*difference, err error) {
	instead := c.clone()
	for i := range meant {
		if d := &meant[i]; d.applies(c) {
			used = append(used, d)
			if d.instead != nil {
				d.instead(instead)
			}
		}
	}
	var want, got *result
	var first error
	var reference, filter sync.WaitGroup
	reference.Go(func() { want, first = l.run(referenceProgram, instead) })
	if !c.waits() || len(c.closed) > 0 {
		reference.Wait()
	}
	filter.Go(func() { got, err = l.run(program{path: l.filter}, c) })
	filter.Wait()
	reference.Wait()
	if err := errors.Join(first, err); err != nil {
		return nil, nil, err
	}
	var notes []note
	for _, d := range used {
		if d.expect != nil {
			notes = append(notes, d.expect(c, want)...)
		}
	}
	var missing []string
	if !slices.Contains(c.closed, 2) {
		missing = takeNotes(c, got, notes)
	}
	lines = append(missing, differ(want, got)...)
	if len(lines) > 0 || *caseFlag >= 0 {
		for _, d := range used {
			lines = append(lines, "meant: "+d.name)
		}
	}
	return lines, used, nil
}

// takeNotes takes the lines that are meant to be in the filter's log out of
// it, each of them once, and returns those that are not there.
func takeNotes(c *testCase, got *result, notes []note) (missing []string) {
	ip, _ := c.ip()
	prefix := "rblsmtpd: " + printable(ip) + " pid PID: "
	var kept strings.Builder
	found := make([]bool, len(notes))
lines:
	for line := range strings.SplitAfterSeq(got.stderr, "\n") {
		if text, ok := strings.CutPrefix(line, prefix); ok && strings.HasSuffix(text, "\n") {
			for _, optional := range []bool{false, true} {
				for i, n := range notes {
					if n.optional == optional && !found[i] && n.in(text) {
						found[i] = true
						continue lines
					}
				}
			}
		}
		kept.WriteString(line)
	}
	got.stderr = kept.String()
	for i, n := range notes {
		if !found[i] && !n.optional {
			missing = append(missing, fmt.Sprintf("log: no line with %q", n.contains))
		}
	}
	return missing
}

func (n note) in(line string) bool {
	for _, text := range n.contains {
		if !strings.Contains(line, text) {
			return false
		}
	}
	return true
}

// differ returns how two results differ, a line for each thing.
func differ(want, got *result) []string {
	var lines []string
	add := func(what, want, got string) {
		if want != got {
			lines = append(lines, fmt.Sprintf("%s:\n\trblsmtpd %s\n\tfilter   %s", what, shorten(want, got), shorten(got, want)))
		}
	}
	add("client", want.client, got.client)
	add("log", want.stderr, got.stderr)
	add("end", want.exit, got.exit)
	add("next program", fmt.Sprint(want.ran), fmt.Sprint(got.ran))
	if want.ran != got.ran {
		return lines
	}
	a, b := strings.Split(want.state, "\n"), strings.Split(got.state, "\n")
	for i := range max(len(a), len(b)) {
		var x, y string
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		add("next program's state", x, y)
	}
	return lines
}

// shorten quotes a text, if it is long only around where it differs from
// another.
func shorten(s, other string) string {
	const most = 600
	if len(s) <= most {
		return fmt.Sprintf("%q", s)
	}
	at := 0
	for at < len(s) && at < len(other) && s[at] == other[at] {
		at++
	}
	from, to := max(0, at-most/2), min(len(s), at+most/2)
	return fmt.Sprintf("%d bytes, from %d on %q", len(s), from, s[from:to])
}

func TestReferenceIsLikeItself(t *testing.T) {
	l := theLab(t)
	var failed atomic.Int64
	began := time.Now()
	n := *casesFlag / 10
	each(*seedFlag+1000, n, func(c *testCase) {
		if c.waits() || failed.Load() > 10 {
			return
		}
		a, err := l.run(referenceProgram, c)
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.run(referenceProgram, c)
		if err != nil {
			t.Fatal(err)
		}
		if a.took > 5*time.Second {
			t.Logf("%v: %v", a.took, c)
		}
		if lines := differ(a, b); len(lines) > 0 {
			failed.Add(1)
			t.Errorf("%v\n%s", c, strings.Join(lines, "\n"))
		}
	})
	t.Logf("%d cases in %v", n, time.Since(began).Round(time.Millisecond))
}

// TestFilterIsLikeReference is what this package is for.
func TestFilterIsLikeReference(t *testing.T) {
	l := theLab(t)
	t.Parallel()
	if *caseFlag >= 0 {
		c := generate(*seedFlag, *caseFlag)
		lines, _, err := l.compare(c, differences)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%v\n%s", c, strings.Join(lines, "\n"))
	}
	var mu sync.Mutex
	var failed, ran int
	count := map[string]int{}
	began := time.Now()
	each(*seedFlag, *casesFlag, func(c *testCase) {
		mu.Lock()
		enough := failed >= 20
		mu.Unlock()
		if enough || *caseFlag >= 0 {
			return
		}
		lines, used, err := l.compare(c, differences)
		mu.Lock()
		defer mu.Unlock()
		ran++
		for _, d := range used {
			count[d.name]++
		}
		switch {
		case err != nil:
			failed++
			t.Errorf("%v\n%v", c, err)
		case len(lines) > 0:
			failed++
			t.Errorf("%v\n%s", c, strings.Join(lines, "\n"))
		}
	})
	t.Logf("%d of %d cases in %v", ran, *casesFlag, time.Since(began).Round(time.Millisecond))
	for _, d := range differences {
		t.Logf("%6d cases: %s", count[d.name], d.name)
	}
}
