// Package node assembles what every member of a cluster has: an identity, a piece store, the origins that its
// operator allows, a peer engine on the piece wire, purging, and HTTP servers that drain. A [Role] is what differs
// between supernodes and dfdaemons.
//
// A [Node] owns its data directory alone, never listens beyond loopback without a proof of membership or the
// operator's consent, and leaves no goroutine behind. Start at [New] and [Node.Run].
package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/httpserver"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/lag"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece/diskstore"
	"github.com/darter-io/darter/pkg/portmux"
	"github.com/darter-io/darter/pkg/purge"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/pkg/telemetry"
	"github.com/darter-io/darter/pkg/version"
)

// Config holds the settings that every member has.
type Config struct {
	Role Role
	Node config.Node
	// Listen and Advertise are the addresses of the piece wire.
	Listen, Advertise config.Address
	Upload            config.Upload
	Rates             config.Limits
	Cluster           config.Cluster
	Cache             config.Cache
	Origins           config.Origins
	Files             config.Files
	Drain             config.Drain
	// Health is the address for probes and scrapers; empty opens none.
	Health config.Address
	// MemberAPI lets other members send requests for owners to the piece wire's port; see [Node.MemberAPI].
	MemberAPI bool
	// Secrets are further files that hold secrets.
	Secrets []config.SecretFile
	// Towards are hosts to which this one will connect. By default it advertises the local address of a route to them.
	Towards []config.Address
	Logger  *slog.Logger
	// Clock is the machine's wall clock. It dates and checks certificates, and is compared with other members' clocks.
	// Intervals never depend on it. Default [time.Now].
	Clock func() time.Time
	// StoreFS is the file system of the pieces. Default [diskstore.OS].
	StoreFS diskstore.FS
	// Start ends when the program is to end: [New] then stops waiting for name servers. Default [context.Background].
	Start context.Context

	// upstreams counts the requests to registries; nil counts nothing.
	upstreams *telemetry.Upstreams
}

// Option changes the Config of [New].
type Option func(*Config)

// WithClock gives a node another wall clock.
func WithClock(now func() time.Time) Option { return func(c *Config) { c.Clock = now } }

// WithStoreFS gives a node another file system for its pieces.
func WithStoreFS(files diskstore.FS) Option { return func(c *Config) { c.StoreFS = files } }

// WithStart gives [New] a context that ends its look-ups of names.
func WithStart(ctx context.Context) Option { return func(c *Config) { c.Start = ctx } }

// Node is one member. [New] sets its fields; the assembly connects them.
type Node struct {
	Host     host.Host
	Identity *identity.Identity
	Signer   *identity.Signer
	Verifier *identity.Verifier
	Store    *diskstore.Store
	Origins  *Origins
	Engine   *peer.Engine
	// Purge carries out purge orders and forwards them.
	Purge   *purge.Service
	Metrics *prometheus.Registry
	// Ready holds the checks that the program must pass to be ready.
	Ready   *telemetry.Ready
	Started time.Time
	Log     *slog.Logger
	// Owners returns the state of the owners to which this host announces; nil if it announces to none.
	Owners func() []api.OwnerStatus
	// Seeded hears of a blob or manifest that came whole from a registry and matched its digest. Its spec holds no
	// credentials. It is set before Run, and must not block; nil: nothing hears of it.
	Seeded func(task.Spec)
	// Clock is the wall clock of Config.
	Clock func() time.Time
	// Lag measures for how long this process does not run; Run runs it.
	Lag *lag.Meter

	// MemberAPI accepts the connections to the piece wire's port that speak the members' API; nil unless Config.MemberAPI.
	MemberAPI net.Listener

	cfg  Config
	wire net.Listener
	// health is the listener of Config.Health; nil if there is none.
	health net.Listener
	// limiter bounds the listeners; warnings are shown in the status.
	limiter  *httpserver.Limiter
	warnings []string
	// taken happens when an owner reports that another host has this host's ID.
	taken takenID

	owner    *telemetry.Owner
	rotation rotation
	// clocks are the differences to the clocks of other owners; see Compared.
	clocks clocks
	drain  atomic.Int64 // nanoseconds
}

// New opens the data directory and the piece wire's port, and starts nothing. Its error states the remedy. [Node.Run]
// or [Node.Close] releases both. It waits for name servers for at most two seconds for each address.
func New(cfg Config, options ...Option) (n *Node, err error) {
	for _, o := range options {
		o(&cfg)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Start == nil {
		cfg.Start = context.Background()
	}
	n = &Node{Clock: cfg.Clock, cfg: cfg, Log: cfg.Logger, Started: time.Now(),
		Lag:     lag.New(lag.Config{Logger: cfg.Logger}),
		Metrics: telemetry.NewRegistry(version.Read()), Ready: new(telemetry.Ready)}
	n.drain.Store(int64(cfg.Drain.DrainTimeout))
	n.rotation.init()
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	id, err := n.openDataDir()
	if err != nil {
		return n, err
	}
	if n.warnings, err = config.CheckSecretFiles(append(config.SecretFiles(cfg.Cluster, cfg.Origins),
		cfg.Secrets...)); err != nil {
		return n, err
	}
	for _, w := range n.warnings {
		n.Log.Warn("a secret can be read by others", "error", w)
	}
	n.limiter = httpserver.NewLimiter(n.Log, telemetry.NewConnRefusals(n.Metrics))
	if n.Signer, err = identity.NewSigner(n.Identity); err != nil {
		return n, err
	}
	n.Verifier = identity.NewVerifier(n.Identity)
	n.Purge, err = purge.Open(purge.Config{
		Dir: cfg.Node.DataDir, Dropper: dropper{n}, Leads: cfg.Role.Leads, Scheme: n.Scheme(), Transport: n.Transport,
		Now: cfg.Clock, Logger: cfg.Logger,
	})
	if err != nil {
		return n, err
	}
	n.cfg.upstreams = telemetry.NewUpstreams(n.Metrics)
	if n.Origins, err = newOrigins(n.cfg); err != nil {
		return n, err
	}
	if n.wire, err = n.MemberListen("peer.listen", cfg.Listen); err != nil {
		return n, err
	}
	if cfg.MemberAPI {
		n.wire, n.MemberAPI = portmux.New(n.wire)
	}
	if cfg.Health != "" {
		if n.health, err = n.Listen("health.listen", cfg.Health); err != nil {
			return n, err
		}
	}
	addr, err := n.Advertise(n.wire.Addr(), cfg.Advertise, cfg.Towards)
	if err != nil {
		return n, fmt.Errorf("%w; set peer.advertise", err)
	}
	n.Host = host.Host{ID: id, Name: cfg.Node.Name, Addr: addr, Zone: cfg.Node.Zone}
	n.Ready.Add("data directory", n.writable)
	return n, nil
}

// openDataDir opens what the data directory holds, the store and the host's key, and returns the host's ID. It sets
// Store and Identity.
func (n *Node) openDataDir() (host.ID, error) {
	cfg, dir := n.cfg, n.cfg.Node.DataDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("node.dataDir: making it: %w", diskstore.Remedy(dir, err))
	}
	cache := filepath.Join(dir, "cache")
	quota, err := quotaOf(cfg.Cache, cache)
	if err != nil {
		return "", err
	}
	n.Store, err = diskstore.Open(diskstore.Config{
		Dir: cache, Quota: quota, HighWater: cfg.Cache.HighWater, LowWater: cfg.Cache.LowWater, FS: cfg.StoreFS,
		Logger: cfg.Logger,
	})
	if err != nil {
		return "", fmt.Errorf("node.dataDir: %w", err)
	}
	sweepSpools(dir, cfg.Logger)
	key, err := diskstore.OpenHostKey(dir)
	if err != nil {
		return "", fmt.Errorf("node.dataDir: %w", err)
	}
	id := key.ID()
	switch {
	case key.Moved:
		n.Log.Warn("the data directory was copied or restored, or comes from another machine: this host has taken a "+
			"new ID", "dir", dir, "was", key.Was, "is", id)
	case key.Was != "":
		n.Log.Info("this host has a key now, and its ID is the name of that key", "was", key.Was, "is", id)
	}
	n.Identity, err = identity.New(identity.Config{
		Secret: cfg.Cluster.Secret, HostID: id, Key: key.PrivateKey, Insecure: cfg.Cluster.Insecure, Now: cfg.Clock,
	})
	return id, err
}

// sweepSpools deletes the spools of earlier versions that were killed. The caller holds the store's lock, so no other
// process uses the data directory.
func sweepSpools(dir string, l *slog.Logger) {
	left, _ := filepath.Glob(filepath.Join(dir, "darter-spool-*")) // the pattern is valid
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			l.Warn("cannot delete a spool that a killed process left", "path", path, "error", err)
		}
	}
}

// quotaOf returns the cache's quota in bytes.
func quotaOf(cfg config.Cache, dir string) (int64, error) {
	if cfg.Quota > 0 {
		return int64(cfg.Quota), nil
	}
	quota, err := halfOfFree(dir)
	if err != nil {
		return 0, fmt.Errorf("node.dataDir: computing the cache's quota: %w", diskstore.Remedy(dir, err))
	}
	return quota, nil
}

// Limits are the settings that a running node can change. Of Cluster these are the secrets.
type Limits struct {
	Cluster config.Cluster
	Upload  config.Upload
	Rates   config.Limits
	Cache   config.Cache
	Origins config.Origins
	Files   config.Files
	Drain   config.Drain
}

// Reload applies new settings: all of them or, if it fails, none. Running requests keep their settings. It reads the
// passwords and certificates of upstreams again.
func (n *Node) Reload(l Limits) error {
	if err := n.Identity.CheckSecret(l.Cluster.Secret); err != nil {
		return fmt.Errorf("cluster.secret: %w", err)
	}
	quota, err := quotaOf(l.Cache, n.Store.Dir())
	if err != nil {
		return err
	}
	next := n.cfg
	next.Origins, next.Files = l.Origins, l.Files
	registries, err := newRegistries(next)
	if err != nil {
		return err
	}
	files, err := newFiles(next)
	if err != nil {
		return err
	}
	if err := n.Store.Limit(quota, l.Cache.HighWater, l.Cache.LowWater); err != nil {
		return err
	}
	n.Engine.SetUploadSlots(n.slots(l.Upload))
	n.Engine.SetLimits(limits(l.Rates))
	n.Origins.Registries.use(registries)
	n.Origins.Files.use(files)
	n.drain.Store(int64(l.Drain.DrainTimeout))
	return n.setSecret(l.Cluster.Secret)
}

func limits(r config.Limits) peer.Limits {
	return peer.Limits{Upload: int64(r.Upload), Download: int64(r.Download), Task: int64(r.Task),
		Origin: int64(r.Origin)}
}

// writable returns nil if the data directory and the cache accept a file of one page. An empty file would prove
// nothing: a full disk accepts it.
func (n *Node) writable(context.Context) error {
	for _, dir := range []string{n.cfg.Node.DataDir, n.Store.Dir()} {
		f, err := os.CreateTemp(dir, "probe-")
		if err != nil {
			return diskstore.Remedy(dir, err)
		}
		_, err = f.Write(make([]byte, os.Getpagesize()))
		if err = errors.Join(err, f.Close(), os.Remove(f.Name())); err != nil {
			return diskstore.Remedy(dir, err)
		}
	}
	return nil
}

// MemberListen opens a port for members. It accepts members only. Without a cluster secret it accepts only this
// machine, unless the operator allows more.
func (n *Node) MemberListen(key string, a config.Address) (net.Listener, error) {
	if err := n.Identity.CheckListen(string(a)); err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	l, err := n.Listen(key, a)
	if err != nil {
		return nil, err
	}
	wrapped := n.Identity.WrapListener(l, portmux.ProtocolAPI)
	if !n.Identity.Secure() {
		return wrapped, nil
	}
	return n.limiter.Handshake(wrapped, l), nil
}

// Advertise is [Advertise] during this node's start.
func (n *Node) Advertise(listening net.Addr, wanted config.Address, towards []config.Address) (string, error) {
	return Advertise(n.cfg.Start, listening, wanted, towards, n.Log)
}

// Listen opens a port; key names its setting in the error. The listener bounds the number of open connections, and
// hides temporary errors of Accept. A name in the address is looked up for at most two seconds.
func (n *Node) Listen(key string, a config.Address) (net.Listener, error) {
	ctx, cancel := context.WithTimeout(n.cfg.Start, lookupsMax)
	defer cancel()
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", string(a))
	if err != nil {
		return nil, fmt.Errorf("%s: %w; %s", key, err, ListenRemedy(key, err))
	}
	return n.limiter.Limit(l), nil
}

// ListenRemedy says what an operator can do about an address that could not be listened on; key is its setting.
func ListenRemedy(key string, err error) string {
	var name *net.DNSError
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "if another program has the port, choose another one with " + key + " (ss -ltnp names the program)"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "no network interface of this machine has that address (ip addr lists them): set another one with " + key
	case errors.Is(err, syscall.EACCES):
		return "ports below 1024 need root or CAP_NET_BIND_SERVICE: set another port with " + key
	case errors.As(err, &name):
		return "write the address as a number, or correct the name, in " + key
	}
	return "set another address with " + key
}

// Dial connects to another member.
func (n *Node) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	return n.Identity.WrapDialer(d.DialContext)(ctx, network, addr)
}

// Transport sends requests to the APIs of other members: https with the certificates of the cluster, and no proxy. It
// keeps few idle connections, which the caller closes.
func (n *Node) Transport() *http.Transport {
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	return &http.Transport{
		DialContext: d.DialContext, DialTLSContext: n.Identity.WrapDialer(d.DialContext, portmux.ProtocolAPI),
		MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute, DisableCompression: true,
	}
}

// dialTimeout bounds a connect to a member, so that a dead member delays a pull no longer.
const dialTimeout = 3 * time.Second

// slots returns how many requests of other hosts the engine accepts at once.
func (n *Node) slots(u config.Upload) int {
	if u.UploadSlots > 0 {
		return u.UploadSlots
	}
	return n.cfg.Role.UploadSlots
}

// Server returns a part that serves a handler on a listener of this node, and drains at its end.
func (n *Node) Server(name string, l net.Listener, h http.Handler) Part {
	return n.server(name, l, h).Run
}

// ClientServer is Server for container runtimes: while it drains, it answers new requests with 503.
func (n *Node) ClientServer(name string, l net.Listener, h http.Handler) Part {
	s := n.server(name, l, h)
	s.Refuses = true
	return s.Run
}

func (n *Node) server(name string, l net.Listener, h http.Handler) httpserver.Server {
	drain := func() time.Duration { return time.Duration(n.drain.Load()) }
	return httpserver.Server{Name: name, Listener: l, Handler: h, Limiter: n.limiter, Drain: drain, Logger: n.Log,
		Stale: n.Identity.Stale}
}

// Connect builds the engine with its announcer and its observer.
func (n *Node) Connect(announcer peer.Announcer, observer peer.Observer) {
	var hostOf func(net.Conn) (host.ID, error)
	if n.Identity.Secure() {
		hostOf = identity.HostOf
	}
	n.Engine = peer.New(peer.Config{
		HostOf: hostOf,
		Seed:   n.cfg.Role.Seed, UploadLines: n.cfg.Role.UploadLines, Host: n.Host, Store: n.Store, Listener: n.wire,
		Lag:       n.Lag,
		Dial:      func(ctx context.Context, addr string) (net.Conn, error) { return n.Dial(ctx, "tcp", addr) },
		Announcer: announcer, Observer: observer, Origin: n.Origins.Source, Signer: n.Signer, Verifier: n.Verifier,
		UploadSlots: n.slots(n.cfg.Upload), Limits: limits(n.cfg.Rates), Client: "darter/" + version.Current(),
		NamesKey: n.NamesKey,
		Logger:   n.Log,
	})
	telemetry.NewSwarm(n.Metrics, func() telemetry.SwarmStats {
		s := n.Engine.Stats()
		return telemetry.SwarmStats{
			Received: s.Sources, Duplicate: s.Duplicate, Sent: s.Sent, BadPieces: s.BadPieces,
			BusySent: s.BusySent, BusyReceived: s.BusyGot, Slots: s.UploadSlotsMax, SlotsUsed: s.UploadSlots,
			Connections: int(s.Conns), Running: s.Downloads,
		}
	})
	telemetry.NewMember(n.Metrics, func() telemetry.MemberStats {
		s := telemetry.MemberStats{Skew: n.skew(), Unfollowed: len(n.Purge.Failures()), Lost: n.Lag.Lost()}
		if n.Owners != nil {
			s.OwnersReachable, s.OwnersUnreachable = countOwners(n.Owners())
		}
		return s
	})
	telemetry.NewSecrets(n.Metrics, n.secretStats)
	telemetry.NewStore(n.Metrics, func() telemetry.StoreStats {
		u := n.Store.Usage()
		return telemetry.StoreStats{Bytes: u.Used, Quota: u.Quota, Tasks: u.Tasks, Evictions: u.Evictions}
	})
}

// countOwners counts the supernodes among owners.
func countOwners(owners []api.OwnerStatus) (reachable, unreachable int) {
	for _, o := range owners {
		switch {
		case o.Standby:
		case o.Alive:
			reachable++
		default:
			unreachable++
		}
	}
	return reachable, unreachable
}

// Part runs until its context ends.
type Part func(ctx context.Context) error

// Run runs the servers, the engine and the other parts until ctx ends or one of them fails. Then the servers drain
// while the other parts still work for them; after that the parts end, and Run closes the store.
func (n *Node) Run(ctx context.Context, servers, parts []Part) error {
	// Pending purge orders are carried out before the node serves anything. Even if the disk refuses to delete a task,
	// the store does not serve it.
	if err := n.Purge.Resume(); err != nil {
		n.Log.Warn("pending purge orders are not all carried out: trying again", "error", err)
	}
	parts = append(parts, n.Purge.Run, n.Lag.Run, n.followSecrets)
	if n.health != nil {
		servers = append(servers, n.Server("health checks and metrics", n.health,
			httpserver.RejectReboundPages(telemetry.Health(n.Metrics, n.Ready, n.Log))))
	}
	below, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	core, below := errgroup.WithContext(below)
	for _, p := range append([]Part{n.Engine.Run}, parts...) {
		core.Go(func() error {
			err := p(below)
			if err == nil && below.Err() == nil {
				err = errors.New("a part ended before its context")
			}
			return err
		})
	}
	defer context.AfterFunc(ctx, func() {
		n.Log.Info("draining: no new requests are accepted, and running ones may end", "timeout",
			time.Duration(n.drain.Load()))
	})()
	// The servers end when ctx ends, or when a part failed.
	above, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(below, cancel)()
	front, above := errgroup.WithContext(above)
	for _, s := range servers {
		front.Go(func() error { return s(above) })
	}
	defer context.AfterFunc(n.taken.context(), cancel)()
	err := front.Wait()
	stop()
	err = errors.Join(err, core.Wait(), n.retake())
	n.Origins.close()
	return errors.Join(err, n.Store.Close())
}

// Close releases the store and the port, for a node that never ran.
func (n *Node) Close() error {
	var errs []error
	for _, l := range []net.Listener{n.wire, n.health} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	if n.Store != nil {
		errs = append(errs, n.Store.Close())
	}
	return errors.Join(errs...)
}

// Addrs returns the addresses in use that every member has: "peer", and "health" if there is one.
func (n *Node) Addrs() map[string]string {
	out := map[string]string{"peer": n.Host.Addr}
	if n.health != nil {
		out["health"] = n.health.Addr().String()
	}
	return out
}

// Status returns the part of the status that every member has.
func (n *Node) Status() api.Status {
	stats, usage := n.Engine.Stats(), n.Store.Usage()
	return api.Status{
		Program: n.cfg.Role.Program, Version: version.Current(), Host: n.Host, Started: n.Started,
		Uptime: time.Since(n.Started).Seconds(), Clock: n.Clock(),
		Received: stats.Sources,
		Sent:     stats.Sent, BadPieces: stats.BadPieces, Downloads: stats.Downloads, Running: n.running(time.Now()),
		Limits:   api.Limits(n.Engine.Limits()),
		Warnings: n.warnings,
		Lost:     n.Lag.Lost().Seconds(), Late: n.Lag.Late(),
		Secrets: n.secretStatus(), RenewingProofs: n.Identity.Secure() && n.rotation.renewing(),
		PurgeFailures: n.Purge.Failures(),
		Cache: api.CacheStatus{Dir: n.cfg.Node.DataDir, Tasks: usage.Tasks, Bytes: usage.Used,
			Quota: usage.Quota},
	}
}

// running lists the downloads that a client waits for; the one that has been idle longest comes first.
func (n *Node) running(now time.Time) (list []api.RunningStatus) {
	for _, t := range n.Engine.Tasks() {
		if !t.Wanted {
			continue
		}
		r := api.RunningStatus{ID: t.ID, Name: t.Name, Length: -1, Received: t.Sources,
			Quiet: now.Sub(t.LastGot).Seconds()}
		if t.Pieces > 0 {
			r.Length = t.Metadata.Length
			r.Have = min(int64(t.Have)*t.Metadata.PieceSize, r.Length)
		}
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b api.RunningStatus) int {
		return cmp.Or(cmp.Compare(b.Quiet, a.Quiet), cmp.Compare(a.ID, b.ID))
	})
	return list[:min(len(list), api.RunningMax)]
}

// Seeds returns the outcomes of the tasks that this node fetched as their owner.
func (n *Node) Seeds() *api.Outcomes { return n.owner.Outcomes() }

// judged adds to a status whether the program is ready, and which checks fail.
func (n *Node) judged(ctx context.Context, s api.Status) api.Status {
	for _, m := range n.Ready.Missing(ctx) {
		s.Missing = append(s.Missing, fmt.Sprintf("%s: %v", m.Name, m.Err))
	}
	s.Ready = len(s.Missing) == 0
	return s
}

// Tasks lists the tasks of the store and of the engine.
func (n *Node) Tasks() []api.TaskStatus {
	running := map[string]peer.TaskStatus{}
	for _, t := range n.Engine.Tasks() {
		running[string(t.ID)] = t
	}
	out := []api.TaskStatus{}
	for _, e := range n.Store.Inventory() {
		s := api.TaskStatus{ID: e.ID, Length: e.Metadata.Length, Pieces: e.Metadata.Layout().Count(), Have: e.Have,
			LastRead: e.LastRead}
		if t, ok := running[string(e.ID)]; ok {
			s.Received = t.Sources
			delete(running, string(e.ID))
		}
		out = append(out, s)
	}
	for _, t := range running {
		out = append(out, ofEngine(t))
	}
	return out
}

// Task returns one task of [Node.Tasks]. Of a task that the engine has open, which a client asks for many times a
// second, it looks at no other one.
func (n *Node) Task(id task.ID) (api.TaskStatus, bool) {
	if t, ok := n.Engine.Task(id); ok && t.Pieces > 0 {
		return ofEngine(t), true
	}
	all := n.Tasks()
	i := slices.IndexFunc(all, func(t api.TaskStatus) bool { return t.ID == id })
	if i < 0 {
		return api.TaskStatus{}, false
	}
	return all[i], true
}

// ofEngine is the status of a task that the engine has open.
func ofEngine(t peer.TaskStatus) api.TaskStatus {
	s := api.TaskStatus{ID: t.ID, Length: -1, Pieces: t.Pieces, Have: t.Have, Received: t.Sources}
	if t.Pieces > 0 || t.Metadata.PieceSize > 0 {
		s.Length = t.Metadata.Length
	}
	return s
}

// halfOfFree returns the default quota: half of the space that is free on the file system or used by the cache.
func halfOfFree(dir string) (int64, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	free, err := diskstore.OS{}.Free(dir)
	if err != nil {
		return 0, err
	}
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			free += info.Size()
		}
		return err
	})
	return max(free/2, 1), err
}
