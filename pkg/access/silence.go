package access

import (
	"fmt"
	"sync"
	"time"
)

const (
	// quietFor is how long lookups wait without any answer of their registry before the registry may count as silent. Slow
	// registries scan, or fetch from elsewhere, and answer in between.
	quietFor = time.Minute
	// quietMax is how many lookups may wait so long at the same time. A larger number serves clients of a slow registry
	// that ask for many images at once, a smaller one sooner refuses clients of a registry that hangs.
	quietMax = 32
	// probeFor replaces quietFor for a registry that answered nothing during the whole time of one lookup: then one lookup
	// at a time tests whether the registry answers again.
	probeFor = 2 * time.Second
	// silentRetry is after how long a refused client may ask again.
	silentRetry = 10 * time.Second
	// firstByteDefault is how long a registry may take where the configuration says nothing.
	firstByteDefault = 10 * time.Minute
	// registriesMax bounds the registries whose answers are timed.
	registriesMax = 1024
)

// SilentError reports a lookup that was not sent because its registry accepts requests and answers none.
type SilentError struct {
	Upstream string
	// Waiting lookups have had no answer, the oldest for Quiet.
	Waiting int
	Quiet   time.Duration
	// RetryAfter is when to ask again.
	RetryAfter time.Duration
}

func (e *SilentError) Error() string {
	return fmt.Sprintf("%s has answered nothing for %s (waiting requests: %d); ask again in %s",
		e.Upstream, e.Quiet.Round(time.Second), e.Waiting, e.RetryAfter)
}

// silence is a circuit breaker for lookups without a fallback: a registry that accepts requests and stays silent must
// not hold each client as long as a slow one may. It opens by the rules of the constants above, and closes with the
// first answer. The zero value is ready.
type silence struct {
	// mu is held to count, never during a request.
	mu         sync.Mutex
	registries map[string]*quiet
}

// quiet is what is known of one registry.
type quiet struct {
	// waiting holds when each lookup began to wait, by its number.
	waiting map[int]time.Time
	next    int
	// answered is the time of the last answer to any request, zero if there is none.
	answered time.Time
	// vain is true if the last lookup that ended got no answer of the registry in its whole time.
	vain bool
}

// begin admits a lookup, or refuses it with a *[SilentError]. A lookup that was admitted must end by its number.
func (s *silence) begin(upstream string, now time.Time) (number int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.registries[upstream]
	if q == nil {
		if s.registries == nil || len(s.registries) >= registriesMax {
			s.registries = map[string]*quiet{}
		}
		q = &quiet{waiting: map[int]time.Time{}}
		s.registries[upstream] = q
	}
	after, most := quietFor, quietMax
	if q.vain {
		after, most = probeFor, 1
	}
	count, longest := 0, time.Duration(0)
	for _, began := range q.waiting {
		if q.answered.After(began) {
			began = q.answered
		}
		if waited := now.Sub(began); waited >= after {
			count++
			longest = max(longest, waited)
		}
	}
	if count >= most {
		return 0, &SilentError{Upstream: upstream, Waiting: count, Quiet: longest, RetryAfter: silentRetry}
	}
	q.next++
	q.waiting[q.next] = now
	return q.next, nil
}

// end takes a lookup out. patience is how long its registry may take.
func (s *silence) end(upstream string, number int, now time.Time, patience time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.registries[upstream]
	if q == nil {
		return
	}
	began, ok := q.waiting[number]
	if !ok {
		return
	}
	delete(q.waiting, number)
	// A client may leave a moment before the time of its request ends.
	if !q.answered.After(began) && now.Sub(began) >= patience*9/10 {
		q.vain = true
	}
	if len(q.waiting) == 0 && !q.vain {
		delete(s.registries, upstream)
	}
}

// heard notes an answer of the registry.
func (s *silence) heard(upstream string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.registries[upstream]; q != nil {
		q.answered, q.vain = now, false
	}
}
