package daemon_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/piece/storetest"
)

// gatedRegistry has one layer. Its GETs of the whole send a KiB every 10 ms until it is opened; a Range with an
// end comes at once.
type gatedRegistry struct {
	layer []byte
	open  chan struct{}
	once  sync.Once
	sent  atomic.Int64

	mu     sync.Mutex
	ranges []string
}

func (g *gatedRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasSuffix(r.URL.Path, "/blobs/"+string(oci.DigestOf(g.layer))) {
		if r.URL.Path != "/v2/" {
			w.WriteHeader(http.StatusNotFound)
		}
		return
	}
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Length", strconv.Itoa(len(g.layer)))
		return
	}
	asked := r.Header.Get("Range")
	g.mu.Lock()
	g.ranges = append(g.ranges, asked)
	g.mu.Unlock()
	begin, end, whole := 0, len(g.layer), asked == ""
	if n, _ := fmt.Sscanf(asked, "bytes=%d-%d", &begin, &end); n == 2 {
		end++
	}
	if whole {
		w.Header().Set("Content-Length", strconv.Itoa(len(g.layer)))
	} else {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", begin, end-1, len(g.layer)))
		w.Header().Set("Content-Length", strconv.Itoa(end-begin))
		w.WriteHeader(http.StatusPartialContent)
	}
	for b := range chunks(g.layer[begin:end], 1024) {
		if whole {
			select {
			case <-g.open:
			case <-time.After(10 * time.Millisecond):
			case <-r.Context().Done():
				return
			}
		}
		if _, err := w.Write(b); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		g.sent.Add(int64(len(b)))
	}
}

func chunks(b []byte, n int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			part := b[:min(n, len(b))]
			if b = b[len(part):]; !yield(part) {
				return
			}
		}
	}
}

// TestAFooterComesAheadOfTheStream reads the end and a window in the middle of a layer, which the one stream
// would reach after minutes, with a supernode and without, and then the whole.
func TestAFooterComesAheadOfTheStream(t *testing.T) {
	t.Parallel()
	for _, super := range []bool{true, false} {
		t.Run(fmt.Sprint("supernode ", super), func(t *testing.T) {
			g := &gatedRegistry{layer: storetest.Content("a layer with a footer", 24<<20+99), open: make(chan struct{})}
			origin := httptest.NewServer(g)
			defer origin.Close()
			defer g.once.Do(func() { close(g.open) })
			host := strings.TrimPrefix(origin.URL, "http://")
			upstreams := []config.Upstream{{Host: host, URLs: []string{origin.URL}, PlainHTTP: true}}
			cfg := settings(t, nil, "node")
			cfg.Upstreams = upstreams
			if super {
				const word = "a secret that is long enough for a cluster"
				s, _ := leadTo(t, upstreams[0], word)
				cfg.Cluster.Secret, cfg.Supernodes = word, []config.Address{config.Address(s.Addrs()["api"])}
			}
			d, _ := start(t, cfg)
			at := "http://" + d.Addrs()["mirror"] + "/v2/app/blobs/" + string(oci.DigestOf(g.layer)) + "?ns=" + host
			get := func(asked string) []byte {
				req, err := http.NewRequest(http.MethodGet, at, nil)
				require.NoError(t, err)
				if asked != "" {
					req.Header.Set("Range", asked)
				}
				res, err := http.DefaultClient.Do(req)
				require.NoError(t, err)
				defer res.Body.Close()
				b, err := io.ReadAll(res.Body)
				require.NoError(t, err)
				require.Less(t, res.StatusCode, 300, "%s: %.200s", asked, b)
				return b
			}
			n := len(g.layer)
			assert.True(t, bytes.Equal(g.layer[n-1000:], get("bytes=-1000")))
			assert.True(t, bytes.Equal(g.layer[20<<20:21<<20], get(fmt.Sprintf("bytes=%d-%d", 20<<20, 21<<20-1))))
			assert.Less(t, g.sent.Load(), int64(n/2), "the stream has not come so far")
			g.once.Do(func() { close(g.open) })
			assert.True(t, bytes.Equal(g.layer, get("")))
			assert.LessOrEqual(t, g.sent.Load(), int64(n)+5<<20,
				"each byte leaves the registry once, but for what is on its way when a request ends")
		})
	}
}
