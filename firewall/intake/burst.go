//go:build linux

package intake

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"rblnft/firewall/hit"
)

// burstSize is how many datagrams are read at once.
const burstSize = 32

// A burst is room for the datagrams of one recvmmsg(2).
type burst struct {
	headers [burstSize]mmsghdr
	vectors [burstSize]unix.Iovec
	data    [burstSize][hit.MaxLen + 1]byte // one byte more tells that a hit is too long
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	length uint32
}

// read reads the datagrams that wait in the socket, as many as there is room for,
// and returns how many these were, or EAGAIN where there is none. There is no room
// for descriptors: the kernel closes those that somebody sends.
func (b *burst) read(fd int) (n int, err error) {
	for i := range b.headers {
		h := &b.headers[i]
		*h = mmsghdr{}
		b.vectors[i].Base = &b.data[i][0]
		b.vectors[i].SetLen(len(b.data[i]))
		h.Iov = &b.vectors[i]
		h.SetIovlen(1)
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers)), burstSize, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// datagram returns the ith datagram.
func (b *burst) datagram(i int) []byte { return b.data[i][:b.headers[i].length] }
