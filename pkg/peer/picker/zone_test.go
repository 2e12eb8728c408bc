package picker

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/piece"
)

const zonePieces = 400

func gatewayID(i int) host.ID { return host.ID(fmt.Sprintf("%032x", i)) }

// afar is a neighbour in another zone that has everything.
const afar Neighbour = 99

// gatewayOf returns the picker of one of n gateways, which all know each other.
func gatewayOf(self, n int) *Picker {
	p := New(Config{Seed: 1}, piece.Layout{Length: zonePieces, PieceSize: 1}, piece.NewBitmap(zonePieces))
	all := piece.NewBitmap(zonePieces)
	all.SetAll()
	p.Want(all)
	p.Role(gatewayID(self), true)
	for i := range n {
		if i != self {
			p.Join(Neighbour(i), false)
			p.Put(Neighbour(i), Place{Gateway: true, ID: gatewayID(i)})
		}
	}
	p.Join(afar, false)
	p.Put(afar, Place{Afar: true, Gateway: true, ID: gatewayID(int(afar))})
	for i := range piece.Index(zonePieces) {
		p.Has(afar, i)
	}
	return p
}

// fetches is what a picker asks its neighbour afar for, when everything comes at once.
func fetches(p *Picker, now time.Time) piece.Bitmap {
	out := piece.NewBitmap(zonePieces)
	for {
		r, ok := p.Next(now)
		if !ok {
			return out
		}
		if r.From == afar {
			out.Set(r.Piece)
		}
		p.Requested(r)
		p.Ended(r.From, r.Piece)
		p.Stored(r.Piece)
	}
}

func TestEveryPieceHasOneGateway(t *testing.T) {
	all := piece.NewBitmap(zonePieces)
	for i := range 8 {
		mine := fetches(gatewayOf(i, 8), begin)
		assert.InDelta(t, zonePieces/8, mine.Count(), zonePieces/16, "the share of gateway %d", i)
		for j := range piece.Index(zonePieces) {
			assert.False(t, mine.Has(j) && all.Has(j), "piece %d has another gateway than %d", j, i)
		}
		all.Add(mine)
	}
	assert.True(t, all.Full(), "every piece has a gateway")
}

func TestGatewaysShareThePiecesOfOneThatLeaves(t *testing.T) {
	before, after := piece.NewBitmap(zonePieces), piece.NewBitmap(zonePieces)
	for i := range 7 {
		own := fetches(gatewayOf(i, 8), begin)
		before.Add(own)
		p := gatewayOf(i, 8)
		p.Next(begin)
		p.Leave(7)
		more := fetches(p, begin)
		after.Add(more)
		for j := range piece.Index(zonePieces) {
			assert.True(t, !own.Has(j) || more.Has(j), "gateway %d keeps piece %d", i, j)
		}
		assert.Greater(t, more.Count(), own.Count())
	}
	assert.False(t, before.Full())
	assert.True(t, after.Full())
}

// Other hosts fetch the pieces of a gateway that brings none, until it brings one.
func TestASilentGatewayIsReplaced(t *testing.T) {
	p := gatewayOf(0, 2)
	own := fetches(p, begin)
	require.Less(t, own.Count(), zonePieces)
	others := func() (list []piece.Index) {
		for i := range piece.Index(zonePieces) {
			if !own.Has(i) {
				list = append(list, i)
			}
		}
		return list
	}()
	brings := func() { p.Has(1, others[0]); others = others[1:] }

	now := begin.Add(patienceMax - time.Millisecond)
	assert.Zero(t, fetches(p, now).Count(), "the other gateway has time")
	brings()
	now = now.Add(surveyEvery)
	assert.Zero(t, fetches(p, now).Count(), "it works")
	now = now.Add(patienceMax - time.Millisecond)
	assert.Zero(t, fetches(p, now).Count(), "it has time again")
	now = now.Add(surveyEvery)
	r, ok := p.Next(now)
	require.True(t, ok, "now it is given up")
	assert.Equal(t, afar, r.From)
	assert.Contains(t, others, r.Piece)
	p.Requested(r)
	p.Ended(r.From, r.Piece)
	p.Stored(r.Piece)
	for others[0] == r.Piece {
		others = others[1:]
	}
	brings()
	now = now.Add(surveyEvery)
	assert.Zero(t, fetches(p, now).Count(), "it works again, so its pieces are its own")
}

// Another host asks hosts of other zones only after it received nothing for long.
func TestOnlyGatewaysAskOtherZones(t *testing.T) {
	p := gatewayOf(0, 3)
	p.Role(gatewayID(0), false)
	for _, late := range []time.Duration{0, time.Second, patienceMax} {
		_, ok := p.Next(begin.Add(late))
		assert.False(t, ok, "after %s", late)
	}
	p.Urgent([]piece.Index{7})
	_, ok := p.Next(begin.Add(patienceMax))
	assert.False(t, ok, "not even for a reader")
	r, ok := p.Next(begin.Add(2*patienceMax + time.Second))
	require.True(t, ok, "a reader that waits for ever is worse")
	assert.Equal(t, afar, r.From)
	assert.EqualValues(t, 7, r.Piece)
}

func TestPiecesOfThisZoneAreNotFetchedFromOthers(t *testing.T) {
	p := gatewayOf(0, 1)
	p.Join(1, false)
	for i := range piece.Index(zonePieces - 1) {
		p.Has(1, i)
	}
	r, ok := p.Next(begin)
	p.Requested(r)
	require.True(t, ok)
	next, ok := p.Next(begin)
	require.True(t, ok)
	if r.From != afar {
		r, next = next, r
	}
	assert.Equal(t, Request{From: afar, Piece: zonePieces - 1, At: begin}, r)
	assert.EqualValues(t, 1, next.From)
	p.Put(1, Place{Afar: true, Gateway: true, ID: gatewayID(1)})
	assert.True(t, p.Offered(3))
	p.Leave(1)
	assert.Zero(t, p.border.near.Count())
}

func TestAFarSeedIsAskedByIndexForWhatItAloneHas(t *testing.T) {
	p := gatewayOf(0, 1)
	p.Leave(afar)
	p.Join(5, true)
	p.Put(5, Place{Afar: true})
	p.Join(6, false)
	p.Put(6, Place{Afar: true})
	for i := range piece.Index(zonePieces) {
		p.Has(5, i)
		if i != 9 {
			p.Has(6, i)
		}
	}
	var asked []Request
	for range 2 {
		r, ok := p.Next(begin)
		require.True(t, ok)
		p.Requested(r)
		asked = append(asked, r)
	}
	assert.Contains(t, asked, Request{From: 5, Piece: 9, At: begin})
}

// A download that stands still divides its pieces among the gateways once, not in each call of Next: with 25,600 pieces
// and 16 neighbours, that took 10 ms a call.
func TestAStuckDownloadDividesItsPiecesOnce(t *testing.T) {
	p := gatewayOf(0, 8)
	own := fetches(p, begin)
	p.Next(begin.Add(surveyEvery))
	half := begin.Add(patienceMax / 2)
	for n, g := range p.border.others {
		var i piece.Index
		for !g.share.Has(i) {
			i++
		}
		p.Has(n, i) // so that it works
	}
	p.Next(half)
	require.Equal(t, own, p.border.fetch)
	now := half.Add(patienceMax - time.Second)
	p.Busy(afar, now.Add(time.Hour))
	for n := range p.border.others {
		p.Busy(n, now.Add(time.Hour))
	}
	p.Next(now)
	require.True(t, p.border.fetch.Full(), "it asks every neighbour for every piece")

	shares := p.border.others[1].share
	allocs := testing.AllocsPerRun(500, func() {
		now = now.Add(time.Millisecond)
		p.Next(now)
	})
	assert.Less(t, allocs, 1.0, "a division makes bitmaps")
	assert.Same(t, &shares.Words()[0], &p.border.others[1].share.Words()[0], "the shares are the same")
	assert.True(t, p.border.fetch.Full())

	t.Run("and again as soon as a piece comes", func(t *testing.T) {
		var missing piece.Index
		for p.Have().Has(missing) {
			missing++
		}
		p.Stored(missing)
		p.Next(now)
		assert.Equal(t, own, p.border.fetch)
	})
	t.Run("and not when a role is set that it has", func(t *testing.T) {
		p.Role(gatewayID(0), true)
		assert.False(t, p.border.changed)
		p.Role(gatewayID(0), false)
		assert.True(t, p.border.changed)
	})
}

// BenchmarkNextWhenStuck measures a call of Next for 25,600 pieces and 16 neighbours in two zones while nothing comes.
func BenchmarkNextWhenStuck(b *testing.B) {
	const pieces = 25_600
	p := New(Config{Seed: 1}, piece.Layout{Length: pieces, PieceSize: 1}, piece.NewBitmap(pieces))
	all := piece.NewBitmap(pieces)
	all.SetAll()
	p.Want(all)
	p.Role(gatewayID(99), true)
	for k := range 16 {
		p.Join(Neighbour(k), false)
		p.Put(Neighbour(k), Place{Afar: k >= 8, Gateway: true, ID: gatewayID(k)})
	}
	p.Next(begin)
	now := begin.Add(2 * patienceMax)
	p.Next(now)
	for b.Loop() {
		now = now.Add(time.Millisecond)
		p.Next(now)
	}
}
