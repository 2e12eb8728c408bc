package simnet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/coordinator"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/scheduler"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// Crowd is one content and the nodes that want it, with a supernode of the real parts.
type Crowd struct {
	N, K      int
	PieceSize int64
	// Rate of a node's links each way, in bytes per second.
	Rate float64
	// SeedMultiple is the supernode's links in links of a node.
	SeedMultiple float64
	// OriginRate is the registry's, in bytes per second; 0 lets the supernode hold
	// everything at the start.
	OriginRate float64
	// Stagger is the time over which the nodes start; 0 starts them together.
	Stagger time.Duration
	// Latency is one way.
	Latency time.Duration
	// Zones spreads the nodes over so many zones, with links of ZoneRate between them.
	Zones    int
	ZoneRate float64
	// Seed of everything that is random.
	Seed uint64
	// Peer adjusts the engine of node i, from 1, or of the supernode, 0.
	Peer func(i int, c *peer.Config)
	// Each is called when node i has its host and before it starts.
	Each func(i int, h *Host)
	// Reader limits in-order reading to this many bytes per second; 0 reads as fast as
	// bytes come.
	Reader float64
	Logger *slog.Logger
}

// Outcome is what a crowd did.
type Outcome struct {
	// Makespan is from the start until the last node that lives has everything.
	Makespan time.Duration
	// Took is each living node's own time, from its own start, sorted.
	Took []time.Duration
	// FirstByte is each node's time to its first byte, sorted.
	FirstByte []time.Duration
	// SeedCopies is what left the supernode, in contents, OriginCopies what left the
	// registry; CrossZone is what came into each zone from others.
	SeedCopies, OriginCopies float64
	CrossZone                []float64
	Busy, Duplicate          int64
	// Overhead is what the nodes received in units of what they wanted.
	Overhead float64
	Failed   []error
}

// Ratio is the makespan in units of the bound.
func (c Crowd) Ratio(o Outcome) float64 {
	return float64(o.Makespan) / float64(c.Bound().Makespan())
}

// Bound is what physics allows this crowd.
func (c Crowd) Bound() Bound {
	b := Bound{N: c.N, K: c.K, PieceTime: time.Duration(float64(c.PieceSize) / c.Rate * 1e9), Seed: c.SeedMultiple}
	if c.OriginRate > 0 {
		b.OriginPieceTime = time.Duration(float64(c.PieceSize) / c.OriginRate * 1e9)
	}
	return b
}

// registry is an origin that gives one content at a rate.
type registry struct {
	content []byte
	rate    float64
	latency time.Duration
	sent    atomic.Int64
}

func (r *registry) Open(ctx context.Context, _ task.Spec, offset int64) (*source.Response, error) {
	time.Sleep(4 * r.latency) // connection and request
	return &source.Response{Body: &body{r: r, ctx: ctx, rest: bytes.NewReader(r.content[offset:]), at: time.Now()}, Length: int64(len(r.content)), MediaType: "application/octet-stream"}, nil
}

type body struct {
	r    *registry
	ctx  context.Context
	rest *bytes.Reader
	at   time.Time // when the last byte given had come
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.rest.Read(p)
	b.r.sent.Add(int64(n))
	if b.r.rate > 0 && n > 0 {
		b.at = b.at.Add(time.Duration(float64(n) / b.r.rate * 1e9))
		time.Sleep(time.Until(b.at))
	}
	if ctxErr := b.ctx.Err(); ctxErr != nil {
		return 0, ctxErr
	}
	return n, err
}

func (b *body) Close() error { return nil }

// owner is the way of one host to the coordinator.
type owner struct {
	host  host.Host
	wire  *Host
	coord *coordinator.Coordinator
}

func (o *owner) announce(ctx context.Context, entries ...api.Entry) (api.AnnounceResponse, error) {
	if err := o.wire.RoundTrip(ctx); err != nil {
		return api.AnnounceResponse{}, err
	}
	return o.coord.ServeAnnounce(ctx, api.AnnounceRequest{Version: api.Version, Host: o.host, Generation: 1, Entries: entries})
}

func (o *owner) Announce(ctx context.Context, e api.Entry) (api.Assignment, error) {
	r, err := o.announce(ctx, e)
	if err != nil {
		return api.Assignment{}, err
	}
	return r.Assignments[0], nil
}

// beat keeps a host alive for the owner, as the announce client does.
func (o *owner) beat(ctx context.Context) {
	for {
		select {
		case <-time.After(5 * time.Second):
			_, _ = o.announce(ctx)
		case <-ctx.Done():
			return
		}
	}
}

func (c *Crowd) defaults() {
	if c.PieceSize == 0 {
		c.PieceSize = 16 << 10
	}
	if c.Rate == 0 {
		c.Rate = float64(c.PieceSize) * 200 // a piece takes 5 ms
	}
	if c.SeedMultiple == 0 {
		c.SeedMultiple = 4
	}
	if c.Latency == 0 {
		c.Latency = 250 * time.Microsecond
	}
	if c.Seed == 0 {
		c.Seed = 1
	}
}

// Run plays the crowd to its end. It must run inside a synctest bubble.
func (c *Crowd) Run(ctx context.Context) (Outcome, error) {
	c.defaults()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	content := make([]byte, int64(c.K)*c.PieceSize)
	var key [32]byte
	key[0] = byte(c.Seed)
	rand.NewChaCha8(key).Read(content)
	spec := task.Spec{ID: task.ID(fmt.Sprintf("sha256:%x", sha256.Sum256(content))), Kind: task.Blob, Upstream: "registry.test", Repository: "a"}

	network := New(Config{Latency: c.Latency, Chunk: int(max(2<<10, c.PieceSize/4)), Window: int(c.PieceSize)})
	zones := max(1, c.Zones)
	for z := range zones {
		network.Zone(fmt.Sprint(z), c.ZoneRate, c.ZoneRate)
	}
	trust, err := identity.New(identity.Config{HostID: hostID(0), Insecure: true})
	if err != nil {
		return Outcome{}, err
	}
	signer, err := identity.NewSigner(trust)
	if err != nil {
		return Outcome{}, err
	}
	verifier := identity.NewVerifier(trust)
	pool := new(memstore.Pool)
	reg := &registry{content: content, rate: c.OriginRate, latency: c.Latency}

	start := func(i int, h *Host, cfg peer.Config) (*peer.Engine, host.Host) {
		cfg.Host = host.Host{ID: hostID(i), Name: h.name, Addr: h.Addr(), Zone: h.zone}
		if cfg.Store == nil {
			cfg.Store = memstore.New(memstore.Config{Pool: pool})
		}
		cfg.Listener, cfg.Dial, cfg.Verifier = h.Listen(), h.Dial, verifier
		cfg.PieceSize = func(int64) int64 { return c.PieceSize }
		cfg.Logger = c.Logger
		cfg.Picker.Seed = c.Seed + uint64(i)
		if c.Peer != nil {
			c.Peer(i, &cfg)
		}
		e := peer.New(cfg)
		wg.Go(func() { _ = e.Run(ctx) })
		return e, cfg.Host
	}

	superHost := network.Host("super", "0", c.Rate*c.SeedMultiple, 0)
	super := host.Host{ID: hostID(0), Name: "super", Addr: superHost.Addr(), Zone: "0"}
	var seed *peer.Engine
	superStore := memstore.New(memstore.Config{Pool: pool})
	coord := coordinator.New(coordinator.Config{
		Host: super, Scheduler: scheduler.Config{Seed: c.Seed}, Store: superStore,
		Seed: func(s task.Spec) { seed.Seed(s) },
	})
	wg.Go(func() { _ = coord.Run(ctx) })
	seed, _ = start(0, superHost, peer.Config{
		Seed: true, Store: superStore, Announcer: coord, Origin: reg, Signer: signer, Observer: coord, UploadSlots: int(4 * c.SeedMultiple),
	})
	time.Sleep(time.Millisecond)
	if c.OriginRate == 0 {
		warm, err := seed.Open(ctx, spec)
		if err != nil {
			return Outcome{}, err
		}
		r := warm.NewReader(ctx, 0, int64(len(content)))
		if _, err := io.Copy(io.Discard, r); err != nil {
			return Outcome{}, err
		}
		r.Close()
		warm.Close()
		seed.Seed(spec)
	}

	var mu sync.Mutex
	var out Outcome
	begun := time.Now()
	var readers sync.WaitGroup
	engines, hosts := make([]*peer.Engine, c.N), make([]*Host, c.N)
	for i := range c.N {
		h := network.Host(fmt.Sprintf("n%d", i), fmt.Sprint(i%zones), c.Rate, c.Rate)
		hosts[i] = h
		if c.Each != nil {
			c.Each(i, h)
		}
		o := &owner{wire: h, coord: coord}
		engines[i], o.host = start(i+1, h, peer.Config{Announcer: o})
		wg.Go(func() { o.beat(ctx) })
		readers.Go(func() {
			if c.Stagger > 0 {
				time.Sleep(time.Duration(float64(c.Stagger) * float64(i) / float64(c.N)))
			}
			mine := time.Now()
			first, err := c.pull(ctx, engines[i], spec, content)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case h.isDead():
			case err != nil:
				out.Failed = append(out.Failed, fmt.Errorf("node %d: %w", i, err))
			default:
				out.Took = append(out.Took, time.Since(mine))
				out.FirstByte = append(out.FirstByte, first)
				out.Makespan = max(out.Makespan, time.Since(begun))
			}
		})
	}
	readers.Wait()
	size := float64(len(content))
	for _, h := range hosts {
		out.Overhead += float64(h.Received()) / float64(c.N) / size
	}
	out.SeedCopies = float64(seed.Stats().Sent) / size
	out.OriginCopies = float64(reg.sent.Load()) / size
	for _, e := range engines {
		out.Busy += e.Stats().BusyGot
		out.Duplicate += e.Stats().Duplicate
	}
	for z := range zones {
		out.CrossZone = append(out.CrossZone, float64(network.ZoneBytes(fmt.Sprint(z)))/size)
	}
	slices.Sort(out.Took)
	slices.Sort(out.FirstByte)
	return out, nil
}

// pull reads everything in order and compares it.
func (c *Crowd) pull(ctx context.Context, e *peer.Engine, spec task.Spec, want []byte) (first time.Duration, err error) {
	begun := time.Now()
	content, err := e.Open(ctx, spec)
	if err != nil {
		return 0, err
	}
	defer content.Close()
	r := content.NewReader(ctx, 0, int64(len(want)))
	defer r.Close()
	buf := make([]byte, c.PieceSize)
	for at := 0; at < len(want); {
		n, err := r.Read(buf)
		if err != nil {
			return first, err
		}
		if at == 0 {
			first = time.Since(begun)
		}
		if !bytes.Equal(buf[:n], want[at:at+n]) {
			return first, fmt.Errorf("wrong bytes at %d", at)
		}
		at += n
		if c.Reader > 0 {
			time.Sleep(time.Duration(float64(n) / c.Reader * 1e9))
		}
	}
	return first, nil
}

func hostID(i int) host.ID { return host.ID(fmt.Sprintf("%032x", i+1)) }
