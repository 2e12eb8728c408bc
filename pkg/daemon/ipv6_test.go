package daemon_test

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/test/registrytest"
)

// TestPullOverIPv6 listens and advertises on IPv6, once on one address
// and once on all of them. It finds faults with brackets and wildcards.
func TestPullOverIPv6(t *testing.T) {
	t.Parallel()
	probe, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("needs ::1; enable IPv6 on the loopback interface to run this")
	}
	probe.Close()
	const word = "a secret that is long enough for a cluster"
	for _, row := range []struct{ name, listen, peer string }{
		{"on ::1", "[::1]:0", "[::1]:0"},
		{"on every address", ":0", ":0"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := registrytest.Start(t, registrytest.Config{})
			p := image(t, r, 3e6, 50e3)
			on := func(port string) string { return "[::1]:" + port }
			more := []string{"DARTER_API_LISTEN=" + row.listen, "DARTER_PEER_LISTEN=" + row.peer,
				"DARTER_ADMIN_LISTEN=[::1]:0"}
			free := func() string {
				l, err := net.Listen("tcp", "[::]:0")
				require.NoError(t, err)
				defer l.Close()
				_, port, err := net.SplitHostPort(l.Addr().String())
				require.NoError(t, err)
				return port
			}
			all := row.listen == ":0"
			if all {
				// The advertised address must be known beforehand.
				announce, pieces := free(), free()
				more = []string{"DARTER_ADMIN_LISTEN=[::1]:0", "DARTER_API_LISTEN=:" + announce,
					"DARTER_PEER_LISTEN=:" + pieces,
					"DARTER_API_ADVERTISE=" + on(announce), "DARTER_PEER_ADVERTISE=" + on(pieces)}
			}
			s, _ := lead(t, r, word, more...)
			owner := s.Addrs()["api"]
			if all {
				_, port, err := net.SplitHostPort(owner)
				require.NoError(t, err)
				owner = on(port)
				// Both families reach a port on every address.
				for _, host := range []string{"127.0.0.1", "::1"} {
					c, err := net.Dial("tcp", net.JoinHostPort(host, port))
					require.NoError(t, err, host)
					c.Close()
				}
			}
			assert.True(t, strings.HasPrefix(s.Addrs()["peer"], "[::1]:"), "%v", s.Addrs())

			var daemons []*daemon.Daemon
			for i := range 3 {
				cfg := settings(t, r, fmt.Sprintf("six%d", i))
				cfg.Cluster.Secret, cfg.Supernodes = word, []config.Address{config.Address(owner)}
				cfg.Mirror.Listen, cfg.API.Listen, cfg.Peer.Listen = "[::1]:0", "[::1]:0", config.Address(row.peer)
				d, _ := start(t, cfg)
				// It listens on all addresses and advertises the one of its route to the supernode.
				assert.True(t, strings.HasPrefix(d.Addrs()["peer"], "[::1]:"), "%v", d.Addrs())
				daemons = append(daemons, d)
			}
			var g errgroup.Group
			for _, d := range daemons {
				g.Go(func() error { return pull(t.Context(), d.Addrs()["mirror"], r, p) })
			}
			require.NoError(t, g.Wait())
			once(t, r, p, "each byte left the registry once")
			for _, d := range daemons {
				soon(t, d.Addrs()["api"], func(c *assert.CollectT, got api.Status) {
					assert.Equal(c, []api.OwnerStatus{{Addr: owner, Alive: true}}, got.Owners)
					assert.Zero(c, got.Received.Origin, "%s asked the registry itself", got.Host.Name)
					assert.GreaterOrEqual(c, got.Received.Peers+got.Received.Seeds, p.Bytes())
				})
			}
		})
	}
}
