package differential

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// The README's table has every difference, and nothing else.
func TestReadmeHasEveryDifference(t *testing.T) {
	readme, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(readme), "\n### What is not as in rblsmtpd\n")
	section, _, _ = strings.Cut(section, "\n## ")
	if !ok {
		t.Fatal("the README has no section about differences")
	}
	var rows []string
	for line := range strings.Lines(section) {
		cells := strings.Split(line, " | ")
		if row, ok := strings.CutPrefix(cells[0], "| "); ok && row != "where" && row != "---" {
			rows = append(rows, row)
		}
	}
	for _, d := range differences {
		if !slices.Contains(rows, d.row) {
			t.Errorf("%s: the README has no row %q", d.name, d.row)
		}
	}
	for _, row := range rows {
		if !slices.ContainsFunc(differences, func(d difference) bool { return d.row == row }) {
			t.Errorf("no difference is that of the README's row %q", row)
		}
	}
}
