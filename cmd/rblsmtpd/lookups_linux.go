package main

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rblnft/dnsbl"
	"rblnft/dnsbl/resolver"
)

// errClientGone ends everything: nobody is there to be told anything.
var errClientGone = errors.New("client gone")

// lookups is the [dnsbl.Resolver] of one connection. While it waits it watches
// the client, on descriptor 0.
type lookups struct {
	dns    *resolver.Client
	left   time.Duration // for all lookups together
	failed func(id int, err error)
	early  func() // the client speaks before the greeting

	deaf  bool // the client's half of the conversation has ended, or descriptor 0 is no socket
	heard bool // early has been called
	fds   []unix.PollFd
}

func (l *lookups) Ask(q dnsbl.Question) { l.dns.Ask(q, time.Now()) }

// Wait implements [dnsbl.Resolver]. A time to wait until means a greet delay.
func (l *lookups) Wait(until time.Time) (dnsbl.Answer, bool, error) {
	for {
		if a, ok := l.dns.Next(); ok {
			if a.Err != nil {
				l.failed(a.ID, a.Err)
			}
			return a, true, nil
		}
		now := time.Now()
		if !until.IsZero() && !now.Before(until) {
			return dnsbl.Answer{}, false, nil
		}
		if l.left <= 0 {
			l.dns.GiveUp()
			if l.dns.Pending() == 0 {
				continue
			}
		}
		if err := l.poll(now, until); err != nil {
			return dnsbl.Answer{}, false, err
		}
	}
}

// poll waits until something happens, and deals with it.
func (l *lookups) poll(now, until time.Time) error {
	delaying := !until.IsZero()
	client := unix.PollFd{Fd: 0, Events: unix.POLLRDHUP}
	if l.deaf {
		client.Fd = -1
	} else if delaying && !l.heard {
		client.Events |= unix.POLLIN
	}
	fds, wake := l.dns.Poll(append(l.fds[:0], client))
	l.fds = fds
	if l.dns.Pending() > 0 {
		if end := now.Add(l.left); wake.IsZero() || end.Before(wake) {
			wake = end
		}
	}
	if delaying && (wake.IsZero() || until.Before(wake)) {
		wake = until
	}
	pending := l.dns.Pending() > 0
	err := ppoll(fds, wake.Sub(now))
	after := time.Now()
	if pending {
		l.left -= after.Sub(now)
	}
	if err != nil {
		return nil
	}
	l.dns.Handle(fds[1:], after)
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
	if events&unix.POLLIN != 0 && !l.heard {
		l.heard = true
		l.early()
	}
	if events&unix.POLLRDHUP != 0 {
		l.deaf = true
	}
	return nil
}

// ppoll is ppoll(2), but for the runtime, which is not told: on a system call
// that it knows to wait it starts a thread to run what else there is to run,
// and there is nothing.
func ppoll(fds []unix.PollFd, timeout time.Duration) error {
	ts := unix.NsecToTimespec(max(timeout, 0).Nanoseconds())
	_, _, errno := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)), uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// dnsServers returns the servers to ask: those in $DNSCACHEIP, else those in
// resolv.conf(5), else this host.
func dnsServers(p *process) []netip.Addr {
	if text, ok := p.getenv("DNSCACHEIP"); ok {
		if servers := cacheServers(text); len(servers) > 0 {
			return servers
		}
	}
	if servers := resolvConf(readFile("/etc/resolv.conf")); len(servers) > 0 {
		return servers
	}
	return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
}

// readFile returns the beginning of a file, or nothing. Package os would cost
// more than what it reads here.
func readFile(name string) string {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	b := make([]byte, 0, 8192)
	for len(b) < cap(b) {
		n, err := unix.Read(fd, b[len(b):cap(b)])
		if err != nil || n == 0 {
			break
		}
		b = b[:len(b)+n]
	}
	return string(b)
}

const maxServers = 16 // as rblsmtpd has it

// cacheServers reads $DNSCACHEIP: addresses with space or commas between them,
// or, as D. J. Bernstein's programs have it, IPv4 addresses with dots between
// them. It takes what comes before the first thing that is no address.
func cacheServers(text string) []netip.Addr {
	var servers []netip.Addr
	for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' || r == '\n' }) {
		for len(servers) < maxServers {
			if word = strings.TrimLeft(word, "."); word == "" {
				break
			}
			addr, rest, ok := cutAddr(word)
			if !ok {
				return servers
			}
			servers = append(servers, addr)
			word = rest
		}
	}
	return servers
}

// cutAddr cuts an address off the beginning of a word: all of it, or as much
// as four dots delimit.
func cutAddr(word string) (addr netip.Addr, rest string, ok bool) {
	if addr, err := netip.ParseAddr(word); err == nil {
		return addr, "", true
	}
	dots := 0
	for i := range len(word) {
		if word[i] != '.' {
			continue
		}
		if dots++; dots == 4 {
			addr, err := netip.ParseAddr(word[:i])
			return addr, word[i:], err == nil
		}
	}
	return netip.Addr{}, "", false
}

// resolvConf returns the name servers that a resolv.conf(5) names.
func resolvConf(text string) []netip.Addr {
	var servers []netip.Addr
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" || len(servers) == maxServers {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil {
			servers = append(servers, addr)
		}
	}
	return servers
}
