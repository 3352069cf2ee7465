//go:build linux

package intake

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"rblnft/firewall/hit"
)

// A burst is room for the datagrams of one recvmmsg(2).
type burst struct {
	headers [burstSize]mmsghdr
	vectors [burstSize]unix.Iovec
	data    [burstSize][hit.MaxLen + 1]byte // one byte more tells that a hit is too long
	control [burstSize][controlSize]byte
}

// burstSize is how many datagrams are read at once. Descriptors that came with
// them are open until all of them are dealt with.
const burstSize = 32

// controlSize is what the control data of a datagram takes that carries the
// sender's credentials and two descriptors. What else somebody sends is cut
// off, and closed, by the kernel.
const controlSize = unix.SizeofCmsghdr + unix.SizeofUcred + 4 + unix.SizeofCmsghdr + 2*4

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	length uint32
}

// read reads the datagrams that wait in the socket, as many as there is room
// for, and returns how many these were, or EAGAIN where there is none.
func (b *burst) read(fd int) (n int, err error) {
	for i := range b.headers {
		h := &b.headers[i]
		*h = mmsghdr{}
		b.vectors[i].Base = &b.data[i][0]
		b.vectors[i].SetLen(len(b.data[i]))
		h.Iov = &b.vectors[i]
		h.SetIovlen(1)
		h.Control = &b.control[i][0]
		h.SetControllen(len(b.control[i]))
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers)), burstSize,
			unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// datagram returns the ith datagram, its control data, and the flags that the
// kernel returned (MSG_TRUNC, MSG_CTRUNC).
func (b *burst) datagram(i int) (data, control []byte, flags int) {
	h := &b.headers[i]
	return b.data[i][:h.length], b.control[i][:h.Controllen], int(h.Flags)
}
