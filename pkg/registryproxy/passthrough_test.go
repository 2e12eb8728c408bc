package registryproxy_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// fullDisk runs a mirror on a real socket whose disk has no space for a layer. direct returns the registry's body from
// an offset; nil is a mirror without passthrough.
func fullDisk(t *testing.T, layer []byte, seen *pulls,
	direct func(offset int64) (io.Reader, int64)) (*httptest.Server, string) {
	t.Helper()
	id := oci.DigestOf(layer)
	up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + string(id): {layer, ""},
		"r.test/v2/app/manifests/" + string(id): {layer, oci.ManifestTypes()[0]}})}
	cfg := config{Upstream: up, Default: "r.test", Observe: seen.observe,
		Open: func(context.Context, task.Spec) (registryproxy.Blob, error) {
			return nil, fmt.Errorf("no content: %w",
				&api.Failure{Status: http.StatusInsufficientStorage, Message: "no space left on device", Full: true})
		}}
	if direct != nil {
		cfg.Passthrough = func(_ context.Context, spec task.Spec, offset int64) (*source.Response, error) {
			assert.Equal(t, id, spec.ID)
			assert.Equal(t, "Bearer mine", spec.Authorization.Reveal(), "in the client's name")
			r, length := direct(offset)
			return &source.Response{Body: io.NopCloser(r), Length: length}, nil
		}
	}
	srv := httptest.NewServer(newMirror(cfg))
	t.Cleanup(srv.Close)
	return srv, "/v2/app/blobs/" + string(id)
}

func fetchBody(t *testing.T, url string, header ...string) (*http.Response, []byte, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer mine")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res, b, err
}

// cutting returns bodies of a blob, and ends each but the last early.
func cutting(content []byte, ends ...int64) func(int64) (io.Reader, int64) {
	return func(offset int64) (io.Reader, int64) {
		end := int64(len(content))
		if len(ends) > 0 {
			end, ends = ends[0], ends[1:]
		}
		return io.MultiReader(bytes.NewReader(content[offset:end]), errorReader{end < int64(len(content))}),
			int64(len(content))
	}
}

// errorReader fails as an interrupted body does.
type errorReader struct{ cut bool }

func (r errorReader) Read([]byte) (int, error) {
	if r.cut {
		return 0, io.ErrUnexpectedEOF
	}
	return 0, io.EOF
}

func TestPassthroughServesClientsWithoutAFallback(t *testing.T) {
	for _, size := range []int{7, 1000, 64 << 10, 64<<10 + 1, 300_000} {
		layer := blob(size)
		n := int64(size)
		for name, c := range map[string]struct {
			direct func(int64) (io.Reader, int64)
			header []string
			want   []byte
		}{
			"the whole":           {cutting(layer), nil, layer},
			"cut again and again": {cutting(layer, 0, n/3, n/3, n/2, n-1, n-1, n-1), nil, layer},
			"its end":             {cutting(layer), []string{"Range", fmt.Sprintf("bytes=%d-", n/2)}, layer[n/2:]},
			"its beginning":       {cutting(layer), []string{"Range", fmt.Sprintf("bytes=0-%d", n/2)}, layer[:n/2+1]},
			"a byte in the middle": {cutting(layer, n/4), []string{"Range", fmt.Sprintf("bytes=%d-%[1]d", n/2)},
				layer[n/2 : n/2+1]},
		} {
			t.Run(fmt.Sprint(size, " ", name), func(t *testing.T) {
				seen := pulls{ended: make(chan struct{}, 1)}
				srv, path := fullDisk(t, layer, &seen, c.direct)
				res, b, err := fetchBody(t, srv.URL+path, c.header...)
				require.NoError(t, err)
				assert.Equal(t, c.header != nil, res.StatusCode == http.StatusPartialContent, res.Status)
				assert.EqualValues(t, len(c.want), res.ContentLength)
				assert.Equal(t, string(c.want), string(b))
				<-seen.ended
				assert.True(t, seen.last(t).Passthrough)
			})
		}
	}
}

func TestAFullDiskRefusesClientsWithAFallback(t *testing.T) {
	layer := blob(300_000)
	var seen pulls
	srv, path := fullDisk(t, layer, &seen, cutting(layer))
	res, b, err := fetchBody(t, srv.URL+path+"?ns=r.test")
	require.NoError(t, err)
	assert.Equal(t, http.StatusInsufficientStorage, res.StatusCode)
	assert.Contains(t, string(b), "no space left on device")
	res, _, err = fetchBody(t, srv.URL+"/v2/app/manifests/"+string(oci.DigestOf(layer)))
	require.NoError(t, err)
	assert.Equal(t, http.StatusInsufficientStorage, res.StatusCode,
		"of a manifest, after which it goes elsewhere for all")
	srv, path = fullDisk(t, layer, &seen, nil)
	res, _, err = fetchBody(t, srv.URL+path)
	require.NoError(t, err)
	assert.Equal(t, http.StatusInsufficientStorage, res.StatusCode)
}

func TestAPassthroughIsNeverCompleteAndWrong(t *testing.T) {
	layer := blob(300_000)
	wrong := bytes.Clone(layer)
	wrong[10] ^= 1
	changing := func(offset int64) (io.Reader, int64) {
		if offset == 0 {
			return io.MultiReader(bytes.NewReader(layer[:200_000]), errorReader{true}), 300_000
		}
		return bytes.NewReader(layer[offset:]), 300_001
	}
	for name, direct := range map[string]func(int64) (io.Reader, int64){
		"a wrong byte":    cutting(wrong),
		"cut without end": cutting(layer, slices.Repeat([]int64{200_000}, 20)...),
		"another length":  changing,
	} {
		for _, header := range [][]string{nil, {"Range", "bytes=100000-"}} {
			t.Run(fmt.Sprint(name, header), func(t *testing.T) {
				seen := pulls{ended: make(chan struct{}, 1)}
				srv, path := fullDisk(t, layer, &seen, direct)
				res, b, err := fetchBody(t, srv.URL+path, header...)
				assert.Less(t, res.StatusCode, 300)
				require.ErrorIs(t, err, io.ErrUnexpectedEOF)
				assert.Less(t, int64(len(b)), res.ContentLength)
				<-seen.ended
				assert.Error(t, seen.last(t).Err)
			})
		}
	}
	for _, other := range [][]byte{append(bytes.Clone(layer), 'x'), layer[:200_000]} {
		var seen pulls
		srv, path := fullDisk(t, layer, &seen, cutting(other))
		res, b, err := fetchBody(t, srv.URL+path)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF, "the GET's own length counts, and the digest decides")
		assert.Less(t, int64(len(b)), res.ContentLength)
	}
	small := blob(100)
	var seen pulls
	srv, path := fullDisk(t, small, &seen, cutting(wrong[:100]))
	res, b, err := fetchBody(t, srv.URL+path)
	require.NoError(t, err)
	assert.Equal(t, http.StatusServiceUnavailable, res.StatusCode, "before its first byte it is an error: %s", b)
}

func TestAfterWrongBytesARangeIsTheWhole(t *testing.T) {
	layer := blob(300_000)
	wrong := bytes.Clone(layer)
	wrong[10] ^= 1
	bodies := [][]byte{wrong}
	seen := pulls{ended: make(chan struct{}, 8)}
	srv, path := fullDisk(t, layer, &seen, func(offset int64) (io.Reader, int64) {
		content := layer
		if len(bodies) > 0 {
			content, bodies = bodies[0], bodies[1:]
		}
		return bytes.NewReader(content[offset:]), int64(len(content))
	})
	_, got, err := fetchBody(t, srv.URL+path)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.NotEmpty(t, got)
	<-seen.ended
	again, err := resumed(t, srv.URL+path, got, "Authorization", "Bearer mine")
	require.NoError(t, err)
	assert.Equal(t, oci.DigestOf(layer), oci.DigestOf(again))
}
