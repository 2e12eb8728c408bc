package clientconf

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// document is a TOML text with the positions of its tables and keys.
type document struct {
	text   []byte
	tree   map[string]any
	tables []place
	keys   []place
}

// place is the position of a table's header or a key: text[start:end] are its lines.
type place struct {
	path       []string
	start, end int
}

// foreignTOML parses a file without our part of it.
func foreignTOML(file []byte) (base []byte, doc *document, err error) {
	if base, err = strip(file); err != nil {
		return nil, nil, err
	}
	doc, err = parseTOML(base)
	return base, doc, err
}

// parseTOML parses a text. Values in inline tables are in the tree but have no place.
func parseTOML(text []byte) (*document, error) {
	d := &document{text: text, tree: map[string]any{}}
	if err := toml.Unmarshal(text, &d.tree); err != nil {
		return nil, fmt.Errorf("not TOML: the client cannot read it either: %w", err)
	}
	var p unstable.Parser
	p.Reset(text)
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		var path []string
		first := -1
		for it := e.Key(); it.Next(); {
			if first < 0 {
				first = int(it.Node().Raw.Offset)
			}
			path = append(path, string(it.Node().Data))
		}
		if first < 0 {
			continue
		}
		at := place{path: path, start: lineStart(text, first), end: lineEnd(text, first)}
		if e.Kind == unstable.KeyValue {
			at.path = append(slices.Clone(table), path...)
			at.end = lineEnd(text, valueEnd(text, first))
			d.keys = append(d.keys, at)
			continue
		}
		table = path
		d.tables = append(d.tables, at)
	}
	if err := p.Error(); err != nil {
		return nil, fmt.Errorf("not TOML: the client cannot read it either: %w", err)
	}
	return d, nil
}

// get returns the value at a path, or nil.
func (d *document) get(path ...string) any {
	var at any = d.tree
	for _, k := range path {
		m, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = m[k]
	}
	return at
}

func find(places []place, path []string) (place, bool) {
	i := slices.IndexFunc(places, func(p place) bool { return slices.Equal(p.path, path) })
	if i < 0 {
		return place{}, false
	}
	return places[i], true
}

// set returns the splice that sets a key of a table: at the existing key, else below the table's header, else in a new
// table at the end. more are the lines after it.
func (d *document) set(table []string, key, value string, more ...string) splice {
	line := key + " = " + value
	if at, ok := find(d.keys, append(slices.Clone(table), key)); ok {
		// Its spelling stays: it may be dotted or indented.
		name := string(d.text[at.start:assign(d.text, at.start)])
		line = strings.TrimRight(name, " \t") + " = " + value
		return splice{at: at.start, end: at.end, lines: append([]string{line}, more...)}
	}
	if at, ok := find(d.tables, table); ok {
		return splice{at: at.end, end: at.end, lines: append([]string{line}, more...)}
	}
	return splice{at: len(d.text), end: len(d.text), lines: append([]string{header(table), line}, more...)}
}

// assign returns the offset of the "=" of the key that begins at an offset.
func assign(text []byte, at int) int {
	for at < len(text) && text[at] != '=' {
		if text[at] == '"' || text[at] == '\'' {
			at = stringEnd(text, at)
			continue
		}
		at++
	}
	return at
}

// header writes a table's header.
func header(table []string) string {
	parts := make([]string, len(table))
	for i, k := range table {
		if parts[i] = k; strings.ContainsFunc(k, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
		}) {
			parts[i] = strconv.Quote(k)
		}
	}
	return "[" + strings.Join(parts, ".") + "]"
}

// onlyChanged returns an error unless an edited text has a value at each changed path and is equal everywhere else.
func (d *document) onlyChanged(next []byte, changed ...[]string) error {
	after, err := parseTOML(next)
	if err != nil {
		return fmt.Errorf("its tables have a form that cannot be edited in place")
	}
	was, is := d.tree, after.tree
	for _, path := range changed {
		if after.get(path...) == nil {
			return fmt.Errorf("its tables have a form that cannot be edited in place")
		}
		was, is = without(was, path), without(is, path)
	}
	if !reflect.DeepEqual(was, is) {
		return fmt.Errorf("it cannot be edited without changing other settings")
	}
	return nil
}

// without copies a tree without the value at path and the tables that are then empty.
func without(tree map[string]any, path []string) map[string]any {
	out := map[string]any{}
	for k, v := range tree {
		if k != path[0] {
			out[k] = v
			continue
		}
		if sub, ok := v.(map[string]any); ok && len(path) > 1 {
			if less := without(sub, path[1:]); len(less) > 0 {
				out[k] = less
			}
		}
	}
	return out
}

func lineStart(text []byte, at int) int { return bytes.LastIndexByte(text[:at], '\n') + 1 }

func lineEnd(text []byte, at int) int {
	if i := bytes.IndexByte(text[at:], '\n'); i >= 0 {
		return at + i + 1
	}
	return len(text)
}

// valueEnd returns the end of the value of the key at an offset of a valid TOML text: the first newline outside of
// strings and brackets.
func valueEnd(text []byte, at int) int {
	depth := 0
	for i := at; i < len(text); i++ {
		switch c := text[i]; c {
		case '\n':
			if depth == 0 {
				return i
			}
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		case '#':
			for i+1 < len(text) && text[i+1] != '\n' {
				i++
			}
		case '"', '\'':
			i = stringEnd(text, i) - 1
		}
	}
	return len(text)
}

// stringEnd returns the offset after the string that begins at an offset.
func stringEnd(text []byte, at int) int {
	quote := text[at]
	delim := []byte{quote}
	if long := bytes.Repeat(delim, 3); bytes.HasPrefix(text[at:], long) {
		delim = long
	}
	for i := at + len(delim); i < len(text); i++ {
		if quote == '"' && text[i] == '\\' {
			i++
			continue
		}
		if !bytes.HasPrefix(text[i:], delim) {
			continue
		}
		i += len(delim)
		// Up to two more quotes may belong to the content of a long string.
		for len(delim) == 3 && i < len(text) && text[i] == quote {
			i++
		}
		return i
	}
	return len(text)
}
