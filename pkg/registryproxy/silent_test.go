package registryproxy_test

import (
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/source"
)

// TestTheBreakerSkipsASilentRegistry covers a registry behind a dead network link, which is silent. A client gives up
// after ten seconds, so the mirror serves without the registry before that, if it may.
func TestTheBreakerSkipsASilentRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s swarm
		id := s.put(oldIndex, oci.MediaTypeIndex)
		layers := []string{string(s.put(blob(10), "")), string(s.put(blob(20), "")), string(s.put(blob(30), ""))}
		up := &upstreamFunc{}
		known := map[string]object{"r.test/v2/app/manifests/v1": {oldIndex, oci.MediaTypeIndex},
			"r.test/v2/app/manifests/" + string(id): {oldIndex, oci.MediaTypeIndex}}
		for i, l := range layers {
			known["r.test/v2/app/blobs/"+l] = object{blob(10 * (i + 1)), ""}
		}
		up.reply(answers(known))
		p := newMirror(config{
			Upstream: up, Open: s.Open, Default: "r.test",
			Policy: access.Policy{ServeCached: true, TagLife: 10 * time.Second, TagStale: time.Hour},
		})
		pull := func() (took time.Duration) {
			began := time.Now()
			for _, path := range []string{"manifests/v1", "blobs/" + layers[0], "blobs/" + layers[1],
				"blobs/" + layers[2]} {
				require.Equal(t, 200,
					ask(p, http.MethodGet, "/v2/app/"+path+"?ns=r.test", "Authorization", "Bearer opaque").StatusCode,
					path)
			}
			return time.Since(began)
		}
		assert.Zero(t, pull())
		time.Sleep(5 * time.Minute)
		up.reply(nil) // from now on it is silent
		assert.Equal(t, 2*time.Second, pull(), "waited for once, and not at each object")
		assert.Zero(t, pull())
		time.Sleep(10 * time.Second)
		assert.Equal(t, 2*time.Second, pull(), "and again after a while")

		began := time.Now()
		assert.Equal(t, 504,
			ask(p, http.MethodGet, "/v2/app/manifests/v2?ns=r.test", "Authorization", "Bearer opaque").StatusCode)
		assert.Equal(t, 10*time.Second, time.Since(began), "a lookup without a fallback waits")
		up.reply(answers(known))
		time.Sleep(10 * time.Second)
		assert.Zero(t, pull())
		assert.Empty(t, ask(p, http.MethodGet, "/v2/app/manifests/v1?ns=r.test", "Authorization",
			"Bearer opaque").Header.Get(
			registryproxy.HeaderStale))
	})
}

// TestPublicImagesServeWhileTheRegistryIsDown covers containerd, which brings a token to a public image too if
// the registry asks for one. While the registry is down there are no tokens.
func TestPublicImagesServeWhileTheRegistryIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, public := range []bool{true, false} {
			r := newFixture(config{Policy: access.Policy{ServeCached: true, TagStale: 24 * time.Hour}})
			var f family
			known := answers(f.put(&r.swarm))
			r.up.reply(func(w http.ResponseWriter, q source.RegistryRequest) {
				if q.Header.Get("Authorization") == "" && !(public && q.Anonymous) {
					w.Header().Set("WWW-Authenticate", "Bearer realm")
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				known(w, q)
			})
			pull := func(who string) (statuses []int) {
				for _, path := range []string{"manifests/v1", "manifests/" + string(f.index),
					"manifests/" + string(f.manifest),
					"blobs/" + string(f.config), "blobs/" + string(f.layer)} {
					statuses = append(statuses, r.get("app/"+path+"?ns=r.test", "Authorization", who).StatusCode)
				}
				synctest.Wait()
				return statuses
			}
			assert.Equal(t, []int{200, 200, 200, 200, 200}, pull("Bearer x"))
			time.Sleep(2 * time.Hour)
			r.up.fail(errors.New("connection refused"))
			want := []int{200, 200, 200, 200, 200}
			if !public {
				want = []int{502, 502, 502, 502, 502}
			}
			assert.Equal(t, want, pull(""), "public: %v", public)
		}
	})
}
