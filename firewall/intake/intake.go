//go:build linux

// Package intake receives hits: datagrams on a Unix socket, from whoever may write
// to it. What is a hit goes, a burst at a time, to whoever decides; the rest is
// counted. While nobody takes a burst the datagrams wait in the socket, and their
// senders try again.
package intake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"rblnft/firewall/hit"
)

// Bursts is how many bursts, of up to 32 hits, should wait to be taken at most.
const Bursts = 1024

// A Receiver receives hits from one socket.
type Receiver struct {
	raw      syscall.RawConn
	conn     *net.UnixConn
	log      *slog.Logger
	lines    *rate.Limiter
	burst    burst
	zone     string // the last one
	received atomic.Uint64
	refused  atomic.Uint64
	unlogged uint64
	busy     atomic.Int64 // since when, in Unix nanoseconds; 0: waiting
}

// New returns a Receiver for a Unix datagram socket. It asks the kernel to turn
// descriptors away (SO_PASSRIGHTS, since Linux 6.16): to close one can take as long
// as its owner likes.
func New(conn *net.UnixConn, log *slog.Logger) (*Receiver, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("hits socket: %w", err)
	}
	r := &Receiver{conn: conn, raw: raw, log: log, lines: rate.NewLimiter(rate.Every(10*time.Second), 3)}
	err = raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 0) })
	if err != nil {
		return nil, fmt.Errorf("hits socket: %w", err)
	}
	return r, nil
}

// drain bounds how long Run goes on reading after ctx is done.
const drain = time.Second

// Run receives until ctx is done, then what the socket still holds, for a second at
// most, and closes to. Its error is the socket's.
func (r *Receiver) Run(ctx context.Context, to chan<- []hit.Hit) error {
	defer close(to)
	defer context.AfterFunc(ctx, func() { r.conn.SetReadDeadline(time.Unix(1, 0)) })()
	for ctx.Err() == nil {
		err := r.receive(r.raw.Read, to)
		if errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOBUFS) {
			time.Sleep(10 * time.Millisecond) // the kernel's need, and not for long
		} else if err != nil && ctx.Err() == nil {
			return fmt.Errorf("hits socket: %w", err)
		}
	}
	now := func(read func(fd uintptr) bool) error { return r.raw.Control(func(fd uintptr) { read(fd) }) }
	for end := time.Now().Add(drain); time.Now().Before(end) && r.receive(now, to) == nil; {
	}
	return nil
}

// receive reads what waits in the socket, a burst at most. Where there is nothing
// access decides whether to wait, or to return EAGAIN.
func (r *Receiver) receive(access func(read func(fd uintptr) (done bool)) error, to chan<- []hit.Hit) (err error) {
	var n int
	refused := access(func(fd uintptr) bool {
		r.busy.Store(time.Now().UnixNano())
		n, err = r.burst.read(int(fd))
		r.busy.Store(0)
		return err != unix.EAGAIN
	})
	if err := cmp.Or(refused, err); err != nil {
		return err
	}
	r.received.Add(uint64(n))
	hits := make([]hit.Hit, 0, n)
	for i := range n {
		h, err := hit.Parse(r.burst.datagram(i))
		if err != nil {
			r.refuse(err)
			continue
		}
		// A hit that waits keeps no more of its line than it needs.
		if h.Zone != r.zone {
			r.zone = strings.Clone(h.Zone)
		}
		h.Answer, h.Zone = "", r.zone
		hits = append(hits, h)
	}
	if len(hits) > 0 {
		to <- hits
	}
	return nil
}

// refuse counts a datagram that is no hit, and logs some of them.
func (r *Receiver) refuse(err error) {
	r.refused.Add(1)
	r.unlogged++
	if r.lines.Allow() {
		r.log.Warn("datagram refused", "error", err, "refused", r.unlogged)
		r.unlogged = 0
	}
}

// Received returns how many datagrams were received, Refused how many of them were
// no hits.
func (r *Receiver) Received() uint64 { return r.received.Load() }

// Refused is described at [Receiver.Received].
func (r *Receiver) Refused() uint64 { return r.refused.Load() }

// Busy returns for how long a system call has been under way that should not wait.
func (r *Receiver) Busy() time.Duration {
	if since := r.busy.Load(); since != 0 {
		return time.Since(time.Unix(0, since))
	}
	return 0
}
