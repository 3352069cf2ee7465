// Setup builds, installs and checks rblnft:
//
//	go run ./cmd/setup build DIR
//	go run ./cmd/setup check
package main

import (
	"fmt"
	"os"

	"rblnft/cmd/internal/build"
)

const usage = `usage: go run ./cmd/setup build DIR    compile all programs into DIR
       go run ./cmd/setup check        install what the tests need, and run every test
`

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		fail(100, usage)
	}
	var err error
	switch verb, args := args[0], args[1:]; {
	case verb == "build" && len(args) == 1:
		err = build.All(args[0])
	case verb == "check" && len(args) == 0:
		err = check()
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
