package daemon_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/test/registrytest"
)

// TestALayerLargerThanTheQuotaPassesBy pulls a layer for which the supernode has room, and the node has none.
func TestALayerLargerThanTheQuotaPassesBy(t *testing.T) {
	t.Parallel()
	const word = "a secret that is long enough for a cluster"
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 9e6)
	s, _ := lead(t, r, word)
	cfg := settings(t, r, "node")
	cfg.Cluster.Secret, cfg.Supernodes = word, []config.Address{config.Address(s.Addrs()["api"])}
	cfg.Cache.Quota = 2 << 20
	d, _ := start(t, cfg)
	layer := p.Layers()[0]
	for range 2 {
		for _, get := range []func(*testing.T, *daemon.Daemon, *registrytest.Registry, registrytest.Pushed,
			registrytest.Object) (int, []byte){ask, askByPath} {
			code, body := get(t, d, r, p, layer)
			require.Equal(t, http.StatusOK, code, "%.300s", body)
			assert.Equal(t, layer.Digest, string(oci.DigestOf(body)))
		}
	}
	assert.LessOrEqual(t, r.Counts().Egress, layer.Size+100, "the registry sends it once")
	assert.Zero(t, status(t, d.Addrs()["api"]).Cache.Tasks)
}

// TestALayerLargerThanTheSupernodesQuota pulls a layer for which the nodes have room, and the supernode has none.
func TestALayerLargerThanTheSupernodesQuota(t *testing.T) {
	t.Parallel()
	const word, nodes = "a secret that is long enough for a cluster", 4
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 9e6)
	top := supernodeSettings(t, config.Upstream{Host: r.Host(), URLs: []string{r.URL()}, PlainHTTP: true}, word)
	top.Cache.Quota = 2 << 20
	s, _ := startSupernode(t, top)
	layer := p.Layers()[0]
	var g errgroup.Group
	var daemons []*daemon.Daemon
	for i := range nodes {
		cfg := settings(t, r, fmt.Sprint("node", i))
		cfg.Cluster.Secret, cfg.Supernodes = word, []config.Address{config.Address(s.Addrs()["api"])}
		d, _ := start(t, cfg)
		daemons = append(daemons, d)
	}
	for _, d := range daemons {
		g.Go(func() error { return pull(context.Background(), d.Addrs()["mirror"], r, p) })
	}
	require.NoError(t, g.Wait())
	assert.LessOrEqual(t, r.Counts().Object(layer.Digest).GETs, 2, "the supernode's attempt, and that of one node")
	var fromRegistry int64
	for _, d := range daemons {
		soon(t, d.Addrs()["api"], func(c *assert.CollectT, got api.Status) {
			assert.GreaterOrEqual(c, got.Received.Origin+got.Received.Peers+got.Received.Seeds, layer.Size)
		})
		fromRegistry += status(t, d.Addrs()["api"]).Received.Origin
	}
	assert.Less(t, fromRegistry, 2*layer.Size, "one node fetches it for all")
}
