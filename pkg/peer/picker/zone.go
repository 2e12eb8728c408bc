package picker

import (
	"hash/fnv"
	"math/bits"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/piece"
)

const (
	// patienceMin and patienceMax bound how long a gateway may fetch none of its pieces before other gateways fetch
	// them. Between the bounds, it is patienceTimes the time that one piece from another zone takes here.
	patienceMin   = time.Second
	patienceMax   = 5 * time.Second
	patienceTimes = 4
	// surveyEvery is the interval of checks of the other gateways.
	surveyEvery = 100 * time.Millisecond
)

// Place is the zone of a host, relative to this host's.
type Place struct {
	// Afar is true for a host of another zone.
	Afar bool
	// Gateway is true if the host may fetch pieces from other zones.
	Gateway bool
	// ID is the host's ID. All gateways compute from the IDs which of them fetches which piece.
	ID host.ID
}

// gateway is another host of this zone that fetches pieces from other zones.
type gateway struct {
	key   uint64
	share piece.Bitmap // the pieces that it fetches while every gateway works
	done  int          // how many of them it has
	since time.Time    // when that number changed
	stuck bool         // others fetch its pieces
}

// border holds a Picker's state of zones. Without a neighbour of another zone it does nothing.
type border struct {
	self    uint64
	gateway bool
	afar    int // neighbours in other zones
	// near is the set of pieces that a neighbour of this zone has, which no gateway fetches. count is the number of
	// such neighbours by piece.
	near  piece.Bitmap
	count []uint16
	// fetch is the set of pieces that this host fetches from other zones.
	fetch    piece.Bitmap
	others   map[Neighbour]*gateway
	changed  bool // the set of gateways
	surveyed time.Time
	// brought counts the pieces from other zones; pace is the mean time between two of them.
	brought, counted int
	broughtAt        time.Time
	pace             time.Duration
	// have is the number of stored pieces, and moved the time of its last change. still is true while that is long ago:
	// fetch then has every piece.
	have  int
	moved time.Time
	still bool
}

func newBorder(pieces int) border {
	return border{
		gateway: true, near: piece.NewBitmap(pieces), count: make([]uint16, pieces), fetch: piece.NewBitmap(pieces),
		others: make(map[Neighbour]*gateway), changed: true,
	}
}

// key is a host's key for weight.
func key(id host.ID) uint64 {
	h := fnv.New64a()
	h.Write([]byte(id))
	return h.Sum64()
}

// weight is a host's weight for piece i; the gateway with the highest weight fetches it. With this rendezvous hashing,
// the pieces of a gateway that leaves are distributed among the others, and no other piece moves.
func weight(key uint64, i int) uint64 {
	x := key + uint64(i+1)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Role sets this host's ID, and whether it is a gateway of its zone.
func (p *Picker) Role(self host.ID, gateway bool) {
	b := &p.border
	if k := key(self); b.self != k || b.gateway != gateway {
		b.self, b.gateway, b.changed = k, gateway, true
	}
}

// Put sets a neighbour's place. Until then the neighbour counts as a host of this zone that is not a gateway.
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

// join adds the pieces of a neighbour of this zone, or of another one, to the counts; leave removes them.
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

// approach adds a neighbour of this zone to the count of piece i; recede removes one.
func (b *border) approach(i piece.Index) {
	b.count[i]++
	b.near.Set(i)
}

func (b *border) recede(i piece.Index) {
	if b.count[i]--; b.count[i] == 0 {
		b.near.Clear(i)
	}
}

// got counts a piece as one from another zone if no neighbour of this zone has it.
func (b *border) got(i piece.Index) {
	if b.fetch.Has(i) && !b.near.Has(i) {
		b.brought++
	}
}

// survey decides again which pieces this host fetches from other zones.
//
// A dead gateway has no connection, so the others fetch its pieces at once. The others also fetch the pieces of a
// gateway that received none of its share for patience although another zone has some. A host that received nothing for
// patienceMax requests from every neighbour, whether or not it is a gateway: bytes across zones are expensive, but a
// reader that waits for ever is worse.
func (p *Picker) survey(now time.Time) {
	b := &p.border
	if b.afar == 0 {
		return
	}
	moves := b.still && p.have.Count() != b.have
	if !b.changed && !moves && now.Sub(b.surveyed) < surveyEvery {
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
	// A division computes a weight for each piece and gateway, so it follows a change only.
	was := b.still
	b.still = now.Sub(b.moved) > patienceMax
	switch {
	case b.still && (!was || b.changed):
		b.fetch.SetAll()
	case !b.still && (was || b.changed):
		b.divide()
	}
	b.changed = false
}

// progress returns how many pieces of its share a gateway has, and whether another zone has one that it lacks.
func (p *Picker) progress(n *neighbour, g *gateway) (done int, waiting bool) {
	near := p.border.near.Words()
	for w, share := range g.share.Words() {
		done += bits.OnesCount64(share & n.have.Words()[w])
		if lacks := share &^ near[w]; lacks != 0 && !waiting {
			for ; lacks != 0 && !waiting; lacks &= lacks - 1 {
				waiting = p.avail[first(w, lacks)] > 0 // no neighbour of this zone has it
			}
		}
	}
	return done, waiting
}

// share assigns every other gateway its pieces, as if all gateways worked.
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

// divide computes this host's pieces among the gateways that work.
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

// first returns the gateway that fetches piece i, of those that pass the test; nil for this host.
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
