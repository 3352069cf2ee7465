package store

import (
	"bytes"
	"errors"
	"hash/crc32"
	"net/netip"
	"strconv"

	"rblnft/firewall/book"
)

// The file is lines of text. Each ends with the CRC-32C of all bytes before it, in
// eight hexadecimal digits, and stands by itself, so that a damaged one costs
// nothing but itself:
//
//	rblnft state 2 CRC
//	t WALL MONOTONIC BOOT CRC
//	v NAME VALUE CRC
//	b ADDRESS EXPIRES RETURNS ZONE CRC
//	d ADDRESS CRC
//
// The first is the first line of every file; its number changes with the format. t
// says that it was WALL, in milliseconds of Unix time, when CLOCK_MONOTONIC stood at
// MONOTONIC, in milliseconds, in the boot named BOOT. v is whatever
// else is to be remembered. b is what is known of an
// address: until when it is blocked, in milliseconds of CLOCK_MONOTONIC, how often
// it came back, and the DNSBL that lists it. d says that nothing is known of it. Of
// lines about the same the last is true.
const header = "rblnft state 2"

// maxLine is longer than any line: a zone has 253 bytes at most.
const maxLine = 512

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

func appendAnchor(b []byte, a anchor) []byte {
	start := len(b)
	b = strconv.AppendInt(append(b, "t "...), a.wall, 10)
	b = strconv.AppendInt(append(b, ' '), int64(a.monotonic), 10)
	b = append(append(b, ' '), a.boot...)
	return appendSum(b, start)
}

func appendValue(b []byte, name, value string) []byte {
	start := len(b)
	b = append(append(b, "v "...), name...)
	b = append(append(b, ' '), value...)
	return appendSum(b, start)
}

func appendRecord(b []byte, r book.Record) []byte {
	start := len(b)
	b = r.Key.Addr().AppendTo(append(b, "b "...))
	b = strconv.AppendInt(append(b, ' '), int64(r.Expires), 10)
	b = strconv.AppendInt(append(b, ' '), int64(r.Returns), 10)
	b = append(append(b, ' '), r.Zone...)
	return appendSum(b, start)
}

func appendDeleted(b []byte, k book.Key) []byte {
	start := len(b)
	b = k.Addr().AppendTo(append(b, "d "...))
	return appendSum(b, start)
}

var (
	errSum    = errors.New("the checksum is wrong")
	errLine   = errors.New("not a line of ours")
	errFormat = errors.New("another format")
)

// checkSum returns what stands before a line's checksum.
func checkSum(line []byte) ([]byte, error) {
	n := len(line) - 9
	if n < 0 || line[n] != ' ' {
		return nil, errSum
	}
	sum, err := strconv.ParseUint(string(line[n+1:]), 16, 32)
	if err != nil || crc32.Checksum(line[:n+1], castagnoli) != uint32(sum) {
		return nil, errSum
	}
	return line[:n], nil
}

// An entry is what a line says: its kind, and what of the rest is of that kind.
type entry struct {
	kind        byte // t, v, b, d, or h for the header
	anchor      anchor
	name, value string
	record      book.Record
}

// parse reads a line, without its line feed. It returns errFormat for the first
// line of a file that another version wrote.
func parse(line []byte) (e entry, err error) {
	text, err := checkSum(line)
	if err != nil {
		return e, err
	}
	fields := bytes.Split(text, []byte(" "))
	if string(fields[0]) == "rblnft" {
		if string(text) != header {
			return e, errFormat
		}
		return entry{kind: 'h'}, nil
	}
	if len(fields[0]) != 1 || len(fields) != map[byte]int{'t': 4, 'v': 3, 'b': 5, 'd': 2}[fields[0][0]] {
		return e, errLine
	}
	e.kind = fields[0][0]
	var errs [3]error
	number := func(i, bits int) int64 {
		n, err := strconv.ParseUint(string(fields[i]), 10, bits)
		errs[i-1] = err
		return int64(n)
	}
	switch e.kind {
	case 't':
		e.anchor = anchor{number(1, 63), book.Time(number(2, 63)), string(fields[3])}
	case 'v':
		e.name, e.value = string(fields[1]), string(fields[2])
	default:
		addr, err := netip.ParseAddr(string(fields[1]))
		if err != nil || book.KeyOf(addr).Addr() != addr {
			return e, errLine
		}
		e.record.Key = book.KeyOf(addr)
		if e.kind == 'b' {
			e.record.Expires, e.record.Returns, e.record.Zone = book.Time(number(2, 63)), int(number(3, 8)), string(fields[4])
		}
	}
	if errs != [3]error{} || len(e.record.Zone) > 253 {
		return e, errLine
	}
	return e, nil
}
