package dnsbl

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Type is the type of the records asked for (RFC 1035, section 3.2.2).
type Type uint8

// The types a DNSBL is asked for.
const (
	A   Type = 1
	TXT Type = 16
)

// A Question is one DNS lookup to make.
type Question struct {
	ID   int // repeated in the answer
	Name string
	Type Type
}

// An Answer is what a lookup ended with. A name that does not exist and a name
// without records of the type are the same here: an answer with nothing in it.
type Answer struct {
	ID    int
	Err   error        // a temporary failure; the rest is then empty
	Addrs []netip.Addr // the A records
	Text  string       // all strings of all TXT records, one after the other
}

// A Resolver makes lookups, many at a time.
type Resolver interface {
	// Ask starts a lookup. Every lookup is answered, in the end with an Err.
	Ask(Question)
	// Wait returns the next answer, or ok == false at the time until; the
	// zero time is never. greetDelay says that the client is kept waiting on
	// purpose. The error is final: there is no use in deciding any more.
	Wait(until time.Time, greetDelay bool) (a Answer, ok bool, err error)
}

// A Step is one thing to do on the way to a decision: ask a source, or, where
// Source is nil, let time pass.
type Step struct {
	Source *Source
	Delay  time.Duration
}

// A Verdict says what becomes of a client.
type Verdict uint8

// The verdicts. The zero value lets mail go on.
const (
	Pass  Verdict = iota // run the next program
	Block                // answer with an error
)

// A Decision is what all sources together say.
type Decision struct {
	Verdict Verdict
	// Bounce says that the reply code is 553 and not 451.
	Bounce bool
	// Text is the message of a block, as the source has it.
	Text string
	// Zone is the source that lists the client, and Code its return code,
	// invalid if the zone has none. A block without a Zone is no listing.
	Zone string
	Code netip.Addr
}

// TemporaryError is the text of a block for which a failed lookup is to blame.
const TemporaryError = "temporary RBL lookup error"

// A Log is told what a user should know about a zone. A detail is for a user
// who has asked for more; what is none is worth a line in any case.
type Log func(zone, what string, detail bool)

// Decide takes the steps in their order until one of them settles what becomes
// of the client at addr, as rblsmtpd(1) does: the first source that lists or
// allows it wins; after a temporary failure the reply is never a bounce.
// Every source is asked at once unless oneByOne is set, and no name and type
// twice. What it takes to believe a listing is asked of the source that decides
// alone, or, while an answer is late, of those that would decide without it: the A
// record beside a TXT record, and the address that no list may list ([TestName]). The error is the resolver's.
func Decide(r Resolver, addr netip.Addr, steps []Step, oneByOne bool, log Log) (Decision, error) {
	d := decider{r: r, addr: addr, log: log, later: steps, slow: time.Now().Add(slow)}
	if !oneByOne {
		for _, s := range steps {
			if s.Source != nil {
				d.begin(s.Source)
			}
		}
	}
	bounceable := true
	for i, step := range steps {
		s := step.Source
		d.later = steps[i+1:]
		if s == nil {
			if err := d.sleep(step.Delay); err != nil {
				return Decision{}, err
			}
			continue
		}
		o, err := d.ask(s)
		if err != nil {
			return Decision{}, err
		}
		switch o.kind {
		case failed:
			bounceable = false
			switch {
			case s.Allow && !s.FailClosed:
				return Decision{Verdict: Pass}, nil
			case !s.Allow && s.FailClosed:
				return Decision{Verdict: Block, Text: TemporaryError}, nil
			}
		case listed:
			if s.Allow {
				return Decision{Verdict: Pass}, nil
			}
			if s.Fixed {
				o.text = strings.ReplaceAll(s.Message, "%IP%", addr.String())
			}
			return Decision{Verdict: Block, Bounce: s.Bounce && bounceable, Text: o.text, Zone: s.Zone, Code: o.code}, nil
		}
	}
	return Decision{Verdict: Pass}, nil
}

// slow is how long an answer may take before the time is used to check later
// sources that list the client: there may be none left when they decide.
const slow = 500 * time.Millisecond

type decider struct {
	r         Resolver
	addr      netip.Addr
	log       Log
	later     []Step    // after the one that is decided
	slow      time.Time // when an answer is late
	questions []question
	said      []string // to the log
}

// question is a Question, and its answer once there is one.
type question struct {
	name     string
	qtype    Type
	answered bool
	answer   Answer
}

// outcome is what a source says of the client.
type outcome struct {
	kind kind
	text string
	code netip.Addr
}

type kind uint8

const (
	notListed kind = iota // go on with the next source
	listed                // listed, or allowed where the source is an allow list
	failed                // a temporary failure
)

// say says something about a zone, once: several sources may be of one zone.
func (d *decider) say(s *Source, what string, detail bool) {
	if line := s.Zone + ": " + what; !slices.Contains(d.said, line) {
		d.said = append(d.said, line)
		d.log(s.Zone, what, detail)
	}
}

// begin asks the first question of a source. problem, if not empty, is why none
// can be asked.
func (d *decider) begin(s *Source) (name string, qtype Type, problem string) {
	if s.Err != nil {
		return "", 0, s.Err.Error()
	}
	name, ok := QueryName(d.addr, s.Zone)
	if !ok {
		return "", 0, "too long a zone for this address"
	}
	d.start(name, s.first())
	return name, s.first(), ""
}

// first is the type of the records that a source is asked for first.
func (s *Source) first() Type {
	if s.Fixed || s.Allow {
		return A
	}
	return TXT
}

// ask asks a source all that it takes to know what it says of the client. A TXT
// record lists only if there is something in it, and if the A record beside it,
// where the zone has one, is a return code and no error code.
func (d *decider) ask(s *Source) (outcome, error) {
	name, first, problem := d.begin(s)
	if problem != "" {
		d.say(s, problem+"; counted as a temporary failure", false)
		return outcome{kind: failed}, nil
	}
	a, err := d.await(s, name, first)
	if err != nil || a.Err != nil {
		return outcome{kind: failed}, err
	}
	evidence, text := A, a.Text
	if first == TXT {
		if text == "" {
			return outcome{}, nil
		}
		d.check(s, name)
		if a, err = d.await(s, name, A); err != nil || a.Err != nil {
			return outcome{kind: failed}, err
		}
		if len(a.Addrs) == 0 && s.Codes == nil {
			evidence = TXT
		}
	}
	o := outcome{kind: listed}
	if evidence == A {
		o = s.classify(a.Addrs, func(what string) { d.say(s, what, false) })
	}
	o.text = text
	if o.kind != listed || s.Allow {
		return o, nil
	}
	sane, err := d.sane(s, evidence)
	if !sane {
		o.kind = notListed
	}
	return o, err
}

// check asks, all at once, what a listing of name by a source depends on.
func (d *decider) check(s *Source, name string) {
	d.start(name, A)
	if test, ok := TestName(d.addr, s.Zone); ok {
		d.start(test, A)
	}
}

// checkLater checks the sources that list the client, as far as is known, after
// the one that keeps everybody waiting.
func (d *decider) checkLater() {
	for _, step := range d.later {
		s := step.Source
		if s == nil || s.Err != nil || s.Allow {
			continue
		}
		name, _ := QueryName(d.addr, s.Zone)
		q := d.find(name, s.first())
		if q != nil && q.answered && (q.answer.Text != "" || s.classify(q.answer.Addrs, func(string) {}).kind == listed) {
			d.check(s, name)
		}
	}
}

// sane reports whether a source does not list what no list may list, by records
// of the type that its listing of the client rests on. If that is not answered
// the listing stands.
func (d *decider) sane(s *Source, evidence Type) (bool, error) {
	test, ok := TestName(d.addr, s.Zone)
	if !ok {
		return true, nil
	}
	d.start(test, evidence)
	a, err := d.wait(test, evidence)
	if err != nil {
		return false, err
	}
	problem, unanswered := errorCode(a.Addrs)
	if a.Err != nil {
		problem, unanswered = a.Err.Error(), true
	}
	switch {
	case unanswered:
		d.say(s, "asked for 127.0.0.1: "+problem+"; the listing counts", true)
	case len(a.Addrs) > 0 || a.Text != "":
		d.say(s, "lists 127.0.0.1, which no list in order does (RFC 5782, section 5); no listing", false)
		return false, nil
	}
	return true, nil
}

// start asks a question, unless that has been done.
func (d *decider) start(name string, qtype Type) {
	if d.find(name, qtype) == nil {
		d.r.Ask(Question{ID: len(d.questions), Name: name, Type: qtype})
		d.questions = append(d.questions, question{name: name, qtype: qtype})
	}
}

// find returns a question that has been asked, or nil.
func (d *decider) find(name string, qtype Type) *question {
	for i := range d.questions {
		if q := &d.questions[i]; q.qtype == qtype && strings.EqualFold(q.name, name) {
			return q
		}
	}
	return nil
}

// await returns the answer to a question that has been asked, and says what is
// wrong with it.
func (d *decider) await(s *Source, name string, qtype Type) (Answer, error) {
	a, err := d.wait(name, qtype)
	if err == nil && a.Err != nil {
		d.say(s, a.Err.Error(), true)
	}
	return a, err
}

// wait returns the answer to a question that has been asked.
func (d *decider) wait(name string, qtype Type) (Answer, error) {
	for {
		if q := d.find(name, qtype); q.answered {
			return q.answer, nil
		}
		until := d.slow
		if !time.Now().Before(until) {
			d.checkLater()
			until = time.Time{}
		}
		if _, err := d.next(until, false); err != nil {
			return Answer{}, err
		}
	}
}

// sleep lets time pass, in which answers are taken.
func (d *decider) sleep(delay time.Duration) error {
	if delay <= 0 {
		return nil
	}
	until := time.Now().Add(delay)
	for {
		if ok, err := d.next(until, true); err != nil || !ok {
			return err
		}
	}
}

// next takes one answer. It returns false if there was none until then.
func (d *decider) next(until time.Time, greetDelay bool) (bool, error) {
	a, ok, err := d.r.Wait(until, greetDelay)
	if err != nil || !ok {
		return false, err
	}
	d.questions[a.ID].answered, d.questions[a.ID].answer = true, a
	return true, nil
}
