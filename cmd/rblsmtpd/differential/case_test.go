package differential

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// testCase is everything that a program is started with and talked to.
type testCase struct {
	seed   uint64
	number int

	name    string   // argv[0]
	options []option // in their order
	end     string   // what ends the options: "--" or nothing
	prog    []string // the next program and its arguments

	env    []string // as it is, whatever it is
	client client
	closed []int         // of the descriptors 0 to 2
	extra  []int         // descriptors above 2 that are open
	during func(pid int) // what the event call does
	launch []string      // the command that starts the program, with limits and signals of its own
}

// option is one option on the command line.
type option struct {
	letter   byte
	value    string
	takes    bool // a value
	missing  bool // and has none
	clusters bool // stands in the same argument as the one before, if it can
	attached bool // its value stands in the same argument, if it can
}

// args returns the argument vector.
func (c *testCase) args() []string {
	args := []string{c.name}
	open := "" // an argument that more options may be added to
	flush := func() {
		if open != "" {
			args = append(args, open)
		}
		open = ""
	}
	for _, o := range c.options {
		if !o.clusters || open == "" {
			flush()
			open = "-"
		}
		open += string([]byte{o.letter})
		switch {
		case !o.takes:
		case o.missing:
			flush()
		case o.attached && o.value != "":
			open += o.value
			flush()
		default:
			flush()
			args = append(args, o.value)
		}
	}
	flush()
	if c.end != "" {
		args = append(args, c.end)
	}
	return append(args, c.prog...)
}

// clone returns a copy that can be changed.
func (c *testCase) clone() *testCase {
	d := *c
	d.options = slices.Clone(c.options)
	d.env = slices.Clone(c.env)
	return &d
}

// getenv returns what a program finds as the value of a variable.
func (c *testCase) getenv(name string) (string, bool) {
	for _, v := range c.env {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value, true
		}
	}
	return "", false
}

// plainEnv reports whether the environment is one that programs pass on as they
// got it: every entry is a variable, and no two are the same one.
func (c *testCase) plainEnv() bool {
	seen := map[string]bool{}
	for _, v := range c.env {
		name, _, ok := strings.Cut(v, "=")
		if !ok || name == "" || seen[name] {
			return false
		}
		seen[name] = true
	}
	return true
}

// hasOption reports whether an option is there.
func (c *testCase) hasOption(letter byte) bool {
	return slices.ContainsFunc(c.options, func(o option) bool { return o.letter == letter })
}

// setenv gives a variable another value, where it stands first, or puts it
// before all others.
func (c *testCase) setenv(name, value string) {
	for i, v := range c.env {
		if strings.HasPrefix(v, name+"=") {
			c.env[i] = name + "=" + value
			return
		}
	}
	c.env = slices.Insert(c.env, 0, name+"="+value)
}

// malformed reports whether the command line is answered with the usage.
func (c *testCase) malformed() bool {
	return len(c.prog) == 0 || slices.ContainsFunc(c.options, func(o option) bool {
		return o.missing || !strings.ContainsRune("bBcCtraisvwWT", rune(o.letter))
	})
}

// sources returns the options that name a source.
func (c *testCase) sources() []option {
	var sources []option
	for _, o := range c.options {
		if (o.letter == 'r' || o.letter == 'a') && !o.missing {
			sources = append(sources, o)
		}
	}
	return sources
}

// asks reports whether the sources are asked at all.
func (c *testCase) asks() bool {
	_, decided := c.getenv("RBLSMTPD")
	return !c.malformed() && !decided && len(c.sources()) > 0
}

// ip is the client's address as the filter sees it.
func (c *testCase) ip() (string, bool) {
	if proto, _ := c.getenv("PROTO"); proto == "TCP6" {
		if ip, ok := c.getenv("TCP6REMOTEIP"); ok {
			return ip, true
		}
	}
	return c.getenv("TCPREMOTEIP")
}

// validIP reports whether that is an address.
func (c *testCase) validIP() bool {
	ip, _ := c.ip()
	_, err := netip.ParseAddr(ip)
	return err == nil
}

// client is the other end of the connection.
type client struct {
	transport string // socket, tcp, pipes, null
	script    []event
}

// event is one thing that a client does.
type event struct {
	do    string // send, split, await, greeted, shut, close, reset, wait, pause, call
	data  string // for send and split
	lines int    // for await: how many lines it has got altogether
}

func (e event) String() string {
	switch e.do {
	case "send", "split":
		data := fmt.Sprintf("%q", e.data)
		if len(data) > 300 {
			data = fmt.Sprintf("%s…%s (%d bytes)", data[:100], data[len(data)-100:], len(e.data))
		}
		return e.do + " " + data
	case "await":
		return fmt.Sprintf("await line %d", e.lines)
	}
	return e.do
}

// String describes the case so that somebody can repeat it by hand.
func (c *testCase) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "-args -seed %d -case %d\n", c.seed, c.number)
	b.WriteString("\tenv -i")
	for _, v := range c.env {
		b.WriteString(" " + quote(v))
	}
	for _, word := range c.launch {
		b.WriteString(" " + quote(word))
	}
	args := c.args()
	dump := dumpProg()
	dumps := len(c.prog) >= len(dump) && slices.Equal(c.prog[1:len(dump)], dump[1:])
	for i, word := range args {
		if i == 0 && c.launch != nil {
			word = "rblsmtpd"
		}
		if behind := i - (len(args) - len(c.prog)); dumps && behind > 1 && behind < len(dump) {
			if behind == 2 {
				b.WriteString(" …")
			}
			continue
		}
		if i > 0 && len(word) > 200 {
			word = fmt.Sprintf("%s…(%d bytes)", word[:200], len(word))
		}
		b.WriteString(" " + quote(word))
	}
	for _, fd := range c.closed {
		fmt.Fprintf(&b, " %d>&-", fd)
	}
	for _, fd := range c.extra {
		fmt.Fprintf(&b, " %d</dev/null", fd)
	}
	fmt.Fprintf(&b, "\n\tclient on %s: %v", c.client.transport, c.client.script)
	return b.String()
}

func quote(word string) string {
	plain := func(r rune) bool {
		return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("-_./=:,", r)
	}
	if word != "" && strings.IndexFunc(word, func(r rune) bool { return !plain(r) }) < 0 {
		return word
	}
	if strings.IndexFunc(word, func(r rune) bool { return r < ' ' || r > '~' }) >= 0 {
		q := fmt.Sprintf("%q", word)
		return "$'" + strings.ReplaceAll(strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`), "'", `\'`) + "'"
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
