package peer_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
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

const passingLength = 6<<20 + 5 // more than the window of a reader

// small is a store without room for the content of these tests.
func small() *memstore.Store { return memstore.New(memstore.Config{Quota: 1 << 20}) }

// TestALargeObjectPassesByTheStore reads an object that has room at the seed, and none at the node.
func TestALargeObjectPassesByTheStore(t *testing.T) {
	const m = 1 << 19
	for name, windows := range map[string][]*window{
		"the whole":   {{n: passingLength}},
		"its end":     {{off: 10 * m, n: passingLength - 10*m}},
		"two at once": {{n: passingLength}, {off: 5 * m, n: 3 * m}},
		"more than there are": {
			{n: 3 * m}, {off: m, n: 3 * m}, {off: 2 * m, n: 3 * m},
			{off: 4 * m, n: 3 * m}, {off: 6 * m, n: 3 * m}, {off: 8 * m, n: 4*m + 5},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, randomBytes(91, passingLength))
				s.seed()
				n := s.node(small())
				for range 2 { // nothing is here the second time, and the registry is not asked again
					readWindows(t, s, []*node{n}, windows...)
				}
				assert.EqualValues(t, passingLength, s.origin.sent.Load())
				assert.Zero(t, n.engine.Stats().Origin)
				assert.Empty(t, n.store.Inventory())
				s.owner.mu.Lock()
				defer s.owner.mu.Unlock()
				for _, e := range s.owner.events[n.host.ID] {
					assert.Zero(t, e.Have, "no host is sent here")
					assert.NotEqual(t, api.Completed, e.Event)
				}
			})
		})
	}
}

// TestPassingKeepsAWindowOnly stops reading in the middle.
func TestPassingKeepsAWindowOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(92, passingLength))
		s.seed()
		n := s.node(small())
		c, err := n.engine.Open(t.Context(), s.spec())
		require.NoError(t, err)
		defer c.Close()
		r := c.NewReader(t.Context(), 0, passingLength)
		defer r.Close()
		_, err = io.CopyN(io.Discard, r, 1<<20)
		require.NoError(t, err)
		time.Sleep(time.Minute)
		got := n.engine.Stats().Seeds
		assert.LessOrEqual(t, got, int64(6<<20), "one window ahead of the reader, and what was on its way")
		rest, err := io.ReadAll(r)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(s.origin.content[1<<20:], rest))
	})
}

// TestWrongBytesDoNotPass has the registry send other bytes than it should.
func TestWrongBytesDoNotPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := randomBytes(93, passingLength)
		s := newSwarm(t, content)
		wrong := bytes.Clone(content)
		wrong[5<<20]++
		s.origin.body = func(_ int, offset int64, _ io.Reader) io.Reader { return bytes.NewReader(wrong[offset:]) }
		s.seed()
		n := s.node(small())
		w := &window{n: passingLength}
		w.read(t.Context(), s, n)
		require.Error(t, w.err)
		assert.Less(t, len(w.data), passingLength)
	})
}

// TestASeedWithoutRoomRefuses: only its own origin could bring the object.
func TestASeedWithoutRoomRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(94, passingLength))
		n := s.node(small())
		_, err := s.read(t.Context(), n, s.spec(), 0, 1)
		var f *api.Failure
		require.ErrorAs(t, err, &f)
		assert.True(t, f.Full)
	})
}

// TestOnlyAFewObjectsPass bounds the memory that they take.
func TestOnlyAFewObjectsPass(t *testing.T) {
	s := newSwarm(t, randomBytes(95, 3*piece.SizeMin))
	s.seed()
	n := s.node(memstore.New(memstore.Config{Quota: 1}))
	opened, release := make(chan error, 12), make(chan struct{})
	var wg sync.WaitGroup
	for i := range cap(opened) {
		wg.Go(func() {
			spec := s.spec()
			// Files without a digest of their own: the same content under many names.
			spec.ID, spec.Kind = task.ID(fmt.Sprintf("file:%064x", i)), task.Plain
			c, err := n.engine.Open(t.Context(), spec)
			opened <- err
			if err != nil {
				return
			}
			defer c.Close()
			<-release
			r := c.NewReader(t.Context(), 0, 3*piece.SizeMin)
			defer r.Close()
			data, err := io.ReadAll(r)
			assert.NoError(t, err)
			assert.True(t, bytes.Equal(s.origin.content, data))
		})
	}
	full := 0
	for range cap(opened) {
		var f *api.Failure
		if err := <-opened; errors.As(err, &f) && f.Full {
			full++
		}
	}
	close(release)
	wg.Wait()
	assert.Equal(t, 12-8, full)
}
