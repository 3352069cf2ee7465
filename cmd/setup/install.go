package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"

	"rblnft/firewall/hit"
)

// A target is where to install to.
type target struct {
	layout
	destdir string // $DESTDIR: put before every path; nothing of the machine is touched
}

// newTarget reads $DESTDIR and $PREFIX.
func newTarget() (target, error) {
	prefix := os.Getenv("PREFIX")
	if prefix == "" {
		prefix = "/usr/local"
	}
	if !filepath.IsAbs(prefix) {
		return target{}, fmt.Errorf("$PREFIX %q is no absolute path", prefix)
	}
	destdir := os.Getenv("DESTDIR")
	if destdir != "" {
		var err error
		if destdir, err = filepath.Abs(destdir); err != nil {
			return target{}, err
		}
	}
	return target{local(filepath.Clean(prefix)), destdir}, nil
}

// live reports whether this machine is installed to, and systemd runs it
// (sd_booted(3)).
func (t target) live() bool {
	_, err := os.Stat("/run/systemd/system")
	return t.destdir == "" && err == nil
}

// What systemd is told of.
const (
	socketUnit  = "rblnftd.socket"
	serviceUnit = "rblnftd.service"
	daemonUser  = "rblnftd"
)

// stateDirs are what "uninstall" leaves and "uninstall -purge" removes.
var stateDirs = []string{"/etc/rblnft", "/var/lib/rblnft"}

// install puts all files in place. On a machine that systemd runs it has the
// socket listen, now and after every boot, and the daemon started at boot; one
// that runs is started anew if anything has changed. It may be repeated. A mail
// server that runs is not touched: its next connection has the new filter, if
// its run script names it.
func install() error {
	t, err := newTarget()
	if err != nil {
		return err
	}
	files, err := t.files()
	if err != nil {
		return err
	}
	changed := map[string]bool{}
	for _, f := range files {
		if !f.same(t.destdir) {
			changed[filepath.Base(f.path)] = true
			if err := f.put(t.destdir); err != nil {
				return err
			}
		}
		fmt.Println(filepath.Join(t.destdir, f.path))
	}
	if t.destdir != "" {
		return nil
	}
	if err := command("systemd-sysusers", filepath.Join(t.systemd, "sysusers.d/rblnft.conf")); err != nil {
		return err
	}
	if !t.live() {
		return nil
	}
	steps := [][]string{
		{"journalctl", "--update-catalog"},
		{"systemctl", "daemon-reload"},
		{"systemctl", "--quiet", "enable", socketUnit, serviceUnit},
	}
	switch {
	case changed[socketUnit]:
		// What listens does so as the old file said. The daemon, which
		// requires it, is started anew with it if it runs.
		steps = append(steps, []string{"systemctl", "restart", socketUnit})
	case len(changed) > 0:
		steps = append(steps, []string{"systemctl", "start", socketUnit}, []string{"systemctl", "try-restart", serviceUnit})
	default:
		steps = append(steps, []string{"systemctl", "start", socketUnit})
	}
	for _, s := range steps {
		if err := command(s[0], s[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// uninstall takes away what install has put in place, and the nftables table.
// Configuration, state, and the user that owns the state stay, unless purge is
// set.
func uninstall(purge bool) error {
	t, err := newTarget()
	if err != nil {
		return err
	}
	var errs []error
	if _, err := os.Stat(filepath.Join(t.units, serviceUnit)); t.live() && err == nil {
		errs = append(errs, command("systemctl", "--quiet", "disable", "--now", socketUnit, serviceUnit))
	}
	for _, path := range t.paths() {
		errs = append(errs, remove(filepath.Join(t.destdir, path), t.destdir))
	}
	if t.destdir == "" {
		errs = append(errs, removeTable(), os.RemoveAll(filepath.Dir(hit.DefaultSocket)))
	}
	if t.live() {
		errs = append(errs, command("journalctl", "--update-catalog"), command("systemctl", "daemon-reload"))
		// It may have failed before, which systemd would remember.
		exec.Command("systemctl", "reset-failed", socketUnit, serviceUnit).Run()
	}
	if purge {
		for _, dir := range stateDirs {
			errs = append(errs, os.RemoveAll(filepath.Join(t.destdir, dir)))
		}
		if _, err := user.Lookup(daemonUser); err == nil && t.destdir == "" {
			errs = append(errs, command("userdel", daemonUser))
		}
	}
	return errors.Join(errs...)
}

// remove removes a file, and of the directories it was in those that are empty
// now and that no other program counts on: our own, and man's and systemd's.
func remove(path, root string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ours := []string{"system", "catalog", "sysusers.d", "systemd", "man1", "man5", "man8", "rblnft"}
	for dir := filepath.Dir(path); strings.HasPrefix(dir, root) && slices.Contains(ours, filepath.Base(dir)); dir = filepath.Dir(dir) {
		if os.Remove(dir) != nil {
			break
		}
	}
	return nil
}

// removeTable takes the table away that the daemon leaves when it ends. One
// that the configuration names is somebody else's.
func removeTable() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for _, t := range tables {
		if t.Name == "rblnft" {
			c.DelTable(t)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: remove table inet rblnft: %w", err)
	}
	return nil
}

// command runs a program of the system.
func command(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return nil
}
