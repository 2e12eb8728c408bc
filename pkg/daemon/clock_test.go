package daemon_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/cli"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/node"
	"github.com/darter-io/darter/pkg/supernode"
	"github.com/darter-io/darter/test/registrytest"
)

// wallClock is a machine's wall clock that a test can set.
type wallClock struct{ ahead atomic.Int64 }

func (c *wallClock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *wallClock) set(ahead time.Duration) { c.ahead.Store(int64(ahead)) }

// counted counts the log lines that hold all of the words.
type counted struct {
	words []string
	n     atomic.Int32
}

func (c *counted) see(line []byte) {
	for _, w := range c.words {
		if !bytes.Contains(line, []byte(w)) {
			return
		}
	}
	c.n.Add(1)
}

// clocked is a cluster of a supernode and two nodes, each with its own clock.
type clocked struct {
	registry *registrytest.Registry
	image    registrytest.Pushed
	// The clocks of the supernode, of one and of two.
	clocks [3]wallClock
	super  *supernode.Supernode
	nodes  [2]*daemon.Daemon
	// told counts the log lines of two that show both clocks.
	told counted
	// differ counts the log lines about a small difference.
	differ counted
}

func newClocked(t *testing.T, layers ...int64) *clocked {
	c := &clocked{registry: registrytest.Start(t, registrytest.Config{}),
		told:   counted{words: []string{"level=WARN", "too far from its own", "this host's clock says", "NTP"}},
		differ: counted{words: []string{"level=WARN", "clocks differ", "NTP"}}}
	c.image = image(t, c.registry, layers...)
	var top config.Supernode
	require.NoError(t, config.NewForm("supernode", &top).Load([]string{
		"DARTER_NODE_DATA_DIR=" + filepath.Join(t.TempDir(), "s"), "DARTER_CACHE_QUOTA=1GiB",
		"DARTER_API_LISTEN=127.0.0.1:0",
		"DARTER_PEER_LISTEN=127.0.0.1:0", "DARTER_ADMIN_LISTEN=127.0.0.1:0",
		"DARTER_CLUSTER_SECRET=" + wordOfTheCluster.Reveal(),
	}))
	top.Upstreams = []config.Upstream{{Host: c.registry.Host(), URLs: []string{c.registry.URL()}, PlainHTTP: true}}
	var err error
	c.super, err = supernode.New(top, log(t, "supernode"), node.WithClock(c.clocks[0].now))
	require.NoError(t, err)
	run(t, c.super)
	for i := range c.nodes {
		cfg := settings(t, c.registry, fmt.Sprint("node", i+1))
		cfg.Cluster.Secret, cfg.Supernodes = wordOfTheCluster, []config.Address{config.Address(c.super.Addrs()["api"])}
		// This shows what a host does without help.
		cfg.Peer.Standby = false
		watch := func([]byte) {}
		if i == 1 {
			watch = func(line []byte) { c.told.see(line); c.differ.see(line) }
		}
		c.nodes[i], err = daemon.New(cfg, log(t, cfg.Node.Name, watch), node.WithClock(c.clocks[i+1].now))
		require.NoError(t, err)
		run(t, c.nodes[i])
	}
	return c
}

// pulled pulls a layer at a node, checks its bytes, and returns how often the registry has sent it.
func (c *clocked) pulled(t *testing.T, n, layer int) int {
	t.Helper()
	digest := c.image.Layers()[layer].Digest
	at := fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", c.nodes[n].Addrs()["mirror"], c.image.Repository, digest,
		c.registry.Host())
	require.NoError(t, get(t.Context(), at, digest, "application/octet-stream", nil))
	return c.registry.Counts().Object(digest).GETs
}

func TestClockJumpsDuringPulls(t *testing.T) {
	t.Parallel()
	for _, jump := range []time.Duration{-72 * time.Hour, 72 * time.Hour} {
		for i, whose := range []string{"the supernode's", "", "the node's"} {
			if whose == "" {
				continue
			}
			t.Run(fmt.Sprint(whose, " ", jump), func(t *testing.T) {
				c := newClocked(t, 700_000, 800_000, 900_000)
				c.pulled(t, 0, 0)
				assert.Equal(t, 1, c.pulled(t, 1, 0), "one copy while the clocks agree")

				c.clocks[i].set(jump)
				if i == 2 {
					c.pulled(t, 0, 1)
				}
				assert.LessOrEqual(t, c.pulled(t, 1, 1), 2, "the node brings it itself, once")
				assert.LessOrEqual(t, c.pulled(t, 0, 1), 2)
				soon(t, c.nodes[1].Addrs()["api"], func(a *assert.CollectT, s api.Status) {
					require.Len(a, s.Owners, 1)
					assert.False(a, s.Owners[0].Alive)
					assert.Contains(a, s.Owners[0].Error, "this host's clock says")
					assert.Contains(a, s.Owners[0].Error, "set the clock that is wrong")
					assert.True(a, s.Embedded)
					assert.InDelta(a, (72 * time.Hour).Seconds(), max(s.Owners[0].Skew, -s.Owners[0].Skew), 60)
					var text strings.Builder
					assert.NoError(a, cli.WriteStatus(&text, s, time.Now()))
					assert.Contains(a, text.String(), "this host's clock says")
				})
				// The log line follows a moment after the response.
				assert.Eventually(t, func() bool { return c.told.n.Load() > 0 }, time.Minute, 10*time.Millisecond)
				assert.LessOrEqual(t, c.told.n.Load(), int32(2), "one line names both clocks and the remedy; a second one "+
					"follows if the owner has answered a request from before the jump in between")
				want := map[int]int{0: 0, 2: 1}[i]
				soon(t, c.super.Addrs()["admin"], func(a *assert.CollectT, s api.Status) {
					assert.Equal(a, want, s.Hosts, "no host gets an unreachable neighbour")
				})

				c.clocks[i].set(0)
				for _, n := range c.nodes {
					soon(t, n.Addrs()["api"], func(a *assert.CollectT, s api.Status) {
						require.Len(a, s.Owners, 1)
						assert.True(a, s.Owners[0].Alive)
						assert.False(a, s.Embedded)
					})
				}
				c.pulled(t, 0, 2)
				assert.Equal(t, 1, c.pulled(t, 1, 2), "one copy again")
			})
		}
	}
}

func TestSmallClockSkewIsReported(t *testing.T) {
	c := newClocked(t, 700_000)
	c.clocks[2].set(20 * time.Hour)
	c.pulled(t, 0, 0)
	assert.Equal(t, 1, c.pulled(t, 1, 0))
	assert.EqualValues(t, 1, c.differ.n.Load())
	soon(t, c.nodes[1].Addrs()["api"], func(a *assert.CollectT, s api.Status) {
		require.Len(a, s.Owners, 1)
		assert.True(a, s.Owners[0].Alive)
		var text strings.Builder
		assert.NoError(a, cli.WriteStatus(&text, s, time.Now()))
		assert.Contains(a, text.String(), "BEHIND this one")
	})
}

func TestClockSetBackLeavesANodeWorking(t *testing.T) {
	c := &clocked{registry: registrytest.Start(t, registrytest.Config{})}
	c.image = image(t, c.registry, 700_000, 800_000, 900_000)
	cfg := settings(t, c.registry, "alone")
	cfg.Cluster.Secret = wordOfTheCluster
	var err error
	c.nodes[0], err = daemon.New(cfg, log(t, "alone"), node.WithClock(c.clocks[1].now))
	require.NoError(t, err)
	run(t, c.nodes[0])
	for layer, ahead := range []time.Duration{0, -72 * time.Hour, 72 * time.Hour} {
		c.clocks[1].set(ahead)
		assert.Equal(t, 1, c.pulled(t, 0, layer))
	}
}
