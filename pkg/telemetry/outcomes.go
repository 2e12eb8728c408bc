package telemetry

import (
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/api"
)

// failureMax bounds the text of an error that is kept, in bytes.
const failureMax = 1 << 10

// outcomes counts how pulls or seeds ended and keeps the last failure, for the status.
type outcomes struct {
	// mu is held to add or copy a few numbers.
	mu  sync.Mutex
	now api.Outcomes
}

func (o *outcomes) add(r Result, name string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.now.Last = time.Now()
	switch r {
	case OK:
		o.now.OK++
	case Refused:
		o.now.Refused++
	case Canceled:
		o.now.Canceled++
	default:
		o.now.Failed++
		text := "unknown error"
		if err != nil {
			text = safeError(err)
		}
		o.now.Failure = &api.Failed{At: o.now.Last, Name: name, Error: text[:min(len(text), failureMax)]}
	}
}

func (o *outcomes) copy() *api.Outcomes {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.now
	return &now
}

// Outcomes returns how pulls ended since the start; nil for a nil group.
func (p *Pulls) Outcomes() *api.Outcomes {
	if p == nil {
		return nil
	}
	return p.outcomes.copy()
}

// Outcomes returns how seeds ended since the start; nil for a nil group.
func (o *Owner) Outcomes() *api.Outcomes {
	if o == nil {
		return nil
	}
	return o.outcomes.copy()
}
