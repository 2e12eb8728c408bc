package registry_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/source/registry"
	"github.com/darter-io/darter/pkg/task"
)

// TestTheRestComesFromTheNextURL has the first of two URLs stand still in the middle of each body.
func TestTheRestComesFromTheNextURL(t *testing.T) {
	var first, second atomic.Int64
	half := len(content) / 2
	stuck := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first.Add(1)
		http.ServeContent(&stopping{ResponseWriter: w, left: half, over: r.Context().Done()}, r, "", time.Time{},
			bytes.NewReader(content))
	}))
	defer stuck.Close()
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		second.Add(1)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	defer good.Close()
	cfg := loopback
	cfg.IdleTimeout = 100 * time.Millisecond
	r := client(t, registry.Config{HTTP: cfg, Upstreams: map[string]registry.Upstream{
		"r.test": {URLs: []string{stuck.URL, good.URL}, Proxy: "none"},
	}})
	spec := task.Spec{ID: oci.DigestOf(content), Kind: task.Blob, Upstream: "r.test", Repository: "lib/app",
		Authorization: "Bearer x"}
	res, err := r.Open(t.Context(), spec, 0)
	require.NoError(t, err)
	begun, err := io.ReadAll(res.Body)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	res.Body.Close()
	require.NoError(t, bring(t, r, spec, int64(len(begun))))
	require.NoError(t, bring(t, r, spec, 0), "and the next one comes from there, too")
	assert.EqualValues(t, 1, first.Load())
	assert.EqualValues(t, 2, second.Load())
}

// stopping writes so many bytes and then waits until the client has left.
type stopping struct {
	http.ResponseWriter
	left int
	over <-chan struct{}
}

func (s *stopping) Write(b []byte) (int, error) {
	if s.left == 0 {
		_ = http.NewResponseController(s.ResponseWriter).Flush()
		<-s.over
		return 0, os.ErrClosed
	}
	n, err := s.ResponseWriter.Write(b[:min(len(b), s.left)])
	if s.left -= n; n < len(b) && err == nil {
		_, err = s.Write(b[n:])
	}
	return n, err
}
