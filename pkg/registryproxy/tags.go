package registryproxy

import (
	"container/list"
	"context"
	"crypto/sha256"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/oci"
)

// tagsMax bounds the tags that are remembered; a forgotten one costs one HEAD.
const tagsMax = 4096

// tagKey is a tag as a client asks for it: registries answer another manifest to another
// Accept.
type tagKey struct {
	upstream, repository, tag string
	// accept is a hash: it is the client's, and may be long.
	accept [sha256.Size]byte
	// forgotten is the desk's, as in questionKey.
	forgotten uint64
}

func (q question) tagKey(d *desk) tagKey {
	return tagKey{q.upstream, q.repository, q.reference, sha256.Sum256([]byte(strings.Join(q.accept, ","))), d.forgotten.Load()}
}

// tag is what a tag meant when the registry was asked last. It is a right, too, of the
// credential that it was asked with, and of nobody else.
type tag struct {
	right
	at time.Time
	// etag is the registry's own, to ask it whether anything has changed.
	etag string
}

// tags remembers tags.
type tags struct {
	// mu is held to look up and change, never while a registry is asked.
	mu     sync.Mutex
	known  map[tagKey]*list.Element
	recent list.List // of *namedTag, the one used last in front
}

type namedTag struct {
	tag
	key tagKey
}

// get returns the last that is known of a tag, however old.
func (t *tags) get(k tagKey) (tag, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.known[k]
	if e == nil {
		return tag{}, false
	}
	t.recent.MoveToFront(e)
	return e.Value.(*namedTag).tag, true
}

// put remembers a tag, unless something newer is known of it.
func (t *tags) put(k tagKey, x tag) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.known[k]; e != nil {
		if known := e.Value.(*namedTag); known.at.Before(x.at) {
			known.tag = x
		}
		t.recent.MoveToFront(e)
		return
	}
	if t.known == nil {
		t.known = map[tagKey]*list.Element{}
	}
	t.known[k] = t.recent.PushFront(&namedTag{x, k})
	for t.recent.Len() > tagsMax {
		t.remove(t.recent.Back())
	}
}

// drop forgets a tag: its registry has it no more.
func (t *tags) drop(k tagKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.known[k]; e != nil {
		t.remove(e)
	}
}

func (t *tags) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known = nil
	t.recent.Init()
}

// remove takes one out; mu is held.
func (t *tags) remove(e *list.Element) { delete(t.known, t.recent.Remove(e).(*namedTag).key) }

// resolved is what came of the question what a tag means.
type resolved struct {
	tag
	// said is the refusal, when there was one; its status and err are zero otherwise.
	said saying
	// asked is whose question it was: a refusal to it is none to another.
	asked questionKey
}

func (r resolved) ok() bool { return r.said.status == 0 && r.said.err == nil }

// refusedMax is how often in a row who asks may find the question put with somebody else's
// credentials, and refused, before it is put with the asker's own beside all others.
const refusedMax = 3

// tagFlight is a tag as clients wait for it together.
type tagFlight struct {
	tagKey
	// node says that this host's own credentials go with the question. A credential helper may
	// hang, and clients that bring credentials need none.
	node bool
}

// resolve says what a tag means, from an answer of at most that age or by asking the
// registry. Clients that ask at the same time wait for one answer, whatever credentials they
// bring, or for one more where they bring none and this host has some; what each of them may have
// is another question. The error is the cause of ctx's end.
func (d *desk) resolve(ctx context.Context, q question, age time.Duration) (resolved, error) {
	key := q.tagKey(d)
	ask := func(ctx context.Context) resolved {
		known, ok := d.tags.get(key)
		if ok && time.Since(known.at) < age {
			return resolved{tag: known, asked: q.key(d)}
		}
		return d.resolveNow(ctx, q, key, known, age)
	}
	if known, ok := d.tags.get(key); ok && time.Since(known.at) < age {
		return resolved{tag: known, asked: q.key(d)}, nil
	}
	flight := tagFlight{key, q.authorization == "" && d.ownCredentials(q.upstream)}
	for range refusedMax {
		r, err := d.resolving.do(ctx, flight, ask)
		if err != nil || r.ok() || r.asked == q.key(d) {
			return r, err
		}
		if r.said.status != http.StatusUnauthorized && r.said.status != http.StatusForbidden {
			break
		}
		// The refusal was somebody else's, who had no login yet perhaps: those who have one
		// ask together again.
	}
	return d.resolvingOwn.do(ctx, q.key(d), ask)
}

// resolveNow asks what a tag means, the cluster before the registry.
func (d *desk) resolveNow(ctx context.Context, q question, key tagKey, known tag, age time.Duration) resolved {
	out := resolved{asked: q.key(d)}
	s, at, shared := d.askShared(ctx, q, age)
	if !shared {
		at = time.Now()
		s = d.put(ctx, q, known)
	}
	if s.status != 0 || s.err != nil {
		if s.status == http.StatusNotFound {
			d.tags.drop(key)
		}
		out.said = s
		return out
	}
	out.tag = tag{right: s.right, at: at, etag: s.etag}
	d.tags.put(key, out.tag)
	return out
}

// askTag answers what a tag means and whether the client may have that: two questions, of
// which the registry answers both at once to the one that resolves the tag.
func (x *exchange) askTag(q question) (right, *refusal) {
	policy := x.desk.policy.Load()
	known, fallback := x.desk.tags.get(q.tagKey(x.desk))
	fallback = fallback && time.Since(known.at) >= policy.TagLife && time.Since(known.at) <= policy.TagStale
	r, err := orSoon(x, fallback, func(ctx context.Context) (resolved, error) { return x.desk.resolve(ctx, q, policy.TagLife) },
		func(err error) resolved { return resolved{said: saying{err: err}} })
	if err != nil {
		return right{}, x.failed(err)
	}
	if !r.ok() {
		if !fallback || !r.said.down() {
			return x.said(r.said)
		}
		age := time.Since(known.at)
		r.tag = known
		x.pull.Stale = age
		x.w.Header().Set(HeaderStale, strconv.FormatInt(int64(age/time.Second), 10))
	}
	may := q
	may.reference, may.id = string(r.id), r.id
	own, refused := x.right(may)
	if refused != nil {
		// Who may not have it is not told what it is, nor that somebody else asked lately.
		x.pull.Stale = 0
		x.w.Header().Del(HeaderStale)
		return right{}, refused.hiding(string(r.id), q.reference)
	}
	if !oci.NamesContent(own.mediaType) {
		own.mediaType = r.mediaType
	}
	if own.length == 0 {
		own.length = r.length
	}
	return own, nil
}
