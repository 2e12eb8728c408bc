package simnet

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// roundTrips simulates one node that pulls a task over links so fast that only the latency takes time. It returns when
// the first and the last byte arrived, in round trips.
func roundTrips(t *testing.T, c Crowd, trip time.Duration) (first, last float64) {
	synctest.Test(t, func(t *testing.T) {
		c.N, c.Latency, c.Rate, c.Window, c.Compare = 1, trip/2, 1e15, 4<<20, true
		out, err := c.Run(t.Context())
		require.NoError(t, err)
		require.Empty(t, out.Failed)
		first, last = float64(out.FirstByte[0])/float64(trip), float64(out.Makespan)/float64(trip)
	})
	return first, last
}

func TestPullsCostFewRoundTripsAndNothingElse(t *testing.T) {
	layer := Crowd{K: 8, PieceSize: 128 << 10}
	cold := layer
	cold.OriginRate = 1e15
	for _, row := range []struct {
		name        string
		crowd       Crowd
		first, last float64
	}{
		{"a config of 64 KiB that the owner holds: the announce", Crowd{K: 1, PieceSize: 64 << 10}, 1, 1},
		{"a layer of 1 MB that the owner holds: announce, connection, handshakes, pieces", layer, 4, 4},
		// A request to the registry takes the supernode two round trips, after it answered the announce.
		{"a new layer of 1 MB", cold, 4.5, 4.5},
	} {
		// A sleep or a poll would not shrink with the latency.
		for _, trip := range []time.Duration{100 * time.Millisecond, time.Millisecond, 20 * time.Microsecond} {
			first, last := roundTrips(t, row.crowd, trip)
			t.Logf("%s: first byte after %.2f, last after %.2f round trips of %s", row.name, first, last, trip)
			assert.InDelta(t, row.first, first, 0.01, "%s, %s", row.name, trip)
			assert.InDelta(t, row.last, last, 0.01, "%s, %s", row.name, trip)
		}
	}
	const direct = 2 // connection and request, as to the registry above
	_, last := roundTrips(t, cold, time.Millisecond)
	assert.LessOrEqual(t, last-direct, 4.0, "a cold layer of 1 MB over a direct pull")
}
