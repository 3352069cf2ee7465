// Package chain tests rblnft where it is to be used: between Debian's tcpserver
// and a real SMTP server, started as a qmail run script starts them, with
// rbldnsd as the DNSBL and the real nftables.
package chain
