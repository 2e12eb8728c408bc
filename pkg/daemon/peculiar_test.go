package daemon_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/test/registrytest"
)

// What a registry of an odd kind gives a client directly, it gives the client through the mirror: with the
// client's own login, with the token that anybody gets, and with the node's login. It sends each blob once.
func TestPeculiarRegistries(t *testing.T) {
	users := map[string]registrytest.User{
		"":      {Pull: []string{"team/*"}},
		"alice": {Password: "a", Pull: []string{"team/*"}},
	}
	for _, peculiar := range registrytest.Peculiarities() {
		t.Run(peculiar.Name, func(t *testing.T) {
			for _, login := range []string{"the client's login", "anybody's token", "the node's login"} {
				t.Run(login, func(t *testing.T) {
					peculiar.Config.Auth, peculiar.Config.Users = registrytest.Bearer, users
					r := registrytest.Start(t, peculiar.Config)
					p := image(t, r, 300e3, 50e3)
					cfg := settings(t, r, "node")
					trust(t, &cfg, r)
					c := &runtime{ns: r.Host(), roots: r.CertPool()}
					user := ""
					switch login {
					case "the client's login":
						user = "alice"
					case "anybody's token":
						c.prefix = r.Host() // the mirror then gets the token
					case "the node's login":
						file := filepath.Join(t.TempDir(), "password")
						require.NoError(t, os.WriteFile(file, []byte("a"), 0o600))
						cfg.Upstreams[0].Username, cfg.Upstreams[0].PasswordFile = "alice", file
					}
					d, _ := start(t, cfg)
					t.Cleanup(http.DefaultClient.CloseIdleConnections) // a server waits 5 s for a connection without a request
					c.mirror = d.Addrs()["mirror"]
					for range 2 {
						require.NoError(t, c.pull(p.Repository, "v1", user, "a"))
					}
					assert.Less(t, r.Counts().Egress, p.Bytes()+50e3, "each blob once, and small answers")
					assert.Zero(t, r.Counts().Leaks)
				})
			}
		})
	}
}

// trust lets a daemon verify the certificate of a registry with TLS.
func trust(t *testing.T, cfg *config.Dfdaemon, r *registrytest.Registry) {
	if r.CA() == nil {
		return
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(file, r.CA(), 0o600))
	cfg.Upstreams[0].CA, cfg.Upstreams[0].PlainHTTP = file, false
}

// A registry may have a moment later what it refuses now, so the next client's request goes to it again. No client
// receives an error that the registry sends for one attempt only.
func TestARefusalIsNotRemembered(t *testing.T) {
	for _, c := range []struct{ status, times, refused int }{
		{401, 2, 401}, {403, 2, 403}, {404, 1, 404}, {500, 1, 200}, // a 401 may be of another client's login
	} {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			r := registrytest.Start(t, registrytest.Config{})
			digest, err := r.PushBlob(t.Context(), "team/app", bytes.Repeat([]byte("pushed a moment later "), 1000))
			require.NoError(t, err)
			r.Fail(registrytest.Fault{Action: registrytest.ActStatus, Status: c.status, Times: c.times,
				Match: "GET team/app/blobs/"})
			d, _ := start(t, settings(t, r, "node"))
			client := &runtime{mirror: d.Addrs()["mirror"], ns: r.Host()}
			for _, want := range []int{c.refused, 200} {
				res, body, err := client.do(http.MethodGet, "team/app/blobs/"+digest)
				require.NoError(t, err)
				require.Equal(t, want, res.StatusCode, "%s", body)
			}
		})
	}
}
