package main

import (
	"bytes"
	"errors"
	"net/netip"
	"strconv"
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
	dns   *resolver.Client
	left  time.Duration // for all lookups together
	early func()        // the client speaks before the greeting

	deaf  bool // the client's half of the conversation has ended, or descriptor 0 is no socket
	heard bool // early has been called
	fds   []unix.PollFd
}

func (l *lookups) Ask(q dnsbl.Question) { l.dns.Ask(q, time.Now()) }

// Wait implements [dnsbl.Resolver].
func (l *lookups) Wait(until time.Time, greetDelay bool) (dnsbl.Answer, bool, error) {
	for {
		if a, ok := l.dns.Next(); ok {
			return a, true, nil
		}
		now := time.Now()
		if !until.IsZero() && !now.Before(until) {
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
	} else if greetDelay && !l.heard {
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
	if events&unix.POLLIN != 0 && !l.heard {
		l.heard = true
		l.early()
	}
	if events&unix.POLLRDHUP != 0 {
		l.deaf = true
	}
	return nil
}

// moment is shorter than what the runtime lets a goroutine run without a look at
// it, 10 ms.
const moment = 8 * time.Millisecond

// ppoll is ppoll(2). For a moment, in which most answers come, the runtime is
// not told that the program waits: it would start a thread to run what else
// there is to run, and there is nothing. It must be told of a longer wait, as it
// interrupts what it takes for a goroutine that runs on and on.
func ppoll(fds []unix.PollFd, timeout time.Duration) error {
	timeout = max(timeout, 0)
	ts := unix.NsecToTimespec(min(timeout, moment).Nanoseconds())
	n, _, errno := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)), uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	if n > 0 || timeout <= moment {
		return nil
	}
	ts = unix.NsecToTimespec((timeout - moment).Nanoseconds())
	_, err := unix.Ppoll(fds, &ts, nil)
	return err
}

// dnsServers returns the servers to ask: those in $DNSCACHEIP, else those in
// resolv.conf(5), else this host.
func dnsServers(p *process, note func(string)) []netip.Addr {
	if text, ok := p.getenv("DNSCACHEIP"); ok && text != "" {
		if servers := cacheServers(text); len(servers) > 0 {
			return servers
		}
		note("$DNSCACHEIP " + strconv.Quote(text) + ": no IP address; asking the servers in resolv.conf")
	}
	if servers := resolvConf(readFile("/etc/resolv.conf")); len(servers) > 0 {
		return servers
	}
	return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
}

// maxFile is how much of a file is read.
const maxFile = 64 << 10

// readFile returns a file, or its beginning, as far as that goes in whole lines,
// or nothing. Package os would cost more than what it reads here.
func readFile(name string) string {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	b := make([]byte, 0, 4096)
	for {
		if len(b) == maxFile {
			return string(b[:bytes.LastIndexByte(b, '\n')+1])
		}
		if len(b) == cap(b) {
			b = append(make([]byte, 0, 4*cap(b)), b...)
		}
		n, err := unix.Read(fd, b[len(b):cap(b)])
		if err != nil || n == 0 {
			return string(b)
		}
		b = b[:len(b)+n]
	}
}

const maxServers = 16 // as rblsmtpd has it

// cacheServers reads $DNSCACHEIP: addresses with space or commas between them,
// or, as D. J. Bernstein's programs have it, IPv4 addresses with dots between
// them. It takes what comes before the first thing that is no address.
func cacheServers(text string) []netip.Addr {
	var servers []netip.Addr
	for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return strings.ContainsRune(" ,\t\r\n", r) }) {
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

// cutAddr cuts an address off the beginning of a word: all of it, or as much as
// is an IPv4 address, whose numbers may have zeros before them.
func cutAddr(word string) (addr netip.Addr, rest string, ok bool) {
	if addr, err := netip.ParseAddr(word); err == nil {
		return addr, "", true
	}
	var ip [4]byte
	for i := range ip {
		if i > 0 {
			if word, ok = strings.CutPrefix(word, "."); !ok {
				return netip.Addr{}, "", false
			}
		}
		digits := 0
		for digits < len(word) && word[digits] >= '0' && word[digits] <= '9' {
			digits++
		}
		n, err := strconv.ParseUint(word[:digits], 10, 8)
		if err != nil {
			return netip.Addr{}, "", false
		}
		ip[i], word = byte(n), word[digits:]
	}
	return netip.AddrFrom4(ip), word, true
}

// resolvConf returns the name servers that a resolv.conf(5) names. As in the C
// library a comment may begin anywhere in a line, and as in rblsmtpd anything
// may follow an IPv4 address.
func resolvConf(text string) []netip.Addr {
	var servers []netip.Addr
	for line := range strings.Lines(text) {
		if comment := strings.IndexAny(line, "#;"); comment >= 0 {
			line = line[:comment]
		}
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" || len(servers) == maxServers {
			continue
		}
		if addr, _, ok := cutAddr(fields[1]); ok {
			servers = append(servers, addr)
		}
	}
	return servers
}
