package resolver

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
		if got := fmt.Sprint(CacheServers(text)); got != want {
			t.Errorf("CacheServers(%q) = %s, want %s", text, got, want)
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
		" nameserver 10.0.0.1\n\tnameserver 10.0.0.2\nnameservers 10.0.0.3\n": "[]",
		strings.Repeat("nameserver 10.0.0.1\n", 40):                           "[" + strings.TrimSpace(strings.Repeat("10.0.0.1 ", maxServers)) + "]",
	} {
		if got := fmt.Sprint(resolvConf(text)); got != want {
			t.Errorf("resolvConf(%q) = %s, want %s", text, got, want)
		}
	}
}
