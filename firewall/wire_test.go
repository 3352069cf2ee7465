package firewall

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// elementBody is the body of a message about elements of a set.
func elementBody(table, set string, elements ...change) []byte {
	var b batch
	b.reset(unix.NFPROTO_INET, table, 1)
	b.message(unix.NFT_MSG_NEWSETELEM, 0, set, func(buf []byte) []byte {
		for _, e := range elements {
			buf = appendElement(buf, e.key, e.timeout, e.comment)
		}
		return buf
	})
	return b.buf[b.last+unix.SizeofNlMsghdr:]
}

func TestElementsRoundTrip(t *testing.T) {
	want := []change{
		{key: netip.MustParseAddr("192.0.2.1"), timeout: time.Hour, comment: "zen.example"},
		{key: netip.MustParseAddr("2001:db8::"), timeout: 1500 * time.Microsecond, comment: strings.Repeat("c", 127)},
		{key: netip.MustParseAddr("192.0.2.2")},
	}
	table, set, got, err := decodeElements(elementBody("rblnft", "blocked4", want...))
	if err != nil || table != "rblnft" || set != "blocked4" || len(got) != len(want) {
		t.Fatalf("%q %q %v %v", table, set, got, err)
	}
	for i, w := range want {
		g := got[i]
		addr, _ := netip.AddrFromSlice(g.key)
		if rounded := w.timeout.Truncate(time.Millisecond); addr != w.key || g.comment != w.comment || g.timeout < rounded || g.timeout > rounded+time.Millisecond {
			t.Errorf("decoded %+v, want %+v", g, w)
		}
	}
}

// Our encoding of elements is, to the byte, that of google/nftables.
func TestElementsAreEncodedAsByTheLibrary(t *testing.T) {
	changes := []change{
		{key: netip.MustParseAddr("192.0.2.1"), timeout: time.Hour, comment: "zen.example"},
		{key: netip.MustParseAddr("192.0.2.2"), timeout: time.Minute, comment: "bl.example"},
		{key: netip.MustParseAddr("192.0.2.3")},
	}
	theirs := libraryElements(t, changes)
	list := func(body []byte) (content []byte) {
		err := eachAttr(body, func(ad *netlink.AttributeDecoder) {
			if ad.Type() == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				content = ad.Bytes()
			}
		})
		if err != nil || content == nil {
			t.Fatalf("no elements: %v", err)
		}
		return content
	}
	a, b := list(elementBody("rblnft", "blocked4", changes...)), list(theirs)
	// The library numbers the elements of a list; nft and we call each
	// NFTA_LIST_ELEM. The kernel does not look.
	for at := 0; at < len(b); at += int(binary.NativeEndian.Uint16(b[at:])+3) &^ 3 {
		binary.NativeEndian.PutUint16(b[at+2:], unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM)
	}
	if !bytes.Equal(a, b) {
		t.Errorf("encoded\n%x\nthe library has\n%x", a, b)
	}
}

// libraryElements is the body of the message that google/nftables makes.
func libraryElements(t testing.TB, changes []change) []byte {
	t.Helper()
	var body []byte
	c, err := nftables.New(nftables.WithTestDial(func(req []netlink.Message) ([]netlink.Message, error) {
		for _, m := range req {
			if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWSETELEM {
				body = m.Data
			}
		}
		return req, nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetAddElements(librarySet, toLibrary(changes)); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	return body
}

var librarySet = &nftables.Set{
	Table: &nftables.Table{Family: nftables.TableFamilyINet, Name: "rblnft"}, Name: "blocked4",
	KeyType: nftables.TypeIPAddr, KeyByteOrder: binaryutil.BigEndian, HasTimeout: true,
}

func toLibrary(changes []change) []nftables.SetElement {
	elements := make([]nftables.SetElement, len(changes))
	for i, c := range changes {
		elements[i] = nftables.SetElement{Key: c.key.AsSlice(), Timeout: c.timeout, Comment: c.comment}
	}
	return elements
}

func FuzzDecodeElements(f *testing.F) {
	f.Add(elementBody("rblnft", "blocked4", change{key: netip.MustParseAddr("192.0.2.1"), timeout: time.Hour, comment: "zen.example"}))
	f.Add(elementBody("rblnft", "blocked6", change{key: netip.MustParseAddr("2001:db8::")}))
	f.Add([]byte{1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		_, _, elements, err := decodeElements(body)
		if err != nil && len(elements) > 0 {
			t.Error("elements beside an error")
		}
		now := time.Now()
		for _, e := range elements {
			b, ok := e.block(now)
			if ok && checkPrefix(b.Prefix) != nil {
				t.Errorf("block of %s", b.Prefix)
			}
			if ok && !b.Expires.IsZero() && b.Expires.Before(now) {
				t.Errorf("block that expired at %s", b.Expires)
			}
		}
		process(body)
	})
}

func FuzzComment(f *testing.F) {
	f.Add([]byte("\x00\x0czen.example\x00"))
	f.Add([]byte("\x01\x04\x00\x00\x00\x00\x00\x02a\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		clean := cleanComment(comment(data))
		if len(clean) > maxComment || strings.ContainsAny(clean, "\"\n\x00") {
			t.Errorf("comment %q", clean)
		}
	})
}

func TestMergeAllowed(t *testing.T) {
	for _, tt := range []struct{ in, v4, v6 string }{
		{"", "", ""},
		{"192.0.2.7/32 192.0.2.0/24 192.0.2.0/25 10.1.2.3/8", "10.0.0.0/8 192.0.2.0/24", ""},
		{"::1/128 ::ffff:192.0.2.0/120 2001:db8::/32 2001:db8:1::/48", "192.0.2.0/24", "::1/128 2001:db8::/32"},
		{"0.0.0.0/0 192.0.2.1/32 ::/0 ::1/128", "0.0.0.0/0", "::/0"},
		{"192.0.2.0/25 192.0.2.128/25", "192.0.2.0/25 192.0.2.128/25", ""},
	} {
		text := func(all []netip.Prefix) string {
			var words []string
			for _, p := range all {
				words = append(words, p.String())
			}
			return strings.Join(words, " ")
		}
		in := prefixes(strings.Fields(tt.in)...)
		if got := text(mergeAllowed(in, false)); got != tt.v4 {
			t.Errorf("%q: IPv4 %q, want %q", tt.in, got, tt.v4)
		}
		if got := text(mergeAllowed(in, true)); got != tt.v6 {
			t.Errorf("%q: IPv6 %q, want %q", tt.in, got, tt.v6)
		}
	}
}

// BenchmarkEncode is the cost of one element in a message of 500, by our
// encoder and by google/nftables.
func BenchmarkEncode(b *testing.B) {
	changes := make([]change, 500)
	for i := range changes {
		changes[i] = change{key: netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)}), timeout: time.Hour, comment: "zen.spamhaus.org"}
	}
	b.Run("ours", func(b *testing.B) {
		var tx batch
		for b.Loop() {
			tx.reset(unix.NFPROTO_INET, "rblnft", 1)
			tx.message(unix.NFT_MSG_NEWSETELEM, 0, "blocked4", func(buf []byte) []byte {
				for _, c := range changes {
					buf = appendElement(buf, c.key, c.timeout, c.comment)
				}
				return buf
			})
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(changes)), "ns/element")
	})
	b.Run("library", func(b *testing.B) {
		c, err := nftables.New(nftables.WithTestDial(func(req []netlink.Message) ([]netlink.Message, error) { return req, nil }))
		if err != nil {
			b.Fatal(err)
		}
		elements := toLibrary(changes)
		for b.Loop() {
			if err := c.SetAddElements(librarySet, elements); err != nil {
				b.Fatal(err)
			}
			c.Flush()
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(changes)), "ns/element")
	})
}

// benchBatch commits n new blocks at a time, into sets that never fill up.
func benchBatch(b *testing.B, n int, commit func(table *Table, blocks []Block) error, prepare func(*Table)) {
	cfg := DefaultConfig()
	table, _ := open(b, cfg)
	if prepare != nil {
		prepare(table)
	}
	blocks := make([]Block, n)
	next, room := uint32(11<<24), cfg.MaxElements
	for b.Loop() {
		if room -= n; room < 0 {
			b.StopTimer()
			nft(b, "flush", "set", "inet", "rblnft", "blocked4")
			time.Sleep(100 * time.Millisecond)
			room = cfg.MaxElements - n
			b.StartTimer()
		}
		expires := time.Now().Add(time.Hour)
		for i := range blocks {
			next++
			blocks[i] = Block{netip.PrefixFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, next))), 32), expires, "zen.spamhaus.org", false}
		}
		if err := commit(table, blocks); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "elements/s")
}

// BenchmarkCommit beside a transaction of the same size that does nothing but
// add, with the listener, as the daemon runs, and without it; and as on a
// kernel before Linux 6.3.
func BenchmarkCommit(b *testing.B) {
	raw := func(table *Table, blocks []Block) error {
		table.conn.start(&table.batch, table.at)
		for len(blocks) > 0 {
			part := blocks[:min(500, len(blocks))]
			blocks = blocks[len(part):]
			table.batch.message(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, "blocked4", func(buf []byte) []byte {
				for _, block := range part {
					buf = appendElement(buf, block.Prefix.Addr(), time.Hour, block.Zone)
				}
				return buf
			})
		}
		failures, err := table.conn.commit(&table.batch)
		if len(failures) > 0 {
			return failures[0].errno
		}
		return err
	}
	ours := func(table *Table, blocks []Block) error { return table.Commit(b.Context(), blocks) }
	deaf := func(table *Table) {
		if err := table.listener.leave(); err != nil {
			b.Fatal(err)
		}
	}
	asNew := func(table *Table, blocks []Block) error {
		for i := range blocks {
			blocks[i].New = true
		}
		return table.Commit(b.Context(), blocks)
	}
	for _, n := range []struct {
		name string
		n    int
	}{{"1", 1}, {"10", 10}, {"1000", 1000}} {
		b.Run(n.name+"/raw", func(b *testing.B) { benchBatch(b, n.n, raw, deaf) })
		b.Run(n.name+"/raw-watched", func(b *testing.B) { benchBatch(b, n.n, raw, nil) })
		b.Run(n.name+"/commit", func(b *testing.B) { benchBatch(b, n.n, ours, nil) })
		b.Run(n.name+"/commit-new", func(b *testing.B) { benchBatch(b, n.n, asNew, nil) })
		b.Run(n.name+"/commit-new-unwatched", func(b *testing.B) { benchBatch(b, n.n, asNew, deaf) })
		b.Run(n.name+"/commit-unwatched", func(b *testing.B) { benchBatch(b, n.n, ours, deaf) })
		b.Run(n.name+"/commit-old-kernel", func(b *testing.B) {
			benchBatch(b, n.n, ours, func(table *Table) { table.failsOnMissing = true })
		})
		b.Run(n.name+"/commit-new-old-kernel", func(b *testing.B) {
			benchBatch(b, n.n, asNew, func(table *Table) { table.failsOnMissing = true })
		})
	}
}

// BenchmarkRenewal is a Commit of blocks that are all there.
func BenchmarkRenewal(b *testing.B) {
	for name, old := range map[string]bool{"destroy": false, "delete": true} {
		b.Run(name, func(b *testing.B) {
			table, _ := open(b, testConfig())
			table.failsOnMissing = old
			blocks := some(1000)
			for b.Loop() {
				if err := table.Commit(b.Context(), blocks); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*len(blocks))/b.Elapsed().Seconds(), "elements/s")
		})
	}
}

// BenchmarkSixtyFour compares the two forms that a set of /64s can have: keys
// that a rule masks packets for, in a hash table, and intervals in a tree.
func BenchmarkSixtyFour(b *testing.B) {
	for _, size := range []int{1000, 100_000} {
		for _, form := range []string{"masked", "interval"} {
			b.Run(fmt.Sprintf("%s/%d", form, size), func(b *testing.B) {
				clean(b)
				c, err := nftables.New(nftables.AsLasting())
				if err != nil {
					b.Fatal(err)
				}
				defer c.CloseLasting()
				table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "rblnft"})
				set := &nftables.Set{Table: table, ID: 1, Name: "blocked6", KeyType: nftables.TypeIP6Addr, KeyByteOrder: binaryutil.BigEndian, HasTimeout: true, Interval: form == "interval"}
				if err := c.AddSet(set, nil); err != nil {
					b.Fatal(err)
				}
				if err := c.Flush(); err != nil {
					b.Fatal(err)
				}
				next := uint64(0x2400 << 48)
				add := func(n int) {
					var elements []nftables.SetElement
					for range n {
						next += 0x10001 // not one beside the other
						key := binary.BigEndian.AppendUint64(nil, next)
						elements = append(elements, nftables.SetElement{Key: append(key, make([]byte, 8)...), Timeout: time.Hour})
						if set.Interval {
							end := binary.BigEndian.AppendUint64(nil, next+1)
							elements = append(elements, nftables.SetElement{Key: append(end, make([]byte, 8)...), IntervalEnd: true})
						}
					}
					if err := c.SetAddElements(set, elements); err != nil {
						b.Fatal(err)
					}
					if err := c.Flush(); err != nil {
						b.Fatal(err)
					}
				}
				for range size / 100 {
					add(100)
				}
				for b.Loop() {
					add(100)
				}
				b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(100*b.N), "µs/element")
			})
		}
	}
}
