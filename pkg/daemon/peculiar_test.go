package daemon_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/test/registrytest"
)

// What a registry of an odd kind gives a client directly, it gives the client through the mirror: with the client's own
// login, with the anonymous token, and with the node's login. It sends each blob once.
func TestPeculiarRegistries(t *testing.T) {
	t.Parallel()
	users := map[string]registrytest.User{
		"":      {Pull: []string{"team/*"}},
		"alice": {Password: "a", Pull: []string{"team/*"}},
	}
	for _, peculiar := range registrytest.Peculiarities() {
		t.Run(peculiar.Name, func(t *testing.T) {
			for _, login := range []string{"the client's login", "the anonymous token", "the node's login"} {
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
					case "the anonymous token":
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
						// crane, for instance, asks for the tag by GET and takes the type of the answer.
						res, b, err := c.do(http.MethodGet, p.Repository+"/manifests/v1")
						require.NoError(t, err)
						require.Equal(t, 200, res.StatusCode, "%.300s", b)
						assert.Equal(t, p.Digest, string(oci.DigestOf(b)))
						assert.Contains(t, res.Header.Get("Content-Type"), "manifest")
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

// Every request of a cold and a warm pull that reaches the registry names Darter and the client: a HEAD that an owner
// sends for a node, a seed's GET, and the logins.
func TestTheRegistrySeesTheClientsAgent(t *testing.T) {
	const word = "a secret that is long enough for a cluster"
	var mu sync.Mutex
	agents := map[string]int{}
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: map[string]registrytest.User{
		"": {Pull: []string{"team/*"}},
	}, Peculiarity: func(_ *registrytest.Registry, w http.ResponseWriter, req *http.Request, next http.HandlerFunc) {
		mu.Lock()
		agents[req.UserAgent()]++
		mu.Unlock()
		next(w, req)
	}})
	p := image(t, r, 300e3, 50e3)
	s, _ := lead(t, r, word)
	for i, client := range []*runtime{{ns: r.Host()}, {prefix: r.Host()}} {
		cfg := settings(t, r, fmt.Sprint("node", i))
		cfg.Cluster.Secret, cfg.Supernodes = word, []config.Address{config.Address(s.Addrs()["api"])}
		d, _ := start(t, cfg)
		client.mirror = d.Addrs()["mirror"]
		if i == 0 { // for the other client the mirror gets the token
			require.NoError(t, client.login(`Bearer realm="`+r.URL()+`/token",service="`+r.Host()+
				`",scope="repository:team/app:pull"`, "", ""))
			mu.Lock()
			agents = map[string]int{}
			mu.Unlock()
		}
		require.NoError(t, client.pull(p.Repository, "v1", "", ""))
	}
	mu.Lock()
	defer mu.Unlock()
	for agent := range agents {
		assert.Regexp(t, `^darter/[^ ]+ \(Go-http-client/1\.1\)$`, agent)
	}
	assert.NotEmpty(t, agents)
	assert.Less(t, r.Counts().Egress, p.Bytes()+50e3, "clients of any agent share the bytes")
}

// A registry may take manifests of more than 4 MiB, which crane and regclient pull. It may name no digest, state no
// length, and serve by tag alone.
func TestALargeManifest(t *testing.T) {
	t.Parallel()
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[],"annotations":{"a":%q}}`,
		oci.MediaTypeIndex, strings.Repeat("large ", 1e6))
	digest := string(oci.DigestOf(manifest))
	for name, c := range map[string]struct{ digest, length, onlyTag bool }{
		"with digest and length": {true, true, false}, "without digest": {false, true, false},
		"without digest and length": {false, false, false}, "without length": {true, false, false},
		"by tag alone": {true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			var sent atomic.Int64
			r := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if !strings.Contains(req.URL.Path, "/manifests/") {
					return
				}
				if c.onlyTag && strings.HasSuffix(req.URL.Path, digest) {
					w.WriteHeader(http.StatusNotFound)
					return
				}
				if c.digest {
					w.Header().Set("Docker-Content-Digest", digest)
				}
				if c.length {
					w.Header().Set("Content-Length", fmt.Sprint(len(manifest)))
				}
				w.Header().Set("Content-Type", oci.MediaTypeIndex)
				if req.Method == http.MethodGet {
					n, _ := w.Write(manifest)
					sent.Add(int64(n))
				}
			}))
			t.Cleanup(r.Close)
			host := r.Listener.Addr().String()
			cfg := settings(t, nil, "node")
			cfg.Upstreams = []config.Upstream{{Host: host, URLs: []string{r.URL}, PlainHTTP: true}}
			d, _ := start(t, cfg)
			client := &runtime{mirror: d.Addrs()["mirror"], ns: host}
			for range 3 {
				res, b, err := client.do(http.MethodGet, "team/app/manifests/v1")
				require.NoError(t, err)
				require.Equal(t, 200, res.StatusCode, "%.300s", b)
				assert.Equal(t, digest, res.Header.Get("Docker-Content-Digest"))
				assert.Equal(t, oci.MediaTypeIndex, res.Header.Get("Content-Type"))
				require.True(t, bytes.Equal(manifest, b))
			}
			assert.LessOrEqual(t, sent.Load(), int64(2*len(manifest)), "once for its digest, and once for all clients")
		})
	}
}

// A client may ask for a blob before any client pulled its manifest here. Only the registry states its length then.
// Its HEAD may be wrong or refused, and so may a request for a part.
func TestABlobWithoutItsManifest(t *testing.T) {
	t.Parallel()
	blob := bytes.Repeat([]byte("a blob of a registry "), 20e3)
	for name, c := range map[string]struct {
		head, part int  // the statuses of a HEAD and of a request with a Range; 0 is the right answer
		more       int  // bytes that a HEAD states too many
		chunked    bool // a GET states no length
	}{
		"HEAD states more, GET nothing":   {0, 0, 7, true},
		"HEAD states less, GET nothing":   {0, 0, -7, true},
		"HEAD gets 405, a range gets 416": {405, 416, 0, false},
		"HEAD gets 405, a range gets 400": {405, 400, 0, false},
		"HEAD gets 501, a range gets 501": {501, 501, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				part := req.Header.Get("Range") != ""
				switch {
				case req.Method == http.MethodHead && c.head != 0:
					w.WriteHeader(c.head)
				case req.Method == http.MethodHead:
					w.Header().Set("Content-Length", fmt.Sprint(len(blob)+c.more))
				case part && c.part != 0:
					w.WriteHeader(c.part)
				case part:
					http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(blob))
				default:
					if !c.chunked {
						w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
					}
					_, _ = w.Write(blob)
				}
			}))
			t.Cleanup(r.Close)
			host := r.Listener.Addr().String()
			cfg := settings(t, nil, "node")
			cfg.Upstreams = []config.Upstream{{Host: host, URLs: []string{r.URL}, PlainHTTP: true}}
			d, _ := start(t, cfg)
			for range 2 {
				for _, client := range []*runtime{{ns: host}, {prefix: host}} {
					client.mirror = d.Addrs()["mirror"]
					res, b, err := client.do(http.MethodGet, "team/app/blobs/"+string(oci.DigestOf(blob)))
					require.NoError(t, err)
					require.Equal(t, 200, res.StatusCode, "%.300s", b)
					require.True(t, bytes.Equal(blob, b))
				}
			}
		})
	}
}
