package registryproxy

import (
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/task"
)

// hold ends the context of a client that has waited too long for its first byte. Safe for concurrent use.
type hold struct {
	cancel func()

	// mu is held to set or take a deadline, never over cancel.
	mu    sync.Mutex
	timer *time.Timer
	// next is called when the timer fires. It returns for how long the client waits on before next is called again, 0 or
	// less if the wait ends. Nil ends the wait.
	next func(now time.Time) (again time.Duration)
	// over says that the wait has ended, by its deadline or by stop.
	over bool
}

func newHold(cancel func()) *hold { return &hold{cancel: cancel} }

// until sets a deadline that no sign of progress moves. It reports false if the wait has ended.
func (h *hold) until(d time.Duration) bool { return h.set(d, nil) }

// watch calls next after d, and then after each time that next returns.
func (h *hold) watch(d time.Duration, next func(now time.Time) time.Duration) bool {
	return h.set(d, next)
}

func (h *hold) set(d time.Duration, next func(time.Time) time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		return false
	}
	h.next = next
	if h.timer != nil {
		h.timer.Stop()
	}
	h.timer = time.AfterFunc(d, h.fire)
	return true
}

func (h *hold) fire() {
	h.mu.Lock()
	if !h.over && h.next != nil {
		if again := h.next(time.Now()); again > 0 {
			h.timer.Reset(again)
			h.mu.Unlock()
			return
		}
	}
	first := !h.over
	h.over = true
	h.mu.Unlock()
	if first {
		h.cancel()
	}
}

// stop ends the wait. It reports false if the deadline has ended it.
func (h *hold) stop() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		return false
	}
	h.over = true
	if h.timer != nil {
		h.timer.Stop()
	}
	return true
}

const (
	// holdMax bounds how long a client waits for its first byte while bytes of its blob move: after it the client may go
	// elsewhere, and finds the blob here when it comes back.
	holdMax = 10 * time.Minute
	// looks is how often the mirror checks for signs of progress within the time that a client waits without one.
	looks = 8
)

// holdWhile lets the client wait for its first byte as long as the signs say.
func (req *request) holdWhile(signs func() policy.Signs) {
	req.look = signs
	origin := req.firstByte()
	cfg := policy.HoldConfig{Silence: req.wait, Origin: origin, Most: max(origin, holdMax)}
	h := policy.NewHold(cfg, time.Now(), signs())
	every := req.wait / looks
	req.hold.watch(every, func(now time.Time) time.Duration { return min(every, h.Until(now, signs()).Sub(now)) })
}

// signs are those of a blob in the swarm.
func (req *request) signs(id task.ID) policy.Signs {
	if req.cfg.Signs == nil {
		return policy.Signs{}
	}
	return req.cfg.Signs(id)
}
