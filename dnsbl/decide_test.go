package dnsbl

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// script answers from a table, and keeps what was asked. It stands for the DNS,
// which is not what these tests are about.
type script struct {
	answers map[string]string // "TXT zone" or "A zone": text, codes, or "failed"
	asked   []string
	queue   []Answer
	gone    bool
}

var errScript = errors.New("failed")

// sick is what is logged of a list of everything.
const sick = "lists 127.0.0.1, which no list in order does (RFC 5782, section 5); no listing"

func (s *script) Ask(q Question) {
	kind := "A"
	if q.Type == TXT {
		kind = "TXT"
	}
	zone := strings.TrimPrefix(q.Name, "1.2.0.192.")
	if test, ok := strings.CutPrefix(q.Name, "1.0.0.127."); ok {
		zone = "127.0.0.1 " + test
	}
	s.asked = append(s.asked, kind+" "+zone)
	a := Answer{ID: q.ID}
	switch answer := s.answers[kind+" "+zone]; {
	case answer == "failed":
		a.Err = errScript
	case answer == "":
	case q.Type == TXT:
		a.Text = answer
	default:
		for code := range strings.FieldsSeq(answer) {
			a.Addrs = append(a.Addrs, netip.MustParseAddr(code))
		}
	}
	// The last question is the first to be answered: order must not matter.
	s.queue = append([]Answer{a}, s.queue...)
}

func (s *script) Wait(time.Time, bool) (Answer, bool, error) {
	if s.gone {
		return Answer{}, false, errScript
	}
	if len(s.queue) == 0 {
		return Answer{}, false, nil
	}
	a := s.queue[0]
	s.queue = s.queue[1:]
	return a, true, nil
}

// steps reads sources as a command line has them.
func steps(args ...string) []Step {
	var all []Step
	var bounce, failClosed bool
	for i := 0; i < len(args); i++ {
		add := func(s Source) {
			s.Bounce, s.FailClosed = bounce, failClosed
			all = append(all, Step{Source: &s})
		}
		switch args[i] {
		case "-b":
			bounce = true
		case "-B":
			bounce = false
		case "-c":
			failClosed = true
		case "-C":
			failClosed = false
		case "-w":
			all = append(all, Step{Delay: time.Millisecond})
		case "-r":
			i++
			add(ParseList(args[i]))
		case "-a":
			i++
			add(ParseAllow(args[i]))
		}
	}
	return all
}

func TestDecide(t *testing.T) {
	code := netip.MustParseAddr
	for _, c := range []struct {
		name    string
		args    []string
		answers map[string]string
		want    Decision
		log     []string
		details []string // nil: not looked at
	}{
		{name: "no source"},
		{name: "nothing listed", args: []string{"-b", "-r", "one", "-r", "two:no"}},
		{
			name: "TXT", args: []string{"-r", "one"}, answers: map[string]string{"TXT one": "why"},
			want: Decision{Verdict: Block, Text: "why", Zone: "one"},
		},
		{
			name: "TXT with its A record", args: []string{"-b", "-r", "one"}, answers: map[string]string{"TXT one": "why", "A one": "127.0.0.4"},
			want: Decision{Verdict: Block, Bounce: true, Text: "why", Zone: "one", Code: code("127.0.0.4")},
		},
		{
			name: "a fixed message", args: []string{"-b", "-r", "one:%IP% is %IP%"}, answers: map[string]string{"A one": "127.0.0.2"},
			want: Decision{Verdict: Block, Bounce: true, Text: "192.0.2.1 is 192.0.2.1", Zone: "one", Code: code("127.0.0.2")},
		},
		{
			name: "a TXT record alone lists nothing by a fixed message", args: []string{"-r", "one:no"}, answers: map[string]string{"TXT one": "why"},
		},
		{
			name: "%IP% in a TXT record means nothing", args: []string{"-r", "one"}, answers: map[string]string{"TXT one": "%IP%"},
			want: Decision{Verdict: Block, Text: "%IP%", Zone: "one"},
		},
		{
			name: "the first source wins", args: []string{"-r", "one:1", "-b", "-r", "two:2"}, answers: map[string]string{"A one": "127.0.0.2", "A two": "127.0.0.2"},
			want: Decision{Verdict: Block, Text: "1", Zone: "one", Code: code("127.0.0.2")},
		},
		{
			name: "allowed before listed", args: []string{"-a", "good", "-r", "one:1"}, answers: map[string]string{"A good": "127.0.10.3", "A one": "127.0.0.2"},
		},
		{
			name: "listed before allowed", args: []string{"-r", "one:1", "-a", "good"}, answers: map[string]string{"A good": "127.0.0.2", "A one": "127.0.0.2"},
			want: Decision{Verdict: Block, Text: "1", Zone: "one", Code: code("127.0.0.2")},
		},
		{
			name: "an allow list that is parked allows nobody", args: []string{"-a", "good", "-r", "one:1"}, answers: map[string]string{"A good": "203.0.113.1", "A one": "127.0.0.2"},
			want: Decision{Verdict: Block, Text: "1", Zone: "one", Code: code("127.0.0.2")},
			log:  []string{"good: 203.0.113.1: outside 127.0.0.0/8; allows nobody"},
		},
		{
			name: "a list of everything", args: []string{"-b", "-c", "-r", "one:1", "-r", "two:2"}, answers: map[string]string{"A one": "127.0.0.2", "A 127.0.0.1 one": "127.0.0.2", "A two": "127.0.0.3"},
			want: Decision{Verdict: Block, Bounce: true, Text: "2", Zone: "two", Code: code("127.0.0.3")},
			log:  []string{"one: " + sick},
		},
		{
			name: "a list of everything, whatever the code", args: []string{"-r", "one=127.0.0.2:1"}, answers: map[string]string{"A one": "127.0.0.2", "A 127.0.0.1 one": "203.0.113.1"},
			log: []string{"one: " + sick},
		},
		{
			name: "a list of everything by text", args: []string{"-r", "one"}, answers: map[string]string{"TXT one": "why", "A one": "127.0.0.2", "A 127.0.0.1 one": "127.0.0.2"},
			log: []string{"one: " + sick},
		},
		{
			name: "a list of everything by text alone", args: []string{"-r", "one"}, answers: map[string]string{"TXT one": "why", "TXT 127.0.0.1 one": "why"},
			log: []string{"one: " + sick},
		},
		{
			name: "a list of everything, named twice", args: []string{"-r", "one=127.0.0.2:1", "-r", "one:1"}, answers: map[string]string{"A one": "127.0.0.2", "A 127.0.0.1 one": "127.0.0.2"},
			log: []string{"one: " + sick},
		},
		{
			name: "a text about 127.0.0.1 beside the records that list", args: []string{"-r", "one"}, answers: map[string]string{"TXT one": "why", "A one": "127.0.0.2", "TXT 127.0.0.1 one": "a test"},
			want: Decision{Verdict: Block, Text: "why", Zone: "one", Code: code("127.0.0.2")},
		},
		{
			name: "127.0.0.1 cannot be asked for", args: []string{"-b", "-r", "one:1"}, answers: map[string]string{"A one": "127.0.0.2", "A 127.0.0.1 one": "failed"},
			want:    Decision{Verdict: Block, Bounce: true, Text: "1", Zone: "one", Code: code("127.0.0.2")},
			details: []string{"one: asked for 127.0.0.1: failed; the listing counts"},
		},
		{
			name: "an error code for 127.0.0.1", args: []string{"-b", "-r", "one:1"}, answers: map[string]string{"A one": "127.0.0.2", "A 127.0.0.1 one": "127.255.255.255"},
			want:    Decision{Verdict: Block, Bounce: true, Text: "1", Zone: "one", Code: code("127.0.0.2")},
			details: []string{"one: asked for 127.0.0.1: 127.255.255.255: asked too often, the list does not answer any more; the listing counts"},
		},
		{
			name: "a failure is no listing", args: []string{"-b", "-r", "one"}, answers: map[string]string{"TXT one": "failed"},
			details: []string{"one: failed"},
		},
		{
			name: "after a failure there is no bounce", args: []string{"-b", "-r", "one", "-r", "two:2"}, answers: map[string]string{"TXT one": "failed", "A two": "127.0.0.2"},
			want: Decision{Verdict: Block, Text: "2", Zone: "two", Code: code("127.0.0.2")},
		},
		{
			name: "a failure after the listing changes nothing", args: []string{"-b", "-r", "two:2", "-r", "one"}, answers: map[string]string{"TXT one": "failed", "A two": "127.0.0.2"},
			want: Decision{Verdict: Block, Bounce: true, Text: "2", Zone: "two", Code: code("127.0.0.2")},
		},
		{
			name: "fail closed", args: []string{"-b", "-c", "-r", "one"}, answers: map[string]string{"TXT one": "failed"},
			want: Decision{Verdict: Block, Text: TemporaryError},
		},
		{
			name: "fail closed for later sources only", args: []string{"-b", "-r", "one", "-c", "-r", "two:2"}, answers: map[string]string{"TXT one": "failed"},
		},
		{
			name: "a failing allow list allows", args: []string{"-b", "-a", "good", "-r", "one:1"}, answers: map[string]string{"A good": "failed", "A one": "127.0.0.2"},
		},
		{
			name: "a failing allow list, fail closed", args: []string{"-b", "-c", "-a", "good", "-r", "one:1"}, answers: map[string]string{"A good": "failed", "A one": "127.0.0.2"},
			want: Decision{Verdict: Block, Text: "1", Zone: "one", Code: code("127.0.0.2")},
		},
		{
			name: "TXT whose A record cannot be looked up", args: []string{"-b", "-r", "one"}, answers: map[string]string{"TXT one": "why", "A one": "failed"},
		},
		{
			name: "TXT whose A record is an error code", args: []string{"-b", "-r", "one"}, answers: map[string]string{"TXT one": "see https://bl", "A one": "127.255.255.254"},
			log: []string{"one: 127.255.255.254: asked through a public or open resolver, which the list does not answer; counted as a temporary failure"},
		},
		{
			name: "codes beside those for errors", args: []string{"-r", "one:1"}, answers: map[string]string{"A one": "127.255.254.255"},
			want: Decision{Verdict: Block, Text: "1", Zone: "one", Code: code("127.255.254.255")},
		},
		{
			name: "an error code behind a hundred others", args: []string{"-r", "one:1"}, answers: map[string]string{"A one": strings.Repeat("127.0.0.2 ", 100) + "127.255.255.0"},
			log: []string{"one: 127.255.255.0: an error code, no listing; counted as a temporary failure"},
		},
		{
			name: "an error code is a failure", args: []string{"-b", "-c", "-r", "one:1"}, answers: map[string]string{"A one": "127.255.255.255"},
			want: Decision{Verdict: Block, Text: TemporaryError},
			log:  []string{"one: 127.255.255.255: asked too often, the list does not answer any more; counted as a temporary failure"},
		},
		{
			name: "a parking page", args: []string{"-b", "-r", "one:1"}, answers: map[string]string{"A one": "203.0.113.1"},
			log: []string{"one: 203.0.113.1: outside 127.0.0.0/8; no listing"},
		},
		{
			name: "TXT with a parking page", args: []string{"-b", "-r", "one"}, answers: map[string]string{"TXT one": "v=spf1 -all", "A one": "203.0.113.1"},
			log: []string{"one: 203.0.113.1: outside 127.0.0.0/8; no listing"},
		},
		{
			name: "return codes chosen", args: []string{"-b", "-r", "one=127.0.0.[2..4]:1"}, answers: map[string]string{"A one": "127.0.0.10 127.0.0.3"},
			want: Decision{Verdict: Block, Bounce: true, Text: "1", Zone: "one", Code: code("127.0.0.3")},
		},
		{
			name: "another return code", args: []string{"-b", "-r", "one=127.0.0.[2..4]:1"}, answers: map[string]string{"A one": "127.0.0.10"},
		},
		{
			name: "return codes chosen, TXT without A", args: []string{"-b", "-r", "one=127.0.0.2"}, answers: map[string]string{"TXT one": "why"},
		},
		{
			name: "a bad source is a failure", args: []string{"-b", "-c", "-r", "o ne"},
			want: Decision{Verdict: Block, Text: TemporaryError},
			log:  []string{`o ne: zone "o ne": " " is not allowed in a zone; counted as a temporary failure`},
		},
		{
			name: "a bad source stops no mail", args: []string{"-b", "-r", "one=127:x", "-r", "two:2"}, answers: map[string]string{"A two": "127.0.0.2"},
			want: Decision{Verdict: Block, Text: "2", Zone: "two", Code: code("127.0.0.2")},
			log:  []string{`one: return codes "127": want four octets with dots between them; counted as a temporary failure`},
		},
		{
			name: "a delay decides nothing", args: []string{"-w", "-r", "one:1", "-w"}, answers: map[string]string{"A one": "127.0.0.2"},
			want: Decision{Verdict: Block, Text: "1", Zone: "one", Code: code("127.0.0.2")},
		},
	} {
		for _, oneByOne := range []bool{false, true} {
			s := &script{answers: c.answers}
			var log, details []string
			got, err := Decide(s, netip.MustParseAddr("192.0.2.1"), steps(c.args...), oneByOne, func(zone, what string, detail bool) {
				if detail {
					details = append(details, zone+": "+what)
				} else {
					log = append(log, zone+": "+what)
				}
			})
			if err != nil || got != c.want {
				t.Errorf("%s, one by one %v: %+v, %v, want %+v", c.name, oneByOne, got, err, c.want)
			}
			if !reflect.DeepEqual(log, c.log) {
				t.Errorf("%s, one by one %v: logged %q, want %q", c.name, oneByOne, log, c.log)
			}
			if c.details != nil && !reflect.DeepEqual(details, c.details) {
				t.Errorf("%s, one by one %v: details %q, want %q", c.name, oneByOne, details, c.details)
			}
		}
	}
}

// Every name and type is asked for once; the A record beside a text and
// 127.0.0.1 only of the list that decides.
func TestDecideAsks(t *testing.T) {
	listed := map[string]string{"TXT one": "why", "A one": "127.0.0.2", "A two": "127.0.0.2", "TXT three": "why"}
	for _, c := range []struct {
		args             []string
		atOnce, oneByOne []string
	}{
		{
			[]string{"-r", "one", "-a", "good", "-r", "two:2", "-r", "three"},
			[]string{"TXT one", "A good", "A two", "TXT three", "A one", "A 127.0.0.1 one"},
			[]string{"TXT one", "A one", "A 127.0.0.1 one"},
		},
		{
			[]string{"-a", "good", "-r", "two:2", "-r", "one"},
			[]string{"A good", "A two", "TXT one", "A 127.0.0.1 two"},
			[]string{"A good", "A two", "A 127.0.0.1 two"},
		},
		{
			[]string{"-r", "three"},
			[]string{"TXT three", "A three", "A 127.0.0.1 three", "TXT 127.0.0.1 three"},
			[]string{"TXT three", "A three", "A 127.0.0.1 three", "TXT 127.0.0.1 three"},
		},
		{
			[]string{"-r", "two=127.0.0.3:x", "-r", "TWO=127.0.0.4:y", "-r", "two.:z"},
			[]string{"A two", "A 127.0.0.1 two"},
			[]string{"A two", "A 127.0.0.1 two"},
		},
		{[]string{"-r", "none:n", "-r", "none"}, []string{"A none", "TXT none"}, []string{"A none", "TXT none"}},
	} {
		for oneByOne, want := range map[bool][]string{false: c.atOnce, true: c.oneByOne} {
			s := &script{answers: listed}
			if _, err := Decide(s, netip.MustParseAddr("192.0.2.1"), steps(c.args...), oneByOne, nil); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(s.asked, want) {
				t.Errorf("%q, one by one %v: asked %q, want %q", c.args, oneByOne, s.asked, want)
			}
		}
	}
}

func TestDecideEndsWithTheResolver(t *testing.T) {
	for _, args := range [][]string{{"-r", "one"}, {"-w", "-r", "one"}} {
		s := &script{gone: true}
		if d, err := Decide(s, netip.MustParseAddr("192.0.2.1"), steps(args...), false, nil); !errors.Is(err, errScript) {
			t.Errorf("%q: %+v, %v", args, d, err)
		}
	}
}
