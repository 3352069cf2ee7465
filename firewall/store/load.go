//go:build linux

package store

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/firewall/book"
)

// An anchor ties the two clocks to each other.
type anchor struct {
	wall      int64 // milliseconds of Unix time
	monotonic book.Time
	boot      string // which boot CLOCK_MONOTONIC is of
}

// A Clock tells the time. It is for tests to replace.
type Clock func() (wall time.Time, monotonic book.Time, boot string)

// Now is the machine's own [Clock]. Each boot has a name of its own
// (/proc/sys/kernel/random/boot_id, random(4)).
func Now() (wall time.Time, monotonic book.Time, boot string) {
	return time.Now(), Monotonic(), bootID()
}

// Monotonic is what CLOCK_MONOTONIC says.
func Monotonic() book.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // no kernel is without it
	}
	return book.Time(ts.Nano() / 1e6)
}

func (c Clock) anchor() anchor {
	wall, monotonic, boot := c()
	return anchor{wall.UnixMilli(), monotonic, boot}
}

// shift is what has to be added to a moment in a file whose last anchor is then, so
// that it is one of CLOCK_MONOTONIC at now. In the same boot that is nothing,
// whatever the wall clock did. After another one the wall clock tells how much time
// has passed; one that is behind tells nothing, and no block gets longer by it than
// it was when last heard of.
func (then anchor) shift(now anchor) book.Time {
	if then.boot == now.boot && then.monotonic <= now.monotonic {
		return 0
	}
	passed := book.Time(max(0, now.wall-then.wall))
	return now.monotonic - then.monotonic - passed
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
func load(f io.ReadSeeker, now anchor, put func(book.Record), drop func(book.Key)) (l Loaded, err error) {
	var last anchor
	l.Values = map[string]string{}
	err = eachLine(f, func(line []byte) error {
		if len(line) > 0 && (line[0] == 'b' || line[0] == 'd') {
			return nil
		}
		switch e, err := parse(line); {
		case errors.Is(err, errFormat):
			l.foreign = true
		case err != nil:
		case e.kind == 't':
			last = e.anchor
		case e.kind == 'v':
			l.Values[e.name] = e.value
		}
		return nil
	})
	if err != nil || l.foreign {
		return l, err
	}
	l.SameBoot = last.boot == now.boot && last.monotonic <= now.monotonic
	shift := last.shift(now)
	if _, err = f.Seek(0, io.SeekStart); err != nil {
		return l, err
	}
	err = eachLine(f, func(line []byte) error {
		e, err := parse(line)
		switch {
		case err != nil:
			l.damaged++
		case last == anchor{}:
			// Without a clock no time means anything.
			l.damaged++
		case e.kind == 'b':
			e.record.Expires += shift
			put(e.record)
			l.Records++
		case e.kind == 'd':
			drop(e.record.Key)
		}
		return nil
	})
	return l, err
}

// eachLine calls do with every line, without its line feed. One that is too long
// comes in pieces, which are damaged lines.
func eachLine(r io.Reader, do func(line []byte) error) error {
	b := bufio.NewReaderSize(r, 1<<18)
	for {
		line, err := b.ReadSlice('\n')
		if n := len(line); n > 0 && line[n-1] == '\n' {
			line = line[:n-1]
		}
		if len(line) > 0 || err == nil {
			if err := do(line); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("read: %w", err)
		}
	}
}

// bootID is the name of this boot; where it cannot be read every start counts as a
// boot.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(id) < 36 {
		return fmt.Sprintf("unknown-%d-%d", os.Getpid(), time.Now().UnixNano())
	}
	return string(id[:36])
}
