package daemon_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/test/registrytest"
)

// TestALayerLargerThanTheQuotaPassesBy pulls a layer for which the supernode has room, and the node has none.
func TestALayerLargerThanTheQuotaPassesBy(t *testing.T) {
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
