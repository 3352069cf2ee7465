package book

import (
	"context"
	"testing"
	"time"

	"rblnft/firewall"
	"rblnft/firewall/firewalltest"
	"rblnft/firewall/intake"
)

// How many hits a second the keeper decides about, writes down and commits,
// once they are received, beside raw insertion with google/nftables in
// transactions of 1,000.
func BenchmarkKeeper(b *testing.B) {
	const n = 200_000
	for b.Loop() {
		raw := firewalltest.InsertRaw(b, n, numbered)
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
		start := time.Now()
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
