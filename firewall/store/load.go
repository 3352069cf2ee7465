//go:build linux

package store

import (
	"bufio"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/firewall/book"
)

// A Clock tells the time, and which boot CLOCK_MONOTONIC is of. It is for tests to
// replace.
type Clock func() (wall time.Time, monotonic book.Time, boot string)

// Now is the machine's own [Clock].
func Now() (wall time.Time, monotonic book.Time, boot string) {
	return time.Now(), Monotonic(), bootName()
}

// bootName is the beginning of the random name of this boot (random(4)); where that
// cannot be read every start counts as a boot.
var bootName = sync.OnceValue(func() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(id) < 8 {
		return time.Now().Format("unknown-20060102T150405.000000000")
	}
	return string(id[:8])
})

// Monotonic is what CLOCK_MONOTONIC says.
func Monotonic() book.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // no kernel is without it
	}
	return book.Time(ts.Nano() / 1e6)
}

// An anchor ties the two clocks to each other.
type anchor struct {
	boot      string
	monotonic book.Time
	wall      int64 // milliseconds of Unix time
}

func (c Clock) anchor() anchor {
	wall, monotonic, boot := c()
	return anchor{boot, monotonic, wall.UnixMilli()}
}

// sameBoot reports whether now is later in the same boot.
func (then anchor) sameBoot(now anchor) bool {
	return then.boot == now.boot && then.monotonic <= now.monotonic
}

// shift is what has to be added to a moment of the boot whose last anchor is then, so
// that it is one of CLOCK_MONOTONIC at now. In the same boot that is nothing,
// whatever the wall clock did. After another one the wall clock tells how much time
// has passed; one that is behind tells nothing, and no block gets longer by it than
// it was when last heard of.
func (then anchor) shift(now anchor) book.Time {
	if then.sameBoot(now) {
		return 0
	}
	return now.monotonic - then.monotonic - book.Time(max(0, now.wall-then.wall))
}

// A Loaded is what a file says beside its records.
type Loaded struct {
	Values   map[string]string // by their names
	SameBoot bool              // the file was last written to in this boot
	Records  int
	damaged  int  // lines
	foreign  bool // another version's
}

// load reads the state from a file: put takes a record, drop an address of which
// nothing is known after all, each in its turn.
func load(f io.ReadSeeker, now anchor, put func(book.Record), drop func(book.Key)) (Loaded, error) {
	l := Loaded{Values: map[string]string{}}
	anchors := map[string]anchor{now.boot: now} // the last ones
	err := eachLine(f, func(line []byte) {
		if line[0] == 'b' || line[0] == 'd' {
			return
		}
		switch e, err := parse(line); {
		case err == errFormat:
			l.foreign = true
		case err != nil:
			l.damaged++
		case e.kind == 't':
			anchors[e.anchor.boot] = e.anchor
			l.SameBoot = e.anchor.sameBoot(now)
		case e.kind == 'v':
			l.Values[e.name] = e.value
		}
	})
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil || l.foreign {
		return l, err
	}
	err = eachLine(f, func(line []byte) {
		if line[0] != 'b' && line[0] != 'd' {
			return
		}
		e, err := parse(line)
		last, known := anchors[e.boot]
		switch {
		case err != nil || e.kind == 'b' && !known:
			l.damaged++
		case e.kind == 'b':
			e.record.Expires += last.shift(now)
			put(e.record)
			l.Records++
		case e.kind == 'd':
			drop(e.record.Key)
		}
	})
	return l, err
}

// eachLine calls do with every line that is not empty, without its line feed. One
// that is far too long comes in pieces, which are damaged lines.
func eachLine(r io.Reader, do func(line []byte)) error {
	b := bufio.NewReaderSize(r, 1<<18)
	for {
		line, err := b.ReadSlice('\n')
		if err == nil {
			line = line[:len(line)-1]
		}
		if len(line) > 0 {
			do(line)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}
