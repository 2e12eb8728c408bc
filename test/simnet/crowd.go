package simnet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/coordinator"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/peer/upload"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/scheduler"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// Crowd describes nodes that pull one task or several, and a supernode that consists of the real parts.
type Crowd struct {
	// N nodes pull a task of K pieces.
	N, K int
	// Layers makes it several tasks with these numbers of pieces; their sum is K. A node starts them in this order,
	// AtOnce at a time; 0 starts all together.
	Layers []int
	AtOnce int
	// Pulls returns which layers node i wants, and how long after the others it starts; nil is all layers, at once. The
	// bound ignores it.
	Pulls func(i int) (layers []int, after time.Duration)
	// PieceSize in bytes; default 64 KiB. The smallest real piece is twice as large, so the overhead of other messages
	// is larger here than on real links.
	PieceSize int64
	// Rate of a node's links each way, in bytes per second; default 200 pieces.
	Rate float64
	// SeedMultiple is the rate of the supernode's links, in units of Rate.
	SeedMultiple float64
	// Helpers is the number of further supernodes, with links like the first one's. They download the task from the
	// swarm, never from the registry, as soon as the first node wants it, and seed it meanwhile. With HelpersHold they
	// hold it from the start.
	Helpers     int
	HelpersHold bool
	// Copies is how often a supernode sends one piece; 0 is the engine's default.
	Copies int
	// OriginRate is the registry's rate, in bytes per second; with 0 the supernode holds everything from the start.
	OriginRate float64
	// Preheat are layers that the supernode fetches from the start, although no node wants them.
	Preheat []int
	// Stagger is the time over which the nodes start; 0 starts them together.
	Stagger time.Duration
	// Latency is the one-way latency.
	Latency time.Duration
	// Window bounds the bytes in flight on a connection; default a piece.
	Window int
	// Zones spreads the nodes over so many zones, with links of ZoneRate between them.
	Zones    int
	ZoneRate float64
	// Dead is the share of the nodes that die at DeadAfter since the start.
	Dead      float64
	DeadAfter time.Duration
	// Slow is the share of the nodes whose uplink is SlowBy times slower.
	Slow, SlowBy float64
	// Seed is the seed of all random choices.
	Seed uint64
	// UploadLines is how many pieces a node sends at once; 0 is the engine's default.
	UploadLines int
	// Peer adjusts the engine of node i, from 1, or of the supernode, 0.
	Peer func(i int, c *peer.Config)
	// Begun receives the engine of node i, from 1, or of the supernode, 0.
	Begun func(i int, e *peer.Engine)
	// Each is called with the host of node i before the node starts.
	Each func(i int, h *Host)
	// Reader limits in-order reading to this many bytes per second; 0 is no limit.
	Reader float64
	// Compare makes every reader compare its bytes with the expected ones.
	Compare bool
	Logger  *slog.Logger
}

// Outcome is the result of a crowd.
type Outcome struct {
	// Makespan is the time from the start until the last live node holds everything.
	Makespan time.Duration
	// Took is the time of each live node from its own start, sorted.
	Took []time.Duration
	// Of is the time of each node by its number; 0 if it did not finish.
	Of []time.Duration
	// FirstByte is each node's time to its first byte, sorted.
	FirstByte []time.Duration
	// HalfRead is when each in-order reader of a layer had read half of it, in units of its time for the whole layer,
	// sorted. A reader that gets bytes at a steady rate has 0.5.
	HalfRead []float64
	// Lag is how far each in-order reader was behind its download, in units of its layer: the received bytes that it
	// could not read yet, because earlier ones were missing or because of its own rate; the mean over its reads,
	// sorted.
	Lag []float64
	// Layers is each layer's time at each node from its opening, sorted.
	Layers []time.Duration
	// SeedCopies are the bytes that the supernode sent, in units of all layers; OriginCopies those of the registry and
	// HelperCopies those of the helpers. CrossZone are the bytes that each zone received from the others.
	SeedCopies, OriginCopies float64
	HelperCopies             float64
	CrossZone                []float64
	// Busy counts refused requests, Duplicate the bytes of pieces that the receiver already had.
	Busy, Duplicate int64
	// Overhead is the ratio of all received bytes to the wanted bytes.
	Overhead float64
	Failed   []error
}

// Ratio returns the makespan in units of the bound.
func (c Crowd) Ratio(o Outcome) float64 {
	return float64(o.Makespan) / float64(c.Bound().Makespan())
}

// Bound returns the bound for this crowd, with all supernodes together as the seed.
func (c Crowd) Bound() Bound {
	c.defaults()
	in := func(rate float64) time.Duration { return time.Duration(float64(c.PieceSize) / rate * 1e9) }
	b := Bound{N: c.N, K: c.K, PieceTime: in(c.Rate), Seed: c.SeedMultiple * float64(1+c.Helpers),
		Slow: int(c.Slow * float64(c.N)), SlowBy: c.SlowBy}
	if c.OriginRate > 0 {
		b.OriginPieceTime = in(c.OriginRate)
	}
	if c.Zones > 1 && c.ZoneRate > 0 {
		b.ZonePieceTime = in(c.ZoneRate)
	}
	if c.N > 1 {
		b.Stagger = c.Stagger * time.Duration(c.N-1) / time.Duration(c.N)
	}
	return b
}

// registry is an origin whose tasks share a rate.
type registry struct {
	contents map[task.ID][]byte
	out      link
	latency  time.Duration
}

func (r *registry) Open(ctx context.Context, spec task.Spec, offset int64) (*source.Response, error) {
	time.Sleep(4 * r.latency) // connection and request
	content := r.contents[spec.ID]
	return &source.Response{Body: &body{r: r, ctx: ctx, rest: bytes.NewReader(content[offset:])},
		Length: int64(len(content)), MediaType: "application/octet-stream"}, nil
}

type body struct {
	r    *registry
	ctx  context.Context
	rest *bytes.Reader
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.rest.Read(p[:min(len(p), 16<<10)])
	if n > 0 {
		time.Sleep(time.Until(b.r.out.pass(n, time.Now())))
	}
	if ctxErr := b.ctx.Err(); ctxErr != nil {
		return 0, ctxErr
	}
	return n, err
}

func (b *body) Close() error { return nil }

// owner connects one host to the coordinator.
type owner struct {
	host  host.Host
	wire  *Host
	coord *coordinator.Coordinator
}

func (o *owner) announce(ctx context.Context, entries ...api.Entry) (api.AnnounceResponse, error) {
	if err := o.wire.RoundTrip(ctx); err != nil {
		return api.AnnounceResponse{}, err
	}
	return o.coord.ServeAnnounce(ctx, api.AnnounceRequest{Version: api.Version, Host: o.host, Generation: 1,
		Entries: entries})
}

func (o *owner) Announce(ctx context.Context, e api.Entry) (api.Assignment, owners.Leader, error) {
	r, err := o.announce(ctx, e)
	if err != nil {
		return api.Assignment{}, owners.Other, err
	}
	return r.Assignments[0], owners.LastResort, nil
}

// beat sends heartbeats to the owner, as the announce client does.
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
		c.PieceSize = 64 << 10
	}
	if len(c.Layers) == 0 {
		c.Layers = []int{c.K}
	}
	if c.AtOnce == 0 {
		c.AtOnce = len(c.Layers)
	}
	c.K = 0
	for _, k := range c.Layers {
		c.K += k
	}
	if c.SlowBy == 0 {
		c.SlowBy = 10
	}
	if c.Rate == 0 {
		c.Rate = float64(c.PieceSize) * 200 // a piece takes 5 ms
	}
	if c.SeedMultiple == 0 {
		c.SeedMultiple = 4
	}
	if c.Window == 0 {
		c.Window = int(c.PieceSize)
	}
	if c.Latency == 0 {
		c.Latency = 250 * time.Microsecond
	}
	if c.Seed == 0 {
		c.Seed = 1
	}
}

// chunks is the number of parts in which a piece crosses a link. A network card takes at most 64 KiB at once, and a
// piece of a task of 1 GiB has 2 MiB: a message on one connection waits for a chunk of another connection, not for a
// piece.
const chunks = 32

// forgotten is the time after which a supernode forgets how often it sent the pieces of an unused task.
const forgotten = 15 * time.Minute

// Run simulates the crowd to its end. It must run inside a synctest bubble.
func (c *Crowd) Run(ctx context.Context) (Outcome, error) {
	c.defaults()
	ctx, cancel := context.WithCancel(ctx)
	s := &crowdRun{Crowd: c}
	defer s.wg.Wait()
	defer cancel()
	if err := s.build(); err != nil {
		return Outcome{}, err
	}
	if err := s.startSupernode(ctx); err != nil {
		return Outcome{}, err
	}
	s.startHelpers(ctx)
	before := s.seed.Stats().Sent
	for _, l := range c.Preheat {
		s.seed.Seed(s.specs[l])
	}
	out := s.pullOnNodes(ctx)
	s.count(&out, before)
	return out, nil
}

// crowdRun is a crowd that runs.
type crowdRun struct {
	*Crowd
	wg       sync.WaitGroup // of all goroutines that end with the context
	network  *Network
	reg      *registry
	specs    []task.Spec // of Layers
	signer   *identity.Signer
	verifier *trust
	pool     *memstore.Pool
	coord    *coordinator.Coordinator

	seed             *peer.Engine
	helpers, engines []*peer.Engine
	hosts            []*Host // of engines
}

func (s *crowdRun) zones() int { return max(1, s.Zones) }

// size is the length of all layers.
func (s *crowdRun) size() float64 { return float64(int64(s.K) * s.PieceSize) }

// build makes the registry, its layers and the network.
func (s *crowdRun) build() (err error) {
	s.reg = &registry{contents: make(map[task.ID][]byte), out: link{rate: s.OriginRate}, latency: s.Latency}
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], s.Seed)
	random := rand.NewChaCha8(key)
	for _, k := range s.Layers {
		content := make([]byte, int64(k)*s.PieceSize)
		random.Read(content)
		spec := task.Spec{ID: task.ID(fmt.Sprintf("sha256:%x", sha256.Sum256(content))), Kind: task.Blob,
			Upstream: "registry.test", Repository: "a"}
		s.specs = append(s.specs, spec)
		s.reg.contents[spec.ID] = content
	}
	s.network = New(Config{Latency: s.Latency, Chunk: int(max(1<<10, s.PieceSize/chunks)), Window: s.Window})
	for z := range s.zones() {
		s.network.Zone(fmt.Sprint(z), s.ZoneRate, s.ZoneRate)
	}
	own, err := identity.New(identity.Config{HostID: hostID(0), Insecure: true})
	if err != nil {
		return err
	}
	s.verifier = &trust{Verifier: identity.NewVerifier(own), good: make(map[[sha256.Size]byte]bool)}
	s.pool = new(memstore.Pool)
	s.signer, err = identity.NewSigner(own)
	return err
}

// start runs the engine of host i.
func (s *crowdRun) start(ctx context.Context, i int, h *Host, cfg peer.Config) (*peer.Engine, host.Host) {
	cfg.Host = host.Host{ID: hostID(i), Name: h.name, Addr: h.Addr(), Zone: h.zone}
	if cfg.Store == nil {
		cfg.Store = memstore.New(memstore.Config{Pool: s.pool})
	}
	cfg.Listener, cfg.Dial, cfg.Verifier = h.Listen(), h.Dial, s.verifier
	cfg.PieceSize = func(int64) int64 { return s.PieceSize }
	cfg.Logger, cfg.UploadLines, cfg.Copies = s.Logger, s.UploadLines, s.Copies
	cfg.Picker.Seed = s.Seed + uint64(i)
	if s.Peer != nil {
		s.Peer(i, &cfg)
	}
	e := peer.New(cfg)
	if s.Begun != nil {
		s.Begun(i, e)
	}
	s.wg.Go(func() { _ = e.Run(ctx) })
	return e, cfg.Host
}

// startSupernode runs the coordinator and its engine, which has all layers if the crowd is not cold.
func (s *crowdRun) startSupernode(ctx context.Context) error {
	h := s.network.Host("super", "0", s.Rate*s.SeedMultiple, 0)
	super := host.Host{ID: hostID(0), Name: "super", Addr: h.Addr(), Zone: "0"}
	store := memstore.New(memstore.Config{Pool: s.pool})
	s.coord = coordinator.New(coordinator.Config{
		Host: super, Scheduler: scheduler.Config{Seed: s.Seed}, Store: store,
		Seed: func(spec task.Spec) { s.seed.Seed(spec) },
	})
	s.wg.Go(func() { _ = s.coord.Run(ctx) })
	s.seed, _ = s.start(ctx, 0, h, peer.Config{
		Seed: true, Store: store, Announcer: s.coord, Origin: s.reg, Signer: s.signer, Observer: s.coord,
		UploadSlots: int(upload.SlotsDefault * s.SeedMultiple),
	})
	time.Sleep(time.Millisecond)
	if s.OriginRate != 0 {
		return nil
	}
	for _, spec := range s.specs {
		if err := warm(ctx, s.seed, spec); err != nil {
			return err
		}
	}
	return nil
}

// startHelpers runs the engines of further supernodes.
func (s *crowdRun) startHelpers(ctx context.Context) {
	for i := range s.Helpers {
		h := s.network.Host(fmt.Sprintf("helper%d", i), "0", s.Rate*s.SeedMultiple, 0)
		o := &owner{wire: h, coord: s.coord}
		var e *peer.Engine
		// It announces to the owner as a node does, and the owner never orders it to fetch from an origin.
		e, o.host = s.start(ctx, s.N+1+i, h, peer.Config{Seed: true, Announcer: o,
			UploadSlots: int(upload.SlotsDefault * s.SeedMultiple)})
		s.helpers = append(s.helpers, e)
		s.wg.Go(func() { o.beat(ctx) })
		for _, spec := range s.specs {
			e.Seed(spec)
		}
	}
	if s.Helpers > 0 && s.HelpersHold {
		time.Sleep(forgotten)
	}
}

// pullOnNodes runs the nodes until each has its layers or is dead.
func (s *crowdRun) pullOnNodes(ctx context.Context) Outcome {
	var mu sync.Mutex
	out := Outcome{Of: make([]time.Duration, s.N)}
	begun := time.Now()
	var readers sync.WaitGroup
	s.engines, s.hosts = make([]*peer.Engine, s.N), make([]*Host, s.N)
	// Dead and slow nodes are spread over all nodes, and so over the zones.
	odd := rand.New(rand.NewPCG(s.Seed, 1)).Perm(s.N)
	dead, slow := int(s.Dead*float64(s.N)), int(s.Slow*float64(s.N))
	for i := range s.N {
		h := s.network.Host(fmt.Sprintf("n%d", i), fmt.Sprint(i%s.zones()), s.Rate, s.Rate)
		s.hosts[i] = h
		switch at := odd[i]; {
		case at < dead:
			time.AfterFunc(s.DeadAfter, h.Kill)
		case at >= s.N-slow:
			h.SetRate(s.Rate/s.SlowBy, s.Rate)
		}
		if s.Each != nil {
			s.Each(i, h)
		}
		o := &owner{wire: h, coord: s.coord}
		s.engines[i], o.host = s.start(ctx, i+1, h, peer.Config{Announcer: o})
		s.wg.Go(func() { o.beat(ctx) })
		readers.Go(func() {
			wanted := s.await(i)
			mine := time.Now()
			first, pulls, err := s.pullAll(ctx, s.engines[i], wanted, s.reg.contents)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case h.isDead():
			case err != nil:
				out.Failed = append(out.Failed, fmt.Errorf("node %d: %w", i, err))
			default:
				out.Took = append(out.Took, time.Since(mine))
				out.Of[i] = time.Since(mine)
				out.FirstByte = append(out.FirstByte, first)
				for _, p := range pulls {
					out.HalfRead = append(out.HalfRead, float64(p.half)/float64(p.took))
					out.Lag = append(out.Lag, p.lag)
					out.Layers = append(out.Layers, p.took)
				}
				out.Makespan = max(out.Makespan, time.Since(begun))
			}
		})
	}
	readers.Wait()
	return out
}

// await waits until node i starts its pull, and returns the layers that it wants.
func (s *crowdRun) await(i int) []task.Spec {
	if s.Stagger > 0 {
		time.Sleep(time.Duration(float64(s.Stagger) * float64(i) / float64(s.N)))
	}
	if s.Pulls == nil {
		return s.specs
	}
	layers, after := s.Pulls(i)
	var wanted []task.Spec
	for _, l := range layers {
		wanted = append(wanted, s.specs[l])
	}
	time.Sleep(after)
	return wanted
}

// count adds the bytes that all hosts moved; the seed had sent before bytes when the pulls began.
func (s *crowdRun) count(out *Outcome, before int64) {
	size := s.size()
	for _, h := range s.hosts {
		out.Overhead += float64(h.Received()) / float64(s.N) / size
	}
	out.SeedCopies = float64(s.seed.Stats().Sent-before) / size
	for _, e := range s.helpers {
		out.HelperCopies += float64(e.Stats().Sent) / size
	}
	out.OriginCopies = float64(s.reg.out.bytes.Load()) / size
	for _, e := range s.engines {
		out.Busy += e.Stats().BusyGot
		out.Duplicate += e.Stats().Duplicate
	}
	for z := range s.zones() {
		out.CrossZone = append(out.CrossZone, float64(s.network.ZoneBytes(fmt.Sprint(z)))/size)
	}
	slices.Sort(out.Took)
	slices.Sort(out.FirstByte)
	slices.Sort(out.HalfRead)
	slices.Sort(out.Lag)
	slices.Sort(out.Layers)
}

// warm gives the supernode a task before the measurement.
func warm(ctx context.Context, seed *peer.Engine, spec task.Spec) error {
	content, err := seed.Open(ctx, spec)
	if err != nil {
		return err
	}
	defer content.Close()
	r := content.NewReader(ctx, 0, content.Metadata().Length)
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	seed.Seed(spec)
	return err
}

// arrival holds the times at which one layer arrived at one node, since it was opened.
type arrival struct {
	first, half, took time.Duration
	lag               float64
}

// pullAll pulls every layer. It returns the time to the first byte of all, and the arrival of each layer.
func (c *Crowd) pullAll(ctx context.Context, e *peer.Engine, specs []task.Spec,
	contents map[task.ID][]byte) (first time.Duration, all []arrival, err error) {
	var mu sync.Mutex
	begun := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(c.AtOnce)
	for _, spec := range specs {
		g.Go(func() error {
			opened := time.Since(begun)
			p, err := c.pull(ctx, e, spec, contents[spec.ID])
			mu.Lock()
			defer mu.Unlock()
			all = append(all, p)
			if at := opened + p.first; first == 0 || at < first {
				first = at
			}
			return err
		})
	}
	err = g.Wait()
	return first, all, err
}

// pull reads a layer in order.
func (c *Crowd) pull(ctx context.Context, e *peer.Engine, spec task.Spec, want []byte) (p arrival, err error) {
	begun := time.Now()
	content, err := e.Open(ctx, spec)
	if err != nil {
		return p, err
	}
	defer content.Close()
	r := content.NewReader(ctx, 0, int64(len(want)))
	defer r.Close()
	buf := make([]byte, min(c.PieceSize, int64(len(want))))
	reads := 0.0
	for at := 0; at < len(want); {
		n, err := r.Read(buf)
		if err != nil {
			return p, err
		}
		if at == 0 {
			p.first = time.Since(begun)
		}
		if c.Compare && !bytes.Equal(buf[:n], want[at:at+n]) {
			return p, fmt.Errorf("wrong bytes at %d", at)
		}
		at += n
		if p.half == 0 && at >= len(want)/2 {
			p.half = time.Since(begun)
		}
		// The loop may count bytes after the reader has read them.
		come := content.Sources()
		p.lag += max(0, float64(come.Total()-int64(at))/float64(len(want)))
		reads++
		if c.Reader > 0 {
			time.Sleep(time.Duration(float64(n) / c.Reader * 1e9))
		}
	}
	p.took = time.Since(begun)
	p.lag /= reads
	return p, nil
}

func hostID(i int) host.ID { return host.ID(fmt.Sprintf("%032x", i+1)) }
