package main

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
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

// runtimeSignals are the signals that stay as the runtime has them: its own, faults, and
// SIGPIPE, as a log that nobody reads is no reason to stop mail.
const runtimeSignals = 1<<(unix.SIGURG-1) | 1<<(unix.SIGSEGV-1) | 1<<(unix.SIGBUS-1) | 1<<(unix.SIGFPE-1) | 1<<(unix.SIGILL-1) | 1<<(unix.SIGPIPE-1)

// Signals that a line for the log may bring, as numbers from 0.
const (
	brokenPipe = uintptr(unix.SIGPIPE - 1)
	tooLarge   = uintptr(unix.SIGXFSZ - 1)
)

// parentDeath is the signal that the process wants at its parent's death, or 0. A
// thread that is started wants none; variables are initialized on the first one.
var parentDeath = func() (signal int32) {
	syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&signal)), 0, 0, 0, 0)
	return signal
}()

// resetSignals makes signals do what they do to a program that asks for none.
// Of those that the runtime catches it swallows some, the alarm clock among them
// that somebody may have set for filter and next program together, and answers
// others with a traceback.
func resetSignals() {
	for n := range uintptr(64) {
		if runtimeSignals&(1<<n) == 0 {
			setSignal(n, savedIgnored&(1<<n) != 0)
		}
	}
}

// setSignal makes signal n+1 ignored, or else what it is by default.
//
//go:nosplit
//go:norace
func setSignal(n uintptr, ignored bool) {
	scratch.action = sigaction{}
	if ignored {
		scratch.action.handler = sigIgn
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGACTION, n+1, uintptr(unsafe.Pointer(&scratch.action)), 0, 8, 0, 0)
}

// endOnAlarm has SIGALRM end the process with exit code 0, and turns an alarm
// clock off that was set before, as rblsmtpd does when it begins to talk.
func endOnAlarm() {
	code := **(**uintptr)(unsafe.Pointer(&alarmHandler))
	action := sigaction{handler: code, flags: saOnStack | saRestorer, restorer: code}
	syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGALRM), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	var off unix.Itimerval
	syscall.RawSyscall6(unix.SYS_SETITIMER, uintptr(unix.ITIMER_REAL), uintptr(unsafe.Pointer(&off)), 0, 0, 0, 0)
}

// alarmHandler is called by the kernel, and never returns.
var alarmHandler = endNow

//go:nosplit
//go:norace
func endNow() { exit(0) }

// restore makes the process what it was when it started. The mask of blocked
// signals is the thread's, and so are the slack of timers and the signal that tells
// of the parent's death: with one processor, and nothing that blocks, the goroutine
// stays on the thread that it is on here, which need not be the one that the process
// was started with; runtime.LockOSThread would start another one.
//
//go:nosplit
//go:norace
func restore() {
	for n := range uintptr(64) {
		if runtimeSignals&savedIgnored&(1<<n) != 0 {
			setSignal(n, true)
		}
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&savedBlocked)), 0, 8, 0, 0)
	syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, savedSlack, 0, 0, 0, 0)
	if parentDeath != 0 {
		syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(parentDeath), 0, 0, 0, 0)
	}
	for fd := range uintptr(3) {
		if savedClosed&(1<<fd) != 0 {
			syscall.RawSyscall6(unix.SYS_CLOSE, fd, 0, 0, 0, 0, 0)
		}
	}
	for i := range limited {
		syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, limited[i], uintptr(unsafe.Pointer(&savedLimits[i])), 0, 0, 0)
	}
}

// file is the name of the file that is executed.
var file [4096]byte // PATH_MAX

// execute replaces the process by the program that argv begins with, looked for as
// rblsmtpd and execvp(3) do, or ends it. With the limits that it was started with
// the runtime may not be able to allocate anything, not even stack, and so there
// are bare system calls alone. The lock that package syscall holds while it executes
// a program keeps other goroutines from starting threads meanwhile; there are none.
//
//go:nosplit
//go:norace
func execute(argv, envp **byte) {
	restore()
	name := *argv
	slash := false
	for i := 0; *char(name, i) != 0; i++ {
		slash = slash || *char(name, i) == '/'
	}
	path := lookup(envp, "PATH")
	if path == nil {
		path = unsafe.StringData("/bin:/usr/bin\x00")
	}
	result := unix.ENOENT
	for more := true; more; {
		length := 0
		if more = !slash; more {
			for ; *path != 0 && *path != ':'; path = char(path, 1) {
				length = put(length, *path)
			}
			if length == 0 {
				length = put(length, '.')
			}
			length = put(length, '/')
			more = *path == ':'
			path = char(path, 1)
		}
		for i := 0; *char(name, i) != 0; i++ {
			length = put(length, *char(name, i))
		}
		errno := unix.ENAMETOOLONG
		if length < len(file) {
			file[length] = 0
			_, _, errno = syscall.RawSyscall6(unix.SYS_EXECVE, uintptr(unsafe.Pointer(&file)), uintptr(unsafe.Pointer(argv)), uintptr(unsafe.Pointer(envp)), 0, 0, 0)
		}
		if errno == unix.ENOENT {
			continue
		}
		result = errno
		if errno != unix.EACCES && errno != unix.EPERM && errno != unix.EISDIR {
			break
		}
	}
	failed(name, result)
}

// failed says that a program cannot be executed, and ends the process.
//
//go:nosplit
//go:norace
//go:noinline
func failed(name *byte, err syscall.Errno) {
	length := 0
	for *char(name, length) != 0 {
		length++
	}
	const what = fatal + "unable to run "
	why := words(err)
	scratch.parts = [...]iovec{part(unsafe.StringData(what), len(what)), part(name, length), part(unsafe.StringData(": "), 2), part(unsafe.StringData(why), len(why)), part(unsafe.StringData("\n"), 1)}
	syscall.RawSyscall6(unix.SYS_WRITEV, 2, uintptr(unsafe.Pointer(&scratch.parts)), uintptr(len(scratch.parts)), 0, 0, 0)
	exit(111)
}

// iovec is the kernel's struct. The bytes are constants, or the kernel's own.
type iovec struct {
	base   uintptr
	length int
}

//go:nosplit
//go:norace
func part(s *byte, length int) iovec { return iovec{uintptr(unsafe.Pointer(s)), length} }

// put adds a byte to the name of the file, if there is room.
//
//go:nosplit
//go:norace
func put(length int, c byte) int {
	if length < len(file) {
		file[length] = c
		length++
	}
	return length
}

// words are what ucspi-tcp says for an error of execve(2) or open(2).
//
//go:nosplit
//go:norace
func words(err syscall.Errno) string {
	switch err {
	case unix.ENOENT:
		return "file does not exist"
	case unix.EACCES:
		return "access denied"
	case unix.EPERM:
		return "permission denied"
	case unix.EISDIR:
		return "is a directory"
	case unix.ENOTDIR:
		return "not a directory"
	case unix.ENOEXEC:
		return "exec format error"
	case unix.ETXTBSY:
		return "text busy"
	case unix.E2BIG:
		return "argument list too long"
	case unix.ENAMETOOLONG:
		return "file name too long"
	case unix.ELOOP:
		return "symbolic link loop"
	case unix.EIO:
		return "input/output error"
	case unix.ENOMEM:
		return "out of memory"
	case unix.EAGAIN:
		return "temporary failure"
	case unix.EINVAL:
		return "invalid argument"
	case unix.EFAULT:
		return "bad address"
	case unix.EMFILE:
		return "process cannot open more files"
	case unix.ENFILE:
		return "system cannot open more files"
	}
	return "unknown error"
}
