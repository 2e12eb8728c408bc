package registryproxy

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// silentAfter is how long a registry is waited for where there is something to serve
	// without it.
	silentAfter = 2 * time.Second
	// silentLife is how long a registry that was silent is not waited for at all then.
	silentLife = 10 * time.Second
	// silentMax bounds the registries that are remembered as silent.
	silentMax = 1024
)

// errSilent ends the wait for a registry where there is something to serve without it.
var errSilent = errors.New("the registry is silent")

// silent remembers registries that did not answer, so that an image of many layers does not
// wait for a dead one at each of them.
type silent struct {
	// mu is held to look up and change.
	mu    sync.Mutex
	until map[string]time.Time
}

func (s *silent) is(upstream string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Before(s.until[upstream])
}

func (s *silent) note(upstream string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil || len(s.until) >= silentMax {
		s.until = map[string]time.Time{}
	}
	s.until[upstream] = now.Add(silentLife)
}

// orSoon asks the registry. Where there is a fallback it is waited for a moment only, and its
// silence is an answer: what down makes of it.
func orSoon[V any](x *exchange, fallback bool, ask func(context.Context) (V, error), down func(error) V) (V, error) {
	if !fallback {
		return ask(x.ctx)
	}
	if x.desk.silent.is(x.t.upstream, time.Now()) {
		return down(errSilent), nil
	}
	ctx, cancel := context.WithTimeoutCause(x.ctx, silentAfter, errSilent)
	defer cancel()
	v, err := ask(ctx)
	if errors.Is(err, errSilent) {
		x.desk.silent.note(x.t.upstream, time.Now())
		return down(fmt.Errorf("asking %s: no answer within %s", x.t.upstream, silentAfter)), nil
	}
	return v, err
}
