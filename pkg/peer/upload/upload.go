// Package upload says who may be served: a host sends a few pieces at once and refuses
// every further request at once, because a queue at the sender costs the swarm more than a
// second question (1.06 times the bound without a queue, 1.30 with four waiting; simulated).
//
// Nothing here blocks. Start at [Slots.TryAcquire].
package upload

import (
	"slices"
	"sync"
	"sync/atomic"
)

// SlotsDefault is how many requests an ordinary host accepts at once.
const SlotsDefault = 6

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
// and can be passed on, where all would be there after as many as there are. Who has least
// is served first, because it has the fewest pieces to pass on, and would be last.
type Line struct {
	// mu is held to take or give a turn, never while bytes move.
	mu      sync.Mutex
	free    int
	waiting []turn // in the order they came
}

type turn struct {
	rank   int
	passed int // how often somebody who came later went first
	next   func()
}

// patience is how often somebody who came later may go first: who has nearly everything
// waits longer, but not for ever, while newcomers keep coming.
const patience = 8

// NewLine returns a line in which n pieces are sent at once. Two hide the gap between one
// piece and the next, and a receiver that is slow.
func NewLine(n int) *Line { return &Line{free: n} }

// Take takes a turn, or reports false and calls next later, when the turn is the
// caller's; of those who wait the lowest rank goes first. Whoever got a turn gives it back
// with [Line.Give].
func (l *Line) Take(rank int, next func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free > 0 {
		l.free--
		return true
	}
	l.waiting = append(l.waiting, turn{rank: rank, next: next})
	return false
}

// Give gives a turn back, and so to whoever is next: the lowest rank, the longest wait
// among equals, but before all one that was passed over too often.
func (l *Line) Give() {
	l.mu.Lock()
	if len(l.waiting) == 0 {
		l.free++
		l.mu.Unlock()
		return
	}
	first := 0
	for i, t := range l.waiting {
		if l.waiting[0].passed < patience && t.rank < l.waiting[first].rank {
			first = i
		}
	}
	for i := range first {
		l.waiting[i].passed++
	}
	next := l.waiting[first].next
	l.waiting = slices.Delete(l.waiting, first, first+1)
	l.mu.Unlock()
	next()
}
