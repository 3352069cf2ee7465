package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// A document is a TOML document: its values and their lines, by keys. Keys in
// tables are written with dots.
type document struct {
	file     string
	values   map[string]any
	lines    map[string]int
	problems []problem
}

type problem struct {
	line int
	text string
}

// readTOML parses a document. The error is that of the syntax.
func readTOML(file string, data []byte) (*document, error) {
	d := &document{file: file, values: map[string]any{}, lines: map[string]int{}}
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

// line returns where key is, or the table that it is in.
func (d *document) line(key string) int {
	for ; key != ""; key = key[:max(strings.LastIndexByte(key, '.'), 0)] {
		if line, ok := d.lines[key]; ok {
			return line
		}
	}
	return 1
}

// bad notes what is wrong with a key: an error, or several that are joined, or nil.
func (d *document) bad(key string, err error) {
	if err == nil {
		return
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			d.bad(key, err)
		}
		return
	}
	d.problems = append(d.problems, problem{d.line(key), key + ": " + err.Error()})
}

// err returns all that is wrong, in the order of lines.
func (d *document) err() error {
	slices.SortStableFunc(d.problems, func(a, b problem) int { return a.line - b.line })
	var errs []error
	for _, p := range d.problems {
		errs = append(errs, fmt.Errorf("%s:%d: %s", d.file, p.line, p.text))
	}
	return errors.Join(errs...)
}
