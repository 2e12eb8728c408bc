// Package registryproxy is the registry mirror that container runtimes pull from: it finds the registry
// that a client means, lets [access.Resolver] ask it whether this client may read the blob, and serves
// the bytes from the swarm.
//
// While the registry answers, a client gets nothing that the registry would refuse it; package access says what counts
// while it does not. No body ends complete and wrong, but for a range that names its end, whose client checks what it
// gets: an error before the first byte is a status that lets the client go
// elsewhere, a later one is a short body. A request passes, in order, proxy.go, target.go, grant.go and serve.go. Start
// at [Proxy.ServeHTTP].
package registryproxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	v2 "github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/gorilla/mux"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// Blob is a blob or manifest of the swarm that the proxy has open.
type Blob interface {
	// Metadata is known once the blob is open.
	Metadata() piece.Metadata
	// NewReader reads the bytes [off, off+n) as they arrive. Cancelling ctx ends this reader alone. It
	// is closed before its blob.
	NewReader(ctx context.Context, off, n int64) Reader
	// Close ends this use of the blob, not the download of others.
	Close() error
}

// PartBlob is a [Blob] that gives parts of it to clients that check what they get by themselves.
type PartBlob interface {
	// NewPartReader is NewReader, but the last bytes of the blob may come before the whole was checked.
	NewPartReader(ctx context.Context, off, n int64) Reader
}

// Reader yields verified bytes in order. Its WriteTo sends each block from the memory in which it was
// compared with its checksum; it ends short, never wrong.
type Reader interface {
	io.ReadCloser
	io.WriterTo
}

// Config says what a Proxy works with. Resolver and Open are required.
type Config struct {
	// Resolver grants what clients may read, and sends other requests to registries.
	Resolver *access.Resolver
	// Open opens a blob: it blocks until the blob's metadata is known or the blob cannot be had. The
	// origin's error is an *api.Failure (errors.As). ctx covers the opening and the reading; it ends
	// when the client is gone or has waited too long.
	Open func(ctx context.Context, spec task.Spec) (Blob, error)
	// Passthrough opens a blob at its registry, past every store, for a client that cannot go elsewhere
	// while a disk is full. Nil: such a client is refused.
	Passthrough func(ctx context.Context, spec task.Spec, offset int64) (*source.Response, error)
	// Signs are what this host sees of a blob on its way. While bytes move, or the registry was asked and has not answered
	// yet, clients wait longer than Wait and Hold for their first byte: see [policy.Hold]. Nil: they do not.
	Signs func(id task.ID) policy.Signs
	// FirstByte is how long a registry may take to begin an answer; clients wait as long for it. Nil: Wait and
	// Hold bound that, too.
	FirstByte func(upstream string) time.Duration
	// Replaced reports whether a client may hold the beginning of a blob from bytes that proved wrong or
	// were dropped since: then the whole blob is served instead of a range. Nil: none may.
	Replaced func(id task.ID) bool
	// Default is the registry of a request that names none, in the spelling of [oci.ParseHost]; empty
	// refuses such requests.
	Default string
	// Allow returns nil for a registry that may be mirrored, else an error that tells the operator how to
	// allow it. Nil allows every registry: then any client of the mirror can make it ask any host.
	Allow func(upstream string) error
	// NamesKey returns the members' HMAC key of [task.Spec.Asker], by which the mirror recognises a request's own
	// failures; nil: there is none.
	NamesKey func() []byte
	// Observe receives every request when it has ended. It must not block. Nil: nothing does.
	Observe func(Pull)
	// Wait is how long a client waits for its first byte, while no bytes move and no registry was asked. Then the mirror
	// refuses it, so that it can go elsewhere. A shorter time refuses crowds on busy machines, a longer one keeps clients
	// from their next host. Default 10 s.
	Wait time.Duration
	// Hold is the same for the blobs of clients that name no registry by ?ns=: a refused blob ends their
	// pull. Default 60 s.
	Hold time.Duration
}

// HeaderUnverified marks a response for which the registry was unreachable. Its value is the reason why the client got
// it: an earlier grant, that anonymous clients could read it, or the operator's access: cluster.
const HeaderUnverified = "X-Darter-Unverified"

// HeaderStale marks a response for which the registry was unreachable. Its value is the age of the tag or ping that was
// served, in seconds.
const HeaderStale = "X-Darter-Stale"

// Pull describes one request that has ended.
type Pull struct {
	// Endpoint is "manifest", "blob", "tags", "referrers" or "base", empty for a request that is none of
	// them.
	Endpoint string
	Method   string
	// Upstream and Repository are as the proxy understood them; Reference is the client's tag or digest.
	Upstream, Repository, Reference string
	// Task is empty until the digest is known.
	Task   task.ID
	Client string // User-Agent
	// Status is the response's; 499 when the client left before it.
	Status int
	// Unverified is why the client got the blob although the registry was unreachable; empty: it answered.
	Unverified access.Basis
	// Stale is the age of the tag's meaning, when it was used because the registry was unreachable; else
	// 0.
	Stale time.Duration
	// Passthrough says that the bytes came from the registry past every store, because a disk was full.
	Passthrough bool
	// Ranged says that a range was served and not the whole blob.
	Ranged bool
	// Bytes of the body that were sent.
	Bytes int64
	// Granted is the time from the request until the grant was known, Opened until the blob's metadata
	// was, FirstByte until the first byte of the body; each is 0 if the request ended before. Total is
	// the time to the end.
	Granted, Opened, FirstByte, Total time.Duration
	// Err is why the request was refused or its body cut.
	Err error
	// Blob is what was served, still open; nil when nothing was opened.
	Blob Blob
}

// Proxy is the mirror: an [http.Handler] for /v2/.
type Proxy struct {
	cfg    Config
	router *mux.Router
	pings  *pings
	// tainted are the blobs whose bytes proved wrong on their way past every store.
	tainted tainted
}

// New returns a Proxy with the given settings and their defaults. It starts no goroutine that outlives
// a request.
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
	if cfg.Replaced == nil {
		cfg.Replaced = func(task.ID) bool { return false }
	}
	if cfg.Observe == nil {
		cfg.Observe = func(Pull) {}
	}
	// A router of our own: v2.Router is shared by the whole process.
	router := v2.RouterWithPrefix("")
	router.Path(referrersPath).Name(routeReferrers)
	return &Proxy{cfg: cfg, router: router, pings: newPings()}
}

// ForgetChallenges drops the answers of registries to requests without credentials, for instance because a reload
// changes how registries are asked. While a registry is unreachable, no client gets an earlier answer.
func (p *Proxy) ForgetChallenges() { p.pings.forget() }

// For returns a handler of the same mirror for a listener of one registry: a request there that names no registry means
// this one, and each ping goes to it.
func (p *Proxy) For(registry string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, registry, true) })
}

// ServeHTTP answers one request of the distribution API (OCI distribution-spec, "Pull").
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.serve(w, r, p.cfg.Default, false)
}

// request is one request on its way to its response.
type request struct {
	*Proxy
	w     http.ResponseWriter
	r     *http.Request
	began time.Time
	// fallback is the registry of a request that names none.
	fallback string
	// dedicated says that the listener is of that registry alone.
	dedicated bool
	target    target
	// authorization is the client's header, a secret; empty once the mirror found that it is meant for another registry.
	authorization string
	// generation is that of the challenges when the request began.
	generation uint64
	// wait is how long the client waits for its first byte without a sign of it; hold ends ctx then.
	wait time.Duration
	hold *hold
	// look returns the signs of the blob; nil before its opening.
	look func() policy.Signs
	ctx  context.Context
	pull Pull
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request, fallback string, dedicated bool) {
	req := &request{
		Proxy: p, w: w, r: r, began: time.Now(), fallback: fallback, dedicated: dedicated, wait: p.cfg.Wait,
		authorization: r.Header.Get("Authorization"), generation: p.pings.now(),
	}
	req.pull.Method, req.pull.Client = r.Method, r.UserAgent()
	defer req.observe()
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	if err := req.answer(); err != nil {
		req.writeError(err)
	}
}

// observe reports the request after any end.
func (req *request) observe() {
	req.pull.Total = time.Since(req.began)
	req.cfg.Observe(req.pull)
	if req.pull.Blob != nil {
		req.pull.Blob.Close()
	}
}

// answer answers the request. The error is the response while nothing is written yet.
func (req *request) answer() *apiError {
	t, err := req.parseTarget(req.r, req.fallback)
	req.target = t
	req.pull.Endpoint, req.pull.Upstream = t.endpoint, t.upstream
	req.pull.Repository, req.pull.Reference = t.repository, t.reference
	if host, bad := oci.ParseHost(t.namespace); t.namespace != "" && bad == nil && host == t.upstream {
		req.w.Header().Set("OCI-Namespace", t.namespace) // it was used (OCI distribution-spec, "Registry Proxying")
	}
	if err != nil {
		return err
	}
	// Unread bytes turn the FIN at a connection's end into a reset.
	if n, _ := io.CopyN(io.Discard, req.r.Body, bodyMax+1); n > bodyMax {
		return newError(http.StatusRequestEntityTooLarge, "a pull has no body of more than %d bytes", bodyMax)
	}

	if t.endpoint == endpointBlob && t.namespace == "" {
		req.wait = req.cfg.Hold
	}
	ctx, cancel := context.WithCancelCause(req.r.Context())
	defer cancel(nil)
	req.ctx = ctx
	req.hold = newHold(func() { cancel(errDeadline) })
	defer req.hold.stop()
	if t.endpoint == endpointBase {
		req.hold.until(req.wait) // clients wait less for a ping, and the last reply is remembered
	} else {
		req.hold.until(req.firstByte())
	}

	if req.bringsPasswordOfDefault() {
		req.authorization = ""
	}
	if t.endpoint != endpointManifest && t.endpoint != endpointBlob {
		return req.forward()
	}
	g, err := req.grant()
	if err != nil {
		return err
	}
	if t.endpoint == endpointManifest && (oci.Signed(g.MediaType) || g.Length > oci.ManifestMax) {
		return req.forward() // no swarm can compare it with its digest, or carry it
	}
	return req.serveBlob(g)
}

// firstByte is how long the client waits for an answer of the registry.
func (req *request) firstByte() time.Duration {
	if req.cfg.FirstByte == nil {
		return req.wait
	}
	return max(req.wait, req.cfg.FirstByte(req.target.upstream))
}

// errDeadline ends the context of a client that waited too long for its first byte.
var errDeadline = errors.New("no byte came in time")
