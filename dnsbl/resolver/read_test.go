package resolver

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"rblnft/dnsbl"
)

// question returns a lookup as Ask makes it.
func question(t testing.TB, kind dnsbl.Type) *lookup {
	l := &lookup{qtype: kind}
	if err := l.pack("1.2.0.192.bl.example"); err != nil {
		t.Fatal(err)
	}
	return l
}

// response makes an answer to [question] of records in zone-file form.
func response(t testing.TB, kind dnsbl.Type, change func(*dns.Msg), records ...string) []byte {
	m := &dns.Msg{MsgHdr: dns.MsgHdr{Id: 0x1234, Response: true}}
	m.Question = []dns.Question{{Name: "1.2.0.192.bl.example.", Qtype: uint16(kind), Qclass: dns.ClassINET}}
	for _, r := range records {
		rr, err := dns.NewRR(r)
		if err != nil {
			t.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	if change != nil {
		change(m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRead(t *testing.T) {
	const name = "1.2.0.192.bl.example. 60 IN "
	for _, c := range []struct {
		what    string
		kind    dnsbl.Type
		message []byte
		tcp     bool
		want    responseClass
		addrs   string
		text    string
	}{
		{what: "A", kind: dnsbl.A, message: response(t, dnsbl.A, nil, name+"A 127.0.0.2", name+"A 127.0.0.3"), want: answered, addrs: "127.0.0.2 127.0.0.3"},
		{what: "TXT", kind: dnsbl.TXT, message: response(t, dnsbl.TXT, nil, name+`TXT "a" "b"`, name+`TXT "c"`), want: answered, text: "abc"},
		{what: "NODATA", kind: dnsbl.A, message: response(t, dnsbl.A, nil), want: answered},
		{what: "NXDOMAIN", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }), want: answered},
		{what: "NXDOMAIN with an answer", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }, name+"A 127.0.0.2"), want: answered},
		{what: "SERVFAIL", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }), want: refused},
		{what: "REFUSED with an answer", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Rcode = dns.RcodeRefused }, name+"A 127.0.0.2"), want: refused},
		{what: "a chain of CNAMEs", kind: dnsbl.A, message: response(t, dnsbl.A, nil, name+"CNAME x.example.", "x.example. 60 IN CNAME y.example.", "y.example. 60 IN A 127.0.0.4"), want: answered, addrs: "127.0.0.4"},
		{what: "records of another type", kind: dnsbl.A, message: response(t, dnsbl.A, nil, name+`TXT "127.0.0.2"`, name+"AAAA ::1"), want: answered},
		{what: "records of another class", kind: dnsbl.A, message: response(t, dnsbl.A, nil, "1.2.0.192.bl.example. 60 CH A 127.0.0.2"), want: answered},
		{what: "truncated", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Truncated = true }), want: truncated},
		{what: "truncated over TCP", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Truncated = true }), tcp: true, want: refused},
		{what: "cut in a record", kind: dnsbl.A, message: cut(response(t, dnsbl.A, nil, name+"A 127.0.0.2"), 2), want: refused},
		{what: "another ID", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Id++ }, name+"A 127.0.0.2")},
		{what: "a query", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Response = false }, name+"A 127.0.0.2")},
		{what: "another name", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Question[0].Name = "2.2.0.192.bl.example." }, name+"A 127.0.0.2")},
		{what: "the name in capitals", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Question[0].Name = "1.2.0.192.BL.Example." }, name+"A 127.0.0.2"), want: answered, addrs: "127.0.0.2"},
		{what: "another type", kind: dnsbl.A, message: response(t, dnsbl.TXT, nil, name+"A 127.0.0.2")},
		{what: "another class", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, name+"A 127.0.0.2")},
		{what: "no question", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Question = nil }, name+"A 127.0.0.2")},
		{what: "two questions", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, name+"A 127.0.0.2")},
		{what: "SERVFAIL without a question", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Rcode, m.Question = dns.RcodeServerFailure, nil }), want: refused},
		{what: "FORMERR without a question, of another ID", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Id, m.Rcode, m.Question = 1, dns.RcodeFormatError, nil })},
		{what: "NXDOMAIN without a question", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Rcode, m.Question = dns.RcodeNameError, nil })},
		{what: "a name that only Unicode takes for the same", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Question[0].Name = "1.2.0.192.bl.e\\226\\132\\170ample." }, name+"A 127.0.0.2")},
		{what: "a name that differs in a bit", kind: dnsbl.A, message: response(t, dnsbl.A, func(m *dns.Msg) { m.Question[0].Name = "\\017.2.0.192.bl.example." }, name+"A 127.0.0.2")},
		{what: "a hundred records", kind: dnsbl.A, message: response(t, dnsbl.A, nil, slices.Repeat([]string{name + "A 127.0.0.2"}, 100)...), tcp: true, want: answered, addrs: strings.TrimSpace(strings.Repeat("127.0.0.2 ", 100))},
		{what: "nothing", kind: dnsbl.A},
		{what: "a text of 20,000 bytes", kind: dnsbl.TXT, message: response(t, dnsbl.TXT, nil, name+"TXT"+strings.Repeat(` "`+strings.Repeat("x", 250)+`"`, 80)), tcp: true, want: answered, text: strings.Repeat("x", maxText)},
	} {
		a, got := question(t, c.kind).read(c.message, 0x1234, c.tcp)
		var addrs []string
		for _, addr := range a.Addrs {
			addrs = append(addrs, addr.String())
		}
		if got != c.want || strings.Join(addrs, " ") != c.addrs || a.Text != c.text {
			t.Errorf("%s: %d, %v, %.40q, want %d, %s, %.40q", c.what, got, addrs, a.Text, c.want, c.addrs, c.text)
		}
	}
}

func cut(b []byte, n int) []byte { return b[:len(b)-n] }

// FuzzRead compares what is read with what miekg/dns reads of the same bytes.
func FuzzRead(f *testing.F) {
	const name = "1.2.0.192.bl.example. 60 IN "
	f.Add(response(f, dnsbl.A, nil, name+"A 127.0.0.2", name+"CNAME x.example."), false, false)
	f.Add(response(f, dnsbl.TXT, nil, name+`TXT "a" "" "b"`), true, false)
	f.Add(response(f, dnsbl.TXT, func(m *dns.Msg) { m.Truncated, m.Compress = true, true }, name+`TXT "a"`), true, true)
	f.Add(response(f, dnsbl.A, func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }), false, true)
	f.Fuzz(func(t *testing.T, message []byte, text, tcp bool) {
		kind := dnsbl.A
		if text {
			kind = dnsbl.TXT
		}
		a, v := question(t, kind).read(message, 0x1234, tcp)
		if (a.Text != "" || len(a.Addrs) > 0) && v != answered {
			t.Errorf("class %d, and yet %+v", v, a)
		}
		var m dns.Msg
		if v != answered || m.Unpack(message) != nil {
			return
		}
		if m.Id != 0x1234 || !m.Response || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
			t.Errorf("taken for an answer: %v", &m)
		}
		var addrs []netip.Addr
		var texts []byte
		for _, rr := range m.Answer {
			if m.Rcode != dns.RcodeSuccess || rr.Header().Class != dns.ClassINET {
				continue
			}
			switch rr := rr.(type) {
			case *dns.A:
				if addr, ok := netip.AddrFromSlice(rr.A.To4()); ok && kind == dnsbl.A {
					addrs = append(addrs, addr)
				}
			case *dns.TXT:
				if kind == dnsbl.TXT {
					texts = append(texts, unescape(strings.Join(rr.Txt, ""))...)
				}
			}
		}
		if !slices.Equal(a.Addrs, addrs) {
			t.Errorf("addresses %v, miekg/dns reads %v", a.Addrs, addrs)
		}
		if want := string(texts[:min(len(texts), maxText)]); a.Text != want {
			t.Errorf("text %q, miekg/dns reads %q", a.Text, want)
		}
	})
}

// unescape returns the bytes of a string that the dns package has read (RFC 1035,
// section 5.1).
func unescape(s string) []byte {
	var b []byte
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b = append(b, s[i])
			continue
		}
		if n, err := strconv.ParseUint(s[i+1:min(i+4, len(s))], 10, 8); err == nil {
			b = append(b, byte(n))
			i += 3
		} else {
			i++
			b = append(b, s[i])
		}
	}
	return b
}
