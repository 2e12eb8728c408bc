package registryproxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/source"
)

// Bounds of responses that are forwarded, in bytes. Nothing keeps them in memory.
const (
	// forwardMax is for lists: a registry's list of tags comes in pages.
	forwardMax = 64 << 20
	// forwardManifestMax is for a manifest that hosts do not share.
	forwardManifestMax = 1 << 30
)

// forwardedHeaders are the headers of a forwarded response; Link is rewritten.
var forwardedHeaders = []string{
	"Content-Type", "Content-Encoding", "Docker-Content-Digest", "OCI-Filters-Applied", "ETag",
	"WWW-Authenticate", "Retry-After",
}

var linkTarget = regexp.MustCompile(`<[^<>]*>`)

// forward forwards a request that the swarm cannot answer: a ping, a list of tags, referrers, a signed manifest or a
// huge one. A 404 to referrers stays one: clients then look for the referrers' tag (OCI distribution-spec, "Unavailable
// Referrers API").
func (req *request) forward() *apiError {
	t := req.target
	if t.endpoint == endpointBase && (t.upstream == "" || !t.named && !req.dedicated && isContainersImage(req.r)) {
		req.answerPing()
		return nil
	}
	res, err := req.cfg.Resolver.Send(req.ctx, req.registryRequest())
	if err != nil {
		return req.repeatPing(req.unreachable(err))
	}
	if t.endpoint == endpointBase && req.authorization == "" {
		req.pings.put(t.upstream, req.generation, res)
	}
	if res.StatusCode >= 400 && t.endpoint != endpointBase {
		return req.registryError(access.ReadRefusal(t.upstream, t.path(), res))
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 && res.StatusCode < 400 {
		return newError(http.StatusBadGateway, "%s redirects %s, and the mirror follows no redirect of it",
			t.upstream, t.path())
	}
	if !req.hold.until(req.cfg.Hold) {
		return req.failed(fmt.Errorf("reading %s: no answer in time", t.path()))
	}
	h := req.w.Header()
	for _, k := range forwardedHeaders {
		if v := res.Header.Values(k); len(v) > 0 {
			h[http.CanonicalHeaderKey(k)] = v
		}
	}
	for _, link := range res.Header.Values("Link") {
		h.Add("Link", linkTarget.ReplaceAllStringFunc(link, func(s string) string {
			return "<" + t.mirrored(strings.Trim(s, "<>")) + ">"
		}))
	}
	if res.ContentLength >= 0 {
		h.Set("Content-Length", strconv.FormatInt(res.ContentLength, 10))
	}
	req.pull.Status = res.StatusCode
	req.w.WriteHeader(res.StatusCode)
	if req.r.Method == http.MethodHead {
		return nil
	}
	most := int64(forwardMax)
	if t.endpoint == endpointManifest {
		most = forwardManifestMax
	}
	n, err := io.CopyN(req.w, res.Body, most)
	req.pull.Bytes = n
	if err == nil {
		err = fmt.Errorf("longer than %d bytes", most)
	}
	if !errors.Is(err, io.EOF) {
		req.pull.Err = fmt.Errorf("forwarding %s of %s: %w", t.path(), t.upstream, err)
		endShort(req.w, req.r.UserAgent())
	}
	return nil
}

// registryRequest is the client's request as it goes to the registry.
func (req *request) registryRequest() source.RegistryRequest {
	h := http.Header{}
	if v := req.authorization; v != "" {
		h.Set("Authorization", v)
	}
	if v := req.accept(); len(v) > 0 {
		h["Accept"] = v
	}
	out := source.RegistryRequest{
		Upstream: req.target.upstream, Method: req.r.Method, Path: req.target.path(), Header: h, Anonymous: req.anonymous(),
		Agent: req.r.UserAgent(),
	}
	if req.target.endpoint == endpointTags || req.target.endpoint == endpointReferrers {
		query := req.r.URL.Query()
		query.Del("ns")
		out.Query = query.Encode()
	}
	return out
}

// isContainersImage reports whether a request comes from containers/image (Podman, CRI-O, skopeo, Buildah), which sends
// this header with every request. This client answers no challenge but that of its ping, pings the mirror's host once,
// and puts the registry into later paths. The default registry's challenge would make it ask the default registry for
// the tokens of every registry. A listener of one registry passes that registry's challenge on, because
// containers/image sends no credentials without it.
func isContainersImage(r *http.Request) bool {
	return r.Header.Get("Docker-Distribution-API-Version") != ""
}
