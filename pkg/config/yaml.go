package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"regexp"
	"slices"
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

// resolved follows an alias.
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
	if n.Kind == yaml.ScalarNode {
		n = sequence(v.Type().Elem(), n.Value)
	}
	v.SetZero()
	for i, item := range n.Content {
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
	entry := Form{settings: settingsOf(v.Addr().Interface())}
	if problems := entry.readSection("", "", m); len(problems) > 0 {
		return problems[0]
	}
	for _, s := range entry.settings {
		if s.node == nil {
			continue
		}
		if err := decode(s.value, s.node); err != nil {
			return fmt.Errorf("%s: %w", s.key, err)
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
		if c, ok := v.Interface().(choice); ok {
			allowed := c.choices()
			i := slices.IndexFunc(allowed, func(one string) bool { return strings.EqualFold(one, text) })
			if i < 0 {
				return fmt.Errorf("%q is not one of %s%s", text, strings.Join(allowed, ", "), suggest(text, allowed))
			}
			text = allowed[i]
		}
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
		n.Value = zeros.ReplaceAllString(n.Value, "$1")
	}
	return n
}

// zeros matches those that [time.Duration] writes after whole hours and minutes: 1h0m0s is printed as 1h.
var zeros = regexp.MustCompile(`([hm])(0m)?0s$`)
