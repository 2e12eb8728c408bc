// Package daemon assembles the program that runs on every node: the registry mirror, the local API that serves files,
// and the peer that downloads and serves pieces.
//
// It serves a client only what the origin grants to that client, and listens for clients only on loopback unless the
// operator configures another address. Without a supernode, or while none answers, it leads its own tasks and works as
// a pull-through cache. Start at [New] and [Daemon.Run].
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/announce"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/coordinator"
	"github.com/darter-io/darter/pkg/httpproxy"
	"github.com/darter-io/darter/pkg/httpserver"
	"github.com/darter-io/darter/pkg/node"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/preheat/jobs"
	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/pkg/telemetry"
	"github.com/darter-io/darter/pkg/version"
)

// Daemon is the assembled program.
type Daemon struct {
	cfg         config.Dfdaemon
	node        *node.Node
	coordinator *coordinator.Coordinator
	client      *announce.Client // nil without supernodes
	// preheats carries out the supernodes' preheat orders; nil without supernodes.
	preheats *jobs.Worker
	files    *files
	pulls    *pulls
	proxy    *registryproxy.Proxy
	// resolver grants what clients of the mirror may read.
	resolver *access.Resolver
	// lookups answers the lookups of other hosts while this one is a standby.
	lookups     *access.Owner
	mirror, api net.Listener
	// mirrors are the listeners of mirror.listeners, in their order.
	mirrors []net.Listener
	// http is the HTTP proxy, nil if it is off; through holds its current settings.
	http       *httpproxy.Proxy
	httpListen net.Listener
	through    atomic.Pointer[config.Proxy]
	// upstreams are the registries in force.
	upstreams atomic.Pointer[[]config.Upstream]
}

// New opens the data directory and the ports, and starts nothing. Its error states the remedy. A nil logger discards.
func New(cfg config.Dfdaemon, logger *slog.Logger, options ...node.Option) (d *Daemon, err error) {
	d = &Daemon{cfg: cfg}
	d.node, err = node.New(node.Config{
		Role: node.Dfdaemon, Node: cfg.Node, Listen: cfg.Peer.Listen, Advertise: cfg.Peer.Advertise,
		Upload: cfg.Peer.Upload, Rates: cfg.Limits, Cluster: cfg.Cluster,
		MemberAPI: cfg.Peer.Standby && len(cfg.Supernodes) > 0,
		Cache:     cfg.Cache, Origins: cfg.Origins, Files: cfg.Files.Files, Drain: cfg.Drain, Towards: cfg.Supernodes,
		Secrets: cfg.Proxy.SecretFiles(), Health: cfg.Health.Listen, Logger: logger,
	}, options...)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
			d = nil
		}
	}()
	// The mirror's port needs no member certificate, because container runtimes have none.
	if d.mirror, err = d.node.Listen("mirror.listen", cfg.Mirror.Listen); err != nil {
		return d, err
	}
	for _, l := range cfg.Mirror.Listeners {
		extra, err := d.node.Listen("mirror.listeners", l.Listen)
		if err != nil {
			return d, err
		}
		d.mirrors = append(d.mirrors, extra)
	}
	if d.api, err = d.node.Listen("api.listen", cfg.API.Listen); err != nil {
		return d, err
	}
	d.coordinator = d.node.NewCoordinator(nil, nil)
	var announcer peer.Announcer = d.coordinator
	var askOwner func(context.Context, api.Lookup) (api.LookupReply, error)
	var recall func(context.Context, api.Lookup) []api.LookupReply
	if len(cfg.Supernodes) > 0 {
		d.preheats = d.node.NewPreheatWorker(func() { d.client.AnnounceNow() }, nil)
		d.client = d.newClient()
		d.node.Owners = d.client.Owners
		announcer, askOwner, recall = d.client, d.askOwner, d.client.Recall
	}
	// The daemon tells other hosts of it while it is a standby.
	memory := access.NewMemory()
	d.node.Seeded = memory.Held
	d.node.Connect(announcer, d.node.Watch(d.coordinator))
	d.pulls = &pulls{metrics: telemetry.NewPulls(d.node.Metrics), log: d.node.Log, embedded: d.leads}
	d.files = newFiles(d.node, d.pulls)
	d.files.settings.Store(&cfg.Files)
	d.upstreams.Store(&cfg.Upstreams)
	d.resolver = access.New(access.Config{
		Registry: d.node.Origins.Registries, AskOwner: askOwner, Credentialed: d.node.Origins.Registries.Credentialed,
		Trusted: d.node.Origins.Registries.Listed, Policy: policy(cfg.Mirror),
		FirstByte: d.node.Origins.Registries.FirstByte, Cluster: d.node.Origins.Registries.Cluster,
		Memory: memory, Recall: recall,
	})
	d.proxy = registryproxy.New(registryproxy.Config{
		Resolver: d.resolver,
		Open: func(ctx context.Context, spec task.Spec) (registryproxy.Blob, error) {
			c, err := d.node.Engine.Open(ctx, spec)
			if err != nil {
				return nil, err
			}
			return content{c}, nil
		},
		Passthrough: d.node.Engine.Passthrough, Signs: d.node.Engine.Signs, Replaced: d.node.Engine.Replaced,
		FirstByte: d.node.Origins.Registries.FirstByte, NamesKey: d.node.NamesKey,
		Default: cfg.Mirror.DefaultUpstream, Allow: d.node.Origins.Registries.Allow, Observe: d.pulls.mirrored,
	})
	d.lookups = access.NewOwner(d.node.Origins.Registries)
	d.lookups.Remember(memory)
	d.node.Purge.OnDrop(func(id task.ID) {
		d.resolver.Purge(id)
		d.lookups.Purge(id)
	})
	return d, d.openProxy(cfg)
}

// askOwner sends a lookup to its owner, which may be this host.
func (d *Daemon) askOwner(ctx context.Context, q api.Lookup) (api.LookupReply, error) {
	a, err := d.client.Lookup(ctx, q)
	if errors.Is(err, announce.ErrHere) {
		return d.lookups.Reply(ctx, q), nil
	}
	return a, err
}

// supernodes lists the addresses of the supernodes that the daemon knows.
func (d *Daemon) supernodes() (list []string) {
	if d.client == nil {
		return nil
	}
	for _, o := range d.client.Owners() {
		list = append(list, o.Addr)
	}
	return list
}

// policy is how long a registry's reply stays valid in the mirror.
func policy(m config.Mirror) access.Policy {
	return access.Policy{
		GrantLife: m.RightsLife, ServeCached: m.RightsUnreachable == config.ServeCached, TagLife: m.TagLife,
		TagStale: m.TagStale, PublicLife: m.PublicUnreachable, ClusterTagLife: m.ClusterTags,
	}
}

// newClient returns a client that announces to the supernodes, and to the daemon's own coordinator while no
// supernode answers.
func (d *Daemon) newClient() *announce.Client {
	owners := make([]string, len(d.cfg.Supernodes))
	for i, a := range d.cfg.Supernodes {
		owners[i] = string(a)
	}
	return announce.New(announce.Config{
		Host: d.node.Host, Generation: rand.Uint64(), Owners: owners, Scheme: d.node.Scheme(),
		Client:    &http.Client{Transport: d.node.StandingTransport()},
		Inventory: func() []api.Entry { return d.node.Engine.Inventory() }, Purges: d.node.Purge,
		Preheats: d.preheats, Lag: d.node.Lag,
		Now: d.node.Clock, Local: d.coordinator, Standby: d.node.MemberAPI != nil, InUse: d.node.Taken, Logger: d.node.Log,
		Standbys: readStandbys(d.cfg.Node.DataDir), Named: func(list []string) {
			if err := writeStandbys(d.cfg.Node.DataDir, list); err != nil {
				d.node.Log.Warn("cannot store the list of standbys; after a restart without a supernode this node "+
					"knows none", "error", err)
			}
		},
	})
}

// Run serves until ctx ends, then drains: it accepts no new pulls, and running pulls may end within the drain timeout.
// It returns nil after a clean end.
func (d *Daemon) Run(ctx context.Context) error {
	d.node.Log.Info("dfdaemon runs", "version", version.Current(), "host", d.node.Host.ID,
		"mirror", d.mirror.Addr().String(), "api", d.api.Addr().String(), "peer", d.node.Host.Addr,
		"supernodes", d.cfg.Supernodes, "tls", d.node.Identity.Secure())
	mirrors := []node.Part{d.node.ClientServer("mirror", d.mirror, mirrorMux(d.proxy))}
	for i, l := range d.mirrors {
		registry := d.cfg.Mirror.Listeners[i].Upstream
		mirrors = append(mirrors, d.node.ClientServer("mirror of "+registry, l, mirrorMux(d.proxy.For(registry))))
	}
	// Files bypass gin, which writes a response for a handler that wrote none.
	local := http.NewServeMux()
	local.Handle(api.PathFiles, httpserver.RejectAllBrowsers(d.files))
	local.Handle("/", d.localRoutes())
	parts := []node.Part{d.coordinator.Run, d.resolver.Run, d.lookups.Run, d.files.Run}
	if d.client != nil {
		parts = append(parts, d.client.Run, d.preheats.Run)
	}
	servers := append(mirrors, d.node.Server("local API", d.api, httpserver.RejectRebinding(local)))
	if d.node.MemberAPI != nil {
		servers = append(servers, d.node.Server("member API", d.node.MemberAPI,
			httpserver.RejectBrowsers(d.memberRoutes())))
	}
	if d.http != nil {
		servers = append(servers, d.node.Server("proxy", d.httpListen, d.http),
			d.node.Server("proxy behind TLS", d.http.Listener(), d.http.Inner()))
	}
	err := d.node.Run(ctx, servers, parts)
	d.node.Log.Info("dfdaemon ended")
	return err
}

// mirrorMux is the handler of a listener of the mirror.
func mirrorMux(proxy http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/v2/", proxy)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "this is a registry mirror: it serves paths under /v2/", http.StatusNotFound)
	})
	return httpserver.RejectReboundPages(mux)
}

// Reload applies the settings that a running program can change. The argument is a *[config.Dfdaemon].
func (d *Daemon) Reload(settings any) error {
	cfg, ok := settings.(*config.Dfdaemon)
	if !ok {
		return fmt.Errorf("reloading: a %T does not hold settings of dfdaemon", settings)
	}
	if err := d.node.Reload(node.Limits{Upload: cfg.Peer.Upload, Rates: cfg.Limits, Cache: cfg.Cache,
		Origins: cfg.Origins, Files: cfg.Files.Files, Drain: cfg.Drain, Cluster: cfg.Cluster}); err != nil {
		return err
	}
	d.files.settings.Store(&cfg.Files)
	d.upstreams.Store(&cfg.Upstreams)
	d.through.Store(&cfg.Proxy)
	d.resolver.SetPolicy(policy(cfg.Mirror))
	d.resolver.Forget() // replies to credentials that may have changed
	d.proxy.ForgetChallenges()
	d.lookups.Forget()
	return nil
}

// Close releases the directory and the ports of [New], for a daemon that never ran.
func (d *Daemon) Close() error {
	var errs []error
	for _, l := range append([]net.Listener{d.mirror, d.api, d.httpListen}, d.mirrors...) {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(append(errs, d.node.Close())...)
}

// Addrs returns the addresses in use by name: "mirror", "api", "peer", "health" and "proxy" if they are on, and
// "mirror of REGISTRY" for each of mirror.listeners.
func (d *Daemon) Addrs() map[string]string {
	out := d.node.Addrs()
	out["mirror"], out["api"] = d.mirror.Addr().String(), d.api.Addr().String()
	if d.httpListen != nil {
		out["proxy"] = d.httpListen.Addr().String()
	}
	for i, l := range d.mirrors {
		out["mirror of "+d.cfg.Mirror.Listeners[i].Upstream] = l.Addr().String()
	}
	return out
}

// Status returns the daemon's current state.
func (d *Daemon) Status() api.Status {
	out := d.node.Status()
	out.Listen = d.Addrs()
	out.Received.Cache, out.Served = d.pulls.cached.Load(), d.pulls.served.Load()
	out.RefusedHosts = d.coordinator.RefusedHosts(time.Now())
	out.Pulls, out.Embedded = d.pulls.metrics.Outcomes(), d.leads()
	if d.client != nil {
		out.Owners, out.Standbys = d.client.Owners(), d.client.Standbys()
	}
	return out
}

// localStatus is [Daemon.Status] with what only this machine's commands need.
func (d *Daemon) localStatus() api.Status {
	out := d.Status()
	for _, u := range *d.upstreams.Load() {
		out.Upstreams = append(out.Upstreams, api.UpstreamStatus{Host: u.Host, URLs: u.URLs, PlainHTTP: u.PlainHTTP,
			CA: u.CA, ClientCert: u.ClientCert, ClientKey: u.ClientKey})
	}
	return out
}

// leads reports whether the daemon leads its own tasks: it knows no supernode, or none answers.
func (d *Daemon) leads() bool {
	if d.client == nil {
		return true
	}
	return !slices.ContainsFunc(d.client.Owners(), func(o api.OwnerStatus) bool { return o.Alive })
}

// content adapts a [peer.Content] to the mirror's [registryproxy.Blob].
type content struct{ *peer.Content }

func (c content) NewReader(ctx context.Context, off, n int64) registryproxy.Reader {
	return c.Content.NewReader(ctx, off, n)
}

func (c content) NewPartReader(ctx context.Context, off, n int64) registryproxy.Reader {
	return c.Content.NewPartReader(ctx, off, n)
}
