//go:build linux

package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"rblnft/firewall"
	"rblnft/firewall/hit"
	"rblnft/firewall/intake"
	"rblnft/firewall/store"
	"rblnft/systemd"
)

// A daemon is the program between its start and its end.
type daemon struct {
	file   string // of the configuration
	given  bool   // by -c
	socket string // by -s
	cfg    config
	log    *slog.Logger

	notifier systemd.Notifier
	receiver *intake.Receiver
	firewall *firewall.Firewall
	store    *store.Store
}

// finish bounds how long the end may take, twice: to finish what was received, and to
// store it.
const finish = 10 * time.Second

// run does what the daemon is for, until a signal or a failure ends it.
func (d *daemon) run() error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)

	var err error
	// What systemd gives (systemd.exec(5), StateDirectory=), the first of several.
	// Without one nothing is persisted.
	state, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":")
	if state != "" {
		if d.store, err = store.Open(state, store.Now, d.log); err != nil {
			return err
		}
	}
	conn, closeSocket, err := d.hitsSocket()
	if err != nil {
		return err
	}
	defer closeSocket()
	// Hits are left in the socket until it is certain that something can be done
	// about them.
	if d.firewall, err = firewall.Open(d.cfg.Config, d.store, d.log); err != nil {
		return err
	}
	defer d.firewall.Close()
	if d.receiver, err = intake.New(conn, d.log); err != nil {
		return err
	}
	debug.FreeOSMemory() // to read the state takes more than to keep it

	// Receiving ends first, then working: when what was received is done, or no
	// later than finish; then storing.
	all, stopWorking := context.WithCancel(context.Background())
	defer stopWorking()
	tasks, working := errgroup.WithContext(all)
	receiving, stopReceiving := context.WithCancel(working)
	defer stopReceiving()
	storing, stopStoring := context.WithCancel(context.Background())
	stored := make(chan error, 1)
	go func() { stored <- d.store.Run(storing) }()

	hits := make(chan []hit.Hit, intake.Bursts)
	tasks.Go(func() error { return d.receiver.Run(receiving, hits) })
	tasks.Go(func() error {
		defer stopWorking()
		err := d.firewall.Run(working, hits)
		for range hits { // the receiver waits for nobody
		}
		return err
	})
	tasks.Go(func() error { return d.notifier.Watchdog(working, d.alive) })
	tasks.Go(func() error { return d.showStatus(working) })
	tasks.Go(func() error {
		for {
			select {
			case <-working.Done():
				return nil
			case s := <-signals:
				if s == syscall.SIGHUP {
					d.reload(working)
					continue
				}
				d.notifier.Stopping()
				d.log.Info("ending: finishing what was received", "signal", s.String())
				stopReceiving()
				time.AfterFunc(finish, stopWorking)
			}
		}
	})
	d.notifier.Ready()
	d.log.Info("ready", "config", d.source(), "state", state)
	err = tasks.Wait()
	stopStoring()
	select {
	case <-stored:
	case <-time.After(finish): // a disk that hangs
	}
	s := d.firewall.Status()
	d.log.Info("ended; the table stays", "blocked", s.Blocked, "remembered", s.Remembered,
		"waiting", s.Waiting, "received", d.receiver.Received())
	return err
}

// source is where the configuration comes from, for people.
func (d *daemon) source() string {
	if _, err := os.Stat(d.file); err != nil {
		return "defaults"
	}
	return d.file
}

// reload reads the configuration again. What is wrong with it is said, and the
// old one stays.
func (d *daemon) reload(ctx context.Context) {
	d.notifier.Reloading()
	defer d.notifier.Ready()
	cfg, err := load(d.file, d.given)
	if err == nil {
		err = d.firewall.Reload(ctx, cfg.Config)
	}
	if err != nil {
		d.log.Error("the configuration is bad: the old one stays in force", "error", err)
		return
	}
	d.cfg = cfg
	d.log.Info("configuration read again", "config", d.source())
}

// hung is how long one turn of a loop may take.
const hung = 20 * time.Second

// alive returns what hangs. That the kernel keeps us waiting, with somebody else's
// transaction, is not our fault, and killing us does not help.
func (d *daemon) alive() error {
	if busy := d.receiver.Busy(); busy > hung {
		return fmt.Errorf("the receiver has been in one system call for %s", busy.Round(time.Second))
	}
	if busy, kernel := d.firewall.Busy(); busy > hung && !kernel {
		return fmt.Errorf("the loop has been at one thing for %s", busy.Round(time.Second))
	}
	return nil
}

// statusInterval is how often the line is made that systemctl status shows.
const statusInterval = 2 * time.Second

// showStatus keeps that line.
func (d *daemon) showStatus(ctx context.Context) error {
	for ctx.Err() == nil {
		s := d.firewall.Status()
		problem := cmp.Or(s.Problem, "all is well")
		if d.receiver.Busy() > statusInterval {
			problem = "the receiver hangs"
		}
		if busy, kernel := d.firewall.Busy(); busy > statusInterval && kernel {
			problem = fmt.Sprintf("waiting for the kernel for %s: somebody else changes the ruleset", busy.Round(time.Second))
		}
		d.notifier.Status("%d blocked, %d remembered; %d hits received, %d datagrams refused; %s",
			s.Blocked, s.Remembered, d.receiver.Received(), d.receiver.Refused(), problem)
		select {
		case <-ctx.Done():
		case <-time.After(statusInterval):
		}
	}
	return nil
}
