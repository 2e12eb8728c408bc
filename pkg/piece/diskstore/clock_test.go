package diskstore_test

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece/diskstore"
	"github.com/darter-io/darter/pkg/piece/storetest"
)

// wall is a wall clock that a test sets.
type wall struct{ at atomic.Int64 }

func newWall(at time.Time) *wall {
	w := &wall{}
	w.at.Store(at.UnixNano())
	return w
}

func (w *wall) now() time.Time { return time.Unix(0, w.at.Load()) }

func (w *wall) jump(d time.Duration) { w.at.Add(int64(d)) }

// left returns the names that are still in the store.
func left(t *testing.T, s *diskstore.Store, names ...string) (left []string) {
	t.Helper()
	here := map[string]bool{}
	for _, e := range s.Inventory() {
		here[string(e.ID)] = true
	}
	for _, name := range names {
		if here[string(storetest.ID(name))] {
			left = append(left, name)
		}
	}
	return left
}

// Tasks are evicted in the order of their reads, whatever the clock does.
func TestEvictionOrderAndClock(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for name, jumps := range map[string][3]time.Duration{ // in the first session, before the second, in the second
		"right":                           {time.Minute, time.Minute, time.Minute},
		"stands still":                    {},
		"a year ahead, then right":        {year, -year, time.Minute},
		"a century ahead, then right":     {100 * year, -100 * year, time.Minute},
		"back by a year at a restart":     {time.Minute, -year, time.Minute},
		"back by a year, then right":      {time.Minute, -year, year},
		"back by an hour while it runs":   {-time.Hour, time.Minute, -time.Hour},
		"back to 1970 while it runs":      {-56 * year, 0, 56 * year},
		"ahead while it runs, then right": {year, -year - time.Minute, -time.Hour},
		"ahead, and ahead again":          {year, year, -2 * year},
	} {
		t.Run(name, func(t *testing.T) {
			clock := newWall(time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC))
			dir := t.TempDir()
			cfg := diskstore.Config{Dir: dir, Now: clock.now, FS: quick{}}
			read := func(s *diskstore.Store, name string) { require.NoError(t, keep(t, s, name)) }
			restart := func(s *diskstore.Store) *diskstore.Store {
				require.NoError(t, s.Close())
				return mustOpen(t, cfg)
			}
			s := mustOpen(t, cfg)
			for _, n := range []string{"1", "2", "3"} {
				read(s, n)
			}
			clock.jump(jumps[0])
			for _, n := range []string{"2", "1", "4"} { // from the oldest: 3 2 1 4
				read(s, n)
			}
			s = restart(s)
			clock.jump(jumps[1])
			s = restart(s)
			for _, n := range []string{"5", "2"} { // 3 1 4 5 2
				read(s, n)
			}
			clock.jump(jumps[2])
			read(s, "4") // 3 1 5 2 4
			s = restart(s)
			for _, e := range s.Inventory() {
				assert.False(t, e.LastRead.After(clock.now()), "no read is in the future")
			}
			for k, want := range [][]string{{"1", "2", "4", "5"}, {"2", "4", "5"}, {"2", "4"}, {"4"}} {
				require.NoError(t, s.Limit(int64(4-k)*60_000, 0.9, 0.9))
				assert.Equal(t, want, left(t, s, "1", "2", "3", "4", "5"), "room for %d", 4-k)
			}
			require.NoError(t, s.Close())
		})
	}
}

// A modification time that nanoseconds cannot hold does not count as the latest read.
func TestModificationTimeOutOfRange(t *testing.T) {
	for _, at := range []time.Time{time.Now().AddDate(1, 0, 0), time.Now().AddDate(30, 0, 0), time.Unix(1<<33, 0),
		time.Unix(0, 0)} {
		t.Run(fmt.Sprint(at.Year()), func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpen(t, diskstore.Config{Dir: dir})
			for _, n := range []string{"old1", "old2"} {
				require.NoError(t, keep(t, s, n))
			}
			require.NoError(t, s.Close())
			for _, n := range []string{"old1", "old2"} {
				require.NoError(t, os.Chtimes(fileOf(dir, n, "journal"), time.Time{}, at))
			}
			s = mustOpen(t, diskstore.Config{Dir: dir})
			require.NoError(t, keep(t, s, "new1"))
			require.NoError(t, s.Close())
			s = mustOpen(t, diskstore.Config{Dir: dir, Quota: 4 * 50_000, HighWater: 1, LowWater: 1})
			for _, n := range []string{"new2", "new3", "new4"} {
				require.NoError(t, keep(t, s, n))
			}
			assert.Equal(t, []string{"new1", "new2", "new3", "new4"}, left(t, s, "old1", "old2", "new1", "new2",
				"new3", "new4"))
			require.NoError(t, s.Close())
		})
	}
}
