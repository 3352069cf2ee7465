// Numbers that are the same on every architecture: include/uapi/asm-generic
// resource.h, signal.h, fcntl.h; and include/linux/socket.h, net.h.
#define RLIMIT_DATA	2
#define RLIMIT_STACK	3
#define RLIMIT_NPROC	6
#define RLIMIT_NOFILE	7
#define RLIMIT_AS	9
#define SIG_IGN		1
#define NSIG		64
#define F_GETFD		1
#define AT_FDCWD	-100
#define O_RDWR		2
#define AF_UNIX		1
#define SOCK_DGRAM	2

// System calls: arch/x86/entry/syscalls/syscall_64.tbl, and
// include/uapi/asm-generic/unistd.h.
#ifdef GOARCH_amd64
#define SYS_rt_sigaction	13
#define SYS_rt_sigprocmask	14
#define SYS_socket		41
#define SYS_fcntl		72
#define SYS_exit_group		231
#define SYS_openat		257
#define SYS_prlimit64		302
#endif
#ifdef GOARCH_arm64
#define SYS_fcntl		25
#define SYS_openat		56
#define SYS_exit_group		94
#define SYS_rt_sigaction	134
#define SYS_rt_sigprocmask	135
#define SYS_socket		198
#define SYS_prlimit64		261
#endif
