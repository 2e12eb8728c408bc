package daemon_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/httpproxy"
	"github.com/darter-io/darter/test/registrytest"
)

// throughProxy returns a client's transport through the proxy, which trusts only one authority.
func throughProxy(t *testing.T, proxy, caFile string) *http.Transport {
	pem, err := os.ReadFile(caFile)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(pem))
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: proxy}),
		TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// withProxy turns on the proxy for one registry in a daemon's settings.
func withProxy(t *testing.T, cfg config.Dfdaemon, r *registrytest.Registry) config.Dfdaemon {
	dir := t.TempDir()
	host := strings.Split(r.Host(), ":")[0]
	cert, key, err := httpproxy.NewAuthority([]string{host}, time.Now())
	require.NoError(t, err)
	cfg.Proxy = config.Proxy{Listen: "127.0.0.1:0", CA: filepath.Join(dir, "ca.crt"),
		CAKey:  filepath.Join(dir, "ca.key"),
		Tunnel: config.TunnelNone}
	require.NoError(t, httpproxy.WriteAuthority(cfg.Proxy.CA, cfg.Proxy.CAKey, cert, key))
	up := config.Upstream{Host: r.Host(), PlainHTTP: strings.HasPrefix(r.URL(), "http://")}
	if r.CA() != nil {
		up.CA = filepath.Join(dir, "registry.crt")
		require.NoError(t, os.WriteFile(up.CA, r.CA(), 0o600))
	}
	cfg.Upstreams = []config.Upstream{up}
	return cfg
}

func TestProxyPullsAndPushesPrivateImages(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{TLS: true, Auth: registrytest.Bearer,
		Users: map[string]registrytest.User{
			"ann": {Password: "right", Pull: []string{"*"}, Push: []string{"team/*"}},
		}})
	p := image(t, r, 300_000, 40_000)
	cfg := withProxy(t, settings(t, nil, "one"), r)
	d, _ := start(t, cfg)
	tr := throughProxy(t, d.Addrs()["proxy"], cfg.Proxy.CA)
	ref, err := name.ParseReference(r.Host() + "/" + p.Repository + ":v1")
	require.NoError(t, err)
	options := []remote.Option{remote.WithTransport(tr),
		remote.WithAuth(&authn.Basic{Username: "ann", Password: "right"}),
		remote.WithContext(t.Context())}

	_, err = remote.Image(ref, remote.WithTransport(tr), remote.WithContext(t.Context()))
	assert.ErrorContains(t, err, "401", "an anonymous client is anonymous here, too")
	for range 3 {
		img, err := remote.Image(ref, options...)
		require.NoError(t, err)
		require.NoError(t, validate.Image(img))
	}
	counts := r.Counts()
	for _, o := range p.Objects {
		if o.Kind != "manifest" {
			assert.Equal(t, 1, counts.Object(o.Digest).GETs, o.Digest)
		}
	}

	img, err := registrytest.NewImage(9, []int64{50_000})
	require.NoError(t, err)
	pushed, err := name.ParseReference(r.Host() + "/team/pushed:v2")
	require.NoError(t, err)
	require.NoError(t, remote.Write(pushed, img, options...), "a push goes to the registry itself")
	back, err := remote.Image(pushed, options...)
	require.NoError(t, err)
	require.NoError(t, validate.Image(back))
}

func TestProxyMirrorsPlainHTTP(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 200_000)
	cfg := settings(t, r, "one")
	cfg.Proxy = config.Proxy{Listen: "127.0.0.1:0", Tunnel: config.TunnelListed, TunnelHosts: []string{"*.example.com"}}
	d, _ := start(t, cfg)
	c := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http",
		Host: d.Addrs()["proxy"]})}}
	defer c.CloseIdleConnections()
	for range 2 {
		for _, o := range p.Layers() {
			res, err := c.Get(r.URL() + "/v2/" + p.Repository + "/blobs/" + o.Digest)
			require.NoError(t, err)
			n, err := io.Copy(io.Discard, res.Body)
			require.NoError(t, err)
			require.NoError(t, res.Body.Close())
			assert.Equal(t, o.Size, n)
		}
	}
	for _, o := range p.Layers() {
		assert.Equal(t, 1, r.Counts().Object(o.Digest).GETs)
	}
	res, err := c.Get("http://other.test/")
	require.NoError(t, err)
	defer res.Body.Close()
	assert.Equal(t, http.StatusForbidden, res.StatusCode)

	// Another policy applies after the next SIGHUP.
	cfg.Proxy.Tunnel, cfg.Proxy.TunnelHosts = config.TunnelAny, nil
	require.NoError(t, d.Reload(&cfg))
	res, err = c.Get("http://127.0.0.9:1/")
	require.NoError(t, err)
	defer res.Body.Close()
	said, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	assert.Equal(t, http.StatusForbidden, res.StatusCode, "a port that is not the web's")
	assert.Contains(t, string(said), "proxy.tunnelPorts")

	cfg.Proxy.TunnelPorts = []config.Port{1}
	require.NoError(t, d.Reload(&cfg))
	res, err = c.Get("http://127.0.0.9:1/")
	require.NoError(t, err)
	defer res.Body.Close()
	assert.Equal(t, http.StatusBadGateway, res.StatusCode, "the proxy lets it through, and no server is there")

	// A tunnel to a registry in upstreams needs no list, on any port; one to another host does.
	connect := func(to string) int {
		conn, err := net.Dial("tcp", d.Addrs()["proxy"])
		require.NoError(t, err)
		defer conn.Close()
		_, err = fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", to, to)
		require.NoError(t, err)
		res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
		require.NoError(t, err)
		return res.StatusCode
	}
	assert.Equal(t, http.StatusOK, connect(r.Host()))
	assert.Equal(t, http.StatusForbidden, connect("127.0.0.1:22"))
	assert.Equal(t, http.StatusForbidden, connect("other.test:8443"))
}
