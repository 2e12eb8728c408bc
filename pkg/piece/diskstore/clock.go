package diskstore

import (
	"path/filepath"
	"slices"
	"time"
)

// The modification times of the journals keep the order of reads over a restart. If the clock was ahead, or was set
// back, some of these times lie in the future, and new reads would look older than them, which would reverse the
// order of evictions. So future times are moved to now, in their order, and every new read is later.

// dated is a task with its last read, by the file system's clock.
type dated struct {
	e    *entry
	read time.Time
}

// reorder returns the tasks with a read in the future, in their order, with new times one nanosecond apart from now
// on.
func reorder(tasks []dated, now time.Time) []dated {
	ahead := slices.DeleteFunc(slices.Clone(tasks), func(d dated) bool { return !d.read.After(now) })
	slices.SortStableFunc(ahead, func(a, b dated) int { return a.read.Compare(b.read) })
	for k := range ahead {
		ahead[k].read = now.Add(time.Duration(k + 1))
	}
	return ahead
}

// setClock moves reads in the future to now, also on the disk, and starts the clock after all reads.
func (s *Store) setClock() {
	s.mu.Lock()
	var tasks []dated
	for _, e := range s.tasks {
		tasks = append(tasks, dated{e, e.read})
	}
	s.mu.Unlock()
	now := s.cfg.Now()
	ahead := reorder(tasks, now)
	if len(ahead) > 0 {
		s.log.Warn("the last reads of some tasks lie in the future, so this host's clock was ahead or is behind; "+
			"they count as reads of now, in their order", "tasks", len(ahead), "now", now)
	}
	for _, d := range ahead {
		d.e.lastRead.Store(d.read.UnixNano())
		// Best effort: without it only the order after the next start is wrong.
		_ = s.fs.Chtimes(filepath.Join(d.e.dir, "journal"), d.read)
	}
	s.clock.Store(max(s.clock.Load(), now.UnixNano()+int64(len(ahead))))
}

// shownTime returns the time of a read for people: never in the future.
func (s *Store) shownTime(tick int64) time.Time {
	if now := s.cfg.Now(); tick > now.UnixNano() {
		return now
	}
	return time.Unix(0, tick)
}
