// Package access answers two questions about a registry: may this credential read this digest of
// this repository, and which digest does this tag mean.
//
// While the registry answers, a [Resolver] grants only what the registry has granted to the same credential for the
// same repository. A grant that it remembers ends with the credential, or after some time. While the registry does not
// answer, settings decide which earlier answers count, also those to others; see recall.go. Hosts share what is the
// same for all of them through an [Owner]. Start at [Resolver.Resolve].
package access

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// Registry sends requests to registries. Safe for concurrent use.
type Registry interface {
	// Do sends one request with the client's own credentials. Any reply of the registry is a response, an error status
	// too; the caller closes its body. An error means that there was no reply, and says what was tried. The body is
	// identity-encoded, and no other host sees the credentials. Do follows redirects, because a redirect permits nothing:
	// some registries redirect every request. If a HEAD is redirected to a storage that signs its URLs for GET only, Do
	// returns status 405.
	Do(ctx context.Context, req source.RegistryRequest) (*http.Response, error)
}

// Config says what a Resolver works with. Registry is required.
type Config struct {
	Registry Registry
	// AskOwner sends a lookup to its owner in the cluster: the meaning of a tag, and what anonymous clients may read. An
	// error means that no owner replied in time; the Resolver then asks the registry itself. Nil asks the registry at
	// once.
	AskOwner func(ctx context.Context, l api.Lookup) (api.LookupReply, error)
	// Credentialed reports whether this host sends credentials of its own to a registry when a client
	// brings none. The registry's replies to them are not shared. Nil: it never does.
	Credentialed func(upstream string) bool
	// Trusted reports whether the operator listed a registry: then its manifests grant what they
	// name, and it need not prove that it has a blob. Nil trusts every registry.
	Trusted func(upstream string) bool
	// FirstByte is how long a registry may take to begin an answer. A registry that answers nothing for so long
	// counts as silent. Nil, or 0: 10 min.
	FirstByte func(upstream string) time.Duration
	// Policy is how long replies stay valid; see [Resolver.SetPolicy].
	Policy Policy
	// Cluster reports whether the operator gives local clients, with any credentials, what the cluster holds of a registry
	// while the registry does not answer. Nil: of no registry.
	Cluster func(upstream string) bool
	// Memory keeps what registries answered to this host last. Nil: an empty one.
	Memory *Memory
	// Recall asks the owners what they remember of a lookup with LastKnown, and returns their replies. Nil: it asks no
	// owner.
	Recall func(ctx context.Context, l api.Lookup) []api.LookupReply
}

// Policy is how long a registry's reply stays valid.
type Policy struct {
	// GrantLife is the longest life of a grant. A token that ends earlier ends its grants, and without a token that states
	// its end a grant lives a minute at most. A longer life spares HEADs; a shorter one notices sooner that the registry
	// withdrew a permission. Default 1 h.
	GrantLife time.Duration
	// ServeCached lets a grant stay valid while the registry is unreachable, until the token ends. Without it such clients
	// are refused, because the registry may have withdrawn the permission.
	ServeCached bool
	// TagLife is how long a resolved tag stays valid. A longer life spares requests to the registry; a
	// shorter one notices sooner that a tag has moved. 0 asks the registry each time.
	TagLife time.Duration
	// TagStale is how old a resolved tag may be while the registry is unreachable; 0 serves none that
	// is older than TagLife.
	TagStale time.Duration
	// PublicLife is how long, while a registry is unreachable, all clients may read what anonymous clients could read
	// there, and its tags keep their meaning. The time counts from the registry's last answer that says so; 0: not at all.
	// A longer time survives a longer outage, and serves longer what was made private just before it.
	PublicLife time.Duration
	// ClusterTagLife is the same for tags of registries of [Config].Cluster, public or private.
	ClusterTagLife time.Duration
}

// Lookup names a manifest or blob and the credential that wants to read it.
type Lookup struct {
	// Upstream is the registry in the spelling of [oci.ParseHost].
	Upstream, Repository string
	// Kind is task.Manifest or task.Blob.
	Kind task.Kind
	// Reference is a tag or a digest; ID is the digest's task, empty for a tag.
	Reference string
	ID        task.ID
	Accept    []string
	// Authorization is the client's own header, empty when it brings none.
	Authorization secret.String
	// Anonymous asks with the registry's anonymous token, if Authorization is empty.
	Anonymous bool
	// Agent is the client's User-Agent. Lookups that differ only in it are the same lookup, and share a reply.
	Agent string
	// Unchallenged says that the client does not answer the challenge of a refusal, so that a remembered challenge is of
	// no use to it.
	Unchallenged bool
}

// Path is the lookup's path in the distribution API.
func (l Lookup) Path() string {
	kind := "/blobs/"
	if l.Kind == task.Manifest {
		kind = "/manifests/"
	}
	return "/v2/" + l.Repository + kind + l.Reference
}

// At is the lookup of a digest with the same credential.
func (l Lookup) At(id task.ID) Lookup {
	l.Reference, l.ID = string(id), id
	return l
}

// lookupKey separates lookups that may get different replies.
type lookupKey struct {
	subject   subject
	kind      task.Kind
	reference string
	accept    [sha256.Size]byte
	anonymous bool
	// generation separates lookups from before a Forget from those after it.
	generation uint64
}

func (r *Resolver) key(l Lookup) lookupKey {
	return lookupKey{l.subject(), l.Kind, l.Reference, hashAccept(l), l.Anonymous, r.generation.Load()}
}

// hashAccept keeps keys short: a client chooses its Accept, and may send a long one. The order of its media ranges
// means nothing (RFC 9110 §12.5.1), nor do the case of a type and the spaces around it; dockerd sends a random order.
func hashAccept(l Lookup) [sha256.Size]byte {
	ranges := strings.Split(strings.Join(l.Accept, ","), ",")
	for i, r := range ranges {
		parts := strings.Split(r, ";")
		for j := range parts {
			parts[j] = strings.TrimSpace(parts[j])
		}
		parts[0] = strings.ToLower(parts[0])
		ranges[i] = strings.Join(parts, ";")
	}
	slices.Sort(ranges)
	ranges = slices.Compact(ranges)
	if len(ranges) > 0 && ranges[0] == "" {
		ranges = ranges[1:] // an empty list element means nothing (RFC 9110 §5.6.1)
	}
	return sha256.Sum256([]byte(strings.Join(ranges, ",")))
}

// Result is what a lookup found.
type Result struct {
	Grant
	// Unverified is why the grant counts although the registry was unreachable; empty: it answered.
	Unverified Basis
	// Stale is the age of the tag's meaning, when the registry was unreachable and an expired one was
	// used; else 0.
	Stale time.Duration
}

// RefusedError is a registry's error reply to a lookup.
type RefusedError struct {
	Upstream, Path string
	Status         int
	// Header holds WWW-Authenticate, Retry-After and the body's Content-Type.
	Header http.Header
	// Body is cut at [api.FailureMax].
	Body []byte
	// untried says that the token service did not answer, so that this does not refuse anonymous access.
	untried bool
}

// Error names the registry, its status and the path.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s answered %d %s to %s", e.Upstream, e.Status, http.StatusText(e.Status), e.Path)
}

// UnreachableError reports that a registry gave no usable reply. It unwraps to the attempt's error.
type UnreachableError struct{ Err error }

func (e *UnreachableError) Error() string { return e.Err.Error() }

// Unwrap returns the attempt's error.
func (e *UnreachableError) Unwrap() error { return e.Err }

// HugeError reports a manifest that hosts do not share ([oci.ManifestMax]) and whose digest its registry does not name,
// so that no grant of it can be remembered. The registry said that the credential may read it.
type HugeError struct {
	Upstream, Path string
	Length         int64 // in bytes
}

func (e *HugeError) Error() string {
	return fmt.Sprintf("%s of %s has %d bytes, more than the %d of a manifest that hosts share", e.Path, e.Upstream,
		e.Length, oci.ManifestMax)
}

// TagError reports that a tag was resolved, but the credential may not read the digest. It unwraps to the reason. The
// client must not learn the digest.
type TagError struct {
	Tag string
	ID  task.ID
	Err error
}

func (e *TagError) Error() string { return e.Err.Error() }

// Unwrap returns the reason.
func (e *TagError) Unwrap() error { return e.Err }

// statusOf is the status of a registry's error reply, 0 for any other error.
func statusOf(err error) int {
	var refused *RefusedError
	if errors.As(err, &refused) {
		return refused.Status
	}
	return 0
}

// Unreachable reports whether a lookup failed because the registry did not reply, or only a gateway in front of it did.
func Unreachable(err error) bool {
	switch statusOf(err) {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	var e *UnreachableError
	return errors.As(err, &e)
}

// Resolver asks registries on behalf of clients, sends equal lookups once, and remembers the replies.
// Safe for concurrent use. [Resolver.Run] or [Resolver.Close] ends its goroutines.
type Resolver struct {
	cfg Config
	// bare never uses this host's own credentials.
	bare   bool
	policy atomic.Pointer[Policy]

	grants  *grants
	tags    *tags
	private *private
	owned   *owned
	breaker breaker
	silence silence
	// others keeps what other hosts remember; this host passes it on to none.
	others *Memory
	// gone has one breaker per repository: a client may choose a repository for which alone the registry is slow.
	gone  breaker
	pulse pulse
	// generation counts the calls of Forget: a reply to a lookup from before is not remembered.
	generation atomic.Uint64

	work      *workers
	asking    group[lookupKey, Grant]
	resolving group[tagCall, tagReply]
	// resolvingOwn holds lookups of tags that no other credential shares.
	resolvingOwn group[lookupKey, tagReply]
}

// New returns a Resolver. It starts goroutines only during lookups.
func New(cfg Config) *Resolver {
	if cfg.Credentialed == nil {
		cfg.Credentialed = func(string) bool { return false }
	}
	if cfg.Trusted == nil {
		cfg.Trusted = func(string) bool { return true }
	}
	if cfg.Cluster == nil {
		cfg.Cluster = func(string) bool { return false }
	}
	if cfg.Memory == nil {
		cfg.Memory = NewMemory()
	}
	r := &Resolver{cfg: cfg, work: newWorkers(), grants: newGrants(), tags: newTags(), private: newPrivate(),
		owned: newOwned(), others: NewMemory()}
	r.SetPolicy(cfg.Policy)
	return r
}

// Run keeps the Resolver open until ctx ends, then closes it. It returns nil.
func (r *Resolver) Run(ctx context.Context) error {
	<-ctx.Done()
	r.Close()
	return nil
}

// Close cancels the lookups under way and waits for all goroutines. Lookups after it fail with
// [ErrClosed].
func (r *Resolver) Close() { r.work.close() }

// SetPolicy changes how long replies stay valid from now on.
func (r *Resolver) SetPolicy(p Policy) {
	if p.GrantLife <= 0 {
		p.GrantLife = time.Hour
	}
	r.policy.Store(&p)
}

// ServesCached reports whether an expired grant is valid while its registry is unreachable.
func (r *Resolver) ServesCached() bool { return r.policy.Load().ServeCached }

// Forget drops all grants and tags, for instance when a reload changes how registries are asked. It keeps the last
// replies of registries for the time when they do not answer; see [Resolver.Purge].
func (r *Resolver) Forget() {
	r.generation.Add(1)
	r.grants.clear()
	r.tags.clear()
	r.private.clear()
	r.owned.clear()
}

// Resolve returns the client's grant for a digest, or for the digest that a tag means. It waits for
// the registry until ctx ends; the error is then the cause of that. Other errors are a
// *[RefusedError], an *[UnreachableError] (perhaps around a *[SilentError]), and for tags a *[HugeError] or a
// *[TagError] around one of the others.
func (r *Resolver) Resolve(ctx context.Context, l Lookup) (Result, error) {
	var remembered Grant
	var valid, known bool
	if l.ID != "" {
		remembered, valid, known = r.grants.get(l.subject(), object{l.Kind, l.ID}, time.Now())
	}
	if valid {
		return Result{Grant: remembered}, nil
	}
	if err := r.refusesAnonymous(l); err != nil && !Unreachable(r.orGone(ctx, l, err)) {
		return Result{}, err
	}
	if l.ID == "" {
		return r.resolveTag(ctx, l)
	}
	ask := func(ctx context.Context) (Result, error) {
		g, err := r.askDigest(ctx, l)
		return Result{Grant: g}, r.orGone(ctx, l, err)
	}
	if !known || !r.policy.Load().ServeCached {
		out, _, err := askOrRecall(ctx, r, l, ask, func(ctx context.Context) (Result, bool) {
			return r.recallDigest(ctx, l)
		})
		return out, err
	}
	out, err := askBriefly(ctx, &r.breaker, l.Upstream, ask)
	if Unreachable(err) {
		return Result{Grant: remembered, Unverified: Remembered}, nil
	}
	return out, err
}

// AnonymousGrant returns the remembered grant of anonymous clients for a digest. There is none if this host sends its
// own credentials for such clients.
func (r *Resolver) AnonymousGrant(l Lookup) (Grant, bool) {
	if l.ID == "" || r.usesOwnCredentials(l.Upstream) {
		return Grant{}, false
	}
	l.Authorization = ""
	g, valid, _ := r.grants.get(l.subject(), object{l.Kind, l.ID}, time.Now())
	return g, valid
}

// askDigest asks for a grant, once for all clients that send the same lookup at the same time. The owner asks for what
// anonymous clients may read; this host asks for what one credential may read.
func (r *Resolver) askDigest(ctx context.Context, l Lookup) (Grant, error) {
	return r.asking.do(ctx, r.work, r.key(l), func(ctx context.Context) (g Grant, err error) {
		repository := r.repositoryKey(l)
		defer func() { r.noteAnonymous(l, repository, err) }()
		if l.Authorization.IsZero() {
			if got, ok, err := r.askOwner(ctx, l, 0); ok {
				return got.Grant, err
			}
		}
		got, err := r.askRegistry(ctx, l, reply{})
		return got.Grant, err
	})
}

// askBriefly asks a registry if there is a fallback for its reply: it waits only a moment, and a silent registry counts
// as unreachable.
func askBriefly[V any](ctx context.Context, b *breaker, upstream string,
	ask func(context.Context) (V, error)) (v V, err error) {
	if b.isOpen(upstream, time.Now()) {
		return v, &UnreachableError{errSilent}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, silentAfter, errSilent)
	defer cancel()
	v, err = ask(ctx)
	if errors.Is(err, errSilent) {
		b.trip(upstream, time.Now())
		return v, &UnreachableError{fmt.Errorf("asking %s: no answer within %s", upstream, silentAfter)}
	}
	return v, err
}

// resolveTag finds the digest of a tag and then the client's grant for it. The registry answers both
// at once to the client whose lookup resolves the tag.
func (r *Resolver) resolveTag(ctx context.Context, l Lookup) (Result, error) {
	policy := r.policy.Load()
	known, fallback := r.tags.get(r.tagKey(l))
	age := time.Since(known.at)
	fallback = fallback && age >= policy.TagLife && age <= policy.TagStale
	ask := func(ctx context.Context) (tagReply, error) {
		tag, err := r.askTag(ctx, l, policy.TagLife)
		return tag, r.orGone(ctx, l, err)
	}
	var tag tagReply
	var recalled bool
	var err error
	if fallback {
		tag, err = askBriefly(ctx, &r.breaker, l.Upstream, ask)
	} else {
		tag, recalled, err = askOrRecall(ctx, r, l, ask, func(ctx context.Context) (tagReply, bool) {
			return r.recallTag(ctx, l)
		})
	}
	var stale time.Duration
	if recalled {
		stale = max(elapsed(time.Now(), tag.at), time.Second) // 0 would say that the registry answered
	}
	if err != nil {
		if !fallback || !Unreachable(err) {
			return Result{}, err
		}
		stale, tag.reply = time.Since(known.at), known
	}
	out, err := r.Resolve(ctx, l.At(tag.ID))
	if refusesDigest(statusOf(err)) {
		// Some registries serve no manifest by its digest, and a tag that another client resolved may have moved.
		own, again := r.askTagForOne(ctx, l)
		if again != nil {
			return Result{}, again // perhaps a challenge
		}
		tag, out, err = tagReply{reply: own}, Result{Grant: own.Grant}, nil
	}
	if err != nil {
		return Result{}, &TagError{Tag: l.Reference, ID: tag.ID, Err: err}
	}
	out.Stale = stale
	if !oci.NamesContent(out.MediaType) {
		out.MediaType = tag.MediaType
	}
	if out.Length == 0 {
		out.Length = tag.Length
	}
	return out, nil
}

// refusesDigest reports whether a registry that answers a lookup of a digest with this status may permit the tag.
func refusesDigest(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusGone,
		http.StatusInternalServerError, http.StatusNotImplemented:
		return true
	}
	return false
}

// tagReply is what a tag means, or the refusal of a lookup of it.
type tagReply struct {
	reply
	// asker is the lookup that was sent: its refusal does not bind another credential.
	asker lookupKey
}

// refusedMax is how many lookups in a row, sent with other credentials and refused by the registry, a lookup may join
// before it is sent with its own credential.
const refusedMax = 3

// tagCall is the lookup of a tag for which clients wait together.
type tagCall struct {
	tagKey
	// node says that this host's own credentials go with the lookup. A credential helper may hang, and
	// clients that bring credentials need none.
	node bool
}

// askTag returns the meaning of a tag: a remembered one of at most that age, or the registry's. Clients that ask at the
// same time share one reply, with any credentials; there are two replies if some clients bring none and this host has
// its own. A separate lookup finds out what each of them may read.
func (r *Resolver) askTag(ctx context.Context, l Lookup, age time.Duration) (tagReply, error) {
	key := r.tagKey(l)
	ask := func(ctx context.Context) (tagReply, error) {
		known, ok := r.tags.get(key)
		if ok && time.Since(known.at) < age {
			return tagReply{known, r.key(l)}, nil
		}
		asker := r.key(l)
		got, err := r.refreshTag(ctx, l, key, known, age)
		return tagReply{got, asker}, err
	}
	if known, ok := r.tags.get(key); ok && time.Since(known.at) < age {
		return tagReply{known, r.key(l)}, nil
	}
	call := tagCall{key, l.Authorization.IsZero() && r.usesOwnCredentials(l.Upstream)}
	for range refusedMax {
		got, err := r.resolving.do(ctx, r.work, call, ask)
		status := statusOf(err)
		if err == nil || got.asker == r.key(l) || status == 0 && !Unreachable(err) {
			return got, err
		}
		if status != http.StatusUnauthorized && status != http.StatusForbidden {
			break
		}
		// Another client was refused, perhaps before its login: the others share the next lookup.
	}
	return r.resolvingOwn.do(ctx, r.work, r.key(l), ask)
}

// refreshTag asks the owner for the meaning of a tag, or else the registry, and remembers it.
func (r *Resolver) refreshTag(ctx context.Context, l Lookup, key tagKey, known reply,
	age time.Duration) (reply, error) {
	repository := r.repositoryKey(l)
	got, shared, err := r.askOwner(ctx, l, age)
	if !shared {
		at := time.Now()
		got, err = r.askRegistry(ctx, l, known)
		got.at = at
	}
	if err != nil || got.subject == l.subject() { // another credential's reply says nothing of this one
		r.noteAnonymous(l, repository, err)
	}
	if err != nil {
		if statusOf(err) == http.StatusNotFound {
			r.tags.drop(key)
			r.cfg.Memory.gone(l.place(), l.Reference)
			r.others.gone(l.place(), l.Reference)
		}
		return reply{}, err
	}
	r.tags.put(key, got)
	return got, nil
}

// askTagForOne asks the registry for a tag and for the grant of this credential, whatever other clients were answered.
func (r *Resolver) askTagForOne(ctx context.Context, l Lookup) (reply, error) {
	key, at := r.tagKey(l), time.Now()
	g, err := r.asking.do(ctx, r.work, r.key(l), func(ctx context.Context) (Grant, error) {
		got, err := r.askRegistry(ctx, l, reply{})
		return got.Grant, err
	})
	if err != nil {
		return reply{}, err
	}
	out := reply{Grant: g, at: at}
	r.tags.put(key, out)
	return out, nil
}

// usesOwnCredentials reports whether a lookup without an Authorization carries this host's
// credentials: the reply is then for this host alone.
func (r *Resolver) usesOwnCredentials(upstream string) bool {
	return !r.bare && r.cfg.Credentialed(upstream)
}

// askRegistry sends a lookup to the registry and remembers the reply. known is the last meaning of a
// tag, with which the registry need not send it again.
func (r *Resolver) askRegistry(ctx context.Context, l Lookup, known reply) (reply, error) {
	generation, asked, own := r.generation.Load(), time.Now(), r.usesOwnCredentials(l.Upstream)
	number, err := r.silence.begin(l.Upstream, asked)
	if err != nil {
		return reply{}, &UnreachableError{err}
	}
	got, err := r.head(ctx, l, known)
	r.silence.end(l.Upstream, number, time.Now(), r.patience(l.Upstream))
	if err == nil {
		got.Grant = r.remember(l, got.Grant, time.Now(), generation)
		r.note(r.cfg.Memory, l, got.Grant, asked, !own) // a reload may have taken the credentials away meanwhile
		r.probePublic(ctx, l, got.ID)
		return got, nil
	}
	switch status := statusOf(err); {
	case status == http.StatusUnauthorized && (!l.Authorization.IsZero() || l.Anonymous):
		r.grants.dropSubject(l.subject())
	case l.ID != "" && (status == http.StatusForbidden || status == http.StatusNotFound):
		r.grants.drop(l.subject(), object{l.Kind, l.ID})
	}
	return reply{}, err
}

// patience is how long a registry may take to begin an answer.
func (r *Resolver) patience(upstream string) time.Duration {
	if r.cfg.FirstByte != nil {
		if d := r.cfg.FirstByte(upstream); d > 0 {
			return d
		}
	}
	return firstByteDefault
}

// remember completes a grant and keeps it, unless Forget was called since generation. at is the time
// of the registry's reply by this node's clock.
func (r *Resolver) remember(l Lookup, g Grant, at time.Time, generation uint64) Grant {
	g.subject, g.object = l.subject(), object{l.Kind, g.ID}
	if l.ID == "" {
		g.Tag = l.Reference
	}
	g.until, g.end = lifetime(l.Authorization.Reveal(), at, g.date, r.policy.Load().GrantLife)
	if r.generation.Load() == generation {
		r.grants.put(g)
	}
	return g
}

// publicTimeout bounds the lookup whether anonymous clients may read a manifest.
const publicTimeout = 10 * time.Second

// probePublic finds out, after a client was granted a manifest with a token, whether anonymous clients may read it. It
// asks only with [Policy].ServeCached: a client that comes while the registry is unreachable can get no token, and
// would be refused what is public. A repository that refuses is not asked again for a while: otherwise each new token
// of its clients would cause a lookup.
func (r *Resolver) probePublic(ctx context.Context, l Lookup, id task.ID) {
	p := r.policy.Load()
	if !p.ServeCached || l.Authorization.IsZero() || l.Kind != task.Manifest {
		return
	}
	l = l.At(id)
	l.Authorization, l.Anonymous = "", true
	if _, valid, _ := r.grants.get(l.subject(), object{l.Kind, id}, time.Now()); !valid {
		r.probe(ctx, l, p.GrantLife)
	}
}

// probe asks in the background whether anonymous clients may read a manifest, unless its repository refused anonymous
// access within quiet.
func (r *Resolver) probe(ctx context.Context, l Lookup, quiet time.Duration) {
	repository := r.repositoryKey(l)
	if _, ok := r.private.since(repository, time.Now().Add(-quiet)); ok {
		return
	}
	r.work.start(context.WithoutCancel(ctx), func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, publicTimeout)
		defer cancel()
		var caught error
		defer source.Rescue(&caught, "asking whether anonymous clients may read a manifest")
		_, err := r.askDigest(ctx, l) // a grant is remembered, and a refusal
		if statusOf(err) == http.StatusNotFound {
			r.private.put(repository, anonymousRefusal{at: time.Now()})
		}
	})
}

// Revoke drops a grant that proved wrong: the registry described another blob.
func (r *Resolver) Revoke(g Grant) { r.grants.drop(g.subject, g.object) }

// RevokeCredential drops all grants of a grant's credential in its repository, because the registry no
// longer takes the credential.
func (r *Resolver) RevokeCredential(g Grant) { r.grants.dropSubject(g.subject) }

// AdoptsManifest reports whether [Resolver.AdoptManifest] may find anything new.
func (r *Resolver) AdoptsManifest(g Grant) bool {
	return !g.adopted && r.cfg.Trusted(g.subject.upstream) && strings.HasPrefix(string(g.ID), "sha256:")
}

// AdoptManifest grants what a manifest names, its config, layers and manifests, to the credential that
// may read the manifest, in the same repository and as long as the grant of the manifest lives. That
// spares a HEAD for each. mediaType is that of the registry's reply, empty if it had none.
func (r *Resolver) AdoptManifest(g Grant, mediaType string, manifest []byte) {
	if !r.AdoptsManifest(g) || oci.DigestOf(manifest) != g.ID {
		return
	}
	var named []Grant
	for _, ref := range oci.References(mediaType, manifest) {
		n := Grant{ID: ref.ID, Length: ref.Size, Declared: true, object: object{task.Blob, ref.ID}}
		if ref.Manifest {
			n.MediaType, n.object.kind = ref.MediaType, task.Manifest
		}
		named = append(named, n)
	}
	r.grants.adopt(g, named)
	at := place{g.subject.upstream, g.subject.repository}
	r.cfg.Memory.adopt(at, g.ID, named)
	r.others.adopt(at, g.ID, named)
}
