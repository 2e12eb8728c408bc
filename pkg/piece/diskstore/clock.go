package diskstore

import (
	"path/filepath"
	"slices"
	"time"
)

// The order of reads outlives the process as the modification times of the journals. A clock that
// was ahead leaves times to come, and a clock that was put back makes all times so. Taken as they
// are, nothing that is read from now on would ever be younger, and the order of evictions would be
// turned round. So the times to come are moved to now, in their order, and all reads to come are later.

// dated is a task and when it was read, by the file system's clock.
type dated struct {
	e    *entry
	read time.Time
}

// reorder returns the tasks that seem to be read after now, in their order, a nanosecond apart from now on.
func reorder(tasks []dated, now time.Time) []dated {
	ahead := slices.DeleteFunc(slices.Clone(tasks), func(d dated) bool { return !d.read.After(now) })
	slices.SortStableFunc(ahead, func(a, b dated) int { return a.read.Compare(b.read) })
	for k := range ahead {
		ahead[k].read = now.Add(time.Duration(k + 1))
	}
	return ahead
}

// setClock moves the reads that are still to come to now, on the disk too, and lets the clock begin
// behind all reads.
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
		s.log.Warn("tasks were read at times that are still to come, so this host's clock was ahead or is behind: "+
			"they are taken as read just now, in their order", "tasks", len(ahead), "now", now)
	}
	for _, d := range ahead {
		d.e.lastRead.Store(d.read.UnixNano())
		// Without it the order is wrong after the next start only.
		_ = s.fs.Chtimes(filepath.Join(d.e.dir, "journal"), d.read)
	}
	s.clock.Store(max(s.clock.Load(), now.UnixNano()+int64(len(ahead))))
}

// told is the time of a read as people are told it: never one to come.
func (s *Store) told(tick int64) time.Time {
	if now := s.cfg.Now(); tick > now.UnixNano() {
		return now
	}
	return time.Unix(0, tick)
}
