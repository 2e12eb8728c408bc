package peer

import (
	"errors"
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// yieldFor bounds how long a new content waits for others to make room.
	yieldFor = 3 * time.Second
	// partingFor is how long of that it waits for contents that are being read: a client that
	// has everything asks for the next before its reader here is closed. Longer holds up a
	// refusal. yieldPause is how often they are asked again.
	partingFor, yieldPause = 500 * time.Millisecond, 20 * time.Millisecond
)

// errYields tells a peer that this host gives a content up to make room for another.
var errYields = errors.New("it gives this task up to make room")

// create makes a content in the store.
func (e *Engine) create(id task.ID, f piece.Metadata) (r piece.Replica, err error) {
	err = e.withRoom(id, func() error { r, err = e.cfg.Store.Create(id, f); return err })
	return r, err
}

// withRoom does for a content what needs room in the store. A store evicts nothing that is open, so where it is
// full, contents that nobody reads and nobody is sent are closed first, those used longest ago
// before others: a small cache must not refuse the next pull because of the last one.
func (e *Engine) withRoom(id task.ID, do func() error) error {
	deadline := time.NewTimer(yieldFor)
	defer deadline.Stop()
	parting := time.Now().Add(partingFor)
	asked := map[*Download]bool{}
	nobody := false
	for {
		err := do()
		if !errors.Is(err, piece.ErrNoSpace) {
			return err
		}
		if e.oneYields(id, asked, deadline.C) {
			continue
		}
		if len(asked) == 0 && !nobody {
			nobody = true // but one may have ended since the store was asked
			continue
		}
		if len(asked) == 0 || !time.Now().Before(parting) {
			return err
		}
		clear(asked)
		select {
		case <-time.After(yieldPause):
		case <-e.ctx.Done():
			return err
		}
	}
}

// oneYields has one download end that can, or that does so anyway, and waits for that. It returns
// false when there is none, or no time left.
func (e *Engine) oneYields(needy task.ID, asked map[*Download]bool, deadline <-chan time.Time) bool {
	ended := func(d *Download) bool {
		select {
		case <-d.closed:
			return true
		case <-deadline:
		case <-e.ctx.Done():
		}
		return false
	}
	if d := e.oneLeaving(needy); d != nil {
		return ended(d)
	}
	for _, d := range e.byUse() {
		if d.id == needy || asked[d] || !d.ledger.hasMetadata() {
			continue
		}
		asked[d] = true
		answer := make(chan bool, 1)
		d.notify(spaceNeeded{answer})
		yields := false
		select {
		case yields = <-answer:
		case <-d.done:
			yields = true
		case <-deadline:
			return false
		case <-e.ctx.Done():
			return false
		}
		if yields {
			return ended(d)
		}
	}
	return false
}

// oneLeaving returns a download of another content that has ended and not closed yet what it holds,
// or nil.
func (e *Engine) oneLeaving(needy task.ID) *Download {
	e.mu.Lock()
	defer e.mu.Unlock()
	for d := range e.leaving {
		if d.id != needy && d.ledger.hasMetadata() {
			return d
		}
	}
	return nil
}

// byUse lists the downloads in memory, those used longest ago first.
func (e *Engine) byUse() []*Download {
	e.mu.Lock()
	list := make([]*Download, 0, len(e.downloads))
	for _, d := range e.downloads {
		list = append(list, d)
	}
	e.mu.Unlock()
	used := func(d *Download) time.Time {
		if v := d.view.Load(); v != nil {
			return v.lastUse
		}
		return time.Now()
	}
	slices.SortFunc(list, func(a, b *Download) int { return used(a).Compare(used(b)) })
	return list
}

// yield ends a download that is in memory only because it may be of use again. It returns
// false where somebody reads, is sent something, or counts on its going on.
func (d *Download) yield(now time.Time) bool {
	for _, w := range d.wants {
		if w.reader != nil {
			return false
		}
	}
	if d.pick == nil || !d.complete && (d.background || d.e.held(d)) || d.checking > 0 {
		return false
	}
	for _, l := range d.links {
		if l.sending > 0 {
			return false
		}
	}
	d.yielding = true
	if d.seeding {
		d.stopOrigin(errUnwanted)
	}
	d.wants = nil
	d.updateWanted(now)
	for _, l := range d.links {
		l.drain()
	}
	return true
}
