package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
)

// installPackages installs those packages that are missing on the machine itself,
// if nothing that is there has to go for them. It says before what it installs.
func installPackages(packages ...string) error {
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
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s: missing, and only root can install packages", strings.Join(missing, ", "))
	}
	if _, err := apt("update"); err != nil {
		return err
	}
	install := append([]string{"install", "--yes", "--no-remove", "--no-install-recommends"}, missing...)
	plan, err := apt(append(install, "--simulate")...)
	if err != nil {
		return err
	}
	var all []string
	for _, m := range regexp.MustCompile(`(?m)^Inst (\S+)`).FindAllSubmatch(plan, -1) {
		all = append(all, string(m[1]))
	}
	fmt.Println("installing on this machine:", strings.Join(all, ", "))
	_, err = apt(install...)
	return err
}

// apt runs apt-get(8). No service is started or restarted.
func apt(args ...string) ([]byte, error) {
	// Mirrors fail now and then.
	cmd := exec.Command("apt-get", append([]string{"--quiet", "-o", "Acquire::Retries=3"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "SYSTEMD_OFFLINE=1", "NEEDRESTART_SUSPEND=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("apt-get %s: %w", strings.Join(args, " "), err), errors.New(strings.TrimSpace(string(out))))
	}
	return out, nil
}
