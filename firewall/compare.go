package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
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

// Compare tells how the sets of blocked addresses differ from blocks: which of
// these they lack, and what else they hold. It needs some eight seconds for a
// million, and time as the number of blocks, because it asks for each one; of
// what sets of more than some 200,000 elements hold else it may not find all.
//
// A set that is about to be filled by Run, or that is not there, is passed over.
func (t *Table) Compare(ctx context.Context, blocks iter.Seq[Block]) (missing []netip.Prefix, added []Block, err error) {
	for family, s := range t.sets {
		if !t.filled(s) {
			continue
		}
		listed, _, err := readBlocks(t.at, s.name, listLimit)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, nil, err
		}
		more := make(map[netip.Prefix]int, len(listed))
		for i, b := range listed {
			more[b.Prefix] = i
		}
		unlisted := func(yield func(netip.Prefix) bool) {
			for b := range blocks {
				if familyOf(b.Prefix) != family {
					continue
				}
				if _, ok := more[b.Prefix]; ok {
					delete(more, b.Prefix)
				} else if !yield(b.Prefix) {
					return
				}
			}
		}
		lacks, err := t.missing(ctx, s, unlisted)
		// What was seen may be half of this set and half of the next.
		if !t.filled(s) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		missing = append(missing, lacks...)
		for _, i := range more {
			added = append(added, listed[i])
		}
	}
	return missing, added, nil
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

// perQuestion is how many elements the kernel is asked for at once.
const perQuestion = 500

// missing returns those of prefixes that a set lacks, by asking the kernel for
// each one.
func (t *Table) missing(ctx context.Context, s *blockedSet, prefixes iter.Seq[netip.Prefix]) (missing []netip.Prefix, err error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	defer c.close()
	var ask batch
	part := make([]netip.Prefix, 0, perQuestion)
	question := func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		ask.questions(byte(t.at.Family), t.at.Name)
		for _, p := range part {
			ask.message(unix.NFT_MSG_GETSETELEM, 0, s.name, func(b []byte) []byte { return appendKey(b, p.Addr()) })
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
	for p := range prefixes {
		if part = append(part, p); len(part) == perQuestion {
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

// compareElements tells state how the sets differ from it.
func (t *Table) compareElements(ctx context.Context, state State) {
	missing, added, err := t.Compare(ctx, state.Blocks())
	if err == nil && len(missing) > 0 {
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
		}
		missing, err = t.stillMissing(ctx, missing)
	}
	if err != nil {
		if ctx.Err() == nil {
			t.log.Error("the elements cannot be compared", "table", t.String(), "error", err)
		}
		return
	}
	for _, b := range added {
		state.Added(b)
	}
	for _, p := range missing {
		state.Removed(p)
	}
	t.log.Info("elements compared", "table", t.String(), "added", len(added), "deleted", len(missing))
}

// stillMissing returns those of prefixes that sets that are filled lack.
func (t *Table) stillMissing(ctx context.Context, prefixes []netip.Prefix) (still []netip.Prefix, err error) {
	for family, s := range t.sets {
		if !t.filled(s) {
			continue
		}
		ofFamily := func(yield func(netip.Prefix) bool) {
			for _, p := range prefixes {
				if familyOf(p) == family && !yield(p) {
					return
				}
			}
		}
		missing, err := t.missing(ctx, s, ofFamily)
		if !t.filled(s) {
			continue
		}
		if err != nil {
			return nil, err
		}
		still = append(still, missing...)
	}
	return slices.Clip(still), nil
}
