package daemon_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
)

// hungRegistry answers lookups and hangs at every GET of a blob. For the repository "mute" and for files it
// hangs at every request. in receives a string for each hung request.
func hungRegistry(t *testing.T, manifest []byte, in chan string) *httptest.Server {
	over := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/mute/") || strings.HasPrefix(r.URL.Path, "/file") ||
			r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") ||
			strings.Contains(r.URL.Path, "/tags/") {
			in <- r.Method + " " + r.URL.Path
			select {
			case <-over:
			case <-r.Context().Done():
			}
			panic(http.ErrAbortHandler)
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			w.Header().Set("Content-Length", "1000")
		}
		if strings.Contains(r.URL.Path, "/manifests/") {
			sum := sha256.Sum256(manifest)
			w.Header().Set("Docker-Content-Digest", "sha256:"+hex.EncodeToString(sum[:]))
			w.Header().Set("Content-Length", fmt.Sprint(len(manifest)))
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") {
			_, _ = w.Write(manifest)
		}
	}))
	t.Cleanup(srv.Close)
	t.Cleanup(func() { close(over) })
	return srv
}

func TestWaitingClientGetsNo200AtStop(t *testing.T) {
	in := make(chan string, 64)
	origin := hungRegistry(t, []byte(`{"schemaVersion":2}`), in)
	u, err := url.Parse(origin.URL)
	require.NoError(t, err)
	cfg := settings(t, nil, "one")
	cfg.DrainTimeout = 10 * time.Millisecond // all requests wait longer than that
	cfg.Upstreams = []config.Upstream{{Host: u.Host, URLs: []string{origin.URL}, PlainHTTP: true}}
	cfg.Files.AllowHosts = []string{"*"}
	cfg.Proxy = config.Proxy{Listen: "127.0.0.1:0", Tunnel: config.TunnelAny}
	d, stop := start(t, cfg)
	mirror, local := "http://"+d.Addrs()["mirror"], "http://"+d.Addrs()["api"]
	digest := func(i int) string { return "sha256:" + strings.Repeat(fmt.Sprintf("%02x", i), 32) }

	plain := &http.Client{Transport: &http.Transport{}}
	proxied := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http",
		Host: d.Addrs()["proxy"]})}}
	defer plain.CloseIdleConnections()
	defer proxied.CloseIdleConnections()
	asks := []struct {
		client            *http.Client
		method, at, extra string
	}{
		{plain, http.MethodGet, mirror + "/v2/app/blobs/" + digest(1) + "?ns=" + u.Host, ""},
		{plain, http.MethodGet, mirror + "/v2/app/blobs/" + digest(2) + "?ns=" + u.Host, "bytes=10-"},
		{plain, http.MethodGet, mirror + "/v2/" + strings.Replace(u.Host, ":", "_", 1) + "/app/blobs/" + digest(3), ""},
		{plain, http.MethodHead, mirror + "/v2/mute/blobs/" + digest(4) + "?ns=" + u.Host, ""},
		{plain, http.MethodGet, mirror + "/v2/mute/manifests/v1?ns=" + u.Host, ""},
		{plain, http.MethodGet, mirror + "/v2/mute/manifests/" + digest(5) + "?ns=" + u.Host, ""},
		{plain, http.MethodGet, mirror + "/v2/app/tags/list?ns=" + u.Host, ""},
		{plain, http.MethodGet, mirror + "/v2/mute/referrers/" + digest(6) + "?ns=" + u.Host, ""},
		{plain, http.MethodGet, local + api.PathFiles + "?" + api.FileURL + "=" + url.QueryEscape(origin.URL+"/file"),
			""},
		{proxied, http.MethodGet, origin.URL + "/v2/app/blobs/" + digest(7), ""},
		{proxied, http.MethodPost, origin.URL + "/v2/mute/blobs/uploads/", ""},
	}
	var wg sync.WaitGroup
	for _, a := range asks {
		wg.Go(func() {
			req, err := http.NewRequest(a.method, a.at, nil)
			if !assert.NoError(t, err) {
				return
			}
			if a.extra != "" {
				req.Header.Set("Range", a.extra)
			}
			res, err := a.client.Do(req)
			if err != nil {
				return // an aborted connection counts, too
			}
			defer res.Body.Close()
			b, _ := io.ReadAll(res.Body)
			assert.GreaterOrEqual(t, res.StatusCode, 500, "%s %s: %s %v %q", a.method, a.at, res.Status, res.Header, b)
			for _, name := range []string{"Docker-Content-Digest", "ETag", "Content-Range"} {
				assert.Empty(t, res.Header.Get(name), "%s of %s", name, a.at)
			}
		})
	}
	for range asks {
		select { // all requests wait for their first byte
		case asked := <-in:
			t.Log(asked)
		case <-time.After(30 * time.Second): // some 300 times the usual time
			require.FailNow(t, "a request does not reach the origin")
		}
	}
	stop()
	wg.Wait()
}
