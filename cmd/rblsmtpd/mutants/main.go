// Mutants shows what the filter's tests would notice: it changes the filter in one
// place at a time, runs the tests of what was changed, and says which changes none
// of them minds. The working tree is left alone (go help build, -overlay).
//
//	go run ./cmd/rblsmtpd/mutants          all of them, half an hour
//	go run ./cmd/rblsmtpd/mutants ID TCP   those with one of these words in their name
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// suites are the tests to run for a change in a directory, those first that say
// most in the least time.
var suites = map[string][][]string{
	"dnsbl":          {{"./dnsbl"}, {"./cmd/rblsmtpd/differential", "-run=WrongAnswers|DeadList"}},
	"dnsbl/resolver": {{"./dnsbl/resolver"}, {"./cmd/rblsmtpd/differential", "-run=WrongAnswers|Unreachable"}, {"./cmd/rblsmtpd"}},
	"smtpreply":      {{"./smtpreply"}, {"./cmd/rblsmtpd"}, {"./cmd/rblsmtpd/differential", "-run=FilterIsLike", "-args", "-cases=600"}},
	"firewall/hit":   {{"./firewall/hit"}, {"./cmd/rblsmtpd"}},
	"cmd/rblsmtpd":   {{"./cmd/rblsmtpd"}, {"./cmd/rblsmtpd/differential", "-run=FilterIsLike|Signals", "-args", "-cases=1000"}},
}

func main() {
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		fatal(err)
	}
	defer os.RemoveAll(dir)
	var survivors []string
	tried := 0
	for _, m := range mutants {
		if !wanted(m.name) {
			continue
		}
		tried++
		began := time.Now()
		by, err := m.killer(dir)
		if err != nil {
			os.RemoveAll(dir)
			fatal(fmt.Errorf("%s: %w", m.name, err))
		}
		took := time.Since(began).Round(time.Second)
		if by == "" {
			survivors = append(survivors, m.name)
			by = "SURVIVES"
		}
		fmt.Printf("%-55s %s (%v)\n", m.name, by, took)
	}
	fmt.Printf("%d mutants, %d survive %q\n", tried, len(survivors), survivors)
}

func wanted(name string) bool {
	if len(os.Args) == 1 {
		return true
	}
	for _, word := range os.Args[1:] {
		if strings.Contains(name, word) {
			return true
		}
	}
	return false
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "mutants:", err)
	os.Exit(111)
}

// killer returns the tests that notice the mutant, or nothing.
func (m mutant) killer(dir string) (string, error) {
	source, err := os.ReadFile(m.file)
	if err != nil {
		return "", err
	}
	if n := bytes.Count(source, []byte(m.old)); n != 1 {
		return "", fmt.Errorf("%s has %q %d times, want once", m.file, m.old, n)
	}
	changed := filepath.Join(dir, filepath.Base(m.file))
	if err := os.WriteFile(changed, bytes.Replace(source, []byte(m.old), []byte(m.new), 1), 0o644); err != nil {
		return "", err
	}
	path, err := filepath.Abs(m.file)
	if err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	if err != nil {
		return "", err
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o644); err != nil {
		return "", err
	}
	env := append(os.Environ(), "GOFLAGS=-overlay="+list)
	build := exec.Command("go", "build", "-o", os.DevNull, "./cmd/rblsmtpd")
	build.Env = env
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	for _, suite := range suites[filepath.Dir(m.file)] {
		test := exec.Command("go", append([]string{"test", "-vet=off", "-count=1", "-failfast", "-timeout=5m"}, suite...)...)
		test.Env = env
		if out, err := test.CombinedOutput(); err != nil {
			first, _, _ := strings.Cut(string(out[max(0, bytes.Index(out, []byte("--- FAIL: "))):]), " (")
			return suite[0] + " " + strings.TrimSpace(first), nil
		}
	}
	return "", nil
}
