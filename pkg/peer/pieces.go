package peer

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
)

// What a download does with pieces: it asks for them, takes them in, proves them and shows them.

// request asks for pieces while asking makes sense.
func (d *Download) request(now time.Time) {
	layout := d.ledger.replica.Metadata().Layout()
	var urgent []piece.Index
	for j := range d.wants {
		w := &d.wants[j]
		if w.reader == nil {
			continue
		}
		at := layout.At(w.reader.pos.Load())
		if at < w.end && d.pick.Have().Has(at) && !d.ledger.replica.Has(at) {
			d.lost(at)
		}
		i := d.pick.Have().NextMissing(at)
		if i != w.at || w.since.IsZero() {
			w.at, w.since = i, now
		}
		seeks := w.first > 0 && i == w.first
		if i < w.end && (seeks || now.Sub(w.since) > urgentAfter) {
			urgent = append(urgent, i)
		}
	}
	d.pick.Urgent(urgent)
	for {
		r, ok := d.pick.Next(now)
		if !ok {
			return
		}
		l := d.links[r.From]
		if l.expecting() == 0 {
			l.since = now
		}
		l.expect(&inbound{index: r.Piece, any: r.Any})
		if r.Any {
			l.send(wire.Message{Type: wire.AnyMessage, Any: &wire.Any{Exclude: r.Exclude, Starving: r.Starving}})
		} else {
			l.send(wire.Message{Type: wire.Request, Index: r.Piece, Length: layout.Size(r.Piece)})
		}
		d.pick.Asked(r)
	}
}

// store verifies and keeps one piece, whose bytes have the digest got. Connections call it, not
// the loop.
func (d *Download) store(i piece.Index, data []byte, got piece.Digest) error {
	want, ok := d.ledger.digest(i)
	if !ok {
		return errNoDigest
	}
	if d.ledger.replica.Has(i) {
		return nil // somebody else was faster
	}
	if got != want {
		return &piece.DigestError{Index: i, Want: want, Got: got}
	}
	if err := d.keep(i, data, want); err != nil {
		return fmt.Errorf("keeping piece %d of task %s: %w", i, d.id, err)
	}
	d.progress.signal()
	return nil
}

// arrived ends a request whose piece came.
func (d *Download) arrived(now time.Time, l *link, in *inbound, err error) {
	d.pick.Done(l.n, in.index)
	var bad *piece.DigestError
	switch {
	case err == nil:
		d.pick.Took(l.n, in.index, in.begun, now)
		d.got(now, in.index, l)
	case errors.As(err, &bad):
		d.blame(now, l, bad)
	case errors.Is(err, errNoDigest):
		l.close(fmt.Errorf("%w: piece %d: %w", wire.ErrProtocol, in.index, err))
	default:
		d.failHere(err)
	}
}

func (d *Download) blame(now time.Time, l *link, bad *piece.DigestError) {
	d.e.stats.bad.Add(1)
	l.strikes++
	d.log.Warn("peer sent wrong bytes", "host", l.host, "addr", l.conn.RemoteAddr(), "piece", bad.Index, "strikes", l.strikes)
	if l.strikes >= strikesMax {
		d.banned[l.conn.PeerID()] = now.Add(banFor)
		d.shun(now, l.host)
		l.close(fmt.Errorf("%w: %w", errBanned, bad))
		return
	}
	// The others get their chance first. It still counts as having the piece: where nobody
	// else has, its second answer tells bad luck from a bad disk, and then the owner hears
	// of it. Were the piece taken off it, everybody would wait for somebody to bring it.
	d.pick.Busy(l.n, now.Add(busyMax))
}

// shun reports a host to the owner and leaves it alone for a while.
func (d *Download) shun(now time.Time, h host.ID) {
	if h == "" {
		return
	}
	d.silent = append(d.silent, h)
	d.avoid[h] = now.Add(5 * time.Second)
}

// got notes a piece that is here now; from is nil when the origin gave it.
func (d *Download) got(now time.Time, i piece.Index, from *link) {
	size := d.ledger.replica.Metadata().Layout().Size(i)
	if d.pick.Have().Has(i) {
		if from != nil {
			d.e.stats.duplicate.Add(size)
		}
		return
	}
	switch {
	case from == nil: // counted where it was stored
	case from.seed:
		d.count(func(c *counters) *atomic.Int64 { return &c.seeds }, size)
	default:
		d.count(func(c *counters) *atomic.Int64 { return &c.peers }, size)
	}
	d.pick.Got(i)
	d.starveDelay = starveFirst
	if !d.lastGot.IsZero() {
		d.pieceTime += (min(now.Sub(d.lastGot), busyMax) - d.pieceTime) / 8
	}
	d.lastGot, d.lastUse = now, now
	if d.firstGot.IsZero() {
		d.firstGot = now
	}
	for _, l := range d.links {
		d.drop(l, i)
	}
	d.publish(i)
}

// lost notes that the store took a piece back: it comes anew, and is not offered meanwhile.
func (d *Download) lost(i piece.Index) {
	if d.pick == nil || !d.pick.Have().Has(i) || d.ledger.replica.Has(i) {
		return
	}
	d.log.Warn("stored piece lost", "piece", i)
	d.pick.Lost(i)
	d.proven.Clear(i)
	d.complete, d.toldCompleted = false, false
	d.progress.signal()
}

// drop cancels what was asked of a neighbour and came from elsewhere.
func (d *Download) drop(l *link, i piece.Index) {
	if l.drop(i) {
		d.pick.Done(l.n, i)
		l.send(wire.Message{Type: wire.Cancel, Index: i, Length: d.ledger.replica.Metadata().Layout().Size(i)})
	}
}

func (d *Download) count(which func(*counters) *atomic.Int64, n int64) {
	which(&d.stats).Add(n)
	which(&d.e.stats).Add(n)
}

// publish tells every neighbour of a piece, if it is here and proven. The signed digest
// follows when the piece is asked for, ahead of its first block: sent with the have, it
// would come to everybody from everybody. Who has the piece learns only how far this host
// is, so that it can serve those first who have least: that waits for the next message.
func (d *Download) publish(i piece.Index) {
	if !d.pick.Have().Has(i) || d.ledger.proof(i) < 0 || !d.proven.Set(i) {
		return
	}
	for _, l := range d.links {
		if l.have.Len() == 0 {
			continue
		}
		l.told.Set(i)
		have := wire.Message{Type: wire.Have, Index: i}
		if l.seed || !l.have.Has(i) {
			l.send(have)
		} else {
			l.sendAlong(have)
		}
	}
}

// prove makes sure that a neighbour has the signed digest of piece i.
func (d *Download) prove(l *link, i piece.Index) {
	if n := d.ledger.proof(i); n >= 0 && !l.runs[n] {
		d.sendRuns(l, n)
	}
}

// sendRuns sends the runs that a neighbour lacks, once its Hello told that it reads them.
func (d *Download) sendRuns(l *link, numbers ...int) {
	if !l.helloed || l.knowsAll {
		return
	}
	const batch = 64 << 10 // bytes of digests in one message, about
	var now []int
	size := 0
	flush := func() {
		if len(now) == 0 {
			return
		}
		runs, certs := d.ledger.message(now, l.keys)
		l.send(wire.Message{Type: wire.DigestMessage, Digests: &wire.Digests{Runs: runs, Certificates: certs}})
		now, size = nil, 0
	}
	for _, n := range numbers {
		if l.runs[n] {
			continue
		}
		l.runs[n] = true
		now = append(now, n)
		if size += d.ledger.size(n); size >= batch {
			flush()
		}
	}
	flush()
}

// digests notes that signed runs came from l, or from the own origin when l is nil.
func (d *Download) digests(now time.Time, l *link, numbers []int, whole bool) {
	if l != nil && whole {
		l.knowsAll = true
	}
	d.adoptMetadata(now)
	if d.pick == nil {
		return
	}
	for _, n := range numbers {
		first, end, key := d.ledger.span(n)
		if l != nil {
			l.runs[n], l.keys[key] = true, true
		}
		for i := first; i < end; i++ {
			d.publish(i)
		}
	}
	if !d.toldWhole && d.ledger.proven() {
		// Nobody needs to send digests here any more.
		d.toldWhole = true
		for _, other := range d.links {
			other.send(wire.Message{Type: wire.DigestMessage, Digests: &wire.Digests{Whole: true}})
		}
	}
	// A neighbour that has heard no run does not even know the length.
	for _, other := range d.links {
		d.sendFirst(other)
	}
}

// sendFirst tells a neighbour that has heard no run yet the first one: it holds the facts,
// without which nothing can be asked for.
func (d *Download) sendFirst(l *link) {
	if len(l.runs) == 0 && d.ledger.any() {
		d.sendRuns(l, 0)
	}
}
