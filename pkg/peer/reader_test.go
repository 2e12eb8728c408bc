package peer_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/task"
)

// forgetfulStore loses pieces, as a store does whose disk failed.
type forgetfulStore struct {
	piece.Store
	mu   sync.Mutex
	lost map[piece.Index]bool
}

func newForgetfulStore() *forgetfulStore {
	return &forgetfulStore{Store: memstore.New(memstore.Config{}), lost: make(map[piece.Index]bool)}
}

func (s *forgetfulStore) lose(i piece.Index) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost[i] = true
}

func (s *forgetfulStore) isLost(i piece.Index) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost[i]
}

func (s *forgetfulStore) Create(id task.ID, f piece.Metadata) (piece.Replica, error) {
	r, err := s.Store.Create(id, f)
	return &forgetfulReplica{r, s}, err
}

func (s *forgetfulStore) Open(id task.ID) (piece.Replica, error) {
	r, err := s.Store.Open(id)
	return &forgetfulReplica{r, s}, err
}

type forgetfulReplica struct {
	piece.Replica
	s *forgetfulStore
}

func (r *forgetfulReplica) Has(i piece.Index) bool { return !r.s.isLost(i) && r.Replica.Has(i) }

func (r *forgetfulReplica) Have() piece.Bitmap {
	have := r.Replica.Have()
	for i := range piece.Index(have.Len()) {
		if r.s.isLost(i) {
			have.Clear(i)
		}
	}
	return have
}

func (r *forgetfulReplica) Digest(i piece.Index) (piece.Digest, bool) {
	if r.s.isLost(i) {
		return piece.Digest{}, false
	}
	return r.Replica.Digest(i)
}

func (r *forgetfulReplica) WritePiece(i piece.Index, data []byte, d piece.Digest) error {
	r.s.mu.Lock()
	delete(r.s.lost, i)
	r.s.mu.Unlock()
	return r.Replica.WritePiece(i, data, d)
}

func (r *forgetfulReplica) check(off, n int64) error {
	first, end := r.Metadata().Layout().Span(off, n)
	for i := first; i < end; i++ {
		if r.s.isLost(i) {
			return fmt.Errorf("piece %d: %w", i, piece.ErrMissing)
		}
	}
	return nil
}

func (r *forgetfulReplica) ReadAt(p []byte, off int64) (int, error) {
	if err := r.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	return r.Replica.ReadAt(p, off)
}

func (r *forgetfulReplica) CopyTo(w io.Writer, off, n int64) (int64, error) {
	if err := r.check(off, n); err != nil {
		return 0, err
	}
	return r.Replica.CopyTo(w, off, n)
}

func TestAPieceThatTheStoreLostComesAgain(t *testing.T) {
	for name, way := range map[string]func(r *peer.Reader) ([]byte, error){
		"by Read": func(r *peer.Reader) ([]byte, error) { return io.ReadAll(struct{ io.Reader }{r}) },
		"by WriteTo": func(r *peer.Reader) ([]byte, error) {
			var b bytes.Buffer
			_, err := r.WriteTo(&b)
			return b.Bytes(), err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, randomBytes(50, 6*piece.SizeMin))
				s.seed()
				store := newForgetfulStore()
				a := s.node(store)
				_, err := s.readAll(a)
				require.NoError(t, err)
				for _, wait := range []time.Duration{0, 10 * time.Minute} { // in memory, and a new download
					time.Sleep(wait)
					c, err := a.engine.Open(t.Context(), s.spec())
					require.NoError(t, err)
					r := c.NewReader(t.Context(), 0, c.Metadata().Length)
					_, err = io.ReadFull(r, make([]byte, 10))
					require.NoError(t, err)
					store.lose(3)
					data, err := way(r)
					require.NoError(t, err)
					require.True(t, bytes.Equal(s.origin.content[10:], data))
					r.Close()
					c.Close()
				}
				synctest.Wait() // the loop counts a piece a moment after its reader has it
				st := a.engine.Stats()
				assert.EqualValues(t, 8*piece.SizeMin, st.Seeds+st.Peers)
			})
		})
	}
}

func TestASeedThatLostAPieceFetchesItAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(51, 6*piece.SizeMin))
		store := newForgetfulStore()
		seed := s.node(store)
		s.setSeed(seed)
		seed.engine.Seed(s.spec())
		time.Sleep(time.Second)
		store.lose(3)
		data, err := s.readAll(s.node(nil))
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.origin.content, data))
		assert.Equal(t, []int64{0, 3 * piece.SizeMin}, s.origin.requests())
	})
}

func TestAReaderOfAFailedDownloadIsToldItsReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(52, 64*piece.SizeMin))
		s.seed()
		a := s.node(nil)
		c, err := a.engine.Open(t.Context(), s.spec())
		require.NoError(t, err)
		defer c.Close()
		errs := make(chan error, 4)
		for range cap(errs) {
			r := c.NewReader(t.Context(), 0, c.Metadata().Length)
			go func() {
				buf := make([]byte, 1000)
				for {
					if _, err := r.Read(buf); err != nil {
						errs <- err
						return
					}
					time.Sleep(time.Millisecond)
				}
			}()
		}
		time.Sleep(100 * time.Millisecond)
		a.cancel()
		for range cap(errs) {
			require.ErrorIs(t, <-errs, peer.ErrStopped)
		}
	})
}

// The cost of a read does not grow with the length of the task.
func TestReadsOfACachedTaskCostTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(53, 40*piece.SizeMin))
		counted := &countingStore{Store: memstore.New(memstore.Config{})}
		a := s.node(counted)
		_, err := s.readAll(a)
		require.NoError(t, err)
		c, err := a.engine.Open(context.Background(), s.spec())
		require.NoError(t, err)
		defer c.Close()
		r := c.NewReader(t.Context(), 0, c.Metadata().Length)
		defer r.Close()
		synctest.Wait()
		counted.asked.Store(0)
		_, err = io.ReadFull(r, make([]byte, 1000))
		require.NoError(t, err)
		synctest.Wait()
		assert.Less(t, counted.asked.Load(), int64(8))
	})
}

// countingStore counts the requests for a piece.
type countingStore struct {
	piece.Store
	asked atomic.Int64
}

type countingReplica struct {
	piece.Replica
	s *countingStore
}

func (s *countingStore) Create(id task.ID, f piece.Metadata) (piece.Replica, error) {
	r, err := s.Store.Create(id, f)
	return &countingReplica{r, s}, err
}

func (s *countingStore) Open(id task.ID) (piece.Replica, error) {
	r, err := s.Store.Open(id)
	return &countingReplica{r, s}, err
}

func (r *countingReplica) Has(i piece.Index) bool {
	r.s.asked.Add(1)
	return r.Replica.Has(i)
}
