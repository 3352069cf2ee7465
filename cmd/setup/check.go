package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"rblnft/cmd/internal/debian"
)

// withPrograms are the packages whose tests run programs that Debian's root has;
// those that need a network namespace name themselves, by what they import.
var withPrograms = []string{"rblnft/cmd/rblsmtpd/differential"}

// netlabPackage is what tests import that need a network namespace.
const netlabPackage = "rblnft/firewall/netlab"

// everything is what check runs the tests of where nobody wants less.
var everything = []string{"./..."}

// check runs the tests of some packages, or of all: in a Debian of its own, and
// some on its kernel too. A test that is skipped counts as failed, unless the machine lacks what it was
// found to lack. The last line is "N passed, N failed".
func check(packages ...string) error {
	started := time.Now()
	root, lacking, err := prepare()
	if err != nil {
		return err
	}
	for facility, reason := range lacking {
		fmt.Printf("no %s here: %s\n", facility, reason)
	}
	// So that nothing that follows speaks of what it downloads.
	if out, err := exec.Command("go", "mod", "download").CombinedOutput(); err != nil {
		return fmt.Errorf("go mod download: %w\n%s", err, out)
	}
	env, err := goEnv("GOROOT")
	if err != nil {
		return err
	}
	r := newResults(lacking)
	r.quiet("gofmt", filepath.Join(env[0], "bin/gofmt"), "-l", ".")
	r.quiet("go vet", "go", "vet", "./...")
	if len(packages) == 0 {
		packages = everything
	}
	if err := r.all(root, packages); err != nil {
		r.failed = append(r.failed, err.Error())
	}
	r.print(time.Since(started))
	if len(r.failed) > 0 {
		return errors.New("not all is well")
	}
	return nil
}

// prepare finds out what the machine lacks, and makes the root where it can be
// entered.
func prepare() (root debian.Root, lacking debian.Lacking, err error) {
	lacking = debian.Lacking{}
	switch out, err := exec.Command("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "true").CombinedOutput(); {
	case os.Geteuid() != 0:
		lacking[debian.Namespaces] = "only root can enter another root file system"
	case err != nil:
		lacking[debian.Namespaces] = reason(out, err)
	}
	if len(lacking) > 0 {
		return root, lacking, installPackages("ca-certificates")
	}
	if err := installPackages(debian.HostPackages...); err != nil {
		return root, nil, err
	}
	if root, err = debian.Make(os.Stdout); err != nil {
		return root, nil, err
	}
	if !debian.KernelArch {
		lacking[debian.Kernel] = "amd64 alone is emulated"
	}
	for facility, script := range map[debian.Facility]string{
		debian.Namespaces:     "true",
		debian.UserNamespaces: "setpriv --reuid=65534 --regid=65534 --clear-groups unshare --user --map-root-user true",
		debian.ControlGroups:  debian.OwnGroups + `[ "$groups" ] && rmdir $groups`,
	} {
		cmd, err := debian.Enter{Root: root}.Command(context.Background(), "sh", "-c", script)
		if err != nil {
			return root, nil, err
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			lacking[facility] = reason(out, err)
		}
	}
	return root, lacking, nil
}

// reason is what a program has said of why it failed.
func reason(out []byte, err error) string {
	if len(out) == 0 {
		return err.Error()
	}
	return strings.Join(strings.Fields(string(out)), " ")
}

// all runs all tests, in the root if there is one, or those that need none.
func (r *results) all(root debian.Root, packages []string) error {
	args := []string{"test", "-json", "-race", "-count=1", "-timeout=14m"}
	if _, lacks := r.lacking[debian.Namespaces]; !lacks {
		cmd, err := inRoot(root, r.lacking, "go", append(args, packages...)...)
		if err != nil {
			return err
		}
		r.tests(cmd)
		return r.kernel(root, packages)
	}
	if _, err := exec.LookPath("gcc"); err != nil {
		fmt.Println("no race detector here: it needs gcc")
		args = slices.DeleteFunc(args, func(arg string) bool { return arg == "-race" })
	}
	lines, err := goList(append([]string{"-test", "-f", "{{.ImportPath}} {{join .Deps \" \"}}"}, packages...)...)
	if err != nil {
		return err
	}
	for _, line := range lines {
		fields := strings.Fields(line)
		pkg, isTest := strings.CutSuffix(fields[0], ".test")
		if !isTest {
			continue
		}
		if slices.Contains(fields, netlabPackage) || pkg == netlabPackage || slices.Contains(withPrograms, pkg) {
			r.skip(pkg, r.lacking.Reason(debian.Namespaces))
			continue
		}
		args = append(args, pkg)
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), r.lacking.Env())
	r.tests(cmd)
	return nil
}

// inRoot is a command that runs in the root, in the module's directory, which has
// Go and what it has downloaded and compiled there.
func inRoot(root debian.Root, lacking debian.Lacking, name string, args ...string) (*exec.Cmd, error) {
	module, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	env, err := goEnv("GOROOT", "GOMODCACHE", "GOCACHE", "GOFLAGS")
	if err != nil {
		return nil, err
	}
	cache, err := debian.Cache()
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{cache, env[1], env[2]} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	return debian.Enter{
		Root: root,
		Dir:  module,
		Binds: []debian.Bind{
			{Path: module}, {Path: env[0]}, {Path: env[1]}, {Path: cache},
			{Path: env[2], Writable: true},
		},
		Env: []string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:" + env[0] + "/bin",
			"GOMODCACHE=" + env[1], "GOCACHE=" + env[2], "GOFLAGS=" + env[3], "GOPROXY=off", "GOTOOLCHAIN=local",
			"XDG_CACHE_HOME=" + filepath.Dir(cache), lacking.Env(),
		},
	}.Command(context.Background(), name, args...)
}

// goList returns what "go list" prints.
func goList(args ...string) ([]string, error) {
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, &errs)
	}
	return strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' }), nil
}

// goEnv returns variables of "go env".
func goEnv(names ...string) ([]string, error) {
	out, err := exec.Command("go", append([]string{"env"}, names...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n"), nil
}

// clean removes what check keeps.
func clean() error {
	cache, err := debian.Cache()
	if err != nil {
		return err
	}
	return os.RemoveAll(cache)
}
