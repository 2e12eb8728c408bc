package node

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRenamesAreBounded(t *testing.T) {
	cfg := settings(t)
	used := errors.New("in use")
	for range renamesMax {
		n := build(t, cfg)
		was := n.Host.ID
		n.Taken(used)
		n.Taken(used) // of each owner that it announces to
		err := n.Run(t.Context(), nil, nil)
		require.ErrorIs(t, err, ErrRenamed)
		require.ErrorIs(t, err, used)
		again := build(t, cfg)
		assert.NotEqual(t, was, again.Host.ID)
		require.NoError(t, again.Close())
	}
	n := build(t, cfg)
	n.Taken(used)
	assert.NoError(t, n.taken.context().Err(), "an owner that says so of every ID is not believed")
	require.NoError(t, n.Close())
}
