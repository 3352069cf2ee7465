package book

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/firewall"
	"rblnft/firewall/intake"
)

// written returns the journal's bytes of n blocks, and where each line ends.
func written(t *testing.T, n int) (data []byte, ends []int, now time.Time) {
	t.Helper()
	dir := t.TempDir()
	b, err := Open(dir, testPolicy(), discard())
	if err != nil {
		t.Fatal(err)
	}
	now = time.Now()
	for i := range n {
		r := intake.Report{Received: now}
		r.Addr, r.Zone = numbered(i), "bl.example"
		b.Record([]intake.Report{r})
	}
	b.Close()
	data, err = os.ReadFile(filepath.Join(dir, segment(1)))
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range data {
		if c == '\n' {
			ends = append(ends, i+1)
		}
	}
	if len(ends) != n+1 {
		t.Fatalf("%d lines, want %d", len(ends), n+1)
	}
	return data, ends, now
}

// memory returns a directory in memory, for tests that start so often that a
// disk would take minutes.
func memory(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// reopened returns how many of the first n numbered addresses the journal data
// has in force, from the first one on without a gap, and how many there are.
func reopened(t *testing.T, dir string, data []byte) (contiguous, all int) {
	t.Helper()
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, name := range names {
		os.Remove(name)
	}
	if err := os.WriteFile(filepath.Join(dir, segment(1)), data, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := Open(dir, testPolicy(), discard())
	if err != nil {
		t.Fatalf("%d bytes: %v", len(data), err)
	}
	defer b.Close()
	blocks := state(b)
	for {
		if _, ok := blocks[firewall.PrefixOf(numbered(contiguous)).String()]; !ok {
			break
		}
		contiguous++
	}
	// What is written from now on is not lost to what was torn.
	b.Record([]intake.Report{report("192.0.2.99", time.Now())})
	return contiguous, len(blocks)
}

func TestCutAtEveryByteOfTheTail(t *testing.T) {
	data, ends, _ := written(t, 200)
	if len(data) < 4096+1000 {
		t.Fatalf("the journal has %d bytes only", len(data))
	}
	dir := memory(t)
	for cut := len(data) - 4096; cut <= len(data); cut++ {
		want := 0 // a line is whole without its line feed
		for _, end := range ends[1:] {
			if end-1 <= cut {
				want++
			}
		}
		got, all := reopened(t, dir, data[:cut])
		if got != want || all != want {
			t.Fatalf("cut after %d bytes: %d blocks in force, %d in a row; want %d", cut, all, got, want)
		}
		b, err := Open(dir, testPolicy(), discard())
		if err != nil {
			t.Fatal(err)
		}
		if n := len(state(b)); n != want+1 {
			t.Fatalf("cut after %d bytes: %d blocks after another start, want %d", cut, n, want+1)
		}
		b.Close()
	}
	// At the beginning, in the header.
	for cut := range ends[1] + 2 {
		if _, all := reopened(t, dir, data[:cut]); all > 1 {
			t.Fatalf("cut after %d bytes: %d blocks", cut, all)
		}
	}
}

func TestDamageCostsTheDamagedLineAlone(t *testing.T) {
	const n = 100
	data, ends, _ := written(t, n)
	dir := memory(t)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		damaged := bytes.Clone(data)
		at := ends[0] + random.IntN(len(data)-ends[0])
		was := damaged[at]
		damaged[at] ^= byte(1 + random.IntN(255))
		want := n - 1
		if was == '\n' || damaged[at] == '\n' {
			want = n - 2 // two lines became one, or one two
		}
		if at == len(data)-1 {
			want = n - 1
		}
		if _, all := reopened(t, dir, damaged); all < want || all > n-1 {
			t.Fatalf("case %d, byte %d: %d blocks, want %d", i, at, all, want)
		}
	}
	tests := []struct {
		name string
		data []byte
		want int
	}{
		{"a hole of zeros", append(append(bytes.Clone(data[:ends[10]]), make([]byte, 10_000)...), data[ends[20]:]...), n - 11},
		{"zeros at the end", append(bytes.Clone(data), make([]byte, 4096)...), n},
		{"a line without end", append(bytes.Clone(data), bytes.Repeat([]byte("x"), 1<<20)...), n},
		{"the same twice", append(bytes.Clone(data), data...), n},
		{"nothing", nil, 0},
	}
	for _, test := range tests {
		if _, all := reopened(t, dir, test.data); all != test.want {
			t.Errorf("%s: %d blocks, want %d", test.name, all, test.want)
		}
	}
}

func TestDamageIsLogged(t *testing.T) {
	data, ends, _ := written(t, 10)
	dir := t.TempDir()
	data[ends[3]+5] ^= 1
	if err := os.WriteFile(filepath.Join(dir, segment(1)), data, 0o600); err != nil {
		t.Fatal(err)
	}
	log, text := logged()
	b, err := Open(dir, testPolicy(), log)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	for _, want := range []string{"the journal is damaged", "lines_lost=1", fmt.Sprintf("first_at_byte=%d", ends[3]), "lines_read=9", "checksum"} {
		if !strings.Contains(text(), want) {
			t.Errorf("%q is missing in the log: %s", want, text())
		}
	}
}

// A file that cannot be read at the start is not overwritten, and what happens
// is written down beside it.
func TestUnreadFileIsKept(t *testing.T) {
	dir := t.TempDir()
	b, err := Open(dir, testPolicy(), discard())
	if err != nil {
		t.Fatal(err)
	}
	b.Record([]intake.Report{report("192.0.2.1", time.Now())})
	b.journal.compact(t.Context(), 0, b.chunks())
	b.journal.lines = 1 << 20
	b.journal.compact(t.Context(), 0, b.chunks())
	b.Close()
	snapshot := filepath.Join(dir, snapshotName)
	was, err := os.ReadFile(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	// Root can read everything but what is behind a link that leads nowhere.
	if err := errors.Join(os.Rename(snapshot, filepath.Join(dir, "elsewhere")), os.Symlink("loop", snapshot), os.Symlink("snapshot", filepath.Join(dir, "loop"))); err != nil {
		t.Fatal(err)
	}
	log, text := logged()
	if b, err = Open(dir, testPolicy(), log); err != nil {
		t.Fatal(err)
	}
	b.Record([]intake.Report{report("192.0.2.2", time.Now())})
	b.journal.lines = 1 << 20
	b.journal.compact(t.Context(), 0, b.chunks())
	b.Close()
	if !strings.Contains(text(), "cannot be read; it is kept") {
		t.Errorf("log:\n%s", text())
	}
	if err := os.Rename(filepath.Join(dir, "elsewhere"), snapshot); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(snapshot); err != nil || !bytes.Equal(now, was) {
		t.Errorf("the snapshot was %q, and is %q (%v)", was, now, err)
	}
	if b, err = Open(dir, testPolicy(), discard()); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if blocked, _ := b.Len(); blocked != 2 {
		t.Errorf("%d blocked, want 2", blocked)
	}
}

// A file of another version, or of somebody else, is put aside and not lost.
func TestForeignFileIsPutAside(t *testing.T) {
	for _, name := range []string{snapshotName, segment(7)} {
		dir := t.TempDir()
		foreign := []byte("rblnft journal 2 00000000\nsomething\n")
		if err := os.WriteFile(filepath.Join(dir, name), foreign, 0o600); err != nil {
			t.Fatal(err)
		}
		log, text := logged()
		b, err := Open(dir, testPolicy(), log)
		if err != nil {
			t.Fatal(err)
		}
		b.Record([]intake.Report{report("192.0.2.1", time.Now())})
		b.Close()
		kept, err := os.ReadFile(filepath.Join(dir, name+".unreadable"))
		if err != nil || !bytes.Equal(kept, foreign) {
			t.Errorf("%s: put aside: %q, %v", name, kept, err)
		}
		if !strings.Contains(text(), "put aside") {
			t.Errorf("not logged: %s", text())
		}
		if b, err = Open(dir, testPolicy(), discard()); err != nil {
			t.Fatal(err)
		}
		if len(state(b)) != 1 {
			t.Errorf("%v in force, want one", state(b))
		}
		b.Close()
	}
}

// everything a book can hold survives a start, and compaction.
func TestPersistence(t *testing.T) {
	now := time.Now().Truncate(time.Millisecond)
	dir := t.TempDir()
	open := func() *Book {
		b, err := Open(dir, testPolicy(), discard())
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := open()
	prefix := func(s string) netip.Prefix { return firewall.PrefixOf(netip.MustParseAddr(s)) }
	b.Record([]intake.Report{report("192.0.2.1", now), report("2001:db8::1", now), report("192.0.2.2", now.Add(-90*time.Minute))})
	b.Added(firewall.Block{Prefix: prefix("192.0.2.3"), Zone: `with "quotes", spaces and ümläuts` + "\n"})
	b.Added(firewall.Block{Prefix: prefix("192.0.2.4"), Expires: now.Add(2000 * time.Hour), Zone: ""})
	b.Added(firewall.Block{Prefix: prefix("192.0.2.5"), Expires: now.Add(time.Hour), Zone: "x"})
	b.Removed(prefix("192.0.2.5"))
	b.Record([]intake.Report{report("192.0.2.6", now)})
	p := testPolicy()
	p.Allow = append(p.Allow, netip.MustParsePrefix("192.0.2.6/32"))
	b.SetPolicy(p)
	want := state(b)
	if len(want) != 4 {
		t.Fatalf("in force: %v", want)
	}
	check := func(b *Book, when string) {
		t.Helper()
		got := state(b)
		if len(got) != len(want) {
			t.Errorf("%s: in force %v, want %v", when, got, want)
		}
		for p, block := range want {
			if got[p] != block {
				t.Errorf("%s: %+v, want %+v", when, got[p], block)
			}
		}
		rec := b.records[0][keyOf(prefix("192.0.2.2")).bits]
		if rec.expires != now.Add(-30*time.Minute).UnixMilli() {
			t.Errorf("%s: who was blocked before: %+v", when, rec)
		}
	}
	b.Close()
	b = open()
	check(b, "after a start")
	b.journal.missed = true
	b.journal.compact(context.Background(), 0, b.chunks())
	check(b, "after compaction")
	b.Close()
	names, _, err := b.journal.files()
	if err != nil || len(names) != 2 || names[0] != snapshotName {
		t.Errorf("files after compaction: %v, %v", names, err)
	}
	b = open()
	check(b, "after compaction and a start")
	b.Close()
}

// What changes while a snapshot is being written is not lost.
func TestChangesDuringCompaction(t *testing.T) {
	dir := t.TempDir()
	b, err := Open(dir, testPolicy(), discard())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Millisecond)
	var reports []intake.Report
	for n := range 5000 {
		r := report("192.0.2.1", now)
		r.Addr = numbered(n)
		reports = append(reports, r)
	}
	b.Record(reports)
	for _, r := range reports {
		b.committed([]key{keyOf(firewall.PrefixOf(r.Addr))})
	}
	b.journal.missed = true
	changed := 0
	b.journal.compact(context.Background(), 0, func(yield func([]entry) bool) {
		for chunk := range b.chunks() {
			// Some of each: renewed, removed, new.
			later := report("192.0.2.1", now.Add(time.Minute))
			later.Addr = numbered(changed)
			b.Record([]intake.Report{later})
			b.Removed(firewall.PrefixOf(numbered(4000 + changed)))
			later.Addr = numbered(6000 + changed)
			b.Record([]intake.Report{later})
			changed++
			if !yield(chunk) {
				return
			}
		}
	})
	if changed < 5 {
		t.Fatalf("%d changes", changed)
	}
	want := state(b)
	b.Close()
	if b, err = Open(dir, testPolicy(), discard()); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	got := state(b)
	if len(got) != len(want) || len(want) != 5000 {
		t.Errorf("%d blocks, want %d", len(got), len(want))
	}
	for p, block := range want {
		if got[p] != block {
			t.Errorf("%s: %+v, want %+v", p, got[p], block)
		}
	}
}

// A full disk stops persisting and nothing else, and what was missed is made
// up for.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	log, text := logged()
	b, err := Open(dir, testPolicy(), log)
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 40<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Millisecond)
	const n = 500 // some 25 KiB
	for i := range n {
		r := report("192.0.2.1", now)
		r.Addr = numbered(i)
		if o := b.Record([]intake.Report{r}); o[0].Decision != Blocked {
			t.Fatalf("%s", o[0].Decision)
		}
	}
	if len(state(b)) != n {
		t.Fatalf("%d blocks in force, want %d", len(state(b)), n)
	}
	b.journal.compact(context.Background(), 0, b.chunks())
	if got := strings.Count(text(), "not persisted"); got != 1 {
		t.Errorf("said %d times that nothing is persisted, want once: %s", got, text())
	}
	if !strings.Contains(text(), "no space left on device") {
		t.Errorf("why is not said: %s", text())
	}
	// As long as the disk is full a start finds what was written before.
	b.Close()
	if b, err = Open(dir, testPolicy(), log); err != nil {
		t.Fatal(err)
	}
	before := len(state(b))
	if before < 100 || before >= n {
		t.Errorf("%d blocks were persisted, want some", before)
	}
	for i := range n {
		r := report("192.0.2.1", now)
		r.Addr = numbered(i)
		b.Record([]intake.Report{r})
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	b.journal.retry = time.Time{}
	b.journal.compact(context.Background(), 0, b.chunks())
	if !strings.Contains(text(), "persisted again") {
		t.Errorf("recovery is not said: %s", text())
	}
	b.Close()
	if b, err = Open(dir, testPolicy(), discard()); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got := len(state(b)); got != n {
		t.Errorf("%d blocks were persisted in the end, want %d", got, n)
	}
}

// Without a directory to write to everything else goes on.
func TestUnusableDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	log, text := logged()
	b, err := Open(filepath.Join(file, "dir"), testPolicy(), log)
	if err != nil {
		t.Fatal(err)
	}
	b.Record([]intake.Report{report("192.0.2.1", time.Now())})
	b.journal.sync()
	b.journal.compact(context.Background(), 0, b.chunks())
	if len(state(b)) != 1 || !strings.Contains(text(), "not persisted") {
		t.Errorf("%v; %s", state(b), text())
	}
	// It comes back when the directory does.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	b.journal.retry = time.Time{}
	b.journal.compact(context.Background(), 0, b.chunks())
	b.Record([]intake.Report{report("192.0.2.2", time.Now())})
	b.Close()
	if b, err = Open(filepath.Join(file, "dir"), testPolicy(), discard()); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if len(state(b)) != 2 {
		t.Errorf("%v, want both", state(b))
	}
}

func TestTwoBooksInOneDirectory(t *testing.T) {
	dir := t.TempDir()
	b, err := Open(dir, testPolicy(), discard())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, testPolicy(), discard()); !errors.Is(err, ErrInUse) {
		t.Errorf("the second: %v, want %v", err, ErrInUse)
	}
	b.Close()
	if b, err = Open(dir, testPolicy(), discard()); err != nil {
		t.Errorf("after the first: %v", err)
	}
	b.Close()
}

// The number of segments stays small however often it is started.
func TestManyStarts(t *testing.T) {
	dir := memory(t)
	for i := range 100 {
		b, err := Open(dir, testPolicy(), discard())
		if err != nil {
			t.Fatal(err)
		}
		r := report("192.0.2.1", time.Now())
		r.Addr = numbered(i)
		b.Record([]intake.Report{r})
		b.journal.compact(context.Background(), len(b.records[0]), b.chunks())
		names, _, err := b.journal.files()
		if err != nil {
			t.Fatal(err)
		}
		if len(names) > maxSegments+2 {
			t.Fatalf("start %d: %d files", i, len(names))
		}
		if len(state(b)) != i+1 {
			t.Fatalf("start %d: %d blocks", i, len(state(b)))
		}
		b.Close()
	}
}

func FuzzReadEntries(f *testing.F) {
	head := appendHeader(nil)
	var lines []byte
	for _, e := range []entry{
		{key: key{0, 0xc0000201}, record: record{expires: 1795429341678, returns: 3}, name: "bl.example"},
		{key: key{1, 0x20010db800000000}, record: record{expires: forever, flags: byHand}, name: "a \"comment\"\n"},
		{key: key{0, 0xc0000202}, deleted: true},
	} {
		lines = e.appendTo(lines)
	}
	f.Add(append(bytes.Clone(head), lines...))
	f.Add(append(bytes.Clone(head), lines[:len(lines)-5]...))
	f.Add(head[:10])
	f.Add([]byte("rblnft journal 2 00000000\n"))
	f.Add(append(bytes.Clone(head), 0, 0, 0, '\n', '\n'))
	f.Fuzz(func(t *testing.T, data []byte) {
		var entries []entry
		d, err := readEntries(bytes.NewReader(data), func(e entry) { entries = append(entries, e) })
		if err != nil {
			if len(entries) > 0 {
				t.Fatalf("entries of a file that is not ours: %v", entries)
			}
			return
		}
		if d.lines != len(entries) || d.bytes > int64(len(data)) || (d.bad > 0) != (d.err != nil) {
			t.Fatalf("%+v of %d bytes, %d entries", d, len(data), len(entries))
		}
		// What was read is written as it was.
		again := appendHeader(nil)
		for i := range entries {
			again = entries[i].appendTo(again)
		}
		i := 0
		d, err = readEntries(bytes.NewReader(again), func(e entry) {
			if e != entries[i] {
				t.Errorf("%+v became %+v", entries[i], e)
			}
			i++
		})
		if err != nil || d.bad > 0 || i != len(entries) {
			t.Errorf("%+v, %v: %q", d, err, again)
		}
	})
}

// FuzzLine has the fuzzer fill in a line whose checksum is right.
func FuzzLine(f *testing.F) {
	f.Add([]byte("b 192.0.2.1 1795429341678 0 bl.example"))
	f.Add([]byte(`h 2001:db8:: - 255 "by \"hand\""`))
	f.Add([]byte("d 192.0.2.1"))
	f.Add([]byte("b ::ffff:192.0.2.1 1 0 x"))
	f.Add([]byte("b 2001:db8::1 1 0 x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		line := appendSum(bytes.Clone(text), 0)
		e, err := parseEntry(line)
		if err != nil {
			return
		}
		again, err := parseEntry(e.appendTo(nil))
		if err != nil || again != e {
			t.Errorf("%q: %+v, then %+v, %v", text, e, again, err)
		}
		if e.prefix() != firewall.PrefixOf(e.prefix().Addr()) {
			t.Errorf("%q: %s is not what is blocked", text, e.prefix())
		}
	})
}
