package registry_test

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/registry"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/test/registrytest"
)

// A registry redirects to another one that wants a token of its own: the node asks for the anonymous token there, and
// sends no credential.
func TestARedirectToARegistryWithTokens(t *testing.T) {
	other := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	public, private := blob(t, other, "public/app"), blob(t, other, "team/app")
	img, err := registrytest.NewImage(1, []int64{8 << 10})
	require.NoError(t, err)
	p, err := other.Push(t.Context(), "public/app", "v1", img)
	require.NoError(t, err)
	var mu sync.Mutex
	var seen []string
	tokens := 0
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		seen = append(seen, req.Header.Get("Authorization"))
		if req.URL.Path == "/token" {
			tokens++
		}
		mu.Unlock()
		other.ServeHTTP(rewriter{w, "http://" + req.Host + "/token"}, req)
	}))
	t.Cleanup(front.Close)
	to := ""
	first := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case req.URL.Path == "/v2/" && req.Header.Get("Authorization") == "":
			w.Header().Set("Www-Authenticate", `Basic realm="first"`)
			w.WriteHeader(http.StatusUnauthorized)
		case req.URL.Path == "/v2/":
		default:
			http.Redirect(w, req, front.URL+to+req.URL.Path[strings.LastIndex(req.URL.Path, "/"):],
				http.StatusTemporaryRedirect)
		}
	}))
	t.Cleanup(first.Close)
	host := first.Listener.Addr().String()
	of := func(u registry.Upstream) *registry.Client {
		u.PlainHTTP, u.Proxy = true, "none"
		return client(t, registry.Config{Upstreams: map[string]registry.Upstream{host: u}, HTTP: loopback})
	}
	at := func(spec task.Spec) task.Spec {
		spec.Upstream, spec.Repository = host, "lib/app"
		return spec
	}
	mine := "Basic " + base64.StdEncoding.EncodeToString([]byte("alice:hunter2"))
	for name, c := range map[string]struct {
		u             registry.Upstream
		authorization string
	}{
		"nobody's": {}, "the client's": {authorization: mine},
		"the node's": {u: registry.Upstream{Username: "alice", Password: "hunter2"}},
	} {
		c2 := of(c.u)
		to = "/v2/public/app/blobs"
		spec := at(public)
		spec.Authorization = secret.String(c.authorization)
		require.NoError(t, bring(t, c2, spec, 0), name)
		q := source.RegistryRequest{Upstream: host, Method: http.MethodHead, Path: "/v2/lib/app/blobs/" + string(public.ID),
			Header: http.Header{"Accept": oci.ManifestTypes()}}
		if c.authorization != "" {
			q.Header.Set("Authorization", c.authorization)
		}
		res, _ := ask(t, c2, q)
		assert.Equal(t, http.StatusOK, res.StatusCode, name)
		to = "/v2/public/app/manifests"
		q.Path, q.Method = "/v2/lib/app/manifests/"+p.Digest, http.MethodGet
		res, _ = ask(t, c2, q)
		assert.Equal(t, http.StatusOK, res.StatusCode, name)

		to = "/v2/team/app/blobs" // the anonymous token does not allow it
		spec = at(private)
		spec.Authorization = secret.String(c.authorization)
		assert.Equal(t, http.StatusForbidden, statusOf(bring(t, c2, spec, 0)), name)
	}
	for _, sent := range seen {
		assert.NotEqual(t, mine, sent)
		assert.True(t, sent == "" || strings.HasPrefix(sent, "Bearer "), sent)
	}

	// Nothing else makes the node ask for a token there.
	tokens = 0
	for _, elsewhere := range []string{
		"/v2/public/app/tags", "/storage/public/app/blobs", "/v2/public/app/blobs/" + string(private.ID) + "x",
		"/v2/Public/app/blobs",
	} {
		to = elsewhere
		require.Error(t, bring(t, of(registry.Upstream{}), at(public), 0), elsewhere)
	}
	to = "/v2/public/app/manifests"
	res, _ := ask(t, of(registry.Upstream{}), source.RegistryRequest{Upstream: host, Method: http.MethodGet,
		Path: "/v2/lib/app/manifests/v1"})
	assert.Equal(t, http.StatusForbidden, res.StatusCode, "a tag")
	assert.Zero(t, tokens)
}
