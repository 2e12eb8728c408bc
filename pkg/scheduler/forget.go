package scheduler

import (
	"maps"
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/task"
)

// Forget forgets a task and every host that holds or wants it, the owner's own host too. A host that still
// wants it announces so again and is served as a newcomer.
func (s *Scheduler) Forget(now time.Time, id task.ID) {
	w := s.swarms[id]
	if w == nil {
		return
	}
	// A member that leaves must not start a seed.
	w.spec, w.seeding, w.seedSpec, w.seedAt, w.refusals = nil, false, nil, time.Time{}, nil
	members := slices.Collect(maps.Values(w.index))
	slices.Sort(members)
	for _, m := range members {
		s.part(now, w, m)
	}
	delete(s.swarms, id)
	delete(s.due, w)
}
