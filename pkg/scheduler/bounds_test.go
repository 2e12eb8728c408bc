package scheduler

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/test/race"
)

func invented(i int) task.ID { return task.ID(fmt.Sprintf("sha256:%064x", i)) }

// hold is a report of a host that holds tasks.
func hold(id string, generation uint64, from string, first, n int) Report {
	r := Report{Host: host.Host{ID: host.ID(id), Name: id, Addr: from + ":65002"}, Generation: generation, Source: from}
	for i := range n {
		r.Entries = append(r.Entries, Entry{Task: invented(first + i), Event: Completed, Have: 1})
	}
	return r
}

func tasksOf(s *Scheduler, id string) int {
	h, ok := s.byID[host.ID(id)]
	if !ok {
		return -1
	}
	return len(s.hosts[h].memberships)
}

func TestHostIDInUse(t *testing.T) {
	begin := time.Unix(1e9, 0)
	known := func(t *testing.T) *Scheduler {
		s := New(Config{Self: host.Host{ID: "self"}, Seed: 1})
		_, err := s.Announce(begin, hold("a", 1, "10.0.0.1", 0, 3))
		require.NoError(t, err)
		return s
	}
	refused := func(t *testing.T, s *Scheduler, now time.Time, r Report) {
		t.Helper()
		_, err := s.Announce(now, r)
		var used *InUseError
		require.ErrorAs(t, err, &used)
		assert.Equal(t, host.ID("a"), used.ID)
		assert.Equal(t, "10.0.0.1:65002", used.Addr)
		assert.Equal(t, 3, tasksOf(s, "a"), "what the live host announced stays")
		assert.Equal(t, "10.0.0.1:65002", s.hosts[s.byID["a"]].Addr)
	}
	soon := begin.Add(5 * time.Second)
	t.Run("another machine with the same ID is refused, and what the first said stays", func(t *testing.T) {
		refused(t, known(t), soon, hold("a", 2, "10.0.0.2", 7, 1))
	})
	t.Run("a farewell in its name is refused", func(t *testing.T) {
		r := hold("a", 2, "10.0.0.2", 0, 0)
		r.Leaving = true
		refused(t, known(t), soon, r)
		r.Host.Addr, r.Source = "10.0.0.1:65002", "10.0.0.1"
		refused(t, known(t), soon, r)
	})
	t.Run("a late announce of a life that left counts for nothing; the next life may come from elsewhere",
		func(t *testing.T) {
			s := known(t)
			r := hold("a", 1, "10.0.0.1", 0, 0)
			r.Leaving = true
			_, err := s.Announce(soon, r)
			require.NoError(t, err)
			a, err := s.Announce(soon, hold("a", 1, "10.0.0.1", 0, 3))
			require.NoError(t, err)
			assert.Len(t, a.Assignments, 3)
			assert.Equal(t, -1, tasksOf(s, "a"))
			_, err = s.Announce(soon, hold("a", 2, "10.0.0.9", 0, 3))
			require.NoError(t, err)
			assert.Equal(t, 3, tasksOf(s, "a"))
			s.Tick(soon.Add(time.Minute))
			assert.Empty(t, s.departed)
		})
	t.Run("an ID is not moved to another address by a host that does not know its generation", func(t *testing.T) {
		r := hold("a", 2, "10.0.0.1", 0, 0)
		r.Host.Addr = "10.0.0.66:65002"
		refused(t, known(t), soon, r)
	})
	t.Run("two that take turns hear of it, and cost no inventory", func(t *testing.T) {
		s, resyncs, refusals := known(t), 0, 0
		for i := range 20 {
			r := hold("a", uint64(1+i%2), fmt.Sprintf("10.0.0.%d", 1+i%2), 0, 0)
			a, err := s.Announce(begin.Add(time.Duration(i)*time.Second), r)
			if err != nil {
				refusals++
			} else if a.Unknown {
				resyncs++
			}
		}
		assert.Equal(t, 10, refusals)
		assert.Zero(t, resyncs)
	})
	t.Run("also when they claim the same address", func(t *testing.T) {
		s, resyncs, refusals := known(t), 0, 0
		for i := range 20 {
			a, err := s.Announce(begin.Add(time.Duration(i)*time.Second), hold("a", uint64(1+i%2), "10.0.0.1", 0, 0))
			if err != nil {
				refusals++
			} else if a.Unknown {
				resyncs++
			}
		}
		assert.Equal(t, 1, resyncs, "a restart looks like this, once")
		assert.Equal(t, 9, refusals)
	})
	t.Run("a restart at the same place is the same host", func(t *testing.T) {
		s := known(t)
		a, err := s.Announce(soon, hold("a", 2, "10.0.0.1", 0, 1))
		require.NoError(t, err)
		assert.True(t, a.Unknown)
		assert.Equal(t, 1, tasksOf(s, "a"))
	})
	t.Run("a host that fell silent may come back at another address", func(t *testing.T) {
		s := known(t)
		_, err := s.Announce(begin.Add(15*time.Second), hold("a", 2, "10.0.0.2", 0, 1))
		require.NoError(t, err)
	})
	t.Run("its own farewell counts", func(t *testing.T) {
		s := known(t)
		r := hold("a", 1, "10.0.0.1", 0, 0)
		r.Leaving = true
		_, err := s.Announce(soon, r)
		require.NoError(t, err)
		assert.Equal(t, -1, tasksOf(s, "a"))
	})
}

func TestInventedHostsDisplaceTheirOwnTasks(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := New(Config{Self: host.Host{ID: "self"}, Seed: 1, SourceTasksMax: 1000, SourceHostsMax: 20})
	_, err := s.Announce(now, hold("elsewhere", 1, "10.0.0.1", 0, 500))
	require.NoError(t, err)
	_, err = s.Announce(now, hold("neighbour", 1, "10.0.0.66", 0, 20))
	require.NoError(t, err)
	forgotten := 0
	for k := range 19 {
		a, err := s.Announce(now, hold(fmt.Sprintf("invented%d", k), 1, "10.0.0.66", 10_000*(k+1), 400))
		require.NoError(t, err)
		forgotten += a.Forgotten
		if a.Forgotten > 0 {
			assert.Contains(t, a.Greedy.Name, "invented", "the one that has most is named")
		}
	}
	assert.Equal(t, 19*400+20-1000, forgotten)
	assert.LessOrEqual(t, s.sources["10.0.0.66"].tasks, 1000)
	assert.Equal(t, 500, tasksOf(s, "elsewhere"), "others keep theirs")
	assert.Equal(t, 20, tasksOf(s, "neighbour"), "also one at the same address, that has few")
	_, err = s.Announce(now, hold("invented20", 1, "10.0.0.66", 0, 0))
	assert.ErrorIs(t, err, ErrFull, "and there are only so many of them")
	assert.ErrorContains(t, err, "10.0.0.66")

	t.Run("a task that is wanted finds room", func(t *testing.T) {
		a, err := s.Announce(now, Report{
			Host: host.Host{ID: "neighbour", Addr: "10.0.0.66:65002"}, Generation: 1, Source: "10.0.0.66",
			Entries: []Entry{
				{Task: invented(3), Event: Started, Need: 16},
				{Task: invented(777_777), Event: Started, Need: 16, Spec: &task.Spec{ID: invented(777_777)}},
			},
		})
		require.NoError(t, err)
		assert.NotEmpty(t, a.Assignments[0].Neighbours)
		assert.NoError(t, a.Assignments[1].Failure)
		assert.Len(t, a.Seeds, 1)
	})
	t.Run("what left has left no trace", func(t *testing.T) {
		for s.Tick(now.Add(time.Hour)).More {
		}
		assert.Equal(t, tasksOf(s, "self"), s.total)
		assert.Empty(t, s.sources)
	})
}

func TestGreediestHostGivesUpTasks(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := New(Config{Self: host.Host{ID: "self"}, Seed: 1, TasksMax: 300, TotalMax: 500})
	for k := range 10 {
		_, err := s.Announce(now, hold(fmt.Sprintf("big%d", k), 1, fmt.Sprintf("10.0.1.%d", k), 1000*k, 300))
		require.NoError(t, err)
	}
	_, err := s.Announce(now, hold("small", 1, "10.0.2.1", 0, 10))
	require.NoError(t, err)
	assert.LessOrEqual(t, s.total, 500)
	assert.Equal(t, 10, tasksOf(s, "small"))
}

// Without bounds this crowd takes some 320 MB, and one of four times the size that many times more.
func TestInventedHostsCostLittleMemory(t *testing.T) {
	race.Skip(t, "it measures the heap")
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	now := time.Unix(1e9, 0)
	before := heap()
	s := New(Config{Self: host.Host{ID: "self"}, Seed: 1})
	for k := range 30 {
		for from := 0; from < 10_000; from += 4000 {
			_, err := s.Announce(now, hold(fmt.Sprintf("invented%d", k), 1, "10.0.0.66", 10_000*k+from, 4000))
			require.NoError(t, err)
		}
	}
	took := heap() - before
	t.Logf("30 hosts of 10,000 tasks each: %d MB", took>>20)
	assert.LessOrEqual(t, s.total, 65_536)
	assert.Less(t, took, int64(200<<20))
	runtime.KeepAlive(s)
}

func TestSwarmsMax(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := New(Config{Self: host.Host{ID: "self"}, Seed: 1, SwarmsMax: 20_000})
	_, err := s.Announce(now, hold("honest", 1, "10.0.0.1", 0, 500))
	require.NoError(t, err)
	for k := range 40 {
		_, err := s.Announce(now, hold(fmt.Sprint("invented", k), 1, fmt.Sprint("10.0.1.", k), 10_000*(k+1), 2000))
		require.NoError(t, err)
	}
	assert.LessOrEqual(t, len(s.swarms), 20_000)
	assert.Equal(t, 500, tasksOf(s, "honest"), "a host with few tasks keeps them")
	r := hold("reader", 1, "10.0.0.2", 0, 0)
	r.Entries = []Entry{{Task: invented(9_000_000), Event: Started}}
	a, err := s.Announce(now, r)
	require.NoError(t, err)
	require.NoError(t, a.Assignments[0].Failure, "a wanted task fits")
	assert.LessOrEqual(t, len(s.swarms), 20_000)
}

// start is a report of a host that begins tasks.
func start(id, from string, first, n int) Report {
	r := hold(id, 1, from, first, n)
	for i := range r.Entries {
		r.Entries[i] = Entry{Task: r.Entries[i].Task, Event: Started, Need: 1, Spec: &task.Spec{ID: r.Entries[i].Task}}
	}
	return r
}

func TestOneAddressStartsFewSeeds(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := New(Config{Self: host.Host{ID: "self"}, Seed: 1, SourceSeedsMax: 10})
	seeds := 0
	for k := range 5 {
		a, err := s.Announce(now, start(fmt.Sprint("greedy", k), "10.0.0.66", 100*k, 20))
		require.NoError(t, err)
		seeds += len(a.Seeds)
	}
	assert.Equal(t, 10, seeds)
	a, err := s.Announce(now, start("honest", "10.0.0.1", 9000, 3))
	require.NoError(t, err)
	assert.Len(t, a.Seeds, 3, "another address is not affected")

	// Those that wait begin as others end, in any way.
	s.Done(invented(0), 1)
	s.Failed(now, invented(1), ErrFull, nil, OfRegistry)
	now = now.Add(2 * time.Second)
	assert.Len(t, s.Tick(now).Seeds, 2)
	assert.Equal(t, 13, s.Stats().Seeding)
	for k := range 5 {
		s.Leave(now, host.ID(fmt.Sprint("greedy", k)))
	}
	for i := range 500 {
		s.Failed(now, invented(i), ErrFull, nil, OfRegistry)
	}
	assert.Equal(t, map[string]int{"10.0.0.1": 3}, s.seeds, "no seed counts for ever")
}

// Invented tasks with large specs take bounded memory, and other addresses are served.
func TestOneAddressAnnouncesFewBytesOfSpecs(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := New(Config{Self: host.Host{ID: "self"}, Seed: 1, SourceSpecsMax: 1 << 20, SpecsMax: 3 << 20, SourceSeedsMax: 1})
	large := func(id, from string, first int) Report {
		r := start(id, from, first, 100)
		for i := range r.Entries {
			r.Entries[i].Spec.URL = strings.Repeat("x", 64<<10)
		}
		return r
	}
	full := func(r Report) (n int) {
		a, err := s.Announce(now, r)
		require.NoError(t, err)
		for _, a := range a.Assignments {
			if errors.Is(a.Failure, ErrFull) {
				n++
			}
		}
		return n
	}
	assert.Equal(t, 85, full(large("greedy0", "10.0.0.66", 0)), "of 100: 15 take 1 MiB")
	assert.Equal(t, 100, full(large("greedy1", "10.0.0.66", 100)), "another host of the same address")
	assert.Equal(t, 85, full(large("greedy0", "10.0.0.66", 0)), "a spec that is announced again counts once")
	assert.Zero(t, full(start("honest", "10.0.0.1", 9000, 100)), "another address is not affected")
	full(large("other", "10.0.0.67", 1000))
	full(large("another", "10.0.0.68", 2000))
	assert.LessOrEqual(t, s.specs.total, int64(3<<20))
	for _, id := range []host.ID{"greedy0", "greedy1", "other", "another", "honest"} {
		s.Leave(now, id)
	}
	for s.Tick(now.Add(time.Minute)).More {
	}
	assert.Equal(t, specs{of: map[string]int64{}}, s.specs, "no spec counts for ever")
}

func TestOneAddressSnubsNoHost(t *testing.T) {
	begin := time.Unix(1e9, 0)
	// snubbed reports whether a live holder is snubbed that many hosts reported as silent.
	snubbed := func(t *testing.T, from func(i int) string) bool {
		s := New(Config{Self: host.Host{ID: "self"}, Seed: 1})
		_, err := s.Announce(begin, hold("victim", 1, "10.0.0.1", 0, 1))
		require.NoError(t, err)
		for i := range 40 {
			r := Report{
				Host: host.Host{ID: host.ID(fmt.Sprint("liar", i)), Addr: from(i) + ":65002"}, Generation: 1,
				Source:  from(i),
				Entries: []Entry{{Task: invented(0), Event: Started, Silent: []host.ID{"victim"}}},
			}
			_, err := s.Announce(begin, r)
			require.NoError(t, err)
		}
		return begin.Before(s.hosts[s.byID["victim"]].snubbedUntil)
	}
	for name, row := range map[string]struct {
		from func(i int) string
		want bool
	}{
		"forty hosts of one machine snub no host": {func(int) string { return "10.0.0.66" }, false},
		"nor do those of two machines": {func(i int) string { return fmt.Sprint("10.0.0.", 66+i%2) },
			false},
		"three machines do": {func(i int) string { return fmt.Sprint("10.0.0.", 66+i%3) },
			true},
		"on loopback, where tests run, each host does": {func(int) string { return "127.0.0.1" }, true},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, row.want, snubbed(t, row.from)) })
	}
}
