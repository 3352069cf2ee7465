//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"rblnft/firewall/firewalltest"
	"rblnft/firewall/hit"
)

// numbered returns the nth address of 2^24.
func numbered(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{31, byte(n >> 16), byte(n >> 8), byte(n)})
}

// stream sends hits through one socket, waiting where the daemon's queue is
// full.
type stream struct {
	b  testing.TB
	fd int
}

func newStream(b testing.TB, path string) *stream {
	b.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Close(fd) })
	return &stream{b: b, fd: fd}
}

// hitLine returns a hit's line.
func hitLine(addr netip.Addr) []byte {
	h := hit.Hit{Addr: addr, Zone: "zen.spamhaus.example", Code: netip.AddrFrom4([4]byte{127, 0, 0, 2}), Answer: "553 listed"}
	return h.Append(nil)
}

func (s *stream) send(addr netip.Addr) { s.write(hitLine(addr)) }

func (s *stream) write(line []byte) {
	// Raw: Go's scheduler would take a part of the processor that is the daemon's.
	if _, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(s.fd), uintptr(unsafe.Pointer(&line[0])), uintptr(len(line))); errno != 0 {
		s.b.Fatal(errno)
	}
}

// longQueues gives sockets the queue that systemd gives them (sysctl.d(5),
// 50-default.conf).
func longQueues(b testing.TB) {
	b.Helper()
	if err := os.WriteFile("/proc/sys/net/unix/max_dgram_qlen", []byte("512"), 0); err != nil {
		b.Fatal(err)
	}
}

// How many hits a second go from datagrams into the kernel, beside raw
// insertion. The log has a line for each, but for more than are logged.
func BenchmarkThroughput(b *testing.B) {
	longQueues(b)
	const n = 300_000
	for b.Loop() {
		alone := firewalltest.InsertRaw(b, n, numbered)
		s := newSite(b, "")
		s.start()
		lines := make([][]byte, n)
		for i := range lines {
			lines[i] = hitLine(numbered(i))
		}
		to := newStream(b, s.socket)
		start := time.Now()
		for _, line := range lines {
			to.write(line)
		}
		sent := time.Since(start)
		from := s.logged()
		s.signal(syscall.SIGTERM)
		s.wait()
		took := time.Since(start)
		end := s.await(from, "rblnftd: ended")
		if !strings.Contains(end, fmt.Sprintf("blocked=%d ", n)) {
			b.Fatal(end)
		}
		b.ReportMetric(n/alone.Seconds(), "raw/s")
		b.ReportMetric(n/took.Seconds(), "hits/s")
		b.ReportMetric(alone.Seconds()/took.Seconds(), "of-raw")
		b.ReportMetric(n/sent.Seconds(), "sent/s")
		b.ReportMetric(s.used.Seconds()*1e6/n, "cpu-µs/hit")
	}
}

// How long a hit takes from its sending until the kernel says that its element
// is there, at 1,000 hits a second.
func BenchmarkLatency(b *testing.B) {
	longQueues(b)
	for b.Loop() {
		const n = 5000
		s := newSite(b, "")
		s.start()
		nl, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{MessageBufferSize: 1 << 16})
		if err != nil {
			b.Fatal(err)
		}
		if err := errors.Join(nl.SetReadBuffer(64<<20), nl.JoinGroup(unix.NFNLGRP_NFTABLES), nl.SetReadDeadline(time.Now().Add(30*time.Second))); err != nil {
			b.Fatal(err)
		}
		seen := make(chan []time.Duration)
		sent := make([]time.Time, n)
		go func() {
			var all []time.Duration
			for len(all) < n {
				messages, err := nl.Receive()
				if err != nil {
					b.Error(err)
					break
				}
				now := time.Now()
				for _, m := range messages {
					if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWSETELEM {
						for _, key := range keys(b, m.Data) {
							all = append(all, now.Sub(sent[binary.BigEndian.Uint32(key)&0xffffff]))
						}
					}
				}
			}
			seen <- all
		}()
		to := newStream(b, s.socket)
		tick := time.NewTicker(time.Millisecond)
		for i := range n {
			<-tick.C
			sent[i] = time.Now()
			to.send(numbered(i))
		}
		tick.Stop()
		all := <-seen
		nl.Close()
		if len(all) < n {
			b.Fatalf("the kernel told of %d elements", len(all))
		}
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds()), "median-µs")
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "99th-µs")
		b.ReportMetric(float64(all[len(all)-1].Microseconds()), "max-µs")
		s.end()
	}
}

// keys returns the keys of the elements in a NFT_MSG_NEWSETELEM.
func keys(b *testing.B, body []byte) (keys [][]byte) {
	attrs, err := netlink.NewAttributeDecoder(body[4:])
	if err != nil {
		b.Fatal(err)
	}
	for attrs.Next() {
		if attrs.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		attrs.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				list.Nested(func(element *netlink.AttributeDecoder) error {
					for element.Next() {
						if element.Type() != unix.NFTA_SET_ELEM_KEY {
							continue
						}
						element.Nested(func(data *netlink.AttributeDecoder) error {
							for data.Next() {
								keys = append(keys, data.Bytes())
							}
							return nil
						})
					}
					return nil
				})
			}
			return nil
		})
	}
	return keys
}

// The daemon's resident memory with so many addresses blocked, when they came as
// hits and after another start, and how long that start takes with and without
// the kernel's table.
func BenchmarkMemory(b *testing.B) {
	longQueues(b)
	for _, n := range []int{0, 100_000, 1_000_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			for b.Loop() {
				s := newSite(b, "")
				s.start()
				to := newStream(b, s.socket)
				for i := range n {
					to.send(numbered(i))
					if i%1000 == 999 {
						time.Sleep(10 * time.Millisecond) // no faster than it can
					}
				}
				time.Sleep(8 * time.Second)
				b.ReportMetric(s.resident(), "MB")
				from := s.logged()
				s.end()
				if end := s.await(from, "rblnftd: ended"); !strings.Contains(end, fmt.Sprintf("blocked=%d ", n)) {
					b.Fatal(end)
				}
				start := time.Now()
				s.start()
				b.ReportMetric(time.Since(start).Seconds(), "start-s")
				time.Sleep(time.Second)
				b.ReportMetric(s.resident(), "restarted-MB")
				s.end()
				if n == 0 {
					continue
				}
				alone := firewalltest.InsertRaw(b, n, numbered)
				start = time.Now()
				from = s.logged()
				s.start()
				s.await(from, "elements restored", "set=blocked4", fmt.Sprintf("restored=%d", n))
				b.ReportMetric(time.Since(start).Seconds(), "restore-s")
				b.ReportMetric(alone.Seconds(), "raw-s")
				time.Sleep(10 * time.Second)
				b.ReportMetric(s.resident(), "restored-MB")
				s.end()
			}
		})
	}
}

// resident returns the daemon's VmRSS in megabytes.
func (s *site) resident() float64 {
	s.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		s.t.Fatal(err)
	}
	return float64(kb) / 1024
}
