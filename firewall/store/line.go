package store

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"net/netip"
	"strconv"

	"rblnft/firewall/book"
)

// The file is lines of text. Each ends with the CRC-32C of all bytes before it, in
// eight hexadecimal digits, and stands by itself, so that a damaged one costs
// nothing but itself. Empty lines say nothing.
//
//	rblnft state 2 CRC
//	t BOOT MONOTONIC WALL CRC
//	v NAME VALUE CRC
//	b BOOT EXPIRES RETURNS ADDRESS ZONE CRC
//	d ADDRESS CRC
//
// The first one's number changes with the format. t says that it was WALL, in
// milliseconds of Unix time, when CLOCK_MONOTONIC stood at MONOTONIC, in
// milliseconds, in the boot named BOOT. v is whatever else is to be remembered. b is
// what is known of an address: until when it is blocked, in milliseconds of that
// boot's CLOCK_MONOTONIC, how often it came back, and the DNSBL that lists it. d
// says that nothing is known of it. Of lines about the same the last is true.
const header = "rblnft state 2"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// An entry is what a line says: its kind, and what of the rest is of that kind.
type entry struct {
	kind        byte // t, v, b, d, or h for the header
	anchor      anchor
	name, value string
	boot        string // that record is of
	record      book.Record
}

// appendTo appends the line, with its line feed.
func (e *entry) appendTo(b []byte) []byte {
	start := len(b)
	text := func(s string) { b = append(append(b, ' '), s...) }
	number := func(n int64) { b = strconv.AppendInt(append(b, ' '), n, 10) }
	if b = append(b, e.kind); e.kind == 'h' {
		b = append(b[:start], header...)
	}
	switch e.kind {
	case 't':
		text(e.anchor.boot)
		number(int64(e.anchor.monotonic))
		number(e.anchor.wall)
	case 'v':
		text(e.name)
		text(e.value)
	case 'b':
		text(e.boot)
		number(int64(e.record.Expires))
		number(int64(e.record.Returns))
		b = e.record.Key.Addr().AppendTo(append(b, ' '))
		text(e.record.Zone)
	case 'd':
		b = e.record.Key.Addr().AppendTo(append(b, ' '))
	}
	return appendSum(b, start)
}

// appendSum ends the line that begins at b[start:].
func appendSum(b []byte, start int) []byte {
	b = append(b, ' ')
	sum := binary.BigEndian.AppendUint32(nil, crc32.Checksum(b[start:], castagnoli))
	return append(hex.AppendEncode(b, sum), '\n')
}

var (
	errLine   = errors.New("not a line of ours")
	errFormat = errors.New("another format")
)

// parse reads a line, without its line feed. It returns errFormat for the first
// line of a file that another version wrote.
func parse(line []byte) (e entry, err error) {
	n := len(line) - 9
	if n < 1 || line[n] != ' ' {
		return e, errLine
	}
	sum, err := strconv.ParseUint(string(line[n+1:]), 16, 32)
	if err != nil || crc32.Checksum(line[:n+1], castagnoli) != uint32(sum) {
		return e, errLine
	}
	fields := bytes.Split(line[:n], []byte(" "))
	field := func(kind string, of int) bool { return string(fields[0]) == kind && len(fields) == of }
	number := func(i, bits int) int64 {
		n, failed := strconv.ParseUint(string(fields[i]), 10, bits)
		err = errors.Join(err, failed)
		return int64(n)
	}
	key := func(i int) book.Key {
		addr, failed := netip.ParseAddr(string(fields[i]))
		if err = errors.Join(err, failed); err != nil {
			return book.Key{}
		}
		if book.KeyOf(addr).Addr() != addr {
			err = errLine
		}
		return book.KeyOf(addr)
	}
	e.kind = line[0]
	switch {
	case string(line[:n]) == header:
		e.kind = 'h'
	case string(fields[0]) == "rblnft":
		err = errFormat
	case field("t", 4):
		e.anchor = anchor{string(fields[1]), book.Time(number(2, 63)), number(3, 63)}
	case field("v", 3):
		e.name, e.value = string(fields[1]), string(fields[2])
	case field("b", 6):
		e.boot = string(fields[1])
		e.record = book.Record{Expires: book.Time(number(2, 63)), Returns: int(number(3, 8)), Key: key(4), Zone: string(fields[5])}
	case field("d", 2):
		e.record.Key = key(1)
	default:
		err = errLine
	}
	return e, err
}
