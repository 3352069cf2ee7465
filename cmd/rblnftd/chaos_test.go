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

	"golang.org/x/sys/unix"

	"rblnft/firewall/book"
	"rblnft/firewall/hit"
)

var (
	chaosTime = flag.Duration("chaos", 45*time.Second, "how long the chaos test goes on")
	kills     = flag.Int("kills", 20, "how often the daemon is killed under load")
)

// An acknowledgement is a line of the daemon's log that says that an address is
// blocked, which it writes when the block is in the kernel.
type acknowledgement struct{ expires, at time.Time }

// acknowledged returns the last acknowledgement of each block, by the first
// address of what is blocked.
func (s *site) acknowledged() map[string]acknowledgement {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]acknowledgement{}
	for i, line := range s.lines {
		if rest, ok := strings.CutPrefix(line, "rblnftd: blocked addr="); ok {
			prefix, err := netip.ParsePrefix(field(rest, "prefix"))
			if err != nil {
				s.t.Fatalf("%q: %v", line, err)
			}
			expires, err := time.Parse(time.RFC3339, field(rest, "expires"))
			if err != nil {
				s.t.Fatalf("%q: %v", line, err)
			}
			all[prefix.Addr().String()] = acknowledgement{expires, s.at[i]}
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
	key := book.KeyOf(addr).Addr().String()
	s.mu.Lock()
	s.sent[key] = append(s.sent[key], time.Now())
	s.mu.Unlock()
	h := hit.Hit{Addr: addr, Zone: "bl.example", Code: netip.AddrFrom4([4]byte{127, 0, 0, 2}), Answer: "553 listed"}
	if sent, err := send(s.path, h); !sent || err != nil {
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

// victim returns an address: a new one, one that was there before, an allowed one,
// one that others delete or that is allowed now and then.
func victim(r *rand.Rand, sender, n int) netip.Addr {
	switch r.IntN(14) {
	case 0:
		return netip.AddrFrom4([4]byte{10, byte(r.IntN(256)), byte(r.IntN(256)), 1})
	case 1:
		return netip.MustParseAddr("fd00::1")
	case 2, 3:
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(sender), byte(r.IntN(4)), byte(r.IntN(256)), 15: byte(n)})
	case 4:
		return netip.AddrFrom4([4]byte{unsure, 0, 0, byte(r.IntN(256))})
	case 5, 6, 7:
		n = r.IntN(n + 1)
	}
	return netip.AddrFrom4([4]byte{101, byte(sender), byte(n >> 8), byte(n)})
}

// unsure is the first byte of addresses of which it cannot be said whether they are
// blocked in the end: others delete and allow them.
const unsure = 103

// Whatever happens to the daemon and to the ruleset, in the end every address
// whose block was acknowledged is blocked for as long as was said, and nobody
// else ever was. What was acknowledged in the last moments before a kill -9 may be
// lost, if the kernel loses it too.
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
					time.Sleep(time.Duration(20+r.IntN(40)) * time.Millisecond)
				}
			}
		})
	}
	// Somebody looks on, and somebody deletes by hand.
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
	running.Go(func() {
		r := rand.New(rand.NewPCG(seed, 50))
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				disturb(fmt.Sprintf("delete element inet rblnft blocked4 { %d.0.0.%d }", unsure, r.IntN(256)))
			}
		}
	})

	r := rand.New(rand.NewPCG(seed, 100))
	happened := map[string]int{}
	var kills []time.Time
	kill := func() {
		kills = append(kills, time.Now())
		s.kill()
	}
	events := []struct {
		name string
		do   func()
	}{
		{"kill -9", func() { kill(); pause(r, 300); s.launch() }},
		{"kill -9", func() { kill(); s.launch() }},
		{"kill -9 while it starts", func() { kill(); s.launch(); pause(r, 60); kill(); s.launch() }},
		{"restart", func() { s.signal(syscall.SIGTERM); s.wait(); s.launch() }},
		{"flush ruleset", func() { disturb("flush ruleset") }},
		{"flush ruleset twice", func() { disturb("flush ruleset"); pause(r, 20); disturb("flush ruleset") }},
		{"flush ruleset while it is down", func() { kill(); disturb("flush ruleset"); pause(r, 100); s.launch() }},
		{"delete table", func() { disturb("delete table inet rblnft") }},
		{"delete chain", func() { disturb("flush chain inet rblnft input; delete chain inet rblnft input") }},
		{"flush chain", func() { disturb("flush chain inet rblnft input") }},
		{"delete set", func() {
			disturb("flush chain inet rblnft input; delete set inet rblnft blocked" + []string{"4", "6"}[r.IntN(2)])
		}},
		{"another table of that name, for a while", func() {
			disturb("delete table inet rblnft; add table inet rblnft; add chain inet rblnft other; add set inet rblnft blocked4 { type ipv6_addr; }")
			pause(r, 200)
			disturb("delete table inet rblnft")
		}},
		{"bad datagrams", func() { nonsense(r, s.socket, 500) }},
		{"stopped", func() {
			s.signal(syscall.SIGSTOP)
			pause(r, 400)
			s.signal(syscall.SIGCONT)
		}},
		{"reload", func() {
			s.configure([]string{"", fmt.Sprintf("allow = [\"%d.0.0.0/25\"]", unsure)}[r.IntN(2)])
			s.signal(syscall.SIGHUP)
		}},
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
	s.configure("")
	disturb("delete table inet rblnft") // which may not be ours
	from := s.logged()
	time.Sleep(200 * time.Millisecond)
	s.signal(syscall.SIGTERM)
	if code := s.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	s.start()
	s.await(from, "rblnftd: ready")
	acks := s.acknowledged()
	for key, ack := range acks {
		excused := slices.ContainsFunc(kills, func(at time.Time) bool {
			return ack.at.After(at.Add(-time.Second)) && ack.at.Before(at.Add(time.Second))
		})
		if excused || netip.MustParseAddr(key).As16()[12] == unsure && netip.MustParseAddr(key).Is4() {
			delete(acks, key)
		}
	}
	all.check(t, acks)
	if n := s.descriptors(); n > 30 {
		t.Errorf("%d descriptors are open", n)
	}
	t.Logf("%d hits sent, %d of them to nobody; %d addresses acknowledged; happened: %v", all.n.Load(), all.gone.Load(), len(acks), happened)
	if len(acks) < 100 {
		t.Errorf("only %d addresses were acknowledged", len(acks))
	}
	s.end()
}

// check waits until what was acknowledged is so.
func (s *senders) check(t *testing.T, acks map[string]acknowledgement) {
	t.Helper()
	var wrong []string
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		if wrong = s.compare(t, acks); len(wrong) == 0 || time.Now().After(deadline) {
			break
		}
	}
	for _, w := range wrong[:min(20, len(wrong))] {
		t.Error(w)
	}
	if len(wrong) > 0 {
		t.Errorf("%d addresses are wrong", len(wrong))
	}
	s.nobodyElse(t)
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

// The daemon is killed at random moments under load, with a book that is full or
// not. Every start succeeds, and what was acknowledged is there.
func TestKillsUnderLoad(t *testing.T) {
	for name, config := range map[string]string{"with room": "", "full": "max_elements = 2000\n"} {
		t.Run(name, func(t *testing.T) { testKillsUnderLoad(t, config) })
	}
}

func testKillsUnderLoad(t *testing.T, config string) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	s := newSite(t, config)
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
	var killedAt []time.Time
	for i := range *kills {
		from := s.logged()
		s.launch()
		if r.IntN(4) == 0 {
			pause(r, 30) // while it starts
			killedEarly++
		} else {
			s.await(from, "rblnftd: ready")
			pause(r, 2500)
		}
		killedAt = append(killedAt, time.Now())
		if code := s.kill(); code != -1 {
			t.Fatalf("start %d ended by itself, with code %d", i, code)
		}
		for _, line := range s.log(from) {
			if strings.Contains(line, "error: ") || strings.Contains(line, "damaged") && !strings.Contains(line, "lines_lost=1") {
				t.Fatalf("start %d: %s", i, line)
			}
		}
		if i%10 == 9 {
			flush(t)
		}
	}
	close(stop)
	running.Wait()
	acks := s.acknowledged()
	for key, ack := range acks {
		if slices.ContainsFunc(killedAt, func(at time.Time) bool {
			return ack.at.After(at.Add(-time.Second)) && ack.at.Before(at.Add(20*time.Millisecond))
		}) {
			delete(acks, key)
		}
	}
	flush(t) // it is the state alone that remembers
	s.start()
	all.check(t, acks)
	files, err := os.ReadDir(s.state)
	if err != nil || len(files) > 3 {
		t.Errorf("%d files in the state directory, %v", len(files), err)
	}
	t.Logf("%d kills, %d of them while it started; %d hits sent; %d addresses acknowledged", *kills, killedEarly, all.n.Load(), len(acks))
	if len(acks) < 50 {
		t.Errorf("only %d addresses were acknowledged", len(acks))
	}
	s.end()
}

// Eight senders send as fast as they can while eight processes flush the ruleset.
// What was taken from them is in the kernel in the end, and nothing else.
func TestFlood(t *testing.T) {
	longQueues(t)
	s := newSite(t, "")
	s.start()
	stop := make(chan struct{})
	var running, sending sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(rand.IntN(300)) * time.Millisecond):
					disturb("flush ruleset")
				}
			}
		})
	}
	var sent [8]int
	var turnedAway atomic.Int64
	for i := range sent {
		sending.Go(func() {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(fd)
			if err := unix.Connect(fd, &unix.SockaddrUnix{Name: s.socket}); err != nil {
				t.Error(err)
				return
			}
			for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
				for range 100 {
					line := hitLine(netip.AddrFrom4([4]byte{31, byte(i), byte(sent[i] >> 8), byte(sent[i])}))
					switch err := unix.Sendto(fd, line, unix.MSG_DONTWAIT, nil); err {
					case nil:
						sent[i] = (sent[i] + 1) % 65536
					case unix.EAGAIN:
						turnedAway.Add(1)
					default:
						t.Error(err)
						return
					}
				}
				time.Sleep(16 * time.Millisecond)
			}
		})
	}
	sending.Wait()
	close(stop)
	running.Wait()
	s.signal(syscall.SIGTERM)
	if code := s.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	flush(t)
	s.start()
	total := 0
	for _, n := range sent {
		total += n
	}
	line := s.await(0, "rblnftd: ended")
	if field(line, "received") != fmt.Sprint(total) || field(line, "blocked") != fmt.Sprint(total) {
		t.Errorf("%d hits were taken: %s", total, line)
	}
	s.await(0, "elements restored", "set=blocked4", fmt.Sprintf("restored=%d", total))
	t.Logf("%d hits taken, %d turned away for the moment", total, turnedAway.Load())
	s.end()
}
