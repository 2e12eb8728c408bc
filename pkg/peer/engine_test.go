package peer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

const mib = 1 << 20

func TestEveryNodeGetsTheContentAndTheOriginGivesItOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(1, 5*mib+12345))
		s.seed()
		const n = 8
		nodes := make([]*node, n)
		for i := range nodes {
			nodes[i] = s.node(nil)
		}
		type result struct {
			data []byte
			err  error
		}
		results := make(chan result, n)
		for _, node := range nodes {
			go func() {
				data, err := s.readAll(node)
				results <- result{data, err}
			}()
		}
		for range n {
			r := <-results
			require.NoError(t, r.err)
			require.True(t, bytes.Equal(s.origin.content, r.data), "bytes differ")
		}
		assert.Equal(t, []int64{0}, s.origin.requests(), "one streaming GET")
		assert.EqualValues(t, len(s.origin.content), s.origin.sent.Load())
		var fromPeers int64
		for _, node := range nodes {
			synctest.Wait() // the loop counts a piece a moment after its reader has it
			st := node.engine.Stats()
			assert.Zero(t, st.BadPieces)
			assert.Zero(t, st.Origin)
			assert.EqualValues(t, len(s.origin.content), st.Peers+st.Seeds)
			fromPeers += st.Peers
		}
		assert.Greater(t, fromPeers, int64(n-4)*int64(len(s.origin.content)), "most bytes come from peers")
	})
}

func TestReadersStreamWhileTheOriginIsStillSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(2, 10*piece.SizeMin))
		gate := make(chan struct{})
		s.origin.body = func(_ int, _ int64, r io.Reader) io.Reader {
			return io.MultiReader(io.LimitReader(r, 5*piece.SizeMin), readerFunc(func(p []byte) (int, error) {
				<-gate
				return r.Read(p)
			}))
		}
		s.seed()
		a := s.node(nil)
		c, err := a.engine.Open(t.Context(), s.spec())
		require.NoError(t, err)
		defer c.Close()
		r := c.NewReader(t.Context(), 0, c.Metadata().Length)
		defer r.Close()
		half := make([]byte, 5*piece.SizeMin)
		_, err = io.ReadFull(r, half)
		require.NoError(t, err, "half of the content reaches the reader while the origin hangs")
		require.True(t, bytes.Equal(s.origin.content[:len(half)], half))
		close(gate)
		rest, err := io.ReadAll(r)
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.origin.content[len(half):], rest))
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestASingleNodeIsAPullThroughCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(3, mib+1))
		a := s.node(nil)
		for range 3 {
			data, err := s.readAll(a)
			require.NoError(t, err)
			require.True(t, bytes.Equal(s.origin.content, data))
			time.Sleep(time.Minute)
		}
		assert.Equal(t, []int64{0}, s.origin.requests())
		synctest.Wait() // the loop counts a piece a moment after its reader has it
		st := a.engine.Stats()
		assert.EqualValues(t, len(s.origin.content), st.Origin,
			"all is counted, also what is stored before the loop hears of it")
		assert.Zero(t, st.Duplicate)
	})
}

func TestTheOriginsRefusalIsToldInItsOwnWords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(4, 1000))
		refusal := &source.StatusError{Method: "GET", URL: "https://registry.test/v2/x",
			Status: http.StatusUnauthorized,
			Body:   []byte(`{"errors":[]}`), Header: http.Header{"Www-Authenticate": {"Bearer realm=\"x\""}}}
		s.origin.fail = func(int, int64) error { return refusal }
		seed := s.seed()
		a, b := s.node(nil), s.node(nil)
		for _, n := range []*node{a, b, seed} {
			_, err := s.readAll(n)
			var f *api.Failure
			require.ErrorAs(t, err, &f)
			assert.Equal(t, http.StatusUnauthorized, f.Status)
			assert.Equal(t, `{"errors":[]}`, string(f.Body))
			assert.Equal(t, "Bearer realm=\"x\"", f.Header["Www-Authenticate"])
		}
		assert.Equal(t, http.StatusUnauthorized, (<-seed.failed).Status)
		time.Sleep(3 * time.Second)
		s.origin.fail = nil
		data, err := s.readAll(a)
		require.NoError(t, err, "a second try succeeds once the origin does")
		require.True(t, bytes.Equal(s.origin.content, data))
	})
}

// The download resumes a broken body by a range request and receives no byte twice.
func TestABrokenBodyResumesByRange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(5, 9*piece.SizeMin+77))
		s.origin.body = func(n int, _ int64, r io.Reader) io.Reader {
			if n < 2 {
				return io.MultiReader(io.LimitReader(r, 3*piece.SizeMin), readerFunc(func([]byte) (int, error) {
					return 0, io.ErrUnexpectedEOF
				}))
			}
			return r
		}
		s.seed()
		a := s.node(nil)
		data, err := s.readAll(a)
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.origin.content, data))
		assert.Equal(t, []int64{0, 3 * piece.SizeMin, 6 * piece.SizeMin}, s.origin.requests())
		assert.EqualValues(t, len(s.origin.content), s.origin.sent.Load())
	})
}

func TestAnOriginThatStaysDownEndsInAClearError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(6, mib))
		s.origin.fail = func(int, int64) error { return errors.New("dial tcp: connection refused") }
		s.seed()
		begun := time.Now()
		_, err := s.readAll(s.node(nil))
		var f *api.Failure
		require.ErrorAs(t, err, &f)
		assert.Equal(t, http.StatusBadGateway, f.Status)
		assert.Contains(t, f.Message, "connection refused")
		assert.Less(t, time.Since(begun), 5*time.Second)
	})
}

// No host completes a task whose bytes have another digest, and every host revokes it.
func TestAWrongDigestIsRevokedEverywhere(t *testing.T) {
	for name, heals := range map[string]bool{"the origin heals": true, "the origin stays wrong": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, randomBytes(7, 4*piece.SizeMin))
				spec := s.spec()
				right := s.origin.content
				wrong := append([]byte(nil), right...)
				wrong[piece.SizeMin+5] ^= 1
				s.origin.body = func(n int, offset int64, r io.Reader) io.Reader {
					if n > 0 && heals {
						return r
					}
					return slowly(bytes.NewReader(wrong[offset:]))
				}
				seed := s.seed()
				a, b := s.node(nil), s.node(nil)
				errs := make(chan error, 2)
				for _, n := range []*node{a, b} {
					go func() {
						data, err := s.read(t.Context(), n, spec, 0, int64(len(right)))
						if len(data) == len(right) {
							err = errors.New("a wrong body was completed")
						}
						errs <- err
					}()
				}
				for range 2 {
					require.ErrorIs(t, <-errs, peer.ErrRevoked)
				}
				time.Sleep(time.Second)
				if heals {
					data, err := s.read(t.Context(), a, spec, 0, int64(len(right)))
					require.NoError(t, err, "the origin is asked again")
					require.True(t, bytes.Equal(right, data))
					return
				}
				_, err := s.read(t.Context(), a, spec, 0, int64(len(right)))
				require.Error(t, err)
				for _, n := range []*node{seed, a, b} {
					for _, e := range n.store.Inventory() {
						assert.False(t, e.Complete)
					}
				}
			})
		})
	}
}

// The download bans the peer and stores no wrong byte.
func TestAPeerThatSendsWrongBytesIsBanned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(8, 24*piece.SizeMin))
		s.seed()
		liar := s.node(&lyingStore{Store: memstore.New(memstore.Config{})})
		_, err := s.readAll(liar)
		require.NoError(t, err)
		a := s.node(nil)
		// The owner names only the liar until it learns that the liar sends wrong bytes.
		s.owner.mu.Lock()
		s.owner.answer = func(from *node, e api.Entry, answer *api.Assignment) error {
			if from == a && !slices.Contains(e.Silent, liar.host.ID) {
				answer.Neighbours = []api.Neighbour{{Host: liar.host}}
			}
			return nil
		}
		s.owner.mu.Unlock()
		data, err := s.readAll(a)
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.origin.content, data))
		// After two wrong pieces the download closes the connection; a third piece may have been on its way.
		synctest.Wait() // the loop counts a piece a moment after its reader has it
		assert.GreaterOrEqual(t, a.engine.Stats().BadPieces, int64(2))
		synctest.Wait() // the loop counts a piece a moment after its reader has it
		assert.LessOrEqual(t, a.engine.Stats().BadPieces, int64(3))
	})
}

// The only holder of a task has one wrong piece. The download takes that piece from another host.
func TestAWrongPieceComesFromAnotherHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(9, 24*piece.SizeMin))
		s.seed()
		liar := s.node(&lyingStore{Store: memstore.New(memstore.Config{}), only: 7 * piece.SizeMin})
		_, err := s.readAll(liar)
		require.NoError(t, err)
		a := s.node(nil)
		// The owner takes the liar for a good holder until it learns of the wrong piece.
		s.owner.mu.Lock()
		s.owner.answer = func(from *node, e api.Entry, answer *api.Assignment) error {
			if from == a && !slices.Contains(e.Silent, liar.host.ID) {
				answer.Neighbours = []api.Neighbour{{Host: liar.host}}
			}
			return nil
		}
		s.owner.mu.Unlock()
		began := time.Now()
		data, err := s.readAll(a)
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.origin.content, data))
		assert.Less(t, time.Since(began), 5*time.Second)
		synctest.Wait() // the loop counts a piece a moment after its reader has it
		assert.EqualValues(t, 2, a.engine.Stats().BadPieces)
	})
}

// A seed that finds damage on its disk downloads the task again. It takes what the neighbours have from them. It makes
// a further request only behind more than 256 KiB of such pieces, so the number of requests depends on their order.
func TestASeedRepairsItsDamagedDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(10, 24*piece.SizeMin))
		store := &rottingStore{Store: memstore.New(memstore.Config{})}
		seed := s.node(store)
		s.setSeed(seed)
		_, err := s.readAll(seed)
		require.NoError(t, err)
		require.Len(t, s.origin.requests(), 1)
		store.rotten.Store(true)

		a, b := s.node(nil), s.node(nil)
		for _, n := range []*node{a, b, seed} {
			began := time.Now()
			data, err := s.readAll(n)
			require.NoError(t, err)
			require.True(t, bytes.Equal(s.origin.content, data))
			assert.Less(t, time.Since(began), 10*time.Second)
		}
		saved := 2*int64(len(s.origin.content)) - s.origin.sent.Load()
		further := len(s.origin.requests()) - 2
		assert.GreaterOrEqual(t, saved, int64(max(further, 0)*(256<<10)), "%d further requests", further)
	})
}

// rottingStore has one wrong byte on its disk once it is rotten, until the task is removed.
type rottingStore struct {
	piece.Store
	rotten atomic.Bool
}

type rottingReplica struct {
	piece.Replica
	s *rottingStore
}

func (s *rottingStore) Create(id task.ID, f piece.Metadata) (piece.Replica, error) {
	r, err := s.Store.Create(id, f)
	return &rottingReplica{r, s}, err
}

func (s *rottingStore) Open(id task.ID) (piece.Replica, error) {
	r, err := s.Store.Open(id)
	return &rottingReplica{r, s}, err
}

func (s *rottingStore) Remove(id task.ID) error {
	s.rotten.Store(false)
	return s.Store.Remove(id)
}

func (r *rottingReplica) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.Replica.ReadAt(p, off)
	if at := 7*piece.SizeMin + 11 - off; r.s.rotten.Load() && at >= 0 && at < int64(n) {
		p[at] ^= 1
	}
	return n, err
}

func (r *rottingReplica) CopyTo(w io.Writer, off, n int64) (int64, error) {
	return io.Copy(w, io.NewSectionReader(r, off, n))
}

// lyingStore gives other bytes to peers than it stored: everywhere, or only in the bytes sent from one offset on.
type lyingStore struct {
	piece.Store
	only int64 // offset, or 0 for everywhere
}

type lyingReplica struct {
	piece.Replica
	only int64
}

func (s *lyingStore) Create(id task.ID, f piece.Metadata) (piece.Replica, error) {
	r, err := s.Store.Create(id, f)
	if err != nil {
		return nil, err
	}
	return &lyingReplica{r, s.only}, nil
}

func (s *lyingStore) Open(id task.ID) (piece.Replica, error) {
	r, err := s.Store.Open(id)
	if err != nil {
		return nil, err
	}
	return &lyingReplica{r, s.only}, nil
}

func (r *lyingReplica) CopyTo(w io.Writer, off, n int64) (int64, error) {
	b := make([]byte, n)
	if _, err := r.ReadAt(b, off); err != nil && err != io.EOF {
		return 0, err
	}
	if r.only == 0 || r.only == off {
		b[0] ^= 0xff
	}
	m, err := w.Write(b)
	return int64(m), err
}

func TestARangeFetchesItsPiecesAndNoOthers(t *testing.T) {
	for name, c := range map[string]struct{ off, n int64 }{
		"within a piece":  {10*piece.SizeMin + 5, 1000},
		"eight pieces":    {10*piece.SizeMin + 5, 7 * piece.SizeMin},
		"the end":         {60*piece.SizeMin + 5, 4*piece.SizeMin - 5},
		"the first bytes": {0, 5},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, randomBytes(9, 64*piece.SizeMin))
				s.seed()
				a := s.node(nil)
				data, err := s.read(t.Context(), a, s.spec(), c.off, c.n)
				require.NoError(t, err)
				require.True(t, bytes.Equal(s.origin.content[c.off:][:c.n], data))
				time.Sleep(30 * time.Second)
				first, end := piece.MetadataFor(int64(len(s.origin.content)), "").Layout().Span(c.off, c.n)
				synctest.Wait() // the loop counts a piece a moment after its reader has it
				st := a.engine.Stats()
				assert.EqualValues(t, (end-first)*piece.SizeMin, st.Peers+st.Seeds)
			})
		})
	}
}

func TestANodeThatLosesItsSeedGoesOnByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(10, 20*piece.SizeMin))
		gate := make(chan struct{})
		s.origin.body = func(n int, _ int64, r io.Reader) io.Reader {
			if n > 0 {
				return r
			}
			return io.MultiReader(io.LimitReader(r, 7*piece.SizeMin), readerFunc(func(p []byte) (int, error) {
				<-gate
				return 0, errors.New("killed")
			}))
		}
		seed := s.seed()
		a, b := s.node(nil), s.node(nil)
		type result struct {
			data []byte
			err  error
		}
		results := make(chan result, 2)
		for _, n := range []*node{a, b} {
			go func() {
				data, err := s.readAll(n)
				results <- result{data, err}
			}()
		}
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		// The seed dies in the middle; the next owner orders one of the others to seed.
		s.owner.mu.Lock()
		s.owner.seed = a
		s.owner.mu.Unlock()
		seed.dead.Store(true)
		seed.cancel()
		close(gate)
		require.NoError(t, <-seed.done)
		for range 2 {
			r := <-results
			require.NoError(t, r.err)
			require.True(t, bytes.Equal(s.origin.content, r.data))
		}
		opens := s.origin.requests()
		require.Len(t, opens, 2)
		assert.EqualValues(t, 7*piece.SizeMin, opens[1], "only pieces that no live host has come from the origin again")
	})
}

func TestARestartedNodeResumesWithWhatItHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(11, 20*piece.SizeMin))
		s.seed()
		store := memstore.New(memstore.Config{})
		a := s.node(store)
		ctx, cancel := context.WithCancel(t.Context())
		c, err := a.engine.Open(ctx, s.spec())
		require.NoError(t, err)
		r := c.NewReader(ctx, 0, c.Metadata().Length)
		_, err = io.ReadFull(r, make([]byte, 5*piece.SizeMin))
		require.NoError(t, err)
		r.Close()
		c.Close()
		cancel()
		require.NoError(t, a.stop())
		had := store.Inventory()[0].Have
		require.GreaterOrEqual(t, had, 5)
		b := s.node(store)
		data, err := s.readAll(b)
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.origin.content, data))
		synctest.Wait() // the loop counts a piece a moment after its reader has it
		st := b.engine.Stats()
		assert.EqualValues(t, (20-had)*piece.SizeMin, st.Seeds+st.Peers, "nothing is fetched twice")
	})
}

func TestContentOfUnknownLengthArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(12, 3*piece.SizeMin+9))
		s.origin.noLength = true
		s.seed()
		data, err := s.readAll(s.node(nil))
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.origin.content, data))
	})
}

func TestEmptyContentArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, nil)
		s.seed()
		data, err := s.readAll(s.node(nil))
		require.NoError(t, err)
		assert.Empty(t, data)
	})
}

func TestSmallContentTravelsInsideTheOwnersAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(13, 1234))
		seed := s.seed()
		f := piece.MetadataFor(1234, "application/x")
		s.owner.answer = func(from *node, _ api.Entry, a *api.Assignment) error {
			if from == seed {
				a.Neighbours = nil // it would bring the content sooner than the answer
				return nil
			}
			a.Metadata, a.Inline = &f, s.origin.content
			return nil
		}
		a := s.node(nil)
		data, err := s.readAll(a)
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.origin.content, data))
		synctest.Wait() // the loop counts a piece a moment after its reader has it
		assert.EqualValues(t, 1234, a.engine.Stats().Inline)
	})
}

func TestOpeningGivesUpWhenItsContextDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(14, mib))
		s.origin.body = func(int, int64, io.Reader) io.Reader {
			return readerFunc(func([]byte) (int, error) { select {} })
		}
		s.origin.fail = func(int, int64) error { time.Sleep(time.Hour); return errors.New("slow") }
		a := s.node(nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.read(ctx, a, s.spec(), 0, mib)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

func TestNoSourceEndsInAClearErrorWithinSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(15, mib))
		s.owner.answer = func(*node, api.Entry, *api.Assignment) error { return errors.New("no owner answers") }
		begun := time.Now()
		_, err := s.readAll(s.node(nil))
		var f *api.Failure
		require.ErrorAs(t, err, &f)
		assert.Equal(t, http.StatusServiceUnavailable, f.Status)
		assert.Less(t, time.Since(begun), 15*time.Second)
	})
}

func TestAnUnreachableSourceIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(15, mib))
		gone := host.Host{ID: host.NewID(), Addr: "gone:65002"}
		s.owner.leader = owners.Other
		s.owner.answer = func(_ *node, _ api.Entry, a *api.Assignment) error {
			*a = api.Assignment{Neighbours: []api.Neighbour{{Host: gone}}}
			return nil
		}
		s.adjust = func(c *peer.Config) {
			c.Dial = func(context.Context, string) (net.Conn, error) {
				return nil, errors.New("x509: certificate is not yet valid (this host's clock says noon)")
			}
		}
		_, err := s.readAll(s.node(nil))
		var f *api.Failure
		require.ErrorAs(t, err, &f)
		assert.Equal(t, http.StatusServiceUnavailable, f.Status)
		assert.Contains(t, f.Message,
			"the owner knows no host that has it and answers; the last try: host "+gone.ID.Short())
		assert.Contains(t, f.Message, "gone:65002")
		assert.Contains(t, f.Message, "this host's clock says noon")
	})
}

func TestAStoppedEngineTellsItsReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(16, mib))
		s.origin.body = func(_ int, _ int64, r io.Reader) io.Reader {
			return io.MultiReader(io.LimitReader(r, piece.SizeMin),
				readerFunc(func([]byte) (int, error) { time.Sleep(time.Hour); return 0, io.EOF }))
		}
		a := s.node(nil)
		c, err := a.engine.Open(t.Context(), s.spec())
		require.NoError(t, err)
		defer c.Close()
		r := c.NewReader(t.Context(), 0, mib)
		go func() { time.Sleep(time.Second); a.cancel() }()
		_, err = io.ReadAll(r)
		require.ErrorIs(t, err, peer.ErrStopped)
	})
}

// A download ends within seconds if neither its owner nor its neighbours can help.
func TestADownloadWithoutSourcesEndsSoon(t *testing.T) {
	for name, prepare := range map[string]func(s *swarm, a *node){
		"the owner dies while peers that lack the same pieces are there": func(s *swarm, _ *node) {
			s.owner.answer = func(*node, api.Entry, *api.Assignment) error { return errors.New("no owner answers") }
		},
		"the owner names only hosts that are gone": func(s *swarm, a *node) {
			s.owner.answer = func(from *node, _ api.Entry, answer *api.Assignment) error {
				answer.Seed = false
				answer.Neighbours = nil
				for i := range 100 {
					id := host.NewID()
					answer.Neighbours = append(answer.Neighbours,
						api.Neighbour{Host: host.Host{ID: id, Addr: fmt.Sprintf("gone-%d:1", i)}})
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, randomBytes(20, 20*piece.SizeMin))
				s.origin.body = func(_ int, _ int64, r io.Reader) io.Reader {
					return io.MultiReader(io.LimitReader(r, 7*piece.SizeMin), readerFunc(func([]byte) (int, error) {
						time.Sleep(time.Hour)
						return 0, io.EOF
					}))
				}
				seed := s.seed()
				a, b := s.node(nil), s.node(nil)
				errs := make(chan error, 2)
				for _, n := range []*node{a, b} {
					go func() {
						_, err := s.readAll(n)
						errs <- err
					}()
				}
				time.Sleep(5 * time.Second)
				s.owner.mu.Lock()
				prepare(s, a)
				s.owner.mu.Unlock()
				if name == "the owner names only hosts that are gone" {
					b.dead.Store(true)
					b.cancel()
					<-b.done
					<-errs
				}
				seed.dead.Store(true)
				seed.cancel()
				require.NoError(t, <-seed.done)
				died := time.Now()
				var f *api.Failure
				require.ErrorAs(t, <-errs, &f)
				assert.Equal(t, http.StatusServiceUnavailable, f.Status)
				assert.Less(t, time.Since(died), 12*time.Second)
			})
		})
	}
}

func TestASlowOriginIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(21, 20*piece.SizeMin))
		s.origin.body = func(_ int, _ int64, r io.Reader) io.Reader {
			slow := sync.OnceFunc(func() { time.Sleep(2 * time.Minute) })
			return io.MultiReader(io.LimitReader(r, 7*piece.SizeMin), readerFunc(func(p []byte) (int, error) {
				slow()
				return r.Read(p)
			}))
		}
		// The owner names the seed to the first of three hosts only.
		seed := s.seed()
		a, b, c := s.node(nil), s.node(nil), s.node(nil)
		s.owner.answer = func(from *node, _ api.Entry, answer *api.Assignment) error {
			if from == b || from == c {
				answer.Neighbours = slices.DeleteFunc(answer.Neighbours, func(n api.Neighbour) bool {
					return n.ID == seed.host.ID
				})
			}
			return nil
		}
		errs := make(chan error, 3)
		for _, n := range []*node{a, b, c} {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
				defer cancel()
				data, err := s.read(ctx, n, s.spec(), 0, int64(len(s.origin.content)))
				if err == nil && !bytes.Equal(s.origin.content, data) {
					err = errors.New("bytes differ")
				}
				errs <- err
			}()
		}
		for range 3 {
			assert.NoError(t, <-errs)
		}
		for _, n := range []*node{a, b, c} {
			synctest.Wait() // the loop counts a piece a moment after its reader has it
			assert.Zero(t, n.engine.Stats().Origin)
		}
	})
}

func TestContentThatWasReadFromTheCacheIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(22, 3*piece.SizeMin))
		a := s.node(nil)
		for range 2 { // from the origin, then from the cache
			_, err := s.readAll(a)
			require.NoError(t, err)
			time.Sleep(2 * time.Minute)
			synctest.Wait() // the loop counts a piece a moment after its reader has it
			assert.Zero(t, a.engine.Stats().Downloads, "an open task cannot be evicted")
		}
	})
}

// The disk lost bits between two starts of the program. A local reader finds them.
func TestALocalReaderFindsBitRot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(11, 24*piece.SizeMin+5))
		inner := memstore.New(memstore.Config{})
		store := &rottingStore{Store: inner}
		n := s.node(store)
		got, err := s.readAll(n)
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.origin.content, got))
		require.NoError(t, n.stop())
		store.rotten.Store(true)

		again := s.node(store)
		got, err = s.readAll(again)
		require.ErrorContains(t, err, "damaged")
		assert.True(t, bytes.Equal(s.origin.content[:len(got)], got), "what was read until then is right")
		assert.Len(t, got, 7*piece.SizeMin, "all before the damaged piece")
		got, err = s.readAll(again)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(s.origin.content, got), "it was downloaded again")
		assert.Len(t, s.origin.requests(), 2)
	})
}
