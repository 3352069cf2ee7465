package differential

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// runID stands in a zone's name for something that is another in every run of a
// program.
const runID = "RUNIDRUN" // as long as what stands in its place

// zone is a zone of the lab's DNS server, and how often it is chosen.
type zone struct {
	name   string
	weight int
}

// quickZones are those that both programs get through in no time.
var quickZones = []zone{
	{"list.test", 60}, {"textonly.test", 15}, {"textnoname.test", 5}, {"records.test", 12}, {"strings.test", 12},
	{"long.test", 8}, {"exact199.test", 3}, {"exact200.test", 3}, {"exact201.test", 3}, {"big.test", 6},
	{"binary.test", 8}, {"control.test", 8}, {"utf8.test", 4}, {"alias1.test", 6}, {"alias4.test", 6}, {"alias12.test", 4},
	{"uppercase.test", 4}, {"otherowner.test", 4}, {"mixed.test", 6}, {"uncompressed.test", 4}, {"notauthority.test", 2},
	{"codes.test", 4}, {"pieces.test", 3}, {"tcp.test", 6}, {"large.test", 3}, {"partial.test", 4}, {"twice.test", 4},
	{runID + ".once.test", 8}, {"secondid.test", 4}, {"secondquestion.test", 4}, {"secondnone.test", 4},
	{"secondport.test", 4}, {"secondaddr.test", 4}, {"secondgarbage.test", 4}, {"secondshort.test", 4}, {"slow20.test", 2},

	{"noname.test", 60}, {"nodata.test", 20}, {"addressonly.test", 10}, {"emptytext.test", 10}, {"emptystrings.test", 5},
	{"aliasnoname.test", 5}, {"aliasloop.test", 4}, {"class.test", 4}, {"type.test", 4}, {"authority.test", 4},
	{"additional.test", 4}, {"nordata.test", 4}, {"slownot20.test", 2}, {"not.among.the.zones", 10},

	{"tcpclosed.test", 20}, {"tcphalf.test", 5}, {"tcplength.test", 5}, {"tcptruncated.test", 5}, {"tcpid.test", 5},
	{"tcpquestion.test", 5}, {"tcpfailure.test", 5}, {"tcpempty.test", 3}, {"half.test", 8}, {"halfheader.test", 4},
	{"count.test", 5}, {"rdlength.test", 5}, {"garbagerest.test", 5}, {"badlabel.test", 5},

	{"code252.test", 5}, {"code254.test", 8}, {"code255.test", 5}, {"code1.test", 3}, {"codemixed.test", 5},
	{"wildcard.test", 8}, {"wildcardaddr.test", 5}, {"wildcardtext.test", 5}, {"testaddr.test", 5}, {"testparked.test", 3}, {"testtext.test", 4},
	{"testcode.test", 4}, {"testfailure.test", 4}, {"parked.test", 6}, {"parkedaddr.test", 5}, {"parkedlist.test", 4},
	{"nonamelisting.test", 4}, {"stringlength.test", 4}, {"pointer.test", 4}, {"pointerself.test", 4}, {"trailing.test", 4},
	{"addresslength.test", 3}, {"huge.test", 3}, {"textfailure.test", 5}, {"texttcpclosed.test", 5}, {"textparked.test", 5},
}

// slowZones keep the reference waiting for eleven seconds, verySlowZones for a
// minute; or they keep the filter waiting.
var (
	slowZones = []zone{
		{"failure.test", 3}, {"refused.test", 2}, {"format.test", 2}, {"notimplemented.test", 1}, {"failurelisting.test", 1},
		{"slow2000.test", 2},
	}
	verySlowZones = []zone{
		{"silent.test", 4}, {"id.test", 1}, {"question.test", 1}, {"noquestion.test", 1}, {"port.test", 1}, {"addr.test", 1},
		{"garbage.test", 1}, {"short.test", 1}, {"oversize.test", 1}, {"empty.test", 1}, {"tcpsilent.test", 1},
		{"query.test", 3}, {"echo.test", 1}, {"textsilent.test", 1}, {"slow12000.test", 4}, {"testsilent.test", 2},
	}
)

func isIn(zones []zone, name string) bool {
	for _, z := range zones {
		if z.name == name {
			return true
		}
	}
	return false
}

// generator makes a case. The same seed and number make the same one.
type generator struct {
	*rand.Rand
	c *testCase
}

func generate(seed uint64, number int) *testCase {
	g := &generator{rand.New(rand.NewPCG(seed, uint64(number))), &testCase{seed: seed, number: number}}
	g.commandLine()
	g.conversation()
	g.environment()
	g.process()
	return g.c
}

// percent is true in p of a hundred cases.
func (g *generator) percent(p float64) bool { return g.Float64()*100 < p }

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

func (g *generator) zoneOf(zones []zone) string {
	sum := 0
	for _, z := range zones {
		sum += z.weight
	}
	n := g.IntN(sum)
	for _, z := range zones {
		if n -= z.weight; n < 0 {
			return z.name
		}
	}
	panic("unreachable")
}

// commandLine makes options, and the next program.
func (g *generator) commandLine() {
	c := g.c
	c.name = "rblsmtpd"
	if g.percent(5) {
		c.name = pick(g, "/usr/local/bin/rblsmtpd", "", "/", "x/y", "./", "a b", "\xff\x01")
	}
	patient := true // no source yet that takes time
	for range pick(g, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 8) {
		o := option{clusters: g.percent(60), attached: g.percent(40)}
		switch n := g.IntN(100); {
		case n < 45:
			o.letter, o.takes = 'r', true
			o.value = g.zone(&patient)
		case n < 57:
			o.letter, o.takes = 'a', true
			if o.value = g.zone(&patient); g.percent(1) {
				o.value = pick(g, "7", "127", "1.2.3")
			}
		case n < 70:
			o.letter = 'b'
		case n < 74:
			o.letter = 'B'
		case n < 84:
			o.letter = 'c'
		case n < 88:
			o.letter = 'C'
		case n < 96:
			o.letter, o.takes = 't', true
			// Nothing that is over on a busy machine before the client is.
			o.value = pick(g, "0", "0", "60", "100", "0060", "90x", "abc", "", "-1", "+5", " 5", "100.5", "50\n",
				"4294967295", "4294967298", "18446744073709551616", "0x10", "\xff")
		case n < 99:
			if o.letter = pick[byte](g, 'v', 's'); !patient {
				// One after the other, and too late for the last ones.
				o.letter = 'v'
			}
			if g.percent(20) {
				o.letter, o.takes, o.value = 'T', true, "10"
			}
			if g.percent(20) {
				o.letter, o.takes, o.value = 'w', true, "0"
			}
			if g.percent(10) {
				o.letter, o.takes, o.value = 'W', false, ""
			}
		default:
			o.letter = pick[byte](g, 'x', 'R', 'A', 'V', '?', ':', '-', '=', '0', '"', 0x80, 0xff, '\n')
			if o.letter == '-' {
				o.letter = 'z' // "--" alone is something else
			}
		}
		c.options = append(c.options, o)
	}
	if g.percent(15) {
		c.end = "--"
	}
	g.prog()
	if g.percent(1.5) {
		// An option whose value is missing is the last thing there is.
		c.options = append(c.options, option{letter: pick[byte](g, 'r', 'a', 't'), takes: true, missing: true, clusters: g.percent(50)})
		c.end, c.prog = "", nil
	} else if g.percent(1.5) {
		c.prog = nil
	}
}

// zone makes the value of an option that names a source.
func (g *generator) zone(patient *bool) string {
	switch {
	case *patient && g.percent(0.4) && !g.c.hasOption('s'):
		*patient = false
		return g.zoneOf(verySlowZones)
	case *patient && g.percent(1.2):
		*patient = false
		return g.zoneOf(slowZones)
	case g.percent(2):
		return g.oddZone()
	}
	name := g.zoneOf(quickZones)
	switch {
	case g.percent(2):
		name += "."
	case g.percent(2) && !strings.Contains(name, runID):
		name = strings.ToUpper(name)
	case g.percent(2):
		name = "below." + name
	case g.percent(2):
		// Of a length at which names begin to be too long.
		for want := 253 - 16 + g.IntN(20); len(name) < want; {
			n := min(want-len(name), 64)
			if n < 2 {
				break
			}
			name = strings.Repeat("l", n-1) + "." + name
		}
	case g.percent(2):
		name = g.message(name)
	}
	return name
}

// message makes of a zone one whose message is given.
func (g *generator) message(name string) string {
	return name + pick(g, ":", ":a message", ":listed: see http://test/?%IP%", ":\x01\xff\r\n", ":"+strings.Repeat("m", 80))
}

// oddZone makes something that is no zone, or none that anybody would use.
func (g *generator) oddZone() string {
	return pick(g, "", ".", "..", ".list.test", "list..test", "list.test..", "a b.list.test", "list\\056test", "\\154ist.test",
		"\xff.list.test", "li$t.test", "list.test\n", strings.Repeat("a", 63)+".list.test", strings.Repeat("a", 64)+".list.test",
		strings.Repeat("abcdefg.", 40)+"list.test", strings.Repeat("a.", 200)+"list.test", "7", "127", "1.2.3", "[7]", "test", "-", "--", "-b", "_dnsbl.list.test")
}

// prog makes the next program. Nearly always it is one that tells what it got.
func (g *generator) prog() {
	c := g.c
	switch n := g.IntN(100); {
	case n < 90:
		c.prog = dumpProg()
		if g.percent(20) {
			c.prog[0] = "/bin/cat"
		}
		for g.percent(20) {
			c.prog = append(c.prog, pick(g, "", " ", "a b", "-u", "--", "$HOME", "\xff\xfe", "a\nb", "-r", "'\"\\", "no/such/file", strings.Repeat("n", 5000)))
		}
	case n < 94:
		c.prog = []string{pick(g, "true", "/bin/false", "/usr/bin/true"), "-r", "x"}
	default:
		c.prog = []string{pick(g, "", "/", "-", "no-such-program", "/no/such/program", "./noexec/cat", "./noformat/cat", "./dir", "dir/cat",
			"here", "here/x", "/dev/null", "x\xff\n", strings.Repeat("n", 300), "./"+strings.Repeat("n", 300), strings.Repeat("d/", 3000))}
	}
}

// environment makes the environment.
func (g *generator) environment() {
	c := g.c
	if g.percent(1) {
		return
	}
	add := func(name, value string) { c.env = append(c.env, name+"="+value) }

	// What stands in front of everything counts first.
	if g.percent(4) {
		add(pick(g, "RBLSMTPD", "TCPREMOTEIP", "TCPREMOTEHOST", "PATH"), pick(g, "", "-first", "first", "192.0.2.77"))
	}
	for g.percent(10) {
		c.env = append(c.env, pick(g, "", "=", "=x", "NOEQUALS", "RBLSMTPD", "TCPREMOTEIP", "RBLSMTPDX=1", "XRBLSMTPD=1", "rblsmtpd=1",
			"\xff=\xfe", "A=b=c", "A=1", "A=2", "A", "RBLNFT_=x", "LONG="+strings.Repeat("v", 20000)))
	}
	// What the Go runtime would do something about.
	if g.percent(5) {
		c.env = append(c.env, pick(g, "GODEBUG=gctrace=1", "GODEBUG=schedtrace=1", "GOGC=1", "GOGC=x", "GOMAXPROCS=64", "GOMEMLIMIT=1", "GOTRACEBACK=crash", "GODEBUG=netdns=go+2"))
	}

	switch {
	case g.percent(86), c.waits():
		add("DNSCACHEIP", "127.0.0.1")
	case g.percent(30):
	default:
		add("DNSCACHEIP", pick(g, "", "127.0.0.1.", "..127.0.0.1", "127.0.0.1.127.0.0.1", absentServer+"."+"127.0.0.1", absentServer+"..127.0.0.1",
			"127.0.0.1.x", "127.0.0.1.127", "x", "127.0.0", "...", "127.0.0.1."+systemServer, systemServer, failingServer+".127.0.0.1",
			farServer, barredServer, farServer+"."+barredServer, farServer+".127.0.0.1", barredServer+".127.0.0.1", farServer+"."+barredServer+"."+absentServer+".127.0.0.1"))
	}

	switch n := g.IntN(100); {
	case n < 75:
		add("TCPREMOTEIP", pick(g, "192.0.2.1", "192.0.2.255", "1.2.3.4", "255.255.255.255", "127.0.0.2", "10.0.0.1"))
	case n < 85:
		add("TCPREMOTEIP", pick(g, "2001:db8::1", "::1", "2001:DB8:0:0:0:0:0:1", "::ffff:192.0.2.1", "::FFFF:192.0.2.1", "::ffff:10.0.0.1", "fe80::1", "::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"))
	case n < 90:
		add("TCPREMOTEIP", pick(g, "", "0", "1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", "1.2.3.4.", ".1.2.3.4", "1..2.3.4", " 1.2.3.4", "1.2.3.4 ", "1.2.3.4\n",
			"unknown", "::g", "1.2.3.4/32", "\x1b[31m", "\xff", "1.2.3.4:25", strings.Repeat("1.", 200), strings.Repeat("a", 100)))
	default: // not set
	}
	if g.percent(10) {
		add("PROTO", pick(g, "TCP", "TCP", "TCP6", "TCP6", "", "tcp6", "UDP"))
	}
	if g.percent(6) {
		add("TCP6REMOTEIP", pick(g, "2001:db8::6", "::ffff:192.0.2.6", "192.0.2.6", "", "x"))
	}
	for _, name := range []string{"TCPREMOTEHOST", "TCPREMOTEINFO", "TCPLOCALIP", "TCPLOCALPORT", "TCPREMOTEPORT", "TCP6REMOTEHOST"} {
		if g.percent(40) {
			add(name, pick(g, "", "host.test", "a b", "\xff", "-", "line\nbreak", strings.Repeat("h", 300)))
		}
	}
	if g.percent(18) {
		add("RBLSMTPD", pick(g, "", "", "blocked", "-blocked", "-", "--", "- ", " ", "0", "553 x", "a\nb\rc", "-\x00"[:1]+"\xff\x7f\x1f~ ",
			strings.Repeat("x", 199), strings.Repeat("x", 200), strings.Repeat("x", 201), "-"+strings.Repeat("x", 201), strings.Repeat("long ", 4000), "%IP% %s %n"))
	}
	if g.percent(3) {
		add("GREETDELAY", pick(g, "", "0"))
	}

	switch {
	case g.percent(90):
		add("RBLNFT_SOCKET", "")
	case g.percent(40):
		add("RBLNFT_SOCKET", pick(g, "no/such/socket", "here", strings.Repeat("s", 200)))
	default: // the one of a running daemon, of which there is none here
	}

	if g.percent(93) {
		add("PATH", "/usr/bin:/bin")
	} else if g.percent(60) {
		add("PATH", pick(g, "", ":", "::", "/", "/no/such:/usr/bin", "noexec:/bin", "noexec:/no/such", "noformat:/bin", "dir:/bin", "dir", "here:/bin", ":/bin", "/bin:", "/usr/bin/", "."))
	}
	if g.percent(5) {
		add("TCPREMOTEIP", "192.0.2.88") // a second one does not count
	}
	if g.percent(3) {
		add("RBLSMTPD", "a second one")
	}
}

var verbs = []string{"helo", "ehlo", "mail", "rcpt", "data", "rset", "noop", "quit", "vrfy", "expn", "help", "auth", "starttls", "bdat"}

// line makes one line of a client's, or something like one.
func (g *generator) line() string {
	verb := pick(g, verbs...)
	switch {
	case verb == "quit" && g.percent(60):
		verb = "rcpt"
	case g.percent(3):
		verb = pick(g, "", " ", "\t", "quitx", "qui", "q", "mai l", "mail:", "MAILX", "\x00quit", "quit\x00", "quit\t", "helo\x00x", "\xffquit", "quıt", "@[`{", ".", "quit\r", "hElo\x01")
	}
	switch g.IntN(4) {
	case 0:
		verb = strings.ToUpper(verb)
	case 1:
		verb = strings.ToUpper(verb[:min(1, len(verb))]) + verb[min(1, len(verb)):]
	}
	argument := pick(g, "", "", " x.test", " FROM:<a@b.test>", " TO:<c@d.test>", " ", "  two  spaces ", "\tx", " \x00", " "+strings.Repeat("y", 70), " \r", "\rx")
	end := pick(g, "\r\n", "\r\n", "\r\n", "\n", "\n", "\r\r\n", "\x00\n", " \r\n")
	return verb + argument + end
}

func (g *generator) conversation() {
	cl := &g.c.client
	cl.transport = pick(g, "socket", "socket", "socket", "socket", "tcp", "tcp", "pipes", "null")
	var text strings.Builder
	for range pick(g, 0, 1, 2, 3, 4, 5, 6, 8, 12) {
		text.WriteString(g.line())
	}
	if g.percent(20) {
		text.WriteString(pick(g, "quit", "QUIT\r", "helo x", "x", "\r", "\x00"))
	}
	said := text.String()
	add := func(do, data string, lines int) { cl.script = append(cl.script, event{do, data, lines}) }
	if cl.transport == "tcp" {
		// What a program has not read when it ends destroys what it wrote.
		said = strings.ReplaceAll(strings.ToLower(said), "quit", "quip")
		add("greeted", "", 0)
	}
	end := "shut"
	switch n := g.IntN(100); {
	case n < 55: // everything at once
		add("send", said, 0)
	case n < 67: // a reply for each line
		lines := 1
		for line := range strings.SplitAfterSeq(said, "\n") {
			add("await", "", lines)
			add("send", line, 0)
			if lines++; strings.HasPrefix(strings.ToLower(line), "quit") {
				break
			}
		}
	case n < 77 && cl.transport == "socket":
		add("await", "", 1)
		add("split", said[:min(len(said), 100)], 0)
	case n < 80:
		add("send", said, 0)
		add("send", strings.Repeat(pick(g, "x", "\x00", "quit ", "\r", " "), 1<<20)[:1<<20]+"\r\nnoop\r\n", 0)
	case n < 82:
		add("send", strings.Repeat("noop\r\nrcpt to:<a@b>\r\n", 3000), 0)
	case n < 88:
		add("await", "", 1)
		end = "close"
		if cl.transport == "tcp" && g.percent(50) {
			end = "reset"
		}
	case n < 92:
		if cl.transport == "socket" {
			add("send", said, 0)
			end = "close"
		}
	case n < 93:
		end = "wait"
		add("send", strings.ReplaceAll(said, "\n", " "), 0)
		timeout := option{letter: 't', takes: true, value: "1"}
		g.c.options = slices.DeleteFunc(g.c.options, func(o option) bool { return o.letter == 't' && !o.missing })
		g.c.options = slices.Insert(g.c.options, 0, timeout)
	default: // nothing at all
	}
	add(end, "", 0)
}

// process makes what a process is given besides all that.
func (g *generator) process() {
	c := g.c
	if g.percent(8) {
		for g.percent(70) || len(c.extra) == 0 {
			c.extra = append(c.extra, 3+g.IntN(8))
		}
	}
	switch {
	case g.percent(8):
		for fd := range 3 {
			if g.percent(45) {
				c.closed = append(c.closed, fd)
			}
		}
		if len(c.closed) > 0 && len(c.prog) > 20 {
			c.prog = foundProg(c)
		}
		if slices.Contains(c.closed, 1) {
			// The client hears nothing, and so has nothing to wait for.
			last := c.client.script[len(c.client.script)-1]
			if last.do != "wait" {
				last.do = "shut"
			}
			c.client.script = []event{last}
			if c.client.transport != "tcp" {
				c.client.script = []event{{do: "send", data: "helo x\r\nrcpt x\r\n"}, last}
			}
		}
	case g.percent(12):
		c.name = "rblsmtpd"
		if g.percent(60) {
			c.launch = append(c.launch, "/usr/bin/prlimit")
			for _, limit := range []struct {
				name   string
				values []string
			}{
				{"as", []string{"20000000:", "50000000:", "1000000000:2000000000"}},
				{"data", []string{"20000000:", "100000000:"}},
				{"stack", []string{"9000000:", "1000000:8000000"}},
				{"nofile", []string{"20:", "64:", "64:64", "1024:4096", "300:300"}},
				{"core", []string{"0:", "0:0", "1000:"}},
				{"fsize", []string{"1000000000:", "2000000000:2000000000"}},
				{"cpu", []string{"100:", "100:200"}},
				{"memlock", []string{"0:", "65536:65536"}},
				{"nproc", []string{"5000:", "4000:4000"}},
				{"sigpending", []string{"500:"}},
			} {
				if g.percent(35) {
					c.launch = append(c.launch, "--"+limit.name+"="+pick(g, limit.values...))
				}
			}
		}
		if g.percent(25) {
			c.launch = append(c.launch, "/usr/bin/softlimit", "-m", pick(g, "9000000", "12000000", "30000000"))
		}
		if g.percent(60) {
			c.launch = append(c.launch, "/usr/bin/env")
			some := func() string {
				names := []string{"HUP", "INT", "QUIT", "USR1", "USR2", "PIPE", "TERM", "CHLD", "TSTP", "URG", "WINCH", "PROF", "ALRM", "RTMIN", "IO", "SYS"}
				g.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
				return strings.Join(names[:1+g.IntN(6)], ",")
			}
			if g.percent(70) {
				c.launch = append(c.launch, "--ignore-signal="+some())
			}
			if g.percent(70) {
				blocked := some()
				if c.client.script[len(c.client.script)-1].do == "wait" {
					// Without it the reference never stops waiting.
					blocked = strings.ReplaceAll(blocked, "ALRM", "VTALRM")
				}
				c.launch = append(c.launch, "--block-signal="+blocked)
			}
		}
		if g.percent(20) && c.plainEnv() {
			c.launch = append(c.launch, "/usr/bin/perl", "-e", fmt.Sprintf("umask 0%o; exec {$ARGV[0]} @ARGV", g.IntN(512)))
		}
	}
}
