package peer_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
)

// heard counts the events of a kind that the owner received from a node.
func (o *owner) heard(n *node, event api.Event) (count int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.events[n.host.ID] {
		if e.Event == event {
			count++
		}
	}
	return count
}

// A host announces a completion until an owner confirms it.
func TestALostCompletionIsAnnouncedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(70, 3*piece.SizeMin))
		var down atomic.Bool
		s.owner.answer = func(_ *node, e api.Entry, _ *api.Assignment) error {
			if down.Load() && e.Event == api.Completed {
				return errors.New("no owner answers")
			}
			return nil
		}
		down.Store(true)
		n := s.node(nil)
		_, err := s.readAll(n)
		require.NoError(t, err)
		time.Sleep(2*time.Minute + time.Second) // between two rounds of the inventory
		assert.Zero(t, n.engine.Stats().Downloads, "an open task cannot be evicted")
		tries := s.owner.heard(n, api.Completed)
		assert.Greater(t, tries, 1)
		down.Store(false)
		time.Sleep(10 * time.Second)
		assert.Equal(t, tries+1, s.owner.heard(n, api.Completed))
		time.Sleep(2 * time.Minute)
		assert.Equal(t, tries+1, s.owner.heard(n, api.Completed), "once is enough")
		assert.Zero(t, s.owner.heard(n, api.Stopped))
	})
}

func TestOwnersHearOfWhatIsHereNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const length = 3 * piece.SizeMin
		s := newSwarm(t, randomBytes(71, length))
		n := s.node(memstore.New(memstore.Config{Quota: length + 100}))
		evicted := s.spec().ID
		_, err := s.readAll(n)
		require.NoError(t, err)
		time.Sleep(2 * time.Minute)
		assert.Zero(t, s.owner.heard(n, api.Stopped))
		s.origin.content = randomBytes(72, length)
		_, err = s.readAll(n)
		require.NoError(t, err)
		time.Sleep(time.Minute)
		require.Equal(t, 1, s.owner.heard(n, api.Stopped))
		s.owner.mu.Lock()
		for _, e := range s.owner.events[n.host.ID] {
			if e.Event == api.Stopped {
				assert.Equal(t, evicted, e.Task)
			}
		}
		s.owner.mu.Unlock()

		// Owners know the inventory of the start, too.
		require.NoError(t, n.stop())
		again := s.node(n.store)
		require.NoError(t, again.store.Remove(s.spec().ID))
		time.Sleep(time.Minute)
		assert.Equal(t, 1, s.owner.heard(again, api.Stopped))
	})
}

// A download that failed without a piece ends its task for the inventory.
func TestAFailedEmptyDownloadLeavesTheInventory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(73, 3*piece.SizeMin))
		s.origin.fail = func(int, int64) error { return errors.New("down") }
		n := s.node(nil)
		_, err := s.readAll(n)
		require.Error(t, err)
		time.Sleep(time.Minute)
		assert.Equal(t, 1, s.owner.heard(n, api.Stopped))
	})
}
