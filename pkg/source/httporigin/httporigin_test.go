package httporigin_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/sharing"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/source/sourcetest"
	"github.com/darter-io/darter/pkg/task"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func origin(t *testing.T, change func(*httporigin.Config)) *httporigin.Origin {
	cfg := httporigin.Config{
		AllowAddrs: []netip.Prefix{sourcetest.Loopback}, HeaderTimeout: time.Minute, IdleTimeout: time.Minute,
		Proxy: "none",
	}
	if change != nil {
		change(&cfg)
	}
	o, err := httporigin.New(cfg)
	require.NoError(t, err)
	t.Cleanup(o.CloseIdleConnections)
	return o
}

func file(u string) task.Spec { return task.Spec{Kind: task.Plain, URL: u} }

func TestContract(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, s *sourcetest.Server) sourcetest.Subject {
		return sourcetest.Subject{
			Origin: origin(t, func(c *httporigin.Config) { c.HeaderTimeout, c.IdleTimeout = s.Timeout, s.Timeout }),
			Spec:   file(s.URL + "/dir/file?signature=" + sourcetest.Secret),
		}
	})
}

func body(t *testing.T, o *httporigin.Origin, spec task.Spec) (string, error) {
	res, err := o.Open(t.Context(), spec, 0)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// The client sends a URL's password and never prints it.
func TestURLPassword(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "alice" || password != "hunter2" ||
			r.Header.Get("X-Token") != "hunter3" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.WriteHeader(http.StatusTeapot)
	})
	spec := file(strings.Replace(s.URL, "://", "://alice:hunter2@", 1) + "/f?sig=hunter2#hunter2")
	spec.Header = map[string]secret.String{"x-token": "hunter3", "range": "bytes=5-", "Accept-Encoding": "br"}
	_, err := body(t, origin(t, nil), spec)
	var refused *source.StatusError
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, http.StatusTeapot, refused.Status)
	assert.Equal(t, s.URL+"/f", refused.URL)
	assert.NotContains(t, err.Error(), "hunter")
	for _, bad := range []string{"ftp://alice:hunter2@host/x", "http://alice:hunter2@/x",
		"http://alice:hunter2@host:port/", "%zz:hunter2"} {
		_, err = body(t, origin(t, nil), file(bad))
		require.Error(t, err)
		assert.NotContains(t, err.Error(), "hunter2")
	}
}

// Addresses of the machine and of its cloud's metadata service are refused in every form, also in redirects.
func TestForbiddenAddresses(t *testing.T) {
	s := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("reached") })
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	require.NoError(t, err)
	strict := origin(t, func(c *httporigin.Config) { c.AllowAddrs = nil })
	open := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusFound)
	})
	for _, host := range []string{
		"127.0.0.1", "localhost", "LOCALHOST", "x.localhost", "[::1]", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]",
		"127.1.2.3", "169.254.169.254", "[fe80::1%25lo]", "[fd00:ec2::254]", "100.100.100.200",
		"[::ffff:100.100.100.200]", "192.0.0.192", "224.0.0.1", "169.254.170.2", "168.63.129.16", "[fd20:ce::254]",
		"[fd00:ec2::23]", "[fd00:c1::a9fe:a9fe]", "[fe80::a9fe:a9fe]", "255.255.255.255",
		"[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b::169.254.169.254]", "[64:ff9b:1::a83f:8110]",
		"[2002:a9fe:a9fe::1]", "[::169.254.169.254]", "[::ffff:0:169.254.169.254]", "[2001:0:a9fe:a9fe::]",
		"[2001:0:102:304:0:0:5601:5601]", "[2001:db8::5efe:a9fe:a9fe]", "metadata.google.internal",
		"METADATA.google.internal.", "metadata", "localhost.", "2852039166", "0xa9fea9fe", "0xa9.254.43518",
		"169.254.43518", "0251.0376.0251.0376", "127.1",
	} {
		_, err := body(t, strict, file("http://"+host+":"+port+"/"))
		var refused *httporigin.AddrError
		require.ErrorAs(t, err, &refused, host)
	}
	var refused *httporigin.AddrError
	_, err = body(t, origin(t, nil), file(open.URL))
	require.ErrorAs(t, err, &refused, "redirects have the same limits as requests")
	trusting := origin(t, func(c *httporigin.Config) {
		c.AllowAddrs, c.Trusted = nil, []string{open.Listener.Addr().String()}
	})
	_, err = body(t, trusting, file(open.URL))
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, "169.254.169.254", refused.Host, "the trusted host itself was reached")
}

// A proxy gets a name in ASCII, so that other digits and dots spell out the same addresses.
func TestForbiddenNamesAtAProxy(t *testing.T) {
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("the proxy was asked for %s", r.RequestURI)
		w.WriteHeader(http.StatusBadGateway)
	})
	o := origin(t, func(c *httporigin.Config) { c.AllowAddrs, c.Proxy = nil, secret.String(proxy.URL) })
	for _, host := range []string{
		"169.254.169.254", "１６９.254.169.254", "①⑥⑨.②⑤④.①⑥⑨.②⑤④", "169。254。169。254",
		"%EF%BC%91%EF%BC%92%EF%BC%97.0.0.1", "metadata。google。internal", "ｌocalhost", "０xa9fea9fe",
		"instance-data.ec2.internal", "[::ffff:127.0.0.1]",
	} {
		for _, scheme := range []string{"http://", "https://"} {
			_, err := body(t, o, file(scheme+host+"/"))
			var refused *httporigin.AddrError
			require.ErrorAs(t, err, &refused, scheme+host)
		}
	}
}

// A name is refused if it resolves to a forbidden address.
func TestResolvedName(t *testing.T) {
	// The host name is usually a name of loopback that is no literal and not "localhost".
	name, err := os.Hostname()
	require.NoError(t, err)
	addrs, err := net.DefaultResolver.LookupNetIP(t.Context(), "ip", name)
	if err != nil || len(addrs) == 0 || !addrs[0].IsLoopback() {
		t.Skipf("the host name %s resolves to %v; add it to /etc/hosts as a name of 127.0.0.1 to run this", name, addrs)
	}
	_, err = body(t, origin(t, func(c *httporigin.Config) { c.AllowAddrs = nil }), file("http://"+name+":1/"))
	var refused *httporigin.AddrError
	require.ErrorAs(t, err, &refused)
}

// Requests and redirects go only to hosts in AllowHosts.
func TestAllowHosts(t *testing.T) {
	there := serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "there") })
	u, err := url.Parse(there.URL)
	require.NoError(t, err)
	here := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://localhost:"+u.Port(), http.StatusFound)
	})
	for _, hosts := range [][]string{{"*"}, {"127.0.0.1", "LOCALHOST"}, nil} {
		got, err := body(t, origin(t, func(c *httporigin.Config) { c.AllowHosts = hosts }), file(here.URL))
		require.NoError(t, err, "%q", hosts)
		assert.Equal(t, "there", got)
	}
	for _, hosts := range [][]string{{"127.0.0.1"}, {"localhost"}, {"*7.0.0.1", "localhost"}, {"*.0.0.1", "localhost"},
		{"*.127.0.0.1", "*.localhost"}} {
		_, err := body(t, origin(t, func(c *httporigin.Config) { c.AllowHosts = hosts }), file(here.URL))
		var unlisted *httporigin.HostError
		require.ErrorAs(t, err, &unlisted, "%q", hosts)
	}
}

// The error of a refused CONNECT names the proxy and its answer.
func TestProxyRefuses(t *testing.T) {
	for status, kind := range map[int]api.FileErrorKind{
		407: api.FileRefused, 403: api.FileRefused, 503: api.FileUnreachable,
	} {
		proxy := serve(t, func(w http.ResponseWriter, r *http.Request) {
			assert.Equal(t, http.MethodConnect, r.Method)
			w.WriteHeader(status)
		})
		u := strings.Replace(proxy.URL, "://", "://u:hunter2@", 1)
		o := origin(t, func(c *httporigin.Config) { c.Proxy = secret.String(u) })
		_, err := body(t, o, file("https://origin.test/file"))
		host := strings.TrimPrefix(proxy.URL, "http://")
		require.ErrorContains(t, err, "the proxy "+host+" refuses to connect to origin.test:443: "+strconv.Itoa(status))
		assert.NotContains(t, err.Error(), "hunter2")
		assert.Equal(t, kind, httporigin.FileError(err).Kind, status)
	}
}

// Requests use the configured proxy, which does not bypass the checks of addresses.
func TestProxy(t *testing.T) {
	asked := make(chan string, 1)
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.String()
		assert.Equal(t, "Basic dTpodW50ZXIy", r.Header.Get("Proxy-Authorization"))
		_, _ = io.WriteString(w, "by proxy")
	})
	u := strings.Replace(proxy.URL, "://", "://u:hunter2@", 1)
	// The proxy may be on loopback, although requests may not go there.
	o := origin(t, func(c *httporigin.Config) { c.AllowAddrs, c.Proxy = nil, secret.String(u) })
	got, err := body(t, o, file("http://origin.test/file"))
	require.NoError(t, err)
	assert.Equal(t, "by proxy", got)
	assert.Equal(t, "http://origin.test/file", <-asked)
	_, err = body(t, o, file("http://169.254.169.254/"))
	require.Error(t, err, "the proxy does not bypass the guard")
	for _, at := range []string{"http://169.254.169.254/", "http://localhost/", "http://[::1]/",
		"http://127.1.2.3:80/"} {
		// A login sends such a request to the token service that a registry names.
		var blocked *httporigin.AddrError
		_, err = o.Transport().RoundTrip(httptest.NewRequest(http.MethodGet, at, nil))
		require.ErrorAs(t, err, &blocked, at)
	}

	t.Setenv("HTTP_PROXY", u)
	t.Setenv("NO_PROXY", "")
	got, err = body(t, origin(t, func(c *httporigin.Config) { c.Proxy = "" }), file("http://origin.test/file"))
	require.NoError(t, err)
	assert.Equal(t, "by proxy", got)

	_, err = httporigin.New(httporigin.Config{Proxy: "gopher://u:hunter2@x"})
	require.ErrorContains(t, err, "proxy")
	assert.NotContains(t, err.Error(), "hunter2")
}

// A certificate must come from the system's authorities or those in CAFile.
func TestTLSVerification(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/plain" {
			http.Redirect(w, r, "http://plain.test/", http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, r.Proto)
	}))
	t.Cleanup(s.Close)
	_, err := body(t, origin(t, nil), file(s.URL))
	var unknown x509.UnknownAuthorityError
	require.ErrorAs(t, err, &unknown)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(block), 0o600))
	o := origin(t, func(c *httporigin.Config) { c.CAFile = ca })
	got, err := body(t, o, file(s.URL))
	require.NoError(t, err)
	assert.Equal(t, "HTTP/1.1", got)
	_, err = body(t, o, file(s.URL+"/plain"))
	require.ErrorContains(t, err, "not encrypted")

	_, err = httporigin.New(httporigin.Config{CAFile: filepath.Join(t.TempDir(), "none")})
	require.ErrorIs(t, err, os.ErrNotExist)
	empty := filepath.Join(t.TempDir(), "empty")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	_, err = httporigin.New(httporigin.Config{CAFile: empty})
	require.ErrorContains(t, err, "no certificate")
}

// The client presents its certificate, and reads it again after a renewal.
func TestClientCertificate(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	write := func(serial int64) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		require.NoError(t, err)
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
			0o600))
		require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
			0o600))
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].SerialNumber.String())
	}))
	s.StartTLS()
	s.TLS.ClientAuth = 1 // tls.RequestClientCert; StartTLS has set s.TLS
	t.Cleanup(s.Close)
	ca := filepath.Join(dir, "ca")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(block), 0o600))
	_, err := httporigin.New(httporigin.Config{CertFile: certFile, KeyFile: keyFile})
	require.ErrorIs(t, err, os.ErrNotExist)
	write(1)
	o := origin(t, func(c *httporigin.Config) { c.CAFile, c.CertFile, c.KeyFile = ca, certFile, keyFile })
	for _, serial := range []int64{1, 2} {
		write(serial)
		o.CloseIdleConnections()
		got, err := body(t, o, file(s.URL))
		require.NoError(t, err)
		assert.Equal(t, big.NewInt(serial).String(), got)
	}
}

func TestProbe(t *testing.T) {
	content := strings.Repeat("x", 1000)
	modified := time.Date(2025, 5, 4, 3, 2, 1, 0, time.UTC)
	good := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Content-Type", "text/x")
		http.ServeContent(w, r, "", modified, strings.NewReader(content))
	}
	whole := httporigin.Info{Length: 1000, MediaType: "text/x", Validator: `"v1"`, Ranges: true}
	without := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(status)
				return
			}
			good(w, r)
		}
	}
	for name, row := range map[string]struct {
		handle http.HandlerFunc
		want   httporigin.Info
	}{
		"HEAD":                {good, whole},
		"no HEAD (405)":       {without(405), whole},
		"no HEAD (501)":       {without(501), whole},
		"signed for GET only": {without(403), whole},
		"no HEAD, no ranges": {func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			without(405)(w, r)
		}, httporigin.Info{Length: 1000, MediaType: "text/x", Validator: `"v1"`}},
		"no ETag": {func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "f.bin", modified, strings.NewReader(content))
		}, httporigin.Info{
			Length: 1000, MediaType: "application/octet-stream", Validator: "Sun, 04 May 2025 03:02:01 GMT",
			Ranges: true,
		}},
		"no length": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/x")
			_ = http.NewResponseController(w).Flush()
		}, httporigin.Info{Length: -1, MediaType: "text/x"}},
		"gzip": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/x")
			w.Header().Set("Content-Encoding", "gzip")
			w.Header().Set("Accept-Ranges", "bytes")
			w.Header().Set("Content-Length", "55")
			if r.Method == http.MethodGet {
				_ = gzip.NewWriter(w).Close()
			}
		}, httporigin.Info{Length: -1, MediaType: "text/x"}},
		"empty, no HEAD": {func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(405)
				return
			}
			w.Header().Set("ETag", `"e"`)
			w.Header().Set("Content-Type", "text/x")
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			w.Header().Set("Content-Length", "0")
		}, httporigin.Info{MediaType: "text/x", Validator: `"e"`}},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, row.handle)
			info, err := origin(t, nil).Probe(t.Context(), file(s.URL+"/f"))
			require.NoError(t, err)
			assert.Equal(t, row.want, info)
		})
	}
}

func TestProbeWaitsForNoByte(t *testing.T) {
	end := make(chan struct{})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Range", "bytes 0-0/10")
		w.Header().Set("Content-Length", "1")
		w.WriteHeader(http.StatusPartialContent)
		_ = http.NewResponseController(w).Flush()
		<-end
	})
	defer close(end)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // without it Probe would wait for ever
	defer cancel()
	o := origin(t, func(c *httporigin.Config) { c.DialTimeout = 3 * time.Second })
	info, err := o.Probe(ctx, file(s.URL))
	require.NoError(t, err)
	assert.Equal(t, int64(10), info.Length)
	require.NoError(t, ctx.Err(), "it waited for a byte that it does not need")
}

func TestProbeRefused(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotFound) })
	_, err := origin(t, nil).Probe(t.Context(), file(s.URL+"/f?sig=hunter2"))
	var refused *source.StatusError
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, http.StatusNotFound, refused.Status)
	assert.NotContains(t, err.Error(), "hunter2")

	t.Run("a signed URL, for HEAD and GET", func(t *testing.T) {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden) })
		_, err := origin(t, nil).Probe(t.Context(), file(s.URL))
		assert.Equal(t, http.StatusForbidden, source.Failure(err).Status)
	})
}

func TestTLSHandshakeTimeout(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	o := origin(t, func(c *httporigin.Config) { c.DialTimeout = 50 * time.Millisecond })
	_, err = body(t, o, file("https://"+l.Addr().String()))
	require.Error(t, err)
	assert.True(t, errors.Is(err, os.ErrDeadlineExceeded), "%v", err)
	assert.Equal(t, http.StatusGatewayTimeout, source.Failure(err).Status)
}

// An IPv6 address is allowed by its own range or by the range of the IPv4 address that it embeds.
func TestAllowAddrs(t *testing.T) {
	for _, row := range []struct {
		host, allowed string
		refused       bool
	}{
		{"[64:ff9b::7f00:1]", "", true},
		{"[64:ff9b::7f00:1]", "127.0.0.0/8", false},
		{"[64:ff9b::7f00:1]", "64:ff9b::/96", false},
		{"[64:ff9b::7f00:1]", "10.0.0.0/8", true},
		{"[64:ff9b::808:808]", "", false},
		{"10.0.0.1", "", false},
		{"[fd12:3456::1]", "", false},
		{"168.63.129.17", "", false},
		{"168.63.129.16", "168.63.129.16/32", false},
		{"metadata.google.internal", "169.254.0.0/16", false},
		{"file1.example.test", "", false},
		{"1.2.3.4.example.test", "", false},
		{"0xcafe.test", "", false},
	} {
		asked := false
		proxy := serve(t, func(w http.ResponseWriter, _ *http.Request) { asked = true })
		o := origin(t, func(c *httporigin.Config) {
			// With a proxy the client dials only the proxy.
			c.AllowAddrs, c.Proxy = nil, secret.String(proxy.URL)
			if row.allowed != "" {
				c.AllowAddrs = []netip.Prefix{netip.MustParsePrefix(row.allowed)}
			}
		})
		_, err := body(t, o, file("http://"+row.host+"/"))
		var refused *httporigin.AddrError
		assert.Equal(t, row.refused, errors.As(err, &refused), "%s with %q allowed: %v", row.host, row.allowed, err)
		assert.Equal(t, !row.refused, asked, row.host)
	}
}

func TestRoutingHeadersAreRefused(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Host) })
	spec := file(s.URL)
	for _, name := range []string{"Host", "X-Forwarded-Host", "x-original-url", "X_Rewrite_Url"} {
		spec.Header = map[string]secret.String{name: "evil.test"}
		_, err := body(t, origin(t, nil), spec)
		var refused *sharing.HeaderError
		require.ErrorAs(t, err, &refused)
		assert.Equal(t, api.FileBadRequest, httporigin.FileError(err).Kind)
		_, err = origin(t, nil).Probe(t.Context(), spec)
		require.ErrorAs(t, err, &refused)
	}
	spec.Header = map[string]secret.String{"Host": "a.test"}
	got, err := body(t, origin(t, func(c *httporigin.Config) { c.AnyHeader = true }), spec)
	require.NoError(t, err)
	assert.Equal(t, "a.test", got, "AnyHeader")
}

// The answer to the GET must allow the Share that was decided from the HEAD.
func TestShareIsConfirmed(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		if r.Method == http.MethodGet {
			w.Header().Set(r.URL.Query().Get("name"), r.URL.Query().Get("value"))
		}
		_, _ = io.WriteString(w, "secret")
	})
	for _, row := range []struct {
		share       sharing.Share
		name, value string
		ok          bool
	}{
		{sharing.Equal, "Cache-Control", "private", false},
		{sharing.Equal, "Cache-Control", "no-store", false},
		{sharing.Equal, "Vary", "*", false},
		{sharing.Equal, "Vary", "Authorization", true},
		{sharing.Compared, "Vary", "Authorization", false},
		{sharing.Compared, "Set-Cookie", "a=b", false},
		{sharing.Compared, "Vary", "Accept-Encoding", true},
		{sharing.Public, "Vary", "Accept", false},
		{sharing.Public, "Cache-Control", "public", true},
		{sharing.Flight, "Cache-Control", "private", false},
	} {
		spec := file(s.URL + "/?" + url.Values{"name": {row.name}, "value": {row.value}}.Encode())
		spec.Authorization, spec.Validator, spec.Share = "Bearer a", `"v1"`, string(row.share)
		_, err := body(t, origin(t, nil), spec)
		if row.ok {
			require.NoError(t, err, row)
			continue
		}
		var unshared *source.UnsharedError
		require.ErrorAs(t, err, &unshared, row)
		assert.True(t, source.Failure(err).Unshared)
	}
	spec := file(s.URL)
	spec.Share = string(sharing.Flight)
	_, err := origin(t, nil).Open(t.Context(), spec, 3)
	var changed *source.ChangedError
	require.ErrorAs(t, err, &changed, "the version of the rest is unknown")
}

// Another host gets what chooses the bytes and bounds their age, but no header that may hold a secret.
func TestARedirectCarriesWhatChoosesTheBytes(t *testing.T) {
	at := make(chan http.Header, 1)
	away := serve(t, func(w http.ResponseWriter, r *http.Request) {
		at <- r.Header
		_, _ = io.WriteString(w, "content")
	})
	home := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, away.URL+"/there", http.StatusFound)
	})
	spec := file(home.URL + "/here")
	spec.Authorization = "Bearer own"
	spec.Header = map[string]secret.String{"Accept": "a/b", "Accept-Language": "de", "Cache-Control": "no-cache",
		"Pragma": "no-cache", "Cookie": "a=b", "X-Word": "sesame", "Referer": "http://a.test/?secret"}
	_, err := body(t, origin(t, nil), spec)
	require.NoError(t, err)
	got := <-at
	for _, name := range []string{"Accept", "Accept-Language", "Cache-Control", "Pragma"} {
		assert.Equal(t, spec.Header[name].Reveal(), got.Get(name))
	}
	for _, name := range []string{"Authorization", "Cookie", "X-Word", "Referer"} {
		assert.Empty(t, got.Get(name), name)
	}
}

// Some servers call the type of a compressed file its encoding. Such a file stays as it is, in every part.
func TestCompressedFileStaysCompressed(t *testing.T) {
	const content = "the text in it"
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	_, _ = io.WriteString(zw, content)
	require.NoError(t, zw.Close())
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", r.URL.Query().Get("as"))
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(packed.Bytes()))
	})
	o := origin(t, nil)
	for path, want := range map[string]string{
		"/a.tar.gz?as=gzip": packed.String(), "/A.TGZ?as=x-gzip": packed.String(),
		"/a?as=gzip": content, "/a.gz/?as=gzip": content, "/a.gz?as=identity": packed.String(),
	} {
		got, err := body(t, o, file(s.URL+path))
		require.NoError(t, err, path)
		assert.Equal(t, want, got, path)
	}
	spec := file(s.URL + "/a.tar.gz?as=gzip")
	spec.Validator = `"v1"`
	res, err := o.Open(t.Context(), spec, 7)
	require.NoError(t, err)
	defer res.Body.Close()
	rest, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	assert.Equal(t, packed.String()[7:], string(rest))
	var odd *httporigin.AnswerError
	_, err = body(t, o, file(s.URL+"/a.tar.gz?as=br"))
	require.ErrorAs(t, err, &odd)
}

// A server behind a proxy that encrypts for it redirects to its own host by http.
func TestARedirectToTheSameHostStaysEncrypted(t *testing.T) {
	var s *httptest.Server
	s = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/there" {
			http.Redirect(w, r, "http://"+s.Listener.Addr().String()+"/there", http.StatusFound)
			return
		}
		assert.Equal(t, "Bearer own", r.Header.Get("Authorization"))
		_, _ = io.WriteString(w, "content")
	}))
	t.Cleanup(s.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	require.NoError(t, os.WriteFile(ca, block, 0o600))
	o := origin(t, func(c *httporigin.Config) { c.CAFile = ca })
	spec := file(s.URL + "/here")
	spec.Authorization = "Bearer own"
	res, err := o.Open(t.Context(), spec, 0)
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	assert.Equal(t, "content", string(b))
}
