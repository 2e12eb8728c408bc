package peer

import (
	"errors"
	"fmt"

	"github.com/darter-io/darter/pkg/task"
)

// ErrDropped ends the readers of a task that [Engine.Drop] deletes. It is no failure of the origin, so no other
// host hears of it.
var ErrDropped = errors.New("the object was purged while it was read; read it again to get it from its origin")

// Drop deletes the replica of a task, running or stored. Its readers end short and its connections are closed. A
// later read starts over, by way of the task's owner.
func (e *Engine) Drop(id task.ID) error {
	// A reader that comes between the end of the download and the removal of the replica opens that replica:
	// the second round ends it. Nothing is stored by then.
	for range 2 {
		e.mu.Lock()
		d := e.downloads[id]
		e.mu.Unlock()
		if d != nil {
			e.noteReplaced(id)
			d.notify(purged{})
			<-d.done
		}
		if err := e.cfg.Store.Remove(id); err != nil {
			return fmt.Errorf("deleting task %s: %w", id, err)
		}
	}
	return nil
}
