package debian

import (
	"fmt"
	"os"
	"strings"
)

// A Facility is what not every machine has, and some tests need.
type Facility string

// What may be lacking.
const (
	Namespaces     Facility = "namespaces"      // in which a root can be entered, and nftables changed
	UserNamespaces Facility = "user namespaces" // for everybody
	ControlGroups  Facility = "control groups"  // for a container's systemd
	Kernel         Facility = "kernel"          // of Debian, for this processor
)

// lacksEnv tells tests what the machine lacks, a line for each, with the reason.
const lacksEnv = "RBLNFT_LACKS"

// Lacking is what a machine lacks, with the reasons.
type Lacking map[Facility]string

// Env tells the tests.
func (l Lacking) Env() string {
	var lines []string
	for facility, reason := range l {
		lines = append(lines, string(facility)+": "+reason)
	}
	return lacksEnv + "=" + strings.Join(lines, "\n")
}

// Needs skips a test that cannot be tried for lack of something. Nobody but
// "setup check" says so; a test that is run without it fails for what it lacks.
func Needs(t interface {
	Helper()
	Skip(...any)
}, facilities ...Facility) {
	t.Helper()
	for line := range strings.Lines(os.Getenv(lacksEnv)) {
		for _, f := range facilities {
			if reason, lacks := strings.CutPrefix(strings.TrimSpace(line), string(f)+": "); lacks {
				t.Skip(f.skip(reason))
			}
		}
	}
}

func (f Facility) skip(reason string) string {
	return fmt.Sprintf("not tried without %s: %s", f, reason)
}

// Reason says why something cannot be tried, or nothing.
func (l Lacking) Reason(f Facility) string {
	if reason, lacks := l[f]; lacks {
		return f.skip(reason)
	}
	return ""
}

// Excuse returns why a test was skipped whose output is given, if it is one of
// the reasons that were said before.
func (l Lacking) Excuse(output string) (reason string, ok bool) {
	for facility := range l {
		if _, after, found := strings.Cut(output, facility.skip("")); found {
			reason, _, _ = strings.Cut(after, "\n")
			return facility.skip(reason), true
		}
	}
	return "", false
}
