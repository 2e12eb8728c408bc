// Package picker chooses the next request of a download: first a source, at random among the neighbours that are not
// busy and have a useful piece, then one of its pieces: with a probability of 3/4 the lowest missing one, otherwise the
// locally rarest. While only the seed has some pieces, or for a source in another zone, the probability is 1/5.
//
// A Picker is pure: it has no clock, socket or goroutine, and decides the same for the same seed and calls. One
// download owns it. Start at [Picker.Next].
//
// The source comes first because choosing the rarest piece first sends all hosts to its one holder (1.6 times the bound
// instead of 1.06, simulated). The preference for the lowest piece is soft because a hard window stalls whenever its
// first piece stalls.
package picker

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/piece"
)

// Config are the picker's settings.
type Config struct {
	// RequestsMax bounds the neighbours with pieces in flight. With one piece each, one more than a neighbour's upload
	// slots hides the gap between two pieces; many more only cause refusals. Default 8.
	RequestsMax int
	// PerNeighbour is how many requests one neighbour may have at least. A lone neighbour has one more, so that its link
	// is never idle; a neighbour has as many as its path needs, if few neighbours can help. Default 1.
	PerNeighbour int
	// InOrder is the probability of the lowest missing piece of a source, instead of its rarest, once another host than
	// the seed has each piece. Default 0.75.
	InOrder float64
	// InOrderYoung is the same while the seed still has pieces that no other host has: spreading them is then more
	// important. Default 0.2.
	InOrderYoung float64
	// Crawl is the ratio of a piece's time from other hosts to its time from a seed above which this host requests more
	// than the usual copies from a seed, if its own link has room for them; below 0 it never does. In a healthy crowd
	// both times are equal. Default 3.
	Crawl float64
	// Seed of the random choices.
	Seed uint64
}

// RequestsMaxDefault is the default of [Config.RequestsMax].
const RequestsMaxDefault = 8

// fewPieces is the largest number of pieces of a task that this host requests at once from a lone neighbour: there is
// hardly anything to spread.
const fewPieces = 8

func (c *Config) defaults() {
	if c.RequestsMax == 0 {
		c.RequestsMax = RequestsMaxDefault
	}
	if c.PerNeighbour == 0 {
		c.PerNeighbour = 1
	}
	if c.InOrder == 0 {
		c.InOrder = 0.75
	}
	if c.InOrderYoung == 0 {
		c.InOrderYoung = 0.2
	}
	if c.Crawl == 0 {
		c.Crawl = 3
	}
}

// Neighbour is the number of a source within one Picker; the Picker's owner chooses the numbers.
type Neighbour int

// Request is a decision: request Piece from From, or any piece if Any is set.
type Request struct {
	From  Neighbour
	Piece piece.Index
	// At is when the request was decided.
	At time.Time
	// Any leaves the choice to the seed. Exclude lists the pieces in flight. SeedsOnly means that this host depends on
	// seeds: no other neighbour had a piece for it for a while, or their pieces arrive very slowly: see
	// [Picker.Received].
	Any       bool
	SeedsOnly bool
	Exclude   []piece.Index
	// Urgent means that a reader waits for this piece.
	Urgent bool
}

type neighbour struct {
	have      piece.Bitmap
	seed      bool
	busyUntil time.Time
	requested []flight // requests with index in flight
	anys      []flight // requests without index in flight, whose piece is not chosen yet, the oldest first
	afar      bool     // it is in another zone; see border
	path      path
}

func (n *neighbour) outstanding() int { return len(n.requested) + len(n.anys) }

// asked returns the place of the request for piece i, or -1.
func (n *neighbour) asked(i piece.Index) int {
	return slices.IndexFunc(n.requested, func(f flight) bool { return f.piece == i })
}

// Picker holds the pieces and neighbours of one download.
type Picker struct {
	cfg    Config
	layout piece.Layout
	rng    *rand.Rand

	have, wanted, flying piece.Bitmap
	full                 piece.Bitmap // every piece
	avail                []uint16     // how many neighbours have a piece
	// spread is the set of pieces that some neighbour other than a seed has.
	spread      piece.Bitmap
	neighbours  map[Neighbour]*neighbour
	order       []Neighbour // of neighbours, so that choices repeat with a seed
	outstanding int
	scratch     []Neighbour
	urgent      []piece.Index
	border      border
	flow        flow
	// offered says that a neighbour that is no seed announced a piece that this host lacks; offeredAt is when
	// Next last found it set.
	offered   bool
	offeredAt time.Time
}

// seedsOnlyAfter is how long no neighbour except seeds must have had a piece for this host before it depends on seeds.
// A piece that a seed just sent to others takes a moment to arrive here; a host that requested another copy at once
// would take most of the task from the seed.
const seedsOnlyAfter = 500 * time.Millisecond

// New returns a picker for a task of which the pieces in have are stored. No piece is wanted yet.
func New(cfg Config, layout piece.Layout, have piece.Bitmap) *Picker {
	cfg.defaults()
	n := layout.Count()
	full := piece.NewBitmap(n)
	full.SetAll()
	return &Picker{
		cfg: cfg, layout: layout, rng: rand.New(rand.NewPCG(cfg.Seed, 0x6461727465)),
		have: have.Clone(), wanted: piece.NewBitmap(n), flying: piece.NewBitmap(n), full: full,
		avail: make([]uint16, n), spread: piece.NewBitmap(n), neighbours: make(map[Neighbour]*neighbour),
		border: newBorder(n),
	}
}

// Have returns the set of stored pieces; read-only.
func (p *Picker) Have() piece.Bitmap { return p.have }

// Outstanding returns the number of requests in flight.
func (p *Picker) Outstanding() int { return p.outstanding }

// Want replaces the set of wanted pieces.
func (p *Picker) Want(wanted piece.Bitmap) { p.wanted = wanted }

// Wanted returns the set of wanted pieces; read-only.
func (p *Picker) Wanted() piece.Bitmap { return p.wanted }

// Wants reports whether a wanted piece is missing.
func (p *Picker) Wants() bool {
	for w, word := range p.wanted.Words() {
		if word&^p.have.Words()[w] != 0 {
			return true
		}
	}
	return false
}

// WantsAll reports whether every missing piece is wanted. Otherwise a seed must not choose, because it would send
// unwanted pieces.
func (p *Picker) WantsAll() bool {
	have, wanted := p.have.Words(), p.wanted.Words()
	for w := range have {
		if ^(have[w]|wanted[w])&p.full.Words()[w] != 0 {
			return false
		}
	}
	return true
}

// Urgent replaces the list of pieces that readers wait for, the most urgent first.
func (p *Picker) Urgent(list []piece.Index) { p.urgent = append(p.urgent[:0], list...) }

// young reports whether the seed still has wanted and missing pieces that no other neighbour has.
func (p *Picker) young() bool {
	have, wanted, spread := p.have.Words(), p.wanted.Words(), p.spread.Words()
	for w := range have {
		if wanted[w]&^(have[w]|spread[w]) != 0 {
			return true
		}
	}
	return false
}

// Join adds a neighbour without pieces.
func (p *Picker) Join(n Neighbour, seed bool) {
	if p.neighbours[n] != nil {
		return
	}
	p.neighbours[n] = &neighbour{have: piece.NewBitmap(p.layout.Count()), seed: seed}
	p.order = append(p.order, n)
}

// SetSeed sets whether a neighbour chooses the pieces that it sends.
func (p *Picker) SetSeed(n Neighbour, seed bool) {
	if one := p.neighbours[n]; one != nil {
		one.seed = seed
	}
}

// Leave removes a neighbour. Its requests end, so other neighbours can get them at once.
func (p *Picker) Leave(n Neighbour) {
	one := p.neighbours[n]
	if one == nil {
		return
	}
	one.each(func(i piece.Index) { p.avail[i]-- })
	p.border.leave(one)
	if p.border.others[n] != nil {
		delete(p.border.others, n)
		p.border.changed = true
	}
	for _, f := range slices.Clone(one.requested) {
		p.Ended(n, f.piece)
	}
	p.outstanding -= len(one.anys)
	delete(p.neighbours, n)
	p.respread()
	p.order = slices.DeleteFunc(p.order, func(o Neighbour) bool { return o == n })
}

// respread recomputes the set of pieces that a neighbour other than a seed has.
func (p *Picker) respread() {
	p.spread = piece.NewBitmap(p.layout.Count())
	for _, n := range p.neighbours {
		if !n.seed {
			p.spread.Add(n.have)
		}
	}
}

// Has adds piece i to the pieces of a neighbour.
func (p *Picker) Has(n Neighbour, i piece.Index) {
	if one := p.neighbours[n]; one != nil && one.have.Set(i) {
		p.avail[i]++
		if !one.seed {
			p.spread.Set(i)
			p.offered = p.offered || !p.have.Has(i)
		}
		if !one.afar {
			p.border.approach(i)
		}
	}
}

// Lacks removes piece i from the pieces of a neighbour.
func (p *Picker) Lacks(n Neighbour, i piece.Index) {
	if one := p.neighbours[n]; one != nil && one.have.Has(i) {
		one.have.Clear(i)
		p.avail[i]--
		if !one.afar {
			p.border.recede(i)
		}
	}
}

// Offered reports whether any neighbour has piece i.
func (p *Picker) Offered(i piece.Index) bool { return p.avail[i] > 0 }

// HasMore reports whether a neighbour has a piece that is missing here.
func (p *Picker) HasMore(n Neighbour) bool {
	one := p.neighbours[n]
	if one == nil {
		return false
	}
	for w, word := range one.have.Words() {
		if word&^p.have.Words()[w] != 0 {
			return true
		}
	}
	return false
}

// Complete reports whether a neighbour has every piece.
func (p *Picker) Complete(n Neighbour) bool {
	one := p.neighbours[n]
	return one != nil && one.have.Full()
}

// Requested records that the request was sent.
func (p *Picker) Requested(r Request) {
	n := p.neighbours[r.From]
	if n == nil {
		return
	}
	p.outstanding++
	f := flight{piece: r.Piece, at: r.At, of: n.path.came}
	if r.Any {
		n.anys = append(n.anys, f)
		return
	}
	n.requested = append(n.requested, f)
	p.flying.Set(r.Piece)
}

// Chosen records that neighbour n, a seed, chose piece i for a request without index.
func (p *Picker) Chosen(n Neighbour, i piece.Index) {
	one := p.neighbours[n]
	if one == nil || len(one.anys) == 0 {
		return
	}
	f := one.anys[0]
	f.piece = i
	one.anys = slices.Delete(one.anys, 0, 1)
	one.requested = append(one.requested, f)
	p.flying.Set(i)
}

// InFlight reports whether piece i is requested and has not arrived.
func (p *Picker) InFlight(i piece.Index) bool { return p.flying.Has(i) }

// Refused ends a request without index to n that got no piece.
func (p *Picker) Refused(n Neighbour) {
	if one := p.neighbours[n]; one != nil && len(one.anys) > 0 {
		one.anys = slices.Delete(one.anys, 0, 1)
		p.outstanding--
	}
}

// Ended ends the request for piece i to n, with the piece or without.
func (p *Picker) Ended(n Neighbour, i piece.Index) {
	one := p.neighbours[n]
	if one == nil {
		return
	}
	at := one.asked(i)
	if at < 0 {
		return
	}
	one.requested = slices.Delete(one.requested, at, at+1)
	p.outstanding--
	for _, other := range p.neighbours {
		if other.asked(i) >= 0 {
			return
		}
	}
	p.flying.Clear(i)
}

// Stored records that piece i is in the store, from any source.
func (p *Picker) Stored(i piece.Index) {
	if p.have.Set(i) {
		p.border.got(i)
	}
}

// Lost records that the store lost piece i.
func (p *Picker) Lost(i piece.Index) { p.have.Clear(i) }

// Busy excludes n from requests until then.
func (p *Picker) Busy(n Neighbour, until time.Time) {
	if one := p.neighbours[n]; one != nil {
		one.busyUntil = until
	}
}

// NextFree returns when the first busy neighbour can get requests again; zero if none is busy.
func (p *Picker) NextFree(now time.Time) (t time.Time) {
	for _, n := range p.neighbours {
		if n.busyUntil.After(now) && (t.IsZero() || n.busyUntil.Before(t)) {
			t = n.busyUntil
		}
	}
	return t
}

// useful calls f for each word of pieces that n could send now.
func (p *Picker) useful(n *neighbour, f func(word int, bits uint64) (more bool)) {
	have, wanted, fly := p.have.Words(), p.wanted.Words(), p.flying.Words()
	fetch, near := p.border.fetch.Words(), p.border.near.Words()
	for w, bits := range n.have.Words() {
		bits &= wanted[w] &^ (have[w] | fly[w])
		if n.afar {
			bits &= fetch[w] &^ near[w]
			if n.seed {
				bits &^= p.spread.Words()[w]
			}
		}
		if bits != 0 && !f(w, bits) {
			return
		}
	}
}

func (p *Picker) isUseful(n *neighbour) (yes bool) {
	p.useful(n, func(int, uint64) bool {
		yes = true
		return false
	})
	return yes
}

// Starving reports whether pieces are wanted, none is in flight, and no neighbour has one of them.
func (p *Picker) Starving() bool {
	if p.outstanding > 0 || !p.Wants() {
		return false
	}
	for _, n := range p.neighbours {
		if p.isUseful(n) {
			return false
		}
	}
	return true
}

// Next returns the next request; ok is false if there is none now. The caller sends it and calls [Picker.Requested].
func (p *Picker) Next(now time.Time) (r Request, ok bool) {
	p.survey(now)
	if p.offered || p.offeredAt.IsZero() {
		p.offered, p.offeredAt = false, now
	}
	for _, i := range p.urgent {
		if r, ok := p.nextUrgent(now, i); ok {
			r.At = now
			return r, true
		}
	}
	candidates := p.idle(now, p.isUseful)
	if len(candidates) == 0 {
		return Request{}, false
	}
	from := candidates[p.rng.IntN(len(candidates))]
	n := p.neighbours[from]
	if n.seed && !n.afar && p.WantsAll() {
		seedsOnly := now.Sub(p.offeredAt) > seedsOnlyAfter && p.onlySeeds() || p.flow.crawls(p.cfg.Crawl)
		return Request{From: from, At: now, Any: true, SeedsOnly: seedsOnly, Exclude: p.flyingList()}, true
	}
	bias := p.cfg.InOrder
	if n.afar || p.young() {
		bias = p.cfg.InOrderYoung
	}
	if p.rng.Float64() < bias {
		return Request{From: from, At: now, Piece: p.lowest(n)}, true
	}
	return Request{From: from, At: now, Piece: p.rarest(n)}, true
}

// nextUrgent finds a source for a piece that a reader waits for. It never requests a piece in flight again: the
// download closes the connection to a source that stalls.
func (p *Picker) nextUrgent(now time.Time, i piece.Index) (Request, bool) {
	if p.have.Has(i) || p.flying.Has(i) {
		return Request{}, false
	}
	has := func(n *neighbour) bool {
		return n.have.Has(i) && (!n.afar || p.border.fetch.Has(i) && !p.border.near.Has(i))
	}
	candidates := p.idle(now, func(n *neighbour) bool { return has(n) && !n.seed })
	if len(candidates) == 0 {
		candidates = p.idle(now, has)
	}
	if len(candidates) == 0 {
		return Request{}, false
	}
	return Request{From: candidates[p.rng.IntN(len(candidates))], Piece: i, Urgent: true}, true
}

// idle lists the neighbours that may get a request now and pass the test.
func (p *Picker) idle(now time.Time, test func(*neighbour) bool) []Neighbour {
	p.scratch = p.scratch[:0]
	used, helpers := 0, 0
	for _, id := range p.order {
		n := p.neighbours[id]
		if n.outstanding() > 0 {
			used++
		}
		ready := !n.busyUntil.After(now) && test(n)
		if ready {
			p.scratch = append(p.scratch, id)
		}
		if ready || n.outstanding() > 0 {
			helpers++
		}
	}
	helpers = min(helpers, p.cfg.RequestsMax)
	p.scratch = slices.DeleteFunc(p.scratch, func(id Neighbour) bool {
		n := p.neighbours[id]
		return n.outstanding() == 0 && used >= p.cfg.RequestsMax || n.outstanding() >= p.limit(n, helpers)
	})
	return p.scratch
}

// onlySeeds reports whether no neighbour except seeds has or sends a piece that this host needs.
func (p *Picker) onlySeeds() bool {
	for _, n := range p.neighbours {
		if !n.seed && (len(n.requested) > 0 || p.isUseful(n)) {
			return false
		}
	}
	return true
}

func (p *Picker) flyingList() (list []piece.Index) {
	for w, set := range p.flying.Words() {
		for ; set != 0; set &= set - 1 {
			list = append(list, first(w, set))
		}
	}
	return list
}

func (p *Picker) lowest(n *neighbour) (lowest piece.Index) {
	p.useful(n, func(w int, bits uint64) bool {
		lowest = first(w, bits)
		return false
	})
	return lowest
}

func (p *Picker) rarest(n *neighbour) (rarest piece.Index) {
	best, ties := ^uint16(0), 0
	p.useful(n, func(w int, bits uint64) bool {
		for ; bits != 0; bits &= bits - 1 {
			i := first(w, bits)
			switch {
			case p.avail[i] < best:
				best, ties, rarest = p.avail[i], 1, i
			case p.avail[i] == best:
				// Reservoir sampling: each of the ties is equally likely.
				if ties++; p.rng.IntN(ties) == 0 {
					rarest = i
				}
			}
		}
		return true
	})
	return rarest
}
