package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A change is what is to become of one element.
type change struct {
	key     netip.Addr
	timeout time.Duration // 0: none
	comment string
	known   presence
}

// presence is whether an element is in the kernel's set, as far as is known.
type presence int8

const (
	unknown presence = iota
	present
	absent
)

// A purpose says what a transaction does to elements.
type purpose string

const (
	renew  purpose = "block"   // add, or replace what is there
	fill   purpose = "restore" // add, and leave alone what is there
	remove purpose = "unblock" // delete, if it is there
)

// lastOfEach returns the last change of each element, in the order of their
// first ones.
func lastOfEach(changes []change) []change {
	if len(changes) < 2 {
		return changes
	}
	at := make(map[uint64]int, len(changes))
	kept := changes[:0]
	for _, c := range changes {
		bits := networkBits(c.key)
		if i, ok := at[bits]; ok {
			c.known = kept[i].known
			kept[i] = c
			continue
		}
		at[bits] = len(kept)
		kept = append(kept, c)
	}
	return kept
}

// networkBits are what tells the keys of one set of blocked addresses apart: an
// IPv4 address, or a /64.
func networkBits(key netip.Addr) uint64 {
	if key.Is4() {
		a := key.As4()
		return uint64(binary.BigEndian.Uint32(a[:]))
	}
	a := key.As16()
	return binary.BigEndian.Uint64(a[:8])
}

// apply does the changes, in as many transactions as they need. Between two
// of them others have their turn.
func (t *Table) apply(ctx context.Context, s *blockedSet, p purpose, todo []change) error {
	full := 0
	for len(todo) > 0 {
		part := todo[:min(perTransaction, len(todo))]
		n, err := t.applyOne(ctx, s, p, part)
		full += n
		if err != nil {
			return fmt.Errorf("%s %s in %s: %w", p, names(todo), s.name, err)
		}
		todo = todo[len(part):]
	}
	if full > 0 {
		return fmt.Errorf("%s: %w: no room for %d elements", s.name, ErrFull, full)
	}
	return nil
}

// names says which elements changes are about.
func names(changes []change) string {
	switch n := len(changes); n {
	case 0:
		return "nothing"
	case 1:
		return changes[0].key.String()
	default:
		return fmt.Sprintf("%d addresses, %s and others,", n, changes[0].key)
	}
}

func (t *Table) applyOne(ctx context.Context, s *blockedSet, p purpose, todo []change) (full int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.unblocked != nil {
		for _, c := range todo {
			if p == remove {
				t.unblocked[c.key] = true
			} else {
				delete(t.unblocked, c.key)
			}
		}
	}
	if p != renew || len(todo) < manyElements || t.isUnheard {
		return t.applyLocked(ctx, s, p, todo)
	}
	return t.applyUnheard(func() (int, error) { return t.applyLocked(ctx, s, p, todo) })
}

// attempts bounds how often one transaction is tried. Each failure teaches
// something, so that two or three do; the rest is for a kernel short of memory
// or with a rehash under way.
const attempts = 12

// applyLocked does the changes in one transaction, and returns how many of them
// there is no room for. As a transaction is done as a whole or not at all, and
// nobody knows what the set holds at that moment, it is tried, and where the
// kernel refuses it its answer says what to do differently.
func (t *Table) applyLocked(ctx context.Context, s *blockedSet, p purpose, todo []change) (full int, err error) {
	single, asked := false, false
	for try := 1; len(todo) > 0; try++ {
		if err := ctx.Err(); err != nil {
			return full, err
		}
		if s.problem != nil {
			return full, s.problem
		}
		var l lesson
		var err error
		if t.failsOnMissing && p != fill && !asked {
			// Cheaper than a refusal, for which the kernel waits until no
			// packet is under way (synchronize_rcu in nf_tables_abort).
			err = t.look(s, todo)
			asked = err == nil
		}
		if err == nil {
			parts := t.encode(s, p, todo, single)
			if len(parts) == 0 {
				break
			}
			if half := len(todo) / 2; half > 0 && !t.conn.fits(&t.batch) {
				a, err := t.applyLocked(ctx, s, p, todo[:half])
				if err != nil {
					return full + a, err
				}
				b, err := t.applyLocked(ctx, s, p, todo[half:])
				return full + a + b, err
			}
			// Deleting elements of which none is there changes nothing.
			t.conn.vague = t.conn.vague || p == remove
			var failures []failure
			failures, err = t.conn.commit(&t.batch)
			if err == nil && len(failures) == 0 {
				break
			}
			if err == nil {
				l, err = learn(parts, todo, failures)
			}
			if err == nil && try == attempts {
				err = fmt.Errorf("refused %d times: %w", try, failures[0].errno)
			}
		}
		switch {
		case err == nil:
		case try == attempts:
			return full, err
		case temporary(err):
			pause(ctx, try)
		case t.cfg.Rules && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL)):
			// Somebody removed the set, or put one of another kind in its
			// place. Run puts back what was in it.
			was := s.identity
			if err := t.stand(false); err != nil {
				return full, err
			}
			if s.identity == was && errors.Is(err, unix.EINVAL) {
				return full, err
			}
		case errors.Is(err, unix.ENOENT):
			return full, fmt.Errorf("%w: %w", ErrMissing, err)
		default:
			return full, err
		}
		single = single || l.single
		if l.full > 0 {
			todo = l.without(todo)
			full += l.full
		}
	}
	if full > 0 && time.Since(s.saidFull) > time.Minute {
		s.saidFull = time.Now()
		t.log.Warn("a set is full: addresses are left out until others expire",
			"table", t.String(), "set", s.name, "max_elements", t.cfg.MaxElements, "left_out", full)
	}
	return full, nil
}

// look finds out which of those elements are there of which that is not known.
func (t *Table) look(s *blockedSet, todo []change) error {
	var asked []*change
	for i := range todo {
		if todo[i].known == unknown {
			asked = append(asked, &todo[i])
		}
	}
	for part := range slices.Chunk(asked, perQuestion) {
		t.batch.questions(byte(t.at.Family), t.at.Name)
		for _, c := range part {
			t.batch.message(unix.NFT_MSG_GETSETELEM, 0, s.name, func(b []byte) []byte { return appendKey(b, c.key) })
		}
		there, err := t.conn.ask(&t.batch)
		if err != nil {
			return err
		}
		for i, c := range part {
			c.known = absent
			if there[i] {
				c.known = present
			}
		}
	}
	return nil
}

// probe finds out whether the kernel has NFT_MSG_DESTROYSETELEM. An older one
// does not know the message (EINVAL, nfnetlink_rcv_batch); this one looks for
// the set first.
func (t *Table) probe() error {
	t.conn.start(&t.batch, t.at)
	t.batch.message(nftMsgDestroySetElem, 0, "no.such.set", func(b []byte) []byte { return appendKey(b, netip.IPv4Unspecified()) })
	failures, err := t.conn.commit(&t.batch)
	if err != nil {
		return err
	}
	t.failsOnMissing = len(failures) > 0 && failures[0].errno == unix.EINVAL
	if len(failures) > 0 && failures[0].errno == unix.EPERM {
		return unix.EPERM
	}
	return nil
}

// temporary reports whether a transaction that failed with err may succeed
// when it is simply tried again.
func temporary(err error) bool {
	for _, e := range []error{unix.EAGAIN, unix.EBUSY, unix.EINTR, unix.ENOMEM, unix.ENOBUFS} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// pause waits before a transaction is tried again, longer every time.
func pause(ctx context.Context, try int) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Duration(try) * time.Millisecond):
	}
}

// A part is a message of a transaction: which changes it makes, and how.
type part struct {
	kind    uint16
	changes []int // their places in the list of all
}

// encode writes the transaction that makes the changes into t.batch. Replacing
// an element is deleting it and adding it: adding one that is there changes
// its timeout only since Linux 6.12, and its comment never. Both happen in the
// same instant, when the transaction is committed.
//
// The changes are packed into few messages, or with single each into one of
// its own, so that the kernel's answer tells about every one.
func (t *Table) encode(s *blockedSet, p purpose, todo []change, single bool) []part {
	var del, add part
	del.kind, add.kind = nftMsgDestroySetElem, unix.NFT_MSG_NEWSETELEM
	if t.failsOnMissing {
		del.kind = unix.NFT_MSG_DELSETELEM
	}
	for i, c := range todo {
		switch {
		case p == remove && c.known != absent,
			p == renew && (c.known == present || c.known == unknown && !t.failsOnMissing):
			del.changes = append(del.changes, i)
		}
		if p == renew || p == fill && c.known != present {
			add.changes = append(add.changes, i)
		}
	}
	// A message's list of elements is an attribute, of 64 KiB at most.
	const room = 1<<16 - 1 - 512

	var parts []part
	t.conn.start(&t.batch, t.at)
	for _, all := range [...]part{del, add} {
		for len(all.changes) > 0 {
			n := 0
			flags := uint16(0)
			if all.kind == unix.NFT_MSG_NEWSETELEM {
				// With NLM_F_EXCL an element that is there is an error;
				// otherwise it would be left alone in silence.
				flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
			}
			t.batch.message(all.kind, flags, s.name, func(b []byte) []byte {
				start := len(b)
				for n < len(all.changes) && len(b)-start < room {
					c := todo[all.changes[n]]
					if all.kind == unix.NFT_MSG_NEWSETELEM {
						b = appendElement(b, c.key, c.timeout, c.comment)
					} else {
						b = appendKey(b, c.key)
					}
					if n++; single {
						break
					}
				}
				return b
			})
			parts = append(parts, part{all.kind, all.changes[:n]})
			all.changes = all.changes[n:]
		}
	}
	return parts
}

// A lesson is what was learnt from a refused transaction, beside what is known
// of elements.
type lesson struct {
	single bool   // the kernel's answer must tell about each element
	out    []bool // changes that there is no room for
	full   int    // how many these are
}

// without returns todo without what there is no room for.
func (l lesson) without(todo []change) []change {
	var rest []change
	for i, c := range todo {
		if !l.out[i] {
			rest = append(rest, c)
		}
	}
	return rest
}

// learn finds out from the kernel's refusal of a transaction what to do
// instead. Its error means that there is nothing that can be learnt.
func learn(parts []part, todo []change, failures []failure) (l lesson, err error) {
	l.out = make([]bool, len(todo))
	for _, f := range failures {
		if f.message < 0 || f.message >= len(parts) {
			return l, f.errno
		}
		m := parts[f.message]
		adding := m.kind == unix.NFT_MSG_NEWSETELEM
		switch {
		case adding && (f.errno == unix.EEXIST || f.errno == unix.ENFILE), !adding && f.errno == unix.ENOENT:
		default:
			return l, f.errno
		}
		if len(m.changes) > 1 {
			l.single = true
			continue
		}
		i := m.changes[0]
		switch f.errno {
		case unix.EEXIST:
			todo[i].known = present
		case unix.ENOENT:
			todo[i].known = absent
		case unix.ENFILE:
			l.out[i] = true
			l.full++
		}
	}
	return l, nil
}
