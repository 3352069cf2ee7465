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

// overlaps reports whether a network of the list and p have an address in common.
func (a allowList) overlaps(p netip.Prefix) bool {
	i, _ := slices.BinarySearchFunc(a, p.Addr(), func(q netip.Prefix, addr netip.Addr) int { return q.Addr().Compare(addr) })
	return i < len(a) && p.Contains(a[i].Addr()) || a.covers(p)
}
