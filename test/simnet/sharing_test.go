package simnet

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/race"
)

// besides simulates a few nodes that pull a small layer while a crowd pulls a large one, and returns the times of both.
func besides(t *testing.T, crowd, few int, seed float64) (small, large []time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		c := Crowd{PieceSize: size, N: crowd + few, Layers: []int{128, 8}, SeedMultiple: seed, Compare: true,
			Pulls: func(i int) ([]int, time.Duration) {
				if i < crowd {
					return []int{0}, 0
				}
				return []int{1}, 200 * time.Millisecond
			}}
		out, err := c.Run(t.Context())
		require.NoError(t, err)
		require.Empty(t, out.Failed)
		large, small = out.Of[:crowd], out.Of[crowd:]
		slices.Sort(small)
		slices.Sort(large)
	})
	return small, large
}

func TestASmallLayerIsNotStarvedByTheCrowdOfALargeOne(t *testing.T) {
	race.Skip(t, "TestACrowdEndsThoughAHostDies and others run the same engines")
	for name, c := range race.Some(map[string]struct {
		seed float64
		few  int
	}{
		"seed like node, one":   {1, 1},
		"seed like node, eight": {1, 8},
		"seed 4x, one":          {4, 1},
		"seed 4x, eight":        {4, 8},
	}, "seed like node, eight") {
		t.Run(name, func(t *testing.T) {
			alone, _ := besides(t, 0, c.few, c.seed)
			small, large := besides(t, 24, c.few, c.seed)
			t.Logf("last %s alone, %s in the crowd, which takes %s", alone[c.few-1], small[c.few-1], large[23])
			assert.Less(t, small[c.few-1], 4*alone[c.few-1], "half of the uplink, and what is on its way already")
		})
	}
}

// pulled returns how long 8 nodes take for a new layer while the supernode also fetches another layer that no node
// wants, and the bytes that the registry sent until then, in layers.
func pulled(t *testing.T, preheat bool) (took time.Duration, origin float64) {
	synctest.Test(t, func(t *testing.T) {
		c := Crowd{PieceSize: size, N: 8, Layers: []int{256, 256}, OriginRate: 200 * size, Compare: true}
		c.Pulls = func(int) ([]int, time.Duration) { return []int{1}, 100 * time.Millisecond }
		if preheat {
			c.Preheat = []int{0}
		}
		out, err := c.Run(t.Context())
		require.NoError(t, err)
		require.Empty(t, out.Failed)
		took, origin = slices.Max(out.Of), 2*out.OriginCopies
	})
	return took, origin
}

func TestWhatIsReadGoesAheadOfAPreheatThatGoesOn(t *testing.T) {
	alone, _ := pulled(t, false)
	preheated, origin := pulled(t, true)
	t.Logf("%s alone, %s with a preheat; %.2f layers came from the registry meanwhile", alone, preheated, origin)
	assert.Less(t, preheated, alone*5/4, "two that share the registry equally take twice as long")
	assert.Greater(t, origin, 1.1, "the preheat is not starved either")
}
