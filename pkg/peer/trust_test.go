package peer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/task"
)

// flipped returns content with one wrong bit in piece i.
func flipped(content []byte, i int) []byte {
	wrong := bytes.Clone(content)
	wrong[i*piece.SizeMin+5] ^= 1
	return wrong
}

// firstWrong makes the origin's first body send n pieces of wrong and then hang; later requests get right bytes.
func (s *swarm) firstWrong(wrong []byte, n int) {
	s.origin.body = func(request int, _ int64, r io.Reader) io.Reader {
		if request > 0 {
			return r
		}
		return io.MultiReader(bytes.NewReader(wrong[:n*piece.SizeMin]), readerFunc(func([]byte) (int, error) {
			time.Sleep(time.Hour)
			return 0, io.EOF
		}))
	}
}

// kill ends a node as a crash would: without a message to other hosts.
func (n *node) kill(t *testing.T) {
	n.dead.Store(true)
	n.cancel()
	require.NoError(t, <-n.done)
}

func (s *swarm) setSeed(n *node) {
	s.owner.mu.Lock()
	s.owner.seed = n
	s.owner.mu.Unlock()
}

func TestWrongPiecesOfAnEarlierSeedAreRevokedToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(30, 4*piece.SizeMin))
		spec := s.spec()
		s.firstWrong(flipped(s.origin.content, 1), 3)
		seed := s.seed()
		a, b := s.node(nil), s.node(nil)
		type result struct {
			data []byte
			err  error
		}
		results := make(chan result, 2)
		for _, n := range []*node{a, b} {
			go func() {
				data, err := s.read(t.Context(), n, spec, 0, int64(len(s.origin.content)))
				results <- result{data, err}
			}()
		}
		time.Sleep(2 * time.Second)
		for _, n := range []*node{a, b} {
			require.Equal(t, 3, n.store.Inventory()[0].Have)
		}
		// The next seed fetches the last piece only, and then finds the whole wrong.
		s.setSeed(a)
		seed.kill(t)
		for range 2 {
			r := <-results
			require.ErrorIs(t, r.err, peer.ErrRevoked)
			require.Less(t, len(r.data), len(s.origin.content))
		}
		time.Sleep(time.Second)
		for _, n := range []*node{b, a} {
			data, err := s.read(t.Context(), n, spec, 0, int64(len(s.origin.content)))
			require.NoError(t, err)
			require.True(t, bytes.Equal(s.origin.content, data))
		}
	})
}

// This node never completes the revoked task.
func TestANodeThatMissedARevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(31, 4*piece.SizeMin))
		spec := s.spec()
		s.firstWrong(flipped(s.origin.content, 1), 3)
		seed := s.seed()
		store := memstore.New(memstore.Config{})
		a := s.node(store)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := s.read(ctx, a, spec, 0, int64(len(s.origin.content)))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 3, store.Inventory()[0].Have)
		require.NoError(t, a.stop())
		seed.kill(t)

		s.seed()
		_, err = s.readAll(s.node(nil))
		require.NoError(t, err, "the next seed brings what is right")
		b := s.node(store) // the node is back with its wrong pieces
		data, err := s.readAll(b)
		if err == nil {
			require.True(t, bytes.Equal(s.origin.content, data), "a wrong body was completed")
		} else {
			require.ErrorIs(t, err, peer.ErrRevoked)
		}
		time.Sleep(time.Second)
		data, err = s.readAll(b)
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.origin.content, data))
	})
}

func TestAnEmptyBodyIsNotTheObject(t *testing.T) {
	for name, seeded := range map[string]bool{"through a seed": true, "alone": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, randomBytes(32, piece.SizeMin))
				spec := s.spec()
				s.origin.content = nil
				if seeded {
					s.seed()
				}
				a := s.node(nil)
				for range 2 {
					_, err := s.read(t.Context(), a, spec, 0, piece.SizeMin)
					require.Error(t, err)
					time.Sleep(5 * time.Second)
				}
				var f *api.Failure
				_, err := s.read(t.Context(), a, spec, 0, piece.SizeMin)
				require.ErrorAs(t, err, &f)
				assert.Equal(t, http.StatusBadGateway, f.Status)
			})
		})
	}
}

func TestAWrongLengthBeginsTheTaskAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		right := randomBytes(33, 6*piece.SizeMin+1)
		s := newSwarm(t, right)
		spec := s.spec()
		// The first answer gives a length of five pieces, and breaks off.
		s.origin.content = right[:5*piece.SizeMin]
		s.origin.body = func(request int, _ int64, r io.Reader) io.Reader {
			if request > 0 {
				return r
			}
			return io.MultiReader(io.LimitReader(r, 2*piece.SizeMin), readerFunc(func([]byte) (int, error) {
				s.origin.content = right
				return 0, errors.New("cut")
			}))
		}
		s.seed()
		a := s.node(nil)
		_, err := s.read(t.Context(), a, spec, 0, int64(len(right)))
		require.ErrorIs(t, err, peer.ErrRevoked)
		time.Sleep(5 * time.Second)
		data, err := s.read(t.Context(), a, spec, 0, int64(len(right)))
		require.NoError(t, err)
		require.True(t, bytes.Equal(right, data))
	})
}

// panicking is a verifier that panics on some runs.
type panicking struct {
	peer.Verifier
	left atomic.Int32
}

func (p *panicking) VerifyRun(id task.ID, r piece.DigestRun) error {
	if p.left.Add(-1) >= 0 {
		panic("a fault")
	}
	return p.Verifier.VerifyRun(id, r)
}

func TestAPanicAtAPeersWordsEndsItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(33, 4*piece.SizeMin))
		s.seed()
		faulty := &panicking{Verifier: s.keys}
		faulty.left.Store(2)
		s.adjust = func(cfg *peer.Config) { cfg.Verifier = faulty }
		data, err := s.read(t.Context(), s.node(nil), s.spec(), 0, int64(len(s.origin.content)))
		require.NoError(t, err, "what the peers say on later connections is taken")
		require.True(t, bytes.Equal(s.origin.content, data))
		require.Negative(t, faulty.left.Load())
	})
}
