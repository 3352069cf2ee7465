#include "go_asm.h"
#include "textflag.h"

// Numbers from include/uapi/linux/sched.h and include/uapi/asm-generic/unistd.h.
#define THREAD		0x54f00 // CLONE_VM, _FS, _FILES, _SIGHAND, _VFORK, _THREAD, _SYSVSEM
#define SYS_clone	220
#define SYS_exit	93

// rblsmtpd_entry: see entry_linux_amd64.s, which this follows step by step. The
// context is in R26, and arguments came from 8(RSP) on.
TEXT rblsmtpd_entry(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	MOVD	RSP, R0
	SUB	$(const_vectorSize*8+32), RSP, R1
	AND	$~15, R1, R1
	MOVD	R1, RSP
	ADD	$32, R1, R1
	MOVD	·entryBegin(SB), R26
	MOVD	(R26), R2
	CALL	(R2)

	MOVD	$3, R19
thread:
	MOVD	$THREAD, R0
	MOVD	ZR, R1
	MOVD	ZR, R2
	MOVD	ZR, R3
	MOVD	ZR, R4
	MOVD	$SYS_clone, R8
	SVC
	CMP	$0, R0
	BGT	started
	BEQ	new
	MOVD	R0, ·threadError(SB)
started:
	CMP	$3, R19
	BEQ	first
end:
	MOVD	ZR, R0
	MOVD	$SYS_exit, R8
	SVC
new:
	SUBS	$1, R19
	BNE	thread
	JMP	end

first:
	MOVD	·entryCheck(SB), R26
	MOVD	(R26), R2
	CALL	(R2)
	ADD	$32, RSP
	JMP	_rt0_arm64_linux(SB)
