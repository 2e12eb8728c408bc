package registryproxy_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// TestClientsWaitAsLongAsTheRegistryTakes delays the registry's answer to the lookup, and its bytes.
func TestClientsWaitAsLongAsTheRegistryTakes(t *testing.T) {
	manifest, layer := []byte(`{"schemaVersion":2,"config":{}}`), blob(5000)
	m, b := oci.DigestOf(manifest), oci.DigestOf(layer)
	known := answers(map[string]object{
		"r.test/v2/app/manifests/v1":       {manifest, oci.MediaTypeManifest},
		"r.test/v2/app/blobs/" + string(b): {layer, ""},
	})
	for _, target := range []string{"manifests/v1", "blobs/" + string(b)} {
		for _, ns := range []string{"", "?ns=r.test"} {
			for name, c := range map[string]struct {
				lookup, bytes time.Duration
				status        int
				took          time.Duration
			}{
				"400 s for the bytes":             {0, 400 * time.Second, http.StatusOK, 400 * time.Second},
				"400 s for the lookup":            {400 * time.Second, 0, http.StatusOK, 400 * time.Second},
				"400 s for each":                  {400 * time.Second, 400 * time.Second, http.StatusOK, 800 * time.Second},
				"longer than the operator allows": {0, time.Hour, http.StatusGatewayTimeout, 600 * time.Second},
			} {
				t.Run(target[:9]+" "+ns+" "+name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						up := &upstreamFunc{}
						up.reply(func(w http.ResponseWriter, r source.RegistryRequest) {
							time.Sleep(c.lookup)
							known(w, r)
						})
						p := newMirror(config{
							Upstream: up, Default: "r.test",
							FirstByte: func(upstream string) time.Duration {
								assert.Equal(t, "r.test", upstream)
								return 10 * time.Minute
							},
							Signs: func(task.ID) policy.Signs { return policy.Signs{Asking: true} },
							Open: func(ctx context.Context, spec task.Spec) (registryproxy.Blob, error) {
								select {
								case <-time.After(c.bytes):
								case <-ctx.Done():
									return nil, context.Cause(ctx)
								}
								if spec.ID == m {
									return &fakeBlob{data: manifest, mediaType: oci.MediaTypeManifest}, nil
								}
								return &fakeBlob{data: layer}, nil
							},
						})
						began := time.Now()
						res := ask(p, http.MethodGet, "/v2/app/"+target+ns)
						assert.Equal(t, c.status, res.StatusCode)
						assert.InDelta(t, c.took.Seconds(), time.Since(began).Seconds(), 60)
					})
				})
			}
		}
	}
}

// TestARefusalTellsWhatCame covers a client that waited in vain while other bytes of its blob came.
func TestARefusalTellsWhatCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		layer := blob(5000)
		b := oci.DigestOf(layer)
		up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + string(b): {layer, ""}})}
		p := newMirror(config{
			Upstream: up, Default: "r.test",
			Signs: func(task.ID) policy.Signs { return policy.Signs{Moved: 1, Came: 213e6} },
			Open: func(context.Context, task.Spec) (registryproxy.Blob, error) {
				return &fakeBlob{data: layer, stall: true}, nil
			},
		})
		said := refusedAs(t, ask(p, http.MethodGet, "/v2/app/blobs/"+string(b)), http.StatusGatewayTimeout, "UNAVAILABLE")
		assert.Contains(t, said, "213000000 bytes")
		assert.NotContains(t, said, "no byte")
	})
}

// TestAWindowWaitsWhileBytesMove reads a window that the bytes reach after 45 s.
func TestAWindowWaitsWhileBytesMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		layer := blob(5000)
		b := oci.DigestOf(layer)
		up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + string(b): {layer, ""}})}
		began := time.Now()
		content := &lateBlob{fakeBlob: fakeBlob{data: layer}, after: 45 * time.Second}
		p := newMirror(config{
			Upstream: up, Default: "r.test",
			Signs: func(task.ID) policy.Signs { return policy.Signs{Moved: int64(time.Since(began))} },
			Open:  func(context.Context, task.Spec) (registryproxy.Blob, error) { return content, nil },
		})
		res := ask(p, http.MethodGet, "/v2/app/blobs/"+string(b)+"?ns=r.test", "Range", "bytes=4000-")
		assert.Equal(t, http.StatusPartialContent, res.StatusCode)
		assert.Equal(t, string(layer[4000:]), body(t, res))
		assert.Equal(t, 45*time.Second, time.Since(began))
	})
}

// lateBlob has no byte for a while.
type lateBlob struct {
	fakeBlob
	after time.Duration
}

func (c *lateBlob) NewReader(ctx context.Context, off, n int64) registryproxy.Reader {
	return &lateReader{c.fakeBlob.NewReader(ctx, off, n), ctx, c.after}
}

type lateReader struct {
	registryproxy.Reader
	ctx   context.Context
	after time.Duration
}

func (r *lateReader) Read(p []byte) (int, error) {
	select {
	case <-time.After(r.after):
		r.after = 0
		return r.Reader.Read(p)
	case <-r.ctx.Done():
		return 0, context.Cause(r.ctx)
	}
}

// TestACrawlingPassthroughEnds has a registry send a byte a second in answer to every request, until it falls silent.
func TestACrawlingPassthroughEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		layer := blob(300_000)
		b := oci.DigestOf(layer)
		up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + string(b): {layer, ""}})}
		opened := 0
		p := newMirror(config{
			Upstream: up, Default: "r.test",
			Open: func(context.Context, task.Spec) (registryproxy.Blob, error) {
				return nil, &api.Failure{Status: http.StatusInsufficientStorage, Message: "full", Full: true}
			},
			Passthrough: func(_ context.Context, _ task.Spec, offset int64) (*source.Response, error) {
				opened++
				return &source.Response{Body: &crawl{data: layer[offset:]}, Length: int64(len(layer))}, nil
			},
		})
		began := time.Now()
		// The body has begun, so it ends short.
		assert.PanicsWithValue(t, http.ErrAbortHandler, func() { ask(p, http.MethodGet, "/v2/app/blobs/"+string(b)) })
		assert.Equal(t, 4, opened)
		assert.Less(t, time.Since(began), 4*time.Minute)
	})
}

// crawl sends a byte a second, and ends after ten as an origin's body does.
type crawl struct {
	data []byte
	sent int
}

func (c *crawl) Read(p []byte) (int, error) {
	if c.sent == 10 {
		return 0, fmt.Errorf("received 10 bytes in 10s: %w", os.ErrDeadlineExceeded)
	}
	time.Sleep(time.Second)
	p[0] = c.data[c.sent]
	c.sent++
	return 1, nil
}

func (c *crawl) Close() error { return nil }

// If a lookup at a registry got no answer in time, the mirror tells clients of this registry at once when to try again.
func TestASilentRegistryIsA503(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		layer := blob(10)
		path := "/v2/app/blobs/" + string(oci.DigestOf(layer))
		p := newMirror(config{
			Upstream: &upstreamFunc{}, // never answers
			Default:  "r.test", FirstByte: func(string) time.Duration { return 10 * time.Minute },
		})
		defer p.Close()
		assert.Equal(t, http.StatusGatewayTimeout, ask(p, http.MethodGet, path).StatusCode)
		go ask(p, http.MethodGet, path)
		time.Sleep(3 * time.Second)
		began := time.Now()
		res := ask(p, http.MethodGet, path, "Authorization", "Bearer x")
		assert.Contains(t, refusedAs(t, res, http.StatusServiceUnavailable, "UNAVAILABLE"), "r.test has answered nothing")
		assert.Equal(t, "10", res.Header.Get("Retry-After"))
		assert.Zero(t, time.Since(began))
	})
}
