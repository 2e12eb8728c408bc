package scheduler

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/task"
)

// refusalsMax bounds how many clients' refusals are remembered for one task.
const refusalsMax = 16

// seedState is what the owner's own host does for a swarm.
type seedState struct {
	// seeding says that the owner's own host brings the content from its origin, by
	// seedSpec.
	seeding  bool
	seedSpec *task.Spec
	// refusals are why attempts failed lately, the newest last.
	refusals []refusal
	// endedAt is when the last attempt ended without the content, for whatever reason.
	endedAt time.Time
	// seedAt is when time alone starts a seed; zero for never.
	seedAt time.Time
}

// refusal is an origin's answer to one attempt.
type refusal struct {
	spec  *task.Spec
	cause error
	at    time.Time
	// personal says that it was about the repository and the credentials in spec.
	personal bool
}

// concerns reports whether a host that comes with spec would hear the same. What one registry
// says is nothing to those who want the same content of another.
func (r refusal) concerns(spec *task.Spec) bool {
	if r.spec == nil || spec == nil {
		return !r.personal
	}
	return r.spec.Upstream == spec.Upstream && (!r.personal || r.spec.SameAsker(*spec))
}

// Failed takes in that the origin refused a content, or could not be reached. Whoever waits
// for it is told, whenever it asks next; who asks later is told for FailureFor. A personal
// failure is about repository and credentials in the spec that was used and is told only to
// those who come with the same, any other only to those who want the content of the same registry.
// Asked is the spec that was used, nil where that is not known: who seeds may have been told of another since,
// by a client of its own.
func (s *Scheduler) Failed(now time.Time, id task.ID, cause error, asked *task.Spec, personal bool) {
	w := s.swarms[id]
	if w == nil {
		w = &swarm{id: id, index: make(map[hostIndex]memberIndex, 1)}
		s.swarms[id] = w
	}
	if len(w.refusals) == refusalsMax {
		w.refusals = slices.Delete(w.refusals, 0, 1)
	}
	if asked == nil {
		asked = w.seedSpec
	}
	w.refusals = append(w.refusals, refusal{asked, cause, now, personal})
	w.seeding, w.seedSpec, w.seedAt, w.endedAt = false, nil, time.Time{}, now
	s.due[w] = struct{}{}
	if m, ok := w.index[s.self]; ok && w.member(m).standing == wanting {
		// Its engine gave the download up: nobody should be sent there meanwhile.
		s.part(now, w, m)
	}
}

// Done takes in that the owner's own host holds all pieces of a content, have in number.
func (s *Scheduler) Done(id task.ID, have int) {
	s.take(time.Time{}, s.self, Entry{Task: id, Event: Completed, Have: have}, always)
}

// Holds reports whether the owner's own host counts as a holder of a content.
func (s *Scheduler) Holds(id task.ID) bool {
	w := s.swarms[id]
	if w == nil {
		return false
	}
	m, ok := w.index[s.self]
	return ok && w.member(m).standing == holding
}

// Lost takes in that the owner's own host does not hold a content any more, because its
// store evicted it. It returns what must be brought from its origin at once.
func (s *Scheduler) Lost(now time.Time, id task.ID) (seeds []task.Spec) {
	if !s.Holds(id) {
		return nil
	}
	w := s.swarms[id]
	if seed := s.part(now, w, w.index[s.self]); seed != nil {
		seeds = append(seeds, *seed)
	}
	return seeds
}

// startSeed sends the owner's own host to the origin and returns what it shall bring; nil
// when it was that host that asked, and said nothing.
func (s *Scheduler) startSeed(w *swarm) *task.Spec {
	spec := w.spec
	w.seeding, w.seedSpec, w.seedAt = true, spec, time.Time{}
	w.refusals = slices.DeleteFunc(w.refusals, func(r refusal) bool { return r.concerns(spec) })
	// It is a member from now on, so that this very answer can send the asker to it.
	if _, m, ok := s.join(s.self, w.id, func() bool { return true }); ok {
		s.stand(w, m, wanting)
	}
	return spec
}

// wantsSeed reports whether the news of member m are a reason to go to the origin now.
func (s *Scheduler) wantsSeed(now time.Time, w *swarm, m memberIndex, e Entry) bool {
	own := w.member(m).host == s.self
	switch {
	case w.seeding, e.Event == Progress, s.holderFor(now, w, m):
		return false
	case !own && w.spec == nil:
		return false
	case !own && len(w.refusals) == 0 && now.Before(w.endedAt.Add(s.cfg.FailureFor)):
		return false // the engine gave up without a word; see afterParting
	}
	if e.Event == Started && e.Have > 0 && len(s.byID) > s.fewest(own) {
		// A download that has begun elsewhere: this swarm lost its owner, and what it
		// holds as a whole is not known yet. Only what nobody has is worth the origin.
		s.seedLater(w, now.Add(s.cfg.Grace))
		return false
	}
	return true
}

// fewest is how many hosts are known when the asker is the only one besides the owner.
func (s *Scheduler) fewest(own bool) int {
	if own {
		return 1
	}
	return 2
}

// seedLater has a seed started at a given time, unless a reason not to turns up before.
func (s *Scheduler) seedLater(w *swarm, at time.Time) {
	if w.seedAt.IsZero() || at.Before(w.seedAt) {
		w.seedAt = at
	}
	s.due[w] = struct{}{}
}

// runDue starts the seeds whose time has come, and forgets failures that nobody waits for
// and specs that are old.
func (s *Scheduler) runDue(now time.Time) (seeds []task.Spec) {
	// In the order of their names, because a map has none and answers must not vary.
	for _, w := range slices.SortedFunc(maps.Keys(s.due), func(a, b *swarm) int { return cmp.Compare(a.id, b.id) }) {
		if !w.seedAt.IsZero() && !now.Before(w.seedAt) {
			w.seedAt = time.Time{}
			if !w.seeding && len(w.refusals) == 0 && w.spec != nil && len(w.holding.all) == 0 && s.othersWant(w) {
				seeds = append(seeds, *s.startSeed(w))
			}
		}
		memory := s.cfg.Expiry // whoever waited has asked by then, or is gone
		if len(w.index) == 0 {
			memory = s.cfg.FailureFor
		}
		w.refusals = slices.DeleteFunc(w.refusals, func(r refusal) bool { return now.Sub(r.at) >= memory })
		if len(w.refusals) == 0 && len(w.index) == 0 {
			delete(s.swarms, w.id)
		}
		if w.spec != nil && now.Sub(w.specAt) >= s.cfg.Expiry {
			w.spec = nil
		}
		if len(w.refusals) == 0 && w.seedAt.IsZero() && w.spec == nil {
			delete(s.due, w)
		}
	}
	return seeds
}

// afterParting looks at what the departure of a host means for the seed.
func (s *Scheduler) afterParting(now time.Time, w *swarm, gone hostIndex) *task.Spec {
	if gone == s.self && w.seeding {
		// The engine gave up, or its reader went. Had the origin refused, it would have
		// been told by Failed; so others may have their own try, but not in a tight loop.
		w.seeding, w.seedSpec, w.endedAt = false, nil, now
		if s.othersWant(w) {
			s.seedLater(w, now.Add(s.cfg.FailureFor))
		}
		return nil
	}
	if w.seeding || len(w.holding.all) > 0 || w.spec == nil || now.Before(w.endedAt.Add(s.cfg.FailureFor)) {
		return nil
	}
	for _, m := range w.wanting.all {
		me := w.member(m)
		// Hosts that expire together depart one by one: the dead starve for nothing.
		if me.starving && now.Sub(s.hosts[me.host].seen) < s.cfg.Expiry {
			return s.startSeed(w)
		}
	}
	return nil
}

// othersWant reports whether any host but the owner's own wants the content.
func (s *Scheduler) othersWant(w *swarm) bool {
	n := len(w.wanting.all)
	if m, ok := w.index[s.self]; ok && w.member(m).standing == wanting {
		n--
	}
	return n > 0
}

// failureFor is what member m has to be told about the origin, or nil.
func (s *Scheduler) failureFor(now time.Time, w *swarm, m memberIndex, e Entry) error {
	if len(w.refusals) == 0 || s.holderFor(now, w, m) {
		return nil
	}
	if e.Event == Progress && e.Have > 0 {
		return nil // its neighbours may have the rest; it will say when it starves
	}
	me := w.member(m)
	for _, r := range slices.Backward(w.refusals) {
		waited := me.since <= s.nano(r.at)
		if r.concerns(e.Spec) && (waited || now.Sub(r.at) < s.cfg.FailureFor) {
			// It is told once of what it waited for; if it asks on, it wants another try.
			me.since = s.nano(now)
			return r.cause
		}
	}
	return nil
}

// holderFor reports whether somebody alive holds the whole content and may be asked for it
// by member m. One is enough, and nearly always the first is.
func (s *Scheduler) holderFor(now time.Time, w *swarm, m memberIndex) bool {
	for _, c := range w.holding.all {
		if c == m {
			continue
		}
		// The owner's own host needs no second copy, even if the asker cannot reach it.
		if w.member(c).host == s.self || s.reachable(now, w, m, c) {
			return true
		}
	}
	return false
}
