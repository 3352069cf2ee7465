package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestCacheServers(t *testing.T) {
	for text, want := range map[string]string{
		"":                               "[]",
		"127.0.0.1":                      "[127.0.0.1]",
		"10.0.0.1.10.0.0.2":              "[10.0.0.1 10.0.0.2]",
		"..127.0.0.1":                    "[127.0.0.1]",
		"...":                            "[]",
		"10.0.0.1...10.0.0.2.":           "[10.0.0.1 10.0.0.2]",
		"10.0.0.1 10.0.0.2,10.0.0.3":     "[10.0.0.1 10.0.0.2 10.0.0.3]",
		"::1":                            "[::1]",
		"fe80::1%lo ::1 127.0.0.1":       "[fe80::1%lo ::1 127.0.0.1]",
		"x":                              "[]",
		"127.0.0":                        "[]",
		"127.0.0.1 x 127.0.0.2":          "[127.0.0.1]",
		"127.0.0.1.x.0.0.2":              "[127.0.0.1]",
		"127.0.0.02":                     "[127.0.0.2]",
		"127.0.0.2x":                     "[127.0.0.2]",
		"127.0.0.2\r":                    "[127.0.0.2]",
		"127.0.0.256":                    "[]",
		strings.Repeat("127.0.0.9 ", 40): "[" + strings.TrimSpace(strings.Repeat("127.0.0.9 ", maxServers)) + "]",
	} {
		if got := fmt.Sprint(cacheServers(text)); got != want {
			t.Errorf("cacheServers(%q) = %s, want %s", text, got, want)
		}
	}
}

func TestResolvConf(t *testing.T) {
	for text, want := range map[string]string{
		"": "[]",
		"# none\nsearch example\noptions ndots:3\n":                                                          "[]",
		"nameserver 127.0.0.53\n":                                                                            "[127.0.0.53]",
		"nameserver\t10.0.0.1 \nnameserver 2001:db8::53\nnameserver x\n":                                     "[10.0.0.1 2001:db8::53]",
		"nameserver 10.0.0.1 # near\n#nameserver 10.0.0.2\n;nameserver 10.0.0.3\nnameserver fe80::1%eth0":    "[10.0.0.1 fe80::1%eth0]",
		"nameserver 10.0.0.1":                                                                                "[10.0.0.1]",
		"nameserver 10.0.0.1#near\nnameserver 10.0.0.2;\nnameserver 010.000.000.003\nnameserver 10.0.0.4:53": "[10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4]",
		"nameserver": "[]",
		strings.Repeat("nameserver 10.0.0.1\n", 40): "[" + strings.TrimSpace(strings.Repeat("10.0.0.1 ", maxServers)) + "]",
	} {
		if got := fmt.Sprint(resolvConf(text)); got != want {
			t.Errorf("resolvConf(%q) = %s, want %s", text, got, want)
		}
	}
}

func FuzzServers(f *testing.F) {
	f.Add("127.0.0.1.10.0.0.1 ::1,fe80::1%lo")
	f.Add("nameserver 10.0.0.1\n#\nnameserver ::1\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, servers := range [][]string{strings.Fields(fmt.Sprint(cacheServers(text))), strings.Fields(fmt.Sprint(resolvConf(text)))} {
			if len(servers) > maxServers {
				t.Errorf("%q: %d servers", text, len(servers))
			}
		}
	})
}

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
