package scheduler

import (
	"time"

	"github.com/darter-io/darter/pkg/task"
)

// Forget forgets a task and every host that holds or wants it, the owner's own host too. A host that still
// wants it announces so again and is served as a newcomer. With many members, the next calls of Tick free their memory.
func (s *Scheduler) Forget(now time.Time, id task.ID) {
	w := s.swarms[id]
	if w == nil {
		return
	}
	// A member that leaves must not start a seed.
	w.setSeeding(false)
	w.spec, w.seedSpec, w.seedAt, w.refusals = nil, nil, time.Time{}, nil
	delete(s.due, w)
	if len(w.index) == 0 {
		s.end(w)
		return
	}
	delete(s.swarms, id)
	s.goneSwarms = append(s.goneSwarms, w)
	s.clear(now, clearMax)
}
