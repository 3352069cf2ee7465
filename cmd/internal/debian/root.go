// Package debian is the Debian 12 that the tests run in: a root file system in
// the user's cache directory, made once. Programs run in it with namespaces of
// their own, containers boot from it, and so does its kernel in a virtual
// machine. The machine itself has none of it installed.
package debian

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// packages are what the tests run, beside the package manager's own: a mail
// server's programs, the C compiler for the race detector, and what boots a
// container and a virtual machine.
var packages = []string{
	"daemontools", "e2fsprogs", "gcc", "init-system-helpers", "iproute2", "libc6-dev", "lintian",
	"man-db", "msmtp", "msmtp-mta", "nftables", "perl", "procps", "qemu-user-static", "rbldnsd", "socat", "strace",
	"systemd", "systemd-container", "systemd-sysv", "ucspi-tcp",
}

// HostPackages are what a machine needs to make a root.
var HostPackages = []string{"ca-certificates", "debian-archive-keyring", "mmdebstrap"}

// mailServer are packages that conflict with some above, for a container that
// is another mail server.
var mailServer = []string{"bind9", "postfix", "ucspi-tcp-ipv6"}

// Repository is a directory of the root, for apt(8), with both and what they
// depend on, as far as it is not installed.
const Repository = "/srv/packages"

// repository fills it.
const repository = `set -e
mkdir "$1` + Repository + `"
chroot "$1" apt-get --quiet --yes --no-install-recommends --download-only install %s
mv "$1"/var/cache/apt/archives/*.deb "$1` + Repository + `"
chroot "$1" sh -c 'cd ` + Repository + ` && dpkg-scanpackages . >Packages'`

// kernelPackages are the kernel, and what runs it.
var kernelPackages = []string{"linux-image-cloud-amd64", "qemu-system-x86"}

// A Root is a root file system.
type Root struct {
	Dir string // where it lies; nothing in it is ever changed
}

// Cache is the directory of everything that is kept from one run to the next.
func Cache() (string, error) {
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "rblnft"), err
}

// Make returns the root, which it makes if it is not there yet: mmdebstrap(1) has
// to be, then, and said is told what is being done.
func Make(said io.Writer) (Root, error) {
	cache, err := Cache()
	if err != nil {
		return Root{}, err
	}
	include := packages
	if KernelArch {
		include = slices.Concat(packages, kernelPackages)
	}
	args := []string{"--variant=minbase", "--quiet", "--include=" + strings.Join(include, ","),
		"--customize-hook=" + fmt.Sprintf(repository, strings.Join(slices.Concat(HostPackages, mailServer), " ")), "bookworm"}
	root := Root{filepath.Join(cache, fmt.Sprintf("debian-%x", sha256.Sum256([]byte(strings.Join(args, " "))))[:7+16], "root")}
	if exists(root.Dir) {
		return root, nil
	}
	unlock, err := lock(cache)
	if err != nil {
		return Root{}, err
	}
	defer unlock()
	if exists(root.Dir) { // somebody has made it meanwhile
		return root, nil
	}
	fmt.Fprintf(said, "making a Debian in %s, once: 2 GB, three minutes or so\n", filepath.Dir(root.Dir))
	start := time.Now()
	unfinished := filepath.Join(filepath.Dir(root.Dir), "unfinished")
	if err := os.MkdirAll(filepath.Dir(root.Dir), 0o755); err != nil {
		return Root{}, err
	}
	// Mirrors fail now and then.
	for try := 1; ; try++ {
		if err := os.RemoveAll(unfinished); err != nil {
			return Root{}, err
		}
		// What it mounts, and whatever packages start, is gone when it ends.
		cmd := exec.Command("unshare", append([]string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "mmdebstrap"}, append(args, unfinished)...)...)
		out, err := cmd.CombinedOutput()
		if err == nil {
			break
		}
		if try == 3 {
			return Root{}, errors.Join(fmt.Errorf("mmdebstrap: %w\n%s", err, out), os.RemoveAll(unfinished))
		}
	}
	if err := os.Rename(unfinished, root.Dir); err != nil {
		return Root{}, err
	}
	fmt.Fprintf(said, "made it in %.0f s\n", time.Since(start).Seconds())
	return root, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// lock has other processes wait that make something in the cache.
func lock(cache string) (unlock func(), err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(cache, "lock"))
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}
