package access

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/task"
)

// reply is a registry's positive answer to a lookup.
type reply struct {
	Grant
	// at is when the registry replied, by this node's clock.
	at time.Time
	// etag is the manifest's if it is its digest, for a conditional request.
	etag string
}

// head sends a lookup by HEAD. If the registry asks for a pause, it repeats the HEAD once after the pause. If the
// registry may answer a GET differently, it sends a GET.
func (r *Resolver) head(ctx context.Context, l Lookup, known reply) (reply, error) {
	res, err := r.Send(ctx, r.request(l, http.MethodHead, "", known.etag))
	if brokeOff(err) {
		return r.byGET(ctx, l, known)
	}
	if err != nil {
		return reply{}, err
	}
	res.Body.Close()
	if wait := source.Patience(res.StatusCode, res.Header); wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return reply{}, &UnreachableError{fmt.Errorf("asking %s again, which answered %d to %s: %w",
				l.Upstream, res.StatusCode, l.Path(), context.Cause(ctx))}
		}
		if res, err = r.Send(ctx, r.request(l, http.MethodHead, "", known.etag)); err != nil {
			return reply{}, err
		}
		res.Body.Close()
	}
	if refusesHead(res) {
		return r.byGET(ctx, l, known)
	}
	if err := refusal(l, res, known); err != nil {
		return reply{}, err
	}
	if res.StatusCode == http.StatusNotModified {
		if named := res.Header.Get("Docker-Content-Digest"); named != "" && named != string(known.ID) {
			return r.head(ctx, l, reply{}) // it contradicts itself
		}
		return unchanged(res, known), nil
	}
	out := reply{Grant: Grant{ID: l.ID, MediaType: typeOf(res), date: dateOf(res)}}
	out.Doubted = httporigin.Unencrypted(res)
	if res.Header.Get("Content-Encoding") == "" {
		out.Length = max(res.ContentLength, 0)
	}
	if out.ID == "" {
		if out.ID, err = oci.ParseDigest(res.Header.Get("Docker-Content-Digest")); err != nil {
			if out.Length > oci.ManifestMax {
				return reply{}, &HugeError{l.Upstream, l.Path(), out.Length}
			}
			return r.getManifest(ctx, l, known)
		}
	}
	out.etag = etagOf(res, out.ID)
	return out, nil
}

// byGET sends a lookup by GET.
func (r *Resolver) byGET(ctx context.Context, l Lookup, known reply) (reply, error) {
	if l.Kind == task.Blob {
		return r.getFirstByte(ctx, l)
	}
	return r.getManifest(ctx, l, known)
}

// brokeOff reports whether a registry ended the connection in place of an answer to a HEAD, or redirected it without
// end: it may answer a GET.
func brokeOff(err error) bool {
	var redirect *httporigin.RedirectError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.As(err, &redirect)
}

// refusesHead reports whether a registry may answer a GET differently from this HEAD: some registries do not support
// HEAD, refuse it (400, 403, 500), answer it with 203 or 204, or fetch an object from elsewhere only for
// a GET (404). A GET's refusal also has a body with the registry's own words. A gateway's error may concern one attempt
// alone. A challenge, or a request for a pause, is an answer.
func refusesHead(res *http.Response) bool {
	switch res.StatusCode {
	case http.StatusUnauthorized:
		return res.Header.Get("WWW-Authenticate") == ""
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return false
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return res.Header.Get("Retry-After") == ""
	case http.StatusNonAuthoritativeInfo, http.StatusNoContent:
		return true
	}
	return res.StatusCode >= 400
}

// getFirstByte asks for a blob by its first byte, or as a whole where the registry refuses the range.
func (r *Resolver) getFirstByte(ctx context.Context, l Lookup) (reply, error) {
	res, err := r.Send(ctx, r.request(l, http.MethodGet, "bytes=0-0", ""))
	if err == nil && refusesRange(res) {
		res.Body.Close()
		res, err = r.Send(ctx, r.request(l, http.MethodGet, "", ""))
	}
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	out := reply{Grant: Grant{ID: l.ID, date: dateOf(res), Doubted: httporigin.Unencrypted(res)}}
	contentRange := res.Header.Get("Content-Range")
	switch {
	case res.StatusCode == http.StatusRequestedRangeNotSatisfiable && contentRange == oci.UnsatisfiedRange(0):
		return out, nil // an empty blob
	case res.StatusCode == http.StatusPartialContent:
		total, _ := strings.CutPrefix(contentRange, "bytes 0-0/")
		if n, err := strconv.ParseUint(total, 10, 63); err == nil && res.Header.Get("Content-Encoding") == "" {
			out.Length = int64(n)
		}
		return out, nil
	}
	if err := refusal(l, res, reply{}); err != nil {
		return reply{}, err
	}
	out.Doubted = true // it ignored the Range, as a page of a login portal does
	if res.Header.Get("Content-Encoding") == "" {
		out.Length = max(res.ContentLength, 0)
	}
	return out, nil
}

// refusesRange reports whether a registry may send a blob as a whole that answers a request for its first byte so.
func refusesRange(res *http.Response) bool {
	switch res.StatusCode {
	case http.StatusRequestedRangeNotSatisfiable:
		return res.Header.Get("Content-Range") != oci.UnsatisfiedRange(0)
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return true
	}
	return false
}

// getManifest reads a manifest and keeps only what a HEAD would state, for registries that refuse the HEAD or do not
// state the digest.
func (r *Resolver) getManifest(ctx context.Context, l Lookup, known reply) (reply, error) {
	res, err := r.Send(ctx, r.request(l, http.MethodGet, "", known.etag))
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	if err := refusal(l, res, known); err != nil {
		return reply{}, err
	}
	if res.StatusCode == http.StatusNotModified {
		return unchanged(res, known), nil
	}
	if l.ID == "" && res.ContentLength > oci.ManifestMax {
		return reply{}, &HugeError{l.Upstream, l.Path(), res.ContentLength}
	}
	body, err := decoded(res)
	if err != nil {
		return reply{}, &UnreachableError{fmt.Errorf("reading %s of %s: %w", l.Path(), l.Upstream, err)}
	}
	sum, err := oci.NewHash(cmp.Or(string(l.ID), "sha256:"))
	if err != nil {
		return reply{}, err
	}
	length, err := io.Copy(sum, io.LimitReader(body, oci.ManifestMax+1))
	if err != nil {
		return reply{}, &UnreachableError{fmt.Errorf("reading %s of %s: %w", l.Path(), l.Upstream, err)}
	}
	if length > oci.ManifestMax {
		return reply{}, &UnreachableError{fmt.Errorf("%s of %s is larger than the %d bytes that a manifest may have",
			l.Path(), l.Upstream, oci.ManifestMax)}
	}
	is := hex.EncodeToString(sum.Sum(nil))
	if _, want, _ := strings.Cut(string(l.ID), ":"); l.ID != "" && is != want {
		// A page of a login portal, for instance: it grants nothing.
		return reply{}, &UnreachableError{fmt.Errorf("%s of %s: the registry sent other bytes than the digest names",
			l.Path(), l.Upstream)}
	}
	out := reply{Grant: Grant{ID: l.ID, Length: length, MediaType: typeOf(res), date: dateOf(res)}}
	if out.ID == "" {
		out.ID = task.ID("sha256:" + is)
	}
	out.etag = etagOf(res, out.ID)
	return out, nil
}

// decoded is a manifest's body without its gzip encoding. Some proxies encode a body although the request asks for
// identity, and some only state an encoding, so that the first bytes decide: a manifest is JSON and never a gzip file.
func decoded(res *http.Response) (io.Reader, error) {
	body := bufio.NewReader(res.Body)
	if magic, err := body.Peek(2); err != nil || magic[0] != 0x1f || magic[1] != 0x8b {
		return body, nil
	}
	return gzip.NewReader(body)
}

// refusal is the error of a response that does not permit the lookup: any but 200, 203 and, if an ETag was sent, 304.
func refusal(l Lookup, res *http.Response, known reply) error {
	switch {
	case res.StatusCode >= 400:
		return ReadRefusal(l.Upstream, l.Path(), res)
	case res.StatusCode == http.StatusOK, res.StatusCode == http.StatusNonAuthoritativeInfo,
		res.StatusCode == http.StatusNotModified && known.etag != "":
		return nil
	}
	return &UnreachableError{fmt.Errorf("asking %s: it answered %d to %s, which neither grants nor refuses the request",
		l.Upstream, res.StatusCode, l.Path())}
}

// unchanged is the reply of a 304: the manifest is the known one.
func unchanged(res *http.Response, known reply) reply {
	out := reply{etag: known.etag}
	out.Grant = Grant{ID: known.ID, Length: known.Length, MediaType: known.MediaType, Declared: known.Declared,
		date: dateOf(res)}
	return out
}

// keptHeaders are the headers of an error reply that the client must see.
var keptHeaders = []string{"WWW-Authenticate", "Retry-After", "Content-Type"}

// ReadRefusal reads a registry's error reply and closes its body.
func ReadRefusal(upstream, path string, res *http.Response) *RefusedError {
	defer res.Body.Close()
	e := &RefusedError{Upstream: upstream, Path: path, Status: res.StatusCode, Header: http.Header{},
		untried: res.Header.Get(headerUntried) != ""}
	if e.Body, _ = io.ReadAll(io.LimitReader(res.Body, api.FailureMax)); len(e.Body) == 0 {
		res.Header.Del("Content-Type") // of a HEAD's absent body, perhaps
	}
	for _, k := range keptHeaders {
		if v := res.Header.Values(k); len(v) > 0 {
			e.Header[http.CanonicalHeaderKey(k)] = v
		}
	}
	return e
}

// request is one request of a lookup. byteRange and etag are its Range and If-None-Match, or empty.
func (r *Resolver) request(l Lookup, method, byteRange, etag string) source.RegistryRequest {
	h := http.Header{}
	if !l.Authorization.IsZero() {
		h.Set("Authorization", l.Authorization.Reveal())
	}
	if len(l.Accept) > 0 {
		h["Accept"] = l.Accept
	}
	if byteRange != "" {
		h.Set("Range", byteRange)
	}
	if etag != "" {
		h.Set("If-None-Match", etag)
	}
	return source.RegistryRequest{
		Upstream: l.Upstream, Method: method, Path: l.Path(), Header: h, Anonymous: l.Anonymous, Bare: r.bare,
		Agent: l.Agent,
	}
}

// headerUntried marks the response to an anonymous request that was sent without a token, because the token service did
// not answer. No registry sets it.
const headerUntried = "X-Darter-Untried"

// Send sends a request to a registry. If the registry refuses an anonymous request, Send repeats it without any token,
// unless Do has done so ([source.HeaderPlain]): the reply then holds the challenge for the client. The error is an
// *[UnreachableError].
func (r *Resolver) Send(ctx context.Context, req source.RegistryRequest) (*http.Response, error) {
	res, err := r.cfg.Registry.Do(ctx, req)
	untried := req.Anonymous && (err != nil || res.Header.Get(source.HeaderPlain) == source.PlainUntried)
	refused := err != nil || res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden
	if req.Anonymous && refused && (err != nil || res.Header.Get(source.HeaderPlain) == "") {
		if err == nil {
			res.Body.Close()
		}
		req.Anonymous = false
		res, err = r.cfg.Registry.Do(ctx, req)
	}
	if err != nil {
		return nil, &UnreachableError{fmt.Errorf("asking %s: %w", req.Upstream, err)} // err says the rest
	}
	if res.Header.Del(headerUntried); untried {
		res.Header.Set(headerUntried, "true")
	}
	r.silence.heard(req.Upstream, time.Now())
	r.pulse.beat(req.Upstream, time.Now())
	return res, nil
}

// textMax bounds a remembered header, in bytes. A longer one counts as missing.
const textMax = 255

func typeOf(res *http.Response) string { return bounded(res.Header.Get("Content-Type")) }

// etagOf is the ETag of a manifest if it is the manifest's digest, else empty. Any other ETag may stay the same when
// the tag moves: some proxies send one that never changes.
func etagOf(res *http.Response, id task.ID) string {
	etag := res.Header.Get("ETag")
	opaque := strings.Trim(strings.TrimPrefix(etag, "W/"), `"`)
	if _, hexPart, _ := strings.Cut(string(id), ":"); opaque == "" || opaque != string(id) && opaque != hexPart {
		return ""
	}
	return bounded(etag)
}

func bounded(s string) string {
	if len(s) > textMax {
		return ""
	}
	return s
}

// dateOf is the time of a response by the registry's clock (RFC 9110 §6.6.1), zero if it states none.
func dateOf(res *http.Response) time.Time {
	date, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		return time.Time{}
	}
	return date
}
