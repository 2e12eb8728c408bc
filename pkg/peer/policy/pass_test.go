package policy

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/pkg/piece"
)

func TestPass(t *testing.T) {
	const m = 1 << 20
	for name, c := range map[string]struct {
		size    int64
		readers []Position
		want    []Span
	}{
		"nobody reads":             {m, nil, nil},
		"one reader":               {m, []Position{{10 * m, 100 * m}}, []Span{{10, 14}}},
		"in the middle of a piece": {m, []Position{{10*m + 5, 100 * m}}, []Span{{10, 15}}},
		"near its end":             {m, []Position{{10 * m, 11*m + 1}}, []Span{{10, 12}}},
		"at its end":               {m, []Position{{11 * m, 11 * m}}, nil},
		"large pieces":             {4 * m, []Position{{0, 100 * m}}, []Span{{0, 4}}},
		"two share":                {m, []Position{{0, 100 * m}, {50 * m, 100 * m}}, []Span{{0, 2}, {50, 52}}},
		"the fifth gets piece by piece": {m, []Position{{0, 100 * m}, {10 * m, 100 * m}, {20 * m, 100 * m},
			{30 * m, 100 * m}, {40 * m, 100 * m}}, []Span{{0, 1}, {10, 11}, {20, 21}, {30, 31}, {40, 41}}},
	} {
		t.Run(name, func(t *testing.T) {
			layout := piece.Layout{Length: 100 * m, PieceSize: c.size}
			want := piece.NewBitmap(layout.Count())
			for _, s := range c.want {
				for i := s.First; i < s.End; i++ {
					want.Set(i)
				}
			}
			assert.Equal(t, want.Words(), Pass(layout, c.readers).Words())
		})
	}
}

// However many read, an object takes a bounded piece of memory, and the oldest readers go on.
func TestPassIsBounded(t *testing.T) {
	const m = 1 << 20
	for _, size := range []int64{m / 8, m, 4 * m} {
		layout := piece.Layout{Length: 1000 * size, PieceSize: size}
		var readers []Position
		for n := range int64(500) {
			readers = append(readers, Position{2*n*size + 1, layout.Length})
		}
		wanted := Pass(layout, readers)
		assert.LessOrEqual(t, int64(wanted.Count())*size, int64(48*m))
		for n := range 8 {
			assert.True(t, wanted.Has(piece.Index(2*n)), "reader %d, pieces of %d", n, size)
		}
	}
}
