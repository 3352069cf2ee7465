package netlab

import (
	"net"
	"net/netip"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

func TestEveryAddressIsLocal(t *testing.T) {
	for _, text := range []string{"192.0.2.1", "192.0.2.77", "198.51.100.254", "2001:db8::1", "2001:db8:0:7::9", "127.0.0.2"} {
		addr := netip.MustParseAddr(text)
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		if err != nil {
			t.Errorf("listen on %s: %v", addr, err)
			continue
		}
		defer l.Close()
		c, err := net.DialTCP("tcp", &net.TCPAddr{IP: addr.AsSlice()}, l.Addr().(*net.TCPAddr))
		if err != nil {
			t.Errorf("connect from %s to itself: %v", addr, err)
			continue
		}
		c.Close()
	}
}

func TestNoRouteLeavesTheLab(t *testing.T) {
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if len(interfaces) != 1 || interfaces[0].Name != "lo" {
		t.Errorf("interfaces %v, want lo alone", interfaces)
	}
}
