package access

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// quietAfter is how long a registry may take before the resolver uses what is remembered of it instead. A registry
	// that answers other requests meanwhile is slow and not unreachable.
	quietAfter = 10 * time.Second
	// recallTimeout bounds the requests to owners for what they remember.
	recallTimeout = 12 * time.Second
	// agesMax bounds the ages that an owner may state.
	agesMax = 366 * 24 * time.Hour
)

// Basis is the reason why a result is valid although its registry did not answer; empty: it answered.
type Basis string

// The bases.
const (
	// Remembered is an earlier grant of the same credential ([Policy].ServeCached).
	Remembered Basis = "earlier grant"
	// Public means that anonymous clients could read it ([Policy].PublicLife).
	Public Basis = "public before"
	// Cluster means that the registry had it, and the operator gives local clients what the cluster holds
	// ([Config].Cluster).
	Cluster Basis = "access: cluster"
)

// keeps reports whether earlier answers of a registry may serve clients without a grant while the registry does not
// answer.
func (r *Resolver) keeps(upstream string) bool {
	return !r.bare && r.cfg.Trusted(upstream) && (r.policy.Load().PublicLife > 0 || r.cfg.Cluster(upstream))
}

// AnswersPings reports whether the mirror answers a ping of an unreachable registry as if the registry asked for no
// login. Clients then ask for what anonymous clients could read, or for what the cluster holds. Most registries become
// unreachable together with their token service, so that a challenge would end the pull.
func (r *Resolver) AnswersPings(upstream string) bool {
	return r.keeps(upstream) && (r.cfg.Cluster(upstream) || !r.ServesCached())
}

// basis returns why a digest may be read although its registry does not answer; empty: it may not.
func (r *Resolver) basis(upstream string, x sight, now time.Time) Basis {
	life := r.policy.Load().PublicLife
	switch {
	case !x.public.IsZero() && life > 0 && elapsed(now, x.public) <= life:
		return Public
	case !x.held.IsZero() && r.cfg.Cluster(upstream):
		return Cluster
	}
	return ""
}

// recallDigest returns a grant for a digest that this host or an owner remembers.
func (r *Resolver) recallDigest(ctx context.Context, l Lookup) (Result, bool) {
	if out, ok := r.recalled(l); ok {
		return out, true
	}
	r.askMemories(ctx, l)
	return r.recalled(l)
}

// recalled is recallDigest without the owners. The grant states no length: the registry may have stated a wrong one,
// and cannot show the blob now.
func (r *Resolver) recalled(l Lookup) (Result, bool) {
	o, now := object{l.Kind, l.ID}, time.Now()
	refused := later(r.cfg.Memory.refusedAt(l.place(), o), r.others.refusedAt(l.place(), o))
	for _, m := range []*Memory{r.cfg.Memory, r.others} {
		x, ok := m.get(l.place(), o)
		if x.public.Before(refused) {
			x.public = time.Time{}
		}
		if basis := r.basis(l.Upstream, x, now); ok && basis != "" {
			g := Grant{ID: l.ID, MediaType: x.mediaType, subject: l.subject(), object: o}
			return Result{Grant: g, Unverified: basis}, true
		}
	}
	return Result{}, false
}

// recallTag returns the last meaning of a tag that this host or an owner remembers. It grants nothing.
func (r *Resolver) recallTag(ctx context.Context, l Lookup) (tagReply, bool) {
	limit := r.policy.Load().PublicLife
	if r.cfg.Cluster(l.Upstream) {
		limit = max(limit, r.policy.Load().ClusterTagLife)
	}
	r.askMemories(ctx, l)
	last, ok := r.cfg.Memory.meant(l)
	if other, has := r.others.meant(l); has && (!ok || other.at.After(last.at)) {
		last, ok = other, true
	}
	if !ok || elapsed(time.Now(), last.at) > limit {
		return tagReply{}, false
	}
	return tagReply{reply: reply{Grant: Grant{ID: last.id, MediaType: last.mediaType}, at: last.at}}, true
}

// askMemories asks the owners what they remember of a tag or digest, and keeps it apart from what registries answered
// to this host. It sends no credentials.
func (r *Resolver) askMemories(ctx context.Context, l Lookup) {
	if r.cfg.Recall == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, recallTimeout)
	defer cancel()
	replies := r.cfg.Recall(ctx, api.Lookup{
		Version: api.Version, Upstream: l.Upstream, Repository: l.Repository, Kind: l.Kind, Reference: l.Reference,
		Accept: l.Accept, LastKnown: true, Doubts: true,
	})
	now := time.Now()
	since := func(millis int64) time.Time {
		return now.Add(-min(time.Duration(min(millis, agesMax.Milliseconds()))*time.Millisecond, agesMax))
	}
	for _, a := range replies {
		id, err := oci.ParseDigest(string(a.Digest))
		if err != nil || !a.LastKnown || l.ID != "" && id != l.ID {
			continue
		}
		x := sight{mediaType: bounded(a.MediaType), held: since(a.AgeMillis)}
		if a.Public {
			x.public = since(a.PublicAgeMillis)
		}
		r.others.saw(l.place(), object{l.Kind, id}, x)
		if l.ID == "" {
			r.others.resolved(l.place(), l.Reference, meaning{hashAccept(l), id, x.mediaType, x.held})
		}
	}
}

// remembers is an owner's reply to a lookup of what it remembers. It asks no registry.
func (r *Resolver) remembers(l Lookup) api.LookupReply {
	now := time.Now()
	out := api.LookupReply{Version: api.Version, LastKnown: true, Digest: l.ID}
	var asked meaning
	if l.ID == "" {
		var ok bool
		if asked, ok = r.cfg.Memory.meant(l); !ok {
			return api.LookupReply{Version: api.Version, Unreached: "nothing is remembered of that tag"}
		}
		out.Digest, out.MediaType = asked.id, asked.mediaType
	}
	x, ok := r.cfg.Memory.get(l.place(), object{l.Kind, out.Digest})
	switch {
	case l.ID == "":
		x.held = asked.at
	case !ok || x.held.IsZero():
		return api.LookupReply{Version: api.Version, Unreached: "nothing is remembered of that digest"}
	default:
		out.MediaType = x.mediaType
	}
	out.AgeMillis = elapsed(now, x.held).Milliseconds()
	if !x.public.IsZero() {
		out.Public, out.PublicAgeMillis = true, elapsed(now, x.public).Milliseconds()
	}
	return out
}

// note remembers that a registry granted a lookup. at is when the lookup was sent. anonymous says that a lookup without
// credentials was answered as one of an anonymous client.
func (r *Resolver) note(m *Memory, l Lookup, g Grant, at time.Time, anonymous bool) {
	if g.Doubted {
		return
	}
	x := sight{mediaType: g.MediaType, held: at}
	if anonymous && l.Authorization.IsZero() && !r.usesOwnCredentials(l.Upstream) {
		x.public = at
	}
	m.saw(l.place(), object{l.Kind, g.ID}, x)
	if l.ID == "" {
		m.resolved(l.place(), l.Reference, meaning{hashAccept(l), g.ID, g.MediaType, at})
	}
}

// noteRefusal forgets that anonymous clients could read a digest, because a registry has refused it to one. all says
// that the refusal concerns the whole repository.
func (r *Resolver) noteRefusal(l Lookup, status int, all bool) {
	for _, m := range []*Memory{r.cfg.Memory, r.others} {
		switch {
		case all:
			m.refusedAll(l.place())
		case l.ID != "" && (status == http.StatusForbidden || status == http.StatusNotFound):
			m.refused(l.place(), object{l.Kind, l.ID})
		}
	}
}

// Purge forgets a digest, all grants and all tags.
func (r *Resolver) Purge(id task.ID) {
	r.Forget()
	r.cfg.Memory.Drop(id)
	r.others.Drop(id)
}

// askOrRecall asks a registry, and returns what is remembered if the registry does not answer. If nothing is
// remembered, it waits for a slow registry.
func askOrRecall[V any](ctx context.Context, r *Resolver, l Lookup, ask func(context.Context) (V, error),
	recall func(context.Context) (V, bool)) (v V, recalled bool, err error) {
	upstream := l.Upstream
	// A client chooses the repository, and a registry may be slow for that one alone.
	key := upstream + "/" + l.Repository
	if !r.keeps(upstream) {
		v, err = ask(ctx)
		return v, false, err
	}
	if r.gone.isOpen(key, time.Now()) {
		if v, ok := recall(ctx); ok {
			return v, true, nil
		}
	}
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		v   V
		err error
	}
	answered := make(chan answer, 1)
	began := time.Now()
	if !r.work.start(asking, func(ctx context.Context) {
		var a answer
		defer func() { answered <- a }()
		defer source.Rescue(&a.err, "asking a registry or an owner")
		a.v, a.err = ask(ctx)
	}) {
		return v, false, ErrClosed
	}
	patience := quietAfter
	if r.cfg.Cluster(upstream) {
		patience = silentAfter
	}
	for timer := time.NewTimer(patience); ; {
		select {
		case a := <-answered:
			timer.Stop()
			if Unreachable(a.err) && l.long() {
				return a.v, false, &UnreachableError{fmt.Errorf("%w; the registry may be reachable: the client's headers "+
					"are too long for some servers", a.err)}
			}
			if Unreachable(a.err) && !declined(a.err) && ctx.Err() == nil {
				if v, ok := recall(ctx); ok {
					if time.Since(began) >= silentAfter {
						r.gone.trip(key, time.Now())
					}
					return v, true, nil
				}
				a.err = r.unknown(upstream, a.err)
			}
			return a.v, false, a.err
		case <-timer.C:
			if last := r.pulse.last(upstream); last.After(began) {
				began = last
				timer.Reset(patience)
				continue
			}
			if v, ok := recall(ctx); ok {
				select {
				case a := <-answered: // meanwhile
					if !Unreachable(a.err) {
						return a.v, false, a.err
					}
				default:
				}
				r.gone.trip(key, time.Now())
				return v, true, nil
			}
		}
	}
}

// longMax is the length of a client's headers, in bytes, above which they may be the cause of a failed request: servers
// bound them by 8 KiB or more, and some end the connection without an answer. Tokens of well-known registries have 4
// KiB at most.
const longMax = 8 << 10

// long reports whether the client's own headers may be the cause of a failed request.
func (l Lookup) long() bool {
	n := len(l.Authorization.Reveal())
	for _, a := range l.Accept {
		n += len(a)
	}
	return n > longMax
}

// declined reports whether an error is the refusal of a login. The registry or its token service has then answered.
func declined(err error) bool {
	var status *source.StatusError
	return errors.As(err, &status) && (status.Status == http.StatusUnauthorized || status.Status == http.StatusForbidden)
}

// unknown adds to the error of an unreachable registry why the mirror cannot answer in its place.
func (r *Resolver) unknown(upstream string, err error) error {
	if statusOf(err) != 0 {
		return err // in the registry's words
	}
	why := "no host remembers that the registry allowed anonymous access to this; access: verify in upstreams requires it"
	if r.cfg.Cluster(upstream) {
		why = "access: cluster needs a host that remembers that it had this, a tag within mirror.clusterTags"
	}
	return &UnreachableError{fmt.Errorf("%w; while it is unreachable: %s", err, why)}
}

// pulse remembers when registries last answered. The zero value is ready.
type pulse struct {
	// mu is held to look up and change.
	mu sync.Mutex
	at map[string]time.Time
}

func (p *pulse) beat(upstream string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at == nil || len(p.at) >= registriesMax {
		p.at = map[string]time.Time{}
	}
	p.at[upstream] = now
}

func (p *pulse) last(upstream string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at[upstream]
}

// orGone turns a challenge for a token into an error of an unreachable registry, if the token service does not answer
// and the operator gives clients what the cluster holds.
func (r *Resolver) orGone(ctx context.Context, l Lookup, err error) error {
	if statusOf(err) != http.StatusUnauthorized || r.bare || !r.cfg.Trusted(l.Upstream) || !r.cfg.Cluster(l.Upstream) {
		return err
	}
	if !asksForToken(err) {
		return err
	}
	q := r.request(l, http.MethodHead, "", "")
	q.Anonymous = true
	q.Header.Del("Authorization")
	q.Header.Del("Accept") // a client chooses it, and must not cause an outage by it
	// A client also chooses the repository: a missing token for one repository does not concern the others.
	key := "tokens of " + l.Upstream + "/" + l.Repository
	if !r.gone.isOpen(key, time.Now()) {
		asking, cancel := context.WithTimeout(ctx, silentAfter)
		defer cancel()
		res, failed := r.cfg.Registry.Do(asking, q)
		if failed == nil {
			res.Body.Close()
			if res.Header.Get(source.HeaderPlain) != source.PlainUntried {
				return err
			}
		}
		if declined(failed) || ctx.Err() != nil {
			return err // the client has left, so the error does not concern the token service
		}
		r.gone.trip(key, time.Now())
	}
	return &UnreachableError{err}
}

// asksForToken reports whether a refusal is a challenge for a token.
func asksForToken(err error) bool {
	return slices.ContainsFunc(challengesOf(err), func(c string) bool {
		scheme, _, _ := strings.Cut(c, " ")
		return strings.EqualFold(scheme, "Bearer")
	})
}
