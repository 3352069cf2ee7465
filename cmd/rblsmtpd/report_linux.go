package main

import (
	"time"

	"golang.org/x/sys/unix"

	"rblnft/firewall/hit"
	"rblnft/smtpreply"
)

// report is the hit on its way to the daemon, in the background of the
// conversation. Whatever is wrong with the daemon, the client does not notice,
// and one line of the log says so.
type report struct {
	client *client
	path   string
	sender *hit.Sender // nil when there is nothing to send, or no more
}

var _ smtpreply.Background = (*report)(nil)

// start makes the first attempt.
func (r *report) start(p *process, h hit.Hit) {
	path, ok := p.getenv(hit.SocketEnv)
	if !ok {
		path = hit.DefaultSocket
	}
	if path == "" {
		return
	}
	r.path = path
	if _, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		r.lost("descriptor 0 is a terminal") // somebody tries what a list says
		return
	}
	var err error
	if r.sender, err = hit.NewSender(path, h); err != nil {
		r.lost(err.Error())
		return
	}
	r.Writable()
}

// FD implements [smtpreply.Background].
func (r *report) FD() int {
	if r.sender == nil {
		return -1
	}
	return r.sender.FD()
}

// Writable tries to send the hit.
func (r *report) Writable() {
	sent, err := r.sender.Send()
	if err != nil {
		r.lost(err.Error())
	} else if !sent {
		return
	}
	r.sender.Close()
	r.sender = nil
}

// lastTry is how long a hit that found the queue full is tried after the client
// has its answer.
const lastTry = 10 * time.Millisecond

// finish is for the end of the conversation.
func (r *report) finish() {
	for end := time.Now().Add(lastTry); r.sender != nil; {
		left := time.Until(end)
		if left <= 0 {
			r.lost("the queue is full")
			return
		}
		timeout := unix.NsecToTimespec(left.Nanoseconds())
		room := [...]unix.PollFd{{Fd: int32(r.sender.FD()), Events: unix.POLLOUT}}
		if n, _ := unix.Ppoll(room[:], &timeout, nil); n > 0 {
			r.Writable()
		}
	}
}

func (r *report) lost(why string) {
	r.client.note("hit not reported: " + r.path + ": " + why)
}
