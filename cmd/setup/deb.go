package main

import (
	"crypto/md5"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"rblnft/cmd/internal/build"
)

// deb makes a Debian package in dir, and prints its path.
func deb(dir string) error {
	version, date, err := debVersion()
	if err != nil {
		return err
	}
	path, err := writeDeb(dir, version, debMaintainer(), date)
	if err != nil {
		return err
	}
	fmt.Println(path)
	return nil
}

// writeDeb makes a Debian package, in dir, of the same files that install puts
// in place. What is in it depends on the source, the arguments and the Go
// compiler alone.
func writeDeb(dir, version, maintainer string, date time.Time) (path string, err error) {
	files, err := debianLayout.files()
	if err != nil {
		return "", err
	}
	changelog, err := compress(fmt.Appendf(nil, debChangelog, version, maintainer, date.Format(time.RFC1123Z)))
	if err != nil {
		return "", err
	}
	copyright, err := debCopyright()
	if err != nil {
		return "", err
	}
	files = append(files,
		file{"/usr/share/doc/rblnft/changelog.gz", 0o644, changelog},
		file{"/usr/share/doc/rblnft/copyright", 0o644, []byte(copyright)},
		file{"/usr/share/lintian/overrides/rblnft", 0o644, []byte(debOverrides)},
	)
	size, sums := 0, ""
	for _, f := range files {
		size += len(f.data)
		sums += fmt.Sprintf("%x  %s\n", md5.Sum(f.data), strings.TrimPrefix(f.path, "/"))
	}
	control := fmt.Sprintf(debControl, version, debArchitecture(), maintainer, (size+1023)/1024)
	files = append(files,
		file{"/DEBIAN/control", 0o644, []byte(control)},
		file{"/DEBIAN/md5sums", 0o644, []byte(sums)},
		file{"/DEBIAN/preinst", 0o755, []byte(debPreinst)},
		file{"/DEBIAN/postinst", 0o755, []byte(debPostinst)},
		file{"/DEBIAN/prerm", 0o755, []byte(debPrerm)},
		file{"/DEBIAN/postrm", 0o755, []byte(debPostrm)},
	)

	root, err := os.MkdirTemp("", "rblnft")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(root)
	if err := os.Chmod(root, 0o755); err != nil {
		return "", err
	}
	for _, f := range files {
		if err := f.put(root); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path = filepath.Join(dir, fmt.Sprintf("rblnft_%s_%s.deb", version, debArchitecture()))
	cmd := exec.Command("dpkg-deb", "--build", "--root-owner-group", "-Zxz", root, path)
	cmd.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", date.Unix()))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("dpkg-deb: %w\n%s", err, out)
	}
	return path, nil
}

// debVersion returns $VERSION, or one made of the date of the last commit, and
// that date.
func debVersion() (version string, date time.Time, err error) {
	date = time.Unix(0, 0).UTC()
	out, gitErr := exec.Command("git", "log", "-1", "--format=%ct").Output()
	if seconds, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64); gitErr == nil && err == nil {
		date = time.Unix(seconds, 0).UTC()
		version = date.Format("0.20060102.150405")
	}
	if v := os.Getenv("VERSION"); v != "" {
		version = v
	}
	switch {
	case version == "":
		return "", date, fmt.Errorf("no version: set $VERSION, or run this in a git repository (%w)", gitErr)
	case !regexp.MustCompile(`^[0-9][0-9A-Za-z.+~]*$`).MatchString(version):
		return "", date, fmt.Errorf("$VERSION %q is no version: want a digit, then letters, digits, and . + ~ (deb-version(7))", version)
	}
	return version, date, nil
}

// debMaintainer returns who makes the package, as Debian's own tools know it
// (debchange(1)).
func debMaintainer() string {
	name, email := os.Getenv("DEBFULLNAME"), os.Getenv("DEBEMAIL")
	if email == "" {
		hostname, _ := os.Hostname()
		email = "rblnft@" + hostname
	}
	if name == "" {
		name = "rblnft"
	}
	return name + " <" + email + ">"
}

// debArchitecture is what Debian calls the architecture.
func debArchitecture() string { return runtime.GOARCH } // of those that build knows

// debCopyright returns the terms of all that is linked into the programs.
func debCopyright() (string, error) {
	args := []string{"list", "-deps", "-f", `{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}`}
	for _, p := range build.Programs {
		args = append(args, "rblnft/cmd/"+p)
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go list: %w", err)
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env: %w", err)
	}
	modules := slices.Compact(slices.Sorted(strings.Lines(string(out))))
	modules = append(modules, "the Go standard library, "+runtime.Version()+", "+string(goroot))
	text := "rblnft is copyright its authors.\n\nIts programs are linked with what follows, under these terms.\n"
	for _, m := range modules {
		m = strings.TrimSpace(m)
		i := strings.LastIndexByte(m, ' ')
		name, dir := m[:i], m[i+1:]
		terms, err := terms(dir)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		text += "\n" + strings.Repeat("-", 72) + "\n" + strings.TrimSuffix(name, ",") + ":\n\n" + terms
	}
	return text, nil
}

// terms returns the licence of the module in dir.
func terms(dir string) (string, error) {
	licences, _ := filepath.Glob(filepath.Join(dir, "LICENSE*"))
	if len(licences) == 0 {
		return "", fmt.Errorf("no licence in %s", dir)
	}
	text, err := os.ReadFile(licences[0])
	if err != nil {
		return "", err
	}
	if strings.Contains(string(text), "Apache License") {
		return "The Apache License, Version 2.0; on Debian, /usr/share/common-licenses/Apache-2.0.\n", nil
	}
	return string(text), nil
}

const debControl = `Package: rblnft
Version: %s
Architecture: %s
Maintainer: %s
Installed-Size: %d
Section: mail
Priority: optional
Depends: systemd | systemd-sysusers
Recommends: nftables
Suggests: ucspi-tcp
Description: DNSBL filter for tcpserver that blocks listed clients in nftables
 A drop-in for rblsmtpd of ucspi-tcp, /usr/lib/rblnft/rblsmtpd, which asks DNS
 block lists about each client of a mail server and rejects the mail of listed
 ones, and a daemon, rblnftd, that puts their addresses into an nftables set for
 a while, so that the kernel drops their next connections.
`

const debChangelog = `rblnft (%s) unstable; urgency=medium

  * See the repository for what has changed.

 -- %s  %s
`

// debPreinst refuses what systemd would not see: units in /usr/local come first.
const debPreinst = `#!/bin/sh
set -e
[ "$1" = install ] || exit 0
if [ -e /usr/local/lib/systemd/system/rblnftd.service ]; then
	echo "rblnft is installed in /usr/local or elsewhere by its setup: one or the other (setup uninstall)" >&2
	exit 1
fi
`

// debPostinst makes the user and the directory of the configuration, and has the socket listen. What the administrator
// has disabled stays disabled. A new daemon replaces one that runs.
const debPostinst = `#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
systemd-sysusers rblnft.conf
mkdir -p /etc/rblnft
for unit in rblnftd.socket rblnftd.service; do
	if deb-systemd-helper --quiet was-enabled $unit; then
		deb-systemd-helper enable $unit >/dev/null
	else
		deb-systemd-helper update-state $unit >/dev/null
	fi
done
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	deb-systemd-invoke start rblnftd.socket
	[ -z "$2" ] || systemctl try-restart rblnftd.service
fi
`

// debPrerm also takes away the table, which the daemon leaves when it ends. A
// mail server whose filter vanishes takes no mail.
const debPrerm = `#!/bin/sh
set -e
[ "$1" = remove ] || exit 0
if grep -qszxF /usr/lib/rblnft/rblsmtpd /proc/[0-9]*/cmdline; then
	echo "a process has /usr/lib/rblnft/rblsmtpd among its arguments: have its run script name another filter first" >&2
	exit 1
fi
[ ! -d /run/systemd/system ] || deb-systemd-invoke stop rblnftd.socket rblnftd.service
rblnftd -d || echo "the nftables table stays" >&2
`

// debPostrm leaves configuration, state and user to a purge.
const debPostrm = `#!/bin/sh
set -e
[ ! -d /run/systemd/system ] || systemctl daemon-reload
case $1 in
remove)
	rm -rf /run/rblnft
	;;
purge)
	deb-systemd-helper purge rblnftd.socket rblnftd.service >/dev/null
	rm -rf /etc/rblnft /var/lib/rblnft
	if command -v userdel >/dev/null && getent passwd rblnftd >/dev/null; then
		userdel rblnftd
	fi
	;;
esac
`

// debOverrides are the complaints of lintian(1) that stay, with the reasons.
const debOverrides = `# systemd starts the daemon with the first hit, and nothing else can. Under
# another init it is run as any service is, with -s for a socket of its own.
rblnft: package-supports-alternative-init-but-no-init.d-script [lib/systemd/system/rblnftd.service]
# It is the filter's, whose name is not in $PATH: the one there is ucspi-tcp's.
rblnft: spare-manual-page [usr/share/man/man1/rblsmtpd.1rblnft.gz]
# Administrators write the name into run scripts: it must not change.
rblnft: executable-in-usr-lib [usr/lib/rblnft/rblsmtpd]
# Go programs are linked statically. The filter has to be: it runs once per
# connection, under a small limit of memory, and a dynamic linker costs both.
rblnft: statically-linked-binary [usr/lib/rblnft/rblsmtpd]
rblnft: statically-linked-binary [usr/sbin/rblnftd]
`
