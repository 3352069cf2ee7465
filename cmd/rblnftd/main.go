//go:build linux

// Rblnftd keeps clients that a DNSBL lists away from the mail port: it receives
// the hits that rblsmtpd(8) reports, and blocks their addresses for a while in
// an nftables table.
//
//	rblnftd [-t | -d] [-c FILE] [-s PATH]
//
// It runs on the socket that systemd(1) hands over, or with -s on one of its
// own. Without -c the configuration is /etc/rblnft/rblnftd.toml, if there is
// one. -t only checks it; -d removes what it names in the kernel, for those who are
// done with it.
//
// SIGHUP has it read the configuration again. SIGTERM has it finish what it
// received, and end; the table stays, and goes on blocking. It exits 100 for bad
// options, a bad configuration, or something of somebody else's under the names that
// it needs, and 111 if it cannot do its work.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"rblnft/firewall/nft"
	"rblnft/firewall/ruleset"
	"rblnft/systemd"
)

const usage = "usage: rblnftd [-t | -d] [-c FILE] [-s PATH]\n"

const (
	exitUsage   = 100
	exitFailure = 111
)

func main() {
	flags := flag.NewFlagSet("rblnftd", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	file := flags.String("c", "", "configuration `FILE`")
	path := flags.String("s", "", "`PATH` of an own hits socket")
	test := flags.Bool("t", false, "test the configuration")
	del := flags.Bool("d", false, "delete the table")
	err := flags.Parse(os.Args[1:])
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err == nil && *test && *del {
		err = errors.New("-t and -d exclude each other")
	}
	if errors.Is(err, flag.ErrHelp) {
		die(exitUsage, usage)
	}
	if err != nil {
		die(exitUsage, "rblnftd: %v\n%s", err, usage)
	}
	given := *file != ""
	if !given {
		*file = defaultFile
	}
	cfg, err := load(*file, given)
	if err != nil {
		die(exitUsage, "%v\n", err)
	}
	if *test {
		return
	}
	if *del {
		conn, err := nft.Dial()
		if err == nil {
			err = ruleset.Remove(conn, cfg.Ruleset, nil)
		}
		if err != nil {
			die(exitFailure, "rblnftd: %v\n", err)
		}
		return
	}
	// Whoever reads the log may go away.
	signal.Ignore(syscall.SIGPIPE)
	handler := systemd.NewLogHandler()
	d := daemon{file: *file, given: given, socket: *path, cfg: cfg, log: slog.New(handler)}
	d.notifier.Log = d.log
	if err = d.run(); err != nil {
		d.log.Error("rblnftd ends", "error", err)
	}
	handler.Flush(time.Second)
	var inTheWay *ruleset.InTheWay
	switch {
	case errors.As(err, &inTheWay):
		os.Exit(exitUsage)
	case err != nil:
		os.Exit(exitFailure)
	}
}

func die(code int, format string, args ...any) {
	fmt.Fprintf(os.Stderr, format, args...)
	os.Exit(code)
}
