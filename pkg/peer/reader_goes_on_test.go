package peer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/rendezvous"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// alone makes hosts that no owner answers and that each have an own way to the origin, in the order of hosts.
func alone(s *swarm, n int) (nodes []*node, ways map[host.ID]*origin) {
	ways = make(map[host.ID]*origin)
	s.adjust = func(cfg *peer.Config) {
		way := &origin{content: s.origin.content, mediaType: s.origin.mediaType}
		way.body = func(_ int, _ int64, r io.Reader) io.Reader { return slowly(r) }
		cfg.Origin, ways[cfg.Host.ID] = way, way
	}
	var ids []string
	for range n {
		nodes = append(nodes, s.node(nil))
		ids = append(ids, string(nodes[len(nodes)-1].host.ID))
	}
	order := rendezvous.Order(string(s.spec().ID), ids)
	slices.SortFunc(nodes, func(a, b *node) int {
		return slices.Index(order, string(a.host.ID)) - slices.Index(order, string(b.host.ID))
	})
	return nodes, ways
}

// The host that goes on at the origin for all loses its way there: the others wait for it no longer, and its failure
// is not theirs.
func TestTheReaderThatGoesOnCanFail(t *testing.T) {
	const most = 12 * piece.SizeMin
	for name, end := range map[string]func(ctx context.Context) error{
		"it hangs": func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		},
		"it fails": func(context.Context) error {
			return &source.StatusError{Method: http.MethodGet, URL: "https://registry.test/", Status: http.StatusNotImplemented}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, randomBytes(80, 40*piece.SizeMin))
				nodes, ways := alone(s, 3)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				way := ways[nodes[0].host.ID]
				way.body = func(_ int, offset int64, r io.Reader) io.Reader {
					return io.MultiReader(io.LimitReader(slowly(r), max(0, most-offset)), readerFunc(func([]byte) (int, error) {
						return 0, end(ctx)
					}))
				}
				var readers sync.WaitGroup
				for i, n := range nodes {
					readers.Go(func() {
						began := time.Now()
						data, err := s.read(ctx, n, s.spec(), 0, int64(len(s.origin.content)))
						if i == 0 {
							return // its client gets the error of its own way
						}
						assert.NoError(t, err)
						assert.True(t, bytes.Equal(s.origin.content, data))
						assert.Less(t, time.Since(began), 12*time.Second)
						if i == 1 {
							assert.Len(t, ways[n.host.ID].requests(), 2, "it stopped, and began again")
						}
					})
				}
				time.Sleep(30 * time.Second)
				cancel()
				readers.Wait()
			})
		})
	}
}

// Hosts that wait for one reader of the origin do not all go there when it dies.
func TestOneHostFollowsADeadReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(81, 64*piece.SizeMin))
		nodes, ways := alone(s, 6)
		var readers sync.WaitGroup
		for i, n := range nodes {
			readers.Go(func() {
				data, err := s.readAll(n)
				if i > 0 {
					assert.NoError(t, err)
					assert.True(t, bytes.Equal(s.origin.content, data))
				}
			})
		}
		time.Sleep(time.Second)
		before := 0
		for _, way := range ways {
			before += len(way.requests())
		}
		require.NoError(t, nodes[0].stop())
		readers.Wait()
		after := 0
		for _, way := range ways {
			after += len(way.requests())
		}
		assert.Equal(t, 1, after-before, "requests after the first reader stopped")
	})
}

// A host says that others can rely on what it reads of the origin only if it reads all that is missing, and if every
// request gets the same bytes.
func TestAReaderOfTheOriginSaysForWhom(t *testing.T) {
	content := randomBytes(82, 40*piece.SizeMin)
	file := task.Spec{ID: task.ID("file:" + strings.Repeat("f", 64)), Kind: task.Plain, URL: "https://files.test/x"}
	version := file
	version.Validator = `"1"`
	for name, c := range map[string]struct {
		spec   *task.Spec // nil: the blob
		length int64
		leader owners.Leader
		want   wire.Origin
	}{
		"all of a blob":                 {want: wire.ForItself},
		"all of a blob, as its owner":   {leader: owners.Self, want: wire.ForAll},
		"a part of a blob":              {length: 30 * piece.SizeMin, want: wire.NoOrigin},
		"a part of a blob, as an owner": {length: 30 * piece.SizeMin, leader: owners.Self, want: wire.NoOrigin},
		"a version of a file":           {spec: &version, want: wire.ForItself},
		"a file without a version":      {spec: &file, want: wire.NoOrigin},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, content)
				s.owner.leader = c.leader
				s.origin.body = func(_ int, _ int64, r io.Reader) io.Reader { return slowly(r) }
				n := s.node(nil)
				spec, length := s.spec(), int64(len(content))
				if c.spec != nil {
					spec = *c.spec
				}
				if c.length > 0 {
					length = c.length
				}
				done := make(chan error, 1)
				go func() {
					_, err := s.read(t.Context(), n, spec, 0, length)
					done <- err
				}()
				time.Sleep(300 * time.Millisecond)
				raw, err := s.net.dial(t.Context(), n.host.Addr)
				require.NoError(t, err)
				defer raw.Close()
				conn, err := wire.Initiate(t.Context(), raw, spec.ID.Swarm(), host.NewID().PeerID(), nil)
				require.NoError(t, err)
				for {
					m, err := conn.Next()
					require.NoError(t, err)
					if m.Type == wire.HelloMessage {
						assert.Equal(t, c.want, m.Hello.Origin)
						break
					}
				}
				raw.Close()
				err = <-done
				assert.True(t, err == nil || errors.Is(err, io.EOF), "%v", err)
			})
		})
	}
}

// claim plays a neighbour that says that it reads the origin for all, announces pieces and sends none, until ctx ends.
// It returns after each connection that its neighbour closes.
func claim(ctx context.Context, s *swarm, to host.Host, as host.ID, pieces int) {
	raw, err := s.net.dial(ctx, to.Addr)
	if err != nil {
		return
	}
	defer raw.Close()
	conn, err := wire.Initiate(ctx, raw, s.spec().ID.Swarm(), as.PeerID(), nil)
	if err != nil {
		return
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for {
			if _, err := conn.Next(); err != nil {
				return
			}
		}
	}()
	hello := &wire.Hello{Host: as, Version: wire.Version, Seed: true, Alive: true, Origin: wire.ForAll}
	messages := []wire.Message{{Type: wire.HelloMessage, Hello: hello}, {Type: wire.Bitfield}}
	for i := 0; ; i++ {
		messages = append(messages, wire.Message{Type: wire.Have, Index: piece.Index(i % pieces)})
		for _, m := range messages {
			if conn.Send(m) != nil || conn.Flush() != nil {
				raw.Close()
			}
		}
		messages = nil
		select {
		case <-ctx.Done():
			raw.Close()
			<-closed
			return
		case <-closed:
			return
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// A member that says again and again that it reads the origin for all, and brings nothing, holds up a download for a
// bounded time.
func TestALyingReaderHoldsUpForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const pieces = 40
		s := newSwarm(t, randomBytes(83, pieces*piece.SizeMin))
		nodes, ways := alone(s, 1)
		ctx, cancel := context.WithCancel(t.Context())
		var liar sync.WaitGroup
		liar.Go(func() {
			for as := host.NewID(); ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
				claim(ctx, s, nodes[0].host, as, pieces)
			}
		})
		began := time.Now()
		reading, end := context.WithTimeout(ctx, 5*time.Minute)
		defer end()
		data, err := s.read(reading, nodes[0], s.spec(), 0, int64(len(s.origin.content)))
		took := time.Since(began)
		cancel()
		liar.Wait()
		require.NoError(t, err)
		assert.True(t, bytes.Equal(s.origin.content, data))
		assert.Less(t, took, 30*time.Second)
		t.Logf("it took %s and %d requests", took, len(ways[nodes[0].host.ID].requests()))
	})
}
