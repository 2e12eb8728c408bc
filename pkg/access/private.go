package access

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// privateMax bounds the repositories that are remembered as private; a forgotten one costs one request.
const privateMax = 4096

type repositoryKey struct {
	upstream, repository string
	// generation is as in lookupKey.
	generation uint64
	// plain says that the requests have no token at all; else they have the anonymous token.
	plain bool
}

// refusalLife is how long the mirror repeats a repository's refusal of anonymous access to clients that answer the
// challenge. Some of them request each blob without credentials first, and an anonymous token costs several requests.
const refusalLife = 10 * time.Second

// challengeMax bounds the remembered challenge of a refusal, in bytes.
const challengeMax = 4 << 10

// anonymousRefusal is a repository's refusal of anonymous access.
type anonymousRefusal struct {
	at time.Time
	// challenge holds the WWW-Authenticate headers of a 401; nil for another refusal.
	challenge []string
}

// private remembers when repositories last refused anonymous access, or access without a token. It saves requests; it
// never decides what a client may read.
type private struct {
	// mu is held to look up and change.
	mu      sync.Mutex
	refused *simplelru.LRU[repositoryKey, anonymousRefusal]
}

func newPrivate() *private {
	return &private{refused: newLRU[repositoryKey, anonymousRefusal](privateMax, nil)}
}

// since returns the last refusal of a repository, and whether it was after a time.
func (p *private) since(k repositoryKey, after time.Time) (anonymousRefusal, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, ok := p.refused.Get(k)
	return last, ok && last.at.After(after)
}

func (p *private) put(k repositoryKey, last anonymousRefusal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused.Add(k, last)
}

func (p *private) drop(k repositoryKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused.Remove(k)
}

func (p *private) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused.Purge()
}

func (r *Resolver) repositoryKey(l Lookup) repositoryKey {
	return repositoryKey{l.Upstream, l.Repository, r.generation.Load(), false}
}

// noteAnonymous remembers what the reply to a lookup without credentials says of all such lookups in its repository. A
// lookup without the anonymous token says it only of a registry that asks for passwords, because such a registry gives
// no tokens. k was read before the lookup.
func (r *Resolver) noteAnonymous(l Lookup, k repositoryKey, err error) {
	if !l.Authorization.IsZero() || r.usesOwnCredentials(l.Upstream) {
		return
	}
	plain := k
	plain.plain = true
	var refused *RefusedError
	switch {
	case err == nil:
		r.private.drop(k)
		r.private.drop(plain) // the grant is for requests without any token, too
		return
	case !errors.As(err, &refused), refused.untried:
		return
	}
	challenge := challengesOf(err)
	short := len(strings.Join(challenge, "")) <= challengeMax
	if !l.Anonymous && refused.Status == http.StatusUnauthorized && len(challenge) > 0 && short {
		r.private.put(plain, anonymousRefusal{time.Now(), challenge})
	}
	passwords := len(challenge) > 0 && !slices.ContainsFunc(challenge, func(c string) bool {
		scheme, _, _ := strings.Cut(c, " ")
		return !strings.EqualFold(scheme, "Basic") || strings.Contains(strings.ToLower(c), "bearer ")
	})
	switch {
	case !l.Anonymous && !passwords:
	case refused.Status == http.StatusUnauthorized && short:
		r.private.put(k, anonymousRefusal{time.Now(), challenge})
	case refused.Status == http.StatusUnauthorized, refused.Status == http.StatusForbidden:
		r.private.put(k, anonymousRefusal{at: time.Now()})
	}
	all := (l.Anonymous || passwords) &&
		(refused.Status == http.StatusUnauthorized || refused.Status == http.StatusForbidden)
	r.noteRefusal(l, refused.Status, all)
}

// challengesOf returns the challenges of a registry's refusal, nil for another error.
func challengesOf(err error) []string {
	var refused *RefusedError
	if !errors.As(err, &refused) {
		return nil
	}
	return refused.Header.Values("WWW-Authenticate")
}

// refusesAnonymous repeats a repository's last refusal of anonymous access to a client without credentials that answers
// the challenge; nil if there was none a moment before. Requests with the anonymous token and requests without any
// token have separate refusals; Anonymous of the lookup says which one applies.
func (r *Resolver) refusesAnonymous(l Lookup) error {
	if l.Unchallenged || !l.Authorization.IsZero() || r.usesOwnCredentials(l.Upstream) {
		return nil
	}
	k := r.repositoryKey(l)
	k.plain = !l.Anonymous
	last, ok := r.private.since(k, time.Now().Add(-refusalLife))
	if !ok || len(last.challenge) == 0 {
		return nil
	}
	return &RefusedError{Upstream: l.Upstream, Path: l.Path(), Status: http.StatusUnauthorized,
		Header: http.Header{"Www-Authenticate": slices.Clone(last.challenge)}}
}
