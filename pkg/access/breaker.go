package access

import (
	"errors"
	"sync"
	"time"
)

const (
	// silentAfter is how long a lookup waits for a registry when it has a fallback.
	silentAfter = 2 * time.Second
	// openLife is how long the breaker of a silent registry stays open: lookups with a fallback do not
	// ask it then.
	openLife = 10 * time.Second
	// openMax bounds the registries with an open breaker.
	openMax = 1024
)

// errSilent ends the wait for a registry when the lookup has a fallback.
var errSilent = errors.New("the registry is silent")

// breaker is a circuit breaker per registry: an image of many layers does not wait for a silent
// registry at each of them. The zero value is ready.
type breaker struct {
	// mu is held to look up and change.
	mu sync.Mutex
	// open holds when each breaker closes again.
	open map[string]time.Time
}

func (b *breaker) isOpen(upstream string, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return now.Before(b.open[upstream])
}

func (b *breaker) trip(upstream string, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open == nil || len(b.open) >= openMax {
		b.open = map[string]time.Time{}
	}
	b.open[upstream] = now.Add(openLife)
}
