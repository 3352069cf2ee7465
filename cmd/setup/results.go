package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"rblnft/cmd/internal/debian"
)

// results is what came out of the tests. Of a test with subtests those are
// counted, and it itself if it fails for another reason.
type results struct {
	passed  int
	failed  []string // and skipped without an excuse: packages and tests
	skipped []string // what could not be tried, with the reason
	lacking debian.Lacking

	output  map[string][]string // by package and test, of those that run
	running map[test]bool
	parents map[test]bool  // that have subtests
	broken  map[test]bool  // in which a subtest has failed
	ran     map[string]int // tests that ended, by package
	spoilt  map[string]bool
	ended   map[string]bool // packages
}

// test is the name of a test in a package.
type test struct{ pkg, name string }

func (t test) String() string { return strings.TrimSpace(t.pkg + " " + t.name) }

// above are the tests of which t is a subtest.
func (t test) above() (tests []test) {
	for i, c := range t.name {
		if c == '/' {
			tests = append(tests, test{t.pkg, t.name[:i]})
		}
	}
	return tests
}

func newResults(lacking debian.Lacking) *results {
	return &results{
		lacking: lacking, output: map[string][]string{}, running: map[test]bool{}, parents: map[test]bool{},
		broken: map[test]bool{}, ran: map[string]int{}, spoilt: map[string]bool{}, ended: map[string]bool{},
	}
}

// event is what "go test -json" prints (go doc test2json, go doc cmd/go).
type event struct {
	Action     string
	Package    string
	ImportPath string // of build-output
	Test       string
	Output     string
	Elapsed    float64 // seconds
	// FailedBuild is the ImportPath whose build failed, where a package
	// fails for that.
	FailedBuild string
}

// quiet runs a command that has nothing to say when all is well.
func (r *results) quiet(what, name string, args ...string) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err == nil && len(bytes.TrimSpace(out)) == 0 {
		r.passed++
		fmt.Println("pass", what)
		return
	}
	fmt.Printf("--- fail: %s: %v\n%s", what, err, out)
	r.failed = append(r.failed, what)
}

// tests runs "go test -json" and counts. That go itself fails counts too, where
// no test has.
func (r *results) tests(cmd *exec.Cmd) {
	before := r.count()
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		err = errors.Join(r.read(out), cmd.Wait())
	}
	switch {
	case err != nil && len(r.failed) == 0:
		r.failed = append(r.failed, fmt.Sprintf("go test: %v", err))
	case r.count() == before:
		r.failed = append(r.failed, "go test: no test ran")
	}
}

func (r *results) count() int { return r.passed + len(r.failed) + len(r.skipped) }

// read counts what a stream of events says.
func (r *results) read(from io.Reader) error {
	lines := bufio.NewReader(from)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil {
				r.take(e)
			} else {
				os.Stdout.Write(line)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *results) take(e event) {
	t := test{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		r.output[e.ImportPath] = append(r.output[e.ImportPath], e.Output)
		return
	case "output":
		r.output[t.String()] = append(r.output[t.String()], e.Output)
		return
	case "run":
		r.running[t] = true
		for _, parent := range t.above() {
			r.parents[parent] = true
		}
		return
	case "pass", "skip", "fail":
	default:
		return
	}
	if e.Test != "" {
		r.end(t, e.Action)
		return
	}
	r.ended[e.Package] = true
	if e.Action == "fail" {
		// A package fails for one of its tests, finished or not, or because
		// it cannot be built, or for its TestMain.
		r.unfinished(e.Package)
		if !r.spoilt[e.Package] {
			r.output[t.String()] = append(r.output[e.FailedBuild], r.output[t.String()]...)
			r.complain(e.Action, t)
		}
	}
	delete(r.output, t.String())
	if e.Action != "skip" {
		fmt.Printf("%-4s %-40s %6.1f s\n", e.Action, e.Package, e.Elapsed)
	}
}

// end counts a test that has ended.
func (r *results) end(t test, action string) {
	delete(r.running, t)
	excuse, excused := r.lacking.Excuse(strings.Join(r.output[t.String()], ""))
	switch {
	case action == "skip" && excused:
		r.skip(t.String(), excuse)
	case action == "skip", action == "fail" && !r.broken[t]:
		r.complain(action, t)
	case action == "pass" && !r.parents[t]:
		r.passed++
	}
	r.ran[t.pkg]++
	delete(r.output, t.String())
}

// unfinished counts the tests of a package that have not ended.
func (r *results) unfinished(pkg string) {
	open := slices.DeleteFunc(slices.Collect(maps.Keys(r.running)), func(t test) bool { return t.pkg != pkg })
	slices.SortFunc(open, func(a, b test) int { return len(b.name) - len(a.name) }) // subtests first
	for _, t := range open {
		if !r.broken[t] {
			r.complain("unfinished", t)
		}
		delete(r.running, t)
	}
}

// complain counts what has failed and shows what it said.
func (r *results) complain(action string, t test) {
	r.failed = append(r.failed, t.String())
	r.spoilt[t.pkg] = true
	for _, parent := range t.above() {
		r.broken[parent] = true
	}
	fmt.Printf("--- %s: %s\n%s", action, t, strings.Join(r.output[t.String()], ""))
}

// skip counts what could not be tried.
func (r *results) skip(what, reason string) {
	r.skipped = append(r.skipped, what+": "+reason)
}

func (r *results) print(took time.Duration) {
	for _, s := range r.skipped {
		fmt.Println("skipped:", s)
	}
	for _, f := range r.failed {
		fmt.Println("failed:", f)
	}
	fmt.Printf("all of it took %.0f s\n%d passed, %d failed", took.Seconds(), r.passed, len(r.failed))
	if len(r.skipped) > 0 {
		fmt.Printf(", %d skipped", len(r.skipped))
	}
	fmt.Println()
}
