package book

import "slices"

// counter has the times of the hits of addresses that are not blocked yet, the
// oldest first: one at least, and fewer than Policy.Hits.
type counter map[Key][]Time

// maxCounted bounds how many addresses are counted at once.
const maxCounted = 1 << 16

// count returns how many hits there are within the window, the one at now
// included, which is remembered if it does not block. Where too many addresses are
// counted any sixteenth of them is forgotten: they take longer to be blocked.
func (c counter) count(k Key, now Time, p *Policy) (hits int) {
	since := now.Add(-p.Window)
	times := slices.DeleteFunc(c[k], func(t Time) bool { return t <= since })
	times = times[max(0, len(times)-p.Hits+1):]
	if hits = len(times) + 1; hits < p.Hits {
		times = append(times, now)
	}
	delete(c, k)
	if len(times) == 0 {
		return hits
	}
	if len(c) >= maxCounted {
		n := maxCounted / 16
		for k := range c {
			delete(c, k)
			if n--; n == 0 {
				break
			}
		}
	}
	c[k] = times
	return hits
}

// sweep forgets those whose last hit was no later than since.
func (c counter) sweep(since Time) {
	for k, times := range c {
		if times[len(times)-1] <= since {
			delete(c, k)
		}
	}
}
