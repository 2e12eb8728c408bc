package registry

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/stretchr/testify/require"
)

// fakeService answers a login: the registry with a challenge, everything else with a token.
type fakeService struct {
	challenge, token string
	status           int
	asked            []*http.Request
	bodies           []string
}

func (s *fakeService) RoundTrip(req *http.Request) (*http.Response, error) {
	s.asked = append(s.asked, req)
	body := ""
	if req.Body != nil {
		b, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		body = string(b)
	}
	s.bodies = append(s.bodies, body)
	res := &http.Response{
		StatusCode: s.status,
		Header:     http.Header{},
		Request:    req,
		Body:       io.NopCloser(strings.NewReader(s.token)),
	}
	if req.URL.Path == "/v2/" {
		res.StatusCode, res.Body = http.StatusUnauthorized, http.NoBody
		res.Header.Set("Www-Authenticate", s.challenge)
	}
	return res, nil
}

// panicking is a registry whose answer makes this program panic.
type panicking struct{}

func (panicking) RoundTrip(*http.Request) (*http.Response, error) {
	panic("an answer that was not foreseen")
}

// The exchange pings a registry at a private address in goroutines of its own.
func TestAPanicInALoginEndsOneRequest(t *testing.T) {
	for _, at := range []string{"10.0.0.1:5000", "localhost:5000", "r.test"} {
		host, err := name.NewRegistry(at)
		require.NoError(t, err)
		c := &control{base: &url.URL{Scheme: "http", Host: at}, inner: panicking{}}
		_, err = transport.NewWithContext(t.Context(), host, authn.Anonymous, c, []string{"repository:a:pull"})
		require.ErrorContains(t, err, "a fault of this program")
	}
}

// FuzzTokenAnswer logs in at a registry whose challenge and token service say anything: the
// node's password goes only to named hosts, and no error shows a token.
func FuzzTokenAnswer(f *testing.F) {
	for _, s := range []struct{ challenge, token string }{
		{`Bearer realm="https://r.test/token",service="s"`, `{"token":"t"}`},
		{`Bearer realm="https://r.test/token"`, `{"access_token":"t","refresh_token":"r-geheim","expires_in":-1}`},
		{`Bearer realm="https://evil.test/token"`, `{"token":"t"}`},
		{`Bearer realm="https://10.0.0.1/token"`, `{"token":1}`},
		{`Bearer realm="http://169.254.169.254/latest"`, `{}`},
		{`Bearer realm="https://r.test@evil.test/token"`, `null`},
		{`Bearer realm="//evil.test/token"`, `[]`},
		{`Bearer realm="r.test"`, `{"refresh_token":"r-geheim"}`},
		{`Bearer realm="https://r.test/.private-token-service?realm=http%3A%2F%2F10.0.0.1"`, `{"token":"t"}`},
		{`Basic realm="x"`, ``}, {`Bearer`, `{`}, {`bearer realm=`, "\x00"}, {``, ``},
		{`Negotiate, Bearer realm="https://evil.test"`, `{"token":""}`},
	} {
		for _, status := range []int{200, 401, 500} {
			f.Add(s.challenge, s.token, status)
		}
	}
	base := &url.URL{Scheme: "https", Host: "r.test"}
	host, err := name.NewRegistry(base.Host)
	require.NoError(f, err)
	const password = "p-geheim"
	f.Fuzz(func(t *testing.T, challenge, token string, status int) {
		if status < 200 || status > 599 {
			return
		}
		for _, private := range []bool{false, true} {
			s := &fakeService{challenge: challenge, token: token, status: status}
			c := &control{base: base, inner: s, privateRealm: private}
			_, err := transport.NewWithContext(
				t.Context(),
				host,
				&authn.Basic{Username: "u", Password: password},
				c,
				[]string{"repository:a:pull"},
			)
			if err = refused(err); err != nil {
				require.NotContains(t, err.Error(), password)
				require.NotContains(t, err.Error(), "r-geheim", "an error quotes the token service")
			}
			for i, req := range s.asked {
				if req.URL.Host == base.Host && req.URL.Scheme == base.Scheme {
					continue
				}
				user, secret, basic := req.BasicAuth()
				knows := strings.Contains(s.bodies[i]+req.URL.RawQuery, password) ||
					basic && user == "u" && secret == password
				require.False(
					t,
					knows && req.URL.Hostname() != base.Hostname() && !private,
					"the password went to %s",
					req.URL,
				)
			}
		}
	})
}
