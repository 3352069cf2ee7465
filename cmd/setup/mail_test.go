//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mailServer is the address of the container's mail server. Everything in
// 192.0.2.0/24 is the container's own.
const mailServer = "192.0.2.25"

// dnsblUnit and mailUnit are Debian's rbldnsd and tcpserver, the latter with the
// chain of a qmail run script.
const (
	dnsblUnit = `[Service]
Type=forking
ExecStart=/usr/sbin/rbldnsd -q -u rbldns -p /run/rbldnsd.pid -b 127.0.0.53/53 bl.example:ip4set:/etc/dnsbl.zone
PIDFile=/run/rbldnsd.pid
`
	mailUnit = `[Unit]
After=dnsbl.service
Wants=dnsbl.service
StartLimitIntervalSec=0
[Service]
Environment=DNSCACHEIP=127.0.0.53
ExecStartPre=/bin/ip route replace local 192.0.2.0/24 dev lo
ExecStart=/usr/bin/softlimit -m 9000000 /usr/bin/tcpserver -v -H -R -l mail.example -c 40 -u 1525 -g 1525 ` + mailServer + ` 25 FILTER -b -r bl.example /usr/local/bin/smtpd
Restart=always
[Install]
WantedBy=multi-user.target
`
)

// zoneFile lists the upper half of the container's addresses.
const zoneFile = ":127.0.0.2:Listed, see http://bl.example/$\n127.0.0.2\n192.0.2.128/25\n"

// smtpServer stands where qmail-smtpd does; only its greeting matters here.
const smtpServer = `#!/bin/sh
printf '220 mail.example\r\n'
while read line; do
	case $line in
	[Qq][Uu][Ii][Tt]*) printf '221 mail.example\r\n'; exit 0 ;;
	*) printf '250 mail.example\r\n' ;;
	esac
done
`

// serveMail starts the mail server, with the filter at path.
func (c *container) serveMail(filter string) {
	c.t.Helper()
	c.write("/usr/local/bin/smtpd", smtpServer)
	c.write("/etc/dnsbl.zone", zoneFile)
	c.write("/etc/systemd/system/dnsbl.service", dnsblUnit)
	c.write("/etc/systemd/system/mail.service", strings.ReplaceAll(mailUnit, "FILTER", filter))
	c.sh("groupadd --gid 1525 nofiles; useradd --uid 1525 --gid nofiles --no-create-home qmaild")
	c.sh("systemctl --quiet disable --now rbldnsd.socket") // Debian's own has port 53
	c.sh("chmod 755 /usr/local/bin/smtpd; systemctl daemon-reload; systemctl --quiet enable dnsbl.service mail.service; systemctl restart dnsbl.service mail.service")
	c.awaitMail()
}

// awaitMail waits until the mail server answers.
func (c *container) awaitMail() {
	c.t.Helper()
	eventually(c.t, 30*time.Second, "the mail server to answer", func() error {
		conn, err := c.dial("192.0.2.1", time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// mailPID is the process of the mail server.
func (c *container) mailPID() string {
	c.t.Helper()
	return c.sh("systemctl show --property=MainPID --value mail.service")
}

// dial connects from an address of the container to its mail server.
func (c *container) dial(from string, timeout time.Duration) (conn net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The thread that is in the namespace ends with the goroutine.
		runtime.LockOSThread()
		var ns int
		if ns, err = unix.Open(fmt.Sprintf("/proc/%d/ns/net", c.leader), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return
		}
		defer unix.Close(ns)
		if err = unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			return
		}
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: timeout}
		conn, err = d.Dial("tcp", mailServer+":25")
	}()
	<-done
	return conn, err
}

// send tries to send mail from an address, and returns what the server said.
func (c *container) send(from string) (said string, err error) {
	conn, err := c.dial(from, 3*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	lines := bufio.NewReader(conn)
	for _, command := range []string{"", "HELO client.example", "MAIL FROM:<a@client.example>", "RCPT TO:<b@mail.example>", "QUIT"} {
		if command != "" {
			fmt.Fprintf(conn, "%s\r\n", command)
		}
		line, err := lines.ReadString('\n')
		said += line
		if err != nil {
			return said, fmt.Errorf("after %q and %q: %w", said, command, err)
		}
	}
	return said, nil
}

// rejects has a listed address try to send mail.
func (c *container) rejects(from string) {
	c.t.Helper()
	want := "220 rblsmtpd.local\r\n250 rblsmtpd.local\r\n250 rblsmtpd.local\r\n" +
		"553 Listed, see http://bl.example/" + from + "\r\n221 rblsmtpd.local\r\n"
	if said, err := c.send(from); err != nil || said != want {
		c.t.Fatalf("%s: %q, %v", from, said, err)
	}
}

// accepts has an address send mail.
func (c *container) accepts(from string) {
	c.t.Helper()
	const want = "220 mail.example\r\n250 mail.example\r\n250 mail.example\r\n250 mail.example\r\n221 mail.example\r\n"
	if said, err := c.send(from); err != nil || said != want {
		c.t.Fatalf("%s: %q, %v", from, said, err)
	}
}

// drops has an address try to connect in vain.
func (c *container) drops(from string) {
	c.t.Helper()
	conn, err := c.dial(from, 2*time.Second)
	if err == nil {
		conn.Close()
	}
	var neterr net.Error
	if !errors.As(err, &neterr) || !neterr.Timeout() {
		c.t.Fatalf("%s: %v, want that nobody answers", from, err)
	}
}
