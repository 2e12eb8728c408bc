// Package cluster knows which supernodes are alive, a few dozen at most, by gossip (memberlist, SWIM).
//
// A View is one consistent, sorted snapshot that is read without waiting, and it always holds this host
// itself. Views of two hosts may differ for seconds, so nothing that must be right may depend on them
// alone. Start at [New] and [Cluster.View].
package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/time/rate"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/secret"
)

// Role is what a member does in the cluster.
type Role string

// Supernode is the role of members that own tasks. Members of later versions may have others.
const Supernode Role = "supernode"

// Meta is what a member announces about itself.
type Meta struct {
	// APIAddr is host:port where it takes announces.
	APIAddr string
	Role    Role
	Zone    string
	// Version of the program, for people.
	Version string
}

// Member is a coordinator that is alive as far as this host knows.
type Member struct {
	ID host.ID
	// GossipAddr is where it gossips.
	GossipAddr netip.AddrPort
	Meta
}

// Config is what a member needs to join.
type Config struct {
	// Host is this host's ID: its name in the gossip.
	Host host.ID
	// Bind is IP:port to gossip on, over UDP and TCP; ":port" is every address, port 0 any
	// free one.
	Bind string
	// Advertise is IP:port where the others reach this host. Default: Bind, so it must be set where
	// Bind is every address. Port 0 is the port of Bind.
	Advertise string
	// Join are host:port of members. Each attempt resolves a name again and tries at most three of its
	// addresses, so that a name of many costs no more than one of few. It also tries members that this
	// host saw before. Empty: this host waits until another one joins it.
	Join []string
	// Keys encrypt the gossip, 32 bytes each: the first one encrypts, all decrypt. None: plain text,
	// and every host that reaches Bind can be a member.
	Keys []secret.String
	// Label keeps clusters apart that can reach each other. At most 128 bytes.
	Label string
	// Meta goes to the other members; its JSON has at most 512 bytes.
	Meta Meta
	// Logger; nil discards.
	Logger *slog.Logger
	// Resolve looks up the names in Join. Default: the system's resolver.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)

	// ProbeInterval is how often a member probes one other. It takes some six probes to notice a crash;
	// a shorter interval takes a busy host for a dead one. Default 1 s.
	ProbeInterval time.Duration
	// GossipInterval is how often a member passes changes on. Default 200 ms.
	GossipInterval time.Duration
	// PushPullInterval is how often two members compare all they know: it ends the last
	// differences, at one TCP exchange of a few KiB each. Default 5 s.
	PushPullInterval time.Duration
	// RejoinInterval is about how often this host tries members again that it does not see. Gossip
	// alone does not heal a partition, since members do not probe the dead. Default 30 s.
	RejoinInterval time.Duration
}

const (
	labelMax = 128
	// suspicionMult times the probe interval times log10 of the members is how long a
	// suspect may defend itself.
	suspicionMult = 3
	// reclaim is how long memberlist keeps a dead member's name for its old address. A host at another address is
	// a member at once; see move.
	reclaim = time.Nanosecond
	// moveFor is how long a host at another address is a member while memberlist still has the old one.
	moveFor = 30 * time.Second
	// tcpMax bounds one exchange over TCP.
	tcpMax = 3 * time.Second
	// exchangeGrace is how much longer than the context such an exchange may take.
	exchangeGrace = 500 * time.Millisecond
	// leaveMax bounds the leave message: without it the others see a crash.
	leaveMax = time.Second
)

// Cluster is this host's membership. Safe for concurrent use.
type Cluster struct {
	cfg       Config
	log       *slog.Logger
	bind      netip.AddrPort
	advertise netip.AddrPort
	keys      *memberlist.Keyring // nil: plain text
	meta      []byte
	self      Member

	started chan struct{}
	ran     atomic.Bool
	view    atomic.Pointer[[]Member]

	// settingKeys is held while SetKeys changes the keys.
	settingKeys sync.Mutex
	// mu is held to record one member's change, never while anything is sent.
	mu      sync.Mutex
	members map[host.ID]Member
	alive   map[string]bool              // names of all live nodes in memberlist, also those with unusable metadata
	former  map[netip.AddrPort]time.Time // addresses of members that are gone, and since when
	formers map[netip.AddrPort]host.ID   // the members that had those addresses
	moved   map[host.ID]time.Time        // members that memberlist has at another address, and since when; see move
	judging map[host.ID]bool             // members of which judge finds out where they are
	silent  map[string]error             // see Silent
	lonely  int                          // attempts to join since this host was alone
	changed chan struct{}

	// judges are the goroutines that run judge, ping how they ask; nil before Run, and at its end.
	judges sync.WaitGroup
	ping   func(id host.ID, at netip.AddrPort) bool

	// conflict keeps two hosts with one ID, who meet at every exchange, from filling the log.
	conflict rate.Sometimes
	// crowd does the same for members beyond membersMax.
	crowd rate.Sometimes

	// wrap, in tests, stands between memberlist and the network.
	wrap func(memberlist.NodeAwareTransport) memberlist.NodeAwareTransport
}

// New checks the configuration; nothing listens before [Cluster.Run].
func New(cfg Config) (*Cluster, error) {
	c := &Cluster{cfg: cfg, log: cfg.Logger, started: make(chan struct{}), changed: make(chan struct{}),
		members: make(map[host.ID]Member), former: make(map[netip.AddrPort]time.Time), silent: make(map[string]error),
		formers: make(map[netip.AddrPort]host.ID), moved: make(map[host.ID]time.Time), judging: make(map[host.ID]bool),
		alive:    make(map[string]bool),
		conflict: rate.Sometimes{Interval: time.Minute}, crowd: rate.Sometimes{Interval: time.Minute}}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if _, err := host.ParseID(string(cfg.Host)); err != nil {
		return nil, fmt.Errorf("joining the gossip: %w", err)
	}
	var err error
	if c.bind, err = parseAddr(cfg.Bind); err != nil {
		return nil, fmt.Errorf("gossip listen address: %w", err)
	}
	c.advertise = c.bind
	if cfg.Advertise != "" {
		if c.advertise, err = parseAddr(cfg.Advertise); err != nil {
			return nil, fmt.Errorf("gossip advertise address: %w", err)
		}
	}
	if c.advertise.Addr().IsUnspecified() {
		return nil, fmt.Errorf("gossip advertise address: %s is no address that others can reach: "+
			"set the address of this host that they use", c.advertise)
	}
	for _, j := range cfg.Join {
		if _, port, err := net.SplitHostPort(j); err != nil || port == "" {
			return nil, fmt.Errorf("gossip join address %q: want host:port", j)
		}
	}
	for i, k := range cfg.Keys {
		if len(k.Reveal()) != 32 {
			return nil, fmt.Errorf("gossip key %d: it has %d bytes, want 32", i+1, len(k.Reveal()))
		}
	}
	if len(cfg.Keys) > 0 {
		c.keys = keyring(cfg.Keys)
	}
	if len(cfg.Label) > labelMax {
		return nil, fmt.Errorf("gossip label: it has %d bytes, more than %d", len(cfg.Label), labelMax)
	}
	if c.meta, err = encodeMeta(cfg.Meta); err != nil {
		return nil, err
	}
	for _, d := range []struct {
		of *time.Duration
		by time.Duration
	}{{&c.cfg.ProbeInterval, time.Second}, {&c.cfg.GossipInterval, 200 * time.Millisecond},
		{&c.cfg.PushPullInterval, 5 * time.Second}, {&c.cfg.RejoinInterval, 30 * time.Second}} {
		if *d.of <= 0 {
			*d.of = d.by
		}
	}
	if c.cfg.Resolve == nil {
		c.cfg.Resolve = func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		}
	}
	c.self = Member{ID: cfg.Host, GossipAddr: c.advertise, Meta: cfg.Meta}
	c.members[cfg.Host] = c.self
	c.publish()
	return c, nil
}

// parseAddr reads IP:port; no IP is every address.
func parseAddr(s string) (netip.AddrPort, error) {
	if port, ok := strings.CutPrefix(s, ":"); ok {
		s = "0.0.0.0:" + port // Go listens on IPv6, too, where there is any
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return a, fmt.Errorf("%q: want IP:port", s)
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
}

// View is the coordinators that are alive, this host among them, sorted by ID. The slice is shared:
// callers must not change it.
func (c *Cluster) View() []Member { return *c.view.Load() }

// Changed is closed when the View changes next. Take it before the View, and no change is
// missed.
func (c *Cluster) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// Started is closed once this host gossips.
func (c *Cluster) Started() <-chan struct{} { return c.started }

// publish makes a new snapshot of the members; mu is held, or c is not shared yet.
func (c *Cluster) publish() {
	view := make([]Member, 0, len(c.members))
	for _, m := range c.members {
		view = append(view, m)
	}
	slices.SortFunc(view, func(a, b Member) int { return strings.Compare(string(a.ID), string(b.ID)) })
	c.view.Store(&view)
	close(c.changed)
	c.changed = make(chan struct{})
}

// Run gossips until ctx ends, then sends the others that this host leaves. It runs once. The error says
// why it could not listen; the end of ctx is no error.
func (c *Cluster) Run(ctx context.Context) error {
	if c.ran.Swap(true) {
		return errors.New("gossip was started before")
	}
	// An exchange that is under way at the end may finish: otherwise the other side knows this host,
	// and this host does not know that it must send it the leave message.
	dialCtx, stopDialling := context.WithCancel(context.WithoutCancel(ctx))
	defer stopDialling()
	defer context.AfterFunc(ctx, func() {
		select {
		case <-time.After(exchangeGrace):
			stopDialling()
		case <-dialCtx.Done():
		}
	})()
	logger := log.New(newBridge(c.log), "", 0)
	inner, err := listen(c.bind, logger)
	if err != nil {
		return fmt.Errorf("gossiping on %s: %w", c.bind, err)
	}
	own := &transport{NetTransport: inner, ctx: dialCtx, streams: make(chan net.Conn)}
	admitCtx, admitNone := context.WithCancel(context.WithoutCancel(ctx))
	var admitting sync.WaitGroup
	admitting.Go(func() { own.admit(admitCtx) })
	defer func() { // after memberlist has shut the transport down
		admitNone()
		admitting.Wait()
	}()
	t := memberlist.NodeAwareTransport(own)
	if c.wrap != nil {
		t = c.wrap(t)
	}
	c.mu.Lock()
	if c.advertise.Port() == 0 {
		c.advertise = netip.AddrPortFrom(c.advertise.Addr(), uint16(inner.GetAutoBindPort()))
	}
	c.self.GossipAddr = c.advertise
	c.members[c.cfg.Host] = c.self
	c.publish()
	c.mu.Unlock()
	ml, err := memberlist.Create(c.memberlistConfig(t, logger))
	if err != nil {
		return errors.Join(fmt.Errorf("gossiping on %s: %w", c.bind, err), t.Shutdown())
	}
	c.mu.Lock()
	c.ping = func(id host.ID, at netip.AddrPort) bool {
		_, err := ml.Ping(string(id), net.UDPAddrFromAddrPort(at))
		return err == nil
	}
	c.mu.Unlock()
	defer func() { // after memberlist has shut down
		c.mu.Lock()
		c.ping = nil
		c.mu.Unlock()
		c.judges.Wait()
	}()
	close(c.started)
	c.log.Info("gossip started", "address", c.advertise, "encrypted", len(c.cfg.Keys) > 0)

	c.rejoin(ctx, ml)

	begun := time.Now()
	err = ml.Leave(leaveMax)
	if err != nil {
		c.log.Warn("left the gossip without a leave message: the others will take it for a crash", "error", err)
	}
	if err := ml.Shutdown(); err != nil {
		return fmt.Errorf("ending the gossip on %s: %w", c.bind, err)
	}
	c.log.Info("gossip ended", "took", time.Since(begun).Round(time.Millisecond))
	return nil
}

func (c *Cluster) memberlistConfig(t memberlist.Transport, logger *log.Logger) *memberlist.Config {
	m := memberlist.DefaultLANConfig()
	m.Name = string(c.cfg.Host)
	m.Transport = t
	m.Logger = logger
	// Memberlists of other programs have labels of their own or none, and stay out.
	m.Label = "darter"
	if c.cfg.Label != "" {
		m.Label += "/" + c.cfg.Label
	}
	m.BindAddr, m.BindPort = c.bind.Addr().String(), int(c.bind.Port())
	m.AdvertiseAddr, m.AdvertisePort = c.advertise.Addr().String(), int(c.advertise.Port())
	m.ProbeInterval = c.cfg.ProbeInterval
	m.ProbeTimeout = c.cfg.ProbeInterval / 2
	m.GossipInterval = c.cfg.GossipInterval
	m.PushPullInterval = c.cfg.PushPullInterval
	m.SuspicionMult = suspicionMult
	m.DeadNodeReclaimTime = reclaim
	m.TCPTimeout = tcpMax
	// LZW costs more CPU than the gossip itself and saves a few hundred bytes.
	m.EnableCompression = false
	m.Keyring = c.keys
	d := delegate{c}
	m.Delegate, m.Events, m.Conflict, m.Alive = d, d, d, d
	return m
}

func keyring(keys []secret.String) *memberlist.Keyring {
	var all [][]byte
	for _, k := range keys {
		all = append(all, []byte(k.Reveal()))
	}
	// New has checked the lengths, the one thing that it refuses.
	k, err := memberlist.NewKeyring(all, all[0])
	if err != nil {
		panic("cluster: making a keyring: " + err.Error())
	}
	return k
}

// SetKeys changes the keys of the gossip, also while it runs: the first one encrypts from now on, all decrypt. There
// must be one if and only if Config.Keys had one; each has 32 bytes.
func (c *Cluster) SetKeys(keys []secret.String) error {
	switch {
	case (c.keys == nil) != (len(keys) == 0):
		return errors.New("gossip keys: encryption begins and ends with a restart only")
	case c.keys == nil:
		return nil
	}
	c.settingKeys.Lock()
	defer c.settingKeys.Unlock()
	for i, k := range keys {
		if len(k.Reveal()) != 32 {
			return fmt.Errorf("gossip key %d: it has %d bytes, want 32", i+1, len(k.Reveal()))
		}
	}
	wanted := map[string]bool{}
	for _, k := range keys {
		wanted[k.Reveal()] = true
		if err := c.keys.AddKey([]byte(k.Reveal())); err != nil {
			return fmt.Errorf("gossip keys: %w", err)
		}
	}
	if err := c.keys.UseKey([]byte(keys[0].Reveal())); err != nil {
		return fmt.Errorf("gossip keys: %w", err)
	}
	for _, k := range c.keys.GetKeys() {
		if wanted[string(k)] {
			continue
		}
		if err := c.removeKey(k); err != nil {
			return fmt.Errorf("gossip keys: %w", err)
		}
	}
	return nil
}

// removeKey removes a key that is not the first one. RemoveKey moves the keys behind it in the array that readers of
// GetKeys may hold, so the key becomes the last one before that.
func (c *Cluster) removeKey(key []byte) error {
	ring := c.keys.GetKeys()
	if !bytes.Equal(ring[len(ring)-1], key) {
		for _, other := range slices.Backward(ring) { // each goes to the front: at last the first one is there again
			if bytes.Equal(other, key) {
				continue
			}
			if err := c.keys.UseKey(other); err != nil {
				return err
			}
		}
	}
	return c.keys.RemoveKey(key)
}
