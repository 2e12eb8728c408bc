package source_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

type openFunc func(task.Spec, int64) (*source.Response, error)

func (f openFunc) Open(_ context.Context, s task.Spec, offset int64) (*source.Response, error) {
	return f(s, offset)
}

func TestATaskGoesToTheOriginOfItsKind(t *testing.T) {
	mine := errors.New("mine")
	m := source.Mux{task.Blob: openFunc(func(s task.Spec, offset int64) (*source.Response, error) {
		assert.EqualValues(t, 7, offset)
		assert.Equal(t, "quay.io", s.Upstream)
		return nil, mine
	})}
	_, err := m.Open(t.Context(), task.Spec{Kind: task.Blob, Upstream: "quay.io"}, 7)
	require.ErrorIs(t, err, mine)
	_, err = m.Open(t.Context(), task.Spec{Kind: task.Plain}, 0)
	require.ErrorContains(t, err, `kind "file"`)
}
