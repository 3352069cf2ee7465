//go:build linux

package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"rblnft/firewall"
	"rblnft/firewall/hit"
)

var (
	chaosTime = flag.Duration("chaos", 60*time.Second, "how long the chaos test goes on")
	kills     = flag.Int("kills", 200, "how often the daemon is killed under load")
)

// An acknowledgement is a line of the daemon's log that says that an address is
// blocked, which it writes when the block is in the journal and in the kernel.
type acknowledgement struct{ expires time.Time }

// acknowledged returns the last acknowledgement of each block, by the first
// address of what is blocked.
func acknowledged(t testing.TB, lines []string) map[string]acknowledgement {
	t.Helper()
	all := map[string]acknowledgement{}
	for _, line := range lines {
		rest, ok := strings.CutPrefix(line, "rblnftd: blocked addr=")
		if !ok {
			continue
		}
		prefix, err := netip.ParsePrefix(field(rest, "prefix"))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		expires, err := time.Parse(time.RFC3339, field(rest, "expires"))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		// Lines about different batches come in order, those about one too.
		if key := prefix.Addr().String(); expires.After(all[key].expires) {
			all[key] = acknowledgement{expires}
		}
	}
	return all
}

// field returns the value of an attribute of a line.
func field(line, key string) string {
	_, rest, ok := strings.Cut(line, " "+key+"=")
	if !ok {
		return ""
	}
	value, _, _ := strings.Cut(rest, " ")
	return value
}

// senders send hits, and remember which and when.
type senders struct {
	path string
	mu   sync.Mutex
	sent map[string][]time.Time // by the first address of what it blocks
	n    atomic.Int64
	gone atomic.Int64 // hits that reached nobody
}

// hit sends a hit of an address.
func (s *senders) hit(addr netip.Addr) {
	key := firewall.PrefixOf(addr).Addr().String()
	s.mu.Lock()
	s.sent[key] = append(s.sent[key], time.Now())
	s.mu.Unlock()
	h := hit.Hit{Addr: addr, Zone: "bl.example", Code: netip.AddrFrom4([4]byte{127, 0, 0, 2}), Answer: "553 listed"}
	if sent, err := send(s.path, h, -1); !sent || err != nil {
		s.gone.Add(1)
	}
	s.n.Add(1)
}

// allowed are addresses of the allow list, for which hits are sent too.
var allowed = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("::1/128"),
}

func isAllowed(addr netip.Addr) bool {
	return slices.ContainsFunc(allowed, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// victim returns an address: a new one, one that was there before, an allowed
// one.
func victim(r *rand.Rand, sender, n int) netip.Addr {
	switch r.IntN(12) {
	case 0:
		return netip.AddrFrom4([4]byte{10, byte(r.IntN(256)), byte(r.IntN(256)), 1})
	case 1:
		return netip.MustParseAddr("fd00::1")
	case 2, 3:
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(sender), byte(r.IntN(4)), byte(r.IntN(256)), 15: byte(n)})
	case 4, 5, 6:
		n = r.IntN(n + 1)
	}
	return netip.AddrFrom4([4]byte{100, byte(sender), byte(n >> 8), byte(n)})
}

// Whatever happens to the daemon and to the ruleset, in the end every address
// whose block was acknowledged is blocked for as long as was said, and nobody
// else ever was.
func TestChaos(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	s := newSite(t, "")
	s.start()
	all := &senders{path: s.socket, sent: map[string][]time.Time{}}

	stop := make(chan struct{})
	var running sync.WaitGroup
	for i := range 8 {
		running.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				all.hit(victim(r, i, n))
				if r.IntN(20) == 0 {
					time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
				} else {
					time.Sleep(time.Duration(r.IntN(12)) * time.Millisecond)
				}
			}
		})
	}
	// Somebody looks on.
	running.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Second):
				all.nobodyElse(t)
			}
		}
	})

	r := rand.New(rand.NewPCG(seed, 100))
	happened := map[string]int{}
	events := []struct {
		name string
		do   func()
	}{
		{"kill -9", func() { s.kill(); pause(r, 300); s.launch() }},
		{"kill -9", func() { s.kill(); s.launch() }},
		{"kill -9 while it starts", func() { s.kill(); s.launch(); pause(r, 60); s.kill(); s.launch() }},
		{"restart", func() { s.signal(syscall.SIGTERM); s.wait(); s.launch() }},
		{"flush ruleset", func() { disturb("flush ruleset") }},
		{"flush ruleset twice", func() { disturb("flush ruleset"); pause(r, 20); disturb("flush ruleset") }},
		{"flush ruleset while it is down", func() { s.kill(); disturb("flush ruleset"); pause(r, 100); s.launch() }},
		{"delete table", func() { disturb("delete table inet rblnft") }},
		{"delete chain", func() { disturb("delete chain inet rblnft input") }},
		{"flush chain", func() { disturb("flush chain inet rblnft input") }},
		{"delete set", func() {
			disturb("flush chain inet rblnft input; delete set inet rblnft blocked" + []string{"4", "6"}[r.IntN(2)])
		}},
		{"another table of that name", func() {
			disturb("delete table inet rblnft; add table inet rblnft; add chain inet rblnft other; add set inet rblnft blocked4 { type ipv6_addr; }")
		}},
		{"bad datagrams", func() { nonsense(r, s.socket, 500) }},
		{"full queue", func() {
			s.signal(syscall.SIGSTOP)
			pause(r, 400)
			s.signal(syscall.SIGCONT)
		}},
		{"reload", func() { s.signal(syscall.SIGHUP) }},
	}
	for end := time.Now().Add(*chaosTime); time.Now().Before(end); {
		e := events[r.IntN(len(events))]
		happened[e.name]++
		e.do()
		pause(r, 900)
	}
	close(stop)
	running.Wait()

	// Let what waits in the socket be done. Restarting says when it is.
	s.signal(syscall.SIGCONT)
	from := s.logged()
	time.Sleep(200 * time.Millisecond)
	s.signal(syscall.SIGTERM)
	s.wait()
	s.start()
	s.await(from, "rblnftd: ready")
	acks := acknowledged(t, s.log(0))
	var wrong []string
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		if wrong = all.compare(t, acks); len(wrong) == 0 || time.Now().After(deadline) {
			break
		}
	}
	for _, w := range wrong[:min(20, len(wrong))] {
		t.Error(w)
	}
	if len(wrong) > 0 {
		t.Errorf("%d addresses are wrong", len(wrong))
	}
	all.nobodyElse(t)
	if n := s.descriptors(); n > 30 {
		t.Errorf("%d descriptors are open", n)
	}
	t.Logf("%d hits sent, %d of them to nobody; %d addresses acknowledged; happened: %v", all.n.Load(), all.gone.Load(), len(acks), happened)
	if len(acks) < 100 {
		t.Errorf("only %d addresses were acknowledged", len(acks))
	}
	s.end()
}

// pause waits for a while, of most milliseconds.
func pause(r *rand.Rand, most int) { time.Sleep(time.Duration(r.IntN(most)) * time.Millisecond) }

// disturb runs nft, whose failure is no failure: what it disturbs may be away.
func disturb(command string) { exec.Command("nft", command).Run() }

// nonsense sends bad datagrams.
func nonsense(r *rand.Rand, path string, n int) {
	c, err := net.Dial("unixgram", path)
	if err != nil {
		return
	}
	defer c.Close()
	c.SetWriteDeadline(time.Now().Add(time.Second))
	for range n {
		b := make([]byte, 1+r.IntN(3000))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if r.IntN(2) == 0 {
			b = []byte(fmt.Sprintf("rblnft/%d addr=192.0.2.%d zone=bl.example code=127.0.0.2 answer=250 ok", r.IntN(3), r.IntN(300)))
		}
		c.Write(b)
	}
}

// nobodyElse checks that every element is of an address that was hit, and none
// is allowed.
func (s *senders) nobodyElse(t *testing.T) {
	for _, set := range []string{"blocked4", "blocked6"} {
		out, err := exec.Command("nft", "list", "set", "inet", "rblnft", set).Output()
		if err != nil {
			continue // it is away at the moment
		}
		s.mu.Lock()
		for _, m := range elementPattern.FindAllStringSubmatch(string(out), -1) {
			addr, err := netip.ParseAddr(m[1])
			if err != nil || isAllowed(addr) || len(s.sent[m[1]]) == 0 {
				t.Errorf("blocked: %s", m[0])
			}
		}
		s.mu.Unlock()
	}
}

// compare says which addresses are not blocked as was acknowledged.
func (s *senders) compare(t *testing.T, acks map[string]acknowledgement) (wrong []string) {
	const expiry = time.Hour
	got := elements(t)
	for key, ack := range acks {
		e, ok := got[key]
		switch {
		case !ok:
			wrong = append(wrong, fmt.Sprintf("%s was acknowledged until %s, and is not blocked", key, ack.expires))
		case e.latest.Before(ack.expires.Add(-time.Second)):
			wrong = append(wrong, fmt.Sprintf("%s was acknowledged until %s, and is blocked until %s only", key, ack.expires, e.latest))
		case e.earliest.After(ack.expires.Add(time.Second)):
			// A later hit that was not acknowledged, as the daemon was killed.
			later := slices.ContainsFunc(s.sent[key], func(at time.Time) bool {
				left := e.latest.Sub(at.Add(expiry))
				return left > -time.Second && left < 10*time.Second
			})
			if !later {
				wrong = append(wrong, fmt.Sprintf("%s was acknowledged until %s, and is blocked until %s", key, ack.expires, e.earliest))
			}
		}
	}
	return wrong
}

// The daemon is killed at random moments under load. Every start succeeds, and
// what was acknowledged is there.
func TestKillsUnderLoad(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	s := newSite(t, "")
	all := &senders{path: s.socket, sent: map[string][]time.Time{}}
	stop := make(chan struct{})
	var running sync.WaitGroup
	for i := range 2 {
		running.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(10+i)))
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				all.hit(victim(r, i, n%20_000))
				time.Sleep(time.Millisecond)
			}
		})
	}
	killedEarly := 0
	for i := range *kills {
		from := s.logged()
		s.launch()
		if r.IntN(4) == 0 {
			pause(r, 30) // while it starts
			killedEarly++
		} else {
			s.await(from, "rblnftd: ready")
			pause(r, 60)
		}
		if code := s.cmd.ProcessState; code != nil {
			t.Fatalf("start %d ended by itself", i)
		}
		s.kill()
		for _, line := range s.log(from) {
			if strings.Contains(line, "error: ") || strings.Contains(line, "journal is damaged") && !strings.Contains(line, "lines_lost=1") {
				t.Fatalf("start %d: %s", i, line)
			}
		}
		if i%10 == 9 {
			flush(t)
		}
	}
	close(stop)
	running.Wait()
	acks := acknowledged(t, s.log(0))
	flush(t) // it is the journal alone that remembers
	s.start()
	var wrong []string
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		if wrong = all.compare(t, acks); len(wrong) == 0 || time.Now().After(deadline) {
			break
		}
	}
	for _, w := range wrong[:min(20, len(wrong))] {
		t.Error(w)
	}
	all.nobodyElse(t)
	files, err := os.ReadDir(s.state)
	if err != nil || len(files) > 25 {
		t.Errorf("%d files in the state directory, %v", len(files), err)
	}
	t.Logf("%d kills, %d of them while it started; %d hits sent; %d addresses acknowledged", *kills, killedEarly, all.n.Load(), len(acks))
	if len(acks) < 100 {
		t.Errorf("only %d addresses were acknowledged", len(acks))
	}
	s.end()
}
