package scheduler

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/task"
)

func TestForget(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	self := host.Host{ID: "self", Addr: "10.0.0.1:1"}
	s := New(Config{Self: self, Seed: 1})
	spec := &task.Spec{ID: "t", Kind: task.Blob}
	tell := func(h string, event Event) Answer {
		e := Entry{Task: "t", Event: event, Have: 1, Need: 4}
		if event == Started {
			e.Spec, e.Have = spec, 0
		}
		a, err := s.Announce(now, Report{Host: host.Host{ID: host.ID(h), Addr: h + ":1"}, Generation: 1,
			Entries: []Entry{e}})
		require.NoError(t, err)
		return a
	}
	assert.Len(t, tell("a", Started).Seeds, 1)
	s.Done("t", 1)
	tell("a", Completed)
	tell("b", Started)
	require.True(t, s.Holds("t"))

	s.Forget(now, "t")
	assert.False(t, s.Knows("t"))
	assert.False(t, s.Holds("t"))
	s.Forget(now, "t")
	s.Forget(now, "unknown")

	answer := tell("c", Started)
	assert.Len(t, answer.Seeds, 1, "the origin is asked again")
	for _, n := range answer.Assignments[0].Neighbours {
		assert.Equal(t, self.ID, n.ID, "no host gets the former holder as a neighbour")
	}
	// The hosts are there as before, and in no swarm of the past.
	list, next := s.Hosts(0)
	assert.Zero(t, next)
	for _, h := range list {
		assert.LessOrEqual(t, h.Tasks, 1)
	}
	s.Leave(now, "a")
	s.Leave(now, "b")
	assert.NotPanics(t, func() { s.Tick(now.Add(time.Hour)) })
}

// Forget also ends memberships of hosts that are gone. A seed that this starts must reach the caller: the scheduler
// takes it for running.
func TestForgetStartsSeedsOfHostsThatAreGone(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := New(Config{Self: host.Host{ID: "self", Addr: "10.0.0.1:1"}, Seed: 1})
	tell := func(h host.ID, entries ...Entry) Answer {
		a, err := s.Announce(now, Report{Host: host.Host{ID: h, Addr: string(h) + ":1"}, Generation: 1, Entries: entries})
		require.NoError(t, err)
		return a
	}
	held := []Entry{{Task: "wanted", Event: Completed, Have: 1}}
	for i := range clearMax {
		held = append(held, Entry{Task: invented(i), Event: Completed, Have: 1})
	}
	tell("holder", held...)
	tell("other", Entry{Task: "purged", Event: Completed, Have: 1})
	starving := Entry{Task: "wanted", Event: Starving, Need: 4, Spec: &task.Spec{ID: "wanted", Kind: task.Blob}}
	assert.Empty(t, tell("reader", starving).Seeds)

	seeds := s.Leave(now, "holder").Seeds
	seeds = append(seeds, s.Forget(now, "purged")...)
	seeds = append(seeds, s.Tick(now.Add(time.Second)).Seeds...)
	require.Len(t, seeds, 1, "a host starves, and the only holder is gone")
	assert.Equal(t, task.ID("wanted"), seeds[0].ID)
}
