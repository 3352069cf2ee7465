//go:build linux

// Rblsmtpd runs between tcpserver(1) and an SMTP server: it asks DNS block
// lists about the client, gives a listed one a small SMTP conversation that
// rejects every message, and reports it to rblnftd(8); for any other client it
// runs the next program. It is a drop-in for the program of the same name in
// ucspi-tcp.
package main

import (
	"net/netip"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"rblnft/dnsbl"
	"rblnft/dnsbl/resolver"
	"rblnft/firewall/hit"
	"rblnft/smtpreply"
)

const fatal = "rblsmtpd: fatal: "

func main() {
	p, ok := started()
	if !ok {
		die(111, fatal+"not built with its entry point: use go run ./cmd/setup build\n")
	}
	resetSignals()
	o, problem := parse(p)
	if problem != "" || o.prog >= len(p.args) {
		die(100, problem+usage)
	}
	c := newClient(p)

	decision, decided := decideFromEnv(p)
	if !decided {
		var err error
		if decision, err = decideFromLists(p, o, c); err != nil {
			if o.verbose {
				c.note("client gone before the decision")
			}
			syscall.Exit(0)
		}
	}
	for _, note := range o.notes {
		c.note(note)
	}

	if decision.Verdict == dnsbl.Block {
		line := smtpreply.ErrorLine(decision.Bounce, decision.Text)
		c.logBlock(line, o.verbose && !o.reportOnly)
		if !o.reportOnly {
			reject(p, o, c, decision, line)
			syscall.Exit(0)
		}
		if !decided {
			p.setenv("RBLSMTPD", forProg(decision))
		}
	}

	p.run(o.prog)
}

// decideFromEnv decides as $RBLSMTPD says, if it says anything: empty, the
// client may pass; otherwise it is the text of a block, and a hyphen before it
// asks for code 553.
func decideFromEnv(p *process) (d dnsbl.Decision, decided bool) {
	text, ok := p.getenv("RBLSMTPD")
	switch {
	case !ok:
		return dnsbl.Decision{}, false
	case text == "":
		return dnsbl.Decision{Verdict: dnsbl.Pass}, true
	case text[0] == '-':
		return dnsbl.Decision{Verdict: dnsbl.Block, Bounce: true, Text: text[1:]}, true
	}
	return dnsbl.Decision{Verdict: dnsbl.Block, Text: text}, true
}

// forProg is the text of a listing as another rblsmtpd takes it from $RBLSMTPD:
// what the list has to say decides neither the code nor, by being empty, that
// the client may pass.
func forProg(d dnsbl.Decision) string {
	if text := strings.TrimLeft(smtpreply.Printable(d.Text), "-"); text != "" {
		return text
	}
	return "listed by " + smtpreply.Printable(d.Zone)
}

// decideFromLists decides as the sources say. A client whose address is not known is
// not looked up: no list can know it either. The error means that the client
// is gone.
func decideFromLists(p *process, o *options, c *client) (dnsbl.Decision, error) {
	steps := o.steps
	if !c.addr.IsValid() {
		steps = nil
		for _, s := range o.steps {
			if s.Source == nil {
				steps = append(steps, s)
			}
		}
		if len(steps) < len(o.steps) {
			o.notes = append(o.notes, c.problem+": not looked up")
		}
	}
	if len(steps) == 0 {
		return dnsbl.Decision{Verdict: dnsbl.Pass}, nil
	}
	var servers []netip.Addr
	for _, s := range steps {
		if s.Source != nil { // and not a greet delay
			servers = dnsServers(p, c.note)
			break
		}
	}
	l := &lookups{
		dns:      resolver.New(servers),
		left:     o.lookups,
		pregreet: func() { c.note("client speaks before the greeting") },
	}
	d, err := dnsbl.Decide(l, c.addr, steps, o.oneByOne, func(zone, what string, detail bool) {
		if !detail || o.verbose {
			c.note(zone + ": " + what)
		}
	})
	l.dns.Close()
	return d, err
}

// dnsServers returns the servers to ask: those in $DNSCACHEIP, else the system's.
// Without any every lookup fails at once.
func dnsServers(p *process, note func(string)) []netip.Addr {
	if text, ok := p.getenv("DNSCACHEIP"); ok && text != "" {
		if servers := resolver.CacheServers(text); len(servers) > 0 {
			return servers
		}
		note("$DNSCACHEIP " + strconv.Quote(text) + ": no IP address; asking the servers in resolv.conf")
	}
	servers, err := resolver.SystemServers()
	if err != nil {
		note("/etc/resolv.conf: " + err.Error() + "; nothing is looked up")
	}
	return servers
}

// reject holds the conversation, and meanwhile reports a listing to the daemon.
func reject(p *process, o *options, c *client, d dnsbl.Decision, line string) {
	r := &report{client: c}
	if d.Zone != "" {
		r.start(p, hit.Hit{Addr: c.addr, Zone: d.Zone, Code: d.Code, Answer: line})
	}
	endOnAlarm()
	smtpreply.New(line).Serve(0, 1, o.timeout, r)
	r.finish()
}

// client is who is at the other end, as tcp-environ(5) has it.
type client struct {
	ip      string // as it is logged
	host    string
	info    string
	addr    netip.Addr // invalid if not known
	problem string     // why
}

// newClient reads the environment that tcpserver made. Under a server that
// knows IPv6, $PROTO is TCP6 and the variables are named $TCP6REMOTE….
func newClient(p *process) *client {
	proto := "TCP"
	if name, _ := p.getenv("PROTO"); name == "TCP6" {
		if _, ok := p.getenv("TCP6REMOTEIP"); ok {
			proto = name
		}
	}
	get := func(name string) string {
		value, _ := p.getenv(proto + name)
		return smtpreply.Printable(value)
	}
	ip, ok := p.getenv(proto + "REMOTEIP")
	c := &client{ip: smtpreply.Printable(ip), host: get("REMOTEHOST"), info: get("REMOTEINFO")}
	addr, err := netip.ParseAddr(ip)
	switch {
	case !ok:
		c.problem = "$" + proto + "REMOTEIP is not set"
	case err != nil:
		c.problem = "$" + proto + "REMOTEIP is no IP address"
	default:
		c.addr = addr.Unmap().WithZone("")
	}
	return c
}

// prefix is what every line about the client begins with.
func (c *client) prefix() string {
	return "rblsmtpd: " + c.ip + " pid " + strconv.Itoa(syscall.Getpid()) + ": "
}

// note logs one line, if that can be done at once. rblsmtpd has nothing to say of
// a client that may pass: neither a log that nobody reads nor one that has grown
// to the limit of a file's size stops mail.
func (c *client) note(what string) {
	log := [...]unix.PollFd{{Fd: 2, Events: unix.POLLOUT}}
	if ppoll(log[:], 0) == nil && log[0].Revents == 0 {
		return
	}
	setSignal(tooLarge, true)
	writeLog(c.prefix() + smtpreply.Printable(what) + "\n")
	setSignal(tooLarge, savedIgnored&(1<<tooLarge) != 0)
}

// logBlock logs that the client is blocked, and with what line.
func (c *client) logBlock(line string, verbose bool) {
	text := c.prefix() + line + "\n"
	if verbose {
		text += "rblsmtpd: blocked " + word(c.ip) + " " + word(c.host) + " " + word(c.info) + "\n"
	}
	writeLog(text)
}

// word makes one field of a log line of s.
func word(s string) string {
	if s == "" {
		return "-"
	}
	b := []byte(s)
	for i := range b {
		if b[i] == ' ' {
			b[i] = '?'
		}
	}
	return string(b)
}

// writeLog writes to descriptor 2, at once if that is possible.
func writeLog(text string) {
	for b := []byte(text); len(b) > 0; {
		n, err := unix.Write(2, b)
		if err != nil && err != unix.EINTR {
			return
		}
		b = b[max(n, 0):]
	}
}

func die(code int, text string) {
	writeLog(text)
	syscall.Exit(code)
}
