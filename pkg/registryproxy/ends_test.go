package registryproxy_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/task"
)

func TestEveryEndOfAContextGetsAResponse(t *testing.T) {
	layer := blob(5000)
	id := string(oci.DigestOf(layer))
	ends := map[string]struct {
		end    func(context.Context) context.Context
		status int // as Observe gets it
	}{
		"the client left": {func(ctx context.Context) context.Context {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return ctx
		}, 499},
		"the server stops": {func(ctx context.Context) context.Context {
			ctx, cancel := context.WithCancelCause(ctx)
			cancel(errors.New("this node is stopping"))
			return ctx
		}, 503},
		"its parent was cancelled": {func(ctx context.Context) context.Context {
			parent, cancel := context.WithCancelCause(ctx)
			ctx, stop := context.WithCancel(parent)
			t.Cleanup(stop)
			cancel(errors.New("this node is stopping"))
			return ctx
		}, 503},
		"its time is over": {func(ctx context.Context) context.Context {
			ctx, stop := context.WithDeadline(ctx, time.Unix(1, 0))
			t.Cleanup(stop)
			return ctx
		}, 503},
	}
	mirrors := map[string]config{
		"the registry hangs": {Upstream: &upstreamFunc{}, Open: (&swarm{}).Open},
		"the blob hangs": {
			Upstream: &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + id: {layer, ""},
				"r.test/v2/app/manifests/" + id: {layer, oci.ManifestTypes()[0]},
				"r.test/v2/app/manifests/v1":    {layer, oci.ManifestTypes()[0]}})},
			Open: func(ctx context.Context, _ task.Spec) (registryproxy.Blob, error) {
				<-ctx.Done()
				return nil, context.Cause(ctx)
			},
		},
		"its first byte hangs": {
			Upstream: &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + id: {layer, ""},
				"r.test/v2/app/manifests/" + id: {layer, oci.ManifestTypes()[0]},
				"r.test/v2/app/manifests/v1":    {layer, oci.ManifestTypes()[0]}})},
			Open: func(context.Context, task.Spec) (registryproxy.Blob, error) {
				return &fakeBlob{data: layer, stall: true}, nil
			},
		},
	}
	for where, cfg := range mirrors {
		for how, c := range ends {
			for _, path := range []string{"app/blobs/" + id, "app/manifests/" + id, "app/manifests/v1", "app/tags/list",
				"app/referrers/" + id} {
				if where != "the registry hangs" && (path == "app/tags/list" || path == "app/referrers/"+id) {
					continue // these are forwarded
				}
				t.Run(where+", "+how+", "+path, func(t *testing.T) {
					var seen pulls
					cfg.Observe, cfg.Default = seen.observe, "r.test"
					w := httptest.NewRecorder()
					r := httptest.NewRequestWithContext(c.end(t.Context()), http.MethodGet,
						"/v2/"+path+"?ns=r.test", nil)
					newMirror(cfg).ServeHTTP(w, r)
					said := refusedAs(t, w.Result(), http.StatusServiceUnavailable, "UNAVAILABLE")
					for _, name := range []string{"Docker-Content-Digest", "ETag", "Accept-Ranges", "Content-Range"} {
						assert.Empty(t, w.Header().Get(name), name)
					}
					assert.Equal(t, c.status, seen.last(t).Status)
					if c.status == 503 {
						assert.Contains(t, said, "ask again")
					}
				})
			}
		}
	}
}
