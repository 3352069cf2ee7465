// Package hit is the hit: the one line of text by which a filter tells the
// daemon that a DNSBL lists the client it is talking to.
//
// A hit is one datagram on a Unix datagram socket ([DefaultSocket]). Its whole
// content is
//
//	rblnft/1 addr=ADDRESS zone=ZONE code=CODE answer=REPLY TEXT
//
// optionally followed by one line feed. The fields stand in this order, one
// space between them:
//
//   - rblnft/1 names the format and its version. Whatever changes the meaning
//     of a field changes the number, and a receiver refuses numbers it does
//     not know.
//   - ADDRESS is the listed client, IPv4 or IPv6, as text, without a zone
//     identifier. An IPv4-mapped IPv6 address means the IPv4 address.
//   - ZONE is the DNSBL's domain name, without a final dot, of letters,
//     digits, hyphens, underscores and dots, at most 253 bytes (RFC 1035,
//     section 2.3.4).
//   - CODE is the A record the DNSBL answered with, in 127.0.0.0/8 (RFC 5782,
//     section 2.1), or - where it has none: a zone that answers with a TXT
//     record alone.
//   - REPLY is the SMTP reply code that the client got, 451 or 553, and TEXT
//     what followed it, of bytes 32 to 126, up to the end of the line.
//
// Nothing else comes with it: who may write to the socket may report.
//
// A shell script can send one too:
//
//	echo 'rblnft/1 addr=192.0.2.1 zone=bl.example code=127.0.0.2 answer=553 listed' |
//		socat -u - UNIX-SENDTO:/run/rblnft/hits.sock
//
// The package links neither fmt nor net: the filter pays for every package on
// every connection.
package hit

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

// DefaultSocket is where the daemon receives hits.
const DefaultSocket = "/run/rblnft/hits.sock"

// SocketEnv names the environment variable that gives the filter another
// socket than [DefaultSocket]; set and empty, nothing is reported.
const SocketEnv = "RBLNFT_SOCKET"

// MaxLen is the length in bytes of the longest line that [Parse] accepts, its line
// feed included: room for the longest address, zone and text that a filter sends.
const MaxLen = 1024

const version = "rblnft/1"

// ErrSyntax is wrapped by every error of [Parse].
var ErrSyntax = errors.New("not a hit")

// A Hit is one listing, seen now.
type Hit struct {
	Addr   netip.Addr // the listed client; never IPv4-mapped, never with a zone
	Zone   string     // the DNSBL that lists it
	Code   netip.Addr // what the DNSBL answered, in 127.0.0.0/8; invalid if it has no A record
	Answer string     // what the client was told: 451 or 553, a space, the text
}

// Append appends the hit's line, with its line feed, to b.
func (h Hit) Append(b []byte) []byte {
	code := "-"
	if h.Code.IsValid() {
		code = h.Code.String()
	}
	return append(b, version+" addr="+h.Addr.String()+" zone="+h.Zone+" code="+code+" answer="+h.Answer+"\n"...)
}

// Parse reads a datagram. It accepts exactly what the package comment
// describes; its errors wrap [ErrSyntax], name the field that is wrong, and
// quote what stands there so that they can be logged as they are.
func Parse(b []byte) (Hit, error) {
	if len(b) > MaxLen {
		return Hit{}, syntaxError("length: " + strconv.Itoa(len(b)) + " bytes, at most " + strconv.Itoa(MaxLen) + " are allowed")
	}
	line := strings.TrimSuffix(string(b), "\n")
	for i := range len(line) {
		if c := line[i]; c < 32 || c > 126 {
			return Hit{}, syntaxError("byte " + strconv.Itoa(i) + ": " + strconv.Quote(line[i:i+1]) + " is not printable ASCII")
		}
	}
	rest, ok := strings.CutPrefix(line, version+" ")
	if !ok {
		word, _, _ := strings.Cut(line, " ")
		return Hit{}, syntaxError("version: " + quote(word) + ", want " + strconv.Quote(version))
	}
	var field [3]string
	for i, name := range [...]string{"addr", "zone", "code"} {
		value, more, _ := strings.Cut(rest, " ")
		if field[i], ok = strings.CutPrefix(value, name+"="); !ok {
			return Hit{}, syntaxError(name + ": missing, found " + quote(value))
		}
		rest = more
	}
	addr, err := netip.ParseAddr(field[0])
	if err != nil || addr.Zone() != "" {
		return Hit{}, syntaxError("addr: " + quote(field[0]) + " is no IP address")
	}
	h := Hit{Addr: addr.Unmap(), Zone: field[1]}
	if !validZone(h.Zone) {
		return Hit{}, syntaxError("zone: " + quote(h.Zone) + " is no domain name")
	}
	if field[2] != "-" {
		h.Code, err = netip.ParseAddr(field[2])
		if err != nil || !h.Code.Is4() || !h.Code.IsLoopback() {
			return Hit{}, syntaxError("code: " + quote(field[2]) + " is neither - nor in 127.0.0.0/8")
		}
	}
	if h.Answer, ok = strings.CutPrefix(rest, "answer="); !ok {
		return Hit{}, syntaxError("answer: missing, found " + quote(rest))
	}
	if !strings.HasPrefix(h.Answer, "451 ") && !strings.HasPrefix(h.Answer, "553 ") {
		return Hit{}, syntaxError("answer: " + quote(h.Answer) + " starts with neither 451 nor 553")
	}
	return h, nil
}

// validZone reports whether s is a domain name as the package comment has it.
func validZone(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, letters) != "" {
			return false
		}
	}
	return len(s) <= 253
}

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

// quote quotes the beginning of s, enough to recognise it by.
func quote(s string) string {
	if len(s) > 60 {
		return strconv.Quote(s[:60]) + "..."
	}
	return strconv.Quote(s)
}

// A syntaxError says which field is wrong, and how.
type syntaxError string

func (e syntaxError) Error() string { return ErrSyntax.Error() + ": " + string(e) }
func (e syntaxError) Unwrap() error { return ErrSyntax }
