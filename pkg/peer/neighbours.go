package peer

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
)

// Whom a download knows: how links come and go, and what their messages mean to it.

// link adds a connection after its handshake; it fails when the download will not have it.
func (d *Download) link(c *wire.Conn, initiated bool, h host.ID) error {
	verdict := make(chan error, 1)
	d.notify(connOpened{c, initiated, h, verdict})
	select {
	case err := <-verdict:
		return err
	case <-d.done:
		return d.failure()
	}
}

func (d *Download) addLink(now time.Time, c *wire.Conn, initiated bool, h host.ID) error {
	self, other := d.e.cfg.Host.ID.PeerID(), c.PeerID()
	switch {
	case other == self:
		return errSelf
	case now.Before(d.banned[other]):
		return errBanned
	case d.yielding:
		return errYields
	case len(d.links) >= d.e.cfg.LinksMax:
		return errTooMany
	}
	for _, l := range d.links {
		if l.conn.PeerID() != other {
			continue
		}
		// Both dialled at once: both keep the connection that the lower name dialled.
		lower := string(self[:]) < string(other[:])
		// Who dials us again has lost its old connection, though we have not seen it end.
		if initiated == lower && l.initiated != initiated || !initiated && !l.initiated {
			l.close(errTwice)
			break
		}
		return errTwice
	}
	l := newLink(d, c, initiated)
	d.takeOffer(now) // a peer that the owner sent here must find a seed, not a bystander
	l.n, l.host, l.born, l.idleFrom, l.since = d.nextLink, h, now, now, now
	d.nextLink++
	d.links[l.n] = l
	d.e.stats.links.Add(1)
	if hello, said := d.hello(), c.Said(); said == nil || *said != *hello.Hello {
		l.send(hello)
	}
	if d.pick != nil {
		d.introduce(now, l)
	} else {
		l.send(wire.Message{Type: wire.Bitfield})
	}
	d.wg.Go(l.run)
	return nil
}

func (d *Download) hello() wire.Message {
	return wire.Message{Type: wire.HelloMessage, Hello: &wire.Hello{
		Host: d.e.cfg.Host.ID, Version: wire.Version, Client: d.e.cfg.Client, Seed: d.isSeed(),
		Zone: d.e.cfg.Host.Zone, Gateway: d.isGateway(), Alive: true, Read: d.read(),
	}}
}

// isSeed reports whether this host chooses itself which pieces it sends.
func (d *Download) isSeed() bool { return d.seeds() || d.e.cfg.Seed }

// helloAgain tells neighbours that this host has become a seed, or a gateway, or no longer is.
func (d *Download) helloAgain() {
	for _, l := range d.links {
		l.send(d.hello())
	}
}

// introduce tells a neighbour what is here, and notes what it said before the facts were known.
func (d *Download) introduce(now time.Time, l *link) {
	n := d.pick.Have().Len()
	l.have, l.told = piece.NewBitmap(n), piece.NewBitmap(n)
	d.pick.Join(l.n, l.seed)
	d.put(l)
	for i, has := range l.bits {
		if has && i < n {
			d.has(now, l, piece.Index(i))
		}
	}
	for _, i := range l.haves {
		d.has(now, l, i)
	}
	if l.hasAll {
		d.hasAll(now, l)
	}
	l.bits, l.haves = nil, nil
	l.told = d.proven.Clone()
	var bits []bool
	if l.told.Count() > 0 {
		bits = make([]bool, n)
	}
	for i := range bits {
		bits[i] = l.told.Has(piece.Index(i))
	}
	l.send(wire.Message{Type: wire.Bitfield, Bits: bits})
	d.sendFirst(l)
}

func (d *Download) has(now time.Time, l *link, i piece.Index) {
	l.have.Set(i)
	d.pick.Has(l.n, i)
	d.lastNews = now
}

func (d *Download) hasAll(now time.Time, l *link) {
	for i := range piece.Index(l.have.Len()) {
		d.has(now, l, i)
	}
}

// receive takes one message of a neighbour.
func (d *Download) receive(now time.Time, l *link, m wire.Message) {
	if d.links[l.n] != l {
		return
	}
	known := d.pick != nil
	switch m.Type {
	case wire.HelloMessage:
		if h := m.Hello.Host; h != "" && h.PeerID() != l.conn.PeerID() {
			l.close(fmt.Errorf("%w: it is another host in its hello than in its handshake", wire.ErrProtocol))
			return
		}
		l.host = m.Hello.Host
		l.seed, l.helloed, l.alive = m.Hello.Seed, true, m.Hello.Alive
		l.zone, l.gateway = m.Hello.Zone, m.Hello.Gateway
		d.hearMoved(l, m.Hello.Read)
		if d.pick != nil {
			d.pick.SetSeed(l.n, l.seed)
			d.put(l)
		}
		d.sendFirst(l)
		if d.toldWhole {
			l.send(wire.Message{Type: wire.DigestMessage, Digests: &wire.Digests{Whole: true}})
		}
	case wire.Bitfield:
		switch {
		case !known:
			l.bits, l.hasAll = m.Bits, m.All
		case m.All:
			d.hasAll(now, l)
		default:
			for i, has := range m.Bits {
				if has && i < l.have.Len() {
					d.has(now, l, piece.Index(i))
				}
			}
		}
	case wire.Request:
		d.serve(now, l, m)
	case wire.AnyMessage:
		d.serveAny(now, l, *m.Any)
	case wire.Cancel:
		if j := l.cancel(m.Index, m.Begin); j != nil {
			d.unserved(l, j)
			l.send(wire.Message{Type: wire.Reject, Index: j.index, Begin: j.begin, Length: j.end - j.begin})
		}
	case wire.FailMessage:
		if l.seed && !d.complete && !d.seeding {
			d.seedFailed(l, m.Failure)
		}
	case wire.RevokeMessage:
		if err := d.e.cfg.Verifier.VerifyRevocation(d.id, *m.Revocation); err != nil {
			l.close(fmt.Errorf("%w: revocation: %w", wire.ErrProtocol, err))
			return
		}
		if d.ledger.concerns(m.Revocation.Epoch) {
			d.revoke(now, []piece.Revocation{*m.Revocation}, d.ledger.certificate(m.Revocation.Key))
		}
	}
}

// seedFailed takes in that a seed gave up. A refusal may be about the credentials of somebody else,
// which it does not carry: the owner, who knows whose they were, is asked by who starves now.
func (d *Download) seedFailed(l *link, f *api.Failure) {
	if !f.Personal() {
		d.fail(f)
		return
	}
	if d.passed++; d.passed >= othersMax && !d.background {
		enough := *errOthers // who hears it need not try so often again
		d.fail(&enough)
		return
	}
	l.gaveUp = true
	l.close(nil)
	d.nextStarving = time.Time{}
}

// hasSome takes in that a neighbour has more pieces.
func (d *Download) hasSome(now time.Time, l *link, pieces []piece.Index) {
	if d.links[l.n] != l {
		return
	}
	for _, i := range pieces {
		switch {
		case d.pick != nil:
			d.has(now, l, i)
		case len(l.haves) < piece.CountMax:
			l.haves = append(l.haves, i)
		}
	}
}

// rejected ends a request that was told to have no answer.
func (d *Download) rejected(now time.Time, l *link, in *inbound) {
	if d.links[l.n] != l || in == nil || in.dropped {
		return
	}
	d.pick.Done(l.n, in.index)
	d.pick.Lacks(l.n, in.index)
	l.rejects = append(l.rejects, reject{in.index, now})
}

// forgive takes it anew that a neighbour has what it said it has and rejected a while ago:
// it may just have had no proof, or bring the piece anew. Were it never asked again, two
// hosts that once disagreed would wait for a third one for ever.
func (d *Download) forgive(l *link, now time.Time) {
	for len(l.rejects) > 0 && now.Sub(l.rejects[0].at) >= rejectFor {
		if i := l.rejects[0].index; d.pick != nil && l.have.Has(i) {
			d.pick.Has(l.n, i)
		}
		l.rejects = l.rejects[1:]
	}
}

// refused ends a request that the neighbour has no slot for.
func (d *Download) refused(now time.Time, l *link, in *inbound, asked time.Duration) {
	if d.links[l.n] != l || in == nil || in.dropped {
		return
	}
	d.e.stats.busyGot.Add(1)
	if in.any {
		d.pick.Refused(l.n)
	} else {
		d.pick.Done(l.n, in.index)
	}
	// Half a piece-time, give or take half of it, so that those who were refused at once
	// do not come back at once.
	delay := min(max(d.pieceTime/4+d.jitter(d.pieceTime/2), busyMin), busyMax)
	d.pick.Busy(l.n, now.Add(max(delay, asked)))
}

// bound notes which piece an any-request turned out to be.
func (d *Download) bound(l *link, in *inbound) {
	if d.links[l.n] != l {
		return
	}
	in.told = true
	// Asked for by name of the same neighbour, too, it comes twice: which of the two a cancel
	// would hit cannot be told, so neither is cancelled before one is here.
	known := d.pick.Have().Has(in.index) || d.pick.Flying(in.index) && l.asked(in.index) == 1
	d.pick.Bound(l.n, in.index)
	if known {
		d.drop(l, in.index) // it came from elsewhere before this was told, or is about to
	}
}

// unlink forgets a connection that has ended.
func (d *Download) unlink(now time.Time, l *link, err error) {
	if d.links[l.n] != l {
		return
	}
	delete(d.links, l.n)
	d.e.stats.links.Add(-1)
	if d.pick != nil {
		d.pick.Leave(l.n)
	}
	for _, other := range d.links {
		if other.conn.PeerID() == l.conn.PeerID() {
			return // one of two connections to the same host: it is not gone
		}
	}
	var timeout net.Error
	if errors.Is(err, wire.ErrProtocol) || errors.Is(err, errStalled) || errors.As(err, &timeout) && timeout.Timeout() {
		d.log.Info("peer left", "host", l.host, "addr", l.conn.RemoteAddr(), "error", err)
		d.shun(now, l.host)
		return
	}
	d.log.Debug("peer gone", "host", l.host, "addr", l.conn.RemoteAddr(), "error", err)
	if err != nil && l.host != "" && !d.complete && !l.gaveUp {
		d.silent = append(d.silent, l.host)
	}
}

// watch leaves parents that send nothing and closes connections that nobody needs.
func (d *Download) watch(now time.Time) {
	active := d.active()
	for _, l := range d.links {
		expecting := l.expecting()
		switch received := l.conn.Received(); {
		case received != l.received, expecting == 0:
			l.received, l.since = received, now
		case now.Sub(l.since) > d.e.cfg.Stall:
			l.close(fmt.Errorf("%w for %s", errStalled, d.e.cfg.Stall))
		}
		l.hasten(now)
		d.forgive(l, now)
		d.listen(l, now, active)
		if !l.helloed && now.Sub(l.born) > wire.HandshakeTimeout {
			l.close(fmt.Errorf("%w: no extension handshake", errStalled))
		}
		if l.sending > 0 || expecting > 0 || active {
			l.idleFrom = now
		}
		if d.complete && l.have.Len() > 0 && l.have.Full() && l.sending == 0 || now.Sub(l.idleFrom) > d.e.cfg.Idle {
			l.drain()
		}
	}
	for h, until := range d.avoid {
		if now.After(until) {
			delete(d.avoid, h)
		}
	}
}

// listen keeps a seed's promise to say something every second while it brings what is missing,
// and leaves a seed that does not keep its own: it hangs, and nothing that was asked of it
// would show that, because nothing was.
func (d *Download) listen(l *link, now time.Time, active bool) {
	if d.isSeed() && !d.complete && now.Sub(l.spoke) >= aliveEvery {
		l.spoke = now
		d.tellAlive(l)
	}
	heard := l.conn.Heard()
	if heard != l.heard || l.heardAt.IsZero() {
		l.heard, l.heardAt = heard, now
	}
	promised := l.alive && l.seed && !(l.have.Len() > 0 && l.have.Full())
	if active && promised && now.Sub(l.heardAt) > d.e.cfg.Stall+aliveEvery {
		l.close(fmt.Errorf("%w and said nothing for %s, as a seed that has more to bring", errStalled, now.Sub(l.heardAt).Round(time.Second)))
	}
}
