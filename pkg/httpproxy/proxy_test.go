package httpproxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/darter-io/darter/pkg/httpproxy"
	"github.com/darter-io/darter/pkg/source/httporigin"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a proxy with a registry behind it, and clients before it.
type world struct {
	proxy    *httptest.Server
	registry *httptest.Server
	// seen by the mirror and by the registry itself: method, host, path.
	mirror, origin chan string
	certFile       string
	roots          *x509.CertPool
}

const registryName = "registry.test"

// start makes a world; change may alter the proxy's settings.
func start(t *testing.T, hosts []string, change func(*httpproxy.Config)) *world {
	w := &world{mirror: make(chan string, 8), origin: make(chan string, 8), roots: x509.NewCertPool()}
	w.registry = httptest.NewTLSServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.origin <- fmt.Sprintf("%s %s %s %s", r.Method, r.URL.Path, r.Header.Get("Authorization"), body)
		_, _ = io.WriteString(out, "the registry")
	}))
	t.Cleanup(w.registry.Close)
	base, err := url.Parse(w.registry.URL)
	require.NoError(t, err)

	dir := t.TempDir()
	w.certFile = filepath.Join(dir, "ca.crt")
	cert, key, err := httpproxy.NewAuthority(hosts, time.Now())
	require.NoError(t, err)
	require.NoError(t, httpproxy.WriteAuthority(w.certFile, filepath.Join(dir, "ca.key"), cert, key))
	authority, err := httpproxy.LoadAuthority(w.certFile, filepath.Join(dir, "ca.key"))
	require.NoError(t, err)
	w.roots.AppendCertsFromPEM(cert)

	client, err := httporigin.NewClient(httporigin.Config{Proxy: "none"})
	require.NoError(t, err)
	t.Cleanup(client.CloseIdleConnections)
	cfg := httpproxy.Config{
		NameHeader: "X-Upstream", Names: []string{"X-Upstream", "X-Other"}, Authority: authority,
		Mirror: http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
			w.mirror <- fmt.Sprintf("%s %s %s%s", r.Method, r.Header.Get("X-Upstream"), r.URL.String(),
				r.Header.Get("X-Other"))
			_, _ = io.WriteString(out, "the mirror")
		}),
		Mirrored: func(host string) bool { return host == registryName || host == registryName+":5000" },
		Reach: func(string) (*url.URL, http.RoundTripper, error) {
			return base, w.registry.Client().Transport, nil
		},
		Allow:     func(string) error { return nil },
		Dial:      client.Dial,
		Transport: client.Transport(),
	}
	if change != nil {
		change(&cfg)
	}
	p := httpproxy.New(cfg)
	w.proxy = httptest.NewServer(p)
	t.Cleanup(w.proxy.Close)
	inner := &http.Server{Handler: p.Inner()}
	ended := make(chan error, 1)
	go func() { ended <- inner.Serve(p.Listener()) }()
	t.Cleanup(func() { assert.NoError(t, inner.Close()); <-ended })
	return w
}

// client sends everything through the proxy.
func (w *world) client(t *testing.T) *http.Client {
	u, err := url.Parse(w.proxy.URL)
	require.NoError(t, err)
	tr := &http.Transport{Proxy: http.ProxyURL(u), TLSClientConfig: &tls.Config{RootCAs: w.roots}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func do(t *testing.T, c *http.Client, method, at, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, at, strings.NewReader(body))
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, string(b)
}

func TestPullsOfAMirroredRegistryGoToTheMirror(t *testing.T) {
	w := start(t, []string{registryName}, nil)
	c := w.client(t)
	for at, want := range map[string]string{
		"https://registry.test/v2/a/manifests/v1":               "GET registry.test /v2/a/manifests/v1",
		"https://registry.test:443/v2/":                         "GET registry.test /v2/",
		"https://registry.test:5000/v2/a/blobs/sha256:00?ns=x":  "GET registry.test:5000 /v2/a/blobs/sha256:00",
		"http://registry.test/v2/a/manifests/v1":                "GET registry.test /v2/a/manifests/v1",
		"http://registry.test:5000/v2/a/tags/list?n=2&ns=evil/": "GET registry.test:5000 /v2/a/tags/list?n=2",
	} {
		status, body := do(t, c, http.MethodGet, at, "", "X-Upstream", "quay.io", "X-Other", "quay.io")
		assert.Equal(t, http.StatusOK, status)
		assert.Equal(t, "the mirror", body)
		assert.Equal(t, want, <-w.mirror, "the client's own header is removed")
	}
}

func TestOtherRequestsGoToTheRegistryItself(t *testing.T) {
	w := start(t, []string{registryName}, nil)
	c := w.client(t)
	for _, x := range [][3]string{
		{http.MethodPost, "/v2/a/blobs/uploads/", "content"}, {http.MethodPut, "/v2/a/manifests/v1", "{}"},
		{http.MethodGet, "/service/token", ""},
		{http.MethodGet, "/v2/a/blobs/uploads/1", ""}, {http.MethodDelete, "/v2/a/manifests/v1", ""},
	} {
		status, body := do(t, c, x[0], "https://registry.test"+x[1], x[2], "Authorization", "Bearer t")
		assert.Equal(t, http.StatusOK, status)
		assert.Equal(t, "the registry", body)
		assert.Equal(t, x[0]+" "+x[1]+" Bearer t "+x[2], <-w.origin)
	}
}

func TestLocationsKeepAClientOnTheProxy(t *testing.T) {
	far := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v2/cache/a/blobs/uploads/":
			out.Header().Set("Location", "http://"+r.Host+"/v2/cache/a/blobs/uploads/7?state=x")
		case "/v2/cache/b/blobs/uploads/":
			out.Header().Set("Location", "https://storage.test/upload")
		case "/v2/cache/c/blobs/uploads/":
			out.Header().Set("Location", "/v2/cache/c/blobs/uploads/7")
		default:
			http.NotFound(out, r)
			return
		}
		out.WriteHeader(http.StatusAccepted)
	}))
	defer far.Close()
	base, err := url.Parse(far.URL + "/cache")
	require.NoError(t, err)
	tr := new(http.Transport)
	defer tr.CloseIdleConnections()
	w := start(t, []string{registryName}, func(c *httpproxy.Config) {
		c.Reach = func(string) (*url.URL, http.RoundTripper, error) { return base, tr, nil }
	})
	c := w.client(t)
	for at, want := range map[string]string{
		"https://registry.test/v2/a/blobs/uploads/": "https://registry.test/v2/a/blobs/uploads/7?state=x",
		"http://registry.test/v2/a/blobs/uploads/":  "http://registry.test/v2/a/blobs/uploads/7?state=x",
		"https://registry.test/v2/b/blobs/uploads/": "https://storage.test/upload",
		"https://registry.test/v2/c/blobs/uploads/": "https://registry.test/v2/c/blobs/uploads/7",
	} {
		res, err := c.Post(at, "", nil)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		assert.Equal(t, http.StatusAccepted, res.StatusCode)
		assert.Equal(t, want, res.Header.Get("Location"))
	}
}

func TestTerminatedTLSServesOnlyMirroredRegistries(t *testing.T) {
	w := start(t, []string{registryName}, nil)
	c := w.client(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://registry.test/v2/", nil)
	require.NoError(t, err)
	req.Host = "internal.test"
	res, err := c.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	assert.Equal(t, http.StatusMisdirectedRequest, res.StatusCode)
	assert.Empty(t, w.mirror)
	assert.Empty(t, w.origin)
}

// echo is a server that answers each line, and sends a last line when its client has closed its direction.
func echo(t *testing.T) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				s := bufio.NewScanner(c)
				for s.Scan() {
					fmt.Fprintf(c, "you said %s\n", s.Text())
				}
				fmt.Fprint(c, "goodbye\n")
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return l
}

// toEcho lets the proxy reach a server of this machine under a name.
func toEcho(l net.Listener) func(*httpproxy.Config) {
	return func(c *httpproxy.Config) {
		c.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", l.Addr().String())
		}
	}
}

// connect requests a tunnel from the proxy, with the bytes that the client sends early.
func connect(t *testing.T, w *world, to, early string) (*net.TCPConn, *bufio.Reader, *http.Response) {
	conn, err := net.Dial("tcp", w.proxy.Listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n%s", to, to, early)
	require.NoError(t, err)
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
	require.NoError(t, err)
	return conn.(*net.TCPConn), in, res
}

func TestATunnelGoesBothWaysAndEndsOneWayAtATime(t *testing.T) {
	w := start(t, nil, toEcho(echo(t)))
	conn, in, res := connect(t, w, "files.test:7", "too early\n")
	require.Equal(t, http.StatusOK, res.StatusCode)
	line, err := in.ReadString('\n')
	require.NoError(t, err)
	assert.Equal(t, "you said too early\n", line)
	_, err = io.WriteString(conn, "last\n")
	require.NoError(t, err)
	require.NoError(t, conn.CloseWrite())
	rest, err := io.ReadAll(in)
	require.NoError(t, err)
	assert.Equal(t, "you said last\ngoodbye\n", string(rest), "the other half stays open for the answer")
}

func TestATunnelThatIsIdleEnds(t *testing.T) {
	w := start(t, nil, func(c *httpproxy.Config) {
		toEcho(echo(t))(c)
		c.Idle = 20 * time.Millisecond
	})
	_, in, res := connect(t, w, "files.test:7", "")
	require.Equal(t, http.StatusOK, res.StatusCode)
	_, err := in.ReadByte()
	assert.Error(t, err, "it ends, and not the test's time")
}

func TestNoMoreTunnelsThanAllowedAreOpen(t *testing.T) {
	w := start(t, nil, func(c *httpproxy.Config) {
		toEcho(echo(t))(c)
		c.TunnelsMax = 1
	})
	first, in, res := connect(t, w, "files.test:7", "")
	require.Equal(t, http.StatusOK, res.StatusCode)
	_, _, res = connect(t, w, "files.test:7", "")
	assert.Equal(t, http.StatusServiceUnavailable, res.StatusCode)
	require.NoError(t, first.CloseWrite())
	_, err := io.ReadAll(in)
	require.NoError(t, err)
}

func TestLoopbackAndMetadataAreRefused(t *testing.T) {
	w := start(t, nil, nil)
	for _, to := range []string{"127.0.0.1:22", "localhost:22", "169.254.169.254:80", "[::1]:22", "0.0.0.0:80",
		"[fe80::1]:80", "[::ffff:127.0.0.1]:22", "100.100.100.200:80"} {
		_, _, res := connect(t, w, to, "")
		assert.Equal(t, http.StatusBadGateway, res.StatusCode, to)
		status, body := do(t, w.client(t), http.MethodGet, "http://"+to+"/latest/meta-data/", "")
		assert.Equal(t, http.StatusBadGateway, status, to)
		assert.Contains(t, body, "is not allowed", to)
	}
}

func TestOnlyAllowedHostsAreReached(t *testing.T) {
	w := start(t, nil, func(c *httpproxy.Config) {
		c.Allow = func(host string) error { return errors.New("not " + host) }
	})
	_, _, res := connect(t, w, "files.test:443", "")
	assert.Equal(t, http.StatusForbidden, res.StatusCode)
	status, body := do(t, w.client(t), http.MethodGet, "http://files.test/x", "")
	assert.Equal(t, http.StatusForbidden, status)
	assert.Contains(t, body, "not files.test")
	w = start(t, nil, func(c *httpproxy.Config) { c.Allow = nil })
	_, _, res = connect(t, w, "files.test:443", "")
	assert.Equal(t, http.StatusForbidden, res.StatusCode)
	_, _, res = connect(t, w, "files.test", "")
	assert.Equal(t, http.StatusBadRequest, res.StatusCode)
}

func TestWithoutAnAuthorityRegistriesAreTunnelled(t *testing.T) {
	var reached atomic.Int32
	l := echo(t)
	w := start(t, nil, func(c *httpproxy.Config) {
		toEcho(l)(c)
		dial := c.Dial
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) { reached.Add(1); return dial(ctx, addr) }
		c.Authority = nil
	})
	conn, in, res := connect(t, w, registryName+":443", "hello\n")
	require.Equal(t, http.StatusOK, res.StatusCode)
	require.NoError(t, conn.CloseWrite())
	_, err := io.ReadAll(in)
	require.NoError(t, err)
	assert.EqualValues(t, 1, reached.Load())
}

func TestARegistryOutsideTheAuthorityIsTunnelled(t *testing.T) {
	var reached atomic.Int32
	l := echo(t)
	w := start(t, []string{"quay.io"}, func(c *httpproxy.Config) {
		toEcho(l)(c)
		dial := c.Dial
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) { reached.Add(1); return dial(ctx, addr) }
	})
	conn, in, res := connect(t, w, registryName+":443", "")
	require.Equal(t, http.StatusOK, res.StatusCode)
	require.NoError(t, conn.CloseWrite())
	_, err := io.ReadAll(in)
	require.NoError(t, err)
	assert.EqualValues(t, 1, reached.Load())
}

func TestADirectRequestExplainsTheProxy(t *testing.T) {
	w := start(t, nil, nil)
	status, body := do(t, http.DefaultClient, http.MethodGet, w.proxy.URL+"/v2/", "")
	http.DefaultClient.CloseIdleConnections()
	assert.Equal(t, http.StatusBadRequest, status)
	assert.Contains(t, body, "HTTPS_PROXY")
}

func TestAnAuthoritySpeaksForItsRegistriesAlone(t *testing.T) {
	dir := t.TempDir()
	crt, key := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	cert, keyPEM, err := httpproxy.NewAuthority([]string{"quay.io", "10.0.0.1"}, time.Now())
	require.NoError(t, err)
	require.NoError(t, httpproxy.WriteAuthority(crt, key, cert, keyPEM))
	info, err := os.Stat(key)
	require.NoError(t, err)
	assert.EqualValues(t, 0o600, info.Mode().Perm())
	assert.Error(t, httpproxy.WriteAuthority(crt, key, cert, keyPEM),
		"an authority that clients trust is not overwritten")
	a, err := httpproxy.LoadAuthority(crt, key)
	require.NoError(t, err)
	for _, host := range []string{"quay.io", "cdn.quay.io", "QUAY.IO", "10.0.0.1"} {
		c, err := a.For(host)
		require.NoError(t, err, host)
		again, err := a.For(host)
		require.NoError(t, err)
		assert.Same(t, c, again, "issued once")
	}
	for _, host := range []string{"example.com", "notquay.io", "10.0.0.2", "::1"} {
		_, err := a.For(host)
		assert.ErrorContains(t, err, "may not issue a certificate for "+host)
	}
	only, onlyKey, err := httpproxy.NewAuthority([]string{"quay.io"}, time.Now())
	require.NoError(t, err)
	require.NoError(t, httpproxy.WriteAuthority(crt+"2", key+"2", only, onlyKey))
	a, err = httpproxy.LoadAuthority(crt+"2", key+"2")
	require.NoError(t, err)
	_, err = a.For("10.0.0.1")
	assert.ErrorContains(t, err, "may not issue a certificate for")

	old, oldKey, err := httpproxy.NewAuthority([]string{"quay.io"}, time.Now().Add(-httpproxy.AuthorityLife-time.Hour))
	require.NoError(t, err)
	require.NoError(t, httpproxy.WriteAuthority(crt+"3", key+"3", old, oldKey))
	_, err = httpproxy.LoadAuthority(crt+"3", key+"3")
	assert.ErrorContains(t, err, "make a new one")
	_, err = httpproxy.LoadAuthority(crt, filepath.Join(dir, "none"))
	assert.ErrorContains(t, err, "proxy-ca")
}
