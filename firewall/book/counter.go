package book

import "slices"

// counter counts the hits of addresses that are not blocked yet.
type counter struct {
	seen map[Key][]Time // when, oldest first; fewer than Policy.Hits
}

// maxCounted bounds how many addresses are counted at once.
const maxCounted = 1 << 16

// count returns how many hits there are within the window, the one at now
// included.
func (c *counter) count(k Key, now Time, p *Policy) int {
	times := c.seen[k]
	if len(times) == 0 {
		return 1
	}
	since := now.Add(-p.Window)
	times = slices.DeleteFunc(times, func(t Time) bool { return t <= since })
	times = times[max(0, len(times)-p.Hits+1):]
	c.seen[k] = times
	return len(times) + 1
}

// add remembers a hit. Where too many addresses are counted any sixteenth of them
// is forgotten: they take longer to be blocked.
func (c *counter) add(k Key, now Time) {
	if _, known := c.seen[k]; !known && len(c.seen) >= maxCounted {
		n := maxCounted / 16
		for k := range c.seen {
			delete(c.seen, k)
			if n--; n == 0 {
				break
			}
		}
	}
	c.seen[k] = append(c.seen[k], now)
}

// sweep forgets those whose last hit was before since.
func (c *counter) sweep(since Time) {
	for k, times := range c.seen {
		if len(times) == 0 || times[len(times)-1] <= since {
			delete(c.seen, k)
		}
	}
}
