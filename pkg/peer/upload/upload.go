// Package upload decides which requests a host serves. It accepts those of a few neighbours and refuses every further
// one at once, because a long queue at the sender costs the swarm more than a second request (1.06 times the bound
// without a queue, 1.30 with four waiting; simulated). An accepted neighbour may have more requests here: those
// that its path needs.
//
// Nothing here blocks, and no task starves another one: all tasks share the host's slots, and a request for a task with
// less than its share gets one. Start at [Slots.TryAcquire].
package upload

import (
	"slices"
	"sync"

	"github.com/darter-io/darter/pkg/task"
)

// SlotsDefault is how many neighbours an ordinary host serves at once.
const SlotsDefault = 3

// queueMax bounds the accepted requests of one neighbour.
const queueMax = 512

// Slots are a host's upload slots, shared by all its tasks. A slot serves one neighbour of one task. It may have more
// requests in it, which take turns with those of other neighbours only one at a time. Safe for concurrent use.
type Slots struct {
	// mu is held to acquire or release a slot.
	mu          sync.Mutex
	max, active int
	of          map[task.ID]int // slots by task, of those that have any
	requests    map[any]int     // accepted requests by neighbour
	// wanted says that a neighbour without a slot was refused since a slot was last released: the others get nothing in
	// addition meanwhile.
	wanted bool
}

// NewSlots returns n slots.
func NewSlots(n int) *Slots {
	return &Slots{max: n, of: make(map[task.ID]int), requests: make(map[any]int)}
}

// Resize changes the number of slots; accepted requests keep theirs.
func (s *Slots) Resize(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.max = n
}

// TryAcquire accepts a request of a neighbour, and returns false if it cannot. who names the neighbour and the task,
// and can be the key of a map. Each task may use all free slots. When none is free, a task with less than an equal part
// still gets one, so that many requests for one task cannot starve another task. So up to twice the number of slots can
// be in use for a while. A neighbour that has a slot needs no other one, unless another neighbour waits for a slot.
func (s *Slots) TryAcquire(id task.ID, who any) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.requests[who]
	if n > 0 {
		if s.wanted || n >= queueMax {
			return false
		}
		s.requests[who]++
		return true
	}
	if s.active >= s.max && !s.below(id) {
		s.wanted = true
		return false
	}
	s.active++
	s.of[id]++
	s.requests[who] = 1
	return true
}

// below reports whether a task has less than an equal part of all slots, one at least, and the bound admits one more.
// The caller holds mu.
func (s *Slots) below(id task.ID) bool {
	own, tasks := s.of[id], len(s.of)
	if own == 0 {
		tasks++
	}
	return own < max(1, s.max/tasks) && s.active < 2*s.max
}

// Release ends an accepted request; the last one of a neighbour releases its slot.
func (s *Slots) Release(id task.ID, who any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.requests[who]--; s.requests[who] > 0 {
		return
	}
	delete(s.requests, who)
	s.wanted = false
	s.active--
	if s.of[id]--; s.of[id] <= 0 {
		delete(s.of, id)
	}
}

// Active returns how many slots are in use.
func (s *Slots) Active() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active
}

// Max returns the number of slots.
func (s *Slots) Max() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.max
}

// SendQueue orders accepted requests. A host sends one piece after the other instead of all at once: the receiver of
// the first piece can then send it to others after the time of one piece. Tasks take turns. Within a task, the
// neighbour with the fewest pieces comes first, because it has the least to send to others and would finish last.
type SendQueue struct {
	// mu is held to take or give a turn, never while bytes are sent.
	mu      sync.Mutex
	free    int
	waiting []turn             // in the order of their requests
	served  map[task.ID]uint64 // the number of each task's last turn
	turns   uint64
}

type turn struct {
	task   task.ID
	rank   int
	passed int // how many later requests of the same task were served before
	who    any
	next   func()
}

const (
	// patience bounds how many later requests are served before an earlier one of the same task: a neighbour with
	// nearly all pieces waits longer, but not for ever, while new neighbours join.
	patience = 8
	// servedMax bounds the tasks whose last turns are remembered.
	servedMax = 1024
)

// NewSendQueue returns a queue that sends n pieces at once. Two hide the gap between two pieces, and a slow receiver.
func NewSendQueue(n int) *SendQueue { return &SendQueue{free: n, served: make(map[task.ID]uint64)} }

// Take returns true if the caller may send now. Otherwise it returns false, and calls next when the caller may send;
// the lowest rank of a task comes first. The caller ends its turn with [SendQueue.Give]. who is the result of
// [SendQueue.Displace].
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

// Displace removes the waiting request with the highest rank of a task if that rank is above the given one, and returns
// its who, or nil. Its next is not called.
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

// note records a turn of a task. The caller holds mu.
func (l *SendQueue) note(id task.ID) {
	if len(l.served) >= servedMax {
		clear(l.served)
	}
	l.turns++
	l.served[id] = l.turns
}

// Give ends a turn and gives it to the next waiting request: of the task whose last turn is the oldest, the request
// with the lowest rank, and of equal ones the first. A request that was passed over [patience] times precedes them.
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

// choose removes the next request of a task from the queue. The caller holds mu.
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
