package registryproxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/task"
)

// TestSeveralRangesAreParts reads the windows as clients of eStargz and zstd:chunked do.
func TestSeveralRangesAreParts(t *testing.T) {
	layer := blob(100_000)
	id := oci.DigestOf(layer)
	var s swarm
	s.put(layer, "")
	up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + string(id): {layer, ""}})}
	srv := httptest.NewServer(newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"}))
	defer srv.Close()
	many, manyWant := "bytes=", []oci.Window{}
	for i := range int64(100) {
		many += fmt.Sprintf("%d-%d,", 1000*i, 1000*i+300)
		manyWant = append(manyWant, oci.Window{Offset: 1000 * i, Length: 301})
	}
	for asked, want := range map[string][]oci.Window{
		"bytes=5-6,8-9": {{Offset: 5, Length: 2}, {Offset: 8, Length: 2}},
		"bytes=-10,0-0,50000-59999": {{Offset: 99_990, Length: 10}, {Offset: 0, Length: 1},
			{Offset: 50_000, Length: 10_000}},
		"bytes=0-69999,200000-,99999-": {{Offset: 0, Length: 70_000}, {Offset: 99_999, Length: 1}},
		many:                           manyWant,
	} {
		t.Run(asked[:min(len(asked), 30)], func(t *testing.T) {
			req, err := http.NewRequest(http.MethodGet, srv.URL+"/v2/app/blobs/"+string(id), nil)
			require.NoError(t, err)
			req.Header.Set("Range", asked)
			res, err := http.DefaultClient.Do(req)
			require.NoError(t, err)
			defer res.Body.Close()
			require.Equal(t, http.StatusPartialContent, res.StatusCode)
			assert.Empty(t, res.Header.Get("Content-Range"))
			kind, params, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
			require.NoError(t, err)
			assert.Equal(t, "multipart/byteranges", kind)
			count := &counting{r: res.Body}
			parts := multipart.NewReader(count, params["boundary"])
			for _, w := range want {
				part, err := parts.NextPart()
				require.NoError(t, err)
				assert.Equal(t, w.ContentRange(100_000), part.Header.Get("Content-Range"))
				assert.Equal(t, oci.MediaTypeBlob, part.Header.Get("Content-Type"))
				b, err := io.ReadAll(part)
				require.NoError(t, err)
				assert.Equal(t, string(layer[w.Offset:w.Offset+w.Length]), string(b))
			}
			_, err = parts.NextPart()
			require.ErrorIs(t, err, io.EOF)
			_, err = io.Copy(io.Discard, count)
			require.NoError(t, err)
			assert.Equal(t, res.ContentLength, count.n)
		})
	}
}

type counting struct {
	r io.Reader
	n int64
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// TestPartsFailAsABodyDoes has the blob fail in the first window, and in a later one.
func TestPartsFailAsABodyDoes(t *testing.T) {
	layer := blob(100_000)
	id := oci.DigestOf(layer)
	up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + string(id): {layer, ""}})}
	broken := &fakeBlob{data: layer, failAt: 50_000, err: errors.New("it broke")}
	srv := httptest.NewServer(newMirror(config{Upstream: up, Default: "r.test",
		Open: func(context.Context, task.Spec) (registryproxy.Blob, error) { return broken, nil }}))
	defer srv.Close()
	get := func(asked string) (*http.Response, string, error) {
		res, b, err := fetchBody(t, srv.URL+"/v2/app/blobs/"+string(id), "Range", asked)
		return res, string(b), err
	}
	res, said, err := get("bytes=60000-60009,0-9")
	require.NoError(t, err)
	assert.Equal(t, http.StatusServiceUnavailable, res.StatusCode)
	assert.Contains(t, said, "it broke")

	res, said, err = get("bytes=0-9,60000-60009")
	assert.Equal(t, http.StatusPartialContent, res.StatusCode)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	assert.True(t, strings.Contains(said, string(layer[:10])))
}

// TestPassthroughAnswersSeveralRangesWhole: each range would cost the registry a GET of the whole.
func TestPassthroughAnswersSeveralRangesWhole(t *testing.T) {
	layer := blob(100_000)
	seen := pulls{ended: make(chan struct{}, 1)}
	opens := 0
	whole := cutting(layer)
	srv, path := fullDisk(t, layer, &seen, func(offset int64) (io.Reader, int64) {
		opens++
		return whole(offset)
	})
	res, b, err := fetchBody(t, srv.URL+path, "Range", "bytes=0-1,5-6")
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, res.StatusCode)
	assert.Equal(t, string(layer), string(b))
	assert.Equal(t, 1, opens)
}
