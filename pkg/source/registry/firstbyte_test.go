package registry_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/registry"
	"github.com/darter-io/darter/pkg/task"
)

// TestFirstByteIsOfAnUpstream has one registry answer late and another one never.
func TestFirstByteIsOfAnUpstream(t *testing.T) {
	for name, c := range map[string]struct {
		all, own time.Duration // of all upstreams and of this one
		late     bool          // the registry answers after all
		status   int
	}{
		"late, and it may be":   {time.Millisecond, time.Hour, true, http.StatusOK},
		"late, and all may be":  {time.Hour, 0, true, http.StatusOK},
		"never":                 {time.Hour, time.Millisecond, false, http.StatusGatewayTimeout},
		"never, and all others": {time.Millisecond, 0, false, http.StatusGatewayTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !c.late {
					<-r.Context().Done()
					return
				}
				time.Sleep(20 * time.Millisecond) // more than all
				fmt.Fprintf(w, "%s", content)
			}))
			defer s.Close()
			host := strings.TrimPrefix(s.URL, "http://")
			cfg := loopback
			cfg.HeaderTimeout = c.all
			r := client(t, registry.Config{HTTP: cfg, Upstreams: map[string]registry.Upstream{
				host: {PlainHTTP: true, Proxy: "none", FirstByte: c.own},
			}})
			spec := task.Spec{ID: oci.DigestOf(content), Kind: task.Blob, Upstream: host, Repository: "lib/app",
				Authorization: "Bearer x"}
			assert.Equal(t, c.status, statusOf(bring(t, r, spec, 0)))
			want := c.own
			if want == 0 {
				want = c.all
			}
			assert.Equal(t, want, r.FirstByte(host))
			assert.Zero(t, r.FirstByte("other.test"))
			res, err := r.Do(t.Context(), source.RegistryRequest{Upstream: host, Method: http.MethodHead,
				Path: "/v2/lib/app/manifests/v1"})
			if c.status == http.StatusOK {
				require.NoError(t, err)
				res.Body.Close()
				return
			}
			require.Error(t, err)
		})
	}
}
