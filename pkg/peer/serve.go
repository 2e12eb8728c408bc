package peer

import (
	"time"

	"github.com/darter-io/darter/pkg/peer/picker"
	"github.com/darter-io/darter/pkg/peer/upload"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
)

// This file has the answers of a download to the requests of neighbours.

// serving is what a download sent, and to which peers. The loop owns it.
type serving struct {
	spread *picker.Spread
	// shown are the pieces that are stored and that a neighbour can verify: haves announce them.
	shown piece.Bitmap
	// given are the pieces that each peer was sent; see remember.
	given map[[20]byte]piece.Bitmap
	// checking is how many pieces are read because a peer was sent them twice.
	checking int
}

// serve answers a request for a piece, or for a part of it, at once: with the piece, with
// a reject where it is not here, or with busy where all slots are taken.
func (d *Download) serve(now time.Time, c *conn, m wire.Message) {
	refuse := wire.Message{Type: wire.Reject, Index: m.Index, Begin: m.Begin, Length: m.Length}
	if d.pick == nil || !d.serving.shown.Has(m.Index) {
		c.send(refuse)
		return
	}
	size := d.proof.replica.Metadata().Layout().Size(m.Index)
	if m.Length <= 0 || m.Begin < 0 || m.Begin+m.Length > size {
		c.send(refuse)
		return
	}
	if !c.lane().slots.TryAcquire(d.id, c) && !d.displace(c) {
		c.refuse(wire.Busy{Index: m.Index, Begin: m.Begin}, m.Length)
		return
	}
	d.begin(now, c, &job{index: m.Index, begin: m.Begin, next: m.Begin, end: m.Begin + m.Length})
}

// headStart is how many pieces more a host must have to lose its place to one that asks later.
const headStart = 3

// displace frees a place in the send queue for c: this host refuses the waiting request of the neighbour that has most
// pieces, if it has clearly more than c, and that neighbour asks elsewhere. Otherwise a host with few pieces that asks
// a full host late would end last: a simulated crowd took 1.06 times the bound instead of 1.04.
func (d *Download) displace(c *conn) bool {
	if d.isSeed() {
		return false
	}
	margin := headStart * 1000 / max(1, c.remote.have.Len())
	lane := c.lane()
	j, _ := lane.line.Displace(d.id, c.rank()+margin).(*job)
	// A job of an earlier download, which failed, stays: its own connection ends it soon.
	if j == nil || j.conn.d != d {
		return false
	}
	// All its other requests wait behind this one, and its slot is free when none of them is left.
	jobs := j.conn.displaced(j)
	for _, j := range jobs {
		d.unserved(j.conn, j)
		j.conn.refuse(wire.Busy{Index: j.index, Begin: j.begin}, j.end-j.begin)
	}
	return len(jobs) > 0 && lane.slots.TryAcquire(d.id, c)
}

func (c *conn) refuse(b wire.Busy, length int64) {
	c.d.e.stats.busySent.Add(1)
	c.send(wire.Message{Type: wire.BusyMessage, Busy: &b, Length: length})
}

// serveAny answers a request for whatever piece, as a seed.
func (d *Download) serveAny(now time.Time, c *conn, a wire.Any) {
	busy := wire.Message{Type: wire.BusyMessage, Busy: &wire.Busy{Index: wire.BusyAny}}
	lane := c.lane()
	if d.pick == nil || !lane.slots.TryAcquire(d.id, c) {
		d.e.stats.busySent.Add(1)
		c.send(busy)
		return
	}
	i, ok := d.serving.spread.Pick(d.serving.shown, c.remote.have, a.Exclude, a.SeedsOnly)
	if !ok {
		lane.slots.Release(d.id, c)
		busy.Busy.Delay = max(busyMin, min(d.times.pieceTime, busyMax))
		c.send(busy)
		return
	}
	c.send(wire.Message{Type: wire.Suggest, Index: i})
	d.begin(now, c, &job{index: i, end: d.proof.replica.Metadata().Layout().Size(i), any: true})
}

func (d *Download) begin(now time.Time, c *conn, j *job) {
	j.conn, j.lane = c, c.lane()
	if !c.afar() {
		d.serving.spread.Sent(j.index)
	}
	c.sendProof(j.index)
	d.remember(c, j)
	j.rank = c.rank()
	c.sending++
	d.times.lastUse = now
	if !c.serve(j) {
		d.unserved(c, j)
	}
}

// rank is how much of the object a neighbour has, in thousandths: tasks of any size compare.
func (c *conn) rank() int { return c.remote.have.Count() * 1000 / max(1, c.remote.have.Len()) }

// unserved ends a job that was never begun.
func (d *Download) unserved(c *conn, j *job) {
	c.yield(j, true)
	j.lane.slots.Release(d.id, c)
	d.served(c, j, false)
}

// served ends a job.
func (d *Download) served(c *conn, j *job, sent bool) {
	c.sending--
	if !sent && j.next == j.begin && !c.afar() {
		d.serving.spread.Unsent(j.index)
	}
}

// remember notes which pieces a peer is sent. It checks a piece that a peer requests again: the peer may have found it
// wrong.
func (d *Download) remember(c *conn, j *job) {
	if j.begin > 0 || j.end < d.proof.replica.Metadata().Layout().Size(j.index) {
		return
	}
	who := c.wire.PeerID()
	if _, ok := d.serving.given[who]; !ok {
		if len(d.serving.given) >= givenMax {
			clear(d.serving.given)
		}
		d.serving.given[who] = piece.NewBitmap(d.pick.Have().Len())
	}
	if !d.serving.given[who].Set(j.index) {
		d.check(j.index)
	}
}

// check reads a piece and compares it with its digest. A damaged piece shows that the disk cannot be trusted: the
// download drops the whole task, and a later reader downloads it again.
func (d *Download) check(i piece.Index) {
	want, ok := d.proof.digest(i)
	if !ok || !d.complete() {
		return
	}
	d.serving.checking++
	d.wg.Go(func() { d.notify(pieceChecked{i, d.stored.damaged(i, want)}) })
}

// checked ends a check.
func (d *Download) checked(i piece.Index, damaged bool) {
	d.serving.checking--
	if damaged {
		d.dropDamaged(i)
	}
}

// lane holds the upload slots and the send queue for the neighbours of this host's zone, or for those of other zones.
// Pieces for other zones wait for the connection between zones: in one queue the zone's own pieces would wait, too.
type lane struct {
	slots *upload.Slots
	line  *upload.SendQueue
}

func newLane(slots, lines int) lane {
	return lane{upload.NewSlots(slots), upload.NewSendQueue(lines)}
}

// afarSlots returns how many requests from other zones a host with this number of slots accepts in addition to those of
// its own zone: few, because every zone fetches a piece once.
func afarSlots(slots int) int { return max(1, slots/3) }

// lane returns the lane that serves c.
func (c *conn) lane() *lane {
	if c.afar() {
		return &c.d.e.afar
	}
	return &c.d.e.near
}

// afar reports whether a neighbour is in another zone. A neighbour that has not announced its zone counts as near.
func (c *conn) afar() bool { return c.remote.gotHello && c.remote.zone != c.d.e.cfg.Host.Zone }
