package peer_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
)

func TestASmallCacheMakesRoomForTheNextContentAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const length = 6 * piece.SizeMin
		s := newSwarm(t, randomBytes(60, length))
		first := s.spec()
		small := s.node(memstore.New(memstore.Config{Quota: length + length/2}))
		_, err := s.readAll(small)
		require.NoError(t, err)
		// A neighbour that has a part of it keeps a connection, in case it wants more.
		other := s.node(nil)
		_, err = s.read(t.Context(), other, first, 0, 100)
		require.NoError(t, err)
		synctest.Wait()
		require.Positive(t, small.engine.Stats().Links)

		s.origin.content = randomBytes(61, length)
		began := time.Now()
		data, err := s.readAll(small)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(s.origin.content, data))
		assert.Less(t, time.Since(began), 3*time.Second)
		held := small.store.Inventory()
		require.Len(t, held, 1)
		assert.Equal(t, s.spec().ID, held[0].ID)
	})
}

func TestWhatIsBeingReadMakesNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const length = 6 * piece.SizeMin
		s := newSwarm(t, randomBytes(62, length))
		small := s.node(memstore.New(memstore.Config{Quota: length + length/2}))
		c, err := small.engine.Open(t.Context(), s.spec())
		require.NoError(t, err)
		r := c.NewReader(t.Context(), 0, length)
		_, err = io.ReadFull(r, make([]byte, 100))
		require.NoError(t, err)
		was := s.origin.content

		s.origin.content = randomBytes(63, length)
		_, err = s.readAll(small)
		var f *api.Failure
		require.ErrorAs(t, err, &f)
		assert.Equal(t, http.StatusInsufficientStorage, f.Status)
		assert.ErrorContains(t, err, "no space left in the piece store")
		rest, err := io.ReadAll(r)
		require.NoError(t, err, "and is none the worse for it")
		assert.True(t, bytes.Equal(was[100:], rest))
		require.NoError(t, r.Close())
		require.NoError(t, c.Close())
		time.Sleep(2 * time.Second) // an owner remembers a refusal so long
		_, err = s.readAll(small)
		require.NoError(t, err, "as soon as its reader is gone")
	})
}

func TestAFullDiskOfASeedIsNotTheOriginsWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(64, 6*piece.SizeMin))
		seed := s.node(memstore.New(memstore.Config{Quota: piece.SizeMin}))
		s.owner.mu.Lock()
		s.owner.seed = seed
		s.owner.mu.Unlock()
		_, err := s.readAll(s.node(nil))
		var f *api.Failure
		require.ErrorAs(t, err, &f)
		assert.Equal(t, http.StatusServiceUnavailable, f.Status, "another host may have room")
		assert.Contains(t, f.Message, "host node-0 (")
		assert.Contains(t, f.Message, "cannot keep it")
		assert.Equal(t, http.StatusServiceUnavailable, (<-seed.failed).Status)
		time.Sleep(5 * time.Second)

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err = s.read(ctx, seed, s.spec(), 0, 1)
		require.ErrorAs(t, err, &f)
		assert.Equal(t, http.StatusInsufficientStorage, f.Status, "its own readers are told that it is its own disk")
	})
}
