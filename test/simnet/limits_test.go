package simnet

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/test/race"
)

// meter records a counter of bytes ten times a second.
type meter struct {
	read func() int64
	sums []int64
}

const every = 100 * time.Millisecond

// run records until ctx ends.
func (m *meter) run(ctx context.Context) {
	time.Sleep(10 * time.Millisecond) // until the counter exists
	for ctx.Err() == nil {
		m.sums = append(m.sums, m.read())
		time.Sleep(every)
	}
}

// most returns the largest number of bytes in any window of that length.
func (m *meter) most(window time.Duration) (most int64) {
	n := int(window / every)
	for i := range m.sums {
		most = max(most, m.sums[min(i+n, len(m.sums)-1)]-m.sums[i])
	}
	return most
}

// busy returns the bytes per second from the first second with bytes to the last.
func (m *meter) busy() float64 {
	first, last := 0, len(m.sums)-1
	for first < last && m.sums[first+1] == m.sums[0] {
		first++
	}
	for last > first && m.sums[last-1] == m.sums[len(m.sums)-1] {
		last--
	}
	return float64(m.sums[last]-m.sums[first]) / (time.Duration(last-first) * every).Seconds()
}

// holds requires that no window has more bytes than the limit, a burst and the other messages, and that at least 95 %
// of the limit were used. ahead bounds the bytes that arrived without being read, or that are counted at once.
func (m *meter) holds(t *testing.T, limit, ahead float64, what string) {
	t.Helper()
	const overhead = 1.03 // haves, requests and digests are not limited
	for _, window := range []time.Duration{every, time.Second, 3 * time.Second} {
		assert.LessOrEqual(t, float64(m.most(window)), overhead*limit*window.Seconds()+limit/25+ahead, "%s in %s",
			what, window)
	}
	assert.GreaterOrEqual(t, m.busy(), 0.95*limit, "%s is used", what)
	t.Logf("%s: %.3f of the limit used, at most %.3f of it in a second", what, m.busy()/limit,
		float64(m.most(time.Second))/limit)
}

// watched simulates a crowd while meters run.
func watched(t *testing.T, c Crowd, meters ...*meter) Outcome {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, m := range meters {
		wg.Go(func() { m.run(ctx) })
	}
	out, err := c.Run(t.Context())
	require.NoError(t, err)
	require.Empty(t, out.Failed)
	return out
}

const (
	size  = 64 << 10 / race.Divisor // of a piece
	limit = 16 * size               // a twelfth of a node's link
)

func TestAHostSendsNoMoreThanItsUploadLimit(t *testing.T) {
	race.Skip(t, "TestEveryLimitChangesWhileItHolds has each limit")
	synctest.Test(t, func(t *testing.T) {
		var engines [9]atomic.Pointer[peer.Engine]
		sent := func(i int) *meter { return &meter{read: func() int64 { return engines[i].Load().Stats().Sent }} }
		super, node := sent(0), &meter{}
		var wire atomic.Pointer[Host]
		node.read = func() int64 { return wire.Load().Sent() }
		watched(t, Crowd{
			PieceSize: size, N: 8, K: 256, Compare: true,
			Peer: func(i int, c *peer.Config) { c.Limits.Upload = limit },
			Begun: func(i int, e *peer.Engine) {
				engines[i].Store(e)
			},
			Each: func(i int, h *Host) {
				if i == 0 {
					wire.Store(h)
				}
			},
		}, super, node)
		super.holds(t, limit, size, "the supernode's uplink")
		for _, window := range []time.Duration{time.Second, 3 * time.Second} {
			assert.LessOrEqual(t, float64(node.most(window)), 1.1*limit*window.Seconds()+limit/25+size,
				"all that leaves a node, its words too")
		}
	})
}

func TestAHostTakesInNoMoreThanItsDownloadLimit(t *testing.T) {
	race.Skip(t, "TestEveryLimitChangesWhileItHolds has each limit")
	synctest.Test(t, func(t *testing.T) {
		var wire atomic.Pointer[Host]
		in := &meter{read: func() int64 { return wire.Load().Received() }}
		out := watched(t, Crowd{
			PieceSize: size, N: 8, Layers: []int{128, 64, 64}, Compare: true,
			Peer: func(i int, c *peer.Config) {
				if i == 1 {
					c.Limits.Download = limit
				}
			},
			Each: func(i int, h *Host) {
				if i == 0 {
					wire.Store(h)
				}
			},
		}, in)
		in.holds(t, limit, 9*size/2, "a node's downlink")
		assert.InEpsilon(t, 256*size/limit*float64(time.Second), float64(out.Makespan), 0.05,
			"it ends as soon as its limit allows")
		assert.Less(t, out.Took[6], out.Makespan/4, "and delays no other node")
	})
}

func TestEachTaskIsHeldToItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e atomic.Pointer[peer.Engine]
		in := &meter{read: func() int64 { s := e.Load().Stats(); return s.Peers + s.Seeds }}
		watched(t, Crowd{
			PieceSize: size, N: 2, Layers: []int{128, 128}, Compare: true,
			Peer: func(i int, c *peer.Config) {
				if i == 1 {
					c.Limits.Task = limit
				}
			},
			Begun: func(i int, b *peer.Engine) {
				if i == 1 {
					e.Store(b)
				}
			},
		}, in)
		in.holds(t, 2*limit, size, "two tasks at once")
	})
}

// counted counts the bytes that an origin sends.
type counted struct {
	source.Origin
	sum *atomic.Int64
}

func (c counted) Open(ctx context.Context, spec task.Spec, offset int64) (*source.Response, error) {
	r, err := c.Origin.Open(ctx, spec, offset)
	if err == nil {
		r.Body = countedBody{r.Body, c.sum}
	}
	return r, err
}

type countedBody struct {
	io.ReadCloser
	sum *atomic.Int64
}

func (b countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.sum.Add(int64(n))
	return n, err
}

func TestASeedTakesNoMoreFromOriginsThanItsLimit(t *testing.T) {
	race.Skip(t, "TestEveryLimitChangesWhileItHolds has each limit")
	synctest.Test(t, func(t *testing.T) {
		var sum atomic.Int64
		origin := &meter{read: sum.Load}
		out := watched(t, Crowd{
			PieceSize: size, N: 8, K: 256, OriginRate: 100 * limit, Compare: true,
			Peer: func(i int, c *peer.Config) {
				if i == 0 {
					c.Limits.Origin = limit
					c.Origin = counted{c.Origin, &sum}
				}
			},
		}, origin)
		origin.holds(t, limit, size, "the origin")
		assert.Equal(t, 1.0, out.OriginCopies)
		assert.InEpsilon(t, 256*size/limit*float64(time.Second), float64(out.Makespan), 0.05, "the crowd keeps up")
	})
}

func TestEveryLimitChangesWhileItHolds(t *testing.T) {
	for _, kind := range []struct {
		name    string
		at      int // the supernode, or the node
		limit   func(*peer.Limits) *int64
		counted func(peer.Stats) int64
	}{
		{"upload", 0, func(l *peer.Limits) *int64 { return &l.Upload }, func(s peer.Stats) int64 { return s.Sent }},
		{"download", 1, func(l *peer.Limits) *int64 { return &l.Download }, func(s peer.Stats) int64 {
			return s.Peers + s.Seeds
		}},
		{"task", 1, func(l *peer.Limits) *int64 { return &l.Task }, func(s peer.Stats) int64 {
			return s.Peers + s.Seeds
		}},
		{"origin", 0, func(l *peer.Limits) *int64 { return &l.Origin }, func(s peer.Stats) int64 { return s.Origin }},
	} {
		t.Run(kind.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var e atomic.Pointer[peer.Engine]
				begun := time.Now()
				m := &meter{read: func() int64 { return kind.counted(e.Load().Stats()) }}
				out := watched(t, Crowd{
					PieceSize: size, N: 1, K: 512, OriginRate: 100 * limit, Compare: true,
					Peer: func(i int, c *peer.Config) {
						if i == kind.at {
							*kind.limit(&c.Limits) = limit
						}
					},
					Begun: func(i int, b *peer.Engine) {
						if i != kind.at {
							return
						}
						e.Store(b)
						set := func(at time.Duration, rate int64) {
							time.AfterFunc(at-time.Since(begun), func() {
								var l peer.Limits
								*kind.limit(&l) = rate
								b.SetLimits(l)
							})
						}
						set(8*time.Second, 4*limit)
						set(12*time.Second, 0)
					},
				}, m)
				second := func(i int) float64 { return float64(m.sums[(i+1)*10]-m.sums[i*10]) / limit }
				assert.InDelta(t, 1, second(6), 0.2)
				assert.InDelta(t, 4, second(9), 0.4)
				assert.Less(t, out.Makespan, 13*time.Second, "the rest comes at the link's rate")
				assert.Greater(t, out.Makespan, 12*time.Second)
			})
		})
	}
}
