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
	// Slow is how many nodes have an uplink that is SlowBy times slower than the others'.
	Slow   int
	SlowBy float64
	// ZonePieceTime is how long one piece takes into or out of a zone; 0 when there is one
	// zone, or no limit.
	ZonePieceTime time.Duration
	// Stagger is when the last node starts.
	Stagger time.Duration
}

// Makespan is the bound on the time until the last node has everything.
func (b Bound) Makespan() time.Duration {
	n := float64(b.N)
	var have, sum, steps float64
	for total := n * float64(b.K); sum < total; steps++ {
		// Those with the fast uplinks have something first.
		fast := min(have, n-float64(b.Slow))
		sent := min(n, b.Seed+fast)
		if b.Slow > 0 {
			sent = min(n, sent+(have-fast)/b.SlowBy)
		}
		if sum+sent >= total {
			steps += (total - sum) / sent
			break
		}
		sum += sent
		have = min(n, have+sent)
	}
	warm := time.Duration(steps * float64(b.PieceTime))
	// Every zone without the seed takes one copy through its own link, and all leave the
	// seed's zone through its link once at least. Who starts last has the whole content
	// to receive.
	warm = max(warm, time.Duration(b.K)*b.ZonePieceTime, b.Stagger+time.Duration(b.K)*b.PieceTime)
	if b.OriginPieceTime == 0 {
		return warm
	}
	// The last piece leaves the origin at K of its piece-times, and then has to double
	// its way through the crowd; the first one delays everything by one.
	doublings := math.Ceil(math.Log2(n/b.Seed + 1))
	cold := time.Duration(b.K)*b.OriginPieceTime + time.Duration(doublings)*b.PieceTime
	return max(cold, warm+b.OriginPieceTime)
}
