package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"rblnft/cmd/internal/build"
)

// A layout says where the files go that make up rblnft.
type layout struct {
	filter  string // the directory of rblsmtpd
	sbin    string // of the other programs
	systemd string // the directory of which systemd reads sysusers.d and systemd/catalog
	units   string
	man     string // of man1, man5, man8

	// Debian's policy wants manual pages compressed (12.1), and one name for
	// one file among all packages: ucspi-tcp has man1/rblsmtpd.1.gz.
	debian bool
}

// local is the layout below prefix, an absolute path. What systemd is to find
// goes where it looks for the administrator's own files (systemd.unit(5)), unless
// prefix is /usr.
func local(prefix string) layout {
	l := layout{
		filter:  filepath.Join(prefix, "bin"),
		sbin:    filepath.Join(prefix, "sbin"),
		man:     filepath.Join(prefix, "share/man"),
		systemd: "/usr/local/lib",
	}
	if prefix == "/usr" {
		l.systemd = "/usr/lib"
	}
	l.units = l.systemd + "/systemd/system"
	return l
}

// debianLayout is the layout of the Debian package. Its filter is not
// /usr/bin/rblsmtpd: that is ucspi-tcp's, and stays so. A run script names the
// one that it wants.
var debianLayout = layout{
	filter:  "/usr/lib/rblnft",
	sbin:    "/usr/sbin",
	systemd: "/usr/lib",
	units:   "/lib/systemd/system", // where Debian 12 has them
	man:     "/usr/share/man",
	debian:  true,
}

// A file is one of those that make up an installation.
type file struct {
	path string // absolute
	mode os.FileMode
	data []byte
}

// sources are the files but for the programs, by their path in the module.
var sources = []struct {
	from string
	dir  func(layout) string
	name string
}{
	{"systemd/rblnftd.socket", func(l layout) string { return l.units }, "rblnftd.socket"},
	{"systemd/rblnftd.service", func(l layout) string { return l.units }, "rblnftd.service"},
	{"systemd/rblnft.sysusers", func(l layout) string { return l.systemd + "/sysusers.d" }, "rblnft.conf"},
	{"systemd/rblnft.catalog", func(l layout) string { return l.systemd + "/systemd/catalog" }, "rblnft.catalog"},
	{"cmd/rblsmtpd/rblsmtpd.1", layout.manual, "rblsmtpd.1"},
	{"cmd/rblnftd/rblnftd.8", layout.manual, "rblnftd.8"},
	{"cmd/rblnftd/rblnftd.toml.5", layout.manual, "rblnftd.toml.5"},
}

func (l layout) manual() string { return l.man + "/man" }

// paths returns where files go, in the order of [build.Programs] and sources.
func (l layout) paths() (paths []string) {
	for _, p := range build.Programs {
		paths = append(paths, l.program(p))
	}
	for _, s := range sources {
		dir, name := s.dir(l), s.name
		if strings.HasPrefix(s.from, "cmd/") {
			section := filepath.Ext(name)[1:]
			dir += section
			if l.debian && name == "rblsmtpd.1" {
				name += "rblnft"
			}
			if l.debian {
				name += ".gz"
			}
		}
		paths = append(paths, filepath.Join(dir, name))
	}
	return paths
}

// program is where a program goes.
func (l layout) program(name string) string {
	if name == "rblsmtpd" {
		return filepath.Join(l.filter, name)
	}
	return filepath.Join(l.sbin, name)
}

// files returns all files.
func (l layout) files() (files []file, err error) {
	programs, err := programs()
	if err != nil {
		return nil, err
	}
	paths := l.paths()
	for i, data := range programs {
		files = append(files, file{paths[i], 0o755, data})
	}
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	for i, s := range sources {
		data, err := os.ReadFile(filepath.Join(root, s.from))
		if err != nil {
			return nil, err
		}
		for _, p := range build.Programs {
			data = bytes.ReplaceAll(data, []byte(local("/usr/local").program(p)), []byte(l.program(p)))
		}
		path := paths[len(build.Programs)+i]
		if strings.HasSuffix(path, ".1rblnft.gz") {
			data = bytes.Replace(data, []byte(".TH RBLSMTPD 1 "), []byte(".TH RBLSMTPD 1rblnft "), 1)
		}
		if strings.HasSuffix(path, ".gz") {
			if data, err = compress(data); err != nil {
				return nil, err
			}
		}
		files = append(files, file{path, 0o644, data})
	}
	return files, nil
}

// programs compiles the programs, once, and returns them in the order of
// [build.Programs].
var programs = sync.OnceValues(func() (programs [][]byte, err error) {
	dir, err := os.MkdirTemp("", "rblnft")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := build.All(dir); err != nil {
		return nil, err
	}
	for _, p := range build.Programs {
		data, err := os.ReadFile(filepath.Join(dir, p))
		if err != nil {
			return nil, err
		}
		programs = append(programs, data)
	}
	return programs, nil
})

// compress does what "gzip -9n" does: the result depends on data alone.
func compress(data []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("go list -m: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// put writes f below root. Whoever uses the file meanwhile has the old one or
// the new one, whole.
func (f file) put(root string) error {
	path := filepath.Join(root, f.path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".rblnft-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err := tmp.Write(f.data); err != nil {
		tmp.Close()
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := tmp.Chmod(f.mode); err != nil {
		tmp.Close()
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// same reports whether f is there already.
func (f file) same(root string) bool {
	path := filepath.Join(root, f.path)
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != f.mode {
		return false
	}
	data, err := os.ReadFile(path)
	return err == nil && bytes.Equal(data, f.data)
}
