//go:build linux

package main

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"rblnft/cmd/internal/debian"
)

// writeDebs makes a package of each version in a new directory.
func writeDebs(t *testing.T, versions ...string) (dir string, paths []string) {
	t.Helper()
	dir = t.TempDir()
	for _, v := range versions {
		path, err := writeDeb(dir, v, "Somebody <somebody@example.org>", time.Unix(1e9, 0).UTC())
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return dir, paths
}

func TestLintian(t *testing.T) {
	debian.Needs(t, debian.Namespaces)
	t.Parallel()
	_, paths := writeDebs(t, "1.0")
	path := paths[0]
	out, err := exec.Command("lintian", "--allow-root", "--pedantic", "--display-info", "--display-experimental", "--tag-display-limit=0",
		"--fail-on=error,warning,info,pedantic,experimental", path).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("lintian: %v\n%s", err, out)
	}
	// What is overridden is there.
	out, err = exec.Command("lintian", "--allow-root", "--pedantic", "--display-info", "--display-experimental", "--show-overrides", path).CombinedOutput()
	for line := range strings.Lines(debOverrides) {
		if !strings.HasPrefix(line, "#") && !strings.Contains(string(out), strings.TrimPrefix(line, "rblnft: ")) {
			t.Errorf("%q overrides nothing; %v", line, err)
		}
	}
}

// The same source makes the same package.
func TestDebIsReproducible(t *testing.T) {
	t.Parallel()
	var packages [2][]byte
	for i := range packages {
		_, paths := writeDebs(t, "1.0")
		var err error
		if packages[i], err = os.ReadFile(paths[0]); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(packages[0], packages[1]) {
		t.Error("two packages of one source differ")
	}
}

func TestDebVersion(t *testing.T) {
	for version, good := range map[string]bool{
		"1": true, "1.0": true, "1.0~rc1": true, "0.20260102.030405+local": true,
		"v1": false, "1.0 2": false, "1/2": false, "1-2": false, "1\n": false, "$1": false,
	} {
		t.Setenv("VERSION", version)
		got, _, err := debVersion()
		if good && (err != nil || got != version) || !good && err == nil {
			t.Errorf("%q: %q, %v", version, got, err)
		}
	}
	t.Setenv("VERSION", "")
	if got, date, err := debVersion(); err == nil && !regexp.MustCompile(`^0\.[0-9]{8}\.[0-9]{6}$`).MatchString(got) || date.Year() < 1970 {
		t.Errorf("%q, %v, %v", got, date, err)
	}
}

// TestDebInstalled lives through what happens to the package on a booted Debian.
func TestDebInstalled(t *testing.T) {
	t.Parallel()
	dir, _ := writeDebs(t, "1.0", "1.1")
	c := boot(t, append(source(t), "--bind-ro="+dir+":/debs")...)
	install := func(version string) string {
		return c.sh("dpkg --install /debs/rblnft_" + version + "_" + debArchitecture() + ".deb 2>&1")
	}
	// The administrator names the filter in the run script.
	filter := func(path string) {
		c.sh("sed -i 's,[^ ]*/rblsmtpd," + path + ",' /etc/systemd/system/mail.service; systemctl daemon-reload; systemctl restart mail.service")
		c.awaitMail()
	}
	step := func(name string, test func(*testing.T)) {
		t.Helper()
		ok := t.Run(name, func(t *testing.T) {
			c.t = t
			test(t)
		})
		c.t = t
		if !ok {
			t.FailNow() // the next step builds on this one
		}
	}
	c.serveMail("/usr/bin/rblsmtpd")
	mail := c.mailPID()
	stock := c.sh("md5sum /usr/bin/rblsmtpd")
	before := c.files()
	listed := netip.MustParseAddr("192.0.2.129")

	step("install", func(t *testing.T) {
		install("1.0")
		c.want("systemctl is-enabled rblnftd.socket rblnftd.service; systemctl is-active rblnftd.socket", "enabled\nenabled\nactive")
		c.want("systemctl is-active rblnftd.service || :", "inactive")
		c.want("man 1rblnft rblsmtpd; man 8 rblnftd; man 5 rblnftd.toml", "RBLSMTPD(1rblnft)", "RBLNFTD(8)", "RBLNFTD.TOML(5)")
		if out := c.sh("dpkg --verify rblnft ucspi-tcp"); out != "" {
			t.Errorf("dpkg --verify:\n%s", out)
		}
		if now := c.mailPID(); now != mail {
			t.Errorf("the mail server was process %s and is %s", mail, now)
		}
		for path := range strings.FieldsSeq(differ(before, c.files())) {
			if strings.HasPrefix(path, "+/usr/local") {
				t.Errorf("the package has put %s into the administrator's directory", path)
			}
		}
		filter("/usr/lib/rblnft/rblsmtpd")
		c.rejects(listed.String())
		c.awaitBlocked(listed)
		c.accepts("192.0.2.1")
		c.await("systemctl status rblnftd.service", "active (running)", "/usr/sbin/rblnftd")
		c.verify(t)
	})

	step("install beside the package", func(t *testing.T) {
		for _, verb := range []string{"install", "uninstall -purge"} {
			if out, err := c.trySetup(verb); err == nil || !strings.Contains(out, "the package rblnft is installed") {
				t.Errorf("%s: %v\n%s", verb, err, out)
			}
		}
		c.await("systemctl status rblnftd.service", "active (running)")
	})

	step("install again", func(t *testing.T) {
		files := c.files()
		install("1.0")
		for path := range strings.FieldsSeq(differ(files, c.files())) {
			if !regexp.MustCompile(`^.(/var/lib/rblnft|/var/lib/dpkg)/`).MatchString(path) {
				t.Errorf("installed twice it differs: %s", path)
			}
		}
		c.await("systemctl status rblnftd.service", "active (running)")
	})

	step("upgrade", func(t *testing.T) {
		pid := c.sh("systemctl show --property=MainPID --value rblnftd.service")
		install("1.1")
		c.await("systemctl status rblnftd.service", "active (running)")
		if now := c.sh("systemctl show --property=MainPID --value rblnftd.service"); now == pid {
			t.Error("the old daemon runs on")
		}
		c.want("dpkg-query --show rblnft", "1.1")
		c.awaitBlocked(listed)
		c.drops(listed.String())
		if out := c.sh("dpkg --verify rblnft"); out != "" {
			t.Errorf("dpkg --verify:\n%s", out)
		}
	})

	step("upgrade of what is disabled", func(t *testing.T) {
		c.sh("systemctl --quiet disable --now rblnftd.socket rblnftd.service")
		install("1.0") // down, which is the same
		install("1.1")
		c.want("systemctl is-enabled rblnftd.socket rblnftd.service || :", "disabled\ndisabled")
		c.want("systemctl is-active rblnftd.socket rblnftd.service || :", "inactive\ninactive")
		c.accepts("192.0.2.1")
		c.sh("systemctl --quiet enable rblnftd.socket rblnftd.service; systemctl start rblnftd.socket")
		c.rejects("192.0.2.130")
		c.awaitBlocked(listed, netip.MustParseAddr("192.0.2.130"))
	})

	step("remove", func(t *testing.T) {
		if out, err := c.try("dpkg --remove rblnft 2>&1"); err == nil || !strings.Contains(out, "have its run script name another filter first") {
			t.Errorf("removed, while a mail server needs it: %v\n%s", err, out)
		}
		c.accepts("192.0.2.1")
		c.want("systemctl is-active rblnftd.socket", "active")
		filter("/usr/bin/rblsmtpd")
		mail = c.mailPID()
		c.sh("dpkg --remove rblnft 2>&1")
		c.want("systemctl is-active rblnftd.socket rblnftd.service || :", "inactive\ninactive")
		if out, err := c.try("nft list table inet rblnft"); err == nil {
			t.Errorf("the table is still there:\n%s", out)
		}
		for path := range strings.FieldsSeq(differ(before, c.files())) {
			// The links that enable the units are dpkg's to take away on a purge,
			// so that a package that comes back is as enabled as it was.
			if !regexp.MustCompile(`^\+(/etc/rblnft|/var/lib/rblnft|/etc/systemd/system/(.*/rblnftd\.|sockets\.target\.wants$))|^.(/var/lib/dpkg/|/etc/systemd/system/mail\.service:)`).MatchString(path) {
				t.Errorf("left behind: %s", path)
			}
		}
		c.want("ls -d /var/lib/rblnft", "/var/lib/rblnft")
	})

	step("purge", func(t *testing.T) {
		c.sh("dpkg --purge rblnft 2>&1")
		for path := range strings.FieldsSeq(differ(before, c.files())) {
			if !regexp.MustCompile(`^.(/var/lib/dpkg/|/etc/systemd/system/mail\.service:)`).MatchString(path) {
				t.Errorf("left behind: %s", path)
			}
		}
		c.want("systemctl --failed", "0 loaded units listed")
		if out, err := c.try("id rblnftd"); err == nil {
			t.Errorf("the user is still there: %s", out)
		}
		if now := c.sh("md5sum /usr/bin/rblsmtpd"); now != stock {
			t.Errorf("Debian's rblsmtpd was %q and is %q", stock, now)
		}
		if now := c.mailPID(); now != mail {
			t.Errorf("the mail server was process %s and is %s", mail, now)
		}
		c.accepts("192.0.2.1")
		c.rejects("192.0.2.129")
	})
	step("the package beside an installation", func(t *testing.T) {
		c.setup("install")
		out, err := c.try("dpkg --install /debs/rblnft_1.0_" + debArchitecture() + ".deb 2>&1")
		if err == nil || !strings.Contains(out, "one or the other") {
			t.Errorf("installed: %v\n%s", err, out)
		}
		c.want("dpkg-query --show --showformat '${db:Status-Status}' rblnft 2>&1 || :", "not-installed")
		c.want("systemctl is-active rblnftd.socket; ls /usr/local/sbin", "active", "rblnftd")
		c.setup("uninstall -purge")
	})
}
