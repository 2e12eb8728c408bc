package peer

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
)

// This file has the pieces of a download: it requests, stores, proves and announces them.

// request requests pieces, as many as the picker picks.
func (d *Download) request(now time.Time) {
	layout := d.proof.replica.Metadata().Layout()
	var urgent []piece.Index
	for j := range d.wants.ranges {
		w := &d.wants.ranges[j]
		if w.reader == nil {
			continue
		}
		at := layout.At(w.reader.pos.Load())
		if at < w.end && d.pick.Have().Has(at) && !d.proof.replica.Has(at) {
			d.lost(at)
		}
		i := d.pick.Have().NextMissing(at)
		if i != w.at || w.since.IsZero() {
			w.at, w.since = i, now
		}
		seeks := w.first > 0 && i == w.first
		if i < w.end && d.pick.Wanted().Has(i) && (seeks || now.Sub(w.since) > urgentAfter) {
			urgent = append(urgent, i)
		}
	}
	d.pick.Urgent(urgent)
	for {
		r, ok := d.pick.Next(now)
		if !ok {
			return
		}
		c := d.conns.open[r.From]
		if c.expecting() == 0 {
			c.seen.receivedAt = now
		}
		c.expect(&inbound{index: r.Piece, any: r.Any})
		if r.Any {
			c.send(wire.Message{Type: wire.AnyMessage, Any: &wire.Any{Exclude: r.Exclude, SeedsOnly: r.SeedsOnly}})
		} else {
			c.send(wire.Message{Type: wire.Request, Index: r.Piece, Length: layout.Size(r.Piece)})
		}
		d.pick.Requested(r)
	}
}

// store verifies and keeps one piece, whose bytes have the digest got. Connections call it, not
// the loop.
func (d *Download) store(i piece.Index, data []byte, got piece.Digest) error {
	want, ok := d.proof.digest(i)
	if !ok {
		return errNoDigest
	}
	if d.proof.replica.Has(i) {
		return nil // another connection was faster
	}
	if got != want {
		return &piece.DigestError{Index: i, Want: want, Got: got}
	}
	if err := d.stored.keep(i, data, want); err != nil {
		return fmt.Errorf("keeping piece %d of task %s: %w", i, d.id, err)
	}
	d.progress.signal()
	return nil
}

// arrived ends a request whose piece came.
func (d *Download) arrived(now time.Time, c *conn, in *inbound, err error) {
	if err == nil {
		d.pick.Received(c.n, in.index, in.begun, now)
	}
	d.pick.Ended(c.n, in.index)
	var bad *piece.DigestError
	switch {
	case err == nil:
		d.got(now, in.index, c)
	case errors.As(err, &bad):
		d.blame(now, c, bad)
	case errors.Is(err, errNoDigest):
		c.close(fmt.Errorf("%w: piece %d: %w", wire.ErrProtocol, in.index, err))
	default:
		d.end.failHere(err)
	}
}

func (d *Download) blame(now time.Time, c *conn, bad *piece.DigestError) {
	d.e.stats.bad.Add(1)
	c.strikes++
	d.log.Warn("peer sent wrong bytes", "host", c.remote.host, "addr", c.wire.RemoteAddr(), "piece", bad.Index,
		"strikes", c.strikes)
	if c.strikes >= strikesMax {
		d.conns.ban(now, c.wire.PeerID())
		d.conns.snub(now, c.remote.host)
		c.close(fmt.Errorf("%w: %w", errBanned, bad))
		return
	}
	// Other neighbours come first. This one still counts as having the piece: if no other has it, its second answer shows
	// whether its disk is bad, and then the owner learns of it. Otherwise all hosts would wait for another one to bring
	// the piece.
	d.pick.Busy(c.n, now.Add(busyMax))
}

// got notes a piece that is stored now; from is nil where no neighbour sent it.
func (d *Download) got(now time.Time, i piece.Index, from *conn) {
	size := d.proof.replica.Metadata().Layout().Size(i)
	if d.pick.Have().Has(i) {
		if from != nil {
			d.e.stats.duplicate.Add(size)
		}
		return
	}
	switch {
	case from == nil: // counted where it was stored
	case from.remote.seed:
		d.count(func(n *counters) *atomic.Int64 { return &n.seeds }, size)
	default:
		d.count(func(n *counters) *atomic.Int64 { return &n.peers }, size)
	}
	d.signs.moved.Add(size)
	if p := d.passes(); p != nil && !p.Has(i) {
		return // its reader left, so it was dropped
	}
	d.pick.Stored(i)
	d.policy.GotPiece()
	d.times.got(now)
	for _, c := range d.conns.open {
		c.cancelAsked(i)
	}
	d.publish(i)
}

// lost notes that the store lost a piece: it is downloaded again, and not offered meanwhile.
func (d *Download) lost(i piece.Index) {
	if d.pick == nil || !d.pick.Have().Has(i) || d.proof.replica.Has(i) {
		return
	}
	d.log.Warn("stored piece lost", "piece", i)
	d.pick.Lost(i)
	d.serving.shown.Clear(i)
	d.enter(policy.Partial)
	d.policy.LostPiece()
	d.progress.signal()
}

// cancelAsked cancels the request for a piece that came from another source.
func (c *conn) cancelAsked(i piece.Index) {
	if c.drop(i) {
		c.d.pick.Ended(c.n, i)
		c.send(wire.Message{Type: wire.Cancel, Index: i, Length: c.d.proof.replica.Metadata().Layout().Size(i)})
	}
}

func (d *Download) count(which func(*counters) *atomic.Int64, n int64) {
	which(&d.stats).Add(n)
	which(&d.e.stats).Add(n)
}

// publish announces a piece to every neighbour, if it is stored and signed. The signed digest follows on
// request, before the first block: with the have, every host would get it from every other. A neighbour
// that has the piece learns only how far this host is, so that it can serve the hosts that have least
// first: that have waits for the next message.
func (d *Download) publish(i piece.Index) {
	if !d.pick.Have().Has(i) || d.proof.runFor(i) < 0 || d.passes() != nil || !d.serving.shown.Set(i) {
		return
	}
	for _, c := range d.conns.open {
		if c.remote.have.Len() == 0 {
			continue
		}
		c.announced.pieces.Set(i)
		have := wire.Message{Type: wire.Have, Index: i}
		if c.remote.seed || !c.remote.have.Has(i) {
			c.send(have)
		} else {
			c.sendAlong(have)
		}
	}
}

// sendProof makes sure that a neighbour has the signed digest of piece i.
func (c *conn) sendProof(i piece.Index) {
	if n := c.d.proof.runFor(i); n >= 0 && !c.announced.runs[n] {
		c.sendRuns(n)
	}
}

// sendRuns sends the runs that a neighbour lacks, once its Hello says that it reads them.
func (c *conn) sendRuns(numbers ...int) {
	if !c.remote.gotHello || c.announced.noDigests {
		return
	}
	const batch = 64 << 10 // bytes of digests in one message, about
	var now []int
	size := 0
	flush := func() {
		if len(now) == 0 {
			return
		}
		runs, certs := c.d.proof.message(now, c.announced.keys)
		c.send(wire.Message{Type: wire.DigestMessage, Digests: &wire.Digests{Runs: runs, Certificates: certs}})
		now, size = nil, 0
	}
	for _, n := range numbers {
		if c.announced.runs[n] {
			continue
		}
		c.announced.runs[n] = true
		now = append(now, n)
		if size += c.d.proof.size(n); size >= batch {
			flush()
		}
	}
	flush()
}

// digests notes that signed runs came from c, or from this host or its owner where c is nil.
func (d *Download) digests(now time.Time, c *conn, numbers []int, whole bool) {
	if c != nil && whole {
		c.announced.noDigests = true
	}
	d.adoptMetadata(now)
	if d.pick == nil {
		return
	}
	for _, n := range numbers {
		first, end, key := d.proof.span(n)
		if c != nil {
			c.announced.runs[n], c.announced.keys[key] = true, true
		}
		for i := first; i < end; i++ {
			d.publish(i)
		}
	}
	if !d.conns.wholeSent && d.proof.coversAll() {
		// No neighbour needs to send digests here any more.
		d.conns.wholeSent = true
		for _, other := range d.conns.open {
			other.send(wire.Message{Type: wire.DigestMessage, Digests: &wire.Digests{Whole: true}})
		}
	}
	// A neighbour that got no run does not even know the length.
	for _, other := range d.conns.open {
		other.sendFirst()
	}
}

// sendFirst sends the first run to a neighbour that got none yet: it holds the metadata, without which
// the neighbour can request nothing.
func (c *conn) sendFirst() {
	if len(c.announced.runs) == 0 && c.d.proof.any() {
		c.sendRuns(0)
	}
}
