package registry_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/registry"
)

// script is a registry with a token service that lists what it is asked for.
type script struct {
	*httptest.Server
	// scope is the only scope for which the token service gives token; for others its token allows nothing.
	scope string
	// token is the anonymous token that the token service gives, empty for a refusal.
	token string
	// answer is the registry's answer to an Authorization.
	answer func(w http.ResponseWriter, authorization string)

	mu    sync.Mutex // guards asked
	asked []string
}

func newScript(t *testing.T) *script {
	s := &script{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		what := strings.TrimPrefix(r.Header.Get("Authorization")+" "+r.Method+" "+r.URL.Path, " ")
		s.mu.Lock()
		s.asked = append(s.asked, what)
		s.mu.Unlock()
		switch {
		case r.URL.Path == "/token" && s.token == "":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/token" && !strings.Contains(strings.Join(r.URL.Query()["scope"], " "), s.scope):
			_, _ = fmt.Fprintf(w, `{"token":%q}`, jwtOf(`{"access":[]}`))
		case r.URL.Path == "/token":
			_, _ = fmt.Fprintf(w, `{"token":%q}`, s.token)
		default:
			w.Header().Set(source.HeaderPlain, "forged")
			s.answer(w, r.Header.Get("Authorization"))
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// challenge refuses a request with the registry's own challenge.
func (s *script) challenge(w http.ResponseWriter, more string) {
	w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token",service="s",scope="repository:lib/app:pull"`+more)
	w.WriteHeader(http.StatusUnauthorized)
}

// take returns what was asked since the last call.
func (s *script) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.asked = nil }()
	return s.asked
}

func jwtOf(claims string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".sig"
}

// Anonymous access costs the registry no ping, no second refusal, and no request with a token that allows nothing.
func TestAnonymousAccessCostsFewRequests(t *testing.T) {
	const head, ping, get = "HEAD /v2/lib/app/manifests/v1", "GET /v2/", "GET /token"
	nothing := jwtOf(`{"access":[]}`)
	other := jwtOf(`{"access":[{"type":"repository","name":"other","actions":["pull"]}]}`)
	bearer := func(accepted string) func(*script) func(http.ResponseWriter, string) {
		return func(s *script) func(http.ResponseWriter, string) {
			return func(w http.ResponseWriter, authorization string) {
				switch authorization {
				case "":
					s.challenge(w, "")
				case "Bearer " + accepted:
				default:
					s.challenge(w, `,error="insufficient_scope"`)
				}
			}
		}
	}
	open := func(*script) func(http.ResponseWriter, string) { return func(http.ResponseWriter, string) {} }
	nothingThere := func(*script) func(http.ResponseWriter, string) {
		n := 0
		return func(w http.ResponseWriter, _ string) {
			if n++; n != 2 { // the second is the ping
				w.WriteHeader(http.StatusNotFound)
			}
		}
	}
	password := func(*script) func(http.ResponseWriter, string) {
		return func(w http.ResponseWriter, _ string) {
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
	hidden := func(s *script) func(http.ResponseWriter, string) { // it has a challenge for a ping alone
		first := true
		return func(w http.ResponseWriter, authorization string) {
			switch {
			case authorization != "":
			case first:
				first = false
				w.WriteHeader(http.StatusNotFound)
			default:
				s.challenge(w, "")
			}
		}
	}
	for name, c := range map[string]struct {
		answer        func(*script) func(http.ResponseWriter, string)
		token         string
		status        int
		first, second []string
		plain         bool
	}{
		"open":          {open, "", 200, []string{head}, []string{head}, true},
		"a password":    {password, "", 401, []string{head}, []string{head}, true},
		"nothing there": {nothingThere, "", 404, []string{head, ping}, []string{head}, false},
		"public": {bearer("all"), "all", 200, []string{head, get, "Bearer all " + head},
			[]string{"Bearer all " + head}, false},
		"public, without a challenge": {hidden, "all", 200, []string{head, ping, get, "Bearer all " + head},
			[]string{"Bearer all " + head}, false},
		"private": {bearer("alice"), "bob", 401, []string{head, get, "Bearer bob " + head},
			[]string{get, "Bearer bob " + head}, true},
		"private by the token's own word": {bearer("alice"), nothing, 401, []string{head, get}, []string{get}, true},
		"a token for another repository": {bearer(other), other, 200, []string{head, get, "Bearer " + other + " " + head},
			[]string{"Bearer " + other + " " + head}, false},
		"no anonymous token": {bearer("alice"), "", 401, []string{head, get}, []string{get}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t)
			s.token, s.answer = c.token, c.answer(s)
			host := s.Listener.Addr().String()
			d := client(t, registry.Config{HTTP: loopback,
				Upstreams: map[string]registry.Upstream{host: {PlainHTTP: true, Proxy: "none"}}})
			check := func(want []string, why string) {
				t.Helper()
				res, _ := ask(t, d, source.RegistryRequest{Upstream: host, Method: http.MethodHead, Anonymous: true,
					Path: "/v2/lib/app/manifests/v1"})
				assert.Equal(t, c.status, res.StatusCode, why)
				if res.StatusCode == http.StatusUnauthorized {
					assert.NotContains(t, res.Header.Get("WWW-Authenticate"), "error=", "the challenge of no token")
					assert.NotEmpty(t, res.Header.Get("WWW-Authenticate"))
				}
				if c.plain {
					assert.Equal(t, "true", res.Header.Get(source.HeaderPlain), why)
				}
				assert.NotEqual(t, "forged", res.Header.Get(source.HeaderPlain), "no registry sets it")
				assert.Equal(t, want, s.take(), why)
			}
			check(c.first, "the first")
			check(c.second, "the second")
		})
	}
}

// A registry may know a repository by another name than its clients: a token for theirs allows nothing, and the one
// that the challenge asks for does.
func TestAChallengeForAnotherNameIsTakenUp(t *testing.T) {
	s := newScript(t)
	s.token, s.scope = "all", "repository:lib/app:pull"
	s.answer = func(w http.ResponseWriter, authorization string) {
		if authorization != "Bearer all" {
			s.challenge(w, "")
		}
	}
	host := s.Listener.Addr().String()
	d := client(t, registry.Config{HTTP: loopback,
		Upstreams: map[string]registry.Upstream{host: {PlainHTTP: true, Proxy: "none"}}})
	for range 2 {
		res, _ := ask(t, d, source.RegistryRequest{Upstream: host, Method: http.MethodHead, Anonymous: true,
			Path: "/v2/alias/manifests/v1"})
		assert.Equal(t, http.StatusOK, res.StatusCode)
	}
	assert.Equal(t, []string{"Bearer all HEAD /v2/alias/manifests/v1"}, s.take()[5:], "the token is kept")
}

// The challenge of a refused token spares the login's ping, and is no answer to a request without a token.
func TestAnotherTokensChallengeSparesThePing(t *testing.T) {
	s := newScript(t)
	s.token = "all"
	s.answer = func(w http.ResponseWriter, authorization string) {
		if authorization != "Bearer all" {
			s.challenge(w, "")
		}
	}
	host := s.Listener.Addr().String()
	d := client(t, registry.Config{HTTP: loopback,
		Upstreams: map[string]registry.Upstream{host: {PlainHTTP: true, Proxy: "none"}}})
	q := source.RegistryRequest{Upstream: host, Method: http.MethodHead, Path: "/v2/lib/app/manifests/v1",
		Header: http.Header{"Authorization": {"Bearer alice"}}}
	res, _ := ask(t, d, q)
	assert.Equal(t, http.StatusUnauthorized, res.StatusCode)
	q.Header, q.Anonymous = nil, true
	res, _ = ask(t, d, q)
	assert.Equal(t, http.StatusOK, res.StatusCode)
	assert.Equal(t, []string{"Bearer alice HEAD /v2/lib/app/manifests/v1", "GET /token",
		"Bearer all HEAD /v2/lib/app/manifests/v1"}, s.take())
	q.Path = "/v2/other/manifests/v1"
	res, _ = ask(t, d, q)
	assert.Equal(t, http.StatusOK, res.StatusCode)
	assert.Equal(t, "HEAD /v2/other/manifests/v1", s.take()[0], "the challenge is of one repository")
}

// The challenge of a host behind a redirect is none of the registry: no login takes it up.
func TestARedirectedChallengeIsNotRemembered(t *testing.T) {
	elsewhere := newScript(t)
	elsewhere.token = "all"
	elsewhere.answer = func(w http.ResponseWriter, _ string) { elsewhere.challenge(w, "") }
	s := newScript(t)
	target := strings.Replace(elsewhere.URL, "127.0.0.1", "localhost", 1)
	s.answer = func(w http.ResponseWriter, _ string) {
		w.Header().Set("Location", target+"/v2/lib/app/manifests/v1")
		w.WriteHeader(http.StatusTemporaryRedirect)
	}
	host := s.Listener.Addr().String()
	d := client(t, registry.Config{HTTP: loopback,
		Upstreams: map[string]registry.Upstream{host: {PlainHTTP: true, Proxy: "none"}}})
	for range 2 {
		res, _ := ask(t, d, source.RegistryRequest{Upstream: host, Method: http.MethodGet, Anonymous: true,
			Path: "/v2/lib/app/manifests/v1"})
		assert.NotEqual(t, http.StatusOK, res.StatusCode)
		for _, asked := range s.take() {
			assert.NotContains(t, asked, "Bearer", "the registry gets no token of another host's service")
		}
	}
}

// A token service that refuses an anonymous token has answered, also if the challenge of another client's token led
// there: the response is the registry's challenge, and not an error as of a token service that is unreachable.
func TestADeclinedTokenAfterAnotherTokensChallenge(t *testing.T) {
	s := newScript(t)
	s.answer = func(w http.ResponseWriter, authorization string) {
		if authorization != "Bearer alice" {
			s.challenge(w, "")
		}
	}
	host := s.Listener.Addr().String()
	d := client(t, registry.Config{HTTP: loopback,
		Upstreams: map[string]registry.Upstream{host: {PlainHTTP: true, Proxy: "none"}}})
	q := source.RegistryRequest{Upstream: host, Method: http.MethodHead, Path: "/v2/lib/app/manifests/v1",
		Header: http.Header{"Authorization": {"Bearer bogus"}}}
	res, _ := ask(t, d, q)
	assert.Equal(t, http.StatusUnauthorized, res.StatusCode)
	q.Header, q.Anonymous = nil, true
	res, _ = ask(t, d, q)
	assert.Equal(t, http.StatusUnauthorized, res.StatusCode)
	assert.Equal(t, source.PlainAnswer, res.Header.Get(source.HeaderPlain))
}
