package smtpreply

import (
	"bytes"
	"strings"
	"testing"
)

func TestErrorLine(t *testing.T) {
	for _, c := range []struct {
		bounce     bool
		text, want string
	}{
		{false, "try later", "451 try later"},
		{true, "never", "553 never"},
		{true, "", "553 "},
		{true, "a\r\n250 ok\x00\x7f\xc3\xa9 ~", "553 a??250 ok???? ~"},
		{true, strings.Repeat("x", 199) + "yz", "553 " + strings.Repeat("x", 199) + "y"},
		{false, strings.Repeat("\n", 300), "451 " + strings.Repeat("?", 200)},
	} {
		if got := ErrorLine(c.bounce, c.text); got != c.want {
			t.Errorf("ErrorLine(%v, %q) = %q, want %q", c.bounce, c.text, got, c.want)
		}
	}
}

const no = "553 no"

func TestConversation(t *testing.T) {
	const (
		ok  = accepted
		bad = no + "\r\n"
		bye = goodbye
	)
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"helo", ""},
		{"helo\n", ok},
		{"HELO x\r\n", ok},
		{"EhLo x\nMAIL FROM:<>\r\nRSET\nNOOP\n", ok + ok + ok + ok},
		{"RCPT TO:<a@b>\r\n", bad},
		{"DATA\n", bad},
		{"\n", bad},
		{"\r\n", bad},
		{" helo\n", bad},
		{"helo\t\n", bad},
		{"heloo\n", bad},
		{"hel\n", bad},
		{"helo\r\r\n", bad},
		{"quit\rx\n", bad},
		{"quit\r \n", bad},
		{"quit\x00\n", bad},
		{"quit \x00\n", bye},
		{"mail \r\n", ok},
		{"quit\r\nnoop\r\n", bye},
		{"QUIT now\n", bye},
		{"rcpt\nquit\n", bad + bye},
		{"vrfy postmaster\nhelp\nstarttls\n", bad + bad + bad},
		{strings.Repeat("x", 1<<20) + "\nnoop\n", bad + ok},
		{"noop " + strings.Repeat("quit", 1<<18) + "\nquit\n", ok + bye},
	} {
		whole, quit := New(no).Input([]byte(c.in), nil)
		if string(whole) != c.want {
			t.Errorf("%.60q: %q, want %q", c.in, whole, c.want)
		}
		if quit != strings.HasSuffix(c.want, bye) {
			t.Errorf("%.60q: quit is %v", c.in, quit)
		}
	}
}

// FuzzConversation checks the conversation against its definition, a line at a
// time, and that it does not matter how the input is cut in pieces.
func FuzzConversation(f *testing.F) {
	for _, in := range []string{"helo x\r\nmail from:<>\r\nrcpt to:<x>\r\ndata\r\nquit\r\n", "QUIT", "\n\r\n \n", "noop\x00\nquit \r\n", "ehlo\r\r\nqui", "mail\xff\nrset\nx\r"} {
		f.Add([]byte(in), uint8(1))
		f.Add([]byte(in), uint8(7))
	}
	f.Fuzz(func(t *testing.T, in []byte, piece uint8) {
		var want []byte
		ended := false
		lines := bytes.SplitAfter(in, []byte("\n"))
		for _, line := range lines[:len(lines)-1] {
			reply := define(line)
			want = append(want, reply...)
			if ended = reply == goodbye; ended {
				break
			}
		}
		got, quit := New(no).Input(in, nil)
		if !bytes.Equal(got, want) || quit != ended {
			t.Errorf("%q: %q, %v, want %q, %v", in, got, quit, want, ended)
		}

		c, cut, rest := New(no), []byte(nil), in
		for quit = false; len(rest) > 0 && !quit; {
			n := min(int(piece)+1, len(rest))
			cut, quit = c.Input(rest[:n], cut)
			rest = rest[n:]
		}
		if !bytes.Equal(cut, want) || quit != ended {
			t.Errorf("%q in pieces of %d: %q, %v, want %q, %v", in, piece+1, cut, quit, want, ended)
		}
	})
}

// define is the reply to one line, as commands.c of ucspi-tcp defines it.
func define(line []byte) string {
	line = bytes.TrimSuffix(line, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	verb, _, _ := bytes.Cut(line, []byte(" "))
	is := func(v string) bool { return len(verb) == len(v) && bytes.EqualFold(verb, []byte(v)) && isASCII(verb) }
	switch {
	case is("quit"):
		return goodbye
	case is("helo"), is("ehlo"), is("mail"), is("rset"), is("noop"):
		return accepted
	}
	return no + "\r\n"
}

func isASCII(b []byte) bool {
	return !bytes.ContainsFunc(b, func(r rune) bool { return r > 127 })
}
