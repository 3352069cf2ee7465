package book

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// naive is what an allow list says, slowly.
type naive []netip.Prefix

func (n naive) covers(p netip.Prefix) bool {
	for _, q := range n {
		if q.Bits() <= p.Bits() && q.Overlaps(p) {
			return true
		}
	}
	return false
}

func (n naive) overlaps(p netip.Prefix) bool {
	for _, q := range n {
		if q.Overlaps(p) {
			return true
		}
	}
	return false
}

// networks reads networks that lie close together, so that many overlap.
func networks(data []byte) (p []netip.Prefix) {
	for ; len(data) >= 3; data = data[3:] {
		n := uint32(data[1])
		if data[0]&1 == 0 {
			a := binary.BigEndian.AppendUint32(nil, 0x0a000000|n<<(data[0]>>4))
			p = append(p, netip.PrefixFrom(netip.AddrFrom4([4]byte(a)), int(data[2])%33))
		} else {
			a := binary.BigEndian.AppendUint64(nil, 0x20010db8_00000000|uint64(n)<<(data[0]>>4))
			p = append(p, netip.PrefixFrom(netip.AddrFrom16([16]byte(append(a, 0, 0, 0, 0, 0, 0, 0, data[0]))), int(data[2])%129))
		}
	}
	return p
}

func FuzzAllowList(f *testing.F) {
	f.Add([]byte("0a\x180b\x200\x00\x08"), []byte("0a\x20"))
	f.Add([]byte("1a\x401b\x801\x00\x30"), []byte("1a\x40"))
	f.Fuzz(func(t *testing.T, list, asked []byte) {
		if len(list)+len(asked) > 3000 {
			return // naive is slow
		}
		allowed := networks(list)
		a, n := newAllowList(allowed), naive{}
		for _, p := range allowed {
			n = append(n, p.Masked())
		}
		for i := range a {
			if i > 0 && (a[i-1].Overlaps(a[i]) || !a[i-1].Addr().Less(a[i].Addr())) {
				t.Fatalf("%v before %v", a[i-1], a[i])
			}
		}
		for _, p := range append(networks(asked), n...) {
			p = p.Masked()
			if got, want := a.covers(p), n.covers(p); got != want {
				t.Errorf("%v covers %v: %v", n, p, got)
			}
			if got, want := a.overlaps(p), n.overlaps(p); got != want {
				t.Errorf("%v overlaps %v: %v", n, p, got)
			}
		}
	})
}

func TestAllowList(t *testing.T) {
	a := newAllowList(prefixes("10.0.0.0/8", "10.1.0.0/16", "10.2.0.1/16", "192.0.2.0/31", "192.0.2.2/31", "::ffff:198.51.100.77/120", "2001:db8::/32", "2001:db8:1::/48", "0.0.0.0/32", "203.0.113.77/24"))
	if len(a) != 7 {
		t.Errorf("%v", a)
	}
	for p, want := range map[string][2]bool{ // covers, overlaps
		"10.2.3.4/32":         {true, true},
		"10.0.0.0/8":          {true, true},
		"10.0.0.0/7":          {false, true},
		"11.0.0.0/32":         {false, false},
		"9.255.255.255/32":    {false, false},
		"192.0.2.0/30":        {false, true}, // in two halves
		"192.0.2.3/32":        {true, true},
		"192.0.2.4/32":        {false, false},
		"198.51.100.1/32":     {true, true},
		"198.51.100.255/32":   {true, true},
		"198.51.101.1/32":     {false, false},
		"203.0.113.1/32":      {true, true},
		"0.0.0.0/32":          {true, true},
		"0.0.0.1/32":          {false, false},
		"2001:db8:1:2::/64":   {true, true},
		"2001:db9::/64":       {false, false},
		"2001::/16":           {false, true},
		"ffff::/64":           {false, false},
		"::ffff:10.0.0.1/128": {false, false}, // no hit has it
	} {
		p := netip.MustParsePrefix(p)
		if got := [2]bool{a.covers(p), a.overlaps(p)}; got != want {
			t.Errorf("%v: %v, want %v", p, got, want)
		}
	}
	if all := newAllowList(prefixes("::ffff:0.0.0.0/96")); !all.covers(netip.MustParsePrefix("192.0.2.0/24")) {
		t.Errorf("%v", all)
	}
	if none := newAllowList(nil); none.covers(netip.MustParsePrefix("0.0.0.0/0")) || none.overlaps(netip.MustParsePrefix("::/0")) {
		t.Error("an empty list allows")
	}
}

// Lists of countries have hundreds of thousands of networks. What took quadratic
// time would not end here.
func TestLongAllowList(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var long []netip.Prefix
	for i := range 100_000 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(i)<<12)
		long = append(long, netip.PrefixFrom(netip.AddrFrom4(b), 22))
	}
	rnd.Shuffle(len(long), func(i, j int) { long[i], long[j] = long[j], long[i] })
	b := New(policy(func(p *Policy) { p.Allow = long }))
	for range 100_000 {
		v := rnd.Uint32N(100_000 << 12)
		var raw [4]byte
		binary.BigEndian.PutUint32(raw[:], v)
		h := hitOf("192.0.2.1")
		h.Addr = netip.AddrFrom4(raw)
		if got, want := b.isAllowed(netip.PrefixFrom(h.Addr, 32), KeyOf(h.Addr)), v&0xfff < 1024; got != want {
			t.Fatalf("%v: %v", h.Addr, got)
		}
	}
}
