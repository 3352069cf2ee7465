//go:build linux

// Package firewall is the daemon's one loop. It owns the account of who should be
// blocked and the connection to the kernel, and alone changes either:
//
//	hits socket            nft, firewalld …     administrator     disk
//	     │                       │                   │              │
//	  intake ── bursts ──┐    nft.Watch           Reload          store
//	                     │       │                   │              ▲
//	                     ▼       ▼ hints             ▼ commands     │ told after
//	                   ┌────────────── loop ───────────────┐        │ the commit
//	                   │  book: who, why, until, dirty?    │────────┘
//	                   └──────┬──────────────────┬─────────┘
//	                          ▼                  ▼
//	                       ruleset ──────────▶  nft  ──▶ kernel
//
// In a turn it takes what has come, which makes records of the book dirty; a dirty
// record is pushed: the kernel's set is told what the book says now. A notification
// of the kernel is a hint: the kernel is asked what is so.
//
//	event                            what happens
//	hit                              the book decides; dirty; pushed at once, or when the batch's pause is over
//	hit that blocks nobody           counted, and logged
//	batch pushed                     the next one waits for Batch, or as long as nft takes to list the sets, 3 s at most
//	push refused                     the keys stay dirty; Ensure; that set again after a while that doubles up to 10 s
//	  for its size                   half as many
//	  there is no room               half as many; one alone waits behind all others
//	allow list changed               what it covers is taken back: dirty; allowed sets written anew
//	element deleted by others        Ask; not there: forgotten
//	element added by others          not ours
//	allowed set changed by others    written anew
//	structure changed by others      Ensure, ten times a second at most
//	notifications lost               Ensure, allowed sets written anew
//	Ensure finds another set         all blocks of the family are refilled, 1,000 at a time, beside the hits
//	something is in the way          said, and tried again; nobody else's is changed
//	start, the set is the one told   nothing
//	start, any other set             refilled
//	reload                           as a start with another configuration; what has other names now is removed
//	the store wants a new file       told of all records, 500 in a turn; it waits for a disk that is behind
//	end                              what was received is pushed, and the store told what it wants
package firewall
