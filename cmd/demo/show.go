//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"rblnft/firewall/hit"
	"rblnft/firewall/netlab"
	"rblnft/firewall/nft"
	"rblnft/firewall/ruleset"
)

// Who is who.
const (
	mailServer = "192.0.2.25:25"
	dnsServer  = "127.0.0.53"
)

var (
	listedClient = mustAddr("192.0.2.66")
	otherClient  = mustAddr("198.51.100.7")
)

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }

// show is the demonstration, of the programs in dir.
func show(dir string) error {
	work, err := os.MkdirTemp("", "rblnft-demo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := netlab.Up(); err != nil {
		return err
	}
	// Where nft(8) is, and where not every user looks.
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin"); err != nil {
		return err
	}
	stopDNS, err := serveDNSBL(net.JoinHostPort(dnsServer, "53"))
	if err != nil {
		return fmt.Errorf("the DNSBL: %w", err)
	}
	defer stopDNS()
	l, err := net.Listen("tcp", mailServer)
	if err != nil {
		return fmt.Errorf("the mail server: %w", err)
	}
	defer l.Close()

	socket := filepath.Join(work, "hits.sock")
	config := filepath.Join(work, "rblnftd.toml")
	if err := os.WriteFile(config, nil, 0o644); err != nil {
		return err
	}
	daemon, err := start(dir, "rblnftd", []string{"PATH=" + os.Getenv("PATH")}, "-c", config, "-s", socket)
	if err != nil {
		return fmt.Errorf("the daemon: %w", err)
	}
	defer func() {
		daemon.Process.Signal(syscall.SIGTERM)
		daemon.Wait()
	}()
	if err := await("the daemon's socket", func() bool { _, err := os.Stat(socket); return err == nil }); err != nil {
		return err
	}
	env := []string{"PATH=" + os.Getenv("PATH"), "DNSCACHEIP=" + dnsServer, hit.SocketEnv + "=" + socket}
	if err := serveSMTP(l, dir, env); err != nil {
		return err
	}

	for _, act := range []struct {
		title string
		play  func() error
	}{
		{fmt.Sprintf("A client that %s lists, %s, connects to %s", zone, listedClient, mailServer), listedOnce},
		{"It connects again", listedAgain},
		{fmt.Sprintf("Another client, %s, connects", otherClient), notListed},
	} {
		fmt.Printf("\n%s:\n\n", act.title)
		if err := act.play(); err != nil {
			return fmt.Errorf("%s: %w", act.title, err)
		}
	}
	fmt.Print("\nAll of it happened: the 553 arrived, the kernel dropped the next connection, and nobody else noticed.\n")
	return nil
}

// listedOnce is blocked while its conversation goes on, and gets to its end.
func listedOnce() error {
	c, err := connect(listedClient)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	if err := errors.Join(c.expect("220 rblsmtpd.local"), c.say("EHLO spam.example", "250 ")); err != nil {
		return err
	}
	if err := await("the address in the set", blocked); err != nil {
		return err
	}
	fmt.Print("\n  By now its address is in the kernel's set; nft list set inet rblnft blocked4 prints\n\n")
	if err := listSet(); err != nil {
		return err
	}
	fmt.Print("\n  and its conversation goes on to the end:\n\n")
	return errors.Join(
		c.say("MAIL FROM:<win@spam.example>", "250 "),
		c.say("RCPT TO:<you@mail.example>", "553 "+listing),
		c.say("QUIT", "221 "))
}

func listedAgain() error {
	began := time.Now()
	c, err := connect(listedClient)
	took := time.Since(began).Round(100 * time.Millisecond)
	if err == nil {
		c.conn.Close()
		return errors.New("the connection was accepted")
	}
	if !isTimeout(err) {
		return err
	}
	fmt.Printf("    no answer in %v: the kernel drops its SYN packets, no process was started, no list was asked\n", took)
	return nil
}

func notListed() error {
	began := time.Now()
	c, err := connect(otherClient)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	if err := c.expect("220 mail.example"); err != nil {
		return err
	}
	fmt.Printf("\n  after %v, the greeting of the mail server behind the filter.\n\n", time.Since(began).Round(100*time.Microsecond))
	return c.say("QUIT", "221 ")
}

// blocked asks the kernel whether the listed client is in the set.
func blocked() bool {
	kernel, err := nft.Dial()
	if err != nil {
		return false
	}
	defer kernel.Close()
	found, err := kernel.Ask(ruleset.Default().Table, ruleset.Default().Blocked[0], []netip.Addr{listedClient})
	return err == nil && found[0]
}

// listSet shows what nft prints, or that there is no nft.
func listSet() error {
	out, err := exec.Command("nft", "list", "set", "inet", "rblnft", "blocked4").Output()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		fmt.Printf("    (nothing, as it is not installed here; the kernel says that the set has %s)\n", listedClient)
	case err != nil:
		return fmt.Errorf("nft list set: %w", err)
	default:
		indent(string(out))
	}
	return nil
}

// await waits until something is true, for ten seconds at most.
func await(what string, is func() bool) error {
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("%s: not there after 10 s", what)
		}
	}
	return nil
}

// quote shows a program's log.
func quote(name string, log io.Reader) {
	for lines := bufio.NewScanner(log); lines.Scan(); {
		fmt.Printf("      [%s] %s\n", name, lines.Text())
	}
}

func indent(text string) {
	for line := range strings.Lines(text) {
		fmt.Print("    " + line)
	}
}
