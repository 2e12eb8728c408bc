package scheduler

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/test/race"
)

// holders returns a Scheduler that knows n hosts which hold the same tasks, as after their inventories.
func holders(tb testing.TB, n, tasks int) *Scheduler {
	s := New(Config{Self: host.Host{ID: "self"}, Seed: 1})
	for i := range n {
		_, err := s.Announce(begin, hold(fmt.Sprintf("host%d", i), 1, fmt.Sprintf("10.0.%d.%d", i>>8, i&255), 0, tasks))
		require.NoError(tb, err)
	}
	require.Equal(tb, n*tasks, s.total)
	return s
}

// No call ends all memberships of many hosts, or of a host with many tasks: others would wait for a caller that
// serialises them, 9.6 s for 10,000 hosts with 1,000 tasks.
func TestNoCallEndsManyMemberships(t *testing.T) {
	ends := func(t *testing.T, s *Scheduler, call func()) {
		t.Helper()
		before := s.total
		call()
		assert.LessOrEqual(t, before-s.total, 2*clearMax)
	}
	finish := func(t *testing.T, s *Scheduler, now time.Time) (gone int) {
		t.Helper()
		for more := true; more; {
			ends(t, s, func() {
				c := s.Tick(now)
				gone, more = gone+len(c.Gone), c.More
			})
		}
		checkBooks(t, s)
		return gone
	}
	later := begin.Add(time.Minute)

	t.Run("hosts that expire together", func(t *testing.T) {
		s := holders(t, 600, 20)
		assert.Equal(t, 600, finish(t, s, later))
		assert.Equal(t, Stats{Hosts: 1}, s.Stats())
		assert.Zero(t, s.total)
		assert.Empty(t, s.sources)
		assert.Empty(t, s.due)
		_, err := s.Announce(later, hold("host0", 1, "10.0.0.0", 0, 20))
		require.NoError(t, err)
		assert.Len(t, s.hosts, 601, "numbers of gone hosts are used again")
		assert.Len(t, s.numbered, 20, "and those of swarms")
	})
	t.Run("a host that leaves", func(t *testing.T) {
		s := holders(t, 2, 4000)
		ends(t, s, func() { s.Leave(begin, "host0") })
		assert.Equal(t, 4000, tasksOf(s, "host1"))
		assert.Equal(t, 2, s.Stats().Hosts)
		finish(t, s, begin)
		assert.Equal(t, 4000, s.total)
	})
	t.Run("a host that starts again", func(t *testing.T) {
		s := holders(t, 2, 4000)
		ends(t, s, func() {
			a, err := s.Announce(begin, hold("host0", 2, "10.0.0.0", 0, 0))
			require.NoError(t, err)
			assert.True(t, a.Unknown)
		})
		_, err := s.Announce(begin, hold("host0", 2, "10.0.0.0", 0, 3000))
		require.NoError(t, err)
		assert.Equal(t, 3000, tasksOf(s, "host0"), "its new tasks are its own")
		assert.Equal(t, 3000, s.sources["10.0.0.0"].tasks)
		assert.LessOrEqual(t, s.total, 8000, "an announce ends as many old memberships as it brings")
		finish(t, s, begin)
		assert.Equal(t, 7000, s.total)
		assert.Equal(t, 3000, tasksOf(s, "host0"))
		assert.Equal(t, 3000, s.sources["10.0.0.0"].tasks)
	})
	t.Run("a task that is purged", func(t *testing.T) {
		s := holders(t, 600, 2)
		ends(t, s, func() { s.Forget(begin, invented(1)) })
		assert.False(t, s.Knows(invented(1)))
		_, err := s.Announce(begin, hold("host7", 1, "10.0.0.7", 1, 1))
		require.NoError(t, err)
		finish(t, s, begin)
		assert.True(t, s.Knows(invented(1)), "one host announced it again")
		assert.Equal(t, Stats{Hosts: 601, Swarms: 2, Holding: 601}, s.Stats())
		assert.Equal(t, 2, tasksOf(s, "host7"))
		assert.Equal(t, 1, tasksOf(s, "host8"))
	})
}

// A host whose memberships are still to be ended holds nothing that another host could get.
func TestAGoneHostIsNoHolderBeforeItsEnd(t *testing.T) {
	s := holders(t, 600, 3)
	later := begin.Add(time.Minute)
	require.True(t, s.Tick(later).More)
	a, err := s.Announce(later, Report{Host: host.Host{ID: "new", Addr: "10.9.9.9:65002"}, Generation: 1,
		Source: "10.9.9.9", Entries: []Entry{{Task: invented(2), Event: Started, Need: 16,
			Spec: &task.Spec{ID: invented(2)}}}})
	require.NoError(t, err)
	assert.Len(t, a.Seeds, 1, "the origin is asked, since no live host holds the task")
	require.Len(t, a.Assignments[0].Neighbours, 1)
	assert.Equal(t, host.ID("self"), a.Assignments[0].Neighbours[0].ID)
	for s.Tick(later).More {
	}
	checkBooks(t, s)
	assert.Equal(t, Stats{Hosts: 2, Swarms: 1, Wanting: 2, Seeding: 1, Links: 1}, s.Stats())
}

// A held task that no host wants costs little memory: nearly all tasks are such.
func TestAHeldTaskCostsAtMost100Bytes(t *testing.T) {
	race.Skip(t, "the detector's own memory counts")
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	s := holders(t, 1000, 100)
	each := float64(heap()-before) / (1000 * 100)
	t.Logf("%.0f bytes for each host and task", each)
	assert.LessOrEqual(t, each, 100.0)
	runtime.KeepAlive(s)
}
