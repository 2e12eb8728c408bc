package picker

import (
	"time"

	"github.com/darter-io/darter/pkg/piece"
)

const (
	// crawlAfter is how many pieces must have arrived from other hosts than seeds before crawls can be true.
	crawlAfter = 4
	// flowOver is the number of pieces in a moving mean.
	flowOver = 8
)

// flow measures how fast pieces arrive. It distinguishes a crowd with slow uplinks, which needs more copies from its
// seed, from other crowds, which only need some time.
type flow struct {
	// seeds and others are the mean times from a piece's first byte to its last, by the kind of its source. The wait
	// for the first byte is left out, because it depends on the number of the sender's requests and not on its speed.
	seeds, others mean
	// apart is the mean time between two pieces, from any source.
	apart mean
	last  time.Time
}

// mean is a moving mean.
type mean struct {
	of time.Duration
	n  int
}

func (m *mean) add(d time.Duration) {
	m.n = min(m.n+1, flowOver)
	m.of += (d - m.of) / time.Duration(m.n)
}

// took records a piece that arrived between begun and now.
func (f *flow) took(seed bool, begun, now time.Time) {
	if seed {
		f.seeds.add(now.Sub(begun))
	} else {
		f.others.add(now.Sub(begun))
	}
	if !f.last.IsZero() {
		f.apart.add(now.Sub(f.last))
	}
	f.last = now
}

// crawls reports whether a piece takes more than crawl times as long from other hosts as from a seed, and all of them
// together send less than a seed alone would.
//
// Neither condition suffices alone. Pieces also take long if many share this host's full link. Pieces are also rare at
// the start, when all hosts are new, or if the origin is slow: the seed then has no more pieces, and the swarm doubles
// the copies by itself.
func (f *flow) crawls(crawl float64) bool {
	if f.seeds.n == 0 || f.others.n < crawlAfter || crawl < 0 {
		return false
	}
	return float64(f.others.of) > crawl*float64(f.seeds.of) && f.apart.of > f.seeds.of
}

// Received records that piece i arrived from n, with its first byte at begun; call it before [Picker.Ended]. A piece
// that is shorter than the others does not count. One from another zone does not show how fast this zone's hosts are,
// because the link between the zones limits it.
func (p *Picker) Received(n Neighbour, i piece.Index, begun, now time.Time) {
	one := p.neighbours[n]
	if one == nil || p.layout.Size(i) != p.layout.PieceSize {
		return
	}
	if at := one.asked(i); at >= 0 {
		one.path.arrived(one.requested[at], begun, now)
	}
	if !one.afar {
		p.flow.took(one.seed, begun, now)
	}
}
