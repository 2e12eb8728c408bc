package upload_test

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/peer/upload"
)

func TestNoMoreSlotsAreTakenThanThereAre(t *testing.T) {
	s := upload.NewSlots(3)
	var most, now atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 2000 {
				if !s.TryAcquire() {
					continue
				}
				n := now.Add(1)
				for {
					m := most.Load()
					if n <= m || most.CompareAndSwap(m, n) {
						break
					}
				}
				now.Add(-1)
				s.Release()
			}
		})
	}
	wg.Wait()
	assert.LessOrEqual(t, most.Load(), int64(3))
	assert.Zero(t, s.Active())
}

func TestAFreeSlotIsNotRefusedBecauseOthersAreRefused(t *testing.T) {
	const n = 4
	s := upload.NewSlots(n)
	// n goroutines hold one slot each at most, so there is one free whenever one of them
	// asks; as many others only ask when all are taken.
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for range 5000 {
				if !assert.True(t, s.TryAcquire()) {
					return
				}
				s.Release()
			}
		})
	}
	wg.Wait()
	assert.Zero(t, s.Active())
}

func TestFewerSlotsLetWhatIsBeingSentGoOn(t *testing.T) {
	s := upload.NewSlots(4)
	for range 4 {
		require.True(t, s.TryAcquire())
	}
	s.Resize(2)
	assert.Equal(t, 2, s.Max())
	assert.Equal(t, 4, s.Active())
	s.Release()
	s.Release()
	assert.False(t, s.TryAcquire(), "two are taken of two")
	s.Release()
	assert.True(t, s.TryAcquire())
}

func TestTurnsAreGivenInTheOrderTheyWereAskedFor(t *testing.T) {
	l := upload.NewLine(2)
	require.True(t, l.Take(0, func() { t.Error("was given a turn that it had") }))
	require.True(t, l.Take(0, func() { t.Error("was given a turn that it had") }))
	var order []int
	for i := range 3 {
		require.False(t, l.Take(0, func() { order = append(order, i) }))
	}
	l.Give()
	l.Give()
	assert.Equal(t, []int{0, 1}, order)
	l.Give()
	l.Give()
	l.Give()
	assert.Equal(t, []int{0, 1, 2}, order)
	assert.True(t, l.Take(0, nil))
	assert.True(t, l.Take(0, nil))
	assert.False(t, l.Take(0, func() {}), "no turn was lost and none made")
}

func TestWhoHasLeastGoesFirstUnlessAnotherWaitedTooLong(t *testing.T) {
	l := upload.NewLine(1)
	require.True(t, l.Take(0, nil))
	var order []int
	wait := func(rank int) { require.False(t, l.Take(rank, func() { order = append(order, rank) })) }
	wait(700)
	wait(300)
	wait(500)
	l.Give()
	l.Give()
	assert.Equal(t, []int{300, 500}, order)
	order = nil
	for range 20 {
		wait(100) // newcomers keep coming
		l.Give()
	}
	assert.Contains(t, order, 700)
	assert.Equal(t, 100, order[0])
}

func TestATurnThatIsGivenOnAtOnceReachesTheNext(t *testing.T) {
	l := upload.NewLine(1)
	require.True(t, l.Take(0, nil))
	last := false
	for range 1000 {
		require.False(t, l.Take(0, l.Give)) // its connection is over: it passes the turn on
	}
	require.False(t, l.Take(0, func() { last = true }))
	l.Give()
	assert.True(t, last)
}

func TestTurnsAreNeitherLostNorMadeUnderLoad(t *testing.T) {
	const n = 3
	l := upload.NewLine(n)
	var now, most atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				turn := make(chan struct{})
				if !l.Take(0, func() { close(turn) }) {
					<-turn
				}
				k := now.Add(1)
				for m := most.Load(); k > m && !most.CompareAndSwap(m, k); m = most.Load() {
				}
				if rand.IntN(4) == 0 {
					for range rand.IntN(100) {
						_ = now.Load()
					}
				}
				now.Add(-1)
				l.Give()
			}
		})
	}
	wg.Wait()
	assert.LessOrEqual(t, most.Load(), int64(n))
	for range n {
		assert.True(t, l.Take(0, nil))
	}
	assert.False(t, l.Take(0, nil))
}
