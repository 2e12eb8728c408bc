package scheduler

import (
	"time"

	"github.com/darter-io/darter/pkg/task"
)

// Forget forgets a task and every host that holds or wants it, the owner's own host too. A host that still
// wants it announces so again and is served as a newcomer. With many members, the next calls of Tick free their memory.
// It returns the seeds that this starts: it also ends memberships of hosts that are gone, in other swarms.
func (s *Scheduler) Forget(now time.Time, id task.ID) (seeds []task.Spec) {
	w := s.swarms[id]
	if w == nil {
		return nil
	}
	// A member that leaves must not start a seed.
	w.setSeeding(false)
	w.dropSpec()
	w.seedSpec, w.seedAt, w.refusals = nil, time.Time{}, nil
	delete(s.due, w)
	if len(w.index) == 0 {
		s.end(w)
		return nil
	}
	delete(s.swarms, id)
	s.goneSwarms = append(s.goneSwarms, w)
	return s.clear(now, clearMax)
}
