package picker

import (
	"hash/fnv"
	"math/bits"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/piece"
)

const (
	// patienceMin and patienceMax bound how long a gateway may bring none of its pieces
	// before another takes them over; between them it is patienceTimes the time that one
	// piece from afar takes here.
	patienceMin   = time.Second
	patienceMax   = 5 * time.Second
	patienceTimes = 4
	// surveyEvery is how often the other gateways are looked at.
	surveyEvery = 100 * time.Millisecond
)

// Place is where a host stands between zones.
type Place struct {
	// Afar says that it is in another zone than we are.
	Afar bool
	// Gateway says that it may bring pieces into its zone.
	Gateway bool
	// ID is its host, by which gateways agree on who brings which piece.
	ID host.ID
}

// gateway is another host of our zone that brings pieces into it.
type gateway struct {
	key   uint64
	share piece.Bitmap // the pieces that it brings while every gateway works
	done  int          // how many of them it has
	since time.Time    // when that number changed
	stuck bool         // others bring its pieces
}

// border is what a Picker knows of zones. With no neighbour afar it does nothing.
type border struct {
	self    uint64
	gateway bool
	afar    int // neighbours in other zones
	// near is the set of pieces that a neighbour of our zone has, and count how many have
	// each: they are not brought from afar.
	near  piece.Bitmap
	count []uint16
	// fetch is the set of pieces that we bring from afar.
	fetch    piece.Bitmap
	others   map[Neighbour]*gateway
	changed  bool // the set of gateways
	surveyed time.Time
	// brought counts pieces that came from afar; pace is the time from one to the next.
	brought, counted int
	broughtAt        time.Time
	pace             time.Duration
	// have is how many pieces we had when that last changed, which was at moved.
	have  int
	moved time.Time
}

func newBorder(pieces int) border {
	return border{
		gateway: true, near: piece.NewBitmap(pieces), count: make([]uint16, pieces), fetch: piece.NewBitmap(pieces),
		others: make(map[Neighbour]*gateway), changed: true,
	}
}

// key is a host in the draw for a piece.
func key(id host.ID) uint64 {
	h := fnv.New64a()
	h.Write([]byte(id))
	return h.Sum64()
}

// weight is a host's lot in the draw for piece i: the highest brings it (rendezvous
// hashing, so that the pieces of one who leaves are shared out and no other piece moves).
func weight(key uint64, i int) uint64 {
	x := key + uint64(i+1)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Role sets this host's ID, and whether it brings pieces into its zone or leaves that to its
// gateways.
func (p *Picker) Role(self host.ID, gateway bool) {
	p.border.self, p.border.gateway, p.border.changed = key(self), gateway, true
}

// Put sets a neighbour's place. Until then it counts as one of this zone, and no gateway.
func (p *Picker) Put(n Neighbour, at Place) {
	one := p.neighbours[n]
	if one == nil {
		return
	}
	b := &p.border
	if one.afar != at.Afar {
		b.leave(one)
		one.afar = at.Afar
		b.join(one)
	}
	if was := b.others[n] != nil; was != (at.Gateway && !at.Afar) {
		b.changed = true
		if delete(b.others, n); !was {
			b.others[n] = &gateway{key: key(at.ID)}
		}
	}
}

// join and leave count what a neighbour has where it stands.
func (b *border) join(n *neighbour) {
	if n.afar {
		b.afar++
		return
	}
	n.each(b.approach)
}

func (b *border) leave(n *neighbour) {
	if n.afar {
		b.afar--
		return
	}
	n.each(b.recede)
}

func (n *neighbour) each(f func(piece.Index)) {
	for w, set := range n.have.Words() {
		for ; set != 0; set &= set - 1 {
			f(first(w, set))
		}
	}
}

// approach and recede tell that one more neighbour of our zone has piece i, or one less.
func (b *border) approach(i piece.Index) {
	b.count[i]++
	b.near.Set(i)
}

func (b *border) recede(i piece.Index) {
	if b.count[i]--; b.count[i] == 0 {
		b.near.Clear(i)
	}
}

// got notes a piece that came: from afar when nobody near has it.
func (b *border) got(i piece.Index) {
	if b.fetch.Has(i) && !b.near.Has(i) {
		b.brought++
	}
}

// survey decides again which pieces this host brings from afar.
//
// A gateway that is dead has no connection any more, and its pieces are the others' at
// once. One that is slow is given up after a while: if pieces of its share are to be had
// afar and none of them came to it. And who got nothing at all for long asks whomever it
// knows, whatever the zone's gateways are about: bytes across zones are dear, but a reader
// that waits for ever is worse.
func (p *Picker) survey(now time.Time) {
	b := &p.border
	if b.afar == 0 || !b.changed && now.Sub(b.surveyed) < surveyEvery {
		return
	}
	b.surveyed = now
	if have := p.have.Count(); have != b.have || b.moved.IsZero() {
		b.have, b.moved = have, now
	}
	if n := b.brought - b.counted; n > 0 {
		if !b.broughtAt.IsZero() {
			b.pace += (now.Sub(b.broughtAt)/time.Duration(n) - b.pace) / 4
		}
		b.counted, b.broughtAt = b.brought, now
	}
	if b.changed {
		b.share(now)
	}
	patience := patienceMax
	if b.pace > 0 {
		patience = max(patienceMin, min(patienceTimes*b.pace, patienceMax))
	}
	for n, g := range b.others {
		done, waiting := p.progress(p.neighbours[n], g)
		switch {
		case done != g.done || !waiting:
			b.changed = b.changed || g.stuck
			g.done, g.since, g.stuck = done, now, false
		case !g.stuck && now.Sub(g.since) > patience:
			g.stuck, b.changed = true, true
		}
	}
	if b.changed {
		b.changed = false
		b.divide()
	}
	if now.Sub(b.moved) > patienceMax {
		b.fetch.SetAll()
		b.changed = true // to be divided again when something moves
	}
}

// progress is how many pieces of its share a gateway has, and whether one that it lacks
// is to be had afar.
func (p *Picker) progress(n *neighbour, g *gateway) (done int, waiting bool) {
	near := p.border.near.Words()
	for w, share := range g.share.Words() {
		done += bits.OnesCount64(share & n.have.Words()[w])
		if lacks := share &^ near[w]; lacks != 0 && !waiting {
			for ; lacks != 0 && !waiting; lacks &= lacks - 1 {
				waiting = p.avail[first(w, lacks)] > 0 // and no near neighbour has it
			}
		}
	}
	return done, waiting
}

// share gives every other gateway its pieces, as if all of them worked.
func (b *border) share(now time.Time) {
	for _, g := range b.others {
		g.share, g.done, g.since, g.stuck = piece.NewBitmap(b.near.Len()), -1, now, false
	}
	for i := range b.near.Len() {
		if g := b.first(i, func(*gateway) bool { return true }); g != nil {
			g.share.Set(piece.Index(i))
		}
	}
}

// divide takes the pieces that are ours among those gateways that work.
func (b *border) divide() {
	b.fetch = piece.NewBitmap(b.near.Len())
	if !b.gateway {
		return
	}
	for i := range b.near.Len() {
		if b.first(i, func(g *gateway) bool { return !g.stuck }) == nil {
			b.fetch.Set(piece.Index(i))
		}
	}
}

// first returns the gateway that brings piece i, of those that pass the test; nil for this host.
func (b *border) first(i int, test func(*gateway) bool) (best *gateway) {
	var most uint64
	if b.gateway {
		most = weight(b.self, i)
	}
	for _, g := range b.others {
		if w := weight(g.key, i); test(g) && w > most {
			best, most = g, w
		}
	}
	return best
}
