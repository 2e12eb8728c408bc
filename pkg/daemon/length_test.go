package daemon_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/piece/storetest"
)

// chunkedRegistry has one manifest, which names one layer with its length. It sends the layer without
// a length, with the function blob, and counts the bytes that it could send.
type chunkedRegistry struct {
	layer    []byte
	manifest []byte
	blob     func(w io.Writer, h http.Header)
	sent     atomic.Int64
	gets     atomic.Int64
}

func newChunkedRegistry(t *testing.T, length int64) (*chunkedRegistry, *httptest.Server) {
	r := &chunkedRegistry{layer: storetest.Content(t.Name(), length)}
	r.manifest = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`,
		oci.MediaTypeManifest, oci.DigestOf(r.layer), length)
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	return r, s
}

func (r *chunkedRegistry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	switch {
	case q.URL.Path == "/v2/":
	case strings.HasSuffix(q.URL.Path, "/manifests/"+string(oci.DigestOf(r.manifest))):
		w.Header().Set("Content-Type", oci.MediaTypeManifest)
		_, _ = w.Write(r.manifest)
	case strings.HasSuffix(q.URL.Path, "/blobs/"+string(oci.DigestOf(r.layer))):
		if q.Method == http.MethodHead {
			return
		}
		r.gets.Add(1)
		r.blob(writerFunc(func(b []byte) (int, error) {
			n, err := w.Write(b)
			r.sent.Add(int64(n))
			return n, err
		}), w.Header())
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// onDisk returns the disk space of the files under dir, in bytes.
func onDisk(t *testing.T, dir string) (sum int64) {
	require.NoError(t, filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	}))
	return sum
}

func TestManifestBoundsABlobWithoutLength(t *testing.T) {
	t.Parallel()
	const length = 3<<20 + 5
	endless := func(w io.Writer) {
		for block := make([]byte, 256<<10); ; {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	}
	for name, c := range map[string]struct {
		blob func(r *chunkedRegistry, w io.Writer, h http.Header)
		// words are in the error, nil if the layer arrives.
		words []string
	}{
		"as it should": {func(r *chunkedRegistry, w io.Writer, _ http.Header) { _, _ = w.Write(r.layer) }, nil},
		"without end": {func(_ *chunkedRegistry, w io.Writer, _ http.Header) { endless(w) },
			[]string{fmt.Sprintf("at least %d bytes", length+1), fmt.Sprintf("%d were expected", length)}},
		"one byte more": {func(r *chunkedRegistry, w io.Writer, _ http.Header) {
			_, _ = w.Write(append(bytes.Clone(r.layer), 0))
		}, []string{fmt.Sprintf("at least %d bytes", length+1), fmt.Sprintf("%d were expected", length)}},
		"one byte less": {func(r *chunkedRegistry, w io.Writer, _ http.Header) { _, _ = w.Write(r.layer[1:]) },
			[]string{fmt.Sprintf("has %d bytes", length-1), fmt.Sprintf("%d were expected", length)}},
		"a lie of 10 GB": {func(_ *chunkedRegistry, w io.Writer, h http.Header) {
			h.Set("Content-Length", "10487314000")
			endless(w)
		},
			[]string{"has 10487314000 bytes", fmt.Sprintf("%d were expected", length)}},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := newChunkedRegistry(t, length)
			r.blob = func(w io.Writer, h http.Header) { c.blob(r, w, h) }
			cfg := settings(t, nil, "node")
			host := strings.TrimPrefix(s.URL, "http://")
			cfg.Upstreams = []config.Upstream{{Host: host, URLs: []string{s.URL}, PlainHTTP: true}}
			d, _ := start(t, cfg)
			client := &runtime{mirror: d.Addrs()["mirror"], ns: host}
			_, _, err := client.do(http.MethodGet, "app/manifests/"+string(oci.DigestOf(r.manifest)))
			require.NoError(t, err)
			var last string
			for range 4 { // the first may have sent bytes when its end proves wrong
				res, b, err := client.do(http.MethodGet, "app/blobs/"+string(oci.DigestOf(r.layer)))
				require.True(t, err == nil || res == nil || res.ContentLength == length,
					"no client is promised another length")
				if err == nil && res.StatusCode == http.StatusOK {
					require.Equal(t, oci.DigestOf(r.layer), oci.DigestOf(b))
					assert.Nil(t, c.words)
					assert.EqualValues(t, 1, r.gets.Load())
					return
				}
				last = string(b)
			}
			for _, words := range c.words {
				assert.Contains(t, last, words)
			}
			assert.Less(t, r.sent.Load(), r.gets.Load()*(length+socketsHold(t)),
				"no more is sent than is known and sockets hold")
			assert.Less(t, onDisk(t, cfg.Node.DataDir), int64(2*length))
		})
	}
}

// socketsHold returns how many bytes the kernel may hold of one connection that were sent and not read: newer kernels
// let a receive buffer grow to 32 MiB, and it does where the reader gets little CPU time. The last write adds some.
func socketsHold(t *testing.T) (bytes int64) {
	for _, name := range []string{"rmem", "wmem"} {
		text, err := os.ReadFile("/proc/sys/net/ipv4/tcp_" + name) // its minimum, default and maximum
		require.NoError(t, err)
		longest, err := strconv.ParseInt(strings.Fields(string(text))[2], 10, 64)
		require.NoError(t, err)
		bytes += longest
	}
	return bytes + 10<<20
}

// TestUnknownLengthTakesHalfTheQuota sends chunked files, whose length is unknown: a body fills at most half of the
// quota, and a longer one comes from its origin past the store.
func TestUnknownLengthTakesHalfTheQuota(t *testing.T) {
	t.Parallel()
	content := storetest.Content("file", 9<<20)
	body := make([]byte, len(content))
	const times = 8 // a longer file than the quota
	var gets atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("ETag", `"`+q.URL.Path+`"`)
		_ = http.NewResponseController(w).Flush()
		if q.Method == http.MethodHead {
			return
		}
		gets.Add(1)
		for i := range times {
			if _, err := w.Write(content); err != nil || i == 0 && q.URL.Path == "/file" {
				return
			}
		}
	}))
	t.Cleanup(s.Close)
	cfg := settings(t, nil, "node")
	cfg.Cache.Quota = 48 << 20
	cfg.Files.AllowHosts = []string{"*"}
	d, _ := start(t, cfg)
	get := func(path string, times int) {
		res, err := http.Get("http://" + d.Addrs()["api"] + "/api/v1/files?url=" + s.URL + path)
		require.NoError(t, err)
		defer res.Body.Close()
		assert.Equal(t, http.StatusOK, res.StatusCode)
		for range times {
			_, err := io.ReadFull(res.Body, body)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(content, body), path)
		}
		more, err := io.Copy(io.Discard, res.Body)
		require.NoError(t, err)
		assert.Zero(t, more, "bytes after the end of %s", path)
	}
	for range 2 { // the spool of the first is gone when the second comes
		get("/file", 1)
		gets.Store(0)
		get("/long", times)
		assert.LessOrEqual(t, gets.Load(), int64(3), "a failed body is asked for once more at most, and then passed on")
		assert.Less(t, onDisk(t, cfg.Node.DataDir), int64(11<<20), "what is left is the file")
	}
}

// TestEndlessResponsesAreBounded uses a registry whose responses never end and have no
// Content-Length.
func TestEndlessResponsesAreBounded(t *testing.T) {
	sockets := socketsHold(t)
	digest := "sha256:" + strings.Repeat("ab", 32)
	var sent atomic.Int64
	endless := func(w http.ResponseWriter, status int) {
		w.WriteHeader(status)
		for block := bytes.Repeat([]byte(" "), 256<<10); ; {
			n, err := w.Write(block)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	}
	token := func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/token" {
			endless(w, http.StatusOK)
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+q.Host+`/token",service="r"`)
		w.WriteHeader(http.StatusUnauthorized)
	}
	for name, c := range map[string]struct {
		path     string
		registry http.HandlerFunc
		status   int
		most     int64 // bytes of all responses
	}{
		"a tag's manifest where HEAD is unknown": {"app/manifests/v1", func(w http.ResponseWriter, q *http.Request) {
			if q.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			endless(w, http.StatusOK)
		}, http.StatusBadGateway, 4 * sockets},
		"a manifest by digest": {"app/manifests/" + digest, func(w http.ResponseWriter, q *http.Request) {
			if q.Method == http.MethodGet && q.URL.Path != "/v2/" {
				endless(w, http.StatusOK)
			}
		}, http.StatusBadGateway, 4 * sockets},
		"a list of tags": {"app/tags/list", func(w http.ResponseWriter, q *http.Request) { endless(w, http.StatusOK) },
			http.StatusOK, 64<<20 + 2*sockets},
		"a refusal of a blob": {"app/blobs/" + digest, func(w http.ResponseWriter, q *http.Request) {
			if q.Method == http.MethodGet && q.URL.Path != "/v2/" {
				endless(w, http.StatusForbidden)
			}
		}, http.StatusForbidden, 4 * sockets},
		"a refusal of tags": {"app/tags/list",
			func(w http.ResponseWriter, q *http.Request) { endless(w, http.StatusNotFound) }, http.StatusNotFound,
			4 * sockets},
		"a token": {"app/blobs/" + digest, token, http.StatusUnauthorized, 4 * sockets},
	} {
		t.Run(name, func(t *testing.T) {
			sent.Store(0)
			s := httptest.NewServer(c.registry)
			t.Cleanup(s.Close)
			cfg := settings(t, nil, "node")
			host := strings.TrimPrefix(s.URL, "http://")
			cfg.Upstreams = []config.Upstream{{Host: host, URLs: []string{s.URL}, PlainHTTP: true,
				AllowPrivateRealm: true}}
			d, _ := start(t, cfg)
			// Without ?ns= the mirror requests a token itself.
			res, err := http.Get("http://" + d.Addrs()["mirror"] + "/v2/" + strings.Replace(host, ":", "_", 1) +
				"/" + c.path)
			require.NoError(t, err)
			defer res.Body.Close()
			n, _ := io.Copy(io.Discard, res.Body)
			assert.Equal(t, c.status, res.StatusCode)
			assert.LessOrEqual(t, n, int64(64<<20))
			assert.Less(t, sent.Load(), c.most)
			assert.Less(t, onDisk(t, cfg.Node.DataDir), int64(1<<20))
		})
	}
}

// TestUnnamedVersionBeginsAgain breaks a file without ETag and date off inside its first piece.
func TestUnnamedVersionBeginsAgain(t *testing.T) {
	content := storetest.Content("unnamed", 320_000)
	var gets atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		if q.Method == http.MethodHead {
			return
		}
		if gets.Add(1) == 1 {
			_, _ = w.Write(content[:100_000])
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(content)
	}))
	t.Cleanup(s.Close)
	cfg := settings(t, nil, "node")
	cfg.Files.AllowHosts = []string{"*"}
	d, _ := start(t, cfg)
	res, err := http.Get("http://" + d.Addrs()["api"] + "/api/v1/files?url=" + s.URL + "/file")
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(content, b), "%d bytes", len(b))
}
