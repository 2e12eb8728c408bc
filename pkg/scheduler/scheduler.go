// Package scheduler decides who downloads from whom: it hands every host that wants a
// content a random few live hosts to exchange pieces with, and asks the owner to bring the
// content from its origin only when nobody alive holds it.
//
// A Scheduler is a matchmaker, not a dispatcher: pieces are the peers' own business, and
// what it knows can be lost at any time, because hosts tell it again. It never does
// anything: no clock, no lock, no socket, no goroutine. Time is an argument, randomness
// comes from a seed, and the same calls give the same answers. Start at [Scheduler.Announce].
package scheduler

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/rendezvous"
	"github.com/darter-io/darter/pkg/task"
)

// ErrFull tells that no further host is taken in.
var ErrFull = errors.New("scheduler is full")

// Config is what a Scheduler goes by. A zero field means its default.
type Config struct {
	// Self is the owner's own host: the only one that is told to go to an origin. It is
	// always alive.
	Self host.Host
	// Seed makes the random choices; the same seed and the same calls give the same
	// answers.
	Seed uint64

	// Neighbours is the most that one answer hands out. Fewer than 12 thin the mesh (1.08
	// of the ideal time at 12, 1.14 at 8), more than 24 buy nothing. Default 16.
	Neighbours int
	// Gateways is how many hosts of one zone bring the pieces of one content into it, when
	// hosts of several zones want it. Each knows all others, and some afar. Fewer fill the
	// link between zones worse, more make agreeing on a piece slower. Default 8.
	Gateways int
	// LinksMax is how many hosts know one host in one swarm. Each joiner brings 16 links,
	// so the mean is 32: with a cap of 32 only the newest hosts have room, and the last of
	// 1000 joiners is 33 links from the seed; with 36 it is 4. Default 40.
	LinksMax int
	// SeedLinksMax is the same for the owner's own host. A seed sends every piece once or
	// twice, however many know it: more of them are more idle connections. Default 40.
	SeedLinksMax int

	// Expiry is how long a host is taken for alive after its last announce. Shorter drops
	// hosts that are merely starved of CPU by a pull. Default 15 s.
	Expiry time.Duration
	// SilentReports is how many hosts must report one silent before nobody is sent to it
	// any more, for Expiry. Default 3.
	SilentReports int
	// Grace is how long a swarm that lost its owner in the middle of a download may live
	// on what it holds before the origin is asked for the rest; a starving host cuts it
	// short. Default 1 s: every host of that swarm has announced itself by then.
	Grace time.Duration
	// FailureFor is how long an origin's refusal is told to those who ask after it; then
	// the origin is tried anew. Longer spares a failing registry, shorter recovers sooner.
	// Default 2 s.
	FailureFor time.Duration
	// IntervalActive and IntervalIdle say when a host should announce again: the first
	// while it asked for anything within IntervalIdle (default 1 s), else the second
	// (default 5 s). A third of Expiry leaves room for two that get lost.
	IntervalActive, IntervalIdle time.Duration

	// HostsMax and TasksMax bound the memory that announces can take: hosts, and tasks of
	// one host. Defaults 50,000 and 65,536. A task beyond them takes the place of one that the
	// host holds, where the host wants it; one that it holds is not remembered.
	HostsMax, TasksMax int
	// SourceHostsMax and SourceTasksMax are the same for all hosts of one [Report].Source
	// together, since one member can invent hosts as it likes. Who has most there makes room.
	// Defaults 1024 and 65,536.
	SourceHostsMax, SourceTasksMax int
	// TotalMax bounds the tasks of all hosts together; who has most makes room. A task that
	// many hold takes some 250 bytes for each holder. Default 8,000,000. SwarmsMax bounds the
	// different tasks in the same way; each takes some 1,300 bytes besides. Default 400,000.
	TotalMax, SwarmsMax int
}

// withDefaults fills in what is zero.
func (c Config) withDefaults() Config {
	number := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	duration := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	number(&c.Neighbours, 16)
	number(&c.Gateways, 8)
	number(&c.LinksMax, 40)
	number(&c.SeedLinksMax, 40)
	number(&c.SilentReports, 3)
	number(&c.HostsMax, 50_000)
	number(&c.TasksMax, 65_536)
	number(&c.SourceHostsMax, 1024)
	number(&c.SourceTasksMax, 65_536)
	number(&c.TotalMax, 8_000_000)
	number(&c.SwarmsMax, 400_000)
	duration(&c.Expiry, 15*time.Second)
	duration(&c.Grace, time.Second)
	duration(&c.FailureFor, 2*time.Second)
	duration(&c.IntervalActive, time.Second)
	duration(&c.IntervalIdle, 5*time.Second)
	return c
}

// Event is what happened to a task on the announcing host.
type Event string

// The events, named as on the wire. Any other is answered with nothing.
const (
	Started   Event = "started"   // it wants the content
	Progress  Event = "progress"  // it has more pieces than before
	Completed Event = "completed" // it holds everything
	Stopped   Event = "stopped"   // it neither wants nor holds the content
	Starving  Event = "starving"  // it wants pieces and nobody it knows has them
)

// Report is one host's news.
type Report struct {
	Host host.Host
	// Generation is drawn at the host's start; with a new one, all that the host
	// announced before is forgotten. It means nothing for the owner's own host.
	Generation uint64
	// Source is where the report came from: the host's network address, which it can not choose
	// as it likes. Reports from the owner itself may leave it out.
	Source  string
	Entries []Entry
	// Standby says that the host can lead tasks where no owner does.
	Standby bool
	// Leaving says that the host goes away now, with everything it holds.
	Leaving bool
}

// Entry is the news of one task.
type Entry struct {
	Task  task.ID
	Event Event
	// Have counts the pieces that the host has.
	Have int
	// Spec tells how to bring the content from its origin; nil when the host does not
	// say. The Scheduler keeps it for Expiry and for a running seed: it must not change.
	Spec *task.Spec
	// Silent lists neighbours in this task that did not answer.
	Silent []host.ID
	// Need is how many more neighbours the host can use.
	Need int
}

// Answer is what a Report leads to.
type Answer struct {
	// Assignments answer the entries, in their order.
	Assignments []Assignment
	// Interval is when the host should announce again at the latest.
	Interval time.Duration
	// Unknown says that the host was not known before this report: what it holds
	// should be told again.
	Unknown bool
	// Seeds are the contents that the owner's own host must bring from their origins now.
	Seeds []task.Spec
	// Forgotten counts the tasks that a bound kept from being remembered, or that made room for
	// others; Greedy is the host that has most of those that the bound is for.
	Forgotten int
	Greedy    host.Host
}

// Assignment is the answer for one task.
type Assignment struct {
	Neighbours []Neighbour
	// Seed tells the asker to bring the content from the origin itself: it is the owner's
	// own host, and nobody else holds it.
	Seed bool
	// Failure is what [Scheduler.Failed] was told a moment ago, or while the asker waited.
	Failure error
	// Local tells the asker to take pieces from its own zone alone: others bring them there.
	Local bool
}

// Neighbour is a live host to exchange pieces with.
type Neighbour struct {
	host.Host
	// Reason says for people why it was chosen.
	Reason Reason
}

// Reason is why a neighbour was chosen.
type Reason string

// The reasons, in the order in which they are tried.
const (
	ReasonSeed   Reason = "seed"    // it brings the content from the origin
	ReasonHolder Reason = "holder"  // it holds everything
	ReasonGate   Reason = "gateway" // it brings pieces into the asker's zone, as the asker does
	ReasonZone   Reason = "zone"    // a random host in the asker's zone
	ReasonRemote Reason = "remote"  // a random host in another zone
	ReasonFill   Reason = "fill"    // any host, because the zones gave too few
)

// Changes is what time or a departure brought about.
type Changes struct {
	// Gone are the hosts that are no longer taken for alive.
	Gone []host.ID
	// Seeds are the contents that the owner's own host must bring from their origins now.
	Seeds []task.Spec
}

// Scheduler holds who wants and who holds what. It is not safe for concurrent use.
type Scheduler struct {
	cfg  Config
	rand *rand.Rand

	self   hostIndex
	byID   map[host.ID]hostIndex
	hosts  []hostState
	unused []hostIndex

	// departed are the hosts that said farewell within Expiry: nothing of that life is believed any
	// more, or a late announce would make a host of it that stands in the next life's way.
	departed map[host.ID]departure

	// sources are the hosts of each address, total the memberships of all.
	sources map[string]*source
	total   int

	swarms map[task.ID]*swarm
	// epoch is the first time that the scheduler was told; see nano.
	epoch time.Time
	// due are the swarms in which time alone may change something.
	due map[*swarm]struct{}

	// scratch is kept from one choice to the next so that choosing does not allocate.
	scratch struct{ candidates, chosen, afar []memberIndex }
}

// New returns a Scheduler that knows nobody but the owner's own host.
func New(cfg Config) *Scheduler {
	s := &Scheduler{
		cfg:      cfg.withDefaults(),
		rand:     rand.New(rand.NewPCG(cfg.Seed, 0x6461727465720000)),
		byID:     make(map[host.ID]hostIndex),
		departed: make(map[host.ID]departure),
		sources:  make(map[string]*source),
		swarms:   make(map[task.ID]*swarm),
		due:      make(map[*swarm]struct{}),
	}
	s.self = s.admit(cfg.Self, 0, "")
	return s
}

// nano is a time in fewer bytes than a [time.Time]: nanoseconds since the first one, by the
// clock that nobody sets. Never 0, so that 0 can stand for none.
func (s *Scheduler) nano(t time.Time) int64 {
	if s.epoch.IsZero() {
		s.epoch = t.Add(-1)
	}
	return int64(t.Sub(s.epoch))
}

// Announce takes in one host's news and answers it. The error wraps [ErrFull] when the
// host is unknown and there is no room for another, and is an *[InUseError] when the ID is
// that of another live host: nothing of the report is taken in then.
func (s *Scheduler) Announce(now time.Time, r Report) (Answer, error) {
	h, known := s.byID[r.Host.ID]
	if known && h != s.self {
		if err := s.claim(now, &s.hosts[h], r); err != nil {
			return Answer{}, err
		}
	}
	if d, ok := s.departed[r.Host.ID]; ok && d.generation == r.Generation && now.Before(d.until) {
		// It was on its way when its host said farewell.
		return Answer{Interval: s.cfg.IntervalIdle, Assignments: make([]Assignment, len(r.Entries))}, nil
	}
	if r.Leaving {
		if known && h != s.self {
			s.departed[r.Host.ID] = departure{r.Generation, now.Add(s.cfg.Expiry)}
		}
		c := s.Leave(now, r.Host.ID)
		return Answer{Interval: s.cfg.IntervalIdle, Seeds: c.Seeds, Assignments: make([]Assignment, len(r.Entries))}, nil
	}
	var answer Answer
	var former []uint64
	if known && h != s.self {
		// A new life may have another disk and another address; a new zone means other
		// neighbours. Either way the old announcements are worth nothing.
		was := &s.hosts[h]
		if was.generation != r.Generation {
			former = append(was.former, was.generation)
			former = former[max(0, len(former)-formerMax):]
		}
		if was.generation != r.Generation || was.Zone != r.Host.Zone {
			answer.Seeds = s.forget(now, h)
			known = false
		}
	}
	if !known {
		if err := s.hasRoom(r); err != nil {
			return answer, err
		}
		h = s.admit(r.Host, r.Generation, r.Source)
		s.hosts[h].former = former
		answer.Unknown = true
	}
	if h != s.self {
		s.hosts[h].Host = r.Host
	}
	s.hosts[h].seen, s.hosts[h].standby = now, r.Standby

	answer.Assignments = make([]Assignment, len(r.Entries))
	room := s.roomFor(now, h, &answer)
	for i, e := range r.Entries {
		var seed *task.Spec
		answer.Assignments[i], seed = s.take(now, h, e, room)
		if seed != nil {
			answer.Seeds = append(answer.Seeds, *seed)
		}
	}
	answer.Interval = s.cfg.IntervalIdle
	if now.Sub(s.hosts[h].asked) < s.cfg.IntervalIdle {
		answer.Interval = s.cfg.IntervalActive
	}
	return answer, nil
}

// take takes in the news of one task and answers it; seed is what the owner's own host
// must bring from its origin for it, or nil. room makes room for a task that the host does not
// have yet; see [Scheduler.roomFor].
func (s *Scheduler) take(
	now time.Time, h hostIndex, e Entry, room func(wants, fresh bool) bool,
) (a Assignment, seed *task.Spec) {
	switch e.Event {
	case Stopped:
		if w := s.swarms[e.Task]; w != nil {
			if m, ok := w.index[h]; ok {
				seed = s.part(now, w, m)
			}
		}
		return a, seed
	case Completed:
		if w, m, ok := s.join(h, e.Task, func() bool { return room(false, s.swarms[e.Task] == nil) }); ok {
			w.member(m).have = int32(e.Have)
			s.stand(w, m, holding)
		}
		return a, nil
	case Started, Progress, Starving:
	default:
		return a, nil
	}

	w, m, ok := s.join(h, e.Task, func() bool { return room(true, s.swarms[e.Task] == nil) })
	if !ok {
		return Assignment{Failure: fmt.Errorf("task %s: %w: this host, or all at its address, want more tasks at once than are remembered", e.Task.Short(), ErrFull)}, nil
	}
	me := w.member(m)
	me.have, me.starving = int32(e.Have), e.Event == Starving
	if e.Event == Started {
		// The host began anew: whom it knew in an earlier attempt says nothing.
		w.unlinkAll(m)
		me.since = s.nano(now)
	}
	s.stand(w, m, wanting)
	s.hosts[h].asked = now
	if e.Spec != nil {
		w.spec, w.specAt = e.Spec, now
		s.due[w] = struct{}{}
	}
	s.silence(now, w, m, e.Silent)

	if a.Failure = s.failureFor(now, w, m, e); a.Failure != nil {
		return a, nil
	}
	if s.wantsSeed(now, w, m, e) {
		seed = s.startSeed(w)
	}
	if h == s.self && w.seeding {
		a.Seed, seed = true, nil // the answer itself is what starts it
	}
	gates := s.gateways(now, w, m)
	a.Local = gates != nil && h != s.self && !slices.Contains(gates, m)
	a.Neighbours = s.choose(now, w, m, min(e.Need, s.cfg.Neighbours), gates, a.Local)
	return a, seed
}

// Leave forgets a host at once, with everything it wants and holds. The owner's own host
// stays known, but keeps nothing.
func (s *Scheduler) Leave(now time.Time, id host.ID) Changes {
	h, ok := s.byID[id]
	if !ok {
		return Changes{}
	}
	return Changes{Gone: []host.ID{id}, Seeds: s.forget(now, h)}
}

// Tick lets time pass: hosts that were not heard of for Expiry are forgotten, and what was
// put off is begun. Call it about once a second.
func (s *Scheduler) Tick(now time.Time) Changes {
	var c Changes
	for h := range s.hosts {
		if st := &s.hosts[h]; st.alive && hostIndex(h) != s.self && now.Sub(st.seen) >= s.cfg.Expiry {
			c.Gone = append(c.Gone, st.ID)
			c.Seeds = append(c.Seeds, s.forget(now, hostIndex(h))...)
		}
	}
	maps.DeleteFunc(s.departed, func(_ host.ID, d departure) bool { return !now.Before(d.until) })
	c.Seeds = append(c.Seeds, s.runDue(now)...)
	return c
}

// standbyKey is what the order of standbys is computed for.
const standbyKey = "standbys"

// Standbys lists the addresses of at most n live hosts that can lead tasks where no owner does:
// those that come first in an order that all owners agree on, so that who joins or leaves
// seldom changes them. The owner's own host is none. It takes time proportional to the hosts.
func (s *Scheduler) Standbys(now time.Time, n int) []string {
	addrs := map[string]string{}
	var ids []string
	for id, h := range s.byID {
		if st := &s.hosts[h]; h != s.self && st.standby && now.Sub(st.seen) < s.cfg.Expiry && !now.Before(st.shunned) {
			ids = append(ids, string(id))
			addrs[string(id)] = st.Addr
		}
	}
	var out []string
	for _, id := range rendezvous.Order(standbyKey, ids) {
		if len(out) == n {
			break
		}
		out = append(out, addrs[id])
	}
	slices.Sort(out)
	return out
}

// Stats counts what a Scheduler knows.
type Stats struct {
	Hosts    int // alive, the owner's own among them
	Swarms   int // tasks that somebody wants or holds
	Wanting  int // memberships of hosts that want a task
	Holding  int // memberships of hosts that hold all of it
	Seeding  int // tasks that are being brought from their origins
	Links    int // pairs of hosts that were sent to each other
	LinksTop int // most links of one host in one swarm
}

// Stats counts everything, in time proportional to what there is.
func (s *Scheduler) Stats() Stats {
	st := Stats{Hosts: len(s.byID), Swarms: len(s.swarms)}
	for _, w := range s.swarms {
		st.Wanting += len(w.wanting.all)
		st.Holding += len(w.holding.all)
		if w.seeding {
			st.Seeding++
		}
		for _, m := range w.index {
			links := len(w.member(m).links)
			st.Links += links
			st.LinksTop = max(st.LinksTop, links)
		}
	}
	st.Links /= 2
	return st
}

// HostInfo is a host as the scheduler sees it.
type HostInfo struct {
	host.Host
	// Tasks is how many contents it wants or holds; Seen when it announced last, zero for
	// the owner's own.
	Tasks int
	Seen  time.Time
}

// Hosts lists all hosts that are alive, in no order.
func (s *Scheduler) Hosts() []HostInfo {
	out := make([]HostInfo, 0, len(s.byID))
	for _, h := range s.byID {
		st := &s.hosts[h]
		out = append(out, HostInfo{Host: st.Host, Tasks: len(st.memberships), Seen: st.seen})
	}
	return out
}

// Knows reports whether anybody alive wants or holds the task, or its failure is remembered.
func (s *Scheduler) Knows(id task.ID) bool { return s.swarms[id] != nil }
