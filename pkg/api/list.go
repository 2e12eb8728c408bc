package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
)

// OneLine returns a text of another program as it may come to a terminal: in one line, without control characters.
func OneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, ""))
}

// LongListError reports a list with more than Most elements.
type LongListError struct{ Most int }

func (e *LongListError) Error() string { return fmt.Sprintf("more than %d elements in a list", e.Most) }

// UnmarshalList decodes a JSON list of at most most elements of at most size bytes each,
// and decodes no element beyond: an element of two bytes can take hundreds once it is a
// Go value. A null is an empty list.
func UnmarshalList[T any](b []byte, most, size int) ([]T, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	switch begin, err := d.Token(); {
	case err != nil:
		return nil, err
	case begin == nil:
		return nil, nil
	case begin != json.Delim('['):
		return nil, fmt.Errorf("%v is no list", begin)
	}
	var list []T
	for d.More() {
		if len(list) == most {
			return nil, &LongListError{most}
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, err
		}
		if len(raw) > size {
			return nil, fmt.Errorf("element %d has %d bytes, more than %d", len(list), len(raw), size)
		}
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, fmt.Errorf("element %d: %w", len(list), err)
		}
		list = append(list, v)
	}
	return list, nil
}
