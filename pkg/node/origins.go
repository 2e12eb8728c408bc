package node

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/sharing"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/source/registry"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/pkg/telemetry"
	"github.com/darter-io/darter/pkg/version"
)

// Origins are the places outside the cluster to which this node may send requests.
type Origins struct {
	// Source opens tasks of every kind, for the engine.
	Source source.Origin
	// Files returns the metadata of files; Registries answers the lookups of the mirror.
	Files      *Files
	Registries *Registries
}

// Registries are the registries of the current settings. Safe for concurrent use.
type Registries struct {
	now    atomic.Pointer[registry.Client]
	opened opened
}

// openedMax bounds the downloads from registries that are remembered until they end.
const openedMax = 1024

// opened remembers where blobs come from until they are complete. The zero value is ready.
type opened struct {
	// mu is held to look up and change.
	mu    sync.Mutex
	specs map[task.ID]task.Spec
}

// put remembers a spec without its credentials.
func (o *opened) put(spec task.Spec) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.specs == nil || len(o.specs) >= openedMax {
		o.specs = map[task.ID]task.Spec{}
	}
	o.specs[spec.ID] = task.Spec{ID: spec.ID, Kind: spec.Kind, Upstream: spec.Upstream, Repository: spec.Repository}
}

func (o *opened) take(id task.ID) (task.Spec, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	spec, ok := o.specs[id]
	delete(o.specs, id)
	return spec, ok
}

// Open implements [source.Origin].
func (r *Registries) Open(ctx context.Context, spec task.Spec, offset int64) (*source.Response, error) {
	res, err := r.now.Load().Open(ctx, spec, offset)
	if err == nil {
		r.opened.put(spec)
	}
	return res, err
}

// OpenPart implements [source.PartOrigin].
func (r *Registries) OpenPart(ctx context.Context, spec task.Spec, offset, end int64) (*source.Response, error) {
	return r.now.Load().OpenPart(ctx, spec, offset, end)
}

// Do sends a request to a registry; see [registry.Client.Do].
func (r *Registries) Do(ctx context.Context, q source.RegistryRequest) (*http.Response, error) {
	return r.now.Load().Do(ctx, q)
}

// Allow returns nil for a registry to which the node may send requests; see [registry.Client.Allow].
func (r *Registries) Allow(name string) error { return r.now.Load().Allow(name) }

// Listed reports whether the operator listed a registry; see [registry.Client.Listed].
func (r *Registries) Listed(name string) bool { return r.now.Load().Listed(name) }

// Credentialed reports whether the node uses credentials of its own for a registry; see
// [registry.Client.Credentialed].
func (r *Registries) Credentialed(name string) bool { return r.now.Load().Credentialed(name) }

// FirstByte is how long a registry may take to begin an answer; see [registry.Client.FirstByte].
func (r *Registries) FirstByte(name string) time.Duration { return r.now.Load().FirstByte(name) }

// Cluster reports whether local clients may have what the cluster holds of an unreachable registry; see
// [registry.Client.Cluster].
func (r *Registries) Cluster(name string) bool { return r.now.Load().Cluster(name) }

// CloseIdleConnections ends the connections that no request uses.
func (r *Registries) CloseIdleConnections() { r.now.Load().CloseIdleConnections() }

// use replaces the client for new requests. Running requests of the former client go on.
func (r *Registries) use(next *registry.Client) {
	if former := r.now.Swap(next); former != nil {
		former.CloseIdleConnections()
	}
}

// Files are the web servers of the current settings. Safe for concurrent use.
type Files struct {
	now atomic.Pointer[httporigin.Origin]
}

// Open implements [source.Origin].
func (f *Files) Open(ctx context.Context, spec task.Spec, offset int64) (*source.Response, error) {
	return f.now.Load().Open(ctx, spec, offset)
}

// Probe requests the metadata of a file; see [httporigin.Origin.Probe].
func (f *Files) Probe(ctx context.Context, spec task.Spec) (httporigin.Info, error) {
	return f.now.Load().Probe(ctx, spec)
}

// Examine requests the metadata of a file and what decides its sharing; see [httporigin.Origin.Examine].
func (f *Files) Examine(ctx context.Context, spec task.Spec) (httporigin.Info, sharing.Answer, error) {
	return f.now.Load().Examine(ctx, spec)
}

// Window fetches the bytes of a range of a file; see [httporigin.Origin.Window].
func (f *Files) Window(ctx context.Context, spec task.Spec, w sharing.Window) ([]byte, error) {
	return f.now.Load().Window(ctx, spec, w)
}

// CloseIdleConnections ends the connections that no request uses.
func (f *Files) CloseIdleConnections() { f.now.Load().CloseIdleConnections() }

// use replaces the client for new requests. Running requests of the former client go on.
func (f *Files) use(next *httporigin.Origin) {
	if former := f.now.Swap(next); former != nil {
		former.CloseIdleConnections()
	}
}

func newOrigins(cfg Config) (o *Origins, err error) {
	o = &Origins{Registries: new(Registries), Files: new(Files)}
	registries, err := newRegistries(cfg)
	if err != nil {
		return nil, err
	}
	o.Registries.use(registries)
	files, err := newFiles(cfg)
	if err != nil {
		return nil, err
	}
	o.Files.use(files)
	o.Source = source.Mux{task.Plain: o.Files, task.Blob: o.Registries, task.Manifest: o.Registries}
	return o, nil
}

func newFiles(cfg Config) (*httporigin.Origin, error) {
	c := common(cfg)
	c.CAFile, c.Proxy, c.AllowHosts = cfg.Files.CA, cfg.Files.Proxy, append([]string{}, cfg.Files.AllowHosts...)
	o, err := httporigin.New(c)
	if err != nil {
		return nil, fmt.Errorf("files: %w", err)
	}
	return o, nil
}

// registryStall is how long a registry's body may be idle before the node requests the rest again. Container runtimes
// begin to time out there.
const registryStall = 10 * time.Second

// firstByte is the default of `firstByte` of an upstream: proxies that scan a blob or fetch it from elsewhere took up
// to 400 s.
const firstByte = 10 * time.Minute

// common returns the settings of every origin.
func common(cfg Config) httporigin.Config {
	return httporigin.Config{AllowAddrs: prefixes(cfg.Files.AllowAddresses), UserAgent: "darter/" + version.Current()}
}

func newRegistries(cfg Config) (*registry.Client, error) {
	r := registry.Config{Upstreams: map[string]registry.Upstream{}, HTTP: common(cfg), Logger: cfg.Logger}
	r.HTTP.IdleTimeout, r.HTTP.HeaderTimeout = registryStall, firstByte
	for _, u := range cfg.Origins.Upstreams {
		up := registry.Upstream{
			URLs: u.URLs, PlainHTTP: u.PlainHTTP, CAFile: u.CA, CertFile: u.ClientCert, KeyFile: u.ClientKey,
			Proxy: u.Proxy, Username: u.Username, DockerConfig: u.DockerConfig, Realms: u.Realms,
			AllowPrivateRealm: u.AllowPrivateRealm, FirstByte: u.FirstByte,
			ForbidPlainRedirects: u.ForbidPlainRedirects, ServerName: u.ServerName, Pin: u.Pin,
			Cluster: u.Access == config.AccessCluster,
		}
		if u.PasswordFile != "" {
			var err error
			if up.Password, err = config.ReadSecretFile(u.PasswordFile); err != nil {
				return nil, fmt.Errorf("upstreams: password of %s: %w", u.Host, err)
			}
		}
		r.Upstreams[u.Host] = up
	}
	if cfg.Origins.AllowUnlisted {
		r.Default = &registry.Upstream{}
	}
	r.Observe = func(upstream string, purpose registry.Purpose, status int) {
		cfg.upstreams.Count(upstream, telemetry.Purpose(purpose), status)
	}
	c, err := registry.New(r)
	if err != nil {
		return nil, fmt.Errorf("upstreams: %w", err)
	}
	cfg.upstreams.List(c.Upstreams()...)
	return c, nil
}

func (o *Origins) close() {
	o.Files.CloseIdleConnections()
	o.Registries.now.Load().Close()
}

func prefixes(list []config.Network) (out []netip.Prefix) {
	for _, n := range list {
		out = append(out, n.Prefix)
	}
	return out
}
