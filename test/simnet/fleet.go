package simnet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/announce"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/coordinator"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/lag"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/peer/upload"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/scheduler"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// The ports at which supernodes and nodes take announces. A real node takes them at the port of its piece wire, whose
// two protocols package portmux tells apart on sockets only.
const apiPort, nodeAPIPort = "65001", "65003"

// Fleet describes a cluster of whole members: supernodes, and nodes that announce to them over HTTP and can lead. All
// nodes pull one task, and a fault happens meanwhile. In contrast to a [Crowd] it shows what hosts do that believe each
// other dead.
type Fleet struct {
	// Nodes pull a task of K pieces of PieceSize bytes; Supers is the number of supernodes.
	Nodes, Supers, K int
	PieceSize        int64
	// Rate is the rate of each host's links, in bytes per second each way, OriginRate that of the registry.
	Rate, OriginRate float64
	// Age is how long the cluster runs before the pull. Nodes hear of standbys after some 10 s. Default 16 s.
	Age time.Duration
	// Stagger is the time over which the nodes start.
	Stagger time.Duration
	// Warm nodes have the task before the fault, and the registry's bytes for them do not count.
	Warm int
	// Prelude runs before the pull. Fault runs when the pull starts, in a goroutine of its own, and returns before the
	// end of the pull.
	Prelude, Fault func(g *Ground)
	// Blind hosts do not measure their own lag.
	Blind bool
	// Seed is the seed of all random choices.
	Seed   uint64
	Logger *slog.Logger
}

// Ground is what a fault can happen to.
type Ground struct {
	// Owner leads the task; Supers are all supernodes, in the order of the task, with Owner first.
	Owner  *Host
	Supers []*Host
	Nodes  []*Host
	Rand   *rand.Rand
	// Done ends when all nodes have the task.
	Done <-chan struct{}
	// Restart kills a supernode, and after some time starts it again at the same address, with an empty store.
	Restart func(h *Host, after time.Duration)
}

// Toll is what a fault cost.
type Toll struct {
	// Copies are the bytes that the registry sent, in units of the task; Askers counts the hosts that asked it.
	Copies float64
	Askers int
	// Silence is the longest time without a byte at a client. Makespan is when the last node had everything.
	Silence, Makespan time.Duration
	// Refused counts the pulls that ended early, and began again at the next byte.
	Refused int
	Failed  []error
}

// fleetOrigin is the way of one host to the registry.
type fleetOrigin struct {
	*registry
	host  *Host
	asked atomic.Bool
}

func (o *fleetOrigin) Open(ctx context.Context, spec task.Spec, offset int64) (*source.Response, error) {
	o.host.Awake()
	if o.host.isDead() {
		return nil, errRefused
	}
	o.asked.Store(true)
	r, err := o.registry.Open(ctx, spec, offset)
	if err == nil {
		r.Body = &hostBody{body: r.Body.(*body), host: o.host}
	}
	return r, err
}

// hostBody stops with its host. The bytes that the registry sent before are still on their way then.
type hostBody struct {
	*body
	host *Host
}

func (b *hostBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	b.host.Awake()
	if b.host.isDead() {
		return 0, errReset
	}
	return n, err
}

// member is one host of a fleet with its programs.
type member struct {
	host   *Host
	id     host.Host
	api    string
	coord  *coordinator.Coordinator
	client *announce.Client
	engine *peer.Engine
	origin *fleetOrigin
}

// Run simulates the fleet until every live node has the task. It must run inside a synctest bubble.
func (f Fleet) Run(ctx context.Context) (Toll, error) {
	if f.Age == 0 {
		f.Age = 16 * time.Second
	}
	if f.Logger == nil {
		f.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer time.Sleep(2 * time.Hour) // until the last stopped machine goes on
	r := &fleetRun{Fleet: f}
	defer r.wg.Wait()
	defer cancel()
	if err := r.build(); err != nil {
		return Toll{}, err
	}
	for i := range f.Supers {
		m, err := r.newSupernode(ctx, i)
		if err != nil {
			return Toll{}, err
		}
		r.supers = append(r.supers, m)
	}
	for i := range f.Nodes {
		if err := r.addNode(ctx, i); err != nil {
			return Toll{}, err
		}
	}
	for _, m := range r.all() {
		r.start(ctx, m)
	}
	time.Sleep(f.Age)

	done := make(chan struct{})
	ground, err := r.ground(done)
	if err != nil {
		return Toll{}, err
	}
	ground.Restart = func(h *Host, after time.Duration) { r.restart(ctx, h, after) }
	if toll := r.pullOn(ctx, r.nodes[:f.Warm]); len(toll.Failed) > 0 {
		return toll, fmt.Errorf("warming: %w", toll.Failed[0])
	}
	before := r.reg.out.bytes.Load()
	if f.Prelude != nil {
		f.Prelude(ground)
	}
	if f.Fault != nil {
		r.wg.Go(func() { f.Fault(ground) })
	}
	toll := r.pullOn(ctx, r.nodes[f.Warm:])
	close(done)
	toll.Copies = float64(r.reg.out.bytes.Load()-before) / float64(len(r.content))
	for _, m := range r.all() {
		if m.origin.asked.Load() {
			toll.Askers++
		}
	}
	return toll, nil
}

// fleetRun is a fleet that runs.
type fleetRun struct {
	Fleet
	wg       sync.WaitGroup // of all goroutines that end with the context
	network  *Network
	reg      *registry
	spec     task.Spec
	content  []byte // of spec
	verifier *trust
	pool     *memstore.Pool

	mu            sync.Mutex // of supers, which restarts change
	supers, nodes []*member
	addrs         []string // of the APIs of supers
}

// start runs a member's coordinator and engine.
func (r *fleetRun) start(ctx context.Context, m *member) {
	r.wg.Go(func() { _ = m.coord.Run(ctx) })
	r.wg.Go(func() { _ = m.engine.Run(ctx) })
}

func (r *fleetRun) all() []*member {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append(slices.Clone(r.supers), r.nodes...)
}

// restart kills a supernode and starts an empty one at its address after some time.
func (r *fleetRun) restart(ctx context.Context, h *Host, after time.Duration) {
	h.Kill()
	time.Sleep(after)
	for i, m := range r.all()[:r.Supers] {
		if m.host != h {
			continue
		}
		next, err := r.newSupernode(ctx, i)
		if err != nil {
			panic(err) // a key cannot be made
		}
		r.mu.Lock()
		r.supers[i] = next
		r.mu.Unlock()
		r.start(ctx, next)
	}
}

// build makes the registry, its task and the network.
func (r *fleetRun) build() error {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], r.Seed+1)
	r.content = make([]byte, int64(r.K)*r.PieceSize)
	rand.NewChaCha8(key).Read(r.content)
	r.spec = task.Spec{ID: task.ID(fmt.Sprintf("sha256:%x", sha256.Sum256(r.content))), Kind: task.Blob,
		Upstream: "registry.test", Repository: "a"}
	r.reg = &registry{contents: map[task.ID][]byte{r.spec.ID: r.content}, out: link{rate: r.OriginRate},
		latency: 250 * time.Microsecond}
	r.network = New(Config{Chunk: int(max(1<<10, r.PieceSize/8)), Window: int(4 * r.PieceSize)})
	own, err := identity.New(identity.Config{HostID: hostID(0), Insecure: true})
	if err != nil {
		return err
	}
	r.verifier = &trust{Verifier: identity.NewVerifier(own), good: make(map[[sha256.Size]byte]bool)}
	r.pool = new(memstore.Pool)
	for i := range r.Supers {
		r.addrs = append(r.addrs, net.JoinHostPort(fmt.Sprintf("super%d", i), apiPort))
	}
	return nil
}

// serve runs a member's API.
func (r *fleetRun) serve(ctx context.Context, l net.Listener, m *member) {
	mux := http.NewServeMux()
	mux.HandleFunc(api.PathAnnounce, m.coord.HandleAnnounce)
	server := &http.Server{Handler: mux}
	r.wg.Go(func() { _ = server.Serve(l) })
	r.wg.Go(func() {
		<-ctx.Done()
		server.Close()
	})
}

// alive lists the supernodes as supernode i sees them: gossip finds silent ones in a few seconds.
func (r *fleetRun) alive(i int) (list []string) {
	for j, m := range r.all()[:r.Supers] {
		if j == i || !m.host.isDead() && m.host.Frozen() < 4*time.Second {
			list = append(list, r.addrs[j])
		}
	}
	return list
}

// add makes a member without its engine, and the engine's settings.
func (r *fleetRun) add(ctx context.Context, i int, name string, owners func() []string) (*member, peer.Config, error) {
	h := r.network.Host(name, "", r.Rate, r.Rate)
	m := &member{host: h, origin: &fleetOrigin{registry: r.reg, host: h}}
	m.id = host.Host{ID: hostID(i), Name: name, Addr: h.Addr()}
	identity, err := newSigner(m.id.ID)
	if err != nil {
		return nil, peer.Config{}, err
	}
	meter := lag.New(lag.Config{Wait: h.Wait})
	if !r.Blind {
		r.wg.Go(func() { _ = meter.Run(ctx) })
	}
	store := memstore.New(memstore.Config{Pool: r.pool})
	m.coord = coordinator.New(coordinator.Config{
		Host: m.id, Scheduler: scheduler.Config{Seed: r.Seed + uint64(i)}, Store: store, Owners: owners, Lag: meter,
		Seed:   func(s task.Spec) { m.engine.Seed(s) },
		Logger: r.Logger.With("host", name),
	})
	cfg := peer.Config{
		Host: m.id, Store: store, Lag: meter, Dial: h.Dial, Verifier: r.verifier, Signer: identity, Origin: m.origin,
		Observer: m.coord, Announcer: m.coord, PieceSize: func(int64) int64 { return r.PieceSize },
		Logger: r.Logger.With("host", name),
	}
	cfg.Picker.Seed = r.Seed + uint64(i)
	return m, cfg, nil
}

func (r *fleetRun) newSupernode(ctx context.Context, i int) (*member, error) {
	m, cfg, err := r.add(ctx, i, fmt.Sprintf("super%d", i), func() []string { return r.alive(i) })
	if err != nil {
		return nil, err
	}
	m.api = r.addrs[i]
	cfg.Seed, cfg.Listener, cfg.UploadSlots = true, m.host.Listen(), 4*upload.SlotsDefault
	m.engine = peer.New(cfg)
	r.serve(ctx, m.host.ListenAt(apiPort), m)
	return m, nil
}

func (r *fleetRun) addNode(ctx context.Context, i int) error {
	m, cfg, err := r.add(ctx, 100+i, fmt.Sprintf("n%d", i), nil)
	if err != nil {
		return err
	}
	m.api = m.id.Addr
	cfg.Listener = m.host.Listen()
	m.client = announce.New(announce.Config{
		Host: m.id, Generation: 1, Owners: r.addrs, Local: m.coord, Standby: true, Lag: cfg.Lag,
		Client: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				if name, p, _ := net.SplitHostPort(addr); p == port {
					addr = net.JoinHostPort(name, nodeAPIPort)
				}
				return m.host.Dial(ctx, addr)
			},
			MaxIdleConnsPerHost: 4, DisableCompression: true,
		}},
		Inventory: func() []api.Entry { return m.engine.Inventory() },
		Logger:    r.Logger.With("host", m.id.Name),
	})
	cfg.Announcer = m.client
	m.engine = peer.New(cfg)
	r.nodes = append(r.nodes, m)
	r.serve(ctx, m.host.ListenAt(nodeAPIPort), m)
	r.wg.Go(func() { _ = m.client.Run(ctx) })
	return nil
}

// ground returns the machines for the fault, the owner of the task first.
func (r *fleetRun) ground(done chan struct{}) (*Ground, error) {
	ground := &Ground{Rand: rand.New(rand.NewPCG(r.Seed, 2)), Done: done}
	for _, addr := range r.nodes[0].client.Order(r.spec.ID) {
		for _, m := range r.supers {
			if m.api == addr {
				ground.Supers = append(ground.Supers, m.host)
			}
		}
	}
	if len(ground.Supers) != r.Supers {
		return nil, fmt.Errorf("the nodes know %d of %d supernodes", len(ground.Supers), r.Supers)
	}
	ground.Owner = ground.Supers[0]
	for _, m := range r.nodes {
		ground.Nodes = append(ground.Nodes, m.host)
	}
	return ground, nil
}

// pullOn has nodes pull the task, until each has it or is dead.
func (r *fleetRun) pullOn(ctx context.Context, nodes []*member) (toll Toll) {
	var mu sync.Mutex
	var readers sync.WaitGroup
	begun := time.Now()
	for i, m := range nodes {
		readers.Go(func() {
			time.Sleep(time.Duration(float64(r.Stagger) * float64(i) / float64(len(nodes))))
			silence, refused, err := m.pull(ctx, r.spec, r.content)
			mu.Lock()
			defer mu.Unlock()
			if m.host.isDead() {
				return
			}
			if err != nil {
				toll.Failed = append(toll.Failed, fmt.Errorf("%s: %w", m.id.Name, err))
			}
			toll.Silence = max(toll.Silence, silence)
			toll.Refused += refused
			toll.Makespan = max(toll.Makespan, time.Since(begun))
		})
	}
	readers.Wait()
	return toll
}

func newSigner(id host.ID) (*identity.Signer, error) {
	own, err := identity.New(identity.Config{HostID: id, Insecure: true})
	if err != nil {
		return nil, err
	}
	return identity.NewSigner(own)
}

// pullTries is how often a client comes back after its pull ended early.
const pullTries = 10

var errBytes = errors.New("wrong bytes")

// pull reads the task in order, as a client without another place to go: after a refusal or a short body it comes back
// for the rest.
func (m *member) pull(ctx context.Context, spec task.Spec, want []byte) (
	silence time.Duration, refused int, err error,
) {
	last := time.Now()
	at := 0
	for {
		err = func() error {
			content, err := m.engine.Open(ctx, spec)
			if err != nil {
				return err
			}
			defer content.Close()
			r := content.NewReader(ctx, int64(at), int64(len(want)-at))
			defer r.Close()
			buf := make([]byte, 64<<10)
			for at < len(want) {
				n, err := r.Read(buf)
				if n > 0 {
					m.host.Awake()
					silence, last = max(silence, time.Since(last)), time.Now()
					if !bytes.Equal(buf[:n], want[at:at+n]) {
						return errBytes
					}
					at += n
				}
				if err != nil && at < len(want) {
					return err
				}
			}
			return nil
		}()
		if err == nil || errors.Is(err, errBytes) || refused == pullTries || m.host.isDead() || ctx.Err() != nil {
			return silence, refused, err
		}
		refused++
		time.Sleep(100 * time.Millisecond)
	}
}
