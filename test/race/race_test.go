package race

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestSomeCasesAreLeft(t *testing.T) {
	all := map[string]int{"a": 1, "b": 2}
	if Enabled {
		assert.Equal(t, map[string]int{"b": 2}, Some(all, "b"))
	} else {
		assert.Equal(t, all, Some(all, "b"))
	}
	assert.Panics(t, func() { Some(all, "c") })
}
