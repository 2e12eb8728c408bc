package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAReserveGivesBackWhatOthersTake(t *testing.T) {
	const size = 8 << 20
	r, err := newReserve(size)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(r.memory), size+reserveAhead)
	given := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.given
	}
	assert.GreaterOrEqual(t, given(), reserveAhead, "some is there before it is needed")
	r.mu.Lock()
	r.level += 1 << 40 // as if another process used all memory
	r.mu.Unlock()
	require.Eventually(t, func() bool { return given() == len(r.memory) }, time.Minute, reserveEvery)
	require.NoError(t, r.close())
}
