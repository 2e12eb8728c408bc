package simnet_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/simnet"
)

// endure runs a fleet through a fault in virtual time.
func endure(t *testing.T, f simnet.Fleet) (toll simnet.Toll) {
	f.PieceSize = size
	if f.Rate == 0 {
		f.Rate, f.OriginRate = 100*size, 12*size
	}
	synctest.Test(t, func(t *testing.T) {
		var err error
		toll, err = f.Run(t.Context())
		require.NoError(t, err)
		t.Logf("random seed %d: %.2f copies by %d hosts, longest silence %s, %s in all, %d pulls came back, %d failed",
			f.Seed, toll.Copies, toll.Askers, toll.Silence.Round(10*time.Millisecond),
			toll.Makespan.Round(10*time.Millisecond), toll.Refused, len(toll.Failed))
		require.Empty(t, toll.Failed)
	})
	return toll
}
