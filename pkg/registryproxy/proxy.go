// Package registryproxy is the registry mirror that container runtimes talk to: it names
// the registry that a client means, asks that registry whether this client may have the
// content, and serves the bytes from the swarm.
//
// A client gets nothing that the registry would refuse it, and no body ends complete and
// wrong: what fails before the first byte is an error that lets the client go elsewhere,
// what fails later is a short body. Start at [Proxy.ServeHTTP].
package registryproxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	v2 "github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/gorilla/mux"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// Bounds on a request, in bytes.
const (
	targetMax = 8 << 10  // path and query
	headerMax = 64 << 10 // Authorization and Accept together
	bodyMax   = 4 << 10  // a pull has no body; a small one is read and dropped
)

// Content is one content of the swarm that the proxy has open.
type Content interface {
	// Facts are known once the content is open.
	Facts() piece.Facts
	// NewReader reads the bytes [off, off+n) as they arrive. Cancelling ctx ends this
	// reader and nobody else's. It is closed before its content is.
	NewReader(ctx context.Context, off, n int64) Reader
	// Close ends the use of the content, not the download of others.
	Close() error
}

// Reader yields verified bytes in order. Its WriteTo sends each block from the memory in which
// it was compared with its checksum; it ends short, never wrong.
type Reader interface {
	io.ReadCloser
	io.WriterTo
}

// Upstream asks registries. Safe for concurrent use.
type Upstream interface {
	// Do puts one question with the client's own credentials. Whatever the registry
	// says, a refusal too, is an answer; the caller closes its body. An error means that
	// there was no answer, and says what was tried. The body is identity-encoded, and no
	// other host sees the credentials. Redirects are followed, for they are no consent: there
	// are registries that redirect whatever is asked for. A HEAD that finds no answer there,
	// because a storage signs its URLs for GET, is a 405.
	Do(ctx context.Context, q source.RegistryRequest) (*http.Response, error)
}

// Config says what a Proxy works with. Open and Upstream are required.
type Config struct {
	// Open brings a content into reach: it blocks until the facts are known or the content
	// cannot be had. The origin's refusal is an *api.Failure (errors.As). ctx covers the
	// opening and what is read; it ends when the client is gone or has waited too long.
	Open func(ctx context.Context, spec task.Spec) (Content, error)
	// Direct brings a content from its registry past every store, for a client that cannot go
	// elsewhere while a disk has no room for it. Nil: such a client is refused.
	Direct func(ctx context.Context, spec task.Spec, offset int64) (*source.Response, error)
	// Moving counts the bytes that have come in the cluster of a content whose length nobody knows
	// yet; 0 where there are none. While it grows, clients wait longer than Wait and Hold for
	// their first byte, which can come only when all is there. Nil: they do not.
	Moving func(id task.ID) int64
	// Replaced reports whether a client may hold the beginning of a content from bytes that
	// proved wrong or were dropped since: then no window of it is served, but the whole. Nil:
	// none may.
	Replaced func(id task.ID) bool
	// Upstream asks registries about rights and tags, and for what is not content.
	Upstream Upstream
	// Default is the registry that is meant when a request names none, in the spelling of
	// oci.ParseHost; empty refuses such requests.
	Default string
	// Allow returns nil for a registry that may be mirrored, else an error that tells the
	// operator how to allow it. Nil allows every registry: then whoever reaches the mirror
	// can make it ask any host.
	Allow func(upstream string) error
	// Shared asks the owner of a question in the cluster what is the same for every host: what
	// a tag means, what anybody may have. An error means that nobody answered in time, and
	// the registry is asked from here. Nil asks the registry at once.
	Shared func(ctx context.Context, q api.Lookup) (api.LookupReply, error)
	// Credentialed reports whether a registry is asked with credentials of this host where a
	// client brings none; what it says to them is not shared. Nil: none is.
	Credentialed func(upstream string) bool
	// Vouches reports whether a registry's manifests are believed when they say what belongs
	// to them; nil believes those of every registry that is allowed.
	Vouches func(upstream string) bool
	// Policy is what may be remembered, and for how long; see [Proxy.SetPolicy].
	Policy Policy
	// Observe is told of every request when it has ended; nil tells nobody. It must not
	// block.
	Observe func(Pull)
	// Wait is how long a client waits for its first byte before it is refused, so that it
	// can go elsewhere; the registry's own slowness counts. Less refuses crowds that a
	// slow registry would have served, more keeps clients from their next host. Default 10 s.
	Wait time.Duration
	// Hold is the same for the blobs of clients that name no registry by ?ns=: they take a
	// refused blob as the end of the pull. Default 60 s.
	Hold time.Duration
}

// Policy is how long a registry's word counts.
type Policy struct {
	// RightsLife is the longest that a registry's yes to one credential for one digest of one
	// repository counts; a token that ends earlier ends it, and without a token that says
	// when it ends it is a minute at the most. Longer spares HEADs, shorter sees sooner that
	// a registry took a right away before the token ended. Default 1 h.
	RightsLife time.Duration
	// ServeCached lets a yes count on, while the registry is unreachable, until the token
	// ends by its own word. Without it such clients are refused, for the registry might
	// have changed its mind.
	ServeCached bool
	// TagLife is how old the answer may be to what a tag means. Longer spares the registry a
	// question for each pull, shorter sees sooner that a tag has moved. 0 asks each time.
	TagLife time.Duration
	// TagStale is how old that answer may be while the registry is unreachable; 0 serves none
	// that is older than TagLife.
	TagStale time.Duration
}

// HeaderUnverified tells that the registry was unreachable and a former consent of it, which
// would have to be renewed, was counted.
const HeaderUnverified = "X-Darter-Unverified"

// HeaderStale tells that the registry was unreachable and its tag is served as it was so many
// seconds ago.
const HeaderStale = "X-Darter-Stale"

// Pull is what became of one request.
type Pull struct {
	// Endpoint is "manifest", "blob", "tags", "referrers" or "base", empty for a request
	// that is none of them.
	Endpoint string
	Method   string
	// Upstream and Repository are as the proxy understood them; Reference is the tag or
	// digest that the client gave.
	Upstream, Repository, Reference string
	// Task is empty until the content's digest is known.
	Task   task.ID
	Client string // User-Agent
	// Status is what the client was told; 499 when it left before.
	Status int
	// Unverified says that the client's right was counted although it was to be renewed.
	Unverified bool
	// Stale is how old the answer to what the tag means was, when it was served because the
	// registry was unreachable; else 0.
	Stale time.Duration
	// Direct says that the content came from its registry past every store, for want of room.
	Direct bool
	// Ranged says that one window was served and not the whole.
	Ranged bool
	// Bytes of the body that were sent.
	Bytes int64
	// Asked is the time from the request until it was known whether the client may have the
	// content, Opened until its facts were known, FirstByte until the first byte of the body;
	// each is 0 when it did not come to that. Total is the time to the end.
	Asked, Opened, FirstByte, Total time.Duration
	// Err is why the request was refused or its body cut.
	Err error
	// Content is what was served, still open; nil when nothing was opened.
	Content Content
}

// Proxy is the mirror: an [http.Handler] for /v2/.
type Proxy struct {
	cfg    Config
	router *mux.Router
	desk   *desk

	greetings greetings
	// doubts are the contents whose bytes proved wrong on their way past every store.
	doubts doubts
}

// New returns a Proxy with the given settings and their defaults.
func New(cfg Config) *Proxy {
	if cfg.Wait <= 0 {
		cfg.Wait = 10 * time.Second
	}
	if cfg.Hold <= 0 {
		cfg.Hold = 60 * time.Second
	}
	if cfg.Allow == nil {
		cfg.Allow = func(string) error { return nil }
	}
	if cfg.Vouches == nil {
		cfg.Vouches = func(string) bool { return true }
	}
	if cfg.Replaced == nil {
		cfg.Replaced = func(task.ID) bool { return false }
	}
	if cfg.Observe == nil {
		cfg.Observe = func(Pull) {}
	}
	// A router of our own: v2.Router is shared by the whole process.
	router := v2.RouterWithPrefix("")
	router.Path(referrersPath).Name(routeReferrers)
	p := &Proxy{cfg: cfg, router: router, desk: &desk{upstream: cfg.Upstream, shared: cfg.Shared, credentialed: cfg.Credentialed}}
	p.SetPolicy(cfg.Policy)
	return p
}

// SetPolicy changes what may be remembered from now on.
func (p *Proxy) SetPolicy(policy Policy) {
	if policy.RightsLife <= 0 {
		policy.RightsLife = time.Hour
	}
	p.desk.policy.Store(&policy)
}

// Forget drops all that registries have said, as when they are asked in another way from now
// on.
func (p *Proxy) Forget() { p.desk.forget() }

// statusGone is what logs say of a client that left, by a convention of nginx.
const statusGone = 499

// ServeHTTP answers one request of the distribution API (OCI distribution-spec, "Pull").
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.serve(w, r, p.cfg.Default) }

// For is the same mirror with another registry as the default, for a listener of its own.
func (p *Proxy) For(registry string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, registry) })
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request, fallback string) {
	x := &exchange{Proxy: p, w: w, r: r, began: time.Now(), limit: p.cfg.Wait, fallback: fallback, authorization: r.Header.Get("Authorization")}
	x.pull.Method, x.pull.Client = r.Method, r.UserAgent()
	defer x.observe()
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")

	if refused := x.answer(); refused != nil {
		x.refuse(refused)
	}
}

// exchange is one request on its way to its answer.
type exchange struct {
	*Proxy
	w     http.ResponseWriter
	r     *http.Request
	began time.Time
	// fallback is the registry that is meant when the request names none.
	fallback string
	// authorization is what the client brought, a secret; empty once it was found to be
	// meant for another registry.
	authorization string
	// limit is how long the client waits for its first byte; late ends ctx then.
	limit time.Duration
	late  *time.Timer
	ctx   context.Context
	t     target
	pull  Pull
}

// observe tells what became of the request, whatever way it ended.
func (x *exchange) observe() {
	x.pull.Total = time.Since(x.began)
	x.cfg.Observe(x.pull)
	if x.pull.Content != nil {
		x.pull.Content.Close()
	}
}

// answer answers, or returns why not while nothing is written yet.
func (x *exchange) answer() *refusal {
	t, refused := x.target(x.r, x.fallback)
	x.t = t
	x.pull.Endpoint, x.pull.Upstream, x.pull.Repository, x.pull.Reference = t.endpoint, t.upstream, t.repository, t.reference
	if host, err := oci.ParseHost(t.namespace); t.namespace != "" && err == nil && host == t.upstream {
		x.w.Header().Set("OCI-Namespace", t.namespace) // it was used (OCI distribution-spec, "Registry Proxying")
	}
	if refused != nil {
		return refused
	}
	// What is unread when a connection ends turns its FIN into a reset.
	if n, _ := io.CopyN(io.Discard, x.r.Body, bodyMax+1); n > bodyMax {
		return refuse(http.StatusRequestEntityTooLarge, "a pull has no body of more than %d bytes", bodyMax)
	}

	if t.endpoint == endpointBlob && t.namespace == "" {
		x.limit = x.cfg.Hold
	}
	ctx, cancel := context.WithCancelCause(x.r.Context())
	defer cancel(nil)
	x.ctx = ctx
	x.late = time.AfterFunc(x.limit, func() { cancel(errLate) })
	defer x.late.Stop()

	if x.passwordOfDefault() {
		x.authorization = ""
	}
	switch t.endpoint {
	case endpointManifest, endpointBlob:
		return x.serveContent()
	default:
		return x.forward()
	}
}

// errLate ends the context of a client that waited too long for its first byte.
var errLate = errors.New("no byte came in time")
