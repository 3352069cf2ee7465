//go:build linux

// Package intake receives hits: datagrams on a Unix socket, from senders whose
// credentials the kernel vouches for, with the client's own connection as
// proof. What passes is put into a bounded [Queue]; the rest is counted.
//
// The receiving task waits for nothing but the socket: neither for netlink nor
// for the disk, nor for whoever reads the log.
package intake

import (
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

	"rblnft/firewall/hit"
)

// A Report is a hit that was received and found good.
type Report struct {
	hit.Hit  // without its Answer
	Received time.Time
	Proven   bool // the client's own connection came with it
}

// A Receiver receives hits from one socket.
type Receiver struct {
	conn     *net.UnixConn
	raw      syscall.RawConn
	queue    *Queue
	policy   atomic.Pointer[Policy]
	netns    uint64 // the cookie of our network namespace; 0: not known
	burst    *burst
	reports  []Report // of the burst
	zone     string   // the last one
	fds      []int
	closer   closer
	received atomic.Uint64
	busy     atomic.Int64 // since when, in Unix nanoseconds; 0: waiting
	refusals refusals
}

// New returns a Receiver that puts good hits into queue. It asks the kernel to
// attach senders' credentials (SO_PASSCRED, unix(7)) to every datagram from
// now on; to those that wait in the socket already only where whoever made the
// socket did so.
func New(conn *net.UnixConn, policy Policy, queue *Queue, log *slog.Logger) (*Receiver, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("hits socket: %w", err)
	}
	r := &Receiver{
		conn:  conn,
		raw:   raw,
		queue: queue,
		burst: new(burst),
	}
	r.refusals.log = log
	r.policy.Store(&policy)
	var opt error
	if err := raw.Control(func(fd uintptr) {
		opt = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
		// What a drop-in of the socket unit may have the kernel attach, and a
		// burst has no room for. A kernel that does not know it does not do it.
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSSEC, 0)
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSPIDFD, 0)
		r.netns, _ = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	}); err != nil {
		return nil, fmt.Errorf("hits socket: %w", err)
	}
	if opt != nil {
		return nil, fmt.Errorf("hits socket: SO_PASSCRED: %w", opt)
	}
	return r, nil
}

// SetPolicy replaces the policy, for every datagram read from now on.
func (r *Receiver) SetPolicy(p Policy) { r.policy.Store(&p) }

// drain bounds how long Run goes on reading after ctx is done.
const drain = time.Second

// Run receives until ctx is done, then what the socket still holds, for a
// second at most, and closes the queue. Its error is the socket's.
func (r *Receiver) Run(ctx context.Context) error {
	defer r.queue.Close()
	stopLog := r.refusals.start()
	defer stopLog()
	stop := context.AfterFunc(ctx, func() { r.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		err := r.receive(true)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOBUFS) {
			time.Sleep(10 * time.Millisecond) // the kernel's need, and not for long
			continue
		}
		if err != nil {
			return fmt.Errorf("hits socket: %w", err)
		}
	}
	for end := time.Now().Add(drain); time.Now().Before(end); {
		if err := r.receive(false); err != nil {
			break
		}
	}
	return nil
}

// receive reads and judges what waits in the socket, a burst at most. Without
// wait it returns EAGAIN where there is nothing; it does so too when the read
// deadline has passed.
func (r *Receiver) receive(wait bool) error {
	var n int
	var err error
	read := func(fd uintptr) bool {
		n, err = r.burst.read(int(fd))
		return !(wait && err == unix.EAGAIN)
	}
	var ctl error
	if wait {
		ctl = r.raw.Read(read)
	} else {
		ctl = r.raw.Control(func(fd uintptr) { read(fd) })
	}
	if ctl != nil {
		return ctl
	}
	if err != nil {
		return err
	}
	now := time.Now()
	r.busy.Store(now.UnixNano())
	defer r.busy.Store(0)
	r.reports = r.reports[:0]
	for i := range n {
		report, refusal := r.judge(r.burst.datagram(i))
		if refusal != nil {
			r.refusals.add(refusal)
			continue
		}
		report.Received = now
		r.reports = append(r.reports, report)
	}
	r.queue.Put(r.reports...)
	r.received.Add(uint64(n))
	return nil
}

// judge decides whether a datagram is a hit that counts. It closes all
// descriptors that came with it. When it was received is left open.
func (r *Receiver) judge(data, oob []byte, flags int) (Report, *refusal) {
	from, ctlErr := r.control(oob)
	defer func() {
		for _, fd := range r.fds {
			r.closer.close(fd)
		}
	}()
	policy := r.policy.Load()
	switch {
	case ctlErr != nil:
		return Report{}, refuse(BadControl, from, "%v", ctlErr)
	case flags&unix.MSG_CTRUNC != 0:
		return Report{}, refuse(BadControl, from, "more control data than is allowed, or no descriptor is free")
	case !from.known:
		return Report{}, refuse(NoCredentials, from, "the kernel attached no credentials of the sender")
	}
	trusted, ok := policy.Senders.admit(from)
	switch {
	case !ok:
		return Report{}, refuse(WrongSender, from, "neither its user nor its group may report")
	case len(r.fds) > 1:
		return Report{}, refuse(BadControl, from, "%d descriptors, at most one is allowed", len(r.fds))
	case flags&unix.MSG_TRUNC != 0 || len(data) > hit.MaxLen:
		return Report{}, refuse(BadHit, from, "longer than %d bytes", hit.MaxLen)
	}
	h, err := hit.Parse(data)
	if err != nil {
		return Report{}, refuse(BadHit, from, "%v", err)
	}
	// A hit in the queue keeps no more of its line than it needs.
	if h.Zone != r.zone {
		r.zone = strings.Clone(h.Zone)
	}
	h.Answer, h.Zone = "", r.zone
	report := Report{Hit: h}
	check := policy.Peer
	if !trusted {
		check = Require
	}
	if check == Ignore {
		return report, nil
	}
	if len(r.fds) == 0 {
		if check == Require {
			return Report{}, refuse(NoProof, from, "the client's socket is not attached, address %s", h.Addr)
		}
		return report, nil
	}
	if err := checkPeer(r.fds[0], h.Addr); err != nil {
		return Report{}, refuse(BadProof, from, "address %s: %v", h.Addr, err)
	}
	if check == Require {
		if err := checkAccepted(r.fds[0], policy.Ports, r.netns); err != nil {
			return Report{}, refuse(BadProof, from, "address %s: %v", h.Addr, err)
		}
	}
	report.Proven = true
	return report, nil
}

// Received returns how many datagrams were received.
func (r *Receiver) Received() uint64 { return r.received.Load() }

// Refused returns how many datagrams were refused for a reason.
func (r *Receiver) Refused(why Reason) uint64 { return r.refusals.count(why) }

// AllRefused returns how many datagrams were refused.
func (r *Receiver) AllRefused() (n uint64) {
	for _, why := range Reasons() {
		n += r.Refused(why)
	}
	return n
}

// Busy returns for how long the datagrams under way have been under way.
func (r *Receiver) Busy() time.Duration {
	since := r.busy.Load()
	if since == 0 {
		return 0
	}
	return time.Since(time.Unix(0, since))
}
