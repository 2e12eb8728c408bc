package preheat

import (
	"cmp"
	"net"
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/task"
)

// Outcome is the one word that a rollout needs.
type Outcome string

// The outcomes. Partial: the job ended, and some hosts have everything, but too few.
const (
	OutcomeRunning Outcome = "running"
	OutcomeSuccess Outcome = "success"
	OutcomePartial Outcome = "partial"
	OutcomeFailed  Outcome = "failed"
)

// HostsMax bounds the hosts that a [Gate] names; those that lack something come first.
const HostsMax = 5000

// Gate answers whether a rollout may begin: who has everything at this moment, and who has not and why.
type Gate struct {
	Job    string `json:"job"`
	Number int64  `json:"number"`
	// Name is the image as the job names it, Digest what it meant when the job began.
	Name   string  `json:"name"`
	Digest task.ID `json:"digest,omitempty"`
	// Ready: enough hosts have everything now. It does not depend on whether the job has ended.
	Ready   bool    `json:"ready"`
	State   State   `json:"state"`
	Outcome Outcome `json:"outcome"`
	Error   string  `json:"error,omitempty"`
	// Has of Of hosts have everything: Percent, of which Min are demanded.
	Has     int     `json:"has"`
	Of      int     `json:"of"`
	Percent float64 `json:"percent"`
	Min     float64 `json:"min"`
	// Wave of Waves is open, from 1.
	Wave  int `json:"wave"`
	Waves int `json:"waves"`
	// Bytes of Total are on the hosts. LeftSeconds estimates the rest by the time so far; 0 if nothing is known.
	Bytes       int64     `json:"bytes"`
	Total       int64     `json:"total"`
	LeftSeconds float64   `json:"leftSeconds,omitempty"`
	Created     time.Time `json:"created"`
	Deadline    time.Time `json:"deadline"`
	Finished    time.Time `json:"finished,omitzero"`
	// Zones sum up the hosts of each zone, Objects of each object.
	Zones   []GateZone   `json:"zones,omitempty"`
	Objects []GateObject `json:"objects,omitempty"`
	// Hosts are at most HostsMax; Omitted are the others.
	Hosts   []GateHost `json:"hosts,omitempty"`
	Omitted int        `json:"omitted,omitempty"`
}

// GateZone is a zone of a [Gate].
type GateZone struct {
	Zone  string `json:"zone"`
	Has   int    `json:"has"`
	Of    int    `json:"of"`
	Bytes int64  `json:"bytes"`
	Total int64  `json:"total"`
}

// GateObject is a blob or manifest, and how many hosts hold it.
type GateObject struct {
	Object
	Hosts int `json:"hosts"`
}

// GateHost is a host of a [Gate].
type GateHost struct {
	Host  string `json:"host"`
	IP    string `json:"ip,omitempty"`
	Zone  string `json:"zone,omitempty"`
	Wave  int    `json:"wave"` // from 1
	State State  `json:"state"`
	// Why it does not have everything.
	Why   string `json:"why,omitempty"`
	Bytes int64  `json:"bytes"`
	Total int64  `json:"total"`
}

// Gate says who has everything, by a plan of the same moment.
func (r Record) Gate(now time.Time, p Plan) Gate {
	g := Gate{
		Job: r.ID, Number: r.Number(), Name: r.Spec.Name(), Ready: p.Ready, State: r.State(), Has: p.Has,
		Of: len(p.Members), Min: r.Spec.min(), Wave: min(r.Open, r.Spec.waves()-1) + 1, Waves: r.Spec.waves(),
		Created: r.Created, Deadline: r.Spec.Deadline, Finished: r.Ended(), Outcome: OutcomeRunning,
	}
	if r.End != nil {
		g.Error = r.End.Error
	}
	if r.State().Ended() {
		switch {
		case p.Ready:
			g.Outcome = OutcomeSuccess
		case p.Has > 0 && !r.Cancelled:
			g.Outcome = OutcomePartial
		default:
			g.Outcome = OutcomeFailed
		}
	}
	if g.Of > 0 {
		g.Percent = float64(g.Has) * 100 / float64(g.Of)
	}
	total := r.Bytes()
	if r.Resolved != nil {
		g.Digest = r.Resolved.Digest
		for _, o := range r.Resolved.Objects {
			g.Objects = append(g.Objects, GateObject{Object: o})
		}
	}
	zones := map[string]*GateZone{}
	for _, m := range p.Members {
		h := r.gateHost(m, total)
		z := zones[m.Zone]
		if z == nil {
			z = &GateZone{Zone: m.Zone}
			zones[m.Zone] = z
		}
		z.Of, z.Bytes, z.Total = z.Of+1, z.Bytes+h.Bytes, z.Total+h.Total
		if m.State == Success {
			z.Has++
		}
		g.Bytes, g.Total = g.Bytes+h.Bytes, g.Total+h.Total
		for i := range g.Objects {
			if m.Report != nil && !m.silent(now) && m.Report.Has(i) {
				g.Objects[i].Hosts++
			}
		}
		g.Hosts = append(g.Hosts, h)
	}
	for _, z := range zones {
		g.Zones = append(g.Zones, *z)
	}
	slices.SortFunc(g.Zones, func(a, b GateZone) int { return cmp.Compare(a.Zone, b.Zone) })
	slices.SortStableFunc(g.Hosts, func(a, b GateHost) int {
		return cmp.Compare(order[a.State], order[b.State])
	})
	if len(g.Hosts) > HostsMax {
		g.Omitted = len(g.Hosts) - HostsMax
		g.Hosts = g.Hosts[:HostsMax]
	}
	if took := now.Sub(r.Created).Seconds(); !r.State().Ended() && g.Bytes > 0 && took > 0 {
		g.LeftSeconds = tenths(float64(g.Total-g.Bytes) * took / float64(g.Bytes))
	}
	return g
}

// order sorts hosts: those that need somebody's help come first.
var order = map[State]int{Failed: 0, Pending: 1, Running: 2, Success: 3}

// tenths rounds to one decimal.
func tenths(x float64) float64 { return float64(int64(x*10+0.5)) / 10 }

func (r Record) gateHost(m Member, total int64) GateHost {
	h := GateHost{Host: cmp.Or(m.Name, m.ID.Short()), Zone: m.Zone, Wave: m.Wave + 1, State: m.State, Why: m.Why,
		Total: total}
	if ip, _, err := net.SplitHostPort(m.Addr); err == nil {
		h.IP = ip
	}
	if m.Report != nil {
		h.Bytes = min(m.Report.Bytes, total)
		if r.Spec.Scope.Kind == OneSeed { // it fetches a part
			h.Bytes, h.Total = m.Report.Bytes, m.Report.Total
		}
	}
	return h
}

// Job is the job as callers see it, with the objects of each host.
func (r Record) Job(now time.Time, p Plan) Job {
	j := Job{ID: r.ID, Number: r.Number(), Spec: r.Spec, State: r.State(), Created: r.Created, Updated: now.UTC(),
		Finished: r.Ended()}
	if r.End != nil {
		j.Updated, j.Error = r.End.At, r.End.Error
	}
	if r.Resolved == nil {
		return j
	}
	t, err := r.Spec.Target()
	if err != nil {
		return j
	}
	for _, m := range p.Members {
		ip, _, _ := net.SplitHostPort(m.Addr)
		for i, o := range r.Resolved.Objects {
			if len(j.Tasks) == TasksMax {
				return j
			}
			s := TaskState{URL: "https://" + t.Upstream + "/v2/" + t.Repository + "/" + string(o.Kind) + "s/" + string(o.ID),
				Digest: string(o.ID), Host: cmp.Or(m.Name, m.ID.Short()), IP: ip, Zone: m.Zone, Total: o.Size, State: Pending}
			switch {
			case m.silent(now):
				s.State, s.Error = Failed, m.Why
			case m.State == Success || m.Report != nil && m.Report.Has(i):
				s.State, s.Bytes = Success, o.Size
			case m.State == Failed:
				s.State, s.Error = Failed, m.Why
			case m.Report != nil:
				s.State = m.Report.State
			}
			j.Tasks = append(j.Tasks, s)
		}
	}
	return j
}
