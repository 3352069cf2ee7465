//go:build linux

package main

import (
	"net"
	"strings"

	"github.com/miekg/dns"

	"rblnft/dnsbl"
)

// zone is the DNSBL of the demonstration, and listing what it says of the
// address that it lists.
const (
	zone    = "bl.example"
	listing = "Listed by bl.example, see http://bl.example/?192.0.2.66"
)

// serveDNSBL serves the zone on the usual port of a loopback address. It lists
// the listed client, and the test address that every DNSBL lists (RFC 5782,
// section 5).
func serveDNSBL(addr string) (stop func(), err error) {
	listed := map[string]bool{}
	for _, a := range []string{listedClient.String(), "127.0.0.2"} {
		listed[queryName(a)] = true
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		name := strings.ToLower(m.Question[0].Name)
		hdr := dns.RR_Header{Name: m.Question[0].Name, Rrtype: m.Question[0].Qtype, Class: dns.ClassINET, Ttl: 60}
		switch {
		case !listed[name]:
			m.Rcode = dns.RcodeNameError
		case hdr.Rrtype == dns.TypeA:
			m.Answer = []dns.RR{&dns.A{Hdr: hdr, A: net.IPv4(127, 0, 0, 2)}}
		case hdr.Rrtype == dns.TypeTXT:
			m.Answer = []dns.RR{&dns.TXT{Hdr: hdr, Txt: []string{listing}}}
		}
		w.WriteMsg(m)
	})
	conn, err := net.ListenPacket("udp", addr)
	if err != nil {
		return nil, err
	}
	server := &dns.Server{PacketConn: conn, Handler: handler}
	go server.ActivateAndServe()
	return func() { server.Shutdown() }, nil
}

func queryName(addr string) string {
	name, _ := dnsbl.QueryName(mustAddr(addr), zone)
	return dns.Fqdn(name)
}
