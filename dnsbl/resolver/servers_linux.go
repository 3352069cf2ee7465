package resolver

import (
	"bytes"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const maxServers = 16 // as rblsmtpd has it

// CacheServers reads $DNSCACHEIP: addresses with space or commas between them,
// or, as D. J. Bernstein's programs have it, IPv4 addresses with dots between
// them. It takes what comes before the first thing that is no address.
func CacheServers(text string) []netip.Addr {
	var servers []netip.Addr
	for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return strings.ContainsRune(" ,\t\r\n", r) }) {
		for len(servers) < maxServers {
			if word = strings.TrimLeft(word, "."); word == "" {
				break
			}
			addr, rest, ok := cutAddr(word)
			if !ok {
				return servers
			}
			servers = append(servers, addr)
			word = rest
		}
	}
	return servers
}

// cutAddr cuts an address off the beginning of a word: all of it, or as much as
// is an IPv4 address, whose numbers may have zeros before them.
func cutAddr(word string) (addr netip.Addr, rest string, ok bool) {
	if addr, err := netip.ParseAddr(word); err == nil {
		return addr, "", true
	}
	var ip [4]byte
	for i := range ip {
		if i > 0 {
			if word, ok = strings.CutPrefix(word, "."); !ok {
				return netip.Addr{}, "", false
			}
		}
		digits := 0
		for digits < len(word) && word[digits] >= '0' && word[digits] <= '9' {
			digits++
		}
		n, err := strconv.ParseUint(word[:digits], 10, 8)
		if err != nil {
			return netip.Addr{}, "", false
		}
		ip[i], word = byte(n), word[digits:]
	}
	return netip.AddrFrom4(ip), word, true
}

// SystemServers returns the servers that /etc/resolv.conf names, or this host if it
// names none or is not there. The error is that of reading it (open(2)).
func SystemServers() ([]netip.Addr, error) {
	text, err := readFile("/etc/resolv.conf")
	if err != nil && err != unix.ENOENT {
		return nil, err
	}
	if servers := resolvConf(text); len(servers) > 0 {
		return servers, nil
	}
	return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil
}

// resolvConf returns the name servers that a resolv.conf(5) names, the keyword at
// the beginning of a line. As in the C library a comment may begin anywhere in it,
// and as in rblsmtpd anything may follow an IPv4 address.
func resolvConf(text string) []netip.Addr {
	var servers []netip.Addr
	for line := range strings.Lines(text) {
		if comment := strings.IndexAny(line, "#;"); comment >= 0 {
			line = line[:comment]
		}
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.HasPrefix(line, "nameserver") || fields[0] != "nameserver" || len(servers) == maxServers {
			continue
		}
		if addr, _, ok := cutAddr(fields[1]); ok {
			servers = append(servers, addr)
		}
	}
	return servers
}

// readFile returns a file, or its beginning, as far as that goes in whole lines.
// Package os would cost more than what it reads here.
func readFile(name string) (string, error) {
	const most = 64 << 10
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	b := make([]byte, 0, 4096)
	for {
		if len(b) == most {
			return string(b[:bytes.LastIndexByte(b, '\n')+1]), nil
		}
		if len(b) == cap(b) {
			b = append(make([]byte, 0, 4*cap(b)), b...)
		}
		n, err := unix.Read(fd, b[len(b):cap(b)])
		if err != nil || n == 0 {
			return string(b), err
		}
		b = b[:len(b)+n]
	}
}
