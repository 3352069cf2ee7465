//go:build linux

package firewall

import "iter"

// tellStore tells the store a part of everything that it is to have in a new file.
func (f *Firewall) tellStore() {
	if f.tell == nil {
		if !f.store.Wanted() {
			return
		}
		f.store.Begin()
		f.store.Value("names", f.cfg.Ruleset.Names())
		for i, s := range f.sets {
			f.store.Value(setValue(i), s.filled)
		}
		f.tell, f.stopTell = iter.Pull(f.book.Keys())
	}
	const part = 500
	for range part {
		k, ok := f.tell()
		if !ok {
			f.store.End()
			f.stopTell()
			f.tell = nil
			return
		}
		if r, ok := f.book.Get(k); ok && !f.store.Tell(r) {
			return
		}
	}
}
