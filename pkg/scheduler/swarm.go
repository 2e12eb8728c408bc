package scheduler

import (
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/task"
)

// Hosts and members have small numbers instead of pointers: 10,000 hosts in 10 tasks are 100,000 members with some 32
// links each, and a link takes four bytes.
type (
	hostIndex   int32 // in Scheduler.hosts
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
	swarm  *swarm
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

// member is one host in one swarm.
type member struct {
	host     hostIndex
	standing standing
	starving bool
	have     int32
	// since is when the host began to want the task; see Scheduler.nano.
	since int64
	// links are the members that were named to it and those that it was named to.
	links []memberIndex
	// snubs are the neighbours that it reported as silent.
	snubs []snub
	// slot is its place in hostState.memberships.
	slot int32
	// place and zonePlace are its places in the lists of its crowd.
	place, zonePlace int32
}

// swarm is all hosts that want or hold one task.
type swarm struct {
	id      task.ID
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
	all   []memberIndex
	zones map[string][]memberIndex
}

func (c *crowd) add(w *swarm, m memberIndex, zone string) {
	me := w.member(m)
	me.place = int32(len(c.all))
	c.all = append(c.all, m)
	if c.zones == nil {
		c.zones = make(map[string][]memberIndex, 1)
	}
	me.zonePlace = int32(len(c.zones[zone]))
	c.zones[zone] = append(c.zones[zone], m)
}

func (c *crowd) remove(w *swarm, m memberIndex, zone string) {
	me := w.member(m)
	last := c.all[len(c.all)-1]
	c.all[me.place] = last
	w.member(last).place = me.place
	c.all = c.all[:len(c.all)-1]

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
	s.hosts[h] = hostState{Host: id, alive: true, generation: generation, source: from}
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

// forget takes a host out of all its swarms and, unless it is the owner's own, out of the Scheduler.
// It returns the seeds that this starts.
func (s *Scheduler) forget(now time.Time, h hostIndex) (seeds []task.Spec) {
	st := &s.hosts[h]
	for len(st.memberships) > 0 {
		last := st.memberships[len(st.memberships)-1]
		if seed := s.part(now, last.swarm, last.member); seed != nil {
			seeds = append(seeds, *seed)
		}
	}
	if h == s.self {
		return seeds
	}
	delete(s.byID, st.ID)
	if src := s.sources[st.source]; src != nil {
		if delete(src.hosts, h); len(src.hosts) == 0 {
			delete(s.sources, st.source)
		}
	}
	*st = hostState{}
	s.unused = append(s.unused, h)
	return seeds
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
	if w = s.swarms[id]; w == nil { // making space may have ended it
		w = &swarm{id: id, index: make(map[hostIndex]memberIndex, 1)}
		s.swarms[id] = w
	}
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
	st.memberships = append(st.memberships, membership{w, m})
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
	moved.swarm.member(moved.member).slot = slot
	st.memberships[last] = membership{} // the array behind the slice must not keep the swarm
	st.memberships = st.memberships[:last]
	s.count(st, -1)

	delete(w.index, h)
	w.members[m] = member{}
	w.vacant = append(w.vacant, m)

	if len(w.wanting.all) == 0 {
		w.spec = nil
	}
	seed := s.afterParting(now, w, h)
	if len(w.index) == 0 && len(w.refusals) == 0 {
		delete(s.swarms, w.id)
		delete(s.due, w)
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
	}
	me.standing = to
	if to == nowhere {
		return
	}
	w.crowd(to).add(w, m, s.hosts[me.host].Zone)
	if to == wanting {
		return
	}
	me.starving, me.snubs = false, nil
	if me.host == s.self {
		w.seedState = seedState{}
	}
	// Two holders close the connection between them, so both have a link free.
	for i := len(me.links) - 1; i >= 0; i-- {
		if other := me.links[i]; w.member(other).standing == holding {
			w.unlink(m, other)
		}
	}
	if len(w.wanting.all) == 0 {
		w.spec = nil
	}
}

// spans reports whether a member is in another zone.
func (w *swarm) spans(zone string) bool {
	for _, c := range [...]*crowd{&w.wanting, &w.holding} {
		for z := range c.zones {
			if z != zone {
				return true
			}
		}
	}
	return false
}

func (w *swarm) linked(a, b memberIndex) bool { return slices.Contains(w.member(a).links, b) }

func (w *swarm) link(a, b memberIndex) {
	w.member(a).links = append(w.member(a).links, b)
	w.member(b).links = append(w.member(b).links, a)
}

func (w *swarm) unlink(a, b memberIndex) {
	w.member(a).dropLink(b)
	w.member(b).dropLink(a)
}

func (w *swarm) unlinkAll(m memberIndex) {
	for _, other := range w.member(m).links {
		w.member(other).dropLink(m)
	}
	w.member(m).links = nil
}

func (m *member) dropLink(to memberIndex) {
	if i := slices.Index(m.links, to); i >= 0 {
		m.links[i] = m.links[len(m.links)-1]
		m.links = m.links[:len(m.links)-1]
	}
}
