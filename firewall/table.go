package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// ErrFull is wrapped by the error of [Table.Commit] when a set had no room for
// some of the blocks; all others are in.
var ErrFull = errors.New("set is full")

// ErrMissing is wrapped by errors about a table or set that does not exist,
// or is not of the kind it should be, and is not ours to make
// ([Config.Rules] is false).
var ErrMissing = errors.New("not there")

// perTransaction is how many elements one transaction changes at most. More
// make it hardly faster, and a lone block waits for the one under way.
const perTransaction = 1000

// A Table is the nftables table. Its methods may be called from several
// goroutines.
type Table struct {
	cfg Config
	at  *nftables.Table // family and name
	log *slog.Logger

	listener *listener
	wake     chan struct{} // tells Run that a set is stale

	mu    sync.Mutex // one transaction at a time; guards what follows
	conn  *conn
	batch batch
	allow []netip.Prefix
	sets  [2]*blockedSet // IPv4, IPv6
	mark  mark           // what others did is counted from
	// unblocked are the elements that were removed, and not blocked again,
	// while sets are being filled; nil: none are.
	unblocked map[netip.Addr]bool
	// isUnheard: the listener is not listening for a while.
	isUnheard bool
	// missed: others may have made changes that the listener did not hear of.
	missed bool
	// deaf says why the listener hears nothing any more.
	deaf error
	// reported is what was last said to be missing.
	reported string

	// failsOnMissing: deleting an element that is missing fails the
	// transaction, as the kernel has no NFT_MSG_DESTROYSETELEM (before
	// Linux 6.3).
	failsOnMissing bool
}

// A blockedSet is a set of blocked addresses.
type blockedSet struct {
	name string
	v6   bool
	// identity tells this set from an earlier one of the same name.
	identity identity
	// stale: the set was made anew since all blocks were last put into it.
	stale bool
	// crowded: when it was filled there was no room for all blocks.
	crowded bool
	// problem says why the set cannot be used; only where it is not ours.
	problem error
	// saidFull is when it was last logged that the set is full.
	saidFull time.Time
}

// Open makes the table of cfg stand. A table that already has the layout cfg
// asks for is taken over as it is, with its elements; one of another layout is
// mended or replaced, and its elements are kept where they fit. With
// [Config.Rules] false nothing is made, and what is missing is logged; it may
// appear later.
//
// The errors are those of the configuration ([Config.Validate]), of netlink,
// and EPERM without CAP_NET_ADMIN.
//
// The table stays when the program ends.
func Open(cfg Config, log *slog.Logger) (_ *Table, err error) {
	defer func() {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("nftables: CAP_NET_ADMIN is needed: %w", err)
		}
	}()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	at, err := parseTable(cfg.Table)
	if err != nil {
		return nil, err
	}
	if cfg.Chain == "" {
		cfg.Chain = string(cfg.Hook)
	}
	t := &Table{
		cfg:   cfg,
		at:    at,
		log:   log,
		wake:  make(chan struct{}, 1),
		allow: cfg.Allow,
		sets:  [2]*blockedSet{{name: cfg.Blocked4}, {name: cfg.Blocked6, v6: true}},
	}
	if t.conn, err = dial(); err != nil {
		return nil, err
	}
	// The listener is there before the first look at the table, so that no
	// change is missed.
	if t.listener, err = listen(at, t.conn.portID()); err != nil {
		t.conn.close()
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := errors.Join(t.probe(), t.stand(true)); err != nil {
		t.listener.close()
		t.conn.close()
		return nil, fmt.Errorf("table %s: %w", t, err)
	}
	return t, nil
}

// Close frees descriptors, once Run has returned, and leaves the kernel's table
// as it is.
func (t *Table) Close() error {
	t.listener.close()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conn.close()
	return nil
}

// String returns the table's family and name, "inet rblnft".
func (t *Table) String() string { return familyName(t.at.Family) + " " + t.at.Name }

// Element says which element stands for p, in the words of nft:
// "inet rblnft blocked4 { 192.0.2.1 }".
func (t *Table) Element(p netip.Prefix) string {
	return fmt.Sprintf("%s %s { %s }", t, t.sets[familyOf(p)].name, p.Addr())
}

// Commit blocks addresses: it adds the elements that are missing, and gives
// those that are there the new timeout and comment, without a moment in which
// they are not blocked. Blocks that have expired are passed over. Up to
// 1,000 elements of one family make one transaction.
//
// If there is no room for some of the blocks, the others are in and the error
// wraps [ErrFull]. Any other error means that a transaction failed and that,
// for this family, no more were tried; its text says of how many blocks.
// Committing them again is harmless.
func (t *Table) Commit(ctx context.Context, blocks []Block) error {
	return t.block(ctx, blocks, false)
}

// Restore is Commit for blocks that were in force before: those that never
// expire are put back too.
func (t *Table) Restore(ctx context.Context, blocks []Block) error {
	return t.block(ctx, blocks, true)
}

func (t *Table) block(ctx context.Context, blocks []Block, permanent bool) error {
	var todo [2][]change
	now := time.Now()
	for i := range blocks {
		b := &blocks[i]
		c, inForce, err := changeTo(b, now)
		if err != nil {
			return err
		}
		if !inForce || b.Expires.IsZero() && !permanent {
			continue
		}
		f := familyOf(b.Prefix)
		if todo[f] == nil {
			todo[f] = make([]change, 0, len(blocks)-i)
		}
		todo[f] = append(todo[f], c)
	}
	var errs []error
	for f, changes := range todo {
		errs = append(errs, t.apply(ctx, t.sets[f], renew, lastOfEach(changes)))
	}
	return errors.Join(errs...)
}

// Remove deletes elements. One that is missing is no error.
func (t *Table) Remove(ctx context.Context, prefixes []netip.Prefix) error {
	var todo [2][]change
	for _, p := range prefixes {
		if err := checkPrefix(p); err != nil {
			return err
		}
		todo[familyOf(p)] = append(todo[familyOf(p)], change{key: p.Addr()})
	}
	var errs []error
	for f, changes := range todo {
		errs = append(errs, t.apply(ctx, t.sets[f], remove, lastOfEach(changes)))
	}
	return errors.Join(errs...)
}

// Elements returns what the two sets of blocked addresses hold now. The kernel
// may be changing them meanwhile. It needs a second for a set of 100,000
// elements, but a minute for a million, of which it may not find all.
func (t *Table) Elements(ctx context.Context) ([]Block, error) {
	var all []Block
	for _, s := range t.sets {
		blocks, _, err := readBlocks(ctx, t.at, s.name, 0)
		if err != nil && !(errors.Is(err, unix.ENOENT) && !t.cfg.Rules) {
			return nil, fmt.Errorf("table %s: %w", t, err)
		}
		all = append(all, blocks...)
	}
	return all, nil
}

// ToBeFilled reports which of the two sets of blocked addresses, of IPv4 and
// IPv6, Run fills with all blocks, now or as soon as it is there.
func (t *Table) ToBeFilled() (sets [2]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, s := range t.sets {
		sets[i] = s.stale || s.identity == identity{}
	}
	return sets
}

func familyOf(p netip.Prefix) int {
	if p.Addr().Is6() {
		return 1
	}
	return 0
}

// checkPrefix reports whether p is what a Block blocks.
func checkPrefix(p netip.Prefix) error {
	if !p.IsValid() || p != PrefixOf(p.Addr()) {
		return fmt.Errorf("%s is neither an IPv4 address/32 nor an IPv6 network/64", p)
	}
	return nil
}

// tick is what timeouts are rounded up to, so that somebody who lists a set reads
// "timeout 1h", and not how long it took from the hit to the commit.
const tick = 100 * time.Millisecond

// changeTo returns what makes b's element, and whether b is in force.
func changeTo(b *Block, now time.Time) (c change, inForce bool, err error) {
	if err := checkPrefix(b.Prefix); err != nil {
		return change{}, false, fmt.Errorf("block: %w", err)
	}
	c = change{key: b.Prefix.Addr(), comment: b.Zone}
	if b.New {
		c.known = absent
	}
	if b.Expires.IsZero() {
		return c, true, nil
	}
	c.timeout = b.Expires.Sub(now)
	if over := c.timeout % tick; over > 0 {
		c.timeout += tick - over
	}
	return c, c.timeout > 0, nil
}
