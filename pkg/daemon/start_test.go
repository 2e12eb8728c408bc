package daemon_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/node"
)

// A dfdaemon starts, serves its clients and ends while no name server answers.
func TestStartWithoutAnsweringDNS(t *testing.T) {
	asked := make(chan string, 1000)
	was := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = was })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, at string) (net.Conn, error) {
		select {
		case asked <- at:
		default:
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	cfg := settings(t, nil, "n")
	cfg.Supernodes = []config.Address{"supernode-0.test:65000", "supernode-1.test:65000"}
	cfg.Peer.Listen, cfg.Peer.Advertise = "0.0.0.0:0", ""
	cfg.Cluster.Insecure = true

	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := daemon.New(cfg, log(t, "n"), node.WithStart(ctx))
		failed <- err
	}()
	<-asked
	cancel()
	require.Error(t, <-failed, "the end of the start ends it")

	d, err := daemon.New(cfg, log(t, "n"))
	require.NoError(t, err)
	stop := run(t, d)
	response, err := http.Get("http://" + d.Addrs()["api"] + "/healthz")
	require.NoError(t, err)
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	assert.Equal(t, "ok\n", string(body))
	require.NoError(t, response.Body.Close())
	stop()
}
