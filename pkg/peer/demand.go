package peer

import (
	"context"
	"sync/atomic"
	"time"
)

// What an engine brings from origins is shared: what somebody waits for goes first, and what
// nobody does, a preheat above all, takes a small part of the way meanwhile.

const (
	// giveWayTimes is how many times as long as it took to bring a piece the next one of a
	// download that nobody waits for is put off while others are waited for.
	giveWayTimes = 8
	// giveWayMax bounds that, so that an origin does not take the connection for dead.
	giveWayMax = 2 * time.Second
)

// demand counts an engine's downloads that come from an origin and that somebody waits for.
type demand struct {
	count   atomic.Int64
	changed broadcast
}

// awaited reports whether a reader here or a neighbour waits for what an origin gives.
func (d *Download) awaited() bool {
	if !d.seeding {
		return false
	}
	for _, w := range d.wants {
		if w.reader != nil {
			return true
		}
	}
	for _, l := range d.links {
		if l.have.Len() == 0 || !l.have.Full() {
			return true
		}
	}
	return false
}

// noteDemand tells the engine when somebody begins or ceases to wait for this download.
func (d *Download) noteDemand(awaited bool) {
	if d.demanded.Load() == awaited {
		return
	}
	d.demanded.Store(awaited)
	if awaited {
		d.e.demand.count.Add(1)
	} else {
		d.e.demand.count.Add(-1)
	}
	d.e.demand.changed.signal()
}

// giveWay waits while others are waited for and this download is not, but not for long; took
// is how long the last piece took.
func (d *Download) giveWay(ctx context.Context, took time.Duration) {
	if d.demanded.Load() || d.e.demand.count.Load() == 0 {
		return
	}
	timer := time.NewTimer(min(giveWayTimes*took, giveWayMax))
	defer timer.Stop()
	for {
		changed := d.e.demand.changed.wait()
		if d.demanded.Load() || d.e.demand.count.Load() == 0 {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
