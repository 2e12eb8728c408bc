package simnet

import (
	"math"
	"time"
)

// Bound is the shortest time in which the links let a crowd finish.
//
// In each piece-time the seed sends at most Seed pieces, and every node that held a piece at the start of it sends one.
// So the number of copies grows at most as a' = min(N, a + min(N, Seed + a)), and the N·K copies exist at the earliest
// when the sum reaches N·K (Mundinger, Weber, Weiss 2008, with a seed of several uplinks).
type Bound struct {
	N, K int
	// PieceTime is how long one piece takes on a node's link.
	PieceTime time.Duration
	// Seed is the rate of the seed's uplink, in units of a node's.
	Seed float64
	// OriginPieceTime is how long one piece takes from the origin; 0 if the seed holds everything from the start.
	OriginPieceTime time.Duration
	// Slow is the number of nodes whose uplink is SlowBy times slower than that of the others.
	Slow   int
	SlowBy float64
	// ZonePieceTime is how long one piece takes into or out of a zone; 0 for one zone, or no limit.
	ZonePieceTime time.Duration
	// Stagger is when the last node starts.
	Stagger time.Duration
}

// Makespan returns the bound on the time until the last node has everything.
func (b Bound) Makespan() time.Duration {
	n := float64(b.N)
	var have, sum, steps float64
	for total := n * float64(b.K); sum < total; steps++ {
		// In the best case, the nodes with fast uplinks get the first pieces.
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
	// Every other zone receives one copy through its own link, and each piece leaves the seed's zone through its link
	// at least once. The last node starts at Stagger and then receives the whole task.
	warm = max(warm, time.Duration(b.K)*b.ZonePieceTime, b.Stagger+time.Duration(b.K)*b.PieceTime)
	if b.OriginPieceTime == 0 {
		return warm
	}
	// The last piece arrives from the origin after K of its piece-times; then its copies double until every node has
	// one. The first piece delays everything by one piece-time of the origin.
	doublings := math.Ceil(math.Log2(n/b.Seed + 1))
	cold := time.Duration(b.K)*b.OriginPieceTime + time.Duration(doublings)*b.PieceTime
	return max(cold, warm+b.OriginPieceTime)
}
