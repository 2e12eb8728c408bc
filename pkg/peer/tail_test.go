package peer

import (
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
)

// FillTails takes all memory that a host has for last pieces.
func (e *Engine) FillTails() { e.tails.Store(tailsMax) }

// A host keeps no more of a last piece than it reserved, and the newest parts.
func TestATailKeepsWhatItReserved(t *testing.T) {
	var all atomic.Int64
	var one, other tail
	one.put(0, make([]byte, 1))
	assert.Nil(t, one.get(0, 1), "nothing is reserved")
	assert.True(t, one.reserve(&all, 100))
	assert.True(t, one.reserve(&all, 100), "once")
	for begin := range int64(3 * segmentsMax) {
		one.put(1000*begin, make([]byte, 40))
	}
	assert.Len(t, one.segments, 2)
	assert.NotNil(t, one.get(1000*(3*segmentsMax-1), 1))
	one.put(0, make([]byte, 101))
	assert.Nil(t, one.get(0, 1), "more than all")
	assert.False(t, other.reserve(&all, tailsMax))
	one.free(&all)
	assert.True(t, other.reserve(&all, tailsMax))
}
