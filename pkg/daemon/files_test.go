package daemon

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/hostmatch"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/task"
)

// alone leads its own tasks: every assignment orders it to seed.
type alone struct{}

func (alone) Announce(_ context.Context, e api.Entry) (api.Assignment, owners.Leader, error) {
	return api.Assignment{Task: e.Task, Seed: true}, owners.LastResort, nil
}

// origin is a web server with one file, for clients with the password.
type origin struct {
	*httptest.Server
	mu       sync.Mutex
	content  []byte
	etag     string
	modified time.Time
	word     string
	requests []*http.Request
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.requests = append(o.requests, r)
	if o.word != "" && r.Header.Get("X-Word") != o.word && r.Header.Get("Authorization") != o.word {
		http.Error(w, "say the word", http.StatusForbidden)
		return
	}
	if o.etag != "" {
		w.Header().Set("ETag", o.etag)
	}
	http.ServeContent(w, r, "f.bin", o.modified, bytes.NewReader(o.content))
}

// gets counts the requests for the whole file.
func (o *origin) gets() (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.requests {
		if r.Method == http.MethodGet && r.Header.Get("Range") == "" {
			n++
		}
	}
	return n
}

// front is a files handler over a real engine and a real origin.
func front(t *testing.T, allow bool) (*files, *httptest.Server, *origin) {
	return frontOver(t, allow, 0)
}

// frontOver is front over a store with a quota in bytes, 0 for none.
func frontOver(t *testing.T, allow bool, quota int64) (*files, *httptest.Server, *origin) {
	o := &origin{content: bytes.Repeat([]byte("0123456789abcdef"), 40_000), etag: `"v1"`}
	o.Server = httptest.NewServer(o)
	t.Cleanup(o.Close)
	cfg := httporigin.Config{}
	if allow {
		cfg.AllowAddrs = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}
	client, err := httporigin.New(cfg)
	require.NoError(t, err)
	t.Cleanup(client.CloseIdleConnections)
	id, err := identity.New(identity.Config{HostID: host.NewID()})
	require.NoError(t, err)
	signer, err := identity.NewSigner(id)
	require.NoError(t, err)
	engine := peer.New(peer.Config{
		Host: host.Host{ID: id.HostID()}, Store: memstore.New(memstore.Config{Quota: quota}),
		Announcer: alone{}, Origin: client,
		Signer: signer, Verifier: identity.NewVerifier(id),
		SpoolDir: t.TempDir(),
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-ended)
	})
	f := &files{quota: func() int64 { return quota }, probe: client.Examine, window: client.Window, open: engine.Open,
		direct: engine.Passthrough, drop: engine.Drop, replaced: engine.Replaced, now: time.Now,
		key:   func() []byte { return []byte("k") },
		pulls: &pulls{log: slog.New(slog.DiscardHandler), embedded: func() bool { return true }}}
	f.settings.Store(&config.DaemonFiles{Files: config.Files{AllowHosts: []string{"*"}},
		IgnoreQuery: []string{"X-Amz-*", "sig"}})
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	return f, srv, o
}

// ask sends one request; headers are "Name: value".
func ask(t *testing.T, srv *httptest.Server, query url.Values, headers ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+api.PathFiles+"?"+query.Encode(), nil)
	require.NoError(t, err)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res, b
}

func refused(t *testing.T, b []byte) (e api.FileError) {
	t.Helper()
	require.NoError(t, json.Unmarshal(b, &e), "%s", b)
	return e
}

func TestFileIsFetchedOnce(t *testing.T) {
	f, srv, o := front(t, true)
	q := url.Values{api.FileURL: {o.URL + "/f.bin"}}
	res, b := ask(t, srv, q)
	require.Equal(t, http.StatusOK, res.StatusCode, "%s", b)
	assert.True(t, bytes.Equal(o.content, b))
	assert.Empty(t, res.Header.Get(api.HeaderCached))
	id, err := task.ParseID(strings.Trim(res.Header.Get("ETag"), `"`))
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(string(id), "file:"))

	res, b = ask(t, srv, q, "Range: bytes=100-", "If-Range: "+res.Header.Get("ETag"))
	assert.Equal(t, http.StatusPartialContent, res.StatusCode)
	assert.Equal(t, fmt.Sprintf("bytes 100-%d/%d", len(o.content)-1, len(o.content)), res.Header.Get("Content-Range"))
	assert.True(t, bytes.Equal(o.content[100:], b))
	assert.Equal(t, "true", res.Header.Get(api.HeaderCached))
	assert.Equal(t, 1, o.gets(), "one GET for all users")
	// The daemon counts the sent bytes a moment after the client received them.
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		assert.Equal(c, int64(2*len(o.content)-100), f.pulls.served.Load())
		assert.Equal(c, int64(len(o.content)-100), f.pulls.cached.Load())
	}, time.Minute, time.Millisecond)

	res, _ = ask(t, srv, q, fmt.Sprintf("Range: bytes=%d-", len(o.content)))
	assert.Equal(t, http.StatusRequestedRangeNotSatisfiable, res.StatusCode)
	assert.Equal(t, fmt.Sprintf("bytes */%d", len(o.content)), res.Header.Get("Content-Range"))
	res, b = ask(t, srv, q, "Range: bytes=100-", `If-Range: "file:another"`)
	assert.Equal(t, http.StatusOK, res.StatusCode, "what was begun is another version")
	assert.Len(t, b, len(o.content))
}

// A file that the node's store cannot hold comes straight from its origin.
func TestFileLargerThanTheQuota(t *testing.T) {
	for etag, want := range map[string]int{`"v1"`: 2, "": 2} {
		f, srv, o := frontOver(t, true, 64<<10)
		o.etag = etag
		for range want {
			res, b := ask(t, srv, url.Values{api.FileURL: {o.URL + "/f"}})
			require.Equal(t, http.StatusOK, res.StatusCode, "%s", b)
			assert.True(t, bytes.Equal(o.content, b))
			assert.Equal(t, "a node's store has no space for it", res.Header.Get(api.HeaderUnshared))
			assert.Empty(t, res.Header.Get("ETag"))
		}
		assert.Equal(t, want, o.gets(), "one for each client")
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			assert.Equal(c, int64(want*len(o.content)), f.pulls.served.Load())
		}, time.Minute, time.Millisecond)
	}
}

// Every answer with a file has the time when the origin modified it.
func TestLastModified(t *testing.T) {
	_, srv, o := front(t, true)
	o.modified = time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	q := url.Values{api.FileURL: {o.URL + "/f"}}
	res, _ := ask(t, srv, q)
	etag := res.Header.Get("ETag")
	for _, header := range []string{"Accept: cold", "Accept: cached", "Range: bytes=10-", "Range: bytes=640000-"} {
		res, _ = ask(t, srv, q, header, "If-Range: "+etag)
		assert.Equal(t, "Thu, 02 Jan 2020 03:04:05 GMT", res.Header.Get("Last-Modified"), "%s: %s", header, res.Status)
	}
	q.Set(api.FileNoCache, "true")
	res, _ = ask(t, srv, q)
	assert.NotEmpty(t, res.Header.Get(api.HeaderUnshared))
	assert.Equal(t, "Thu, 02 Jan 2020 03:04:05 GMT", res.Header.Get("Last-Modified"))
}

func TestCachedFileNeedsTheOriginsConsent(t *testing.T) {
	_, srv, o := front(t, true)
	o.word = "sesame"
	q := url.Values{api.FileURL: {o.URL + "/f.bin"}}
	res, b := ask(t, srv, q, api.ForwardPrefix+"X-Word: sesame")
	require.Equal(t, http.StatusOK, res.StatusCode, "%s", b)
	for _, headers := range [][]string{nil, {api.ForwardPrefix + "X-Word: guess"}, {"X-Word: sesame"},
		{"Authorization: sesame"}} {
		res, b = ask(t, srv, q, headers...)
		assert.Equal(t, http.StatusForbidden, res.StatusCode, "%v", headers)
		e := refused(t, b)
		assert.Equal(t, api.FileRefused, e.Kind)
		assert.Equal(t, http.StatusForbidden, e.Status)
		assert.Contains(t, e.Message, "403 Forbidden")
		assert.NotContains(t, string(b), "0123456789")
	}
	res, _ = ask(t, srv, q, api.ForwardPrefix+"X-Word: sesame")
	assert.Equal(t, http.StatusOK, res.StatusCode)
	assert.Equal(t, "true", res.Header.Get(api.HeaderCached))
}

func TestChangedFileIsAnotherTask(t *testing.T) {
	_, srv, o := front(t, true)
	q := url.Values{api.FileURL: {o.URL + "/f.bin"}}
	first, _ := ask(t, srv, q)
	o.mu.Lock()
	o.etag, o.content = `"v2"`, []byte("the new version")
	o.mu.Unlock()
	second, b := ask(t, srv, q)
	assert.Equal(t, "the new version", string(b))
	assert.NotEqual(t, first.Header.Get("ETag"), second.Header.Get("ETag"))
}

func TestSignaturesOfURLsAreIgnored(t *testing.T) {
	_, srv, o := front(t, true)
	etag := func(path string, more url.Values) string {
		q := url.Values{api.FileURL: {o.URL + path}}
		for k, v := range more {
			q[k] = v
		}
		res, b := ask(t, srv, q)
		require.Equal(t, http.StatusOK, res.StatusCode, "%s", b)
		return res.Header.Get("ETag")
	}
	want := etag("/f.bin?v=1&part=2", nil)
	assert.Equal(t, want, etag("/f.bin?v=1&part=2#top", nil))
	signed := etag("/f.bin?v=1&part=2&X-Amz-Signature=abc&x-amz-date=1", nil)
	assert.NotEqual(t, want, signed, "a signature is a credential: clients without it do not get its file")
	assert.Equal(t, signed, etag("/f.bin?v=1&X-Amz-Date=2&part=2&X-Amz-Signature=def", nil))
	ignored := etag("/f.bin?v=1&token=9&part=2", url.Values{api.FileIgnore: {"tok*"}})
	assert.Equal(t, ignored, etag("/f.bin?v=1&token=8&part=2", url.Values{api.FileIgnore: {"TOK*"}}))
	assert.NotEqual(t, want, ignored, "a client's own list names no other client's file")
	bare := etag("/f.bin", nil)
	for _, other := range []string{"/f.bin?", "/f.bin?&", "/f%2Ebin", "/./f.bin"} {
		assert.NotEqual(t, bare, etag(other, nil), "%s is another resource to some servers", other)
	}
	for _, other := range []string{"/f.bin?v=1&part=2&", "/f.bin?&v=1&part=2", "/f.bin?v=1&&part=2",
		"/f.bin?v=2&part=2", "/f.bin", "/F.bin?v=1&part=2", "/f.bin?v=1&part=2&signal=1"} {
		assert.NotEqual(t, want, etag(other, nil), other)
	}
	assert.NotEqual(t, want, etag("/f.bin?v=1&part=2", url.Values{api.FileTag: {"t"}}))
	assert.NotEqual(t, want, etag("/f.bin?v=1&part=2", url.Values{api.FileApplication: {"a"}}))
	o.mu.Lock()
	defer o.mu.Unlock()
	whole := 0
	for _, r := range o.requests {
		if r.URL.Query().Get("X-Amz-Signature") == "abc" {
			whole++
		}
	}
	assert.Positive(t, whole, "the origin gets the whole URL")
}

func TestWrongDigestHurtsNoOther(t *testing.T) {
	_, srv, o := front(t, true)
	q := url.Values{api.FileURL: {o.URL + "/f.bin"}}
	res, _ := ask(t, srv, q)
	require.Equal(t, http.StatusOK, res.StatusCode)
	_, b := ask(t, srv, url.Values{api.FileURL: {o.URL + "/f.bin"}, api.FileDigest: {"md5:00"}})
	assert.Equal(t, api.FileBadRequest, refused(t, b).Kind)

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+api.PathFiles+"?"+url.Values{
		api.FileURL: {o.URL + "/f.bin"}, api.FileDigest: {"sha256:" + strings.Repeat("0", 64)},
	}.Encode(), nil)
	require.NoError(t, err)
	got, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer got.Body.Close()
	b, err = io.ReadAll(got.Body)
	assert.False(t, got.StatusCode == http.StatusOK && err == nil && len(b) == len(o.content),
		"never a complete wrong body")

	res, b = ask(t, srv, q)
	assert.Equal(t, "true", res.Header.Get(api.HeaderCached))
	assert.True(t, bytes.Equal(o.content, b))
}

func TestRefusalsNameTheirKind(t *testing.T) {
	f, srv, o := front(t, true)
	hosts := []string{"127.0.0.1", "*.files.test"}
	f.settings.Store(&config.DaemonFiles{Files: config.Files{AllowHosts: hosts}})
	for _, row := range []struct {
		name, url string
		want      api.FileErrorKind
		code      int
	}{
		{"no URL", "", api.FileBadRequest, 400},
		{"another scheme", "file:///etc/passwd", api.FileBadRequest, 400},
		{"a user in it", "http://u:p@127.0.0.1/x", api.FileBadRequest, 400},
		{"too long", "http://127.0.0.1/" + strings.Repeat("x", urlMax), api.FileBadRequest, 400},
		{"another host", "http://evil.test/x", api.FileForbidden, 403},
		{"the host above", "http://files.test/x", api.FileForbidden, 403},
		{"a name that ends alike", "http://evilfiles.test/x", api.FileForbidden, 403},
		{"no server", "http://127.0.0.1:1/x", api.FileUnreachable, 502},
	} {
		t.Run(row.name, func(t *testing.T) {
			res, b := ask(t, srv, url.Values{api.FileURL: {row.url}})
			e := refused(t, b)
			assert.Equal(t, row.want, e.Kind, e.Message)
			assert.Equal(t, row.code, res.StatusCode)
		})
	}
	// A parameter that cannot be parsed is not left out: without the digest or no-cache, the request would be another.
	for _, more := range []string{"digest=sha256:00;", "no-cache=true%zz"} {
		res, err := http.Get(srv.URL + api.PathFiles + "?" + api.FileURL + "=" + o.URL + "/x&" + more)
		require.NoError(t, err)
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		require.NoError(t, err)
		assert.Equal(t, http.StatusBadRequest, res.StatusCode, more)
		assert.Equal(t, api.FileBadRequest, refused(t, b).Kind)
	}
	assert.Empty(t, o.requests)
	assert.True(t, hostmatch.Match(hosts, "a.b.FILES.test"))

	res, err := http.Post(srv.URL+api.PathFiles, "text/plain", nil)
	require.NoError(t, err)
	res.Body.Close()
	assert.Equal(t, http.StatusMethodNotAllowed, res.StatusCode)
}

func TestLoopbackFilesNeedPermission(t *testing.T) {
	_, srv, o := front(t, false)
	_, b := ask(t, srv, url.Values{api.FileURL: {o.URL + "/f.bin"}})
	e := refused(t, b)
	assert.Equal(t, api.FileForbidden, e.Kind, e.Message)
	assert.Contains(t, e.Message, "files.allowAddresses")
	assert.Empty(t, o.requests)
}

func TestLeavingClientIsNoFailure(t *testing.T) {
	f, srv, o := front(t, true)
	var line bytes.Buffer
	var mu sync.Mutex
	f.pulls.log = slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return line.Write(b)
	}), nil))
	o.mu.Lock()
	o.content = bytes.Repeat([]byte("x"), 64<<20) // more than sockets buffer
	o.mu.Unlock()
	res, err := http.Get(srv.URL + api.PathFiles + "?" + url.Values{api.FileURL: {o.URL + "/f.bin"}}.Encode())
	require.NoError(t, err)
	_, err = io.CopyN(io.Discard, res.Body, 1000)
	require.NoError(t, err)
	res.Body.Close()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		mu.Lock()
		defer mu.Unlock()
		assert.Contains(c, line.String(), "level=INFO")
		assert.Contains(c, line.String(), "result=canceled")
	}, time.Minute, time.Millisecond)
}

func TestUntrustedOriginNamesTheRemedy(t *testing.T) {
	_, srv, _ := front(t, true)
	o := httptest.NewUnstartedServer(http.NotFoundHandler())
	o.Config.ErrorLog = log.New(io.Discard, "", 0) // the handshake fails
	o.StartTLS()
	defer o.Close()
	_, b := ask(t, srv, url.Values{api.FileURL: {o.URL + "/f"}})
	e := refused(t, b)
	assert.Equal(t, api.FileUnreachable, e.Kind)
	assert.True(t, e.Untrusted)
	assert.Contains(t, e.Message, "failed to verify certificate")
	assert.Contains(t, e.Message, "files.ca")
	_, b = ask(t, srv, url.Values{api.FileURL: {"http://127.0.0.1:1/f"}})
	assert.False(t, refused(t, b).Untrusted)
	assert.False(t, refused(t, b).Final)
}

// A client does not ask again for what ends alike each time.
func TestFinalOriginErrors(t *testing.T) {
	_, srv, _ := front(t, true)
	o := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", map[string]string{"/loop": "/loop", "/odd": "http://[", "/mail": "mailto:a"}[r.URL.Path])
		w.WriteHeader(http.StatusFound)
	}))
	defer o.Close()
	for path, want := range map[string]string{
		"/loop": "more than 10 redirects", "/odd": "302 with an unreadable Location",
		"/mail": "which is not an http or https URL",
	} {
		_, b := ask(t, srv, url.Values{api.FileURL: {o.URL + path}})
		e := refused(t, b)
		assert.Equal(t, api.FileUnreachable, e.Kind)
		assert.True(t, e.Final)
		assert.Contains(t, e.Message, want)
	}
	e := httporigin.FileError(fmt.Errorf("dial: %w", &net.DNSError{Err: "no such host", IsNotFound: true}))
	assert.True(t, e.Final)
	assert.False(t, httporigin.FileError(&net.DNSError{Err: "server misbehaving", IsTemporary: true}).Final)
}

func TestOriginErrorsAndRefusals(t *testing.T) {
	f, srv, _ := front(t, true)
	for status, want := range map[int]string{500: "level=WARN", 503: "level=WARN", 404: "level=INFO",
		403: "level=INFO"} {
		o := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
		}))
		var mu sync.Mutex
		var line bytes.Buffer
		f.pulls.log = slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return line.Write(b)
		}), nil))
		res, _ := ask(t, srv, url.Values{api.FileURL: {o.URL + "/f"}})
		o.Close()
		assert.Equal(t, status, res.StatusCode)
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			mu.Lock()
			defer mu.Unlock()
			assert.Contains(c, line.String(), want)
			result := map[bool]string{true: "result=refused", false: "result=failed"}[status < 500]
			assert.Contains(c, line.String(), result)
		}, time.Minute, time.Millisecond)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestHeadersThatRouteAreRefused(t *testing.T) {
	_, srv, o := front(t, true)
	for _, name := range []string{"Host", "X-Forwarded-Host", "X-Original-Url", "X-Rewrite-Url", "Range", "If-Match",
		"X-Http-Method-Override"} {
		res, b := ask(t, srv, url.Values{api.FileURL: {o.URL + "/f.bin"}}, api.ForwardPrefix+name+": evil.example")
		assert.Equal(t, http.StatusBadRequest, res.StatusCode, name)
		assert.Contains(t, refused(t, b).Message, name)
	}
	assert.Empty(t, o.requests)
}

// TestVersionWithoutETagIsNotCached has an origin without any validator, whose file changes at the same length.
func TestVersionWithoutETagIsNotCached(t *testing.T) {
	t.Parallel()
	f, srv, o := front(t, true)
	o.etag = ""
	q := url.Values{api.FileURL: {o.URL + "/f.bin"}}
	res, b := ask(t, srv, q)
	require.Equal(t, http.StatusOK, res.StatusCode, "%s", b)
	assert.True(t, bytes.Equal(o.content, b))
	assert.Empty(t, res.Header.Get("ETag"), "no client could resume it")
	o.mu.Lock()
	o.content = bytes.Repeat([]byte("n"), len(o.content))
	o.mu.Unlock()
	res, b = ask(t, srv, q, "Range: bytes=5-")
	require.Equal(t, http.StatusOK, res.StatusCode)
	assert.True(t, bytes.Equal(o.content, b), "the new version")
	require.Eventually(t, func() bool {
		f.transfers.mu.Lock()
		defer f.transfers.mu.Unlock()
		return len(f.transfers.all) == 0
	}, time.Minute, 10*time.Millisecond, "nothing is kept of it")
}

// TestEqualRequestsAreCoalesced uses an origin without validator that holds its body back until all requests have
// arrived.
func TestEqualRequestsAreCoalesced(t *testing.T) {
	_, srv, _ := front(t, true)
	var mu sync.Mutex
	gets := map[string]int{}
	hold := make(chan struct{})
	o := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "12")
		if r.Method == http.MethodHead {
			return
		}
		who := r.Header.Get("Authorization")
		mu.Lock()
		gets[who]++
		mu.Unlock()
		_, _ = fmt.Fprintf(w, "%-6s", who)
		_ = http.NewResponseController(w).Flush()
		<-hold
		_, _ = fmt.Fprintf(w, "%-6s", who)
	}))
	defer o.Close()
	var wg sync.WaitGroup
	for _, who := range []string{"alice", "alice", "alice", "bob", "bob", ""} {
		wg.Go(func() {
			_, b := ask(t, srv, url.Values{api.FileURL: {o.URL + "/f"}}, api.ForwardPrefix+"Authorization: "+who)
			assert.Equal(t, fmt.Sprintf("%-6s%-6s", who, who), string(b))
		})
	}
	time.AfterFunc(time.Second, func() { close(hold) }) // a late request costs a further body, never a wrong byte
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	for who, n := range gets {
		assert.LessOrEqual(t, n, 3, who)
	}
	assert.Len(t, gets, 3)
}

// TestChangedFileLeavesItsTransfer has an origin without usable validator, whose reply to the second client shows that
// the file has changed since the transfer of the first began.
func TestChangedFileLeavesItsTransfer(t *testing.T) {
	const noon, later = "Fri, 01 May 2026 12:00:00 GMT", "Fri, 01 May 2026 12:00:01 GMT"
	for name, dates := range map[string][2]string{"its length": {}, "its date": {noon, later}} {
		t.Run(name, func(t *testing.T) {
			f, srv, _ := front(t, true)
			var version atomic.Int64
			content := func(v int64) string {
				if dates[v] == "" {
					return strings.Repeat("v", int(10+v))
				}
				return strings.Repeat(strconv.FormatInt(v, 10), 10)
			}
			begun, hold := make(chan struct{}, 2), make(chan struct{})
			o := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				v := version.Load()
				body := content(v)
				w.Header().Set("Content-Length", strconv.Itoa(len(body)))
				if dates[v] != "" { // a date of this very second names no version
					w.Header().Set("Last-Modified", dates[v])
					w.Header().Set("Date", dates[v])
				}
				if r.Method == http.MethodHead {
					return
				}
				_, _ = io.WriteString(w, body[:1])
				_ = http.NewResponseController(w).Flush()
				begun <- struct{}{}
				<-hold
				_, _ = io.WriteString(w, body[1:])
			}))
			defer o.Close()
			var all sync.WaitGroup
			defer all.Wait()
			get := func(want string) {
				all.Go(func() {
					_, b := ask(t, srv, url.Values{api.FileURL: {o.URL + "/f"}})
					assert.Equal(t, want, string(b))
				})
			}
			get(content(0))
			<-begun
			version.Store(1)
			get(content(1))
			joined := func() bool {
				f.transfers.mu.Lock()
				defer f.transfers.mu.Unlock()
				for _, running := range f.transfers.all {
					if running.readers > 1 {
						return true
					}
				}
				return len(begun) > 0
			}
			assert.Eventually(t, joined, time.Minute, time.Millisecond)
			close(hold)
		})
	}
}

func TestAClientMayLimitCaches(t *testing.T) {
	f, srv, o := front(t, true)
	begin := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	var passed atomic.Int64 // since then; a handler still reads the clock after its client received everything
	f.now = func() time.Time { return begin.Add(time.Duration(passed.Load())) }
	bodies := func(more url.Values, headers ...string) int {
		q := url.Values{api.FileURL: {o.URL + "/f.bin"}}
		for k, v := range more {
			q[k] = v
		}
		before := o.gets()
		res, b := ask(t, srv, q, headers...)
		require.Equal(t, http.StatusOK, res.StatusCode, "%s", b)
		return o.gets() - before
	}
	assert.Equal(t, 1, bodies(nil))
	assert.Equal(t, 0, bodies(nil))
	for range 2 {
		assert.Equal(t, 1, bodies(url.Values{api.FileNoCache: {"true"}}))
		assert.Equal(t, 1, bodies(url.Values{api.FileMaxAge: {"0s"}}))
		assert.Equal(t, 1, bodies(nil, "Cache-Control: no-cache"))
		assert.Equal(t, 1, bodies(nil, api.ForwardPrefix+"Cache-Control: no-cache"))
	}
	ten := url.Values{api.FileMaxAge: {"10m"}}
	assert.Equal(t, 1, bodies(ten), "the age of the cached one is unknown")
	assert.Equal(t, 0, bodies(ten))
	passed.Add(int64(10 * time.Minute))
	assert.Equal(t, 1, bodies(ten))
	assert.Equal(t, 0, bodies(nil))
	for _, bad := range []url.Values{{api.FileMaxAge: {"soon"}}, {api.FileMaxAge: {"-1s"}},
		{api.FileNoCache: {"perhaps"}}} {
		bad[api.FileURL] = []string{o.URL}
		res, _ := ask(t, srv, bad)
		assert.Equal(t, http.StatusBadRequest, res.StatusCode, bad)
	}
	said := 0
	for _, r := range o.requests {
		if r.Header.Get("Cache-Control") == "max-age=600" {
			said++
		}
	}
	assert.Positive(t, said, "caches on the way are told")
}

// An origin says public and checks credentials at GET alone: a client with credentials still gets its file.
func TestPublicHeadWithPrivateGet(t *testing.T) {
	_, srv, _ := front(t, true)
	o := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && r.Header.Get("Authorization") != "Bearer alice" {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Cache-Control", "public")
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader("content"))
	}))
	defer o.Close()
	q := url.Values{api.FileURL: {o.URL + "/f"}}
	for _, who := range []string{"bob", "alice", "", "alice"} {
		res, b := ask(t, srv, q, api.ForwardPrefix+"Authorization: Bearer "+who)
		if who == "alice" {
			assert.Equal(t, "content", string(b))
			continue
		}
		assert.Equal(t, http.StatusUnauthorized, res.StatusCode)
	}
}

// A body without length that breaks off never looks complete, to clients of either version of HTTP.
func TestBrokenBodyWithoutLength(t *testing.T) {
	_, srv, _ := front(t, true)
	o := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if r.Method == http.MethodHead {
			return
		}
		_, _ = w.Write(make([]byte, 64<<10)) // more than the daemon's server buffers
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer o.Close()
	for _, version := range []string{"1.0", "1.1"} {
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		require.NoError(t, err)
		defer conn.Close()
		_, err = fmt.Fprintf(conn, "GET %s?%s HTTP/%s\r\nHost: 127.0.0.1\r\n\r\n", api.PathFiles,
			url.Values{api.FileURL: {o.URL + "/f"}}.Encode(), version)
		require.NoError(t, err)
		b, err := io.ReadAll(conn)
		if version == "1.0" {
			require.ErrorIs(t, err, syscall.ECONNRESET, "after %d bytes", len(b))
			continue
		}
		res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
		if err == nil {
			_, err = io.ReadAll(res.Body)
			res.Body.Close()
		}
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	}
}

func TestUnsharedFilesAreVerified(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	sum := sha256.Sum256(content)
	right := "sha256:" + hex.EncodeToString(sum[:])
	var out bytes.Buffer
	n, err := copyChecked(&out, bytes.NewReader(content), right)
	require.NoError(t, err)
	assert.Equal(t, int64(len(content)), n)
	assert.True(t, bytes.Equal(content, out.Bytes()))
	out.Reset()
	_, err = copyChecked(&out, bytes.NewReader(content), "sha256:"+strings.Repeat("0", 64))
	require.ErrorContains(t, err, right)
	assert.Less(t, out.Len(), len(content), "never a complete wrong body")
	out.Reset()
	_, err = copyChecked(&out, io.MultiReader(bytes.NewReader(content), iotest.ErrReader(io.ErrUnexpectedEOF)), right)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

// The answer with a small file tells where its bytes came from. A large file's does not: they still arrive.
func TestSmallAnswerTellsSources(t *testing.T) {
	_, srv, o := front(t, true)
	large, _ := ask(t, srv, url.Values{api.FileURL: {o.URL + "/large"}})
	assert.Empty(t, large.Header.Get(api.HeaderSources))
	o.mu.Lock()
	o.content = o.content[:smallMax]
	o.mu.Unlock()
	// The engine counts the bytes a moment after it stores them, so an answer can lack them.
	for n := range 200 {
		q := url.Values{api.FileURL: {fmt.Sprint(o.URL, "/small/", n)}}
		res, b := ask(t, srv, q)
		require.True(t, bytes.Equal(o.content, b))
		told := res.Header.Get(api.HeaderSources)
		if told == "" {
			continue
		}
		var s api.Sources
		require.NoError(t, json.Unmarshal([]byte(told), &s))
		assert.Equal(t, api.Sources{Origin: smallMax}, s)
		res, b = ask(t, srv, q)
		assert.True(t, bytes.Equal(o.content, b))
		assert.Empty(t, res.Header.Get(api.HeaderSources), "HeaderCached says it")
		assert.Equal(t, "true", res.Header.Get(api.HeaderCached))
		return
	}
	t.Error("no answer told the sources")
}
