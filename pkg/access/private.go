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
	// plain is for the refusal of requests without any token; else that with anybody's.
	plain bool
}

// refusalLife is how long the mirror repeats that a repository refuses to be read by anybody, to clients that take up
// the challenge. Some ask for each blob without credentials first, and anybody's token costs several requests.
const refusalLife = 10 * time.Second

// challengeMax bounds the remembered challenge of a refusal, in bytes.
const challengeMax = 4 << 10

// refusedAll is a refusal to anybody.
type refusedAll struct {
	at time.Time
	// challenge holds the WWW-Authenticate headers of a 401; nil for another refusal.
	challenge []string
}

// private remembers when repositories last refused to be read by anybody, or without a token. It saves requests and
// decides no right.
type private struct {
	// mu is held to look up and change.
	mu      sync.Mutex
	refused *simplelru.LRU[repositoryKey, refusedAll]
}

func newPrivate() *private {
	return &private{refused: newLRU[repositoryKey, refusedAll](privateMax, nil)}
}

// since returns the last refusal of a repository, and whether it was after a time.
func (p *private) since(k repositoryKey, after time.Time) (refusedAll, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, ok := p.refused.Get(k)
	return last, ok && last.at.After(after)
}

func (p *private) put(k repositoryKey, last refusedAll) {
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

// noteForAnybody remembers what the reply to a lookup without credentials says of all such lookups in its repository.
// Without anybody's token it says so only of a registry that asks for passwords, which gives none. at was read before
// the lookup, like k.
func (r *Resolver) noteForAnybody(l Lookup, k repositoryKey, err error) {
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
		r.private.put(plain, refusedAll{time.Now(), challenge})
	}
	passwords := len(challenge) > 0 && !slices.ContainsFunc(challenge, func(c string) bool {
		scheme, _, _ := strings.Cut(c, " ")
		return !strings.EqualFold(scheme, "Basic") || strings.Contains(strings.ToLower(c), "bearer ")
	})
	switch {
	case !l.Anonymous && !passwords:
	case refused.Status == http.StatusUnauthorized && short:
		r.private.put(k, refusedAll{time.Now(), challenge})
	case refused.Status == http.StatusUnauthorized, refused.Status == http.StatusForbidden:
		r.private.put(k, refusedAll{at: time.Now()})
	}
	all := (l.Anonymous || passwords) &&
		(refused.Status == http.StatusUnauthorized || refused.Status == http.StatusForbidden)
	r.noteRefusal(l, refused.Status, all)
}

// challengesOf are the challenges of a registry's refusal; none of another error.
func challengesOf(err error) []string {
	var refused *RefusedError
	if !errors.As(err, &refused) {
		return nil
	}
	return refused.Header.Values("WWW-Authenticate")
}

// refusedToAnybody repeats the refusal of a repository to a client without credentials that takes up its challenge:
// that of requests with anybody's token, or of those without any token, as this lookup would be.
func (r *Resolver) refusedToAnybody(l Lookup) error {
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
