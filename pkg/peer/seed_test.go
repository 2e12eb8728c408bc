package peer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/rendezvous"
)

func TestASeedAskedForBeforeRunBeginsWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(40, 3*piece.SizeMin))
		n := s.prepare(nil)
		n.engine.Seed(s.spec())
		s.run(n)
		time.Sleep(time.Second)
		assert.EqualValues(t, 1, n.seedDone.Load())
		assert.EqualValues(t, len(s.origin.content), n.engine.Stats().Origin)
	})
}

func TestEverySeedIsAnsweredAlsoWhenEverythingIsHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(41, 3*piece.SizeMin))
		n := s.seed()
		for i := range int64(3) {
			n.engine.Seed(s.spec())
			time.Sleep(2 * time.Minute)
			assert.Equal(t, i+1, n.seedMetadata.Load())
			assert.Equal(t, i+1, n.seedDone.Load())
		}
		assert.Len(t, s.origin.requests(), 1)
	})
}

func TestALateSeedRequestStillGetsTheFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(42, 3*piece.SizeMin))
		s.origin.fail = func(int, int64) error { return errors.New("down") }
		n := s.seed()
		for range 50 {
			n.engine.Seed(s.spec())
			time.Sleep(10 * time.Millisecond)
		}
		// A failure answers every burst of calls, also the last one.
		for len(n.failed) > 0 {
			<-n.failed
		}
		n.engine.Seed(s.spec())
		time.Sleep(10 * time.Second)
		assert.NotEmpty(t, n.failed)
	})
}

func TestASeedVouchesForContentThatItGotInsideAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(43, 1234))
		seed := s.seed()
		inline := true
		f := piece.MetadataFor(1234, "application/x")
		s.owner.answer = func(from *node, _ api.Entry, a *api.Assignment) error {
			if inline {
				a.Metadata, a.Inline, a.Seed = &f, s.origin.content, false
			}
			return nil
		}
		_, err := s.readAll(seed)
		require.NoError(t, err)
		inline = false
		data, err := s.readAll(s.node(nil))
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.origin.content, data))
		assert.Empty(t, s.origin.requests(), "what is here is not asked for again")
	})
}

func TestAHungOriginIsLeftWhenNoClientWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(44, 9*piece.SizeMin))
		s.origin.hang = 2 * piece.SizeMin
		n := s.node(nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.read(ctx, n, s.spec(), 0, int64(len(s.origin.content)))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		time.Sleep(time.Minute)
		assert.Zero(t, s.origin.open.Load(), "requests to the origin for which no client waits")
		assert.Zero(t, n.engine.Stats().Downloads)
		assert.Empty(t, n.failed, "to stop is no failure")
		s.origin.hang = 0
		data, err := s.readAll(n)
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.origin.content, data))
	})
}

// The store held a wrong piece before a right body arrived.
func TestAnEarlierWrongPieceIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(45, 4*piece.SizeMin))
		wrong := flipped(s.origin.content, 1)
		n := s.node(nil)
		// A small range brings piece 1 alone, and it comes wrong.
		s.origin.body = func(request int, offset int64, r io.Reader) io.Reader {
			if request == 0 {
				return slowly(bytes.NewReader(wrong[offset:]))
			}
			return r
		}
		_, err := s.read(t.Context(), n, s.spec(), piece.SizeMin, 10)
		require.NoError(t, err)
		time.Sleep(time.Minute)
		data, err := s.readAll(n)
		if err == nil {
			require.True(t, bytes.Equal(s.origin.content, data), "a wrong body was completed")
		} else {
			require.ErrorIs(t, err, peer.ErrRevoked)
		}
		data, err = s.readAll(n)
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.origin.content, data))
	})
}

// slowly sends 32 KiB in 10 ms.
func slowly(r io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		time.Sleep(10 * time.Millisecond)
		return r.Read(p[:min(len(p), 32<<10)])
	})
}

// Hosts that have no other owner leave the origin to the first of them. A host that leads the task for all asks the
// origin at once.
func TestALeaderAsksTheOriginAtOnce(t *testing.T) {
	for _, leads := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			s := newSwarm(t, randomBytes(70, 4*piece.SizeMin))
			nodes := make([]*node, 6)
			var ids []string
			for i := range nodes {
				nodes[i] = s.node(nil)
				ids = append(ids, string(nodes[i].host.ID))
			}
			order := rendezvous.Order(string(s.spec().ID), ids)
			var named atomic.Bool
			if leads {
				s.owner.leader = owners.Self
			}
			s.owner.answer = func(from *node, _ api.Entry, a *api.Assignment) error {
				a.Seed = named.Load() && string(from.host.ID) == order[len(order)-1]
				return nil
			}
			var opened time.Time
			s.origin.body = func(_ int, _ int64, r io.Reader) io.Reader {
				opened = time.Now()
				return r
			}
			var readers sync.WaitGroup
			for _, n := range nodes {
				readers.Go(func() {
					_, err := s.readAll(n)
					assert.NoError(t, err)
				})
			}
			time.Sleep(3 * time.Second) // they know each other by now
			named.Store(true)
			began := time.Now()
			readers.Wait()
			if leads {
				assert.Less(t, opened.Sub(began), 1500*time.Millisecond)
			} else {
				assert.Greater(t, opened.Sub(began), 5*time.Second, "it is the last of six")
			}
			assert.Len(t, s.origin.requests(), 1)
		})
	}
}

func TestTheOriginIsAskedOnceThoughTheReaderComesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(46, 9*piece.SizeMin))
		s.origin.body = func(_ int, _ int64, r io.Reader) io.Reader { return slowly(r) }
		n := s.node(nil)
		c, err := n.engine.Open(t.Context(), s.spec())
		require.NoError(t, err)
		defer c.Close()
		time.Sleep(100 * time.Millisecond)
		r := c.NewReader(t.Context(), 0, c.Metadata().Length)
		defer r.Close()
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.origin.content, data))
		assert.Equal(t, []int64{0}, s.origin.requests())
	})
}

// TestAStoppedSeedFailsNoPull stops seeds in the middle of a body, as a restart of a supernode does: that is no failure
// of the origin, and the others go on. It runs many seeds in real time, because the order of the events at the end of a
// seed's loop is random.
func TestAStoppedSeedFailsNoPull(t *testing.T) {
	var rounds sync.WaitGroup
	for round := range uint64(24) {
		s := newSwarm(t, randomBytes(100+round, 8*piece.SizeMin))
		s.real = true
		s.origin.hang = 4 * piece.SizeMin
		seed, other := s.seed(), s.node(nil)
		rounds.Go(func() {
			read := make(chan error, 1)
			go func() {
				data, err := s.readAll(other)
				if err == nil && !bytes.Equal(s.origin.content, data) {
					err = errors.New("other bytes")
				}
				read <- err
			}()
			assert.Eventually(t, func() bool { return other.engine.Stats().Seeds > 0 }, time.Minute, time.Millisecond)
			s.origin.mu.Lock()
			s.origin.hang = 0
			s.origin.mu.Unlock()
			s.owner.mu.Lock()
			s.owner.seed = other
			s.owner.mu.Unlock()
			assert.NoError(t, seed.stop())
			assert.Empty(t, seed.failed, "to stop is no failure")
			assert.NoError(t, <-read)
		})
	}
	rounds.Wait()
}

func TestWhatIsWantedIsToldAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(47, 9*piece.SizeMin))
		s.origin.body = func(_ int, _ int64, r io.Reader) io.Reader { return slowly(r) }
		n := s.node(nil)
		done := make(chan error, 1)
		go func() {
			_, err := s.readAll(n)
			done <- err
		}()
		time.Sleep(200 * time.Millisecond)
		list := n.engine.Tasks()
		require.Len(t, list, 1)
		assert.True(t, list[0].Wanted)
		assert.Equal(t, "registry.test/lib/app", list[0].Name)
		assert.Equal(t, 9, list[0].Pieces)
		assert.Less(t, list[0].Have, 9)
		assert.WithinDuration(t, time.Now(), list[0].LastGot, 200*time.Millisecond)
		require.NoError(t, <-done)

		// All of the next one comes between two looks at what there is.
		s.origin.body, s.origin.content = nil, randomBytes(48, 9*piece.SizeMin)
		_, err := s.readAll(n)
		require.NoError(t, err)
		synctest.Wait()
		for _, d := range n.engine.Tasks() {
			assert.False(t, d.Wanted, "it is here")
			assert.Equal(t, 9, d.Have)
		}
	})
}
