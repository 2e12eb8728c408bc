package picker

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
)

// The picker tells a seed that it depends on seeds only if pieces arrive slowly and the link of this host has room.
func TestSeedsOnlyNeedsSlowPeersAndAFreeLink(t *testing.T) {
	const (
		ms       = time.Millisecond
		seed     = Neighbour(0)
		peer     = Neighbour(1)
		farSeed  = Neighbour(2)
		farPeer  = Neighbour(3)
		pieces   = 100
		lastOdd  = piece.Index(pieces - 1) // a shorter piece
		whatever = piece.Index(0)
	)
	type came struct {
		n     int
		from  Neighbour
		piece piece.Index
		took  time.Duration
		every time.Duration
	}
	for name, c := range map[string]struct {
		crawl float64
		came  []came
		want  bool
	}{
		"nothing came yet": {},
		"a crowd of slow uplinks": {came: []came{{2, seed, whatever, 5 * ms, 20 * ms},
			{8, peer, whatever, 100 * ms, 50 * ms}}, want: true},
		"one piece from a seed will do": {came: []came{{8, peer, whatever, 100 * ms, 50 * ms},
			{1, seed, whatever, 5 * ms, 50 * ms}}, want: true},
		"three from others will not": {came: []came{{2, seed, whatever, 5 * ms, 20 * ms},
			{3, peer, whatever, 100 * ms, 50 * ms}}},
		"no seed sent anything":   {came: []came{{20, peer, whatever, 100 * ms, 50 * ms}}},
		"only a seed sent pieces": {came: []came{{20, seed, whatever, 5 * ms, 50 * ms}}},
		"a healthy crowd: all share our link": {came: []came{{4, seed, whatever, 25 * ms, 5 * ms},
			{20, peer, whatever, 25 * ms, 5 * ms}}},
		"its first doublings: pieces are rare, not slow": {came: []came{{2, seed, whatever, 5 * ms, 80 * ms},
			{6, peer, whatever, 10 * ms, 80 * ms}}},
		"a slow registry: pieces are rare, not slow": {came: []came{{2, seed, whatever, 5 * ms, 50 * ms},
			{20, peer, whatever, 8 * ms, 50 * ms}}},
		"a slow downlink: everything is slow": {came: []came{{2, seed, whatever, 100 * ms, 30 * ms},
			{20, peer, whatever, 100 * ms, 30 * ms}}},
		"uplinks slow, but together they fill our link": {came: []came{{2, seed, whatever, 25 * ms, 5 * ms},
			{20, peer, whatever, 100 * ms, 5 * ms}}},
		"a few slow ones among many": {came: []came{{4, seed, whatever, 10 * ms, 5 * ms},
			{10, peer, whatever, 10 * ms, 5 * ms}, {1, peer, whatever, 200 * ms, 5 * ms},
			{4, peer, whatever, 10 * ms, 5 * ms}}},
		"others recovered": {came: []came{{2, seed, whatever, 5 * ms, 20 * ms}, {8, peer, whatever, 100 * ms, 50 * ms},
			{40, peer, whatever, 10 * ms, 5 * ms}}},
		"what another zone's peers send does not count": {came: []came{{2, seed, whatever, 5 * ms, 20 * ms},
			{8, farPeer, whatever, 100 * ms, 50 * ms}}},
		"what another zone's seed sends does not count": {came: []came{{2, farSeed, whatever, 5 * ms, 20 * ms},
			{8, peer, whatever, 100 * ms, 50 * ms}}},
		"a short piece is no measure": {came: []came{{1, seed, lastOdd, 5 * ms, 20 * ms},
			{8, peer, whatever, 100 * ms, 50 * ms}}},
		"it can be turned off": {crawl: -1, came: []came{{2, seed, whatever, 5 * ms, 20 * ms},
			{8, peer, whatever, 100 * ms, 50 * ms}}},
		"twice as long is not a crawl": {came: []came{{2, seed, whatever, 5 * ms, 20 * ms},
			{8, peer, whatever, 10 * ms, 50 * ms}}},
		"twice as long is one where the setting says so": {crawl: 1.5,
			came: []came{{2, seed, whatever, 5 * ms, 20 * ms}, {8, peer, whatever, 10 * ms, 50 * ms}}, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := New(Config{Crawl: c.crawl}, piece.Layout{Length: pieces*10 - 1, PieceSize: 10},
				piece.NewBitmap(pieces))
			all := piece.NewBitmap(pieces)
			all.SetAll()
			p.Want(all)
			p.Join(seed, true)
			p.Join(peer, false)
			p.Join(farSeed, true)
			p.Join(farPeer, false)
			p.Put(farSeed, Place{Afar: true})
			p.Put(farPeer, Place{Afar: true})
			now := begin
			for _, came := range c.came {
				for range came.n {
					now = now.Add(came.every)
					p.Received(came.from, came.piece, now.Add(-came.took), now)
				}
			}
			p.Received(Neighbour(9), whatever, now, now) // a neighbour that left does not count
			// The peer has a piece, so that the host does not depend on seeds; it is busy, so that
			// the seed is asked.
			p.Has(peer, 1)
			p.Has(seed, 2)
			p.Busy(peer, now.Add(time.Minute))
			r, ok := p.Next(now)
			require.True(t, ok && r.Any && r.From == seed, "the seed is asked")
			assert.Equal(t, c.want, r.SeedsOnly)
		})
	}
}
