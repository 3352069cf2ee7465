package main

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// process is how this process was started.
type process struct {
	argv []*byte // without the terminating null
	envp []*byte // with a null behind its end
	args []string
}

// started returns how the process was started, and ends what was only for the
// runtime's start. It returns false if the kernel did not start it at rblsmtpd_entry.
func started() (*process, bool) {
	if savedStack == nil {
		return nil, false
	}
	files := savedLimits[len(limited)-1].hard
	syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&limit{files, files})), 0, 0, 0)
	syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, savedSlack, 0)
	argc := *(*int)(savedStack)
	words := func(at, n int) []*byte {
		return unsafe.Slice((**byte)(unsafe.Add(savedStack, at*int(unsafe.Sizeof(savedStack)))), n)
	}
	p := &process{argv: words(1, argc)}
	vars := 0
	for words(1+argc+1, vars+1)[vars] != nil {
		vars++
	}
	p.envp = words(1+argc+1, vars+1)[:vars]
	p.args = make([]string, argc)
	for i, arg := range p.argv {
		p.args[i] = unix.BytePtrToString(arg)
	}
	return p, true
}

// getenv returns the value of an environment variable, and whether it is set.
func (p *process) getenv(name string) (string, bool) {
	value := lookup(unsafe.SliceData(p.envp), name)
	return unix.BytePtrToString(value), value != nil
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

// run replaces the process by the program that the arguments from first on name, or
// ends it.
func (p *process) run(first int) { execute(&p.argv[first], unsafe.SliceData(p.envp)) }
