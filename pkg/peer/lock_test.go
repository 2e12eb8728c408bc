package peer

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/peer/picker"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/task"
)

// emptyTask is named by the SHA-256 of no bytes.
const emptyTask = task.ID("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")

// returns fails a test when f does not return. testing/synctest does not see that a goroutine waits for a mutex, so
// there is a limit in real time: f takes microseconds.
func returns(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		f()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("%s never returned", what)
	}
}

func TestAFailedDownloadIsBuriedWithTheLastOffer(t *testing.T) {
	for _, length := range []int64{0, 3 * piece.SizeMin} {
		t.Run(fmt.Sprintf("%d bytes that fail just when a client wants all of them", length), func(t *testing.T) {
			id := emptyTask
			if length > 0 {
				id = proofTask
			}
			e := New(Config{Store: memstore.New(memstore.Config{}), Verifier: credulous{}})
			d := newDownload(e, task.Spec{ID: id})
			e.downloads[d.id] = d
			f := piece.MetadataFor(length, "")
			require.NoError(t, d.proof.setMetadata(f))
			d.pick = picker.New(picker.Config{}, f.Layout(), d.proof.replica.Have())
			d.fail(&api.Failure{Status: 502, Message: "the origin is down"})
			d.offer(task.Spec{ID: id}, true)
			returns(t, "bury", func() { assert.True(t, e.bury(d, time.Now()), "it is a seed now") })
			returns(t, "the engine", func() { assert.Zero(t, e.Stats().Downloads) })
			assert.Equal(t, "the origin is down", e.failed(time.Now(), id).Message, "peers hear of what a seed gave up")
			assert.False(t, d.offers.any())
		})
	}
}

// slowShelf is a store whose Inventory waits until the test lets it go on.
type slowShelf struct {
	piece.Store
	asked chan struct{}
	let   chan struct{}
}

func (s *slowShelf) Inventory() []piece.Entry {
	s.asked <- struct{}{}
	<-s.let
	return s.Store.Inventory()
}

func TestAStoreThatHangsHoldsUpNoOtherTask(t *testing.T) {
	content := memstore.New(memstore.Config{})
	e := New(Config{Store: content, Announcer: nobody{}, Verifier: credulous{}})
	shelf := &slowShelf{Store: content, asked: make(chan struct{}, 1), let: make(chan struct{})}
	e.cfg.Store = shelf
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	<-e.started
	name := func(i int) task.ID { return task.ID(fmt.Sprintf("sha256:%064x", i)) }
	e.mu.Lock()
	for i := range swarmsMin + 1 {
		e.nameTask(name(i))
	}
	e.mu.Unlock()
	<-shelf.asked // the last name began a sweep
	returns(t, "a download of another task", func() {
		d, err := e.download(task.Spec{ID: proofTask}, forPeer)
		require.NoError(t, err)
		e.release(d)
		assert.NotEmpty(t, e.Tasks())
	})
	// The store has this task only after the sweep asked it, and the download has ended before the store answered.
	e.mu.Lock()
	e.nameTask(name(0))
	e.mu.Unlock()
	close(shelf.let)
	assert.Eventually(t, func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return len(e.swarms) < swarmsMin
	}, time.Minute, time.Millisecond)
	e.mu.Lock()
	_, kept := e.swarms[name(0).Swarm()]
	_, dropped := e.swarms[name(1).Swarm()]
	e.mu.Unlock()
	assert.True(t, kept, "the name of what came into use meanwhile")
	assert.False(t, dropped, "the name of what is gone")
	cancel()
	require.NoError(t, <-done)
}

// nobody is an owner that does not answer.
type nobody struct{}

func (nobody) Announce(context.Context, api.Entry) (api.Assignment, owners.Leader, error) {
	return api.Assignment{}, owners.LastResort, errors.New("nobody answers")
}
