package preheat

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/rendezvous"
)

const (
	// SilentAfter is how old the last announce of a host may be: an idle one announces every five seconds. What a host
	// said before counts no longer.
	SilentAfter = 15 * time.Second
	// AttemptsMax is how often a host fails before the job no longer waits for it until the deadline.
	AttemptsMax = 6
)

// Host is a host as a supernode sees it.
type Host struct {
	host.Host
	Labels map[string]string
	// Seed: it is a supernode.
	Seed bool
	// Seen is when it last announced.
	Seen time.Time
	// Report is its last about the job; nil if it has sent none.
	Report *Report
	// Other: it reported about another digest than that of the job. [Record.Plan] finds that.
	Other bool
}

func (h Host) silent(now time.Time) bool { return now.Sub(h.Seen) > SilentAfter }

// begun reports whether the host has fetched something for the job.
func (h Host) begun() bool {
	return h.Report != nil && (h.Report.State != Pending || h.Report.Attempts > 0)
}

// Member is a host in the scope of a job.
type Member struct {
	Host
	// Wave is the wave in which the host fetches, from 0; Run says that it shall fetch now.
	Wave int
	Run  bool
	// State is Success if it holds everything now; Why says why not.
	State State
	Why   string
}

// Plan is what follows at one moment from a record and the hosts.
type Plan struct {
	// Members are the hosts in scope, by zone and name.
	Members []Member
	// Open is the wave that may be open, and End how the job ends now; nil if it goes on. Only the supernode that leads
	// the job puts them into the record.
	Open int
	End  *End
	// Has of the members hold everything; Ready says that these are enough.
	Has   int
	Ready bool
}

// waves is the number of waves.
func (s Spec) waves() int { return max(1, len(s.Waves)) }

// min is the part of the members that must have everything, in percent.
func (s Spec) min() float64 {
	if s.Min == 0 {
		return 100
	}
	return s.Min
}

// enough reports whether has of n members are the part that the spec demands. None of none is not.
func (s Spec) enough(has, n int) bool { return n > 0 && float64(has)*100 >= s.min()*float64(n)-1e-9 }

// share returns how many of n are a part, rounded up.
func share(n int, percent float64) int { return min(n, int(math.Ceil(float64(n)*percent/100-1e-9))) }

// Plan decides what the job does at a time, with the hosts that the supernode knows then: those that announce, and
// those that fell silent during the job.
func (r Record) Plan(now time.Time, hosts []Host) (p Plan) {
	hosts = r.counted(hosts)
	p.Members, p.Open = r.members(now, hosts), r.Open
	for i := range p.Members {
		m := &p.Members[i]
		if m.State, m.Why = r.judge(now, *m); m.State == Success {
			p.Has++
		}
	}
	p.Ready = !r.Cancelled && r.Spec.enough(p.Has, len(p.Members)) && p.zoneWithout(r.Spec.Scope) == ""
	if r.State() == Running && now.Before(r.Spec.Deadline) {
		for p.Open < r.Spec.waves()-1 && r.healthy(p) {
			p.Open++
		}
		for i := range p.Members {
			m := &p.Members[i]
			m.Run = m.Wave <= p.Open || m.begun()
			if !m.Run && m.State == Pending && !m.silent(now) {
				m.Why = fmt.Sprintf("it waits for wave %d of %d; wave %d is not healthy yet", m.Wave+1, r.Spec.waves(),
					p.Open+1)
			}
		}
	}
	p.End = r.end(now, p)
	return p
}

// counted leaves out reports that are not about the digest of this job.
func (r Record) counted(hosts []Host) []Host {
	out := slices.Clone(hosts)
	for i := range out {
		if rep := out[i].Report; rep != nil && (r.Resolved == nil || rep.Digest != r.Resolved.Digest) {
			out[i].Report, out[i].Other = nil, true
		}
	}
	return out
}

// Follow puts what a plan decides into the record, as the leader of the job does, and reports whether that changed it.
func (r *Record) Follow(p Plan) (changed bool) {
	if p.Open > r.Open {
		r.Open, changed = p.Open, true
	}
	if p.End != nil {
		r.End, changed = p.End, true
	}
	return changed
}

// healthy reports whether enough hosts of the open waves hold everything.
func (r Record) healthy(p Plan) bool {
	has, n := 0, 0
	for _, m := range p.Members {
		if m.Wave <= p.Open {
			n++
			if m.State == Success {
				has++
			}
		}
	}
	return r.Spec.enough(has, n)
}

// members chooses the hosts in scope and their waves.
func (r Record) members(now time.Time, hosts []Host) (out []Member) {
	zones := map[string][]Host{}
	for _, h := range hosts {
		if r.Spec.Scope.Matches(h) {
			zones[h.Zone] = append(zones[h.Zone], h)
		}
	}
	for _, list := range zones {
		weights := make(map[host.ID]uint64, len(list))
		for _, h := range list {
			weights[h.ID] = rendezvous.Weight(r.ID, string(h.ID))
		}
		weight := func(h Host) uint64 { return weights[h.ID] }
		rank := func(h Host) int {
			switch {
			case h.silent(now):
				return 2 // another host takes its place in a count
			case h.begun():
				return 0
			}
			return 1
		}
		slices.SortFunc(list, func(a, b Host) int {
			return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(weight(b), weight(a)), cmp.Compare(a.ID, b.ID))
		})
		if n := r.Spec.Scope.Count; n > 0 {
			list = list[:min(n, len(list))]
		} else if p := r.Spec.Scope.Percent; p > 0 {
			list = list[:share(len(list), p)]
		}
		// A host keeps its wave whatever it has reported since.
		slices.SortFunc(list, func(a, b Host) int {
			return cmp.Or(cmp.Compare(weight(b), weight(a)), cmp.Compare(a.ID, b.ID))
		})
		for i, h := range list {
			m := Member{Host: h}
			for m.Wave < r.Spec.waves()-1 && i >= share(len(list), r.Spec.Waves[m.Wave]) {
				m.Wave++
			}
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// All reports whether a scope takes every host that matches.
func (s Scope) All() bool { return s.Count == 0 && s.Percent == 0 }

// Matches reports whether a scope names a host, before its count or percentage.
func (s Scope) Matches(h Host) bool {
	if seeds := s.Kind == OneSeed || s.Kind == AllSeeds; seeds != h.Seed {
		return false
	}
	if len(s.Zones) > 0 && !slices.Contains(s.Zones, h.Zone) {
		return false
	}
	for k, v := range s.Labels {
		if got, ok := h.Labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// judge returns the state of a host, and why it does not have everything.
func (r Record) judge(now time.Time, m Member) (State, string) {
	rep := m.Report
	switch {
	case m.silent(now):
		return Failed, fmt.Sprintf("it has announced nothing for %s: it is down, or the network is",
			now.Sub(m.Seen).Round(time.Second))
	case rep == nil && r.Resolved == nil && r.End == nil:
		return Pending, "the image's manifest is not read yet"
	case rep == nil && m.Other:
		return Pending, "it has reported about another digest than the job's, and will get the order again"
	case rep == nil:
		return Pending, "it has not reported about the job yet"
	case rep.State == Success:
		return Success, ""
	case rep.State == Failed:
		return Failed, rep.Error
	case rep.State == Running && rep.Error != "":
		return Running, fmt.Sprintf("it tries again after %d failed attempts, the last: %s", rep.Attempts, rep.Error)
	case rep.State == Running:
		return Running, "it fetches"
	case rep.Error != "":
		return Pending, rep.Error
	case rep.Bytes > 0:
		return Pending, "it holds a part, and does not fetch"
	}
	return Pending, "it has not begun"
}

// end decides whether the job ends now.
func (r Record) end(now time.Time, p Plan) *End {
	if r.End != nil {
		return nil
	}
	ended := func(s State, why string) *End { return &End{State: s, At: now.UTC(), Error: Cut(why)} }
	late := !now.Before(r.Spec.Deadline)
	lacking := len(p.Members) - p.Has
	silent, refused := 0, 0 // hosts for which the job need not wait if the others are enough
	for _, m := range p.Members {
		switch {
		case m.State != Failed:
		case m.silent(now):
			silent++
		case m.Report.Attempts >= AttemptsMax:
			refused++
		}
	}
	switch {
	case r.Cancelled:
		return ended(Cancelled, "cancelled by an operator")
	case r.State() == Running && p.Ready && (lacking == silent+refused || late):
		return ended(Success, "")
	case !late && r.State() == Running && lacking > 0 && refused == lacking:
		return ended(Failed, r.shortage(p))
	case !late:
		return nil
	case p.Ready: // paused, and everybody has it
		return ended(Success, "")
	case r.Resolved == nil:
		return ended(Failed, "the deadline passed before the manifest was read")
	}
	return ended(Failed, "deadline passed: "+r.shortage(p))
}

// zoneWithout returns a zone that a scope names and that has no member, empty if there is none: its name can be wrong.
func (p Plan) zoneWithout(s Scope) string {
	for _, zone := range s.Zones {
		if !slices.ContainsFunc(p.Members, func(m Member) bool { return m.Zone == zone }) {
			return zone
		}
	}
	return ""
}

// shortage says who does not have it, for the error of a job.
func (r Record) shortage(p Plan) string {
	if len(p.Members) == 0 {
		return "no host is in scope"
	}
	if zone := p.zoneWithout(r.Spec.Scope); zone != "" {
		return fmt.Sprintf("no host of zone %q is in scope", zone)
	}
	text := fmt.Sprintf("%d of %d hosts do not have it", len(p.Members)-p.Has, len(p.Members))
	for _, m := range p.Members {
		if m.State != Success {
			return text + ", as " + cmp.Or(m.Name, m.ID.Short()) + ": " + m.Why
		}
	}
	return text
}

// Cut bounds an error text to TextMax bytes, and takes no part of a letter: JSON would make it longer again.
func Cut(s string) string { return strings.ToValidUTF8(s[:min(len(s), TextMax)], "") }

// Order returns what a member shall do; the life of the order is that of the job.
func (r Record) Order(now time.Time, m Member) (o Order, ok bool) {
	if r.Resolved == nil {
		return o, false
	}
	t, err := r.Spec.Target()
	if err != nil {
		return o, false
	}
	o = Order{Job: r.ID, Rev: r.Control.Rev, Run: m.Run && !r.Lacks(), Upstream: t.Upstream, Repository: t.Repository,
		Tag: t.Tag, Digest: r.Resolved.Digest, Objects: r.Resolved.Objects, Owned: r.Spec.Scope.Kind == OneSeed}
	until := r.Spec.Deadline.Add(Keep)
	if o.LifeMillis = until.Sub(now).Milliseconds(); o.LifeMillis <= 0 {
		return o, false
	}
	if o.Ended = r.State().Ended(); o.Run {
		o.Authorization = r.Spec.Authorization().Reveal()
	}
	return o, true
}
