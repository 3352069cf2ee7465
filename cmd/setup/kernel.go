package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"rblnft/cmd/internal/build"
	"rblnft/cmd/internal/debian"
)

// onDebianKernel are the packages whose tests run on Debian 12's own kernel too.
var onDebianKernel = []string{"./firewall/book", "./firewall/hit", "./firewall/intake", "./firewall/netlab", "./firewall/nft", "./firewall/store"}

// emulation is how long these may take.
const emulation = 8 * time.Minute

// tested has "go list" print a package that has tests: its name, its module and
// its directory.
const tested = `{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Module.Path}} {{.Dir}}{{end}}`

// kernel runs those tests on the kernel of the root, in a virtual machine, that
// are among the packages.
func (r *results) kernel(root debian.Root, among []string) error {
	packages, err := goList(append([]string{"-f", tested}, among...)...)
	if err != nil {
		return err
	}
	wanted, err := goList(append([]string{"-e", "-f", tested}, onDebianKernel...)...)
	if err != nil {
		return err
	}
	packages = slices.DeleteFunc(packages, func(p string) bool { return !slices.Contains(wanted, p) })
	if len(packages) == 0 {
		if slices.Equal(among, everything) {
			return fmt.Errorf("no tests in %s", strings.Join(onDebianKernel, " "))
		}
		return nil
	}
	if reason := r.lacking.Reason(debian.Kernel); reason != "" {
		r.skip(strings.Join(onDebianKernel, " "), reason)
		return nil
	}
	release, err := root.Release()
	if err != nil {
		return err
	}
	payload, err := os.MkdirTemp("", "rblnft-kernel-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(payload)
	names, err := compileTests(payload, packages, " on "+release)
	if err != nil {
		r.complain("fail", test{pkg: "Linux " + release})
		fmt.Println(err)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), emulation)
	defer cancel()
	events, out := io.Pipe()
	read := make(chan error)
	go func() { read <- r.read(events) }()
	console, err := root.Boot(ctx, payload, out)
	out.Close()
	if ctx.Err() != nil {
		err = fmt.Errorf("not ready after %s", emulation)
	}
	err = errors.Join(err, <-read)
	failed := err != nil
	for _, p := range names {
		r.unfinished(p)
		switch {
		case !r.ended[p]:
			failed = true
			if !r.spoilt[p] {
				r.complain("unfinished", test{pkg: p})
			}
		case r.ran[p] == 0:
			r.complain("no test ran", test{pkg: p})
		}
	}
	if failed {
		lines := strings.SplitAfter(console, "\n")
		fmt.Printf("the virtual machine ended: %v; its console:\n%s", err, strings.Join(lines[max(0, len(lines)-50):], ""))
	}
	if err != nil {
		r.complain("fail", test{pkg: "Linux " + release})
	}
	return nil
}

// compileTests puts into dir the programs, the tests with their data, and the
// script that runs them, in short: emulation is slow. It returns the names that
// the script gives them, which end in suffix.
func compileTests(dir string, packages []string, suffix string) (names []string, err error) {
	if err := build.All(filepath.Join(dir, "programs")); err != nil {
		return nil, err
	}
	script := "export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 " + build.ProgramsEnv + "=/mnt/programs\n"
	if err := os.Mkdir(filepath.Join(dir, "tests"), 0o755); err != nil {
		return nil, err
	}
	args := []string{"test", "-c", "-trimpath", "-o", filepath.Join(dir, "tests") + "/"}
	for _, line := range packages {
		pkg, rest, _ := strings.Cut(line, " ")
		module, source, _ := strings.Cut(rest, " ")
		in := path.Join("src", strings.TrimPrefix(pkg, module))
		if err := os.MkdirAll(filepath.Join(dir, in), 0o755); err != nil {
			return nil, err
		}
		if data := filepath.Join(source, "testdata"); exists(data) {
			if err := os.CopyFS(filepath.Join(dir, in, "testdata"), os.DirFS(data)); err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, err
			}
		}
		script += fmt.Sprintf("cd /mnt/%s && /mnt/test2json -t -p '%s' /mnt/tests/%s.test -test.v=test2json -test.paniconexit0 -test.timeout=5m -test.short\n",
			in, pkg+suffix, path.Base(pkg))
		args = append(args, pkg)
		names = append(names, pkg+suffix)
	}
	if err := os.WriteFile(filepath.Join(dir, "run"), []byte(script), 0o644); err != nil {
		return nil, err
	}
	for _, args := range [][]string{args, {"build", "-trimpath", "-o", filepath.Join(dir, "test2json"), "cmd/test2json"}} {
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return names, nil
}
