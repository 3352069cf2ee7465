//go:build linux

package store

import (
	"bytes"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"rblnft/firewall/book"
)

var lines = map[string]entry{
	"t b0070001 5000000 1782907200000":                 {kind: 't', anchor: anchor{"b0070001", 5000000, 1782907200000}},
	"v set4 rblnft-5f0c":                               {kind: 'v', name: "set4", value: "rblnft-5f0c"},
	"v set4 ":                                          {kind: 'v', name: "set4"},
	"b b0070001 3600000 3 192.0.2.1 bl.example":        {kind: 'b', boot: "b0070001", record: book.Record{Key: book.KeyOf(netip.MustParseAddr("192.0.2.1")), Expires: 3600000, Returns: 3, Zone: "bl.example"}},
	"b b0070001 9223372036854775807 255 2001:db8:1:: ": {kind: 'b', boot: "b0070001", record: book.Record{Key: book.KeyOf(netip.MustParseAddr("2001:db8:1::")), Expires: 1<<63 - 1, Returns: 255}},
	"d 192.0.2.1":                                      {kind: 'd', record: book.Record{Key: book.KeyOf(netip.MustParseAddr("192.0.2.1"))}},
	"d ::":                                             {kind: 'd', record: book.Record{Key: book.KeyOf(netip.IPv6Unspecified())}},
	"rblnft state 2":                                   {kind: 'h'},
}

func TestLines(t *testing.T) {
	for text, e := range lines {
		line := string(appendSum([]byte(text), 0))
		if got := string(e.appendTo([]byte("before "))); got != "before "+line {
			t.Errorf("%q, want %q", got, line)
		}
		back, err := parse([]byte(strings.TrimSuffix(line, "\n")))
		if e.kind == 'h' {
			back.kind = 'h'
		}
		if err != nil || back != e {
			t.Errorf("%q: %+v, %v", line, back, err)
		}
	}
	// What is written stays readable: a checksum that was made elsewhere.
	if got := string((&entry{kind: 'd', record: book.Record{Key: book.KeyOf(netip.MustParseAddr("192.0.2.1"))}}).appendTo(nil)); got != "d 192.0.2.1 645a9461\n" {
		t.Error(got)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{
		"", "x", "b", "b ", "t", "v", "d", "h", "hello",
		"t b0070001 5000000", "t b0070001 5000000 1 2", "t b0070001 -1 1", "t b0070001 1 -1", "t b0070001 1 x", "t b0070001 9223372036854775808 1",
		"v set4", "v set4 a b",
		"b b0070001 1 3 192.0.2.1", "b b0070001 1 3 192.0.2.1 a b", "b b0070001 x 3 192.0.2.1 a", "b b0070001 1 256 192.0.2.1 a", "b b0070001 1 x 192.0.2.1 a",
		"b b0070001 1 3 192.0.2 a", "b b0070001 1 3 2001:db8::1 a", "b b0070001 1 3 ::ffff:192.0.2.1 a", "b b0070001 1 3 fe80::%eth0 a",
		"d", "d 192.0.2", "d 192.0.2.1 1", "d 2001:db8::1", "c 192.0.2.1", "bb b0070001 1 3 192.0.2.1 a", "dd 192.0.2.1",
	} {
		if e, err := parse(bytes.TrimSuffix(appendSum([]byte(text), 0), []byte("\n"))); err == nil {
			t.Errorf("%q is %+v", text, e)
		}
	}
	for _, text := range []string{"rblnft state 1", "rblnft state 3", "rblnft journal 1", "rblnft"} {
		if _, err := parse(bytes.TrimSuffix(appendSum([]byte(text), 0), []byte("\n"))); err != errFormat {
			t.Errorf("%q: %v", text, err)
		}
	}
	good := appendSum([]byte("d 192.0.2.1"), 0)
	good = good[:len(good)-1]
	for _, line := range [][]byte{nil, []byte("d"), good[:len(good)-1], append(bytes.Clone(good), '0'), append(bytes.Clone(good), '\n'), bytes.Replace(good, []byte(".1 "), []byte(".1_"), 1), good[len(good)-9:]} {
		if e, err := parse(line); err != errLine {
			t.Errorf("%q is %+v, %v", line, e, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for text := range lines {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		parse(text) // without its checksum
		e, err := parse(bytes.TrimSuffix(appendSum(bytes.Clone(text), 0), []byte("\n")))
		if err != nil {
			return
		}
		if again, err := parse(bytes.TrimSuffix(e.appendTo(nil), []byte("\n"))); err != nil || again != e {
			t.Errorf("%q is %+v, and %+v written again: %v", text, e, again, err)
		}
	})
}

// A file of lines with good and with bad checksums is read to its end, and what is
// kept of it is kept when it is written again.
func FuzzLoad(f *testing.F) {
	f.Add([]byte("rblnft state 2\nt b0070001 1 1\nv a b\nb b0070001 3600000 3 192.0.2.1 bl.example\nd 192.0.2.1\nb b0070000 3600000 3 2001:db8:: z\n!b b0070001 1\n\n"))
	f.Add([]byte("t b0070000 7200000 1\nb b0070000 7300000 1 192.0.2.1 z\nt b0070001 1 1000\nt b0070001 9 1000"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var file []byte
		for i, line := range bytes.SplitAfter(text, []byte("\n")) {
			if cut, ok := bytes.CutSuffix(line, []byte("\n")); ok && !bytes.HasPrefix(line, []byte("!")) {
				file = append(file, appendSum(bytes.Clone(cut), 0)...)
			} else {
				file = append(append(file, line...), "\n"[:i%2]...)
			}
		}
		now := anchor{"b0070001", 1_000_000, 1782907200000}
		read := func(file []byte) (Loaded, state) {
			got := state{}
			l, err := load(bytes.NewReader(file), now, func(r book.Record) { got[r.Key] = r }, func(k book.Key) { delete(got, k) })
			if err != nil {
				t.Fatal(err)
			}
			return l, got
		}
		l, got := read(file)
		if l.foreign && len(got) > 0 {
			t.Error("of another version, and read")
		}
		again := (&entry{kind: 't', anchor: now}).appendTo((&entry{kind: 'h'}).appendTo(nil))
		for k, r := range got {
			if r.Expires < 0 {
				r.Expires = 0
				got[k] = r
			}
			again = (&entry{kind: 'b', boot: now.boot, record: r}).appendTo(again)
		}
		if l, back := read(again); l.damaged > 0 || !maps.Equal(back, got) {
			t.Errorf("%v, and written again %v", got, back)
		}
	})
}
