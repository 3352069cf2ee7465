package main

import (
	"strings"
	"testing"
)

func TestGroupArgument(t *testing.T) {
	for line, want := range map[string]string{
		"/usr/bin/tcpserver -v -R -l mail -x /etc/t.cdb -c 40 -u 7791 -g 2108 0 smtp relay-ctrl-check /f -b -r z /q": "2108",
		"tcpserver -g2108 0 25 /f /q":                       "2108",
		"tcpserver -u 1 0 25 /f -g 5 /q":                    "",
		"tcpserver -u 1 -g 5 0 25 /other /q":                "",
		"/usr/bin/softlimit -m 9 tcpserver -g 5 0 25 /f /q": "",
		"": "",
	} {
		got, ok := groupArgument(strings.Split(line, " "), "/f")
		if got != want && ok || ok != (want != "") {
			t.Errorf("%s: %q, %t, want %q", line, got, ok, want)
		}
	}
}
