package dnsbl

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestParseList(t *testing.T) {
	for _, c := range []struct {
		arg     string
		zone    string
		fixed   bool
		message string
		codes   bool
		err     string
	}{
		{arg: "bl.example", zone: "bl.example"},
		{arg: "bl.example.", zone: "bl.example"},
		{arg: "BL_2.Example-x", zone: "BL_2.Example-x"},
		{arg: "bl.example:go away", zone: "bl.example", fixed: true, message: "go away"},
		{arg: "bl.example:", zone: "bl.example", fixed: true},
		{arg: "bl.example:see http://x/?a=b", zone: "bl.example", fixed: true, message: "see http://x/?a=b"},
		{arg: "bl.example=127.0.0.2", zone: "bl.example", codes: true},
		{arg: "bl.example=127.0.0.[2..4;9]:no", zone: "bl.example", fixed: true, message: "no", codes: true},
		{arg: "", err: "zone: empty"},
		{arg: ":text", fixed: true, message: "text", err: "zone: empty"},
		{arg: "a..b", zone: "a..b", err: "an empty label"},
		{arg: "bl example", zone: "bl example", err: `" " is not allowed`},
		{arg: "bl.ex\x00ample", zone: "bl.ex\x00ample", err: `"\x00" is not allowed`},
		{arg: strings.Repeat("a", 64), zone: strings.Repeat("a", 64), err: "a label of 64 bytes"},
		{arg: strings.Repeat("abcdefg.", 32) + "a", zone: strings.Repeat("abcdefg.", 32) + "a", err: "at most 253"},
		{arg: "bl.example=127.0.0", zone: "bl.example", err: "four octets"},
	} {
		s := ParseList(c.arg)
		if s.Zone != c.zone || s.Fixed != c.fixed || s.Message != c.message || (s.Codes != nil) != c.codes || s.Allow {
			t.Errorf("ParseList(%q) = %+v", c.arg, s)
		}
		switch {
		case c.err == "" && s.Err != nil:
			t.Errorf("ParseList(%q): %v", c.arg, s.Err)
		case c.err != "" && (s.Err == nil || !strings.Contains(s.Err.Error(), c.err)):
			t.Errorf("ParseList(%q): error %v, want one with %q", c.arg, s.Err, c.err)
		case s.Err != nil && !errors.Is(s.Err, ErrSource):
			t.Errorf("ParseList(%q): %v does not wrap ErrSource", c.arg, s.Err)
		}
	}
}

func TestParseCodes(t *testing.T) {
	for _, c := range []struct {
		codes    string
		yes, not []string
	}{
		{"127.0.0.2", []string{"127.0.0.2"}, []string{"127.0.0.3", "127.0.1.2", "127.1.0.2"}},
		{"127.0.0.[2..4;9]", []string{"127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.9"}, []string{"127.0.0.1", "127.0.0.5", "127.0.0.8", "127.0.0.10"}},
		{"127.[0;2].[0..255].[255]", []string{"127.0.7.255", "127.2.255.255"}, []string{"127.1.0.255", "127.0.0.254"}},
		{"[127].0.0.[64;128;192]", []string{"127.0.0.64", "127.0.0.128", "127.0.0.192"}, []string{"127.0.0.0", "127.0.0.63", "127.0.0.65"}},
	} {
		codes, err := ParseCodes(c.codes)
		if err != nil {
			t.Errorf("ParseCodes(%q): %v", c.codes, err)
			continue
		}
		for _, code := range c.yes {
			if !codes.Match(netip.MustParseAddr(code)) {
				t.Errorf("%s does not match %s", c.codes, code)
			}
		}
		for _, code := range c.not {
			if codes.Match(netip.MustParseAddr(code)) {
				t.Errorf("%s matches %s", c.codes, code)
			}
		}
	}
}

func TestParseCodesRefuses(t *testing.T) {
	for codes, want := range map[string]string{
		"":                    `"" is no number`,
		"127":                 "four octets",
		"127.0.0":             "four octets",
		"127.0.0.":            `"" is no number`,
		"127.0.0.2.3":         "after the fourth octet",
		"127.0.0.256":         `"256" is no number from 0 to 255`,
		"127.0.0.x":           `"x" is no number`,
		"127.0.0.0002":        `"0002" is no number`,
		"127.0.0.-1":          `"-1" is no number`,
		"127.0.0.[2":          "no ]",
		"127.0.0.[]":          `"" is no number`,
		"127.0.0.[2;]":        `"" is no number`,
		"127.0.0.[4..2]":      "the range 4..2 is empty",
		"127.0.0.[2..4]x":     `"x" after the fourth octet`,
		"127.0.0.[2..4..6]":   `"4..6" is no number`,
		"[127.0.0.2]":         `"127.0.0.2" is no number`,
		"127.0.0.[2..400]":    `"400" is no number`,
		"127..0.0.2":          `"" is no number`,
		"127.0.0.2 127.0.0.3": `"2 127" is no number`,
	} {
		if _, err := ParseCodes(codes); err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, ErrSource) {
			t.Errorf("ParseCodes(%q): error %v, want one with %q", codes, err, want)
		}
	}
}

func TestQueryName(t *testing.T) {
	for _, c := range []struct{ addr, zone, want string }{
		{"152.16.12.37", "cbl.example", "37.12.16.152.cbl.example"},
		{"127.0.0.2", "z", "2.0.0.127.z"},
		{"::ffff:192.0.2.99", "z", "99.2.0.192.z"},
		// The example of RFC 5782, section 2.4.
		{"2001:db8:1:2:3:4:567:89ab", "ugly.example.com", "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ugly.example.com"},
	} {
		if got, ok := QueryName(netip.MustParseAddr(c.addr), c.zone); got != c.want || !ok {
			t.Errorf("QueryName(%s, %s) = %s, %v, want %s", c.addr, c.zone, got, ok, c.want)
		}
	}
	// A name has 253 bytes at most (RFC 1035, section 2.3.4): "1.0.0.127." and 243 more.
	for length, want := range map[int]bool{243: true, 244: false} {
		zone := strings.Repeat("a", length)
		if _, ok := QueryName(netip.MustParseAddr("127.0.0.1"), zone); ok != want {
			t.Errorf("a zone of %d bytes: %v, want %v", length, ok, want)
		}
		if _, ok := TestName(netip.MustParseAddr("1.2.3.4"), zone); ok != want {
			t.Errorf("a zone of %d bytes: %v, want %v", length, ok, want)
		}
	}
	long := strings.Repeat("abcdefg.", 30) + "a"
	if name, ok := QueryName(netip.MustParseAddr("2001:db8::1"), long); ok {
		t.Errorf("a name of %d bytes is said to be no problem", len(name))
	}
}

// The name that no list may list (RFC 5782, section 5).
func TestTestName(t *testing.T) {
	const six = "1.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.z"
	for addr, want := range map[string]string{"192.0.2.1": "1.0.0.127.z", "::ffff:192.0.2.1": "1.0.0.127.z", "2001:db8::1": six} {
		if got, ok := TestName(netip.MustParseAddr(addr), "z"); got != want || !ok {
			t.Errorf("TestName(%s, z) = %s, %v, want %s", addr, got, ok, want)
		}
	}
}

func FuzzParseList(f *testing.F) {
	for _, arg := range []string{"", "a", "bl.example", "bl.example.:x", "bl.example=127.0.0.[2..4;9]:m %IP%", "z=127.0.0.2", "a=b=c:d:e", "=:", "bl.example=127.[0;1].0.[255..255]"} {
		f.Add(arg)
	}
	f.Fuzz(func(t *testing.T, arg string) {
		s := ParseList(arg)
		if s.Err != nil {
			if msg := s.Err.Error(); strings.ContainsFunc(msg, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("%q: the error is not one line of text: %q", arg, msg)
			}
			return
		}
		name, ok := QueryName(netip.MustParseAddr("192.0.2.1"), s.Zone)
		if want := "1.2.0.192." + s.Zone; name != want {
			t.Errorf("%q: asks for %q, want %q", arg, name, want)
		}
		if ok != (len(name) <= 253) {
			t.Errorf("%q: a name of %d bytes, ok %v", arg, len(name), ok)
		}
		again := s.Zone
		if _, codes, filtered := strings.Cut(strings.SplitN(arg, ":", 2)[0], "="); filtered {
			again += "=" + codes
		}
		if s.Fixed {
			again += ":" + s.Message
		}
		if second := ParseList(again); second.Err != nil || second.Zone != s.Zone || second.Message != s.Message {
			t.Errorf("%q: written again as %q it is %+v", arg, again, second)
		}
	})
}

// FuzzClassify gives the meaning of A records: the rules are told again here in
// another way.
func FuzzClassify(f *testing.F) {
	f.Add("", []byte{127, 0, 0, 2}, false)
	f.Add("127.0.0.[2..4]", []byte{127, 0, 0, 9, 127, 0, 0, 3}, false)
	f.Add("", []byte{203, 0, 113, 1, 127, 0, 0, 2}, false)
	f.Add("", []byte{127, 255, 255, 254, 127, 0, 0, 2}, true)
	f.Fuzz(func(t *testing.T, filter string, raw []byte, allow bool) {
		s := Source{Zone: "z", Allow: allow}
		if filter != "" {
			if s.Codes, s.Err = ParseCodes(filter); s.Err != nil {
				return
			}
		}
		var codes []netip.Addr
		complains, inside, outside := false, false, false
		for ; len(raw) >= 4; raw = raw[4:] {
			codes = append(codes, netip.AddrFrom4([4]byte(raw)))
			switch {
			case raw[0] == 127 && raw[1] == 255 && raw[2] == 255:
				complains = true
			case raw[0] != 127:
				outside = true
			case s.Codes == nil || s.Codes.Match(codes[len(codes)-1]):
				inside = true
			}
		}
		if len(codes) == 0 {
			return
		}
		said := 0
		got := s.classify(codes, func(string) { said++ })
		want := notListed
		switch {
		case complains:
			want = failed
		case inside:
			want = listed
		}
		if got.kind != want {
			t.Errorf("%v under %q, allow %v: outcome %d, want %d", codes, filter, allow, got.kind, want)
		}
		if (complains || outside && !inside) != (said == 1) || said > 1 {
			t.Errorf("%v under %q, allow %v: %d lines logged", codes, filter, allow, said)
		}
		if want == listed && !got.code.IsLoopback() {
			t.Errorf("%v under %q: listed with return code %v", codes, filter, got.code)
		}
	})
}
