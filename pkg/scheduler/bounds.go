package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/host"
)

// formerMax is how many former generations of a host the Scheduler remembers.
const formerMax = 4

// departure is the generation of a host that left, and until when the Scheduler remembers it.
type departure struct {
	generation uint64
	until      time.Time
}

// source is the hosts that announce from one network address.
type source struct {
	hosts map[hostIndex]struct{}
	tasks int // memberships of all of them
}

// InUseError reports that a report names an ID that belongs to another live host: a copied data directory, or a member
// that announces for others.
type InUseError struct {
	ID host.ID
	// Addr is where the host that has the ID serves pieces, Source where it announces from, and
	// Ago when it announced last.
	Addr, Source string
	Ago          time.Duration
}

func (e *InUseError) Error() string {
	const text = "host ID %s belongs to the host at %s, which announced %s ago from %s: was a data directory copied?"
	return fmt.Sprintf(text,
		e.ID, e.Addr, e.Ago.Round(time.Millisecond), cmp.Or(e.Source, "here"))
}

// claim returns nil if a report may speak for a known host, otherwise an *[InUseError]. The generation, which only its
// host knows, proves that the host's process is the same. A new generation counts if the old one is silent, or comes
// from the same address: a process that was killed and started again. A generation that was replaced and still
// announces shows that two hosts share the ID.
func (s *Scheduler) claim(now time.Time, was *hostState, r Report) error {
	switch {
	case was.generation == r.Generation, now.Sub(was.seen) >= s.cfg.Expiry:
		return nil
	case !r.Leaving && was.Addr == r.Host.Addr && was.source == r.Source && !slices.Contains(was.former, r.Generation):
		return nil
	}
	return &InUseError{ID: was.ID, Addr: was.Addr, Source: was.source, Ago: now.Sub(was.seen)}
}

// mayAdmit returns nil where a bound admits another host, otherwise an error that wraps [ErrFull].
func (s *Scheduler) mayAdmit(r Report) error {
	if len(s.byID) >= s.cfg.HostsMax {
		return fmt.Errorf("admitting host %s: %w: it knows %d hosts", r.Host.ID.Short(), ErrFull, len(s.byID))
	}
	if src := s.sources[r.Source]; src != nil && len(src.hosts) >= s.cfg.SourceHostsMax {
		return fmt.Errorf("admitting host %s: %w: %d hosts announce from %s already",
			r.Host.ID.Short(), ErrFull, len(src.hosts), r.Source)
	}
	return nil
}

// count notes that a host has more or fewer memberships.
func (s *Scheduler) count(st *hostState, n int) {
	s.total += n
	if src := s.sources[st.source]; src != nil {
		src.tasks += n
	}
}

// spaceFor returns the function that makes space for one more task of a host. Of the hosts that share a bound, the one
// with most tasks gives up one that it holds, so that a member that invents tasks or hosts displaces only its own. The
// search for that host happens once per report. fresh says that no host has the task yet.
func (s *Scheduler) spaceFor(now time.Time, h hostIndex, answer *Answer) func(wants, fresh bool) bool {
	greedy := hostIndex(-1)
	return func(wants, fresh bool) bool {
		st := &s.hosts[h]
		src := s.sources[st.source]
		switch {
		case h == s.self:
			return true
		case len(st.memberships) >= s.cfg.TasksMax:
			return s.displace(now, h, h, wants, answer)
		case src != nil && src.tasks >= s.cfg.SourceTasksMax:
			if greedy < 0 {
				for c := range src.hosts {
					greedy = s.greedier(greedy, c)
				}
			}
			return s.displace(now, greedy, h, wants, answer)
		case s.total >= s.cfg.TotalMax, fresh && len(s.swarms) >= s.cfg.SwarmsMax:
			if greedy < 0 {
				for c := range s.hosts {
					if s.hosts[c].alive && hostIndex(c) != s.self {
						greedy = s.greedier(greedy, hostIndex(c))
					}
				}
			}
			return s.displace(now, greedy, h, wants, answer)
		}
		return true
	}
}

// greedier returns the host with more memberships; of equals the one with the lower number, so that the same calls give
// the same answers.
func (s *Scheduler) greedier(a, b hostIndex) hostIndex {
	switch {
	case a < 0:
		return b
	case b < 0:
		return a
	}
	more := cmp.Compare(len(s.hosts[a].memberships), len(s.hosts[b].memberships))
	if more > 0 || more == 0 && a < b {
		return a
	}
	return b
}

// displaceTries bounds how many memberships displace looks at.
const displaceTries = 64

// displace takes a held task from the host with most tasks, for one of h. Where that is h itself, it
// does so only for a task that h wants: a further one that h holds is not remembered.
func (s *Scheduler) displace(now time.Time, greedy, h hostIndex, wants bool, answer *Answer) bool {
	answer.Forgotten++
	if greedy < 0 {
		return false
	}
	greedy = s.greedier(greedy, h)
	answer.Greedy = s.hosts[greedy].Host
	if greedy == h && !wants {
		return false
	}
	has := s.hosts[greedy].memberships
	for _, c := range has[:min(len(has), displaceTries)] {
		if s.numbered[c.swarm].member(c.member).standing != holding {
			continue
		}
		// The swarm has one holder less. A host that starves for it announces so, and then the
		// seed asks the origin.
		if seed := s.part(now, s.numbered[c.swarm], c.member); seed != nil {
			answer.Seeds = append(answer.Seeds, *seed)
		}
		return true
	}
	return false
}

// always makes space for the owner's own host, whose store has bounds of its own.
func always(bool, bool) bool { return true }

// witness returns the name under which a report of silence counts: the address that a host announces from, since one
// machine may invent hosts. On loopback, and if the address is unknown, each host counts.
func (s *Scheduler) witness(h hostIndex) string {
	st := &s.hosts[h]
	if st.source == "" || st.source == "::1" || strings.HasPrefix(st.source, "127.") {
		return string(st.ID)
	}
	return st.source
}
