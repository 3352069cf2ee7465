//go:build linux

package store

import (
	"io"
	"os"
	"strconv"
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
	// retryInterval is how long a new file is not tried again that failed.
	retryInterval = 10 * time.Second
	// slack is how many bytes a file may grow by before it is replaced, whatever
	// its size; it may double in any case.
	slack = 1 << 20
	// sizeValue is the name of the value that says how large a file was when it was
	// new.
	sizeValue = "size"
)

// writer is what only the writing goroutine knows.
type writer struct {
	lock, file, next *os.File // nil: none
	base, size       int64    // of the file: when it was new, and now
	nextSize         int64
	last             anchor // in the file
	unsynced         bool
	lastSync, retry  book.Time
}

// use goes on with the file that was loaded. One that is damaged, or has lines of
// another boot, is to be replaced soon.
func (s *Store) use(l Loaded) {
	var err error
	if s.file, err = os.OpenFile(s.path(fileName), os.O_WRONLY|os.O_APPEND, 0); err != nil {
		s.fail(err)
		return
	}
	s.size, _ = s.file.Seek(0, io.SeekEnd)
	s.base, _ = strconv.ParseInt(l.Values[sizeValue], 10, 64)
	if !l.SameBoot || l.damaged > 0 {
		s.base = -slack
	}
}

// write writes what waits.
func (s *Store) write(now anchor) {
	s.mu.Lock()
	w := s.waiting
	s.waiting = waiting{}
	s.mu.Unlock()
	err := s.append(&w, now)
	if err != nil {
		s.fail(err)
		s.file.Close()
		s.file = nil
	}
	if w.lost {
		s.discard()
	}
	if err := s.renew(&w, now); err != nil {
		s.discard()
		s.retry = now.monotonic.Add(retryInterval)
		if s.file == nil {
			s.fail(err)
		} else {
			s.log.Warn("the state cannot be written anew; it grows", "directory", s.dir, "error", err)
		}
	}
	s.want(now)
}

// want asks for a new file if one is needed.
func (s *Store) want(now anchor) {
	if now.monotonic < s.retry || s.file != nil && s.size <= 2*s.base+slack {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = !s.within && !s.begun
}

// append appends lines to the file, and before them the clocks where they have moved
// against each other, or have not been written down for long. It begins with a line
// feed, as what is there may end within a line.
func (s *Store) append(w *waiting, now anchor) error {
	if s.file == nil {
		return nil
	}
	if w.lost {
		return errBehind
	}
	b := []byte{'\n'}
	moved := (now.wall - int64(now.monotonic)) - (s.last.wall - int64(s.last.monotonic))
	if max(moved, -moved) >= 1000 || now.monotonic.Sub(s.last.monotonic) >= anchorInterval {
		b = (&entry{kind: 't', anchor: now}).appendTo(b)
		s.last = now
	}
	if b = append(b, w.lines...); len(b) > 1 {
		if !s.isAt(fileName, s.file) {
			return os.ErrNotExist
		}
		n, err := s.file.Write(b)
		if s.size += int64(n); err != nil {
			return err
		}
		s.unsynced = true
	}
	if s.unsynced && now.monotonic.Sub(s.lastSync) >= syncInterval {
		s.unsynced, s.lastSync = false, now.monotonic
		return unix.Fdatasync(int(s.file.Fd()))
	}
	return nil
}

// renew writes the new file, and puts it into the old one's place when it is
// complete.
func (s *Store) renew(w *waiting, now anchor) (err error) {
	var b []byte
	clocks := entry{kind: 't', anchor: now}
	if w.begun {
		s.discard()
		if err := s.acquire(); err != nil {
			return err
		}
		s.nextSize = 0
		if s.next, err = os.OpenFile(s.path(newName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o640); err != nil {
			return err
		}
		b = clocks.appendTo((&entry{kind: 'h'}).appendTo(nil))
	}
	if s.next == nil {
		return nil
	}
	b = append(b, w.fresh...)
	if w.ended {
		// Again the clocks, which may have moved, and one line may get damaged.
		size := entry{kind: 'v', name: sizeValue, value: strconv.FormatInt(s.nextSize+int64(len(b)), 10)}
		b = clocks.appendTo(size.appendTo(b))
	}
	n, err := s.next.Write(b)
	s.nextSize += int64(n)
	if err == nil {
		err = unix.Fdatasync(int(s.next.Fd()))
	}
	if err != nil || !w.ended {
		return err
	}
	if err := os.Rename(s.path(newName), s.path(fileName)); err != nil {
		return err
	}
	s.file.Close()
	s.file, s.next, s.last = s.next, nil, now
	s.base, s.size = s.nextSize, s.nextSize
	if s.failure.Swap(nil) != nil {
		s.log.Info("blocks are persisted again", "directory", s.dir)
	}
	return nil
}

// discard gives the new file up.
func (s *Store) discard() {
	if s.next != nil {
		s.next.Close()
		s.next = nil
		os.Remove(s.path(newName))
	}
}
