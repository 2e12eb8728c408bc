package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"
)

// yamlParser is a koanf parser that takes every scalar to the letter: a secret 0123 stays four
// digits, and which type a text has is the setting's word, not YAML's. It remembers the
// line of every key.
type yamlParser struct {
	lines map[string]int
}

// depthMax bounds how deep a file may nest; ours nest three levels.
const depthMax = 16

// Unmarshal reads one YAML document.
func (p *yamlParser) Unmarshal(b []byte) (map[string]any, error) {
	p.lines = map[string]int{}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) { // an empty file sets nothing
			return map[string]any{}, nil
		}
		return nil, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one YAML document")
	}
	v, err := p.value(doc.Content[0], "", 0)
	if err != nil {
		return nil, err
	}
	if v == nil {
		return map[string]any{}, nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("a configuration is made of keys and values")
	}
	return m, nil
}

// Marshal is part of koanf's interface; [Form.Print] writes files.
func (p *yamlParser) Marshal(map[string]any) ([]byte, error) {
	return nil, errors.New("not supported")
}

func (p *yamlParser) value(n *yaml.Node, key string, depth int) (any, error) {
	if depth > depthMax {
		return nil, fmt.Errorf("line %d: nested too deep", n.Line)
	}
	switch n.Kind {
	case yaml.AliasNode:
		return p.value(n.Alias, key, depth+1)
	case yaml.SequenceNode:
		list := []any{}
		for _, item := range n.Content {
			v, err := p.value(item, key, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if _, twice := m[k.Value]; twice {
				return nil, fmt.Errorf("line %d: key %q is there twice", k.Line, k.Value)
			}
			path := k.Value
			if key != "" {
				path = key + delim + k.Value
			}
			p.lines[path] = k.Line
			v, err := p.value(n.Content[i+1], path, depth+1)
			if err != nil {
				return nil, err
			}
			m[k.Value] = v
		}
		return m, nil
	}
	if n.Tag == "!!null" {
		return nil, nil
	}
	return n.Value, nil
}
