//go:build linux

// Package systemd is the daemon's side of systemd(1): the socket that it hands
// over, what it wants to be told of the service's state, its watchdog, and its
// journal. Without systemd all of it does nothing, and the log is lines on
// standard error.
//
// Beside the code stand the unit files, and what else is installed for systemd
// to find.
package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// SocketName is the name (FileDescriptorName=, systemd.socket(5)) of the socket
// that hits come from.
const SocketName = "hits"

// HitsSocket returns the Unix datagram socket that systemd handed over
// (sd_listen_fds(3)): the one named [SocketName] or, where there is only one,
// that one. It returns nil and no error for a program that was not activated by
// a socket. Others that were handed over are closed. It works once: the
// environment says nothing of sockets afterwards.
func HitsSocket() (*net.UnixConn, error) {
	files := activation.Files(true)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	var found []*os.File
	for _, f := range files {
		if f.Name() == SocketName || len(files) == 1 {
			found = append(found, f)
		}
	}
	switch {
	case len(files) == 0:
		return nil, nil
	case len(found) != 1:
		return nil, fmt.Errorf("systemd handed over %d sockets, %d of them named %q: want one", len(files), len(found), SocketName)
	}
	f := found[0]
	if err := checkSocket(f); err != nil {
		return nil, fmt.Errorf("socket %q from systemd: %w", f.Name(), err)
	}
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("socket %q from systemd: %w", f.Name(), err)
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("socket %q from systemd: it is a %T", f.Name(), conn)
	}
	return unixConn, nil
}

// checkSocket checks that f is a Unix datagram socket.
func checkSocket(f *os.File) error {
	domain, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return err
	}
	kind, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return err
	}
	if domain != unix.AF_UNIX || kind != unix.SOCK_DGRAM {
		return errors.New("it is no Unix datagram socket: ListenDatagram= wants a path")
	}
	return nil
}
