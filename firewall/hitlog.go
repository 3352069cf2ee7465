//go:build linux

package firewall

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"rblnft/firewall/book"
	"rblnft/firewall/hit"
)

const (
	// Of so many hits a second, where they last, each has its line in the log.
	linesPerSecond = 200
	linesAtOnce    = 2000
	// countInterval is how often it is logged how many others there were.
	countInterval = 10 * time.Second
)

// A hitLog writes what becomes of hits: of one that blocks its address when the
// kernel has the element.
type hitLog struct {
	log      *slog.Logger
	lines    *rate.Limiter
	unlogged int
	nextSum  time.Time
	batch    int
	counts   map[book.Decision]uint64
}

func newHitLog(log *slog.Logger) hitLog {
	return hitLog{log: log, lines: rate.NewLimiter(linesPerSecond, linesAtOnce), counts: map[book.Decision]uint64{}}
}

// decided takes note of what the book says of a hit.
func (l *hitLog) decided(h hit.Hit, d book.Decision, seen int) {
	l.counts[d]++
	switch d {
	case book.Blocked, book.Renewed, book.Kept:
		return
	}
	if l.allow() {
		attrs := []slog.Attr{slog.String("addr", h.Addr.String()), slog.String("zone", h.Zone), slog.String("code", text(h.Code)), slog.String("decision", string(d))}
		if d == book.Counted {
			attrs = append(attrs, slog.Int("hits", seen))
		}
		l.log.LogAttrs(context.Background(), slog.LevelInfo, "not blocked", attrs...)
	}
}

// blocked says that the kernel drops a client's connections from now on.
func (l *hitLog) blocked(p book.Pending, r book.Record, renewed bool, left time.Duration, element string) {
	if !l.allow() {
		return
	}
	decision := book.Blocked
	if renewed {
		decision = book.Renewed
	}
	l.log.LogAttrs(context.Background(), slog.LevelInfo, "blocked",
		slog.String("addr", p.Client().String()),
		slog.String("zone", r.Zone),
		slog.String("code", text(p.Code())),
		slog.String("decision", string(decision)),
		slog.String("prefix", r.Key.Prefix().String()),
		slog.Duration("timeout", left.Round(time.Second)),
		slog.String("expires", time.Now().Add(left).UTC().Format("2006-01-02T15:04:05.000Z")),
		slog.Int("returns", r.Returns),
		slog.Int("batch", l.batch),
		slog.String("element", element))
}

// unblocked says that a block was taken back.
func (l *hitLog) unblocked(p book.Pending) {
	if l.allow() {
		l.log.LogAttrs(context.Background(), slog.LevelInfo, "unblocked", slog.Any("addr", p.Key.Prefix()))
	}
}

func (l *hitLog) allow() bool {
	now := time.Now()
	ok := l.lines.AllowN(now, 1)
	if !ok {
		l.unlogged++
	}
	if l.unlogged > 0 && now.After(l.nextSum) {
		l.log.Info("more hits than are logged one by one", "more", l.unlogged)
		l.unlogged, l.nextSum = 0, now.Add(countInterval)
	}
	return ok
}

func text(code netip.Addr) string {
	if !code.IsValid() {
		return "-"
	}
	return code.String()
}
