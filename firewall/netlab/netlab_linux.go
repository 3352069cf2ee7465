// Package netlab gives tests and the demonstration a network of their own: the
// calling program runs itself again in a new network namespace, whose loopback
// interface holds addresses from the documentation ranges, so that neither its
// packets nor its firewall rules can reach the machine's own network.
package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Prefixes are the addresses that are local inside a lab, every one of them:
// TEST-NET-1 and TEST-NET-2 (RFC 5737) and a part of the IPv6 documentation
// prefix (RFC 3849).
var Prefixes = []netip.Prefix{
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("2001:db8::/48"),
}

const insideEnv = "RBLNFT_NETLAB"

// Inside reports whether the program runs in a lab.
func Inside() bool { return os.Getenv(insideEnv) == "yes" }

// Reexec runs the program again, with the same arguments and descriptors, in a
// lab, and returns its exit code. Where the caller is not root the lab is in a
// user namespace too, in which the caller is root (user_namespaces(7)).
func Reexec() (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=yes")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// Up makes the lab's network, or finds it made: it takes the loopback interface up, gives it the
// addresses of [Prefixes], and makes mounts done from now on private to the
// lab. It fails outside a lab.
func Up() error {
	if !Inside() {
		return errors.New("netlab: not in a private network namespace")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("netlab: private mounts: %w", err)
	}
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return fmt.Errorf("netlab: %w", err)
	}
	defer conn.Close()

	const loopback = 1 // its index in every namespace
	link := make([]byte, unix.SizeofIfInfomsg)
	put32(link[4:], loopback)
	put32(link[8:], unix.IFF_UP)
	put32(link[12:], unix.IFF_UP)
	if err := request(conn, unix.RTM_NEWLINK, 0, link); err != nil {
		return fmt.Errorf("netlab: loopback up: %w", err)
	}
	for _, p := range Prefixes {
		if err := addLocal(conn, p, loopback); err != nil {
			return fmt.Errorf("netlab: %s: %w", p, err)
		}
	}
	for name, value := range map[string]string{
		// A local route is enough for IPv4; IPv6 wants to be told that its
		// addresses may be bound to (ip-sysctl.rst).
		"ipv6/ip_nonlocal_bind": "1",
		// What systemd sets at boot, and a new namespace does not take over.
		"unix/max_dgram_qlen": "512",
	} {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
			return fmt.Errorf("netlab: %w", err)
		}
	}
	return nil
}

// addLocal makes every address of p local: a route of type local, as
// "ip route add local p dev lo" does (ip-route(8)).
func addLocal(conn *netlink.Conn, p netip.Prefix, loopback uint32) error {
	family := byte(unix.AF_INET)
	if p.Addr().Is6() {
		family = unix.AF_INET6
	}
	msg := []byte{family, byte(p.Bits()), 0, 0, unix.RT_TABLE_LOCAL, unix.RTPROT_BOOT, unix.RT_SCOPE_HOST, unix.RTN_LOCAL, 0, 0, 0, 0}
	if family == unix.AF_INET6 {
		msg[6] = unix.RT_SCOPE_UNIVERSE
	}
	attrs := netlink.NewAttributeEncoder()
	attrs.Bytes(unix.RTA_DST, p.Addr().AsSlice())
	attrs.Uint32(unix.RTA_OIF, loopback)
	encoded, err := attrs.Encode()
	if err != nil {
		return err
	}
	return request(conn, unix.RTM_NEWROUTE, netlink.Create|netlink.Replace, append(msg, encoded...))
}

func request(conn *netlink.Conn, kind netlink.HeaderType, flags netlink.HeaderFlags, data []byte) error {
	_, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   data,
	})
	return err
}

func put32(b []byte, v uint32) {
	b[0], b[1], b[2], b[3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
}

// Main is a TestMain that runs all tests of a package in a lab: it runs the
// test program again in one, and there takes the network up before the tests.
func Main(m interface{ Run() int }) {
	if !Inside() {
		code, err := Reexec()
		if err != nil {
			fmt.Fprintln(os.Stderr, "netlab: cannot run in a private network namespace:", err)
			code = 1
		}
		os.Exit(code)
	}
	if err := Up(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
