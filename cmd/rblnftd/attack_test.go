//go:build linux

package main

import (
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// attacker in the environment has the test binary attack the socket that it names,
// for as long as the other variable says.
const attacker = "RBLNFT_TEST_ATTACK"

// attack does its worst to a hits socket, and prints what became of it.
func attack(path string) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		fmt.Println("connect:", err)
		return
	}
	// A connection whose end nobody acknowledges, and that lingers when it is closed.
	linger := func() int {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			panic(err)
		}
		f, err := c.(*net.TCPConn).File()
		if err != nil {
			panic(err)
		}
		unix.SetsockoptLinger(int(f.Fd()), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 3600})
		for range 4000 { // what the other end never reads
			if _, err := unix.SendmsgN(int(f.Fd()), make([]byte, 1<<16), nil, nil, unix.MSG_DONTWAIT); err != nil {
				break
			}
		}
		return int(f.Fd())
	}()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		panic(err)
	}
	unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(pair[1], linger), nil, 0) // nested
	good := []byte("rblnft/1 addr=192.0.2.66 zone=bl.example code=127.0.0.2 answer=553 x\n")
	turnedAway, taken := 0, 0
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		for _, fds := range [][]int{{linger}, {linger, linger, linger}, {pair[1]}, {pair[0], pair[1], linger, fd}} {
			if err := unix.Sendmsg(fd, good, unix.UnixRights(fds...), nil, unix.MSG_DONTWAIT); err == unix.EPERM {
				turnedAway++
			} else if err == nil {
				taken++
			}
		}
		garbage := make([]byte, 1500)
		rand.Read(garbage)
		for i := range 2000 {
			unix.Sendto(fd, garbage[i%1000:], unix.MSG_DONTWAIT, nil)
		}
	}
	unix.Close(linger)
	fmt.Printf("descriptors: %d turned away, %d taken\n", turnedAway, taken)
	os.Exit(0)
}

// A user who may not write to the socket reaches nothing. One who may can send what he
// likes, descriptors that take an hour to close among it: hits of others go on, and
// nothing of his stays open.
func TestAttack(t *testing.T) {
	const group = 4321
	s := newSite(t, fmt.Sprintf("socket_group = %d\n", group))
	for dir := filepath.Dir(s.socket); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755)
	}
	s.start()
	as := func(gid uint32, name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), attacker+"="+s.socket)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: gid, Groups: []uint32{}}}
		return cmd
	}
	self := filepath.Join(t.TempDir(), "attack")
	if out, err := exec.Command("cp", os.Args[0], self).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	os.Chmod(filepath.Dir(self), 0o755)
	os.Chmod(filepath.Dir(filepath.Dir(self)), 0o755)

	out, err := as(65534, self).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "connect: permission denied") {
		t.Errorf("a stranger: %v, %s", err, out)
	}
	for _, path := range []string{filepath.Join(s.state, "blocks"), filepath.Join(s.state, "lock")} {
		if out, err := as(65534, "cat", path).CombinedOutput(); err == nil {
			t.Errorf("a stranger reads %s: %s", path, out)
		}
	}

	before := s.descriptors()
	done := make(chan []byte)
	go func() {
		out, err := as(group, self).CombinedOutput()
		done <- append(out, fmt.Sprint(err)...)
	}()
	blocked := 0
	for i := 0; ; i++ {
		select {
		case out := <-done:
			t.Logf("%d hits of others were blocked meanwhile; %s", blocked, out)
			if !strings.Contains(string(out), "<nil>") || strings.Contains(string(out), "connect") {
				t.Errorf("the attack: %s", out)
			}
			if blocked == 0 {
				t.Error("no hit of others came through")
			}
			for end := time.Now().Add(20 * time.Second); s.descriptors() > before; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d descriptors are open, %d before", s.descriptors(), before)
				}
			}
			if lines := len(s.log(0)); lines > blocked+20 {
				t.Errorf("%d lines in the log", lines)
			}
			s.end()
			return
		default:
		}
		addr := netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}).String()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) { // as the filter does
			if sent, err := send(s.socket, hitOf(addr)); sent {
				break
			} else if err != nil || time.Now().After(end) {
				t.Fatalf("a hit: %v", err)
			}
		}
		s.await(0, "blocked addr="+addr+" ")
		blocked++
	}
}
