//go:build linux

package systemd

import (
	"bytes"
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/slogtest"
	"time"
)

func TestPlainLines(t *testing.T) {
	var b bytes.Buffer
	h := newLogHandler(toWriter(&b, "rblnftd"))
	log := slog.New(h)
	var none error
	log.Info("blocked", "addr", "192.0.2.1", "prefix", netip.MustParsePrefix("2001:db8::/64"), "timeout", time.Hour, "proven", true)
	log.Warn("odd\nmessage\x1b[2J", "text", "two words", "empty", "", "bad", "a\nb", "equals", "a=b")
	log.Error("failed", "error", errors.New("no such file"), "none", none)
	log.Debug("not logged")
	log.With("a", 1).WithGroup("g").With("b", 2).Info("groups", "c", 3, slog.Group("", "d", 4), slog.Group("h", "e", 5))
	log.Info("unblocked", "addr", netip.MustParsePrefix("192.0.2.1/32"))
	log.Info("expiry", "expires", time.Date(2030, 1, 2, 3, 4, 5, 6789, time.UTC))
	h.Flush(10 * time.Second)
	want := `rblnftd: blocked addr=192.0.2.1 prefix=2001:db8::/64 timeout=1h0m0s proven=true
rblnftd: warning: odd\nmessage\x1b[2J text="two words" empty="" bad="a\nb" equals="a=b"
rblnftd: error: failed error="no such file"
rblnftd: groups a=1 g.b=2 g.c=3 g.d=4 g.h.e=5
rblnftd: unblocked addr=192.0.2.1
rblnftd: expiry expires=2030-01-02T03:04:05Z
`
	if got := b.String(); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}

// A handler keeps the rules of log/slog.
func TestLogHandlerRules(t *testing.T) {
	var lines []line
	h := newLogHandler(func(l line) { lines = append(lines, l) })
	err := slogtest.TestHandler(h, func() (results []map[string]any) {
		h.Flush(10 * time.Second)
		for _, l := range lines {
			m := map[string]any{slog.LevelKey: l.level, slog.MessageKey: l.message}
			if !l.time.IsZero() {
				m[slog.TimeKey] = l.time
			}
			for _, a := range l.attrs {
				into := m
				keys := strings.Split(a.key, ".")
				for _, group := range keys[:len(keys)-1] {
					if into[group] == nil {
						into[group] = map[string]any{}
					}
					into = into[group].(map[string]any)
				}
				into[keys[len(keys)-1]] = a.value
			}
			results = append(results, m)
		}
		return results
	})
	if err != nil {
		t.Error(err)
	}
}

// Whoever logs does not wait for whoever reads.
func TestLogNeverWaits(t *testing.T) {
	var written []line
	gate := make(chan struct{})
	h := newLogHandler(func(l line) {
		<-gate
		written = append(written, l)
	})
	log := slog.New(h)
	const lost = 100
	for i := range queueLength + 1 + lost {
		log.Info("line", "n", i)
		if i == 0 {
			for len(h.out.lines) > 0 { // until the writer has it
				time.Sleep(time.Millisecond)
			}
		}
	}
	start := time.Now()
	h.Flush(50 * time.Millisecond)
	if time.Since(start) > 5*time.Second {
		t.Error("Flush waited for longer than it may")
	}
	close(gate)
	h.Flush(10 * time.Second)
	if want := queueLength + 2; len(written) != want {
		t.Fatalf("%d lines, want %d", len(written), want)
	}
	for i, l := range written {
		if i == 1 {
			if l.message == "line" || len(l.attrs) != 1 || l.attrs[0].value != strconv.Itoa(lost) {
				t.Errorf("second line: %v, want that %d are lost", l, lost)
			}
		} else if l.message != "line" {
			t.Errorf("line %d: %v", i, l)
		}
	}
}

func TestField(t *testing.T) {
	for key, want := range map[string]string{
		"addr":                   "RBLNFT_ADDRESS",
		"address":                "RBLNFT_ADDRESS",
		"zone":                   "RBLNFT_ZONE",
		"bytes_lost":             "RBLNFT_BYTES_LOST",
		"group.key":              "RBLNFT_GROUP_KEY",
		"größe":                  "RBLNFT_GR__E",
		"":                       "",
		"_":                      "",
		strings.Repeat("a", 100): "RBLNFT_" + strings.Repeat("A", 57),
	} {
		if got := Field(key); got != want {
			t.Errorf("%q: %q, want %q", key, got, want)
		}
	}
}

// What administrators look for by MESSAGE_ID is logged somewhere, in these
// words, and is explained in the catalogue.
func TestEvents(t *testing.T) {
	logged := literals(t, "..")
	catalog, err := os.ReadFile("rblnft.catalog")
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^-- ([0-9a-f]{32})\nSubject: .+\nDefined-By: rblnft\nDocumentation: man:rblnftd\(8\)\n\n.`).FindAllSubmatch(catalog, -1) {
		entries[string(m[1])] = true
	}
	ids := map[string]bool{}
	for _, e := range Events() {
		if !logged[e.Message] {
			t.Errorf("%q is logged nowhere: its MESSAGE_ID %s must go on standing for it", e.Message, e.ID)
		}
		if !entries[e.ID] {
			t.Errorf("%q has no entry %s in the catalogue", e.Message, e.ID)
		}
		if ids[e.ID] || messageID(e.Message) != e.ID {
			t.Errorf("%q: %s is not its own", e.Message, e.ID)
		}
		ids[e.ID] = true
	}
	if n := len(Events()); len(entries) != n || strings.Count(string(catalog), "\n-- ")+1 != n {
		t.Errorf("the catalogue has %d entries, there are %d events", len(entries), n)
	}
}

// literals are all strings in the source of the programs but that of Events.
func literals(t *testing.T, root string) map[string]bool {
	found := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || filepath.Base(path) == "events.go" {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
				if s, err := strconv.Unquote(l.Value); err == nil {
					found[s] = true
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func BenchmarkLog(b *testing.B) {
	log := slog.New(newLogHandler(func(line) {}))
	for b.Loop() {
		log.LogAttrs(context.Background(), slog.LevelInfo, "blocked", slog.String("addr", "192.0.2.1"), slog.String("zone", "bl.example"))
	}
}
