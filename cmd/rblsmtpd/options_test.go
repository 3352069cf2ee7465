package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unsafe"
)

// command makes a process of a command line and an environment, as the kernel
// would have laid them out.
func command(args []string, env ...string) *process {
	p := &process{args: append([]string{"/usr/local/bin/rblsmtpd"}, args...)}
	for _, arg := range append(p.args, "RBLSMTPD=") {
		p.argv = append(p.argv, unsafe.SliceData([]byte(arg+"\x00")))
	}
	p.argv = p.argv[:len(p.args)]
	for _, v := range env {
		p.envp = append(p.envp, unsafe.SliceData([]byte(v+"\x00")))
	}
	p.envp = append(p.envp, nil)[:len(p.envp)]
	return p
}

// String writes the options down in one line.
func (o *options) String() string {
	var b strings.Builder
	for _, s := range o.steps {
		switch {
		case s.Source == nil:
			fmt.Fprintf(&b, "delay %v; ", s.Delay)
			continue
		case s.Source.Allow:
			fmt.Fprintf(&b, "allow %s", s.Source.Zone)
		case s.Source.Fixed:
			fmt.Fprintf(&b, "list %s %q", s.Source.Zone, s.Source.Message)
		default:
			fmt.Fprintf(&b, "list %s", s.Source.Zone)
		}
		if s.Source.Bounce {
			b.WriteString(" bounce")
		}
		if s.Source.FailClosed {
			b.WriteString(" closed")
		}
		b.WriteString("; ")
	}
	if o.reportOnly {
		b.WriteString("report; ")
	}
	if o.oneByOne {
		b.WriteString("one by one; ")
	}
	if o.verbose {
		b.WriteString("verbose; ")
	}
	fmt.Fprintf(&b, "%v %v; prog %d", o.timeout, o.lookups, o.prog)
	return b.String()
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"", "1m0s 10s; prog 1"},
		{"prog -b", "1m0s 10s; prog 1"},
		{"-- -b", "1m0s 10s; prog 2"},
		{"-b --x prog", "1m0s 10s; prog 3"},
		{"- prog", "1m0s 10s; prog 1"},
		{"-b -r one prog", "list one bounce; 1m0s 10s; prog 4"},
		{"-r one -b -r two -B -c -r three -bCa four prog", "list one; list two bounce; list three closed; allow four bounce; 1m0s 10s; prog 12"},
		{"-cBt1 prog", "1s 10s; prog 2"},
		{"-bcrone:x -vt 5 prog", `list one "x" bounce closed; verbose; 5s 10s; prog 4`},
		{"-isT3 prog", "report; one by one; 1m0s 3s; prog 2"},
		{"-w2 -r one -W prog", "delay 2s; list one; delay 7s; 1m0s 10s; prog 5"},
		{"-r -b prog", "list -b; 1m0s 10s; prog 3"},
		{"-t 0 -t 9 -- prog", "9s 10s; prog 6"},
	} {
		p := command(strings.Fields(c.args), "GREETDELAY=7")
		o, problem := parse(p)
		if at := progAt(&p.argv[0], len(p.args)); at != o.prog {
			t.Errorf("%q: prog at %d without the runtime, %d with it", c.args, at, o.prog)
		}
		if got := o.String(); problem != "" || got != c.want {
			t.Errorf("%q: %s, %q, want %s", c.args, got, problem, c.want)
		}
	}
	for args, want := range map[string]string{
		"-x":      "rblsmtpd: illegal option -- x\n",
		"-bx":     "rblsmtpd: illegal option -- x\n",
		"-b -R p": "rblsmtpd: illegal option -- R\n",
		"-r":      "rblsmtpd: option requires an argument -- r\n",
		"-b -ct":  "rblsmtpd: option requires an argument -- t\n",
	} {
		p := command(strings.Fields(args))
		if o, problem := parse(p); problem != want {
			t.Errorf("%q: %s, %q, want %q", args, o, problem, want)
		}
		if at := progAt(&p.argv[0], len(p.args)); at < len(p.args) {
			t.Errorf("%q: prog at %d without the runtime", args, at)
		}
	}
}

func TestGreetDelay(t *testing.T) {
	for value, want := range map[string]struct {
		delay time.Duration
		notes int
	}{
		"":              {0, 0},
		"GREETDELAY=":   {0, 0},
		"GREETDELAY=3":  {3 * time.Second, 0},
		"GREETDELAY=no": {0, 1},
	} {
		o, _ := parse(command([]string{"-W", "prog"}, value))
		if got := o.steps[0].Delay; got != want.delay || len(o.notes) != want.notes {
			t.Errorf("%q: %v, %q", value, got, o.notes)
		}
	}
}

func TestEnvironment(t *testing.T) {
	p := command(nil, "A=1", "AB=2", "odd", "A=3", "=x", "C=")
	for name, want := range map[string]string{"A": "1", "AB": "2", "C": "", "odd": "-", "B": "-", "a": "-"} {
		got, ok := p.getenv(name)
		if !ok {
			got = "-"
		}
		if got != want {
			t.Errorf("$%s is %q, want %q", name, got, want)
		}
	}
	p.setenv("A", "9")
	var got []string
	for _, v := range p.envp {
		got = append(got, goString(v))
	}
	if want := "AB=2 odd =x C= A=9"; strings.Join(got, " ") != want {
		t.Errorf("the environment is %q, want %q", got, want)
	}
	if last := unsafe.Slice(unsafe.SliceData(p.envp), len(p.envp)+1)[len(p.envp)]; last != nil {
		t.Error("the environment does not end in a null pointer")
	}
}

func goString(b *byte) string {
	n := 0
	for *(*byte)(unsafe.Add(unsafe.Pointer(b), n)) != 0 {
		n++
	}
	return unsafe.String(b, n)
}
