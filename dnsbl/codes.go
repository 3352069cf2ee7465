package dnsbl

import (
	"net/netip"
	"strings"
)

// Codes are return codes that count as a listing.
type Codes struct {
	octets [4][256 / 64]uint64 // for each octet of the code, the values allowed
}

// ParseCodes reads return codes in the syntax of postscreen_dnsbl_sites
// (postconf(5)): four octets with dots between them, each a number, or numbers
// and ranges in brackets:
//
//	127.0.0.2    127.0.0.[2..4;9]    127.0.[0;1].[2..255]
func ParseCodes(text string) (*Codes, error) {
	var c Codes
	rest := text
	for i := range c.octets {
		var octet string
		if inner, ok := strings.CutPrefix(rest, "["); ok {
			inside, after, closed := strings.Cut(inner, "]")
			if !closed {
				return nil, codesError(text, "no ] for [")
			}
			octet, rest = inside, after
			for item := range strings.SplitSeq(octet, ";") {
				low, high, isRange := strings.Cut(item, "..")
				if !isRange {
					high = low
				}
				if err := c.allow(i, low, high); err != "" {
					return nil, codesError(text, err)
				}
			}
		} else {
			end := strings.IndexByte(rest, '.')
			if end < 0 {
				end = len(rest)
			}
			octet, rest = rest[:end], rest[end:]
			if err := c.allow(i, octet, octet); err != "" {
				return nil, codesError(text, err)
			}
		}
		if i == len(c.octets)-1 {
			break
		}
		var ok bool
		if rest, ok = strings.CutPrefix(rest, "."); !ok {
			return nil, codesError(text, "want four octets with dots between them")
		}
	}
	if rest != "" {
		return nil, codesError(text, quote(rest)+" after the fourth octet")
	}
	return &c, nil
}

// allow adds the values from low to high to octet i. It returns what is wrong,
// or nothing.
func (c *Codes) allow(i int, low, high string) string {
	from, ok1 := octet(low)
	to, ok2 := octet(high)
	switch {
	case !ok1:
		return quote(low) + " is no number from 0 to 255"
	case !ok2:
		return quote(high) + " is no number from 0 to 255"
	case from > to:
		return "the range " + low + ".." + high + " is empty"
	}
	for v := from; v <= to; v++ {
		c.octets[i][v/64] |= 1 << (v % 64)
	}
	return ""
}

func octet(s string) (int, bool) {
	if len(s) == 0 || len(s) > 3 {
		return 0, false
	}
	n := 0
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n, n <= 255
}

// Match reports whether code, an IPv4 address, counts.
func (c *Codes) Match(code netip.Addr) bool {
	for i, v := range code.As4() {
		if c.octets[i][v/64]&(1<<(v%64)) == 0 {
			return false
		}
	}
	return true
}

func codesError(text, what string) error {
	return sourceError("return codes " + quote(text) + ": " + what)
}

var errorCodes = netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 255, 255, 0}), 24)

// errorCode returns in words what a code in 127.255.255.0/24 among the A records
// means: an error of the list, or of the way it is asked, never a listing. The
// meanings are Spamhaus', whose codes other lists have taken over.
func errorCode(codes []netip.Addr) (what string, ok bool) {
	for _, code := range codes {
		if !errorCodes.Contains(code) {
			continue
		}
		what = "an error code, no listing"
		switch code.As4()[3] {
		case 252:
			what = "the zone's name is mistyped"
		case 254:
			what = "asked through a public or open resolver, which the list does not answer"
		case 255:
			what = "asked too often, the list does not answer any more"
		}
		return code.String() + ": " + what, true
	}
	return "", false
}

// classify says what the A records of a source mean. Anything that is no
// listing but looks like one is said to log, a complete sentence about the zone.
func (s *Source) classify(codes []netip.Addr, log func(string)) outcome {
	if what, ok := errorCode(codes); ok {
		log(what + "; counted as a temporary failure")
		return outcome{kind: failed}
	}
	nothing := "no listing"
	if s.Allow {
		nothing = "allows nobody"
	}
	for _, code := range codes {
		if code.IsLoopback() && (s.Codes == nil || s.Codes.Match(code)) {
			return outcome{kind: listed, code: code}
		}
	}
	for _, code := range codes {
		if !code.IsLoopback() {
			log(code.String() + ": outside 127.0.0.0/8; " + nothing)
			break
		}
	}
	return outcome{kind: notListed}
}
