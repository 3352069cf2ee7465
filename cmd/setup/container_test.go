//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"rblnft/cmd/internal/debian"
	"rblnft/firewall/hit"
)

// A container is a booted Debian with systemd, in a network namespace of its
// own.
type container struct {
	t      *testing.T
	cmd    *exec.Cmd
	leader int // its process 1, as seen from outside
	log    *console
}

// console is what a container says, for several goroutines.
type console struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.String()
}

// boot boots a container. What it changes of its root file system is gone with
// it; a reboot keeps it. Binds are systemd-nspawn's --bind options.
func boot(t *testing.T, binds ...string) *container {
	t.Helper()
	debian.Needs(t, debian.Namespaces, debian.ControlGroups)
	root, err := debian.Make(t.Output())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	args := append([]string{
		"systemd-nspawn", "--boot", "--quiet", "--directory=" + dir, "--machine=mail", "--private-network",
		"--register=no", "--keep-unit", "--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off",
	}, binds...)
	// The mounts are in a namespace of their own, and vanish with it. 133 is
	// how systemd-nspawn says that it wants to be started again, for a reboot.
	script := debian.OwnGroups + `set -e
for group in $groups; do
	echo $$ >"$group/cgroup.procs"
done
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
mount --bind "$1/root" "$1"
shift 2
while :; do
	status=0
	"$@" || status=$?
	[ $status = 133 ] || break
done
for group in $groups; do
	echo $$ >"${group%/*}/cgroup.procs"
	find "$group" -depth -type d -exec rmdir {} +
done
exit $status`
	c := &container{t: t, log: new(console)}
	c.cmd = exec.Command("unshare", append([]string{"--mount", "--propagation=private", "sh", "-c", script, "sh", dir, root.Dir}, args...)...)
	c.cmd.Stdout, c.cmd.Stderr = c.log, c.log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.cmd.Wait() }()
	t.Cleanup(func() {
		if t.Failed() {
			c.tell()
		}
		exec.Command("nsenter", c.enter("systemctl", "poweroff")...).Run()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
			<-ended
		}
	})
	c.awaitBoot(0)
	return c
}

// awaitBoot waits until the container is up, with another process 1 than before.
func (c *container) awaitBoot(before int) {
	c.t.Helper()
	eventually(c.t, 90*time.Second, "the container to boot", func() error {
		if c.leader = leaderOf(c.cmd.Process.Pid); c.leader == 0 || c.leader == before {
			return fmt.Errorf("no process 1 yet:\n%s", c.log)
		}
		out, _ := exec.Command("nsenter", c.enter("systemctl", "is-system-running")...).CombinedOutput()
		switch state := strings.TrimSpace(string(out)); state {
		case "running":
			return nil
		case "degraded":
			// A service that is about to be started again is failed for a moment.
			if failed := c.sh("systemctl --failed --plain --no-legend"); failed != "" && !strings.HasPrefix(failed, serviceUnit) {
				c.t.Fatalf("booted, but failed:\n%s", failed)
			}
			return errors.New("something had failed")
		default:
			return fmt.Errorf("it is %q", state)
		}
	})
}

// leaderOf finds the container's process 1 below the process that started it.
func leaderOf(pid int) int {
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, field := range strings.Fields(string(children)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			continue
		}
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", child))
		for line := range strings.Lines(string(status)) {
			if ids, ok := strings.CutPrefix(line, "NSpid:"); ok && strings.HasSuffix(strings.TrimSpace(ids), "\t1") {
				return child
			}
		}
		if leader := leaderOf(child); leader != 0 {
			return leader
		}
	}
	return 0
}

// enter are the arguments by which nsenter(1) runs a command in the container.
func (c *container) enter(name string, args ...string) []string {
	return append([]string{
		"--target", strconv.Itoa(c.leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--wdns=/",
		"env", "-i", "HOME=/root", "LC_ALL=C.UTF-8", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0", "DEBIAN_FRONTEND=noninteractive",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin", name,
	}, args...)
}

// try runs a shell script in the container.
func (c *container) try(script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "nsenter", c.enter("sh", "-ec", script)...).CombinedOutput()
	return strings.TrimRight(string(out), "\n"), err
}

// sh runs a shell script in the container that must succeed.
func (c *container) sh(script string) string {
	c.t.Helper()
	out, err := c.try(script)
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// want runs a shell script in the container that must succeed and print
// everything that is wanted.
func (c *container) want(script string, wanted ...string) string {
	c.t.Helper()
	out := c.sh(script)
	for _, w := range wanted {
		if !strings.Contains(out, w) {
			c.t.Errorf("%s: no %q in\n%s", script, w, out)
		}
	}
	return out
}

// await runs a shell script in the container until it succeeds and prints
// everything that is wanted.
func (c *container) await(script string, wanted ...string) {
	c.t.Helper()
	eventually(c.t, 30*time.Second, script, func() error {
		out, err := c.try(script)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		for _, w := range wanted {
			if !strings.Contains(out, w) {
				return fmt.Errorf("no %q in\n%s", w, out)
			}
		}
		return nil
	})
}

// path is how a path in the container is reached from outside.
func (c *container) path(inside string) string {
	return fmt.Sprintf("/proc/%d/root%s", c.leader, inside)
}

// write writes a file in the container.
func (c *container) write(inside, text string) {
	c.t.Helper()
	path := c.path(inside)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// report sends the hit of a listed address to the daemon's socket, as root
// would. It returns false if the socket's queue is full.
func (c *container) report(addr netip.Addr) bool {
	c.t.Helper()
	s, err := hit.NewSender(c.path(hit.DefaultSocket), hit.Hit{
		Addr: addr, Zone: "bl.example", Code: netip.MustParseAddr("127.0.0.2"), Answer: "553 listed",
	})
	if err != nil {
		c.t.Fatal(err)
	}
	defer s.Close()
	sent, err := s.Send()
	if err != nil {
		c.t.Fatal(err)
	}
	return sent
}

// blocked returns the elements of the set of blocked IPv4 addresses, by address.
func (c *container) blocked() map[string]string {
	c.t.Helper()
	out, err := c.try("nft list set inet rblnft blocked4")
	if err != nil {
		return nil
	}
	elements := map[string]string{}
	if _, list, ok := strings.Cut(out, "elements = {"); ok {
		list, _, _ = strings.Cut(list, "}")
		for e := range strings.SplitSeq(list, ",") {
			e = strings.TrimSpace(e)
			addr, _, _ := strings.Cut(e, " ")
			elements[addr] = e
		}
	}
	return elements
}

// awaitBlocked waits until all addresses are blocked.
func (c *container) awaitBlocked(addrs ...netip.Addr) {
	c.t.Helper()
	eventually(c.t, 60*time.Second, fmt.Sprintf("%d addresses to be blocked", len(addrs)), func() error {
		blocked := c.blocked()
		missing := 0
		for _, a := range addrs {
			if blocked[a.String()] == "" {
				missing++
			}
		}
		if missing > 0 {
			return fmt.Errorf("%d of %d are not, %d are in all", missing, len(addrs), len(blocked))
		}
		return nil
	})
}

// tell logs what somebody wants to know of a container in which a test failed.
func (c *container) tell() {
	for _, script := range []string{
		"systemctl --no-pager status rblnftd.socket rblnftd.service",
		"journalctl --no-pager -n 100",
	} {
		out, _ := c.try(script)
		c.t.Logf("%s:\n%s", script, out)
	}
}

// addresses returns n addresses that nobody else uses, the first of them base.
func addresses(base string, n int) (addrs []netip.Addr) {
	a := netip.MustParseAddr(base)
	for range n {
		addrs = append(addrs, a)
		a = a.Next()
	}
	return addrs
}

// eventually waits until what is wanted has come true, for d at most.
func eventually(t *testing.T, d time.Duration, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(d)
	pause := 20 * time.Millisecond
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s: %v", d, what, err)
		}
		time.Sleep(pause)
		pause = min(2*pause, 500*time.Millisecond)
	}
}
