package book

import (
	"cmp"
	"net/netip"
	"slices"
)

// allowList are networks of which none lies in another one, in the order of
// their addresses: all of IPv4 before IPv6.
type allowList []netip.Prefix

func newAllowList(prefixes []netip.Prefix) allowList {
	all := make([]netip.Prefix, len(prefixes))
	for i, p := range prefixes {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		all[i] = p.Masked()
	}
	// A network comes before those that lie in it.
	slices.SortFunc(all, func(p, q netip.Prefix) int {
		return cmp.Or(p.Addr().Compare(q.Addr()), cmp.Compare(p.Bits(), q.Bits()))
	})
	var a allowList
	for _, p := range all {
		if !a.covers(p) {
			a = append(a, p)
		}
	}
	return a
}

func (a allowList) contains(addr netip.Addr) bool {
	return a.covers(netip.PrefixFrom(addr, addr.BitLen()))
}

// covers reports whether all of p is allowed by one network of the list, which
// can only be the last one that does not begin after p.
func (a allowList) covers(p netip.Prefix) bool {
	after, _ := slices.BinarySearchFunc(a, p, func(q, p netip.Prefix) int {
		if q.Addr().Compare(p.Addr()) <= 0 {
			return -1
		}
		return 1
	})
	if after == 0 {
		return false
	}
	q := a[after-1]
	return q.Bits() <= p.Bits() && q.Contains(p.Addr())
}

// counter counts the hits of addresses that are not blocked yet.
type counter struct {
	seen    map[key][]int64 // when, in Unix milliseconds, oldest first; fewer than Policy.Hits
	evicted uint64
}

// maxCounted bounds how many addresses are counted at once.
const maxCounted = 1 << 16

// add counts a hit and returns how many there were within the window. It
// forgets an address that has enough.
func (c *counter) add(k key, now int64, p *Policy) int {
	if p.Hits <= 1 {
		return 1
	}
	since := now - p.Window.Milliseconds()
	times := c.seen[k]
	times = slices.DeleteFunc(times, func(t int64) bool { return t <= since })
	if len(times)+1 >= p.Hits {
		delete(c.seen, k)
		return len(times) + 1
	}
	if _, known := c.seen[k]; !known && len(c.seen) >= maxCounted {
		c.forget(since)
	}
	c.seen[k] = append(times, now)
	return len(times) + 1
}

// forget makes room: it forgets those whose last hit is out of the window, and
// where there are none any sixteenth of all.
func (c *counter) forget(since int64) {
	for k, times := range c.seen {
		if times[len(times)-1] <= since {
			delete(c.seen, k)
		}
	}
	if len(c.seen) < maxCounted {
		return
	}
	n := maxCounted / 16
	for k := range c.seen {
		delete(c.seen, k)
		c.evicted++
		if n--; n == 0 {
			return
		}
	}
}
