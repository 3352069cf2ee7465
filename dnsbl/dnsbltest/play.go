package dnsbltest

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// ttl is the time to live of every record, in seconds.
const ttl = 60

// Lists has the A records codes and, for each of texts, a TXT record; "%a" in
// one becomes the address. A text longer than 255 bytes is a record of several
// strings. There are no records of other types.
func Lists(codes []string, texts ...string) Play {
	return func(q *Query) { q.Send(q.listing(codes, texts)) }
}

// listing is the answer of a list.
func (q *Query) listing(codes, texts []string) *dns.Msg {
	m := q.Reply()
	m.Compress = true
	name := q.Msg.Question[0].Name
	switch q.Type() {
	case dns.TypeA:
		for _, code := range codes {
			m.Answer = append(m.Answer, a(name, code))
		}
	case dns.TypeTXT:
		for _, text := range texts {
			text = strings.ReplaceAll(text, "%a", q.Addr)
			strs := []string{text[:min(len(text), 255)]}
			for rest := text[len(strs[0]):]; rest != ""; {
				n := min(len(rest), 255)
				strs = append(strs, rest[:n])
				rest = rest[n:]
			}
			m.Answer = append(m.Answer, txt(name, strs...))
		}
	}
	return m
}

func a(name, addr string) *dns.A {
	return &dns.A{
		Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl},
		A:   netip.MustParseAddr(addr).AsSlice(),
	}
}

func txt(name string, strs ...string) *dns.TXT {
	r := &dns.TXT{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: ttl}}
	for _, s := range strs {
		r.Txt = append(r.Txt, escape(s))
	}
	return r
}

// escape writes a string as the dns package, and a zone file, have it (RFC
// 1035, section 5.1).
func escape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			fmt.Fprintf(&b, "\\%03d", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// Strings has one TXT record of these strings, and the A record 127.0.0.2.
func Strings(strs ...string) Play {
	return func(q *Query) {
		m := q.listing([]string{"127.0.0.2"}, nil)
		if q.Type() == dns.TypeTXT {
			m.Answer = append(m.Answer, txt(q.Msg.Question[0].Name, strs...))
		}
		q.Send(m)
	}
}

// Says lists every address with a text that the name itself says: the last
// label before the zone is the text in hexadecimal digits, as [Saying] has it.
func Says() Play {
	return func(q *Query) {
		name := q.Msg.Question[0].Name
		text := ""
		labels := strings.Split(strings.TrimSuffix(strings.ToLower(name), "."+q.Zone+"."), ".")
		for _, label := range labels {
			if digits, ok := strings.CutPrefix(label, "x"); ok {
				b, _ := hex.DecodeString(digits)
				text += string(b)
			}
		}
		m := q.listing([]string{"127.0.0.2"}, nil)
		if q.Type() == dns.TypeTXT {
			m.Answer = append(m.Answer, txt(name, text))
		}
		q.Send(m)
	}
}

// Saying returns the zone below zone, which must play [Says], whose text is
// text. It must be shorter than 90 bytes, as a name is shorter than 256.
func Saying(text, zone string) string {
	name := ""
	for text != "" {
		n := min(len(text), 31)
		name += "x" + hex.EncodeToString([]byte(text[:n])) + "."
		text = text[n:]
	}
	return name + zone
}

// NoName answers that the name does not exist (RFC 2308, section 2.1).
func NoName() Play { return Rcode(dns.RcodeNameError) }

// NoData answers that there are no such records (RFC 2308, section 2.2).
func NoData() Play { return Rcode(dns.RcodeSuccess) }

// Rcode answers with a response code, and no records.
func Rcode(code int) Play {
	return func(q *Query) {
		m := q.Reply()
		m.Rcode = code
		q.Send(m)
	}
}

// Silence answers nothing.
func Silence() Play { return func(*Query) {} }

// Slow plays after a while.
func Slow(after time.Duration, play Play) Play {
	return func(q *Query) {
		select {
		case <-time.After(after):
			play(q)
		case <-q.s.ctx.Done():
		}
	}
}

// ByType plays one thing for queries for A records, and another for others.
func ByType(a, others Play) Play {
	return func(q *Query) {
		if q.Type() == dns.TypeA {
			a(q)
		} else {
			others(q)
		}
	}
}

// Test plays one thing for queries about 127.0.0.1, which no list may list (RFC
// 5782, section 5), and another for all others.
func Test(test, others Play) Play {
	return func(q *Query) {
		if q.Addr == "127.0.0.1" {
			test(q)
		} else {
			others(q)
		}
	}
}

// Once plays one thing when a name and type is asked for the first time, and
// another ever after.
func Once(first, then Play) Play {
	return func(q *Query) {
		if q.Before == 0 {
			first(q)
		} else {
			then(q)
		}
	}
}

// Both plays one thing, and the other right after it.
func Both(first, second Play) Play {
	return func(q *Query) {
		first(q)
		second(q)
	}
}

// Alias answers with a chain of CNAME records at whose end a listing stands
// (RFC 1034, section 3.6.2).
func Alias(hops int, codes []string, texts ...string) Play {
	return func(q *Query) {
		m := q.listing(codes, texts)
		name := q.Msg.Question[0].Name
		var chain []dns.RR
		for hop := range hops {
			next := fmt.Sprintf("hop%d.alias.test.", hop+1)
			chain = append(chain, &dns.CNAME{
				Hdr:    dns.RR_Header{Name: name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: ttl},
				Target: next,
			})
			name = next
		}
		for _, r := range m.Answer {
			r.Header().Name = name
		}
		m.Answer = append(chain, m.Answer...)
		q.Send(m)
	}
}
