package picker

import (
	"time"

	"github.com/darter-io/darter/pkg/piece"
)

const (
	// crawlAfter is how many pieces must have come from others than seeds before they can be
	// said to crawl.
	crawlAfter = 4
	// flowOver is over how many pieces a mean is taken.
	flowOver = 8
)

// flow is how fast pieces come: what of it tells a crowd whose uplinks are slow, which needs
// its seed, from every other, which only needs a moment.
type flow struct {
	// seeds and others are the times from a piece's first byte to its last, by the kind of its source.
	// Its wait before that is not in it: it says how many want the sender, not how slow it is.
	seeds, others mean
	// apart is the time from one piece to the next, from any source.
	apart mean
	last  time.Time
}

// mean is a moving one.
type mean struct {
	of time.Duration
	n  int
}

func (m *mean) add(d time.Duration) {
	m.n = min(m.n+1, flowOver)
	m.of += (d - m.of) / time.Duration(m.n)
}

// took takes in a piece that came, and since when it did.
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

// crawls reports whether a piece takes more than crawl times as long from others as from a seed,
// and all of them together bring less than a seed alone would.
//
// Either alone is no reason. Pieces take long, too, where many share a link of ours that is full; and
// they are rare where all are new, at the start, or where the origin is slow: there a seed has
// nothing more to give, and what it gave doubles by itself.
func (f *flow) crawls(crawl float64) bool {
	if f.seeds.n == 0 || f.others.n < crawlAfter || crawl < 0 {
		return false
	}
	return float64(f.others.of) > crawl*float64(f.seeds.of) && f.apart.of > f.seeds.of
}

// Received notes that piece i came from n, and its first byte at begun. What crosses the border of
// a zone tells nothing, because of the link between zones; nor does a piece that is shorter
// than the others.
func (p *Picker) Received(n Neighbour, i piece.Index, begun, now time.Time) {
	if one := p.neighbours[n]; one != nil && !one.afar && p.layout.Size(i) == p.layout.PieceSize {
		p.flow.took(one.seed, begun, now)
	}
}
