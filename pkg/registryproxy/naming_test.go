package registryproxy_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/test/registrytest"
)

func TestEachListenerHasADefaultOfItsOwn(t *testing.T) {
	up := &upstreamFunc{answer: answers(nil)}
	p := newMirror(config{Upstream: up, Open: (&swarm{}).Open, Default: "docker.io"})
	for want, handler := range map[string]http.Handler{"docker.io/v2/library/app": p,
		"quay.io/v2/app":     p.For("quay.io"),
		"r.test:5000/v2/app": p.For("r.test:5000")} {
		ask(handler, http.MethodGet, "/v2/app/manifests/v1")
		last := up.requests()[len(up.requests())-1]
		assert.Equal(t, want+"/manifests/v1", last.Upstream+last.Path)
		ask(handler, http.MethodGet, "/v2/ghcr.io/lib/app/manifests/v1")
		last = up.requests()[len(up.requests())-1]
		assert.Equal(t, "ghcr.io/v2/lib/app/manifests/v1", last.Upstream+last.Path, "a name goes before the default")
	}
	refusedAs(t, ask(p.For(""), http.MethodGet, "/v2/app/manifests/v1"), http.StatusNotFound, "NAME_UNKNOWN")
}

func TestTwoRegistriesInOneHeaderAreRefused(t *testing.T) {
	const target = "/v2/lib/app/manifests/v1"
	for _, name := range []string{"X-Darter-Upstream", "X-Dragonfly-Registry"} {
		up := &upstreamFunc{answer: answers(nil)}
		p := newMirror(config{Upstream: up, Open: (&swarm{}).Open, Default: "docker.io"})
		refusedAs(t, ask(p, http.MethodGet, target, name, "quay.io", name, "ghcr.io"), http.StatusBadRequest,
			"NAME_INVALID")
		assert.Empty(t, up.requests())
		ask(p, http.MethodGet, target, name, "quay.io", name, "quay.io")
		require.NotEmpty(t, up.requests())
		assert.Equal(t, "quay.io", up.requests()[0].Upstream, "twice the same is one")
	}
}

func TestAPingWithoutAListedDefaultSucceeds(t *testing.T) {
	up := &upstreamFunc{
		answer: func(w http.ResponseWriter, q source.RegistryRequest) { w.WriteHeader(http.StatusUnauthorized) }}
	p := newMirror(config{Upstream: up, Open: (&swarm{}).Open, Default: "docker.io",
		Allow: func(upstream string) error {
			if upstream != "quay.io" {
				return errors.New("not listed")
			}
			return nil
		}})
	for _, target := range []string{"/v2/", "/v2"} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			res := ask(p, method, target)
			assert.Equal(t, 200, res.StatusCode)
			assert.Equal(t, "registry/2.0", res.Header.Get("Docker-Distribution-API-Version"))
			assert.Equal(t, "2", res.Header.Get("Content-Length"))
		}
	}
	assert.Empty(t, up.requests())
	// A client that names it gets the error.
	for _, target := range []string{"/v2/?ns=docker.io", "/v2/docker.io/", "/v2/app/manifests/v1"} {
		refusedAs(t, ask(p, http.MethodGet, target), http.StatusForbidden, "DENIED")
	}
	assert.Equal(t, 401, ask(p, http.MethodGet, "/v2/?ns=quay.io").StatusCode)
}

func TestTheDefaultsTokenReadsPublicImagesElsewhere(t *testing.T) {
	users := map[string]registrytest.User{"": {Pull: []string{"public/*"}}}
	standard := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	other := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	img, err := registrytest.NewImage(4, []int64{5000})
	require.NoError(t, err)
	var pushed registrytest.Pushed
	for _, repository := range []string{"public/app", "private/app"} {
		pushed, err = other.Push(t.Context(), repository, "v1", img)
		require.NoError(t, err)
	}
	// crane asks /v2/ of the mirror, logs in at the default's token service, and sends the token to every registry in the
	// path.
	mirror := "http://" + mirrorOf(t, config{Default: standard.Host()}) + "/v2/"
	challenge := fetch(t, http.MethodGet, mirror).Header.Get("WWW-Authenticate")
	assert.Contains(t, challenge, standard.Host())
	got := token(t, challenge+`,scope="repository:x:pull"`, "", "")
	accept := strings.Join(oci.ManifestTypes(), ", ")
	for repository, status := range map[string]int{"public/app": 200, "private/app": 401} {
		for _, reference := range []string{"v1", pushed.Digest} {
			path := strings.Replace(other.Host(), ":", "_", 1) + "/" + repository + "/manifests/" + reference
			res := fetch(t, http.MethodGet, mirror+path, "Authorization", got, "Accept", accept)
			assert.Equal(t, status, res.StatusCode, path)
			if status == 401 {
				assert.Contains(t, res.Header.Get("WWW-Authenticate"), other.Host())
			}
		}
		if status == 200 {
			other.Reset()
			for _, o := range pushed.Objects[1:] {
				path := strings.Replace(other.Host(), ":", "_", 1) + "/" + repository + "/blobs/" + o.Digest
				res := fetch(t, http.MethodHead, mirror+path, "Authorization", got)
				assert.Equal(t, 200, res.StatusCode, path)
			}
			assert.Zero(t, other.Counts().Requests, "the manifest granted its blobs to anonymous clients")
		}
		// A client that names the registry by ?ns= answers that registry's challenge.
		res := fetch(t, http.MethodGet, mirror+repository+"/manifests/v1?ns="+other.Host(), "Authorization", got,
			"Accept", accept)
		assert.Equal(t, 401, res.StatusCode)
	}
}
