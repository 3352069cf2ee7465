package book

import (
	"net/netip"
	"slices"
	"sort"
)

// allowList are networks of which none lies in another one, in the order of
// their addresses: all of IPv4 before IPv6.
type allowList []netip.Prefix

func newAllowList(prefixes []netip.Prefix) (a allowList) {
	all := slices.Clone(prefixes)
	for i, p := range all {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		all[i] = p.Masked()
	}
	slices.SortFunc(all, netip.Prefix.Compare) // a network before those that lie in it
	for _, p := range all {
		if len(a) == 0 || !a[len(a)-1].Overlaps(p) {
			a = append(a, p)
		}
	}
	return a
}

// near returns the last network that begins no later than p, and the next one: no
// others can have an address in common with p, unless more than one lies in it.
func (a allowList) near(p netip.Prefix) allowList {
	i := sort.Search(len(a), func(i int) bool { return a[i].Addr().Compare(p.Addr()) > 0 })
	return a[max(i-1, 0):min(i+1, len(a))]
}

// covers reports whether one network of the list has all of p.
func (a allowList) covers(p netip.Prefix) bool {
	return slices.ContainsFunc(a.near(p), func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Overlaps(p) })
}

// overlaps reports whether a network of the list and p have an address in common.
func (a allowList) overlaps(p netip.Prefix) bool { return slices.ContainsFunc(a.near(p), p.Overlaps) }
