package node

import (
	"bytes"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/cli"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/task"
)

func TestReloadIsAllOrNothing(t *testing.T) {
	cfg := settings(t)
	cfg.Upload.UploadSlots = 3
	n := build(t, cfg)
	defer func() { require.NoError(t, n.Close()) }()
	assert.Equal(t, 3, n.Engine.Stats().UploadSlotsMax)

	next := Limits{
		Upload: config.Upload{UploadSlots: 7}, Rates: config.Limits{Upload: 1 << 20, Origin: 1e8 / 8},
		Cache:   config.Cache{Quota: 128 << 20, HighWater: 0.9, LowWater: 0.5},
		Origins: config.Origins{Upstreams: []config.Upstream{{Host: "ghcr.io"}}},
		Drain:   config.Drain{DrainTimeout: time.Minute},
	}
	bad := next
	bad.Origins.Upstreams = []config.Upstream{{Host: "ghcr.io", CA: filepath.Join(t.TempDir(), "missing.pem")}}
	require.ErrorContains(t, n.Reload(bad), "missing.pem")
	assert.Equal(t, 3, n.Engine.Stats().UploadSlotsMax)
	assert.Equal(t, int64(64<<20), n.Store.Usage().Quota)
	require.NoError(t, n.Origins.Registries.Allow("quay.io"))

	require.NoError(t, n.Reload(next))
	assert.Equal(t, 7, n.Engine.Stats().UploadSlotsMax)
	assert.Equal(t, api.Limits{Upload: 1 << 20, Origin: 1e8 / 8}, n.Status().Limits)
	var page bytes.Buffer
	require.NoError(t, cli.WriteStatus(&page, n.Status(), time.Now()))
	assert.Regexp(t, `(?m)^limits +upload 1MiB/s, origin 12500kB/s$`, page.String())
	assert.Equal(t, int64(128<<20), n.Store.Usage().Quota)
	assert.NoError(t, n.Origins.Registries.Allow("ghcr.io"))
	assert.Error(t, n.Origins.Registries.Allow("quay.io"))
	assert.Equal(t, int64(time.Minute), n.drain.Load())
}

func TestReloadOfFileRules(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer web.Close()
	cfg := settings(t)
	n := build(t, cfg)
	defer func() { require.NoError(t, n.Close()) }()
	probe := func() error {
		_, err := n.Origins.Files.Probe(t.Context(), task.Spec{URL: web.URL + "/f"})
		return err
	}
	var blocked *httporigin.AddrError
	require.ErrorAs(t, probe(), &blocked)
	next := Limits{Cache: cfg.Cache, Origins: cfg.Origins, Files: config.Files{AllowHosts: []string{"*"},
		AllowAddresses: []config.Network{{Prefix: netip.MustParsePrefix("127.0.0.0/8")}}}}
	require.NoError(t, n.Reload(next))
	require.NoError(t, probe())
	next.Files.AllowHosts = []string{"files.test"}
	require.NoError(t, n.Reload(next))
	var unlisted *httporigin.HostError
	require.ErrorAs(t, probe(), &unlisted)
	bad := next
	bad.Files = config.Files{CA: filepath.Join(t.TempDir(), "missing.pem"), AllowHosts: []string{"*"}}
	require.ErrorContains(t, n.Reload(bad), "missing.pem")
	require.ErrorAs(t, probe(), &unlisted, "nothing of a refused reload is in force")
	n.Origins.close()
}

func TestReloadReadsPasswords(t *testing.T) {
	var got string
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, ok := r.BasicAuth(); ok {
			got = password
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer web.Close()
	file := filepath.Join(t.TempDir(), "password")
	cfg := settings(t)
	cfg.Origins.Upstreams = []config.Upstream{{Host: "registry.test", URLs: []string{web.URL}, Username: "node",
		PasswordFile: file}}
	require.NoError(t, os.WriteFile(file, []byte("first"), 0o600))
	n := build(t, cfg)
	defer func() { require.NoError(t, n.Close()) }()
	ask := func() string {
		res, err := n.Origins.Registries.Do(t.Context(),
			source.RegistryRequest{Upstream: "registry.test", Method: http.MethodGet, Path: "/v2/a/tags/list"})
		require.NoError(t, err)
		res.Body.Close()
		return got
	}
	assert.Equal(t, "first", ask())
	require.NoError(t, os.WriteFile(file, []byte("second"), 0o600))
	assert.Equal(t, "first", ask())
	require.NoError(t, n.Reload(Limits{Cache: cfg.Cache, Origins: cfg.Origins}))
	assert.Equal(t, "second", ask())
	n.Origins.close()
}

func TestProxyPerRegistry(t *testing.T) {
	serve := func(name string) *httptest.Server {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, name+" was asked for "+r.Host)
		}))
		t.Cleanup(s.Close)
		return s
	}
	proxy, environment, direct := serve("proxy"), serve("environment"), serve("registry")
	t.Setenv("HTTP_PROXY", environment.URL)
	t.Setenv("NO_PROXY", "")
	here := direct.Listener.Addr().String()
	cfg := settings(t)
	cfg.Origins.Upstreams = []config.Upstream{
		{Host: "own.test", PlainHTTP: true,
			Proxy: secret.String("http://user:password@" + proxy.Listener.Addr().String())},
		{Host: "none.test", URLs: []string{direct.URL}, Proxy: "none"},
		{Host: "environment.test", PlainHTTP: true},
	}
	n := build(t, cfg)
	defer func() { require.NoError(t, n.Close()) }()
	for host, want := range map[string]string{
		"own.test": "proxy was asked for own.test", "none.test": "registry was asked for " + here,
		"environment.test": "environment was asked for environment.test",
	} {
		res, err := n.Origins.Registries.Do(t.Context(),
			source.RegistryRequest{Upstream: host, Method: http.MethodGet, Path: "/v2/a/tags/list"})
		require.NoError(t, err)
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		res.Body.Close()
		assert.Equal(t, want, string(b))
	}
	n.Origins.close()
}

// tunnel is a proxy that connects (RFC 9110 §9.3.6) to one server for every request.
type tunnel struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string
}

func newTunnel(t *testing.T, to string) *tunnel {
	p := &tunnel{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, password, _ := (&http.Request{
			Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}).BasicAuth()
		p.mu.Lock()
		p.asked = append(p.asked, r.Method+" "+r.Host+" "+password)
		p.mu.Unlock()
		if r.Method != http.MethodConnect {
			http.Error(w, "this proxy only connects", http.StatusForbidden)
			return
		}
		up, err := net.Dial("tcp", to)
		if !assert.NoError(t, err) {
			return
		}
		defer up.Close()
		down, early, err := http.NewResponseController(w).Hijack()
		if !assert.NoError(t, err) {
			return
		}
		defer down.Close()
		_, _ = io.WriteString(down, "HTTP/1.1 200 Connected\r\n\r\n")
		go func() {
			_, _ = io.Copy(up, early) // some of it may have been read already
			up.Close()
		}()
		_, _ = io.Copy(down, up)
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *tunnel) take() (asked []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	asked, p.asked = p.asked, nil
	return asked
}

// TestHTTPSProxyTunnel has registries and files: what the proxy carries is
// encrypted for the server beyond it.
func TestHTTPSProxyTunnel(t *testing.T) {
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "encrypted")
	}))
	defer web.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t,
		os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}), 0o600))
	own, environment := newTunnel(t, web.Listener.Addr().String()), newTunnel(t, web.Listener.Addr().String())
	ownURL := secret.String("http://user:geheim@" + own.Listener.Addr().String())
	t.Setenv("HTTPS_PROXY", environment.URL)
	t.Setenv("NO_PROXY", "")
	// The server's certificate is for this name, which does not resolve here.
	const far = "https://example.com"
	cfg := settings(t)
	cfg.Origins.Upstreams = []config.Upstream{
		{Host: "own.test", URLs: []string{far}, CA: ca, Proxy: ownURL},
		{Host: "environment.test", URLs: []string{far}, CA: ca},
		{Host: "none.test", URLs: []string{web.URL}, CA: ca, Proxy: "none"},
	}
	cfg.Files = config.Files{CA: ca, AllowHosts: []string{"*"},
		AllowAddresses: []config.Network{{Prefix: netip.MustParsePrefix("127.0.0.0/8")}}}
	n := build(t, cfg)
	defer func() { require.NoError(t, n.Close()) }()
	defer n.Origins.close()
	check := func(what string, res io.ReadCloser, wantOwn, wantEnvironment []string) {
		b, err := io.ReadAll(res)
		require.NoError(t, err, what)
		res.Close()
		assert.Equal(t, "encrypted", string(b), what)
		assert.Equal(t, wantOwn, own.take(), what)
		assert.Equal(t, wantEnvironment, environment.take(), what)
	}
	connect, plain := []string{"CONNECT example.com:443 geheim"}, []string{"CONNECT example.com:443 "}
	for host, want := range map[string][2][]string{"own.test": {connect, nil}, "environment.test": {nil, plain},
		"none.test": {nil, nil}} {
		res, err := n.Origins.Registries.Do(t.Context(),
			source.RegistryRequest{Upstream: host, Method: http.MethodGet, Path: "/v2/a/tags/list"})
		require.NoError(t, err, host)
		check(host, res.Body, want[0], want[1])
	}
	for _, row := range []struct {
		proxy secret.String
		base  string
		want  [2][]string
	}{{ownURL, far, [2][]string{connect, nil}}, {"", far, [2][]string{nil, plain}},
		{"none", web.URL, [2][]string{nil, nil}}} {
		files := cfg.Files
		files.Proxy = row.proxy
		require.NoError(t, n.Reload(Limits{Cache: cfg.Cache, Origins: cfg.Origins, Files: files}))
		res, err := n.Origins.Files.Open(t.Context(), task.Spec{Kind: task.Plain, URL: row.base + "/f"}, 0)
		require.NoError(t, err)
		check("files", res.Body, row.want[0], row.want[1])
	}
}
