package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Nothing that a test can do but pass passes.
func TestResults(t *testing.T) {
	const test = "package p\nimport (\"os\"; \"testing\"; \"time\")\nvar _, _ = os.Exit, time.Sleep\n"
	for _, tt := range []struct {
		name, source string
		passed       int
		failed       []string
	}{
		{"good", test + "func TestA(t *testing.T) { t.Run(\"sub\", func(*testing.T) {}) }", 1, nil},
		{"failed", test + "func TestA(*testing.T) {}\nfunc TestB(t *testing.T) { t.Fail() }", 1, []string{"p TestB"}},
		{"skipped", test + "func TestA(*testing.T) {}\nfunc TestB(t *testing.T) { t.Skip() }", 1, []string{"p TestB"}},
		{"subtest", test + "func TestA(t *testing.T) { t.Run(\"sub\", func(t *testing.T) { t.Skip() }) }", 0, []string{"p TestA/sub"}},
		{"panic", test + "func TestA(*testing.T) { panic(1) }", 0, []string{"p TestA"}},
		{"exit", test + "func TestA(*testing.T) { os.Exit(1) }", 0, []string{"p TestA"}},
		{"exit 0", test + "func TestA(*testing.T) { os.Exit(0) }", 0, []string{"p TestA"}},
		{"hang", test + "func TestA(*testing.T) { time.Sleep(time.Minute) }", 0, []string{"p TestA"}},
		{"TestMain", test + "func TestMain(*testing.M) { os.Exit(1) }", 0, []string{"p"}},
		{"TestMain that runs nothing", test + "func TestMain(*testing.M) {}\nfunc TestA(t *testing.T) {}", 0, []string{"go test: no test ran"}},
		{"TestMain after tests", test + "func TestMain(m *testing.M) { m.Run(); os.Exit(1) }\nfunc TestA(*testing.T) {}", 1, []string{"p"}},
		{"build", "package p\nimport \"testing\"\nfunc TestA(t *testing.T) { undefined() }", 0, []string{"p"}},
		{"syntax", "package p\nfunc", 0, []string{"p"}},
		{"none", "package p\n", 0, []string{"go test: no test ran"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{"go.mod": "module p\n\ngo 1.26\n", "p_test.go": tt.source} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			// In a process of its own, for what it prints.
			cmd := exec.Command(os.Args[0], "-test.run=^TestResultsOf$")
			cmd.Env = append(os.Environ(), resultsOf+"="+dir, "GORACE=atexit_sleep_ms=0", "CGO_ENABLED=0")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			got, ok := last(string(out), "results: ")
			if want := fmt.Sprintf("%d %q", tt.passed, tt.failed); !ok || got != want {
				t.Errorf("%s, want %s, after\n%s", got, want, out)
			}
		})
	}
}

const resultsOf = "RBLNFT_TEST_RESULTS"

// TestResultsOf counts the tests in a directory, when TestResults asks for it.
func TestResultsOf(t *testing.T) {
	dir := os.Getenv(resultsOf)
	if dir == "" {
		return
	}
	t.Chdir(dir)
	r := newResults(nil)
	r.tests(exec.Command("go", "test", "-json", "-timeout=5s", "-vet=off", "./..."))
	fmt.Printf("results: %d %q\n", r.passed, slices.Clone(r.failed))
}

// last returns the rest of the last line that begins with prefix.
func last(text, prefix string) (rest string, ok bool) {
	for line := range strings.Lines(text) {
		if after, found := strings.CutPrefix(line, prefix); found {
			rest, ok = strings.TrimSpace(after), true
		}
	}
	return rest, ok
}
