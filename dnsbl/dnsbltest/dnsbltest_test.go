package dnsbltest

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"rblnft/firewall/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

func TestAddress(t *testing.T) {
	for labels, want := range map[string]string{
		"1.2.0.192":                    "192.0.2.1",
		"1.2.0.192.below":              "192.0.2.1",
		"2001:db8::1":                  "2001:db8::1",
		"2001:DB8:0:0::1":              "2001:db8::1",
		"fe80::1%lo":                   "fe80::1",
		"1.2.0.::ffff:192":             "192.0.2.1",
		"":                             "",
		"1.2.3":                        "1.2.3",
		"1.2.3.256":                    "1.2.3.256",
		"some.where":                   "some.where",
		strings.Repeat("0.", 31) + "0": "::",
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2": "2001:db8::1",
		"1.0.2.0.0.0.0.c.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0": "192.0.2.1",
	} {
		if got := address(labels); got != want {
			t.Errorf("address(%q) = %q, want %q", labels, got, want)
		}
	}
}

// ask asks as a client would that believes everything, and returns the bytes
// of the answer; none if there is no answer.
func ask(t *testing.T, network string, msg *dns.Msg) []byte {
	t.Helper()
	conn, err := dns.DialTimeout(network, "127.0.0.1:53", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(500 * time.Millisecond))
	if err := conn.WriteMsg(msg); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<16)
	n, err := conn.Read(b)
	if err != nil && network == "udp" && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return b[:n]
}

func TestStandardZones(t *testing.T) {
	s, err := Start(netip.MustParseAddr("127.0.0.1"), Standard())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	texts := func(m *dns.Msg) (texts []string) {
		for _, r := range m.Answer {
			if r, ok := r.(*dns.TXT); ok {
				texts = append(texts, strings.Join(r.Txt, "|"))
			}
		}
		return texts
	}
	for zone, check := range map[string]func(q, m *dns.Msg) bool{
		"list.test":                            func(q, m *dns.Msg) bool { return len(texts(m)) == 1 && texts(m)[0] == "listed 192.0.2.1" },
		"records.test":                         func(q, m *dns.Msg) bool { return len(texts(m)) == 4 && texts(m)[1] == "second" },
		"strings.test":                         func(q, m *dns.Msg) bool { return texts(m)[0] == "one, |two, ||three" },
		"long.test":                            func(q, m *dns.Msg) bool { return len(texts(m)[0]) == 301 },
		"big.test":                             func(q, m *dns.Msg) bool { return m.Truncated },
		"binary.test":                          func(q, m *dns.Msg) bool { return len(m.Answer[0].(*dns.TXT).Txt) == 2 },
		"alias4.test":                          func(q, m *dns.Msg) bool { return len(m.Answer) == 5 && m.Answer[4].Header().Name == "hop4.alias.test." },
		"noname.test":                          func(q, m *dns.Msg) bool { return m.Rcode == dns.RcodeNameError && len(m.Answer) == 0 },
		"nodata.test":                          func(q, m *dns.Msg) bool { return m.Rcode == dns.RcodeSuccess && len(m.Answer) == 0 },
		"unknown.test":                         func(q, m *dns.Msg) bool { return m.Rcode == dns.RcodeNameError },
		"emptytext.test":                       func(q, m *dns.Msg) bool { return len(m.Answer) == 1 && texts(m)[0] == "" },
		"failure.test":                         func(q, m *dns.Msg) bool { return m.Rcode == dns.RcodeServerFailure },
		"refused.test":                         func(q, m *dns.Msg) bool { return m.Rcode == dns.RcodeRefused },
		"format.test":                          func(q, m *dns.Msg) bool { return m.Rcode == dns.RcodeFormatError },
		"id.test":                              func(q, m *dns.Msg) bool { return m.Id != q.Id && len(m.Answer) == 1 },
		"question.test":                        func(q, m *dns.Msg) bool { return m.Id == q.Id && m.Question[0].Name == "other.test." },
		"noquestion.test":                      func(q, m *dns.Msg) bool { return len(m.Question) == 0 && len(m.Answer) == 1 },
		"uppercase.test":                       func(q, m *dns.Msg) bool { return m.Question[0].Name == strings.ToUpper(q.Question[0].Name) },
		"query.test":                           func(q, m *dns.Msg) bool { return !m.Response && len(m.Answer) == 1 },
		"tcp.test":                             func(q, m *dns.Msg) bool { return m.Truncated && len(m.Answer) == 0 },
		"partial.test":                         func(q, m *dns.Msg) bool { return m.Truncated && texts(m)[0] == "a part of listed 192.0.2.1" },
		"nonamelisting.test":                   func(q, m *dns.Msg) bool { return m.Rcode == dns.RcodeNameError && len(m.Answer) == 1 },
		"trailing.test":                        func(q, m *dns.Msg) bool { return len(m.Answer) == 1 },
		Saying("what is said\xff", "say.test"): func(q, m *dns.Msg) bool { return texts(m)[0] == `what is said\255` },
	} {
		q := new(dns.Msg).SetQuestion("1.2.0.192."+zone+".", dns.TypeTXT)
		b := ask(t, "udp", q)
		m := new(dns.Msg)
		if err := m.Unpack(b); err != nil {
			t.Errorf("%s: %v", zone, err)
		} else if !check(q, m) {
			t.Errorf("%s: %v", zone, m)
		}
	}

	// What cannot be read.
	for _, zone := range []string{"half.test", "halfheader.test", "count.test", "rdlength.test", "badlabel.test", "stringlength.test", "pointer.test", "pointerself.test", "garbage.test", "garbagerest.test", "short.test", "empty.test"} {
		q := new(dns.Msg).SetQuestion("1.2.0.192."+zone+".", dns.TypeTXT)
		b := ask(t, "udp", q)
		if err := new(dns.Msg).Unpack(b); err == nil && !(zone == "count.test" && len(b) > 0) {
			// The dns package does not mind records that are not there.
			t.Errorf("%s: %x can be read", zone, b)
		}
	}

	// What does not come, or not over UDP, or not in time.
	for _, zone := range []string{"silent.test", "port.test", "addr.test", "slow2000.test"} {
		q := new(dns.Msg).SetQuestion("1.2.0.192."+zone+".", dns.TypeTXT)
		if b := ask(t, "udp", q); len(b) > 0 {
			t.Errorf("%s: %x", zone, b)
		}
	}
	for zone, want := range map[string]bool{
		"tcp.test": true, "big.test": true, "pieces.test": true, "large.test": true, "huge.test": true,
		"tcpclosed.test": false, "tcphalf.test": false, "tcplength.test": false, "tcpempty.test": false, "tcpsilent.test": false,
	} {
		q := new(dns.Msg).SetQuestion("1.2.0.192."+zone+".", dns.TypeTXT)
		m := new(dns.Msg)
		err := m.Unpack(ask(t, "tcp", q))
		if got := err == nil && len(m.Answer) == 1 && !m.Truncated; got != want {
			t.Errorf("%s over TCP: a listing %v, want %v", zone, got, want)
		}
	}

	// By type, and by how often.
	for i, want := range []int{dns.RcodeServerFailure, dns.RcodeSuccess, dns.RcodeSuccess} {
		m := new(dns.Msg)
		if err := m.Unpack(ask(t, "udp", new(dns.Msg).SetQuestion("1.2.0.192.once.test.", dns.TypeTXT))); err != nil || m.Rcode != want {
			t.Errorf("once.test, time %d: %v, %v", i+1, m, err)
		}
	}
	if n := s.Queries("once.test"); n != 3 {
		t.Errorf("once.test was asked %d times, want 3", n)
	}
	for kind, want := range map[uint16]int{dns.TypeA: dns.RcodeServerFailure, dns.TypeTXT: dns.RcodeSuccess} {
		m := new(dns.Msg)
		if err := m.Unpack(ask(t, "udp", new(dns.Msg).SetQuestion("1.2.0.192.textfailure.test.", kind))); err != nil || m.Rcode != want {
			t.Errorf("textfailure.test %d: %v, %v", kind, m, err)
		}
	}
}

// What comes from elsewhere does come, for those who take it.
func TestFrom(t *testing.T) {
	s, err := Start(netip.MustParseAddr("127.0.0.1"), Standard())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for zone, from := range map[string]string{"port.test": "127.0.0.1", "addr.test": "127.0.0.99"} {
		conn, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		query, err := new(dns.Msg).SetQuestion("1.2.0.192."+zone+".", dns.TypeTXT).Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.WriteTo(query, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: Port}); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 512)
		n, addr, err := conn.ReadFrom(b)
		if err != nil {
			t.Fatalf("%s: %v", zone, err)
		}
		at := addr.(*net.UDPAddr).AddrPort()
		if at.Addr().Unmap().String() != from || at.Port() == Port {
			t.Errorf("%s: an answer from %v", zone, at)
		}
		if err := new(dns.Msg).Unpack(b[:n]); err != nil {
			t.Errorf("%s: %v", zone, err)
		}
	}
}

func TestCloseEndsSlowAnswers(t *testing.T) {
	s, err := Start(netip.MustParseAddr("127.0.0.1"), Zones{"": Slow(time.Hour, NoName())})
	if err != nil {
		t.Fatal(err)
	}
	if b := ask(t, "udp", new(dns.Msg).SetQuestion("a.test.", dns.TypeA)); len(b) > 0 {
		t.Errorf("%x", b)
	}
	closed := make(chan struct{})
	go func() {
		s.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(30 * time.Second):
		t.Error("Close still waits after 30s")
	}
}
