// Package upload says who may be served: a host sends a few pieces at once and refuses
// every further request at once, because a queue at the sender costs the swarm more than a
// second question (1.06 times the bound without a queue, 1.30 with four waiting; simulated).
//
// Nothing here blocks. Start at [Slots.TryAcquire].
package upload

import "sync/atomic"

// SlotsDefault is how many pieces an ordinary host sends at once.
const SlotsDefault = 4

// Slots are a host's upload slots, shared by all its tasks. Safe for concurrent use.
type Slots struct {
	max    atomic.Int64
	active atomic.Int64
}

// NewSlots returns n slots. More of them end one crowd sooner and slow everyone in it.
func NewSlots(n int) *Slots {
	s := new(Slots)
	s.Resize(n)
	return s
}

// Resize changes the number of slots; what is being sent goes on.
func (s *Slots) Resize(n int) { s.max.Store(int64(n)) }

// TryAcquire takes a slot, or reports that all are taken.
func (s *Slots) TryAcquire() bool {
	if s.active.Add(1) <= s.max.Load() {
		return true
	}
	s.active.Add(-1)
	return false
}

// Release gives a slot back.
func (s *Slots) Release() { s.active.Add(-1) }

// Active is how many slots are taken.
func (s *Slots) Active() int { return int(s.active.Load()) }

// Max is how many slots there are.
func (s *Slots) Max() int { return int(s.max.Load()) }
