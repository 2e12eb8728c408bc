package peer

import (
	"time"

	"github.com/darter-io/darter/pkg/peer/picker"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// spreadFor is how long a seed remembers what it has sent of a content that nobody asks
	// for at the moment. Nodes that start one by one would else get each its own "first" copies;
	// remembered for longer, those copies may be gone, and who comes would starve first.
	spreadFor = 10 * time.Minute
	// spreadsMax bounds of how many contents; one takes two bytes a piece.
	spreadsMax = 1024
)

// spreadPast is what a seed has sent of a content, until when that counts.
type spreadPast struct {
	spread *picker.Spread
	pieces int
	until  time.Time
}

// keepSpread remembers what a download that ends has sent. The caller holds mu, and d's
// loop is over.
func (e *Engine) keepSpread(d *Download, now time.Time) {
	if d.spread == nil || !d.isSeed() {
		return
	}
	if len(e.spreads) >= spreadsMax {
		for id, past := range e.spreads {
			if now.After(past.until) {
				delete(e.spreads, id)
			}
		}
	}
	if len(e.spreads) < spreadsMax {
		e.spreads[d.id] = spreadPast{d.spread, d.pick.Have().Len(), now.Add(spreadFor)}
	}
}

// spreadOf is what was sent of a content lately, and else nothing.
func (e *Engine) spreadOf(id task.ID, pieces int, now time.Time) *picker.Spread {
	e.mu.Lock()
	defer e.mu.Unlock()
	past, ok := e.spreads[id]
	delete(e.spreads, id)
	if !ok || past.pieces != pieces || now.After(past.until) {
		return picker.NewSpread(pieces, e.cfg.Copies)
	}
	return past.spread
}
