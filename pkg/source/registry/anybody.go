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

// challengeLife is how long a challenge for a repository's tokens stands in for the ping of a login, and for the answer
// to the same request without a token.
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

// wants reports whether the challenge asks for a token of these scopes and no other. A registry may have another name
// for a repository than its clients.
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

// note remembers the challenge of an answer if it is the registry's own and asks for a token, and returns it. plain
// says that the request had no token.
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
		return now // the answer to a request without a token serves for more
	}
	if s.last == nil || len(s.last) >= sessionsMax {
		s.last = map[sessionKey]challenge{}
	}
	s.last[key] = now
	return now
}

// get returns the last challenge of a repository, with a nil header if there is none of a moment before, and the answer
// to a request without a token, nil if that is unknown.
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

// offersToken reports whether one of the challenges of a refusal is for a token (RFC 6750 §3).
func offersToken(challenges []string) bool {
	return slices.ContainsFunc(challenges, func(c string) bool {
		scheme, _, _ := strings.Cut(strings.TrimSpace(c), " ")
		return strings.EqualFold(scheme, "Bearer") || strings.Contains(strings.ToLower(c), "bearer ")
	})
}

// errDenied reports that anybody's token allows no pull, by its own word.
var errDenied = errors.New("the token service gives anybody a token without the right to pull")

// ask sends one request of Do to one of an upstream's URLs. key is that of the login that goes with a request without
// an Authorization. plainly is the value of [source.HeaderPlain] for the response, empty for one to a token.
//
// A request for what anybody may read goes out without a token first if the node has none, and with one if the registry
// refuses it: its challenge spares the login's ping, and the client gets the challenge if anybody is refused. A
// challenge from a moment before spares that request.
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

// askWithLogin sends a request with the node's credentials or with anybody's token. refused says that the registry has
// refused it without a token: it is not sent again if there is none.
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

// declined reports whether a login failed because the token service answered that it gives no token, or there is none.
func declined(err error) bool {
	err = refused(err) // a session may have asked for another token
	var status *source.StatusError
	if errors.As(err, &status) {
		return status.Status < 500 && status.Status != http.StatusRequestTimeout &&
			status.Status != http.StatusTooManyRequests
	}
	return errors.Is(err, errDenied) || errors.Is(err, errNoToken) || errors.Is(err, errEmpty)
}

// errNoToken reports that a registry has no token service, so that a request with a login is the same as one without.
var errNoToken = errors.New("the registry asks for no token")

// keepRefusal reads a refusal's body, which would hold the connection while the token service is asked.
func keepRefusal(res *http.Response) {
	body, _ := io.ReadAll(io.LimitReader(res.Body, api.FailureMax))
	res.Body.Close()
	res.Body = io.NopCloser(bytes.NewReader(body))
}

// worthToken reports whether a registry may give with a token what it refused to a request without one. Some refuse
// without a challenge, and have one only for a ping.
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

// pinged is the answer to a login's ping, which a challenge for the same repository spares.
func (c *control) pinged(ping *http.Request) *http.Response {
	return &http.Response{StatusCode: http.StatusUnauthorized, Status: "401 Unauthorized", Request: ping,
		Header: http.Header{"Www-Authenticate": slices.Clone(c.known)}, Body: http.NoBody}
}

// refusesPull reports whether a token service's answer holds a token that allows no pull of a repository, by the
// token's own word (distribution's "access" claim). A token that says nothing of it may allow one.
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
