package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/darter-io/darter/pkg/secret"
)

// Values of all origins are YAML nodes. Package yaml parses and prints them; decoding is our own, because a setting's
// type decides how a text is read (a secret 0123 keeps its four digits), and because the errors say what to write.

// parseFile returns the mapping at the top of a YAML file; an empty file has an empty one.
func parseFile(b []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return &yaml.Node{Kind: yaml.MappingNode}, nil
	} else if err != nil {
		return nil, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one YAML document")
	}
	switch top := doc.Content[0]; {
	case top.Kind == yaml.MappingNode:
		return top, nil
	case isNull(top):
		return &yaml.Node{Kind: yaml.MappingNode}, nil
	}
	return nil, errors.New("a configuration is made of keys and values")
}

// pairs are the keys and values of a mapping, with aliases resolved.
func pairs(m *yaml.Node) iter.Seq2[*yaml.Node, *yaml.Node] {
	return func(yield func(*yaml.Node, *yaml.Node) bool) {
		for i := 0; i+1 < len(m.Content); i += 2 {
			if !yield(m.Content[i], resolved(m.Content[i+1])) {
				return
			}
		}
	}
}

func resolved(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// decode sets v to a value: a scalar, for a list a sequence or a comma-separated scalar, for a struct a mapping or its
// short form.
func decode(v reflect.Value, n *yaml.Node) error {
	n = resolved(n)
	switch {
	case v.Kind() == reflect.Slice:
		return decodeList(v, n)
	case v.Kind() == reflect.Struct && n.Kind == yaml.MappingNode:
		return decodeEntry(v, n)
	case n.Kind == yaml.MappingNode:
		return errors.New("takes one value, not a section of keys")
	case n.Kind == yaml.SequenceNode:
		return errors.New("takes one value, not a list")
	case isNull(n):
		return errors.New("takes one value, not nothing")
	}
	return decodeText(v, n.Value)
}

func decodeList(v reflect.Value, n *yaml.Node) error {
	items := n.Content
	if n.Kind == yaml.ScalarNode {
		items = nil
		for _, text := range splitList(v.Type(), n.Value) {
			items = append(items, &yaml.Node{Kind: yaml.ScalarNode, Value: text})
		}
	}
	v.SetZero()
	for i, item := range items {
		one := reflect.New(v.Type().Elem()).Elem()
		if err := decode(one, item); err != nil {
			return fmt.Errorf("entry %d: %w", i+1, err)
		}
		v.Set(reflect.Append(v, one))
	}
	return nil
}

// decodeEntry sets the fields of one entry in a list of structs.
func decodeEntry(v reflect.Value, m *yaml.Node) error {
	fields, names := map[string]reflect.Value{}, []string{}
	for i := range v.NumField() {
		key := fieldKey(v.Type().Field(i))
		fields[key], names = v.Field(i), append(names, key)
	}
	seen := map[string]bool{}
	for name, value := range pairs(m) {
		key := name.Value
		field, known := fields[key]
		switch {
		case !known:
			return fmt.Errorf("line %d: unknown key %q%s", name.Line, key, suggest(key, names))
		case seen[key]:
			return fmt.Errorf("line %d: key %q is there twice", name.Line, key)
		}
		seen[key] = true
		if isNull(value) {
			continue
		}
		if err := decode(field, value); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

// decodeText sets a v that is no list.
func decodeText(v reflect.Value, text string) error {
	text = strings.TrimSpace(text)
	if v.Type() == secretType && text == secret.String("x").String() {
		return fmt.Errorf("%q is the placeholder that is printed for a secret, not the secret", text)
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	switch {
	case v.Type() == durationType:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is not a duration; write for example 500ms, 30s, 5m or 2h", text)
		}
		v.SetInt(int64(d))
	case v.Kind() == reflect.String:
		v.SetString(text)
	case v.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		v.SetBool(b)
	case v.CanInt():
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
		v.SetInt(n)
	case v.CanFloat():
		n, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
			return fmt.Errorf("%q is not a number", text)
		}
		v.SetFloat(n)
	default:
		return fmt.Errorf("setting of type %s cannot be read", v.Type())
	}
	return nil
}

// encode is the value as YAML, secrets redacted by their own MarshalText.
func encode(v reflect.Value) *yaml.Node {
	n := new(yaml.Node)
	if err := n.Encode(v.Interface()); err != nil {
		n.SetString(err.Error())
	}
	if v.Type() == durationType {
		n.Value = shortDuration(n.Value)
	}
	return n
}

// shortDuration leaves out the zeros that time.Duration writes: 1m, not 1m0s.
func shortDuration(s string) string {
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
