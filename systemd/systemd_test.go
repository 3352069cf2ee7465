//go:build linux

package systemd

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// asDaemon in the environment has the test binary be a daemon that tells what
// socket it was handed.
const asDaemon = "RBLNFT_TEST_ACTIVATED"

func TestMain(m *testing.M) {
	if os.Getenv(asDaemon) != "" {
		conn, err := HitsSocket()
		fmt.Println(conn != nil, err)
		if conn != nil {
			fmt.Println(conn.LocalAddr())
		}
		again, err := HitsSocket()
		fmt.Println(again != nil, err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestHitsSocket(t *testing.T) {
	dir := t.TempDir()
	datagram := func(name string) *os.File {
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		f, err := c.File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	hits, other := datagram("hits"), datagram("other")
	streamListener, err := net.Listen("unix", filepath.Join(dir, "stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer streamListener.Close()
	stream, err := streamListener.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	udpConn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer udpConn.Close()
	udp, err := udpConn.File()
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	file, err := os.Open("systemd.go")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()

	const nothing = "false <nil>"
	for _, tt := range []struct {
		name  string
		files []*os.File
		names string
		pid   string
		want  string
	}{
		{"not activated", nil, "", "", nothing},
		{"for another process", []*os.File{hits}, "hits", "1", nothing},
		{"the one", []*os.File{hits}, "hits", "$$", "true <nil>\n" + dir + "/hits"},
		{"the only one", []*os.File{hits}, "rblnftd.socket", "$$", "true <nil>\n" + dir + "/hits"},
		{"no names", []*os.File{hits}, "", "$$", "true <nil>\n" + dir + "/hits"},
		{"by name", []*os.File{other, hits}, "other:hits", "$$", "true <nil>\n" + dir + "/hits"},
		{"two of the name", []*os.File{other, hits}, "hits:hits", "$$", "false systemd handed over 2 sockets, 2 of them named \"hits\": want one"},
		{"none of the name", []*os.File{other, hits}, "a:b", "$$", "false systemd handed over 2 sockets, 0 of them named \"hits\": want one"},
		{"stream", []*os.File{stream}, "hits", "$$", "false socket \"hits\" from systemd: it is no Unix datagram socket: ListenDatagram= wants a path"},
		{"UDP", []*os.File{udp}, "hits", "$$", "false socket \"hits\" from systemd: it is no Unix datagram socket: ListenDatagram= wants a path"},
		{"no socket", []*os.File{file}, "hits", "$$", "false socket \"hits\" from systemd: socket operation on non-socket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.Command("/bin/sh", "-c", "LISTEN_PID="+tt.pid+` exec "$0"`, os.Args[0])
			cmd.ExtraFiles = tt.files
			cmd.Env = append(os.Environ(), asDaemon+"=1", "GORACE=atexit_sleep_ms=0",
				fmt.Sprintf("LISTEN_FDS=%d", len(tt.files)), "LISTEN_FDNAMES="+tt.names)
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			// A second look finds nothing.
			if got := strings.TrimSpace(string(out)); got != tt.want+"\n"+nothing {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}
