// Package upload decides which requests a host serves: it sends a few pieces at once and refuses
// every further request at once, because a queue at the sender costs the swarm more than a
// second question (1.06 times the bound without a queue, 1.30 with four waiting; simulated).
//
// Nothing here blocks, and no task keeps another from being served: slots are the host's,
// and who asks for a task that has less than its share of them gets one. Start at
// [Slots.TryAcquire].
package upload

import (
	"slices"
	"sync"

	"github.com/darter-io/darter/pkg/task"
)

// SlotsDefault is how many requests an ordinary host accepts at once.
const SlotsDefault = 3

// Slots are a host's upload slots, shared by all its tasks. Safe for concurrent use.
type Slots struct {
	// mu is held to take or give a slot.
	mu          sync.Mutex
	max, active int
	of          map[task.ID]int // slots by task, of those that have any
}

// NewSlots returns n slots. More of them end one crowd sooner and slow everyone in it.
func NewSlots(n int) *Slots { return &Slots{max: n, of: make(map[task.ID]int)} }

// Resize changes the number of slots; what is being sent goes on.
func (s *Slots) Resize(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.max = n
}

// TryAcquire takes a slot for a task, or reports that there is none. Each task may take what
// is free. When all are taken, a task with less than an equal part still gets one, so that a
// crowd that keeps every slot taken cannot starve a task that few ask for; there are twice
// as many slots at most, until some of the crowd's pieces are out.
func (s *Slots) TryAcquire(id task.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active >= s.max && !s.below(id) {
		return false
	}
	s.active++
	s.of[id]++
	return true
}

// below reports whether a task has less than an equal part of all slots, one at least, and
// more can be had. The caller holds mu.
func (s *Slots) below(id task.ID) bool {
	own, tasks := s.of[id], len(s.of)
	if own == 0 {
		tasks++
	}
	return own < max(1, s.max/tasks) && s.active < 2*s.max
}

// Release gives a slot of a task back.
func (s *Slots) Release(id task.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	if s.of[id]--; s.of[id] <= 0 {
		delete(s.of, id)
	}
}

// Active is how many slots are taken.
func (s *Slots) Active() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active
}

// Max is how many slots there are.
func (s *Slots) Max() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.max
}

// SendQueue says whose turn it is to send. A host that has accepted several requests sends one
// piece after the other rather than all at once: the first is there after one piece-time
// and can be passed on, where all would be there after as many as there are. Tasks take
// turns; of one task's askers who has least is served first, because it has the fewest
// pieces to pass on, and would be last.
type SendQueue struct {
	// mu is held to take or give a turn, never while bytes move.
	mu      sync.Mutex
	free    int
	waiting []turn             // in the order they came
	served  map[task.ID]uint64 // when a task had its last turn, in turns
	turns   uint64
}

type turn struct {
	task   task.ID
	rank   int
	passed int // how often a later request of the same task went first
	who    any
	next   func()
}

const (
	// patience is how often somebody who came later may go first: who has nearly everything
	// waits longer, but not for ever, while newcomers keep coming.
	patience = 8
	// servedMax bounds how many tasks' last turns are remembered.
	servedMax = 1024
)

// NewSendQueue returns a line in which n pieces are sent at once. Two hide the gap between one
// piece and the next, and a receiver that is slow.
func NewSendQueue(n int) *SendQueue { return &SendQueue{free: n, served: make(map[task.ID]uint64)} }

// Take takes a turn for who, or reports false and calls next later, when the turn is the
// caller's; of a task's that wait the lowest rank goes first. Whoever got a turn gives it back
// with [SendQueue.Give].
func (l *SendQueue) Take(id task.ID, rank int, who any, next func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free > 0 {
		l.free--
		l.note(id)
		return true
	}
	l.waiting = append(l.waiting, turn{task: id, rank: rank, who: who, next: next})
	return false
}

// Displace takes the request with the highest rank of a task out of the line, if that is above the given
// one, and returns it; nil where there is none. Its next is not called any more.
func (l *SendQueue) Displace(id task.ID, above int) (who any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := -1
	for i, t := range l.waiting {
		if t.task == id && t.rank > above && (last < 0 || t.rank >= l.waiting[last].rank) {
			last = i
		}
	}
	if last < 0 {
		return nil
	}
	who = l.waiting[last].who
	l.waiting = slices.Delete(l.waiting, last, last+1)
	return who
}

// note remembers whose turn it is. The caller holds mu.
func (l *SendQueue) note(id task.ID) {
	if len(l.served) >= servedMax {
		clear(l.served)
	}
	l.turns++
	l.served[id] = l.turns
}

// Give gives a turn back, and so to whoever is next: of the task whose last turn is longest
// ago the lowest rank, the longest wait among equals, but before all one that was passed over
// too often.
func (l *SendQueue) Give() {
	l.mu.Lock()
	if len(l.waiting) == 0 {
		l.free++
		l.mu.Unlock()
		return
	}
	oldest := l.waiting[0].task
	for _, t := range l.waiting {
		if l.served[t.task] < l.served[oldest] {
			oldest = t.task
		}
	}
	next := l.choose(oldest)
	l.note(oldest)
	l.mu.Unlock()
	next()
}

// choose takes out of the line who of a task is next. The caller holds mu.
func (l *SendQueue) choose(id task.ID) (next func()) {
	first, longest := -1, -1
	for i, t := range l.waiting {
		switch {
		case t.task != id:
		case first < 0:
			first, longest = i, i
		case l.waiting[longest].passed < patience && t.rank < l.waiting[first].rank:
			first = i
		}
	}
	for i := range l.waiting[:first] {
		if l.waiting[i].task == id {
			l.waiting[i].passed++
		}
	}
	next = l.waiting[first].next
	l.waiting = slices.Delete(l.waiting, first, first+1)
	return next
}
