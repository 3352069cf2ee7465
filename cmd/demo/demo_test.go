package main

import (
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"rblnft/cmd/internal/build"
	"rblnft/cmd/internal/debian"
)

func TestDemo(t *testing.T) {
	dir, err := os.MkdirTemp("", "demo")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := build.All(dir); err != nil {
		t.Fatal(err)
	}
	demo := filepath.Join(dir, "demo")
	if out, err := exec.Command("go", "build", "-o", demo, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.ParseUint(nobody.Uid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	for name, who := range map[string]*syscall.Credential{
		"root":   nil,
		"nobody": {Uid: uint32(uid), Gid: uint32(uid)},
	} {
		t.Run(name, func(t *testing.T) {
			if who != nil {
				debian.Needs(t, debian.UserNamespaces)
			}
			cmd := exec.Command(demo)
			cmd.Dir = "/"
			cmd.Env = []string{"PATH=/usr/bin:/bin", programsEnv + "=" + dir}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			rest := string(out)
			for _, line := range []string{
				"    S: 220 rblsmtpd.local\n",
				"table inet rblnft {\n",
				"elements = { 192.0.2.66 timeout ",
				` comment "bl.example" }`,
				"    S: 553 Listed by bl.example, see http://bl.example/?192.0.2.66\n",
				"    S: 221 rblsmtpd.local\n",
				"    no answer in ",
				"    S: 220 mail.example ESMTP",
				"All of it happened",
			} {
				_, after, found := strings.Cut(rest, line)
				if !found {
					t.Errorf("no %q, or not in this order, in\n%s", line, out)
					break
				}
				rest = after
			}
			if left, _ := filepath.Glob("/tmp/rblnft-demo*"); len(left) > 0 {
				t.Errorf("it left %s", left)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	demo := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.Command("go", "build", "-o", demo, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for arg, code := range map[string]int{"-h": 0, "--help": 0, "-x": 100} {
		cmd := exec.Command(demo, arg)
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != code || string(out) != usage {
			t.Errorf("%s: %d, %s", arg, cmd.ProcessState.ExitCode(), out)
		}
	}
}

// Without a mail server that answers, the demonstration must not say that all
// is well.
func TestDemoThatFails(t *testing.T) {
	dir := t.TempDir()
	if err := build.All(dir); err != nil {
		t.Fatal(err)
	}
	// A filter that lets everybody through.
	if err := os.WriteFile(filepath.Join(dir, "rblsmtpd"), []byte("#!/bin/sh\nshift 4\nexec \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "run", ".")
	cmd.Env = append(os.Environ(), programsEnv+"="+dir)
	out, err := cmd.CombinedOutput()
	if err == nil || strings.Contains(string(out), "All of it happened") || !strings.Contains(string(out), `want "220 rblsmtpd.local"`) {
		t.Errorf("%v\n%s", err, out)
	}
}
