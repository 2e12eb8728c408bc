package registryproxy_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/task"
)

// serve runs a proxy for one blob on a real socket.
func serve(t *testing.T, content registryproxy.Blob, layer []byte, seen *pulls) (*httptest.Server, string) {
	t.Helper()
	b := oci.DigestOf(layer)
	up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + string(b): {layer, ""}})}
	p := newMirror(config{Upstream: up, Default: "r.test", Observe: seen.observe,
		Open: func(context.Context, task.Spec) (registryproxy.Blob, error) {
			return content, nil
		}})
	srv := httptest.NewServer(p)
	t.Cleanup(srv.Close)
	return srv, "/v2/app/blobs/" + string(b)
}

func TestABodyThatFailsEndsShortWithAFINAndNoReset(t *testing.T) {
	layer := blob(300_000)
	for name, c := range map[string]struct {
		failAt int64
		sent   string // after the request line and Host
	}{
		"soon":                     {1, "\r\n"},
		"after the first bytes":    {2048, "\r\n"},
		"in the middle":            {200_000, "\r\n"},
		"before the last byte":     {299_999, "Connection: keep-alive\r\n\r\n"},
		"with a body unread":       {200_000, "Content-Length: 4000\r\n\r\n" + strings.Repeat("x", 4000)},
		"with requests in the way": {200_000, "\r\n" + strings.Repeat("GET /v2/ HTTP/1.1\r\nHost: h\r\n\r\n", 1000)},
	} {
		t.Run(name, func(t *testing.T) {
			seen := pulls{ended: make(chan struct{}, 1)}
			srv, path := serve(t,
				&fakeBlob{data: layer, failAt: c.failAt, err: errors.New("the last source is gone")}, layer, &seen)
			conn, err := net.Dial("tcp", srv.Listener.Addr().String())
			require.NoError(t, err)
			defer conn.Close()
			_, err = io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: h\r\n"+c.sent)
			require.NoError(t, err)

			all, err := io.ReadAll(conn)
			require.NoError(t, err, "a FIN ends a read without an error, a reset does not")
			res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(string(all))), nil)
			require.NoError(t, err)
			assert.Equal(t, 200, res.StatusCode)
			assert.EqualValues(t, len(layer), res.ContentLength)
			got, err := io.ReadAll(res.Body)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			assert.Equal(t, string(layer[:c.failAt]), string(got), "everything that was right, and nothing else")

			conn.Close()
			<-seen.ended
			assert.ErrorContains(t, seen.last(t).Err, "the last source is gone")
			assert.Equal(t, c.failAt, seen.last(t).Bytes)
		})
	}
}

func TestOnlyClientsThatStartOverAfterAResetAreReset(t *testing.T) {
	layer := blob(300_000)
	for client, reset := range map[string]bool{
		"containers/5.23.1 (github.com/containers/image)": true,
		"containers/4.9":              true,
		"containers/5.24.0":           false,
		"Buildah/1.28.2":              true,
		"Buildah/1.29.0":              false,
		"skopeo/1.9.3":                false,
		"containerd/1.6.20~ds1":       false,
		"docker/20.10.24 go/go1.19.8": false,
		"containers/":                 false,
		"containers/five":             false,
		"":                            false,
	} {
		t.Run(client, func(t *testing.T) {
			srv, path := serve(t, &fakeBlob{data: layer, failAt: 200_000, err: errors.New("the last source is gone")},
				layer, &pulls{})
			conn, err := net.Dial("tcp", srv.Listener.Addr().String())
			require.NoError(t, err)
			defer conn.Close()
			_, err = io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: h\r\nUser-Agent: "+client+"\r\n\r\n")
			require.NoError(t, err)
			_, err = io.ReadAll(conn)
			if reset {
				require.ErrorIs(t, err, syscall.ECONNRESET)
			} else {
				require.NoError(t, err)
			}
		})
	}
}

func TestABodyThatFailsIsNoCompleteBodyOverTLSEither(t *testing.T) {
	layer := blob(300_000)
	for _, http2 := range []bool{false, true} {
		plain, path := serve(t, &fakeBlob{data: layer, failAt: 200_000, err: errors.New("cut")}, layer, &pulls{})
		srv := httptest.NewUnstartedServer(plain.Config.Handler)
		srv.EnableHTTP2 = http2
		srv.StartTLS()
		t.Cleanup(srv.Close)
		res, err := srv.Client().Get(srv.URL + path)
		require.NoError(t, err)
		defer res.Body.Close()
		assert.Equal(t, http2, res.ProtoMajor == 2)
		got, err := io.ReadAll(res.Body)
		require.Error(t, err)
		assert.True(t, strings.HasPrefix(string(layer), string(got)))
	}
}

func TestAClientResumesWhereABodyWasCut(t *testing.T) {
	layer := blob(300_000)
	content := &fakeBlob{data: layer, failAt: 200_000, err: errors.New("cut")}
	srv, path := serve(t, content, layer, &pulls{})
	res, err := srv.Client().Get(srv.URL + path)
	require.NoError(t, err)
	first, err := io.ReadAll(res.Body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	content.err = nil

	req, err := http.NewRequest(http.MethodGet, srv.URL+path, nil)
	require.NoError(t, err)
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-", len(first)))
	res, err = srv.Client().Do(req)
	require.NoError(t, err)
	assert.Equal(t, 206, res.StatusCode)
	assert.Equal(t, fmt.Sprintf("bytes %d-299999/300000", len(first)), res.Header.Get("Content-Range"))
	rest, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	assert.Equal(t, string(layer), string(first)+string(rest))
}

func TestTheReaderWritesToTheServersOwnWriter(t *testing.T) {
	layer := blob(300_000)
	content := &fakeBlob{data: layer, writers: make(chan string, 1)}
	srv, path := serve(t, content, layer, &pulls{})
	res, err := srv.Client().Get(srv.URL + path)
	require.NoError(t, err)
	got, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	assert.Equal(t, string(layer), string(got))
	// net/http sends a file with sendfile only if it reaches its own ReadFrom.
	assert.Equal(t, "*http.response true", <-content.writers)
}

func TestAConnectionServesOneRequestAfterAnother(t *testing.T) {
	layer := blob(10_000)
	srv, path := serve(t, &fakeBlob{data: layer}, layer, &pulls{})
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	in := bufio.NewReader(conn)
	for _, c := range []struct{ method, header string }{{"GET", ""}, {"HEAD", ""}, {"GET", "Range: bytes=5-\r\n"},
		{"GET", "Range: bytes=99999-\r\n"}, {"PUT", ""}, {"GET", ""}} {
		fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: h\r\n%s\r\n", c.method, path, c.header)
		res, err := http.ReadResponse(in, &http.Request{Method: c.method})
		require.NoError(t, err)
		_, err = io.ReadAll(res.Body)
		require.NoError(t, err)
		assert.False(t, res.Close)
	}
}

func TestALeavingClientEndsOnlyItsOwnReader(t *testing.T) {
	layer := blob(400_000)
	content := &gatedBlob{fakeBlob: fakeBlob{data: layer}, ended: make(chan error, 2), gate: make(chan struct{})}
	srv, path := serve(t, content, layer, &pulls{})
	stays, err := srv.Client().Get(srv.URL + path)
	require.NoError(t, err)
	defer stays.Body.Close()

	ctx, leave := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+path, nil)
	require.NoError(t, err)
	res, err := srv.Client().Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	leave()
	require.ErrorIs(t, <-content.ended, context.Canceled)

	close(content.gate)
	got, err := io.ReadAll(stays.Body)
	require.NoError(t, err)
	assert.Equal(t, string(layer), string(got))
	assert.NoError(t, <-content.ended)
}

// gatedBlob sends its first bytes and then waits for a gate.
type gatedBlob struct {
	fakeBlob
	gate  chan struct{}
	ended chan error
}

func (c *gatedBlob) NewReader(ctx context.Context, off, n int64) registryproxy.Reader {
	return &gatedReader{Reader: c.fakeBlob.NewReader(ctx, off, n), c: c, ctx: ctx}
}

type gatedReader struct {
	registryproxy.Reader
	c    *gatedBlob
	ctx  context.Context
	once sync.Once
}

func (r *gatedReader) WriteTo(w io.Writer) (n int64, err error) {
	defer func() { r.once.Do(func() { r.c.ended <- err }) }()
	w.(http.Flusher).Flush()
	select {
	case <-r.c.gate:
		return r.Reader.WriteTo(w)
	case <-r.ctx.Done():
		return 0, context.Cause(r.ctx)
	}
}
