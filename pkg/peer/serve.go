package peer

import (
	"time"

	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
)

// What a download gives to others.

// serve answers a request for a piece, or for a part of it, at once: with the piece, with
// a reject where it is not here, or with busy where all slots are taken.
func (d *Download) serve(now time.Time, l *link, m wire.Message) {
	refuse := wire.Message{Type: wire.Reject, Index: m.Index, Begin: m.Begin, Length: m.Length}
	if d.pick == nil || !d.proven.Has(m.Index) {
		l.send(refuse)
		return
	}
	size := d.ledger.replica.Metadata().Layout().Size(m.Index)
	if m.Length <= 0 || m.Begin < 0 || m.Begin+m.Length > size {
		l.send(refuse)
		return
	}
	if !d.lane(l).slots.TryAcquire(d.id) && !d.displace(l) {
		d.refuse(l, wire.Busy{Index: m.Index, Begin: m.Begin}, m.Length)
		return
	}
	d.begin(now, l, &job{index: m.Index, begin: m.Begin, next: m.Begin, end: m.Begin + m.Length})
}

// headStart is how many pieces more than an asker somebody must have to lose its place to it.
const headStart = 3

// displace makes room for l among those that wait for their turn: who has most, and clearly
// more than l, is refused now and asks elsewhere. Else who came too late to a full host would
// end last, however little it has: 1.04 times the bound instead of 1.06, simulated.
func (d *Download) displace(l *link) bool {
	if d.isSeed() {
		return false
	}
	margin := headStart * 1000 / max(1, l.have.Len())
	lane := d.lane(l)
	j, _ := lane.line.Displace(d.id, l.rank()+margin).(*job)
	// One of a download before this one, which has failed, is ended in a moment by its own connection.
	if j == nil || j.link.d != d || !j.link.displaced(j) {
		return false
	}
	d.unserved(j.link, j)
	d.refuse(j.link, wire.Busy{Index: j.index, Begin: j.begin}, j.end-j.begin)
	return lane.slots.TryAcquire(d.id)
}

func (d *Download) refuse(l *link, b wire.Busy, length int64) {
	d.e.stats.busySent.Add(1)
	l.send(wire.Message{Type: wire.BusyMessage, Busy: &b, Length: length})
}

// serveAny answers a request for whatever piece, as a seed.
func (d *Download) serveAny(now time.Time, l *link, a wire.Any) {
	busy := wire.Message{Type: wire.BusyMessage, Busy: &wire.Busy{Index: wire.BusyAny}}
	lane := d.lane(l)
	if d.pick == nil || !lane.slots.TryAcquire(d.id) {
		d.e.stats.busySent.Add(1)
		l.send(busy)
		return
	}
	i, ok := d.spread.Pick(d.proven, l.have, a.Exclude, a.Starving)
	if !ok {
		lane.slots.Release(d.id)
		busy.Busy.Delay = max(busyMin, min(d.pieceTime, busyMax))
		l.send(busy)
		return
	}
	l.send(wire.Message{Type: wire.Suggest, Index: i})
	d.begin(now, l, &job{index: i, end: d.ledger.replica.Metadata().Layout().Size(i), any: true})
}

func (d *Download) begin(now time.Time, l *link, j *job) {
	j.link, j.lane = l, d.lane(l)
	if !d.afar(l) {
		d.spread.Sent(j.index)
	}
	d.prove(l, j.index)
	d.remember(l, j)
	j.rank = l.rank()
	l.sending++
	d.lastUse = now
	if !l.serve(j) {
		d.unserved(l, j)
	}
}

// rank is how much of the content a neighbour has, in thousandths: tasks of any size compare.
func (l *link) rank() int { return l.have.Count() * 1000 / max(1, l.have.Len()) }

// unserved ends a job that was never begun.
func (d *Download) unserved(l *link, j *job) {
	l.yield(j, true)
	j.lane.slots.Release(d.id)
	d.served(l, j, false)
}

// served ends a job.
func (d *Download) served(l *link, j *job, sent bool) {
	l.sending--
	if !sent && j.next == j.begin && !d.afar(l) {
		d.spread.Unsent(j.index)
	}
}

// remember notes which pieces a peer is sent. Who is sent one again may have found it wrong.
func (d *Download) remember(l *link, j *job) {
	if j.begin > 0 || j.end < d.ledger.replica.Metadata().Layout().Size(j.index) {
		return
	}
	who := l.conn.PeerID()
	if _, ok := d.given[who]; !ok {
		if len(d.given) >= givenMax {
			clear(d.given)
		}
		d.given[who] = piece.NewBitmap(d.pick.Have().Len())
	}
	if !d.given[who].Set(j.index) {
		d.check(j.index)
	}
}

// check reads a piece and compares it with its digest. One that is damaged says that the
// disk cannot be believed: all of the content goes, and is brought anew when it is wanted.
func (d *Download) check(i piece.Index) {
	want, ok := d.ledger.digest(i)
	if !ok || !d.complete {
		return
	}
	d.checking++
	d.wg.Go(func() { d.notify(pieceChecked{i, d.damaged(i, want)}) })
}

// checked ends a check.
func (d *Download) checked(i piece.Index, damaged bool) {
	d.checking--
	if damaged {
		d.dropDamaged(i)
	}
}
