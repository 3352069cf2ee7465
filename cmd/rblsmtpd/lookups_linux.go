package main

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"rblnft/dnsbl"
	"rblnft/dnsbl/resolver"
)

// errClientGone ends everything: nobody is there to be told anything.
var errClientGone = errors.New("client gone")

// lookups is the [dnsbl.Resolver] of one connection. While it waits it watches
// the client, on descriptor 0.
type lookups struct {
	dns      *resolver.Client
	left     time.Duration // for all lookups together
	pregreet func()        // the client speaks before the greeting

	deaf     bool // the client's half of the conversation has ended, or descriptor 0 is no socket
	noted    bool // pregreet has been called
	helpless bool // waiting is not possible
	fds      []unix.PollFd
}

func (l *lookups) Ask(q dnsbl.Question) { l.dns.Ask(q, time.Now()) }

// Wait implements [dnsbl.Resolver].
func (l *lookups) Wait(until time.Time, greetDelay bool) (dnsbl.Answer, bool, error) {
	for {
		if a, ok := l.dns.Next(); ok {
			return a, true, nil
		}
		now := time.Now()
		if !until.IsZero() && (l.helpless || !now.Before(until)) {
			return dnsbl.Answer{}, false, nil
		}
		pending := l.dns.Pending() > 0
		if pending && l.left <= 0 {
			l.dns.GiveUp()
			continue
		}
		if err := l.poll(now, until, greetDelay); err != nil {
			return dnsbl.Answer{}, false, err
		}
		if pending {
			l.left -= time.Since(now)
		}
	}
}

// poll waits until something happens, and deals with it.
func (l *lookups) poll(now, until time.Time, greetDelay bool) error {
	client := unix.PollFd{Fd: 0, Events: unix.POLLRDHUP}
	if l.deaf {
		client.Fd = -1
	} else if greetDelay && !l.noted {
		client.Events |= unix.POLLIN
	}
	fds, wake := l.dns.Poll(append(l.fds[:0], client))
	l.fds = fds
	if l.dns.Pending() > 0 {
		if end := now.Add(l.left); wake.IsZero() || end.Before(wake) {
			wake = end
		}
	}
	if !until.IsZero() && (wake.IsZero() || until.Before(wake)) {
		wake = until
	}
	if ppoll(fds, wake.Sub(now)) != nil {
		l.left, l.helpless = 0, true
		return nil
	}
	l.dns.Handle(fds[1:], time.Now())
	return l.watch(fds[0].Revents)
}

// watch deals with what happened on descriptor 0. A client that has ended its
// half of the connection but left something to read has pipelined its commands
// and still listens; one that has left nothing is gone (RFC 5321, section
// 4.1.1.10).
func (l *lookups) watch(events int16) error {
	if events == 0 {
		return nil
	}
	var b [1]byte
	n, _, err := unix.Recvfrom(0, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	switch {
	case err == unix.ENOTSOCK || err == unix.EBADF:
		l.deaf = true
		return nil
	case err == unix.EAGAIN || err == unix.EINTR:
		return nil
	case err != nil || n == 0 || events&(unix.POLLHUP|unix.POLLERR) != 0:
		return errClientGone
	}
	if events&unix.POLLIN != 0 && !l.noted {
		l.noted = true
		l.pregreet()
	}
	if events&unix.POLLRDHUP != 0 {
		l.deaf = true
	}
	return nil
}

// ppoll is ppoll(2); interrupted by a signal, nothing has happened. Other errors are
// of a machine that has no memory left.
func ppoll(fds []unix.PollFd, timeout time.Duration) error {
	ts := unix.NsecToTimespec(max(timeout, 0).Nanoseconds())
	n, err := unix.Ppoll(fds, &ts, nil)
	if n <= 0 {
		for i := range fds {
			fds[i].Revents = 0
		}
	}
	if err == unix.EINTR {
		return nil
	}
	return err
}
