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
	"slices"
	"strings"
	"time"
)

// packages are the Debian packages that the tests need: programs that they
// run, and the C compiler for the race detector.
var packages = []string{
	"daemontools", "gcc", "iproute2", "libc6-dev", "lintian", "mmdebstrap", "msmtp", "nftables", "procps",
	"rbldnsd", "socat", "systemd-container", "ucspi-tcp", "util-linux",
}

// check installs what the tests need and runs all of them. A test that is
// skipped counts as failed: there is nothing that it could lack.
func check() error {
	if err := installPackages(); err != nil {
		return err
	}
	if err := output("gofmt: not formatted:", "gofmt", "-l", "."); err != nil {
		return err
	}
	if err := output("go vet:", "go", "vet", "./..."); err != nil {
		return err
	}
	started := time.Now()
	var r results
	err := r.run("go", "test", "-json", "-race", "-count=1", "-timeout=14m", "./...")
	r.print(time.Since(started))
	switch {
	case r.failed > 0:
		return fmt.Errorf("%d tests failed", r.failed)
	case err != nil:
		return err
	case r.passed == 0:
		return errors.New("no test ran")
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
		cmd := exec.Command("apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// output runs a command that has nothing to say when all is well.
func output(complaint, name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil || len(bytes.TrimSpace(out)) > 0 {
		return fmt.Errorf("%s %w\n%s", complaint, err, out)
	}
	return nil
}

// results is what came out of the tests.
type results struct {
	passed, failed int
	said           map[string][]string // output, by package and test
	bad            []string
}

// event is what "go test -json" prints (go doc test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64 // seconds
}

// run runs "go test -json" and counts.
func (r *results) run(name string, args ...string) error {
	r.said = map[string][]string{}
	cmd := exec.Command(name, args...)
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
			break
		}
		if err != nil {
			return err
		}
	}
	return cmd.Wait()
}

func (r *results) take(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		r.said[key] = append(r.said[key], e.Output)
		return
	case "pass", "skip", "fail":
	default:
		return
	}
	defer delete(r.said, key)
	if e.Test == "" {
		fmt.Printf("%-4s %-40s %6.1f s\n", e.Action, e.Package, e.Elapsed)
		if e.Action == "fail" && !slices.ContainsFunc(r.bad, func(b string) bool { return strings.HasPrefix(b, e.Package+" ") }) {
			r.complain(key, e.Action)
		}
		return
	}
	if e.Action == "pass" {
		r.passed++
		return
	}
	r.complain(key, e.Action)
}

func (r *results) complain(key, action string) {
	r.failed++
	r.bad = append(r.bad, key)
	fmt.Printf("--- %s: %s\n%s", action, key, strings.Join(r.said[key], ""))
}

func (r *results) print(took time.Duration) {
	for _, b := range r.bad {
		fmt.Println("failed:", b)
	}
	fmt.Printf("all tests took %.0f s\n%d passed, %d failed\n", took.Seconds(), r.passed, r.failed)
}
