// Package resolver is a DNS stub resolver for a program that lives for one
// connection: it asks many questions at once on one thread, and never blocks.
// Its owner polls the descriptors, with whatever else it waits for, and hands
// back the results.
//
// A question goes out over UDP to one server after the other, in growing
// intervals, until one of them answers, each time from a socket and so a port of
// its own, with a random ID (RFC 5452). An answer counts only if it comes from
// where the question went, with the question's ID, name, type and class (RFC 5452,
// section 9.1); anything else is as if nothing had come. A truncated answer is
// asked for again over TCP (RFC 7766). A server that answers with a failure, or
// cannot be reached from this host, hands the question to the next one; when each
// has done so twice, the lookup has failed. One where nobody listens is asked again
// after a while: it may be on its way. So is everything where descriptors or
// memory are short.
//
// Go's net.Resolver does this too. It does it with goroutines, and so threads,
// that cannot watch the client meanwhile; with it the filter took 2.0 to 2.3
// times the CPU time of rblsmtpd(1) for a connection, with this package 1.7.
package resolver

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/dnsbl"
)

// The reasons why a lookup fails.
var (
	ErrTimeout = errors.New("no answer in time")
	ErrServer  = errors.New("the DNS servers failed")
)

const (
	dnsPort         = 53
	failuresAllowed = 2                      // of every server before a lookup fails
	firstPatience   = time.Second            // until the next server is asked, doubled with every round
	shortage        = 100 * time.Millisecond // until it is tried again where there was no descriptor
)

// A Client makes lookups. It is not safe for use by several goroutines.
type Client struct {
	servers   []netip.Addr
	preferred int // the server that answered last, or the first one
	lookups   []*lookup
	answers   []dnsbl.Answer
}

// New returns a client that asks the given servers, in this order, on port 53.
// A lookup begins with the server that has answered another one.
func New(servers []netip.Addr) *Client {
	return &Client{servers: servers}
}

// Ask starts a lookup. now is the time on the owner's clock.
func (c *Client) Ask(q dnsbl.Question, now time.Time) {
	l := &lookup{id: q.ID, qtype: q.Type, first: c.preferred, failures: make([]uint8, len(c.servers))}
	err := l.pack(q.Name)
	if err == nil && len(c.servers) == 0 {
		err = ErrServer
	}
	if err != nil {
		c.answers = append(c.answers, dnsbl.Answer{ID: q.ID, Err: err})
		return
	}
	c.lookups = append(c.lookups, l)
	c.advance(l, now)
	c.sweep()
}

// Pending returns how many lookups have not ended.
func (c *Client) Pending() int { return len(c.lookups) }

// Next returns an answer that has come, if there is one.
func (c *Client) Next() (dnsbl.Answer, bool) {
	if len(c.answers) == 0 {
		return dnsbl.Answer{}, false
	}
	a := c.answers[0]
	c.answers = c.answers[1:]
	return a, true
}

// Poll appends what the client waits for to fds (poll(2)), and returns by when
// it wants to be called even if nothing happens; the zero time is never.
func (c *Client) Poll(fds []unix.PollFd) ([]unix.PollFd, time.Time) {
	var wake time.Time
	for _, l := range c.lookups {
		for i := range l.conns {
			fds = append(fds, unix.PollFd{Fd: int32(l.conns[i].fd), Events: l.conns[i].wants()})
		}
		if wake.IsZero() || l.patience.Before(wake) {
			wake = l.patience
		}
	}
	return fds, wake
}

// Handle takes what poll(2) said about the descriptors that Poll appended, in
// the same order, and does what is due.
func (c *Client) Handle(fds []unix.PollFd, now time.Time) {
	at := 0
	for _, l := range c.lookups {
		// A connection may add another one, which has not been polled.
		for i, polled := 0, len(l.conns); i < polled; i++ {
			if fds[at].Revents != 0 && !l.done {
				c.event(l, i, now)
			}
			at++
		}
		if !l.done && !now.Before(l.patience) {
			c.advance(l, now)
		}
	}
	if c.sweep() {
		// There are descriptors for those that found none.
		for _, l := range c.lookups {
			if len(l.conns) == 0 {
				c.advance(l, now)
			}
		}
		c.sweep()
	}
}

// GiveUp ends every lookup that has not ended, with [ErrTimeout].
func (c *Client) GiveUp() {
	for _, l := range c.lookups {
		c.end(l, dnsbl.Answer{Err: ErrTimeout})
	}
	c.sweep()
}

// Close closes all descriptors.
func (c *Client) Close() {
	for _, l := range c.lookups {
		l.close()
	}
	c.lookups = nil
}

// advance asks the next server in turn. Patience grows with the rounds in which
// something was asked.
func (c *Client) advance(l *lookup, now time.Time) {
	for !l.hopeless() {
		server := (l.first + l.turn) % len(c.servers)
		if l.failures[server] >= failuresAllowed {
			l.turn++
			continue
		}
		err := l.send(server, c.servers[server])
		if err != nil && troubleOf(err) == exhausted {
			l.patience = now.Add(shortage)
			return
		}
		l.patience = now.Add(firstPatience << min(l.turn/len(c.servers), 6))
		l.turn++
		if err == nil || troubleOf(err) == absent {
			return
		}
		l.failures[server]++
	}
	c.end(l, dnsbl.Answer{Err: ErrServer})
}

// hopeless reports whether every server has failed too often.
func (l *lookup) hopeless() bool {
	for _, n := range l.failures {
		if n < failuresAllowed {
			return false
		}
	}
	return true
}

// event reads or writes connection i of the lookup.
func (c *Client) event(l *lookup, i int, now time.Time) {
	message, state, err := l.conns[i].step()
	if state == waiting {
		return
	}
	server, tcp := l.conns[i].server, l.conns[i].tcp
	if state == complete {
		answer, class := l.read(message, l.conns[i].id, tcp)
		switch class {
		case irrelevant:
			if !tcp {
				return
			}
		case truncated:
			l.conns[i].drop() // so that there is a descriptor
			if l.dialTCP(server, c.servers[server]) == nil {
				return
			}
		case answered:
			c.preferred = server
			c.end(l, answer)
			return
		}
	}
	if tcp || state == broken {
		l.conns[i].drop()
	}
	if state == broken && !tcp && troubleOf(err) == absent {
		if l.turn%len(c.servers) == 0 {
			return // all have been asked in this round
		}
	} else {
		l.failures[server]++
	}
	c.advance(l, now)
}

func (c *Client) end(l *lookup, a dnsbl.Answer) {
	a.ID = l.id
	l.done = true
	c.answers = append(c.answers, a)
}

// sweep forgets the lookups that have ended, which it reports, and connections
// that were dropped.
func (c *Client) sweep() (ended bool) {
	kept := c.lookups[:0]
	for _, l := range c.lookups {
		if l.done {
			l.close()
			ended = true
		} else {
			l.forgetDropped()
			kept = append(kept, l)
		}
	}
	clear(c.lookups[len(kept):])
	c.lookups = kept
	return ended
}
