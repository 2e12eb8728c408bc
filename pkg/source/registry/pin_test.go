package registry_test

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/source/registry"
)

// A registry's certificate has no known authority, or another name: a pin or a name of its upstream accepts it, and
// no other host.
func TestAPinOrANameReplacesTheAuthority(t *testing.T) {
	storage := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(content)
	}))
	t.Cleanup(storage.Close) // with the same certificate
	redirects := false
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case req.Header.Get("Authorization") != "" && req.Header.Get("Authorization") != "Bearer granted":
			t.Errorf("a credential went to a host that is not verified: %s", req.Header.Get("Authorization"))
		case !strings.Contains(req.URL.Path, "/blobs/"):
		case redirects:
			http.Redirect(w, req, storage.URL, http.StatusTemporaryRedirect)
		default:
			_, _ = w.Write(content)
		}
	}))
	t.Cleanup(s.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	require.NoError(t, os.WriteFile(ca, block, 0o600))
	key := httporigin.PinOf(s.Certificate()).String()
	other := "sha256//" + strings.Repeat("A", 43) + "="
	named := strings.Replace(s.URL, "127.0.0.1", "localhost", 1) // no name of the certificate
	bring := func(u registry.Upstream) error {
		u.Proxy = "none"
		spec := contentSpec("registry.test")
		of := client(t, registry.Config{Upstreams: map[string]registry.Upstream{spec.Upstream: u}, HTTP: loopback})
		return bring(t, of, spec, 0)
	}
	for name, c := range map[string]struct {
		u  registry.Upstream
		ok bool
	}{
		"nothing":               {registry.Upstream{URLs: []string{s.URL}}, false},
		"the pin":               {registry.Upstream{URLs: []string{s.URL}, Pin: key}, true},
		"one of two pins":       {registry.Upstream{URLs: []string{s.URL}, Pin: other + "; " + key}, true},
		"the pin, another name": {registry.Upstream{URLs: []string{named}, Pin: key}, true},
		"another pin":           {registry.Upstream{URLs: []string{s.URL}, Pin: other}, false},
		"another pin, known CA": {registry.Upstream{URLs: []string{s.URL}, Pin: other, CAFile: ca}, false},
		"another name":          {registry.Upstream{URLs: []string{named}, CAFile: ca}, false},
		"the name":              {registry.Upstream{URLs: []string{named}, CAFile: ca, ServerName: "example.com"}, true},
		"a name, unknown CA":    {registry.Upstream{URLs: []string{named}, ServerName: "example.com"}, false},
		"a name that it lacks":  {registry.Upstream{URLs: []string{s.URL}, CAFile: ca, ServerName: "r.test"}, false},
		"a login, another pin": {registry.Upstream{URLs: []string{s.URL}, Pin: other, Username: "a",
			Password: "hunter2"}, false},
	} {
		err := bring(c.u)
		assert.Equal(t, c.ok, err == nil, "%s: %v", name, err)
	}
	redirects = true
	require.Error(t, bring(registry.Upstream{URLs: []string{s.URL}, Pin: key}), "the pin is not for the storage")
	require.NoError(t, bring(registry.Upstream{URLs: []string{s.URL}, Pin: key, CAFile: ca}))
	for _, wrong := range []string{"sha256//", "sha256/" + key, key + ";", "md5//AAAA", key[:len(key)-4]} {
		_, err := registry.New(registry.Config{Upstreams: map[string]registry.Upstream{"r.test": {Pin: wrong}}})
		require.ErrorContains(t, err, "upstream r.test: pin: ", wrong)
	}
}
