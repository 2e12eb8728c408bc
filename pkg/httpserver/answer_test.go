package httpserver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// silentHandlers end without a response, each in its own way, when the test releases them.
func silentHandlers(wait func(r *http.Request)) map[string]http.Handler {
	promise := func(w http.ResponseWriter) {
		h := w.Header()
		h.Set("Docker-Content-Digest", "sha256:00")
		h.Set("ETag", `"sha256:00"`)
		h.Set("Content-Length", "1000")
		h.Set("Content-Range", "bytes 0-999/1000")
		h.Set("Accept-Ranges", "bytes")
		h.Set("Content-Encoding", "gzip")
	}
	routed := func(h gin.HandlerFunc) http.Handler {
		r := NewRouter()
		r.Any("/*any", h)
		return r
	}
	return map[string]http.Handler{
		"it returns": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { promise(w); wait(r) }),
		"it writes nothing": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			promise(w)
			wait(r)
			_, _ = w.Write(nil)
			_, _ = io.WriteString(w, "")
			_, _ = io.Copy(w, strings.NewReader(""))
			_, _ = io.Copy(w, io.MultiReader())
		}),
		"it flushes": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			promise(w)
			_ = http.NewResponseController(w).Flush()
			w.(http.Flusher).Flush()
			wait(r)
		}),
		"it says 103": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			promise(w)
			wait(r)
		}),
		"a route": routed(func(c *gin.Context) { promise(c.Writer); wait(c.Request) }),
		"a wrapped route": routed(gin.WrapF(func(w http.ResponseWriter, r *http.Request) {
			promise(w)
			wait(r)
		})),
	}
}

func TestNoHandlerEndsInAnEmpty200(t *testing.T) {
	ends := map[string]func(context.Context) context.Context{
		"the context has not ended": func(ctx context.Context) context.Context { return ctx },
		"cancelled": func(ctx context.Context) context.Context {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return ctx
		},
		"cancelled with a cause": func(ctx context.Context) context.Context {
			ctx, cancel := context.WithCancelCause(ctx)
			cancel(errors.New("why"))
			return ctx
		},
		"too late": func(ctx context.Context) context.Context {
			ctx, cancel := context.WithDeadline(ctx, time.Unix(1, 0))
			t.Cleanup(cancel)
			return ctx
		},
		"too late with a cause": func(ctx context.Context) context.Context {
			ctx, cancel := context.WithDeadlineCause(ctx, time.Unix(1, 0), errors.New("why"))
			t.Cleanup(cancel)
			return ctx
		},
		"its parent was cancelled": func(ctx context.Context) context.Context {
			parent, cancel := context.WithCancel(ctx)
			ctx, stop := context.WithTimeout(parent, time.Hour)
			t.Cleanup(stop)
			cancel()
			return ctx
		},
	}
	for how, end := range ends {
		for kind, h := range silentHandlers(func(*http.Request) {}) {
			if kind == "it says 103" {
				continue // a recorder takes it for the last word
			}
			for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
				t.Run(fmt.Sprintf("%s, %s, %s", kind, how, method), func(t *testing.T) {
					w := httptest.NewRecorder()
					new(gate).guard(h).ServeHTTP(w, httptest.NewRequestWithContext(end(t.Context()), method,
						"/v2/a/blobs/sha256:00", nil))
					requireUnanswered(t, method, w.Result())
				})
			}
		}
	}
}

// requireUnanswered requires a 503 without the headers of the handler.
func requireUnanswered(t *testing.T, method string, res *http.Response) {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, res.StatusCode)
	for _, name := range []string{"Docker-Content-Digest", "ETag", "Content-Range", "Accept-Ranges",
		"Content-Encoding"} {
		assert.Empty(t, res.Header.Get(name), name)
	}
	assert.Equal(t, "1", res.Header.Get("Retry-After"))
	if method == http.MethodHead {
		assert.Empty(t, b)
		return
	}
	var said struct {
		Errors []struct{ Code, Message string }
		Error  string
	}
	require.NoError(t, json.Unmarshal(b, &said), "%s", b)
	require.Len(t, said.Errors, 1)
	assert.Equal(t, "UNAVAILABLE", said.Errors[0].Code)
	assert.Contains(t, said.Error, "ask again")
}

func TestAnswersAreLeftAlone(t *testing.T) {
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		status  int
		body    string
	}{
		"an empty blob": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "0")
			w.WriteHeader(200)
		}, 200, ""},
		"nothing, said so": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNoContent)
		}, 204, ""},
		"unchanged": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotModified)
		}, 304, ""},
		"words without status": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hi")) }, 200,
			"hi"},
		"a copy": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.Copy(w, io.LimitReader(strings.NewReader("hello"), 2))
		}, 200, "he"},
		"an error": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusTeapot) },
			418, "no\n"},
	} {
		t.Run(name, func(t *testing.T) {
			router := NewRouter()
			router.GET("/", gin.WrapF(c.handler))
			for _, h := range []http.Handler{c.handler, router} {
				if h == http.Handler(router) && name == "an empty blob" {
					continue // an explicit empty 200 is for blobs, which never pass gin
				}
				w := httptest.NewRecorder()
				new(gate).guard(h).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
				assert.Equal(t, c.status, w.Code)
				assert.Equal(t, c.body, w.Body.String())
			}
		})
	}
}

// served runs a handler on a port until the test is over or stop is called.
func served(t *testing.T, h http.Handler, drain time.Duration) (addr string, stop func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- testServer(l, h, nil, drain).Run(ctx) }()
	var over bool
	stop = func() {
		cancel()
		if !over {
			over = true
			assert.NoError(t, <-ended)
		}
	}
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

func TestDrainEndsWith503(t *testing.T) {
	in := make(chan struct{})
	causes := make(chan error, 1)
	for kind, h := range silentHandlers(func(r *http.Request) {
		in <- struct{}{}
		<-r.Context().Done()
		causes <- context.Cause(r.Context())
	}) {
		t.Run(kind, func(t *testing.T) {
			addr, stop := served(t, h, time.Millisecond)
			conn, err := net.Dial("tcp", addr)
			require.NoError(t, err)
			defer conn.Close()
			_, err = io.WriteString(conn, "GET /v2/a/blobs/sha256:00 HTTP/1.1\r\nHost: a\r\n\r\n")
			require.NoError(t, err)
			<-in
			stop()
			require.ErrorIs(t, <-causes, errStopping, "a handler can tell it from a client that left")
			r := bufio.NewReader(conn)
			res, err := http.ReadResponse(r, &http.Request{Method: http.MethodGet})
			require.NoError(t, err)
			if res.StatusCode == http.StatusEarlyHints {
				res, err = http.ReadResponse(r, &http.Request{Method: http.MethodGet})
				require.NoError(t, err)
			}
			requireUnanswered(t, http.MethodGet, res)
			assert.True(t, res.Close)
			_, err = r.ReadByte()
			assert.ErrorIs(t, err, io.EOF, "nothing but the 503 comes")
		})
	}
}

func TestLeavingClientCancelsItsRequest(t *testing.T) {
	in, causes := make(chan struct{}), make(chan error, 1)
	addr, _ := served(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(in)
		<-r.Context().Done()
		causes <- context.Cause(r.Context())
	}), time.Minute)
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	require.NoError(t, err)
	<-in
	require.NoError(t, conn.Close())
	assert.Equal(t, context.Canceled, <-causes)
}

// sender is a server's writer that records the calls.
type sender struct {
	*httptest.ResponseRecorder
	from []string
}

func (s *sender) ReadFrom(r io.Reader) (int64, error) {
	s.from = append(s.from, fmt.Sprintf("%T", r))
	return io.Copy(s.ResponseRecorder, r)
}

func TestSendfileReachesTheWriter(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(file, []byte("0123456789"), 0o600))
	send := func(w http.ResponseWriter) []string {
		s := &sender{ResponseRecorder: httptest.NewRecorder()}
		h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			f, err := os.Open(file)
			require.NoError(t, err)
			defer f.Close()
			w.WriteHeader(http.StatusOK)
			_, err = io.CopyN(w, f, 4)
			require.NoError(t, err)
			_, err = io.Copy(w, f)
			require.NoError(t, err)
		})
		if w == nil {
			h.ServeHTTP(s, nil)
		} else {
			new(gate).guard(h).ServeHTTP(s, nil)
		}
		assert.Equal(t, "0123456789", s.Body.String())
		return s.from
	}
	require.Len(t, send(nil), 2)
	assert.Equal(t, send(nil), send(httptest.NewRecorder()),
		"the kernel moves the bytes as without the wrapper (sendfile)")
}

func TestHijack(t *testing.T) {
	addr, _ := served(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		control := http.NewResponseController(w)
		assert.NoError(t, control.SetReadDeadline(time.Time{}))
		conn, _, err := control.Hijack()
		if !assert.NoError(t, err) {
			return
		}
		_, _ = io.WriteString(conn, "mine")
		conn.Close()
	}), time.Minute)
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n")
	require.NoError(t, err)
	b, err := io.ReadAll(conn)
	require.NoError(t, err)
	assert.Equal(t, "mine", string(b), "no 503 is written into it")
}

func TestPanickingRouteIsNeverWhole(t *testing.T) {
	for name, c := range map[string]struct {
		route gin.HandlerFunc
		whole bool
	}{
		"before its answer": {func(*gin.Context) { panic("a fault") }, true},
		"in the middle": {func(c *gin.Context) { c.String(http.StatusOK, "half"); c.Writer.Flush(); panic("a fault") },
			false},
	} {
		t.Run(name, func(t *testing.T) {
			before := gin.DefaultErrorWriter
			gin.DefaultErrorWriter = io.Discard
			defer func() { gin.DefaultErrorWriter = before }()
			r := NewRouter()
			r.GET("/", c.route)
			addr, _ := served(t, r, time.Minute)
			tr := &http.Transport{DisableKeepAlives: true}
			res, err := (&http.Client{Transport: tr}).Get("http://" + addr + "/")
			require.NoError(t, err)
			defer res.Body.Close()
			_, err = io.ReadAll(res.Body)
			if c.whole {
				require.NoError(t, err)
				assert.Equal(t, http.StatusInternalServerError, res.StatusCode)
				return
			}
			assert.Error(t, err)
		})
	}
}
