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
	// Fault runs when the pull starts, in a goroutine of its own. It returns before the end of the pull.
	Fault func(g *Ground)
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
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], f.Seed+1)
	content := make([]byte, int64(f.K)*f.PieceSize)
	rand.NewChaCha8(key).Read(content)
	spec := task.Spec{ID: task.ID(fmt.Sprintf("sha256:%x", sha256.Sum256(content))), Kind: task.Blob,
		Upstream: "registry.test", Repository: "a"}
	reg := &registry{contents: map[task.ID][]byte{spec.ID: content}, out: link{rate: f.OriginRate},
		latency: 250 * time.Microsecond}
	network := New(Config{Chunk: int(max(1<<10, f.PieceSize/8)), Window: int(4 * f.PieceSize)})
	own, err := identity.New(identity.Config{HostID: hostID(0), Insecure: true})
	if err != nil {
		return Toll{}, err
	}
	verifier := &trust{Verifier: identity.NewVerifier(own), good: make(map[[sha256.Size]byte]bool)}
	pool := new(memstore.Pool)

	var supers, nodes []*member
	var addrs []string
	for i := range f.Supers {
		addrs = append(addrs, net.JoinHostPort(fmt.Sprintf("super%d", i), apiPort))
	}
	serve := func(l net.Listener, m *member) {
		mux := http.NewServeMux()
		mux.HandleFunc(api.PathAnnounce, m.coord.HandleAnnounce)
		server := &http.Server{Handler: mux}
		wg.Go(func() { _ = server.Serve(l) })
		wg.Go(func() {
			<-ctx.Done()
			server.Close()
		})
	}
	// alive lists the supernodes as supernode i sees them: gossip finds silent ones in a few seconds.
	alive := func(i int) (list []string) {
		for j, m := range supers {
			if j == i || !m.host.isDead() && m.host.Frozen() < 4*time.Second {
				list = append(list, addrs[j])
			}
		}
		return list
	}
	add := func(i int, name string, owners func() []string) (*member, peer.Config, error) {
		h := network.Host(name, "", f.Rate, f.Rate)
		m := &member{host: h, origin: &fleetOrigin{registry: reg, host: h}}
		m.id = host.Host{ID: hostID(i), Name: name, Addr: h.Addr()}
		identity, err := newSigner(m.id.ID)
		if err != nil {
			return nil, peer.Config{}, err
		}
		meter := lag.New(lag.Config{Wait: h.Wait})
		if !f.Blind {
			wg.Go(func() { _ = meter.Run(ctx) })
		}
		store := memstore.New(memstore.Config{Pool: pool})
		m.coord = coordinator.New(coordinator.Config{
			Host: m.id, Scheduler: scheduler.Config{Seed: f.Seed + uint64(i)}, Store: store, Owners: owners, Lag: meter,
			Seed:   func(s task.Spec) { m.engine.Seed(s) },
			Logger: f.Logger.With("host", name),
		})
		cfg := peer.Config{
			Host: m.id, Store: store, Lag: meter, Dial: h.Dial, Verifier: verifier, Signer: identity, Origin: m.origin,
			Observer: m.coord, Announcer: m.coord, PieceSize: func(int64) int64 { return f.PieceSize },
			Logger: f.Logger.With("host", name),
		}
		cfg.Picker.Seed = f.Seed + uint64(i)
		return m, cfg, nil
	}
	for i := range f.Supers {
		m, cfg, err := add(i, fmt.Sprintf("super%d", i), func() []string { return alive(i) })
		if err != nil {
			return Toll{}, err
		}
		m.api = addrs[i]
		cfg.Seed, cfg.Listener, cfg.UploadSlots = true, m.host.Listen(), 4*upload.SlotsDefault
		m.engine = peer.New(cfg)
		supers = append(supers, m)
		serve(m.host.ListenAt(apiPort), m)
	}
	for i := range f.Nodes {
		m, cfg, err := add(100+i, fmt.Sprintf("n%d", i), nil)
		if err != nil {
			return Toll{}, err
		}
		m.api = m.id.Addr
		cfg.Listener = m.host.Listen()
		m.client = announce.New(announce.Config{
			Host: m.id, Generation: 1, Owners: addrs, Local: m.coord, Standby: true, Lag: cfg.Lag,
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
			Logger:    f.Logger.With("host", m.id.Name),
		})
		cfg.Announcer = m.client
		m.engine = peer.New(cfg)
		nodes = append(nodes, m)
		serve(m.host.ListenAt(nodeAPIPort), m)
		wg.Go(func() { _ = m.client.Run(ctx) })
	}
	for _, m := range append(slices.Clone(supers), nodes...) {
		wg.Go(func() { _ = m.coord.Run(ctx) })
		wg.Go(func() { _ = m.engine.Run(ctx) })
	}
	time.Sleep(f.Age)

	done := make(chan struct{})
	ground := &Ground{Rand: rand.New(rand.NewPCG(f.Seed, 2)), Done: done}
	for _, addr := range nodes[0].client.Order(spec.ID) {
		for _, m := range supers {
			if m.api == addr {
				ground.Supers = append(ground.Supers, m.host)
			}
		}
	}
	if len(ground.Supers) != f.Supers {
		return Toll{}, fmt.Errorf("the nodes know %d of %d supernodes", len(ground.Supers), f.Supers)
	}
	ground.Owner = ground.Supers[0]
	for _, m := range nodes {
		ground.Nodes = append(ground.Nodes, m.host)
	}
	if f.Fault != nil {
		wg.Go(func() { f.Fault(ground) })
	}
	var toll Toll
	var mu sync.Mutex
	var readers sync.WaitGroup
	begun := time.Now()
	for i, m := range nodes {
		readers.Go(func() {
			time.Sleep(time.Duration(float64(f.Stagger) * float64(i) / float64(f.Nodes)))
			silence, refused, err := m.pull(ctx, spec, content)
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
	close(done)
	toll.Copies = float64(reg.out.bytes.Load()) / float64(len(content))
	for _, m := range append(slices.Clone(supers), nodes...) {
		if m.origin.asked.Load() {
			toll.Askers++
		}
	}
	return toll, nil
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
