//go:build linux

package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/firewall/firewalltest"
	"rblnft/firewall/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

var run, script, flush = firewalltest.NFT, firewalltest.Script, firewalltest.Flush

var at = Table{INet, "t"}

// open returns a connection, and a table with sets of both families, empty.
func open(t testing.TB) *Conn {
	t.Helper()
	flush(t)
	script(t, "table inet t { set s4 { type ipv4_addr; flags timeout; }; set s6 { type ipv6_addr; flags timeout; }; set i4 { type ipv4_addr; flags interval; }; }")
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// eachPath runs a test as on the kernel that there is, and as on one without
// NFT_MSG_DESTROYSETELEM.
func eachPath(t *testing.T, test func(t *testing.T, c *Conn)) {
	t.Run("as it is", func(t *testing.T) { test(t, open(t)) })
	t.Run("without DESTROY", func(t *testing.T) {
		c := open(t)
		c.NoDestroy = true
		test(t, c)
	})
}

func key(s string) netip.Addr { return netip.MustParseAddr(s) }

var elementPattern = regexp.MustCompile(`([0-9a-f.:]+)(?: timeout ([0-9a-z]+) expires [0-9a-z]+)?(?: comment "([^"]*)")?[,\s]`)

// listed are a set's elements as nft lists them: address, timeout, comment.
func listed(t testing.TB, set string) (all []string) {
	t.Helper()
	_, text, ok := strings.Cut(run(t, "list", "set", "inet", "t", set), "elements = {")
	if !ok {
		return nil
	}
	for _, m := range elementPattern.FindAllStringSubmatch(text, -1) {
		all = append(all, strings.TrimSpace(strings.Join(m[1:], " ")))
	}
	slices.Sort(all)
	return all
}

func want(t testing.TB, set string, elements ...string) {
	t.Helper()
	if got := listed(t, set); !slices.Equal(got, elements) {
		t.Errorf("set %s: %q, want %q", set, got, elements)
	}
}

// A timeout is never rounded to none.
func TestMilliseconds(t *testing.T) {
	for d, want := range map[time.Duration]uint64{1: 1, time.Millisecond: 1, time.Millisecond + 1: 2, time.Hour: 3_600_000} {
		if got := milliseconds(d); got != want {
			t.Errorf("%s: %d, want %d", d, got, want)
		}
	}
}

// What we add nft lists, comments and odd timeouts included.
func TestElements(t *testing.T) {
	c := open(t)
	const bad = "caf\xc3\xa9 \"x\"\n\x00\x1b[1m"
	err := c.Add(at, "s4", []Element{
		{key("192.0.2.1"), time.Hour, "bl.example"},
		{key("192.0.2.2"), 1500 * time.Millisecond, ""},
		{key("192.0.2.3"), 0, "stays"},
		{key("192.0.2.4"), 100 * 24 * time.Hour, strings.Repeat("x", 200)},
		{key("192.0.2.5"), time.Hour, bad},
		{key("255.255.255.255"), time.Hour, "a"},
		{key("0.0.0.0"), time.Hour, "ab"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "s4", "0.0.0.0 1h ab", "192.0.2.1 1h bl.example", "192.0.2.2 1s500ms", "192.0.2.3  stays",
		"192.0.2.4 100d "+strings.Repeat("x", 128), "192.0.2.5 1h caf x[1m", "255.255.255.255 1h a")
	if err := c.Add(at, "s6", []Element{{key("2001:db8::"), time.Minute, "six"}, {key("::"), time.Minute, ""}}); err != nil {
		t.Fatal(err)
	}
	want(t, "s6", "2001:db8:: 1m six", ":: 1m")
}

func TestApply(t *testing.T) {
	eachPath(t, func(t *testing.T, c *Conn) {
		apply := func(put []Element, del ...string) {
			t.Helper()
			var keys []netip.Addr
			for _, d := range del {
				keys = append(keys, key(d))
			}
			if err := c.Apply(at, "s4", put, keys); err != nil {
				t.Fatal(err)
			}
		}
		apply(nil)
		apply([]Element{{key("192.0.2.1"), time.Hour, "a"}, {key("192.0.2.2"), time.Hour, "a"}}, "192.0.2.9")
		want(t, "s4", "192.0.2.1 1h a", "192.0.2.2 1h a")
		// Timeout and comment change, up and down, of those that are there and not.
		apply([]Element{{key("192.0.2.1"), 2 * time.Hour, "b"}, {key("192.0.2.3"), time.Minute, "c"}}, "192.0.2.2", "192.0.2.8")
		want(t, "s4", "192.0.2.1 2h b", "192.0.2.3 1m c")
		apply([]Element{{key("192.0.2.1"), time.Minute, ""}})
		want(t, "s4", "192.0.2.1 1m", "192.0.2.3 1m c")
		// One that has expired is as good as none.
		apply([]Element{{key("192.0.2.4"), 10 * time.Millisecond, ""}})
		time.Sleep(30 * time.Millisecond)
		apply([]Element{{key("192.0.2.4"), time.Hour, "again"}}, "192.0.2.1", "192.0.2.3")
		want(t, "s4", "192.0.2.4 1h again")
		// What makes no sense changes nothing, and the connection is as good as before.
		for set, errno := range map[string]error{"none": unix.ENOENT, "s6": unix.EINVAL} {
			if err := c.Apply(at, set, []Element{{key("192.0.2.1"), time.Hour, ""}}, nil); !errors.Is(err, errno) {
				t.Errorf("set %s: %v, want %v", set, err, errno)
			}
		}
		if err := c.Apply(Table{INet, "none"}, "s4", []Element{{key("192.0.2.1"), time.Hour, ""}}, nil); !errors.Is(err, unix.ENOENT) {
			t.Errorf("no table: %v", err)
		}
		want(t, "s4", "192.0.2.4 1h again")
	})
}

// Others add and delete the same elements all the time, and each change is done.
func TestApplyAgainstOthers(t *testing.T) {
	eachPath(t, func(t *testing.T, c *Conn) {
		other, err := Dial()
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		var put []Element
		var keys []netip.Addr
		for i := range 20 {
			put = append(put, Element{key(fmt.Sprintf("192.0.2.%d", i)), time.Hour, "x"})
			keys = append(keys, put[i].Key)
		}
		stop := make(chan struct{})
		var running sync.WaitGroup
		running.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if i%2 == 0 {
					other.Apply(at, "s4", put[i%20:], nil)
				} else {
					other.Apply(at, "s4", nil, keys[i%20:])
				}
				time.Sleep(time.Duration(i%5) * 100 * time.Microsecond)
			}
		})
		for range 100 {
			if err := c.Apply(at, "s4", put, nil); err != nil {
				t.Error(err)
				break
			}
		}
		close(stop)
		running.Wait()
	})
}

func TestAddAndAsk(t *testing.T) {
	c := open(t)
	var put []Element
	var keys []netip.Addr
	for i := range 3000 {
		k := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		keys = append(keys, k)
		if i%3 == 0 {
			put = append(put, Element{k, time.Hour, "zen.spamhaus.example"})
		}
	}
	if err := c.Add(at, "s4", put); err != nil {
		t.Fatal(err)
	}
	found, err := c.Ask(at, "s4", keys)
	if err != nil || len(found) != len(keys) {
		t.Fatal(len(found), err)
	}
	for i := range found {
		if found[i] != (i%3 == 0) {
			t.Fatalf("%s: %t", keys[i], found[i])
		}
	}
	if err := c.Add(at, "s4", []Element{{key("192.0.2.1"), time.Hour, ""}, put[7]}); !errors.Is(err, unix.EEXIST) {
		t.Errorf("one is there: %v", err)
	}
	if found, err := c.Ask(at, "s4", []netip.Addr{key("192.0.2.1")}); err != nil || found[0] {
		t.Errorf("a part of a refused transaction is there: %v, %v", found, err)
	}
	// The set that is not there, and none at all.
	if found, err := c.Ask(at, "none", keys[:2]); err == nil && (found[0] || found[1]) {
		t.Errorf("in no set: %v, %v", found, err)
	}
	if found, err := c.Ask(at, "s4", nil); err != nil || len(found) != 0 {
		t.Errorf("nothing asked: %v, %v", found, err)
	}
}

// What does not fit into one message goes into several of one transaction.
func TestLargeTransaction(t *testing.T) {
	eachPath(t, func(t *testing.T, c *Conn) {
		put := make([]Element, 5000)
		for i := range put {
			put[i] = Element{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), time.Hour, strings.Repeat("z", 128)}
		}
		for range 2 {
			if err := c.Apply(at, "s4", put, nil); err != nil {
				t.Fatal(err)
			}
		}
		if n := strings.Count(run(t, "list", "set", "inet", "t", "s4"), "expires"); n != len(put) {
			t.Errorf("%d elements", n)
		}
		put[4999].Key = key("2001:db8::1")
		err := c.Apply(at, "s4", put, nil)
		if !errors.Is(err, unix.EINVAL) || !regexp.MustCompile(`^message [1-9]\d* of the transaction`).MatchString(err.Error()) {
			t.Errorf("a bad element: %v", err)
		}
	})
}

func TestIntervals(t *testing.T) {
	c := open(t)
	for _, tt := range []struct {
		intervals []Interval
		want      string
	}{
		{[]Interval{{key("10.0.0.0"), key("10.255.255.255")}, {key("192.0.2.7"), key("192.0.2.7")}, {key("255.255.255.0"), key("255.255.255.255")}},
			"{ 10.0.0.0/8, 192.0.2.7, 255.255.255.0/24 }"},
		{[]Interval{{key("0.0.0.0"), key("255.255.255.255")}}, "{ 0.0.0.0/0 }"},
		{[]Interval{{key("0.0.0.0"), key("0.0.0.0")}, {key("192.0.2.1"), key("192.0.2.9")}}, "{ 0.0.0.0, 192.0.2.1-192.0.2.9 }"},
		{nil, ""},
	} {
		var tx Transaction
		tx.SetIntervals(at, "i4", tt.intervals)
		if err := c.Commit(&tx); err != nil {
			t.Fatal(err)
		}
		_, got, _ := strings.Cut(run(t, "list", "set", "inet", "t", "i4"), "elements = ")
		got = strings.Join(strings.Fields(strings.Split(got, "}")[0]), " ")
		if strings.TrimSpace(got) != strings.TrimSuffix(tt.want, " }") {
			t.Errorf("%v: %q, want %q", tt.intervals, got, tt.want)
		}
	}
}

// heard returns what the watcher hears next.
func heard(t *testing.T, w *Watcher) Change {
	t.Helper()
	type result struct {
		c   Change
		err error
	}
	got := make(chan result, 1)
	go func() {
		c, err := w.Receive()
		got <- result{c, err}
	}()
	select {
	case r := <-got:
		if r.err != nil {
			t.Fatal(r.err)
		}
		return r.c
	case <-time.After(20 * time.Second):
		t.Fatal("nothing is heard")
	}
	return Change{}
}

func TestWatch(t *testing.T) {
	c := open(t)
	w, err := Watch(at, c.Port())
	if err != nil {
		t.Fatal(err)
	}
	// Neither what we do is heard, nor what concerns another table.
	if err := c.Add(at, "s4", []Element{{key("192.0.2.1"), time.Hour, ""}, {key("192.0.2.2"), time.Hour, ""}}); err != nil {
		t.Fatal(err)
	}
	script(t, "table inet other { set s4 { type ipv4_addr; elements = { 192.0.2.1 }; }; }\ntable ip t { set s4 { type ipv4_addr; }; }\n")
	run(t, "delete", "element", "inet", "t", "s4", "{ 192.0.2.2 }")
	got := heard(t, w)
	if got.Structure || got.Lost || len(got.Elements) != 1 || got.Elements[0] != (SetElement{"s4", key("192.0.2.2"), true}) ||
		!regexp.MustCompile(`^nft\[\d+\]$`).MatchString(got.By) {
		t.Errorf("deleted: %+v", got)
	}
	script(t, "add element inet t s6 { 2001:db8::1 timeout 1h, 2001:db8::2 }\nadd element inet t i4 { 10.0.0.0/8 }\n")
	got = heard(t, w)
	sets := map[string]int{}
	for _, e := range got.Elements {
		sets[e.Set]++
		if e.Deleted {
			t.Errorf("%+v", e)
		}
	}
	if sets["s6"] != 2 || sets["i4"] == 0 {
		t.Errorf("added: %+v", got)
	}
	for _, change := range []string{
		"add chain inet t c", "add rule inet t c accept", "flush chain inet t c", "delete chain inet t c",
		"add counter inet t n", "delete counter inet t n", "add set inet t x { type mark; }", "delete set inet t x",
		"table inet t { flags dormant; }", "delete table inet t", "table inet t { }", "flush ruleset",
	} {
		script(t, change+"\n")
		if got := heard(t, w); !got.Structure {
			t.Errorf("%s: %+v", change, got)
		}
	}
	w.Close()
	if _, err := w.Receive(); err == nil {
		t.Error("a closed watcher hears something")
	}
}

// A large change comes in parts, and one that is too large is at least known to
// have been lost.
func TestWatchFlood(t *testing.T) {
	c := open(t)
	other, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	w, err := Watch(at, c.Port())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	// As if much more had been changed.
	if err := w.nl.SetReadBuffer(1 << 20); err != nil {
		t.Fatal(err)
	}
	add := func(n int) {
		for i := 0; i < n; {
			var put []Element
			for ; i < n && len(put) < 1000; i++ {
				put = append(put, Element{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), time.Hour, "x"})
			}
			if err := other.Apply(at, "s4", put, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(3000)
	for n := 0; n < 3000; {
		got := heard(t, w)
		if got.Lost || len(got.Elements) > 2*changeSize {
			t.Fatalf("%d elements, lost %t", len(got.Elements), got.Lost)
		}
		n += len(got.Elements)
	}
	add(60_000)
	for !heard(t, w).Lost {
	}
	// And it goes on.
	run(t, "add", "chain", "inet", "t", "last")
	for !heard(t, w).Structure {
	}
}

func TestGet(t *testing.T) {
	c := open(t)
	get := func(name string) []Attrs {
		t.Helper()
		all, err := c.Get(unix.NFT_MSG_GETSET, 0, at, Field{unix.NFTA_SET_TABLE, "t"}, Field{unix.NFTA_SET_NAME, name})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	if all := get("none"); all != nil {
		t.Errorf("no set: %v", all)
	}
	script(t, "add set inet t n { type ipv4_addr; size 70000; comment \"hello\"; }\n")
	a := get("n")[0]
	if a.Text(unix.NFTA_SET_NAME) != "n" || a.Number(unix.NFTA_SET_KEY_LEN) != 4 || a.Comment(unix.NFTA_SET_USERDATA, 7) != "hello" ||
		a.Nested(unix.NFTA_SET_DESC).Number(unix.NFTA_SET_DESC_SIZE) != 70000 || a.Comment(unix.NFTA_SET_USERDATA, 99) != "" {
		t.Errorf("%v", a)
	}
}

// A transaction that the kernel refuses leaves nothing behind, neither in the ruleset
// nor for the next one.
func TestCommit(t *testing.T) {
	c := open(t)
	var tx Transaction
	if err := c.Commit(&tx); err != nil {
		t.Error(err)
	}
	tx.Message(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, Table{INet, "u"}, Field{unix.NFTA_TABLE_NAME, "u"})
	tx.Message(unix.NFT_MSG_DELTABLE, 0, Table{INet, "v"}, Field{unix.NFTA_TABLE_NAME, "v"})
	err := c.Commit(&tx)
	if !errors.Is(err, unix.ENOENT) || !strings.HasPrefix(err.Error(), "message 1 of the transaction: ") {
		t.Errorf("%v", err)
	}
	if tables := run(t, "list", "tables"); strings.Contains(tables, " u") {
		t.Error("half of it was done")
	}
	tx = Transaction{}
	tx.Message(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, Table{INet, "u"}, Field{unix.NFTA_TABLE_NAME, "u"})
	if err := c.Commit(&tx); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(appendFields([]byte{1, 0, 0, 0}, []Field{{1, "t"}, {2, uint32(7)}, {3, uint64(9)}, {4, []Field{{5, Comment{7, "c"}}}}}))
	f.Add(appendElement([]byte{1, 0, 0, 0}, Element{key("192.0.2.1"), time.Hour, "x"}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		a, err := parse(body)
		if err == nil && len(body) < sizeofNfgenmsg {
			t.Error("too short, and no error")
		}
		for kind := range a {
			a.Text(kind)
			a.Number(kind)
			a.Nested(kind)
			if c := a.Comment(kind, 0); len(c) > 255 {
				t.Errorf("comment of %d bytes", len(c))
			}
		}
		_, _, keys, err := elementKeys(body)
		for _, k := range keys {
			if !k.IsValid() {
				t.Errorf("key %v, %v", k, err)
			}
		}
		process(body)
	})
}

func BenchmarkApply(b *testing.B) {
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := open(b)
			put := make([]Element, n)
			i := 0
			for b.Loop() {
				for j := range put {
					put[j] = Element{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), time.Hour, "zen.spamhaus.example"}
					i++
				}
				if err := c.Apply(at, "s4", put, nil); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(i), "ns/element")
		})
	}
}
