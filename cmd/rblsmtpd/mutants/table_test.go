package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a mutant changes is there, in one place alone, and tests are named for it.
func TestMutantsApply(t *testing.T) {
	names := map[string]bool{}
	for _, m := range mutants {
		source, err := os.ReadFile(filepath.Join("../../..", m.file))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(source), m.old); n != 1 {
			t.Errorf("%s: %s has %q %d times", m.name, m.file, m.old, n)
		}
		if len(suites[filepath.Dir(m.file)]) == 0 || m.old == m.new || names[m.name] {
			t.Errorf("%s: no suite, no change, or a name that is there twice", m.name)
		}
		names[m.name] = true
	}
}
