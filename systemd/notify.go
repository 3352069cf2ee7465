//go:build linux

package systemd

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// A Notifier tells systemd how the service is doing (sd_notify(3)). The zero
// Notifier is ready for use; where systemd does not listen it does nothing. Its
// methods may be called from several goroutines.
type Notifier struct {
	// Log is told that systemd cannot be told, once. It may be nil.
	Log *slog.Logger

	mu     sync.Mutex
	status string
	failed bool
}

// Ready says that the service is up, or has finished what Reloading began.
func (n *Notifier) Ready() { n.send(daemon.SdNotifyReady) }

// Reloading says that the service reads its configuration again, until Ready.
// It carries the time that Type=notify-reload asks for (sd_notify(3)), which
// systemd knows since version 253.
func (n *Notifier) Reloading() {
	state := daemon.SdNotifyReloading
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) == nil {
		state += fmt.Sprintf("\nMONOTONIC_USEC=%d", now.Nano()/1000)
	}
	n.send(state)
}

// Stopping says that the service is about to end.
func (n *Notifier) Stopping() { n.send(daemon.SdNotifyStopping) }

// Status sets the line that systemctl status shows. It is cheap to call with a
// line that has not changed.
func (n *Notifier) Status(format string, args ...any) {
	status := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " ")
	n.mu.Lock()
	same := status == n.status
	n.status = status
	n.mu.Unlock()
	if !same {
		n.send("STATUS=" + status)
	}
}

// Watchdog keeps systemd's watchdog (WatchdogSec=, systemd.service(5)) content
// for as long as alive returns nil, which it asks three times in the watchdog's
// interval. What else alive returns is logged, and systemd, no longer hearing
// of the service, ends it and starts it anew. Watchdog returns when ctx is done,
// and at once where there is no watchdog; the error is that of a malformed
// $WATCHDOG_USEC or $WATCHDOG_PID.
func (n *Notifier) Watchdog(ctx context.Context, alive func() error) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	if interval == 0 {
		return nil
	}
	tick := time.NewTicker(max(interval/3, time.Millisecond))
	defer tick.Stop()
	hung := false
	for {
		if err := alive(); err == nil {
			hung = false
			n.send(daemon.SdNotifyWatchdog)
		} else if !hung {
			hung = true
			if n.Log != nil {
				n.Log.Error("hanging: the watchdog is about to end the service", "error", err, "watchdog", interval)
			}
			n.Status("hanging: %v", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// send tells systemd. That it cannot be told is no reason not to go on.
func (n *Notifier) send(state string) {
	_, err := daemon.SdNotify(false, state)
	n.mu.Lock()
	first := err != nil && !n.failed
	n.failed = err != nil
	n.mu.Unlock()
	if first && n.Log != nil {
		n.Log.Warn("systemd cannot be notified", "error", err)
	}
}
