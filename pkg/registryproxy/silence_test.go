package registryproxy_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/registryproxy"
)

// A registry behind a dead link refuses nothing: it is silent. A client gives up after ten
// seconds, so what may be served without the registry is served before.
func TestASilentRegistryIsNotWaitedForWhereThereIsSomethingToServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s swarm
		id := s.put(oldIndex, oci.MediaTypeIndex)
		layers := []string{string(s.put(blob(10), "")), string(s.put(blob(20), "")), string(s.put(blob(30), ""))}
		up := &upstreamFunc{}
		known := map[string]object{"r.test/v2/app/manifests/v1": {oldIndex, oci.MediaTypeIndex}, "r.test/v2/app/manifests/" + string(id): {oldIndex, oci.MediaTypeIndex}}
		for i, l := range layers {
			known["r.test/v2/app/blobs/"+l] = object{blob(10 * (i + 1)), ""}
		}
		up.answer = answers(known)
		p := registryproxy.New(registryproxy.Config{
			Upstream: up, Open: s.Open, Default: "r.test",
			Policy: registryproxy.Policy{ServeCached: true, TagLife: 10 * time.Second, TagStale: time.Hour},
		})
		pull := func() (took time.Duration) {
			began := time.Now()
			for _, path := range []string{"manifests/v1", "blobs/" + layers[0], "blobs/" + layers[1], "blobs/" + layers[2]} {
				require.Equal(t, 200, ask(p, http.MethodGet, "/v2/app/"+path+"?ns=r.test", "Authorization", "Bearer opaque").StatusCode, path)
			}
			return time.Since(began)
		}
		assert.Zero(t, pull())
		time.Sleep(5 * time.Minute)
		up.answer = nil // from now on it is silent
		assert.Equal(t, 2*time.Second, pull(), "waited for once, and not at each object")
		assert.Zero(t, pull())
		time.Sleep(10 * time.Second)
		assert.Equal(t, 2*time.Second, pull(), "and again after a while")

		began := time.Now()
		assert.Equal(t, 504, ask(p, http.MethodGet, "/v2/app/manifests/v2?ns=r.test", "Authorization", "Bearer opaque").StatusCode)
		assert.Equal(t, 10*time.Second, time.Since(began), "what nobody knows is waited for")
		up.answer = answers(known)
		time.Sleep(10 * time.Second)
		assert.Zero(t, pull())
		assert.Empty(t, ask(p, http.MethodGet, "/v2/app/manifests/v1?ns=r.test", "Authorization", "Bearer opaque").Header.Get(registryproxy.HeaderStale))
	})
}
