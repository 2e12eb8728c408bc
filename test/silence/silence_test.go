package silence_test

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

	"github.com/darter-io/darter/test/silence"
)

// relay starts a relay for a server.
func relay(t *testing.T, h http.Handler) (*silence.Relay, string) {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	r := &silence.Relay{Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(s.URL, "http://"))
	}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- r.Serve(l) }()
	t.Cleanup(func() {
		l.Close()
		assert.NoError(t, <-done)
	})
	return r, "http://" + l.Addr().String()
}

func TestLongest(t *testing.T) {
	const pause = 50 * time.Millisecond
	heard := make(chan struct{})
	r, url := relay(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		io.WriteString(w, "some")
		w.(http.Flusher).Flush()
		if req.URL.Path == "/slow" {
			<-heard // on a busy machine the first bytes may arrive late
			time.Sleep(pause)
		}
		io.WriteString(w, " more")
	}))
	c := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(c.CloseIdleConnections)
	get := func(path string) string {
		res, err := c.Get(url + path)
		require.NoError(t, err)
		defer res.Body.Close()
		first := make([]byte, len("some"))
		_, err = io.ReadFull(res.Body, first)
		require.NoError(t, err)
		if path == "/slow" {
			close(heard)
		}
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return string(first) + string(b)
	}
	began := time.Now()
	assert.Equal(t, "some more", get("/slow"))
	assert.GreaterOrEqual(t, r.Longest(), pause)
	assert.LessOrEqual(t, r.Longest(), time.Since(began))

	r.Reset()
	time.Sleep(pause) // no client waits, although the connection is open
	began = time.Now()
	assert.Equal(t, "some more", get("/"))
	assert.LessOrEqual(t, r.Longest(), time.Since(began))
}

// A cut body stays a cut body and a reset stays a reset.
func TestCutAndReset(t *testing.T) {
	_, url := relay(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "short")
		w.(http.Flusher).Flush()
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		if req.URL.Path == "/reset" {
			conn.(*net.TCPConn).SetLinger(0)
		}
		conn.Close()
	}))
	for path, want := range map[string]string{"/cut": "unexpected EOF", "/reset": "reset"} {
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		res, err := c.Get(url + path)
		if err == nil {
			_, err = io.ReadAll(res.Body)
			res.Body.Close()
		}
		require.ErrorContains(t, err, want, path)
	}
}
