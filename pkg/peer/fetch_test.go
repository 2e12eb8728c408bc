package peer_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/source"
)

// stored reports whether a node's store holds the whole of the swarm's object.
func (s *swarm) stored(n *node) bool {
	r, err := n.store.Open(s.spec().ID)
	if err != nil {
		return false
	}
	defer r.Close()
	return r.Have().Full()
}

func TestFetchStoresTheWholeEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(71, 20*piece.SizeMin+9))
		seed := s.seed()
		nodes := []*node{s.node(nil), s.node(nil), s.node(nil)}
		var wg sync.WaitGroup
		for _, n := range nodes {
			wg.Go(func() {
				assert.NoError(t, n.engine.Fetch(t.Context(), s.spec()))
				assert.True(t, s.stored(n), "before it returns")
			})
		}
		wg.Wait()
		assert.EqualValues(t, len(s.origin.content), s.origin.sent.Load(), "the registry sends one copy")
		for _, n := range nodes {
			assert.Zero(t, n.engine.Stats().Origin)
			assert.Zero(t, n.seedDone.Load(), "a node is no seed because it fetches")
			require.NoError(t, n.engine.Fetch(t.Context(), s.spec()), "what is there is there at once")
		}
		assert.True(t, s.stored(seed))
		require.NoError(t, seed.engine.Fetch(t.Context(), s.spec()))
		time.Sleep(3 * time.Minute)
		for _, n := range nodes {
			assert.Empty(t, n.engine.Tasks(), "nothing wants it any more")
		}
		data, err := s.readAll(nodes[0])
		require.NoError(t, err)
		assert.True(t, bytes.Equal(s.origin.content, data))
		assert.EqualValues(t, len(s.origin.content), s.origin.sent.Load())
	})
}

func TestFetchEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(72, 8*piece.SizeMin))
		s.origin.hang = 2 * piece.SizeMin
		n := s.node(nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, n.engine.Fetch(ctx, s.spec()), context.DeadlineExceeded)
		time.Sleep(time.Minute)
		assert.Zero(t, s.origin.open.Load(), "the request to the origin ends, too")
		assert.Empty(t, n.engine.Tasks())
	})
}

func TestFetchSaysWhyItFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(73, passingLength))
		s.seed()
		full := s.node(small())
		err := full.engine.Fetch(t.Context(), s.spec())
		var f *api.Failure
		require.ErrorAs(t, err, &f)
		assert.True(t, f.Full, "an object that the store cannot keep is not fetched past it: %v", err)
		data, err := s.readAll(full)
		require.NoError(t, err, "a reader still gets it past the store")
		assert.True(t, bytes.Equal(s.origin.content, data))
	})
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(74, piece.SizeMin))
		s.origin.fail = func(int, int64) error { return &source.StatusError{Status: http.StatusNotFound} }
		s.seed()
		n := s.node(nil)
		var f *api.Failure
		require.ErrorAs(t, n.engine.Fetch(t.Context(), s.spec()), &f)
		assert.Equal(t, http.StatusNotFound, f.Status)
	})
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(75, piece.SizeMin))
		n := s.prepare(nil)
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		cancel(gone)
		require.ErrorIs(t, n.engine.Fetch(ctx, s.spec()), gone, "before Run")
		s.run(n)
	})
}

// TestAReaderIsNotCutByAFetch: an object passes by a full store for a reader while a preheat wants to keep it.
func TestAReaderIsNotCutByAFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(76, passingLength))
		s.seed()
		n := s.node(small())
		c, err := n.engine.Open(t.Context(), s.spec())
		require.NoError(t, err)
		defer c.Close()
		r := c.NewReader(t.Context(), 0, passingLength)
		defer r.Close()
		var got bytes.Buffer
		half := make([]byte, passingLength/2)
		_, err = r.Read(half[:1])
		require.NoError(t, err)
		got.WriteByte(half[0])
		require.Error(t, n.engine.Fetch(t.Context(), s.spec()))
		_, err = r.WriteTo(&got)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(s.origin.content, got.Bytes()))
	})
}
