package build

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// A Suite is the tests of a package, as *testing.M is.
type Suite interface{ Run() int }

// ProgramsEnv names a directory with all programs, for tests on a machine without
// Go.
const ProgramsEnv = "RBLNFT_PROGRAMS"

// Before returns the tests of m with programs compiled before they run. there is
// told their directory, which every user may read, and which is removed after the
// tests.
func Before(m Suite, there func(dir string), programs ...string) Suite {
	return prepared{m, there, programs}
}

type prepared struct {
	Suite
	there    func(dir string)
	programs []string
}

// Run implements [Suite].
func (p prepared) Run() int {
	if dir := os.Getenv(ProgramsEnv); dir != "" {
		p.there(dir)
		return p.Suite.Run()
	}
	dir, err := os.MkdirTemp("", "rblnft-programs")
	if err == nil {
		defer os.RemoveAll(dir)
		err = os.Chmod(dir, 0o755)
	}
	for _, name := range p.programs {
		if err == nil {
			err = Program(dir, name)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p.there(dir)
	return p.Suite.Run()
}

// Open opens the directories that a program is compiled from. A test that does so
// runs again when a file there changes: go test remembers the results of tests by
// what they open, and does not see what a compiler that they start reads.
func Open(program string) error {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{if eq .Module.Path \"rblnft\"}}{{.Dir}}{{end}}{{end}}", "rblnft/cmd/"+program).Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	for dir := range strings.FieldsSeq(string(out)) {
		if _, err := os.ReadDir(dir); err != nil {
			return err
		}
	}
	return nil
}
