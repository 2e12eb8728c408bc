// Package scheduler decides which hosts exchange pieces: it gives every host that wants a task a
// random few live neighbours, and sends the owner's own host to the origin only when no live host
// holds the task.
//
// A Scheduler introduces hosts and assigns no pieces, and it may lose its state at any time, because
// hosts announce again. It never acts: it has no clock, lock, socket or goroutine. Time is an argument,
// randomness comes from a seed, and the same calls give the same answers. Start at
// [Scheduler.Announce] and the examples.
package scheduler

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/task"
)

// ErrFull says that a bound admits no further host or task.
var ErrFull = errors.New("scheduler is full")

// Config holds the limits and times of a Scheduler. A zero field means its default.
type Config struct {
	// Self is the owner's own host: the only one that the Scheduler sends to an origin, except a substitute after
	// [Scheduler.Unable]. It is always alive.
	Self host.Host
	// Seed makes the random choices.
	Seed uint64

	// Neighbours is the most that one assignment names. Fewer than 12 thin the mesh (1.08 of the
	// ideal time at 12, 1.14 at 8), more than 24 gain nothing. Default 16.
	Neighbours int
	// Gateways is how many hosts of one zone bring the pieces of one task into it, when hosts of
	// several zones want it. Each is linked to all others and to some in other zones. Fewer use
	// less of the bandwidth between zones, more agree more slowly on a piece. Default 8.
	Gateways int
	// LinksMax is how many links one host may have in one swarm. Each host that joins adds 16,
	// so the mean is 32: with a cap of 32 only the newest hosts have links free, and the last of
	// 1000 hosts is 33 links from the seed; with 36 it is 4. Default 40.
	LinksMax int
	// SeedLinksMax is the same for the owner's own host. A seed sends every piece once or twice,
	// however many links it has: more links are more idle connections. Default 40.
	SeedLinksMax int

	// Expiry is how long a host counts as alive after its last announce. Shorter drops hosts
	// that are merely short of CPU during a pull. Default 15 s.
	Expiry time.Duration
	// SilentReports is how many hosts must report a host as silent before it is snubbed: no
	// assignment names it for Expiry. Default 3.
	SilentReports int
	// Grace is how long a swarm whose owner died in the middle of a download may use what its
	// hosts have before the seed asks the origin for the rest; a starving host ends it early.
	// Default 1 s: every host of that swarm has announced itself by then.
	Grace time.Duration
	// HearFirst is how long after the first report the owner hears what the hosts hold, if one of them was a member of
	// the cluster before: until then, it sends no seed to the origin for a host that has no piece. Default 0.
	HearFirst time.Duration
	// FailureFor is how long an origin's failure answers later announces; then the seed tries the
	// origin again. A failure [OfRequest] answers none. Longer spares a failing registry, shorter recovers sooner.
	// Default 2 s.
	FailureFor time.Duration
	// IntervalActive and IntervalIdle say when a host should announce again: the first while it
	// wanted anything within IntervalIdle (default 1 s), otherwise the second (default 5 s). At a
	// third of Expiry, two announces may get lost.
	IntervalActive, IntervalIdle time.Duration

	// HostsMax and TasksMax bound the memory that announces can take: hosts, and tasks of one
	// host. Defaults 50,000 and 65,536. A further task that the host wants displaces one that it
	// holds; a further task that it holds is not remembered.
	HostsMax, TasksMax int
	// SourceHostsMax and SourceTasksMax are the same for all hosts of one [Report].Source
	// together, since one member can invent hosts as it likes. The host with most tasks there
	// gives one up. Defaults 1024 and 65,536.
	SourceHostsMax, SourceTasksMax int
	// SourceSeedsMax bounds the tasks that the owner's own host gets from their origins at once because of hosts of one
	// Source: each takes connections and files. Further ones begin as others end. Default 2048.
	SourceSeedsMax int
	// SourceSpecsMax bounds the bytes of the specs that hosts of one Source announced within Expiry, SpecsMax those of all
	// hosts. A host whose spec finds no space gets a failure, unless another host has the task or told its spec.
	// Defaults 32 MiB and 256 MiB.
	SourceSpecsMax, SpecsMax int
	// TotalMax bounds the tasks of all hosts together; the host with most gives one up. A task
	// takes some 80 bytes for each host that holds it, and 250 for one that wants it. Default 16,000,000. SwarmsMax
	// bounds the different tasks in the same way; each takes some 600 bytes more. Default 400,000.
	TotalMax, SwarmsMax int
}

// withDefaults sets what is zero.
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
	number(&c.SourceSeedsMax, 2048)
	number(&c.SourceSpecsMax, 32<<20)
	number(&c.SpecsMax, 256<<20)
	number(&c.TotalMax, 16_000_000)
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
	Started   Event = "started"   // it wants the task
	Progress  Event = "progress"  // it has more pieces than before
	Completed Event = "completed" // it holds everything
	Stopped   Event = "stopped"   // it neither wants nor holds the task
	Starving  Event = "starving"  // it wants pieces that none of its neighbours has
)

// Report is one announce of a host.
type Report struct {
	Host host.Host
	// Generation is drawn at the host's start; a new one ends all that the host announced
	// before. The owner's own host needs none.
	Generation uint64
	// Source is where the report came from: the host's network address, which it cannot choose
	// as it likes. Reports of the owner's own host may leave it out.
	Source  string
	Entries []Entry
	// Standby says that the host can lead tasks while no owner does.
	Standby bool
	// Leaving says that the host leaves now, with everything that it holds.
	Leaving bool
	// Joined says that the host was a member of the cluster already.
	Joined bool
	// Woke says that the owner's own host was stopped until a moment ago: the report may be old, and other hosts may
	// lead the task meanwhile.
	Woke bool
}

// Entry is what a host announces about one task.
type Entry struct {
	Task  task.ID
	Event Event
	// Have counts the pieces that the host has.
	Have int
	// Spec says how to get the task from its origin; nil: the host does not say. The Scheduler
	// keeps it for Expiry and for a running seed, so the caller must not change it.
	Spec *task.Spec
	// Silent lists neighbours in this task that did not answer. Left lists those that answered and do not take part in
	// it: no assignment names them to this host for a while, and nothing follows for others.
	Silent, Left []host.ID
	// Seeds are neighbours that get the task from its origin now.
	Seeds []host.ID
	// Moved says that a host that stopped reports the task to another owner now.
	Moved bool
	// Need is how many more neighbours the host can use.
	Need int
}

// Answer is the reply to a Report.
type Answer struct {
	// Assignments answer the entries, in their order.
	Assignments []Assignment
	// Interval is when the host should announce again at the latest.
	Interval time.Duration
	// Unknown says that the host was not known before this report: it should announce again
	// what it holds.
	Unknown bool
	// Seeds are the tasks that the owner's own host must get from their origins now.
	Seeds []task.Spec
	// Forgotten counts the tasks that a bound kept out or displaced; Greedy is the host that has
	// most of the tasks that the bound counts.
	Forgotten int
	Greedy    host.Host
}

// Assignment is the answer for one task.
type Assignment struct {
	Neighbours []Neighbour
	// Seed sends the host to the origin itself: it is the owner's own host, and no other holds
	// the task.
	Seed bool
	// Reading says that the owner's own host gets the task from its origin now.
	Reading bool
	// Parts says that other hosts have parts of the task. It is set for the owner's own host only.
	Parts bool
	// Failure is the cause that [Scheduler.Failed] took in a moment ago, or while the host waited.
	Failure error
	// Local restricts the host to neighbours of its own zone: the gateways bring pieces there.
	Local bool
}

// Neighbour is a live host to exchange pieces with.
type Neighbour struct {
	host.Host
	// Reason names for people why the Scheduler chose it.
	Reason Reason
}

// Reason is why a neighbour was chosen.
type Reason string

// The reasons, in the order in which they are tried.
const (
	ReasonSeed   Reason = "seed"    // it gets the task from the origin
	ReasonHolder Reason = "holder"  // it holds everything
	ReasonGate   Reason = "gateway" // it brings pieces into the host's zone, as the host does
	ReasonZone   Reason = "zone"    // a random host in the same zone
	ReasonRemote Reason = "remote"  // a random host in another zone
	ReasonFill   Reason = "fill"    // any host, because the zones gave too few
)

// Changes is what follows from time or from a host that leaves.
type Changes struct {
	// Gone are the hosts that no longer count as alive.
	Gone []host.ID
	// Seeds are the tasks that the owner's own host must get from their origins now.
	Seeds []task.Spec
	// More says that another call with the same time has more to do.
	More bool
}

// Scheduler holds which hosts want and hold which tasks. It is not safe for concurrent use.
type Scheduler struct {
	cfg  Config
	rand *rand.Rand

	self   hostIndex
	byID   map[host.ID]hostIndex
	hosts  []hostState
	unused []hostIndex

	// departed are the hosts that left within Expiry. Announces of that life count no longer: a late
	// one would bring the host back, and it would block the ID for the next life.
	departed map[host.ID]departure

	// sources are the hosts of each address, total the memberships of all.
	sources map[string]*source
	total   int
	// seeds counts the running seeds by the source whose spec started them.
	seeds map[string]int
	// specs counts the bytes of the specs of all swarms.
	specs specs

	swarms map[task.ID]*swarm
	// numbered are all swarms by their numbers, also those that goneSwarms has.
	numbered   []*swarm
	unnumbered []swarmIndex
	// goneHosts and goneSwarms have memberships that clear still has to end. Announces do not find them.
	goneHosts  []hostIndex
	goneSwarms []*swarm
	// stats counts what changes; see Stats.
	stats Stats
	// epoch is the first time that a call brought; see nano.
	epoch time.Time
	// woke is Woke of the report that is being answered.
	woke bool
	// firstReport is when the first host announced here. joined says that a host was Joined when it did so.
	firstReport time.Time
	joined      bool
	// due are the swarms in which time alone may change something.
	due map[*swarm]struct{}

	// scratch is kept from one choice to the next so that choosing does not allocate.
	scratch struct{ candidates, chosen, afar []memberIndex }
}

// New returns a Scheduler that knows only the owner's own host.
func New(cfg Config) *Scheduler {
	s := &Scheduler{
		cfg:      cfg.withDefaults(),
		rand:     rand.New(rand.NewPCG(cfg.Seed, 0x6461727465720000)),
		byID:     make(map[host.ID]hostIndex),
		departed: make(map[host.ID]departure),
		sources:  make(map[string]*source),
		seeds:    make(map[string]int),
		specs:    specs{of: make(map[string]int64)},
		swarms:   make(map[task.ID]*swarm),
		due:      make(map[*swarm]struct{}),
	}
	s.self = s.admit(cfg.Self, 0, "")
	return s
}

// nano is a time in fewer bytes than a [time.Time]: nanoseconds since epoch by the monotonic
// clock. It is never 0, so that 0 can stand for none.
func (s *Scheduler) nano(t time.Time) int64 {
	if s.epoch.IsZero() {
		s.epoch = t.Add(-1)
	}
	return int64(t.Sub(s.epoch))
}

// Announce records one host's report and answers it. The error wraps [ErrFull] when the host is
// unknown and a bound admits no other, and is an *[InUseError] when the ID is that of another live
// host; then the report changes nothing.
func (s *Scheduler) Announce(now time.Time, r Report) (Answer, error) {
	if err := s.MayReport(now, r); err != nil {
		return Answer{}, err
	}
	h, known := s.byID[r.Host.ID]
	if d, ok := s.departed[r.Host.ID]; ok && d.generation == r.Generation && now.Before(d.until) {
		// The report was on its way when its host left.
		return Answer{Interval: s.cfg.IntervalIdle, Assignments: make([]Assignment, len(r.Entries))}, nil
	}
	if r.Leaving {
		if known && h != s.self {
			s.departed[r.Host.ID] = departure{r.Generation, now.Add(s.cfg.Expiry)}
		}
		c := s.Leave(now, r.Host.ID)
		return Answer{Interval: s.cfg.IntervalIdle, Seeds: c.Seeds, Assignments: make([]Assignment, len(r.Entries))},
			nil
	}
	var answer Answer
	var former []uint64
	if known && h != s.self {
		// A new generation may have another disk and another address; a new zone means other neighbours. In both cases the
		// old announces no longer hold.
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
		if err := s.mayAdmit(r); err != nil {
			return answer, err
		}
		h = s.admit(r.Host, r.Generation, r.Source)
		s.hosts[h].former = former
		s.joined = s.joined || r.Joined
		if s.firstReport.IsZero() {
			s.firstReport = now
		}
		answer.Unknown = true
	}
	if h != s.self {
		s.hosts[h].Host = r.Host
	}
	s.heardOf(now, &s.hosts[h])
	s.hosts[h].standby = r.Standby

	// Each announce ends as many memberships of those that are gone as it brings, so that they cannot pile up.
	answer.Seeds = append(answer.Seeds, s.clear(now, len(r.Entries))...)
	answer.Assignments = make([]Assignment, len(r.Entries))
	s.woke = r.Woke
	space := s.spaceFor(now, h, &answer)
	for i, e := range r.Entries {
		var seed *task.Spec
		answer.Assignments[i], seed = s.take(now, h, e, space)
		if seed != nil {
			answer.Seeds = append(answer.Seeds, *seed)
		}
	}
	answer.Interval = s.cfg.IntervalIdle
	if now.Sub(s.hosts[h].wanted) < s.cfg.IntervalIdle {
		answer.Interval = s.cfg.IntervalActive
	}
	return answer, nil
}

// MayReport returns nil if a report may speak for its host, otherwise an *[InUseError]: the ID is that of another live
// host.
func (s *Scheduler) MayReport(now time.Time, r Report) error {
	if h, known := s.byID[r.Host.ID]; known && h != s.self {
		return s.claim(now, &s.hosts[h], r)
	}
	return nil
}

// take records one entry and answers it; seed is the task that the owner's own host must get from the origin because of
// it, or nil. space makes space for a task that the host does not have yet; see [Scheduler.spaceFor].
func (s *Scheduler) take(
	now time.Time, h hostIndex, e Entry, space func(wants, fresh bool) bool,
) (a Assignment, seed *task.Spec) {
	switch e.Event {
	case Stopped:
		if w := s.swarms[e.Task]; w != nil {
			if m, ok := w.index[h]; ok {
				if e.Moved {
					leaveToOthers(now, w)
				}
				seed = s.part(now, w, m)
			}
		}
		return a, seed
	case Completed:
		if w, m, ok := s.join(h, e.Task, func() bool { return space(false, s.swarms[e.Task] == nil) }); ok {
			w.member(m).have = int32(e.Have)
			s.stand(w, m, holding)
		}
		return a, nil
	case Started, Progress, Starving:
	default:
		return a, nil
	}

	w, m, ok := s.join(h, e.Task, func() bool { return space(true, s.swarms[e.Task] == nil) })
	if !ok {
		const text = "task %s: %w: this host, or all hosts at its address, want more tasks at once than the owner " +
			"remembers"
		return Assignment{Failure: fmt.Errorf(text, e.Task.Short(), ErrFull)}, nil
	}
	me := w.member(m)
	me.have = int32(e.Have)
	if e.Event == Started {
		// The host starts over: the neighbours of its last attempt are no longer its own.
		w.unlinkAll(m)
		me.begin().since = s.nano(now)
	}
	me.begin().starving = e.Event == Starving
	s.stand(w, m, wanting)
	s.hosts[h].wanted = now
	if e.Spec != nil && !s.keepSpec(now, w, e.Spec, s.hosts[h].source) && w.spec == nil && !w.seeding &&
		!s.holderFor(now, w, m) {
		const text = "task %s: %w: hosts at this address, or all hosts, announced too many bytes of specs within %s"
		return Assignment{Failure: fmt.Errorf(text, e.Task.Short(), ErrFull, s.cfg.Expiry)}, nil
	}
	s.snub(now, w, m, e.Left, false)
	s.snub(now, w, m, e.Silent, true)

	if a.Failure = s.failureFor(now, w, m, e); a.Failure != nil {
		return a, nil
	}
	s.noteSeeds(now, w, e.Seeds)
	needed := s.wantsSeed(now, w, m, e)
	if c, ok := s.substituteFor(now, w, m, needed); ok && h != s.self {
		a.Seed, a.Reading = c == m, c != m
	} else if needed {
		seed = s.startSeed(w)
	}
	if h == s.self && w.seeding {
		a.Seed, seed = true, nil // the answer itself is what starts it
		a.Parts = s.anyHas(w)
	}
	a.Reading = a.Reading || w.seeding && h != s.self
	gates := s.gateways(now, w, m)
	a.Local = gates != nil && h != s.self && !slices.Contains(gates, m)
	a.Neighbours = s.choose(now, w, m, min(e.Need, s.cfg.Neighbours), gates, a.Local)
	return a, seed
}

// Leave forgets a host at once, with everything that it wants and holds. The owner's own host
// stays known, but keeps nothing.
func (s *Scheduler) Leave(now time.Time, id host.ID) Changes {
	h, ok := s.byID[id]
	if !ok {
		return Changes{}
	}
	return Changes{Gone: []host.ID{id}, Seeds: s.forget(now, h)}
}

// Tick lets time pass: it forgets hosts that have not announced for Expiry, and starts the seeds
// that are due. Call it about once a second, and again as long as there is More: a call ends a bounded number of
// memberships, so that others need not wait long where a caller serialises them.
func (s *Scheduler) Tick(now time.Time) Changes {
	c := Changes{Seeds: s.clear(now, clearMax)}
	if c.More = s.hasGone(); c.More {
		return c
	}
	for h := range s.hosts {
		if len(c.Gone) == clearMax {
			break
		}
		if st := &s.hosts[h]; st.alive && hostIndex(h) != s.self && now.Sub(st.seen) >= s.cfg.Expiry {
			c.Gone = append(c.Gone, st.ID)
			s.giveUp(hostIndex(h))
		}
	}
	c.Seeds = append(c.Seeds, s.clear(now, clearMax)...)
	if c.More = s.hasGone() || len(c.Gone) == clearMax; c.More {
		return c
	}
	maps.DeleteFunc(s.departed, func(_ host.ID, d departure) bool { return !now.Before(d.until) })
	c.Seeds = append(c.Seeds, s.runDue(now)...)
	return c
}

// standbyKey is the key of the rendezvous order of standbys.
const standbyKey = "standbys"

// Standbys lists the addresses of at most n live hosts that can lead tasks while no owner does: the
// first ones in rendezvous order, which all owners agree on and which hosts that join or leave
// seldom change. The owner's own host is none. It takes time proportional to the hosts.
func (s *Scheduler) Standbys(now time.Time, n int) []string {
	var first []*hostState // in rendezvous order
	for h := range s.hosts {
		st := &s.hosts[h]
		if hostIndex(h) == s.self || !st.alive || !st.standby || now.Sub(st.seen) >= s.cfg.Expiry ||
			now.Before(st.snubbedUntil) {
			continue
		}
		at, _ := slices.BinarySearchFunc(first, st, func(a, b *hostState) int {
			return cmp.Or(cmp.Compare(b.rank, a.rank), cmp.Compare(a.ID, b.ID))
		})
		if at < n {
			first = slices.Insert(first[:min(len(first), n-1)], at, st)
		}
	}
	var out []string
	for _, st := range first {
		out = append(out, st.Addr)
	}
	slices.Sort(out)
	return out
}

// Stats counts what a Scheduler knows.
type Stats struct {
	Hosts   int // alive, the owner's own among them
	Swarms  int // tasks that a host wants or holds
	Wanting int // memberships of hosts that want a task
	Holding int // memberships of hosts that hold all of it
	Seeding int // tasks that the owner's own host gets from their origins
	Links   int // pairs of hosts of which one was named to the other
}

// of returns the count of the members of one standing.
func (st *Stats) of(standing standing) *int {
	if standing == holding {
		return &st.Holding
	}
	return &st.Wanting
}

// Stats returns the counts; it takes the same time however much there is. The memberships of hosts that are gone count
// until Tick has ended them.
func (s *Scheduler) Stats() Stats {
	st := s.stats
	st.Hosts, st.Swarms = len(s.byID), len(s.swarms)
	return st
}

// HostInfo is a host as the scheduler sees it.
type HostInfo struct {
	host.Host
	// Tasks is how many tasks it wants or holds; Seen when it announced last, zero for the
	// owner's own.
	Tasks int
	Seen  time.Time
}

// hostsListed bounds one list of Hosts.
const hostsListed = 512

// Hosts lists hosts that are alive, in no order: begin with from 0, and go on with next until that is 0. A host that
// starts again between two calls can be in both lists, or in none.
func (s *Scheduler) Hosts(from int) (list []HostInfo, next int) {
	end := min(from+hostsListed, len(s.hosts))
	for h := from; h < end; h++ {
		if st := &s.hosts[h]; st.alive {
			list = append(list, HostInfo{Host: st.Host, Tasks: len(st.memberships), Seen: st.seen})
		}
	}
	if end < len(s.hosts) {
		next = end
	}
	return list, next
}

// Knows reports whether a live host wants or holds the task, or its failure is remembered.
func (s *Scheduler) Knows(id task.ID) bool { return s.swarms[id] != nil }
