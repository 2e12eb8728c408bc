package registryproxy

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
)

// forwardMax is the longest answer that is passed through, in bytes: a registry's list of
// tags comes in pages.
const forwardMax = 64 << 20

// forwarded are the headers of an answer that is passed through; Link is rewritten.
var forwarded = []string{"Content-Type", "Content-Encoding", "Docker-Content-Digest", "OCI-Filters-Applied", "ETag", "WWW-Authenticate", "Retry-After"}

var linkTarget = regexp.MustCompile(`<[^<>]*>`)

// forward passes a question that is not about content through to its registry: the version
// check, lists of tags, referrers. A 404 to referrers stays one: it tells clients to look
// for the referrers' tag instead (OCI distribution-spec, "Unavailable Referrers API").
func (x *exchange) forward() *refusal {
	if x.t.endpoint == endpointBase && (x.t.upstream == "" || !x.t.named && isVersionCheck(x.r)) {
		x.welcome()
		return nil
	}
	res, refused := x.upstream()
	if refused != nil {
		return x.greetAgain(refused)
	}
	if x.t.endpoint == endpointBase && x.authorization == "" {
		x.greetings.note(x.t.upstream, res)
	}
	if res.StatusCode >= 400 && x.t.endpoint != endpointBase {
		return x.answered(refusalOf(res))
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 && res.StatusCode < 400 {
		return refuse(http.StatusBadGateway, "%s redirects %s to a place that the mirror does not follow", x.t.upstream, x.t.path())
	}
	if !x.late.Reset(x.cfg.Hold) {
		return x.failed(fmt.Errorf("reading %s: no answer in time", x.t.path()))
	}
	defer x.late.Stop()
	h := x.w.Header()
	for _, k := range forwarded {
		if v := res.Header.Values(k); len(v) > 0 {
			h[http.CanonicalHeaderKey(k)] = v
		}
	}
	for _, link := range res.Header.Values("Link") {
		h.Add("Link", linkTarget.ReplaceAllStringFunc(link, func(s string) string { return "<" + x.t.mirrored(strings.Trim(s, "<>")) + ">" }))
	}
	if res.ContentLength >= 0 {
		h.Set("Content-Length", strconv.FormatInt(res.ContentLength, 10))
	}
	x.pull.Status = res.StatusCode
	x.w.WriteHeader(res.StatusCode)
	if x.r.Method == http.MethodHead {
		return nil
	}
	n, err := io.CopyN(x.w, res.Body, forwardMax)
	x.pull.Bytes = n
	if err == nil {
		err = fmt.Errorf("longer than %d bytes", forwardMax)
	}
	if err != io.EOF {
		x.pull.Err = fmt.Errorf("passing %s of %s through: %w", x.t.path(), x.t.upstream, err)
		cut(x.w, x.r.UserAgent())
	}
	return nil
}

// isVersionCheck reports whether a request comes from containers/image (Podman, CRI-O, skopeo,
// Buildah), which checks the mirror's host once and puts the registry into later paths. Were
// it told the default's challenge, it would get its tokens there for every registry.
func isVersionCheck(r *http.Request) bool {
	return r.Header.Get("Docker-Distribution-API-Version") != ""
}
