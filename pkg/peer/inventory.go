package peer

import (
	"context"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// inventoryEvery is how often the store is compared with what owners believe. An owner that names this host
// for an object that is gone costs the other host one connection.
const inventoryEvery = 5 * time.Second

// inventory is what owners believe of this host beyond its running downloads, and which entries they still have to
// receive. No download stays in memory, and no object on the disk, until an owner answers.
type inventory struct {
	// mu is held to look up and to note, never over an announce or a call of the engine.
	mu sync.Mutex
	// believed are tasks of which an owner may think that this host has something.
	believed map[task.ID]struct{}
	// owed are complete objects that no owner has confirmed.
	owed map[task.ID]struct{}
}

func newInventory(held []piece.Entry) *inventory {
	n := &inventory{believed: make(map[task.ID]struct{}), owed: make(map[task.ID]struct{})}
	for _, e := range held {
		n.believed[e.ID] = struct{}{} // once the inventory is announced
	}
	return n
}

// announced notes how an announce ended. The owner may have received one that failed.
func (n *inventory) announced(e api.Entry, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case e.Event == api.Stopped && err == nil:
		delete(n.believed, e.Task)
		return
	case e.Event == api.Completed && err == nil:
		delete(n.owed, e.Task)
	case e.Event == api.Completed:
		n.owed[e.Task] = struct{}{}
	}
	n.believed[e.Task] = struct{}{}
}

// due lists the entries to announce now, and forgets those that no owner needs any more.
func (n *inventory) due(held []piece.Entry, running func(task.ID) bool) (list []api.Entry) {
	here := make(map[task.ID]piece.Entry, len(held))
	for _, e := range held {
		here[e.ID] = e
	}
	var gone []task.ID
	n.mu.Lock()
	for id := range n.owed {
		if e, ok := here[id]; ok && e.Complete {
			list = append(list, api.Entry{Task: id, Event: api.Completed, Have: e.Have})
		} else {
			delete(n.owed, id)
		}
	}
	for id := range n.believed {
		if _, ok := here[id]; !ok {
			gone = append(gone, id)
		}
	}
	n.mu.Unlock()
	for _, id := range gone {
		if !running(id) {
			list = append(list, api.Entry{Task: id, Event: api.Stopped})
		}
	}
	return list
}

// announceInventory announces what no download announces: that an object is complete, where the first announce of
// it failed, and that one is gone.
func (e *Engine) announceInventory(ctx context.Context) {
	tick := time.NewTicker(inventoryEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for _, entry := range e.inventory.due(e.cfg.Store.Inventory(), e.running) {
			bounded, cancel := context.WithTimeout(ctx, announceTimeout)
			_, _, err := e.cfg.Announcer.Announce(bounded, entry)
			cancel()
			if ctx.Err() != nil {
				return
			}
			e.inventory.announced(entry, err)
			if err != nil {
				e.log.Debug("owners did not receive an inventory entry", "task", entry.Task.Short(), "event", entry.Event,
					"error", err)
				break // further announces would fail, too
			}
		}
	}
}

// running reports whether a task has a download in memory.
func (e *Engine) running(id task.ID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.downloads[id] != nil
}
