package sim_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/race"
	"github.com/darter-io/darter/test/sim"
	"github.com/darter-io/darter/test/simnet"
)

// margin is how far a makespan here may be from the one of real engines in virtual time.
const margin = 0.07

func TestTheSimulatorAgreesWithRealEngines(t *testing.T) {
	for name, c := range race.Some(map[string]sim.Crowd{
		"seed 4x": {N: 16, K: 64},
		"seed 1x": {N: 16, K: 64, SeedMultiple: 1},
		"cold":    {N: 16, K: 64, OriginPieceTime: 5 * time.Millisecond},
		"few":     {N: 6, K: 96},
		"no line": {N: 16, K: 64, Lines: 100},
		"slow":    {N: 32, K: 128, Slow: 1},
		"slower":  {N: 32, K: 128, Slow: 1, SlowBy: 4},
	}, "cold") {
		t.Run(name, func(t *testing.T) {
			here := c.Run()
			require.Zero(t, here.Unfinished)
			const pieceSize = 64 << 10 / race.Divisor
			real := simnet.Crowd{N: c.N, K: c.K, PieceSize: pieceSize, SeedMultiple: c.SeedMultiple,
				UploadLines: c.Lines,
				Slow:        c.Slow, SlowBy: c.SlowBy}
			if c.OriginPieceTime > 0 {
				real.OriginRate = pieceSize / c.OriginPieceTime.Seconds()
			}
			synctest.Test(t, func(t *testing.T) {
				o, err := real.Run(t.Context())
				require.NoError(t, err)
				t.Logf("makespan over bound here %.3f, of real engines %.3f; copies from the seed %.2f and %.2f",
					c.Ratio(here),
					real.Ratio(o), here.SeedCopies, o.SeedCopies)
				assert.InEpsilon(t, o.Makespan.Seconds(), here.Makespan.Seconds(), margin)
				assert.InDelta(t, o.SeedCopies, here.SeedCopies, max(0.5, margin*o.SeedCopies))
				assert.Equal(t, real.Bound().Makespan(), c.Bound().Makespan(), "both divide by the same bound")
			})
		})
	}
}

func TestARunRepeatsWithItsSeed(t *testing.T) {
	c := sim.Crowd{N: 40, K: 64, Dead: 0.05, DeadAfter: 100 * time.Millisecond,
		Stagger: 200 * time.Millisecond, Seed: 7}
	first := c.Run()
	assert.Equal(t, first, c.Run())
	c.Seed = 8
	assert.NotEqual(t, first, c.Run())
}

func TestNoNodeStarvesThoughSomeDie(t *testing.T) {
	race.Skip(t, "TestTheSimulatorAgreesWithRealEngines runs the simulator")
	c := sim.Crowd{N: 100, K: 128, Dead: 0.05, DeadAfter: 300 * time.Millisecond}
	o := c.Run()
	require.Zero(t, o.Unfinished)
	assert.Len(t, o.Took, 95)
	assert.Less(t, c.Ratio(o), 1.35)
	t.Logf("makespan over bound %.3f", c.Ratio(o))
}

func TestServingFirstWhoHasLeastEndsACrowdSooner(t *testing.T) {
	race.Skip(t, "TestTheSimulatorAgreesWithRealEngines runs the simulator")
	c := sim.Crowd{N: 100, K: 96}
	least := c.Run()
	c.Turns = sim.FirstCome
	first := c.Run()
	t.Logf("makespan over bound %.3f, first come first served %.3f", c.Ratio(least), c.Ratio(first))
	assert.Less(t, least.Makespan, first.Makespan)
}

func TestEveryZoneTakesAboutOneCopyThroughItsLink(t *testing.T) {
	for name, c := range race.Some(map[string]sim.Crowd{
		"all live": {N: 64, K: 128, Zones: 4, ZonePieceTime: 3 * time.Millisecond},
		"a fifth dies": {N: 64, K: 128, Zones: 4, ZonePieceTime: 3 * time.Millisecond, Dead: 0.2,
			DeadAfter: 200 * time.Millisecond},
		"many zones": {N: 64, K: 128, Zones: 16, ZonePieceTime: 3 * time.Millisecond},
	}, "a fifth dies") {
		t.Run(name, func(t *testing.T) {
			o := c.Run()
			require.Zero(t, o.Unfinished)
			t.Logf("makespan over bound %.3f, copies into each zone %.2f", c.Ratio(o), o.CrossZone)
			for z, copies := range o.CrossZone {
				assert.Less(t, copies, 1.3, "copies into zone %d", z)
			}
		})
	}
}
