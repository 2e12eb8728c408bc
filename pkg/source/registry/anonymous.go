package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/httporigin"
)

// challengeLife is how long a remembered challenge for a repository's tokens replaces the ping of a login, and the same
// request without a token.
const challengeLife = 10 * time.Second

// challengeMax bounds a remembered challenge, in bytes.
const challengeMax = 4 << 10

// challenge is how a registry asked for a token of a repository.
type challenge struct {
	at     time.Time
	header []string // WWW-Authenticate
	// plain says that it answered a request without a token.
	plain bool
}

// wants reports whether the challenge asks for a token of these scopes and no other. A registry may know a repository
// by another name than its clients.
func (c challenge) wants(scopes []string) bool {
	named := scopeRegexp.FindAllStringSubmatch(strings.Join(c.header, ","), -1)
	return len(named) > 0 && !slices.ContainsFunc(named, func(scope []string) bool {
		return !slices.Contains(scopes, scope[1])
	})
}

// challenges remembers the last challenge of each repository. The zero value is ready.
type challenges struct {
	// mu is held to look up and change.
	mu   sync.Mutex
	last map[sessionKey]challenge
}

// note remembers the challenge of an answer, and returns it, if the registry itself sent the answer and asks for a
// token. plain says that the request had no token.
func (s *challenges) note(key sessionKey, res *http.Response, plain bool) challenge {
	header := res.Header.Values("Www-Authenticate")
	if res.StatusCode != http.StatusUnauthorized || httporigin.CrossedHosts(res) || !offersToken(header) ||
		len(strings.Join(header, "")) > challengeMax {
		return challenge{}
	}
	now := challenge{time.Now(), slices.Clone(header), plain}
	key.bare, key.client = true, sessionKey{}.client
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.last[key]; ok && known.plain && !plain && time.Since(known.at) < challengeLife {
		return now // the answer to a request without a token is of more use
	}
	if s.last == nil || len(s.last) >= sessionsMax {
		s.last = map[sessionKey]challenge{}
	}
	s.last[key] = now
	return now
}

// get returns the last challenge of a repository, with a nil header if there is no recent one. It also returns the
// answer to a request without a token, nil if that is unknown.
func (s *challenges) get(key sessionKey) (challenge, *http.Response) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.last[key]
	switch {
	case !ok || time.Since(known.at) >= challengeLife:
		return challenge{}, nil
	case !known.plain:
		return known, nil
	}
	return known, &http.Response{StatusCode: http.StatusUnauthorized, Status: "401 Unauthorized", Body: http.NoBody,
		Header: http.Header{"Www-Authenticate": slices.Clone(known.header)}}
}

// offersToken reports whether one of the challenges of a refusal asks for a token (RFC 6750 §3).
func offersToken(challenges []string) bool {
	return slices.ContainsFunc(challenges, func(c string) bool {
		scheme, _, _ := strings.Cut(strings.TrimSpace(c), " ")
		return strings.EqualFold(scheme, "Bearer") || strings.Contains(strings.ToLower(c), "bearer ")
	})
}

// errDenied reports that the anonymous token itself states that it allows no pull.
var errDenied = errors.New("the token service gives anonymous clients a token that allows no pull")

// ask sends one request of Do to one of an upstream's URLs. key names the login for a request without an Authorization.
// plainly is the value of [source.HeaderPlain] for the response, empty if the request had a token.
//
// If the node has no token, an anonymous request first goes out without one. If the registry refuses it, ask gets the
// anonymous token and repeats the request: the registry's challenge spares the ping of the login, and the client gets
// the challenge if the registry refuses anonymous access. A recent challenge spares the first of these requests.
func (c *Client) ask(ctx context.Context, u *upstream, base *url.URL, q source.RegistryRequest, req httporigin.Request,
	key sessionKey) (res *http.Response, plainly string, err error) {
	authorization := req.Header.Get("Authorization")
	repository, _ := repositoryOf(q.Path)
	if authorization != "" || !q.Anonymous && key.bare {
		req.RoundTripper = c.exchangeOf(u, base, repository, authorization)
		if res, err = u.client.Ask(ctx, req); err == nil {
			c.challenges.note(key, res, authorization == "")
		}
		return res, "", err
	}
	var known challenge
	var plain *http.Response
	if key.bare && repository != "" && !c.hasLogin(key) {
		if known, plain = c.challenges.get(key); known.header == nil {
			if plain, err = u.client.Ask(ctx, req); err != nil || !worthToken(plain) {
				return plain, source.PlainAnswer, err
			}
			known = c.challenges.note(key, plain, true)
			keepRefusal(plain)
		}
	}
	res, err = c.askWithLogin(ctx, u, base, repository, req, key, known, plain != nil)
	switch {
	case plain == nil && key.bare && ctx.Err() == nil && declined(err): // a refusal, and no token service that is gone
		res, err = u.client.Ask(ctx, req)
		return res, source.PlainAnswer, err
	case plain == nil, ctx.Err() != nil:
		return res, "", err
	case err == nil && res.StatusCode != http.StatusUnauthorized && res.StatusCode != http.StatusForbidden:
		return res, "", nil
	case err == nil:
		res.Body.Close()
	case !declined(err):
		return plain, source.PlainUntried, nil
	}
	return plain, source.PlainAnswer, nil
}

// askWithLogin sends a request with the node's credentials or with the anonymous token. refused says that the registry
// has refused the request without a token: if there is no token, the request is not sent again.
func (c *Client) askWithLogin(ctx context.Context, u *upstream, base *url.URL, repository string,
	req httporigin.Request, key sessionKey, known challenge, refused bool) (*http.Response, error) {
	logged, fresh, err := c.loginKnown(ctx, u, base, repository, key, known)
	switch {
	case err != nil:
		return nil, err
	case logged.denied:
		return nil, errDenied
	case refused && !logged.token:
		return nil, errNoToken
	}
	logged.final = fresh // the refusal of a token that is new
	req.RoundTripper = logged
	res, err := u.client.Ask(ctx, req)
	if err == nil && res.StatusCode == http.StatusUnauthorized {
		c.drop(key)
	}
	return res, err
}

// errEmpty reports the response of a token service that holds no token.
var errEmpty = errors.New("the token service's response has no token")

// declined reports whether a login failed although the token service answered: it gives no token, or the registry has
// no token service.
func declined(err error) bool {
	err = refused(err) // a session may have asked for another token
	var status *source.StatusError
	if errors.As(err, &status) {
		return status.Status < 500 && status.Status != http.StatusRequestTimeout &&
			status.Status != http.StatusTooManyRequests
	}
	return errors.Is(err, errDenied) || errors.Is(err, errNoToken) || errors.Is(err, errEmpty)
}

// errNoToken reports that a registry has no token service, so that a request with a login would be the same as one
// without.
var errNoToken = errors.New("the registry asks for no token")

// keepRefusal reads a refusal's body, which would hold the connection while the token service is asked.
func keepRefusal(res *http.Response) {
	body, _ := io.ReadAll(io.LimitReader(res.Body, api.FailureMax))
	res.Body.Close()
	res.Body = io.NopCloser(bytes.NewReader(body))
}

// worthToken reports whether a registry that refused a request without a token may permit it with one. Some registries
// refuse without a challenge, and send one only in reply to a ping.
func worthToken(res *http.Response) bool {
	switch res.StatusCode {
	case http.StatusUnauthorized:
		challenges := res.Header.Values("Www-Authenticate")
		return len(challenges) == 0 || offersToken(challenges) || httporigin.CrossedHosts(res)
	case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed:
		return true
	}
	return false
}

// pinged is the answer to a login's ping that is not sent, because a challenge for the same repository is known.
func (c *control) pinged(ping *http.Request) *http.Response {
	return &http.Response{StatusCode: http.StatusUnauthorized, Status: "401 Unauthorized", Request: ping,
		Header: http.Header{"Www-Authenticate": slices.Clone(c.known)}, Body: http.NoBody}
}

// refusesPull reports whether a token service's answer holds a token whose own "access" claim (distribution) allows no
// pull of a repository. A token without that claim may allow one.
func refusesPull(answer []byte, repository string) bool {
	var out struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if json.Unmarshal(answer, &out) != nil {
		return false
	}
	if out.Token == "" {
		out.Token = out.AccessToken
	}
	parts := strings.Split(out.Token, ".")
	if len(parts) != 3 {
		return false
	}
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return false
	}
	var claims map[string]json.RawMessage
	if json.Unmarshal(b, &claims) != nil || claims["access"] == nil {
		return false
	}
	var granted []struct {
		Type, Name string
		Actions    []string
	}
	if json.Unmarshal(claims["access"], &granted) != nil {
		return false
	}
	for _, g := range granted {
		if g.Type != "repository" || g.Name != repository {
			return false // it is for something, perhaps under another name
		}
		if len(g.Actions) > 0 {
			return false
		}
	}
	return true
}
