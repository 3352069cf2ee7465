package dnsbl

import (
	"net/netip"
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
	// zero time is never. Its error is final: there is no use in deciding
	// any more.
	Wait(until time.Time) (a Answer, ok bool, err error)
}

// A Step is one thing to do on the way to a decision: ask a source, or, where
// Source is nil, let time pass.
type Step struct {
	Source *Source
	Delay  func() time.Duration // how long from now, asked when the step is reached
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

// Decide takes the steps in their order until one of them settles what becomes
// of the client at addr, as rblsmtpd(1) does: the first source that lists or
// allows it wins; after a temporary failure the reply is never a bounce.
// Lookups of all sources are under way at once unless oneByOne is set, and
// only decided upon in order. What a user should know is said to log, by zone.
// The error is the resolver's.
func Decide(r Resolver, addr netip.Addr, steps []Step, oneByOne bool, log func(zone, what string)) (Decision, error) {
	d := decider{r: r, addr: addr, log: log, states: make([]state, len(steps))}
	for i := range steps {
		d.states[i].Step = steps[i]
	}
	if !oneByOne {
		for i := range d.states {
			d.start(i)
		}
	}
	bounceable := true
	for i := range d.states {
		s := &d.states[i]
		d.start(i)
		if s.Source == nil {
			if err := d.sleep(s.Delay()); err != nil {
				return Decision{}, err
			}
			continue
		}
		for s.outcome.kind == pending {
			if _, err := d.wait(time.Time{}); err != nil {
				return Decision{}, err
			}
		}
		switch s.outcome.kind {
		case failed:
			bounceable = false
			switch {
			case s.Source.Allow && !s.Source.FailClosed:
				return Decision{Verdict: Pass}, nil
			case !s.Source.Allow && s.Source.FailClosed:
				return Decision{Verdict: Block, Text: TemporaryError}, nil
			}
		case listed:
			if s.Source.Allow {
				return Decision{Verdict: Pass}, nil
			}
			return Decision{
				Verdict: Block,
				Bounce:  s.Source.Bounce && bounceable,
				Text:    d.message(s),
				Zone:    s.Source.Zone,
				Code:    s.outcome.code,
			}, nil
		}
	}
	return Decision{Verdict: Pass}, nil
}

type decider struct {
	r      Resolver
	addr   netip.Addr
	log    func(zone, what string)
	states []state
}

// state is how far a step has come.
type state struct {
	Step
	started bool
	text    string // of the TXT record, while the A record is awaited
	outcome outcome
}

// outcome is what a source says of the client.
type outcome struct {
	kind kind
	code netip.Addr
}

type kind uint8

const (
	pending   kind = iota
	notListed      // go on with the next source
	listed         // listed, or allowed where the source is an allow list
	failed         // a temporary failure
)

// start asks the first question of step i, unless that has been done.
func (d *decider) start(i int) {
	s := &d.states[i]
	if s.started || s.Source == nil {
		return
	}
	s.started = true
	if s.Source.Err != nil {
		d.log(s.Source.Zone, s.Source.Err.Error()+"; counted as a temporary failure")
		s.outcome = outcome{kind: failed}
		return
	}
	first := TXT
	if s.Source.Fixed || s.Source.Allow {
		first = A
	}
	d.ask(i, first)
}

func (d *decider) ask(i int, t Type) {
	s := &d.states[i]
	name, ok := QueryName(d.addr, s.Source.Zone)
	if !ok {
		d.log(s.Source.Zone, "too long a zone for this address; counted as a temporary failure")
		s.outcome = outcome{kind: failed}
		return
	}
	d.r.Ask(Question{ID: i, Name: name, Type: t})
}

// sleep lets time pass, in which answers are taken.
func (d *decider) sleep(delay time.Duration) error {
	if delay <= 0 {
		return nil
	}
	until := time.Now().Add(delay)
	for {
		if ok, err := d.wait(until); err != nil || !ok {
			return err
		}
	}
}

// wait takes one answer. It returns false if there was none until then.
func (d *decider) wait(until time.Time) (bool, error) {
	a, ok, err := d.r.Wait(until)
	if err != nil || !ok {
		return false, err
	}
	d.take(&d.states[a.ID], a)
	return true, nil
}

// take brings a step on by one answer. A TXT record lists only if there is
// something in it, and if the A record beside it, where the zone has one, is a
// return code and no error code.
func (d *decider) take(s *state, a Answer) {
	log := func(what string) { d.log(s.Source.Zone, what) }
	byText := !s.Source.Fixed && !s.Source.Allow
	switch {
	case a.Err != nil:
		s.outcome = outcome{kind: failed}
	case byText && s.text == "":
		if a.Text == "" {
			s.outcome = outcome{kind: notListed}
			return
		}
		s.text = a.Text
		d.ask(a.ID, A)
	case byText && len(a.Addrs) == 0 && s.Source.Codes == nil:
		s.outcome = outcome{kind: listed}
	case len(a.Addrs) == 0:
		s.outcome = outcome{kind: notListed}
	default:
		s.outcome = s.Source.classify(a.Addrs, log)
	}
}

func (d *decider) message(s *state) string {
	if s.Source.Fixed {
		return strings.ReplaceAll(s.Source.Message, "%IP%", d.addr.String())
	}
	return s.text
}
