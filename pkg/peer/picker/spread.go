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

// Spread chooses the piece that a seed sends for a request without index: the piece that the seed has sent least often,
// so that it sends distinct pieces first and the swarm copies them. Of equal pieces it chooses the lowest, because
// readers wait for it. Pure, like a Picker.
type Spread struct {
	sent   []uint16
	copies int
}

// CopiesMax is how often a seed sends one piece to neighbours that have other sources: the swarm makes the other
// copies. More copies would only move work from the peers to the seed. A neighbour without other sources, or with slow
// ones, reports that it depends on seeds, and gets more: see [Picker.Received].
const CopiesMax = 2

// NewSpread returns a Spread of n unsent pieces. It sends each at most copies times to neighbours that have other
// sources.
func NewSpread(n, copies int) *Spread { return &Spread{sent: make([]uint16, n), copies: copies} }

// Pick chooses a piece of offer that the asking neighbour lacks and does not exclude. ok is false if there is none, or
// if all of them were sent often enough and the neighbour has other sources.
func (s *Spread) Pick(offer, asker piece.Bitmap, exclude []piece.Index, seedsOnly bool) (pick piece.Index, ok bool) {
	best := s.copies
	if seedsOnly {
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

// Sent counts one more sent copy of piece i.
func (s *Spread) Sent(i piece.Index) {
	if int(i) < len(s.sent) && s.sent[i] < ^uint16(0) {
		s.sent[i]++
	}
}

// Unsent removes a copy that did not arrive from the count.
func (s *Spread) Unsent(i piece.Index) {
	if int(i) < len(s.sent) && s.sent[i] > 0 {
		s.sent[i]--
	}
}

// All reports whether every piece was sent at least once.
func (s *Spread) All() bool { return !slices.Contains(s.sent, 0) }
