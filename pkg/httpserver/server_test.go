package httpserver

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/darter-io/darter/pkg/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server whose handler reports its start and waits until the test releases it.
func serve(t *testing.T,
	drain time.Duration) (url string, in chan struct{}, out chan struct{}, stop context.CancelFunc, ended chan error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	in, out, ended = make(chan struct{}), make(chan struct{}), make(chan error, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "8")
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		in <- struct{}{}
		select {
		case <-out:
			_, _ = io.WriteString(w, "half")
		case <-r.Context().Done():
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	go func() { ended <- testServer(l, h, nil, drain).Run(ctx) }()
	return "http://" + l.Addr().String(), in, out, stop, ended
}

func fetch(url string) <-chan string {
	body := make(chan string, 1)
	go func() {
		tr := &http.Transport{DisableKeepAlives: true}
		req, _ := http.NewRequest(http.MethodGet, url, nil)
		res, err := tr.RoundTrip(req)
		if err != nil {
			body <- err.Error()
			return
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		body <- string(b)
	}()
	return body
}

func TestDrainWaitsForARequest(t *testing.T) {
	url, in, out, stop, ended := serve(t, time.Minute)
	body := fetch(url)
	<-in
	stop()
	// The port is closed at once: other clients are refused and try another server.
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err == nil {
			c.Close()
		}
		return err != nil
	}, 30*time.Second, time.Millisecond)
	close(out)
	assert.Equal(t, "halfhalf", <-body)
	require.NoError(t, <-ended)
}

func TestDrainRefusesNewRequests(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	in, out, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	s := testServer(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/quick" {
			_, _ = io.WriteString(w, "quick")
			return
		}
		w.Header().Set("Content-Length", "8")
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		in <- struct{}{}
		<-out
		_, _ = io.WriteString(w, "half")
	}), nil, time.Minute)
	s.Refuses = true
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() { ended <- s.Run(ctx) }()
	at := "http://" + l.Addr().String()
	kept := &http.Transport{} // keeps its connection
	defer kept.CloseIdleConnections()
	get := func(tr *http.Transport) (*http.Response, string) {
		req, err := http.NewRequest(http.MethodGet, at+"/quick", nil)
		require.NoError(t, err)
		res, err := tr.RoundTrip(req)
		require.NoError(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res, string(b)
	}
	res, said := get(kept)
	require.Equal(t, http.StatusOK, res.StatusCode)
	require.Equal(t, "quick", said)
	body := fetch(at + "/slow")
	<-in
	stop()
	fresh := &http.Transport{DisableKeepAlives: true}
	require.Eventually(t, func() bool {
		res, _ := get(fresh)
		return res.StatusCode == http.StatusServiceUnavailable
	}, time.Minute, time.Millisecond)
	for _, tr := range []*http.Transport{fresh, kept} {
		res, said := get(tr)
		assert.Equal(t, http.StatusServiceUnavailable, res.StatusCode)
		assert.Equal(t, "1", res.Header.Get("Retry-After"))
		assert.True(t, res.Close, "the client must not use the connection again")
		assert.Contains(t, said, "UNAVAILABLE")
		assert.Contains(t, said, "is stopping")
	}
	close(out)
	assert.Equal(t, "halfhalf", <-body, "a running request ends as if nothing happened")
	require.NoError(t, <-ended)
}

// A tunnel, whose handler takes the connection, delays no end.
func TestDrainIgnoresTunnels(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	in, out, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	s := testServer(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if assert.NoError(t, err) {
			defer c.Close()
		}
		close(in)
		<-out
	}), nil, time.Hour)
	s.Refuses = true
	ctx, stop := context.WithCancel(t.Context())
	go func() { ended <- s.Run(ctx) }()
	body := fetch("http://" + l.Addr().String())
	<-in
	stop()
	require.NoError(t, <-ended)
	close(out)
	<-body
}

func TestDrainTimeout(t *testing.T) {
	url, in, _, stop, ended := serve(t, 10*time.Millisecond)
	body := fetch(url)
	<-in
	stop()
	require.NoError(t, <-ended)
	assert.Equal(t, "half", <-body, "cut short")
}

func TestRejectBrowsers(t *testing.T) {
	h := RejectBrowsers(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for header, status := range map[string]int{"": 200, "User-Agent": 200, "Origin": 403, "Sec-Fetch-Site": 403} {
		r := httptest.NewRequest(http.MethodPost, api.PathAnnounce, strings.NewReader("{}"))
		if header != "" {
			r.Header.Set(header, "null")
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		assert.Equal(t, status, w.Code, header)
	}
}

func TestRejectRebinding(t *testing.T) {
	h := RejectRebinding(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for name, want := range map[string]int{
		"127.0.0.1:65003": 200, "[::1]:65003": 200, "localhost:65003": 200, "LOCALHOST": 200, "127.0.0.1": 200,
		"[::1]":           200,
		"evil.test:65003": 421, "evil.test": 421, "127.0.0.1.evil.test": 421, "localhost.evil.test:1": 421, "": 421,
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = name
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		assert.Equal(t, want, w.Code, "%q", name)
	}
}

func TestRejectReboundPages(t *testing.T) {
	browser := http.Header{"User-Agent": {"Mozilla/5.0 (X11; Linux x86_64)"}, "Accept-Language": {"de"}}
	for _, row := range []struct {
		name           string
		host           string
		header         http.Header
		mirror, member int
	}{
		{"a rebound page", "evil.test:65001", browser, 421, 403},
		{"a rebound page that hides its browser", "evil.test:65001", http.Header{"Referer": {"http://evil.test/"}}, 421, 403},
		{"a name that begins like an address", "127.0.0.1.evil.test", browser, 421, 403},
		{"a person by address", "127.0.0.1:65001", browser, 200, 200},
		{"a person by localhost", "localhost:65001", browser, 200, 200},
		{"containerd by the node's name", "node1.corp:65001", http.Header{"User-Agent": {"containerd/2.4"}}, 200, 200},
		{"a program without a name of its own", "node1.corp:65001", http.Header{}, 200, 200},
	} {
		t.Run(row.name, func(t *testing.T) {
			answer := func(wrap func(http.Handler) http.Handler) int {
				r := httptest.NewRequest(http.MethodGet, "/v2/", nil)
				r.Host, r.Header = row.host, row.header
				w := httptest.NewRecorder()
				wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, r)
				return w.Code
			}
			assert.Equal(t, row.mirror, answer(RejectReboundPages))
			assert.Equal(t, row.member, answer(RejectBrowsers))
		})
	}
}

func TestRejectPages(t *testing.T) {
	asked := func(wrap func(http.Handler) http.Handler, headers ...string) int {
		r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1:65003/api/v1/files", nil)
		r.Host = "127.0.0.1:65003"
		for _, h := range headers {
			name, value, _ := strings.Cut(h, ": ")
			r.Header.Set(name, value)
		}
		w := httptest.NewRecorder()
		wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, r)
		return w.Code
	}
	chrome := []string{"User-Agent: Mozilla/5.0 (X11; Linux x86_64)", "Accept-Language: de"}
	for _, row := range []struct {
		name         string
		headers      []string
		local, files int
	}{
		{"curl", []string{"User-Agent: curl/8"}, 200, 200},
		{"PowerShell, which says that it is a browser", []string{"User-Agent: Mozilla/5.0 (Linux) PowerShell/7"}, 200,
			200},
		{"a script of a page", []string{"Origin: https://evil.test"}, 403, 403},
		{"a script of a sandboxed page", []string{"Origin: null"}, 403, 403},
		{"an image in a page", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"}, 403, 403},
		{"an image in a page of the same machine", []string{"Sec-Fetch-Site: same-site"}, 403, 403},
		{"another port of the same machine", []string{"Origin: http://127.0.0.1:8080"}, 403, 403},
		{"an old browser that says where it comes from", []string{"Referer: http://evil.test/"}, 200, 403},
		{"an old browser", chrome, 200, 403},
		{"a person who types the address", append([]string{"Sec-Fetch-Site: none"}, chrome...), 200, 403},
		{"the page of the local API itself",
			[]string{"Sec-Fetch-Site: same-origin", "Origin: http://127.0.0.1:65003"}, 200, 403},
	} {
		t.Run(row.name, func(t *testing.T) {
			assert.Equal(t, row.local, asked(RejectRebinding, row.headers...))
			assert.Equal(t, row.local, asked(RejectPages, row.headers...))
			assert.Equal(t, row.files, asked(RejectAllBrowsers, row.headers...))
		})
	}
}
