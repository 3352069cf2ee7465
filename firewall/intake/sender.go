//go:build linux

package intake

import (
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A Policy says whose hits count.
type Policy struct {
	Senders Senders
	Peer    Peer
	Ports   []uint16 // where clients' connections are accepted; see Require
}

// Senders says who may report, by the credentials that the kernel attaches to
// a datagram (SCM_CREDENTIALS, unix(7)): the sender's real user and its
// primary group.
type Senders struct {
	UIDs []uint32
	GIDs []uint32
	// Others may report too, but only with proof, as [Require] wants it.
	Others bool
}

// sender is what the kernel says of who sent a datagram.
type sender struct {
	known    bool
	pid      int32
	uid, gid uint32
}

// admit reports whether from may report at all, and whether it is trusted.
func (s *Senders) admit(from sender) (trusted, ok bool) {
	for _, uid := range s.UIDs {
		if uid == from.uid {
			return true, true
		}
	}
	for _, gid := range s.GIDs {
		if gid == from.gid {
			return true, true
		}
	}
	return false, s.Others
}

// nobody are the user and group that stand for those that have no number here
// (user_namespaces(7), "Unmapped user and group IDs").
var nobody = sync.OnceValue(func() (n struct{ uid, gid uint32 }) {
	read := func(path string) uint32 {
		b, err := os.ReadFile(path)
		if err != nil {
			return 65534
		}
		id, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
		if err != nil {
			return 65534
		}
		return uint32(id)
	}
	n.uid = read("/proc/sys/kernel/overflowuid")
	n.gid = read("/proc/sys/kernel/overflowgid")
	return n
})

// control takes the sender's credentials and all descriptors, into r.fds, from
// a datagram's control data. Even with an error every descriptor is there.
func (r *Receiver) control(oob []byte) (from sender, err error) {
	r.fds = r.fds[:0]
	for len(oob) > 0 {
		if len(oob) < unix.SizeofCmsghdr {
			return from, errors.New("malformed control data")
		}
		h, data, rest, parseErr := unix.ParseOneSocketControlMessage(oob)
		if parseErr != nil {
			return from, errors.New("malformed control data")
		}
		oob = rest
		if h.Level != unix.SOL_SOCKET {
			continue
		}
		switch h.Type {
		case unix.SCM_RIGHTS:
			for len(data) >= 4 {
				r.fds = append(r.fds, int(int32(binary.NativeEndian.Uint32(data))))
				data = data[4:]
			}
		case unix.SCM_CREDENTIALS:
			if len(data) < unix.SizeofUcred {
				return from, errors.New("malformed credentials")
			}
			from.pid = int32(binary.NativeEndian.Uint32(data))
			from.uid = binary.NativeEndian.Uint32(data[4:])
			from.gid = binary.NativeEndian.Uint32(data[8:])
			// A datagram sent while nobody asked for credentials has
			// those of nobody, and no process. A process in another pid
			// namespace has no number here either, but a user.
			n := nobody()
			from.known = from.pid != 0 || from.uid != n.uid || from.gid != n.gid
		}
	}
	return from, nil
}
