package registry_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/source/registry"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/test/registrytest"
)

func TestADockerConfigurationLogsIn(t *testing.T) {
	for _, kind := range []registrytest.Auth{registrytest.Basic, registrytest.Bearer} {
		r := registrytest.Start(t, registrytest.Config{Auth: kind, Users: users})
		team, public := blob(t, r, "team/app"), blob(t, r, "public/app")
		file := filepath.Join(t.TempDir(), ".dockerconfigjson")
		login := func(password string) {
			auth := base64.StdEncoding.EncodeToString([]byte("alice:" + password))
			require.NoError(t, os.WriteFile(file, []byte(`{"auths":{"`+r.Host()+`/team":{"auth":"`+auth+`"}}}`), 0o600))
		}
		login("hunter2")
		c := of(t, r, registry.Upstream{DockerConfig: file})
		require.NoError(t, bring(t, c, team, 0))
		require.NoError(t, bring(t, c, public, 0), "anonymously, because the file has no login")
		q := source.RegistryRequest{Upstream: r.Host(), Method: http.MethodHead,
			Path: "/v2/team/app/blobs/" + string(team.ID)}
		res, _ := ask(t, c, q)
		assert.Equal(t, 200, res.StatusCode)
		q.Bare = true
		res, _ = ask(t, c, q)
		assert.Equal(t, 401, res.StatusCode, "an answer for others is not asked with it")
		q.Anonymous = true
		_, err := c.Do(t.Context(), q)
		if err == nil {
			res, _ = ask(t, c, q)
			assert.Contains(t, []int{401, 403}, res.StatusCode)
		}
		login("a wrong one") // the registry refuses it, and the next attempt reads the file again
		r.RevokeTokens()
		assert.Equal(t, 401, statusOf(bring(t, c, team, 0)))
		login("hunter2")
		require.NoError(t, bring(t, c, team, 0))
		require.NoError(t, os.Remove(file))
		require.ErrorIs(t, bring(t, c, team, 0), os.ErrNotExist)
	}
}

// service is a token service at an address of its own that records its requests.
type service struct {
	*httptest.Server
	mu       sync.Mutex
	requests int
	secrets  int
}

func newService(t *testing.T, answer http.HandlerFunc) *service {
	s := &service{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.requests++
		if r.Header.Get("Authorization") != "" || strings.Contains(string(b)+r.URL.RawQuery, "hunter2") {
			s.secrets++
		}
		s.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *service) counts() (requests, secrets int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests, s.secrets
}

// The registry answers at 127.0.0.1 and its token service by the name localhost: another host.
func TestNodeCredentialsGoOnlyToNamedRealms(t *testing.T) {
	grant := func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, `{"token":"granted"}`) }
	for name, u := range map[string]registry.Upstream{
		"password":       {Username: "alice", Password: "hunter2"},
		"identity token": {IdentityToken: "hunter2"},
	} {
		t.Run(name, func(t *testing.T) {
			thief := newService(t, grant)
			_, port, _ := strings.Cut(thief.Listener.Addr().String(), ":")
			realm := "http://localhost:" + port + "/token"
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if req.Header.Get("Authorization") == "Bearer granted" {
					_, _ = w.Write(content)
					return
				}
				w.Header().Set("Www-Authenticate", `Bearer realm="`+realm+`",service="s"`)
				w.WriteHeader(http.StatusUnauthorized)
			}))
			t.Cleanup(front.Close)
			spec := contentSpec(front.Listener.Addr().String())
			u.PlainHTTP, u.Proxy = true, "none"
			of := func(u registry.Upstream) *registry.Client {
				return client(t, registry.Config{
					Upstreams: map[string]registry.Upstream{spec.Upstream: u}, HTTP: httporigin.Config{
						AllowAddrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"),
							netip.MustParsePrefix("::1/128")}},
				})
			}
			err := bring(t, of(u), spec, 0)
			require.ErrorContains(t, err, "realms: [localhost]")
			requests, _ := thief.counts()
			assert.Zero(t, requests)
			nobody := u
			nobody.Username, nobody.Password, nobody.IdentityToken = "", "", ""
			require.NoError(t, bring(t, of(nobody), spec, 0), "an anonymous client has no credential to lose")
			_, secrets := thief.counts()
			assert.Zero(t, secrets)
			u.Realms = []string{"localhost"}
			require.NoError(t, bring(t, of(u), spec, 0))
			_, secrets = thief.counts()
			assert.Positive(t, secrets)
		})
	}
}

// A client's password for a registry that wants a token goes to token services by the rules for the node's own.
func TestAClientsPasswordGoesOnlyToNamedRealms(t *testing.T) {
	thief := newService(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"token":"granted"}`)
	})
	realm := strings.Replace(thief.URL, "127.0.0.1", "localhost", 1) + "/token"
	challenge := `Bearer realm="` + realm + `",service="s"`
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Authorization") == "Bearer granted" {
			_, _ = w.Write(content)
			return
		}
		w.Header().Set("Www-Authenticate", challenge)
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "in the registry's words")
	}))
	t.Cleanup(front.Close)
	spec := contentSpec(front.Listener.Addr().String())
	spec.Authorization = secret.String("Basic " + base64.StdEncoding.EncodeToString([]byte("alice:hunter2")))
	cfg := httporigin.Config{AllowAddrs: []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}
	for _, realms := range [][]string{nil, {"localhost"}} {
		c := client(t, registry.Config{HTTP: cfg, Upstreams: map[string]registry.Upstream{
			spec.Upstream: {PlainHTTP: true, Proxy: "none", Realms: realms}}})
		res, body := ask(t, c, source.RegistryRequest{Upstream: spec.Upstream, Method: http.MethodGet, Anonymous: true,
			Path:   "/v2/team/app/blobs/" + string(spec.ID),
			Header: http.Header{"Authorization": {spec.Authorization.Reveal()}}})
		requests, secrets := thief.counts()
		if realms == nil {
			assert.Equal(t, 401, res.StatusCode)
			assert.Equal(t, challenge, res.Header.Get("Www-Authenticate"))
			assert.Equal(t, "in the registry's words", body)
			assert.Equal(t, 401, statusOf(bring(t, c, spec, 0)))
			assert.Zero(t, requests)
			continue
		}
		assert.Equal(t, 200, res.StatusCode)
		require.NoError(t, bring(t, c, spec, 0))
		assert.Positive(t, secrets)
		other := spec
		other.Authorization = "Basic eDp5"
		require.NoError(t, bring(t, c, other, 0))
		after, _ := thief.counts()
		assert.Greater(t, after, requests, "another password has a token of its own")
	}
}

func TestARedirectedTokenServiceGetsNoCredential(t *testing.T) {
	for _, status := range []int{http.StatusFound, http.StatusTemporaryRedirect} {
		for name, u := range map[string]registry.Upstream{"password": {Username: "alice", Password: "hunter2"},
			"identity token": {IdentityToken: secret.String("hunter2")}} {
			thief := newService(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, `{"token":"granted"}`)
			})
			elsewhere, err := url.Parse(thief.URL)
			require.NoError(t, err)
			elsewhere.Host = "localhost:" + elsewhere.Port()
			var front *httptest.Server
			front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if req.URL.Path == "/token" {
					http.Redirect(w, req, elsewhere.String(), status)
					return
				}
				w.Header().Set("Www-Authenticate", `Bearer realm="`+front.URL+`/token",service="s"`)
				w.WriteHeader(http.StatusUnauthorized)
			}))
			t.Cleanup(front.Close)
			spec := contentSpec(front.Listener.Addr().String())
			u.PlainHTTP, u.Proxy = true, "none"
			c := client(t, registry.Config{Upstreams: map[string]registry.Upstream{spec.Upstream: u},
				HTTP: httporigin.Config{AllowAddrs: []netip.Prefix{
					netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}})
			require.Error(t, bring(t, c, spec, 0))
			_, secrets := thief.counts()
			assert.Zero(t, secrets, "%s, %d", name, status)
		}
	}
}

// The bounds of a login, in bytes and time, hold for a login that a request causes, also where the login asks for the
// same URL as that request.
func TestALoginForACallersURLIsBounded(t *testing.T) {
	large := `{"token":"` + strings.Repeat("x", 100<<10) + `"}`
	query := url.Values{"scope": {"repository:team/app:pull"}, "service": {"s"}}.Encode()
	for name, redirect := range map[string]func(path string) string{
		"a request is redirected to the token service": func(path string) string {
			if strings.HasPrefix(path, "/v2/team/") {
				return "/token?" + query
			}
			return ""
		},
		"the token service redirects to the request": func(path string) string {
			if path == "/token" {
				return "/v2/team/app/blobs/" + string(contentSpec("").ID)
			}
			return ""
		},
	} {
		t.Run(name, func(t *testing.T) {
			var front *httptest.Server
			var loggedIn, tookLarge atomic.Bool
			front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				switch {
				case req.Header.Get("Authorization") == "Bearer "+strings.Repeat("x", 100<<10):
					tookLarge.Store(true)
				case req.URL.Path == "/token" && loggedIn.CompareAndSwap(false, true):
					_, _ = io.WriteString(w, `{"token":"first"}`)
				case req.URL.Path != "/v2/" && redirect(req.URL.Path) != "":
					http.Redirect(w, req, redirect(req.URL.Path), http.StatusFound)
				case req.Header.Get("Authorization") == "" && req.URL.Path != "/v2/":
					_, _ = io.WriteString(w, large)
				default:
					w.Header().Set("Www-Authenticate", `Bearer realm="`+front.URL+`/token",service="s"`)
					w.WriteHeader(http.StatusUnauthorized)
				}
			}))
			t.Cleanup(front.Close)
			spec := contentSpec(front.Listener.Addr().String())
			c := client(t, registry.Config{Upstreams: map[string]registry.Upstream{
				spec.Upstream: {PlainHTTP: true, Proxy: "none"}}, HTTP: loopback})
			err := bring(t, c, spec, 0)
			assert.ErrorContains(t, err, "is larger than 65536 bytes")
			assert.True(t, loggedIn.Load())
			assert.False(t, tookLarge.Load(), "the token of a response that is too large")
		})
	}
}

// The refusal of a token that is new is the answer: another token would be refused, too. A token of before is renewed,
// and one for another scope is asked for.
func TestARefusedNewTokenIsTheAnswer(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	public, team := blob(t, r, "public/app"), blob(t, r, "team/app")
	c := of(t, r, registry.Upstream{})
	head := func(spec task.Spec) (status, requests int) {
		r.Reset()
		res, _ := ask(t, c, source.RegistryRequest{Upstream: r.Host(), Method: http.MethodHead, Anonymous: true,
			Path: "/v2/" + spec.Repository + "/blobs/" + string(spec.ID)})
		if res.StatusCode == http.StatusUnauthorized {
			assert.NotEmpty(t, res.Header.Get("Www-Authenticate"))
		}
		return res.StatusCode, r.Counts().Requests
	}
	check := func(spec task.Spec, status, requests int, why string) {
		t.Helper()
		gotStatus, got := head(spec)
		assert.Equal(t, status, gotStatus, why)
		assert.Equal(t, requests, got, why)
	}
	check(public, 200, 3, "the HEAD, a token and the HEAD")
	check(public, 200, 1, "the token is known")
	r.RevokeTokens()
	check(public, 200, 3, "the HEAD, a new token and the HEAD")
	check(team, 401, 2, "the HEAD, and a token that says itself that it allows nothing")
	check(team, 401, 1, "the challenge is known, and another token may allow more")

	// The registry's scope is not the one that follows from the path.
	asked := make(chan string, 9)
	var front *httptest.Server
	front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case req.URL.Path == "/token":
			scopes := strings.Join(req.URL.Query()["scope"], " ")
			asked <- scopes
			_, _ = fmt.Fprintf(w, `{"token":"%t"}`, strings.Contains(scopes, "repository:real/app:pull"))
		case req.Header.Get("Authorization") != "Bearer true":
			challenge := `Bearer realm="` + front.URL + `/token",service="s"`
			if req.URL.Path != "/v2/" {
				challenge += `,scope="repository:real/app:pull"`
			}
			w.Header().Set("Www-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(front.Close)
	host := front.Listener.Addr().String()
	c = client(t, registry.Config{Upstreams: map[string]registry.Upstream{host: {PlainHTTP: true, Proxy: "none"}},
		HTTP: loopback})
	res, _ := ask(t, c, source.RegistryRequest{Upstream: host, Method: http.MethodHead, Anonymous: true,
		Path: "/v2/team/app/manifests/v1"})
	assert.Equal(t, http.StatusOK, res.StatusCode)
	assert.Len(t, asked, 2)
}

// contentSpec is the blob's spec at a registry.
func contentSpec(host string) task.Spec {
	sum := sha256.Sum256(content)
	return task.Spec{ID: task.ID("sha256:" + hex.EncodeToString(sum[:])), Kind: task.Blob, Upstream: host,
		Repository: "team/app"}
}

// A reply that an owner got by its own certificate is not shared with the clients of other nodes.
func TestRepliesToANodeCertificateAreNotShared(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{TLS: true, ClientCert: true})
	spec := blob(t, r, "lib/app")
	cert, key, err := r.ClientCert("node")
	require.NoError(t, err)
	u := registry.Upstream{CertFile: filepath.Join(t.TempDir(), "cert"), KeyFile: filepath.Join(t.TempDir(), "key")}
	require.NoError(t, os.WriteFile(u.CertFile, cert, 0o600))
	require.NoError(t, os.WriteFile(u.KeyFile, key, 0o600))
	c := of(t, r, u)
	assert.True(t, c.Credentialed(r.Host()))
	assert.False(t, of(t, r, registry.Upstream{}).Credentialed(r.Host()))
	q := source.RegistryRequest{Upstream: r.Host(), Method: http.MethodHead, Path: "/v2/lib/app/blobs/" +
		string(spec.ID)}
	res, _ := ask(t, c, q)
	assert.Equal(t, 200, res.StatusCode)
	q.Bare = true
	_, err = c.Do(t.Context(), q)
	require.ErrorContains(t, err, "by a certificate")
}

func TestALinkOfAProxyProjectNamesTheRepository(t *testing.T) {
	for said, want := range map[string]string{
		`</v2/hub/cache/library/alpine/tags/list?last=b&n=2>; rel="next"`:                  `</v2/library/alpine/tags/list?last=b&n=2>; rel="next"`,
		`<https://harbor.test/v2/hub/cache/library/alpine/tags/list?n=2>; rel="next", <x>`: `<https://harbor.test/v2/library/alpine/tags/list?n=2>; rel="next", <x>`,
		`</v2/elsewhere/tags/list>; rel="next"`:                                            `</v2/elsewhere/tags/list>; rel="next"`,
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			assert.Equal(t, "/v2/hub/cache/library/alpine/tags/list", r.URL.Path)
			w.Header().Set("Link", said)
		}))
		t.Cleanup(s.Close)
		c := client(t, registry.Config{Upstreams: map[string]registry.Upstream{
			"docker.io": {URLs: []string{s.URL + "/hub/cache"}, Proxy: "none"}}})
		res, _ := ask(t, c, source.RegistryRequest{Upstream: "docker.io", Method: http.MethodGet,
			Path: "/v2/library/alpine/tags/list", Query: "n=2"})
		assert.Equal(t, want, res.Header.Get("Link"))
	}
}

func TestEveryRequestHasOneUserAgent(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	var mu sync.Mutex
	agents := map[string]int{}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		agents[req.UserAgent()]++
		mu.Unlock()
		r.ServeHTTP(w, req)
	}))
	t.Cleanup(front.Close)
	host := front.Listener.Addr().String()
	cfg := loopback
	cfg.UserAgent = "darter/v1.2.3"
	for _, u := range []registry.Upstream{{}, {Username: "alice", Password: "hunter2"}} {
		u.PlainHTTP, u.Proxy = true, "none"
		c := client(t, registry.Config{Upstreams: map[string]registry.Upstream{host: u}, HTTP: cfg})
		spec := blob(t, r, "public/app")
		if u.Username != "" {
			spec = blob(t, r, "team/app")
		}
		spec.Upstream = host
		require.NoError(t, bring(t, c, spec, 0))
		r.RevokeTokens()
		res, _ := ask(t, c, source.RegistryRequest{Upstream: host, Method: http.MethodHead, Anonymous: true,
			Path: "/v2/" + spec.Repository + "/blobs/" + string(spec.ID)})
		assert.Equal(t, http.StatusOK, res.StatusCode)
	}
	require.Len(t, agents, 1, "%v", agents)
	assert.Positive(t, agents["darter/v1.2.3"])
}

// A registry of HTTPS names a token service of plain HTTP: on its own host, since it does not know of the proxy that
// encrypts for it, or on another one. No credential goes over plain HTTP.
func TestARealmOfPlainHTTP(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	team, public := blob(t, r, "team/app"), blob(t, r, "public/app")
	var plainAsked, leaks atomic.Int64
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		plainAsked.Add(1)
		if req.Header.Get("Authorization") != "" || req.Method != http.MethodGet {
			leaks.Add(1)
		}
		r.ServeHTTP(w, req)
	}))
	t.Cleanup(plain.Close)
	other := strings.Replace(plain.URL, "127.0.0.1", "localhost", 1)
	realm := ""
	front := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.ServeHTTP(rewriter{w, realm}, req)
	}))
	t.Cleanup(front.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})
	require.NoError(t, os.WriteFile(ca, block, 0o600))
	host := front.Listener.Addr().String()
	team.Upstream, public.Upstream = host, host
	of := func(u registry.Upstream) *registry.Client {
		return client(t, registry.Config{Upstreams: map[string]registry.Upstream{host: u}, HTTP: loopback})
	}
	for _, c := range []struct {
		realm       string
		credentials bool
		ok          bool
		plain       int64
	}{
		{"http://" + host + "/token", true, true, 0},
		{"http://" + host + "/token", false, true, 0},
		{other + "/token", false, true, 1},
		{other + "/token", true, false, 0},
		{plain.URL + "/token", false, false, 0}, // a private address needs the operator's setting
		{"https://" + host + "/.private-token-service?realm=" + url.QueryEscape(plain.URL+"/token"), false, false, 0},
	} {
		realm = c.realm
		plainAsked.Store(0)
		u := registry.Upstream{Proxy: "none", CAFile: ca}
		spec := public
		if c.credentials {
			u.Username, u.Password, u.Realms, spec = "alice", "hunter2", []string{"localhost"}, team
		}
		err := bring(t, of(u), spec, 0)
		assert.Equal(t, c.ok, err == nil, "%s, credentials %t: %v", c.realm, c.credentials, err)
		assert.Equal(t, c.plain, plainAsked.Load(), "%s, credentials %t", c.realm, c.credentials)
	}
	// Nor where the operator allows private addresses, and the registry names the path that stands for one.
	u := registry.Upstream{Proxy: "none", CAFile: ca, AllowPrivateRealm: true, Username: "alice", Password: "hunter2"}
	require.Error(t, bring(t, of(u), team, 0))
	assert.Zero(t, leaks.Load())
}
