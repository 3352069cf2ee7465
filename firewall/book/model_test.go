package book

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"rblnft/firewall/hit"
)

// A model is what a book should be, written down plainly, and the kernel's sets
// beside it.
type model struct {
	t      *testing.T
	rnd    *rand.Rand
	book   *Book
	policy Policy
	now    Time
	wanted map[netip.Prefix]modelRecord // who is blocked, or was
	kernel map[netip.Prefix]Time        // elements, and when they expire
}

type modelRecord struct {
	expires Time
	returns int
	zone    string
}

func (m *model) blocked(p netip.Prefix) bool { return m.wanted[p].expires > m.now }

// addr is one of few.
func (m *model) addr() netip.Addr {
	if m.rnd.IntN(3) == 0 {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 7: byte(m.rnd.IntN(20)), 15: byte(m.rnd.IntN(3))})
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, byte(m.rnd.IntN(60))})
}

func (m *model) isAllowed(p netip.Prefix) bool {
	n := naive(m.policy.Allow)
	return n.covers(p) || m.policy.Whole && n.overlaps(p)
}

func (m *model) hit() {
	a := m.addr()
	h := hit.Hit{Addr: a, Zone: []string{"a.example", "b.example"}[m.rnd.IntN(2)]}
	p := KeyOf(a).Prefix()
	old, known := m.wanted[p]
	d, _ := m.book.Hit(h, m.now)
	switch {
	case naive(m.policy.Allow).covers(netip.PrefixFrom(a, a.BitLen())) || m.isAllowed(p):
		if d != Allowed {
			m.t.Fatalf("%v: %s, and it is allowed", a, d)
		}
	case d == Full:
		m.forgotten() // it was swept
		inForce := 0
		for q := range m.wanted {
			if q.Addr().Is4() == a.Is4() && (m.blocked(q) || m.waits(q) || m.wanted[q].expires > m.book.swept) {
				inForce++
			}
		}
		for _, q := range m.waiting() {
			if _, known := m.wanted[q]; !known && q.Addr().Is4() == a.Is4() {
				inForce++ // taken back, and there still
			}
		}
		if m.blocked(p) || inForce < m.policy.MaxElements {
			m.t.Fatalf("%v: full with %d of %d", a, inForce, m.policy.MaxElements)
		}
	default:
		want := Blocked
		if m.blocked(p) {
			want = Renewed
		} else if known {
			old.returns++
		}
		until := m.now.Add(m.policy.timeout(uint8(old.returns)))
		if want == Renewed && old.expires >= until {
			want, until = Kept, old.expires
		}
		if d != want {
			m.t.Fatalf("%v: %s, want %s", a, d, want)
		}
		m.wanted[p] = modelRecord{until, old.returns, h.Zone}
		m.forgotten()
	}
}

func (m *model) waiting() (all []netip.Prefix) {
	for f := range Family(2) {
		for _, p := range m.book.Next(f, 1<<30) {
			all = append(all, p.Key.Prefix())
		}
	}
	return all
}

func (m *model) waits(p netip.Prefix) bool { return slices.Contains(m.waiting(), p) }

// tell has the kernel's set changed as the loop does it.
func (m *model) tell(k Key) {
	if r, blocked, _ := m.book.Wants(k, m.now); blocked {
		m.kernel[k.Prefix()] = r.Expires
	} else {
		delete(m.kernel, k.Prefix())
	}
}

func (m *model) push(n int) {
	f := Family(m.rnd.IntN(2))
	pending := m.book.Next(f, n)
	for _, p := range pending {
		m.tell(p.Key)
	}
	m.book.Done(f, len(pending), m.now)
}

func (m *model) pushBulk(n int) {
	f := Family(m.rnd.IntN(2))
	keys := m.book.NextBulk(f, n, m.now)
	if m.rnd.IntN(4) == 0 {
		if len(keys) > 0 && m.rnd.IntN(2) == 0 {
			m.book.QueueBulk(f) // it was refused
		}
		return
	}
	for _, k := range keys {
		m.tell(k)
	}
	m.book.DoneBulk(f, len(keys))
}

// deleteByHand deletes an element, and the loop hears of it.
func (m *model) deleteByHand() {
	k := KeyOf(m.addr())
	p := k.Prefix()
	if _, there := m.kernel[p]; !there {
		return
	}
	delete(m.kernel, p)
	waits := m.waits(p)
	if m.book.Forget(k, m.now) {
		if waits || !m.blocked(p) {
			m.t.Fatalf("%v is forgotten, though the kernel is to be told", p)
		}
		delete(m.wanted, p)
	} else if m.blocked(p) && !waits && m.book.Refilling(k.Family) == 0 {
		m.t.Fatalf("%v is not forgotten", p)
	}
}

func (m *model) setPolicy() {
	m.policy.Allow = nil
	for range m.rnd.IntN(4) {
		a := m.addr()
		m.policy.Allow = append(m.policy.Allow, netip.PrefixFrom(a, a.BitLen()-m.rnd.IntN(4)).Masked())
	}
	m.policy.Whole = m.rnd.IntN(2) == 0
	m.policy.MaxExpiry = []time.Duration{time.Hour, 4 * time.Hour, 8 * time.Hour}[m.rnd.IntN(3)]
	m.policy.MaxElements = 10 + m.rnd.IntN(60)
	m.book.SetPolicy(m.policy)
	for p := range m.wanted {
		if m.isAllowed(p) {
			delete(m.wanted, p)
		}
	}
	m.sweep()
}

func (m *model) sweep() {
	m.book.Sweep(m.now)
	longest := m.now.Add(m.policy.MaxExpiry)
	for p, r := range m.wanted {
		r.expires = min(r.expires, longest)
		m.wanted[p] = r
	}
	m.forgotten()
	if _, remembered := m.book.Len(); remembered > m.policy.MaxElements/4 {
		m.t.Fatalf("%d remembered, at most %d should be", remembered, m.policy.MaxElements/4)
	}
}

// forgotten takes note of who is remembered no more.
func (m *model) forgotten() {
	for p := range m.wanted {
		if _, known := m.book.Get(KeyOf(p.Addr())); !known {
			if m.blocked(p) || m.waits(p) {
				m.t.Fatalf("%v is forgotten while it is blocked or waits", p)
			}
			delete(m.wanted, p)
		}
	}
}

// refill is what follows the loss of a set.
func (m *model) refill() {
	f := Family(m.rnd.IntN(2))
	maps.DeleteFunc(m.kernel, func(p netip.Prefix, _ Time) bool { return KeyOf(p.Addr()).Family == f })
	m.book.Refill(f, m.now)
}

// check compares what the book says with the model and, where nothing waits, with
// the kernel.
func (m *model) check() {
	recount(m.t, m.book)
	maps.DeleteFunc(m.kernel, func(_ netip.Prefix, expires Time) bool { return expires <= m.now })
	seen := map[netip.Prefix]bool{}
	for _, p := range m.waiting() {
		if seen[p] {
			m.t.Fatalf("%v waits twice", p)
		}
		seen[p] = true
	}
	n := 0
	for k := range m.book.Keys() {
		r, known := m.book.Get(k)
		if !known {
			continue
		}
		n++
		if want := m.wanted[k.Prefix()]; want != (modelRecord{r.Expires, r.Returns, r.Zone}) {
			m.t.Fatalf("%v: %+v, want %+v", k.Prefix(), r, want)
		}
	}
	if n != len(m.wanted) {
		m.t.Fatalf("%d records, want %d", n, len(m.wanted))
	}
	for f := range Family(2) {
		if m.book.Waiting(f) > 0 || m.book.Refilling(f) > 0 {
			continue
		}
		for p, r := range m.wanted {
			if KeyOf(p.Addr()).Family == f && r.expires > m.now && m.kernel[p] != r.expires {
				m.t.Fatalf("%v is in the kernel until %d, want %d", p, m.kernel[p], r.expires)
			}
		}
		for p := range m.kernel {
			if KeyOf(p.Addr()).Family == f && !m.blocked(p) {
				m.t.Fatalf("%v is in the kernel, and not blocked", p)
			}
		}
	}
}

// Whatever happens, in whatever order, once all is pushed the kernel has what the
// book wants, which is what plain counting gives.
func TestBookAgainstModel(t *testing.T) {
	for seed := range uint64(25) {
		m := &model{t: t, rnd: rand.New(rand.NewPCG(seed, 7)), now: start, policy: policy(func(p *Policy) { p.Allow, p.MaxElements = nil, 50 }), wanted: map[netip.Prefix]modelRecord{}, kernel: map[netip.Prefix]Time{}}
		m.book = New(m.policy)
		for range 1500 {
			switch n := m.rnd.IntN(100); {
			case n < 40:
				m.hit()
			case n < 60:
				m.push(1 + m.rnd.IntN(20))
			case n < 75:
				m.pushBulk(1 + m.rnd.IntN(10))
			case n < 83:
				m.deleteByHand()
			case n < 85:
				m.setPolicy()
			case n < 87:
				m.refill()
			case n < 90:
				m.sweep()
			case n < 92:
				if f := Family(m.rnd.IntN(2)); m.book.Waiting(f) > 0 {
					m.book.Postpone(f)
				}
			default:
				m.now = m.now.Add(time.Duration(m.rnd.Int64N(int64(40 * time.Minute))))
			}
			m.check()
		}
		for f := range Family(2) { // and at the end nothing is left to tell
			for m.book.Waiting(f)+m.book.Refilling(f) > 0 {
				m.push(1000)
				m.pushBulk(1000)
			}
		}
		m.check()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}
