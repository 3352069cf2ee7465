package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// A document is a TOML document: its values and their lines, by keys, and what is
// wrong with it, by lines. Keys in tables are written with dots.
type document struct {
	file     string
	values   map[string]any
	lines    map[string]int
	problems map[int][]error
}

// readTOML parses a document. The error is that of the syntax.
func readTOML(file string, data []byte) (*document, error) {
	d := &document{file: file, values: map[string]any{}, lines: map[string]int{}, problems: map[int][]error{}}
	var tree map[string]any
	if err := toml.Unmarshal(data, &tree); err != nil {
		var at *toml.DecodeError
		if !errors.As(err, &at) {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		line, _ := at.Position()
		key := ""
		if len(at.Key()) > 0 {
			key = strings.Join(at.Key(), ".") + ": "
		}
		return nil, fmt.Errorf("%s:%d: %s%s", file, line, key, strings.TrimPrefix(at.Error(), "toml: "))
	}
	d.flatten("", tree)
	d.findLines(data)
	return d, nil
}

// flatten puts the values of tables under keys with dots.
func (d *document) flatten(prefix string, tree map[string]any) {
	for k, v := range tree {
		if table, ok := v.(map[string]any); ok && (len(table) > 0 || prefix+k == "nftables") {
			d.flatten(prefix+k+".", table)
		} else {
			d.values[prefix+k] = v
		}
	}
}

// findLines notes at which line each key, and each table, begins.
func (d *document) findLines(data []byte) {
	var p unstable.Parser
	p.Reset(data)
	table := ""
	for p.NextExpression() {
		e := p.Expression()
		line, parts := 0, []string(nil)
		for it := e.Key(); it.Next(); {
			line, parts = p.Shape(it.Node().Raw).Start.Line, append(parts, string(it.Node().Data))
		}
		key := strings.Join(parts, ".")
		if e.Kind == unstable.KeyValue {
			key = table + key
		} else {
			table = key + "."
		}
		if _, known := d.lines[key]; !known {
			d.lines[key] = line
		}
	}
}

// bad notes what is wrong with a key: an error, or several that are joined, or nil.
func (d *document) bad(key string, err error) {
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	line, place := 0, key // or the table that it is in
	for ; line == 0 && place != ""; place = place[:max(strings.LastIndexByte(place, '.'), 0)] {
		line = d.lines[place]
	}
	line = max(line, 1)
	for _, err := range all {
		if err != nil {
			d.problems[line] = append(d.problems[line], fmt.Errorf("%s:%d: %s: %w", d.file, line, key, err))
		}
	}
}

// err returns all that is wrong, in the order of lines.
func (d *document) err() error {
	var errs []error
	for _, line := range slices.Sorted(maps.Keys(d.problems)) {
		errs = append(errs, d.problems[line]...)
	}
	return errors.Join(errs...)
}
