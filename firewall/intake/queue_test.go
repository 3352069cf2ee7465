//go:build linux

package intake

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"rblnft/firewall/hit"
)

// hitOf returns a hit of the nth address. Those of odd numbers renew a block.
func hitOf(n int) Report {
	return Report{Hit: hit.Hit{Addr: netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)})}}
}

func odd(reports []Report) (odd []bool) {
	for _, n := range numbers(reports) {
		odd = append(odd, n%2 == 1)
	}
	return odd
}

// none says that no hit renews a block.
func none(reports []Report) []bool { return make([]bool, len(reports)) }

func numbers(reports []Report) (ns []int) {
	for _, r := range reports {
		b := r.Addr.As4()
		ns = append(ns, int(b[2])<<8|int(b[3]))
	}
	return ns
}

func take(q *Queue, wake <-chan struct{}, most int) ([]Report, bool) {
	room := make([]Report, most)
	n, open := q.Take(context.Background(), wake, room)
	return room[:n], open
}

func TestQueuePolicy(t *testing.T) {
	tests := []struct {
		name    string
		size    int
		put     []int
		take    int
		want    []int // in the order of their coming
		dropped uint64
	}{
		{"all fit", 4, []int{2, 1, 4, 3}, 4, []int{2, 1, 4, 3}, 0},
		{"the oldest new one goes first", 3, []int{2, 4, 1, 6}, 4, []int{4, 1, 6}, 1},
		{"a renewal drives out a new one", 3, []int{2, 4, 6, 1, 3}, 4, []int{6, 1, 3}, 2},
		{"a new one does not drive out a renewal", 2, []int{1, 3, 2}, 4, []int{1, 3}, 1},
		{"a renewal drives out the oldest renewal", 2, []int{1, 3, 5}, 4, []int{3, 5}, 1},
		{"renewals are taken first", 6, []int{2, 4, 1, 6, 3}, 2, []int{1, 3}, 0},
		{"then the newest", 6, []int{2, 4, 1, 6, 3}, 4, []int{4, 1, 6, 3}, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			q := NewQueue(test.size, odd)
			for _, n := range test.put {
				q.Put(hitOf(n))
			}
			got, open := take(q, nil, test.take)
			if !slices.Equal(numbers(got), test.want) || !open {
				t.Errorf("took %v (open %v), want %v", numbers(got), open, test.want)
			}
			if q.Dropped() != test.dropped {
				t.Errorf("%d dropped, want %d", q.Dropped(), test.dropped)
			}
		})
	}
}

// As long as few wait it is not asked which of them renew a block; when they
// become many it is.
func TestFewThatBecomeMany(t *testing.T) {
	asked := 0
	q := NewQueue(80, func(reports []Report) []bool {
		asked += len(reports)
		return odd(reports)
	})
	for n := range 10 {
		q.Put(hitOf(n))
	}
	if asked != 0 {
		t.Errorf("asked for %d of 10", asked)
	}
	for n := range 100 {
		q.Put(hitOf(1000 + 2*n))
	}
	got, _ := take(q, nil, 80)
	want := []int{1, 3, 5, 7, 9}
	for n := 25; n < 100; n++ {
		want = append(want, 1000+2*n)
	}
	if !slices.Equal(numbers(got), want) || q.Dropped() != 30 {
		t.Errorf("took %v, %d dropped", numbers(got), q.Dropped())
	}
}

// Whatever is put and taken, nothing comes twice, and what does not come was
// counted.
func TestQueueLosesNothingUncounted(t *testing.T) {
	q := NewQueue(300, odd)
	const n = 20_000
	seen := make([]bool, n)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			reports, open := take(q, nil, 70)
			for _, i := range numbers(reports) {
				if seen[i] {
					t.Errorf("%d came twice", i)
				}
				seen[i] = true
			}
			if !open {
				return
			}
		}
	}()
	for i := range n {
		q.Put(hitOf(i))
		if i%1000 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	q.Close()
	<-done
	came := 0
	for _, s := range seen {
		if s {
			came++
		}
	}
	if uint64(came)+q.Dropped() != n {
		t.Errorf("%d came and %d were dropped, of %d", came, q.Dropped(), n)
	}
	q.Put(hitOf(1))
	if q.Len() != 0 {
		t.Error("a closed queue takes hits")
	}
}

func TestTakeWaits(t *testing.T) {
	q := NewQueue(10, odd)
	wake := make(chan struct{}, 1)
	wake <- struct{}{}
	if got, open := take(q, wake, 10); len(got) != 0 || !open {
		t.Errorf("woken: %v, %v", got, open)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if got, open := q.Take(ctx, wake, make([]Report, 10)); got != 0 || !open {
		t.Errorf("ended: %v, %v", got, open)
	}
	time.AfterFunc(10*time.Millisecond, func() { q.Put(hitOf(1)) })
	if got, _ := take(q, wake, 10); len(got) != 1 {
		t.Errorf("took %v, want the one that comes", got)
	}
	time.AfterFunc(10*time.Millisecond, q.Close)
	if _, open := take(q, wake, 10); open {
		t.Error("open after it was closed")
	}
	if _, open := take(q, wake, 10); open {
		t.Error("a closed queue is open when asked again")
	}
}
