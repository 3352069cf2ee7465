//go:build linux

package ruleset

import (
	"net/netip"
	"testing"

	"rblnft/firewall/firewalltest"
	"rblnft/firewall/netlab"
	"rblnft/firewall/nft"
)

func TestMain(m *testing.M) { netlab.Main(m) }

func TestTry(t *testing.T) {
	conn, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	cfg := Default()
	cfg.Ports = []uint16{25, 2525}
	r, err := New(conn, cfg, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("11.0.0.0/8"), netip.MustParsePrefix("255.255.255.255/32")})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s, err := r.Ensure()
		t.Logf("%+v %v", s, err)
	}
	t.Log(firewalltest.NFT(t, "list", "ruleset"))
	t.Log(Remove(conn, cfg, nil))
	t.Log(firewalltest.NFT(t, "list", "ruleset"))
}
