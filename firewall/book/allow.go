package book

import (
	"maps"
	"net/netip"
	"slices"
)

// allowList are networks, by their length, so that a look-up costs as much as
// there are different lengths.
type allowList map[int]map[netip.Prefix]bool

func newAllowList(prefixes []netip.Prefix) allowList {
	a := allowList{}
	for _, p := range prefixes {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		p = p.Masked()
		// Lengths of the two families are kept apart by the sign.
		n := p.Bits()
		if p.Addr().Is6() {
			n = -1 - n
		}
		if a[n] == nil {
			a[n] = map[netip.Prefix]bool{}
		}
		a[n][p] = true
	}
	return a
}

func (a allowList) contains(addr netip.Addr) bool {
	return a.covers(netip.PrefixFrom(addr, addr.BitLen()))
}

// covers reports whether all of p is allowed by one network of the list.
func (a allowList) covers(p netip.Prefix) bool {
	for n := range maps.Keys(a) {
		bits := n
		if n < 0 {
			bits = -1 - n
		}
		if (n < 0) != p.Addr().Is6() || bits > p.Bits() {
			continue
		}
		if q, err := p.Addr().Prefix(bits); err == nil && a[n][q] {
			return true
		}
	}
	return false
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
