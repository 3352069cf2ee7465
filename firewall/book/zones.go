package book

import (
	"math"
	"strings"
)

// zones gives the names of zones small numbers, as long as records use them.
// Number 0 is the empty name, which all those get for which no number is left.
type zones struct {
	names  []string
	uses   []int
	number map[string]uint16
	free   []uint16
}

func (z *zones) use(name string) uint16 {
	if z.number == nil {
		z.names, z.uses, z.number = []string{""}, []int{0}, map[string]uint16{"": 0}
	}
	n, ok := z.number[name]
	if !ok {
		switch {
		case len(z.free) > 0:
			n = z.free[len(z.free)-1]
			z.free = z.free[:len(z.free)-1]
		case len(z.names) <= math.MaxUint16:
			n = uint16(len(z.names))
			z.names, z.uses = append(z.names, ""), append(z.uses, 0)
		default:
			return 0
		}
		name = strings.Clone(name) // not the whole line that it was cut from
		z.names[n], z.number[name] = name, n
	}
	if n != 0 {
		z.uses[n]++
	}
	return n
}

func (z *zones) release(n uint16) {
	if n == 0 {
		return
	}
	if z.uses[n]--; z.uses[n] == 0 {
		delete(z.number, z.names[n])
		z.names[n] = ""
		z.free = append(z.free, n)
	}
}

func (z *zones) name(n uint16) string {
	if int(n) >= len(z.names) {
		return ""
	}
	return z.names[n]
}
