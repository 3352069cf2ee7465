package book

import (
	"bytes"
	"errors"
	"hash/crc32"
	"net/netip"
	"strconv"
	"time"

	"rblnft/firewall"
)

// An entry is one change of the book: what is known of an address from then
// on, or that nothing is.
//
// On disk it is one line of text, which ends with the CRC-32C of all bytes
// before it, in eight hexadecimal digits:
//
//	b ADDRESS EXPIRES RETURNS ZONE CRC
//	h ADDRESS EXPIRES RETURNS ZONE CRC
//	d ADDRESS CRC
//
// b is a block that a hit made, h one that somebody else made by hand, d says
// that the address is forgotten. ADDRESS is the first one of what is blocked;
// EXPIRES is Unix time in milliseconds, or - for never; RETURNS is how often
// the address came back; ZONE is the DNSBL, or the comment of an element,
// quoted as in Go where it is not a plain word. Every line stands by itself,
// so that a damaged one costs nothing but itself.
type entry struct {
	key
	record
	name    string // of the zone
	deleted bool
}

// entryOf returns the entry that says rec.
func (b *Book) entryOf(k key, rec record) entry {
	return entry{key: k, record: rec, name: b.zones.name(rec.zone)}
}

func (e *entry) block() firewall.Block {
	block := firewall.Block{Prefix: e.prefix(), Zone: e.name}
	if e.expires != forever {
		block.Expires = time.UnixMilli(e.expires)
	}
	return block
}

// header is the first line of every file; its number changes with the format.
const header = "rblnft journal 1"

// maxLine is longer than any line: a zone has 253 bytes at most, and a comment
// of an element 128 (NFTNL_UDATA_COMMENT_MAXLEN), of which quoting makes four
// times as many.
const maxLine = 1024

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendSum ends the line that starts at b[start:].
func appendSum(b []byte, start int) []byte {
	b = append(b, ' ')
	sum := crc32.Checksum(b[start:], castagnoli)
	const digits = "0123456789abcdef"
	for shift := 28; shift >= 0; shift -= 4 {
		b = append(b, digits[sum>>shift&15])
	}
	return append(b, '\n')
}

func appendHeader(b []byte) []byte { return appendSum(append(b, header...), len(b)) }

// appendTo appends the entry's line.
func (e *entry) appendTo(b []byte) []byte {
	start := len(b)
	switch {
	case e.deleted:
		b = append(b, "d "...)
	case e.flags&byHand != 0:
		b = append(b, "h "...)
	default:
		b = append(b, "b "...)
	}
	b = e.prefix().Addr().AppendTo(b)
	if !e.deleted {
		b = append(b, ' ')
		if e.expires == forever {
			b = append(b, '-')
		} else {
			b = strconv.AppendInt(b, e.expires, 10)
		}
		b = append(b, ' ')
		b = strconv.AppendUint(b, uint64(e.returns), 10)
		b = append(b, ' ')
		if plain(e.name) {
			b = append(b, e.name...)
		} else {
			b = strconv.AppendQuoteToASCII(b, e.name[:min(len(e.name), 253)])
		}
	}
	return appendSum(b, start)
}

// plain reports whether s can stand unquoted.
func plain(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' {
			return false
		}
	}
	return len(s) > 0 && len(s) <= 253
}

var (
	errSum  = errors.New("the checksum is wrong")
	errLine = errors.New("not an entry")
)

// checkSum returns what stands before a line's checksum.
func checkSum(line []byte) ([]byte, error) {
	line = bytes.TrimSuffix(line, []byte("\n"))
	n := len(line) - 9
	if n < 0 || line[n] != ' ' {
		return nil, errSum
	}
	var sum uint32
	for _, c := range line[n+1:] {
		switch {
		case c >= '0' && c <= '9':
			sum = sum<<4 | uint32(c-'0')
		case c >= 'a' && c <= 'f':
			sum = sum<<4 | uint32(c-'a'+10)
		default:
			return nil, errSum
		}
	}
	if crc32.Checksum(line[:n+1], castagnoli) != sum {
		return nil, errSum
	}
	return line[:n], nil
}

// parseEntry reads a line, with or without its line feed.
func parseEntry(line []byte) (entry, error) {
	text, err := checkSum(line)
	if err != nil {
		return entry{}, err
	}
	var e entry
	kind, rest, _ := bytes.Cut(text, []byte(" "))
	address, rest, more := bytes.Cut(rest, []byte(" "))
	addr, err := netip.ParseAddr(string(address))
	if err != nil || addr.Zone() != "" || addr.Is4In6() || firewall.PrefixOf(addr).Addr() != addr {
		return entry{}, errLine
	}
	e.key = keyOf(firewall.PrefixOf(addr))
	switch string(kind) {
	case "d":
		e.deleted = true
		if more {
			return entry{}, errLine
		}
		return e, nil
	case "h":
		e.flags = byHand
	case "b":
	default:
		return entry{}, errLine
	}
	expires, rest, _ := bytes.Cut(rest, []byte(" "))
	if string(expires) == "-" {
		e.expires = forever
	} else if e.expires, err = strconv.ParseInt(string(expires), 10, 64); err != nil || e.expires < 0 || e.expires == forever {
		return entry{}, errLine
	}
	returns, name, more := bytes.Cut(rest, []byte(" "))
	n, err := strconv.ParseUint(string(returns), 10, 8)
	if err != nil || !more {
		return entry{}, errLine
	}
	e.returns = uint8(n)
	e.name = string(name)
	if !plain(e.name) {
		if e.name, err = strconv.Unquote(e.name); err != nil || len(e.name) > 253 {
			return entry{}, errLine
		}
	}
	return e, nil
}
