package main

import (
	"golang.org/x/sys/unix"

	"rblnft/firewall/hit"
	"rblnft/smtpreply"
)

// report is the hit on its way to the daemon, in the background of the
// conversation. Whatever is wrong with the daemon, the client does not notice,
// and one line of the log says so.
type report struct {
	client   *client
	path     string
	sender   *hit.Sender // nil when there is nothing to send, or no more
	attached bool        // the client's connection has been sent along
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
	var err error
	if r.sender, err = hit.NewSender(path, h, 0); err != nil {
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
	switch {
	case err != nil:
		r.lost(err.Error())
	case sent:
		r.attached = r.sender.Attached()
	default:
		return
	}
	r.sender.Close()
	r.sender = nil
}

// finish is for the end of the conversation. As long as the daemon has a copy
// of the connection, only shutdown(2) tells the client that it has ended.
func (r *report) finish() {
	if r.sender != nil {
		r.lost("the queue is full")
	}
	if r.attached {
		unix.Shutdown(0, unix.SHUT_WR)
	}
}

func (r *report) lost(why string) {
	r.client.note("hit not reported: " + r.path + ": " + why)
}
