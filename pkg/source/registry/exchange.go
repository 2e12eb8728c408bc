package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
)

// exchange is the transport of a request with a client's password. A client that takes the mirror for one registry
// (crane, with the registry in the path) learned from the mirror's ping that it may send its password. If the registry
// in the path wants a token instead, the transport asks that registry's token service for one with this password, by
// the rules for the node's own password, and repeats the request once. The registry still decides by that client's
// credential.
type exchange struct {
	c             *Client
	u             *upstream
	base          *url.URL
	repository    string
	authorization string // the client's, for Basic
}

// exchangeOf returns the transport for a client's Authorization, nil if it needs no exchange.
func (c *Client) exchangeOf(u *upstream, base *url.URL, repository, authorization string) http.RoundTripper {
	if scheme, _, _ := strings.Cut(authorization, " "); !strings.EqualFold(scheme, "Basic") || repository == "" {
		return nil
	}
	return exchange{c, u, base, repository, authorization}
}

func (x exchange) RoundTrip(req *http.Request) (*http.Response, error) {
	key := keyOf(x.u, x.base, x.repository, false)
	key.client = sha256.Sum256([]byte(x.authorization))
	if x.c.hasSession(key) {
		if res, err := x.withToken(req, key); err == nil && res.StatusCode != http.StatusUnauthorized {
			return res, nil
		} else if err == nil {
			res.Body.Close()
		}
		x.c.drop(key) // the registry's answer to the request below says what it wants
	}
	res, err := x.u.client.Transport().RoundTrip(req)
	if err != nil || res.StatusCode != http.StatusUnauthorized || !wantsToken(res) {
		return res, err
	}
	again, err := x.withToken(req, key)
	if err != nil {
		x.c.drop(key)
		return res, nil
	}
	res.Body.Close()
	return again, nil
}

// withToken sends the request with the token that the token service gives for the client's password.
func (x exchange) withToken(req *http.Request, key sessionKey) (*http.Response, error) {
	username, password, ok := req.BasicAuth()
	if !ok {
		return nil, errors.New("the client's Authorization holds no password")
	}
	ctx := context.WithValue(req.Context(), clientsKey{}, authn.AuthConfig{Username: username, Password: password})
	rt, _, err := x.c.loginAs(ctx, x.u, x.base, key, clients{}, challenge{})
	if err != nil {
		return nil, err
	}
	out := req.Clone(ctx)
	out.Header.Del("Authorization")
	return rt.RoundTrip(out)
}

// wantsToken reports whether a registry's challenge is for a token and not for a password.
func wantsToken(res *http.Response) bool {
	token := false
	for _, challenge := range res.Header.Values("Www-Authenticate") {
		switch scheme, _, _ := strings.Cut(strings.TrimSpace(challenge), " "); {
		case strings.EqualFold(scheme, "Basic"):
			return false
		case strings.EqualFold(scheme, "Bearer"):
			token = true
		}
	}
	return token
}

// clients authenticates by the password of the client that sent the request: a session keeps the token and never the
// password.
type clients struct{}

// clientsKey is the context key of that password.
type clientsKey struct{}

// Authorization implements [authn.Authenticator].
func (clients) Authorization() (*authn.AuthConfig, error) {
	return nil, errors.New("no request of a client belongs to this login")
}

// AuthorizationContext implements [authn.ContextAuthenticator].
func (k clients) AuthorizationContext(ctx context.Context) (*authn.AuthConfig, error) {
	auth, ok := ctx.Value(clientsKey{}).(authn.AuthConfig)
	if !ok {
		return k.Authorization()
	}
	return &auth, nil
}
