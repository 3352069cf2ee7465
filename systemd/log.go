//go:build linux

package systemd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/coreos/go-systemd/v22/journal"
)

// A LogHandler is a [slog.Handler] for a daemon. Under systemd it writes to the
// journal, natively: the level as PRIORITY, every attribute as a field of its
// own (RBLNFT_ and the key in upper case, [Field]), and for an event that
// administrators look for a MESSAGE_ID ([Events]). Otherwise it writes plain
// lines to standard error.
//
// Nobody who logs waits for whoever reads the log: lines are queued, and those
// that find the queue full are counted, and the count is logged when there is
// room again.
type LogHandler struct {
	out    *output
	prefix string // of keys: the groups, each with its full stop
	attrs  []slog.Attr
}

// queueLength is how many lines wait for being written, at most.
const queueLength = 8192

// NewLogHandler returns the handler of the process: to the journal if that is
// where standard error goes ($JOURNAL_STREAM, systemd.exec(5)), else to
// standard error. What it logs is from slog.LevelInfo on.
func NewLogHandler() *LogHandler {
	name := filepath.Base(os.Args[0])
	if native, err := journal.StderrIsJournalStream(); err == nil && native && journal.Enabled() {
		return newLogHandler(toJournal(name))
	}
	return newLogHandler(toWriter(os.Stderr, name))
}

func newLogHandler(write func(line)) *LogHandler {
	o := &output{lines: make(chan line, queueLength), write: write}
	go o.run()
	return &LogHandler{out: o}
}

// Enabled implements [slog.Handler].
func (h *LogHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

// Handle implements [slog.Handler]. It neither waits nor fails.
func (h *LogHandler) Handle(_ context.Context, r slog.Record) error {
	l := line{time: r.Time, level: r.Level, message: r.Message}
	for _, a := range h.attrs {
		l.add("", a)
	}
	r.Attrs(func(a slog.Attr) bool {
		l.add(h.prefix, a)
		return true
	})
	h.out.put(l)
	return nil
}

// WithAttrs implements [slog.Handler].
func (h *LogHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.attrs = slices.Clip(h.attrs)
	for _, a := range attrs {
		a.Key = h.prefix + a.Key
		next.attrs = append(next.attrs, a)
	}
	return &next
}

// WithGroup implements [slog.Handler].
func (h *LogHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	next := *h
	next.prefix += name + "."
	return &next
}

// Flush waits until everything logged so far is written, no longer than d. It
// is for the end of the process.
func (h *LogHandler) Flush(d time.Duration) {
	done := make(chan struct{})
	timeout := time.After(d)
	select {
	case h.out.lines <- line{flushed: done}:
	case <-timeout:
		return
	}
	select {
	case <-done:
	case <-timeout:
	}
}

// output is the queue of lines and the one that writes them.
type output struct {
	lines chan line
	write func(line)

	mu   sync.Mutex
	lost int
}

func (o *output) put(l line) {
	select {
	case o.lines <- l:
	default:
		o.mu.Lock()
		o.lost++
		o.mu.Unlock()
	}
}

func (o *output) run() {
	for l := range o.lines {
		if l.flushed != nil {
			close(l.flushed)
			continue
		}
		o.write(l)
		o.mu.Lock()
		lost := o.lost
		o.lost = 0
		o.mu.Unlock()
		if lost > 0 {
			o.write(line{level: slog.LevelWarn, message: "lines of the log are lost: nobody read them in time",
				attrs: []attr{{"lines", strconv.Itoa(lost)}}})
		}
	}
}

// A line is one entry of the log.
type line struct {
	time    time.Time // of the event; journald and multilog write their own
	level   slog.Level
	message string
	attrs   []attr
	flushed chan struct{} // to be closed instead of writing anything
}

type attr struct{ key, value string }

// add appends an attribute, the members of a group one by one. As slog asks of
// handlers, it leaves out what is empty.
func (l *line) add(prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return
	}
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, member := range v.Group() {
			l.add(prefix, member)
		}
		return
	}
	if v.Kind() == slog.KindAny && v.Any() == nil {
		return // an error that is none
	}
	text := v.String()
	switch x := v.Any().(type) {
	case time.Time:
		text = x.Format(time.RFC3339)
	case netip.Prefix:
		if x.IsSingleIP() {
			text = x.Addr().String() // to be found by its address
		}
	}
	l.attrs = append(l.attrs, attr{prefix + a.Key, text})
}

// String is the line as a person reads it: the message and the attributes.
func (l line) String() string {
	var b strings.Builder
	b.WriteString(oneLine(l.message))
	for _, a := range l.attrs {
		b.WriteString(" " + a.key + "=" + quoted(a.value))
	}
	return b.String()
}

// quoted quotes a value where it would not be one word otherwise.
func quoted(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '"' || r == '=' || !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// oneLine escapes what could end a line or move the cursor.
func oneLine(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		s = strconv.Quote(s)
		s = s[1 : len(s)-1]
	}
	return s
}

// toWriter writes plain lines: "NAME: LEVEL: MESSAGE KEY=VALUE…", where
// information has no level.
func toWriter(w io.Writer, name string) func(line) {
	return func(l line) {
		var b bytes.Buffer
		fmt.Fprintf(&b, "%s: ", name)
		if l.level != slog.LevelInfo {
			fmt.Fprintf(&b, "%s: ", levelName(l.level))
		}
		fmt.Fprintln(&b, l)
		w.Write(b.Bytes())
	}
}

func levelName(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "error"
	case level >= slog.LevelWarn:
		return "warning"
	case level >= slog.LevelInfo:
		return "info"
	}
	return "debug"
}

// priority is the level as syslog(3) has it.
func priority(level slog.Level) journal.Priority {
	switch {
	case level >= slog.LevelError:
		return journal.PriErr
	case level >= slog.LevelWarn:
		return journal.PriWarning
	case level >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}

// toJournal writes to the journal, and where that fails to standard error.
func toJournal(name string) func(line) {
	plain := toWriter(os.Stderr, name)
	return func(l line) {
		fields := map[string]string{"SYSLOG_IDENTIFIER": name}
		if id := messageID(l.message); id != "" {
			fields["MESSAGE_ID"] = id
		}
		for _, a := range l.attrs {
			if f := Field(a.key); f != "" {
				fields[f] = a.value
			}
		}
		if err := journal.Send(l.String(), priority(l.level), fields); err != nil {
			plain(l)
		}
	}
}

// Field returns the field of the journal that an attribute is written to:
// RBLNFT_ADDRESS for addr, for other keys RBLNFT_ and the key in upper case,
// with an underscore for whatever is neither letter nor digit (systemd.journal-fields(7)
// allows no more, and 64 bytes). For a key without a letter or digit it is empty.
func Field(key string) string {
	if key == "addr" {
		key = "address"
	}
	some := false
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' {
			r -= 'a' - 'A'
		}
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			some = true
			return r
		}
		return '_'
	}, key)
	if !some {
		return ""
	}
	const longest = 64 // journald drops fields with longer names
	name = "RBLNFT_" + name
	return name[:min(len(name), longest)]
}
