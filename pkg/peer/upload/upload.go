// Package upload says who may be served: a host sends a few pieces at once and refuses
// every further request at once, because a queue at the sender costs the swarm more than a
// second question (1.06 times the bound without a queue, 1.30 with four waiting; simulated).
//
// Nothing here blocks. Start at [Slots.TryAcquire].
package upload

import (
	"sync"
	"sync/atomic"
)

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
	for {
		taken := s.active.Load()
		if taken >= s.max.Load() {
			return false
		}
		if s.active.CompareAndSwap(taken, taken+1) {
			return true
		}
	}
}

// Release gives a slot back.
func (s *Slots) Release() { s.active.Add(-1) }

// Active is how many slots are taken.
func (s *Slots) Active() int { return int(s.active.Load()) }

// Max is how many slots there are.
func (s *Slots) Max() int { return int(s.max.Load()) }

// Line says whose turn it is to send. A host that has accepted several requests sends one
// piece after the other rather than all at once: the first is there after one piece-time
// and can be passed on, where all would be there after as many as there are.
type Line struct {
	// mu is held to take or give a turn, never while bytes move.
	mu      sync.Mutex
	free    int
	waiting []func()
}

// NewLine returns a line in which n pieces are sent at once. Two hide the gap between one
// piece and the next, and a receiver that is slow.
func NewLine(n int) *Line { return &Line{free: n} }

// Take takes a turn, or reports false and calls next later, when the turn is the
// caller's. Whoever got a turn gives it back with [Line.Give].
func (l *Line) Take(next func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free > 0 {
		l.free--
		return true
	}
	l.waiting = append(l.waiting, next)
	return false
}

// Give gives a turn back, to whoever has waited longest.
func (l *Line) Give() {
	l.mu.Lock()
	var next func()
	if len(l.waiting) > 0 {
		next = l.waiting[0]
		l.waiting = l.waiting[1:]
	} else {
		l.free++
	}
	l.mu.Unlock()
	if next != nil {
		next()
	}
}
