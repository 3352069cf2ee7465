//go:build linux

// Demo shows what rblnft is for, with the real filter, the real daemon and the
// real nftables, in a network namespace of its own: a listed client gets its
// 553, and its next connection is dropped by the kernel; another client notices
// nothing. It needs Go, and root or unprivileged user namespaces. Its exit code
// is 0 only if all of that happened.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"rblnft/cmd/internal/build"
	"rblnft/firewall/netlab"
)

// programsEnv tells the demonstration in its namespace where the programs are.
const programsEnv = "RBLNFT_DEMO_PROGRAMS"

const usage = `usage: go run ./cmd/demo

Shows a listed client get its 553, and the kernel drop its next connection, in a
network namespace of its own. Nothing is installed, nothing stays.
`

func main() {
	switch args := os.Args[1:]; {
	case len(args) == 1 && args[0] == "smtpd":
		greet()
		return
	case len(args) == 1 && (args[0] == "-h" || args[0] == "--help"):
		fmt.Print(usage)
		return
	case len(args) > 0:
		fmt.Fprint(os.Stderr, usage)
		os.Exit(100)
	}
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		code = 1
	}
	os.Exit(code)
}

// run builds the programs, where the module's dependencies can be downloaded,
// unless it is told where they are, and shows them where nothing can be reached.
func run() (code int, err error) {
	if netlab.Inside() {
		return 0, show(os.Getenv(programsEnv))
	}
	if os.Getenv(programsEnv) == "" {
		dir, err := os.MkdirTemp("", "rblnft-demo")
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir)
		fmt.Println("Building rblsmtpd and rblnftd ...")
		if err := build.All(dir); err != nil {
			return 0, err
		}
		if err := os.Setenv(programsEnv, dir); err != nil {
			return 0, err
		}
	}
	code, err = netlab.Reexec()
	if err != nil {
		return 0, fmt.Errorf("no network namespace of its own: %w\n"+
			"(run it as root, or allow unprivileged user namespaces: sysctl kernel.unprivileged_userns_clone=1)", err)
	}
	return code, nil
}

// start starts one of the programs, with its log shown line by line.
func start(dir, name string, env []string, args ...string) (*exec.Cmd, error) {
	cmd := exec.Command(filepath.Join(dir, name), args...)
	cmd.Env = env
	cmd.Stdout = os.Stdout
	log, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go quote(name, log)
	return cmd, nil
}
