package firewall

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Set is a set of addresses as it stands in the kernel.
type Set struct {
	Table    string // family and name, "inet rblnft"
	Name     string
	Type     string // as nft has it: ipv4_addr or ipv6_addr
	Size     int    // how many elements it takes; 0: as many as there is memory for
	Flags    []string
	Elements []Element // in the order of their addresses
}

// An Element is one element of a [Set].
type Element struct {
	Addr    netip.Addr
	Timeout time.Duration // what it was given; 0: none
	Expires time.Duration // what is left of it
	Comment string
}

// List reads one set of a table, given as in [Config.Table], and changes
// nothing. It is for sets without intervals, as those of blocked addresses
// are. The error wraps ENOENT if there is no such table or set.
func List(table, name string) (*Set, error) {
	at, err := parseTable(table)
	if err != nil {
		return nil, err
	}
	sets, err := readSets(at)
	if err != nil {
		return nil, fmt.Errorf("list set %s %s: %w", table, name, err)
	}
	info, ok := sets[name]
	if !ok {
		return nil, fmt.Errorf("list set %s %s: %w", table, name, unix.ENOENT)
	}
	if info.flags&unix.NFT_SET_INTERVAL != 0 {
		return nil, fmt.Errorf("list set %s %s: it holds intervals", table, name)
	}
	s := &Set{Table: familyName(at.Family) + " " + at.Name, Name: name, Size: int(info.size)}
	switch info.keyLen {
	case 4:
		s.Type = "ipv4_addr"
	case 16:
		s.Type = "ipv6_addr"
	default:
		return nil, fmt.Errorf("list set %s %s: it holds no addresses", table, name)
	}
	for _, flag := range []struct {
		bit  uint32
		name string
	}{{unix.NFT_SET_CONSTANT, "constant"}, {unix.NFT_SET_EVAL, "dynamic"}, {unix.NFT_SET_TIMEOUT, "timeout"}} {
		if info.flags&flag.bit != 0 {
			s.Flags = append(s.Flags, flag.name)
		}
	}
	if _, err := readElements(context.Background(), at, name, 0, func(e element) {
		if addr, ok := netip.AddrFromSlice(e.key); ok {
			s.Elements = append(s.Elements, Element{addr, e.timeout, e.expires, e.comment})
		}
	}); err != nil {
		return nil, err
	}
	slices.SortFunc(s.Elements, func(a, b Element) int { return a.Addr.Compare(b.Addr) })
	return s, nil
}

// WriteTo writes the set as nft list set does, with one element to a line. nft
// can read it back.
func (s *Set) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, s.String())
	return int64(n), err
}

// String returns what WriteTo writes.
func (s *Set) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s {\n\tset %s {\n\t\ttype %s\n", s.Table, s.Name, s.Type)
	if s.Size > 0 {
		fmt.Fprintf(&b, "\t\tsize %d\n", s.Size)
	}
	if len(s.Flags) > 0 {
		fmt.Fprintf(&b, "\t\tflags %s\n", strings.Join(s.Flags, ","))
	}
	for i, e := range s.Elements {
		if i == 0 {
			b.WriteString("\t\telements = { ")
		} else {
			b.WriteString(",\n\t\t\t     ")
		}
		b.WriteString(e.String())
	}
	if len(s.Elements) > 0 {
		b.WriteString(" }\n")
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}

// String returns the element as nft prints it.
func (e Element) String() string {
	text := e.Addr.String()
	if e.Timeout > 0 {
		text += " timeout " + nftTime(e.Timeout)
	}
	if e.Expires > 0 {
		text += " expires " + nftTime(e.Expires)
	}
	if comment := cleanComment(e.Comment); comment != "" {
		text += ` comment "` + comment + `"`
	}
	return text
}

// nftTime is a duration as nft prints it, 1d2h3m4s5ms (nftables,
// src/datatype.c, time_print).
func nftTime(d time.Duration) string {
	var b strings.Builder
	for _, unit := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}, {time.Millisecond, "ms"}} {
		if n := d / unit.size; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, unit.name)
			d -= n * unit.size
		}
	}
	if b.Len() == 0 {
		return "0s"
	}
	return b.String()
}
