package main

import (
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Go program cannot start where a qmail-smtpd run script starts its programs,
// under "softlimit -m 9000000": the runtime reserves hundreds of megabytes of
// address space before main. Nor can it where the user has no process left: the
// runtime starts threads; nor where a standard descriptor is closed and there is
// no /dev/null to open in its place. And it cannot hand on a process as it got
// it: the runtime raises the limit on open files, catches every signal, opens
// closed standard descriptors, and os.Environ drops what it finds odd.
//
// So the kernel starts the filter not at the runtime's entry point but at
// rblsmtpd_entry (the linker's option -E), which writes down in the variables
// below how the process was started, raises the soft limits on memory and on
// processes to the hard ones, and only then goes on to the runtime. [process.run]
// puts all of it back and gives the next program the very arguments and environment that the
// kernel gave to this one.
//
// The runtime sees an environment with nothing but GOMAXPROCS=1. With one
// processor it starts fewer threads and takes less memory, and no variable of
// the mail server's can change how it behaves.
var (
	initialStack   unsafe.Pointer // argc, argv, environment; nil if started elsewhere
	initialLimits  [5]limit       // in the order of limited
	initialBlocked uint64         // bit n-1 is signal n
	initialIgnored uint64         // likewise
	initialClosed  uint64         // bit n is descriptor n, 0 to 2
	initialAction  sigaction
	raisedLimit    limit
	exitHandler    uintptr // a signal handler that ends the process with exit code 0
)

// sigaction is the kernel's struct, for 64-bit processors; arm64 does not need the restorer.
type sigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

const (
	sigIgn     = 1          // SIG_IGN
	saOnStack  = 0x08000000 // SA_ONSTACK
	saRestorer = 0x04000000 // SA_RESTORER
)

// kept are the signals that stay as the runtime has them: its own, faults, and
// SIGPIPE, as a log that nobody reads is no reason to stop mail.
const kept = 1<<(unix.SIGURG-1) | 1<<(unix.SIGSEGV-1) | 1<<(unix.SIGBUS-1) | 1<<(unix.SIGFPE-1) | 1<<(unix.SIGILL-1) | 1<<(unix.SIGPIPE-1)

var limited = [len(initialLimits)]uintptr{unix.RLIMIT_AS, unix.RLIMIT_DATA, unix.RLIMIT_NPROC, unix.RLIMIT_STACK, unix.RLIMIT_NOFILE}

// parentDeath is the signal that the process wants at its parent's death, or 0. A
// thread that is started wants none; variables are initialized on the first one.
var parentDeath = func() (signal int32) {
	syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&signal)), 0)
	return signal
}()

// limit is the kernel's struct rlimit64.
type limit struct{ soft, hard uint64 }

// process is how this process was started.
type process struct {
	argv []*byte // without the terminating null
	envp []*byte // likewise
	args []string
}

func started() (*process, bool) {
	if initialStack == nil {
		return nil, false
	}
	argc := *(*int)(initialStack)
	words := func(at, n int) []*byte {
		return unsafe.Slice((**byte)(unsafe.Add(initialStack, at*int(unsafe.Sizeof(initialStack)))), n)
	}
	p := &process{argv: words(1, argc)}
	vars := 0
	for words(1+argc+1, vars+1)[vars] != nil {
		vars++
	}
	p.envp = words(1+argc+1, vars)
	p.args = make([]string, argc)
	for i, arg := range p.argv {
		p.args[i] = unix.BytePtrToString(arg)
	}
	return p, true
}

// getenv returns the value of an environment variable, and whether it is set.
func (p *process) getenv(name string) (string, bool) {
	for _, v := range p.envp {
		if value, ok := assignment(v, name); ok {
			return unix.BytePtrToString(value), true
		}
	}
	return "", false
}

// assignment returns where the value begins if v is NAME=VALUE.
func assignment(v *byte, name string) (value *byte, ok bool) {
	for i := 0; i < len(name); i++ {
		if *v != name[i] {
			return nil, false
		}
		v = (*byte)(unsafe.Add(unsafe.Pointer(v), 1))
	}
	return (*byte)(unsafe.Add(unsafe.Pointer(v), 1)), *v == '='
}

// setenv gives the next program one variable more, or another value for one,
// which must have no NUL in it.
func (p *process) setenv(name, value string) {
	v := unsafe.StringData(name + "=" + value + "\x00")
	envp := make([]*byte, 0, len(p.envp)+2)
	for _, old := range p.envp {
		if _, same := assignment(old, name); !same {
			envp = append(envp, old)
		}
	}
	p.envp = append(envp, v, nil)[:len(envp)+1]
}

// run replaces the process by the program that the arguments from first on
// name, looked for as rblsmtpd and execvp(3) do. It returns only if that cannot
// be done.
func (p *process) run(first int) error {
	var paths []*byte
	for _, path := range p.candidates(p.args[first]) {
		b, err := unix.BytePtrFromString(path)
		if err != nil {
			return err
		}
		paths = append(paths, b)
	}
	return execute(paths, &p.argv[first], unsafe.SliceData(p.envp))
}

// candidates are the files that name may mean.
func (p *process) candidates(name string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	path, ok := p.getenv("PATH")
	if !ok {
		path = "/bin:/usr/bin"
	}
	var files []string
	for dir := range strings.SplitSeq(path, ":") {
		if dir == "" {
			dir = "."
		}
		files = append(files, dir+"/"+name)
	}
	return files
}

// resetSignals makes signals do what they do to a program that asks for none.
// Of those that the runtime catches it swallows some, the alarm clock among them
// that somebody may have set for filter and next program together, and answers
// others with a traceback.
func resetSignals() {
	for n := range uintptr(64) {
		if kept&(1<<n) == 0 {
			setSignal(n, initialIgnored&(1<<n) != 0)
		}
	}
}

// setSignal makes signal n+1 ignored, or else what it is by default.
func setSignal(n uintptr, ignored bool) {
	var action sigaction
	if ignored {
		action.handler = sigIgn
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGACTION, n+1, uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
}

// endOnAlarm has SIGALRM end the process with exit code 0, and turns an alarm
// clock off that was set before, as rblsmtpd does when it begins to talk.
func endOnAlarm() {
	action := sigaction{handler: exitHandler, flags: saOnStack | saRestorer, restorer: exitHandler}
	syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGALRM), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	var off unix.Itimerval
	syscall.RawSyscall(unix.SYS_SETITIMER, uintptr(unix.ITIMER_REAL), uintptr(unsafe.Pointer(&off)), 0)
}

// execute makes the process as it was when it started and executes the first
// of the files that can be. With the limits of then the runtime may not be able
// to allocate anything, not even stack: from there on there are bare system calls
// alone. The mask of blocked signals is the thread's, and so is the signal that
// tells of the parent's death: with one processor, and nothing that blocks, the
// goroutine stays on the thread that it is on here, which need not be the one that
// the process was started with; runtime.LockOSThread would start another one.
func execute(files []*byte, argv, envp **byte) error {
	for n := range uintptr(64) {
		if kept&initialIgnored&(1<<n) != 0 {
			setSignal(n, true)
		}
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&initialBlocked)), 0, 8, 0, 0)
	if parentDeath != 0 {
		syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(parentDeath), 0)
	}
	for fd := range uintptr(3) {
		if initialClosed&(1<<fd) != 0 {
			syscall.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
		}
	}

	for i, resource := range limited {
		syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, resource, uintptr(unsafe.Pointer(&initialLimits[i])), 0, 0, 0)
	}
	result := unix.ENOENT
	for _, file := range files {
		_, _, errno := syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(file)), uintptr(unsafe.Pointer(argv)), uintptr(unsafe.Pointer(envp)))
		if errno == unix.ENOENT {
			continue
		}
		result = errno
		if errno != unix.EACCES && errno != unix.EPERM && errno != unix.EISDIR {
			break
		}
	}

	for i, resource := range limited {
		raised := limit{initialLimits[i].hard, initialLimits[i].hard}
		syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, resource, uintptr(unsafe.Pointer(&raised)), 0, 0, 0)
	}
	return result
}
