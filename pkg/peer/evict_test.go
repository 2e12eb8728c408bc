package peer_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/task"
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
		require.Positive(t, small.engine.Stats().Conns)

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

// A client that has its last byte may request the next object before its reader is closed.
func TestAReaderThatIsAboutToCloseIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const length = 6 * piece.SizeMin
		s := newSwarm(t, randomBytes(66, length))
		small := s.node(memstore.New(memstore.Config{Quota: length + length/2}))
		c, err := small.engine.Open(t.Context(), s.spec())
		require.NoError(t, err)
		r := c.NewReader(t.Context(), 0, length)
		_, err = io.ReadAll(r)
		require.NoError(t, err)
		go func() {
			time.Sleep(100 * time.Millisecond)
			assert.NoError(t, r.Close())
			assert.NoError(t, c.Close())
		}()
		s.origin.content = randomBytes(67, length)
		data, err := s.readAll(small)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(s.origin.content, data))
	})
}

// fullStore is a store whose disk is full from the n-th piece on, until it is mended.
type fullStore struct {
	piece.Store
	left atomic.Int64
}

func (s *fullStore) Create(id task.ID, f piece.Metadata) (piece.Replica, error) {
	r, err := s.Store.Create(id, f)
	return fullReplica{r, s}, err
}

type fullReplica struct {
	piece.Replica
	s *fullStore
}

func (r fullReplica) WritePiece(i piece.Index, data []byte, d piece.Digest) error {
	if r.s.left.Add(-1) < 0 {
		return fmt.Errorf("writing piece %d: %w", i, piece.ErrNoSpace)
	}
	return r.Replica.WritePiece(i, data, d)
}

// The next pull continues with the pieces that the first one stored.
func TestADiskThatFillsEndsThePull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(65, 6*piece.SizeMin))
		store := &fullStore{Store: memstore.New(memstore.Config{})}
		store.left.Store(3)
		n := s.node(store)
		data, err := s.readAll(n)
		var f *api.Failure
		require.ErrorAs(t, err, &f)
		assert.Equal(t, http.StatusInsufficientStorage, f.Status)
		assert.ErrorContains(t, err, "no space left")
		assert.True(t, bytes.Equal(s.origin.content[:len(data)], data), "what was given is right")
		time.Sleep(3 * time.Second)
		store.left.Store(1 << 40)
		data, err = s.readAll(n)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(s.origin.content, data))
		assert.Equal(t, []int64{0, 3 * piece.SizeMin}, s.origin.requests(), "what is here is not asked for again")
	})
}

func TestAFullDiskOfASeedIsNotTheOriginsWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(64, 6*piece.SizeMin))
		seed := s.node(memstore.New(memstore.Config{Quota: piece.SizeMin}))
		s.owner.mu.Lock()
		s.owner.seed = seed
		s.owner.mu.Unlock()
		n := s.node(nil)
		data, err := s.readAll(n)
		require.NoError(t, err, "another host has room")
		assert.True(t, bytes.Equal(s.origin.content, data))
		f := <-seed.failed
		assert.Equal(t, http.StatusServiceUnavailable, f.Status)
		assert.Contains(t, f.Message, "host node-0 (")
		assert.Contains(t, f.Message, "cannot keep it")
		require.NoError(t, n.stop())
		s.owner.mu.Lock()
		s.owner.seed, s.owner.unable = seed, false
		s.owner.mu.Unlock()
		time.Sleep(5 * time.Second)

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err = s.read(ctx, seed, s.spec(), 0, 1)
		require.ErrorAs(t, err, &f)
		assert.Equal(t, http.StatusInsufficientStorage, f.Status, "its own readers learn that its own disk failed")
	})
}
