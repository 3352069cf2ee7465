package main

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
)

// defaultGroup is the group that may report hits, in rblnftd.socket.
const defaultGroup = "nofiles"

// groupDropIn is where "systemctl edit" would say that it is another one.
const groupDropIn = "/etc/systemd/system/rblnftd.socket.d/rblnft-group.conf"

// admitFilter lets the filter report in whatever group the mail server that runs
// it gives it. It returns whether the socket has to be made anew.
func admitFilter(filter string) (changed bool, err error) {
	gid, ok := filterGroup(filter)
	if !ok {
		return false, nil
	}
	name := gid
	if g, err := user.LookupGroupId(gid); err == nil {
		name = g.Name
	}
	text := "[Socket]\nSocketGroup=" + name + "\n"
	if old, err := os.ReadFile(groupDropIn); name == defaultGroup && os.IsNotExist(err) || string(old) == text {
		return false, nil
	}
	fmt.Printf("%s: the mail server's filter runs in group %s\n", groupDropIn, name)
	return true, file{groupDropIn, 0o644, []byte(text)}.put("")
}

// filterGroup finds a tcpserver(1) that has filter among its arguments, and the
// group that it gives to the filter.
func filterGroup(filter string) (gid string, ok bool) {
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range processes {
		line, _ := os.ReadFile(p) // it may have ended
		if gid, ok := groupArgument(strings.Split(string(line), "\x00"), filter); ok {
			return gid, true
		}
	}
	return "", false
}

// groupArgument is the group in a tcpserver's arguments, if it runs filter.
func groupArgument(args []string, filter string) (gid string, ok bool) {
	if filepath.Base(args[0]) != "tcpserver" {
		return "", false
	}
	for i, a := range args[1:] {
		switch {
		case a == filter:
			return gid, gid != ""
		case strings.HasPrefix(a, "-g") && len(a) > 2 && gid == "":
			gid = a[2:]
		case i > 0 && args[i] == "-g" && gid == "":
			gid = a
		}
	}
	return "", false
}
