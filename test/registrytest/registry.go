// Package registrytest is the upstream of tests and of the demo: a real distribution/v3 registry behind a front that
// counts every request and byte, limits rates, injects faults and requires credentials.
//
// It counts bytes where they leave the registry, so that a figure of egress never depends on a client. Start at
// [Start] in a test and at [Listen] elsewhere.
package registrytest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd"
	_ "github.com/distribution/distribution/v3/registry/auth/token"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sirupsen/logrus"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/time/rate"
)

// Auth is the registry's kind of authentication.
type Auth string

// The kinds of authentication.
const (
	None   Auth = ""       // every client may read and write
	Basic  Auth = "basic"  // htpasswd
	Bearer Auth = "bearer" // a token service at /token of the registry's own host and port
)

// User is an account of the registry.
type User struct {
	Password string
	// Pull and Push are patterns of repositories ([path.Match]; "*" alone means all).
	Pull, Push []string
}

// Config of a registry. The zero value serves from memory, without credentials, on a free loopback port.
type Config struct {
	// Addr to listen on; empty is "127.0.0.1:0".
	Addr string
	// Dir is the directory of the blobs; empty keeps them in memory.
	Dir string
	// Auth is None by default.
	Auth Auth
	// Users by name. The user "" is anonymous: the repositories that it may pull are public.
	Users map[string]User
	// TokenLife is the lifetime of a token, 5 minutes by default. It is exact, without distribution's leeway of one
	// minute.
	TokenLife time.Duration
	// TLS serves HTTPS with a certificate of the registry's own authority, see [Registry.CA].
	TLS bool
	// Names are added to the certificate, which has localhost and the listening addresses anyway.
	Names []string
	// HTTP2 answers 505 to HTTP/1.1; it needs TLS.
	HTTP2 bool
	// ClientCert requires a certificate of the same authority from each client; it needs TLS.
	ClientCert bool
	// StorageAddr is the address of the host to which [ActRedirect] redirects; empty is "127.0.0.1:0".
	StorageAddr string
	// PlainStorage serves that host by HTTP, also with TLS.
	PlainStorage bool
	// Notify is the URL of an endpoint for distribution's notifications, empty for none; NotifyToken goes with them as
	// Authorization: Bearer.
	Notify, NotifyToken string
	// Peculiarity changes the registry's answers; nil for distribution's own. See [Peculiarities].
	Peculiarity Peculiarity
}

// Registry is a registry that listens. Its methods are safe for concurrent use.
type Registry struct {
	cfg     Config
	scheme  string
	app     *handlers.App
	dir     string // of keys and passwords, removed at the end
	tokens  *tokens
	ca      *authority
	main    net.Listener
	storage net.Listener
	master  User // an internal user with all rights
	wire    atomic.Int64
	// signature is the valid signature of the storage host's URLs.
	signature string

	all rate.Limiter // bytes of all connections

	// mu guards the fields below and is never held while bytes move.
	mu      sync.Mutex
	perConn rate.Limit
	faults  []*Fault
	counts  Counts
	// release is closed to end stalls.
	release chan struct{}
}

const masterName = "registrytest-master"

var quiet sync.Once

// Listen makes a registry and opens its listeners; [Registry.Run] serves them. [Registry.Push] works at once.
func Listen(cfg Config) (_ *Registry, err error) {
	// distribution logs through logrus's global logger, which would fill a test's output.
	quiet.Do(func() { logrus.SetLevel(logrus.PanicLevel) })
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	if cfg.StorageAddr == "" {
		cfg.StorageAddr = "127.0.0.1:0"
	}
	if cfg.TokenLife == 0 {
		cfg.TokenLife = 5 * time.Minute
	}
	r := &Registry{
		cfg: cfg, scheme: "http", release: make(chan struct{}), perConn: rate.Inf, signature: rand.Text(),
		master: User{Password: rand.Text(), Pull: []string{"*"}, Push: []string{"*"}},
	}
	r.all.SetLimit(rate.Inf)
	r.all.SetBurst(shapeBurst)
	r.counts = newCounts()
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if r.dir, err = os.MkdirTemp("", "registrytest-"); err != nil {
		return nil, fmt.Errorf("creating a directory for keys: %w", err)
	}
	yaml, err := r.configuration()
	if err != nil {
		return nil, err
	}
	if r.main, err = net.Listen("tcp", cfg.Addr); err != nil {
		return nil, fmt.Errorf("opening the registry's listener: %w", err)
	}
	if r.storage, err = net.Listen("tcp", cfg.StorageAddr); err != nil {
		return nil, fmt.Errorf("opening the storage's listener: %w", err)
	}
	if cfg.TLS {
		r.scheme = "https"
		hosts := append(cfg.Names, hostOf(r.main.Addr().String()), hostOf(r.storage.Addr().String()))
		if r.ca, err = newAuthority(hosts); err != nil {
			return nil, err
		}
	}
	parsed, err := configuration.Parse(strings.NewReader(yaml))
	if err != nil {
		return nil, fmt.Errorf("parsing the registry's configuration: %w", err)
	}
	// NewApp panics on a bad configuration; this one is tested.
	r.app = handlers.NewApp(context.Background(), parsed)
	return r, nil
}

// configuration writes the files of the registry's authentication and returns its configuration (YAML).
func (r *Registry) configuration() (string, error) {
	yaml := []string{
		"version: 0.1", "http: {secret: " + rand.Text() + "}", "storage:", "  delete: {enabled: true}",
		"  redirect: {disable: true}", "  maintenance: {uploadpurging: {enabled: false}}",
	}
	if r.cfg.Dir == "" {
		yaml = append(yaml, "  "+memoryDriver+": {}")
	} else {
		yaml = append(yaml, fmt.Sprintf("  filesystem: {rootdirectory: %q}", r.cfg.Dir))
	}
	if r.cfg.Notify != "" {
		yaml = append(yaml, fmt.Sprintf("notifications: {endpoints: [{name: test, url: %q, headers: {Authorization: "+
			"[%q]}, timeout: 10s, threshold: 3, backoff: 100ms}]}", r.cfg.Notify, "Bearer "+r.cfg.NotifyToken))
	}
	switch r.cfg.Auth {
	case None:
	case Basic:
		file := filepath.Join(r.dir, "htpasswd")
		if err := r.writePasswords(file); err != nil {
			return "", err
		}
		yaml = append(yaml, fmt.Sprintf("auth: {htpasswd: {realm: registrytest, path: %q}}", file))
	case Bearer:
		file := filepath.Join(r.dir, "jwks.json")
		var err error
		if r.tokens, err = newTokens(file); err != nil {
			return "", err
		}
		yaml = append(yaml, fmt.Sprintf("auth: {token: {autoredirect: true, autoredirectpath: /token, realm: unused, "+
			"service: %s, issuer: %s, jwks: %q, signingalgorithms: [ES256]}}", tokenService, tokenIssuer, file))
	default:
		return "", fmt.Errorf("unknown authentication %q: want \"\", basic or bearer", r.cfg.Auth)
	}
	return strings.Join(yaml, "\n"), nil
}

func hostOf(addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	return host
}

func (r *Registry) writePasswords(file string) error {
	var out bytes.Buffer
	users := map[string]User{masterName: r.master}
	for name, u := range r.cfg.Users {
		if name != "" {
			users[name] = u
		}
	}
	for name, u := range users {
		hash, err := bcrypt.GenerateFromPassword([]byte(u.Password), bcrypt.MinCost)
		if err != nil {
			return fmt.Errorf("hashing the password of %s: %w", name, err)
		}
		fmt.Fprintf(&out, "%s:%s\n", name, hash)
	}
	if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
		return fmt.Errorf("writing the passwords: %w", err)
	}
	return nil
}

// Run serves until ctx ends, then closes the listeners and all connections.
func (r *Registry) Run(ctx context.Context) error {
	defer r.close()
	servers := []*http.Server{
		{Handler: r, ConnContext: withConn, ErrorLog: log.New(io.Discard, "", 0)},
		{Handler: http.HandlerFunc(r.serveStorage), ConnContext: withConn, ErrorLog: log.New(io.Discard, "", 0)},
	}
	errs := make(chan error, len(servers))
	for i, l := range []net.Listener{r.main, r.storage} {
		l = &countingListener{Listener: l, registry: r}
		if r.ca != nil && !(r.cfg.PlainStorage && i == 1) {
			l = tls.NewListener(l, r.ca.serverConfig(r.cfg))
		}
		go func() { errs <- servers[i].Serve(l) }()
	}
	var failed error
	waiting := len(servers)
	select {
	case <-ctx.Done():
	case failed = <-errs:
		waiting--
	}
	for _, s := range servers {
		s.Close()
	}
	for range waiting {
		<-errs
	}
	if failed != nil && !errors.Is(failed, http.ErrServerClosed) {
		return fmt.Errorf("serving the registry: %w", failed)
	}
	return nil
}

func (r *Registry) close() {
	r.mu.Lock()
	r.faults = nil
	close(r.release)
	r.release = make(chan struct{})
	r.mu.Unlock()
	for _, l := range []net.Listener{r.main, r.storage} {
		if l != nil {
			l.Close()
		}
	}
	if r.app != nil {
		_ = r.app.Shutdown() // leaves a goroutine, see LeakIgnored
	}
	if r.dir != "" {
		os.RemoveAll(r.dir)
	}
}

// LeakIgnored is the function of the one goroutine that distribution's Shutdown leaves, for goleak.IgnoreAnyFunction.
const LeakIgnored = "github.com/docker/go-events.(*Broadcaster).run"

// LeakIgnoredNotify is the same of a registry with Config.Notify.
const LeakIgnoredNotify = "github.com/distribution/distribution/v3/notifications.(*eventQueue).run"

// TB is the part of [testing.TB] that [Start] uses.
type TB interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
}

// Start runs a registry until the test ends.
func Start(t TB, cfg Config) *Registry {
	t.Helper()
	r, err := Listen(cfg)
	if err != nil {
		t.Fatalf("starting a registry: %v", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return r
}

// Host returns the registry's host:port.
func (r *Registry) Host() string { return r.main.Addr().String() }

// URL returns the registry's URL without a path.
func (r *Registry) URL() string { return r.scheme + "://" + r.Host() }

// StorageHost returns host:port of the host to which [ActRedirect] redirects.
func (r *Registry) StorageHost() string { return r.storage.Addr().String() }

// CA returns the certificate of the registry's own authority (PEM); nil without TLS.
func (r *Registry) CA() []byte {
	if r.ca == nil {
		return nil
	}
	return r.ca.pem
}

// CertPool returns a pool with the registry's own authority; nil without TLS.
func (r *Registry) CertPool() *x509.CertPool {
	if r.ca == nil {
		return nil
	}
	return r.ca.pool()
}

// ClientCert issues a client certificate and its key (PEM).
func (r *Registry) ClientCert(commonName string) (cert, key []byte, err error) {
	if r.ca == nil {
		return nil, nil, errors.New("a registry without TLS issues no client certificates: set Config.TLS")
	}
	return r.ca.issue(commonName, nil)
}

// RevokeTokens expires every token issued so far.
func (r *Registry) RevokeTokens() {
	if r.tokens != nil {
		r.tokens.revoke()
	}
}

// Pushed is an image or index in the registry.
type Pushed struct {
	Content
	Repository string `json:"repository"`
	Tag        string `json:"tag"`
}

// Push stores an image as repository:tag. It bypasses the front: no counts, limits, faults or credentials.
func (r *Registry) Push(ctx context.Context, repository, tag string, img v1.Image) (Pushed, error) {
	c, err := Describe(img)
	if err != nil {
		return Pushed{}, err
	}
	ref, opts, err := r.direct(ctx, repository, tag)
	if err != nil {
		return Pushed{}, err
	}
	if err := remote.Write(ref, img, opts...); err != nil {
		return Pushed{}, fmt.Errorf("pushing %s: %w", ref, err)
	}
	return Pushed{Content: c, Repository: repository, Tag: tag}, nil
}

// PushIndex stores an index and its images, like [Registry.Push].
func (r *Registry) PushIndex(ctx context.Context, repository, tag string, idx v1.ImageIndex) (Pushed, error) {
	c, err := DescribeIndex(idx)
	if err != nil {
		return Pushed{}, err
	}
	ref, opts, err := r.direct(ctx, repository, tag)
	if err != nil {
		return Pushed{}, err
	}
	if err := remote.WriteIndex(ref, idx, opts...); err != nil {
		return Pushed{}, fmt.Errorf("pushing %s: %w", ref, err)
	}
	return Pushed{Content: c, Repository: repository, Tag: tag}, nil
}

// PushBlob stores bytes as a blob of a repository, like [Registry.Push], and returns its digest.
func (r *Registry) PushBlob(ctx context.Context, repository string, data []byte) (digest string, err error) {
	l := static.NewLayer(data, types.OCILayer)
	h, err := l.Digest()
	if err != nil {
		return "", fmt.Errorf("hashing a blob: %w", err)
	}
	ref, opts, err := r.direct(ctx, repository, "unused")
	if err != nil {
		return "", err
	}
	if err := remote.WriteLayer(ref.Context(), l, opts...); err != nil {
		return "", fmt.Errorf("pushing blob %s to %s: %w", h, repository, err)
	}
	return h.String(), nil
}

func (r *Registry) direct(ctx context.Context, repository, tag string) (name.Tag, []remote.Option, error) {
	ref, err := name.NewTag(r.Host()+"/"+repository+":"+tag, name.Insecure, name.StrictValidation)
	if err != nil {
		return ref, nil, fmt.Errorf("naming %s:%s: %w", repository, tag, err)
	}
	opts := []remote.Option{remote.WithContext(ctx), remote.WithTransport(inside{r}), remote.WithJobs(1)}
	if r.cfg.Auth != None {
		opts = append(opts, remote.WithAuth(&authn.Basic{Username: masterName, Password: r.master.Password}))
	}
	return ref, opts, nil
}

// Open reads an object of a repository and bypasses the front. kind is "blobs" or "manifests", reference a digest or
// tag.
func (r *Registry) Open(repository, kind, reference string) ([]byte, error) {
	req, err := http.NewRequest(http.MethodGet, r.URL()+"/v2/"+path.Join(repository, kind, reference), nil)
	if err != nil {
		return nil, fmt.Errorf("naming %s/%s/%s: %w", repository, kind, reference, err)
	}
	req.Header.Set("Accept", "*/*")
	for _, t := range []types.MediaType{
		types.OCIImageIndex, types.OCIManifestSchema1, types.DockerManifestList, types.DockerManifestSchema2,
	} {
		req.Header.Add("Accept", string(t))
	}
	r.authorizeInside(req, repository)
	res, err := inside{r}.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("reading %s/%s/%s: %s", repository, kind, reference, res.Status)
	}
	return b, err
}

// authorizeInside adds the internal user's credentials for a repository to a request.
func (r *Registry) authorizeInside(req *http.Request, repository string) {
	switch r.cfg.Auth {
	case Basic:
		req.SetBasicAuth(masterName, r.master.Password)
	case Bearer:
		all := []access{{Type: "repository", Name: repository, Actions: []string{"pull", "push"}}}
		token, _ := r.tokens.issue(masterName, all, r.cfg.TokenLife)
		req.Header.Set("Authorization", "Bearer "+token)
	}
}

// inside is a transport that calls the registry directly, without network and front.
type inside struct{ r *Registry }

func (t inside) RoundTrip(req *http.Request) (*http.Response, error) {
	if s := req.URL.Scheme; s != "" && s != t.r.scheme {
		// A client that tries HTTPS first would reject the token service's HTTP URL.
		return nil, fmt.Errorf("the registry serves only %s", t.r.scheme)
	}
	in := req.Clone(req.Context())
	in.RequestURI = req.URL.RequestURI()
	if in.Body == nil {
		in.Body = http.NoBody
	}
	defer in.Body.Close()
	if in.Host == "" {
		in.Host = req.URL.Host
	}
	in.RemoteAddr = "127.0.0.1:1"
	rec := httptest.NewRecorder()
	t.r.serveApp(rec, in)
	res := rec.Result()
	res.Request = req
	return res, nil
}

// serveApp serves distribution and the token service, without the front.
func (r *Registry) serveApp(w http.ResponseWriter, req *http.Request) {
	req.Header.Set("X-Forwarded-Proto", r.scheme)
	if r.tokens != nil {
		if req.URL.Path == "/token" {
			r.serveToken(w, req)
			return
		}
		if token, ok := bearerOf(req); ok && !r.tokens.live(token) {
			// distribution would accept the token for another minute.
			req.Header.Del("Authorization")
		}
	}
	if r.cfg.Auth == Basic && !r.authorizeBasic(w, req) {
		return
	}
	r.app.ServeHTTP(w, req)
}

// authorizeBasic limits htpasswd users to their repositories, which distribution does not, and opens public
// repositories to the anonymous user. It returns false after an error answer.
func (r *Registry) authorizeBasic(w http.ResponseWriter, req *http.Request) bool {
	o, ok := parsePath(req.URL.Path)
	if !ok {
		return true
	}
	action := "pull"
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		action = "push"
	}
	user, password, given := req.BasicAuth()
	if !given {
		if r.may("", o.repository, action) {
			req.SetBasicAuth(masterName, r.master.Password)
		}
		return true
	}
	if u, known := r.user(user); known && u.Password == password && !r.may(user, o.repository, action) {
		writeError(w, http.StatusForbidden, "DENIED", "requested access to the resource is denied")
		return false
	}
	return true
}

func (r *Registry) user(name string) (User, bool) {
	if name == masterName {
		return r.master, true
	}
	u, ok := r.cfg.Users[name]
	return u, ok
}

// may reports whether a user may pull from or push to a repository.
func (r *Registry) may(user, repository, action string) bool {
	u, ok := r.user(user)
	if !ok {
		return false
	}
	patterns := u.Pull
	if action != "pull" {
		patterns = u.Push
	}
	for _, p := range patterns {
		if ok, _ := path.Match(p, repository); ok || p == "*" {
			return true
		}
	}
	return false
}

func writeError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}

// object is the object that a path of the distribution API names.
type object struct{ repository, kind, reference string }

// parsePath parses /v2/<repository>/<blobs|manifests|tags|referrers>/<reference>.
func parsePath(p string) (object, bool) {
	rest, ok := strings.CutPrefix(p, "/v2/")
	if !ok {
		return object{}, false
	}
	for _, kind := range []string{"blobs", "manifests", "tags", "referrers"} {
		if i := strings.LastIndex(rest, "/"+kind+"/"); i > 0 {
			return object{repository: rest[:i], kind: kind, reference: rest[i+len(kind)+2:]}, true
		}
	}
	return object{}, false
}
