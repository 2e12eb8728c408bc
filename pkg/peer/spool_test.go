package peer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// zeros is a body without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// noSpools is a store that fails to make a spool.
type noSpools struct{ piece.Store }

var errNoSpools = errors.New("a body was spooled although its length is known")

func (noSpools) Spool() (piece.Spool, error) { return nil, errNoSpools }

// pullAgain pulls again as long as the error asks for another attempt.
func (s *swarm) pullAgain(n *node, spec task.Spec) (data []byte, err error) {
	for range 6 {
		data, err = s.pull(n, spec)
		var f *api.Failure
		if err == nil || errors.As(err, &f) && f.Status != http.StatusServiceUnavailable {
			break
		}
		time.Sleep(time.Second)
	}
	return data, err
}

func TestAKnownLengthBoundsTheBody(t *testing.T) {
	content := randomBytes(40, 5*piece.SizeMin+7)
	n := int64(len(content))
	known := map[string]func(*task.Spec, int64){
		"a manifest": func(s *task.Spec, n int64) { s.Promised = n },
		"a HEAD":     func(s *task.Spec, n int64) { s.Length = n },
	}
	bodies := map[string]struct {
		body func(r io.Reader) io.Reader
		got  string
	}{
		"without end": {func(r io.Reader) io.Reader { return io.MultiReader(r, zeros{}) },
			fmt.Sprint("at least ", n+1)},
		"one byte more": {func(r io.Reader) io.Reader { return io.MultiReader(r, io.LimitReader(zeros{}, 1)) },
			fmt.Sprint("at least ", n+1)},
		"as it should":   {func(r io.Reader) io.Reader { return r }, ""},
		"never all zero": {func(io.Reader) io.Reader { return zeros{} }, fmt.Sprint("at least ", n+1)},
	}
	for by, tell := range known {
		for name, b := range bodies {
			t.Run(by+" gives the length, "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newSwarm(t, content)
					s.origin.noLength = true
					s.origin.body = func(_ int, _ int64, r io.Reader) io.Reader { return b.body(r) }
					s.adjust = func(c *peer.Config) { c.Store = noSpools{c.Store} }
					s.seed()
					spec := s.spec()
					tell(&spec, n)
					data, err := s.pullAgain(s.node(nil), spec)
					assert.LessOrEqual(t, s.origin.sent.Load(), 2*(n+1),
						"two tries, and of each one byte more than is known")
					if b.got == "" {
						require.NoError(t, err)
						assert.True(t, bytes.Equal(content, data))
						return
					}
					var f *api.Failure
					require.ErrorAs(t, err, &f)
					assert.Equal(t, http.StatusBadGateway, f.Status)
					assert.Contains(t, f.Message, fmt.Sprintf("%s bytes, and %d were expected", b.got, n))
				})
			})
		}
		t.Run(by+" gives another length than the origin", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, content)
				s.seed()
				node := s.node(nil)
				spec := s.spec()
				tell(&spec, 5)
				_, err := s.pullAgain(node, spec)
				var f *api.Failure
				require.ErrorAs(t, err, &f)
				assert.Contains(t, f.Message, fmt.Sprintf("%d bytes, and 5 were expected", n))
				assert.Zero(t, s.origin.sent.Load(), "no byte of the body is read")
				assert.Empty(t, node.store.Inventory(), "and no room is made for it")
			})
		})
	}
}

// A registry that answers a HEAD with a wrong length is survived, and one that then sends without end is left.
func TestAHeadBoundsABodyWithoutLength(t *testing.T) {
	content := randomBytes(43, 5*piece.SizeMin+7)
	n := int64(len(content))
	for name, c := range map[string]struct {
		hint    int64
		endless bool
	}{
		"the HEAD named too few bytes":  {hint: n / 3},
		"the HEAD named too many bytes": {hint: n + 9},
		"the body does not end":         {hint: n, endless: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, content)
				s.origin.noLength = true
				if c.endless {
					s.origin.body = func(_ int, _ int64, r io.Reader) io.Reader { return io.MultiReader(r, zeros{}) }
				}
				s.seed()
				spec := s.spec()
				spec.Hint = c.hint
				data, err := s.pullAgain(s.node(nil), spec)
				if !c.endless {
					require.NoError(t, err)
					assert.True(t, bytes.Equal(content, data))
					return
				}
				var f *api.Failure
				require.ErrorAs(t, err, &f)
				assert.Contains(t, f.Message, fmt.Sprintf("of which a HEAD named %d bytes", n))
				assert.LessOrEqual(t, s.origin.sent.Load(), 2*(2*n+17<<20), "two tries")
			})
		})
	}
}

func TestABlobOfKnownLengthFlowsBeforeItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(41, 10*piece.SizeMin))
		s.origin.noLength = true
		gate := make(chan struct{})
		s.origin.body = func(_ int, _ int64, r io.Reader) io.Reader {
			return io.MultiReader(io.LimitReader(r, 3*piece.SizeMin), readerFunc(func(p []byte) (int, error) {
				<-gate
				return r.Read(p)
			}))
		}
		s.seed()
		spec := s.spec()
		spec.Promised = int64(len(s.origin.content))
		c, err := s.node(nil).engine.Open(t.Context(), spec)
		require.NoError(t, err)
		defer c.Close()
		r := c.NewReader(t.Context(), 0, spec.Promised)
		defer r.Close()
		first := make([]byte, 3*piece.SizeMin)
		_, err = io.ReadFull(r, first)
		require.NoError(t, err, "while the origin still owes the rest")
		close(gate)
		rest, err := io.ReadAll(r)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(s.origin.content, append(first, rest...)))
	})
}

func TestAWrongLengthFailsNoOtherClient(t *testing.T) {
	content := randomBytes(42, 4*piece.SizeMin)
	for name, noLength := range map[string]bool{"the origin tells the length": false, "it does not": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, content)
				s.origin.noLength = noLength
				s.seed()
				liar, honest := s.spec(), s.spec()
				liar.Promised, honest.Promised = 3*piece.SizeMin, int64(len(content))
				a, b := s.node(nil), s.node(nil)
				ended := make(chan error)
				go func() {
					_, err := s.pullAgain(a, liar)
					ended <- err
				}()
				data, err := s.pullAgain(b, honest)
				require.NoError(t, err)
				assert.True(t, bytes.Equal(content, data))
				<-ended // it may have come in time to read what the other one had brought
			})
		})
	}
}

func TestABodyOfUnknownLengthHasABound(t *testing.T) {
	const most = 3 << 20
	for name, c := range map[string]struct {
		kind      task.Kind
		most, max int64
	}{
		"a blob": {task.Blob, most, most}, "a manifest on a small disk": {task.Manifest, most, most},
		"a manifest": {task.Manifest, oci.ManifestMax, 1 << 40},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, randomBytes(43, 100))
				s.origin.noLength = true
				s.origin.body = func(int, int64, io.Reader) io.Reader { return zeros{} }
				s.adjust = func(cfg *peer.Config) { cfg.SpoolMax, cfg.SpoolDir = c.max, dir }
				s.seed()
				spec := s.spec()
				spec.Kind = c.kind
				_, err := s.pullAgain(s.node(nil), spec)
				var f *api.Failure
				require.ErrorAs(t, err, &f)
				assert.Equal(t, http.StatusBadGateway, f.Status)
				assert.Contains(t, f.Message, fmt.Sprintf("longer than the %d bytes", c.most))
				assert.LessOrEqual(t, s.origin.sent.Load(), c.most+256<<10)
				left, err := os.ReadDir(dir)
				require.NoError(t, err)
				assert.Empty(t, left)
			})
		})
	}
	t.Run("a manifest with a known length", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSwarm(t, make([]byte, oci.ManifestMax+1))
			s.seed()
			spec := s.spec()
			spec.Kind = task.Manifest
			_, err := s.pullAgain(s.node(nil), spec)
			require.ErrorContains(t, err, "a manifest is longer")
			assert.Zero(t, s.origin.sent.Load())
		})
	})
}

// TestNoClientGetsTheLengthOfAWrongBody: a client that received it would wait for that many bytes.
func TestNoClientGetsTheLengthOfAWrongBody(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(48, 3*piece.SizeMin))
		s.origin.noLength = true
		s.origin.body = func(_ int, _ int64, r io.Reader) io.Reader {
			return io.MultiReader(r, io.LimitReader(zeros{}, 20*piece.SizeMin))
		}
		s.adjust = func(cfg *peer.Config) { cfg.SpoolDir = dir }
		seed, a := s.seed(), s.node(nil)
		for range 6 {
			_, err := a.engine.Open(t.Context(), s.spec())
			require.Error(t, err, "it was opened, so a client received a length")
			time.Sleep(time.Second)
		}
		assert.Zero(t, seed.seedMetadata.Load())
		assert.Empty(t, seed.store.Inventory())
	})
}

func TestASpoolHasNoName(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(45, 3*piece.SizeMin+9))
		s.origin.noLength = true
		looked := 0
		s.origin.body = func(_ int, _ int64, r io.Reader) io.Reader {
			return io.MultiReader(io.LimitReader(r, 2*piece.SizeMin), readerFunc(func(p []byte) (int, error) {
				left, err := os.ReadDir(dir)
				assert.NoError(t, err)
				assert.Empty(t, left, "what is kept so far would outlive a kill")
				looked++
				return r.Read(p)
			}))
		}
		s.adjust = func(cfg *peer.Config) { cfg.SpoolDir = dir }
		s.seed()
		data, err := s.readAll(s.node(nil))
		require.NoError(t, err)
		assert.True(t, bytes.Equal(s.origin.content, data))
		assert.Positive(t, looked)
	})
}

// TestWaitersSeeThatASpoolGrows has a body of unknown length come at a piece a second for 40 s.
func TestWaitersSeeThatASpoolGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(46, 40*piece.SizeMin))
		s.origin.noLength = true
		s.origin.body = func(_ int, _ int64, r io.Reader) io.Reader {
			return readerFunc(func(p []byte) (int, error) {
				time.Sleep(time.Second)
				return r.Read(p[:min(len(p), piece.SizeMin)])
			})
		}
		seed := s.seed()
		a := s.node(nil)
		type end struct {
			data []byte
			err  error
		}
		ended := make(chan end, 1)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			data, err := s.read(ctx, a, s.spec(), 0, int64(len(s.origin.content)))
			ended <- end{data, err}
		}()
		for _, n := range []*node{seed, a} {
			last := n.engine.Signs(s.spec().ID).Moved
			for range 3 {
				time.Sleep(5 * time.Second)
				now := n.engine.Signs(s.spec().ID).Moved
				assert.Greater(t, now, last, "%s sees nothing move", n.host.Name)
				last = now
			}
		}
		e := <-ended
		require.NoError(t, e.err)
		assert.True(t, bytes.Equal(s.origin.content, e.data))
		assert.Zero(t, a.engine.Stats().Origin)
	})
}

// TestNothingMovesWhileTheOriginIsSilent: only then a client is sent elsewhere.
func TestNothingMovesWhileTheOriginIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(47, 3*piece.SizeMin))
		s.origin.noLength, s.origin.hang = true, piece.SizeMin
		seed := s.seed()
		a := s.node(nil)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			_, err := s.read(ctx, a, s.spec(), 0, 1)
			ended <- err
		}()
		time.Sleep(5 * time.Second)
		for _, n := range []*node{seed, a} {
			before := n.engine.Signs(s.spec().ID).Moved
			time.Sleep(10 * time.Second)
			assert.Equal(t, before, n.engine.Signs(s.spec().ID).Moved)
		}
		cancel()
		require.Error(t, <-ended)
	})
}

// TestALengthErrorIsNoStatus keeps the text of a length error apart from a registry's reply.
func TestALengthErrorIsNoStatus(t *testing.T) {
	f := source.Failure(fmt.Errorf("bringing a blob: %w",
		&source.LengthError{Method: "GET", URL: "http://r.test/x", Want: 5, Got: 7}))
	assert.Equal(t, http.StatusBadGateway, f.Status)
	assert.False(t, f.Personal())
	f.Promise = true
	assert.True(t, f.Personal())
}

var _ piece.Store = noSpools{memstore.New(memstore.Config{})}
