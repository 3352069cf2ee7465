// Package differential holds the filter against the program that it replaces:
// Debian's /usr/bin/rblsmtpd, of the package ucspi-tcp. Its tests run both with
// the same generated command lines, environments, block lists and clients, and
// compare all that anybody could notice: what the client reads, what the log
// gets, how the process ends, and in what state the next program finds itself.
//
// Every difference that is meant stands in one table, differences, with its
// reason. Any other fails the test.
//
//	go test ./cmd/rblsmtpd/differential                              5,000 cases
//	go test ./cmd/rblsmtpd/differential -args -cases 100000          more of them
//	go test ./cmd/rblsmtpd/differential -args -seed 7 -case 123 -v   one, in full
package differential
