package differential

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// connection is a client's connection to a program.
type connection struct {
	childIn, childOut int      // the program's descriptors 0 and 1
	in, out           *os.File // the client's ends; in is written to, and nil if it cannot be
	transport         string
	during            func() // for the event call

	mu             sync.Mutex
	changed        *sync.Cond
	read           []byte
	over           bool // nothing more will be read
	closedByClient bool
	reading        sync.WaitGroup
}

// connect makes a connection.
func connect(transport string) (*connection, error) {
	c := &connection{transport: transport}
	c.changed = sync.NewCond(&c.mu)
	var in, out int
	switch transport {
	case "socket":
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		c.childIn, c.childOut, in, out = fds[0], fds[0], fds[1], fds[1]
	case "tcp":
		child, own, err := tcpPair()
		if err != nil {
			return nil, err
		}
		c.childIn, c.childOut, in, out = child, child, own, own
	case "pipes":
		var from, to [2]int
		if err := unix.Pipe2(from[:], unix.O_CLOEXEC); err != nil {
			return nil, err
		}
		if err := unix.Pipe2(to[:], unix.O_CLOEXEC); err != nil {
			return nil, err
		}
		c.childIn, in, out, c.childOut = to[0], to[1], from[0], from[1]
	case "null":
		var from [2]int
		if err := unix.Pipe2(from[:], unix.O_CLOEXEC); err != nil {
			return nil, err
		}
		null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		c.childIn, in, out, c.childOut = null, -1, from[0], from[1]
	default:
		return nil, fmt.Errorf("no transport %q", transport)
	}
	unix.SetNonblock(out, true)
	c.out = os.NewFile(uintptr(out), "from program")
	if in == out {
		c.in = c.out
	} else if in >= 0 {
		unix.SetNonblock(in, true)
		c.in = os.NewFile(uintptr(in), "to program")
	}
	c.reading.Go(c.readAll)
	return c, nil
}

// tcpPair makes a TCP connection over the loopback interface. The first
// descriptor blocks, as one from tcpserver(1) does.
func tcpPair() (accepted, connected int, err error) {
	listening, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(listening)
	if err := unix.Bind(listening, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, 0, err
	}
	if err := unix.Listen(listening, 1); err != nil {
		return 0, 0, err
	}
	at, err := unix.Getsockname(listening)
	if err != nil {
		return 0, 0, err
	}
	if connected, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, 0, err
	}
	if err := unix.Connect(connected, at); err != nil {
		return 0, 0, err
	}
	accepted, _, err = unix.Accept4(listening, unix.SOCK_CLOEXEC)
	return accepted, connected, err
}

// readAll reads until the program has closed its end, or the client its own.
func (c *connection) readAll() {
	buf := make([]byte, 65536)
	for {
		n, err := c.out.Read(buf)
		c.mu.Lock()
		c.read = append(c.read, buf[:n]...)
		if err != nil {
			c.over = true
		}
		c.changed.Broadcast()
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// before does what a client does before the program has a chance to do
// anything, and returns what it does later.
func (c *connection) before(script []event) []event {
	for i, e := range script {
		if e.do != "send" && e.do != "shut" && e.do != "close" || len(e.data) > 32<<10 {
			return script[i:]
		}
		c.do(e)
	}
	return nil
}

// talk does what a client does.
func (c *connection) talk(script []event) {
	for _, e := range script {
		c.do(e)
		if e.do == "greeted" && !strings.HasPrefix(c.got(), "220 rblsmtpd.local\r\n") {
			c.do(event{do: "shut"})
			return
		}
	}
}

func (c *connection) do(e event) {
	switch e.do {
	case "send":
		if c.in != nil {
			c.in.WriteString(e.data)
		}
	case "split":
		for i := range len(e.data) {
			if c.in == nil || c.isOver() {
				return
			}
			c.in.WriteString(e.data[i : i+1])
			c.untilTaken()
		}
	case "await", "greeted":
		c.mu.Lock()
		for !c.over && strings.Count(string(c.read), "\n") < max(e.lines, 1) {
			c.changed.Wait()
		}
		c.mu.Unlock()
	case "pause":
		time.Sleep(200 * time.Millisecond)
	case "call":
		c.during()
	case "shut":
		switch {
		case c.in == nil:
		case c.in == c.out:
			c.control(func(fd int) { unix.Shutdown(fd, unix.SHUT_WR) })
		default:
			c.in.Close()
		}
	case "reset":
		if c.transport == "tcp" {
			c.control(func(fd int) {
				unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			})
		}
		c.closeByClient()
	case "close":
		c.closeByClient()
	}
}

func (c *connection) closeByClient() {
	c.mu.Lock()
	c.closedByClient = true
	c.mu.Unlock()
	c.out.Close()
	if c.in != nil {
		c.in.Close()
	}
	c.reading.Wait()
	// A process on its way from fork to exec still has a copy of every
	// descriptor.
	syscall.ForkLock.Lock()
	syscall.ForkLock.Unlock()
}

func (c *connection) isOver() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.over
}

// untilTaken waits until the program has read what was sent, for a moment at
// most: it may not be reading at all.
func (c *connection) untilTaken() {
	for range 100 {
		left := 0
		c.control(func(fd int) { left, _ = unix.IoctlGetInt(fd, unix.SIOCOUTQ) })
		if left == 0 || c.isOver() {
			return
		}
		time.Sleep(50 * time.Microsecond)
	}
}

func (c *connection) control(f func(fd int)) {
	raw, err := c.in.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}

// started closes the program's ends, which the program has copies of.
func (c *connection) started() {
	unix.Close(c.childIn)
	if c.childOut != c.childIn {
		unix.Close(c.childOut)
	}
	c.childIn, c.childOut = -1, -1
}

// ended is called when the program has ended.
func (c *connection) ended() { c.reading.Wait() }

func (c *connection) got() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.read)
}

func (c *connection) close() {
	if c.childIn >= 0 {
		c.started()
	}
	c.out.Close()
	if c.in != nil {
		c.in.Close()
	}
}
