// Package supernode assembles the program that leads tasks: a coordinator that answers announces, and an engine
// whose parent is the origin.
//
// It asks an origin once for each task, however many hosts want it. Start at [New] and [Supernode.Run].
package supernode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/cluster"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/coordinator"
	"github.com/darter-io/darter/pkg/httpserver"
	"github.com/darter-io/darter/pkg/node"
	"github.com/darter-io/darter/pkg/preheat/doors"
	"github.com/darter-io/darter/pkg/preheat/jobs"
	"github.com/darter-io/darter/pkg/version"
)

// Supernode is the assembled program.
type Supernode struct {
	cfg         config.Supernode
	node        *node.Node
	coordinator *coordinator.Coordinator
	// preheats keeps the preheat jobs, worker carries out this supernode's part of them, and resolver reads manifests.
	preheats *jobs.Service
	worker   *jobs.Worker
	resolver *access.Resolver
	// lookups answers the lookups of hosts.
	lookups    *access.Owner
	api, admin net.Listener
	// doors order preheats for other programs at doorway, with doorCert; nil without preheat.doors.listen.
	doors    *doors.Doors
	doorway  net.Listener
	doorCert node.Certificate
	// advertised is the address of the announce API as peers know it.
	advertised string
	// gossip knows the other supernodes; nil for one alone.
	gossip *cluster.Cluster
}

// New opens the data directory and the ports, and starts nothing. The error says what to do.
// A nil logger discards.
func New(cfg config.Supernode, logger *slog.Logger, options ...node.Option) (s *Supernode, err error) {
	s = &Supernode{cfg: cfg}
	s.node, err = node.New(node.Config{
		Role: node.Supernode, Node: cfg.Node, Listen: cfg.Peer.Listen, Advertise: cfg.Peer.Advertise,
		Upload: cfg.Peer.Upload, Rates: cfg.Limits, Cluster: cfg.Cluster, Cache: cfg.Cache, Origins: cfg.Origins,
		Files: cfg.Files, Drain: cfg.Drain, Health: cfg.Health.Listen,
		Secrets: cfg.Preheat.Doors.SecretFiles(), Logger: logger,
	}, options...)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
			s = nil
		}
	}()
	if s.api, err = s.node.MemberListen("api.listen", cfg.API.Listen); err != nil {
		return s, err
	}
	if s.admin, err = s.node.Listen("admin.listen", cfg.Admin.Listen); err != nil {
		return s, err
	}
	if s.advertised, err = s.node.Advertise(s.api.Addr(), cfg.API.Advertise, nil); err != nil {
		return s, err
	}
	var owners func() []string
	if cfg.Gossip.Listen != "" {
		if s.gossip, err = s.newGossip(); err != nil {
			return s, err
		}
		owners = s.owners
	}
	if err = s.openPreheats(owners); err != nil {
		return s, err
	}
	if err = s.openDoors(s.preheats); err != nil {
		return s, err
	}
	s.coordinator = s.node.NewCoordinator(owners, s.preheats)
	s.node.Connect(s.coordinator, s.node.Watch(s.coordinator))
	s.lookups = access.NewOwner(s.node.Origins.Registries)
	memory := access.NewMemory()
	s.lookups.Remember(memory)
	s.node.Seeded = memory.Held
	s.node.Purge.OnDrop(s.lookups.Purge)
	return s, nil
}

// newGossip prepares to find the other supernodes.
func (s *Supernode) newGossip() (*cluster.Cluster, error) {
	join := make([]string, len(s.cfg.Gossip.Join))
	for i, a := range s.cfg.Gossip.Join {
		join[i] = string(a)
	}
	advertise := string(s.cfg.Gossip.Advertise)
	if advertise == "" && s.cfg.Gossip.Listen.Host() == "" {
		// It listens on all addresses: the others use the advertised one.
		host, _, err := net.SplitHostPort(s.advertised)
		if err != nil {
			return nil, fmt.Errorf("gossip.advertise: %w", err)
		}
		advertise = net.JoinHostPort(host, s.cfg.Gossip.Listen.Port())
	}
	g, err := cluster.New(cluster.Config{
		Host: s.node.Host.ID, Bind: string(s.cfg.Gossip.Listen), Advertise: advertise, Join: join,
		Keys: s.node.Identity.GossipKeys(), Label: "darter", Logger: s.node.Log,
		Meta: cluster.Meta{APIAddr: s.advertised, Role: cluster.Supernode, Zone: s.node.Host.Zone,
			Version: version.Current()},
	})
	if err != nil {
		return nil, fmt.Errorf("gossip with other supernodes: %w", err)
	}
	return g, nil
}

// owners lists the announce APIs of the live supernodes.
func (s *Supernode) owners() (list []string) {
	for _, m := range s.gossip.View() {
		if m.Role == cluster.Supernode && m.APIAddr != "" {
			list = append(list, m.APIAddr)
		}
	}
	return list
}

// others lists the announce APIs of the other live supernodes.
func (s *Supernode) others() []string {
	if s.gossip == nil {
		return nil
	}
	return slices.DeleteFunc(s.owners(), func(addr string) bool { return addr == s.advertised })
}

// Run serves until ctx ends, then drains. It returns nil after a clean end.
func (s *Supernode) Run(ctx context.Context) error {
	s.node.Log.Info("supernode runs", "version", version.Current(), "host", s.node.Host.ID,
		"api", s.api.Addr().String(),
		"peer", s.node.Host.Addr, "admin", s.admin.Addr().String(), "tls", s.node.Identity.Secure())
	background := []node.Part{s.coordinator.Run, s.lookups.Run, s.resolver.Run, s.preheats.Run, s.worker.Run}
	if s.gossip != nil {
		background = append(background, s.gossip.Run, s.node.ComparePurgeOrders(s.others))
	}
	servers := []node.Part{
		s.node.Server("announce API", s.api, httpserver.RejectBrowsers(s.publicRoutes())),
		s.node.Server("admin API", s.admin, httpserver.RejectRebinding(s.adminRoutes())),
	}
	if s.doors != nil {
		h := httpserver.RejectAllBrowsers(s.doors.Handler())
		servers = append(servers, s.node.Server("preheat API", s.doorway, h))
	}
	err := s.node.Run(ctx, servers, background)
	s.node.Log.Info("supernode ended")
	return err
}

// Reload applies the settings that a running program can change: a *[config.Supernode].
func (s *Supernode) Reload(settings any) error {
	cfg, ok := settings.(*config.Supernode)
	if !ok {
		return fmt.Errorf("reloading: %T is no configuration of a supernode", settings)
	}
	changeDoors, err := s.reloadDoors(cfg.Preheat.Doors)
	if err != nil {
		return err
	}
	if err := s.node.Reload(node.Limits{Upload: cfg.Peer.Upload, Rates: cfg.Limits, Cache: cfg.Cache,
		Origins: cfg.Origins,
		Files:   cfg.Files, Drain: cfg.Drain, Cluster: cfg.Cluster}); err != nil {
		return err
	}
	if s.gossip != nil {
		if err := s.gossip.SetKeys(s.node.Identity.GossipKeys()); err != nil {
			return err
		}
	}
	s.lookups.Forget()
	s.resolver.Forget()
	return changeDoors()
}

// Close releases the resources of [New], for a supernode that never ran.
func (s *Supernode) Close() error {
	var errs []error
	for _, l := range []net.Listener{s.api, s.admin, s.doorway} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(append(errs, s.node.Close())...)
}

// Addrs returns the addresses in use: "api", "admin", "peer", and "gossip", "health" and "preheat" if they are on.
func (s *Supernode) Addrs() map[string]string {
	out := s.node.Addrs()
	out["api"], out["admin"] = s.api.Addr().String(), s.admin.Addr().String()
	if s.gossip != nil {
		out["gossip"] = string(s.cfg.Gossip.Listen)
	}
	if s.doorway != nil {
		out["preheat"] = s.doorway.Addr().String()
	}
	return out
}

// Status describes what the supernode does.
func (s *Supernode) Status() api.Status {
	out := s.node.Status()
	out.Listen = s.Addrs()
	out.Hosts, out.Seeds = len(s.coordinator.Hosts()), s.node.Seeds()
	out.HostPurgeFailures, out.Clocks = s.node.Purge.HostFailures(), s.coordinator.Clocks()
	out.RefusedHosts = s.coordinator.RefusedHosts(time.Now())
	if s.gossip != nil {
		for _, addr := range s.others() {
			out.Owners = append(out.Owners, s.node.Compared(api.OwnerStatus{Addr: addr, Alive: true}))
		}
		for _, silent := range s.gossip.Silent() {
			out.Owners = append(out.Owners, api.OwnerStatus{Addr: silent.Addr, Error: silent.Err.Error()})
		}
	}
	return out
}
