package oci

import (
	"errors"
	"fmt"
	"math"
	"strings"
)

// The cases in which a Range header is refused; both mean 416 (RFC 9110 §15.5.17).
var (
	// ErrRangeMalformed tells that a byte range is no byte range, or runs backwards.
	ErrRangeMalformed = errors.New("malformed byte range")
	// ErrRangeUnsatisfiable tells that no byte of the range exists.
	ErrRangeUnsatisfiable = errors.New("byte range beyond the end of the content")
)

// RangesMax is how many ranges one header may hold.
const RangesMax = 2048

// Window is a part of a content, in bytes; Length is at least 1.
type Window struct {
	Offset, Length int64
}

// ContentRange formats the header of a 206 (RFC 9110 §14.4).
func (w Window) ContentRange(total int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", w.Offset, w.Offset+w.Length-1, total)
}

// UnsatisfiedRange formats the Content-Range header of a 416.
func UnsatisfiedRange(total int64) string { return fmt.Sprintf("bytes */%d", total) }

// ParseRange says which windows of a content of total bytes a Range header asks for, in
// the header's order and cut to what exists (RFC 9110 §14.1.2). It returns none when the
// whole content is meant: no header, a unit other than bytes, or an empty content, for
// which clients that always say "bytes=0-" would otherwise be refused. The error wraps
// [ErrRangeMalformed] or [ErrRangeUnsatisfiable].
func ParseRange(header string, total int64) ([]Window, error) {
	unit, set, ok := strings.Cut(header, "=")
	if !ok && header != "" {
		return nil, fmt.Errorf("%w: %.100q", ErrRangeMalformed, header)
	}
	if !strings.EqualFold(strings.TrimSpace(unit), "bytes") || total <= 0 {
		return nil, nil
	}
	var windows []Window
	specs := 0
	for spec := range strings.SplitSeq(set, ",") {
		spec = strings.Trim(spec, " \t")
		if spec == "" {
			continue
		}
		if specs++; specs > RangesMax {
			return nil, fmt.Errorf("%w: more than %d ranges", ErrRangeMalformed, RangesMax)
		}
		w, err := parseSpec(spec, total)
		switch {
		case errors.Is(err, ErrRangeMalformed):
			return nil, err
		case err == nil:
			windows = append(windows, w)
		}
	}
	switch {
	case specs == 0:
		return nil, fmt.Errorf("%w: %.100q", ErrRangeMalformed, header)
	case len(windows) == 0:
		return nil, fmt.Errorf("%w: %.100q of %d bytes", ErrRangeUnsatisfiable, header, total)
	}
	return windows, nil
}

// parseSpec reads one of "a-b", "a-" and "-n".
func parseSpec(spec string, total int64) (Window, error) {
	first, last, ok := strings.Cut(spec, "-")
	a, aOK := parseNumber(first)
	b, bOK := parseNumber(last)
	switch {
	case !ok, !aOK, !bOK, first == "" && last == "":
		return Window{}, fmt.Errorf("%w: %.100q", ErrRangeMalformed, spec)
	case first == "": // the last b bytes
		b = min(b, total)
		if b == 0 {
			return Window{}, ErrRangeUnsatisfiable
		}
		return Window{Offset: total - b, Length: b}, nil
	case last != "" && b < a:
		return Window{}, fmt.Errorf("%w: %.100q runs backwards", ErrRangeMalformed, spec)
	case a >= total:
		return Window{}, ErrRangeUnsatisfiable
	case last == "" || b >= total:
		b = total - 1
	}
	return Window{Offset: a, Length: b - a + 1}, nil
}

// parseNumber reads digits and nothing else. A number too large for a length becomes the
// largest one: "bytes=0-99999999999999999999" asks for the whole. Empty reads as 0.
func parseNumber(s string) (int64, bool) {
	n := int64(0)
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		if n > (math.MaxInt64-9)/10 {
			n = math.MaxInt64
			continue
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}
