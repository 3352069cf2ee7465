#include "textflag.h"
#include "entry_linux.h"

// rblsmtpd_entry: see entry_linux_amd64.s, which this follows step by step.
TEXT rblsmtpd_entry(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	MOVD	RSP, R19
	MOVD	R19, ·initialStack(SB)

	MOVD	$·initialLimits(SB), R20
	MOVD	$RLIMIT_AS, R21
	BL	raise<>(SB)
	ADD	$16, R20
	MOVD	$RLIMIT_DATA, R21
	BL	raise<>(SB)
	ADD	$16, R20
	MOVD	$RLIMIT_NPROC, R21
	BL	raise<>(SB)
	ADD	$16, R20
	MOVD	$RLIMIT_STACK, R21
	BL	raise<>(SB)
	ADD	$16, R20
	MOVD	ZR, R0
	MOVD	$RLIMIT_NOFILE, R1
	MOVD	ZR, R2
	MOVD	R20, R3
	MOVD	$SYS_prlimit64, R8
	SVC

	MOVD	ZR, R0
	MOVD	ZR, R1
	MOVD	$·initialBlocked(SB), R2
	MOVD	$8, R3
	MOVD	$SYS_rt_sigprocmask, R8
	SVC

	MOVD	ZR, R22
	MOVD	$1, R21
	MOVD	$·initialAction(SB), R20
signal:
	MOVD	R21, R0
	MOVD	ZR, R1
	MOVD	R20, R2
	MOVD	$8, R3
	MOVD	$SYS_rt_sigaction, R8
	SVC
	CBNZ	R0, caught
	MOVD	0(R20), R4
	CMP	$SIG_IGN, R4
	BNE	caught
	SUB	$1, R21, R5
	MOVD	$1, R6
	LSL	R5, R6, R6
	ORR	R6, R22, R22
caught:
	ADD	$1, R21
	CMP	$NSIG, R21
	BLE	signal
	MOVD	R22, ·initialIgnored(SB)

	MOVD	ZR, R22
	MOVD	ZR, R21
descriptor:
	MOVD	R21, R0
	MOVD	$F_GETFD, R1
	MOVD	ZR, R2
	MOVD	$SYS_fcntl, R8
	SVC
	CMP	$0, R0
	BGE	open
	MOVD	$1, R6
	LSL	R21, R6, R6
	ORR	R6, R22, R22
	MOVD	$AT_FDCWD, R0
	MOVD	$devNull<>(SB), R1
	MOVD	$O_RDWR, R2
	MOVD	ZR, R3
	MOVD	$SYS_openat, R8
	SVC
	CMP	$0, R0
	BGE	open
	MOVD	$AF_UNIX, R0
	MOVD	$SOCK_DGRAM, R1
	MOVD	ZR, R2
	MOVD	$SYS_socket, R8
	SVC
open:
	ADD	$1, R21
	CMP	$3, R21
	BLT	descriptor
	MOVD	R22, ·initialClosed(SB)

	MOVD	$exitHandler<>(SB), R4
	MOVD	R4, ·exitHandler(SB)

	MOVD	0(R19), R20		// argc
	ADD	R20<<3, R19, R21
	ADD	$16, R21		// the environment
environment:
	MOVD.P	8(R21), R4
	CBNZ	R4, environment		// R21: the auxiliary vector
	MOVD	R21, R22
auxiliary:
	MOVD.P	16(R22), R4
	CBNZ	R4, auxiliary		// R22: its end

	SUB	R21, R22, R4
	ADD	R20<<3, R4, R4
	ADD	$24, R4			// and argv, its null, runtimeEnv, null
	SUB	R4, R19, R5
	AND	$~15, R5, R5
	MOVD	R5, RSP

	ADD	$8, R19, R6
	ADD	$1, R20, R7
arguments:
	MOVD.P	8(R6), R4
	MOVD.P	R4, 8(R5)
	SUB	$1, R7
	CBNZ	R7, arguments
	MOVD	$runtimeEnv<>(SB), R4
	MOVD.P	R4, 8(R5)
	MOVD.P	ZR, 8(R5)
copy:
	MOVD.P	8(R21), R4
	MOVD.P	R4, 8(R5)
	CMP	R22, R21
	BNE	copy

	MOVD	R20, R0			// argc
	MOVD	RSP, R1			// argv
	JMP	runtime·rt0_go(SB)

// raise keeps the limit R21 of the process at R20, and raises the soft one to
// the hard one.
TEXT raise<>(SB),NOSPLIT|NOFRAME,$0
	MOVD	ZR, R0
	MOVD	R21, R1
	MOVD	ZR, R2
	MOVD	R20, R3
	MOVD	$SYS_prlimit64, R8
	SVC
	MOVD	8(R20), R4
	MOVD	$·raisedLimit(SB), R2
	MOVD	R4, 0(R2)
	MOVD	R4, 8(R2)
	MOVD	ZR, R0
	MOVD	R21, R1
	MOVD	ZR, R3
	MOVD	$SYS_prlimit64, R8
	SVC
	RET

// exitHandler ends the process.
TEXT exitHandler<>(SB),NOSPLIT|NOFRAME,$0
	MOVD	ZR, R0
	MOVD	$SYS_exit_group, R8
	SVC
	BRK

DATA runtimeEnv<>+0(SB)/8, $"GOMAXPRO"
DATA runtimeEnv<>+8(SB)/8, $"CS=1\x00\x00\x00\x00"
GLOBL runtimeEnv<>(SB), NOPTR|RODATA, $16

DATA devNull<>+0(SB)/8, $"/dev/nul"
DATA devNull<>+8(SB)/8, $"l\x00\x00\x00\x00\x00\x00\x00"
GLOBL devNull<>(SB), NOPTR|RODATA, $16
