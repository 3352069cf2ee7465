package main

import (
	"strconv"
	"strings"
	"time"

	"rblnft/dnsbl"
)

// options is what the command line says.
type options struct {
	steps      []dnsbl.Step  // -r, -a, -w, -W, in their order
	timeout    time.Duration // -t: of the conversation
	lookups    time.Duration // -T: for all lookups together
	oneByOne   bool          // -s
	reportOnly bool          // -i
	verbose    bool          // -v
	prog       int           // where prog stands among the arguments
	notes      []string      // what is odd about the options, but no reason to stop mail
}

const usage = "rblsmtpd: usage: rblsmtpd [ -bBcCisvW ] [ -t seconds ] [ -T seconds ] [ -w seconds ] [ -r base[=codes][:message] ] [ -a base ] smtpd [ arg ... ]\n"

// parse reads the command line as getopt(3) does: options may share an
// argument, the value of one may stand in the same argument or in the next. An
// argument that begins with -- ends them, or the first that is no option. -b, -B, -c and -C
// act on the sources after them. problem, if not empty, is what to say before
// the usage.
func parse(p *process) (o *options, problem string) {
	o = &options{timeout: 60 * time.Second, lookups: 10 * time.Second}
	var bounce, failClosed bool
	source := func(s dnsbl.Source) {
		s.Bounce, s.FailClosed = bounce, failClosed
		o.steps = append(o.steps, dnsbl.Step{Source: &s})
	}

	at := 1
	for ; at < len(p.args); at++ {
		arg := p.args[at]
		if strings.HasPrefix(arg, "--") {
			at++
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			break
		}
		for i := 1; i < len(arg); i++ {
			switch arg[i] {
			case 'b':
				bounce = true
				continue
			case 'B':
				bounce = false
				continue
			case 'c':
				failClosed = true
				continue
			case 'C':
				failClosed = false
				continue
			case 'i':
				o.reportOnly = true
				continue
			case 's':
				o.oneByOne = true
				continue
			case 'v':
				o.verbose = true
				continue
			case 'W':
				o.steps = append(o.steps, dnsbl.Step{Delay: o.greetDelay(p)})
				continue
			case 't', 'T', 'w', 'r', 'a':
			default:
				return o, p.name() + ": illegal option -- " + arg[i:i+1] + "\n"
			}

			option := arg[i]
			value := arg[i+1:]
			if value == "" {
				if at++; at == len(p.args) {
					return o, p.name() + ": option requires an argument -- " + string(option) + "\n"
				}
				value = p.args[at]
			}
			switch option {
			case 't':
				o.timeout = o.seconds("-t", value)
			case 'T':
				o.lookups = o.seconds("-T", value)
			case 'w':
				o.steps = append(o.steps, dnsbl.Step{Delay: o.seconds("-w", value)})
			case 'r':
				source(dnsbl.ParseList(value))
			case 'a':
				source(dnsbl.ParseAllow(value))
			}
			break
		}
	}
	o.prog = at
	return o, ""
}

// name is what the program was called as.
func (p *process) name() string {
	if len(p.args) == 0 {
		return ""
	}
	return p.args[0][strings.LastIndexByte(p.args[0], '/')+1:]
}

// greetDelay is the delay that the environment asks for.
func (o *options) greetDelay(p *process) time.Duration {
	value, ok := p.getenv("GREETDELAY")
	if !ok || value == "" {
		return 0
	}
	return o.seconds("$GREETDELAY", value)
}

// seconds reads a number of seconds as rblsmtpd does: the digits that the value
// begins with, none being zero. Anything else is noted; it has never stopped
// mail, and must not.
func (o *options) seconds(what, value string) time.Duration {
	const most = 1 << 31
	digits := 0
	for digits < len(value) && value[digits] >= '0' && value[digits] <= '9' {
		digits++
	}
	n := uint64(0)
	if digits > 0 {
		var err error
		if n, err = strconv.ParseUint(value[:digits], 10, 64); err != nil || n > most {
			n = most
		}
	}
	if digits < len(value) || digits == 0 {
		o.notes = append(o.notes, what+" "+strconv.Quote(value)+": not a number of seconds, taken as "+strconv.FormatUint(n, 10))
	}
	return time.Duration(n) * time.Second
}
