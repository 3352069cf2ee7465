package dnsbltest

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Altered sends a listing that something has been done to before it is packed.
func Altered(codes []string, text string, alter func(*dns.Msg)) Play {
	return func(q *Query) {
		m := q.listing(codes, []string{text})
		alter(m)
		q.Send(m)
	}
}

// Packed sends a listing that something has been done to after it was packed.
func Packed(codes []string, text string, alter func([]byte) []byte) Play {
	return func(q *Query) {
		b, err := q.listing(codes, []string{text}).Pack()
		if err != nil {
			panic(err)
		}
		q.Raw(alter(b))
	}
}

// headerLen is the length in bytes of a message's header (RFC 1035, section
// 4.1.1).
const headerLen = 12

// record returns where in a message with one question the first record's type
// stands, after its owner, which must be two bytes long, a pointer.
func record(b []byte) int {
	at := headerLen
	for b[at] != 0 {
		at += 1 + int(b[at])
	}
	return at + 1 + 4 + 2
}

// WrongID answers with another ID than the query's.
func WrongID(text string) Play {
	return Altered([]string{"127.0.0.2"}, text, func(m *dns.Msg) { m.Id++ })
}

// WrongQuestion repeats another question than the one asked.
func WrongQuestion(text string) Play {
	return Altered([]string{"127.0.0.2"}, text, func(m *dns.Msg) {
		m.Question[0].Name = "other.test."
	})
}

// NoQuestion repeats no question.
func NoQuestion(text string) Play {
	return Altered([]string{"127.0.0.2"}, text, func(m *dns.Msg) { m.Question = nil })
}

// Echo sends the query back.
func Echo() Play {
	return func(q *Query) {
		m := q.Msg.Copy()
		q.Send(m)
	}
}

// UpperCase repeats the question in upper case, as a server may (RFC 1035,
// section 2.3.3).
func UpperCase(codes []string, text string) Play {
	return Altered(codes, text, func(m *dns.Msg) {
		m.Question[0].Name = strings.ToUpper(m.Question[0].Name)
	})
}

// From sends a listing from another address or port than the one asked. Over
// TCP, where that cannot be, it is silent. The address may be invalid: the
// one asked, and another port.
func From(addr netip.Addr, text string) Play {
	return func(q *Query) {
		if q.TCP {
			return
		}
		b, err := q.listing([]string{"127.0.0.2"}, []string{text}).Pack()
		if err != nil {
			panic(err)
		}
		from := netip.AddrPortFrom(addr, Port)
		if !addr.IsValid() {
			own := q.w.LocalAddr().(*net.UDPAddr).AddrPort()
			from = netip.AddrPortFrom(own.Addr(), 0)
		} else {
			from = netip.AddrPortFrom(addr, 0)
		}
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(from))
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		conn.WriteTo(b, q.w.RemoteAddr())
	}
}

// Garbage sends random bytes, the same for the same seed: of a whole message,
// so that the ID is wrong, or, where after the query's header and question is
// set, of all that stands behind those.
func Garbage(seed uint64, afterQuestion bool) Play {
	return func(q *Query) {
		random := rand.New(rand.NewPCG(seed, 0))
		b := make([]byte, 20+random.IntN(200))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		if afterQuestion {
			m := q.Reply()
			head, err := m.Pack()
			if err != nil {
				panic(err)
			}
			binary.BigEndian.PutUint16(head[6:], 1+uint16(random.IntN(3))) // answers
			b = append(head, b...)
		}
		q.Raw(b)
	}
}

// Truncated plays over TCP, and says over UDP that it is to be asked there.
// A play of nil closes the TCP connection.
func Truncated(tcp Play) Play {
	return func(q *Query) {
		switch {
		case !q.TCP:
			m := q.Reply()
			m.Truncated = true
			q.Send(m)
		case tcp == nil:
			q.w.Close()
		default:
			tcp(q)
		}
	}
}

// Pieces sends a listing over TCP in pieces of one byte.
func Pieces(codes []string, text string) Play {
	return func(q *Query) {
		b, err := q.listing(codes, []string{text}).Pack()
		if err != nil {
			panic(err)
		}
		b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
		q.stream(b, 1)
	}
}

// Partly sends the beginning of a listing over TCP, and closes the connection.
func Partly(codes []string, text string, bytes int) Play {
	return func(q *Query) {
		b, err := q.listing(codes, []string{text}).Pack()
		if err != nil {
			panic(err)
		}
		b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
		q.stream(b[:min(bytes, len(b))], len(b))
		q.w.Close()
	}
}

// stream writes to a TCP connection, without adding the length that goes before
// a message there, in pieces of so many bytes.
func (q *Query) stream(b []byte, piece int) {
	q.s.mu.Lock()
	conn := q.s.conns[q.w.RemoteAddr().String()]
	q.s.mu.Unlock()
	for conn != nil && len(b) > 0 {
		n := min(piece, len(b))
		if _, err := conn.Write(b[:n]); err != nil {
			return
		}
		b = b[n:]
		time.Sleep(50 * time.Microsecond)
	}
}
