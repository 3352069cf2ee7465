//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"rblnft/systemd"
)

// source are the binds by which a container has the source of rblnft in /src,
// and the Go that the tests are run with.
func source(t *testing.T) []string {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "env", "GOROOT", "GOMODCACHE", "GOCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	env := strings.Fields(string(out))
	return []string{"--bind-ro=" + root + ":/src", "--bind-ro=" + env[0] + ":/usr/local/go", "--bind-ro=" + env[1] + ":/root/go/pkg/mod", "--bind=" + env[2] + ":/root/.cache/go-build"}
}

// setup runs the documented command in the source.
func (c *container) setup(args string) string {
	c.t.Helper()
	out, err := c.trySetup(args)
	if err != nil {
		c.t.Fatalf("setup %s: %v\n%s", args, err, out)
	}
	return out
}

func (c *container) trySetup(args string) (string, error) {
	return c.try("cd /src && GOPROXY=off GOTOOLCHAIN=local go run ./cmd/setup " + args + " 2>&1")
}

// TestInstalled lives through what happens to an installation, on a booted
// Debian, from before it is installed to after it is removed.
func TestInstalled(t *testing.T) {
	t.Parallel()
	c := boot(t, source(t)...)
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

	// The mail server runs all the while, first with a filter that its
	// administrator has compiled.
	c.sh("cp /usr/bin/rblsmtpd /usr/local/bin/rblsmtpd")
	c.serveMail("/usr/local/bin/rblsmtpd")
	mail := c.mailPID()
	c.rejects("192.0.2.128")
	before := c.files()

	step("install", func(t *testing.T) {
		c.setup("install")
		c.want("systemctl is-enabled rblnftd.socket; systemctl is-active rblnftd.socket", "enabled\nactive")
		c.want("systemctl is-active rblnftd.service || :", "inactive")
		c.want("ls -l /run/rblnft/hits.sock", "srw-rw----", " root nofiles ")
		if now := c.mailPID(); now != mail {
			t.Errorf("the mail server was process %s and is %s", mail, now)
		}
		c.accepts("192.0.2.1")
		for _, page := range []string{"1 rblsmtpd", "8 rblnftd", "5 rblnftd.toml"} {
			if out := c.want("MANWIDTH=80 man --warnings "+page+" 2>&1", "NAME"); strings.Contains(out, "warning") {
				t.Errorf("man %s:\n%s", page, out)
			}
		}
		once := c.files()
		c.setup("install")
		if twice := c.files(); !slices.Equal(once, twice) {
			t.Errorf("installed twice it has other files: %s", differ(once, twice))
		}
	})

	step("units", func(t *testing.T) {
		c.verify(t)
	})

	step("the first hit starts the daemon", func(t *testing.T) {
		c.rejects("192.0.2.129")
		c.awaitBlocked(netip.MustParseAddr("192.0.2.129"))
		if e := c.blocked()["192.0.2.129"]; !regexp.MustCompile(`^192\.0\.2\.129 timeout (1h|59m\S+) expires 59m\S+ comment "bl\.example"$`).MatchString(e) {
			t.Errorf("the element is %q", e)
		}
		c.drops("192.0.2.129")
		c.accepts("192.0.2.1")
		c.await("systemctl status rblnftd.service", "active (running)", "1 blocked", "1 hits")
		c.await("journalctl --unit=rblnftd --output=cat RBLNFT_ADDRESS=192.0.2.129",
			"blocked addr=192.0.2.129 zone=bl.example code=127.0.0.2 decision=blocked")
		c.want("journalctl --unit=rblnftd --output=export RBLNFT_ADDRESS=192.0.2.129",
			"RBLNFT_ZONE=bl.example\n", "RBLNFT_CODE=127.0.0.2\n", "RBLNFT_DECISION=blocked\n", "RBLNFT_BATCH=1\n",
			"PRIORITY=6\n", "SYSLOG_IDENTIFIER=rblnftd\n", "MESSAGE_ID="+messageID(t, "blocked")+"\n", "_TRANSPORT=journal\n")
		c.want("journalctl --catalog --unit=rblnftd RBLNFT_ADDRESS=192.0.2.129", "tcp.smtp", "Subject: The address 192.0.2.129 is blocked", "the DNSBL bl.example lists 192.0.2.129",
			"nft delete element inet rblnft blocked4 { 192.0.2.129 }")
		c.want("id rblnftd; cat /proc/$(systemctl show --property=MainPID --value rblnftd)/status", "(rblnftd)",
			"CapBnd:\t0000000000001000", "CapEff:\t0000000000001000", "CapAmb:\t0000000000001000", "NoNewPrivs:\t1", "Seccomp:\t2")
	})

	step("stop", func(t *testing.T) {
		c.sh("systemctl stop rblnftd.service 2>&1")
		c.want("systemctl is-active rblnftd.service || :", "inactive")
		c.drops("192.0.2.129") // what is blocked stays so
		c.accepts("192.0.2.1")
		// Hits that come while the daemon is stopped start it, and wait for
		// it: none is lost, up to the length of the queue. A start that
		// takes its time lets the queue run full.
		c.dropIn("slow", "ExecStartPre=/bin/sleep 3")
		var sent []netip.Addr
		for _, addr := range addresses("198.51.0.0", 2000) {
			if !c.report(addr) {
				break
			}
			sent = append(sent, addr)
		}
		t.Logf("the socket holds %d hits (net.unix.max_dgram_qlen is %s)", len(sent), c.sh("cat /proc/sys/net/unix/max_dgram_qlen"))
		if len(sent) < 512 || len(sent) == 2000 {
			t.Errorf("the socket holds %d hits, want 512 or some more", len(sent))
		}
		c.accepts("192.0.2.1")
		c.awaitBlocked(sent...)
		c.noDropIn("slow")
	})

	step("kill", func(t *testing.T) {
		was := c.blocked()
		c.sh("systemctl kill --signal=KILL rblnftd.service")
		// They wait for RestartSec=.
		addrs := addresses("198.51.10.0", 200)
		for _, addr := range addrs {
			if !c.report(addr) {
				t.Fatal("the queue is full")
			}
		}
		c.rejects("192.0.2.130")
		c.awaitBlocked(append(addrs, netip.MustParseAddr("192.0.2.130"))...)
		c.await("systemctl status rblnftd.service", "active (running)")
		c.want("systemctl show --property=NRestarts rblnftd.service", "NRestarts=1")
		now := c.blocked()
		for addr := range was {
			if now[addr] == "" {
				t.Errorf("%s is not blocked any more", addr)
			}
		}
	})

	step("hang", func(t *testing.T) {
		c.dropIn("watchdog", "WatchdogSec=3s")
		c.sh("systemctl restart rblnftd.service")
		// strace(1) has the receiver's system call take forever; all else goes on.
		c.sh("systemd-run --quiet --unit=hang strace --quiet=all --follow-forks --trace=recvmmsg --inject=recvmmsg:delay_enter=1000000000 --attach=$(systemctl show --property=MainPID --value rblnftd)")
		c.await("grep TracerPid /proc/$(systemctl show --property=MainPID --value rblnftd)/status | grep -v '\t0$'")
		addr := netip.MustParseAddr("198.51.20.1")
		c.report(addr)
		eventually(t, 90*time.Second, "the watchdog", func() error {
			_, err := c.try("journalctl --unit=rblnftd --output=cat | grep 'Watchdog timeout'")
			return err
		})
		c.sh("systemctl kill --signal=KILL hang.service") // which holds the process
		c.report(addr)                                    // what the receiver had in hand is gone with it
		c.awaitBlocked(addr)
		c.await("systemctl status rblnftd.service", "active (running)")
		c.want("journalctl --unit=rblnftd --output=cat", "SIGABRT", "the receiver has been in one system call", "goroutine ")
		c.noDropIn("watchdog")
	})

	step("reload", func(t *testing.T) {
		pid := c.sh("systemctl show --property=MainPID --value rblnftd")
		c.write("/etc/rblnft/rblnftd.toml", "expiry = 'soon'\n")
		if out, err := c.try("systemctl reload rblnftd 2>&1"); err == nil {
			t.Errorf("a bad configuration is reloaded: %s", out)
		}
		c.await("journalctl --unit=rblnftd --output=cat", `/etc/rblnft/rblnftd.toml:1: expiry: "soon"`)
		c.want("systemctl is-active rblnftd", "active")
		c.write("/etc/rblnft/rblnftd.toml", "expiry = '2h'\nallow = ['192.0.2.130']\n")
		c.sh("systemctl reload rblnftd")
		c.await("nft get element inet rblnft allowed4 '{ 192.0.2.130 }'")
		eventually(t, 20*time.Second, "192.0.2.130 to be unblocked", func() error {
			_, err := c.send("192.0.2.130")
			return err
		})
		c.report(netip.MustParseAddr("198.51.30.1"))
		c.awaitBlocked(netip.MustParseAddr("198.51.30.1"))
		if e := c.blocked()["198.51.30.1"]; !regexp.MustCompile(` timeout (2h|1h59m\S+) `).MatchString(e) {
			t.Errorf("%q, want the expiry of the new configuration", e)
		}
		if now := c.sh("systemctl show --property=MainPID --value rblnftd"); now != pid {
			t.Errorf("the daemon was process %s and is %s", pid, now)
		}
	})

	step("restart of nftables", func(t *testing.T) {
		was := c.blocked()
		c.sh("systemctl start nftables; systemctl restart nftables")
		var addrs []netip.Addr
		for addr := range was {
			addrs = append(addrs, netip.MustParseAddr(addr))
		}
		c.awaitBlocked(addrs...)
		c.drops("192.0.2.129")
		c.want("journalctl --unit=rblnftd --output=export", "MESSAGE_ID="+messageID(t, "elements restored"))
	})

	step("reboot", func(t *testing.T) {
		was := c.blocked()
		c.sh("systemctl enable rblnftd.service 2>&1")
		leader := c.leader
		c.sh("systemctl reboot")
		c.awaitBoot(leader)
		c.awaitMail()
		var addrs []netip.Addr
		for addr := range was {
			addrs = append(addrs, netip.MustParseAddr(addr))
		}
		c.awaitBlocked(addrs...)
		if e := c.blocked()["192.0.2.129"]; !regexp.MustCompile(` expires 5\dm`).MatchString(e) {
			t.Errorf("the element is %q, want what was left of its hour", e)
		}
		c.drops("192.0.2.129")
		c.accepts("192.0.2.1")
		// All before the network could have come up.
		c.want("systemctl show --property=Before rblnftd.service", "network-pre.target")
		ready := c.sh("systemctl show --property=ActiveEnterTimestampMonotonic --value rblnftd.service")
		network := c.sh("systemctl show --property=ActiveEnterTimestampMonotonic --value network-pre.target")
		if len(ready) > len(network) || len(ready) == len(network) && ready > network {
			t.Errorf("ready %s µs after the boot, network-pre.target is reached after %s µs", ready, network)
		}
		mail = c.mailPID()
	})

	step("reboot with a bad configuration", func(t *testing.T) {
		good := c.sh("cat /etc/rblnft/rblnftd.toml")
		c.write("/etc/rblnft/rblnftd.toml", "expiry = 'soon'\n")
		leader := c.leader
		c.sh("systemctl reboot")
		// A service that the network is ordered after, and that keeps failing,
		// must not keep the machine from its network.
		c.awaitBoot(leader)
		c.awaitMail()
		mail = c.mailPID()
		c.want("systemctl is-active network-pre.target rblnftd.socket", "active\nactive")
		c.want("systemctl show --property=ExecMainStatus rblnftd.service", "=100")
		c.accepts("192.0.2.1")
		c.rejects("192.0.2.129") // nobody blocks it; the filter does what it always did
		c.write("/etc/rblnft/rblnftd.toml", good+"\n")
		c.awaitBlocked(netip.MustParseAddr("192.0.2.129"))
		c.drops("192.0.2.129")
	})

	step("ten thousand hits while the service crashes on start", func(t *testing.T) {
		const hits = 10_000
		restarts := func() (n int) {
			n, err := strconv.Atoi(c.sh("systemctl show --property=NRestarts --value rblnftd.service"))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		c.dropIn("crash", "ExecStart=\nExecStart=/bin/sh -c 'kill -SEGV $$$$'")
		before := restarts()
		c.sh("systemctl kill --signal=KILL rblnftd.service")
		start := time.Now()
		var sent []netip.Addr
		full := 0
		for i, addr := range addresses("198.51.64.0", hits) {
			if c.report(addr) {
				sent = append(sent, addr)
			} else {
				full++
			}
			// Ten seconds in all: some starts in between.
			time.Sleep(time.Until(start.Add(time.Duration(i) * time.Millisecond)))
		}
		eventually(t, time.Minute, "the service to be started again and again", func() error {
			if n := restarts() - before; n < 3 {
				return fmt.Errorf("%d restarts", n)
			}
			return nil
		})
		t.Logf("%d hits in %.0f s: %d wait, %d found the queue full; %d restarts", hits, time.Since(start).Seconds(), len(sent), full, restarts()-before)
		c.want("systemctl is-active rblnftd.socket", "active")
		c.accepts("192.0.2.1")
		c.drops("192.0.2.129")
		c.noDropIn("crash")
		c.awaitBlocked(sent...)
		c.want("systemctl is-active rblnftd.socket", "active")
	})

	step("uninstall", func(t *testing.T) {
		out := c.setup("uninstall")
		after := c.files()
		want := "put back: /usr/local/bin/rblsmtpd\n" +
			"check that the filter that is back knows the options in the run script: /usr/bin/tcpserver of process " + mail + " has /usr/local/bin/rblsmtpd among its arguments\n" +
			"left: /etc/rblnft\nleft: /var/lib/rblnft\nleft: user rblnftd"
		if out != want {
			t.Errorf("uninstall says %q, want %q", out, want)
		}
		for path := range strings.FieldsSeq(differ(before, after)) {
			if !regexp.MustCompile(`^\+(/etc/rblnft|/var/lib/rblnft)(/|$)`).MatchString(path) {
				t.Errorf("left behind: %s", path)
			}
		}
		c.sh("id rblnftd")
		if out, err := c.try("nft list table inet rblnft"); err == nil {
			t.Errorf("the table is still there:\n%s", out)
		}
		c.want("systemctl list-units --all 'rblnft*'", "0 loaded units listed")
		c.want("systemctl --failed", "0 loaded units listed")
		if now := c.mailPID(); now != mail {
			t.Errorf("the mail server was process %s and is %s", mail, now)
		}
		c.accepts("192.0.2.1")
		c.rejects("192.0.2.129")
		c.setup("uninstall") // repeatable
	})

	step("purge", func(t *testing.T) {
		c.write("/etc/rblnft/rblnftd.toml", "[nftables]\ntable = \"inet other\"\n")
		c.setup("install")
		c.want("stat --format=%U:%a /etc/rblnft", "root:755")
		c.rejects("192.0.2.140")
		c.await("nft list set inet other blocked4", "192.0.2.140")
		c.setup("uninstall -purge")
		if tables := c.sh("nft list tables"); strings.Contains(tables, "inet other") {
			t.Errorf("tables %s", tables)
		}
		if left := differ(before, c.files()); left != "" {
			t.Errorf("left behind: %s", left)
		}
		if out, err := c.try("id rblnftd"); err == nil {
			t.Errorf("the user is still there: %s", out)
		}
	})

	step("another group", func(t *testing.T) {
		c.sh("groupadd --gid 1526 smtp; sed -i 's/-g 1525/-g 1526/' /etc/systemd/system/mail.service; systemctl daemon-reload; systemctl restart mail.service")
		c.awaitMail()
		c.setup("install")
		c.want("ls -l /run/rblnft/hits.sock", "srw-rw----", " root smtp ")
		c.rejects("192.0.2.141")
		c.awaitBlocked(netip.MustParseAddr("192.0.2.141"))
		c.setup("uninstall -purge")
		c.sh("groupdel smtp; sed -i 's/-g 1526/-g 1525/' /etc/systemd/system/mail.service; systemctl daemon-reload; systemctl restart mail.service")
		c.awaitMail()
		mail = c.mailPID()
		if left := differ(before, c.files()); left != "" {
			t.Errorf("left behind: %s", left)
		}
	})

	step("uninstall what a mail server runs", func(t *testing.T) {
		c.sh("rm /usr/local/bin/rblsmtpd")
		c.setup("install")
		c.accepts("192.0.2.1")
		out, err := c.trySetup("uninstall")
		if err == nil || !strings.Contains(out, "tcpserver of process "+mail+" has /usr/local/bin/rblsmtpd among its arguments") {
			t.Errorf("%v: %s", err, out)
		}
		c.accepts("192.0.2.1")
		c.want("systemctl is-active rblnftd.socket", "active")
		c.sh("systemctl stop mail.service")
		c.setup("uninstall -purge")
		for path := range strings.FieldsSeq(differ(before, c.files())) {
			if !strings.HasPrefix(path, "-/usr/local/bin/rblsmtpd:") {
				t.Errorf("left behind: %s", path)
			}
		}
	})
}

// verify checks the units as systemd sees them.
func (c *container) verify(t *testing.T) {
	t.Helper()
	if out := c.sh("systemd-analyze verify rblnftd.socket rblnftd.service 2>&1"); out != "" {
		t.Errorf("systemd-analyze verify:\n%s", out)
	}
	out := c.sh("systemd-analyze security --no-pager rblnftd.service")
	level := regexp.MustCompile(`Overall exposure level for rblnftd\.service: ([\d.]+) `).FindStringSubmatch(out)
	if level == nil {
		t.Fatalf("no level in:\n%s", out)
	}
	t.Logf("exposure level %s", level[1])
	if value, err := strconv.ParseFloat(level[1], 64); err != nil || value > 1.1 {
		t.Errorf("the exposure level is %s:\n%s", level[1], out)
	}
	// All that is open has its reason in the unit file.
	unit := c.sh("systemctl cat rblnftd.service")
	for _, m := range regexp.MustCompile(`(?m)^✗ (\S+)`).FindAllStringSubmatch(out, -1) {
		name, _, _ := strings.Cut(m[1], "=")
		if !regexp.MustCompile(`(?m)^# (.*, )?` + name + `=[:,]`).MatchString(unit) {
			t.Errorf("%s is open without a reason", m[1])
		}
	}
}

// dropIn has the service changed, as "systemctl edit" does it.
func (c *container) dropIn(name, lines string) {
	c.t.Helper()
	c.write("/run/systemd/system/rblnftd.service.d/"+name+".conf", "[Service]\n"+lines+"\n")
	c.sh("systemctl daemon-reload")
}

func (c *container) noDropIn(name string) {
	c.t.Helper()
	if err := os.Remove(c.path("/run/systemd/system/rblnftd.service.d/" + name + ".conf")); err != nil {
		c.t.Fatal(err)
	}
	c.sh("systemctl daemon-reload")
}

// files lists the files of the container but for those that come and go by
// themselves, with what tells whether they are the same.
func (c *container) files() []string {
	c.t.Helper()
	out := c.sh(`find /etc /usr /lib/systemd /run /var /root -xdev \
		\( -path /run/systemd -o -path /run/udev -o -path /run/log -o -path /run/credentials -o -path /run/lock -o -name '*.pid' \
		-o -path /var/log -o -path /var/cache -o -path /var/tmp -o -path /var/lib/systemd -o -path /usr/local/go -o -path /root \) -prune \
		-o -type f -printf '%p:%s\n' -o -printf '%p\n'`)
	list := strings.Split(out, "\n")
	// Their copies from before the last change, and the binary catalogue.
	list = slices.DeleteFunc(list, func(path string) bool {
		return regexp.MustCompile(`^/etc/(passwd|group|shadow|gshadow|subuid|subgid|mtab|\.pwd\.lock|ld\.so\.cache)\b`).MatchString(path)
	})
	slices.Sort(list)
	return list
}

// differ tells what was added to a list, with a plus, and taken away, with a
// hyphen.
func differ(before, after []string) string { return strings.Join(changes(before, after), " ") }

func changes(before, after []string) (diff []string) {
	for _, path := range after {
		if _, ok := slices.BinarySearch(before, path); !ok {
			diff = append(diff, "+"+path)
		}
	}
	for _, path := range before {
		if _, ok := slices.BinarySearch(after, path); !ok {
			diff = append(diff, "-"+path)
		}
	}
	return diff
}

func messageID(t *testing.T, message string) string {
	t.Helper()
	for _, e := range systemd.Events() {
		if e.Message == message {
			return e.ID
		}
	}
	t.Fatalf("no event %q", message)
	return ""
}
