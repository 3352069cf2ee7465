// Setup builds, installs and checks rblnft:
//
//	go run ./cmd/setup build DIR
//	go run ./cmd/setup check [PACKAGE...]
//	go run ./cmd/setup clean
//	go run ./cmd/setup install
//	go run ./cmd/setup uninstall [-purge]
//	go run ./cmd/setup deb DIR
//
// Install and uninstall heed two variables of the environment: $PREFIX, of
// programs and manual pages (default /usr/local), and $DESTDIR, which is put
// before every path; with it set files are put in place or taken away and
// nothing else is done. Deb heeds $VERSION, and $DEBFULLNAME and $DEBEMAIL as
// Debian's own tools do.
package main

import (
	"fmt"
	"os"
	"slices"
	"syscall"

	"rblnft/cmd/internal/build"
)

const usage = `usage: go run ./cmd/setup build DIR    compile all programs into DIR
       go run ./cmd/setup check [PACKAGE...]
                                       run every test, or those of packages
       go run ./cmd/setup clean        remove what check has made to do so
       go run ./cmd/setup install      put programs, units and manual pages in place
       go run ./cmd/setup uninstall [-purge]
                                       take them away, with -purge configuration and state too
       go run ./cmd/setup deb DIR      make a Debian package in DIR
$PREFIX (/usr/local) and $DESTDIR say where to install to.
`

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		fail(100, usage)
	}
	syscall.Umask(0o022) // what is installed is for everybody to read
	var err error
	switch verb, args := args[0], args[1:]; {
	case slices.Contains([]string{"-h", "--help", "help"}, verb):
		fmt.Print(usage)
	case verb == "build" && len(args) == 1:
		err = build.All(args[0])
	case verb == "check":
		err = check(args...)
	case verb == "clean" && len(args) == 0:
		err = clean()
	case verb == "install" && len(args) == 0:
		err = install()
	case verb == "uninstall" && len(args) == 0:
		err = uninstall(false)
	case verb == "uninstall" && len(args) == 1 && args[0] == "-purge":
		err = uninstall(true)
	case verb == "deb" && len(args) == 1:
		err = deb(args[0])
	default:
		fail(100, usage)
	}
	if err != nil {
		fail(111, "setup: "+err.Error()+"\n")
	}
}

func fail(code int, text string) {
	fmt.Fprint(os.Stderr, text)
	os.Exit(code)
}
