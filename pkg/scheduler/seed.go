package scheduler

import (
	"cmp"
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/task"
)

// unableFor is how long other hosts get a task from its origin after the disk of the owner's own host failed for it.
const unableFor = time.Minute

// refusalsMax bounds the refusals that the Scheduler remembers for one task.
const refusalsMax = 16

// seedState is what the owner's own host does for a swarm.
type seedState struct {
	// seeding says that the owner's own host gets the task from its origin, by seedSpec.
	seeding  bool
	seedSpec *task.Spec
	// refusals are why the last attempts failed, the newest last.
	refusals []refusal
	// elsewhere is when a host last reported a live seed other than the owner's own host, or that it moved to another
	// owner.
	elsewhere time.Time
	// starved is when a starving host first had to wait for that seed.
	starved time.Time
	// endedAt is when the last attempt ended without the task, for any reason.
	endedAt time.Time
	// seedAt is when time alone starts a seed; zero for never.
	seedAt time.Time
	// unableUntil is until when the owner's own host does not try the task again, because its disk failed.
	// substitute is the host that gets it from the origin instead, in the life of that generation.
	unableUntil time.Time
	substitute  hostIndex
	generation  uint64
}

// refusal is an origin's answer to one attempt.
type refusal struct {
	spec  *task.Spec
	cause error
	at    time.Time
	scope Scope
}

// Scope says which hosts an origin's failure concerns.
type Scope int

const (
	// OfRegistry concerns all hosts whose specs have the same registry.
	OfRegistry Scope = iota
	// OfAsker concerns hosts whose specs have the same repository, credentials, tag and promised length.
	OfAsker
	// OfRequest is OfAsker for the hosts that waited for this answer. A later host gets an answer of its own: the registry
	// may have granted access, or received the blob, since then.
	OfRequest
)

// concerns reports whether the origin would give a host with spec the same answer. The answer of one
// registry says nothing about the same task in another.
func (r refusal) concerns(spec *task.Spec) bool {
	if r.spec == nil || spec == nil {
		return r.scope == OfRegistry
	}
	return r.spec.Upstream == spec.Upstream && (r.scope == OfRegistry || r.spec.SameAsker(*spec))
}

// Failed records that the origin refused a task, or could not be reached. Hosts that wait for the task and that the
// failure concerns get the cause with their next announce. Others get it for FailureFor, unless its scope is
// [OfRequest].
//
// used is the spec of the request to the origin, nil if unknown. It can differ from the one in
// [Answer].Seeds: a client of the seed may have started the download with its own.
func (s *Scheduler) Failed(now time.Time, id task.ID, cause error, used *task.Spec, scope Scope) {
	w := s.swarmOf(id)
	if len(w.refusals) == refusalsMax {
		w.refusals = slices.Delete(w.refusals, 0, 1)
	}
	if used == nil {
		used = w.seedSpec
	}
	w.refusals = append(w.refusals, refusal{used, cause, now, scope})
	w.setSeeding(false)
	w.seedSpec, w.seedAt, w.endedAt = nil, time.Time{}, now
	s.due[w] = struct{}{}
	if m, ok := w.index[s.self]; ok && w.member(m).standing == wanting {
		// The engine of that host gave the download up: no host should connect there for this task meanwhile.
		s.part(now, w, m)
	}
}

// Unable records that the owner's own host cannot keep a task, because its disk failed or is full. That is no
// reason for others: for a minute, one of the hosts that want the task gets it from the origin instead, and serves
// the others.
func (s *Scheduler) Unable(now time.Time, id task.ID) {
	w := s.swarms[id]
	if w == nil {
		return
	}
	w.setSeeding(false)
	w.seedSpec, w.seedAt = nil, time.Time{}
	w.unableUntil = now.Add(unableFor)
	if m, ok := w.index[s.self]; ok && w.member(m).standing == wanting {
		s.part(now, w, m)
	}
}

// substituteFor returns the member that gets the task from its origin in place of the owner's own host, while that one
// is unable. It is member m if m can reach no other; needed says that one host must get it.
func (s *Scheduler) substituteFor(now time.Time, w *swarm, m memberIndex, needed bool) (memberIndex, bool) {
	if !now.Before(w.unableUntil) {
		return 0, false
	}
	if c, ok := w.index[w.substitute]; ok && s.hosts[w.substitute].generation == w.generation &&
		w.member(c).standing == wanting && (c == m || s.reachable(now, w, m, c)) {
		return c, true
	}
	if !needed {
		return 0, false
	}
	w.substitute = w.member(m).host
	w.generation = s.hosts[w.substitute].generation
	return m, true
}

// Done records that the owner's own host holds all pieces of a task; have is their number.
func (s *Scheduler) Done(id task.ID, have int) {
	s.take(time.Time{}, s.self, Entry{Task: id, Event: Completed, Have: have}, always)
}

// Holds reports whether the owner's own host counts as a holder of a task.
func (s *Scheduler) Holds(id task.ID) bool {
	w := s.swarms[id]
	if w == nil {
		return false
	}
	m, ok := w.index[s.self]
	return ok && w.member(m).standing == holding
}

// Lost records that the owner's own host no longer holds a task, because its store evicted it. It
// returns the seeds that this starts.
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

// startSeed sends the owner's own host to the origin and returns the spec; nil when that host itself
// announced, without one.
func (s *Scheduler) startSeed(w *swarm) *task.Spec {
	spec := w.spec
	w.setSeeding(true)
	w.seedSpec, w.seedAt, w.starved = spec, time.Time{}, time.Time{}
	w.refusals = slices.DeleteFunc(w.refusals, func(r refusal) bool { return r.concerns(spec) })
	// It is a member from now on, so that this answer can already name it.
	if _, m, ok := s.join(s.self, w.id, func() bool { return true }); ok {
		s.stand(w, m, wanting)
	}
	return spec
}

// wantsSeed reports whether an entry of member m is a reason to go to the origin now.
func (s *Scheduler) wantsSeed(now time.Time, w *swarm, m memberIndex, e Entry) bool {
	own := w.member(m).host == s.self
	switch {
	case w.seeding, e.Event == Progress, s.holderFor(now, w, m):
		return false
	case !own && w.spec == nil:
		return false
	case !own && len(w.refusals) == 0 && now.Before(w.endedAt.Add(s.cfg.FailureFor)):
		return false // the engine gave up without a reason; see afterParting
	}
	if until := w.elsewhere.Add(elsewhereFor); now.Before(until) && !s.starvedLong(now, w, e) {
		// Another owner thought that this one is gone, or this one that the other is.
		s.seedLater(w, until)
		return false
	}
	if until := s.heardBy(e); now.Before(until) {
		s.seedLater(w, until)
		return false
	}
	if (e.Event == Started && e.Have > 0 || s.woke && !own) && len(s.byID) > s.fewest(own) {
		// The download started under another owner, or may have gone on under another one while this one was
		// stopped, and what its hosts hold together is not known yet. The origin is only for what none of them has.
		wait := s.cfg.Grace
		if s.woke {
			wait = max(wait, elsewhereFor) // for one announce of each host
		}
		s.seedLater(w, now.Add(wait))
		return false
	}
	if !own && s.crowded(w) {
		s.seedLater(w, now.Add(crowdedPause))
		return false
	}
	return true
}

// heardBy is until when an owner that has just started in an older cluster hears the hosts first. What they hold comes
// with their heartbeats. Hosts with pieces of a task announce every second: another owner may just have sent its own
// host to the origin for them, and they soon report that seed.
func (s *Scheduler) heardBy(e Entry) time.Time {
	switch {
	case !s.joined:
		return time.Time{}
	case e.Have > 0:
		return s.firstReport.Add(min(s.cfg.HearFirst, s.cfg.Grace))
	}
	return s.firstReport.Add(s.cfg.HearFirst)
}

// crowdedPause is how long a seed waits where too many run for its source.
const crowdedPause = time.Second

// crowded reports whether as many seeds run as may for the source of a swarm's spec.
func (s *Scheduler) crowded(w *swarm) bool {
	return w.specBy != "" && s.seeds[w.specBy] >= s.cfg.SourceSeedsMax
}

// elsewhereFor is for how long after the last report of another live seed the owner's own host leaves the origin to it.
// Hosts that wait for pieces announce every second.
const elsewhereFor = 1500 * time.Millisecond

// starvedMax is how long starving hosts wait for a seed that others report: a member may report one that is none.
const starvedMax = 10 * time.Second

// starvedLong reports whether hosts of a swarm have starved for too long although others report a seed.
func (s *Scheduler) starvedLong(now time.Time, w *swarm, e Entry) bool {
	if e.Event != Starving {
		return false
	}
	if w.starved.IsZero() {
		w.starved = now
	}
	return now.Sub(w.starved) >= starvedMax
}

// noteSeeds records that a host has live seeds as neighbours.
func (s *Scheduler) noteSeeds(now time.Time, w *swarm, seeds []host.ID) {
	if slices.ContainsFunc(seeds, func(id host.ID) bool { return id != s.hosts[s.self].ID }) {
		leaveToOthers(now, w)
	}
}

// leaveToOthers leaves the origin to another seed, or to another owner's, for a while.
func leaveToOthers(now time.Time, w *swarm) {
	if !now.Before(w.elsewhere.Add(starvedMax)) {
		w.starved = time.Time{} // hosts starved while there was a former seed
	}
	w.elsewhere = now
}

// anyHas reports whether another host than the owner's own has parts of a task.
func (s *Scheduler) anyHas(w *swarm) bool {
	return slices.ContainsFunc(w.wanting.all, func(m memberIndex) bool {
		return w.member(m).have > 0 && w.member(m).host != s.self
	})
}

// fewest is how many hosts are known if there are only the owner and the announcing host.
func (s *Scheduler) fewest(own bool) int {
	if own {
		return 1
	}
	return 2
}

// seedLater starts a seed at a given time, unless a reason against it comes up before.
func (s *Scheduler) seedLater(w *swarm, at time.Time) {
	if w.seedAt.IsZero() || at.Before(w.seedAt) {
		w.seedAt = at
	}
	s.due[w] = struct{}{}
}

// runDue starts the seeds that are due, and forgets failures that no host waits for and old specs.
func (s *Scheduler) runDue(now time.Time) (seeds []task.Spec) {
	var start []*swarm
	for w := range s.due {
		if !w.seedAt.IsZero() && !now.Before(w.seedAt) {
			if until := w.elsewhere.Add(elsewhereFor); now.Before(until) {
				w.seedAt = until
				continue
			}
			start = append(start, w)
		}
	}
	// In the order of their names: the order of a map would make answers vary.
	slices.SortFunc(start, func(a, b *swarm) int { return cmp.Compare(a.id, b.id) })
	for _, w := range start {
		w.seedAt = time.Time{}
		able := !now.Before(w.unableUntil) && len(w.refusals) == 0 && w.spec != nil
		switch {
		case w.seeding || !able || len(w.holding.all) > 0 || !s.othersWant(w):
		case s.crowded(w):
			w.seedAt = now.Add(crowdedPause)
		default:
			seeds = append(seeds, *s.startSeed(w))
		}
	}
	for w := range s.due {
		memory := s.cfg.Expiry // hosts that waited have announced by then, or are gone
		if len(w.index) == 0 {
			memory = s.cfg.FailureFor
		}
		w.refusals = slices.DeleteFunc(w.refusals, func(r refusal) bool { return now.Sub(r.at) >= memory })
		if len(w.refusals) == 0 && len(w.index) == 0 {
			s.end(w)
		}
		if w.spec != nil && now.Sub(w.specAt) >= s.cfg.Expiry {
			w.dropSpec()
		}
		if len(w.refusals) == 0 && w.seedAt.IsZero() && w.spec == nil {
			delete(s.due, w)
		}
	}
	return seeds
}

// afterParting decides what it means for the seed that a host left the swarm.
func (s *Scheduler) afterParting(now time.Time, w *swarm, gone hostIndex) *task.Spec {
	if gone == s.self && w.seeding {
		// The engine gave up, or its reader left. A refusal of the origin would have come by
		// Failed; so others may try, but not in a tight loop.
		w.setSeeding(false)
		w.seedSpec, w.endedAt = nil, now
		if s.othersWant(w) {
			s.seedLater(w, now.Add(s.cfg.FailureFor))
		}
		return nil
	}
	if w.seeding || len(w.holding.all) > 0 || w.spec == nil || now.Before(w.endedAt.Add(s.cfg.FailureFor)) ||
		now.Before(w.unableUntil) {
		return nil
	}
	for _, m := range w.wanting.all {
		me := w.member(m)
		// Hosts that expire together leave one by one: a dead one needs no seed.
		if !me.now().starving || now.Sub(s.hosts[me.host].seen) >= s.cfg.Expiry {
			continue
		}
		if until := w.elsewhere.Add(elsewhereFor); now.Before(until) {
			s.seedLater(w, until)
			return nil
		}
		if s.crowded(w) {
			s.seedLater(w, now.Add(crowdedPause))
			return nil
		}
		return s.startSeed(w)
	}
	return nil
}

// othersWant reports whether any host but the owner's own wants the task.
func (s *Scheduler) othersWant(w *swarm) bool {
	n := len(w.wanting.all)
	if m, ok := w.index[s.self]; ok && w.member(m).standing == wanting {
		n--
	}
	return n > 0
}

// failureFor is the failure of the origin that concerns member m, or nil.
func (s *Scheduler) failureFor(now time.Time, w *swarm, m memberIndex, e Entry) error {
	if len(w.refusals) == 0 || s.holderFor(now, w, m) {
		return nil
	}
	if e.Event == Progress && e.Have > 0 {
		return nil // its neighbours may have the rest; otherwise it announces Starving
	}
	me := w.member(m)
	for _, r := range slices.Backward(w.refusals) {
		waited := me.now().since <= s.nano(r.at)
		if r.concerns(e.Spec) && (waited || r.scope != OfRequest && now.Sub(r.at) < s.cfg.FailureFor) {
			// The failure that it waited for comes once; a further announce asks for another try.
			me.begin().since = s.nano(now)
			return r.cause
		}
	}
	return nil
}

// holderFor reports whether a live host holds the whole task and member m can reach it. One is
// enough, and nearly always the first one is.
func (s *Scheduler) holderFor(now time.Time, w *swarm, m memberIndex) bool {
	for _, c := range w.holding.all {
		if c == m {
			continue
		}
		// The owner's own host needs no second copy, even if m cannot reach it.
		if w.member(c).host == s.self || s.reachable(now, w, m, c) {
			return true
		}
	}
	return false
}
