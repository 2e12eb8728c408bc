package oci

import (
	"errors"
	"fmt"
	"math"
	"strings"
)

// The reasons to refuse a Range header; the response to either is 416 (RFC 9110 §15.5.17).
var (
	// ErrRangeMalformed reports that a text is no byte range, or that the range runs backwards.
	ErrRangeMalformed = errors.New("malformed byte range")
	// ErrRangeUnsatisfiable reports that the range has no byte of the blob.
	ErrRangeUnsatisfiable = errors.New("byte range beyond the end of the blob")
)

// RangesMax bounds the ranges of one header.
const RangesMax = 2048

// Window is a part of a blob, in bytes; Length is at least 1.
type Window struct {
	Offset, Length int64
}

// ContentRange formats the header of a 206 (RFC 9110 §14.4).
func (w Window) ContentRange(total int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", w.Offset, w.Offset+w.Length-1, total)
}

// UnsatisfiedRange formats the Content-Range header of a 416.
func UnsatisfiedRange(total int64) string { return fmt.Sprintf("bytes */%d", total) }

// ParseRange returns the windows of a blob of total bytes that a Range header asks for, in the header's
// order and cut to the blob (RFC 9110 §14.1.2). It returns none if the header asks for the whole: there
// is no header, its unit is not bytes, or the blob is empty, for which clients that always send
// "bytes=0-" would otherwise get an error. The error wraps [ErrRangeMalformed] or
// [ErrRangeUnsatisfiable].
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

// parseNumber reads digits and nothing else. A number above the largest length becomes that length:
// "bytes=0-99999999999999999999" asks for the whole. An empty text is 0.
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
