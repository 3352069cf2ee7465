package dnsbltest

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Listed is the text of the zones of [Standard] that have no reason for
// another.
const Listed = "listed %a"

var two = []string{"127.0.0.2"}

// Standard returns zones for every answer that a client of a block list must
// expect. Their names end in .test (RFC 6761, section 6.2), and say what they
// play. Other names do not exist.
func Standard() Zones {
	z := Zones{}
	for _, zones := range []Zones{listing, notListing, complaining, pretending} {
		for name, play := range zones {
			z[name] = Test(NoName(), play)
		}
	}
	for _, zones := range []Zones{failing, wildcards, tested, slow} {
		for name, play := range zones {
			z[name] = play
		}
	}
	return z
}

// listing are the zones that list every address, in all the ways in which that
// can be said.
var listing = Zones{
	"list.test":           Lists(two, Listed),
	"textonly.test":       Lists(nil, Listed),
	"textnoname.test":     ByType(NoName(), Lists(two, Listed)),
	"records.test":        Lists(two, "first %a ", "second", "", "third"),
	"strings.test":        Strings("one, ", "two, ", "", "three"),
	"long.test":           Lists(two, strings.Repeat("0123456789", 30)),
	"exact199.test":       Lists(two, strings.Repeat("x", 199)),
	"exact200.test":       Lists(two, strings.Repeat("x", 200)),
	"exact201.test":       Lists(two, strings.Repeat("x", 201)),
	"big.test":            Lists(two, strings.Repeat("big text ", 300)), // over TCP
	"binary.test":         Strings(everyByte[:128], everyByte[128:]),
	"control.test":        Strings("a\r\n250 ok\r\nb\x00c\x1b[2Jd\n\nrblsmtpd: forged\n"),
	"utf8.test":           Strings("gesperrt für %s%d%n \u202e"),
	"alias1.test":         Alias(1, two, Listed),
	"alias4.test":         Alias(4, two, Listed),
	"alias12.test":        Alias(12, two, Listed),
	"uppercase.test":      UpperCase(two, Listed),
	"otherowner.test":     Altered(two, Listed, func(m *dns.Msg) { renameAll(m, "elsewhere.test.") }),
	"mixed.test":          Altered(two, Listed, mixed),
	"uncompressed.test":   Altered(two, Listed, func(m *dns.Msg) { m.Compress = false }),
	"notauthority.test":   Altered(two, Listed, func(m *dns.Msg) { m.RecursionAvailable = false }),
	"codes.test":          Lists([]string{"127.0.0.4", "127.0.0.2", "127.1.2.3"}, Listed),
	"pieces.test":         Truncated(Pieces(two, Listed)),
	"tcp.test":            Truncated(Lists(two, Listed)),
	"large.test":          Truncated(Lists(two, strings.Repeat("z", 12000))),
	"partial.test":        tcpAfterPart(two, Listed),
	"say.test":            Says(),
	"twice.test":          Both(Lists(two, Listed), Lists(two, Listed)),
	"once.test":           Once(Rcode(dns.RcodeServerFailure), Lists(two, Listed)),
	"secondid.test":       Both(WrongID("wrong ID"), Lists(two, Listed)),
	"secondquestion.test": Both(WrongQuestion("wrong question"), Lists(two, Listed)),
	"secondnone.test":     Both(NoQuestion("no question"), Lists(two, Listed)),
	"secondport.test":     Both(From(netip.Addr{}, "wrong port"), Lists(two, Listed)),
	"secondaddr.test":     Both(From(netip.MustParseAddr("127.0.0.99"), "wrong address"), Lists(two, Listed)),
	"secondgarbage.test":  Both(Garbage(1, false), Lists(two, Listed)),
	"secondshort.test":    Both(func(q *Query) { q.Raw([]byte{byte(q.Msg.Id >> 8), byte(q.Msg.Id)}) }, Lists(two, Listed)),
}

// notListing are the zones that list no address; those with an A record and no
// text list it for a client that asks for A records.
var notListing = Zones{
	"noname.test":       NoName(),
	"nodata.test":       NoData(),
	"addressonly.test":  Lists(two),
	"emptytext.test":    Lists(two, ""),
	"emptystrings.test": Strings("", "", ""),
	"aliasnoname.test":  func(q *Query) { aliasTo(q, dns.RcodeNameError) },
	"aliasloop.test":    func(q *Query) { aliasTo(q, dns.RcodeSuccess) },
	"class.test":        Altered(two, Listed, func(m *dns.Msg) { eachHeader(m, func(h *dns.RR_Header) { h.Class = dns.ClassCHAOS }) }),
	"type.test":         Altered(two, Listed, func(m *dns.Msg) { m.Answer = []dns.RR{mailExchange(m)} }),
	"authority.test":    Altered(two, Listed, func(m *dns.Msg) { m.Answer, m.Ns = nil, m.Answer }),
	"additional.test":   Altered(two, Listed, func(m *dns.Msg) { m.Answer, m.Extra = nil, m.Answer }),
	"nordata.test":      Packed(two, Listed, func(b []byte) []byte { return resize(b, 0) }),
}

// failing are the zones of which no client gets an answer that it can read.
var failing = Zones{
	"tcpclosed.test":    Truncated(nil),
	"tcphalf.test":      Truncated(Partly(two, Listed, 30)),
	"tcplength.test":    Truncated(Partly(two, Listed, 1)),
	"tcptruncated.test": Truncated(Altered(two, Listed, func(m *dns.Msg) { m.Truncated = true })),
	"tcpid.test":        Truncated(WrongID(Listed)),
	"tcpquestion.test":  Truncated(WrongQuestion(Listed)),
	"tcpfailure.test":   Truncated(Rcode(dns.RcodeServerFailure)),
	"tcpempty.test":     Truncated(func(q *Query) { q.Raw(nil); q.w.Close() }),
	"half.test":         Packed(two, Listed, func(b []byte) []byte { return b[:len(b)-3] }),
	"halfheader.test":   Packed(two, Listed, func(b []byte) []byte { return b[:record(b)+5] }),
	"count.test":        Packed(two, Listed, func(b []byte) []byte { b[7] += 3; return b }),
	"rdlength.test":     Packed(two, Listed, func(b []byte) []byte { return resize(b, 999) }),
	"garbagerest.test":  Garbage(2, true),
	"badlabel.test":     Packed(two, Listed, func(b []byte) []byte { b[record(b)-2] = 0x80; return b }),

	// Here rblsmtpd waits for eleven seconds.
	"failure.test":        Rcode(dns.RcodeServerFailure),
	"refused.test":        Rcode(dns.RcodeRefused),
	"format.test":         Rcode(dns.RcodeFormatError),
	"notimplemented.test": Rcode(dns.RcodeNotImplemented),
	"failurelisting.test": Altered(two, Listed, func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }),

	// And here for a minute.
	"silent.test":     Silence(),
	"id.test":         WrongID(Listed),
	"question.test":   WrongQuestion(Listed),
	"noquestion.test": NoQuestion(Listed),
	"port.test":       From(netip.Addr{}, Listed),
	"addr.test":       From(netip.MustParseAddr("127.0.0.99"), Listed),
	"garbage.test":    Garbage(3, false),
	"short.test":      func(q *Query) { q.Raw([]byte{byte(q.Msg.Id >> 8), byte(q.Msg.Id)}) },
	"oversize.test":   func(q *Query) { q.Raw(make([]byte, 1400)) },
	"empty.test":      func(q *Query) { q.Raw(nil) },
	"tcpsilent.test":  Truncated(Silence()),
}

// complaining are the zones that answer with codes which are no listing but
// say that the list does not answer.
var complaining = Zones{
	"code252.test":   Lists([]string{"127.255.255.252"}, "Error: mistyped zone"),
	"code254.test":   Lists([]string{"127.255.255.254"}, "Error: open resolver"),
	"code255.test":   Lists([]string{"127.255.255.255"}, "Error: too many queries"),
	"code1.test":     Lists([]string{"127.255.255.1"}, "Error: another one"),
	"codemixed.test": Lists([]string{"127.0.0.2", "127.255.255.254"}, "Error: and yet listed"),
}

// wildcards are what has become of lists that have closed: they answer every
// query in the same way.
var wildcards = Zones{
	"wildcard.test":     Lists(two, "wildcard"),
	"wildcardaddr.test": Lists(two),
	"wildcardtext.test": Lists(nil, "wildcard"),
	"parked.test":       Lists([]string{"203.0.113.1"}, "this domain is for sale"),
	"parkedaddr.test":   Lists([]string{"203.0.113.1"}),
	"parkedlist.test":   Lists([]string{"203.0.113.1", "127.0.0.2"}, Listed),
}

// tested are the zones that list every address, and have something to say about
// the one that no list may list.
var tested = Zones{
	"testaddr.test":    Test(Lists([]string{"127.0.0.9"}), Lists(two, Listed)),
	"testparked.test":  Test(Lists([]string{"203.0.113.1"}), Lists(two, Listed)),
	"testtext.test":    Test(Lists(nil, "not listed"), Lists(two, Listed)),
	"testcode.test":    Test(Lists([]string{"127.255.255.255"}), Lists(two, Listed)),
	"testfailure.test": Test(Rcode(dns.RcodeServerFailure), Lists(two, Listed)),
	"testsilent.test":  Test(Silence(), Lists(two, Listed)),
}

// pretending are the zones whose answers can be read in more than one way.
var pretending = Zones{
	"nonamelisting.test": Altered(two, Listed, func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }),
	"stringlength.test":  Packed(two, Listed, func(b []byte) []byte { return overrun(b) }),
	"pointer.test":       Packed(two, Listed, func(b []byte) []byte { b[record(b)-2], b[record(b)-1] = 0xff, 0xff; return b }),
	"pointerself.test":   Packed(two, Listed, func(b []byte) []byte { at := record(b) - 2; b[at], b[at+1] = 0xc0|byte(at>>8), byte(at); return b }),
	"trailing.test":      Packed(two, Listed, func(b []byte) []byte { return append(b, "trailing bytes"...) }),
	"query.test":         Altered(two, Listed, func(m *dns.Msg) { m.Response = false }),
	"echo.test":          Echo(),
	"addresslength.test": Packed(two, Listed, func(b []byte) []byte { return resize(append(b, 0), int(binary.BigEndian.Uint16(b[record(b)+8:]))+1) }),
	"huge.test":          Truncated(Lists(two, strings.Repeat("h", 40000))),
	"textfailure.test":   ByType(Rcode(dns.RcodeServerFailure), Lists(two, Listed)),
	"texttcpclosed.test": ByType(Truncated(nil), Lists(two, Listed)),
	"textsilent.test":    ByType(Silence(), Lists(two, Listed)),
	"textparked.test":    Lists([]string{"203.0.113.1"}, Listed),
}

// slow are the zones that take their time.
var slow = Zones{
	"slow0.test":     Test(NoName(), Lists(two, "slow")),
	"slow5.test":     Slow(5*time.Millisecond, Test(NoName(), Lists(two, "slow"))),
	"slow20.test":    Slow(20*time.Millisecond, Test(NoName(), Lists(two, "slow"))),
	"slow50.test":    Slow(50*time.Millisecond, Test(NoName(), Lists(two, "slow"))),
	"slownot5.test":  Slow(5*time.Millisecond, NoName()),
	"slownot20.test": Slow(20*time.Millisecond, NoName()),
	"slownot50.test": Slow(50*time.Millisecond, NoName()),
	"slow2000.test":  Slow(2*time.Second, Test(NoName(), Lists(two, "slow"))),
	"slow12000.test": Slow(12*time.Second, Test(NoName(), Lists(two, "slow"))),
}

var everyByte = func() string {
	b := make([]byte, 256)
	for i := range b {
		b[i] = byte(i)
	}
	return string(b)
}()

func eachHeader(m *dns.Msg, change func(*dns.RR_Header)) {
	for _, r := range m.Answer {
		change(r.Header())
	}
}

func renameAll(m *dns.Msg, name string) {
	eachHeader(m, func(h *dns.RR_Header) { h.Name = name })
}

func mailExchange(m *dns.Msg) dns.RR {
	return &dns.MX{
		Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeMX, Class: dns.ClassINET, Ttl: ttl},
		Mx:  "mail.test.",
	}
}

// mixed puts records of other types and classes around those of a listing.
func mixed(m *dns.Msg) {
	name := m.Question[0].Name
	chaos := txt(name, "of another class")
	chaos.Hdr.Class = dns.ClassCHAOS
	around := []dns.RR{mailExchange(m), chaos}
	if m.Question[0].Qtype == dns.TypeA {
		around = append(around, txt(name, "not asked for"))
	} else {
		around = append(around, a(name, "127.0.0.9"))
	}
	m.Answer = append(append(around, m.Answer...), mailExchange(m))
	m.Ns = []dns.RR{txt(name, "of the authority section")}
	m.Extra = []dns.RR{txt(name, "of the additional section")}
}

func aliasTo(q *Query, code int) {
	m := q.Reply()
	m.Rcode = code
	name := q.Msg.Question[0].Name
	m.Answer = []dns.RR{&dns.CNAME{
		Hdr:    dns.RR_Header{Name: name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: ttl},
		Target: name,
	}}
	q.Send(m)
}

// tcpAfterPart says over UDP that there is more, and gives a part of it.
func tcpAfterPart(codes []string, text string) Play {
	return func(q *Query) {
		m := q.listing(codes, []string{text})
		if !q.TCP {
			m = q.listing(codes, []string{"a part of " + text})
			m.Truncated = true
		}
		q.Send(m)
	}
}

// resize sets the RDLENGTH of the first record, if there is one, and cuts the
// message there where its length is zero.
func resize(b []byte, length int) []byte {
	if b[7] == 0 {
		return b
	}
	at := record(b) + 8
	binary.BigEndian.PutUint16(b[at:], uint16(length))
	if length == 0 {
		return b[:at+2]
	}
	return b
}

// overrun makes the only string of a TXT record longer than the record.
func overrun(b []byte) []byte {
	if at := record(b); b[7] > 0 && b[at+1] == byte(dns.TypeTXT) {
		b[at+10] += 40
	}
	return b
}
