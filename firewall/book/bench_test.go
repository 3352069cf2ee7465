package book

import (
	"context"
	"testing"
	"time"

	"github.com/google/nftables"

	"rblnft/firewall"
	"rblnft/firewall/intake"
)

// How many hits a second the keeper decides about, writes down and commits,
// once they are received, beside raw insertion with google/nftables in
// transactions of 1,000.
func BenchmarkKeeper(b *testing.B) {
	const n = 200_000
	for b.Loop() {
		c, err := nftables.New(nftables.AsLasting())
		if err != nil {
			b.Fatal(err)
		}
		c.FlushRuleset()
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "raw"})
		set := &nftables.Set{Table: table, Name: "s", KeyType: nftables.TypeIPAddr, HasTimeout: true, Size: 1_000_000}
		if err := c.AddSet(set, nil); err != nil {
			b.Fatal(err)
		}
		if err := c.Flush(); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		for i := 0; i < n; {
			var elements []nftables.SetElement
			for ; i < n && len(elements) < 1000; i++ {
				a := numbered(i).As4()
				elements = append(elements, nftables.SetElement{Key: a[:], Timeout: time.Hour, Comment: "zen.spamhaus.example"})
			}
			if err := c.SetAddElements(set, elements); err != nil {
				b.Fatal(err)
			}
			if err := c.Flush(); err != nil {
				b.Fatal(err)
			}
		}
		raw := time.Since(start)
		c.FlushRuleset()
		if err := c.Flush(); err != nil {
			b.Fatal(err)
		}
		c.CloseLasting()

		book, err := Open(b.TempDir(), testPolicy(), discard())
		if err != nil {
			b.Fatal(err)
		}
		t, err := firewall.Open(firewall.DefaultConfig(), discard())
		if err != nil {
			b.Fatal(err)
		}
		queue := intake.NewQueue(n, book.Renews)
		for i := range n {
			r := report("192.0.2.1", time.Now())
			r.Addr, r.Zone = numbered(i), "zen.spamhaus.example"
			queue.Put(r)
		}
		queue.Close()
		start = time.Now()
		NewKeeper(book, queue, t, discard()).Run(context.Background())
		took := time.Since(start)
		if blocked, _ := book.Len(); blocked != n {
			b.Fatalf("%d blocked", blocked)
		}
		book.Close()
		t.Close()
		b.ReportMetric(n/raw.Seconds(), "raw/s")
		b.ReportMetric(n/took.Seconds(), "hits/s")
		b.ReportMetric(raw.Seconds()/took.Seconds(), "of-raw")
	}
}
