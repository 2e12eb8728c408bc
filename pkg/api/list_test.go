package api

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A list is bounded before its elements are decoded.
func TestUnmarshalList(t *testing.T) {
	got, err := UnmarshalList[Entry]([]byte(`[{"have":1,"tomorrow":{}},null]`), 2, 100)
	require.NoError(t, err)
	assert.Equal(t, []Entry{{Have: 1}, {}}, got)

	got, err = UnmarshalList[Entry]([]byte(`null`), 2, 100)
	require.NoError(t, err)
	assert.Empty(t, got)

	for text, reason := range map[string]string{
		``:                                   "EOF",
		`7`:                                  "7 is no list",
		`{}`:                                 "{ is no list",
		`[1]`:                                "element 0",
		`[{},{},{}]`:                         "more than 2 elements",
		`[{"x":"` + strings.Repeat("x", 100): "EOF",
		`[{"x":"` + strings.Repeat("x", 100) + `"}]`: "element 0 has 108 bytes",
	} {
		_, err := UnmarshalList[Entry]([]byte(text), 2, 100)
		assert.ErrorContains(t, err, reason, text)
	}
}
