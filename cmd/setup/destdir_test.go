//go:build linux

package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// list returns the files below root, without it.
func list(t *testing.T, root string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, strings.TrimPrefix(path, root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestDestdir(t *testing.T) {
	for _, tt := range []struct {
		prefix string
		want   []string
	}{
		{"", []string{
			"/usr/local/bin/rblsmtpd", "/usr/local/sbin/rblnftd",
			"/usr/local/lib/systemd/system/rblnftd.service", "/usr/local/lib/systemd/system/rblnftd.socket",
			"/usr/local/lib/systemd/catalog/rblnft.catalog", "/usr/local/lib/sysusers.d/rblnft.conf",
			"/usr/local/share/man/man1/rblsmtpd.1", "/usr/local/share/man/man5/rblnftd.toml.5", "/usr/local/share/man/man8/rblnftd.8",
		}},
		{"/opt/rblnft/", []string{
			"/opt/rblnft/bin/rblsmtpd", "/opt/rblnft/sbin/rblnftd",
			"/usr/local/lib/systemd/system/rblnftd.service", "/usr/local/lib/systemd/system/rblnftd.socket",
			"/usr/local/lib/systemd/catalog/rblnft.catalog", "/usr/local/lib/sysusers.d/rblnft.conf",
			"/opt/rblnft/share/man/man1/rblsmtpd.1", "/opt/rblnft/share/man/man5/rblnftd.toml.5", "/opt/rblnft/share/man/man8/rblnftd.8",
		}},
		{"/usr", []string{
			"/usr/bin/rblsmtpd", "/usr/sbin/rblnftd",
			"/usr/lib/systemd/system/rblnftd.service", "/usr/lib/systemd/system/rblnftd.socket",
			"/usr/lib/systemd/catalog/rblnft.catalog", "/usr/lib/sysusers.d/rblnft.conf",
			"/usr/share/man/man1/rblsmtpd.1", "/usr/share/man/man5/rblnftd.toml.5", "/usr/share/man/man8/rblnftd.8",
		}},
	} {
		t.Run("PREFIX="+tt.prefix, func(t *testing.T) {
			dest := t.TempDir()
			t.Setenv("DESTDIR", dest)
			t.Setenv("PREFIX", tt.prefix)
			slices.Sort(tt.want)
			for range 2 {
				if err := install(); err != nil {
					t.Fatal(err)
				}
				if got := list(t, dest); !slices.Equal(slices.Sorted(slices.Values(got)), tt.want) {
					t.Fatalf("files\n%s, want\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
				}
			}
			var service string
			for _, path := range tt.want {
				info, err := os.Stat(dest + path)
				if err != nil {
					t.Fatal(err)
				}
				want := fs.FileMode(0o644)
				if strings.Contains(path, "bin/") {
					want = 0o755
				}
				if info.Mode() != want {
					t.Errorf("%s: %s, want %s", path, info.Mode(), want)
				}
				if strings.HasSuffix(path, ".service") {
					b, err := os.ReadFile(dest + path)
					if err != nil {
						t.Fatal(err)
					}
					service = string(b)
				}
			}
			for _, path := range tt.want {
				if strings.HasSuffix(path, "/rblnftd") && !strings.Contains(service, "\nExecStart="+path+"\n") {
					t.Errorf("%s is not what the unit starts:\n%s", path, service)
				}
			}

			// What is not ours, and configuration and state, stay.
			other := filepath.Join(dest, "usr/local/bin/other")
			for _, path := range []string{other, dest + "/etc/rblnft/rblnftd.toml", dest + "/var/lib/rblnft/journal"} {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if err := uninstall(false); err != nil {
					t.Fatal(err)
				}
				if got := list(t, dest); !slices.Equal(got, []string{"/etc/rblnft/rblnftd.toml", "/usr/local/bin/other", "/var/lib/rblnft/journal"}) {
					t.Errorf("left: %q", got)
				}
			}
			if err := uninstall(true); err != nil {
				t.Fatal(err)
			}
			if got := list(t, dest); !slices.Equal(got, []string{"/usr/local/bin/other"}) {
				t.Errorf("left after a purge: %q", got)
			}
		})
	}
}

func TestBadPrefix(t *testing.T) {
	for _, tt := range []struct{ prefix, destdir, want string }{
		{"usr", "", `$PREFIX "usr" is no absolute path`},
		{"./usr", "/tmp", `$PREFIX "./usr" is no absolute path`},
		{"/usr", "", "ucspi-tcp's"},
		{"/usr/", "", "ucspi-tcp's"},
	} {
		t.Setenv("DESTDIR", tt.destdir)
		t.Setenv("PREFIX", tt.prefix)
		if _, err := newTarget(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}
