#include "textflag.h"
#include "entry_linux.h"

// rblsmtpd_entry is where the kernel starts the program. See process_linux.go
// for what it is there for. Nothing of Go is there yet: no g, no stack but the
// kernel's. 0(SP) is argc, then come argv, a null pointer, the environment, a
// null pointer, and the auxiliary vector (the x86-64 psABI, section 3.4.1).
TEXT rblsmtpd_entry(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	MOVQ	SP, R12
	MOVQ	R12, ·initialStack(SB)

	// The soft limits that a Go program cannot live with, or that its
	// runtime changes: keep them, and raise them to the hard ones.
	LEAQ	·initialLimits(SB), R13
	MOVQ	$RLIMIT_AS, BX
	CALL	raise<>(SB)
	ADDQ	$16, R13
	MOVQ	$RLIMIT_DATA, BX
	CALL	raise<>(SB)
	ADDQ	$16, R13
	MOVQ	$RLIMIT_NPROC, BX
	CALL	raise<>(SB)
	ADDQ	$16, R13
	MOVQ	$RLIMIT_STACK, BX
	CALL	raise<>(SB)
	ADDQ	$16, R13
	MOVL	$SYS_prlimit64, AX
	XORL	DI, DI
	MOVQ	$RLIMIT_NOFILE, SI
	XORL	DX, DX
	MOVQ	R13, R10
	SYSCALL

	// The blocked signals.
	MOVL	$SYS_rt_sigprocmask, AX
	XORL	DI, DI
	XORL	SI, SI
	LEAQ	·initialBlocked(SB), DX
	MOVL	$8, R10
	SYSCALL

	// The ignored signals: bit n-1 stands for signal n. The runtime is
	// about to catch them all.
	XORL	R14, R14
	MOVL	$1, BX
	LEAQ	·initialAction(SB), R13
signal:
	MOVL	$SYS_rt_sigaction, AX
	MOVQ	BX, DI
	XORL	SI, SI
	MOVQ	R13, DX
	MOVL	$8, R10
	SYSCALL
	CMPQ	0(R13), $SIG_IGN
	JNE	caught
	TESTQ	AX, AX
	JNE	caught
	LEAQ	-1(BX), CX
	MOVL	$1, AX
	SHLQ	CX, AX
	ORQ	AX, R14
caught:
	INCQ	BX
	CMPQ	BX, $NSIG
	JLE	signal
	MOVQ	R14, ·initialIgnored(SB)

	// Which of the descriptors 0 to 2 are closed. The runtime would open
	// /dev/null for them, and give up where there is none.
	XORL	R14, R14
	XORL	BX, BX
descriptor:
	MOVL	$SYS_fcntl, AX
	MOVQ	BX, DI
	MOVL	$F_GETFD, SI
	XORL	DX, DX
	SYSCALL
	TESTQ	AX, AX
	JGE	open
	MOVQ	BX, CX
	MOVL	$1, AX
	SHLQ	CX, AX
	ORQ	AX, R14
	MOVL	$SYS_openat, AX
	MOVQ	$AT_FDCWD, DI
	LEAQ	devNull<>(SB), SI
	MOVL	$O_RDWR, DX
	XORL	R10, R10
	SYSCALL
	TESTQ	AX, AX
	JGE	open
	MOVL	$SYS_socket, AX
	MOVL	$AF_UNIX, DI
	MOVL	$SOCK_DGRAM, SI
	XORL	DX, DX
	SYSCALL
open:
	INCQ	BX
	CMPQ	BX, $3
	JLT	descriptor
	MOVQ	R14, ·initialClosed(SB)

	LEAQ	exitHandler<>(SB), AX
	MOVQ	AX, ·exitHandler(SB)

	// A copy of the vectors below the stack, in which the environment is
	// runtimeEnv alone.
	MOVQ	0(R12), R13		// argc
	LEAQ	16(R12)(R13*8), R8	// the environment
	MOVQ	R8, R9
environment:
	ADDQ	$8, R9
	CMPQ	-8(R9), $0
	JNE	environment		// R9: the auxiliary vector
	MOVQ	R9, R10
auxiliary:
	ADDQ	$16, R10
	CMPQ	-16(R10), $0
	JNE	auxiliary		// R10: its end

	MOVQ	R10, AX
	SUBQ	R9, AX
	LEAQ	32(AX)(R13*8), AX	// and argv, its null, runtimeEnv, null
	SUBQ	AX, SP
	ANDQ	$~15, SP

	CLD
	MOVQ	SP, DI
	LEAQ	8(R12), SI
	LEAQ	1(R13), CX
	REP
	MOVSQ
	LEAQ	runtimeEnv<>(SB), AX
	MOVQ	AX, 0(DI)
	MOVQ	$0, 8(DI)
	ADDQ	$16, DI
	MOVQ	R9, SI
	MOVQ	R10, CX
	SUBQ	R9, CX
	SHRQ	$3, CX
	REP
	MOVSQ

	MOVQ	R13, DI			// argc
	MOVQ	SP, SI			// argv
	JMP	runtime·rt0_go(SB)

// raise keeps the limit BX of the process at R13, and raises the soft one to
// the hard one.
TEXT raise<>(SB),NOSPLIT|NOFRAME,$0
	MOVL	$SYS_prlimit64, AX
	XORL	DI, DI
	MOVQ	BX, SI
	XORL	DX, DX
	MOVQ	R13, R10
	SYSCALL
	MOVQ	8(R13), AX
	MOVQ	AX, ·raisedLimit+0(SB)
	MOVQ	AX, ·raisedLimit+8(SB)
	MOVL	$SYS_prlimit64, AX
	XORL	DI, DI
	MOVQ	BX, SI
	LEAQ	·raisedLimit(SB), DX
	XORL	R10, R10
	SYSCALL
	RET

// exitHandler ends the process.
TEXT exitHandler<>(SB),NOSPLIT|NOFRAME,$0
	MOVL	$SYS_exit_group, AX
	XORL	DI, DI
	SYSCALL
	INT	$3

DATA runtimeEnv<>+0(SB)/8, $"GOMAXPRO"
DATA runtimeEnv<>+8(SB)/8, $"CS=1\x00\x00\x00\x00"
GLOBL runtimeEnv<>(SB), NOPTR|RODATA, $16

DATA devNull<>+0(SB)/8, $"/dev/nul"
DATA devNull<>+8(SB)/8, $"l\x00\x00\x00\x00\x00\x00\x00"
GLOBL devNull<>(SB), NOPTR|RODATA, $16
