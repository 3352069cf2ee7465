#include "go_asm.h"
#include "textflag.h"

// Numbers from include/uapi/linux/sched.h and arch/x86/entry/syscalls/syscall_64.tbl.
#define THREAD		0x54f00 // CLONE_VM, _FS, _FILES, _SIGHAND, _VFORK, _THREAD, _SYSVSEM
#define SYS_clone	56
#define SYS_exit	60

// rblsmtpd_entry is where the kernel starts the program: see entry_linux.go. SP
// points to what the kernel has left there. The functions of Go are called as the
// compiler would call them through a function value, the context in DX, so that
// nothing of the runtime's is touched on the way; they may write where their
// arguments came from, 16 bytes at SP.
TEXT rblsmtpd_entry(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	MOVQ	SP, AX
	SUBQ	$(const_vectorSize*8+16), SP
	ANDQ	$~15, SP
	LEAQ	16(SP), BX
	XORPS	X15, X15
	MOVQ	·entryBegin(SB), DX
	CALL	(DX)

	// Three more threads at once, which the runtime may need: the first one
	// starts the second, that the third, and all end. Whoever has started one goes on when it has
	// ended, and so all of them can have the same stack.
	MOVL	$3, R12
thread:
	MOVL	$SYS_clone, AX
	MOVL	$THREAD, DI
	XORL	SI, SI
	XORL	DX, DX
	XORL	R10, R10
	XORL	R8, R8
	SYSCALL
	TESTQ	AX, AX
	JGT	started
	JEQ	new
	MOVQ	AX, ·threadError(SB)
started:
	CMPL	R12, $3
	JEQ	first
end:
	MOVL	$SYS_exit, AX
	XORL	DI, DI
	SYSCALL
new:
	DECL	R12
	JNE	thread
	JMP	end

first:
	MOVQ	·entryCheck(SB), DX
	CALL	(DX)
	ADDQ	$16, SP
	JMP	_rt0_amd64_linux(SB)
