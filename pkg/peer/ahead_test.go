package peer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/lag"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// paced limits each body of an origin to so many bytes a second.
func paced(rate int64) func(int, int64, io.Reader) io.Reader {
	return func(_ int, _ int64, r io.Reader) io.Reader {
		return readerFunc(func(p []byte) (int, error) {
			n, err := r.Read(p[:min(int64(len(p)), 16<<10)])
			time.Sleep(time.Duration(n) * time.Second / time.Duration(rate))
			return n, err
		})
	}
}

// window is the part of an object that a client reads, and when its first byte came.
type window struct {
	off, n int64
	part   bool // the client checks the bytes that it gets
	data   []byte
	first  time.Duration
	err    error
}

// read reads a window at a node.
func (w *window) read(ctx context.Context, s *swarm, n *node) {
	begun := time.Now()
	c, err := n.engine.Open(ctx, s.spec())
	if err != nil {
		w.err = err
		return
	}
	defer c.Close()
	var r *peer.Reader
	if w.part {
		r = c.NewPartReader(ctx, w.off, w.n)
	} else {
		r = c.NewReader(ctx, w.off, w.n)
	}
	defer r.Close()
	one := make([]byte, 1)
	if _, w.err = io.ReadFull(r, one); w.err != nil {
		return
	}
	w.first = time.Since(begun)
	rest, err := io.ReadAll(r)
	w.data, w.err = append(one, rest...), err
}

// readWindows reads all windows at once, each at a node of its own if there are enough.
func readWindows(t *testing.T, s *swarm, nodes []*node, windows ...*window) {
	var wg sync.WaitGroup
	for i, w := range windows {
		wg.Go(func() { w.read(t.Context(), s, nodes[i%len(nodes)]) })
	}
	wg.Wait()
	for _, w := range windows {
		require.NoError(t, w.err)
		assert.True(t, bytes.Equal(s.origin.content[w.off:w.off+w.n], w.data), "bytes [%d, %d)", w.off, w.off+w.n)
	}
}

// whole waits until a node has everything.
func whole(t *testing.T, s *swarm, n *node) {
	data, err := s.read(t.Context(), n, s.spec(), 0, int64(len(s.origin.content)))
	require.NoError(t, err)
	assert.True(t, bytes.Equal(s.origin.content, data))
}

// The origin of these tests sends aheadRate bytes a second on each connection, so its stream takes 12 s.
const (
	aheadRate   = 256 << 10
	aheadLength = 12*aheadRate + 77 // 25 pieces
)

// TestWindowsComeAheadOfTheStream reads windows that the stream reaches after 8 s and more.
func TestWindowsComeAheadOfTheStream(t *testing.T) {
	const m = aheadRate
	for name, windows := range map[string][]*window{
		"the footer":        {{off: aheadLength - 1024, n: 1024, part: true}},
		"footer and index":  {{off: aheadLength - 3*piece.SizeMin, n: 3 * piece.SizeMin, part: true}},
		"one in the middle": {{off: 8 * m, n: m, part: true}},
		"two that overlap":  {{off: 8 * m, n: 2 * m, part: true}, {off: 9 * m, n: 2 * m, part: true}},
		"the same for many": {
			{off: 8 * m, n: m, part: true}, {off: 8 * m, n: m, part: true}, {off: 8 * m, n: m, part: true},
		},
	} {
		for _, remote := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newSwarm(t, randomBytes(81, aheadLength))
					s.origin.body = paced(aheadRate)
					seed := s.seed()
					nodes := []*node{seed}
					if remote {
						nodes = []*node{s.node(nil), s.node(nil), s.node(nil)}
					}
					begun := time.Now()
					var fresh []*window
					for _, w := range windows {
						fresh = append(fresh, &window{off: w.off, n: w.n, part: w.part})
					}
					readWindows(t, s, nodes, fresh...)
					for _, w := range fresh {
						assert.Less(t, w.first, 2*time.Second)
					}
					assert.Less(t, time.Since(begun), 6*time.Second)
					whole(t, s, seed)
					assert.LessOrEqual(t, s.origin.sent.Load(), int64(aheadLength)+256<<10, "no byte comes twice")
					assert.LessOrEqual(t, len(s.origin.requests()), 1+3*len(windows))
				})
			})
		}
	}
}

// TestParallelFetchersStayInTheSwarm reads a layer as containerd does with 6 connections.
func TestParallelFetchersStayInTheSwarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(82, aheadLength))
		s.origin.body = paced(aheadRate)
		seed := s.seed()
		n := s.node(nil)
		var windows []*window
		for off := int64(0); off < aheadLength; off += 2 * aheadRate {
			windows = append(windows, &window{off: off, n: min(2*aheadRate, aheadLength-off)})
		}
		begun := time.Now()
		readWindows(t, s, []*node{n}, windows...)
		assert.Less(t, time.Since(begun), 8*time.Second, "one stream alone takes 12 s")
		for _, w := range windows[:len(windows)-1] {
			assert.Less(t, w.first, 6*time.Second)
		}
		whole(t, s, seed)
		assert.LessOrEqual(t, s.origin.sent.Load(), int64(aheadLength)+5*256<<10)
	})
}

// TestACrowdInOrderCostsOneRequest reads from the beginning on, at several nodes.
func TestACrowdInOrderCostsOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(83, aheadLength))
		s.origin.body = paced(aheadRate)
		s.seed()
		nodes := []*node{s.node(nil), s.node(nil), s.node(nil)}
		var windows []*window
		for range nodes {
			windows = append(windows, &window{n: aheadLength})
		}
		readWindows(t, s, nodes, windows...)
		assert.Equal(t, []int64{0}, s.origin.requests())
		assert.EqualValues(t, aheadLength, s.origin.sent.Load())
	})
}

// TestTheEndWaitsForTheCheck gives the last bytes ahead to a client that checks them, and to no other.
func TestTheEndWaitsForTheCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := randomBytes(84, aheadLength)
		s := newSwarm(t, content)
		wrong := bytes.Clone(content)
		wrong[5*aheadRate]++
		s.origin.body = func(n int, offset int64, _ io.Reader) io.Reader {
			return paced(aheadRate)(n, offset, bytes.NewReader(wrong[offset:]))
		}
		s.seed()
		n := s.node(nil)
		part := &window{off: aheadLength - 1000, n: 1000, part: true}
		resumed := &window{off: aheadLength - 1000, n: 1000}
		var wg sync.WaitGroup
		for _, w := range []*window{part, resumed} {
			wg.Go(func() { w.read(t.Context(), s, n) })
		}
		wg.Wait()
		require.NoError(t, part.err)
		assert.True(t, bytes.Equal(content[part.off:], part.data))
		require.Error(t, resumed.err, "a client that resumed would take the whole for complete")
		assert.Less(t, len(resumed.data), 1000)
	})
}

// TestAnOwnersAnswerProvesNoTail has an owner send other bytes: the host takes none without a coordinator's signature,
// and none of another piece.
func TestAnOwnersAnswerProvesNoTail(t *testing.T) {
	last := int64(aheadLength-1) / piece.SizeMin * piece.SizeMin
	for name, forge := range map[string]func(s *swarm) *api.Tail{
		"without proof": func(*swarm) *api.Tail {
			return &api.Tail{Offset: last, Data: make([]byte, aheadLength-last)}
		},
		"of another place": func(s *swarm) *api.Tail {
			tail := s.tail(api.TailTask(s.spec().ID, last+1), make([]byte, aheadLength-last))
			tail.Offset = last
			return tail
		},
		"of the task itself": func(s *swarm) *api.Tail {
			tail := s.tail(s.spec().ID, make([]byte, aheadLength-last))
			tail.Offset = last
			return tail
		},
		"other bytes": func(s *swarm) *api.Tail {
			tail := s.tail(api.TailTask(s.spec().ID, last), make([]byte, aheadLength-last))
			tail.Offset, tail.Data = last, bytes.Repeat([]byte("x"), len(tail.Data))
			return tail
		},
		"another piece": func(s *swarm) *api.Tail {
			tail := s.tail(api.TailTask(s.spec().ID, 0), make([]byte, 1000))
			tail.Offset = 0
			return tail
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, randomBytes(87, aheadLength))
				s.origin.body = paced(aheadRate)
				seed := s.seed()
				s.owner.answer = func(from *node, _ api.Entry, a *api.Assignment) error {
					if from != seed {
						a.Tail = forge(s)
					}
					return nil
				}
				n := s.node(nil)
				end := &window{off: last, n: aheadLength - last, part: true}
				readWindows(t, s, []*node{n}, end, &window{n: 1000, part: true})
			})
		})
	}
}

// tail signs bytes as a coordinator does, under a name.
func (s *swarm) tail(id task.ID, data []byte) *api.Tail {
	f := piece.MetadataFor(int64(len(data)), "")
	r := piece.DigestRun{Metadata: f, Epoch: 1, Final: true, Digests: []piece.Digest{piece.Sum(data)}}
	s.keys.SignRun(id, &r)
	return &api.Tail{Data: data, Proof: api.NewProof(f, []piece.DigestRun{r}, [][]byte{s.keys.Certificate()})}
}

// TestAheadGivesUp has the origin refuse ranges, or ignore them: the stream brings everything.
func TestAheadGivesUp(t *testing.T) {
	for name, c := range map[string]struct {
		skips    bool
		fail     error
		requests int
	}{
		"it ignores ranges": {true, nil, 2},
		"it refuses ranges": {false, errors.New("no ranges here"), 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, randomBytes(85, aheadLength))
				s.origin.body, s.origin.skips = paced(aheadRate), c.skips
				s.origin.fail = func(_ int, offset int64) error {
					if offset > 0 {
						return c.fail
					}
					return nil
				}
				s.seed()
				n := s.node(nil)
				readWindows(t, s, []*node{n}, &window{off: 8 * aheadRate, n: 1000, part: true}, &window{n: aheadLength})
				assert.Len(t, s.origin.requests(), c.requests)
				assert.EqualValues(t, aheadLength, s.origin.sent.Load())
			})
		})
	}
}

// TestChunksBeginBeforeTheirClientsGiveUp reads a layer as containerd 2.4 does: the client opens ranges without an end
// and closes each after a chunk. All connections of the registry share one line, on which the layer takes 60 s.
// containerd waits 30 s for a header.
func TestChunksBeginBeforeTheirClientsGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const length, chunk = 20 << 20, 1 << 20
		s := newSwarm(t, randomBytes(86, length))
		var mu sync.Mutex
		var free time.Time // when the line is
		s.origin.body = func(_ int, _ int64, r io.Reader) io.Reader {
			return readerFunc(func(p []byte) (int, error) {
				n, err := r.Read(p[:min(len(p), 16<<10)])
				mu.Lock()
				if now := time.Now(); free.Before(now) {
					free = now
				}
				free = free.Add(time.Duration(n) * time.Second / (350 << 10))
				wait := time.Until(free)
				mu.Unlock()
				time.Sleep(wait)
				return n, err
			})
		}
		seed := s.seed()
		n := s.node(nil)
		begun := time.Now()
		var wg sync.WaitGroup
		for off := int64(0); off < length; off += chunk {
			wg.Go(func() {
				c, err := n.engine.Open(t.Context(), s.spec())
				if !assert.NoError(t, err) {
					return
				}
				defer c.Close()
				r := c.NewReader(t.Context(), off, length-off)
				defer r.Close()
				b := make([]byte, min(chunk, length-off))
				_, err = io.ReadFull(r, b[:1])
				assert.NoError(t, err)
				if off+chunk < length { // the last one waits for the check of the whole
					assert.Less(t, time.Since(begun), 30*time.Second, "the chunk at %d", off)
				}
				_, err = io.ReadFull(r, b[1:])
				assert.NoError(t, err)
				assert.True(t, bytes.Equal(s.origin.content[off:off+int64(len(b))], b))
			})
		}
		wg.Wait()
		assert.Less(t, time.Since(begun), 66*time.Second)
		whole(t, s, seed)
		assert.LessOrEqual(t, s.origin.sent.Load(), int64(length)+2<<20)
	})
}

// TestNoWindowsAheadAfterWrongBytes has an origin answer ranges with wrong bytes. The next attempt takes everything
// from one GET of the whole, as a client that asks the registry itself would.
func TestNoWindowsAheadAfterWrongBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := randomBytes(88, aheadLength)
		s := newSwarm(t, content)
		s.origin.body = func(n int, offset int64, r io.Reader) io.Reader {
			if offset > 0 {
				r = bytes.NewReader(content)
			}
			return paced(aheadRate)(n, offset, r)
		}
		s.seed()
		n := s.node(nil)
		part := func() *window { return &window{off: 8 * aheadRate, n: 1000, part: true} }
		first := part()
		first.read(t.Context(), s, n)
		require.NoError(t, first.err)
		require.False(t, bytes.Equal(content[first.off:][:first.n], first.data), "the registry itself sends the same")
		all := &window{n: aheadLength}
		all.read(t.Context(), s, n)
		require.Error(t, all.err)
		readWindows(t, s, []*node{n}, &window{n: aheadLength}, part())
		assert.Len(t, s.origin.requests(), 3, "the whole, the window and once more the whole")
	})
}

// TestAWindowOfNothingGetsNoTail has another host announce an impossible window.
func TestAWindowOfNothingGetsNoTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(89, aheadLength))
		s.origin.body = paced(aheadRate)
		seed := s.seed()
		readWindows(t, s, []*node{s.node(nil)}, &window{off: aheadLength - 50, n: 50, part: true})
		for _, n := range []int64{-1, 0} {
			none := []api.Window{{Offset: aheadLength - 50, Length: n, Tail: true}}
			assert.Nil(t, seed.engine.Ahead(s.spec().ID, none))
		}
		one := []api.Window{{Offset: aheadLength - 50, Length: 1, Tail: true}}
		assert.Equal(t, s.origin.content[aheadLength-50:][:1], seed.engine.Ahead(s.spec().ID, one).Data)
	})
}

// TestAHostFullOfLastPiecesBringsWindows has no memory left for a footer, and readers of other windows wait behind it.
func TestAHostFullOfLastPiecesBringsWindows(t *testing.T) {
	for name, fill := range map[string]func(seed, n *node){
		"the seed": func(seed, _ *node) { seed.engine.FillTails() },
		"the node": func(_, n *node) { n.engine.FillTails() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, randomBytes(90, aheadLength))
				s.origin.body = paced(aheadRate)
				seed, n := s.seed(), s.node(nil)
				fill(seed, n)
				footer := &window{off: aheadLength - 50, n: 50, part: true}
				middle := &window{off: 8 * aheadRate, n: 1000, part: true}
				var wg sync.WaitGroup
				wg.Go(func() { footer.read(t.Context(), s, n) })
				time.Sleep(time.Second)
				readWindows(t, s, []*node{n}, middle)
				wg.Wait()
				assert.Less(t, middle.first, 2*time.Second)
				require.NoError(t, footer.err)
				assert.True(t, bytes.Equal(s.origin.content[footer.off:], footer.data))
				assert.Greater(t, footer.first, 5*time.Second, "it comes when the whole is checked")
			})
		})
	}
}

// TestAStreamThatWaitsTakesNewWindows has the stream wait for a further GET that brings all that is wanted, when a
// reader comes that wants the pieces where the stream stands.
func TestAStreamThatWaitsTakesNewWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(91, aheadLength))
		s.origin.body = paced(aheadRate)
		n := s.seed()
		late := &window{off: 10 * piece.SizeMin, n: 12 * piece.SizeMin, part: true}
		var wg sync.WaitGroup
		wg.Go(func() { readWindows(t, s, []*node{n}, &window{n: 2 * piece.SizeMin}) })
		wg.Go(func() { late.read(t.Context(), s, n) })
		time.Sleep(3 * time.Second)
		next := &window{off: 2 * piece.SizeMin, n: 1000}
		readWindows(t, s, []*node{n}, next)
		assert.Less(t, next.first, 2*time.Second)
		wg.Wait()
		require.NoError(t, late.err)
		assert.True(t, bytes.Equal(s.origin.content[late.off:late.off+late.n], late.data))
	})
}

// TestARangeIgnoredOnceIsAskedNoMore fills the gaps of a blob from an origin that ignores ranges: each request costs it
// the whole.
func TestARangeIgnoredOnceIsAskedNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(92, aheadLength))
		s.origin.body = paced(aheadRate)
		n := s.seed()
		for _, first := range []int64{4, 12, 20} {
			readWindows(t, s, []*node{n}, &window{off: first * piece.SizeMin, n: 4 * piece.SizeMin})
			time.Sleep(10 * time.Minute)
		}
		before := len(s.origin.requests())
		s.origin.skips = true
		whole(t, s, n)
		assert.Equal(t, 2, len(s.origin.requests())-before, "the first one shows that it ignores ranges")
	})
}

// TestALateHostReadsPastWhatIsStored fills the blob around stored pieces. A host that is late takes its own lateness
// for a slow origin, and the bytes that it waits for already lie in its socket. So it makes no new request behind those
// pieces.
func TestALateHostReadsPastWhatIsStored(t *testing.T) {
	for name, late := range map[string]bool{"in time": false, "late": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				meter := lag.New(lag.Config{Wait: func(ctx context.Context, d time.Duration) {
					if late {
						d += 100 * time.Millisecond
					}
					select {
					case <-time.After(d):
					case <-ctx.Done():
					}
				}})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() { _ = meter.Run(ctx) }()
				s := newSwarm(t, randomBytes(94, aheadLength))
				s.origin.body = paced(aheadRate)
				s.adjust = func(cfg *peer.Config) { cfg.Lag = meter }
				n := s.seed()
				readWindows(t, s, []*node{n}, &window{off: 8 * piece.SizeMin, n: 6 * piece.SizeMin, part: true})
				time.Sleep(10 * time.Minute)
				before := len(s.origin.requests())
				whole(t, s, n)
				want := map[bool]int{false: 2, true: 1}[late]
				assert.Equal(t, want, len(s.origin.requests())-before)
			})
		})
	}
}

// TestAFollowerAnnouncesFewWindows resumes a blob, so that its reader waits for each piece that the stream brings. The
// reader announces few of these windows to the owner.
func TestAFollowerAnnouncesFewWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(93, aheadLength))
		s.origin.body = paced(4 * aheadRate)
		s.seed()
		n := s.node(nil)
		readWindows(t, s, []*node{n}, &window{off: 1, n: aheadLength - 1})
		s.owner.mu.Lock()
		defer s.owner.mu.Unlock()
		announced := 0
		for _, e := range s.owner.events[n.host.ID] {
			if len(e.Windows) > 0 {
				announced++
			}
		}
		assert.LessOrEqual(t, announced, 4)
	})
}
