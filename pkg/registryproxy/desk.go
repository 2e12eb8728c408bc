package registryproxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// question is what a client wants to know of a registry: may it have this, and which
// content is meant.
type question struct {
	upstream, repository string
	// endpoint is a manifest's or a blob's.
	endpoint string
	// reference is a tag or a digest; id is the digest's task and empty for a tag.
	reference string
	id        task.ID
	accept    []string
	// authorization is the client's own, a secret.
	authorization string
	// anonymous asks with the token that anybody gets, where there is no authorization.
	anonymous bool
}

func (q question) path() string {
	return target{endpoint: q.endpoint, repository: q.repository, reference: q.reference}.path()
}

func (q question) holder() holder {
	return holder{credentialOf(q.authorization), q.upstream, q.repository}
}

// questionKey tells questions apart that may be answered differently.
type questionKey struct {
	holder                      holder
	endpoint, reference, accept string
	anonymous                   bool
	// forgotten is the desk's: who asks after it forgot joins nobody who asked before.
	forgotten uint64
}

func (q question) key(d *desk) questionKey {
	return questionKey{q.holder(), q.endpoint, q.reference, strings.Join(q.accept, ","), q.anonymous, d.forgotten.Load()}
}

// saying is what a registry said to a question: a right, a refusal, or nothing.
type saying struct {
	right right
	// status, header and body of a refusal, in the registry's own words; status is 0 for a
	// consent.
	status int
	header http.Header
	body   []byte
	// err says why there was no answer at all.
	err error
	// etag of a consent to a manifest.
	etag string
	// date is the registry's own time when it said so, zero when it did not tell.
	date time.Time
}

// down reports whether the registry did not answer, or only something in front of it did.
func (s saying) down() bool {
	switch s.status {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return s.err != nil
}

// desk asks registries about rights and tags, each question once however many wait for the
// answer, and remembers what they said.
type desk struct {
	upstream Upstream
	// shared asks the cluster; nil asks nobody but the registry.
	shared func(context.Context, api.Lookup) (api.LookupReply, error)
	// credentialed as in Config.
	credentialed func(upstream string) bool
	// bare never uses the host's own credentials.
	bare   bool
	policy atomic.Pointer[Policy]

	rights verdicts
	tags   tags
	silent silent
	// forgotten counts what forget did: an answer to a question of before is not remembered.
	forgotten atomic.Uint64

	asking       flights[questionKey, saying]
	resolving    flights[tagFlight, resolved]
	resolvingOwn flights[questionKey, resolved]
}

// ownCredentials reports whether a question without an Authorization is asked with those of
// this host: then the answer is this host's own, too.
func (d *desk) ownCredentials(upstream string) bool {
	return !d.bare && d.credentialed != nil && d.credentialed(upstream)
}

// forget drops all that registries have said.
func (d *desk) forget() {
	d.forgotten.Add(1)
	d.rights.clear()
	d.tags.clear()
}

// ask brings the registry's word on a digest, asking together with others who want to know
// the same. What anybody may have is asked by the cluster for all. The error is the cause of
// ctx's end.
func (d *desk) ask(ctx context.Context, q question) (saying, error) {
	return d.asking.do(ctx, q.key(d), func(ctx context.Context) saying {
		if q.authorization == "" {
			if s, _, ok := d.askShared(ctx, q, 0); ok {
				return s
			}
		}
		return d.put(ctx, q, tag{})
	})
}

// grant remembers that a registry consented to a question, which was put when so much had
// been forgotten. at is when it did by this node's clock, date by its own.
func (d *desk) grant(q question, r right, at, date time.Time, forgotten uint64) right {
	r.holder, r.object, r.date = q.holder(), object{q.endpoint, r.id}, date
	r.until, r.end = lifeOf(q.authorization, at, date, d.policy.Load().RightsLife)
	if d.forgotten.Load() == forgotten {
		d.rights.put(r)
	}
	return r
}

// put puts a question and remembers the answer. What is known of a tag spares the registry
// to tell it again.
func (d *desk) put(ctx context.Context, q question, known tag) saying {
	forgotten := d.forgotten.Load()
	s := d.head(ctx, q, known)
	h := q.holder()
	switch {
	case s.err != nil:
	case s.status == 0:
		s.right = d.grant(q, s.right, time.Now(), s.date, forgotten)
		d.learnPublic(ctx, q, s.right.id)
	case s.status == http.StatusUnauthorized && (q.authorization != "" || q.anonymous):
		d.rights.dropHolder(h)
	case q.id != "" && (s.status == http.StatusForbidden || s.status == http.StatusNotFound):
		d.rights.drop(h, object{q.endpoint, q.id})
	}
	return s
}

// publicWait bounds the question whether anybody may have a manifest.
const publicWait = 10 * time.Second

// learnPublic asks, after a client was allowed a manifest with a token, whether anybody may
// have it, where that would count while the registry is unreachable: a client that comes then
// can get no token, and would be refused what is public.
func (d *desk) learnPublic(ctx context.Context, q question, id task.ID) {
	if !d.policy.Load().ServeCached || q.authorization == "" || q.endpoint != endpointManifest {
		return
	}
	q.authorization, q.anonymous, q.reference, q.id = "", true, string(id), id
	if _, counts, _ := d.rights.get(q.holder(), object{q.endpoint, id}, time.Now()); counts {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), publicWait)
	go func() {
		defer cancel()
		var caught error
		defer source.Rescue(&caught, "asking whether anybody may have a manifest")
		_, _ = d.ask(ctx, q) // a consent is remembered, and anything else means nothing
	}()
}

// head asks by HEAD, or by what a registry takes instead of it.
func (d *desk) head(ctx context.Context, q question, known tag) saying {
	res, err := d.send(ctx, q, http.MethodHead, "", known.etag)
	if err != nil {
		return saying{err: err}
	}
	res.Body.Close()
	if wait := source.Patience(res.StatusCode, res.Header); wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return saying{err: fmt.Errorf("asking %s again, which answered %d to %s: %w", q.upstream, res.StatusCode, q.path(), context.Cause(ctx))}
		}
		if res, err = d.send(ctx, q, http.MethodHead, "", known.etag); err != nil {
			return saying{err: err}
		}
		res.Body.Close()
	}
	// A registry that does not speak HEAD, or whose storage does not, is asked by GET, for
	// one byte of a blob.
	noHead := res.StatusCode == http.StatusMethodNotAllowed || res.StatusCode == http.StatusNotImplemented
	if noHead && q.endpoint == endpointBlob {
		return d.firstByte(ctx, q)
	}
	if noHead && q.endpoint == endpointManifest {
		return d.get(ctx, q, known)
	}
	switch {
	case res.StatusCode >= 400:
		return refusalOf(res)
	case res.StatusCode == http.StatusNotModified && known.etag != "":
		return saying{right: right{verdict: known.verdict}, etag: known.etag, date: dateOf(res)}
	case res.StatusCode != http.StatusOK:
		return neither(q, res.StatusCode)
	}
	v := verdict{id: q.id, mediaType: typeOf(res)}
	if res.Header.Get("Content-Encoding") == "" {
		v.length = max(res.ContentLength, 0)
	}
	if v.id == "" {
		id, err := oci.ParseDigest(res.Header.Get("Docker-Content-Digest"))
		if err != nil {
			return d.get(ctx, q, known)
		}
		v.id = id
	}
	return saying{right: right{verdict: v}, etag: etagOf(res), date: dateOf(res)}
}

// firstByte asks for a blob by its first byte.
func (d *desk) firstByte(ctx context.Context, q question) saying {
	res, err := d.send(ctx, q, http.MethodGet, "bytes=0-0", "")
	if err != nil {
		return saying{err: err}
	}
	v, told := verdict{id: q.id}, res.Header.Get("Content-Range")
	switch {
	case res.StatusCode == http.StatusRequestedRangeNotSatisfiable && told == oci.UnsatisfiedRange(0): // it is empty
	case res.StatusCode >= 400:
		return refusalOf(res)
	case res.StatusCode != http.StatusOK && res.StatusCode != http.StatusPartialContent:
		res.Body.Close()
		return neither(q, res.StatusCode)
	case res.Header.Get("Content-Encoding") != "":
	case res.StatusCode == http.StatusOK:
		v.length = max(res.ContentLength, 0)
	default:
		total, _ := strings.CutPrefix(told, "bytes 0-0/")
		if n, err := strconv.ParseUint(total, 10, 63); err == nil {
			v.length = int64(n)
		}
	}
	res.Body.Close()
	return saying{right: right{verdict: v}, date: dateOf(res)}
}

// neither is the saying of an answer that is no consent, and no refusal.
func neither(q question, status int) saying {
	return saying{err: fmt.Errorf("asking %s: it answered %d to %s, which is neither yes nor no", q.upstream, status, q.path())}
}

// textMax bounds what is remembered of an answer's headers, in bytes each; longer ones count as
// not told.
const textMax = 255

func typeOf(res *http.Response) string { return bounded(res.Header.Get("Content-Type")) }
func etagOf(res *http.Response) string { return bounded(res.Header.Get("ETag")) }

// dateOf is when an answer was made by its maker's clock (RFC 9110 §6.6.1), zero when it does not
// tell.
func dateOf(res *http.Response) time.Time {
	date, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		return time.Time{}
	}
	return date
}

func bounded(s string) string {
	if len(s) > textMax {
		return ""
	}
	return s
}

// get reads a manifest, because the registry does not tell its digest otherwise.
func (d *desk) get(ctx context.Context, q question, known tag) saying {
	res, err := d.send(ctx, q, http.MethodGet, "", known.etag)
	if err != nil {
		return saying{err: err}
	}
	if res.StatusCode == http.StatusNotModified && known.etag != "" {
		res.Body.Close()
		return saying{right: right{verdict: known.verdict}, etag: known.etag, date: dateOf(res)}
	}
	switch {
	case res.StatusCode >= 400:
		return refusalOf(res)
	case res.StatusCode != http.StatusOK:
		res.Body.Close()
		return neither(q, res.StatusCode)
	}
	defer res.Body.Close()
	content, err := io.ReadAll(io.LimitReader(res.Body, oci.ManifestMax+1))
	if err != nil {
		return saying{err: fmt.Errorf("reading %s of %s: %w", q.path(), q.upstream, err)}
	}
	if len(content) > oci.ManifestMax {
		return saying{err: fmt.Errorf("%s of %s is larger than the %d bytes that a manifest may have", q.path(), q.upstream, oci.ManifestMax)}
	}
	v := verdict{id: q.id, length: int64(len(content)), mediaType: typeOf(res)}
	if v.id == "" {
		v.id = oci.DigestOf(content)
	}
	return saying{right: right{verdict: v}, etag: etagOf(res), date: dateOf(res)}
}

// refusalOf keeps a registry's refusal; it closes the body.
func refusalOf(res *http.Response) saying {
	defer res.Body.Close()
	s := saying{status: res.StatusCode, header: http.Header{}}
	s.body, _ = io.ReadAll(io.LimitReader(res.Body, api.FailureMax))
	for _, k := range passedOn {
		if v := res.Header.Values(k); len(v) > 0 {
			s.header[http.CanonicalHeaderKey(k)] = v
		}
	}
	return s
}

// send sends one request of a question to its registry.
func (d *desk) send(ctx context.Context, q question, method, byteRange, etag string) (*http.Response, error) {
	h := http.Header{}
	if q.authorization != "" {
		h.Set("Authorization", q.authorization)
	}
	if len(q.accept) > 0 {
		h["Accept"] = q.accept
	}
	if byteRange != "" {
		h.Set("Range", byteRange)
	}
	if etag != "" {
		h.Set("If-None-Match", etag)
	}
	return forward(ctx, d.upstream, source.RegistryRequest{Upstream: q.upstream, Method: method, Path: q.path(), Header: h, Anonymous: q.anonymous, Bare: d.bare})
}

// forward asks an upstream. A question that may be asked as anybody is asked again as nobody
// when it is refused: then the registry's challenge to the client itself is the answer.
func forward(ctx context.Context, u Upstream, q source.RegistryRequest) (*http.Response, error) {
	res, err := u.Do(ctx, q)
	if q.Anonymous && (err != nil || res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden) {
		if err == nil {
			res.Body.Close()
		}
		q.Anonymous = false
		res, err = u.Do(ctx, q)
	}
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", q.Upstream, err) // which says the rest
	}
	return res, nil
}
