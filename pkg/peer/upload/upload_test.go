package upload_test

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/peer/upload"
	"github.com/darter-io/darter/pkg/task"
)

// a and b are two tasks.
const a, b task.ID = "a", "b"

// crowd takes slots for a new neighbour each time.
type crowd struct {
	*upload.Slots
	mu    sync.Mutex
	holds map[task.ID][]any
}

func newCrowd(n int) *crowd {
	return &crowd{Slots: upload.NewSlots(n), holds: make(map[task.ID][]any)}
}

func (c *crowd) TryAcquire(id task.ID) bool {
	who := new(int)
	if !c.Slots.TryAcquire(id, who) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holds[id] = append(c.holds[id], who)
	return true
}

func (c *crowd) Release(id task.ID) {
	c.mu.Lock()
	who := c.holds[id][0]
	c.holds[id] = c.holds[id][1:]
	c.mu.Unlock()
	c.Slots.Release(id, who)
}

func TestNoMoreSlotsAreTakenThanThereAre(t *testing.T) {
	s := newCrowd(3)
	var most, now atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 2000 {
				if !s.TryAcquire(a) {
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
				s.Release(a)
			}
		})
	}
	wg.Wait()
	assert.LessOrEqual(t, most.Load(), int64(3))
	assert.Zero(t, s.Active())
}

func TestAFreeSlotIsNotRefusedBecauseOthersAreRefused(t *testing.T) {
	const n = 4
	s := newCrowd(n)
	// n goroutines hold one slot each at most, so there is one free whenever one of them
	// asks; as many others only ask when all are taken.
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for range 5000 {
				if !assert.True(t, s.TryAcquire(a)) {
					return
				}
				s.Release(a)
			}
		})
	}
	wg.Wait()
	assert.Zero(t, s.Active())
}

func TestFewerSlotsLetWhatIsBeingSentGoOn(t *testing.T) {
	s := newCrowd(4)
	for range 4 {
		require.True(t, s.TryAcquire(a))
	}
	s.Resize(2)
	assert.Equal(t, 2, s.Max())
	assert.Equal(t, 4, s.Active())
	s.Release(a)
	s.Release(a)
	assert.False(t, s.TryAcquire(a), "two are taken of two")
	s.Release(a)
	assert.True(t, s.TryAcquire(a))
}

func TestATaskThatHasLessThanItsPartOfTakenSlotsGetsOne(t *testing.T) {
	s := newCrowd(6)
	for range 6 {
		require.True(t, s.TryAcquire(a), "no other task wants one")
	}
	for range 3 {
		require.True(t, s.TryAcquire(b))
	}
	assert.False(t, s.TryAcquire(b), "it has its half")
	for range 4 {
		s.Release(a)
		assert.Equal(t, s.Active() < 6, s.TryAcquire(a), "%d taken", s.Active())
	}
	assert.Equal(t, 6, s.Active())
	assert.False(t, s.TryAcquire(b))
	s.Release(a)
	assert.True(t, s.TryAcquire(b), "any task may take a free slot")
}

func TestManyTasksTakeTwiceTheSlotsAtMost(t *testing.T) {
	s := newCrowd(6)
	for range 6 {
		require.True(t, s.TryAcquire(a))
	}
	got := 0
	for i := range 20 {
		if s.TryAcquire(task.ID(string(rune('b' + i)))) {
			got++
		}
	}
	assert.Equal(t, 6, got)
	assert.Equal(t, 12, s.Active())
}

func TestANeighboursFurtherRequestsNeedNoSlot(t *testing.T) {
	s := upload.NewSlots(2)
	for range 100 {
		require.True(t, s.TryAcquire(a, "wide"), "its queue delays no other neighbour")
	}
	assert.Equal(t, 1, s.Active())
	require.True(t, s.TryAcquire(a, "second"), "there is a slot for another neighbour")
	assert.True(t, s.TryAcquire(a, "second"))
	assert.False(t, s.TryAcquire(a, "third"))
	assert.False(t, s.TryAcquire(a, "wide"), "a neighbour without a slot waits")
	s.Release(a, "second")
	assert.False(t, s.TryAcquire(a, "third"), "the slot has one more request")
	s.Release(a, "second")
	assert.True(t, s.TryAcquire(a, "third"))
	assert.True(t, s.TryAcquire(a, "wide"), "no neighbour waits any more")
	for range 101 {
		s.Release(a, "wide")
	}
	s.Release(a, "third")
	assert.Zero(t, s.Active())
}

func TestANeighbourHasABoundedQueue(t *testing.T) {
	s := upload.NewSlots(1)
	n := 0
	for s.TryAcquire(a, "greedy") {
		n++
		require.Less(t, n, 10000)
	}
	assert.Greater(t, n, 256, "a picker's largest window fits")
}

func TestTurnsAreGivenInTheOrderTheyWereAskedFor(t *testing.T) {
	l := upload.NewSendQueue(2)
	require.True(t, l.Take(a, 0, nil, func() { t.Error("was given a turn that it had") }))
	require.True(t, l.Take(a, 0, nil, func() { t.Error("was given a turn that it had") }))
	var order []int
	for i := range 3 {
		require.False(t, l.Take(a, 0, nil, func() { order = append(order, i) }))
	}
	l.Give()
	l.Give()
	assert.Equal(t, []int{0, 1}, order)
	l.Give()
	l.Give()
	l.Give()
	assert.Equal(t, []int{0, 1, 2}, order)
	assert.True(t, l.Take(a, 0, nil, nil))
	assert.True(t, l.Take(a, 0, nil, nil))
	assert.False(t, l.Take(a, 0, nil, func() {}), "no turn was lost and none made")
}

func TestLeastPiecesFirstUnlessAnotherWaitsTooLong(t *testing.T) {
	l := upload.NewSendQueue(1)
	require.True(t, l.Take(a, 0, nil, nil))
	var order []int
	wait := func(rank int) { require.False(t, l.Take(a, rank, nil, func() { order = append(order, rank) })) }
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

func TestTasksTakeTurnsWhateverTheirNumberOfAskers(t *testing.T) {
	l := upload.NewSendQueue(1)
	require.True(t, l.Take(a, 0, nil, nil))
	var order []task.ID
	wait := func(id task.ID, rank int) {
		require.False(t, l.Take(id, rank, nil, func() { order = append(order, id) }))
	}
	for range 4 {
		wait(a, 100)
	}
	wait(b, 900)
	wait(b, 900)
	for range 6 {
		l.Give()
	}
	assert.Equal(t, []task.ID{b, a, b, a, a, a}, order)
}

func TestATurnThatIsGivenOnAtOnceReachesTheNext(t *testing.T) {
	l := upload.NewSendQueue(1)
	require.True(t, l.Take(a, 0, nil, nil))
	last := false
	for range 1000 {
		require.False(t, l.Take(a, 0, nil, l.Give)) // its connection is over: it passes the turn on
	}
	require.False(t, l.Take(a, 0, nil, func() { last = true }))
	l.Give()
	assert.True(t, last)
}

func TestTurnsAreNeitherLostNorMadeUnderLoad(t *testing.T) {
	const n = 3
	l := upload.NewSendQueue(n)
	var now, most atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				turn := make(chan struct{})
				if !l.Take(a, 0, nil, func() { close(turn) }) {
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
		assert.True(t, l.Take(a, 0, nil, nil))
	}
	assert.False(t, l.Take(a, 0, nil, nil))
}

// A neighbour with fewer pieces takes the place in a full queue.
func TestTheNeighbourWithMostLosesItsPlace(t *testing.T) {
	l := upload.NewSendQueue(1)
	require.True(t, l.Take(a, 0, "sends", nil))
	var order []string
	wait := func(id task.ID, rank int, who string) {
		require.False(t, l.Take(id, rank, who, func() { order = append(order, who) }))
	}
	wait(a, 300, "little")
	wait(a, 700, "most")
	wait(a, 500, "half")
	wait(b, 900, "of another task")
	assert.Nil(t, l.Displace(a, 700), "no neighbour has more")
	assert.Equal(t, "most", l.Displace(a, 400))
	assert.Equal(t, "half", l.Displace(a, 400))
	assert.Nil(t, l.Displace(a, 400))
	for range 2 {
		l.Give()
	}
	assert.ElementsMatch(t, []string{"of another task", "little"}, order)
	l.Give()
	assert.True(t, l.Take(a, 0, nil, nil), "no turn was lost with those who lost their place")
}
