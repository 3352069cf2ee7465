package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// packages are the Debian packages that the tests need: programs that they
// run, the C compiler for the race detector, and what makes and boots a Debian
// in a container.
var packages = []string{
	"ca-certificates", "daemontools", "debian-archive-keyring", "gcc", "iproute2", "libc6-dev", "lintian",
	"mmdebstrap", "msmtp", "msmtp-mta", "nftables", "perl", "procps", "rbldnsd", "socat", "systemd-container", "ucspi-tcp", "util-linux",
}

// check installs what the tests need and runs all of them. A test that is
// skipped counts as failed: there is nothing that it could lack. The last line
// is "N passed, N failed".
func check() error {
	if err := installPackages(); err != nil {
		return err
	}
	// So that nothing that follows speaks of what it downloads.
	if out, err := exec.Command("go", "mod", "download").CombinedOutput(); err != nil {
		return fmt.Errorf("go mod download: %w\n%s", err, out)
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	started := time.Now()
	var r results
	r.quiet("gofmt", filepath.Join(strings.TrimSpace(string(goroot)), "bin/gofmt"), "-l", ".")
	r.quiet("go vet", "go", "vet", "./...")
	r.tests("-race", "-count=1", "-timeout=14m", "./...")
	r.print(time.Since(started))
	if len(r.failed) > 0 {
		return errors.New("not all is well")
	}
	return nil
}

// installPackages installs those packages that are missing.
func installPackages() error {
	var missing []string
	for _, p := range packages {
		status, _ := exec.Command("dpkg-query", "--show", "--showformat=${db:Status-Abbrev}", p).Output()
		if !bytes.HasPrefix(status, []byte("ii")) {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	fmt.Println("installing", strings.Join(missing, ", "))
	if os.Geteuid() != 0 {
		return errors.New("the packages above are missing, and only root can install them")
	}
	install := append([]string{"install", "--yes", "--quiet", "--no-install-recommends"}, missing...)
	for _, args := range [][]string{{"update", "--quiet"}, install} {
		// Mirrors fail now and then.
		cmd := exec.Command("apt-get", append([]string{"-o", "Acquire::Retries=3"}, args...)...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// results is what came out of the tests.
type results struct {
	passed  int
	failed  []string            // and skipped ones: packages and tests
	output  map[string][]string // by package and test, of those that run
	started map[string]bool     // tests by package and test, of those that run
}

// event is what "go test -json" prints (go doc test2json, go doc cmd/go).
type event struct {
	Action     string
	Package    string
	ImportPath string // of build-output
	Test       string
	Output     string
	Elapsed    float64 // seconds
	// FailedBuild is the ImportPath whose build failed, where a package
	// fails for that.
	FailedBuild string
}

// quiet runs a command that has nothing to say when all is well.
func (r *results) quiet(what, name string, args ...string) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err == nil && len(bytes.TrimSpace(out)) == 0 {
		r.passed++
		fmt.Println("pass", what)
		return
	}
	fmt.Printf("--- fail: %s: %v\n%s", what, err, out)
	r.failed = append(r.failed, what)
}

// tests runs "go test -json" and counts. That go itself fails counts too, where
// no test has.
func (r *results) tests(args ...string) {
	r.output, r.started = map[string][]string{}, map[string]bool{}
	before := r.passed + len(r.failed)
	err := r.run(exec.Command("go", append([]string{"test", "-json"}, args...)...))
	switch {
	case err != nil && len(r.failed) == 0:
		r.failed = append(r.failed, fmt.Sprintf("go test: %v", err))
	case r.passed+len(r.failed) == before:
		r.failed = append(r.failed, "go test: no test ran")
	}
}

func (r *results) run(cmd *exec.Cmd) error {
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil {
				r.take(e)
			} else {
				os.Stdout.Write(line)
			}
		}
		if err == io.EOF {
			return cmd.Wait()
		}
		if err != nil {
			return errors.Join(err, cmd.Wait())
		}
	}
}

func (r *results) take(e event) {
	key := strings.TrimSpace(e.Package + " " + e.Test)
	switch e.Action {
	case "build-output":
		r.output[e.ImportPath] = append(r.output[e.ImportPath], e.Output)
		return
	case "output":
		r.output[key] = append(r.output[key], e.Output)
		return
	case "run":
		r.started[key] = true
		return
	case "pass", "skip", "fail":
	default:
		return
	}
	defer delete(r.output, key)
	delete(r.started, key)
	switch {
	case e.Test != "" && e.Action == "pass":
		r.passed++
	case e.Test != "":
		r.complain(e.Action, key)
	case e.Action == "fail":
		// A package fails for one of its tests, finished or not, or because
		// it cannot be built, or for its TestMain.
		for key := range r.started {
			if strings.HasPrefix(key, e.Package+" ") {
				r.complain("unfinished", key)
				delete(r.started, key)
			}
		}
		if !slices.ContainsFunc(r.failed, func(f string) bool { return strings.HasPrefix(f, e.Package+" ") }) {
			r.output[key] = append(r.output[e.FailedBuild], r.output[key]...)
			r.complain(e.Action, key)
		}
		fallthrough
	case e.Action == "pass":
		fmt.Printf("%-4s %-40s %6.1f s\n", e.Action, e.Package, e.Elapsed)
	}
}

// complain counts what has failed and shows what it said.
func (r *results) complain(action, key string) {
	r.failed = append(r.failed, key)
	fmt.Printf("--- %s: %s\n%s", action, key, strings.Join(r.output[key], ""))
}

func (r *results) print(took time.Duration) {
	for _, f := range r.failed {
		fmt.Println("failed:", f)
	}
	fmt.Printf("all tests took %.0f s\n%d passed, %d failed\n", took.Seconds(), r.passed, len(r.failed))
}
