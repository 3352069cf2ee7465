//go:build linux

package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/firewall/book"
	"rblnft/firewall/netlab"
)

const childEnv = "RBLNFT_STORE_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
	}
	netlab.Main(m)
}

// A machine has clocks that go as a test says, and a directory.
type machine struct {
	t         *testing.T
	dir       string
	wall      time.Time
	monotonic book.Time
	boot      string
	log       bytes.Buffer
}

func newMachine(t *testing.T) *machine {
	return &machine{t: t, dir: filepath.Join(t.TempDir(), "state"), wall: time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC), monotonic: 5_000_000, boot: "b0070001"}
}

func (m *machine) clock() (time.Time, book.Time, string) { return m.wall, m.monotonic, m.boot }

// pass lets time pass.
func (m *machine) pass(d time.Duration) {
	m.wall, m.monotonic = m.wall.Add(d), m.monotonic.Add(d)
}

// reboot has the machine off for a while.
func (m *machine) reboot(off time.Duration) {
	n, _ := strconv.ParseUint(m.boot, 16, 32)
	m.wall, m.monotonic, m.boot = m.wall.Add(off), 20_000, fmt.Sprintf("%08x", n+1)
}

func (m *machine) file() string { return filepath.Join(m.dir, fileName) }

// state is what a file says.
type state map[book.Key]book.Record

// left is how long each address is blocked yet.
func (s state) left(now book.Time) map[string]time.Duration {
	left := map[string]time.Duration{}
	for k, r := range s {
		if r.Expires > now {
			left[k.Addr().String()] = r.Expires.Sub(now)
		}
	}
	return left
}

// An owner is a store with the account of which it is told.
type owner struct {
	*Store
	m      *machine
	known  state
	values map[string]string
	loaded Loaded
	told   []book.Key // what is yet to be told of a new file
}

// open opens the store, and loads it.
func (m *machine) open() *owner {
	m.t.Helper()
	s, err := Open(m.dir, m.clock, slog.New(slog.NewTextHandler(&m.log, nil)))
	if err != nil {
		m.t.Fatal(err)
	}
	o := &owner{Store: s, m: m, known: state{}, values: map[string]string{}}
	o.loaded = s.Load(func(r book.Record) { o.known[r.Key] = r }, func(k book.Key) { delete(o.known, k) })
	maps.Copy(o.values, o.loaded.Values)
	return o
}

func (o *owner) put(addr string, d time.Duration) {
	o.record(book.Record{Key: book.KeyOf(netip.MustParseAddr(addr)), Expires: o.m.monotonic.Add(d), Zone: "bl.example", Returns: 3})
}

func (o *owner) record(r book.Record) {
	o.known[r.Key] = r
	o.Put(r)
}

func (o *owner) drop(addr string) {
	k := book.KeyOf(netip.MustParseAddr(addr))
	delete(o.known, k)
	o.Drop(k)
}

func (o *owner) begin() {
	o.Begin()
	for k, v := range o.values {
		o.Value(k, v)
	}
	o.told = slices.Collect(maps.Keys(o.known))
}

// tell tells of n more, and reports whether these were not all.
func (o *owner) tell(n int) bool {
	for range n {
		if len(o.told) == 0 {
			o.End()
			return false
		}
		if r, known := o.known[o.told[0]]; known {
			o.Tell(r)
		}
		o.told = o.told[1:]
	}
	return true
}

// work does what the loop and the writer do in a tenth of a second.
func (o *owner) work() {
	if o.Wanted() {
		o.begin()
		for o.tell(1000) {
		}
	}
	o.write(o.clock.anchor())
	o.m.pass(Interval)
}

// stop ends the store as Run does.
func (o *owner) stop() {
	o.m.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := o.Run(ctx); err != nil {
		o.m.t.Error(err)
	}
	for _, name := range o.m.names() {
		if name != fileName && name != lockName {
			o.m.t.Errorf("%s is left", name)
		}
	}
}

// kill ends the store as kill -9 does.
func (o *owner) kill() {
	o.file.Close()
	o.next.Close()
	o.lock.Close()
}

func (m *machine) names() (names []string) {
	entries, _ := os.ReadDir(m.dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// reads fails where the file does not say want.
func (m *machine) reads(want state) {
	m.t.Helper()
	f, err := os.Open(m.file())
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	got := state{}
	l, err := load(f, Clock(m.clock).anchor(), func(r book.Record) { got[r.Key] = r }, func(k book.Key) { delete(got, k) })
	if err != nil || l.damaged > 0 || l.foreign {
		m.t.Errorf("%+v, %v", l, err)
	}
	if !maps.Equal(got, want) {
		m.t.Errorf("the file says\n%v, want\n%v", got, want)
	}
}

func TestRestart(t *testing.T) {
	m := newMachine(t)
	o := m.open()
	if !o.Wanted() || o.Failure() != nil || len(o.known) != 0 || o.loaded.SameBoot {
		t.Errorf("an empty directory: %v, %v, %+v", o.Wanted(), o.Failure(), o.loaded)
	}
	o.put("192.0.2.1", time.Hour) // before there is a file
	o.work()
	o.put("192.0.2.2", 2*time.Hour)
	o.put("2001:db8::", time.Hour)
	o.put("192.0.2.3", time.Hour)
	o.values["set4"] = "rblnft-5f0c"
	o.Value("set4", "rblnft-5f0c")
	o.Value("set6", "")
	o.work()
	o.drop("192.0.2.3")
	o.put("192.0.2.1", 3*time.Hour)
	o.stop()
	m.pass(time.Minute)

	again := m.open()
	if again.Wanted() || !again.loaded.SameBoot || again.loaded.Values["set4"] != "rblnft-5f0c" || again.loaded.Values["set6"] != "" || again.loaded.Records != 5 {
		t.Errorf("%v, %+v", again.Wanted(), again.loaded)
	}
	if !maps.Equal(again.known, o.known) {
		t.Errorf("%v, want %v", again.known, o.known)
	}
	again.put("192.0.2.9", time.Hour)
	again.work()
	m.reads(again.known)
	if m.log.Len() > 0 {
		t.Error(m.log.String())
	}
}

func TestNilStore(t *testing.T) {
	var s *Store
	s.Put(book.Record{})
	s.Drop(book.Key{})
	s.Value("a", "b")
	if l := s.Load(nil, nil); s.Wanted() || s.Failure() != nil || s.Run(context.Background()) != nil || l.SameBoot {
		t.Error("nothing keeps something")
	}
}

func TestInUse(t *testing.T) {
	m := newMachine(t)
	o := m.open()
	if _, err := Open(m.dir, m.clock, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), m.dir) {
		t.Error(err)
	}
	o.stop()
	m.open().stop()
	// Whoever may not write to the lock cannot hold it.
	if info, err := os.Stat(filepath.Join(m.dir, lockName)); err != nil || info.Mode() != 0o600 {
		t.Error(info, err)
	}
	os.Remove(filepath.Join(m.dir, lockName))
	os.Symlink(filepath.Join(m.dir, "elsewhere"), filepath.Join(m.dir, lockName))
	if o := m.open(); o.Failure() == nil {
		t.Error("a lock elsewhere")
	}
}

// Whatever is cut off the end costs what it had, and nothing that comes later.
func TestCutTail(t *testing.T) {
	m := newMachine(t)
	o := m.open()
	o.work()
	o.put("192.0.2.1", time.Hour)
	o.work()
	safe, _ := os.Stat(m.file())
	kept := maps.Clone(o.known)
	o.put("192.0.2.2", time.Hour)
	o.drop("192.0.2.1")
	o.work()
	whole, _ := os.ReadFile(m.file())
	o.stop()
	all := o.known
	for size := safe.Size(); size <= int64(len(whole)); size++ {
		os.WriteFile(m.file(), whole[:size], 0o600)
		o := m.open()
		want := state{}
		lines := bytes.Split(whole[safe.Size():size], []byte("\n"))
		maps.Copy(want, kept)
		for _, line := range lines {
			if e, err := parse(line); err == nil && e.kind == 'b' {
				want[e.record.Key] = e.record
			} else if err == nil && e.kind == 'd' {
				delete(want, e.record.Key)
			}
		}
		if !maps.Equal(o.known, want) || size == int64(len(whole)) && !maps.Equal(want, all) {
			t.Fatalf("cut at %d of %d: %v, want %v", size, len(whole), o.known, want)
		}
		// What is written next, before the new file, is safe too.
		o.put("192.0.2.7", time.Hour)
		o.write(o.clock.anchor())
		o.kill()
		again := m.open()
		if !maps.Equal(again.known, o.known) {
			t.Fatalf("cut at %d of %d: %v, want %v", size, len(whole), again.known, o.known)
		}
		again.work() // and the damage is gone with the new file
		again.work()
		if m.reads(again.known); t.Failed() {
			t.Fatalf("cut at %d of %d", size, len(whole))
		}
		again.stop()
	}
}

// A damaged line, whichever it is and wherever it is hit, costs that line alone.
func TestDamage(t *testing.T) {
	m := newMachine(t)
	o := m.open()
	o.work()
	for i := range 4 {
		o.put(fmt.Sprintf("192.0.2.%d", i), time.Hour)
		o.put(fmt.Sprintf("2001:db8:0:%d::", i), time.Hour)
		o.work()
	}
	o.stop()
	m.reboot(time.Minute)
	whole, _ := os.ReadFile(m.file())
	lines := bytes.SplitAfter(whole, []byte("\n"))
	at := 0
	for _, line := range lines {
		for i := range line {
			if len(line) < 10 || i%3 != 0 && i < len(line)-1 {
				continue
			}
			bad := bytes.Clone(whole)
			bad[at+i] ^= 1 << (i % 5)
			os.WriteFile(m.file(), bad, 0o600)
			m.log.Reset()
			got := state{}
			o := m.open()
			got = o.known
			e, err := parse(bytes.TrimSuffix(line, []byte("\n")))
			lost := 0
			if err != nil {
				t.Fatal(err)
			}
			if e.kind == 'b' {
				lost = 1
			}
			if i == len(line)-1 { // two lines are one now
				lost = 2
			}
			if len(got) < 8-lost || len(got) == 8 && e.kind == 'b' || len(got) > 8 {
				t.Fatalf("damage of byte %d in %q: %d records", i, line, len(got))
			}
			for _, r := range got {
				if left := r.Expires.Sub(m.monotonic); left > 59*time.Minute || left < 58*time.Minute {
					t.Fatalf("damage of byte %d in %q: %s left", i, line, left)
				}
			}
			if !o.Wanted() || !strings.Contains(m.log.String(), "the state is damaged") {
				t.Fatalf("damage of byte %d in %q: wanted %v, %s", i, line, o.Wanted(), m.log.String())
			}
			o.kill()
		}
		at += len(line)
	}
}

func TestLongLinesAreDamage(t *testing.T) {
	m := newMachine(t)
	o := m.open()
	o.put("192.0.2.1", time.Hour)
	o.work()
	o.write(o.clock.anchor())
	o.kill()
	f, _ := os.OpenFile(m.file(), os.O_APPEND|os.O_WRONLY, 0)
	f.Write(bytes.Repeat([]byte("b"), 1<<20))
	f.Close()
	if again := m.open(); !maps.Equal(again.known, o.known) || !again.Wanted() {
		t.Errorf("%v", again.known)
	}
}

func TestAnotherVersion(t *testing.T) {
	m := newMachine(t)
	os.MkdirAll(m.dir, 0o700)
	foreign := appendSum([]byte("rblnft state 9"), 0)
	os.WriteFile(m.file(), foreign, 0o600)
	o := m.open()
	if len(o.known) != 0 || !o.Wanted() || !strings.Contains(m.log.String(), "of another version") {
		t.Errorf("%v %s", o.known, m.log.String())
	}
	if aside, _ := os.ReadFile(filepath.Join(m.dir, oldName)); !bytes.Equal(aside, foreign) {
		t.Errorf("put aside: %q", aside)
	}
	o.put("192.0.2.1", time.Hour)
	o.work()
	m.reads(o.known)
}

// Whatever becomes of the wall clock, nobody is blocked longer than his time, and in
// the same boot nobody less.
func TestClockSteps(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for _, step := range []time.Duration{0, year, -year, time.Hour, -time.Hour} {
		for _, when := range []string{"before", "writing", "telling", "stopped", "at the reboot"} {
			for _, off := range []time.Duration{0, 20 * time.Minute} { // 0: no reboot
				for _, fresh := range []bool{false, true} { // written down in a new file
					t.Run(fmt.Sprint(step, when, off, fresh), func(t *testing.T) {
						m := newMachine(t)
						at := func(moment string) {
							if when == moment {
								m.wall = m.wall.Add(step)
							}
						}
						o := m.open()
						o.work()
						at("before")
						o.put("192.0.2.1", time.Hour)
						o.work()
						o.put("192.0.2.2", time.Hour)
						at("writing")
						o.work()
						if fresh {
							o.begin()
							o.tell(1)
							o.write(o.clock.anchor())
							at("telling")
							for o.tell(1) {
							}
							o.write(o.clock.anchor())
						}
						m.pass(10 * time.Minute)
						o.work()
						o.stop()
						at("stopped")
						passed := 10*time.Minute + 3*Interval
						if off > 0 {
							m.reboot(off)
							passed += off
						} else {
							m.pass(time.Minute)
							passed += time.Minute
						}
						at("at the reboot")
						left := m.open().known.left(m.monotonic)
						for _, a := range []string{"192.0.2.1", "192.0.2.2"} {
							const slack = 2 * time.Second // of clocks that drift
							want := time.Hour - passed
							switch {
							case off == 0:
								if d := left[a] - want; d < 0 || d > 2*Interval {
									t.Errorf("%s: %s left, want %s", a, left[a], want)
								}
							case step == 0 || when == "before" || when == "writing" || when == "telling":
								// The clock was right, or known to be wrong.
								if d := left[a] - want; d < -slack || d > slack {
									t.Errorf("%s: %s left after the reboot, want %s", a, left[a], want)
								}
							case left[a] > want+off+slack:
								// Nobody knows for how long it was off.
								t.Errorf("%s: %s left after the reboot, and %s when last heard of", a, left[a], want+off)
							}
						}
					})
				}
			}
		}
	}
}

// A clock that does not go (a battery is empty) makes no block longer.
func TestClockBehindAtBoot(t *testing.T) {
	m := newMachine(t)
	o := m.open()
	o.put("192.0.2.1", time.Hour)
	o.work()
	m.pass(30 * time.Minute)
	o.work()
	o.stop()
	m.reboot(0)
	m.wall = time.Unix(0, 0)
	o = m.open()
	if left := o.known.left(m.monotonic)["192.0.2.1"]; left > 30*time.Minute || left < 29*time.Minute {
		t.Errorf("%s left", left)
	}
	if o.loaded.SameBoot || !o.Wanted() {
		t.Error("another boot")
	}
	// What happens before the new file is there is of this boot.
	o.put("192.0.2.2", time.Hour)
	o.write(o.clock.anchor())
	o.kill()
	again := m.open()
	if !maps.Equal(again.known, o.known) || !again.loaded.SameBoot {
		t.Errorf("%v, want %v", again.known, o.known)
	}
	again.kill()
	// A machine that was put back to an earlier moment of the same boot.
	m.monotonic = 5000
	if o := m.open(); o.loaded.SameBoot || o.known.left(m.monotonic)["192.0.2.2"] > time.Hour {
		t.Errorf("%+v, %v", o.loaded, o.known.left(m.monotonic))
	}
}

// The clocks are written down when they move against each other, and now and then.
func TestAnchors(t *testing.T) {
	m := newMachine(t)
	o := m.open()
	o.work()
	o.work()
	anchors := func() int {
		b, _ := os.ReadFile(m.file())
		return bytes.Count(b, []byte("\nt "))
	}
	n := anchors()
	for range 100 {
		o.put("192.0.2.1", time.Hour)
		o.work()
	}
	if anchors() != n {
		t.Errorf("%d times in ten seconds", anchors()-n)
	}
	for i, step := range []time.Duration{-time.Second, time.Second, 999 * time.Millisecond} {
		m.wall = m.wall.Add(step)
		o.work()
		if want := n + min(i+1, 2); anchors() != want {
			t.Errorf("after step %d: %d, want %d", i, anchors(), want)
		}
	}
	n = anchors()
	m.pass(time.Minute)
	o.work()
	if anchors() != n+1 {
		t.Error("not within a minute")
	}
}

// What changes while a new file is told is in both, whenever the daemon is killed.
func TestChangesWhileTelling(t *testing.T) {
	for moment := range 8 {
		t.Run(fmt.Sprint(moment), func(t *testing.T) {
			m := newMachine(t)
			o := m.open()
			for i := range 20 {
				o.put(fmt.Sprintf("192.0.2.%d", i), time.Hour)
			}
			o.work()
			n := 0
			// Each moment is one change, and then perhaps a write.
			change := func() {
				o.put(fmt.Sprintf("198.51.100.%d", n), time.Hour)
				o.put("192.0.2.3", time.Hour+time.Duration(n)*time.Second)
				o.drop(fmt.Sprintf("192.0.2.%d", 10+n))
				n++
			}
			steps := []func(){
				o.begin, func() { o.tell(10) }, func() { o.write(o.clock.anchor()) }, func() { o.tell(5) },
				func() {
					for o.tell(1) {
					}
				},
				func() {}, func() { o.write(o.clock.anchor()) }, func() { o.write(o.clock.anchor()) },
			}
			for i, step := range steps {
				step()
				change()
				if i == moment {
					break
				}
			}
			o.write(o.clock.anchor())
			o.kill()
			if again := m.open(); !maps.Equal(again.known, o.known) {
				t.Errorf("%v, want %v", again.known, o.known)
			}
			if slices.Contains(m.names(), newName) {
				t.Error("what was not completed is left")
			}
		})
	}
}

// A new file that is begun again has nothing of the one given up.
func TestBeginAgain(t *testing.T) {
	m := newMachine(t)
	o := m.open()
	o.put("192.0.2.1", time.Hour)
	o.put("192.0.2.2", time.Hour)
	o.work()
	o.begin()
	fds, _ := os.ReadDir("/proc/self/fd")
	for range 10 {
		o.write(o.clock.anchor())
		o.begin()
	}
	o.write(o.clock.anchor())
	if more, _ := os.ReadDir("/proc/self/fd"); len(more) > len(fds)+1 {
		t.Errorf("%d descriptors, before %d", len(more), len(fds))
	}
	o.Tell(book.Record{Key: book.KeyOf(netip.MustParseAddr("192.0.2.99")), Expires: m.monotonic + 1})
	o.write(o.clock.anchor())
	if o.Wanted() {
		t.Error("wanted while it is told")
	}
	o.begin()
	for o.tell(1) {
	}
	o.write(o.clock.anchor())
	m.reads(o.known)
	if info, err := os.Stat(m.file()); err != nil || o.base != info.Size() {
		t.Errorf("%d bytes of %d", o.base, info.Size())
	}
	// Even if the one before was to take its place in a moment.
	o.begin()
	for o.tell(1) {
	}
	o.begin()
	o.write(o.clock.anchor())
	m.reads(o.known)
	o.End()
	o.begin()
	o.tell(1)
	o.write(o.clock.anchor())
	for o.tell(1) {
	}
	o.write(o.clock.anchor())
	m.reads(o.known)
	o.End() // of nothing
	o.work()
	m.reads(o.known)
	o.begin()
	o.tell(1)
	o.stop() // in the middle
	m.reads(o.known)
}

// A new file is asked for once.
func TestWantedOnce(t *testing.T) {
	m := newMachine(t)
	o := m.open()
	for _, step := range []func(){o.begin, func() { o.tell(1) }, func() { o.write(o.clock.anchor()) }, func() { o.tell(1) }} {
		step()
		if o.want(o.clock.anchor()); o.Wanted() {
			t.Error("wanted while it is told")
		}
	}
}

// What the file lacks, as the disk was behind, a new one has.
func TestBehind(t *testing.T) {
	m := newMachine(t)
	o := m.open()
	o.work()
	o.lines = make([]byte, most+1, most+1<<20)
	o.put("192.0.2.1", time.Hour)
	o.put("192.0.2.2", time.Hour)
	if o.write(o.clock.anchor()); !o.Wanted() || o.Failure() != errBehind {
		t.Error(o.Wanted(), o.Failure())
	}
	o.work()
	if m.reads(o.known); o.Failure() != nil {
		t.Error(o.Failure())
	}
	// And a new file that was begun before has not all either.
	o.begin()
	o.write(o.clock.anchor())
	o.lines = make([]byte, most+1, most+1<<20)
	o.put("192.0.2.3", time.Hour)
	for o.tell(1) {
	}
	o.write(o.clock.anchor())
	m.pass(retryInterval)
	o.work()
	o.work()
	m.reads(o.known)
}

// Times of this boot mean what they say, those of an unknown one nothing.
func TestNoAnchor(t *testing.T) {
	m := newMachine(t)
	os.MkdirAll(m.dir, 0o700)
	known := book.Record{Key: book.KeyOf(netip.MustParseAddr("192.0.2.1")), Expires: m.monotonic + 1000, Zone: "z"}
	b := (&entry{kind: 'b', boot: m.boot, record: known}).appendTo(nil)
	unknown := known
	unknown.Key = book.KeyOf(netip.MustParseAddr("192.0.2.2"))
	b = (&entry{kind: 'b', boot: "b0060000", record: unknown}).appendTo(b)
	os.WriteFile(m.file(), b, 0o600)
	if o := m.open(); !maps.Equal(o.known, state{known.Key: known}) || o.loaded.damaged != 1 || !o.Wanted() {
		t.Errorf("%v, %+v", o.known, o.loaded)
	}
}

func TestSize(t *testing.T) {
	m := newMachine(t)
	o := m.open()
	most, replaced := int64(0), 0
	var last fs.FileInfo
	for n := range 200_000 {
		o.record(book.Record{Key: book.KeyOf(netip.AddrFrom4([4]byte{192, 0, byte(n % 4), byte(n / 4 % 250)})), Expires: m.monotonic.Add(time.Hour), Zone: "bl.example"})
		if n%5000 == 0 {
			m.pass(time.Second)
			o.work()
			info, err := os.Stat(m.file())
			if err != nil {
				t.Fatal(err)
			}
			if last != nil && !os.SameFile(last, info) {
				replaced++
			}
			last, most = info, max(most, info.Size())
			if o.size != info.Size() {
				t.Fatalf("%d bytes, and %d are there", o.size, info.Size())
			}
		}
		if n%40_000 == 39_999 { // a restart does not let it grow
			o.stop()
			o = m.open()
		}
	}
	o.work()
	o.stop()
	m.reads(o.known)
	if most > 2<<20 || replaced < 5 || replaced > 15 {
		t.Errorf("up to %d bytes, replaced %d times", most, replaced)
	}
}

// On a full disk blocking goes on, and the disk gets all once there is room.
func TestFullDisk(t *testing.T) {
	m := newMachine(t)
	os.MkdirAll(m.dir, 0o700)
	if err := unix.Mount("none", m.dir, "tmpfs", 0, "size=128k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(m.dir, unix.MNT_DETACH) })
	o := m.open()
	o.work()
	ballast := filepath.Join(m.dir, "ballast")
	os.WriteFile(ballast, make([]byte, 100<<10), 0o600)
	n := 0
	for ; o.Failure() == nil && n < 10_000; n++ {
		o.put(fmt.Sprintf("192.0.2.%d", n%200), time.Hour+time.Duration(n))
		o.work()
	}
	if !errors.Is(o.Failure(), unix.ENOSPC) {
		t.Fatalf("after %d: %v", n, o.Failure())
	}
	for range 300 {
		n++
		o.put(fmt.Sprintf("192.0.2.%d", n%200), time.Hour+time.Duration(n))
		o.work()
	}
	if c := strings.Count(m.log.String(), "not persisted"); c != 1 {
		t.Errorf("said %d times", c)
	}
	if len(o.lines)+len(o.fresh) > 0 {
		t.Error("something waits for a file that is not there")
	}
	os.Remove(ballast)
	for range int(retryInterval/Interval) + 2 {
		o.work()
	}
	if o.Failure() != nil || !strings.Contains(m.log.String(), "persisted again") {
		t.Error(o.Failure())
	}
	m.reads(o.known)
	o.stop()
}

// Where there is no room for a new file the old one is written on.
func TestNoRoomForANewFile(t *testing.T) {
	m := newMachine(t)
	o := m.open()
	o.work()
	os.Mkdir(filepath.Join(m.dir, newName), 0o700) // in its way
	o.put("192.0.2.1", time.Hour)
	o.begin()
	for o.tell(1) {
	}
	o.write(o.clock.anchor())
	o.put("192.0.2.2", time.Hour)
	o.write(o.clock.anchor())
	m.reads(o.known)
	if o.Failure() != nil || o.file == nil {
		t.Error("all is persisted:", o.Failure())
	}
	// It is tried again, ten seconds later.
	o.size = 10 << 20
	o.work()
	if o.Wanted() {
		t.Error("wanted at once")
	}
	m.pass(retryInterval)
	o.write(o.clock.anchor())
	if !o.Wanted() {
		t.Error("not wanted later")
	}
}

// Where the file, the directory or the lock is taken away all is written anew.
func TestRemoved(t *testing.T) {
	for name, remove := range map[string]func(*machine){
		"directory":      func(m *machine) { os.RemoveAll(m.dir) },
		"directory away": func(m *machine) { os.Rename(m.dir, m.dir+".away") },
		"file":           func(m *machine) { os.Remove(m.file()) },
		"file replaced":  func(m *machine) { os.Remove(m.file()); os.WriteFile(m.file(), nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			o := m.open()
			o.put("192.0.2.1", time.Hour)
			o.work()
			remove(m)
			o.put("192.0.2.2", time.Hour)
			o.work()
			if o.Failure() == nil {
				t.Error("nobody noticed")
			}
			for range int(retryInterval/Interval) + 2 {
				o.work()
			}
			if o.Failure() != nil {
				t.Error(o.Failure())
			}
			m.reads(o.known)
			if _, err := Open(m.dir, m.clock, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrInUse) {
				t.Error("not locked:", err)
			}
			o.stop()
		})
	}
}

func TestReadOnlyDirectory(t *testing.T) {
	m := newMachine(t)
	o := m.open()
	o.put("192.0.2.1", time.Hour)
	o.work()
	o.stop()
	if err := unix.Mount(m.dir, m.dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(m.dir, unix.MNT_DETACH) })
	remount := func(flags uintptr) {
		if err := unix.Mount("", m.dir, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	again := m.open()
	if !errors.Is(again.Failure(), unix.EROFS) || !maps.Equal(again.known, o.known) {
		t.Errorf("%v, %v", again.Failure(), again.known)
	}
	for range 200 {
		again.put("192.0.2.2", time.Hour)
		again.work()
	}
	remount(0)
	for range int(retryInterval/Interval) + 2 {
		again.work()
	}
	if again.Failure() != nil {
		t.Error(again.Failure())
	}
	m.reads(again.known)
	if _, err := Open(m.dir, m.clock, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrInUse) {
		t.Error("not locked:", err)
	}
	again.stop()
}

func TestUnreadable(t *testing.T) {
	m := newMachine(t)
	os.MkdirAll(m.file(), 0o700) // a directory
	o := m.open()
	if !strings.Contains(m.log.String(), "cannot be read") || !o.Wanted() {
		t.Error(m.log.String())
	}
	o.put("192.0.2.1", time.Hour)
	o.work()
	if o.Failure() == nil {
		t.Error("it is in the way")
	}
	os.Remove(m.file())
	m.pass(retryInterval)
	o.work()
	o.work()
	m.reads(o.known)
}

// While the disk hangs nobody waits for it, memory is bounded, and afterwards the
// file is complete.
func TestDiskThatHangs(t *testing.T) {
	m := newMachine(t)
	o := m.open()
	o.work()
	o.work()
	// A pipe that nobody reads takes the place of the file.
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	hung, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	real := o.file
	o.file = hung
	os.Rename(m.file(), m.file()+".away")
	os.Rename(pipe, m.file())
	written := make(chan struct{})
	for i := range 3000 {
		o.put(fmt.Sprintf("192.0.2.%d", i%250), time.Hour+time.Duration(i))
	}
	go func() {
		defer close(written)
		o.write(o.clock.anchor())
	}()
	hangs := func() bool {
		n, err := unix.IoctlGetInt(int(hung.Fd()), unix.TIOCINQ)
		return err == nil && n >= 1<<16
	}
	for end := time.Now().Add(10 * time.Second); !hangs(); {
		if time.Now().After(end) {
			t.Fatal("the pipe is not full")
		}
		time.Sleep(time.Millisecond)
	}
	o.mu.Lock()
	o.lines = make([]byte, most-100_000, most+1<<20) // long ago
	o.mu.Unlock()
	for i := range 10_000 {
		o.record(book.Record{Key: book.KeyOf(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})), Expires: m.monotonic.Add(time.Hour), Zone: longZone})
		if n := len(o.lines) + len(o.fresh); n > most+maxTestLine {
			t.Fatalf("%d bytes wait", n)
		}
	}
	if !errors.Is(o.Failure(), errBehind) {
		t.Error(o.Failure())
	}
	select {
	case <-written:
		t.Fatal("it did not hang")
	default:
	}
	if o.lines != nil && !o.lost {
		t.Error("lines of which others are lost")
	}
	// The disk is back.
	go func() {
		b := make([]byte, 1<<20)
		for {
			if _, err := hung.Read(b); err != nil {
				return
			}
		}
	}()
	<-written
	os.Remove(m.file())
	os.Rename(m.file()+".away", m.file())
	o.file = real
	for range 3 { // some is lost: a new file is wanted
		o.work()
	}
	if o.Failure() != nil {
		t.Error(o.Failure())
	}
	m.reads(o.known)
	o.stop()
	hung.Close()
}

const maxTestLine = 512

var longZone = strings.Repeat("x", 253)

// A disk that is behind does not get a new file faster than it takes it.
func TestTellSaysWhenToWait(t *testing.T) {
	m := newMachine(t)
	o := m.open()
	o.Begin()
	r := book.Record{Key: book.KeyOf(netip.MustParseAddr("192.0.2.1")), Expires: 1, Zone: longZone}
	o.fresh = make([]byte, most/4-10_000, most)
	n := 0
	for o.Tell(r) {
		if n++; n > 1000 {
			t.Fatal("for ever")
		}
	}
	if size := len(o.fresh); size < most/4 || size > most/4+maxTestLine || len(o.lines) > 0 {
		t.Errorf("%d bytes", size)
	}
	// Told to the end it is given up, and asked for again.
	o.fresh = make([]byte, most-10_000, most+1<<20)
	for range 1000 {
		o.Tell(r)
	}
	if o.End(); o.Failure() == nil || len(o.fresh) > 0 {
		t.Error("not given up")
	}
	o.work()
	o.work()
	if o.Failure() != nil {
		t.Error(o.Failure())
	}
	m.reads(o.known)
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		o := m.open()
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { o.Run(ctx) })
		o.put("192.0.2.1", time.Hour)
		o.begin()
		for o.tell(1) {
		}
		time.Sleep(Interval + time.Millisecond)
		synctest.Wait()
		m.reads(o.known)
		o.put("192.0.2.2", time.Hour)
		time.Sleep(Interval)
		synctest.Wait()
		m.reads(o.known)
		o.put("192.0.2.3", time.Hour)
		cancel()
		running.Wait()
		m.reads(o.known)
		m.open().stop() // the lock is free
	})
}

// What comes while the last but one write is under way is written too.
func TestRunWritesWhatIsLeft(t *testing.T) {
	m := newMachine(t)
	o := m.open()
	o.work()
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	o.clock = func() (time.Time, book.Time, string) {
		if calls++; calls == 1 { // a write has begun: its lines were taken, or are
			defer func() {
				o.put("192.0.2.1", time.Hour)
				cancel()
			}()
		}
		return m.clock()
	}
	o.Run(ctx)
	m.reads(o.known)
}

// child blocks one address after the other, and says which are on disk for sure.
func child(dir string) {
	s, err := Open(dir, Now, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	known := state{}
	s.Load(func(r book.Record) { known[r.Key] = r }, func(k book.Key) { delete(known, k) })
	var puts atomic.Int64
	puts.Store(int64(len(known)))
	go func() {
		for {
			n := puts.Load()
			if s.write(s.clock.anchor()); s.file != nil {
				fmt.Println(n - 1)
			}
		}
	}()
	for n := len(known); ; n++ {
		r := book.Record{Key: book.KeyOf(netip.AddrFrom4([4]byte{20, byte(n >> 16), byte(n >> 8), byte(n)})), Expires: Monotonic().Add(time.Hour), Zone: strconv.Itoa(n), Returns: 1}
		known[r.Key] = r
		s.Put(r)
		puts.Add(1)
		if s.Wanted() || n%500 == 499 {
			s.Begin()
			for _, r := range known {
				s.Tell(r)
			}
			s.End()
		}
		time.Sleep(20 * time.Microsecond)
	}
}

// kill -9, at any moment, costs nothing that was written.
func TestKill(t *testing.T) {
	m := newMachine(t)
	m.boot = bootName()
	for round := range 4 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), childEnv+"="+m.dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var lines []string
		for scan := bufio.NewScanner(out); scan.Scan(); {
			if lines = append(lines, scan.Text()); len(lines) == 20+round*13 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
			t.Fatalf("it ended by itself: %v: %s", cmd.ProcessState, lines)
		}
		m.monotonic = Monotonic()
		o := m.open()
		last, err := strconv.Atoi(lines[len(lines)-1])
		if err != nil {
			last, _ = strconv.Atoi(lines[len(lines)-2])
		}
		for i := range last + 1 {
			n := strconv.Itoa(i)
			k := book.KeyOf(netip.AddrFrom4([4]byte{20, byte(i >> 16), byte(i >> 8), byte(i)}))
			if r, known := o.known[k]; !known || r.Zone != n {
				t.Fatalf("round %d: %s was on disk: %+v", round, n, r)
			}
		}
		if slices.Contains(m.names(), newName) {
			t.Error("a new file is left")
		}
		o.stop()
	}
}

func TestNow(t *testing.T) {
	wall, monotonic, boot := Now()
	if d := time.Since(wall); d < 0 || d > time.Minute {
		t.Error(wall)
	}
	if later := Monotonic(); monotonic <= 0 || later < monotonic || later.Sub(monotonic) > time.Minute {
		t.Error(monotonic, later)
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || boot != string(id[:8]) {
		t.Error(boot)
	}
}
