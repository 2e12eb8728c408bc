package policy

import "time"

// Signs are what a host sees of a task that comes into the cluster.
type Signs struct {
	// Moved grows while bytes of the task come, to this host or to a neighbour. It has no unit.
	Moved int64
	// Asking says that this host or a live seed reads the origin, which may take its time.
	Asking bool
	// Came is how many bytes of the task this host has, or the neighbour that has most.
	Came int64
}

// HoldConfig are the settings of a [Hold].
type HoldConfig struct {
	// Silence is how long a client waits while there is no sign.
	Silence time.Duration
	// Origin is how long it waits for an origin that was asked, from the beginning of the wait.
	Origin time.Duration
	// Most bounds the whole wait.
	Most time.Duration
}

// Hold decides how long a client waits for its first byte: as long as the origin may take and bytes move, so
// that a crowd of clients does not turn from a slow origin here to the same origin there. A client that
// has enough of it leaves by itself.
type Hold struct {
	cfg         HoldConfig
	began, last time.Time
	moved       int64
}

// NewHold returns the decision for a client that begins to wait, with the signs of that moment.
func NewHold(cfg HoldConfig, now time.Time, s Signs) *Hold {
	return &Hold{cfg: cfg, began: now, last: now, moved: s.Moved}
}

// Until returns when the client is told to go elsewhere, if there is no further sign before.
func (h *Hold) Until(now time.Time, s Signs) time.Time {
	if s.Moved != h.moved || s.Asking && now.Sub(h.began) < h.cfg.Origin {
		h.last = now
	}
	h.moved = s.Moved
	until := h.last.Add(h.cfg.Silence)
	if most := h.began.Add(h.cfg.Most); most.Before(until) {
		until = most
	}
	return until
}
