package daemon_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/portmux"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/test/registrytest"
)

const newWord = secret.String("another secret that is long enough, too")

// rotating is a cluster whose programs get another secret, one after the other.
type rotating struct {
	registry *registrytest.Registry
	image    registrytest.Pushed
	nodes    []*daemon.Daemon
	// reload gives a program its secrets, status is its status API.
	reload []func(secret.String) error
	status []string
}

// pull pulls one layer at every node at once.
func (c *rotating) pull(ctx context.Context, layer int) error {
	digest := c.image.Layers()[layer].Digest
	var g errgroup.Group
	for _, n := range c.nodes {
		g.Go(func() error {
			at := fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", n.Addrs()["mirror"], c.image.Repository, digest,
				c.registry.Host())
			return get(ctx, at, digest, "application/octet-stream", nil)
		})
	}
	return g.Wait()
}

// once checks that the registry has sent a layer once.
func (c *rotating) once(t *testing.T, layer int, why string) {
	t.Helper()
	assert.Equal(t, 1, c.registry.Counts().Object(c.image.Layers()[layer].Digest).GETs, "layer %d, %s", layer, why)
}

func TestSecretChangesDuringPulls(t *testing.T) {
	t.Parallel()
	steps := []secret.String{wordOfTheCluster + "\n" + newWord, newWord + "\n" + wordOfTheCluster, newWord}
	const programs = 3
	c := &rotating{registry: registrytest.Start(t, registrytest.Config{})}
	sizes := []int64{900e3}
	for range len(steps) * programs {
		sizes = append(sizes, 300e3+int64(len(sizes))*1000)
	}
	c.image = image(t, c.registry, sizes...)
	top := supernodeSettings(t, config.Upstream{Host: c.registry.Host(), URLs: []string{c.registry.URL()},
		PlainHTTP: true}, wordOfTheCluster)
	s, _ := startSupernode(t, top)
	c.reload = append(c.reload, func(w secret.String) error {
		top.Cluster.Secret = w
		return s.Reload(&top)
	})
	c.status = append(c.status, s.Addrs()["admin"])
	add := func(name string, word secret.String) *daemon.Daemon {
		cfg := settings(t, c.registry, name)
		cfg.Cluster.Secret, cfg.Supernodes = word, []config.Address{config.Address(s.Addrs()["api"])}
		cfg.Peer.Standby = false
		d, _ := start(t, cfg)
		c.nodes = append(c.nodes, d)
		c.reload = append(c.reload, func(w secret.String) error {
			cfg.Cluster.Secret = w
			return d.Reload(&cfg)
		})
		c.status = append(c.status, d.Addrs()["api"])
		soon(t, d.Addrs()["api"], func(a *assert.CollectT, got api.Status) { assert.False(a, got.Embedded) })
		return d
	}
	for i := range programs - 1 {
		add(fmt.Sprint("node", i+1), wordOfTheCluster)
	}
	require.NoError(t, c.pull(t.Context(), 0))
	c.once(t, 0, "before the change")

	layer := 0
	for step, text := range steps {
		for i := range programs {
			layer++
			pulled := make(chan error, 1)
			go func() { pulled <- c.pull(t.Context(), layer) }()
			require.NoError(t, c.reload[i](text))
			require.NoError(t, <-pulled, "step %d, program %d", step+1, i)
			c.once(t, layer, "during the change")
		}
		for i, at := range c.status {
			soon(t, at, func(a *assert.CollectT, got api.Status) {
				require.NotEmpty(a, got.Secrets)
				assert.True(a, got.Secrets[0].First)
				assert.False(a, got.RenewingProofs)
				if step == 1 {
					require.Len(a, got.Secrets, 2)
					assert.False(a, got.Secrets[0].Last.IsZero(), "program %d uses the new secret", i)
				}
			})
		}
	}
	second := add("node3", newWord)
	c.nodes = []*daemon.Daemon{second}
	for n := range sizes {
		require.NoError(t, c.pull(t.Context(), n))
		c.once(t, n, "for a node that has the new secret only")
	}
	soon(t, second.Addrs()["api"], func(a *assert.CollectT, got api.Status) {
		assert.Zero(a, got.Received.Origin)
		assert.False(a, got.Embedded)
	})

	gone, err := identity.New(identity.Config{Secret: wordOfTheCluster, HostID: host.NewID()})
	require.NoError(t, err)
	for _, addr := range []string{s.Addrs()["api"], s.Addrs()["peer"], second.Addrs()["peer"]} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err = gone.WrapDialer(new(net.Dialer).DialContext, portmux.ProtocolAPI)(ctx, "tcp", addr)
		cancel()
		require.ErrorIs(t, err, identity.ErrNotMember, addr)
	}
}
