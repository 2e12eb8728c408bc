package registry_test

import (
	"maps"
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/registry"
	"github.com/darter-io/darter/test/registrytest"
)

func TestEachRequestIsObserved(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	spec := blob(t, r, "team/app")
	r.Fail(registrytest.Fault{Action: registrytest.ActRedirect})
	type seen struct {
		upstream string
		purpose  registry.Purpose
		status   int
	}
	var mu sync.Mutex
	count := map[seen]int{}
	c := client(t, registry.Config{
		Upstreams: map[string]registry.Upstream{r.Host(): {PlainHTTP: true, Proxy: "none", Username: "alice",
			Password: "hunter2"}},
		Default: &registry.Upstream{PlainHTTP: true, Proxy: "none"}, HTTP: loopback,
		Observe: func(upstream string, p registry.Purpose, status int) {
			mu.Lock()
			defer mu.Unlock()
			count[seen{upstream, p, status}]++
		},
	})
	require.NoError(t, bring(t, c, spec, 0))
	r.ClearFaults()
	for _, path := range []string{"/v2/", "/v2/team/app/manifests/missing"} {
		res, _ := ask(t, c, source.RegistryRequest{Upstream: r.Host(), Method: http.MethodGet, Path: path, Anonymous: true})
		res.Body.Close()
	}
	_, err := c.Do(t.Context(), source.RegistryRequest{Upstream: "127.0.0.1:1", Method: http.MethodHead,
		Path: "/v2/a/blobs/" + string(spec.ID)})
	require.Error(t, err)
	mu.Lock()
	defer mu.Unlock()
	assert.Equal(t, 1, count[seen{r.Host(), registry.ForBlob, 307}], "the redirect")
	assert.Equal(t, 1, count[seen{r.Host(), registry.ForBlob, 200}], "its storage counts for the registry")
	assert.Equal(t, 1, count[seen{r.Host(), registry.ForManifest, 404}])
	assert.Equal(t, 1, count[seen{"", registry.ForBlob, 0}], "no registry answers there")
	assert.Positive(t, count[seen{r.Host(), registry.ForToken, 401}], "the ping that names the token service")
	assert.Equal(t, r.Counts().Tokens, count[seen{r.Host(), registry.ForToken, 200}], "the token service")
	for _, s := range slices.Collect(maps.Keys(count)) {
		assert.Contains(t, []string{r.Host(), ""}, s.upstream)
	}
}
