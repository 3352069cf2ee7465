//go:build linux

package intake

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// A Reason is why a datagram was refused.
type Reason int

// The reasons.
const (
	BadHit        Reason = iota // it is not what package hit describes
	BadControl                  // more than one descriptor, or more than can be received
	NoCredentials               // the kernel did not say who sent it
	WrongSender                 // who sent it may not report
	NoProof                     // the client's connection is missing
	BadProof                    // the descriptor is not the client's connection
	reasons
)

// Reasons are all reasons there are.
func Reasons() (all []Reason) {
	for r := range reasons {
		all = append(all, r)
	}
	return all
}

// String returns a short name, for logs and metrics.
func (r Reason) String() string {
	return [...]string{"bad_hit", "bad_control", "no_credentials", "wrong_sender", "no_proof", "bad_proof"}[r]
}

type refusal struct {
	reason Reason
	from   sender
	format string
	args   []any
}

func refuse(why Reason, from sender, format string, args ...any) *refusal {
	return &refusal{why, from, format, args}
}

// refusals counts refused datagrams, and logs some of them: of each reason one
// every ten seconds, with the number of all so far.
type refusals struct {
	log    *slog.Logger
	counts [reasons]atomic.Uint64
	next   [reasons]time.Time
	lines  chan line
}

type line struct {
	refusal *refusal
	count   uint64
}

const refusalInterval = 10 * time.Second

// start begins to log, apart from the receiving task: standard error may be a
// full pipe. It returns what ends it.
func (r *refusals) start() (stop func()) {
	r.lines = make(chan line, int(reasons))
	var done sync.WaitGroup
	done.Go(func() {
		for l := range r.lines {
			from := l.refusal.from
			r.log.Warn("datagram refused", "reason", l.refusal.reason.String(), "refused", l.count,
				"error", fmt.Sprintf(l.refusal.format, l.refusal.args...),
				"uid", from.uid, "gid", from.gid, "pid", from.pid)
		}
	})
	return func() {
		close(r.lines)
		done.Wait()
	}
}

func (r *refusals) add(f *refusal) {
	n := r.counts[f.reason].Add(1)
	now := time.Now()
	if r.lines == nil || now.Before(r.next[f.reason]) {
		return
	}
	select {
	case r.lines <- line{f, n}:
		r.next[f.reason] = now.Add(refusalInterval)
	default:
	}
}

func (r *refusals) count(why Reason) uint64 { return r.counts[why].Load() }
