// Package dnsbltest is a DNS server for tests. It plays DNS block lists, and
// whatever else may stand at the other end of a query: servers that are slow,
// broken, lying or silent.
//
// What it does is chosen by the name asked for: the longest zone of a [Zones]
// map that the name ends in says which [Play] answers. [Standard] has a zone
// for every answer, right or wrong, that a client of a block list must expect.
package dnsbltest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// Port is where a DNS server listens (RFC 1035, section 4.2).
const Port = 53

// Zones says by a zone's name, in lower case and without a final dot, what is
// answered below it and at it. The zone "" answers for all other names; without
// it they do not exist.
type Zones map[string]Play

// A Play answers one query, or does something worse.
type Play func(*Query)

// A Server answers on UDP and TCP until it is closed.
type Server struct {
	zones  Zones
	ctx    context.Context
	cancel context.CancelFunc
	udp    *dns.Server
	tcp    *dns.Server
	done   sync.WaitGroup

	mu     sync.Mutex
	asked  map[string]int      // by zone
	before map[string]int      // by name and type: how often it was asked
	conns  map[string]net.Conn // TCP connections that are open, by the client's address
}

// listener keeps what it accepts at hand, for those who want to send something
// other than messages.
type listener struct {
	net.Listener
	s *Server
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.s.conns[c.RemoteAddr().String()] = c
	return &conn{c, l.s}, nil
}

type conn struct {
	net.Conn
	s *Server
}

func (c *conn) Close() error {
	c.s.mu.Lock()
	delete(c.s.conns, c.RemoteAddr().String())
	c.s.mu.Unlock()
	return c.Conn.Close()
}

// Start starts a server on an address of this host, port [Port]. Its error is
// that of listening there, which takes a privilege: tests do it in a network
// namespace of their own.
func Start(addr netip.Addr, zones Zones) (*Server, error) {
	at := netip.AddrPortFrom(addr, Port)
	packets, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, fmt.Errorf("dnsbltest: %w", err)
	}
	if err := packets.SetReadBuffer(1 << 20); err != nil {
		packets.Close()
		return nil, fmt.Errorf("dnsbltest: %w", err)
	}
	streams, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		packets.Close()
		return nil, fmt.Errorf("dnsbltest: %w", err)
	}
	s := &Server{zones: zones, asked: map[string]int{}, before: map[string]int{}, conns: map[string]net.Conn{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.udp = &dns.Server{PacketConn: packets, Handler: s}
	s.tcp = &dns.Server{Listener: &listener{streams, s}, Handler: s}
	for _, server := range []*dns.Server{s.udp, s.tcp} {
		ready := make(chan struct{})
		server.NotifyStartedFunc = func() { close(ready) }
		s.done.Go(func() { server.ActivateAndServe() })
		<-ready
	}
	return s, nil
}

// Close ends the server, and the answers that it still owes.
func (s *Server) Close() {
	s.cancel()
	s.udp.Shutdown()
	s.tcp.Shutdown()
	s.done.Wait()
}

// Queries returns how many queries, repeated ones included, a zone of the
// server's [Zones] has got so far, over UDP and TCP.
func (s *Server) Queries(zone string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[zone]
}

// ServeDNS implements [dns.Handler].
func (s *Server) ServeDNS(w dns.ResponseWriter, msg *dns.Msg) {
	q := &Query{Msg: msg, w: w, s: s}
	_, q.TCP = w.RemoteAddr().(*net.TCPAddr)
	name := strings.ToLower(strings.TrimSuffix(msg.Question[0].Name, "."))
	play := NoName()
	for rest := name; ; {
		if p, ok := s.zones[rest]; ok {
			q.Zone, play = rest, p
			break
		}
		_, parent, more := strings.Cut(rest, ".")
		if rest == "" {
			break
		}
		if rest = parent; !more {
			rest = ""
		}
	}
	q.Addr = address(strings.TrimSuffix(strings.TrimSuffix(name, q.Zone), "."))

	s.mu.Lock()
	s.asked[q.Zone]++
	key := name + " " + dns.Type(q.Type()).String()
	q.Before = s.before[key]
	s.before[key]++
	s.mu.Unlock()

	play(q)
}

// A Query is one query to answer.
type Query struct {
	Msg    *dns.Msg
	Zone   string // the zone that answers
	Addr   string // the address asked about, as text; what stands before the zone if that is none
	TCP    bool
	Before int // how often the same name and type has been asked for before

	w dns.ResponseWriter
	s *Server
}

// Type returns the type of the records asked for.
func (q *Query) Type() uint16 { return q.Msg.Question[0].Qtype }

// Reply returns an answer without records, for more to be done to it.
func (q *Query) Reply() *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q.Msg)
	m.RecursionAvailable = true
	return m
}

// Send sends an answer. What does not fit into 512 bytes over UDP is left out,
// and the answer marked as truncated (RFC 1035, section 4.2.1).
func (q *Query) Send(m *dns.Msg) {
	b, err := m.Pack()
	if err == nil && !q.TCP && len(b) > dns.MinMsgSize {
		m.Truncate(dns.MinMsgSize)
		b, err = m.Pack()
	}
	if err != nil {
		panic(fmt.Sprintf("dnsbltest: %s: %v", q.Zone, err))
	}
	q.Raw(b)
}

// Raw sends bytes as they are; over TCP their length goes before them.
func (q *Query) Raw(b []byte) { q.w.Write(b) }

// address returns the address that labels stand for: four numbers (RFC 5782,
// section 2.1) or 32 nibbles (section 2.4), both in reverse order. It also
// takes an address in text form that was cut at its dots alone, which is what
// a client makes of an IPv6 address that does not know of any. Labels after
// those do not count; labels that are none of this are returned as they are.
func address(labels string) string {
	split := strings.Split(labels, ".")
	if len(split) >= 32 {
		text := make([]byte, 0, 40)
		for i := 31; i >= 0; i-- {
			text = append(text, split[i]...)
			if i%4 == 0 && i > 0 {
				text = append(text, ':')
			}
		}
		if addr, err := netip.ParseAddr(string(text)); err == nil {
			return addr.Unmap().String()
		}
	}
	text := ""
	for i := 0; i < len(split) && i < 4; i++ {
		if text = split[i] + "." + text; i == 0 {
			text = split[i]
		}
		if addr, err := netip.ParseAddr(text); err == nil {
			return addr.Unmap().WithZone("").String()
		}
	}
	return labels
}
