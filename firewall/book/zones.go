package book

import (
	"math"
	"strings"
)

// zones gives the names of zones small numbers. Number 0 is the empty name, which
// all those get for which no number is left until the next Sweep.
type zones struct {
	names  []string
	number map[string]uint16
	free   []uint16
}

func (z *zones) use(name string) uint16 {
	n, ok := z.number[name]
	if ok {
		return n
	}
	if last := len(z.free) - 1; last >= 0 {
		n, z.free = z.free[last], z.free[:last]
	} else if len(z.names) <= math.MaxUint16 {
		n, z.names = uint16(len(z.names)), append(z.names, "")
	} else {
		return 0
	}
	name = strings.Clone(name) // not the whole line that it was cut from
	z.names[n], z.number[name] = name, n
	return n
}

// keep frees the numbers that are not used.
func (z *zones) keep(used *[math.MaxUint16 + 1]bool) {
	for name, n := range z.number {
		if n != 0 && !used[n] {
			delete(z.number, name)
			z.names[n] = ""
			z.free = append(z.free, n)
		}
	}
}
