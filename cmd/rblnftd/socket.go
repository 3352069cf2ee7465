//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"rblnft/systemd"
)

// hitsSocket returns the socket that hits come from: systemd's, or with -s one
// of our own, and what to do when it is not needed any more.
func (d *daemon) hitsSocket() (conn *net.UnixConn, done func(), err error) {
	conn, err = systemd.HitsSocket()
	if err != nil || conn != nil {
		// It stays systemd's, and with it what is sent to it from now on.
		return conn, func() { conn.Close() }, err
	}
	if d.socket == "" {
		return nil, nil, errors.New("no hits socket: systemd handed none over, and -s gives none")
	}
	if conn, err = listen(d.socket, d.cfg.socketGroup); err != nil {
		return nil, nil, fmt.Errorf("hits socket: %w", err)
	}
	ours, _ := os.Lstat(d.socket)
	return conn, func() {
		conn.Close()
		if now, err := os.Lstat(d.socket); err == nil && os.SameFile(ours, now) {
			os.Remove(d.socket)
		}
	}, nil
}

// listen makes a socket at path, for its group to write to. One that is there
// already, and on which nobody receives, is replaced.
func listen(path string, group int) (*net.UnixConn, error) {
	addr := &net.UnixAddr{Name: path, Net: "unixgram"}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("%s is there, and is no socket", path)
		}
		other, err := net.DialUnix("unixgram", nil, addr)
		if err == nil {
			other.Close()
			return nil, fmt.Errorf("another process receives on %s", path)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, err
		}
		os.Remove(path)
	}
	// Nobody shall reach it before it has its mode.
	mask := syscall.Umask(0o777)
	conn, err := net.ListenUnixgram("unixgram", addr)
	syscall.Umask(mask)
	if err != nil {
		return nil, err
	}
	if err = os.Lchown(path, -1, group); err == nil {
		err = os.Chmod(path, 0o660)
	}
	if err != nil {
		conn.Close()
		os.Remove(path)
		return nil, err
	}
	return conn, nil
}
