//go:build linux

package intake

import (
	"context"
	"sync"
)

// A Queue holds hits between the task that receives them and the one that
// blocks addresses. It is bounded, and where it is full the least valuable hit
// is dropped: those that renew a block are worth more than those that would
// make one, and of two alike the newer one is.
type Queue struct {
	renews func([]Report) []bool
	size   int
	few    int // so many are taken at once, in the order of their coming, whatever they are

	mu       sync.Mutex
	fresh    ring // oldest first
	renewals ring
	unsorted bool // whether those that wait renew a block is not known
	closed   bool
	dropped  uint64
	seq      uint64
	ready    chan struct{} // has a token when there is something to take, or no more to come
}

// QueueSize is a size for a Queue: some 16 MB when it is full.
const QueueSize = 1 << 16

// NewQueue returns a Queue that holds size hits. The function renews says
// which of the hits are of addresses that are blocked already; it must not wait
// for netlink or a disk.
func NewQueue(size int, renews func([]Report) []bool) *Queue {
	return &Queue{renews: renews, size: size, few: size / 8, ready: make(chan struct{}, 1)}
}

type queued struct {
	Report
	seq uint64
}

// Put adds hits, and drops some where the queue is full. It never waits.
func (q *Queue) Put(reports ...Report) {
	if len(reports) == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	defer q.signal()
	if q.fresh.n+q.renewals.n+len(reports) <= q.few {
		q.unsorted = true
		for i := range reports {
			q.put(&reports[i], false)
		}
		return
	}
	if q.unsorted {
		waiting := make([]Report, q.fresh.n+q.renewals.n)
		q.takeLast(waiting)
		q.unsorted = false
		q.putSorted(waiting)
	}
	q.putSorted(reports)
}

func (q *Queue) putSorted(reports []Report) {
	renews := q.renews(reports)
	for i := range reports {
		q.put(&reports[i], renews[i])
	}
}

func (q *Queue) put(r *Report, renews bool) {
	if q.closed {
		q.dropped++
		return
	}
	if q.fresh.n+q.renewals.n >= q.size {
		q.dropped++
		switch {
		case q.fresh.n > 0:
			q.fresh.dropFirst()
		case renews:
			q.renewals.dropFirst()
		default:
			return
		}
	}
	q.seq++
	if renews {
		q.renewals.push(r, q.seq)
	} else {
		q.fresh.push(r, q.seq)
	}
}

// Take puts hits into room, renewals first and newest first where there are
// more, in the order in which they were received, and returns how many these
// are. It waits until there is one, until wake has something, or until ctx is
// done, and then may find none. open is false when the queue is closed and
// empty.
func (q *Queue) Take(ctx context.Context, wake <-chan struct{}, room []Report) (n int, open bool) {
	select {
	case <-q.ready:
	case <-wake:
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	n = q.takeLast(room)
	left := q.fresh.n + q.renewals.n
	if left > 0 || q.closed {
		q.signal()
	}
	return n, !q.closed || left > 0
}

// takeLast is Take, of what is there.
func (q *Queue) takeLast(room []Report) (n int) {
	renewals := min(len(room), q.renewals.n)
	fresh := min(len(room)-renewals, q.fresh.n)
	for i, j := renewals, fresh; i > 0 || j > 0; n++ {
		a, b := q.renewals.last(i), q.fresh.last(j)
		if j == 0 || i > 0 && a.seq < b.seq {
			room[n] = a.Report
			i--
		} else {
			room[n] = b.Report
			j--
		}
	}
	q.renewals.dropLast(renewals)
	q.fresh.dropLast(fresh)
	return n
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
	buf   []queued // of a length that is a power of two, or 0
	first int
	n     int
}

// at returns the ith from the front.
func (r *ring) at(i int) *queued { return &r.buf[(r.first+i)&(len(r.buf)-1)] }

// last returns the ith from the back, the last of all being the first, or nil
// for the 0th.
func (r *ring) last(i int) *queued {
	if i == 0 {
		return nil
	}
	return r.at(r.n - i)
}

func (r *ring) push(report *Report, seq uint64) {
	if r.n == len(r.buf) {
		grown := make([]queued, max(64, 2*r.n))
		copied := copy(grown, r.buf[r.first:])
		copy(grown[copied:], r.buf[:r.first])
		r.buf, r.first = grown, 0
	}
	r.n++
	*r.at(r.n - 1) = queued{*report, seq}
}

func (r *ring) dropFirst() {
	r.first = (r.first + 1) & (len(r.buf) - 1)
	r.n--
	r.shrink()
}

func (r *ring) dropLast(n int) {
	r.n -= n
	r.shrink()
}

func (r *ring) shrink() {
	if r.n == 0 && len(r.buf) > 4096 {
		r.buf, r.first = nil, 0
	}
}
