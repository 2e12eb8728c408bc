package scheduler

import (
	"maps"
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/task"
)

// Withdraw forgets who holds or wants a content, the owner's own host too: nobody is sent to
// anybody for what was withdrawn. Who still wants it says so again, and is served as if it
// were new.
func (s *Scheduler) Withdraw(now time.Time, id task.ID) {
	w := s.swarms[id]
	if w == nil {
		return
	}
	// Nobody is to be seeded for on the way.
	w.spec, w.seeding, w.seedSpec, w.seedAt, w.refusals = nil, false, nil, time.Time{}, nil
	members := slices.Collect(maps.Values(w.index))
	slices.Sort(members)
	for _, m := range members {
		s.part(now, w, m)
	}
	delete(s.swarms, id)
	delete(s.due, w)
}
