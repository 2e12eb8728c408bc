package peer

import (
	"context"
	"sync/atomic"
	"time"
)

// Downloads from origins have priorities: while a reader or a neighbour waits for one, the others, as a
// preheat, take a small part of the bandwidth.

const (
	// giveWayTimes is how long an unawaited download pauses after a piece while another one is awaited, in
	// times of what the piece took.
	giveWayTimes = 8
	// giveWayMax bounds that, so that an origin does not take the connection for dead.
	giveWayMax = 2 * time.Second
)

// waited counts an engine's downloads that come from an origin and that a reader or a neighbour awaits.
type waited struct {
	count   atomic.Int64
	changed broadcast
}

// awaited reports whether a reader here or a neighbour waits for the origin's bytes.
func (d *Download) awaited() bool {
	if !d.policy.AtOrigin() {
		return false
	}
	if d.wants.readers() > 0 {
		return true
	}
	for _, c := range d.conns.open {
		if c.remote.have.Len() == 0 || !c.remote.have.Full() {
			return true
		}
	}
	return false
}

// note changes whether this download is awaited.
func (o *origin) note(all *waited, awaited bool) {
	if o.awaited.Load() == awaited {
		return
	}
	o.awaited.Store(awaited)
	if awaited {
		all.count.Add(1)
	} else {
		all.count.Add(-1)
	}
	all.changed.signal()
}

// giveWay pauses a download that is not awaited while others are; took is how long the last piece took.
func (o *origin) giveWay(ctx context.Context, all *waited, took time.Duration) {
	if o.awaited.Load() || all.count.Load() == 0 {
		return
	}
	timer := time.NewTimer(min(giveWayTimes*took, giveWayMax))
	defer timer.Stop()
	for {
		changed := all.changed.wait()
		if o.awaited.Load() || all.count.Load() == 0 {
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
