package registryproxy

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	v2 "github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/distribution/reference"
	"github.com/gorilla/mux"
	"github.com/opencontainers/go-digest"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/task"
)

// The headers by which a request may name its registry: a host, or the URL of one. The
// second is what Dragonfly's clients are configured with.
const (
	HeaderUpstream          = "X-Darter-Upstream"
	HeaderUpstreamDragonfly = "X-Dragonfly-Registry"
)

// Bounds on a request, in bytes.
const (
	targetMax = 8 << 10  // path and query
	headerMax = 64 << 10 // Authorization and Accept together
	bodyMax   = 4 << 10  // a pull has no body; a small one is read and dropped
)

// The endpoints, as [Pull] names them.
const (
	endpointBase      = "base"
	endpointManifest  = "manifest"
	endpointBlob      = "blob"
	endpointTags      = "tags"
	endpointReferrers = "referrers"
)

// Referrers are newer than distribution's table of routes (OCI distribution-spec 1.1,
// "Listing Referrers").
const routeReferrers = "referrers"

var referrersPath = "/v2/{name:" + reference.NameRegexp.String() + "}/referrers/{digest:" +
	digest.DigestRegexp.String() + "}"

// target is what a request asks for.
type target struct {
	endpoint string
	// upstream is the registry in the spelling of oci.ParseHost.
	upstream string
	// namespace is the client's unchanged ?ns=, also if a header names another registry. prefix is the registry's part of
	// the path, if the path names one.
	namespace, prefix string
	// named says that the request names its registry by a header, ?ns= or its path.
	named      bool
	repository string
	// reference is the tag or digest of a manifest, the digest of a blob or subject.
	reference string
	// id is the task when the reference is a digest.
	id task.ID
}

// path is the target's path at the upstream.
func (t target) path() string {
	switch t.endpoint {
	case endpointManifest:
		return "/v2/" + t.repository + "/manifests/" + t.reference
	case endpointBlob:
		return "/v2/" + t.repository + "/blobs/" + t.reference
	case endpointTags:
		return "/v2/" + t.repository + "/tags/list"
	case endpointReferrers:
		return "/v2/" + t.repository + "/referrers/" + t.reference
	}
	return "/v2/"
}

// kind is that of the task.
func (t target) kind() task.Kind {
	if t.endpoint == endpointManifest {
		return task.Manifest
	}
	return task.Blob
}

// parseTarget reads a request; fallback is the registry of a request that names none. With an error it returns the
// parts that it has parsed.
func (p *Proxy) parseTarget(r *http.Request, fallback string) (t target, refused *apiError) {
	if len(r.URL.Path)+len(r.URL.RawQuery) > targetMax {
		return t, newError(http.StatusRequestURITooLong, "path and query are longer than %d bytes", targetMax)
	}
	size := len(r.Header.Get("Authorization"))
	for _, v := range r.Header.Values("Accept") {
		size += len(v)
	}
	if size > headerMax {
		return t, newError(http.StatusRequestHeaderFieldsTooLarge,
			"Authorization and Accept are longer than %d bytes", headerMax)
	}

	var match mux.RouteMatch
	name, push := "", false
	if p.router.Match(r, &match) {
		name = match.Vars["name"]
		switch match.Route.GetName() {
		case v2.RouteNameBase:
			t.endpoint = endpointBase
		case v2.RouteNameManifest:
			t.endpoint, t.reference = endpointManifest, match.Vars["reference"]
		case v2.RouteNameBlob:
			t.endpoint, t.reference = endpointBlob, match.Vars["digest"]
		case v2.RouteNameTags:
			t.endpoint = endpointTags
		case routeReferrers:
			t.endpoint, t.reference = endpointReferrers, match.Vars["digest"]
		case v2.RouteNameBlobUpload, v2.RouteNameBlobUploadChunk:
			push = true
		}
	} else if prefix := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/v2/"),
		"/"); !strings.Contains(prefix, "/") && oci.LooksLikeHost(prefix) {
		t.endpoint, name = endpointBase, prefix+"/"
	}
	if t.endpoint == "" && !push {
		return t, unknownPath(r.URL.Path)
	}
	if push || r.Method != http.MethodGet && r.Method != http.MethodHead {
		no := newError(http.StatusMethodNotAllowed, "this is a mirror for pulls; push to the registry itself")
		no.header = http.Header{"Allow": {"GET, HEAD"}}
		return t, no
	}

	if refused := p.nameUpstream(r, name, fallback, &t); refused != nil {
		return t, refused
	}
	if t.upstream != "" {
		if err := p.cfg.Allow(t.upstream); err != nil {
			if t.endpoint == endpointBase && !t.named {
				// The client did not ask for the default: it checks whether a registry is here, and
				// names the one that it means later.
				t.upstream = ""
				return t, nil
			}
			return t, newError(http.StatusForbidden, "%v", err)
		}
	}
	if t.endpoint == endpointBase {
		return t, nil
	}
	var err error
	if t.repository, err = oci.ParseRepository(t.upstream, t.repository); err != nil {
		return t, newError(http.StatusBadRequest, "%v", err).withCode(errcode.ErrorCodeNameInvalid)
	}
	if t.endpoint == endpointTags || t.endpoint == endpointManifest && oci.IsTag(t.reference) {
		return t, nil
	}
	if t.id, err = oci.ParseDigest(t.reference); err != nil {
		return t, newError(http.StatusBadRequest, "%v", err).withCode(errcode.ErrorCodeDigestInvalid)
	}
	return t, nil
}

// nameUpstream finds the registry that a request means: by header, ?ns=, path or default, in this order. An operator or
// a proxy writes the header for this mirror; containerd adds ?ns= to every request. With either of them, the whole path
// is the repository: its first part may look like a registry ("my.project/app"), and may even be the registry's own
// name.
func (p *Proxy) nameUpstream(r *http.Request, name, fallback string, t *target) *apiError {
	t.named, t.repository = true, name
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		// The broken part may be the ?ns=: without it, the path would name the image of another registry.
		return newError(http.StatusBadRequest, "the request's query cannot be parsed: %v", err).
			withCode(errcode.ErrorCodeNameInvalid)
	}
	namespaces := query["ns"]
	for _, ns := range namespaces {
		if ns != namespaces[0] {
			return newError(http.StatusBadRequest, "the request names several registries by ?ns=; send one").
				withCode(errcode.ErrorCodeNameInvalid)
		}
	}
	ns := ""
	if len(namespaces) > 0 {
		ns = namespaces[0]
	}
	header := firstOf(r.Header, HeaderUpstream, HeaderUpstreamDragonfly)
	if ns != "" {
		if t.upstream, err = oci.ParseHost(ns); err != nil {
			return newError(http.StatusBadRequest, "?ns= of the request: %v", err).withCode(errcode.ErrorCodeNameInvalid)
		}
		t.namespace = ns
	}
	for _, value := range r.Header.Values(header) {
		if value != r.Header.Get(header) {
			return newError(http.StatusBadRequest, "the request names several registries by %s; send one", header).
				withCode(errcode.ErrorCodeNameInvalid)
		}
	}
	if header != "" {
		if t.upstream, err = oci.ParseHostURL(r.Header.Get(header)); err != nil {
			return newError(http.StatusBadRequest, "header %s of the request: %v", header, err).
				withCode(errcode.ErrorCodeNameInvalid)
		}
	}
	if ns != "" || header != "" {
		return nil
	}
	if prefix, rest, ok := oci.SplitPrefix(name); ok {
		if t.upstream, err = oci.ParsePrefix(prefix); err != nil {
			return newError(http.StatusBadRequest, "the path's registry: %v", err).withCode(errcode.ErrorCodeNameInvalid)
		}
		t.prefix, t.repository = prefix, rest
		return nil
	}
	if t.upstream, t.named = fallback, false; t.upstream == "" && t.endpoint != endpointBase {
		return newError(http.StatusNotFound,
			"the request names no registry, by the header %s, by ?ns= or as the first part of the path "+
				"(/v2/quay.io/…), and this mirror has no default", HeaderUpstream).withCode(errcode.ErrorCodeNameUnknown)
	}
	return nil
}

// firstOf returns the first of the names that the header has.
func firstOf(h http.Header, names ...string) string {
	for _, name := range names {
		if h.Get(name) != "" {
			return name
		}
	}
	return ""
}

// unknownPath is the error for a path that is no route.
func unknownPath(path string) *apiError {
	for part, what := range map[string]errcode.ErrorCode{
		"/manifests/": errcode.ErrorCodeManifestUnknown,
		"/blobs/":     errcode.ErrorCodeDigestInvalid,
		"/referrers/": errcode.ErrorCodeDigestInvalid,
	} {
		i := strings.LastIndex(path, part)
		if i < 0 || strings.Contains(path[i+len(part):], "/") {
			continue
		}
		name, last := strings.TrimPrefix(path[:i], "/v2/"), path[i+len(part):]
		if _, rest, ok := oci.SplitPrefix(name); ok {
			name = rest
		}
		if _, err := oci.ParseRepository("", name); err != nil {
			return newError(http.StatusBadRequest, "%v", err).withCode(errcode.ErrorCodeNameInvalid)
		}
		// A manifest under an impossible tag is merely unknown (OCI conformance).
		return newError(what.Descriptor().HTTPStatusCode, "%.150q is no reference that a registry knows", last).withCode(what)
	}
	return newError(http.StatusNotFound, "%.150q is no path of the distribution API that a mirror serves", path).
		withCode(errcode.ErrorCodeNameUnknown)
}

// mirrored rewrites a link of the upstream so that it leads through the mirror to the same upstream.
func (t target) mirrored(link string) string {
	u, err := url.Parse(link)
	if err != nil || !strings.HasPrefix(u.Path, "/v2/") {
		return link
	}
	if t.prefix != "" {
		u.Path = "/v2/" + t.prefix + strings.TrimPrefix(u.Path, "/v2")
	}
	if t.namespace != "" {
		q := u.Query()
		q.Set("ns", t.namespace)
		u.RawQuery = q.Encode()
	}
	out := url.URL{Path: u.Path, RawQuery: u.RawQuery}
	return out.String()
}
