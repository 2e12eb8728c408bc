package peer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/diskstore"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/test/race"
)

// seedsFor returns the seeds of a stress test: n new ones, DARTER_STRESS of them where that
// is set, or the one that DARTER_SEED names, to play a failure again.
func seedsFor(t *testing.T, n int) (seeds []uint64) {
	if text := os.Getenv("DARTER_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
		return []uint64{seed}
	}
	if text := os.Getenv("DARTER_STRESS"); text != "" {
		var err error
		n, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	for range n {
		seeds = append(seeds, rand.Uint64())
	}
	return seeds
}

// storm is a swarm in which for a while everything goes wrong that can: connections are
// cut, hang or garble what they carry, hosts die and come back, readers leave, the origin
// breaks off. Then the faults end, and every client must get all bytes.
type storm struct {
	*swarm
	until time.Time
	span  time.Duration // from the beginning until then

	mu sync.Mutex
	r  *rand.Rand
}

func newStorm(t *testing.T, seed uint64, span time.Duration) *storm {
	r := rand.New(rand.NewPCG(seed, 1))
	pieces := 1 + r.IntN(40)
	s := &storm{swarm: newSwarm(t, randomBytes(seed, pieces*piece.SizeMin-r.IntN(piece.SizeMin))), r: r,
		until: time.Now().Add(span), span: span}
	s.origin.body = func(_ int, _ int64, body io.Reader) io.Reader {
		return &stormyReader{s: s, r: body, left: s.draw(6 << 20)}
	}
	s.origin.fail = func(int, int64) error {
		if s.chance(6) {
			return errors.New("dial tcp: connection refused")
		}
		return nil
	}
	return s
}

func (s *storm) raging() bool { return time.Now().Before(s.until) }

// draw returns a random number below n.
func (s *storm) draw(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.r.IntN(n)
}

// chance is true once in n times while the storm lasts.
func (s *storm) chance(n int) bool { return s.raging() && s.draw(n) == 0 }

// pause is a random part of the storm.
func (s *storm) pause() time.Duration { return time.Duration(s.draw(int(s.span) / 4)) }

// stormyReader is an origin's body that may break off or hang.
type stormyReader struct {
	s    *storm
	r    io.Reader
	left int
}

func (r *stormyReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p[:min(len(p), 16<<10)])
	if r.left -= n; r.left < 0 && r.s.raging() {
		r.left = r.s.draw(6 << 20)
		if r.s.draw(2) == 0 {
			return 0, errors.New("connection reset by origin")
		}
		time.Sleep(r.s.pause())
	}
	return n, err
}

// stormyConn is a connection that may be cut, hang, or garble a byte.
type stormyConn struct {
	net.Conn
	s    *storm
	mu   sync.Mutex
	left int
}

func (s *storm) wrap(c net.Conn, err error) (net.Conn, error) {
	if err != nil || !s.raging() {
		return c, err
	}
	return &stormyConn{Conn: c, s: s, left: s.draw(4 << 20)}, nil
}

func (c *stormyConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.left -= len(p)
	strikes := c.left < 0 && c.s.raging()
	if strikes {
		c.left = c.s.draw(4 << 20)
	}
	c.mu.Unlock()
	if strikes {
		switch c.s.draw(3) {
		case 0:
			c.Conn.Close()
		case 1:
			time.Sleep(c.s.pause())
		case 2:
			p = bytes.Clone(p)
			p[c.s.draw(len(p))] ^= 1 << c.s.draw(8)
		}
	}
	return c.Conn.Write(p)
}

// check reads a part of the object and compares every byte. The storm causes errors, but a reader whose time ran out
// shows a stuck download.
func (s *storm) check(ctx context.Context, n *node, off, length int64) error {
	limit := 10*s.span + time.Minute
	timed, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	data, err := s.read(timed, n, s.spec(), off, length)
	if !bytes.HasPrefix(s.origin.content[off:], data) {
		s.t.Errorf("%s read wrong bytes", n.host.Name)
	}
	if err == nil && int64(len(data)) != length {
		s.t.Errorf("%s read %d of %d bytes without an error", n.host.Name, len(data), length)
	}
	if timed.Err() != nil && ctx.Err() == nil {
		s.t.Errorf("%s was stuck for %s: %v", n.host.Name, limit, err)
	}
	return err
}

// replace stops a node, and starts another one with its store after a while.
func (s *storm) replace(n *node) *node {
	if err := n.stop(); err != nil {
		s.t.Errorf("stopping %s: %v", n.host.Name, err)
	}
	s.owner.mu.Lock()
	wasSeed := s.owner.seed == n
	s.owner.mu.Unlock()
	time.Sleep(s.pause())
	again := s.node(n.store)
	if wasSeed {
		s.setSeed(again)
	}
	return again
}

func (s *storm) play(count int, store func() piece.Store) {
	s.adjust = func(cfg *peer.Config) {
		dial, l := cfg.Dial, cfg.Listener
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) { return s.wrap(dial(ctx, addr)) }
		cfg.Listener = stormyListener{l, s}
	}
	nodes := make([]*node, count)
	for i := range nodes {
		nodes[i] = s.node(store())
	}
	if s.draw(3) > 0 {
		s.setSeed(nodes[0])
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range nodes {
		wg.Go(func() {
			for s.raging() {
				mu.Lock()
				n := nodes[i]
				mu.Unlock()
				ctx, cancel := context.WithCancel(context.Background())
				if s.draw(3) == 0 {
					time.AfterFunc(s.pause(), cancel)
				}
				length := int64(len(s.origin.content))
				off := int64(0)
				if s.draw(3) == 0 {
					off = int64(s.draw(int(length)))
					length = 1 + int64(s.draw(int(length-off)))
				}
				s.check(ctx, n, off, length)
				cancel()
				time.Sleep(s.pause() / 4)
			}
		})
	}
	wg.Go(func() {
		for s.raging() {
			time.Sleep(s.pause())
			i := s.draw(len(nodes))
			mu.Lock()
			n := nodes[i]
			mu.Unlock()
			again := s.replace(n)
			mu.Lock()
			nodes[i] = again
			mu.Unlock()
		}
	})
	wg.Wait()
	for i, n := range nodes {
		wg.Go(func() {
			var err error
			for range 5 { // events of the storm may still arrive
				if err = s.check(context.Background(), n, 0, int64(len(s.origin.content))); err == nil {
					return
				}
				time.Sleep(s.span / 4)
			}
			s.t.Errorf("node %d cannot read the content in the calm: %v", i, err)
		})
	}
	wg.Wait()
}

type stormyListener struct {
	net.Listener
	s *storm
}

func (l stormyListener) Accept() (net.Conn, error) { return l.s.wrap(l.Listener.Accept()) }

// settled asserts that engines release everything when no client wants a task any more.
func (s *storm) settled(t assert.TestingT) {
	s.owner.mu.Lock()
	defer s.owner.mu.Unlock()
	for _, n := range s.owner.nodes {
		st := n.engine.Stats()
		assert.Zero(t, st.UploadSlots, "upload slots of %s", n.host.Name)
		if !n.dead.Load() {
			assert.Zero(t, st.Conns, "connections of %s", n.host.Name)
			assert.Zero(t, st.Downloads, "downloads of %s: %+v", n.host.Name, n.engine.Tasks())
		}
	}
}

func TestAfterAStormEveryClientGetsAllBytes(t *testing.T) {
	const seeds, span = 6 / race.Divisor, 20 * time.Second / race.Divisor
	for _, seed := range seedsFor(t, seeds) {
		t.Run(fmt.Sprintf("DARTER_SEED=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStorm(t, seed, span)
				s.play(2+s.draw(6), func() piece.Store { return memstore.New(memstore.Config{}) })
				time.Sleep(10 * time.Minute)
				s.settled(t)
			})
		})
	}
}

// After the storm every client gets all bytes.
func TestStormOnRealSocketsAndDisks(t *testing.T) {
	for _, seed := range seedsFor(t, 1) {
		t.Run(fmt.Sprintf("DARTER_SEED=%d", seed), func(t *testing.T) {
			s := newStorm(t, seed, time.Second)
			s.real = true
			s.play(4, func() piece.Store {
				store, err := diskstore.Open(diskstore.Config{Dir: t.TempDir()})
				require.NoError(t, err)
				t.Cleanup(func() { assert.NoError(t, store.Close()) })
				return store
			})
		})
	}
}
