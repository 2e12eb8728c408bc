package scheduler

import (
	"time"

	"github.com/darter-io/darter/pkg/task"
)

// specSizeMin is roughly what a spec without its texts takes, in bytes.
const specSizeMin = 512

// specs counts the bytes of the specs that swarms keep, by the source that announced them: a member can invent tasks,
// and give each a large spec.
type specs struct {
	of    map[string]int64
	total int64
}

// add adds n bytes, which may be negative.
func (s *specs) add(source string, n int64) {
	s.total += n
	if s.of[source] += n; s.of[source] <= 0 {
		delete(s.of, source)
	}
}

// keepSpec makes a spec that a host of source announced the swarm's, and reports whether the bounds admit it. Otherwise
// the swarm keeps the one that it has. Specs of the owner's own host are not bounded: they have no source.
func (s *Scheduler) keepSpec(now time.Time, w *swarm, spec *task.Spec, source string) bool {
	n := specSize(spec)
	of, total := s.specs.of[source]+n, s.specs.total+n
	if w.spec != nil {
		total -= w.specSize
		if w.specBy == source {
			of -= w.specSize
		}
	}
	if source != "" && (of > int64(s.cfg.SourceSpecsMax) || total > int64(s.cfg.SpecsMax)) {
		return false
	}
	w.dropSpec()
	w.spec, w.specAt, w.specBy, w.specSize = spec, now, source, n
	s.specs.add(source, n)
	s.due[w] = struct{}{}
	return true
}

// dropSpec forgets the swarm's spec.
func (w *swarm) dropSpec() {
	if w.spec != nil {
		w.specs.add(w.specBy, -w.specSize)
	}
	w.spec, w.specSize = nil, 0
}

// specSize is roughly what a spec takes, in bytes.
func specSize(s *task.Spec) int64 {
	n := specSizeMin + len(s.Upstream) + len(s.Repository) + len(s.URL) + len(s.Digest) + len(s.Validator) + len(s.Tag) +
		len(s.Agent) + len(s.Share) + len(s.Authorization.Reveal())
	for _, a := range s.Accept {
		n += 16 + len(a)
	}
	for name, value := range s.Header {
		n += 64 + len(name) + len(value.Reveal())
	}
	return int64(n)
}
