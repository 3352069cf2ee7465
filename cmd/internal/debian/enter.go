package debian

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// A Bind is a directory of the machine that is seen in the root too, under the
// same path.
type Bind struct {
	Path     string
	Writable bool
}

// Enter is a command in a root.
type Enter struct {
	Root
	Binds []Bind
	Env   []string // beside $PATH, $HOME and $LC_ALL, or instead of them
	Dir   string   // the working directory
}

// enter makes the new root from an overlay, so that it is as it was when all is
// over, and moves into it. chroot(2) would not do: nobody may make a user
// namespace in one.
const enter = `set -e
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
dir=$3
cd "$1/root"
shift 3
mount -t proc proc proc
mount -t sysfs sysfs sys
[ ! -d /sys/fs/cgroup ] || mount --rbind /sys/fs/cgroup sys/fs/cgroup
mount --rbind /dev dev
while [ "$1" != -- ]; do
	mkdir -p ".$2"
	mount --bind "$2" ".$2"
	[ "$1" = rw ] || mount -o remount,bind,ro ".$2"
	shift 2
done
shift
pivot_root . mnt
umount -l /mnt
export PATH=$PATH:/usr/sbin:/sbin
ip link set lo up
cd "$dir"
"$@"
exit $?`

// Command returns the command that runs a program in the root, with mount,
// process and network namespaces of its own. Its shell reaps what other programs leave.
func (e Enter) Command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	cache, err := Cache()
	if err != nil {
		return nil, err
	}
	mountpoint := filepath.Join(cache, "mnt")
	if err := os.MkdirAll(mountpoint, 0o755); err != nil {
		return nil, err
	}
	dir := e.Dir
	if dir == "" {
		dir = "/"
	}
	script := []string{"--mount", "--pid", "--net", "--fork", "--kill-child", "sh", "-c", enter, "sh", mountpoint, e.Root.Dir, dir}
	for _, b := range e.Binds {
		mode := "ro"
		if b.Writable {
			mode = "rw"
		}
		script = append(script, mode, b.Path)
	}
	script = append(script, "--", "env", "-i", "HOME=/root", "LC_ALL=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	script = append(script, e.Env...)
	cmd := exec.CommandContext(ctx, "unshare", append(append(script, name), args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // and all that it has started with it
	return cmd, nil
}

// OwnGroups is a shell script that makes control groups of their own for what
// it starts next, in $groups, below those that it is in. Containers must not
// share one: each systemd would take the other's services for its own.
const OwnGroups = `groups=
for hierarchy in "/systemd name=systemd" "/unified " "/ "; do
	mounted=/sys/fs/cgroup${hierarchy% *} name=${hierarchy#* }
	own=$(sed -n "s/^[0-9]*:$name:\(.*\)/\1/p" /proc/self/cgroup)
	if [ "$own" ] && [ -e "$mounted/cgroup.procs" ] && group=$(mktemp -d "$mounted$own/rblnft-XXXXXX"); then
		chmod 755 "$group"
		groups="$groups $group"
	fi
done
`
