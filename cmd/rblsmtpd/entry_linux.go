package main

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Go program cannot start where a qmail-smtpd run script starts its programs,
// under "softlimit -m 9000000": the runtime reserves hundreds of megabytes of
// address space before main. Nor can it where a standard descriptor is closed and
// there is no /dev/null to open in its place. And it cannot hand on a process as
// it got it: the runtime and package syscall raise the limit on open files, catch
// every signal, and open closed standard descriptors.
//
// So the kernel starts the filter not at the runtime's entry point but at
// rblsmtpd_entry (the linker's option -E). That calls [begin], which writes down in
// the variables below how the process was started and makes it one in which the
// runtime can start; [check], which runs the next program at once if it cannot all
// the same; and goes on to the runtime. [restore] puts everything back.
//
// The runtime finds an environment of GOMAXPROCS=1 alone. With one processor it
// starts fewer threads and takes less memory, and no variable of the mail server's
// changes how it behaves.
//
// What stands in this file runs before there is a Go runtime: functions that never
// grow the stack, nor allocate, nor call one that may.
var (
	savedStack   unsafe.Pointer // argc, argv, environment; nil if started elsewhere
	savedLimits  [5]limit       // in the order of limited
	savedBlocked uint64         // bit n-1 is signal n
	savedIgnored uint64         // likewise
	savedClosed  uint64         // bit n is descriptor n, 0 to 2
	savedSlack   uintptr        // of timers, in nanoseconds
	threadError  int            // what clone(2) said to the threads to come: 0 or -errno
	memoryError  syscall.Errno  // what mmap(2) said to the memory to come

	entryBegin = begin
	entryCheck = check
)

// vectorSize is how many words the runtime is given to read.
const vectorSize = 4 + 2*64

// What the runtime of Go 1.26 takes before main, and some more: 42 MB that it may
// write to, nearly all never used, and 643 MB of addresses besides.
const (
	spaceNeeded = 704 << 20
	dataNeeded  = 56 << 20
)

// slack is how much later than asked for the runtime's own thread may wake. It
// looks for goroutines that run too long, 50 times in a millisecond at first.
const slack = 20_000_000

// limit is the kernel's struct rlimit64.
type limit struct{ soft, hard uint64 }

var limited = [len(savedLimits)]uintptr{unix.RLIMIT_AS, unix.RLIMIT_DATA, unix.RLIMIT_NPROC, unix.RLIMIT_STACK, unix.RLIMIT_NOFILE}

// scratch is for system calls to read from and write to: there is one thread.
var scratch struct {
	limit  limit
	action sigaction
	log    unix.PollFd
	now    unix.Timespec // zero
	parts  [5]iovec
}

// begin makes the process one in which the runtime can start. stack is what the
// kernel has left there: argc, argv, a null pointer, the environment, a null
// pointer, and the auxiliary vector (x86-64 psABI, section 3.4.1). vector is made
// into what the runtime finds instead.
//
//go:nosplit
//go:norace
func begin(stack unsafe.Pointer, vector *[vectorSize]uintptr) {
	savedStack = stack

	for i := range limited {
		resource := limited[i]
		syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, resource, 0, uintptr(unsafe.Pointer(&savedLimits[i])), 0, 0)
		scratch.limit = limit{savedLimits[i].hard, savedLimits[i].hard}
		if resource == unix.RLIMIT_NOFILE {
			continue
		}
		syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, resource, uintptr(unsafe.Pointer(&scratch.limit)), 0, 0, 0)
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, 0, 0, uintptr(unsafe.Pointer(&savedBlocked)), 8, 0, 0)
	for n := range uintptr(64) {
		_, _, errno := syscall.RawSyscall6(unix.SYS_RT_SIGACTION, n+1, 0, uintptr(unsafe.Pointer(&scratch.action)), 8, 0, 0)
		if errno == 0 && scratch.action.handler == sigIgn {
			savedIgnored |= 1 << n
		}
	}
	null := uintptr(unsafe.Pointer(unsafe.StringData("/dev/null\x00")))
	here := unix.AT_FDCWD
	for fd := range uintptr(3) {
		if _, _, errno := syscall.RawSyscall6(unix.SYS_FCNTL, fd, unix.F_GETFD, 0, 0, 0, 0); errno == 0 {
			continue
		}
		savedClosed |= 1 << fd
		if _, _, errno := syscall.RawSyscall6(unix.SYS_OPENAT, uintptr(here), null, unix.O_RDWR, 0, 0, 0); errno != 0 {
			syscall.RawSyscall6(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_DGRAM, 0, 0, 0, 0)
		}
	}

	savedSlack, _, _ = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_GET_TIMERSLACK, 0, 0, 0, 0, 0)

	space := reserve(spaceNeeded, unix.PROT_NONE)
	data := reserve(dataNeeded, unix.PROT_READ|unix.PROT_WRITE)
	release(space, spaceNeeded)
	release(data, dataNeeded)

	// argc, argv and its null pointer, the environment.
	argc := *(*int)(stack)
	vector[0], vector[1] = 0, 0
	vector[2] = uintptr(unsafe.Pointer(unsafe.StringData("GOMAXPROCS=1\x00")))
	vector[3] = 0
	at := 1 + argc + 1
	for *wordAt(stack, at) != 0 {
		at++
	}
	for i := 4; i < vectorSize-1; i += 2 {
		vector[i], vector[i+1] = *wordAt(stack, at+1), *wordAt(stack, at+2)
		if vector[i] == 0 {
			break
		}
		at += 2
	}
	vector[vectorSize-2] = 0
}

// wordAt is word i of the initial stack.
//
//go:nosplit
//go:norace
func wordAt(stack unsafe.Pointer, i int) *uintptr {
	return (*uintptr)(unsafe.Add(stack, i*int(unsafe.Sizeof(stack))))
}

// reserve maps memory, or notes that there is none.
//
//go:nosplit
//go:norace
func reserve(size, protection uintptr) uintptr {
	noFile := -1
	at, _, errno := syscall.RawSyscall6(unix.SYS_MMAP, 0, size, protection, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, uintptr(noFile), 0)
	if errno != 0 {
		memoryError = errno
		return 0
	}
	return at
}

//go:nosplit
//go:norace
func release(at, size uintptr) {
	if at != 0 {
		syscall.RawSyscall6(unix.SYS_MUNMAP, at, size, 0, 0, 0, 0)
	}
}

// check runs the next program where the runtime cannot start: the client is not
// looked up, as if no list answered.
//
//go:nosplit
//go:norace
func check() {
	why := ""
	switch {
	case memoryError != 0:
		why = ": no memory for the filter to start (RLIMIT_AS, RLIMIT_DATA, vm.overcommit_memory); not looked up\n"
	case threadError == -int(unix.EAGAIN) || threadError == -int(unix.ENOMEM):
		why = ": no thread for the filter to start (RLIMIT_NPROC, pids.max); not looked up\n"
	default:
		// The runtime reads a dozen files as it starts, of control groups and huge
		// pages, if it can open them. Package syscall raises the limit again.
		scratch.limit = limit{0, savedLimits[len(limited)-1].hard}
		syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&scratch.limit)), 0, 0, 0)
		syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, slack, 0, 0, 0, 0)
		runtime.MemProfileRate = 0
		return
	}
	argc := *(*int)(savedStack)
	argv := (**byte)(unsafe.Pointer(wordAt(savedStack, 1)))
	envp := element(argv, argc+1)
	at := progAt(argv, argc)
	sayUnfiltered(envp, why, at < argc)
	if at >= argc {
		exit(100)
	}
	execute(element(argv, at), envp)
}

// sayUnfiltered says why the client is not looked up, if that can be done at once,
// or how the program is used.
//
//go:nosplit
//go:norace
//go:noinline
func sayUnfiltered(envp **byte, why string, runs bool) {
	if runs {
		note.add("rblsmtpd: ")
		if ip := lookup(envp, "TCPREMOTEIP"); ip != nil {
			note.addBytes(ip)
		}
		note.add(" pid ")
		pid, _, _ := syscall.RawSyscall6(unix.SYS_GETPID, 0, 0, 0, 0, 0, 0)
		note.addNumber(pid)
		note.add(why)
	} else {
		note.add(usage)
	}
	setSignal(brokenPipe, true)
	setSignal(tooLarge, true)
	scratch.log = unix.PollFd{Fd: 2, Events: unix.POLLOUT}
	n, _, _ := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&scratch.log)), 1, uintptr(unsafe.Pointer(&scratch.now)), 0, 0, 0)
	if n == 1 {
		note.write()
	}
	setSignal(brokenPipe, savedIgnored&(1<<brokenPipe) != 0)
	setSignal(tooLarge, savedIgnored&(1<<tooLarge) != 0)
}

// progAt returns where the next program stands among the arguments, behind what
// [parse] reads as options; argc or more if it stands nowhere.
//
//go:nosplit
//go:norace
func progAt(argv **byte, argc int) int {
	for at := 1; at < argc; at++ {
		arg := *element(argv, at)
		if *char(arg, 0) != '-' || *char(arg, 1) == 0 {
			return at
		}
		if *char(arg, 1) == '-' {
			return at + 1
		}
	letters:
		for i := 1; *char(arg, i) != 0; i++ {
			switch *char(arg, i) {
			case 'b', 'B', 'c', 'C', 'i', 's', 'v', 'W':
			case 't', 'T', 'w', 'r', 'a':
				if *char(arg, i+1) == 0 {
					at++
				}
				break letters
			default:
				return argc
			}
		}
	}
	return argc
}

//go:nosplit
//go:norace
func element(list **byte, i int) **byte {
	return (**byte)(unsafe.Add(unsafe.Pointer(list), i*int(unsafe.Sizeof(list))))
}

//go:nosplit
//go:norace
func char(s *byte, i int) *byte { return (*byte)(unsafe.Add(unsafe.Pointer(s), i)) }

// lookup returns the value of a variable in an environment, or nil.
//
//go:nosplit
//go:norace
func lookup(envp **byte, name string) *byte {
	for ; *envp != nil; envp = element(envp, 1) {
		if value, ok := assignment(*envp, name); ok {
			return value
		}
	}
	return nil
}

// assignment returns where the value begins if v is NAME=VALUE.
//
//go:nosplit
//go:norace
func assignment(v *byte, name string) (value *byte, ok bool) {
	for i := 0; i < len(name); i++ {
		if *char(v, i) != name[i] {
			return nil, false
		}
	}
	return char(v, len(name)+1), *char(v, len(name)) == '='
}

// note is the last line that the process writes.
var note noteLine

type noteLine struct {
	length int
	text   [1024]byte
}

//go:nosplit
//go:norace
func (l *noteLine) add(s string) {
	for i := 0; i < len(s) && l.length < len(l.text); i++ {
		l.text[l.length] = s[i]
		l.length++
	}
}

// addBytes adds a string that ends in NUL, as far as it is printable.
//
//go:nosplit
//go:norace
func (l *noteLine) addBytes(s *byte) {
	for ; *s != 0 && l.length < len(l.text)-128; s = char(s, 1) {
		c := *s
		if c < ' ' || c > '~' {
			c = '?'
		}
		l.text[l.length] = c
		l.length++
	}
}

//go:nosplit
//go:norace
func (l *noteLine) addNumber(n uintptr) {
	var digits [20]byte
	at := len(digits)
	for {
		at--
		digits[at] = '0' + byte(n%10)
		if n /= 10; n == 0 {
			break
		}
	}
	for ; at < len(digits) && l.length < len(l.text); at++ {
		l.text[l.length] = digits[at]
		l.length++
	}
}

//go:nosplit
//go:norace
func (l *noteLine) write() {
	syscall.RawSyscall6(unix.SYS_WRITE, 2, uintptr(unsafe.Pointer(&l.text)), uintptr(l.length), 0, 0, 0)
}

//go:nosplit
//go:norace
func exit(code uintptr) {
	for {
		syscall.RawSyscall6(unix.SYS_EXIT_GROUP, code, 0, 0, 0, 0, 0)
	}
}
