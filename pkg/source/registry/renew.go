package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/darter-io/darter/pkg/api"
)

// session is a transport that carries a token for one repository and renews it.
type session struct {
	// turn is held during a login; other requests wait for its result instead of logging in too.
	turn chan struct{}
	rt   *callers // nil before the login
}

// callers is the transport of a session. It marks the caller's own request, so that control can tell it from the
// requests of the token exchange that it causes. It repeats a request whose login has ended once, with a new login.
type callers struct {
	inner  http.RoundTripper
	scopes []string // of the session's token
	// token says that the session has a token; denied says that the anonymous token itself states that it allows no pull.
	token, denied bool
	// final makes the registry's refusal of the token the answer: without it the exchange gets another token and asks
	// again.
	final bool
	// renew logs in again; sent is the Authorization that has ended, empty if a token service refused the login. It is
	// nil, or returns nil, if a new login would change nothing.
	renew func(ctx context.Context, sent string) http.RoundTripper
}

// callersRequest is a caller's request: the exchange's requests inherit its context, and may have its URL, since a
// registry can redirect it to the token service and the token service to it.
type callersRequest struct {
	req *http.Request
	callers
	// challenge is hidden from the exchange, so that it takes the refusal for the answer.
	challenge []string
}

// callersKey is the context key of the *callersRequest.
type callersKey struct{}

func (t callers) RoundTrip(req *http.Request) (*http.Response, error) {
	own := &callersRequest{callers: t}
	own.req = req.Clone(context.WithValue(req.Context(), callersKey{}, own))
	res, err := t.inner.RoundTrip(own.req)
	if err == nil && own.challenge != nil {
		res.Header["Www-Authenticate"] = own.challenge
	}
	sent := own.req.Header.Get("Authorization")
	if t.renew == nil || !loginEnded(req, res, err, sent) {
		return res, err
	}
	if err != nil {
		sent = "" // the token service refused the login, and nothing was sent
	}
	next := t.renew(req.Context(), sent)
	if next == nil {
		return res, err
	}
	if res != nil {
		res.Body.Close()
	}
	return next.RoundTrip(req)
}

// asCallers returns the caller's data of a request, nil for a request of the exchange. The exchange's transports pass
// on the caller's request without a copy.
func asCallers(req *http.Request) *callersRequest {
	own, ok := req.Context().Value(callersKey{}).(*callersRequest)
	if !ok || own.req != req {
		return nil
	}
	return own
}

var scopeRegexp = regexp.MustCompile(`(?i)scope="([^"]*)"`)

// hide hides the challenge of a refusal from the exchange, unless it names a scope that the token lacks.
func (own *callersRequest) hide(res *http.Response) {
	challenge := res.Header.Values("Www-Authenticate")
	if !own.final || res.StatusCode != http.StatusUnauthorized {
		return
	}
	for _, scope := range scopeRegexp.FindAllStringSubmatch(strings.Join(challenge, ","), -1) {
		if !slices.Contains(own.scopes, scope[1]) {
			return
		}
	}
	own.challenge = challenge
	res.Header.Del("Www-Authenticate")
}

// endedRegexp matches how registries say that a login has ended: "Your authorization token has expired.
// Reauthenticate and try again." (ECR).
var endedRegexp = regexp.MustCompile(
	`(?i)\b(token|login|credentials?|password|session|authorization|authentication)s?\b[^"]{0,40}\bexpired\b|` +
		`\bexpired\b[^"]{0,40}\b(token|login|credentials?|password|session)\b|\breauthenticate\b`)

// loginEnded reports whether a registry's answer says that the login which a request carried has ended. A session
// renews the token of a Bearer challenge by itself, so that a 401 concerns only a password here. A HEAD's 403 has no
// body; a lookup sends a GET after it.
func loginEnded(req *http.Request, res *http.Response, err error, sent string) bool {
	if err != nil {
		return isRefusedLogin(err)
	}
	switch {
	case sent == "":
		return false
	case res.StatusCode == http.StatusUnauthorized:
		return strings.HasPrefix(sent, "Basic ")
	case res.StatusCode != http.StatusForbidden || req.Method == http.MethodHead:
		return false
	}
	stop := time.AfterFunc(controlTimeout, func() { res.Body.Close() })
	defer stop.Stop()
	head, _ := io.ReadAll(io.LimitReader(res.Body, api.FailureMax)) // the rest returns the error again
	res.Body = after(head, res.Body)
	return endedRegexp.Match(head)
}

// after is a body whose beginning was read already.
func after(head []byte, rest io.ReadCloser) io.ReadCloser {
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), rest), rest}
}

// isRefusedLogin reports whether a token service refused a login.
func isRefusedLogin(err error) bool {
	var status *transport.Error
	return errors.As(err, &status) &&
		(status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden)
}

// renewed returns a transport with a new login, nil if it would send the same as the one that has ended.
func (c *Client) renewed(ctx context.Context, u *upstream, base *url.URL, key sessionKey, auth authn.Authenticator,
	old *session, sent string) http.RoundTripper {
	current, own := auth.(currentCredential)
	if !strings.HasPrefix(sent, "Bearer ") && (!own || !u.hasOther(ctx, current.repository, sent)) {
		return nil
	}
	c.mu.Lock()
	if c.sessions[key] == old {
		delete(c.sessions, key)
	}
	c.mu.Unlock()
	again, _, err := c.loginAs(ctx, u, base, key, auth, challenge{})
	if err != nil {
		return nil
	}
	again.renew = nil // once
	return again
}

// hasOther reports whether the node has another credential for a repository than one that has ended: sent, or that of
// the last login if sent is empty. It runs a credential helper again, whose last output may be the one that ended.
func (u *upstream) hasOther(ctx context.Context, repository, sent string) bool {
	if u.docker == nil {
		return false
	}
	was, _, err := u.credential(ctx, repository)
	if err != nil {
		return false
	}
	u.docker.helpers.rerun(serverNames(u.name))
	is, ok, err := u.credential(ctx, repository)
	if err != nil || !ok {
		return false
	}
	if sent != "" {
		return basicOf(is) != sent
	}
	return is != was
}

// basicOf is the Authorization of a password (RFC 7617).
func basicOf(auth authn.AuthConfig) string {
	encoded := auth.Auth
	if auth.Username != "" && auth.Password != "" {
		encoded = base64.StdEncoding.EncodeToString([]byte(auth.Username + ":" + auth.Password))
	}
	return "Basic " + encoded
}

// agentKey is the context key of the User-Agent of a request and of the logins that it causes.
type agentKey struct{}

func withAgent(ctx context.Context, agent string) context.Context {
	return context.WithValue(ctx, agentKey{}, agent)
}

// agentOf is the User-Agent of a request, or else the client's own.
func agentOf(ctx context.Context, own string) string {
	if agent, ok := ctx.Value(agentKey{}).(string); ok {
		return agent
	}
	return own
}
