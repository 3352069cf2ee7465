//go:build linux

// Package store keeps the book on disk: one file of checksummed lines, which grows
// at its end, and is replaced from time to time by one that has each address once.
//
// Whoever owns the book tells the store what has changed, which costs no more than
// formatting a line, and the store writes it within [Interval]: a disk that hangs,
// is full or broken stops nothing but persistence. To replace the file the owner is
// asked ([Store.Wanted]) to tell everything from the beginning, between other
// things ([Store.Begin] to [Store.End]); what changes meanwhile goes into both files,
// so that either is complete at any time.
//
// The state is of one daemon: a lock file next to it says so.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/firewall/book"
)

// most bounds what waits for a disk that hangs, in bytes. What exceeds it is dropped,
// and a new file wanted.
const most = 32 << 20

const (
	fileName = "blocks"
	newName  = "blocks.new"
	oldName  = "blocks.unreadable"
	lockName = "lock"
)

// ErrInUse says that another process has the directory's lock.
var ErrInUse = errors.New("another rblnftd uses it")

var errBehind = errors.New("the disk does not take it in time")

// A Store keeps the state in a directory. A nil Store keeps nothing.
type Store struct {
	dir     string
	clock   Clock
	boot    string
	log     *slog.Logger
	failure atomic.Pointer[error]

	mu     sync.Mutex // guards what waits, and is held for copying alone
	wanted bool
	within bool // between Begin and End
	waiting

	writer
}

// waiting is what the writer has yet to do.
type waiting struct {
	lines []byte // for the file
	lost  bool   // some of them
	fresh []byte // for the new file,
	begun bool   // which is to be created,
	ended bool   // and takes the place of the old one
}

// Open takes a directory, made if need be, for the state. Where it cannot be used
// that is logged, and tried again: the error wraps [ErrInUse] and nothing else.
func Open(dir string, clock Clock, log *slog.Logger) (*Store, error) {
	s := &Store{dir: dir, clock: clock, boot: clock.anchor().boot, log: log}
	if err := s.acquire(); errors.Is(err, ErrInUse) {
		return nil, err
	} else if err != nil {
		s.fail(err)
	}
	return s, nil
}

// acquire makes sure that the directory is there, and ours.
func (s *Store) acquire() error {
	if err := os.MkdirAll(s.dir, 0o750); err != nil {
		return err
	}
	if s.lock != nil && s.isAt(lockName, s.lock) {
		return nil
	}
	lock, err := os.OpenFile(s.path(lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if err == unix.EWOULDBLOCK {
			err = ErrInUse
		}
		return fmt.Errorf("state directory %s: %w", s.dir, err)
	}
	s.lock.Close()
	s.lock = lock
	return nil
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// isAt reports whether nobody has moved or removed an open file.
func (s *Store) isAt(name string, f *os.File) bool {
	there, err := os.Stat(s.path(name))
	ours, err2 := f.Stat()
	return err == nil && err2 == nil && os.SameFile(there, ours)
}

// Load reads the state: put takes a record, drop an address of which nothing is
// known after all. What cannot be read is logged, and costs nothing else; a file of
// another version is put aside.
func (s *Store) Load(put func(book.Record), drop func(book.Key)) (l Loaded) {
	if s == nil {
		return l
	}
	os.Remove(s.path(newName))
	now := s.clock.anchor()
	f, err := os.Open(s.path(fileName))
	if err == nil {
		l, err = load(f, now, put, drop)
		f.Close()
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		s.log.Error("the state cannot be read", "file", s.path(fileName), "error", err)
	case l.foreign:
		s.log.Error("the state is of another version: put aside", "file", s.path(oldName), "error", os.Rename(s.path(fileName), s.path(oldName)))
	case l.damaged > 0:
		s.log.Warn("the state is damaged", "file", s.path(fileName), "lines_lost", l.damaged, "records", l.Records)
	}
	if err == nil && !l.foreign && s.lock != nil {
		s.use(l)
	}
	s.want(now)
	return l
}

// Put tells of a record, Drop of an address of which nothing is known any more, and
// Value of something else, of which there is little: neither name nor value has a
// space in it.
func (s *Store) Put(r book.Record) { s.add(entry{kind: 'b', record: r}, true) }

// Drop is described at [Store.Put].
func (s *Store) Drop(k book.Key) { s.add(entry{kind: 'd', record: book.Record{Key: k}}, true) }

// Value is described at [Store.Put].
func (s *Store) Value(name, value string) { s.add(entry{kind: 'v', name: name, value: value}, true) }

// Tell tells of a record between Begin and End that has not changed. It reports
// false where the disk is behind, and there is no hurry.
func (s *Store) Tell(r book.Record) (ok bool) { return s.add(entry{kind: 'b', record: r}, false) }

func (s *Store) add(e entry, changed bool) (ok bool) {
	if s == nil {
		return true
	}
	e.boot = s.boot
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lines)+len(s.fresh) > most {
		s.waiting, s.within = waiting{lost: true}, false
		s.fail(errBehind)
	}
	if changed {
		s.lines = e.appendTo(s.lines)
	}
	if s.within || s.ended {
		s.fresh = e.appendTo(s.fresh)
	}
	return len(s.fresh) < most/4
}

// Wanted reports whether the file is to be replaced.
func (s *Store) Wanted() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted
}

// Begin begins a new file.
func (s *Store) Begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted, s.within = false, true
	s.fresh, s.begun, s.ended = nil, true, false
}

// End says that everything was told, and has the new file take the old one's place.
func (s *Store) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.within, s.ended = false, true
}

// Failure returns why what happens is not on disk at the moment, or nil.
func (s *Store) Failure() error {
	if s == nil {
		return nil
	}
	if err := s.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// fail notes a failure, which is over when a new file is in place.
func (s *Store) fail(err error) {
	if s.failure.Swap(&err) == nil {
		s.log.Error("blocks are not persisted; blocking goes on, and this is tried again", "directory", s.dir, "error", err)
	}
}

// Run writes until ctx is done, then what is left, and gives the lock back.
func (s *Store) Run(ctx context.Context) error {
	if s == nil {
		return nil
	}
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			s.write(s.clock.anchor())
		}
	}
	s.write(s.clock.anchor())
	s.discard()
	if s.file != nil {
		s.file.Sync()
	}
	s.file.Close()
	s.lock.Close()
	return nil
}
