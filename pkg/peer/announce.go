package peer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// announceTimeout bounds one announce, failover to other owners included.
	announceTimeout = 15 * time.Second
	dialTimeout     = 3 * time.Second
)

// announce tells the owner what is new, one announce at a time.
func (d *Download) announce(now time.Time) {
	if d.announcing || !d.wanted {
		return
	}
	entry := api.Entry{Task: d.id}
	if d.pick != nil {
		entry.Have = d.pick.Have().Count()
	}
	switch {
	case d.complete:
		if d.toldCompleted || !d.ledger.proven() || d.ledger.cached {
			return
		}
		d.toldCompleted = true
		entry.Event = api.Completed
	case !d.toldStarted:
		d.toldStarted = true
		entry.Event = api.Started
	case d.starving(now) && !now.Before(d.nextStarving):
		entry.Event = api.Starving
		d.nextStarving = now.Add(d.starveDelay)
		d.starveDelay = min(2*d.starveDelay, starveMax)
	case d.active() && !now.Before(d.nextProgress):
		entry.Event = api.Progress
	default:
		return
	}
	spec := d.spec
	if entry.Event == api.Started || entry.Event == api.Starving {
		entry.Spec = api.NewSpec(spec)
	}
	if !d.complete {
		// Everybody is also handed to others: asking for half the mesh makes all of it.
		entry.Need = max(0, d.e.cfg.Neighbours-len(d.links)-len(d.dialing))
		if entry.Event == api.Started {
			entry.Need = (d.e.cfg.Neighbours + 4) / 2
		}
	}
	entry.Silent, d.silent = d.silent, nil
	d.nextProgress = now.Add(d.e.cfg.ProgressInterval)
	d.announcing = true
	d.wg.Go(func() {
		ctx, cancel := context.WithTimeout(d.ctx, announceTimeout)
		defer cancel()
		answer, leader, err := d.e.cfg.Announcer.Announce(ctx, entry)
		d.e.news.said(entry, err)
		var h heeded
		if err == nil && answer.Failure == nil {
			h = d.heed(spec, answer)
		}
		d.notify(ownerReplied{spec, answer, leader, err, h})
	})
}

// active reports whether somebody waits for pieces.
func (d *Download) active() bool {
	return !d.complete && (d.pick == nil || d.pick.Wants())
}

// starving reports whether pieces are wanted and nobody here can bring them.
func (d *Download) starving(now time.Time) bool {
	if d.seeding || !d.active() || len(d.dialing) > 0 {
		return false
	}
	seeds := false
	for _, l := range d.links {
		seeds = seeds || l.seed || !l.helloed
	}
	if d.pick == nil {
		return !seeds
	}
	// A seed that has nothing new waits for its origin, and whose neighbours still get
	// pieces will have some of them: asking the owner brings nothing.
	return d.pick.Starving() && !seeds && now.Sub(d.lastNews) > quiet
}

// heeded is what an owner's answer told of the content itself.
type heeded struct {
	runs []int         // numbers of those that its proof holds
	got  []piece.Index // what came inside it
	err  error         // about what is here, or the own disk
}

// heed takes in what an owner's answer says of the content itself. It is not the loop's: signatures
// are checked and the store makes room.
//
// An owner may be any member, and its word is good for the length only, while nobody has told
// another one. Bytes are taken on a coordinator's word that came with them, or where they match
// the digest in the task's name; other bytes come on the piece wire, with their proof.
func (d *Download) heed(spec task.Spec, a api.Assignment) (h heeded) {
	if a.Inline != nil {
		d.inlining.Store(true) // until the loop has heard what came of it
	}
	if a.Proof != nil {
		if h.runs, h.err = d.believe(a.Proof); h.err != nil {
			return h
		}
	}
	if f := a.Metadata; f != nil {
		_, named := d.id.Digest()
		if f.Length == 0 && !named && !d.ledger.hasMetadata() {
			return h // it would be complete at once
		}
		switch err := d.ledger.setMetadata(*f); {
		case err == nil:
		case errors.Is(err, errMetadata):
			d.log.Warn("owner told wrong facts of the content", "error", err)
			return h
		default:
			h.err = err
			return h
		}
	}
	if len(a.Inline) > 0 && d.ledger.hasMetadata() {
		h.got, h.err = d.takeInline(spec, a.Inline)
	}
	return h
}

// believe takes in an owner's proof. One that is not good is passed by; the error is about what is
// here, or the own disk.
func (d *Download) believe(p *api.Proof) (numbers []int, err error) {
	r, err := p.Run()
	if err == nil {
		numbers, err = d.ledger.add([]piece.DigestRun{r}, p.Certificates)
	}
	if errors.Is(err, errContradiction) || errors.Is(err, errSpace) {
		return numbers, err
	}
	if err != nil {
		d.log.Warn("owner sent no good proof of the content inside its answer", "error", err)
	}
	return numbers, nil
}

// takeInline stores a small content that came inside an owner's answer, and returns its pieces. Each
// must match the digest that a coordinator signed; where none is known, the whole must match the
// digest in the task's name.
func (d *Download) takeInline(spec task.Spec, content []byte) (got []piece.Index, err error) {
	layout := d.ledger.replica.Metadata().Layout()
	if int64(len(content)) != layout.Length {
		return nil, nil
	}
	if err := checkWhole(spec, content); err != nil {
		d.log.Warn("owner sent wrong content inside its answer", "error", err)
		return nil, nil
	}
	_, named := d.id.Digest()
	for i := range piece.Index(layout.Count()) {
		data := content[layout.Offset(i) : layout.Offset(i)+layout.Size(i)]
		if d.ledger.replica.Has(i) {
			continue
		}
		sum := piece.Sum(data)
		switch want, signed := d.ledger.digest(i); {
		case signed && want != sum:
			d.log.Warn("owner sent wrong content inside its answer", "error", &piece.DigestError{Index: i, Want: want, Got: sum})
			return got, nil
		case !signed && !named:
			d.log.Debug("owner sent content inside its answer that nobody vouches for, so it comes from peers")
			return got, nil
		}
		if err := d.keep(i, data, sum); err != nil {
			return got, fmt.Errorf("keeping piece %d of task %s: %w", i, d.id, err)
		}
		d.count(func(c *counters) *atomic.Int64 { return &c.inline }, int64(len(data)))
		d.progress.signal()
		got = append(got, i)
	}
	return got, nil
}

// assigned takes the owner's reply, and what it told of the content.
func (d *Download) assigned(now time.Time, ev ownerReplied) {
	a, err, h := ev.reply, ev.err, ev.heeded
	d.announcing = false
	d.inlining.Store(false)
	d.ownerErr = err
	if err != nil {
		d.log.Debug("announce failed", "error", err)
		return
	}
	if f := a.Failure; f != nil && !d.complete && !d.seeding && (len(d.links) == 0 || f.Personal() && !d.hopeful()) {
		d.failFor(ev.spec, f)
		return
	}
	if errors.Is(h.err, errContradiction) {
		d.hurt(now, h.err)
		return
	}
	if h.err != nil {
		d.failHere(h.err)
		return
	}
	d.adoptMetadata(now)
	for _, i := range h.got {
		d.got(now, i, nil)
	}
	if len(h.runs) > 0 {
		d.digests(now, nil, h.runs, false)
	}
	if !d.complete {
		d.setLocal(a.Local)
	}
	switch {
	case a.Seed:
		d.leads, d.disputed = ev.leader == owners.Self, false
		d.letSeed(now)
	case ev.leader == owners.Other && !d.maySeed:
		d.disputed = true
		if d.background {
			d.letSeed(now)
		}
	}
	for _, n := range a.Neighbours {
		d.dial(now, n)
	}
}

// hopeful reports whether a neighbour may have what is missing, or bring it.
func (d *Download) hopeful() bool {
	for _, l := range d.links {
		if !l.helloed || l.seed || d.pick == nil && (l.hasAll || len(l.haves) > 0 || slices.Contains(l.bits, true)) {
			return true
		}
	}
	return d.othersHaveMore()
}

// forsaken fails the download when for too long nobody here could bring it on, and there is
// no owner either that would find somebody. While one answers and neighbours are there it
// waits: the origin may just be slow, and this host far from the seed.
func (d *Download) forsaken(now time.Time) {
	helpful := d.seeding || d.pick != nil && !d.pick.Starving()
	for _, l := range d.links {
		helpful = helpful || l.helloed && (l.seed || d.ownerErr == nil)
	}
	switch {
	case helpful || !d.active() || !d.wanted:
		d.lonelySince = time.Time{}
	case d.lonelySince.IsZero():
		d.lonelySince = now
	case now.Sub(d.lonelySince) > lonely:
		cause := d.ownerErr
		if cause == nil {
			cause = errors.New("the owner knows nobody who has it and answers")
			if d.dialErr != nil {
				cause = fmt.Errorf("%w; the last try: %w", cause, d.dialErr)
			}
		}
		d.fail(&api.Failure{Status: http.StatusServiceUnavailable, Message: fmt.Sprintf("nobody to download task %s from: %v", d.id, cause)})
	}
}

// dial connects to a neighbour unless that is done, under way or hopeless.
func (d *Download) dial(now time.Time, n api.Neighbour) {
	if n.ID == d.e.cfg.Host.ID || d.dialing[n.ID] || d.e.cfg.Dial == nil || d.complete {
		return
	}
	if _, avoided := d.avoid[n.ID]; avoided || len(d.links)+len(d.dialing) >= d.e.cfg.LinksMax || now.Before(d.banned[n.ID.PeerID()]) {
		return
	}
	for _, l := range d.links {
		if l.host == n.ID || l.conn.PeerID() == n.ID.PeerID() {
			return
		}
	}
	d.dialing[n.ID] = true
	hello := d.hello().Hello
	d.wg.Go(func() {
		d.notify(dialEnded{n, d.connect(n.Host, hello)})
	})
}

// dialled takes in how an attempt to connect ended.
func (d *Download) dialled(now time.Time, n api.Neighbour, err error) {
	delete(d.dialing, n.ID)
	if err == nil || errors.Is(err, errTwice) || errors.Is(err, errTooMany) {
		return
	}
	d.dialErr = fmt.Errorf("host %s: %w", n.ID.Short(), err)
	d.log.Debug("neighbour not reached", "host", n.ID, "addr", n.Addr, "error", err)
	d.shun(now, n.ID)
}

func (d *Download) connect(h host.Host, hello *wire.Hello) (err error) {
	defer source.Rescue(&err, "connecting to a peer of task "+d.id.Short())
	ctx, cancel := context.WithTimeout(d.ctx, dialTimeout)
	defer cancel()
	raw, err := d.e.cfg.Dial(ctx, h.Addr)
	if err != nil {
		return fmt.Errorf("dialling %s: %w", h.Addr, err)
	}
	conn, err := wire.Initiate(ctx, raw, d.id.Swarm(), d.e.cfg.Host.ID.PeerID(), hello)
	if err != nil {
		raw.Close()
		// In TLS 1.3 the other end's refusal comes with the first read.
		return fmt.Errorf("greeting %s: %w", h.Addr, identity.Explain(err))
	}
	if err := d.e.proved(raw, conn); err != nil {
		raw.Close()
		return err
	}
	if conn.PeerID() != h.ID.PeerID() {
		raw.Close()
		return fmt.Errorf("%s is another host than %s", h.Addr, h.ID)
	}
	if err := d.link(conn, true, h.ID); err != nil {
		raw.Close()
		return err
	}
	return nil
}
