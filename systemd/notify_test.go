//go:build linux

package systemd

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// manager is the socket that systemd listens on for the service.
func manager(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

// heard returns the next notification, or nothing if none comes within d.
func heard(t *testing.T, conn *net.UnixConn, d time.Duration) string {
	t.Helper()
	b := make([]byte, 4096)
	conn.SetReadDeadline(time.Now().Add(d))
	n, err := conn.Read(b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

func TestNotifier(t *testing.T) {
	conn := manager(t)
	var n Notifier
	n.Ready()
	n.Status("%d blocked", 7)
	n.Status("%d blocked", 7)
	n.Status("two\nlines")
	n.Stopping()
	for _, want := range []string{"READY=1", "STATUS=7 blocked", "STATUS=two lines", "STOPPING=1"} {
		if got := heard(t, conn, 10*time.Second); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	var before, after unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &before)
	n.Reloading()
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &after)
	got := heard(t, conn, 10*time.Second)
	text, ok := strings.CutPrefix(got, "RELOADING=1\nMONOTONIC_USEC=")
	usec, err := strconv.ParseInt(text, 10, 64)
	if !ok || err != nil || usec < before.Nano()/1000 || usec > after.Nano()/1000 {
		t.Errorf("%q, want RELOADING=1 and a MONOTONIC_USEC of now", got)
	}
}

func TestNotifierWithoutSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	var n Notifier
	n.Ready()
	n.Reloading()
	n.Status("x")
	n.Stopping()
	if err := n.Watchdog(context.Background(), func() error { panic("asked without a watchdog") }); err != nil {
		t.Error(err)
	}
}

func TestWatchdog(t *testing.T) {
	conn := manager(t)
	t.Setenv("WATCHDOG_USEC", "60000")
	t.Setenv("WATCHDOG_PID", "")
	var hung atomic.Bool
	ctx, cancel := context.WithCancel(context.Background())
	var n Notifier
	done := make(chan error)
	go func() {
		done <- n.Watchdog(ctx, func() error {
			if hung.Load() {
				return errors.New("the commit loop")
			}
			return nil
		})
	}()
	for range 3 {
		if got := heard(t, conn, 10*time.Second); got != "WATCHDOG=1" {
			t.Fatalf("%q while alive", got)
		}
	}
	hung.Store(true)
	for { // what was sent before
		got := heard(t, conn, 10*time.Second)
		if got == "STATUS=hanging: the commit loop" {
			break
		}
		if got != "WATCHDOG=1" {
			t.Fatalf("%q while hanging", got)
		}
	}
	if got := heard(t, conn, 300*time.Millisecond); got != "" {
		t.Errorf("%q while hanging", got)
	}
	hung.Store(false)
	if got := heard(t, conn, 10*time.Second); got != "WATCHDOG=1" {
		t.Errorf("%q when alive again", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWatchdogEnvironment(t *testing.T) {
	for _, usec := range []string{"x", "-5", "0"} {
		t.Setenv("WATCHDOG_USEC", usec)
		if err := new(Notifier).Watchdog(context.Background(), nil); err == nil {
			t.Errorf("$WATCHDOG_USEC %q: no error", usec)
		}
	}
}
