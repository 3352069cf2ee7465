//go:build linux

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"rblnft/cmd/internal/debian"
)

// harmful is a module whose tests want the ports of the machine's own services,
// look for their processes, and take away what they find.
var harmful = map[string]string{
	"go.mod":                    "module rblnft\n\ngo 1.26\n",
	"firewall/netlab/netlab.go": "package netlab\n",
	"harm/harm_test.go": `package harm

import (
	"net"
	"os"
	"os/exec"
	"testing"

	_ "rblnft/firewall/netlab"
)

func TestHarm(t *testing.T) {
	for _, port := range []string{":25", ":53"} {
		if _, err := net.Listen("tcp", port); err != nil {
			t.Error(err)
		}
	}
	if out, err := exec.Command("pgrep", "--list-name", "named|master").Output(); err == nil {
		t.Errorf("found: %s", out)
	}
	for _, program := range []string{"tcpserver", "rbldnsd", "nft"} {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Error(err)
		} else if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile("/etc/passwd", nil, 0o644); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile("go.mod", nil, 0o644); err == nil {
		t.Error("the module's files can be written")
	}
}
`,
	"cmd/plain/plain_test.go": `package plain

import (
	"testing"

	"rblnft/cmd/internal/debian"
)

func TestPlain(t *testing.T) {}

func TestContainer(t *testing.T) { debian.Needs(t, debian.Namespaces) }
`,
}

// A mail server with Postfix, named and another ucspi-tcp than Debian's tests
// need is the same after a check, but for the packages that were announced.
func TestCheckHarmsNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range harmful {
		if err := os.MkdirAll(filepath.Join(dir, "module", filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "module", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(dir, "module/cmd/internal/debian"), os.DirFS("../internal/debian")); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "setup"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	debian.Needs(t, debian.Namespaces)
	root, err := debian.Make(t.Output())
	if err != nil {
		t.Fatal(err)
	}
	// It has the root already: making one needs the network.
	cached := "/root/.cache/rblnft/" + filepath.Base(filepath.Dir(root.Dir)) + "/root"
	c := boot(t, append(source(t), "--bind-ro="+dir+":/harmful", "--bind-ro="+root.Dir+":"+cached)...)
	c.write("/etc/apt/sources.list", "deb [trusted=yes] file:"+debian.Repository+" ./\n")
	c.sh("apt-get update && apt-get install --yes --no-install-recommends bind9 postfix ucspi-tcp-ipv6 2>&1")
	c.await("systemctl is-active named.service postfix@-.service", "active\nactive")
	before := machine(c)
	out := c.sh("cd /harmful/module && GOPROXY=off GOTOOLCHAIN=local ../setup check ./harm ./cmd/plain 2>&1")
	after := machine(c)
	t.Log(out)
	if !strings.HasSuffix(out, "\n5 passed, 0 failed") {
		t.Errorf("check says\n%s", out)
	}

	_, list, _ := strings.Cut(out, "installing on this machine: ")
	list, _, _ = strings.Cut(list, "\n")
	announced := strings.Split(list, ", ")
	if !slices.Contains(announced, "mmdebstrap") {
		t.Errorf("announced are %q", announced)
	}
	// What python3 makes when it is installed.
	python := regexp.MustCompile(`^\+file (/etc/python3|/usr/(local/)?(lib|share)/python3|/var/lib/python)\b`)
	var files []string // of what was announced
	for _, p := range announced {
		files = append(files, strings.Split(c.sh("dpkg-query --listfiles "+p), "\n")...)
	}
	for _, change := range changes(before, after) {
		kind, what, _ := strings.Cut(strings.TrimLeft(change, "+-"), " ")
		what, _, _ = strings.Cut(what, "\t")
		switch {
		case kind == "package" && change[0] == '+' && slices.Contains(announced, what):
		case kind == "file" && slices.Contains(files, what):
		case python.MatchString(change):
		default:
			t.Errorf("changed: %s", change)
		}
	}

	t.Run("without namespaces", func(t *testing.T) {
		c.t = t
		out := c.sh("cd /harmful/module && GOPROXY=off GOTOOLCHAIN=local setpriv --bounding-set=-sys_admin ../setup check 2>&1")
		c.want("echo '"+strings.ReplaceAll(out, "'", "")+"'",
			"skipped: rblnft/harm: not tried without namespaces: ", "skipped: rblnft/cmd/plain TestContainer: not tried without namespaces: ",
			"\n3 passed, 0 failed, 2 skipped")
	})
}

// machine lists what check must not change: packages, units, the processes of
// services, and files but for those that change by themselves.
func machine(c *container) []string {
	c.t.Helper()
	out := c.sh(`dpkg-query --show --showformat 'package ${Package}\t${Version} ${db:Status-Abbrev}\n'
systemctl list-unit-files --no-legend | sed 's/^/enabled /'
systemctl show --property=MainPID,ActiveState,UnitFileState named.service postfix@-.service rbldnsd.service rbldnsd.socket | sed 's/^/unit /'
find / -xdev \( -path /root/.cache -o -path /root/.config -o -path /tmp -o -path /var/cache -o -path /var/log -o -path /var/lib/apt -o -path /var/lib/dpkg \) -prune \
	-o -type f -printf 'file %p\t%s %T@\n' -o -type d -printf 'file %p\n' -o -printf 'file %p\t%l\n'`)
	list := strings.Split(out, "\n")
	list = slices.DeleteFunc(list, func(line string) bool {
		return regexp.MustCompile(`^file /(var/lib/systemd|var/lib/postfix|var/lib/logrotate|var/spool/postfix|etc/ld\.so\.cache)\b`).MatchString(line)
	})
	slices.Sort(list)
	return list
}
