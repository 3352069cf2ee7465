package hit

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestAppend(t *testing.T) {
	addr := netip.MustParseAddr
	for want, h := range map[string]Hit{
		"rblnft/1 addr=192.0.2.1 zone=bl.example code=127.0.0.2 answer=553 listed\n": {addr("192.0.2.1"), "bl.example", addr("127.0.0.2"), "553 listed"},
		"rblnft/1 addr=2001:db8::1 zone=bl.example code=- answer=451 \n":             {addr("2001:db8::1"), "bl.example", netip.Addr{}, "451 "},
	} {
		if got := string(h.Append(nil)); got != want {
			t.Errorf("%+v: %q, want %q", h, got, want)
		}
		if back, err := Parse([]byte(want)); err != nil || back != h {
			t.Errorf("Parse(%q) = %+v, %v", want, back, err)
		}
		if back, err := Parse([]byte(strings.TrimSuffix(want, "\n"))); err != nil || back != h {
			t.Errorf("without its line feed %q is %+v, %v", want, back, err)
		}
	}
}

func TestLongestHitFits(t *testing.T) {
	label := strings.Repeat("a", 63)
	h := Hit{
		Addr:   netip.MustParseAddr("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
		Zone:   label + "." + label + "." + label + "." + label[:61],
		Code:   netip.MustParseAddr("127.255.255.255"),
		Answer: "553 " + strings.Repeat("x", 200),
	}
	b := h.Append(nil)
	if back, err := Parse(b); err != nil || back != h {
		t.Errorf("%d bytes: %+v, %v", len(b), back, err)
	}
}

func TestLongestLine(t *testing.T) {
	line := "rblnft/1 addr=192.0.2.1 zone=A-b_9.example code=- answer=553 "
	line += strings.Repeat("~", MaxLen-1-len(line)) + "\n"
	if h, err := Parse([]byte(line)); err != nil || h.Zone != "A-b_9.example" {
		t.Errorf("%+v, %v", h, err)
	}
	if h, err := Parse([]byte("x" + line)); err == nil || !strings.Contains(err.Error(), "1025 bytes") {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestParseMapsAddresses(t *testing.T) {
	h, err := Parse([]byte("rblnft/1 addr=::ffff:192.0.2.1 zone=z code=- answer=553 x"))
	if err != nil || h.Addr != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestParseRefuses(t *testing.T) {
	const rest = " zone=bl.example code=127.0.0.2 answer=553 listed"
	for in, want := range map[string]string{
		"":                                  "version",
		"\n":                                "version",
		"rblnft/2 addr=192.0.2.1" + rest:    `version: "rblnft/2"`,
		"rblnft/1":                          "version",
		"rblnft/1 ":                         "addr: missing",
		"RBLNFT/1 addr=192.0.2.1" + rest:    "version",
		"rblnft/1  addr=192.0.2.1" + rest:   "addr: missing",
		"rblnft/1 addr=192.0.2" + rest:      `addr: "192.0.2" is no IP address`,
		"rblnft/1 addr=fe80::1%eth0" + rest: "addr",
		"rblnft/1 addr=" + rest:             "addr",
		"rblnft/1 addr=192.0.2.1 code=- zone=z answer=553 x":                                   "zone: missing",
		"rblnft/1 addr=192.0.2.1 zone= code=- answer=553 x":                                    "zone",
		"rblnft/1 addr=192.0.2.1 zone=a..b code=- answer=553 x":                                "zone",
		"rblnft/1 addr=192.0.2.1 zone=a\"b code=- answer=553 x":                                "zone",
		"rblnft/1 addr=192.0.2.1 zone=z. code=- answer=553 x":                                  "zone",
		"rblnft/1 addr=192.0.2.1 zone=.z code=- answer=553 x":                                  "zone",
		"rblnft/1 addr=192.0.2.1 zone=a,b code=- answer=553 x":                                 "zone",
		"rblnft/1 addr=192.0.2.1 zone=" + strings.Repeat("a", 64) + " code=- answer=553 x":     "zone",
		"rblnft/1 addr=192.0.2.1 zone=" + strings.Repeat("a.", 126) + "ab code=- answer=553 x": "zone",
		"rblnft/1 addr=192.0.2.1 zone=" + strings.Repeat("x,", 99) + " code=- answer=553 x":    `x,"...`,
		"rblnft/1 addr=192.0.2.1 zone=z code=- answer=553 \x7f":                                "byte",
		"rblnft/1 addr=192.0.2.1 zone=z code=- answer=553 \x1f":                                "byte",
		"rblnft/1 addr=192.0.2.1 zone=z code=::ffff:127.0.0.2 answer=553 x":                    "code",
		"rblnft/1 addr=192.0.2.1 zone=z code=- answer=553x y":                                  "answer",
		"rblnft/1 addr=192.0.2.1 zone=z code=203.0.113.1 answer=553 x":                         "code",
		"rblnft/1 addr=192.0.2.1 zone=z code=::1 answer=553 x":                                 "code",
		"rblnft/1 addr=192.0.2.1 zone=z code= answer=553 x":                                    "code",
		"rblnft/1 addr=192.0.2.1 zone=z code=-":                                                "answer: missing",
		"rblnft/1 addr=192.0.2.1 zone=z code=- answer=250 ok":                                  "answer",
		"rblnft/1 addr=192.0.2.1 zone=z code=- answer=553":                                     "answer",
		"rblnft/1 addr=192.0.2.1 zone=z code=- answer=553 a\nb":                                "byte",
		"rblnft/1 addr=192.0.2.1 zone=z code=- answer=553 a\n\n":                               "byte",
		"rblnft/1 addr=192.0.2.1 zone=z code=- answer=553 \x00":                                "byte",
		"rblnft/1 addr=192.0.2.1 zone=z code=- answer=553 caf\xc3\xa9":                         "byte",
		"rblnft/1 addr=192.0.2.1 zone=z code=- answer=553 \xff\xfe":                            "byte",
		"rblnft/1 addr=192.0.2.1 zone=z code=- answer=553 " + strings.Repeat("x", MaxLen):      "length",
	} {
		h, err := Parse([]byte(in))
		if err == nil || !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%.80q) = %+v, %v, want an error with %q", in, h, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("rblnft/1 addr=192.0.2.1 zone=bl.example code=127.0.0.2 answer=553 listed\n"))
	f.Add([]byte("rblnft/1 addr=2001:db8::1 zone=z code=- answer=451 "))
	f.Add([]byte("rblnft/2 addr=192.0.2.1"))
	f.Add([]byte("rblnft/1 addr=::ffff:127.0.0.1 zone=a.b code=127.1.2.3 answer=553 =\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		h, err := Parse(in)
		if err != nil {
			if msg := err.Error(); !errors.Is(err, ErrSyntax) || strings.ContainsAny(msg, "\n\r\x00\x1b") {
				t.Errorf("%q: error %q", in, msg)
			}
			return
		}
		if h.Addr.Is4In6() || h.Addr.Zone() != "" || h.Code.IsValid() && !h.Code.IsLoopback() {
			t.Errorf("%q: %+v", in, h)
		}
		out := h.Append(nil)
		back, err := Parse(out)
		if err != nil || back != h {
			t.Errorf("%q: written as %q it is %+v, %v", in, out, back, err)
		}
		if len(out) > MaxLen+64 || bytes.Count(out, []byte("\n")) != 1 {
			t.Errorf("%q: written as %q", in, out)
		}
	})
}
