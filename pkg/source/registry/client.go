package registry

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/task"
)

// Client sends requests to registries. Safe for concurrent use.
type Client struct {
	cfg    Config
	listed map[string]*upstream
	others *upstream // how all other registries are asked; nil refuses them
	slow   slow

	// mu is held to find or add a session or a label, never during a login.
	mu       sync.Mutex
	sessions map[sessionKey]*session
	// challenges of repositories spare pings and second refusals.
	challenges challenges
	// labels says for each blob that came with an encoding whether the body was taken without decoding.
	labels map[task.ID]bool
}

// Open implements [source.Origin] for blobs and manifests. The bytes must hash to the spec's ID, so it
// ignores validators, and a resumption may go to another of the upstream's URLs.
//
// It sends a spec's Authorization as it is. Without one it uses the node's own credentials, or else the anonymous token
// of the registry's token service. If the registry asks for a pause by a Retry-After of a few seconds, Open tries once
// more after it, and at once after a 500.
func (c *Client) Open(ctx context.Context, spec task.Spec, offset int64) (res *source.Response, err error) {
	return c.OpenPart(ctx, spec, offset, 0)
}

// OpenPart implements [source.PartOrigin]. An end of 0 is that of the blob.
func (c *Client) OpenPart(ctx context.Context, spec task.Spec, offset, end int64) (res *source.Response, err error) {
	defer source.Rescue(&err, fmt.Sprintf("opening %s of %.255q", spec.ID.Short(), spec.Upstream))
	res, err = c.open(ctx, spec, offset, end)
	var status *source.StatusError
	if !errors.As(err, &status) {
		status = &source.StatusError{}
	}
	if onceMore(status.Status) {
		res, err = c.open(ctx, spec, offset, end)
	} else if wait := source.Patience(status.Status, status.Header); wait > 0 {
		select {
		case <-time.After(wait):
			res, err = c.open(ctx, spec, offset, end)
		case <-ctx.Done():
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening %s %s of %.255q at %.255q: %w", spec.Kind, spec.ID.Short(), spec.Repository,
			spec.Upstream, err)
	}
	return res, nil
}

func (c *Client) open(ctx context.Context, spec task.Spec, offset, end int64) (*source.Response, error) {
	u, err := c.upstream(spec.Upstream)
	if err != nil {
		return nil, err
	}
	repository, err := oci.ParseRepository(u.name, spec.Repository)
	if err != nil {
		return nil, err
	}
	id, err := oci.ParseDigest(string(spec.ID))
	if err != nil {
		return nil, err
	}
	agent := u.agent(spec.Agent)
	ctx = withAgent(ctx, agent)
	kind, purpose, header, err := requestOf(spec, agent)
	if err != nil {
		return nil, err
	}
	ctx = withPurpose(ctx, purpose)
	bare := true
	if spec.Authorization.IsZero() && u.hasCredentials() {
		_, has, err := u.credential(ctx, repository)
		if err != nil {
			return nil, err
		}
		bare = !has
	}
	var res *source.Response
	err = c.each(ctx, u, func(base *url.URL) error {
		target := at(base, "/v2/"+repository+"/"+kind+"/"+string(id), "")
		get := httporigin.Get{
			Request: httporigin.Request{URL: target, Header: header}, Offset: offset, End: end, Length: spec.Known(),
		}
		get.AllowPlain = spec.Kind == task.Blob && !u.ForbidPlainRedirects
		get.Challenged = c.redirected(u, id)
		get.Raw = func(resumed bool) bool { return spec.Kind == task.Blob && c.isLabel(id, resumed) }
		if spec.Authorization.IsZero() {
			logged, _, err := c.login(ctx, u, base, repository, bare)
			if err != nil {
				return err
			}
			get.RoundTripper = logged
		}
		session := get.RoundTripper != nil
		if get.RoundTripper == nil {
			get.RoundTripper = c.exchangeOf(u, base, repository, spec.Authorization.Reveal())
		}
		var err error
		if res, err = u.client.Open(ctx, get); err == nil && len(u.bases) > 1 {
			res.Body = c.slow.watch(res.Body, base)
		}
		err = refused(err)
		var status *source.StatusError
		if !errors.As(err, &status) {
			return err
		}
		if session && status.Status == http.StatusUnauthorized {
			c.logout(u, base, repository, bare)
		}
		if refusesDigest(status.Status) && spec.Kind == task.Manifest && oci.IsTag(spec.Tag) {
			get.URL = at(base, "/v2/"+repository+"/manifests/"+spec.Tag, "")
			if byTag, tagErr := openByTag(ctx, u, get, id); tagErr == nil {
				res, err = byTag, nil
			}
		}
		return err
	})
	return res, err
}

// requestOf returns the part of the path that names the kind of a task, the purpose of its GET, and its header.
func requestOf(spec task.Spec, agent string) (kind string, purpose Purpose, header http.Header, err error) {
	header = http.Header{"User-Agent": {agent}}
	kind, purpose = "blobs", ForBlob
	switch spec.Kind {
	case task.Blob:
	case task.Manifest:
		kind, purpose = "manifests", ForManifest
		header["Accept"] = spec.Accept
		if len(spec.Accept) == 0 {
			header["Accept"] = oci.ManifestTypes()
		}
	default:
		return "", purpose, nil, fmt.Errorf("a registry has no task of kind %.40q", spec.Kind)
	}
	if !spec.Authorization.IsZero() {
		header.Set("Authorization", spec.Authorization.Reveal())
	}
	return kind, purpose, header, nil
}

// labelsMax bounds the remembered labels; a forgotten one can cost one GET.
const labelsMax = 1024

// isLabel reports whether the Content-Encoding of a blob's answer only labels its type, so that the body is not
// decoded. Storages label layers in this way, because layers are gzip files; the first attempt therefore takes an
// encoding for a label. After wrong bytes a seed asks once more, and that answer is decoded. A resumed answer continues
// as the first one began. A manifest is never a gzip file.
func (c *Client) isLabel(id task.ID, resumed bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, known := c.labels[id]
	if resumed {
		return !known || before
	}
	if len(c.labels) >= labelsMax {
		clear(c.labels)
	}
	c.labels[id] = !known || !before
	return c.labels[id]
}

// refusesDigest reports whether a registry that answers a request for a manifest by its digest with this status may
// serve the manifest by its tag: some proxies know tags alone. A client that asks by tag never asks for the digest.
func refusesDigest(status int) bool {
	return status >= 400 && status != http.StatusUnauthorized && status != http.StatusRequestTimeout &&
		status != http.StatusTooManyRequests && !unavailable(status)
}

// openByTag reads a manifest by its tag, for registries that do not serve it by its digest. A tag that means
// another manifest by now is an error.
func openByTag(ctx context.Context, u *upstream, get httporigin.Get, id task.ID) (*source.Response, error) {
	offset := get.Offset
	get.Offset, get.Length = 0, 0
	res, err := u.client.Open(ctx, get)
	if err != nil {
		return nil, refused(err)
	}
	manifest, err := io.ReadAll(io.LimitReader(res.Body, oci.ManifestParsed+1))
	if err == nil && len(manifest) > oci.ManifestParsed {
		// The caller compares the digest of the whole; a tag that has moved then fails it.
		res.Body = after(manifest, res.Body)
		if _, err = io.CopyN(io.Discard, res.Body, offset); err == nil {
			return res, nil
		}
	}
	defer res.Body.Close()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", secret.PrintableURL(get.URL), err)
	}
	h, err := oci.NewHash(string(id))
	if err != nil {
		return nil, err
	}
	h.Write(manifest)
	if got := hex.EncodeToString(h.Sum(nil)); !strings.HasSuffix(string(id), ":"+got) || offset > int64(len(manifest)) {
		return nil, fmt.Errorf("%s is another manifest by now, with digest %s", secret.PrintableURL(get.URL), got)
	}
	res.Length, res.Body = int64(len(manifest)), io.NopCloser(bytes.NewReader(manifest[offset:]))
	return res, nil
}

// requestHeaders are those of a request that go to a registry.
var requestHeaders = []string{"Authorization", "Accept", "Range", "If-None-Match", "If-Modified-Since"}

// responseHeaders are those of a response that callers get.
var responseHeaders = []string{
	"Docker-Content-Digest", "Docker-Distribution-Api-Version", "Content-Type", "Content-Length", "Content-Range",
	"Content-Encoding", "Accept-Ranges", "Etag", "Last-Modified", "Www-Authenticate", "Retry-After", "Link",
	"Date", "Location",
	"Oci-Subject", "Oci-Filters-Applied", "Warning", "Ratelimit-Limit", "Ratelimit-Remaining", "Docker-Ratelimit-Source",
}

// Do sends a request to a registry, with the request's own Authorization if it has one, else with the node's
// credentials if they are configured, else with none: then the registry's challenge is the response. If the registry
// refuses an anonymous request, Do repeats it with the registry's anonymous token, and sends the next ones with that
// token at once. A response of any status is no error; the caller closes its body, which ends in an error if the
// registry falls silent. Do follows the redirect of a HEAD, because some registries redirect every request unchecked.
// If a HEAD is redirected to a storage that signs its URLs for GET only, the response is a 405.
func (c *Client) Do(ctx context.Context, q source.RegistryRequest) (res *http.Response, err error) {
	defer source.Rescue(&err, fmt.Sprintf("asking %.255q", q.Upstream))
	u, err := c.upstream(q.Upstream)
	if err != nil {
		return nil, err
	}
	if q.Bare && u.CertFile != "" {
		// The certificate identifies this node, and the reply to it is for this node alone.
		return nil, errors.New("this node identifies itself by a certificate, so the registry's reply is for this node alone")
	}
	if q.Method != http.MethodGet && q.Method != http.MethodHead {
		return nil, errors.New("this node only reads from registries, by GET or HEAD")
	}
	if clean := path.Clean(q.Path); !strings.HasPrefix(q.Path, "/v2/") || (q.Path != clean && q.Path != clean+"/") {
		return nil, errors.New("this is not a path of the distribution API")
	}
	agent := u.agent(q.Agent)
	ctx = withPurpose(withAgent(ctx, agent), purposeOf(q.Path))
	header := http.Header{"User-Agent": {agent}}
	for _, k := range requestHeaders {
		if v := q.Header.Values(k); len(v) > 0 {
			header[k] = v
		}
	}
	bare, plainly := true, ""
	repository, kind := repositoryOf(q.Path)
	if header.Get("Authorization") == "" && u.hasCredentials() && !q.Bare {
		_, has, err := u.credential(ctx, repository)
		if err != nil {
			return nil, err
		}
		bare = !has
	}
	err = c.each(ctx, u, func(base *url.URL) error {
		req := httporigin.Request{
			Method: q.Method, URL: at(base, q.Path, q.Query), Header: header,
			AllowPlain: kind == "blobs" && !u.ForbidPlainRedirects,
		}
		if id := digestIn(q.Path); id != "" {
			req.Challenged = c.redirected(u, id)
		}
		got, asked, err := c.ask(ctx, u, base, q, req, keyOf(u, base, repository, bare))
		if err != nil {
			return refused(err)
		}
		if res != nil {
			res.Body.Close() // a 502, 503 or 504 of the URL before
		}
		res, plainly = got, asked
		if q.Method == http.MethodHead && res.Request != nil && httporigin.CrossedHosts(res) &&
			takesNoHead(res.StatusCode) {
			res.StatusCode, res.Status = http.StatusMethodNotAllowed, "405 Method Not Allowed"
		}
		for i, link := range res.Header["Link"] {
			res.Header["Link"][i] = trimBase(base, link)
		}
		if unavailable(res.StatusCode) {
			return &source.StatusError{Method: q.Method, URL: secret.PrintableURL(req.URL), Status: res.StatusCode}
		}
		return nil
	})
	if res != nil {
		// The registry's error reply is better than our error about it.
		err = nil
		for k := range res.Header {
			if !slices.Contains(responseHeaders, k) {
				res.Header.Del(k)
			}
		}
		if plainly != "" {
			res.Header.Set(source.HeaderPlain, plainly)
		}
	}
	return res, err
}

// upstream finds how to ask a registry.
func (c *Client) upstream(name string) (*upstream, error) {
	host, err := oci.ParseHost(name)
	if err != nil {
		return nil, err
	}
	if u, ok := c.listed[host]; ok {
		return u, nil
	}
	if c.others == nil {
		return nil, &UpstreamError{Upstream: host}
	}
	u := *c.others
	u.name, u.bases = host, []*url.URL{u.base(host)}
	return &u, nil
}

// repositoryOf is the repository in a path of the distribution API, empty for a path that needs no token
// of one. kind is the part between it and the reference, as "blobs"; a repository may have a part of that name, too.
func repositoryOf(p string) (repository, kind string) {
	before, _ := path.Split(strings.TrimPrefix(p, "/v2/"))
	repository, kind = path.Split(strings.TrimSuffix(before, "/"))
	switch kind {
	case "manifests", "blobs", "tags", "referrers":
		return strings.TrimSuffix(repository, "/"), kind
	}
	return "", ""
}

// rootOf returns the path at which one of an upstream's URLs has the distribution API, and the path that goes before
// the repository there: "https://harbor.test/hub-cache" means /v2/hub-cache/REPOSITORY. A path with a part v2 is used
// as it is, as with containerd's override_path: "https://jfrog.test/artifactory/api/docker/hub/v2" has the API there.
func rootOf(base *url.URL) (root, project string) {
	parts := strings.Split(base.Path, "/")
	if i := slices.Index(parts, "v2"); i >= 0 {
		return "/" + strings.Join(parts[:i+1], "/") + "/", strings.Join(parts[i+1:], "/")
	}
	return "/v2/", base.Path
}

// at is the URL of a path of the distribution API at one of an upstream's URLs.
func at(base *url.URL, p, query string) *url.URL {
	root, project := rootOf(base)
	out := &url.URL{Scheme: base.Scheme, Host: base.Host, Path: root + strings.TrimPrefix(p, "/v2/"), RawQuery: query}
	if project != "" && p != "/v2/" {
		out.Path = root + project + "/" + strings.TrimPrefix(p, "/v2/")
	}
	return out
}

var linkTarget = regexp.MustCompile(`<[^<>]*>`)

// trimBase removes the path that at added from a Link (RFC 8288), so that the link names the repository as clients do.
func trimBase(base *url.URL, link string) string {
	if base.Path == "" {
		return link
	}
	return linkTarget.ReplaceAllStringFunc(link, func(s string) string {
		u, err := url.Parse(strings.Trim(s, "<>"))
		if err != nil {
			return s
		}
		root, project := rootOf(base)
		if project != "" {
			root += project + "/"
		}
		if rest, ok := strings.CutPrefix(u.Path, root); ok {
			u.Path, u.RawPath = "/v2/"+rest, ""
		}
		return "<" + u.String() + ">"
	})
}

// each tries an upstream's URLs in order, slow ones last, until one replies with another status than 502, 503 and 504.
func (c *Client) each(ctx context.Context, u *upstream, ask func(*url.URL) error) error {
	var err error
	for i, base := range c.slow.order(u.bases, time.Now()) {
		err = ask(base)
		var status *source.StatusError
		if err == nil || ctx.Err() != nil || (errors.As(err, &status) && !unavailable(status.Status)) {
			return err
		}
		if i+1 < len(u.bases) {
			c.cfg.Logger.WarnContext(ctx, "upstream URL passed over", "upstream", u.name,
				"url", secret.PrintableURL(base), "error", err)
		}
	}
	return err
}

// takesNoHead reports whether a storage may answer a HEAD with this status because it signed the URL for GET.
func takesNoHead(status int) bool {
	return status == http.StatusBadRequest || status == http.StatusForbidden || status == http.StatusNotImplemented
}

// onceMore reports whether a registry's error may concern one attempt alone. After a gateway's error the caller pauses
// before it tries again.
func onceMore(status int) bool {
	return status >= 500 && !unavailable(status) && status != http.StatusNotImplemented &&
		status != http.StatusHTTPVersionNotSupported
}

func unavailable(status int) bool {
	return status == http.StatusBadGateway || status == http.StatusServiceUnavailable ||
		status == http.StatusGatewayTimeout
}
