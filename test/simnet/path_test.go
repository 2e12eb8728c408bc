package simnet_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/test/race"
	"github.com/darter-io/darter/test/simnet"
)

// A piece takes 5 ms, so one way takes up to 20 pieces, and a round trip 40.
func TestOneNodeAloneFillsALongPath(t *testing.T) {
	for _, latency := range []time.Duration{250 * time.Microsecond, 5 * time.Millisecond, 20 * time.Millisecond} {
		c := simnet.Crowd{N: 1, K: 200, SeedMultiple: 1, Latency: latency, Window: 64 * size, Rate: 200 * size}
		o := play(t, c)
		// A direct pull takes a round trip for the connection and one for the request.
		direct := 4*latency + time.Second
		ratio := float64(o.Makespan) / float64(direct)
		t.Logf("one way %s: %.3f of a direct pull", latency, ratio)
		// The race detector's pieces are so short that messages weigh more.
		assert.Less(t, ratio, 1.2+0.1*float64(race.Divisor-1))
		assert.InDelta(t, 1, o.SeedCopies, 0.05)
	}
}
