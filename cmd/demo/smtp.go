//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// serveSMTP is tcpserver(1) in small: for every connection it starts the filter,
// with the connection as descriptors 0 and 1, the client's address in the
// environment, and behind it the SMTP server, this program as "smtpd".
func serveSMTP(l net.Listener, dir string, env []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			client := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
			socket, err := c.(*net.TCPConn).File()
			c.Close()
			if err != nil {
				continue
			}
			cmd := exec.Command(filepath.Join(dir, "rblsmtpd"), "-b", "-v", "-r", zone, self, "smtpd")
			cmd.Env = append(env, "PROTO=TCP", "TCPREMOTEIP="+client.String())
			cmd.Stdin, cmd.Stdout = socket, socket
			log, err := cmd.StderrPipe()
			if err == nil {
				err = cmd.Start()
			}
			socket.Close()
			if err != nil {
				fmt.Fprintln(os.Stderr, "demo: the filter:", err)
				continue
			}
			go func() {
				quote("rblsmtpd", log)
				cmd.Wait()
			}()
		}
	}()
	return nil
}

// greet is the SMTP server behind the filter. It does not get far: it shows
// who is let through.
func greet() {
	fmt.Print("220 mail.example ESMTP, you are welcome\r\n")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		if strings.EqualFold(strings.TrimSpace(in.Text()), "quit") {
			fmt.Print("221 mail.example\r\n")
			return
		}
		fmt.Print("250 ok\r\n")
	}
}

// conversation is a client's side of a connection, shown as it goes.
type conversation struct {
	conn net.Conn
	in   *bufio.Reader
}

// patience is how long a client waits for the connection, and for a reply. The
// kernel sends another SYN after one second, and another after two more.
const patience = 4 * time.Second

func connect(from netip.Addr) (*conversation, error) {
	d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
	c, err := d.Dial("tcp", mailServer)
	if err != nil {
		return nil, err
	}
	return &conversation{c, bufio.NewReader(c)}, nil
}

// expect reads one reply, which must begin with what is wanted.
func (c *conversation) expect(want string) error {
	c.conn.SetReadDeadline(time.Now().Add(patience))
	line, err := c.in.ReadString('\n')
	line = strings.TrimRight(line, "\r\n")
	if line != "" {
		fmt.Println("    S:", line)
	}
	if err != nil {
		return fmt.Errorf("the server said no more: %w", err)
	}
	if !strings.HasPrefix(line, want) {
		return fmt.Errorf("the server said %q, want %q", line, want)
	}
	return nil
}

// say sends a command and reads the reply.
func (c *conversation) say(command, want string) error {
	fmt.Println("    C:", command)
	if _, err := fmt.Fprintf(c.conn, "%s\r\n", command); err != nil {
		return err
	}
	return c.expect(want)
}

// isTimeout reports whether a connection was refused by silence.
func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
