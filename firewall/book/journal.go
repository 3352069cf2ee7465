package book

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A journal is the book on disk: a snapshot of all records, and after it
// segments to which changes are appended. Entries are read in this order, and
// the last one about an address holds. Compaction starts a new segment, writes
// a new snapshot, and deletes the segments before.
//
// A change is written (write(2)) before the kernel is told of it, so that it
// survives the end of the program, however it comes. It is on the disk
// (fdatasync(2)) a second later, so that a loss of power costs a second.
//
// A disk that is full, or fails, stops persisting and nothing else. Then
// compaction is tried until it succeeds, which makes up for what was missed.
//
// Its methods can be called on nil, which persists nothing.
type journal struct {
	dir  string
	log  *slog.Logger
	lock *os.File

	mu     sync.Mutex // guards what follows
	file   *os.File   // the segment that is appended to; nil: none
	size   int64      // its length, of whole lines
	number int        // its number
	old    []string   // segments that a new snapshot makes superfluous
	lines  int        // in all segments, since the snapshot
	missed bool       // something was not written: compaction is due
	failed error      // why it was not; it has been said
	synced bool       // all of file is on the disk
	buf    []byte

	retry time.Time // when to try compaction again; the compacting task's own

	// unread: there may be entries that could not be read at the start, so
	// that there is no compaction before the next one.
	unread bool
}

const (
	snapshotName = "snapshot"
	segmentName  = "journal-"
	// These bound what a start has to read beyond the snapshot.
	maxSegments = 16
	fewLines    = 20_000
	retryAfter  = 10 * time.Second
)

// ErrInUse says that another process keeps its book in the same directory.
var ErrInUse = errors.New("in use by another process")

// openJournal opens the journal in dir and calls each with all its entries.
// Whatever is damaged is logged and passed over; the error is ErrInUse, and
// nothing else.
func openJournal(dir string, log *slog.Logger, each func(entry)) (*journal, error) {
	j := &journal{dir: dir, log: log}
	if err := j.takeLock(); err != nil {
		return nil, err
	}
	started := time.Now()
	names, numbers, err := j.files()
	if err != nil {
		// What may be in it must not be overwritten.
		j.unread = !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR)
		j.fail(err)
		return j, nil
	}
	lines := 0
	for i, name := range names {
		n, err := j.load(name, each)
		lines += n
		if err != nil && err != errHeader {
			j.unread = true
			log.Error("a file of the journal cannot be read; it is kept, and the journal grows until the next start",
				"file", filepath.Join(dir, name), "error", err)
		} else if err != nil {
			aside := name + ".unreadable"
			log.Error("a file of the journal is put aside", "file", filepath.Join(dir, name), "error", err,
				"aside", aside, "rename", os.Rename(filepath.Join(dir, name), filepath.Join(dir, aside)))
			continue
		}
		if name != snapshotName {
			j.lines += n
			j.old = append(j.old, name)
		}
		j.number = max(j.number, numbers[i])
	}
	if err := j.startSegment(); err != nil {
		j.fail(err)
	}
	log.Info("journal read", "dir", dir, "files", len(names), "lines", lines, "took", time.Since(started).Round(time.Millisecond))
	return j, nil
}

// takeLock makes sure that nobody else writes to the directory. A directory
// that cannot be written to is one of those faults that only stop persisting.
func (j *journal) takeLock() error {
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(j.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		f.Close()
		return fmt.Errorf("state directory %s: %w", j.dir, ErrInUse)
	}
	j.lock = f
	return nil
}

// files returns the names of the files in the order in which they are read,
// and segments' numbers.
func (j *journal) files() (names []string, numbers []int, err error) {
	dir, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, nil, err
	}
	for _, f := range dir {
		switch name := f.Name(); {
		case name == snapshotName:
			names, numbers = slices.Insert(names, 0, name), slices.Insert(numbers, 0, 0)
		case strings.HasPrefix(name, segmentName):
			// ReadDir sorts, and the numbers have all the same length.
			if n, err := strconv.Atoi(name[len(segmentName):]); err == nil {
				names, numbers = append(names, name), append(numbers, n)
			}
		}
	}
	return names, numbers, nil
}

// load reads one file. An error means that it is none of ours.
func (j *journal) load(name string, each func(entry)) (lines int, err error) {
	f, err := os.Open(filepath.Join(j.dir, name))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	d, err := readEntries(f, each)
	if err != nil {
		return 0, err
	}
	if d.bad > 0 {
		j.log.Warn("the journal is damaged", "file", f.Name(), "lines_lost", d.bad, "bytes_lost", d.bytes,
			"first_at_byte", d.first, "lines_read", d.lines, "error", d.err)
	}
	return d.lines, nil
}

// damage says how much of a file could be read.
type damage struct {
	lines int   // good ones
	bad   int   // others
	bytes int64 // of those
	first int64 // where the first one begins
	err   error // what is wrong with it
}

var errHeader = errors.New("the file does not begin as a journal of this version does")

// readEntries calls each with every good entry of a file. Its error is
// errHeader; an error of reading ends the file like any other damage. A file
// too short for its header is empty.
func readEntries(f io.Reader, each func(entry)) (d damage, err error) {
	r := bufio.NewReaderSize(f, 1<<16)
	var at int64
	spoiled := func(n int, err error) {
		if d.bad == 0 {
			d.first, d.err = at, err
		}
		d.bad++
		d.bytes += int64(n)
	}
	want := appendHeader(nil)
	for {
		line, err := r.ReadSlice('\n')
		whole := err == nil
		length := len(line)
		for err == bufio.ErrBufferFull { // no line of ours
			var more []byte
			more, err = r.ReadSlice('\n')
			length += len(more)
		}
		switch {
		case at == 0 && length == 0:
		case at == 0 && string(line) == string(want):
		case at == 0 && !whole && length < len(want) && strings.HasPrefix(string(want), string(line)):
			spoiled(length, errHeader)
		case at == 0:
			return damage{}, errHeader
		case length > maxLine:
			spoiled(length, errLine)
		case length > 0:
			e, parseErr := parseEntry(line)
			if parseErr != nil {
				spoiled(length, parseErr)
				break
			}
			d.lines++
			each(e)
		}
		at += int64(length)
		if err == io.EOF {
			return d, nil
		}
		if err != nil {
			spoiled(0, err)
			return d, nil
		}
	}
}

// startSegment makes a new segment the one that is appended to.
func (j *journal) startSegment() error {
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return err
	}
	j.mu.Lock()
	number := j.number + 1
	j.mu.Unlock()
	name := filepath.Join(j.dir, segment(number))
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	head := appendHeader(nil)
	_, err = f.Write(head)
	if err == nil {
		err = errors.Join(f.Sync(), syncDir(j.dir))
	}
	if err != nil {
		f.Close()
		os.Remove(name)
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.leaveSegment()
	j.file, j.size, j.number, j.synced = f, int64(len(head)), number, true
	return nil
}

func segment(number int) string { return fmt.Sprintf("%s%010d", segmentName, number) }

// append writes entries. If that fails, it is said, and made up for later.
func (j *journal) append(entries []entry) {
	if j == nil || len(entries) == 0 {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		j.missed = true
		return
	}
	j.buf = j.buf[:0]
	for i := range entries {
		j.buf = entries[i].appendTo(j.buf)
	}
	n, err := j.file.Write(j.buf)
	if err != nil {
		j.failLocked(err)
		if n > 0 && j.file.Truncate(j.size) != nil {
			// A torn line is its end, or the next one would be lost too.
			j.leaveSegment()
		}
		return
	}
	j.size += int64(n)
	j.lines += len(entries)
	j.synced = false
	if cap(j.buf) > 1<<20 {
		j.buf = nil
	}
}

// leaveSegment ends the segment that is appended to.
func (j *journal) leaveSegment() {
	if j.file != nil {
		j.old = append(j.old, segment(j.number))
		j.file.Close()
		j.file = nil
	}
}

func (j *journal) fail(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.failLocked(err)
}

// failLocked says, once, that something is not persisted.
func (j *journal) failLocked(err error) {
	j.missed = true
	if j.failed == nil {
		j.failed = err
		j.log.Error("blocks are not persisted; blocking goes on, and this is tried again",
			"dir", j.dir, "error", err, "again_after", retryAfter)
	}
}

// failure returns why something is not persisted.
func (j *journal) failure() error {
	if j == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failed
}

// sync puts on the disk what was appended.
func (j *journal) sync() {
	if j == nil {
		return
	}
	// Not with mu held: appending goes on. A descriptor of its own outlives
	// the segment's end.
	fd := -1
	j.mu.Lock()
	if j.file != nil && !j.synced {
		var err error
		if fd, err = unix.FcntlInt(j.file.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			fd = -1
		}
		j.synced = fd >= 0
	}
	j.mu.Unlock()
	if fd < 0 {
		return
	}
	defer unix.Close(fd)
	if err := unix.Fdatasync(fd); err != nil {
		j.fail(fmt.Errorf("fdatasync: %w", err))
	}
}

// compact writes a new snapshot where that is due: records is how many it
// would have. It is given up when ctx is done.
func (j *journal) compact(ctx context.Context, records int, all iter.Seq[[]entry]) {
	if j == nil || j.unread {
		return
	}
	j.mu.Lock()
	missed := j.missed
	due := missed || len(j.old) >= maxSegments || j.lines > max(fewLines, records)
	j.mu.Unlock()
	if !due || time.Now().Before(j.retry) {
		return
	}
	err := j.rewrite(ctx, all)
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case errors.Is(err, context.Canceled):
		j.missed = j.missed || missed
	case err != nil && missed:
		j.failLocked(err)
	case err != nil:
		j.log.Warn("the journal cannot be compacted, and grows", "dir", j.dir, "error", err, "again_after", retryAfter)
	case j.failed != nil && !j.missed:
		j.failed = nil
		j.log.Info("blocks are persisted again", "dir", j.dir)
	}
	if err != nil || j.missed {
		j.retry = time.Now().Add(retryAfter)
	}
}

// rewrite compacts. Appending goes on meanwhile, to a segment that is read
// after the snapshot and so says the last word about every address in it.
func (j *journal) rewrite(ctx context.Context, all iter.Seq[[]entry]) error {
	if err := j.startSegment(); err != nil {
		return err
	}
	j.mu.Lock()
	j.missed = false
	j.lines = 0
	old := j.old
	j.mu.Unlock()

	temporary := filepath.Join(j.dir, snapshotName+".new")
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	buf := appendHeader(nil)
	for chunk := range all {
		for i := range chunk {
			buf = chunk[i].appendTo(buf)
		}
		if _, err = f.Write(buf); err == nil {
			err = ctx.Err()
		}
		if err != nil {
			break
		}
		buf = buf[:0]
	}
	if err == nil && len(buf) > 0 {
		_, err = f.Write(buf)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(temporary, filepath.Join(j.dir, snapshotName))
	}
	if err != nil {
		os.Remove(temporary)
		return err
	}
	if err := syncDir(j.dir); err != nil {
		return err
	}
	for _, name := range old {
		if err := os.Remove(filepath.Join(j.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			j.log.Warn("an old segment of the journal stays", "error", err)
		}
	}
	j.mu.Lock()
	j.old = j.old[len(old):]
	j.mu.Unlock()
	return nil
}

func (j *journal) close() error {
	if j == nil {
		return nil
	}
	j.sync()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.leaveSegment()
	if j.lock != nil {
		return j.lock.Close()
	}
	return nil
}

// syncDir puts the names in a directory on the disk.
func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
