package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
)

// Bounds of logging in.
const (
	// sessionsMax bounds the sessions; a new session costs two small requests.
	sessionsMax = 1024
	// controlMax bounds the response of a token service, in bytes.
	controlMax = 64 << 10
	// controlTimeout bounds one request of a login with its body.
	controlTimeout = 30 * time.Second
)

// sessionKey names a session: a registry's URL and a repository in it. The session's credential is the upstream's; with
// bare it has none; with client, the hash of a client's password, it is that password.
type sessionKey struct {
	upstream, base, repository string
	bare                       bool
	client                     [sha256.Size]byte
}

func keyOf(u *upstream, base *url.URL, repository string, bare bool) sessionKey {
	if _, project := rootOf(base); project != "" && repository != "" {
		repository = project + "/" + repository
	}
	return sessionKey{upstream: u.name, base: base.String(), repository: repository, bare: bare}
}

// logout drops a session that the registry no longer accepts, for instance because it now asks for tokens.
func (c *Client) logout(u *upstream, base *url.URL, repository string, bare bool) {
	c.drop(keyOf(u, base, repository, bare))
}

func (c *Client) drop(key sessionKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sessions, key)
}

// hasLogin reports whether a session is logged in, or about to be.
func (c *Client) hasLogin(key sessionKey) bool {
	c.mu.Lock()
	s := c.sessions[key]
	c.mu.Unlock()
	if s == nil {
		return false
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
		return s.rt != nil
	default:
		return true // the login of another request
	}
}

func (c *Client) hasSession(key sessionKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sessions[key] != nil
}

// login returns a transport for one of the upstream's URLs that sends the node's credentials, or none with bare. It
// asks the registry's token service if there is one. fresh says that it has just done so: a further login would get no
// better token.
func (c *Client) login(ctx context.Context, u *upstream, base *url.URL, repository string,
	bare bool) (_ callers, fresh bool, err error) {
	return c.loginKnown(ctx, u, base, repository, keyOf(u, base, repository, bare), challenge{})
}

// loginKnown is login with a known challenge of the registry; the zero one is unknown.
func (c *Client) loginKnown(ctx context.Context, u *upstream, base *url.URL, repository string, key sessionKey,
	known challenge) (_ callers, fresh bool, err error) {
	var auth authn.Authenticator = authn.Anonymous
	if !key.bare {
		auth = currentCredential{u, repository}
	}
	return c.loginAs(ctx, u, base, key, auth, known)
}

// loginAs is login with any credential, which the key names. A known challenge spares the ping.
func (c *Client) loginAs(ctx context.Context, u *upstream, base *url.URL, key sessionKey,
	auth authn.Authenticator, known challenge) (_ callers, fresh bool, err error) {
	s := c.session(key)
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return callers{}, false, context.Cause(ctx)
	}
	defer func() { <-s.turn }()
	if s.rt != nil {
		return *s.rt, false, nil
	}
	host, err := name.NewRegistry(base.Host)
	if err != nil {
		return callers{}, false, fmt.Errorf("logging in at %s: %w", secret.PrintableURL(base), err)
	}
	var scopes []string
	if key.repository != "" {
		scopes = []string{"repository:" + key.repository + ":" + transport.PullScope}
	}
	inner := u.inner
	if inner == nil {
		inner = u.client.Transport()
	}
	guarded := &control{base: base, inner: inner, privateRealm: u.AllowPrivateRealm, realms: u.Realms,
		bare: key.bare, userAgent: u.client.UserAgent(), repository: key.repository, known: known.header}
	rt, err := transport.NewWithContext(ctx, host, auth, guarded, scopes)
	current, own := auth.(currentCredential)
	if isRefusedLogin(err) && own && u.hasOther(ctx, current.repository, "") {
		rt, err = transport.NewWithContext(ctx, host, auth, guarded, scopes)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return callers{}, false, fmt.Errorf("logging in at %s: %w", secret.PrintableURL(base), refused(err))
	}
	out := callers{inner: rt, scopes: scopes, token: guarded.token.Load(),
		denied: guarded.denied.Load() && known.wants(scopes)}
	if own || key.bare {
		out.renew = func(ctx context.Context, sent string) http.RoundTripper {
			return c.renewed(ctx, u, base, key, auth, s, sent)
		}
	}
	if !out.denied { // the next request finds out whether anonymous clients may pull by then
		s.rt = &out
	}
	return out, true, nil
}

func (c *Client) session(k sessionKey) *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.sessions[k]
	if !ok {
		for old := range c.sessions {
			if len(c.sessions) < sessionsMax {
				break
			}
			delete(c.sessions, old)
		}
		s = &session{turn: make(chan struct{}, 1)}
		c.sessions[k] = s
	}
	return s
}

// refused turns an error reply of the token exchange into a [source.StatusError], without the parts that may
// hold a secret.
func refused(err error) error {
	var status *transport.Error
	if errors.As(err, &status) {
		out := &source.StatusError{Method: http.MethodGet, Status: status.StatusCode, Header: http.Header{}}
		if status.Request != nil {
			out.Method, out.URL = status.Request.Method, secret.PrintableURL(status.Request.URL)
		}
		if len(status.Errors) > 0 {
			type line struct {
				Code    transport.ErrorCode `json:"code"`
				Message string              `json:"message"`
			}
			var body struct {
				Errors []line `json:"errors"`
			}
			for _, d := range status.Errors {
				body.Errors = append(body.Errors, line{d.Code, d.Message})
			}
			if b, err := json.Marshal(body); err == nil && len(b) <= controlMax/8 {
				out.Body = b
				out.Header.Set("Content-Type", "application/json")
			}
		}
		return out
	}
	// If the exchange finds no token it quotes the whole response, which may hold a refresh token.
	if err != nil && strings.Contains(err.Error(), "no token in bearer response") {
		return errEmpty
	}
	return err
}

// control is the transport below the token exchange. It forces the configured scheme on requests to the
// registry, bounds the exchange's own requests, allows a token service at a private address if the operator
// does, and sends the node's credentials only to hosts that the operator named.
type control struct {
	base         *url.URL
	inner        http.RoundTripper
	privateRealm bool
	realms       []string
	// bare says that the exchange has no credential: then the token service may be one of plain HTTP.
	bare bool
	// userAgent replaces the exchange's own: some registries serve by agent.
	userAgent string
	// repository is what the login is for, empty for none.
	repository string
	// known is the registry's challenge, if that is known: it answers the ping.
	known []string
	// token says that the registry asks for tokens; denied says that the anonymous token itself states that it allows no
	// pull.
	token, denied atomic.Bool
}

// checkRealm refuses to send a credential to a token service that is neither on the registry's own host nor on
// one that the operator named. The credential is in the body of a POST, or else in an Authorization.
func (c *control) checkRealm(req *http.Request) error {
	host := req.URL.Hostname()
	if req.Method != http.MethodPost && req.Header.Get("Authorization") == "" ||
		strings.EqualFold(host, c.base.Hostname()) {
		return nil
	}
	for _, realm := range c.realms {
		if strings.EqualFold(realm, host) || strings.EqualFold(realm, req.URL.Host) {
			return nil
		}
	}
	return fmt.Errorf("%s sends its logins to another host, %s; to send the node's credentials there, add realms: [%s] "+
		"to the registry's entry in upstreams", c.base.Host, host, host)
}

// realmPath replaces the address of a private token service, so that the exchange takes it for the
// registry's own.
const realmPath = "/.private-token-service"

// RoundTrip implements [http.RoundTripper]. The exchange pings a registry at a private address in goroutines of its
// own, where a panic would end the process.
func (c *control) RoundTrip(req *http.Request) (res *http.Response, err error) {
	defer source.Rescue(&err, fmt.Sprintf("logging in at %.255q", c.base.Host))
	return c.roundTrip(req)
}

func (c *control) roundTrip(req *http.Request) (*http.Response, error) {
	callers := asCallers(req)
	req = req.Clone(req.Context())
	req.Header.Set("User-Agent", agentOf(req.Context(), c.userAgent))
	if callers != nil {
		res, err := c.inner.RoundTrip(c.withScheme(req))
		if err == nil {
			callers.hide(res)
		}
		return res, err
	}
	own := req.URL.Host == c.base.Host
	ctx, cancel := context.WithTimeout(withPurpose(req.Context(), ForToken), controlTimeout)
	defer cancel()
	out := req.WithContext(ctx)
	switch {
	case own && (c.privateRealm || c.bare) && req.URL.Path == realmPath:
		var err error
		if out, err = c.toRealm(out); err != nil {
			return nil, err
		}
	case own:
		out = c.withScheme(out)
		if root, _ := rootOf(c.base); out.URL.Path == "/v2/" && root != "/v2/" {
			out = out.Clone(ctx)
			out.URL.Path = root // the exchange pings at the host's own root
		}
	default:
		if err := c.checkRealm(out); err != nil {
			return nil, err
		}
	}
	ping := own && req.URL.Path == "/v2/"
	var res *http.Response
	var err error
	if ping && c.known != nil {
		res = c.pinged(out)
	} else {
		res, err = c.inner.RoundTrip(out)
	}
	if err == nil && ping && c.repository != "" && hasNoPing(res.StatusCode) {
		res, err = c.challengeOfTags(out, res)
	}
	if err != nil {
		return nil, err
	}
	answers := !ping && res.StatusCode == http.StatusOK // the exchange reads this body, and of others the beginning
	b, err := io.ReadAll(io.LimitReader(res.Body, controlMax+1))
	res.Body.Close()
	if err != nil && answers {
		return nil, fmt.Errorf("reading the response of %s: %w", secret.PrintableURL(out.URL), err)
	}
	if !answers {
		b = b[:min(len(b), controlMax)]
		res.ContentLength = int64(len(b))
	}
	if len(b) > controlMax {
		return nil, fmt.Errorf("the response of %s is larger than %d bytes", secret.PrintableURL(out.URL), controlMax)
	}
	res.Body = io.NopCloser(bytes.NewReader(b))
	if !ping && c.bare && c.repository != "" && res.StatusCode == http.StatusOK {
		c.denied.Store(refusesPull(b, c.repository))
	}
	if ping {
		c.token.Store(offersToken(res.Header.Values("Www-Authenticate")))
		for i, v := range res.Header.Values("Www-Authenticate") {
			res.Header["Www-Authenticate"][i] = c.hideRealm(v)
		}
	}
	return res, nil
}

// hasNoPing reports whether a registry may serve images although it answers GET /v2/ with this status: a server of
// static files has nothing there, and some gateways forward only the paths of repositories.
func hasNoPing(status int) bool {
	switch status {
	case http.StatusOK, http.StatusUnauthorized, http.StatusRequestTimeout, http.StatusTooManyRequests:
		return false
	}
	return !unavailable(status)
}

// challengeOfTags replaces a ping that failed or was redirected. It returns the challenge that the repository's list of
// tags gets, the ping's redirect if the list is redirected, too, or the answer of a registry that asks for no
// credentials.
func (c *control) challengeOfTags(ping *http.Request, failed *http.Response) (*http.Response, error) {
	failed.Body.Close()
	root, _ := rootOf(c.base)
	out := ping.Clone(ping.Context())
	out.URL.Path, out.URL.RawQuery = root+c.repository+"/tags/list", "n=1"
	res, err := c.inner.RoundTrip(out)
	if err != nil || res.StatusCode == http.StatusUnauthorized {
		return res, err
	}
	res.Body.Close()
	if isRedirect(failed.StatusCode) && isRedirect(res.StatusCode) {
		failed.Body = http.NoBody
		return failed, nil
	}
	return &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Header: http.Header{}, Body: http.NoBody,
		Request: ping}, nil
}

func isRedirect(status int) bool { return status >= 300 && status < 400 }

// withScheme gives a request the registry's own scheme: the exchange also tries others.
func (c *control) withScheme(req *http.Request) *http.Request {
	if req.URL.Scheme == c.base.Scheme {
		return req
	}
	out := req.Clone(req.Context())
	out.URL.Scheme = c.base.Scheme
	return out
}

var realmRegexp = regexp.MustCompile(`(?i)(realm=")([^"]*)(")`)

// hideRealm replaces the address of a token service that the exchange would refuse by a path of the registry: a private
// address if the operator allows it, and for a registry with HTTPS one of plain HTTP if there is no credential to send.
// A token service on the registry's own host gets requests by HTTPS: the registry may not know of the proxy that
// encrypts for it.
func (c *control) hideRealm(challenge string) string {
	return realmRegexp.ReplaceAllStringFunc(challenge, func(found string) string {
		realm, err := url.Parse(realmRegexp.FindStringSubmatch(found)[2])
		if err != nil {
			return found
		}
		plain := realm.Scheme == "http" && c.base.Scheme == "https"
		sameName := realm.Port() == "" && strings.EqualFold(realm.Hostname(), c.base.Hostname())
		if plain && (sameName || realm.Host == c.base.Host) {
			realm.Scheme, realm.Host = c.base.Scheme, c.base.Host
			return `realm="` + realm.String() + `"`
		}
		if realm.Host == c.base.Host || !c.hides(realm) {
			return found
		}
		query := url.Values{"realm": {realm.String()}}.Encode()
		hidden := url.URL{Scheme: c.base.Scheme, Host: c.base.Host, Path: realmPath, RawQuery: query}
		return `realm="` + hidden.String() + `"`
	})
}

// hides reports whether a token service is one that the exchange would refuse and this node may ask.
func (c *control) hides(realm *url.URL) bool {
	plain := realm.Scheme == "http" && c.base.Scheme == "https"
	if plain && !c.bare || realm.Scheme != "http" && realm.Scheme != "https" || realm.Host == "" {
		return false
	}
	addr, err := netip.ParseAddr(strings.Trim(realm.Hostname(), "[]"))
	if err == nil && (addr.IsPrivate() || addr.IsLoopback()) {
		return c.privateRealm
	}
	return plain
}

// toRealm restores the address that hideRealm replaced. The registry itself may have named the path, so it is checked
// again.
func (c *control) toRealm(req *http.Request) (*http.Request, error) {
	query := req.URL.Query()
	realm, err := url.Parse(query.Get("realm"))
	if err != nil || !c.hides(realm) {
		return nil, errors.New("the request holds no address of a token service")
	}
	query.Del("realm")
	for k, v := range realm.Query() {
		query[k] = append(query[k], v...)
	}
	out := req.Clone(req.Context())
	realm.RawQuery = query.Encode()
	out.URL, out.Host = realm, realm.Host
	return out, nil
}
