package registryproxy_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/task"
)

// TestProgressExtendsTheDeadline has a blob of unknown length take 25 s; bytes come in the first of these seconds.
func TestProgressExtendsTheDeadline(t *testing.T) {
	layer := blob(100_000)
	id := oci.DigestOf(layer)
	for name, c := range map[string]struct {
		moves  time.Duration
		status int
		took   time.Duration
	}{
		"bytes come all the time": {25 * time.Second, http.StatusOK, 25 * time.Second},
		"nothing comes":           {0, http.StatusGatewayTimeout, 10 * time.Second},
		"it stops after 4 s":      {4 * time.Second, http.StatusGatewayTimeout, 14 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" +
					string(id): {layer, ""}})}
				p := newMirror(config{
					Upstream: up,
					Signs: func(task.ID) policy.Signs {
						return policy.Signs{Moved: int64(min(time.Since(begun), c.moves) / time.Second)}
					},
					Open: func(ctx context.Context, spec task.Spec) (registryproxy.Blob, error) {
						select {
						case <-time.After(25 * time.Second):
							return &fakeBlob{data: layer}, nil
						case <-ctx.Done():
							return nil, context.Cause(ctx)
						}
					},
				})
				res := ask(p, http.MethodGet, "/v2/app/blobs/"+string(id)+"?ns=r.test")
				assert.Equal(t, c.status, res.StatusCode)
				assert.InDelta(t, c.took.Seconds(), time.Since(begun).Seconds(), 3)
				if c.status == http.StatusOK {
					assert.True(t, bytes.Equal(layer, []byte(body(t, res))))
				}
			})
		})
	}
}

// cachedBlob says whether the node held the whole blob when it was opened.
type cachedBlob struct {
	*fakeBlob
	cached bool
}

func (c cachedBlob) Cached() bool { return c.cached }

// TestAManifestsLengthBindsOnlyItsClient has a manifest name a layer with another size than it has.
func TestAManifestsLengthBindsOnlyItsClient(t *testing.T) {
	layer := blob(5000)
	id := oci.DigestOf(layer)
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":7}]}`, oci.MediaTypeManifest, id)
	pin := oci.DigestOf(manifest)
	for name, cached := range map[string]bool{"it was here": true, "it comes": false} {
		t.Run(name, func(t *testing.T) {
			up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/manifests/" + string(pin): {manifest,
				oci.MediaTypeManifest}})}
			var spec task.Spec
			p := newMirror(config{Upstream: up, Open: func(_ context.Context, s task.Spec) (registryproxy.Blob, error) {
				if s.ID == pin {
					return &fakeBlob{data: manifest, mediaType: oci.MediaTypeManifest}, nil
				}
				spec = s
				return cachedBlob{&fakeBlob{data: layer}, cached}, nil
			}})
			require.Equal(t, http.StatusOK,
				ask(p, http.MethodGet, "/v2/app/manifests/"+string(pin)+"?ns=r.test").StatusCode)
			res := ask(p, http.MethodGet, "/v2/app/blobs/"+string(id)+"?ns=r.test")
			assert.EqualValues(t, 7, spec.Promised)
			assert.Zero(t, spec.Length, "the registry did not state it")
			if cached {
				assert.Equal(t, http.StatusOK, res.StatusCode, "its digest proves how long it is")
				return
			}
			b := refusedAs(t, res, http.StatusBadGateway, "UNAVAILABLE")
			assert.Contains(t, b, "7 bytes")
			assert.Contains(t, b, "5000 bytes")
		})
	}
}

// TestAnEndlessPassthroughIsBounded reads no more of it than the manifest named.
func TestAnEndlessPassthroughIsBounded(t *testing.T) {
	layer := blob(300_000)
	var sent atomic.Int64
	endless := readFunc(func(p []byte) (int, error) {
		at := sent.Add(int64(len(p))) - int64(len(p))
		for i := range p {
			p[i] = 'x'
			if at+int64(i) < int64(len(layer)) {
				p[i] = layer[at+int64(i)]
			}
		}
		return len(p), nil
	})
	seen := pulls{ended: make(chan struct{}, 1)}
	srv, path := fullDisk(t, layer, &seen, func(int64) (io.Reader, int64) { return endless, -1 })
	res, b, err := fetchBody(t, srv.URL+path)
	require.NoError(t, err)
	assert.EqualValues(t, len(layer), res.ContentLength)
	assert.True(t, bytes.Equal(layer, b))
	<-seen.ended
	assert.LessOrEqual(t, sent.Load(), int64(len(layer)))
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }
