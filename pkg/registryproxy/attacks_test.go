package registryproxy_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/source/registry"
	"github.com/darter-io/darter/pkg/task"
)

// A front of several registries (registry.k8s.io is one) redirects every path, and leaves it to the other server to
// answer whether the object exists.
func TestARedirectPermitsNothing(t *testing.T) {
	var s swarm
	private, public := s.put([]byte("cached for another registry"), ""), s.put([]byte("public"), "")
	for name, head := range map[string]int{"a storage that takes a HEAD": 200,
		"a storage whose URLs are signed for GET": 403} {
		storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="https://evil.test/token"`)
			switch {
			case r.Method == http.MethodHead && head != 200:
				w.WriteHeader(head)
			case !strings.HasSuffix(r.URL.Path, string(public)):
				w.WriteHeader(http.StatusNotFound)
			default:
				http.ServeContent(w, r, "", noTime, strings.NewReader("public"))
			}
		}))
		defer storage.Close()
		front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, storage.URL+r.URL.Path, http.StatusTemporaryRedirect)
		}))
		defer front.Close()
		host := front.Listener.Addr().String()
		client, err := registry.New(registry.Config{
			Upstreams: map[string]registry.Upstream{host: {PlainHTTP: true, Proxy: "none"}},
			HTTP:      httporigin.Config{AllowAddrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
		})
		require.NoError(t, err)
		defer client.CloseIdleConnections()
		p := newMirror(config{Upstream: client, Open: s.Open})
		ns := "?ns=" + url.QueryEscape(host)
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			for _, path := range []string{"/v2/app/blobs/", "/v2/app/manifests/"} {
				res := ask(p, method, path+string(private)+ns)
				assert.Equal(t, 404, res.StatusCode, "%s: %s %s", name, method, path)
				assert.Empty(t, res.Header.Get("WWW-Authenticate"), name)
			}
			res := ask(p, method, "/v2/app/blobs/"+string(public)+ns)
			assert.Equal(t, 200, res.StatusCode, name)
			assert.Equal(t, "6", res.Header.Get("Content-Length"), name)
		}
	}
}

func TestAnOddStatusPermitsNothing(t *testing.T) {
	r := newFixture(config{})
	manifest := r.swarm.put(oldIndex, oci.MediaTypeIndex)
	for _, status := range []int{201, 202, 204, 206, 300, 301, 302, 304, 307} {
		r.up.reply(func(w http.ResponseWriter, q source.RegistryRequest) {
			w.Header().Set("Docker-Content-Digest", string(manifest))
			w.WriteHeader(status)
		})
		for _, path := range []string{"app/blobs/" + string(r.layer), "app/manifests/" + string(manifest),
			"app/manifests/v1"} {
			refusedAs(t, r.get(path), http.StatusBadGateway, "UNAVAILABLE")
		}
		// The same for the GET that replaces a HEAD which the registry does not support. It has a Range, so 206 is an answer
		// for a blob.
		r.up.reply(func(w http.ResponseWriter, q source.RegistryRequest) {
			if q.Method == http.MethodHead {
				status := http.StatusMethodNotAllowed
				w.WriteHeader(status)
				return
			}
			w.WriteHeader(status)
		})
		if status != 206 {
			refusedAs(t, r.get("app/blobs/"+string(r.layer)), http.StatusBadGateway, "UNAVAILABLE")
		}
		refusedAs(t, r.get("app/manifests/v1"), http.StatusBadGateway, "UNAVAILABLE")
	}
}

func TestAWrongLengthRevokesTheGrant(t *testing.T) {
	r := newFixture(config{})
	r.up.reply(func(w http.ResponseWriter, q source.RegistryRequest) { // the same page for every path
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("Content-Length", "612")
	})
	for range 2 {
		refusedAs(t, r.get("app/blobs/"+string(r.layer)), http.StatusNotFound, "BLOB_UNKNOWN")
		assert.Equal(t, 2, r.asks(), "it may think again: a HEAD, and a GET that shows other bytes")
	}
}

// TestForeignFailuresAreNotPassedOn has a blob that downloads for a client of another registry. That registry's
// failure does not concern this client, and its challenge would send this client's login to a foreign realm.
func TestForeignFailuresAreNotPassedOn(t *testing.T) {
	for name, c := range map[string]struct {
		failure api.Failure
		tries   int // of which the last is right, 0 for none
		opened  int
	}{
		"another registry's challenge":   {api.Failure{Status: 401, Upstream: "evil.test", Repository: "app"}, 0, 4},
		"another repository's challenge": {api.Failure{Status: 401, Upstream: "r.test", Repository: "other"}, 0, 4},
		"a challenge without an author":  {api.Failure{Status: 401}, 0, 4},
		"another registry's refusal":     {api.Failure{Status: 403, Upstream: "evil.test", Repository: "app"}, 0, 4},
		"another registry has it not":    {api.Failure{Status: 404, Upstream: "evil.test", Repository: "app"}, 0, 4},
		"another repository has it not":  {api.Failure{Status: 404, Upstream: "r.test", Repository: "other"}, 0, 4},
		"another registry's limit":       {api.Failure{Status: 429, Upstream: "evil.test", Repository: "app"}, 0, 4},
		"another registry's trouble":     {api.Failure{Status: 500, Upstream: "evil.test", Repository: "app"}, 0, 4},
		"another registry's wrong blob": {api.Failure{Status: 502, Upstream: "evil.test", Repository: "app",
			Wrong: true}, 0,
			4},
		"a challenge, and then the blob": {api.Failure{Status: 401, Upstream: "evil.test", Repository: "app"}, 3, 3},
		"a limit, and then the blob":     {api.Failure{Status: 429, Upstream: "evil.test", Repository: "app"}, 2, 2},
	} {
		t.Run(name, func(t *testing.T) {
			r := newFixture(config{})
			c.failure.Message = "bringing it of secret/repository"
			c.failure.Header = map[string]string{"Www-Authenticate": `Bearer realm="https://evil.test/token"`,
				"Retry-After": "600"}
			c.failure.Body = []byte(`{"errors":[{"code":"X","message":"secret/repository"}]}`)
			opened := 0
			p := newMirror(config{Upstream: r.up, Default: "r.test",
				Open: func(ctx context.Context, spec task.Spec) (registryproxy.Blob, error) {
					if opened++; opened == c.tries {
						return r.swarm.Open(ctx, spec)
					}
					return nil, &c.failure
				}})
			path, who := "/v2/app/blobs/"+string(r.layer), []string{"Authorization", "Bearer mine"}
			res := ask(p, http.MethodGet, path, who...)
			assert.Equal(t, c.opened, opened)
			assert.Empty(t, res.Header.Get("WWW-Authenticate"))
			if c.tries > 0 {
				assert.Equal(t, 200, res.StatusCode)
				return
			}
			assert.Empty(t, res.Header.Get("Retry-After"))
			assert.NotContains(t, refusedAs(t, res, http.StatusServiceUnavailable, "UNAVAILABLE"), "secret/repository")
			assert.Equal(t, 1, r.asks())
			ask(p, http.MethodGet, path, who...)
			assert.Zero(t, r.asks(), "the client's own grant is unchanged")
		})
	}
	// Within one registry, all clients get a failure, but not what the registry said to another repository or
	// credential.
	for name, c := range map[string]struct {
		asker task.Spec
		own   bool
	}{
		"the client itself":  {task.Spec{Upstream: "r.test", Repository: "app", Authorization: "Bearer mine"}, true},
		"another credential": {task.Spec{Upstream: "r.test", Repository: "app", Authorization: "Bearer x"}, false},
		"no credential":      {task.Spec{Upstream: "r.test", Repository: "app"}, false},
		"another repository": {task.Spec{Upstream: "r.test", Repository: "b", Authorization: "Bearer mine"}, false},
		"an unknown asker":   {task.Spec{Upstream: "r.test", Repository: "app", URL: "old program"}, false},
	} {
		for _, status := range []int{400, 429, 500} {
			t.Run(fmt.Sprintf("%d to %s", status, name), func(t *testing.T) {
				r := newFixture(config{})
				r.swarm.err = &api.Failure{Status: status, Upstream: "r.test", Repository: c.asker.Repository,
					Asker: c.asker.Asker(nil), Message: "bringing it", Body: []byte("no quota in secret/project"),
					Header: map[string]string{"Retry-After": "7", "Www-Authenticate": "Basic"}}
				res := ask(r.mirror, http.MethodGet, "/v2/app/blobs/"+string(r.layer), "Authorization", "Bearer mine")
				said := body(t, res)
				assert.Equal(t, status, res.StatusCode)
				assert.Equal(t, "7", res.Header.Get("Retry-After"))
				assert.Equal(t, c.own, said == "no quota in secret/project", said)
				assert.Equal(t, c.own, res.Header.Get("Www-Authenticate") != "")
				if !c.own {
					assert.Contains(t, said, "another client")
					assert.NotContains(t, said, "secret/project")
				}
			})
		}
	}
	r := newFixture(config{})
	r.swarm.err = &api.Failure{Status: 500, Upstream: "r.test", Repository: "secret/repository",
		Message: "bringing it of secret/repository"}
	said := refusedAs(t, r.get("app/blobs/"+string(r.layer)), http.StatusInternalServerError, "UNKNOWN")
	assert.NotContains(t, said, "secret/repository")
	assert.Len(t, r.swarm.opened, 1)
}

// A client that takes the mirror for one registry answers the default's challenge with its login for the mirror, and
// sends that login with every path.
func TestTheDefaultsPasswordGoesToNoOtherRegistry(t *testing.T) {
	for name, c := range map[string]struct {
		challenge, authorization, target string
		header                           [2]string
		shown                            bool
	}{
		"a password, another registry by its path": {`Basic realm="corp"`, "Basic YTpi", "other.test/app/manifests/v1",
			[2]string{}, false},
		"a password, another registry's tags": {`Basic realm="corp"`, "basic YTpi", "other.test/app/tags/list",
			[2]string{}, false},
		"another registry's version check": {`Basic realm="corp"`, "Basic YTpi", "other.test/", [2]string{}, false},
		"a password for the default":       {`Basic realm="corp"`, "Basic YTpi", "app/manifests/v1", [2]string{}, true},
		"a password for the default, named": {`Basic realm="corp"`, "Basic YTpi", "corp.test/app/manifests/v1",
			[2]string{}, true},
		"a client that names the registry by ns": {`Basic realm="corp"`, "Basic YTpi", "app/manifests/v1?ns=other.test",
			[2]string{}, true},
		"the same by a header": {`Basic realm="corp"`, "Basic YTpi", "app/manifests/v1",
			[2]string{"X-Darter-Upstream", "other.test"}, true},
		"a token": {`Basic realm="corp"`, "Bearer x", "other.test/app/manifests/v1", [2]string{}, true},
		"a default that asks for tokens": {`Bearer realm="https://corp.test/token"`, "Basic YTpi",
			"other.test/app/manifests/v1", [2]string{}, true},
		"a default that asks for nothing, no login": {"", "Basic YTpi", "other.test/app/manifests/v1",
			[2]string{}, true},
	} {
		for _, pinged := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, pinged before: %t", name, pinged), func(t *testing.T) {
				up := &upstreamFunc{answer: func(w http.ResponseWriter, q source.RegistryRequest) {
					if q.Path == "/v2/" && q.Upstream == "corp.test" && c.challenge == "" {
						return
					}
					w.Header().Set("WWW-Authenticate",
						map[bool]string{true: c.challenge, false: "Bearer other"}[q.Upstream == "corp.test"])
					w.WriteHeader(http.StatusUnauthorized)
				}}
				p := newMirror(config{Upstream: up, Open: (&swarm{}).Open, Default: "corp.test"})
				if pinged {
					ask(p, http.MethodGet, "/v2/")
				}
				res := ask(p, http.MethodGet, "/v2/"+c.target, "Authorization", c.authorization, c.header[0],
					c.header[1])
				assert.Equal(t, 401, res.StatusCode)
				shown := false
				for _, q := range up.requests() {
					shown = shown || q.Header.Get("Authorization") != ""
				}
				assert.Equal(t, c.shown, shown)
			})
		}
	}
	// While the default is unreachable or fails, its challenge is unknown.
	trouble := func(status int) *upstreamFunc {
		return &upstreamFunc{answer: func(w http.ResponseWriter, _ source.RegistryRequest) { w.WriteHeader(status) }}
	}
	for _, up := range []*upstreamFunc{{err: fmt.Errorf("connection refused")}, trouble(429), trouble(503)} {
		p := newMirror(config{Upstream: up, Open: (&swarm{}).Open, Default: "corp.test"})
		ask(p, http.MethodGet, "/v2/other.test/app/manifests/v1", "Authorization", "Basic YTpi")
		require.NotEmpty(t, up.requests())
		for _, q := range up.requests() {
			assert.Empty(t, q.Header.Get("Authorization"), "%s", q.Upstream)
		}
	}
}

func TestAForgottenManifestGrantsNothing(t *testing.T) {
	for name, forget := range map[string]func(*fixture){
		"settings are reloaded": func(r *fixture) { r.Forget() },
		"the registry no longer takes the token": func(r *fixture) {
			r.up.reply(func(w http.ResponseWriter, q source.RegistryRequest) { w.WriteHeader(http.StatusUnauthorized) })
			r.get("app/blobs/"+missing, "Authorization", "Bearer x")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newFixture(config{})
				var f family
				r.up.reply(answers(f.put(&r.swarm)))
				gate := make(chan struct{})
				p := newMirror(config{Upstream: r.up, Default: "r.test",
					Open: func(ctx context.Context, spec task.Spec) (registryproxy.Blob, error) {
						<-gate
						return r.swarm.Open(ctx, spec)
					}})
				r.mirror = p
				var pull sync.WaitGroup
				pull.Go(func() {
					assert.Equal(t, 200, r.get("app/manifests/"+string(f.index), "Authorization",
						"Bearer x").StatusCode)
				})
				synctest.Wait()
				forget(r)
				close(gate)
				pull.Wait()
				r.up.reply(func(w http.ResponseWriter, q source.RegistryRequest) {
					w.WriteHeader(http.StatusForbidden)
				})
				assert.Equal(t, 403, r.get("app/manifests/"+string(f.manifest), "Authorization", "Bearer x").StatusCode)
			})
		})
	}
}

// Each of these paths leads only to the path that it spells.
func TestHostileNamesAreRefusedBeforeAnyRequest(t *testing.T) {
	up := &upstreamFunc{answer: answers(nil)}
	var s swarm
	p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
	for _, target := range []string{
		"/v2/../app/manifests/v1", "/v2/app/../../other/manifests/v1", "/v2/app/%2e%2e/other/manifests/v1",
		"/v2/app%2f..%2fother/manifests/v1",
		"/v2/app/./manifests/v1", "/v2//app/manifests/v1", "/v2/app//manifests/v1", "/v2/app/manifests/..",
		"/v2/app/manifests/%2e%2e", "/v2/app/manifests/..%2f..%2fother",
		"/v2/app/blobs/sha256:" + strings.Repeat("0", 63) + "%2f",
		"/v2/app/blobs/sha256:../../" + strings.Repeat("0", 58),
		"/v2/app/blobs/" + missing + "%00",
		"/v2/app%00/manifests/v1", "/v2/app%0d%0aX-Evil:%201/manifests/v1", "/v2/app/manifests/v1%0d%0aX-Evil:%201",
		"/v2/app%3fx=1/manifests/v1", "/v2/app%23/manifests/v1",
		"/v2/app@r.test/manifests/v1", "/v2/http:%2f%2fevil.test/app/manifests/v1",
		"/v2/evil.test:80:80/app/manifests/v1",
		"/v2/evil.test@r.test/app/manifests/v1",
		"/v2/app/manifests/v1?ns=r.test%0d%0aX-Evil:%201", "/v2/app/manifests/v1?ns=r.test%2fapp",
		"/v2/app/manifests/v1?ns=r.test%3fx", "/v2/app/manifests/v1?ns=a@r.test",
		"/v2/app/manifests/v1?ns=r.test:65536", "/v2/app/manifests/v1?ns=r.test:0",
		"/v2/app/manifests/v1?ns=%5b::1%25eth0%5d", "/v2/app/manifests/v1?ns=" + strings.Repeat("a", 300),
		"/v2/" + strings.Repeat("a/", 200) + "a/manifests/v1", "/v2/app/manifests/" + strings.Repeat("a", 129),
		"/v2/app/referrers/sha256:..",
		"/v2/app/blobs/uploads/", "/v2/app/blobs/uploads/x",
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			res := ask(p, method, target)
			assert.GreaterOrEqual(t, res.StatusCode, 400, target)
			assert.Less(t, res.StatusCode, 500, target)
			assert.Empty(t, res.Header.Get("X-Evil"), target)
			assert.Empty(t, up.requests(), target)
			up.forget()
		}
	}
	assert.Empty(t, s.opened)
}

func TestALongAcceptIsNotRemembered(t *testing.T) {
	// The mirror hashes a client's Accept, so that no client fills the memory with it.
	var s swarm
	s.put(oldIndex, oci.MediaTypeIndex)
	r := &tagged{}
	r.set("v1", oldIndex)
	p := newMirror(config{Upstream: r, Open: s.Open, Default: "r.test", Policy: access.Policy{TagLife: 1 << 40},
		Wait: time.Hour})
	long := strings.Repeat("application/x, ", 4000)
	const tags = 200
	before := heap()
	for i := range tags {
		require.Equal(t, 200, ask(p, http.MethodHead, "/v2/app/manifests/v1", "Accept", fmt.Sprint(long, i)).StatusCode)
	}
	r.counts()
	assert.Less(t, heap()-before, int64(tags*len(long)/10))
	require.Equal(t, 200, ask(p, http.MethodHead, "/v2/app/manifests/v1", "Accept", fmt.Sprint(long, 7)).StatusCode)
	assert.Empty(t, r.counts(), "and yet it is known")
}

// A registry redirects blobs to plain HTTP, where an attacker on the network path accepts every digest. A client
// without rights gets no blob that the node has from another registry.
func TestAnUnencryptedPermissionShowsTheBlob(t *testing.T) {
	for _, size := range []int{1000, 3 << 20} {
		secret := blob(size)
		id := oci.DigestOf(secret)
		for name, c := range map[string]struct {
			has    []byte // what the storage sends
			onward bool   // it redirects to https again
			status int
		}{
			"the blob itself":          {secret, false, 200},
			"other bytes":              {bytes.Repeat([]byte{'x'}, size), false, 404},
			"other bytes behind https": {bytes.Repeat([]byte{'x'}, size), true, 404},
		} {
			serve := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				assert.Empty(t, r.Header.Get("Authorization"))
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(c.has))
			})
			if c.onward {
				chosen := httptest.NewTLSServer(serve)
				t.Cleanup(chosen.Close)
				serve = http.RedirectHandler(chosen.URL, http.StatusFound).ServeHTTP
			}
			storage := httptest.NewServer(serve)
			t.Cleanup(storage.Close)
			front := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, storage.URL, http.StatusFound)
			}))
			t.Cleanup(front.Close)
			ca := filepath.Join(t.TempDir(), "ca.pem")
			block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})
			require.NoError(t, os.WriteFile(ca, block, 0o600))
			for _, forbidden := range []bool{false, true} {
				host := front.Listener.Addr().String()
				client, err := registry.New(registry.Config{
					Upstreams: map[string]registry.Upstream{
						host: {Proxy: "none", CAFile: ca, ForbidPlainRedirects: forbidden},
					},
					HTTP: httporigin.Config{AllowAddrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
				})
				require.NoError(t, err)
				t.Cleanup(client.CloseIdleConnections)
				var s swarm
				s.put(secret, "")
				p := newMirror(config{Upstream: client, Open: s.Open})
				res := ask(p, http.MethodGet, "/v2/app/blobs/"+string(id)+"?ns="+host, "Authorization", "Bearer x")
				if forbidden {
					refusedAs(t, res, http.StatusBadGateway, "UNAVAILABLE")
					continue
				}
				assert.Equal(t, c.status, res.StatusCode, "%s, %d bytes", name, size)
			}
		}
	}
}
