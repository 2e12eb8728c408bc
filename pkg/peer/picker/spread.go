package picker

import (
	"math"
	"math/bits"
	"slices"

	"github.com/darter-io/darter/pkg/piece"
)

func first(word int, set uint64) piece.Index {
	return piece.Index(word*64 + bits.TrailingZeros64(set))
}

// Spread chooses for a seed which piece an asker gets that takes any: the one that the
// seed has sent least, so that distinct pieces leave it first and the swarm multiplies
// them; among equals the lowest, because readers wait for it. Pure, like a Picker.
type Spread struct {
	sent   []uint16
	copies int
}

// CopiesMax is how often a seed usually sends one piece to askers that have other sources:
// the swarm makes the other copies. More would only move work from the peers to the seed. Askers
// whose other sources crawl say that they starve, and get more: see [Picker.Received].
const CopiesMax = 2

// NewSpread returns a spread over n pieces, none of them sent, of which each is sent so many
// times to askers that have other sources.
func NewSpread(n, copies int) *Spread { return &Spread{sent: make([]uint16, n), copies: copies} }

// Pick chooses among the pieces in offer that the asker lacks, less those excluded. ok is
// false when there is none, or when all of them were sent often enough and the asker
// does not starve.
func (s *Spread) Pick(offer, asker piece.Bitmap, exclude []piece.Index, starving bool) (pick piece.Index, ok bool) {
	best := s.copies
	if starving {
		best = math.MaxInt
	}
	theirs := asker.Words()
	for w, set := range offer.Words() {
		if w < len(theirs) {
			set &^= theirs[w]
		}
		for ; set != 0; set &= set - 1 {
			if i := first(w, set); int(s.sent[i]) < best && !slices.Contains(exclude, i) {
				best, pick, ok = int(s.sent[i]), i, true
			}
		}
	}
	return pick, ok
}

// Sent counts one more copy of piece i on its way out.
func (s *Spread) Sent(i piece.Index) {
	if int(i) < len(s.sent) && s.sent[i] < ^uint16(0) {
		s.sent[i]++
	}
}

// Unsent takes back a copy that did not arrive.
func (s *Spread) Unsent(i piece.Index) {
	if int(i) < len(s.sent) && s.sent[i] > 0 {
		s.sent[i]--
	}
}

// All reports whether every piece was sent at least once.
func (s *Spread) All() bool { return !slices.Contains(s.sent, 0) }
