package differential

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestMutantsAreNoticed runs programs that are nearly the reference: the same
// with a byte changed, or started so that a single thing is not as it should
// be. If the comparison did not notice one, it would not notice such a fault of
// the filter either.
func TestMutantsAreNoticed(t *testing.T) {
	l := theLab(t)
	t.Parallel()
	original, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	mutants := map[string]program{
		"a limit":                {reference, []string{"/usr/bin/softlimit", "-o", "77"}},
		"a limit on memory":      {reference, []string{"/usr/bin/softlimit", "-a", "500000000"}},
		"a hard limit":           {reference, []string{"/usr/bin/prlimit", "--core=0:0"}},
		"an environment":         {reference, []string{"/usr/bin/env", "MUTANT=yes"}},
		"an environment less":    {reference, []string{"/usr/bin/env", "-u", "TCPLOCALIP"}},
		"an ignored signal":      {reference, []string{"/usr/bin/env", "--ignore-signal=USR2"}},
		"a blocked signal":       {reference, []string{"/usr/bin/env", "--block-signal=RTMIN"}},
		"a descriptor":           {reference, []string{"/usr/bin/perl", "-e", `$^F = 99; open F, "/dev/null"; exec {$ARGV[0]} @ARGV`}},
		"a flag of descriptor 0": {reference, []string{"/usr/bin/perl", "-e", `use Fcntl; fcntl(STDIN, F_SETFL, O_NONBLOCK | O_RDWR); exec {$ARGV[0]} @ARGV`}},
		"a closed descriptor":    {reference, []string{"/usr/bin/perl", "-e", `close STDIN; exec {$ARGV[0]} @ARGV`}},
		"a file mode mask":       {reference, []string{"/usr/bin/perl", "-e", `umask 0123; exec {$ARGV[0]} @ARGV`}},
		"a working directory":    {reference, []string{"/usr/bin/perl", "-e", `chdir "/"; exec {$ARGV[0]} @ARGV`}},
		"an argument":            {reference, []string{"/usr/bin/perl", "-e", `exec {$ARGV[0]} @ARGV, "mutant"`}},
		"an exit code":           {reference, []string{"/usr/bin/perl", "-e", `$r = system {$ARGV[0]} @ARGV; exit(($r >> 8) ^ 1)`}},
	}
	for _, change := range [][2]string{
		{"220 rblsmtpd.local", "220 rblsmtpe.local"},
		{"250 rblsmtpd.local", "251 rblsmtpd.local"},
		{"221 rblsmtpd.local\r\n", "221 rblsmtpd.local\n\n"},
		{"451 \x00", "450 \x00"},
		{"553 \x00", "552 \x00"},
		{"rblsmtpd: \x00", "rblsmtpd; \x00"},
		{" pid \x00", " pit \x00"},
		{"temporary RBL lookup error", "temporary RBL lookup errer"},
		{"TCPREMOTEIP\x00", "TCPREMOTEHO\x00"},
		{"DNSCACHEIP\x00", "DNSCACHEIQ\x00"},
		{"unable to run ", "unable to rum "},
		{"file does not exist\x00", "file does not exit.\x00"},
		{"bBcCt:r:a:", "bBcCt:r:A:"},
		{"illegal option", "illegal Option"},
		{"option requires an argument", "option requires an Argument"},
		{"\x00quit\x00", "\x00quot\x00"},
		{"\x00noop\x00", "\x00noon\x00"},
		{"\x00RBLSMTPD\x00", "\x00RBLSMTPE\x00"},
	} {
		if !bytes.Contains(original, []byte(change[0])) {
			t.Errorf("%s does not contain %q", reference, change[0])
			continue
		}
		path := filepath.Join(t.TempDir(), "rblsmtpd")
		if err := os.WriteFile(path, bytes.ReplaceAll(original, []byte(change[0]), []byte(change[1])), 0o755); err != nil {
			t.Fatal(err)
		}
		mutants[change[1]] = program{path: path}
	}
	for name, mutant := range mutants {
		var noticed atomic.Int64
		each(*seedFlag+2000, 3000, func(c *testCase) {
			if noticed.Load() > 0 || c.waits() || len(c.launch) > 0 {
				return
			}
			a, err := l.run(referenceProgram, c)
			if err != nil {
				t.Error(err)
				return
			}
			b, err := l.run(mutant, c)
			if err != nil {
				t.Error(err)
				return
			}
			if len(differ(a, b)) > 0 {
				noticed.Store(int64(c.number) + 1)
			}
		})
		if noticed.Load() == 0 {
			t.Errorf("%q is not noticed", name)
		}
	}
}

// TestEveryDifferenceIsNeeded finds cases for every entry of the table that
// differ without it: an entry for something that has been mended would hide
// what breaks there next.
func TestEveryDifferenceIsNeeded(t *testing.T) {
	l := theLab(t)
	t.Parallel()
	const enough, most = 24, 60_000
	slow := map[string]bool{"deadline": true, "query for an answer": true} // there is no other way
	cases := make([][]*testCase, len(differences))
	missing := len(differences)
	for number := 0; missing > 0 && number < most; number++ {
		c := generate(*seedFlag+3000, number)
		for i, d := range differences {
			if len(cases[i]) < enough && d.applies(c) && (!c.waits() || slow[d.name]) {
				if cases[i] = append(cases[i], c); len(cases[i]) == enough {
					missing--
				}
			}
		}
	}
	var workers sync.WaitGroup
	limit := make(chan struct{}, busyAtOnce)
	for i, d := range differences {
		without := slices.Delete(slices.Clone(differences), i, i+1)
		var differs atomic.Bool
		check := func(c *testCase) {
			if lines, _, err := l.compare(c, without); err != nil {
				t.Error(err)
			} else if len(lines) > 0 {
				differs.Store(true)
			}
		}
		workers.Go(func() {
			var waiting sync.WaitGroup
			for _, c := range cases[i] {
				if c.waits() {
					waiting.Go(func() { check(c) })
					continue
				}
				limit <- struct{}{}
				if !differs.Load() {
					check(c)
				}
				<-limit
			}
			waiting.Wait()
			if !differs.Load() {
				t.Errorf("%d cases are the same without the entry %q", len(cases[i]), d.name)
			}
		})
	}
	workers.Wait()
}

// TestTableReads keeps the table fit for being read.
func TestTableReads(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range differences {
		if seen[d.name] || d.name == "" {
			t.Errorf("the name %q is there twice, or empty", d.name)
		}
		seen[d.name] = true
		if d.reason == "" || strings.HasSuffix(d.reason, ".") {
			t.Errorf("%s: reason %q", d.name, d.reason)
		}
	}
}
