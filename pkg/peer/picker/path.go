package picker

import (
	"math"
	"time"

	"github.com/darter-io/darter/pkg/piece"
)

const (
	// windowGain is how many times the measured bandwidth × delay is requested. Twice lets the window double in each
	// round trip until the rate stops growing, and then keeps one more round trip of requests at the sender.
	windowGain = 2
	// windowBytes bounds the requests in flight to one neighbour. A receiver holds the bytes of one piece per neighbour,
	// because the pieces of a connection come one after the other, so this costs no memory.
	windowBytes = 64 << 20
	// windowMax is the same in requests.
	windowMax = 256
	// rateOver is how many round trips a highest rate counts.
	rateOver = 10
)

// flight is a request in flight.
type flight struct {
	piece piece.Index // unknown for a request without index
	at    time.Time   // when it was sent
	of    int         // how many pieces had come from this neighbour then
}

// path measures the connection to one neighbour: the shortest time from a request to its first byte, and the highest
// rate of pieces over a round trip.
type path struct {
	trip time.Duration
	came int // pieces
	// best and before are the highest rates, in pieces per second, of this span of time and of the one before.
	best, before float64
	until        time.Time
}

// arrived records a piece that was requested at f.at, with its first byte at begun and its last one now.
func (w *path) arrived(f flight, begun, now time.Time) {
	w.came++
	if f.at.IsZero() || !now.After(f.at) {
		return
	}
	if trip := max(begun.Sub(f.at), 0); w.trip == 0 || trip < w.trip {
		w.trip = trip
	}
	if now.After(w.until) {
		w.before, w.best, w.until = w.best, 0, now.Add(rateOver*now.Sub(f.at))
	}
	w.best = max(w.best, float64(w.came-f.of)/now.Sub(f.at).Seconds())
}

// window returns how many requests fill the path, of pieces of the given size. It is 0 without a measurement.
func (w *path) window(pieceSize int64) int {
	n := windowGain * max(w.best, w.before) * w.trip.Seconds()
	most := min(windowMax, max(1, windowBytes/max(1, pieceSize)))
	return int(min(math.Ceil(n), float64(most)))
}

// limit returns how many requests neighbour n may have in flight, of which there are helpers that can send something.
//
// A request that waits at one neighbour could be served by another one. So the neighbours share what the longest path
// needs: the more of them can help, the fewer requests each of them gets.
func (p *Picker) limit(n *neighbour, helpers int) int {
	limit := p.cfg.PerNeighbour
	if len(p.order) == 1 {
		limit++
		if k := p.layout.Count(); k > 1 && k <= fewPieces && n.have.Full() {
			limit = max(limit, p.cfg.RequestsMax) // the round trips dominate the time of a small task
		}
	}
	window := n.path.window(p.layout.PieceSize)
	if n.seed && len(p.order) > 1 {
		return limit
	}
	if helpers > 1 {
		window = min(window, p.share(helpers))
	}
	if len(p.order) == 1 && window > 1 {
		window++
	}
	return max(limit, window)
}

// share returns an equal part of the requests that fill this host's link over the longest of its paths.
func (p *Picker) share(helpers int) int {
	rate, trip := 0.0, time.Duration(0)
	for _, n := range p.neighbours {
		trip = max(trip, n.path.trip)
	}
	if p.flow.apart.n > 0 && p.flow.apart.of > 0 {
		rate = 1 / p.flow.apart.of.Seconds()
	}
	return int(math.Ceil(windowGain * rate * trip.Seconds() / float64(helpers)))
}
