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
// of our own.
func (d *daemon) hitsSocket() (conn *net.UnixConn, done func(), err error) {
	if conn, err = systemd.HitsSocket(); err != nil {
		return nil, nil, err
	}
	if conn != nil {
		// It stays systemd's, and with it what is sent to it from now on.
		return conn, func() { conn.Close() }, nil
	}
	if d.socket == "" {
		return nil, nil, errors.New("no hits socket: systemd handed none over, and -s gives none")
	}
	conn, err = listen(d.socket, d.cfg.socketGroup)
	if err != nil {
		return nil, nil, fmt.Errorf("hits socket: %w", err)
	}
	ours, err := os.Lstat(d.socket)
	return conn, func() {
		conn.Close()
		if now, statErr := os.Lstat(d.socket); err == nil && statErr == nil && os.SameFile(ours, now) {
			os.Remove(d.socket)
		}
	}, nil
}

// listen makes a socket at path, for its group to write to. One that is there
// already, and on which nobody receives, is replaced.
func listen(path string, group int) (*net.UnixConn, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// Nobody shall reach it before it has its mode.
	mask := syscall.Umask(0o777)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	syscall.Umask(mask)
	if err != nil {
		return nil, err
	}
	if group >= 0 {
		err = os.Lchown(path, -1, group)
	}
	if err == nil {
		err = os.Chmod(path, 0o660)
	}
	if err != nil {
		conn.Close()
		os.Remove(path)
		return nil, err
	}
	return conn, nil
}

// removeStale removes a socket that nobody receives on, and nothing else.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is there, and is no socket", path)
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		conn.Close()
		return fmt.Errorf("another process receives on %s", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}
