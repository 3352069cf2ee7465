package differential

import (
	"math/big"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"rblnft/dnsbl/dnsbltest"
)

// A difference is one that is meant: where the filter does not do what
// rblsmtpd does.
type difference struct {
	name   string
	row    string // of the README's table, by its first column
	reason string
	// applies reports whether there is this difference in a case.
	applies func(c *testCase) bool
	// instead changes the case into one in which rblsmtpd does what the
	// filter does in the case given.
	instead func(c *testCase)
	// expect changes what rblsmtpd did into what the filter does, and
	// returns the lines that the filter adds to the log.
	expect func(c *testCase, r *result) []note
}

// note is a line that the filter adds to the log: it begins as all lines about
// a client do, and contains these texts.
type note struct {
	contains []string
	optional bool
}

var differences = []difference{
	{
		name:    "usage",
		row:     "options",
		reason:  "the usage names the options that rblsmtpd does not have",
		applies: (*testCase).malformed,
		expect: func(c *testCase, r *result) []note {
			r.stderr = strings.Replace(r.stderr, "rblsmtpd: usage: rblsmtpd [ -b ] [ -R ] [ -t timeout ] [ -r base ] [ -a base ] smtpd [ arg ... ]\n",
				"rblsmtpd: usage: rblsmtpd [ -bBcCisvW ] [ -t seconds ] [ -T seconds ] [ -w seconds ] [ -r base[=codes][:message] ] [ -a base ] smtpd [ arg ... ]\n", 1)
			return nil
		},
	},
	{
		name:   "more options",
		row:    "options",
		reason: "-v, -s, -T, -w and -W are the successors' and our own; -v adds to the log, the others change when things happen",
		applies: func(c *testCase) bool {
			return slices.ContainsFunc(c.options, func(o option) bool { return strings.ContainsRune(ownOptions, rune(o.letter)) })
		},
		instead: func(c *testCase) {
			c.options = slices.DeleteFunc(c.options, func(o option) bool { return strings.ContainsRune(ownOptions, rune(o.letter)) })
		},
		expect: func(c *testCase, r *result) []note {
			if !c.verbose() {
				return nil
			}
			if line := blockLine.FindString(r.stderr); line != "" {
				host, info := c.hostAndInfo()
				ip, _ := c.ip()
				r.stderr = strings.Replace(r.stderr, line, line+"rblsmtpd: blocked "+word(ip)+" "+word(host)+" "+word(info)+"\n", 1)
			}
			var notes []note
			for _, s := range c.sources() {
				notes = append(notes, note{[]string{zoneOf(s) + ": "}, true})
			}
			return append(notes, note{[]string{"client gone"}, true})
		},
	},
	{
		name:   "fixed message",
		row:    "options",
		reason: "-r base:message is the successors': it asks for an A record, and gives the message",
		applies: func(c *testCase) bool {
			return slices.ContainsFunc(c.sources(), hasMessage)
		},
		instead: func(c *testCase) {
			replaceSources(c, func(o option) string {
				if !hasMessage(o) {
					return o.value
				}
				zone, message, _ := strings.Cut(o.value, ":")
				name := baseName(zone)
				switch {
				case slices.Contains(addressLists, name):
					ip, _ := c.ip()
					if addr, err := netip.ParseAddr(ip); err == nil {
						ip = addr.Unmap().WithZone("").String()
					}
					if message == "" {
						message = emptyMessage
					}
					return dnsbltest.Saying(strings.ReplaceAll(message, "%IP%", ip), "say.test")
				case slices.Contains(noAddress, name):
					return "noname.test"
				}
				return zone // as its text is
			})
		},
		expect: func(c *testCase, r *result) []note {
			r.client = strings.ReplaceAll(r.client, emptyMessage, "")
			r.stderr = strings.ReplaceAll(r.stderr, emptyMessage, "")
			return nil
		},
	},
	{
		name:    "no address",
		row:     "`$TCPREMOTEIP` missing or malformed",
		reason:  "$TCPREMOTEIP missing or malformed is not looked up; rblsmtpd asks for names that mean nothing, or for the zone itself",
		applies: func(c *testCase) bool { return c.asks() && !c.validIP() },
		instead: withoutSources,
		expect: func(c *testCase, r *result) []note {
			return []note{{[]string{"not looked up"}, false}}
		},
	},
	{
		name:   "no server",
		row:    "`$DNSCACHEIP` without an address in it",
		reason: "a $DNSCACHEIP with no address in it is said in the log; both ask the servers in resolv.conf",
		applies: func(c *testCase) bool {
			server, _ := c.getenv("DNSCACHEIP")
			return slices.Contains([]string{"x", "...", "127.0.0"}, server) && c.asks() && c.validIP()
		},
		expect: func(c *testCase, r *result) []note {
			return []note{{[]string{"$DNSCACHEIP", "no IP address"}, false}}
		},
	},
	{
		name:   "unprintable address",
		row:    "unprintable bytes in the environment",
		reason: "what is no printable ASCII never reaches the log",
		applies: func(c *testCase) bool {
			ip, _ := c.ip()
			return ip != printable(ip)
		},
		instead: func(c *testCase) {
			ip, _ := c.ip()
			c.setenv("TCPREMOTEIP", printable(ip))
		},
	},
	{
		name:   "TCP6",
		row:    "IPv4-mapped addresses, `$PROTO` TCP6",
		reason: "$PROTO and $TCP6REMOTEIP are ucspi-tcp6's",
		applies: func(c *testCase) bool {
			seen, _ := c.ip()
			own, _ := c.getenv("TCPREMOTEIP")
			return seen != own
		},
		instead: func(c *testCase) {
			ip, _ := c.ip()
			c.setenv("TCPREMOTEIP", printable(ip))
		},
	},
	{
		name:   "odd zone",
		row:    "zones that are no host names; of digits and dots alone",
		reason: "a zone that is no host name is an error of the command line, said in the log, and counts as a temporary failure",
		applies: func(c *testCase) bool {
			return slices.ContainsFunc(c.sources(), isOdd)
		},
		instead: func(c *testCase) { replaceZones(c, isOdd, "tcpclosed.test") },
		expect: func(c *testCase, r *result) []note {
			return sourceNotes(c, isOdd, ": zone")
		},
	},
	{
		name:   "numeric zone",
		row:    "zones that are no host names; of digits and dots alone",
		reason: "rblsmtpd takes a name of digits and dots alone for an IP address, without asking anybody (with -a 7 every client is allowed)",
		applies: func(c *testCase) bool {
			return c.asks() && c.validIP() && slices.ContainsFunc(c.sources(), isNumeric)
		},
		instead: func(c *testCase) { replaceZones(c, isNumeric, "noname.test") },
	},
	{
		name:   "long name",
		row:    "zones that are no host names; of digits and dots alone",
		reason: "a zone that leaves no room for the address is said in the log; the lookup fails in both",
		applies: func(c *testCase) bool {
			return slices.ContainsFunc(c.sources(), c.tooLong)
		},
		instead: func(c *testCase) { replaceZones(c, c.tooLong, "tcpclosed.test") },
		expect: func(c *testCase, r *result) []note {
			return sourceNotes(c, c.tooLong, "too long")
		},
	},
	{
		name:    "shorter name",
		row:     "IPv4-mapped addresses, `$PROTO` TCP6",
		reason:  "an IPv4-mapped address is asked for as IPv4 (RFC 4291, section 2.5.5.2), and leaves more room for the zone",
		applies: func(c *testCase) bool { return slices.ContainsFunc(c.sources(), c.shrinks) },
		instead: func(c *testCase) {
			replaceSources(c, func(o option) string {
				if c.shrinks(o) {
					return baseName(zoneOf(o))
				}
				return o.value
			})
		},
	},
	{
		name:    "error code",
		row:     "A record in 127.255.255.0/24",
		reason:  "an A record in 127.255.255.0/24 is a list's way to say that it does not answer; rblsmtpd takes it for a listing",
		applies: has(errorCodes...),
		instead: func(c *testCase) { replaceZones(c, named(errorCodes...), "tcpclosed.test") },
		expect: func(c *testCase, r *result) []note {
			return sourceNotes(c, named(errorCodes...), "127.255.255.")
		},
	},
	{
		name:    "address of no list",
		row:     "A record outside 127.0.0.0/8",
		reason:  "an A record outside 127.0.0.0/8 is no listing (RFC 5782, section 2.1), whatever text there is, and allows nobody; rblsmtpd asks for the text alone, or takes any address",
		applies: func(c *testCase) bool { return c.asks() && slices.ContainsFunc(c.sources(), isParked) },
		instead: func(c *testCase) { replaceZones(c, isParked, "noname.test") },
		expect: func(c *testCase, r *result) []note {
			return sourceNotes(c, isParked, "203.0.113.1")
		},
	},
	{
		name:    "list of everything",
		row:     "a list that lists 127.0.0.1",
		reason:  "a list that lists 127.0.0.1 lists everybody (RFC 5782, section 5); rblsmtpd does not ask",
		applies: func(c *testCase) bool { return c.asks() && slices.ContainsFunc(c.sources(), isSick) },
		instead: func(c *testCase) { replaceZones(c, isSick, "noname.test") },
		expect: func(c *testCase, r *result) []note {
			return sourceNotes(c, isSick, "lists 127.0.0.1")
		},
	},
	{
		name:    "malformed answer",
		row:     "answers that are malformed, over 16 KiB, or deny the name and have records",
		reason:  "an answer that cannot be read as RFC 1035 has it is a failure of the server; rblsmtpd passes over names and strings without reading them",
		applies: func(c *testCase) bool { return c.asks() && slices.ContainsFunc(c.sources(), isMalformed) },
		instead: func(c *testCase) { replaceZones(c, isMalformed, "tcpclosed.test") },
	},
	{
		name:    "answer too long",
		row:     "answers that are malformed, over 16 KiB, or deny the name and have records",
		reason:  "more than 16 KiB are not believed",
		applies: hasList("huge.test"),
		instead: func(c *testCase) {
			replaceZones(c, func(o option) bool { return o.letter == 'r' && named("huge.test")(o) }, "tcpclosed.test")
		},
	},
	{
		name:    "query for an answer",
		row:     "answers that are malformed, over 16 KiB, or deny the name and have records",
		reason:  "a message that does not say that it is an answer is none; rblsmtpd does not look",
		applies: has("query.test", "echo.test"),
		instead: func(c *testCase) { replaceZones(c, named("query.test", "echo.test"), "tcpclosed.test") },
	},
	{
		name:    "name that does not exist",
		row:     "answers that are malformed, over 16 KiB, or deny the name and have records",
		reason:  "such a name has no records, whatever the server adds to that (RFC 2308, section 2.1); rblsmtpd reads on",
		applies: has("nonamelisting.test"),
		instead: func(c *testCase) { replaceZones(c, named("nonamelisting.test"), "noname.test") },
	},
	{
		name:    "text without its address",
		row:     "TXT record",
		reason:  "a text lists only if the A record beside it can be asked for; rblsmtpd does not ask",
		applies: hasList("textfailure.test", "texttcpclosed.test", "textsilent.test"),
		instead: func(c *testCase) {
			replaceZones(c, named("textfailure.test", "texttcpclosed.test", "textsilent.test"), "tcpclosed.test")
		},
	},
	{
		name:    "deadline",
		row:     "lookups",
		reason:  "all lookups together have ten seconds; rblsmtpd waits for a minute for every single one",
		applies: has("slow12000.test"),
		instead: func(c *testCase) { replaceZones(c, named("slow12000.test"), "tcpclosed.test") },
	},
	{
		name:   "number too large",
		row:    "`-t` with what is no number, or over 2³¹",
		reason: "rblsmtpd computes modulo two to the power of 32 in the end, and takes 4294967296 seconds for none",
		applies: func(c *testCase) bool {
			return slices.ContainsFunc(c.options, isTooLarge)
		},
		instead: func(c *testCase) {
			for i, o := range c.options {
				if isTooLarge(o) {
					c.options[i].value = "4000000000"
				}
			}
		},
	},
	{
		name:   "no number",
		row:    "`-t` with what is no number, or over 2³¹",
		reason: "what is no number is taken for what rblsmtpd takes it for, and the log says so",
		applies: func(c *testCase) bool {
			return !c.malformed() && slices.ContainsFunc(c.options, isNoNumber)
		},
		expect: func(c *testCase, r *result) []note {
			var notes []note
			for _, o := range c.options {
				if isNoNumber(o) {
					notes = append(notes, note{[]string{"-" + string(o.letter), "not a number"}, c.isGone()})
				}
			}
			return notes
		},
	},
	{
		name:    "client gone",
		row:     "client gone before the decision, or its half closed with nothing sent",
		reason:  "a client that is gone before the decision is no reason to go on; rblsmtpd runs the next program, or talks to nobody",
		applies: (*testCase).isGone,
		expect: func(c *testCase, r *result) []note {
			*r = result{exit: "exit 0"}
			return nil
		},
	},
	{
		name:   "client gone in the conversation",
		row:    "client gone in the conversation",
		reason: "the filter ends with 0 when it cannot write; rblsmtpd is killed by SIGPIPE, which tcpserver -v logs as if something were wrong",
		applies: func(c *testCase) bool {
			return c.client.transport == "socket" && c.client.script[len(c.client.script)-1].do == "close"
		},
		expect: func(c *testCase, r *result) []note {
			if r.exit == "signal 13" && (blockLine.MatchString(r.stderr) || slices.Contains(c.closed, 2)) {
				r.exit = "exit 0"
			}
			return nil
		},
	},
	{
		name:   "hit not reported",
		row:    "a listing that cannot be reported",
		reason: "a listing that cannot be reported to the daemon is said in the log, once",
		applies: func(c *testCase) bool {
			socket, ok := c.getenv("RBLNFT_SOCKET")
			return c.asks() && (!ok || socket != "")
		},
		expect: func(c *testCase, r *result) []note {
			line := blockLine.FindString(r.stderr)
			if line == "" || strings.HasSuffix(line, "451 temporary RBL lookup error\n") {
				return nil
			}
			return []note{{[]string{"hit not reported"}, false}}
		},
	},
}

const ownOptions = "vsTwW"

// emptyMessage stands for a message that is empty, which a TXT record cannot
// be.
const emptyMessage = "(no message)"

// blockLine is what both programs log about a client that is blocked.
var blockLine = regexp.MustCompile(`(?m)^rblsmtpd: .* pid PID: (451|553) .*\n`)

func (c *testCase) verbose() bool {
	return slices.ContainsFunc(c.options, func(o option) bool { return o.letter == 'v' })
}

func (c *testCase) hostAndInfo() (host, info string) {
	proto := "TCP"
	if p, _ := c.getenv("PROTO"); p == "TCP6" {
		if _, ok := c.getenv("TCP6REMOTEIP"); ok {
			proto = p
		}
	}
	host, _ = c.getenv(proto + "REMOTEHOST")
	info, _ = c.getenv(proto + "REMOTEINFO")
	return host, info
}

func printable(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < 32 || c > 126 {
			b[i] = '?'
		}
	}
	return string(b)
}

func word(s string) string {
	if s == "" {
		return "-"
	}
	return strings.ReplaceAll(printable(s), " ", "?")
}

// zoneOf is the zone of a source, without its message.
func zoneOf(o option) string {
	zone := o.value
	if o.letter == 'r' {
		zone, _, _ = strings.Cut(zone, ":")
	}
	return strings.TrimSuffix(zone, ".")
}

func hasMessage(o option) bool { return o.letter == 'r' && strings.Contains(o.value, ":") }

// baseName is the name in the server's zones that a zone means.
func baseName(zone string) string {
	zone = strings.ToLower(strings.TrimSuffix(zone, "."))
	labels := strings.Split(zone, ".")
	if len(labels) > 2 && labels[len(labels)-1] == "test" {
		labels = labels[len(labels)-2:]
	}
	return strings.Join(labels, ".")
}

func named(names ...string) func(option) bool {
	return func(o option) bool { return slices.Contains(names, baseName(zoneOf(o))) }
}

// has is for cases in which one of these zones is a source.
func has(names ...string) func(*testCase) bool {
	return func(c *testCase) bool { return c.asks() && slices.ContainsFunc(c.sources(), named(names...)) }
}

// hasList is for cases in which one of these zones is a source of option -r.
func hasList(names ...string) func(*testCase) bool {
	return func(c *testCase) bool {
		return c.asks() && slices.ContainsFunc(c.sources(), func(o option) bool { return o.letter == 'r' && named(names...)(o) })
	}
}

var errorCodes = []string{"code252.test", "code254.test", "code255.test", "code1.test", "codemixed.test"}

// isParked reports whether a source is a list whose address shows that it is
// none.
func isParked(o option) bool {
	return named("parked.test", "textparked.test")(o) || (hasMessage(o) || o.letter == 'a') && named("parkedaddr.test")(o)
}

// isSick reports whether a source is a list that lists 127.0.0.1, and would list
// every client.
func isSick(o option) bool {
	switch {
	case o.letter == 'a':
		return false
	case named("wildcard.test", "parkedlist.test", "testaddr.test", "testparked.test")(o):
		return true
	case hasMessage(o):
		return named("wildcardaddr.test")(o)
	}
	return named("wildcardtext.test")(o)
}

// isMalformed reports whether only the filter minds what is wrong with the
// answers of a zone.
func isMalformed(o option) bool {
	switch {
	case named("pointer.test", "pointerself.test")(o):
		return true
	case named("stringlength.test")(o):
		return o.letter == 'r' && !hasMessage(o)
	}
	return o.letter == 'a' && named("rdlength.test")(o)
}

func withoutSources(c *testCase) {
	c.options = slices.DeleteFunc(c.options, func(o option) bool { return o.letter == 'r' || o.letter == 'a' })
}

func replaceSources(c *testCase, by func(option) string) {
	for i, o := range c.options {
		if (o.letter == 'r' || o.letter == 'a') && !o.missing {
			c.options[i].value = by(o)
		}
	}
}

func replaceZones(c *testCase, which func(option) bool, by string) {
	replaceSources(c, func(o option) string {
		if which(o) {
			return by
		}
		return o.value
	})
}

// sourceNotes are the lines about the sources chosen. The first source of all
// is asked for sure; of the others it depends.
func sourceNotes(c *testCase, which func(option) bool, text string) []note {
	if !c.asks() {
		return nil
	}
	var notes []note
	for i, s := range c.sources() {
		if which(s) {
			notes = append(notes, note{[]string{text}, i > 0 || !c.validIP() || c.isGone() || c.isCutOff() && !isOdd(s) && !c.tooLong(s) || !isOdd(s) == (text == ": zone") || c.tooLong(s) != (text == "too long")})
		}
	}
	return notes
}

var hostName = regexp.MustCompile(`^([A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}$`)

func isOdd(o option) bool {
	zone := zoneOf(o)
	return !hostName.MatchString(zone) || len(zone) > 253
}

func isNumeric(o option) bool {
	return o.letter == 'a' && !isOdd(o) && strings.Trim(o.value, "0123456789.") == ""
}

// tooLong reports whether a zone leaves no room for the address.
func (c *testCase) tooLong(o option) bool {
	ip, _ := c.ip()
	addr, err := netip.ParseAddr(ip)
	if err != nil || isOdd(o) {
		return false
	}
	length := 64 // nibbles and dots
	if addr = addr.Unmap(); addr.Is4() {
		length = len(addr.String()) + 1
	}
	return length+len(zoneOf(o)) > 253
}

// shrinks reports whether a zone leaves room for the address only because the
// name has it in another form than the environment.
func (c *testCase) shrinks(o option) bool {
	ip, _ := c.ip()
	return c.validIP() && !isOdd(o) && !c.tooLong(o) && len(ip)+1+len(zoneOf(o)) > 253
}

func isTooLarge(o option) bool {
	n, ok := new(big.Int).SetString(leadingDigits(o.value), 10)
	return o.letter == 't' && ok && n.BitLen() > 32
}

func isNoNumber(o option) bool {
	return o.letter == 't' && (o.value == "" || leadingDigits(o.value) != o.value)
}

func leadingDigits(s string) string {
	end := 0
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	return s[:end]
}

// isGone reports whether the client is seen to be gone while something is
// looked up: it has closed its connection before anything else, or its half of
// it without having said anything.
func (c *testCase) isGone() bool {
	if !c.asks() || !c.validIP() || slices.Contains(c.closed, 0) || c.client.transport != "socket" && c.client.transport != "tcp" {
		return false
	}
	said := false
	for _, e := range c.client.script {
		switch e.do {
		case "send":
			said = said || e.data != ""
		case "close":
			return c.looksUp()
		case "shut":
			return !said && c.looksUp()
		default:
			return false
		}
	}
	return false
}

// isCutOff reports whether no server can be reached. Then every lookup has failed
// before the filter waits for anything.
func (c *testCase) isCutOff() bool {
	servers, _ := c.getenv("DNSCACHEIP")
	return slices.Contains([]string{farServer, barredServer, farServer + "." + barredServer}, servers)
}

// looksUp reports whether the filter waits for an answer.
func (c *testCase) looksUp() bool {
	if c.isCutOff() {
		return false
	}
	closed := false
	for _, o := range c.options {
		switch o.letter {
		case 'c':
			closed = true
		case 'C':
			closed = false
		case 'r', 'a':
			switch {
			case !isOdd(o) && !c.tooLong(o):
				return true
			case o.letter == 'r' && closed, o.letter == 'a' && !closed:
				return false // that was the decision
			}
		}
	}
	return false
}

// addressLists are the zones that have an A record in 127.0.0.0/8 for every
// address, and noAddress those of the lists that have none there.
var (
	addressLists = []string{"list.test", "records.test", "strings.test", "long.test", "exact199.test", "exact200.test", "exact201.test", "big.test",
		"binary.test", "control.test", "utf8.test", "alias1.test", "alias4.test", "alias12.test", "uppercase.test", "otherowner.test", "mixed.test",
		"uncompressed.test", "notauthority.test", "codes.test", "pieces.test", "tcp.test", "large.test", "partial.test", "twice.test", "once.test",
		"secondid.test", "secondquestion.test", "secondnone.test", "secondport.test", "secondaddr.test", "secondgarbage.test", "secondshort.test",
		"slow20.test", "addressonly.test", "emptytext.test", "emptystrings.test", "testtext.test", "testcode.test", "testfailure.test",
		"testsilent.test", "stringlength.test", "huge.test", "trailing.test", "slow2000.test"}
	noAddress = []string{"wildcard.test", "wildcardaddr.test", "wildcardtext.test", "parkedlist.test", "testaddr.test", "testparked.test", "textonly.test", "textnoname.test", "parked.test", "parkedaddr.test", "textparked.test", "addresslength.test"}
)
