package simnet

import (
	"math"
	"time"
)

// Bound is the least time in which physics lets a crowd finish.
//
// In each piece-time the seed sends at most Seed pieces and every node that held a piece
// at its beginning one more, so the number of copies grows at most as
// a' = min(N, a + min(N, Seed + a)), and all N·K of them are there no sooner than their sum
// reaches N·K (Mundinger, Weber, Weiss 2008, with a seed of several uplinks).
type Bound struct {
	N, K int
	// PieceTime is how long one piece takes on a node's link.
	PieceTime time.Duration
	// Seed is the seed's uplink in uplinks of a node.
	Seed float64
	// OriginPieceTime is how long one piece takes from the origin; 0 when the seed holds
	// everything at the start.
	OriginPieceTime time.Duration
}

// Makespan is the bound on the time until the last node has everything.
func (b Bound) Makespan() time.Duration {
	n := float64(b.N)
	var have, sum, steps float64
	for total := n * float64(b.K); sum < total; steps++ {
		sent := min(n, b.Seed+have)
		if sum+sent >= total {
			steps += (total - sum) / sent
			break
		}
		sum += sent
		have = min(n, have+sent)
	}
	warm := time.Duration(steps * float64(b.PieceTime))
	if b.OriginPieceTime == 0 {
		return warm
	}
	// The last piece leaves the origin at K of its piece-times, and then has to double
	// its way through the crowd; the first one delays everything by one.
	doublings := math.Ceil(math.Log2(n/b.Seed + 1))
	cold := time.Duration(b.K)*b.OriginPieceTime + time.Duration(doublings)*b.PieceTime
	return max(cold, warm+b.OriginPieceTime)
}
