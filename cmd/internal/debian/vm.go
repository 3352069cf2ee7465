package debian

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// KernelArch is whether Debian's kernel can be tried for this processor.
const KernelArch = runtime.GOARCH == "amd64"

// start is what the virtual machine does when it has the root: the payload's
// script, whose output leaves by the second serial line. The first is the console.
const start = `cd /mnt
modprobe tun
stty -F /dev/ttyS1 raw -echo
ip link set lo up
sh ./run >/dev/ttyS1 2>/dev/ttyS0 </dev/null
poweroff -ff
`

// Release is the root's kernel's, such as "6.1.0-56-cloud-amd64".
func (r Root) Release() (string, error) {
	kernels, err := filepath.Glob(filepath.Join(r.Dir, "boot/vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return "", fmt.Errorf("kernels in %s/boot: %q, want one", r.Dir, kernels)
	}
	return strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-"), nil
}

// Boot boots the root's kernel, on a copy of the root, in an emulated machine,
// which runs the script "run" of a directory, and powers off. It returns what
// the script has written to out, and on the console, with the kernel's messages.
func (r Root) Boot(ctx context.Context, payload string, out io.Writer) (console string, err error) {
	release, err := r.Release()
	if err != nil {
		return "", err
	}
	disk, err := r.disk(ctx)
	if err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(filepath.Dir(r.Dir), "vm-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := os.WriteFile(filepath.Join(payload, "start"), []byte(start), 0o644); err != nil {
		return "", err
	}
	image := filepath.Join(work, "payload")
	if err := r.makeDisk(ctx, payload, image); err != nil {
		return "", err
	}
	e := Enter{Root: r, Binds: []Bind{{Path: filepath.Dir(r.Dir)}, {Path: work, Writable: true}}}
	log := filepath.Join(work, "console")
	cmd, err := e.Command(ctx, "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2G",
		"-kernel", "/boot/vmlinuz-"+release, "-initrd", "/boot/initrd.img-"+release,
		"-drive", "if=virtio,format=raw,snapshot=on,file="+disk, "-drive", "if=virtio,format=raw,snapshot=on,file="+image,
		"-serial", "file:"+log, "-chardev", "stdio,id=out,signal=off", "-serial", "chardev:out",
		"-append", `root=/dev/vda rw console=ttyS0 panic=-1 init=/bin/sh -- -c "mount /dev/vdb /mnt && . /mnt/start"`)
	if err != nil {
		return "", err
	}
	var complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &complaints
	err = cmd.Run()
	said, _ := os.ReadFile(log)
	if err != nil {
		err = fmt.Errorf("the virtual machine: %w\n%s", err, &complaints)
	}
	return string(said), err
}

// disk returns an image of the root, made once.
func (r Root) disk(ctx context.Context) (string, error) {
	image := filepath.Join(filepath.Dir(r.Dir), "disk")
	if exists(image) {
		return image, nil
	}
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	unlock, err := lock(cache)
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(image) {
		return image, nil
	}
	if err := r.makeDisk(ctx, r.Dir, image+".unfinished"); err != nil {
		return "", err
	}
	return image, os.Rename(image+".unfinished", image)
}

// makeDisk makes an image of a directory, with as much room again.
func (r Root) makeDisk(ctx context.Context, dir, image string) error {
	var size int64 = 64 << 20
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().IsRegular() {
			size += 2 * (info.Size() + 4096)
		}
		return err
	})
	if err != nil {
		return err
	}
	e := Enter{Root: r, Binds: []Bind{{Path: dir}, {Path: filepath.Dir(image), Writable: true}}}
	cmd, err := e.Command(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", dir, image, fmt.Sprintf("%dK", size>>10))
	if err != nil {
		return err
	}
	if err := os.RemoveAll(image); err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs %s: %w\n%s", image, err, out)
	}
	return nil
}
