package peer

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/peer/picker"
	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// A download's connections: how they come and go, and what their messages mean.

// snubFor is how long this host leaves a host alone that was silent, or not reached.
const snubFor = 5 * time.Second

// conns are a download's connections, and what it remembers of other hosts. The loop owns them.
type conns struct {
	open    map[picker.Neighbour]*conn
	next    picker.Neighbour
	dialing map[host.ID]bool
	later   laterDials
	snubbed map[host.ID]time.Time  // hosts that were silent, or not reached, and until when they are left alone
	banned  map[[20]byte]time.Time // peers that sent wrong bytes, and until when
	silent  []host.ID              // hosts that the next announce reports to the owner as silent
	left    []host.ID              // hosts that it reports as not taking part in the task
	dialErr error                  // of the last host that was not reached
	// lost is for how long this host had not run at the last look; see [Download.excuse].
	lost time.Duration
	// wholeSent says that this host announced that it needs no digests.
	wholeSent bool
	// local says that this zone's gateways, and not this host, bring pieces from other zones.
	local bool
	// told is what the last Hello to all said of this host.
	told role
}

// role is what neighbours know of a host in a task.
type role struct {
	seed   bool
	origin wire.Origin
}

func newConns() conns {
	return conns{
		open: make(map[picker.Neighbour]*conn), dialing: make(map[host.ID]bool),
		snubbed: make(map[host.ID]time.Time), banned: make(map[[20]byte]time.Time),
	}
}

// add numbers a connection and adds it.
func (cs *conns) add(c *conn) {
	c.n = cs.next
	cs.next++
	cs.open[c.n] = c
}

// has reports whether a connection is still one of the download's.
func (cs *conns) has(c *conn) bool { return cs.open[c.n] == c }

// snub reports a host to the owner as silent and leaves it alone for a while.
func (cs *conns) snub(now time.Time, h host.ID) {
	if h == "" {
		return
	}
	cs.silent = append(cs.silent, h)
	cs.snubbed[h] = now.Add(snubFor)
}

// leftBy reports to the owner that a host answers and does not take part in the task, and leaves it alone for a while.
func (cs *conns) leftBy(now time.Time, h host.ID) {
	if h == "" {
		return
	}
	cs.left = append(cs.left, h)
	cs.snubbed[h] = now.Add(snubFor)
}

func (cs *conns) snubs(h host.ID) bool {
	_, ok := cs.snubbed[h]
	return ok
}

// forgive ends snubs whose time is over.
func (cs *conns) forgive(now time.Time) {
	for h, until := range cs.snubbed {
		if now.After(until) {
			delete(cs.snubbed, h)
		}
	}
}

// ban closes the download to a peer that sent wrong bytes, for a while.
func (cs *conns) ban(now time.Time, peer [20]byte) { cs.banned[peer] = now.Add(banFor) }

func (cs *conns) bans(now time.Time, peer [20]byte) bool { return now.Before(cs.banned[peer]) }

// takeReports returns the hosts to report to the owner, at most api.NeighboursIn of each kind: an owner refuses an
// announce with more. The others follow with the next announce.
func (cs *conns) takeReports() (silent, left []host.ID) {
	take := func(list *[]host.ID) []host.ID {
		n := min(len(*list), api.NeighboursIn)
		first := (*list)[:n:n]
		*list = (*list)[n:]
		return first
	}
	return take(&cs.silent), take(&cs.left)
}

// offerConn adds a connection after its handshake; it fails where the download refuses it.
func (d *Download) offerConn(w *wire.Conn, initiated bool, h host.ID) error {
	verdict := make(chan error, 1)
	d.notify(connOpened{w, initiated, h, verdict})
	select {
	case err := <-verdict:
		return err
	case <-d.done:
		return d.end.failure()
	}
}

func (d *Download) admit(now time.Time, w *wire.Conn, initiated bool, h host.ID) error {
	self, other := d.e.cfg.Host.ID.PeerID(), w.PeerID()
	switch {
	case other == self:
		return errSelf
	case d.conns.bans(now, other):
		return errBanned
	case d.wants.yielding:
		return errYields
	case len(d.conns.open) >= d.e.cfg.ConnsMax:
		return errTooMany
	}
	for _, c := range d.conns.open {
		if c.wire.PeerID() != other {
			continue
		}
		// Both dialled at once: both keep the connection that the lower name dialled.
		lower := string(self[:]) < string(other[:])
		// A host that dials again has lost its old connection, though this side has not seen it end.
		if initiated == lower && c.initiated != initiated || !initiated && !c.initiated {
			c.drain(wire.LeavesConn)
			break
		}
		return errTwice
	}
	c := newConn(d, w, initiated)
	d.takeOffer(now) // first: a peer that the owner sent here must find a seed
	c.remote.host, c.seen.born, c.seen.idleFrom, c.seen.receivedAt = h, now, now, now
	d.conns.add(c)
	d.e.stats.conns.Add(1)
	if hello, sent := d.hello(), w.SentHello(); sent == nil || *sent != *hello.Hello {
		c.send(hello)
	}
	if d.pick != nil {
		d.introduce(now, c)
	} else {
		c.send(wire.Message{Type: wire.Bitfield})
	}
	d.wg.Go(c.run)
	return nil
}

func (d *Download) hello() wire.Message {
	return wire.Message{Type: wire.HelloMessage, Hello: &wire.Hello{
		Host: d.e.cfg.Host.ID, Version: wire.Version, Client: d.e.cfg.Client, Seed: d.isSeed(),
		Zone: d.e.cfg.Host.Zone, Gateway: d.isGateway(), Alive: true, Read: d.read(),
		Origin: d.readsFor(),
	}}
}

// readsFor is for which hosts this one reads the origin. Nobody else can rely on a host that reads a part, nor on one
// that reads a file of which another request may get another version.
func (d *Download) readsFor() wire.Origin {
	switch {
	case !d.policy.AtOrigin() || d.pick == nil || !d.pick.WantsAll() || !d.sameForAll():
		return wire.NoOrigin
	case d.wants.everything() || d.policy.Permission() == policy.Leading:
		return wire.ForAll
	}
	return wire.ForItself
}

// sameForAll reports whether any host that asks the origin gets the bytes of this task, or an error.
func (d *Download) sameForAll() bool {
	_, digest := d.wants.spec.WholeDigest()
	return digest || d.wants.spec.Kind != task.Plain || d.wants.spec.Validator != ""
}

// isSeed reports whether this host chooses itself which pieces it sends.
func (d *Download) isSeed() bool { return d.seeds() || d.e.cfg.Seed }

// helloAgain announces to neighbours that this host has become a seed or a gateway, or no longer is.
func (d *Download) helloAgain() {
	d.conns.told = role{d.isSeed(), d.readsFor()}
	for _, c := range d.conns.open {
		c.send(d.hello())
	}
}

// tellRole announces to neighbours a change of what this host does at the origin. At the end of a download nothing
// depends on it any more.
func (d *Download) tellRole() {
	if !d.complete() && d.conns.told != (role{d.isSeed(), d.readsFor()}) {
		d.helloAgain()
	}
}

// introduce announces to a neighbour what is stored here, and takes what it announced before the
// metadata was known.
func (d *Download) introduce(now time.Time, c *conn) {
	n := d.pick.Have().Len()
	c.remote.have, c.announced.pieces = piece.NewBitmap(n), piece.NewBitmap(n)
	d.pick.Join(c.n, c.remote.seed)
	d.put(c)
	for i, has := range c.remote.bits {
		if has && i < n {
			d.has(now, c, piece.Index(i))
		}
	}
	for _, i := range c.remote.haves {
		d.has(now, c, i)
	}
	if c.remote.hasAll {
		d.hasAll(now, c)
	}
	c.remote.bits, c.remote.haves = nil, nil
	c.announced.pieces = d.serving.shown.Clone()
	var bits []bool
	if c.announced.pieces.Count() > 0 {
		bits = make([]bool, n)
	}
	for i := range bits {
		bits[i] = c.announced.pieces.Has(piece.Index(i))
	}
	c.send(wire.Message{Type: wire.Bitfield, Bits: bits})
	c.sendFirst()
}

func (d *Download) has(now time.Time, c *conn, i piece.Index) {
	if c.remote.have.Set(i) {
		d.signs.moved.Add(1)
	}
	d.pick.Has(c.n, i)
	d.times.lastHave = now
}

func (d *Download) hasAll(now time.Time, c *conn) {
	for i := range piece.Index(c.remote.have.Len()) {
		d.has(now, c, i)
	}
}

// receive takes one message of a neighbour.
func (d *Download) receive(now time.Time, c *conn, m wire.Message) {
	if !d.conns.has(c) {
		return
	}
	known := d.pick != nil
	switch m.Type {
	case wire.HelloMessage:
		if h := m.Hello.Host; h != "" && h.PeerID() != c.wire.PeerID() {
			c.close(fmt.Errorf("%w: its hello names another host than its handshake", wire.ErrProtocol))
			return
		}
		c.remote.host = m.Hello.Host
		c.remote.seed, c.remote.gotHello, c.remote.alive = m.Hello.Seed, true, m.Hello.Alive
		if c.remote.origin != m.Hello.Origin {
			c.remote.origin, c.remote.vain = m.Hello.Origin, false
		}
		c.remote.zone, c.remote.gateway, c.remote.leaving = m.Hello.Zone, m.Hello.Gateway, m.Hello.Leaving
		c.heardRead(m.Hello.Read)
		if d.pick != nil {
			d.pick.SetSeed(c.n, c.remote.seed)
			d.put(c)
		}
		c.sendFirst()
		if d.conns.wholeSent {
			c.send(wire.Message{Type: wire.DigestMessage, Digests: &wire.Digests{Whole: true}})
		}
	case wire.Bitfield:
		switch {
		case !known:
			c.remote.bits, c.remote.hasAll = m.Bits, m.All
		case m.All:
			d.hasAll(now, c)
		default:
			for i, has := range m.Bits {
				if has && i < c.remote.have.Len() {
					d.has(now, c, piece.Index(i))
				}
			}
		}
	case wire.Request:
		d.serve(now, c, m)
	case wire.AnyMessage:
		d.serveAny(now, c, *m.Any)
	case wire.Cancel:
		if j := c.cancel(m.Index, m.Begin); j != nil {
			d.unserved(c, j)
			c.send(wire.Message{Type: wire.Reject, Index: j.index, Begin: j.begin, Length: j.end - j.begin})
		}
	case wire.FailMessage:
		if c.remote.seed && !d.complete() && !d.policy.AtOrigin() {
			d.seedFailed(c, m.Failure)
		}
	case wire.RevokeMessage:
		if err := d.e.cfg.Verifier.VerifyRevocation(d.id, *m.Revocation); err != nil {
			c.close(fmt.Errorf("%w: revocation: %w", wire.ErrProtocol, err))
			return
		}
		if d.proof.concerns(m.Revocation.Epoch) {
			d.revoke(now, []piece.Revocation{*m.Revocation}, d.proof.certificate(m.Revocation.Key))
		}
	}
}

// seedFailed handles the failure of a seed. It does not say whose credentials the origin refused, and a failure of the
// seed's disk is no failure of the origin. In both cases the owner can name another seed: a starving download asks it.
// A host that read for itself says nothing of the way of this host to the origin, which this host may ask itself.
func (d *Download) seedFailed(c *conn, f *api.Failure) {
	if c.remote.origin == wire.ForItself && d.policy.Permission() == policy.Allowed {
		c.remote.gaveUp = true
		c.close(nil)
		return
	}
	if !f.Personal() && !f.Full {
		d.fail(f)
		return
	}
	if d.policy.SeedRefused(d.view()) {
		enough := *errOthers // a copy: callers do not try again after it
		if f.Full {
			enough = *f
		}
		d.fail(&enough)
		return
	}
	c.remote.gaveUp = true
	c.close(nil)
}

// hasSome adds pieces that a neighbour announced.
func (d *Download) hasSome(now time.Time, c *conn, pieces []piece.Index) {
	if !d.conns.has(c) {
		return
	}
	c.seen.haveAt = now
	for _, i := range pieces {
		switch {
		case d.pick != nil:
			d.has(now, c, i)
		case len(c.remote.haves) < piece.CountMax:
			c.remote.haves = append(c.remote.haves, i)
		}
	}
}

// rejected ends a request that the neighbour rejected.
func (d *Download) rejected(now time.Time, c *conn, in *inbound) {
	if !d.conns.has(c) || in == nil || in.dropped {
		return
	}
	d.pick.Ended(c.n, in.index)
	d.pick.Lacks(c.n, in.index)
	c.rejects = append(c.rejects, reject{in.index, now})
}

// forgive lets this host request pieces again that a neighbour announced and rejected a while ago: the neighbour may
// have lacked the proof at that moment, or have got the piece again. Otherwise two hosts could wait for a third one for
// ever.
func (c *conn) forgive(now time.Time) {
	for len(c.rejects) > 0 && now.Sub(c.rejects[0].at) >= rejectFor {
		if i := c.rejects[0].index; c.d.pick != nil && c.remote.have.Has(i) {
			c.d.pick.Has(c.n, i)
		}
		c.rejects = c.rejects[1:]
	}
}

// refused ends a request that the neighbour has no slot for.
func (d *Download) refused(now time.Time, c *conn, in *inbound, asked time.Duration) {
	if !d.conns.has(c) || in == nil || in.dropped {
		return
	}
	d.e.stats.busyGot.Add(1)
	if in.any {
		d.pick.Refused(c.n)
	} else {
		d.pick.Ended(c.n, in.index)
	}
	// Half a piece-time, give or take half of it, so that hosts that were refused at the same moment do
	// not come back at the same moment.
	delay := min(max(d.times.pieceTime/4+jitter(d.times.pieceTime/2), busyMin), busyMax)
	d.pick.Busy(c.n, now.Add(max(delay, asked)))
}

// bound notes which piece an any-request turned out to be.
func (d *Download) bound(c *conn, in *inbound) {
	if !d.conns.has(c) {
		return
	}
	in.known = true
	// A piece that this host also requested by name from the same neighbour comes twice. A cancel could
	// hit either of the two, so this host cancels neither before one is here.
	known := d.pick.Have().Has(in.index) || d.pick.InFlight(in.index) && c.requested(in.index) == 1
	d.pick.Chosen(c.n, in.index)
	if known {
		c.cancelAsked(in.index) // it came from another host meanwhile, or is about to
	}
}

// disconnected forgets a connection that has ended.
func (d *Download) disconnected(now time.Time, c *conn, err error) {
	if !d.conns.has(c) {
		return
	}
	delete(d.conns.open, c.n)
	d.e.stats.conns.Add(-1)
	if d.pick != nil {
		d.pick.Leave(c.n)
	}
	for _, other := range d.conns.open {
		if other.wire.PeerID() == c.wire.PeerID() {
			return // one of two connections to the same host: it is not gone
		}
	}
	var timeout net.Error
	if errors.Is(err, wire.ErrProtocol) || errors.Is(err, errStalled) || errors.As(err, &timeout) && timeout.Timeout() {
		d.log.Info("peer left", "host", c.remote.host, "addr", c.wire.RemoteAddr(), "error", err)
		d.conns.snub(now, c.remote.host)
		return
	}
	d.log.Debug("peer gone", "host", c.remote.host, "addr", c.wire.RemoteAddr(), "error", err)
	switch {
	case err == nil || d.complete() || c.remote.gaveUp || c.remote.leaving == wire.LeavesConn:
	case c.remote.leaving == wire.LeavesTask:
		d.conns.leftBy(now, c.remote.host)
	case c.remote.host != "":
		d.conns.silent = append(d.conns.silent, c.remote.host)
	}
}

// watch closes connections to parents that send nothing, and those that neither side needs.
func (d *Download) watch(now time.Time) {
	active := d.active()
	for _, c := range d.conns.open {
		expecting := c.expecting()
		switch received := c.wire.Received(); {
		case received != c.seen.received, expecting == 0:
			c.seen.received, c.seen.receivedAt = received, now
		case now.Sub(c.seen.receivedAt) > d.e.cfg.Stall:
			c.close(fmt.Errorf("%w for %s", errStalled, d.e.cfg.Stall))
		}
		c.passTurn(now)
		c.forgive(now)
		c.listen(now, active)
		if !c.remote.gotHello && now.Sub(c.seen.born) > wire.HandshakeTimeout {
			c.close(fmt.Errorf("%w: no extension handshake", errStalled))
		}
		if c.sending > 0 || expecting > 0 || active {
			c.seen.idleFrom = now
		}
		if d.complete() && c.remote.have.Len() > 0 && c.remote.have.Full() && c.sending == 0 ||
			now.Sub(c.seen.idleFrom) > d.e.cfg.Idle {
			c.drain(wire.LeavesConn)
		}
	}
	d.conns.forgive(now)
}

// excuse takes the time for which this host did not run from the silence of all hosts: what they sent meanwhile may not
// have been read yet.
func (d *Download) excuse(now time.Time) {
	lost := d.e.cfg.Lag.Lost()
	stall := lost - d.conns.lost
	d.conns.lost = lost
	if stall == 0 {
		return
	}
	d.policy.Excuse(now, stall)
	for _, c := range d.conns.open {
		for _, since := range []*time.Time{&c.seen.receivedAt, &c.seen.heardAt, &c.seen.born} {
			*since = policy.Later(now, *since, stall)
		}
	}
}

// listen sends a message every second while this host is a seed with missing pieces, as it promises. It closes the
// connection to a seed that does not keep this promise: the seed hangs, and where this host requested nothing of it no
// other timeout notices that.
func (c *conn) listen(now time.Time, active bool) {
	if c.d.isSeed() && !c.d.complete() && now.Sub(c.announced.at) >= aliveEvery {
		c.announced.at = now
		c.sendAlive()
	}
	heard := c.wire.Heard()
	if heard != c.seen.heard || c.seen.heardAt.IsZero() {
		c.seen.heard, c.seen.heardAt = heard, now
	}
	promised := c.remote.alive && c.remote.seed && !(c.remote.have.Len() > 0 && c.remote.have.Full())
	if active && promised && now.Sub(c.seen.heardAt) > c.d.e.cfg.Stall+aliveEvery {
		c.close(fmt.Errorf("%w: this seed with missing pieces sent no message for %s", errStalled,
			now.Sub(c.seen.heardAt).Round(time.Second)))
	}
}

// put gives the picker a neighbour's zone.
func (d *Download) put(c *conn) {
	d.pick.Put(c.n, picker.Place{Afar: c.afar(), Gateway: c.remote.gateway, ID: c.remote.host})
}

// isGateway reports whether this host brings pieces into its zone from others.
func (d *Download) isGateway() bool { return !d.conns.local && !d.policy.AtOrigin() }

// setLocal takes from the owner whether this host is a gateway of its zone.
func (d *Download) setLocal(local bool) {
	if d.conns.local == local {
		return
	}
	d.conns.local = local
	if d.pick != nil {
		d.pick.Role(d.e.cfg.Host.ID, !local)
	}
	d.helloAgain()
}
