package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// announceTimeout bounds one announce, failover to other owners included.
	announceTimeout = 15 * time.Second
	dialTimeout     = 3 * time.Second
	// seedDials is how long an owner's seed waits for a small object from its origin before it dials the hosts that want
	// it. The owner's answer brings them the bytes, or they dial the seed; a connection in advance would cost as much CPU
	// as all else that the object needs. It is longer than an answer waits for the bytes.
	seedDials = 200 * time.Millisecond
)

// events are the wire's names of what the policy announces.
var events = map[policy.Event]api.Event{
	policy.Started: api.Started, policy.Progress: api.Progress, policy.Starving: api.Starving,
	policy.Completed: api.Completed,
}

// announce sends the owner what the policy decides, one announce at a time.
func (d *Download) announce(now time.Time, v policy.View) {
	a, ok := d.policy.Announce(now, v)
	if !ok {
		return
	}
	d.decided(now, a, v)
	spec := d.wants.spec
	entry := api.Entry{Task: d.id, Event: events[a.Event], Need: a.Need}
	if d.pick != nil && d.passes() == nil {
		entry.Have = d.pick.Have().Count()
	}
	if a.Spec {
		entry.Spec = api.NewSpec(spec)
	}
	entry.Silent, entry.Left = d.conns.takeReports()
	entry.Windows, entry.Seeds = d.awaitedWindows(), d.liveSeeds(now)
	d.wg.Go(func() {
		ctx, cancel := context.WithTimeout(d.ctx, announceTimeout)
		defer cancel()
		answer, leader, err := d.e.cfg.Announcer.Announce(ctx, entry)
		d.e.inventory.announced(entry, err)
		var h unpacked
		if err == nil && answer.Failure == nil {
			h = d.unpack(spec, answer)
		}
		d.notify(ownerReplied{spec, answer, leader, err, h})
	})
}

const (
	// seedHeard is how long a seed that promised to send a message every second may be silent and counts as alive.
	seedHeard = 1500 * time.Millisecond
	// seedUseful is how long the swarm of such a seed may stand still: longer than that, it helps nobody.
	seedUseful = 10 * time.Second
)

// liveSeeds lists the neighbours that bring the task from its origin, as far as this host can see.
func (d *Download) liveSeeds(now time.Time) (list []host.ID) {
	last := d.times.lastHave
	if d.times.lastPiece.After(last) {
		last = d.times.lastPiece
	}
	if now.Sub(last) >= seedUseful {
		return nil
	}
	for _, c := range d.conns.open {
		if c.readsOrigin(now) && len(list) < api.SeedsMax {
			list = append(list, c.remote.host)
		}
	}
	return list
}

// readsOrigin reports whether a neighbour reads the origin, and was heard of a moment ago.
func (c *conn) readsOrigin(now time.Time) bool {
	return c.remote.origin != wire.NoOrigin && c.remote.alive && c.remote.host != "" &&
		now.Sub(c.seen.heardAt) < seedHeard
}

// active reports whether the download waits for pieces.
func (d *Download) active() bool {
	return !d.complete() && (d.pick == nil || d.pick.Wants())
}

// unpacked is what an owner's reply contained of the object itself.
type unpacked struct {
	runs []int         // the numbers of the runs in its proof
	got  []piece.Index // the pieces that came inside it
	tail *api.Tail     // a part of the last piece, checked
	err  error         // stored pieces contradict the reply, or this host's disk failed
}

// unpack takes metadata, proof and inline bytes out of an owner's reply. The loop must not call it: it
// checks signatures, and the store may have to evict.
//
// An owner may be any member of the cluster. Its unsigned metadata counts as long as no other is known.
// Its inline bytes are stored if they match the digests that a coordinator signed, or the digest in the
// task's name; all other bytes come on the piece wire, with their proof.
func (d *Download) unpack(spec task.Spec, a api.Assignment) (h unpacked) {
	if a.Inline != nil {
		d.inlining.Store(true) // until the loop handles the reply
	}
	if a.Proof != nil {
		if h.runs, h.err = d.believe(a.Proof); h.err != nil {
			return h
		}
	}
	if f := a.Metadata; f != nil {
		_, named := d.id.Digest()
		if f.Length == 0 && !named && !d.proof.hasMetadata() {
			return h // an empty object would be complete at once
		}
		switch err := d.proof.setMetadata(*f); {
		case err == nil:
		case errors.Is(err, errMetadata):
			d.log.Warn("owner sent metadata that contradicts what is known", "error", err)
			return h
		default:
			h.err = err
			return h
		}
	}
	if a.Tail != nil && d.proof.hasMetadata() && d.proof.replica.Metadata().Length > 0 {
		if err := d.checkTail(a.Tail); err != nil {
			d.log.Warn("owner sent wrong bytes of the last piece", "error", err)
		} else {
			h.tail = a.Tail
		}
	}
	if len(a.Inline) > 0 && d.proof.hasMetadata() {
		h.got, h.err = d.takeInline(spec, a.Inline)
	}
	return h
}

// believe adds an owner's proof. It ignores one that does not verify. The error says that stored pieces contradict the
// proof, or that this host's disk failed.
func (d *Download) believe(p *api.Proof) (numbers []int, err error) {
	r, err := p.Run()
	if err == nil {
		numbers, err = d.proof.add([]piece.DigestRun{r}, p.Certificates)
	}
	if errors.Is(err, errContradiction) || errors.Is(err, errSpace) {
		return numbers, err
	}
	if err != nil {
		d.log.Warn("owner sent a proof that does not verify inside its reply", "error", err)
	}
	return numbers, nil
}

// takeInline stores a small object that came inside an owner's reply, and returns its pieces. Each must
// match the digest that a coordinator signed; where none is known, the whole must match the digest in
// the task's name.
func (d *Download) takeInline(spec task.Spec, content []byte) (got []piece.Index, err error) {
	layout := d.proof.replica.Metadata().Layout()
	if int64(len(content)) != layout.Length {
		return nil, nil
	}
	if err := checkWhole(spec, content); err != nil {
		d.log.Warn("owner sent wrong bytes inside its reply", "error", err)
		return nil, nil
	}
	_, named := d.id.Digest()
	for i := range piece.Index(layout.Count()) {
		data := content[layout.Offset(i) : layout.Offset(i)+layout.Size(i)]
		if d.proof.replica.Has(i) {
			continue
		}
		sum := piece.Sum(data)
		switch want, signed := d.proof.digest(i); {
		case signed && want != sum:
			d.log.Warn("owner sent wrong bytes inside its reply",
				"error", &piece.DigestError{Index: i, Want: want, Got: sum})
			return got, nil
		case !signed && !named:
			d.log.Debug("owner sent unsigned bytes inside its reply, so they come from peers")
			return got, nil
		}
		if err := d.stored.keep(i, data, sum); err != nil {
			return got, fmt.Errorf("keeping piece %d of task %s: %w", i, d.id, err)
		}
		d.count(func(n *counters) *atomic.Int64 { return &n.inline }, int64(len(data)))
		d.progress.signal()
		got = append(got, i)
	}
	return got, nil
}

// assigned takes the owner's reply.
func (d *Download) assigned(now time.Time, ev ownerReplied) {
	a, err, h := ev.reply, ev.err, ev.unpacked
	d.policy.Replied()
	d.inlining.Store(false)
	d.ownerErr = err
	if err != nil {
		d.log.Debug("announce failed", "error", err)
		return
	}
	if a.Failure != nil && a.Failure.Full && d.e.cfg.Origin != nil {
		// The disk of the seed failed, and not the origin: this host may ask the origin itself, in the order of hosts. Owners
		// of earlier versions answer so, and name no substitute.
		a.Failure, a.Seed = nil, true
	}
	if f := a.Failure; f != nil && d.policy.OwnerRefused(d.view(), f.Personal(), d.hopeful) {
		d.end.failFor(ev.spec, f)
		return
	}
	if errors.Is(h.err, errContradiction) {
		d.failDigests(now, h.err)
		return
	}
	if h.err != nil {
		d.end.failHere(h.err)
		return
	}
	d.adoptMetadata(now)
	for _, i := range h.got {
		d.got(now, i, nil)
	}
	if len(h.runs) > 0 {
		d.digests(now, nil, h.runs, false)
	}
	if !d.complete() {
		d.setLocal(a.Local)
	}
	d.ownerReads = a.Reading
	if a.Parts && d.pick == nil && d.sameForAll() {
		d.policy.Listen(now)
	}
	if t := h.tail; t != nil {
		layout := d.proof.replica.Metadata().Layout()
		if d.tail.reserve(&d.e.tails, layout.Size(piece.Index(layout.Count())-1)) {
			d.tail.put(t.Offset, t.Data)
			d.progress.signal()
		}
	}
	d.policy.Assigned(now, d.view(), a.Seed, ev.leader == owners.Self, ev.leader == owners.Other)
	if a.Seed && d.wants.everything() && d.small() && !d.conns.dialsFrom(now) {
		d.conns.later.hosts = append(d.conns.later.hosts, a.Neighbours...)
		return
	}
	for _, n := range a.Neighbours {
		d.dial(now, n)
	}
}

// small reports whether an owner's answer can hold the object.
func (d *Download) small() bool {
	return d.wants.spec.Length > 0 && d.wants.spec.Length <= api.InlineMax
}

// laterDials are the hosts that a seed of a small object dials at a time, unless it is complete by then.
type laterDials struct {
	hosts []api.Neighbour
	at    time.Time // zero before the first answer
}

// dialsFrom reports whether a seed of a small object may dial by now. The first call begins the wait.
func (cs *conns) dialsFrom(now time.Time) bool {
	if cs.later.at.IsZero() {
		cs.later.at = now.Add(seedDials)
	}
	return !now.Before(cs.later.at)
}

// dialLater dials the hosts for which the time has come.
func (d *Download) dialLater(now time.Time) {
	if len(d.conns.later.hosts) == 0 || !d.conns.dialsFrom(now) && !d.complete() {
		return
	}
	hosts := d.conns.later.hosts
	d.conns.later.hosts = nil
	for _, n := range hosts {
		d.dial(now, n)
	}
}

// hopeful reports whether a neighbour may have what is missing, or bring it.
func (d *Download) hopeful() bool {
	for _, c := range d.conns.open {
		if !c.remote.gotHello || c.remote.seed ||
			d.pick == nil && (c.remote.hasAll || len(c.remote.haves) > 0 || slices.Contains(c.remote.bits, true)) {
			return true
		}
	}
	return d.othersHaveMore()
}

// dial connects to a neighbour, unless it is connected, is being dialled, or cannot help.
func (d *Download) dial(now time.Time, n api.Neighbour) {
	if n.ID == d.e.cfg.Host.ID || d.conns.dialing[n.ID] || d.e.cfg.Dial == nil || d.complete() {
		return
	}
	if d.conns.snubs(n.ID) || d.conns.bans(now, n.ID.PeerID()) ||
		len(d.conns.open)+len(d.conns.dialing) >= d.e.cfg.ConnsMax {
		return
	}
	for _, c := range d.conns.open {
		if c.remote.host == n.ID || c.wire.PeerID() == n.ID.PeerID() {
			return
		}
	}
	d.conns.dialing[n.ID] = true
	hello := d.hello().Hello
	d.wg.Go(func() {
		d.notify(dialEnded{n, d.connect(n.Host, hello)})
	})
}

// dialled ends an attempt to connect.
func (d *Download) dialled(now time.Time, n api.Neighbour, err error) {
	delete(d.conns.dialing, n.ID)
	if err == nil || errors.Is(err, errTwice) || errors.Is(err, errTooMany) {
		return
	}
	d.conns.dialErr = fmt.Errorf("host %s: %w", n.ID.Short(), err)
	d.log.Debug("neighbour not reached", "host", n.ID, "addr", n.Addr, "error", err)
	if errors.Is(err, errNotTaken) {
		d.conns.leftBy(now, n.ID)
		return
	}
	d.conns.snub(now, n.ID)
}

// errNotTaken: the other host accepted the connection and closed it in the handshake. So does a host that takes no part
// in the task.
var errNotTaken = errors.New("it does not take part in the task")

// closedBy reports whether err says that the other side closed a connection.
func closedBy(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func (d *Download) connect(h host.Host, hello *wire.Hello) (err error) {
	defer source.Rescue(&err, "connecting to a peer of task "+d.id.Short())
	ctx, cancel := d.e.cfg.Lag.WithTimeout(d.ctx, dialTimeout, nil)
	defer cancel()
	raw, err := d.e.cfg.Dial(ctx, h.Addr)
	if err != nil {
		return fmt.Errorf("dialling %s: %w", h.Addr, err)
	}
	conn, err := wire.Initiate(ctx, raw, d.id.Swarm(), d.e.cfg.Host.ID.PeerID(), hello)
	if err != nil {
		raw.Close()
		if closedBy(err) {
			return fmt.Errorf("handshake with %s: %w: %w", h.Addr, errNotTaken, err)
		}
		// In TLS 1.3 the other side's refusal comes with the first read.
		return fmt.Errorf("handshake with %s: %w", h.Addr, identity.Explain(err))
	}
	if err := d.e.checkHost(raw, conn); err != nil {
		raw.Close()
		return err
	}
	if conn.PeerID() != h.ID.PeerID() {
		raw.Close()
		return fmt.Errorf("%s is another host than %s", h.Addr, h.ID)
	}
	if err := d.offerConn(conn, true, h.ID); err != nil {
		if errors.Is(err, errSelf) || errors.Is(err, errBanned) {
			raw.Close()
		} else {
			d.e.wg.Go(func() {
				if d.e.dismiss(conn, leavingFor(err)) != nil {
					raw.Close()
				}
			})
		}
		return err
	}
	return nil
}
