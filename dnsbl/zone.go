// Package dnsbl decides what DNS block lists say about one client.
//
// A DNSBL is a DNS zone (RFC 5782). An address is listed if its bytes in
// reverse order, as labels in front of the zone's name, have an A record in
// 127.0.0.0/8, the return code, and often a TXT record that says why. An
// answer that is not that is no listing: the lists themselves answer with
// codes that mean "you asked the wrong way", and lists that have closed have
// been seen to answer everything with the address of a parking page.
//
// [ParseList] and [ParseAllow] read what a user writes on the command line,
// [QueryName] makes the name to ask for, and [Decide] asks through a
// [Resolver] and comes to one [Decision], as rblsmtpd(1) would.
//
// The package is linked into a program that runs once per connection. It does
// no I/O and links neither fmt nor net.
package dnsbl

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

// ErrSource is wrapped by every error about a source's specification.
var ErrSource = errors.New("bad source")

// A Source is one list to ask, as an option names it.
type Source struct {
	// Zone is the list's domain name, without a final dot.
	Zone string
	// Allow says that an A record means "do not block" (option -a).
	Allow bool
	// Fixed says that the message is Message and the A record decides;
	// otherwise the TXT record is the message, and decides.
	Fixed   bool
	Message string
	// Codes are the return codes that count; nil means all.
	Codes *Codes
	// Err is what is wrong with the specification; a source that has one
	// is never asked, and counts as a temporary failure.
	Err error

	// Bounce asks for reply code 553, not 451 (options -b and -B).
	Bounce bool
	// FailClosed treats a temporary failure as a reason to block (options
	// -c and -C).
	FailClosed bool
}

// ParseList reads the argument of option -r:
//
//	ZONE                  the TXT record lists, and is the message
//	ZONE:MESSAGE          the A record lists; %IP% in MESSAGE is the address
//	ZONE=CODES            as ZONE, but the A record must be one of CODES
//	ZONE=CODES:MESSAGE    as ZONE:MESSAGE, likewise
//
// CODES is in the syntax of [ParseCodes]. The first colon ends the zone. What
// is wrong is in the source's Err.
func ParseList(arg string) Source {
	var s Source
	zone, message, fixed := strings.Cut(arg, ":")
	s.Message, s.Fixed = message, fixed
	zone, codes, filtered := strings.Cut(zone, "=")
	if filtered {
		s.Codes, s.Err = ParseCodes(codes)
	}
	s.setZone(zone)
	return s
}

// ParseAllow reads the argument of option -a: ZONE. What is wrong is in the
// source's Err.
func ParseAllow(arg string) Source {
	s := Source{Allow: true}
	s.setZone(arg)
	return s
}

func (s *Source) setZone(zone string) {
	s.Zone = strings.TrimSuffix(zone, ".")
	if err := checkZone(s.Zone); err != nil && s.Err == nil {
		s.Err = err
	}
}

// maxName is the length in bytes of the longest domain name in text form,
// without a final dot (RFC 1035, section 2.3.4).
const maxName = 253

// checkZone accepts host-like names alone, so that a zone can stand in a log
// line and in a hit as it is.
func checkZone(zone string) error {
	if zone == "" {
		return sourceError("zone: empty")
	}
	for label := range strings.SplitSeq(zone, ".") {
		switch {
		case label == "":
			return sourceError("zone " + quote(zone) + ": an empty label")
		case len(label) > 63:
			return sourceError("zone " + quote(zone) + ": a label of " + strconv.Itoa(len(label)) + " bytes, at most 63 are allowed")
		}
		for i := 0; i < len(label); i++ {
			switch c := label[i]; {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			default:
				return sourceError("zone " + quote(zone) + ": " + strconv.Quote(label[i:i+1]) + " is not allowed in a zone")
			}
		}
	}
	if len(zone) > maxName {
		return sourceError("zone " + quote(zone) + ": " + strconv.Itoa(len(zone)) + " bytes, at most " + strconv.Itoa(maxName) + " are allowed")
	}
	return nil
}

// QueryName returns the name under zone that stands for addr: the four bytes
// of an IPv4 address in reverse order (RFC 5782, section 2.1), the 32 nibbles
// of an IPv6 address (section 2.4). IPv4-mapped addresses count as IPv4. ok is
// false if the name would be too long to ask for.
func QueryName(addr netip.Addr, zone string) (name string, ok bool) {
	return reversed(addr.Unmap(), zone)
}

// TestName returns the name under zone that no DNSBL may list, and that one with
// a wildcard lists too (RFC 5782, section 5): of 127.0.0.1, or, if addr is an IPv6
// address, of ::FFFF:7F00:1. ok is as for [QueryName].
func TestName(addr netip.Addr, zone string) (name string, ok bool) {
	never := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if !addr.Unmap().Is4() {
		never = netip.AddrFrom16(never.As16())
	}
	return reversed(never, zone)
}

func reversed(addr netip.Addr, zone string) (name string, ok bool) {
	b := make([]byte, 0, 64+len(zone))
	if addr.Is4() {
		ip := addr.As4()
		for i := len(ip) - 1; i >= 0; i-- {
			b = strconv.AppendUint(b, uint64(ip[i]), 10)
			b = append(b, '.')
		}
	} else {
		const hex = "0123456789abcdef"
		ip := addr.As16()
		for i := len(ip) - 1; i >= 0; i-- {
			b = append(b, hex[ip[i]&15], '.', hex[ip[i]>>4], '.')
		}
	}
	b = append(b, zone...)
	return string(b), len(b) <= maxName
}

type specError struct{ what string }

func sourceError(what string) error { return &specError{what} }
func (e *specError) Error() string  { return e.what }
func (e *specError) Unwrap() error  { return ErrSource }

// quote quotes the beginning of s, enough to recognise it by.
func quote(s string) string {
	const enough = 80
	if len(s) > enough {
		return strconv.Quote(s[:enough]) + "..."
	}
	return strconv.Quote(s)
}
