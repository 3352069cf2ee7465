// Package firewalltest is what several packages' tests do with nftables.
package firewalltest

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
)

// NFT runs nft(8) and returns what it prints. That it fails is fatal.
func NFT(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("nft", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Script has nft(8) do what a script says.
func Script(t testing.TB, script string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft -f: %v\n%s\n%s", err, out, script)
	}
}

// Flush empties the ruleset.
func Flush(t testing.TB) {
	t.Helper()
	NFT(t, "flush", "ruleset")
}

// InsertRaw inserts the elements 0 to n-1, which have a timeout and a comment,
// into a set of its own, in transactions of 1,000, and returns how long that
// takes with google/nftables and nobody watching. It flushes the ruleset before
// and after.
func InsertRaw(t testing.TB, n int, element func(int) netip.Addr) time.Duration {
	t.Helper()
	Flush(t)
	defer Flush(t)
	NFT(t, "add table inet raw; add set inet raw s { type ipv4_addr; flags timeout; size 2000000; }")
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseLasting()
	set := &nftables.Set{Table: &nftables.Table{Family: nftables.TableFamilyINet, Name: "raw"}, Name: "s", KeyType: nftables.TypeIPAddr, HasTimeout: true}
	start := time.Now()
	for i := 0; i < n; {
		var elements []nftables.SetElement
		for ; i < n && len(elements) < 1000; i++ {
			elements = append(elements, nftables.SetElement{Key: element(i).AsSlice(), Timeout: time.Hour, Comment: "zen.spamhaus.example"})
		}
		if err := c.SetAddElements(set, elements); err != nil {
			t.Fatal(err)
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	return time.Since(start)
}
