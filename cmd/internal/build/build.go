// Package build compiles rblnft's programs, each with the flags it needs.
// The working directory must lie in the module.
package build

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Programs are the names of all programs that users get.
var Programs = []string{"rblsmtpd", "rblnftd"}

// filterEntry is where the kernel starts the filter: not at the Go runtime's
// own entry point but at cmd/rblsmtpd's, see entry_linux_*.s there.
const filterEntry = "rblsmtpd_entry"

// All compiles every program of [Programs] into dir, making dir if need be.
func All(dir string) error {
	for _, name := range Programs {
		if err := Program(dir, name); err != nil {
			return err
		}
	}
	return nil
}

// Program compiles the program cmd/NAME to dir/NAME, making dir if need be.
func Program(dir, name string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	ldflags := "-s -w"
	if name == "rblsmtpd" {
		if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
			return fmt.Errorf("build %s: no entry point for %s: amd64 and arm64 have one", name, runtime.GOARCH)
		}
		ldflags += " -E=" + filterEntry
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags="+ldflags, "-o", filepath.Join(dir, name), "rblnft/cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if name == "rblsmtpd" && strings.HasPrefix(runtime.Version(), "go1.26") {
		// The older garbage collector touches fewer pages before main.
		cmd.Env = append(cmd.Env, "GOEXPERIMENT=nogreenteagc")
	}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s: %w", name, err)
	}
	return nil
}
