package peer

import (
	"errors"
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// yieldFor bounds how long a new object waits until others are evicted.
	yieldFor = 3 * time.Second
	// partingFor is how much of that time it waits for objects that are being read: a client that has everything can
	// request the next object before its reader here is closed. A longer wait delays a refusal. yieldPause is the wait
	// before it asks the downloads again.
	partingFor, yieldPause = 500 * time.Millisecond, 20 * time.Millisecond
)

// errYields refuses a peer: this host evicts the object.
var errYields = errors.New("it evicts this task to free space")

// create creates an object in the store, and evicts others where that needs space.
func (e *Engine) create(id task.ID, f piece.Metadata) (r piece.Replica, err error) {
	err = e.withSpace(id, func() error { r, err = e.cfg.Store.Create(id, f); return err })
	return r, err
}

// withSpace calls a function that needs space in the store for an object. A store evicts nothing that is
// open. Where it is full, withSpace first closes objects that no reader and no peer uses, the least
// recently used before others: a small cache must not refuse the next pull because of the last one.
func (e *Engine) withSpace(id task.ID, do func() error) error {
	deadline := time.NewTimer(yieldFor)
	defer deadline.Stop()
	begun := time.Now()
	asked := map[*Download]bool{}
	nobody := false
	for {
		err := do()
		if !errors.Is(err, piece.ErrNoSpace) {
			return err
		}
		now := time.Now()
		if e.oneYields(now, id, asked, deadline.C) {
			continue
		}
		if len(asked) == 0 && !nobody {
			nobody = true // but one may have ended since the store was asked
			continue
		}
		if len(asked) == 0 || time.Since(begun) >= partingFor {
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

// oneYields ends one download that can end, or waits for one that ends anyway. It returns false where
// there is none, or no time left.
func (e *Engine) oneYields(now time.Time, needy task.ID, asked map[*Download]bool, deadline <-chan time.Time) bool {
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
	for _, d := range e.byUse(now) {
		if d.id == needy || asked[d] || !d.proof.hasMetadata() {
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

// oneLeaving returns a download of another object that has ended and has not closed its replica yet, or
// nil.
func (e *Engine) oneLeaving(needy task.ID) *Download {
	e.mu.Lock()
	defer e.mu.Unlock()
	for d := range e.leaving {
		if d.id != needy && d.proof.hasMetadata() {
			return d
		}
	}
	return nil
}

// byUse lists the downloads in memory, the least recently used first.
func (e *Engine) byUse(now time.Time) []*Download {
	e.mu.Lock()
	list := make([]*Download, 0, len(e.downloads))
	for _, d := range e.downloads {
		list = append(list, d)
	}
	e.mu.Unlock()
	used := func(d *Download) time.Time {
		if v := d.snapshot.Load(); v != nil {
			return v.lastUse
		}
		return now
	}
	slices.SortFunc(list, func(a, b *Download) int { return used(a).Compare(used(b)) })
	return list
}

// yield ends a download that is in memory only because it may be of use again. It returns false where a
// reader or a peer uses it, or the owner counts on it.
func (d *Download) yield(now time.Time) bool {
	if d.wants.readers() > 0 || d.pick == nil || !d.complete() && (d.wants.everything() || d.held()) ||
		d.serving.checking > 0 {
		return false
	}
	for _, c := range d.conns.open {
		if c.sending > 0 {
			return false
		}
	}
	d.wants.yielding = true
	if d.policy.AtOrigin() {
		d.origin.stop(errUnwanted)
	}
	d.wants.ranges = nil
	d.updateWanted(now)
	for _, c := range d.conns.open {
		c.drain(wire.LeavesTask)
	}
	return true
}
