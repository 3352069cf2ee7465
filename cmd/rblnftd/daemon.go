//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"rblnft/firewall"
	"rblnft/firewall/book"
	"rblnft/firewall/intake"
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
	queue    *intake.Queue
	table    *firewall.Table
	book     atomic.Pointer[book.Book]
	keeper   *book.Keeper
}

// finish bounds how long the end may take.
const finish = 10 * time.Second

// run does what the daemon is for, until a signal or a failure ends it.
func (d *daemon) run() (err error) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)

	unlock, err := lock(d.cfg.table.Table)
	if err != nil {
		return err
	}
	defer unlock()
	conn, closeSocket, err := d.hitsSocket()
	if err != nil {
		return err
	}
	defer closeSocket()
	// Hits are left in the socket until it is certain that something can be
	// done about them.
	if d.table, err = firewall.Open(d.cfg.table, d.log); err != nil {
		return err
	}
	defer d.table.Close()

	// Receiving is for as long as nobody wants the daemon to end; working is
	// until what was received is done.
	working, stopWorking := context.WithCancel(context.Background())
	defer stopWorking()
	tasks, ctx := errgroup.WithContext(working)
	receiving, stopReceiving := context.WithCancel(ctx)
	defer stopReceiving()

	// Hits are received from now on, however long the rest of the start takes.
	d.queue = intake.NewQueue(intake.QueueSize, func(reports []intake.Report) []bool {
		if b := d.book.Load(); b != nil {
			return b.Renews(reports)
		}
		return make([]bool, len(reports))
	})
	if d.receiver, err = intake.New(conn, d.cfg.intake, d.queue, d.log); err != nil {
		return err
	}
	tasks.Go(func() error { return d.receiver.Run(receiving) })

	b, err := book.Open(stateDirectory(), d.cfg.book, d.log)
	if err != nil {
		stopWorking()
		return errors.Join(err, tasks.Wait())
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	d.book.Store(b)
	d.keeper = book.NewKeeper(b, d.queue, d.table, d.log)
	filled := d.table.ToBeFilled()
	for family, yes := range filled {
		if yes {
			b.LeaveToTable(family == 1)
		}
	}
	debug.FreeOSMemory() // to read the journal takes more than to keep it

	tasks.Go(func() error { return d.table.Run(ctx, b) })
	tasks.Go(func() error { return b.Run(ctx) })
	tasks.Go(func() error {
		defer stopWorking()
		return d.keeper.Run(ctx)
	})
	if filled != [2]bool{true, true} {
		tasks.Go(func() error { return d.takeOver(ctx) })
	}
	tasks.Go(func() error { return d.notifier.Watchdog(ctx, d.alive) })
	tasks.Go(func() error { return d.showStatus(ctx) })
	tasks.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case s := <-signals:
				if s == syscall.SIGHUP {
					d.reload(ctx)
					continue
				}
				d.notifier.Stopping()
				d.log.Info("ending: finishing what was received", "signal", s.String(), "queued", d.queue.Len())
				stopReceiving()
				time.AfterFunc(finish, stopWorking)
			}
		}
	})
	d.notifier.Ready()
	d.log.Info("ready", "table", d.table.String(), "config", d.file, "state", stateDirectory())
	err = tasks.Wait()
	blocked, remembered := b.Len()
	d.log.Info("ended; the table stays", "blocked", blocked, "remembered", remembered,
		"received", d.receiver.Received(), "dropped", d.queue.Dropped())
	return err
}

// takeOver makes what the kernel's sets hold part of the book, and has put into
// them what they lack. To list a set takes the kernel time that grows with the
// square of its size, so that nobody waits for it.
func (d *daemon) takeOver(ctx context.Context) error {
	start := time.Now()
	elements := 0
	var unwanted []netip.Prefix
	var err error
	for range 5 {
		unwanted, err = d.book.Load().TakeOver(func() ([]firewall.Block, error) {
			all, err := d.table.Elements(ctx)
			elements = len(all)
			return all, err
		})
		if err == nil {
			break
		}
		// Somebody may have removed the table this very moment.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
	if err != nil {
		d.log.Error("the elements that are there are not taken over", "error", err)
	}
	d.keeper.Remove(unwanted)
	missing := d.keeper.CommitWaiting()
	blocked, remembered := d.book.Load().Len()
	d.log.Info("elements taken over", "elements", elements, "missing", missing,
		"blocked", blocked, "remembered", remembered, "took", time.Since(start).Round(time.Millisecond))
	debug.FreeOSMemory()
	return nil
}

// reload reads the configuration again. What is wrong with it is said, and the
// old one stays.
func (d *daemon) reload(ctx context.Context) {
	d.notifier.Reloading()
	defer d.notifier.Ready()
	cfg, err := load(d.file, d.given)
	if err != nil {
		d.log.Error("the configuration is bad: the old one stays in force", "error", err)
		return
	}
	now, next := d.cfg.table, cfg.table
	now.Allow, next.Allow = nil, nil
	if !reflect.DeepEqual(now, next) {
		d.log.Warn("ports, max_elements and [nftables] change when rblnftd is started again")
	}
	cfg.intake.Ports = d.cfg.intake.Ports
	cfg.book.MaxElements = d.cfg.book.MaxElements
	d.receiver.SetPolicy(cfg.intake)
	unblocked := d.book.Load().SetPolicy(cfg.book)
	if err := d.table.SetAllow(ctx, cfg.table.Allow); err != nil {
		d.log.Error("the kernel's allow list is the old one", "error", err)
	}
	d.keeper.Remove(unblocked)
	allow := cfg.table.Allow
	cfg.table = d.cfg.table
	cfg.table.Allow = allow
	d.cfg = cfg
	d.log.Info("configuration read again", "config", d.file, "unblocked", len(unblocked))
}

// hung is how long one turn of a loop may take.
const hung = 20 * time.Second

// alive returns what hangs.
func (d *daemon) alive() error {
	if busy := d.receiver.Busy(); busy > hung {
		return fmt.Errorf("the receiving loop has been busy with one datagram for %s", busy.Round(time.Second))
	}
	if busy := d.keeper.Busy(); busy > hung {
		return fmt.Errorf("the committing loop has been busy with one batch for %s", busy.Round(time.Second))
	}
	return nil
}

// showStatus keeps the line that systemctl status shows, and says what is lost.
func (d *daemon) showStatus(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	var dropped, full uint64
	var fullAt time.Time
	sometimes := rate.Sometimes{Interval: 10 * time.Second}
	for {
		if n := d.queue.Dropped(); n > dropped {
			sometimes.Do(func() {
				d.log.Warn("hits are dropped: they come faster than they can be dealt with", "dropped", n-dropped, "queued", d.queue.Len())
				dropped = n
			})
		}
		b := d.book.Load()
		blocked, remembered := b.Len()
		trouble := "all is well"
		if n := b.Decided(book.Full); n > full {
			full, fullAt = n, time.Now()
		}
		if full > 0 && time.Since(fullAt) < time.Minute {
			trouble = fmt.Sprintf("max_elements is reached, and others are not blocked: %d hits", full)
		}
		if d.table.Incomplete() {
			trouble = "the ruleset is not complete, and not ours to mend: see the log"
		}
		if err := b.NotPersisted(); err != nil {
			trouble = fmt.Sprintf("not persisted: %v", err)
		}
		if err := d.keeper.Failing(); err != nil {
			trouble = fmt.Sprintf("not committed: %v", err)
		}
		d.notifier.Status("%d blocked, %d remembered; %d hits, %d refused, %d dropped; %s",
			blocked, remembered, d.receiver.Received(), d.receiver.AllRefused(), d.queue.Dropped(), trouble)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// stateDirectory is where the journal is: what systemd gives (systemd.exec(5),
// StateDirectory=), the first of several. Empty: nothing is persisted.
func stateDirectory() string {
	all := filepath.SplitList(os.Getenv("STATE_DIRECTORY"))
	if len(all) == 0 {
		return ""
	}
	return all[0]
}

// lock makes sure that this is the only daemon that keeps a table: it binds an
// abstract socket, of which, as of the table, each network namespace has its own
// (unix(7), network_namespaces(7)).
func lock(table string) (unlock func(), err error) {
	name := "@rblnftd " + table
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("another rblnftd keeps table %s%s", table, holder(name))
	}
	if err != nil {
		return nil, fmt.Errorf("lock for table %s: %w", table, err)
	}
	return func() { l.Close() }, nil
}

// holder says who listens on a socket.
func holder(name string) string {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return ""
	}
	defer conn.Close()
	who := ""
	if raw, err := conn.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
				who = fmt.Sprintf(": process %d of user %d", cred.Pid, cred.Uid)
			}
		})
	}
	return who
}
