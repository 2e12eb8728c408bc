package registryproxy_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/task"
)

// resumed asks for the rest of what a client has, and puts it together as RFC 9110 §15.3 says: a 206
// is added, a 200 is the whole.
func resumed(t *testing.T, url string, got []byte, header ...string) ([]byte, error) {
	t.Helper()
	res, b, err := fetchBody(t, url, append([]string{"Range", fmt.Sprintf("bytes=%d-", len(got))}, header...)...)
	switch res.StatusCode {
	case http.StatusPartialContent:
		return append(bytes.Clone(got), b...), err
	case http.StatusOK:
		return b, err
	}
	return nil, fmt.Errorf("%s: %s", res.Status, b)
}

func TestARangeOfAReplacedBlobIsTheWhole(t *testing.T) {
	layer := blob(200_000)
	wrong := bytes.Clone(layer)
	wrong[10] ^= 1
	id := oci.DigestOf(layer)
	var s swarm
	s.contents = map[task.ID]*fakeBlob{id: {data: wrong, failAt: 150_000, err: errors.New("it proved wrong")}}
	var replaced atomic.Bool
	up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + string(id): {layer, ""}})}
	srv := httptest.NewServer(newMirror(config{
		Upstream: up, Default: "r.test", Open: s.Open,
		Replaced: func(asked task.ID) bool { return asked == id && replaced.Load() },
	}))
	defer srv.Close()
	url := srv.URL + "/v2/app/blobs/" + string(id)
	_, got, err := fetchBody(t, url)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.NotEmpty(t, got)

	s.put(layer, "")
	replaced.Store(true)
	again, err := resumed(t, url, got)
	require.NoError(t, err)
	assert.Equal(t, id, oci.DigestOf(again), "the client begins again")
	for _, header := range []string{"bytes=0-", "bytes=1-", "bytes=10-20", "bytes=-5", "bytes=0-0,5-6",
		"bytes=900000-"} {
		res, b, err := fetchBody(t, url, "Range", header, "If-Range", `"`+string(id)+`"`)
		require.NoError(t, err)
		assert.Equal(t, http.StatusOK, res.StatusCode, header)
		assert.Empty(t, res.Header.Get("Content-Range"))
		assert.Equal(t, "none", res.Header.Get("Accept-Ranges"))
		assert.Equal(t, id, oci.DigestOf(b), header)
	}

	replaced.Store(false)
	res, b, err := fetchBody(t, url, "Range", "bytes=10-20")
	require.NoError(t, err)
	assert.Equal(t, http.StatusPartialContent, res.StatusCode)
	assert.Equal(t, layer[10:21], b)
	assert.Equal(t, "bytes", res.Header.Get("Accept-Ranges"))
}
