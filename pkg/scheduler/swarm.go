package scheduler

import (
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/rendezvous"
	"github.com/darter-io/darter/pkg/task"
)

// Hosts, swarms and members have small numbers instead of pointers: 10,000 hosts that hold 1,000 tasks are 10 million
// members, and a host that wants a task has some 32 links, of four bytes each.
type (
	hostIndex   int32 // in Scheduler.hosts
	swarmIndex  int32 // in Scheduler.numbered
	memberIndex int32 // in swarm.members
)

// hostState is one host in all its swarms.
type hostState struct {
	host.Host
	alive      bool
	generation uint64
	// former are the generations before, the newest last; source is where the host announces from.
	former  []uint64
	source  string
	seen    time.Time
	standby bool
	// rank is the host's weight among standbys.
	rank uint64
	// wanted is when it last announced a task that it wants.
	wanted time.Time
	// memberships are the host's swarms, so that they are found when it leaves.
	memberships []membership
	// reports are the hosts that reported this one as silent lately, one for each witness.
	reports []snub
	// snubbedUntil is until when no assignment names the host, because several reported it. Its next announce
	// shows that it is alive and ends that, but not in the swarms of snubbedIn, whose members could not use it.
	snubbedUntil time.Time
	snubbedIn    []swarmSnub
}

// swarmSnub is a swarm in which no assignment names a host for a while.
type swarmSnub struct {
	swarm *swarm
	until int64 // see Scheduler.nano
}

type membership struct {
	swarm  swarmIndex
	member memberIndex
}

// snub is a report that a host did not answer. The generation tells apart the processes of one host, and a host from a
// later one with the same number.
type snub struct {
	host       hostIndex
	generation uint64
	until      int64 // see Scheduler.nano
}

// standing is what a member does in its swarm.
type standing uint8

const (
	nowhere standing = iota // it is not in the swarm
	wanting                 // it wants the task
	holding                 // it holds all of it
)

// member is one host in one swarm. Most members only hold the task, so a member has few fields of its own.
type member struct {
	host hostIndex
	have int32
	// slot is its place in hostState.memberships.
	slot int32
	// place and zonePlace are its places in the lists of its crowd. zonePlace counts once the crowd has several zones.
	place, zonePlace int32
	standing         standing
	// pull is nil if the member has no links, and holds the task.
	pull *pull
}

// pull is what a member has while it wants the task, or is named to one that does.
type pull struct {
	starving bool
	// since is when the host began to want the task; see Scheduler.nano.
	since int64
	// links are the members that were named to it and those that it was named to.
	links []memberIndex
	// snubs are the neighbours that it reported as silent.
	snubs []snub
}

// noPull is what members without a pull have; it is never changed.
var noPull pull

// now returns the member's pull to read.
func (m *member) now() *pull {
	if m.pull == nil {
		return &noPull
	}
	return m.pull
}

// begin returns the member's pull to change.
func (m *member) begin() *pull {
	if m.pull == nil {
		m.pull = new(pull)
	}
	return m.pull
}

// swarm is all hosts that want or hold one task.
type swarm struct {
	id     task.ID
	number swarmIndex
	// counts are the scheduler's.
	counts *Stats
	// seeds are the scheduler's, and seedBy the source in them that this swarm's running seed counts for; empty: none.
	seeds   map[string]int
	seedBy  string
	members []member
	vacant  []memberIndex
	index   map[hostIndex]memberIndex
	// gates are the gateways of each zone, once there are several.
	gates map[string][]memberIndex

	wanting, holding crowd

	// spec is the last one that a host announced, specAt when. It holds that host's credentials: it
	// is dropped after Expiry, or when no host wants the task. A host that still starves has
	// announced it again by then.
	spec   *task.Spec
	specAt time.Time
	specBy string // the source of that host
	// specSize is what the spec takes, in bytes; specs are the scheduler's.
	specSize int64
	specs    *specs

	seedState
}

// member returns a member; the pointer is good until the next join.
func (w *swarm) member(m memberIndex) *member { return &w.members[m] }

// crowd returns the members of one standing.
func (w *swarm) crowd(st standing) *crowd {
	if st == holding {
		return &w.holding
	}
	return &w.wanting
}

// crowd is the members of one swarm that have the same standing, in lists to draw from. Their order
// means nothing; every member is once in all and once in its zone.
type crowd struct {
	all []memberIndex
	// zones has a list for each zone, once there are several. Before that, zone is the only one.
	zones map[string][]memberIndex
	zone  string
}

// of returns the members of one zone.
func (c *crowd) of(zone string) []memberIndex {
	switch {
	case c.zones != nil:
		return c.zones[zone]
	case c.zone == zone:
		return c.all
	}
	return nil
}

// spans reports whether a member is in another zone.
func (c *crowd) spans(zone string) bool {
	if c.zones == nil {
		return len(c.all) > 0 && c.zone != zone
	}
	for z := range c.zones {
		if z != zone {
			return true
		}
	}
	return false
}

func (c *crowd) add(w *swarm, m memberIndex, zone string) {
	me := w.member(m)
	me.place = int32(len(c.all))
	if len(c.all) == 0 {
		c.zones, c.zone = nil, zone
	}
	if c.zones == nil && zone != c.zone {
		c.zones = map[string][]memberIndex{c.zone: slices.Clone(c.all)}
		for i, other := range c.all {
			w.member(other).zonePlace = int32(i)
		}
	}
	c.all = append(c.all, m)
	if c.zones != nil {
		me.zonePlace = int32(len(c.zones[zone]))
		c.zones[zone] = append(c.zones[zone], m)
	}
}

func (c *crowd) remove(w *swarm, m memberIndex, zone string) {
	me := w.member(m)
	last := c.all[len(c.all)-1]
	c.all[me.place] = last
	w.member(last).place = me.place
	c.all = c.all[:len(c.all)-1]
	if c.zones == nil {
		return
	}
	list := c.zones[zone]
	last = list[len(list)-1]
	list[me.zonePlace] = last
	w.member(last).zonePlace = me.zonePlace
	if len(list) == 1 {
		delete(c.zones, zone)
	} else {
		c.zones[zone] = list[:len(list)-1]
	}
}

// admit adds an unknown host.
func (s *Scheduler) admit(id host.Host, generation uint64, from string) hostIndex {
	var h hostIndex
	if n := len(s.unused); n > 0 {
		h, s.unused = s.unused[n-1], s.unused[:n-1]
	} else {
		h = hostIndex(len(s.hosts))
		s.hosts = append(s.hosts, hostState{})
	}
	s.hosts[h] = hostState{
		Host: id, alive: true, generation: generation, source: from, rank: rendezvous.Weight(standbyKey, string(id.ID)),
	}
	s.byID[id.ID] = h
	if from != "" {
		src := s.sources[from]
		if src == nil {
			src = &source{hosts: make(map[hostIndex]struct{}, 1)}
			s.sources[from] = src
		}
		src.hosts[h] = struct{}{}
	}
	return h
}

// clearMax bounds how many memberships one call ends, and how many hosts it gives up, so that no call takes long.
const clearMax = 256

// forget gives a host up and ends clearMax memberships; the next calls of Announce and Tick end the rest. The owner's
// own host leaves all its swarms at once, and stays known. It returns the seeds that this starts.
func (s *Scheduler) forget(now time.Time, h hostIndex) (seeds []task.Spec) {
	if h != s.self {
		s.giveUp(h)
		return s.clear(now, clearMax)
	}
	st := &s.hosts[h]
	for len(st.memberships) > 0 {
		last := st.memberships[len(st.memberships)-1]
		if seed := s.part(now, s.numbered[last.swarm], last.member); seed != nil {
			seeds = append(seeds, *seed)
		}
	}
	return seeds
}

// giveUp takes a host out of the Scheduler, except for its memberships. It is not reachable from now on.
func (s *Scheduler) giveUp(h hostIndex) {
	st := &s.hosts[h]
	delete(s.byID, st.ID)
	if src := s.sources[st.source]; src != nil {
		src.tasks -= len(st.memberships)
		if delete(src.hosts, h); len(src.hosts) == 0 {
			delete(s.sources, st.source)
		}
	}
	st.alive, st.source, st.seen = false, "", time.Time{}
	s.goneHosts = append(s.goneHosts, h)
}

// hasGone reports whether clear has more to end.
func (s *Scheduler) hasGone() bool { return len(s.goneHosts)+len(s.goneSwarms) > 0 }

// clear ends up to most memberships of hosts and swarms that are gone. It returns the seeds that this starts.
func (s *Scheduler) clear(now time.Time, most int) (seeds []task.Spec) {
	for ; most > 0 && len(s.goneHosts) > 0; most-- {
		h := s.goneHosts[0]
		st := &s.hosts[h]
		n := len(st.memberships)
		if n == 0 {
			*st = hostState{}
			s.unused = append(s.unused, h)
			s.goneHosts = s.goneHosts[1:]
			continue
		}
		last := st.memberships[n-1]
		if seed := s.part(now, s.numbered[last.swarm], last.member); seed != nil {
			seeds = append(seeds, *seed)
		}
	}
	for ; most > 0 && len(s.goneSwarms) > 0; most-- {
		w := s.goneSwarms[0]
		n := len(w.members)
		if n == 0 {
			s.goneSwarms[0] = nil // the array behind the slice must not keep it
			s.goneSwarms = s.goneSwarms[1:]
			continue
		}
		if m := memberIndex(n - 1); w.member(m).standing != nowhere {
			s.part(now, w, m) // it starts no seed: nobody knows the swarm
		}
		w.members = w.members[:n-1]
	}
	return seeds
}

// swarmOf returns the swarm of a task, a new one if there is none.
func (s *Scheduler) swarmOf(id task.ID) *swarm {
	w := s.swarms[id]
	if w != nil {
		return w
	}
	w = &swarm{id: id, counts: &s.stats, seeds: s.seeds, specs: &s.specs, index: make(map[hostIndex]memberIndex, 1)}
	if n := len(s.unnumbered); n > 0 {
		w.number, s.unnumbered = s.unnumbered[n-1], s.unnumbered[:n-1]
		s.numbered[w.number] = w
	} else {
		w.number = swarmIndex(len(s.numbered))
		s.numbered = append(s.numbered, w)
	}
	s.swarms[id] = w
	return w
}

// end ends a swarm without members.
func (s *Scheduler) end(w *swarm) {
	w.setSeeding(false)
	w.dropSpec()
	if s.swarms[w.id] == w {
		delete(s.swarms, w.id)
	}
	delete(s.due, w)
	s.numbered[w.number] = nil
	s.unnumbered = append(s.unnumbered, w.number)
}

// join returns the host's member in the swarm of a task, and makes both as needed. It calls space
// before a host joins a swarm, and fails when there is none.
func (s *Scheduler) join(h hostIndex, id task.ID, space func() bool) (w *swarm, m memberIndex, ok bool) {
	if w = s.swarms[id]; w != nil {
		if m, ok = w.index[h]; ok {
			return w, m, true
		}
	}
	if !space() {
		return nil, 0, false
	}
	w = s.swarmOf(id) // making space may have ended it
	st := &s.hosts[h]
	fresh := member{host: h, slot: int32(len(st.memberships))}
	if n := len(w.vacant); n > 0 {
		m, w.vacant = w.vacant[n-1], w.vacant[:n-1]
		w.members[m] = fresh
	} else {
		m = memberIndex(len(w.members))
		w.members = append(w.members, fresh)
	}
	w.index[h] = m
	st.memberships = append(st.memberships, membership{w.number, m})
	s.count(st, 1)
	return w, m, true
}

// part takes a member out of its swarm. It returns the seed that this starts, or nil.
func (s *Scheduler) part(now time.Time, w *swarm, m memberIndex) *task.Spec {
	h := w.member(m).host
	w.unlinkAll(m)
	s.stand(w, m, nowhere)

	st := &s.hosts[h]
	if gates := w.gates[st.Zone]; len(gates) > 0 {
		w.gates[st.Zone] = slices.DeleteFunc(gates, func(c memberIndex) bool { return c == m })
	}
	slot, last := w.member(m).slot, len(st.memberships)-1
	moved := st.memberships[last]
	st.memberships[slot] = moved
	s.numbered[moved.swarm].member(moved.member).slot = slot
	st.memberships = st.memberships[:last]
	s.count(st, -1)

	delete(w.index, h)
	w.members[m] = member{}
	w.vacant = append(w.vacant, m)

	if len(w.wanting.all) == 0 {
		w.dropSpec()
	}
	seed := s.afterParting(now, w, h)
	if len(w.index) == 0 && len(w.refusals) == 0 {
		s.end(w)
	}
	return seed
}

// stand moves a member to another standing.
func (s *Scheduler) stand(w *swarm, m memberIndex, to standing) {
	me := w.member(m)
	from := me.standing
	if from == to {
		return
	}
	if from != nowhere {
		w.crowd(from).remove(w, m, s.hosts[me.host].Zone)
		*s.stats.of(from)--
	}
	me.standing = to
	if to == nowhere {
		return
	}
	w.crowd(to).add(w, m, s.hosts[me.host].Zone)
	*s.stats.of(to)++
	if to == wanting {
		return
	}
	if me.host == s.self {
		w.setSeeding(false)
		w.seedState = seedState{}
	}
	if me.pull != nil {
		me.pull.starving, me.pull.snubs = false, nil
		// Two holders close the connection between them, so both have a link free.
		for _, other := range slices.Backward(me.pull.links) {
			if w.member(other).standing == holding {
				w.unlink(m, other)
			}
		}
		me.rest()
	}
	if len(w.wanting.all) == 0 {
		w.dropSpec()
	}
}

// spans reports whether a member is in another zone.
func (w *swarm) spans(zone string) bool { return w.wanting.spans(zone) || w.holding.spans(zone) }

// setSeeding notes whether the owner's own host gets the task from its origin.
func (w *swarm) setSeeding(seeding bool) {
	switch {
	case seeding && !w.seeding:
		w.counts.Seeding++
		if w.seedBy = w.specBy; w.seedBy != "" {
			w.seeds[w.seedBy]++
		}
	case !seeding && w.seeding:
		w.counts.Seeding--
		if w.seeds[w.seedBy]--; w.seeds[w.seedBy] <= 0 {
			delete(w.seeds, w.seedBy)
		}
		w.seedBy = ""
	}
	w.seeding = seeding
}

func (w *swarm) linked(a, b memberIndex) bool { return slices.Contains(w.member(a).now().links, b) }

func (w *swarm) link(a, b memberIndex) {
	one, other := w.member(a).begin(), w.member(b).begin()
	one.links = append(one.links, b)
	other.links = append(other.links, a)
	w.counts.Links++
}

func (w *swarm) unlink(a, b memberIndex) {
	if w.member(a).dropLink(b) {
		w.counts.Links--
	}
	w.member(b).dropLink(a)
}

func (w *swarm) unlinkAll(m memberIndex) {
	me := w.member(m)
	if me.pull == nil {
		return
	}
	for _, other := range me.pull.links {
		w.member(other).dropLink(m)
	}
	w.counts.Links -= len(me.pull.links)
	me.pull.links = nil
	me.rest()
}

func (m *member) dropLink(to memberIndex) (dropped bool) {
	links := m.now().links
	i := slices.Index(links, to)
	if i < 0 {
		return false
	}
	links[i] = links[len(links)-1]
	m.pull.links = links[:len(links)-1]
	m.rest()
	return true
}

// rest frees the pull of a member that holds the task once no member is linked to it.
func (m *member) rest() {
	if m.standing == holding && m.pull != nil && len(m.pull.links) == 0 {
		m.pull = nil
	}
}
