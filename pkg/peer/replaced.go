package peer

import (
	"time"

	"github.com/darter-io/darter/pkg/task"
)

// attemptMemory is how long it is remembered that what was brought of a task was dropped again.
const attemptMemory = 10 * time.Minute

// Replaced reports whether what readers were given of a task within the last ten minutes may be
// other bytes than it has now: because they proved wrong at the end, because the signed digests of
// two attempts contradict each other, or because the content was withdrawn while it was brought. A
// client that holds the beginning from then must not add to it.
func (e *Engine) Replaced(id task.ID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	a, ok := e.attempts[id]
	return ok && (a.count > 0 || a.replaced || len(a.revoked) > 0) && time.Since(a.last) <= attemptMemory
}

// noteReplaced remembers that what was given of a task is not to be added to.
func (e *Engine) noteReplaced(id task.ID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.attempt(time.Now(), id)
	a.replaced = true
	e.attempts[id] = a
}
