package main

import (
	"strings"
	"testing"
)

func TestSeconds(t *testing.T) {
	for value, want := range map[string]struct {
		seconds float64
		note    string
	}{
		"0":                    {0, ""},
		"60":                   {60, ""},
		"007":                  {7, ""},
		"60s":                  {60, `-t "60s": not a number of seconds, taken as 60`},
		"":                     {0, `-t "": not a number of seconds, taken as 0`},
		"x":                    {0, `-t "x": not a number of seconds, taken as 0`},
		"-1":                   {0, `-t "-1": not a number of seconds, taken as 0`},
		"1.5":                  {1, `-t "1.5": not a number of seconds, taken as 1`},
		"99999999999999999999": {1 << 31, ""},
	} {
		var o options
		got := o.seconds("-t", value)
		if got.Seconds() != want.seconds || strings.Join(o.notes, "|") != want.note {
			t.Errorf("%q: %v, %q, want %v s, %q", value, got, o.notes, want.seconds, want.note)
		}
	}
}
