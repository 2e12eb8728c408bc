package peer

import (
	"errors"
	"fmt"

	"github.com/darter-io/darter/pkg/task"
)

// ErrWithdrawn tells that an operator withdrew the content while it was read. It says nothing
// of the origin, so other hosts are not told it as a failure.
var ErrWithdrawn = errors.New("the content was withdrawn while it was read; ask again to have it from its origin")

// Withdraw drops what is here of a content. Its readers end short, its neighbours are left,
// and who asks for it from then on gets it anew, by way of its owner.
func (e *Engine) Withdraw(id task.ID) error {
	// Who comes between the end of a download and the end of what is stored finds the latter
	// and has to be ended as well; nothing is stored the second time.
	for range 2 {
		e.mu.Lock()
		d := e.downloads[id]
		e.mu.Unlock()
		if d != nil {
			e.noteReplaced(id)
			d.post(func() { d.fail(ErrWithdrawn) })
			<-d.done
		}
		if err := e.cfg.Store.Remove(id); err != nil {
			return fmt.Errorf("withdrawing task %s: %w", id, err)
		}
	}
	return nil
}
