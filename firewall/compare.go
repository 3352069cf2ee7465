package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// listLimit bounds how long a set is listed only to find what somebody
	// added unheard.
	listLimit = 2 * time.Second
	// settle is how long an element is missing before it counts as deleted,
	// where notifications were lost: a commit may be under way.
	settle = 200 * time.Millisecond
)

// A comparison is how the sets of blocked addresses differ from a State's
// blocks.
type comparison struct {
	missing []Block // what they lack of these
	added   []Block // what else they hold
	// partial: a set was about to be filled, and was passed over.
	partial bool
	took    time.Duration
	err     error
}

// differences compares the sets with blocks. It needs some eight seconds for a
// million, and time as the number of blocks, because it asks for each one; of
// what sets of more than some 200,000 elements hold else it may not find all.
//
// A set that is about to be filled by Run, or that is not there, is passed over.
func (t *Table) differences(ctx context.Context, blocks iter.Seq[Block]) (c comparison) {
	for family, s := range t.sets {
		if !t.filled(s) {
			c.partial = c.partial || t.usable(s)
			continue
		}
		listed, _, err := readBlocks(ctx, t.at, s.name, listLimit)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			c.err = err
			return c
		}
		more := make(map[netip.Prefix]int, len(listed))
		for i, b := range listed {
			more[b.Prefix] = i
		}
		unlisted := func(yield func(Block) bool) {
			for b := range blocks {
				if familyOf(b.Prefix) != family {
					continue
				}
				if _, ok := more[b.Prefix]; ok {
					delete(more, b.Prefix)
				} else if !yield(b) {
					return
				}
			}
		}
		lacks, err := t.missing(ctx, s, unlisted)
		// What was seen may be half of this set and half of the next.
		if !t.filled(s) {
			c.partial = c.partial || t.usable(s)
			continue
		}
		if err != nil {
			c.err = err
			return c
		}
		if !t.isCrowded(s) {
			c.missing = append(c.missing, lacks...)
		}
		for _, i := range more {
			c.added = append(c.added, listed[i])
		}
	}
	return c
}

// filled reports whether the set that is known still stands, and was filled.
func (t *Table) filled(s *blockedSet) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.stale || s.problem != nil {
		return false
	}
	table, err := readTable(t.at)
	if err != nil {
		return false
	}
	sets, err := readSets(t.at)
	return err == nil && s.identity == identity{table.handle, sets[s.name].handle}
}

// usable reports whether a set is one to be filled at all.
func (t *Table) usable(s *blockedSet) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return s.problem == nil
}

// isCrowded reports whether a set lacks blocks because there was no room.
func (t *Table) isCrowded(s *blockedSet) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return s.crowded
}

// perQuestion is how many elements the kernel is asked for at once.
const perQuestion = 500

// missing returns those of blocks that a set lacks, by asking the kernel for
// each one.
func (t *Table) missing(ctx context.Context, s *blockedSet, blocks iter.Seq[Block]) (missing []Block, err error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	defer c.close()
	var ask batch
	part := make([]Block, 0, perQuestion)
	question := func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		ask.questions(byte(t.at.Family), t.at.Name)
		for _, b := range part {
			ask.message(unix.NFT_MSG_GETSETELEM, 0, s.name, func(buf []byte) []byte { return appendKey(buf, b.Prefix.Addr()) })
		}
		there, err := c.ask(&ask)
		for i, ok := range there {
			if !ok {
				missing = append(missing, part[i])
			}
		}
		part = part[:0]
		return err
	}
	for b := range blocks {
		if part = append(part, b); len(part) == perQuestion {
			if err := question(); err != nil {
				return nil, fmt.Errorf("ask for elements of %s: %w", s.name, err)
			}
		}
	}
	if len(part) > 0 {
		if err := question(); err != nil {
			return nil, fmt.Errorf("ask for elements of %s: %w", s.name, err)
		}
	}
	return missing, nil
}

// ask sends questions for single elements, and reports for each whether the
// element is there. Elements of a set that does not exist are not there.
func (c *conn) ask(b *batch) (there []bool, err error) {
	defer func() {
		if err != nil {
			c.drain()
		}
	}()
	if err := c.send(b.buf); err != nil {
		return nil, err
	}
	there = make([]bool, b.n)
	for answers := 0; answers < b.n; answers++ {
		n, err := c.receive()
		if err != nil {
			return nil, fmt.Errorf("netlink receive: %w", err)
		}
		// Every answer is a datagram with one message.
		if n < unix.SizeofNlMsghdr+4 {
			return nil, errors.New("netlink receive: malformed reply")
		}
		message := int(binary.NativeEndian.Uint32(c.in[8:]) - b.seq - 1)
		if message < 0 || message >= b.n {
			return nil, errors.New("netlink receive: reply to nothing")
		}
		if binary.NativeEndian.Uint16(c.in[4:]) != unix.NLMSG_ERROR {
			there[message] = true
			continue
		}
		errno := unix.Errno(-int32(binary.NativeEndian.Uint32(c.in[unix.SizeofNlMsghdr:])))
		if errno != unix.ENOENT {
			return nil, errno
		}
	}
	return there, nil
}

// compareElements compares the sets with state, twice where they differ.
func (t *Table) compareElements(ctx context.Context, state State) (c comparison) {
	start := time.Now()
	defer func() { c.took = time.Since(start) }()
	c = t.differences(ctx, state.Blocks())
	if c.err != nil || len(c.missing)+len(c.added) == 0 {
		return c
	}
	select {
	case <-ctx.Done():
		c.err = ctx.Err()
		return c
	case <-time.After(settle):
	}
	missing, _, err := t.sort(ctx, c.missing)
	_, added, err2 := t.sort(ctx, c.added)
	c.missing, c.added, c.err = missing, added, errors.Join(err, err2)
	return c
}

// sort tells those of blocks that sets that are filled lack from those that
// they have.
func (t *Table) sort(ctx context.Context, blocks []Block) (lacking, present []Block, err error) {
	for family, s := range t.sets {
		if !t.filled(s) {
			continue
		}
		ofFamily := func(yield func(Block) bool) {
			for _, b := range blocks {
				if familyOf(b.Prefix) == family && !yield(b) {
					return
				}
			}
		}
		missing, err := t.missing(ctx, s, ofFamily)
		if !t.filled(s) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		gone := make(map[netip.Prefix]bool, len(missing))
		for _, b := range missing {
			gone[b.Prefix] = true
		}
		lacking = append(lacking, missing...)
		for b := range ofFamily {
			if !gone[b.Prefix] {
				present = append(present, b)
			}
		}
	}
	return lacking, present, nil
}
