package main

import (
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

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
	prefix = filepath.Clean(prefix)
	destdir := os.Getenv("DESTDIR")
	if prefix == "/usr" && destdir == "" {
		return target{}, errors.New("$PREFIX /usr, without $DESTDIR, is for packages: its bin/rblsmtpd is ucspi-tcp's (make one with \"deb DIR\")")
	}
	if destdir != "" {
		var err error
		if destdir, err = filepath.Abs(destdir); err != nil {
			return target{}, err
		}
	}
	return target{local(prefix), destdir}, nil
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

// configDir is root's: what it says is not for the daemon to change.
const configDir = "/etc/rblnft"

// stateDirs are what "uninstall" leaves and "uninstall -purge" removes.
var stateDirs = []string{configDir, "/var/lib/rblnft"}

// install puts all files in place. On a machine that systemd runs it has the
// socket listen, now and after every boot, and the daemon started at boot; one
// that runs is started anew if anything has changed. It may be repeated. A mail
// server that runs is not touched: its next connection has the new filter, if
// its run script names it. Another filter in our filter's place is kept beside
// it, for uninstall to put back.
func install() error {
	t, err := newTarget()
	if err != nil {
		return err
	}
	if t.destdir == "" && packaged() {
		return errors.New("the package rblnft is installed: one or the other (dpkg --remove rblnft)")
	}
	files, err := t.files()
	if err != nil {
		return err
	}
	if t.destdir == "" {
		if err := keepOther(t.program("rblsmtpd")); err != nil {
			return err
		}
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
	if err := os.MkdirAll(configDir, 0o755); err != nil {
		return err
	}
	if _, err := exec.LookPath("systemd-sysusers"); err != nil {
		fmt.Println("no systemd here: run rblnftd -s PATH as a service of your own")
		return nil
	}
	if err := command("systemd-sysusers", filepath.Join(t.systemd, "sysusers.d/rblnft.conf")); err != nil {
		return err
	}
	if !t.live() {
		return nil
	}
	other, err := admitFilter(t.program("rblsmtpd"))
	if err != nil {
		return err
	}
	changed[socketUnit] = changed[socketUnit] || other
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
// set. Where a mail server would be left without its filter, it does nothing.
func uninstall(purge bool) error {
	t, err := newTarget()
	if err != nil {
		return err
	}
	if t.destdir == "" && purge && packaged() {
		return errors.New("the package rblnft is installed, and configuration, state and user are its own: dpkg --purge rblnft")
	}
	if t.destdir == "" {
		if err := putOtherBack(t.program("rblsmtpd")); err != nil {
			return err
		}
	}
	var errs []error
	if t.live() && exists(filepath.Join(t.units, serviceUnit)) {
		errs = append(errs, command("systemctl", "--quiet", "disable", "--now", socketUnit, serviceUnit))
	}
	if daemon := t.program("rblnftd"); t.destdir == "" && exists(daemon) {
		if err := command(daemon, "-d"); err != nil {
			fmt.Println("left: the nftables table")
		}
	}
	for _, path := range t.paths() {
		if t.destdir == "" && path == t.program("rblsmtpd") && !isOurs(path) {
			continue
		}
		errs = append(errs, remove(filepath.Join(t.destdir, path), t.destdir))
	}
	if t.destdir == "" {
		errs = append(errs, os.RemoveAll(filepath.Dir(hit.DefaultSocket)), remove(groupDropIn, "/etc"))
		os.Remove(filepath.Dir(groupDropIn)) // unless there is more in it
	}
	if t.live() {
		errs = append(errs, command("journalctl", "--update-catalog"), command("systemctl", "daemon-reload"))
		// It may have failed before, which systemd would remember.
		exec.Command("systemctl", "reset-failed", socketUnit, serviceUnit).Run()
	}
	for _, dir := range stateDirs {
		dir = filepath.Join(t.destdir, dir)
		if purge {
			errs = append(errs, os.RemoveAll(dir))
		} else if exists(dir) {
			fmt.Println("left:", dir)
		}
	}
	if _, err := user.Lookup(daemonUser); err == nil && t.destdir == "" {
		if purge {
			errs = append(errs, command("userdel", daemonUser))
		} else {
			fmt.Println("left: user", daemonUser)
		}
	}
	return errors.Join(errs...)
}

// packaged reports whether the Debian package is installed.
func packaged() bool { return exists(filepath.Join(debianLayout.units, serviceUnit)) }

// other is where a filter is kept that was in our filter's place before, such as
// the original one, compiled by hand.
func other(filter string) string { return filter + ".before-rblnft" }

// isOurs reports whether the program at path is our filter.
func isOurs(path string) bool {
	info, err := buildinfo.ReadFile(path)
	return err == nil && info.Path == "rblnft/cmd/rblsmtpd"
}

// keepOther keeps another program that is in our filter's place.
func keepOther(filter string) error {
	if !exists(filter) || isOurs(filter) {
		return nil
	}
	err := os.Link(filter, other(filter))
	if errors.Is(err, fs.ErrExist) {
		if same, err := sameContent(filter, other(filter)); err != nil || same {
			return err
		}
		return fmt.Errorf("%s and %s are two other filters, and one can be kept: remove the other one", filter, other(filter))
	}
	if err != nil {
		return fmt.Errorf("keep the program that is there: %w", err)
	}
	fmt.Println("kept:", other(filter))
	return nil
}

func sameContent(a, b string) (bool, error) {
	x, err := os.ReadFile(a)
	if err != nil {
		return false, err
	}
	y, err := os.ReadFile(b)
	return bytes.Equal(x, y), err
}

// putOtherBack puts back what keepOther kept, so that there is a filter at any
// moment. Where nothing was kept, no mail server may need ours any more.
func putOtherBack(filter string) error {
	if !isOurs(filter) {
		return nil
	}
	users, err := usersOf(filter)
	if err != nil {
		return err
	}
	if exists(other(filter)) {
		if err := os.Rename(other(filter), filter); err != nil {
			return err
		}
		fmt.Println("put back:", filter)
		for _, user := range users {
			fmt.Printf("check that the filter that is back knows the options in the run script: %s among its arguments\n", user)
		}
		return nil
	}
	if len(users) > 0 {
		return fmt.Errorf("%s among its arguments: have its run script name another filter first", users[0])
	}
	return nil
}

// usersOf returns the processes that have filter among their arguments:
// "tcpserver of process 4711 has FILTER".
func usersOf(filter string) (users []string, err error) {
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		line, _ := os.ReadFile(p) // it may have ended
		if args := strings.Split(string(line), "\x00"); slices.Contains(args, filter) {
			users = append(users, fmt.Sprintf("%s of process %s has %s", args[0], filepath.Base(filepath.Dir(p)), filter))
		}
	}
	return users, nil
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

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
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
