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
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/firewall/book"
)

const (
	// Interval is how often changes are written.
	Interval = 100 * time.Millisecond
	// syncInterval is how often they are sent to the disk itself (fdatasync(2)).
	syncInterval = time.Second
	// anchorInterval is how often at least the clocks are written down.
	anchorInterval = time.Minute
	// retryInterval is how often it is tried again after a failure.
	retryInterval = 10 * time.Second
	// Slack is how many bytes a file may grow by before it is replaced, whatever
	// its size; it may double in any case.
	slack = 1 << 20
	// most bounds what waits for a disk that hangs, in bytes. What exceeds it is
	// dropped, and a new file wanted.
	most = 32 << 20
)

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
	dir    string
	lock   *os.File
	clock  Clock
	log    *slog.Logger
	wanted atomic.Bool
	failed atomic.Pointer[error]

	mu     sync.Mutex // guards what follows, and is held for copying alone
	lines  []byte     // for the file
	fresh  []byte     // for the new one
	begun  bool       // since the last write
	ended  bool       // likewise
	within bool       // between Begin and End
	lost   bool       // some of lines

	// Of the writing goroutine.
	file, next *os.File
	base, size int64 // of the file: when it was complete, and now
	nextSize   int64
	last       anchor
	lastAnchor time.Time
	synced     bool
	lastSync   time.Time
	retry      time.Time
}

// Open takes a directory, made if need be, for the state. Where it cannot be used
// that is logged, and tried again: the error wraps [ErrInUse] and nothing else.
func Open(dir string, clock Clock, log *slog.Logger) (*Store, error) {
	s := &Store{dir: dir, clock: clock, log: log}
	err := os.MkdirAll(dir, 0o750)
	if err == nil {
		s.lock, err = os.OpenFile(s.path(lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	}
	if err == nil {
		if err = unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
			s.lock.Close()
			return nil, fmt.Errorf("state directory %s: %w", dir, ErrInUse)
		}
	}
	if err != nil {
		s.fail(err)
	}
	return s, nil
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// Load reads the state: put takes a record, drop an address of which nothing is
// known after all. What cannot be read is logged, and costs nothing else; a file of
// another version is put aside.
func (s *Store) Load(put func(book.Record), drop func(book.Key)) Loaded {
	if s == nil {
		return Loaded{}
	}
	os.Remove(s.path(newName))
	f, err := os.OpenFile(s.path(fileName), os.O_RDWR|os.O_APPEND, 0)
	var l Loaded
	if err == nil {
		s.last = s.clock.anchor()
		l, err = load(f, s.last, put, drop)
	}
	if err == nil && !l.foreign && l.SameBoot && l.damaged == 0 {
		s.file = f
		s.size, _ = f.Seek(0, io.SeekEnd)
		s.base = s.size
		return l
	}
	s.wanted.Store(true)
	if f != nil {
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
	return l
}

// Put tells of a record, Drop of an address of which nothing is known any more, and
// Value of something else, of which there is little: neither name nor value has a
// space in it.
func (s *Store) Put(r book.Record) {
	s.add(func(b []byte) []byte { return appendRecord(b, r) }, true)
}

// Drop is described at [Store.Put].
func (s *Store) Drop(k book.Key) { s.add(func(b []byte) []byte { return appendDeleted(b, k) }, true) }

// Value is described at [Store.Put].
func (s *Store) Value(name, value string) {
	s.add(func(b []byte) []byte { return appendValue(b, name, value) }, true)
}

func (s *Store) add(line func([]byte) []byte, changed bool) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lines)+len(s.fresh) > most {
		s.lines, s.fresh, s.within, s.begun, s.ended, s.lost = nil, nil, false, false, false, true
		s.fail(errBehind)
		return
	}
	if changed {
		s.lines = line(s.lines)
	}
	if s.within || s.ended { // and not yet in place
		s.fresh = line(s.fresh)
	}
}

// Wanted reports whether the file is to be replaced.
func (s *Store) Wanted() bool { return s != nil && s.wanted.Load() }

// Begin begins a new file.
func (s *Store) Begin() {
	s.wanted.Store(false)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fresh, s.within, s.begun, s.ended = nil, true, true, false
}

// Tell tells of a record between Begin and End that has not changed. It reports
// false where the disk is behind, and there is no hurry.
func (s *Store) Tell(r book.Record) (ok bool) {
	s.add(func(b []byte) []byte { return appendRecord(b, r) }, false)
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.fresh) < most/4
}

// End says that everything was told, and has the new file take the old one's place.
func (s *Store) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.within, s.ended = false, s.within
}

// Failure returns why what happens is not on disk at the moment, or nil.
func (s *Store) Failure() error {
	if s == nil {
		return nil
	}
	if err := s.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// fail notes a failure, which is over when a new file is in place.
func (s *Store) fail(err error) {
	if s.failed.Swap(&err) == nil {
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
		}
		s.write()
	}
	if s.file != nil {
		s.file.Sync()
		s.file.Close()
	}
	s.discard()
	if s.lock != nil {
		s.lock.Close()
	}
	return nil
}

// write writes what waits.
func (s *Store) write() {
	s.mu.Lock()
	lines, fresh, begun, ended, lost := s.lines, s.fresh, s.begun, s.ended, s.lost
	s.lines, s.fresh, s.begun, s.ended, s.lost = nil, nil, false, false, false
	s.mu.Unlock()
	now := s.clock.anchor()
	var err error
	if lost {
		err = errBehind
	} else {
		err = s.writeFile(lines, now)
	}
	if begun {
		s.discard()
		err = errors.Join(err, s.create(now))
	}
	if s.next != nil && len(fresh) > 0 {
		n, writeErr := s.next.Write(fresh)
		s.nextSize += int64(n)
		err = errors.Join(err, writeErr)
	}
	if ended && err == nil && s.next != nil {
		err = s.replace()
	}
	if s.file != nil && !s.synced && time.Since(s.lastSync) > syncInterval {
		err = errors.Join(err, unix.Fdatasync(int(s.file.Fd())))
		s.synced, s.lastSync = true, time.Now()
	}
	if err != nil {
		// What the file has is complete up to here; the rest a new one will have.
		s.fail(err)
		s.discard()
		if s.file != nil {
			s.file.Close()
			s.file = nil
		}
		s.retry = time.Now().Add(retryInterval)
	}
	if s.next == nil && (s.file == nil && time.Now().After(s.retry) || s.file != nil && s.size > 2*s.base+slack) {
		s.mu.Lock()
		s.wanted.Store(!s.within)
		s.mu.Unlock()
	}
}

// writeFile appends lines to the file, and the clocks before them, or where they
// have not been written down for long, or moved against each other.
func (s *Store) writeFile(lines []byte, now anchor) error {
	if s.file == nil {
		return nil
	}
	moved := (now.wall - int64(now.monotonic)) - (s.last.wall - int64(s.last.monotonic))
	if len(lines) == 0 && max(moved, -moved) < 1000 && time.Since(s.lastAnchor) < anchorInterval {
		return nil
	}
	s.last, s.lastAnchor = now, time.Now()
	n, err := s.file.Write(append(appendAnchor(nil, now), lines...))
	s.size += int64(n)
	s.synced = false
	return err
}

// create creates the new file.
func (s *Store) create(now anchor) (err error) {
	if err := os.MkdirAll(s.dir, 0o750); err != nil {
		return err
	}
	s.next, err = os.OpenFile(s.path(newName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	n, err := s.next.Write(appendAnchor(appendHeader(nil), now))
	s.nextSize = int64(n)
	return err
}

// replace puts the new file into the old one's place.
func (s *Store) replace() error {
	if err := s.next.Sync(); err != nil {
		return err
	}
	if err := os.Rename(s.path(newName), s.path(fileName)); err != nil {
		return err
	}
	if s.file != nil {
		s.file.Close()
	}
	s.file, s.next = s.next, nil
	s.base, s.size = s.nextSize, s.nextSize
	if s.failed.Swap(nil) != nil {
		s.log.Info("blocks are persisted again", "directory", s.dir)
	}
	return nil
}

// discard gives the new file up.
func (s *Store) discard() {
	if s.next == nil {
		return
	}
	s.next.Close()
	s.next = nil
	os.Remove(s.path(newName))
}
