//go:build linux

package intake

import (
	"context"
	"net/netip"
	"slices"
	"sync"
)

// A Queue holds hits between the task that receives them and the one that
// blocks addresses. It is bounded, and where it is full the least valuable hit
// is dropped: those that renew a block are worth more than those that would
// make one, and of two alike the newer one is.
type Queue struct {
	// Renews reports whether addr is blocked already. It must not wait for
	// netlink or a disk.
	renews func(addr netip.Addr) bool
	size   int

	mu       sync.Mutex
	fresh    ring // oldest first
	renewals ring
	closed   bool
	dropped  uint64
	seq      uint64
	ready    chan struct{} // has a token when there is something to take, or no more to come
}

// QueueSize is a size for a Queue: some 16 MB when it is full.
const QueueSize = 1 << 16

// NewQueue returns a Queue that holds size hits.
func NewQueue(size int, renews func(netip.Addr) bool) *Queue {
	return &Queue{renews: renews, size: size, ready: make(chan struct{}, 1)}
}

type queued struct {
	Report
	seq uint64
}

// Put adds a hit, and drops one where the queue is full. It never waits.
func (q *Queue) Put(r Report) {
	renews := q.renews(r.Addr)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		q.dropped++
		return
	}
	if q.fresh.n+q.renewals.n >= q.size {
		q.dropped++
		switch {
		case q.fresh.n > 0:
			q.fresh.popFront()
		case renews:
			q.renewals.popFront()
		default:
			return
		}
	}
	q.seq++
	if renews {
		q.renewals.pushBack(queued{r, q.seq})
	} else {
		q.fresh.pushBack(queued{r, q.seq})
	}
	q.signal()
}

// Take returns up to most hits, renewals first and newest first where there are
// more, in the order in which they were received. It waits until there is one,
// until wake has something, or until ctx is done, and then may return none. open
// is false when the queue is closed and empty.
func (q *Queue) Take(ctx context.Context, wake <-chan struct{}, most int) (reports []Report, open bool) {
	select {
	case <-q.ready:
	case <-wake:
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(most, q.fresh.n+q.renewals.n)
	taken := make([]queued, 0, n)
	for len(taken) < n {
		if q.renewals.n > 0 {
			taken = append(taken, q.renewals.popBack())
		} else {
			taken = append(taken, q.fresh.popBack())
		}
	}
	left := q.fresh.n + q.renewals.n
	if left > 0 || q.closed {
		q.signal()
	}
	slices.SortFunc(taken, func(a, b queued) int { return int(int64(a.seq - b.seq)) })
	reports = make([]Report, len(taken))
	for i, t := range taken {
		reports[i] = t.Report
	}
	return reports, !q.closed || left > 0
}

// Close says that no more hits come. What is in the queue can be taken.
func (q *Queue) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.signal()
}

// Dropped returns how many hits were dropped because the queue was full, or
// closed.
func (q *Queue) Dropped() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.dropped
}

// Len returns how many hits are waiting.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.fresh.n + q.renewals.n
}

func (q *Queue) signal() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// A ring is a queue with two ends, whose memory grows when it must and is
// freed when it is empty.
type ring struct {
	buf   []queued
	first int
	n     int
}

func (r *ring) pushBack(x queued) {
	if r.n == len(r.buf) {
		grown := make([]queued, max(64, 2*r.n))
		copied := copy(grown, r.buf[r.first:])
		copy(grown[copied:], r.buf[:r.first])
		r.buf, r.first = grown, 0
	}
	r.buf[(r.first+r.n)%len(r.buf)] = x
	r.n++
}

func (r *ring) popFront() queued {
	x := r.buf[r.first]
	r.buf[r.first] = queued{}
	r.first = (r.first + 1) % len(r.buf)
	r.less()
	return x
}

func (r *ring) popBack() queued {
	i := (r.first + r.n - 1) % len(r.buf)
	x := r.buf[i]
	r.buf[i] = queued{}
	r.less()
	return x
}

func (r *ring) less() {
	if r.n--; r.n == 0 && len(r.buf) > 4096 {
		r.buf, r.first = nil, 0
	}
}
