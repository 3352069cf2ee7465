package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"rblnft/dnsbl/dnsbltest"
	"rblnft/firewall/hit"
)

// What happens to a list in the course of its life, and of one that has died.
const (
	healthy  = "healthy"
	cutOff   = "cut off" // it does not answer whoever asks from here
	wildcard = "closed with a wildcard"
	parked   = "parked"
	failing  = "SERVFAIL"
	quiet    = "silent"
	empty    = "lists nobody"
)

var life = []string{healthy, cutOff, healthy, wildcard, parked, failing, quiet, empty, healthy}

// listedByLife and strangerToLife are the clients; a healthy list lists the first.
const listedByLife, strangerToLife = "192.0.2.66", "192.0.2.7"

// seen is what a filter did about a client.
type seen struct {
	reply string // to a client that is sent away at once; empty: it passed
	hits  []hit.Hit
	log   string
}

// ask runs the filter for a client.
func ask(t *testing.T, server, ip, list string) seen {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command(program, "-v", "-b", "-t0", "-T2", "-r", list, "true")
	cmd.Env = []string{"PATH=/usr/bin:/bin", "TCPREMOTEIP=" + ip, "DNSCACHEIP=" + server, "RBLNFT_SOCKET=" + path}
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		t.Errorf("%s, %s: %v", ip, list, err)
	}
	s := seen{reply: out.String(), log: log.String()}
	l.SetReadDeadline(time.Now().Add(time.Millisecond))
	b := make([]byte, hit.MaxLen)
	for {
		n, err := l.Read(b)
		if err != nil {
			return s
		}
		h, err := hit.Parse(b[:n])
		if err != nil {
			t.Error(err)
		}
		s.hits = append(s.hits, h)
	}
}

// checkStage asks the list about both clients, by its text and by its A record. At no
// stage is one turned away whom no healthy list lists.
func checkStage(t *testing.T, what, server, zone, stage string, queries func() int) {
	t.Helper()
	counted := queries != nil
	if !counted {
		queries = func() int { return 0 }
	}
	for _, c := range []struct {
		list, text string
		healthy    [2]int // queries about a client that is listed, and one that is not
		wildcard   int    // where everybody is
		parked     int
	}{
		{zone + ":no", "no", [2]int{2, 1}, 2, 1},
		{zone, "by life", [2]int{3, 1}, 3, 3},
	} {
		for i, ip := range []string{listedByLife, strangerToLife} {
			before := queries()
			got := ask(t, server, ip, c.list)
			asked := queries() - before
			var want seen
			if stage == healthy && ip == listedByLife {
				want.reply = "553 " + c.text + "\r\n"
				want.hits = []hit.Hit{{Addr: netip.MustParseAddr(ip), Zone: zone, Code: netip.MustParseAddr("127.0.0.2"), Answer: "553 " + c.text}}
			}
			if got.reply != want.reply || fmt.Sprint(got.hits) != fmt.Sprint(want.hits) {
				t.Errorf("%s, %s, %s about %s: %q, %v, log %q", what, stage, c.list, ip, got.reply, got.hits, got.log)
			}
			words := map[string]string{cutOff: "127.255.255.254", wildcard: "lists 127.0.0.1", parked: "outside 127.0.0.0/8", failing: "failed", quiet: "in time"}[stage]
			if words != "" && !strings.Contains(got.log, zone+": ") || !strings.Contains(got.log, words) {
				t.Errorf("%s, %s, %s about %s: log %q", what, stage, c.list, ip, got.log)
			}
			wanted := map[string]int{healthy: c.healthy[i], cutOff: c.parked, wildcard: c.wildcard, parked: c.parked, failing: 2, empty: 1}[stage]
			if counted && stage != quiet && asked != wanted {
				t.Errorf("%s, %s, %s about %s: %d queries, want %d", what, stage, c.list, ip, asked, wanted)
			}
		}
	}
}

func TestLifeOfAList(t *testing.T) {
	listed := dnsbltest.Lists([]string{"127.0.0.2"}, "by life")
	stages := map[string]dnsbltest.Play{
		healthy: func(q *dnsbltest.Query) {
			if q.Addr == listedByLife {
				listed(q)
			} else {
				dnsbltest.NoName()(q)
			}
		},
		cutOff:   dnsbltest.Lists([]string{"127.255.255.254"}, "Error: open resolver"),
		wildcard: listed,
		parked:   dnsbltest.Lists([]string{"203.0.113.1"}, "for sale"),
		failing:  dnsbltest.Rcode(dns.RcodeServerFailure),
		quiet:    dnsbltest.Silence(),
		empty:    dnsbltest.NoName(),
	}
	var now atomic.Pointer[string]
	const server, zone = "192.0.2.54", "life.test"
	s, err := dnsbltest.Start(netip.MustParseAddr(server), dnsbltest.Zones{zone: func(q *dnsbltest.Query) { stages[*now.Load()](q) }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, stage := range life {
		now.Store(&stage)
		checkStage(t, "miekg/dns", server, zone, stage, func() int { return s.Queries(zone) })
	}
}

// The same with rbldnsd, which does not say how often it was asked.
func TestLifeOfRbldnsd(t *testing.T) {
	const server, zone = "192.0.2.55", "life.test"
	const head = "$SOA 60 ns.test. admin.test. 0 600 300 86400 60\n"
	files := map[string]string{
		healthy:  head + ":127.0.0.2:by life\n127.0.0.2\n" + listedByLife + "\n",
		cutOff:   head + ":127.255.255.254:Error: open resolver\n0.0.0.0/1\n128.0.0.0/1\n",
		wildcard: head + ":127.0.0.2:by life\n0.0.0.0/1\n128.0.0.0/1\n",
		parked:   head + ":203.0.113.1:for sale\n0.0.0.0/1\n128.0.0.0/1\n",
		failing:  head,
		empty:    head,
	}
	dir, err := os.MkdirTemp("", "life")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // rbldnsd gives its privileges up
		t.Fatal(err)
	}
	var cmd *exec.Cmd
	stop := func() {
		if cmd != nil {
			cmd.Process.Signal(syscall.SIGCONT)
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	defer func() { stop() }()
	for _, stage := range life {
		if stage == quiet {
			cmd.Process.Signal(syscall.SIGSTOP)
		} else {
			stop()
			if err := os.WriteFile(filepath.Join(dir, "zone"), []byte(files[stage]), 0o644); err != nil {
				t.Fatal(err)
			}
			served := zone
			if stage == failing { // rbldnsd answers REFUSED for what it does not serve
				served = "other.test"
			}
			cmd = exec.Command("rbldnsd", "-n", "-b", server+"/53", "-r", dir, "-w", "/", served+":ip4set:zone")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			await(t, server)
		}
		checkStage(t, "rbldnsd", server, zone, stage, nil)
	}
}

// await waits until a DNS server answers.
func await(t *testing.T, server string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if _, err := dns.Exchange(new(dns.Msg).SetQuestion("2.0.0.127.life.test.", dns.TypeA), server+":53"); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("no answer from ", server)
}
