package scheduler

import (
	"maps"
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/host"
)

const (
	// holdersMin is how many holders an assignment names, if there are any, so that every part of the mesh is connected to
	// the whole task.
	holdersMin = 2
	// sampleMax is how many members the choice looks at to find one that has what a starving host
	// needs.
	sampleMax = 64
	// scanMax bounds the search for a member with a link free when the sample found too few.
	scanMax = 1024
	// silentMax bounds how many hosts one host may report as silent in one swarm.
	silentMax = 64
)

// remoteShare is how many of n neighbours should be in other zones: 4 of 16.
func remoteShare(n int) int { return n / 4 }

// pool is where a choice draws from: the concatenation of two lists.
type pool struct{ a, b []memberIndex }

func (p pool) len() int { return len(p.a) + len(p.b) }

func (p pool) at(i int) memberIndex {
	if i < len(p.a) {
		return p.a[i]
	}
	return p.b[i-len(p.a)]
}

// choose names up to need others to member m and links them; gates are the gateways of its zone.
// If m is local, it names members of its zone only: the gateways bring the pieces of other zones.
func (s *Scheduler) choose(
	now time.Time, w *swarm, m memberIndex, need int, gates []memberIndex, local bool,
) []Neighbour {
	if need = s.claimLinks(w, m, need); need <= 0 {
		return nil
	}
	chosen := s.scratch.chosen[:0]
	zone := s.zone(w, m)
	draw := func(p pool, n int, reason Reason) {
		from := len(chosen)
		chosen = s.draw(now, w, m, chosen, p, n, reason)
		for _, c := range chosen[from:] {
			if !w.linked(m, c) {
				w.link(m, c)
			}
		}
	}
	var ends [6]int // where the choices for each reason end in chosen

	if self, ok := w.index[s.self]; ok && w.seeding && (!local || s.zone(w, self) == zone) {
		draw(pool{a: []memberIndex{self}}, 1, ReasonSeed)
	} else if c, ok := s.substituteFor(now, w, m, false); ok && c != m {
		draw(pool{a: []memberIndex{c}}, 1, ReasonSeed)
	}
	ends[0] = len(chosen)

	holders := holdersMin
	if w.member(m).now().starving {
		holders = need
	}
	// Those of the zone first: their pieces cost no byte between zones.
	draw(pool{a: w.holding.of(zone)}, min(holders, need-len(chosen)), ReasonHolder)
	if !local {
		draw(pool{a: w.holding.all}, min(holders-(len(chosen)-ends[0]), need-len(chosen)), ReasonHolder)
	}
	ends[1] = len(chosen)

	remote := remoteShare(need)
	if local {
		remote = 0
	} else {
		draw(pool{a: gates}, need-remote-len(chosen), ReasonGate)
	}
	ends[2] = len(chosen)

	inZone := 0
	for _, c := range chosen {
		if s.zone(w, c) == zone {
			inZone++
		}
	}
	near := pool{w.wanting.of(zone), w.holding.of(zone)}
	everybody := pool{w.wanting.all, w.holding.all}
	draw(near, min(need-remote-inZone, need-len(chosen)), ReasonZone)
	ends[3] = len(chosen)
	if !local && everybody.len() > near.len() {
		draw(pool{a: s.gatewaysAfar(w, zone)}, min(remote, need-len(chosen)), ReasonRemote)
		draw(everybody, min(remote-(len(chosen)-ends[3]), need-len(chosen)), ReasonRemote)
	}
	ends[4] = len(chosen)
	if !local {
		draw(everybody, need-len(chosen), ReasonFill)
	}
	ends[5] = len(chosen)

	s.scratch.chosen = chosen
	return s.neighbours(w, chosen, ends)
}

// claimLinks returns how many of need further links member m may get. It drops all links of a starving member
// that may not get so many.
func (s *Scheduler) claimLinks(w *swarm, m memberIndex, need int) int {
	starving := w.member(m).now().starving
	free := s.linksFree(w, m, starving)
	switch {
	case free >= need:
		return need
	case starving:
		// Such a member has lost its links without an announce of it.
		w.unlinkAll(m)
		return need
	}
	return free
}

// neighbours returns the chosen members with their reasons; ends says where the choices for each reason end.
func (s *Scheduler) neighbours(w *swarm, chosen []memberIndex, ends [6]int) []Neighbour {
	if len(chosen) == 0 {
		return nil
	}
	reasons := [...]Reason{ReasonSeed, ReasonHolder, ReasonGate, ReasonZone, ReasonRemote, ReasonFill}
	out := make([]Neighbour, 0, len(chosen))
	for r, end := range ends {
		for _, c := range chosen[len(out):end] {
			h := w.member(c).host
			out = append(out, Neighbour{Host: s.hosts[h].Host, Reason: reasons[r]})
		}
	}
	return out
}

// draw appends to chosen up to n members of the pool that may be named to m, at random.
//
// A preference for members with few links looks fair and is slower: the newest have the fewest, so
// that every host is linked to those that came just before and after it, and a new piece passes
// through the crowd in the order of arrival (1.18 instead of 1.14 times the bound for 1,000 hosts
// with a seed like one of them).
func (s *Scheduler) draw(
	now time.Time, w *swarm, m memberIndex, chosen []memberIndex, p pool, n int, reason Reason,
) []memberIndex {
	size := p.len()
	if n <= 0 || size == 0 {
		return chosen
	}
	found := s.scratch.candidates[:0]
	try := func(c memberIndex) {
		if s.eligible(now, w, m, c, reason) && !slices.Contains(chosen, c) && !slices.Contains(found, c) {
			found = append(found, c)
		}
	}
	starving := w.member(m).now().starving
	enough := n
	if starving {
		enough = max(n, sampleMax)
	}
	if size <= enough {
		for i := range size {
			try(p.at(i))
		}
	} else {
		for tries := 2 * enough; len(found) < enough && tries > 0; tries-- {
			try(p.at(s.rand.IntN(size)))
		}
		for i, from := 0, s.rand.IntN(size); len(found) < n && i < min(size, scanMax); i++ {
			try(p.at((from + i) % size))
		}
	}
	s.scratch.candidates = found
	s.rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	if starving {
		// A starving member needs a new neighbour that has pieces.
		slices.SortStableFunc(found, func(a, b memberIndex) int {
			if order := compare(w.linked(m, a), w.linked(m, b)); order != 0 {
				return order
			}
			return compare(w.member(a).have == 0, w.member(b).have == 0)
		})
	}
	return append(chosen, found[:min(n, len(found))]...)
}

// zone is where a member is.
func (s *Scheduler) zone(w *swarm, m memberIndex) string { return s.hosts[w.member(m).host].Zone }

// gateways are the members of m's zone that bring pieces into it, m among them while there are
// fewer than Gateways; nil when all hosts are in one zone. A host that starves and reaches none of
// them becomes one, since it gets nothing from them.
func (s *Scheduler) gateways(now time.Time, w *swarm, m memberIndex) []memberIndex {
	zone := s.zone(w, m)
	if !w.spans(zone) {
		return nil
	}
	if w.gates == nil {
		w.gates = make(map[string][]memberIndex)
	}
	reached := false
	gates := slices.DeleteFunc(w.gates[zone], func(c memberIndex) bool {
		h := w.member(c).host
		st := &s.hosts[h]
		reached = reached || c != m && s.reachable(now, w, m, c)
		return h != s.self && (now.Sub(st.seen) >= s.cfg.Expiry || s.snubbed(now, w, st))
	})
	needed := len(gates) < s.cfg.Gateways || w.member(m).now().starving && !reached
	if needed && !slices.Contains(gates, m) && w.member(m).host != s.self {
		gates = append(gates, m)
	}
	w.gates[zone] = gates
	return gates
}

// gatewaysAfar are the gateways of all other zones: they are the first in their zones to have a piece.
func (s *Scheduler) gatewaysAfar(w *swarm, zone string) []memberIndex {
	s.scratch.afar = s.scratch.afar[:0]
	for _, z := range slices.Sorted(maps.Keys(w.gates)) {
		if z != zone {
			s.scratch.afar = append(s.scratch.afar, w.gates[z]...)
		}
	}
	return s.scratch.afar
}

// compare puts false before true.
func compare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// eligible reports whether c may be named to m for that reason.
func (s *Scheduler) eligible(now time.Time, w *swarm, m, c memberIndex, reason Reason) bool {
	me, other := w.member(m), w.member(c)
	if m == c || reason == ReasonRemote && s.hosts[me.host].Zone == s.hosts[other.host].Zone {
		return false
	}
	if w.linked(m, c) {
		// A starving host may have lost its neighbours; to be named one twice is harmless.
		return me.now().starving && s.reachable(now, w, m, c)
	}
	source := reason == ReasonSeed || reason == ReasonHolder
	return s.linksFree(w, c, me.now().starving && source) > 0 && s.reachable(now, w, m, c)
}

// linksFree is how many more links member c may have. For a starving host the cap is twice as high:
// an even mesh matters less than a host that stands still.
func (s *Scheduler) linksFree(w *swarm, c memberIndex, starving bool) int {
	most := s.cfg.LinksMax
	if w.member(c).host == s.self {
		most = s.cfg.SeedLinksMax
	}
	if starving {
		most *= 2
	}
	return most - len(w.member(c).now().links)
}

// reachable reports whether c is alive and neither m nor several hosts have reported it as silent.
func (s *Scheduler) reachable(now time.Time, w *swarm, m, c memberIndex) bool {
	h := w.member(c).host
	st := &s.hosts[h]
	if h != s.self && (now.Sub(st.seen) >= s.cfg.Expiry || s.snubbed(now, w, st)) {
		return false
	}
	for _, q := range w.member(m).now().snubs {
		if q.host == h && q.generation == st.generation && s.nano(now) < q.until {
			return false
		}
	}
	return true
}

// snubbed reports whether several hosts have reported a host as silent, in this swarm or in any since its last
// announce.
func (s *Scheduler) snubbed(now time.Time, w *swarm, st *hostState) bool {
	return now.Before(st.snubbedUntil) || slices.ContainsFunc(st.snubbedIn, func(q swarmSnub) bool {
		return q.swarm == w && s.nano(now) < q.until
	})
}

// heardOf takes an announce of a host as a sign of life. A host that hangs or lost its network announces nothing.
// One that several neighbours in one task reported may serve all others.
func (s *Scheduler) heardOf(now time.Time, st *hostState) {
	st.seen, st.snubbedUntil = now, time.Time{}
	st.snubbedIn = slices.DeleteFunc(st.snubbedIn, func(q swarmSnub) bool { return q.until <= s.nano(now) })
}

// snub records which neighbours member m reported as useless. No assignment names them to m for Expiry. With silent,
// they did not answer: no assignment to any host names one that several reported from different addresses, in this
// swarm for Expiry, in others until it announces.
func (s *Scheduler) snub(now time.Time, w *swarm, m memberIndex, ids []host.ID, silent bool) {
	me := w.member(m)
	for _, id := range ids[:min(len(ids), silentMax)] {
		h, ok := s.byID[id]
		if !ok || h == me.host {
			continue
		}
		if c, ok := w.index[h]; ok {
			w.unlink(m, c)
		}
		st := &s.hosts[h]
		until := now.Add(s.cfg.Expiry)
		if h == s.self {
			// It answers announces, so it is alive: its name may come again soon.
			until = now.Add(s.cfg.IntervalActive)
		}
		mine := me.begin()
		mine.snubs = noted(mine.snubs, snub{h, st.generation, s.nano(until)}, s.nano(now))
		if h == s.self || !silent {
			continue
		}
		witness := s.witness(me.host)
		st.reports = slices.DeleteFunc(st.reports, func(q snub) bool { return s.witness(q.host) == witness })
		st.reports = noted(st.reports, snub{me.host, s.hosts[me.host].generation, s.nano(until)}, s.nano(now))
		if len(st.reports) >= s.cfg.SilentReports {
			st.reports, st.snubbedUntil = nil, until
			if len(st.snubbedIn) < silentMax {
				st.snubbedIn = append(st.snubbedIn, swarmSnub{w, s.nano(until)})
			}
			for _, in := range st.memberships {
				s.numbered[in.swarm].unlinkAll(in.member)
			}
		}
	}
}

// noted puts a snub in a list that holds each host once and no snub that is over.
func noted(list []snub, add snub, now int64) []snub {
	list = slices.DeleteFunc(list, func(q snub) bool { return q.host == add.host || q.until <= now })
	if len(list) >= silentMax {
		list = list[1:]
	}
	return append(list, add)
}
