package picker

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
)

// seeded returns a random source whose seed stands in the log of a test that fails.
func seeded(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// check compares what the picker counts with what it can be counted from.
func (p *Picker) check(t *testing.T) {
	sum, flying, avail := 0, map[piece.Index]bool{}, make([]uint16, p.layout.Count())
	require.Len(t, p.order, len(p.neighbours))
	for _, id := range p.order {
		n := p.neighbours[id]
		sum += n.outstanding()
		for _, f := range n.requested {
			i := f.piece
			flying[i] = true
		}
		for i := range piece.Index(p.layout.Count()) {
			if n.have.Has(i) {
				avail[i]++
			}
		}
	}
	require.Equal(t, sum, p.Outstanding(), "outstanding")
	require.Equal(t, avail, p.avail, "availability")
	for i := range piece.Index(p.layout.Count()) {
		if flying[i] != p.InFlight(i) {
			require.Equal(t, flying[i], p.InFlight(i), "piece %d flying", i)
		}
	}
}

func TestNothingIsAskedForThatMakesNoSense(t *testing.T) {
	r := seeded(t)
	for range 60 {
		count := 1 + r.IntN(80)
		cfg := Config{RequestsMax: 1 + r.IntN(10), PerNeighbour: 1 + r.IntN(3), Seed: r.Uint64()}
		have := piece.NewBitmap(count)
		for range r.IntN(count) {
			have.Set(piece.Index(r.IntN(count)))
		}
		p := New(cfg, piece.Layout{Length: int64(count), PieceSize: 1}, have)
		now := begin
		wanted := piece.NewBitmap(count)
		rewant := func() {
			wanted = piece.NewBitmap(count)
			for i := r.IntN(count); i < count; i++ {
				wanted.Set(piece.Index(i))
			}
			p.Want(wanted)
		}
		rewant()
		anyNeighbour := func() (Neighbour, *neighbour) {
			if len(p.order) == 0 {
				return -1, &neighbour{}
			}
			id := p.order[r.IntN(len(p.order))]
			return id, p.neighbours[id]
		}
		for step := range Neighbour(300) {
			i := piece.Index(r.IntN(count))
			id, n := anyNeighbour()
			switch r.IntN(14) {
			case 0, 1:
				p.Join(step, r.IntN(4) == 0)
				for range r.IntN(count + 1) {
					p.Has(step, piece.Index(r.IntN(count)))
				}
			case 2:
				if r.IntN(3) == 0 {
					p.Leave(id)
				}
			case 3:
				p.Has(id, i)
			case 4:
				p.Lacks(id, i)
			case 5:
				p.Busy(id, now.Add(time.Duration(r.IntN(50))*time.Millisecond))
			case 6:
				now = now.Add(time.Duration(r.IntN(20)) * time.Millisecond)
			case 7, 8: // a piece arrives, or does not
				if len(n.requested) > 0 {
					got := n.requested[r.IntN(len(n.requested))].piece
					if r.IntN(2) == 0 {
						p.Received(id, got, now.Add(-time.Duration(r.IntN(9))*time.Millisecond), now)
					}
					p.Ended(id, got)
					if r.IntN(4) > 0 {
						p.Stored(got)
					}
				}
			case 9:
				if len(n.anys) > 0 && r.IntN(2) == 0 {
					p.Chosen(id, i)
				} else {
					p.Refused(id)
				}
			case 10:
				p.Urgent([]piece.Index{i, piece.Index(r.IntN(count))})
			case 11:
				if r.IntN(8) == 0 {
					rewant()
				}
			case 12:
				if r.IntN(8) == 0 {
					p.Lost(i)
				}
				p.Ended(id, i) // maybe of a request that there is not
			case 13:
				p.SetSeed(id, r.IntN(2) == 0)
			}
			p.check(t)
			for {
				q, ok := p.Next(now)
				if !ok {
					break
				}
				n := p.neighbours[q.From]
				require.NotNil(t, n, "requests from a neighbour that left")
				require.False(t, n.busyUntil.After(now), "requests from a busy neighbour")
				limit := cfg.PerNeighbour
				if len(p.order) == 1 {
					limit++
					if p.layout.Count() <= fewPieces && n.have.Full() {
						limit = max(limit, cfg.RequestsMax)
					}
				}
				if len(p.order) == 1 || !n.seed {
					limit = max(limit, n.path.window(p.layout.PieceSize)+1)
				}
				require.Less(t, n.outstanding(), limit, "asks too much of one neighbour")
				used := 0
				for id, n := range p.neighbours {
					if n.outstanding() > 0 && id != q.From {
						used++
					}
				}
				require.Less(t, used, max(cfg.RequestsMax, used*flag(n.outstanding() > 0)+1),
					"asks too many neighbours at once")
				if q.Any {
					require.True(t, n.seed, "leaves the choice to who does not choose")
					require.True(t, p.WantsAll(), "would get what it does not want")
				} else {
					require.True(t, n.have.Has(q.Piece), "asks for what the neighbour lacks")
					require.False(t, p.have.Has(q.Piece), "asks for what is here")
					require.False(t, p.flying.Has(q.Piece), "asks for what is on its way")
					require.True(t, wanted.Has(q.Piece) || q.Urgent, "requests an unwanted piece")
				}
				p.Requested(q)
				p.check(t)
			}
			require.False(t, p.Starving() && p.Outstanding() > 0)
		}
		for len(p.order) > 0 {
			p.Leave(p.order[0])
			p.check(t)
		}
		assert.Zero(t, p.Outstanding())
		assert.Zero(t, p.flying.Count())
	}
}

func TestTheSameSeedDecidesTheSame(t *testing.T) {
	play := func(seed uint64) (log []Request) {
		p := New(Config{Seed: seed, RequestsMax: 20}, piece.Layout{Length: 100, PieceSize: 1}, piece.NewBitmap(100))
		all := piece.NewBitmap(100)
		all.SetAll()
		p.Want(all)
		for id := range Neighbour(10) {
			p.Join(id, false)
			for i := range piece.Index(100) {
				if (int(i)+int(id))%3 > 0 {
					p.Has(id, i)
				}
			}
		}
		for {
			r, ok := p.Next(begin)
			if !ok {
				return log
			}
			p.Requested(r)
			log = append(log, r)
		}
	}
	assert.Equal(t, play(7), play(7))
	assert.NotEqual(t, play(7), play(8))
}

// The bound holds for neighbours that have other sources.
func TestASeedSendsEachPieceTwiceAtMost(t *testing.T) {
	r := seeded(t)
	for range 100 {
		count := 1 + r.IntN(200)
		s := NewSpread(count, CopiesMax)
		offer := piece.NewBitmap(count)
		offer.SetAll()
		sent := make([]int, count)
		for range 3 * count {
			i, ok := s.Pick(offer, piece.NewBitmap(count), nil, false)
			if !ok {
				break
			}
			least := slices.Min(sent)
			require.Equal(t, least, sent[i], "piece %d of %v is not one sent least", i, sent)
			sent[i]++
			s.Sent(i)
		}
		for i := range sent {
			require.Equal(t, CopiesMax, sent[i], "piece %d", i)
		}
		assert.True(t, s.All())
		_, ok := s.Pick(offer, piece.NewBitmap(count), nil, true)
		assert.True(t, ok, "an asker without other sources gets more")
		s.Unsent(0)
		i, ok := s.Pick(offer, piece.NewBitmap(count), nil, false)
		assert.True(t, ok && i == 0, "a copy that did not arrive does not count")
	}
}

// Nor does it pick a piece that the neighbour receives from another host.
func TestASeedPicksNoPieceThatTheNeighbourHas(t *testing.T) {
	r := seeded(t)
	for range 500 {
		count := 1 + r.IntN(130)
		s := NewSpread(count, CopiesMax)
		offer, asker := piece.NewBitmap(count), piece.NewBitmap(count)
		var exclude []piece.Index
		useful := map[piece.Index]bool{}
		for i := range piece.Index(count) {
			in, out, ex := r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(8) == 0
			if in {
				offer.Set(i)
			}
			if out {
				asker.Set(i)
			}
			if ex {
				exclude = append(exclude, i)
			}
			if in && !out && !ex {
				useful[i] = true
			}
		}
		i, ok := s.Pick(offer, asker, exclude, true)
		require.Equal(t, len(useful) > 0, ok)
		if ok {
			require.True(t, useful[i], "piece %d", i)
		}
		s.Sent(piece.Index(count + 5)) // no piece of this content
	}
}
