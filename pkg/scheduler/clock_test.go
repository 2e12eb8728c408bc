package scheduler

import (
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/task"
)

// set is a time after the machine's wall clock was set; the monotonic clock goes on. Package time
// cannot make one, so set changes the bits, and checks that they still mean what they did.
func set(t *testing.T, at time.Time, ahead time.Duration) time.Time {
	const secondsAt = 30 // where time.Time with a monotonic reading has its seconds
	was := at
	*(*uint64)(unsafe.Pointer(&at)) += uint64(int64(ahead/time.Second)) << secondsAt
	require.Equal(t, was.Unix()+int64(ahead/time.Second), at.Unix())
	require.Zero(t, at.Sub(was))
	return at
}

func TestWallClockJump(t *testing.T) {
	for _, ahead := range []time.Duration{-72 * time.Hour, 72 * time.Hour} {
		t.Run(ahead.String(), func(t *testing.T) {
			now := time.Now()
			s := New(Config{Self: host.Host{ID: "self", Addr: "10.0.0.1:1"}, Seed: 1})
			tell := func(now time.Time, h string, event Event, silent ...host.ID) Answer {
				e := Entry{Task: "t", Event: event, Need: 4, Silent: silent}
				if event == Started {
					e.Spec = &task.Spec{ID: "t", Kind: task.Blob}
				}
				from := host.Host{ID: host.ID(h), Addr: h + ":1"}
				a, err := s.Announce(now, Report{Host: from, Generation: 1, Entries: []Entry{e}})
				require.NoError(t, err)
				return a
			}
			sees := func(a Answer) bool {
				for _, n := range a.Assignments[0].Neighbours {
					if n.ID == "b" {
						return true
					}
				}
				return false
			}
			tell(now, "b", Completed)
			require.True(t, sees(tell(now, "a", Started)))
			require.False(t, sees(tell(now, "a", Starving, "b")), "it was silent")

			now = set(t, now, ahead)
			tell(now, "b", Completed)
			assert.False(t, sees(tell(now, "a", Starving)), "and is for a while, whatever the clock says")
			now = now.Add(s.cfg.Expiry + time.Second)
			tell(now, "b", Completed)
			assert.True(t, sees(tell(now, "a", Starving)), "and no longer than that")
		})
	}
}
