package peer_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// keys is a cluster's trust: every signature by its one key counts as a coordinator's.
type keys struct {
	public  ed25519.PublicKey
	private ed25519.PrivateKey
}

func newKeys() *keys {
	public, private, _ := ed25519.GenerateKey(nil)
	return &keys{public, private}
}

func (k *keys) id() (id piece.KeyID) {
	sum := sha256.Sum256(k.public)
	copy(id[:], sum[:])
	return id
}

func (k *keys) SignRun(id task.ID, r *piece.DigestRun) {
	r.Key = k.id()
	r.Signature = ed25519.Sign(k.private, r.SigningBytes(id))
}

func (k *keys) SignRevocation(id task.ID, r *piece.Revocation) {
	r.Key = k.id()
	r.Signature = ed25519.Sign(k.private, r.SigningBytes(id))
}

func (k *keys) Certificate() []byte { return k.public }

func (k *keys) AddCertificate(der []byte) (piece.KeyID, error) {
	if !bytes.Equal(der, k.public) {
		return piece.KeyID{}, errors.New("unknown coordinator")
	}
	return k.id(), nil
}

func (k *keys) Current(der []byte) []byte { return der }

func (k *keys) VerifyRun(id task.ID, r piece.DigestRun) error {
	if r.Key != k.id() || !ed25519.Verify(k.public, r.SigningBytes(id), r.Signature) {
		return errors.New("bad signature")
	}
	return nil
}

func (k *keys) VerifyRevocation(id task.ID, r piece.Revocation) error {
	if r.Key != k.id() || !ed25519.Verify(k.public, r.SigningBytes(id), r.Signature) {
		return errors.New("bad signature")
	}
	return nil
}

// network is an in-memory network of listeners by address.
type network struct {
	mu        sync.Mutex
	listeners map[string]*listener
}

type listener struct {
	net  *network
	addr string
	in   chan net.Conn
	done chan struct{}
	once sync.Once
}

type addr string

func (a addr) Network() string { return "mem" }
func (a addr) String() string  { return string(a) }

func (n *network) listen(a string) *listener {
	l := &listener{net: n, addr: a, in: make(chan net.Conn), done: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[a] = l
	return l
}

func (n *network) dial(ctx context.Context, a string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[a]
	n.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("%s: connection refused", a)
	}
	here, there := net.Pipe()
	select {
	case l.in <- there:
		return here, nil
	case <-l.done:
		return nil, fmt.Errorf("%s: connection refused", a)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.in:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.net.mu.Lock()
		defer l.net.mu.Unlock()
		if l.net.listeners[l.addr] == l {
			delete(l.net.listeners, l.addr)
		}
	})
	return nil
}

func (l *listener) Addr() net.Addr { return addr(l.addr) }

// owner is the simplest owner: it knows all hosts, and the first node is the seed.
type owner struct {
	mu    sync.Mutex
	nodes []*node
	// seed fetches tasks from the origin; nil: each host fetches them itself.
	seed *node
	// leader is sent with each answer.
	leader  owners.Leader
	entries []api.Entry
	events  map[host.ID][]api.Entry
	answer  func(from *node, e api.Entry, a *api.Assignment) error
	// refusal is the origin's last one. Like a coordinator, the owner repeats it for two seconds to hosts with the same
	// credentials.
	refusal *api.Failure
	asked   *task.Spec
	refused time.Time
	// unable says that the first seed's disk failed: one of the hosts that ask is the seed then.
	unable bool
	// formerly makes the owner answer with that failure, as owners of earlier versions do.
	formerly bool
}

func (o *owner) announce(from *node, e api.Entry) (api.Assignment, error) {
	o.mu.Lock()
	seed := o.seed
	o.entries = append(o.entries, e)
	o.events[from.host.ID] = append(o.events[from.host.ID], e)
	a := api.Assignment{Task: e.Task}
	for _, n := range o.nodes {
		if n != from && !n.dead.Load() {
			a.Neighbours = append(a.Neighbours, api.Neighbour{Host: n.host})
		}
	}
	answer := o.answer
	concerned := o.refusal != nil &&
		(!o.refusal.Personal() || o.asked != nil && e.Spec != nil && o.asked.SameAsker(e.Spec.Task()))
	if concerned && time.Since(o.refused) < 2*time.Second {
		a.Failure = o.refusal
		o.mu.Unlock()
		return a, nil
	}
	if seed == nil && o.unable {
		seed, o.seed = from, from
	}
	o.mu.Unlock()
	if seed == nil || seed == from {
		a.Seed = true
	} else if !seed.dead.Load() && e.Spec != nil {
		seed.engine.Seed(e.Spec.Task())
	}
	if seed != nil && seed != from && len(e.Windows) > 0 {
		a.Tail = seed.engine.Ahead(e.Task, e.Windows)
	}
	if answer != nil {
		if err := answer(from, e, &a); err != nil {
			return api.Assignment{}, err
		}
	}
	return a, nil
}

type announcer struct {
	o *owner
	n *node
}

func (a announcer) Announce(_ context.Context, e api.Entry) (api.Assignment, owners.Leader, error) {
	assignment, err := a.o.announce(a.n, e)
	return assignment, a.o.leader, err
}

// origin is a scripted [source.Origin].
type origin struct {
	mu        sync.Mutex
	content   []byte
	mediaType string
	opens     []int64
	sent      atomic.Int64
	noLength  bool
	skips     bool         // it ignores the Range
	hang      int64        // after so many bytes, until its context ends
	open      atomic.Int64 // bodies
	// Open calls fail and refuse, if they are set, before each open.
	fail   func(n int, offset int64) error
	refuse func(spec task.Spec) error
	// body may wrap or replace the body of the n-th open.
	body func(n int, offset int64, r io.Reader) io.Reader
}

func (o *origin) Open(ctx context.Context, spec task.Spec, offset int64) (*source.Response, error) {
	o.mu.Lock()
	n := len(o.opens)
	o.opens = append(o.opens, offset)
	o.mu.Unlock()
	if o.fail != nil {
		if err := o.fail(n, offset); err != nil {
			return nil, err
		}
	}
	if o.refuse != nil {
		if err := o.refuse(spec); err != nil {
			return nil, err
		}
	}
	var r io.Reader = bytes.NewReader(o.content[offset:])
	if o.body != nil {
		r = o.body(n, offset, r)
	}
	length := int64(len(o.content))
	if o.noLength {
		length = -1
	}
	o.mu.Lock()
	hang := o.hang
	o.mu.Unlock()
	if hang > 0 {
		r = io.MultiReader(io.LimitReader(r, hang), readerFunc(func([]byte) (int, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		}))
	}
	o.open.Add(1)
	return &source.Response{Body: &countedBody{ctx: ctx, Reader: r, o: o}, Length: length, MediaType: o.mediaType,
		Skips: o.skips && offset > 0}, nil
}

func (o *origin) requests() []int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]int64(nil), o.opens...)
}

type countedBody struct {
	ctx context.Context
	io.Reader
	o    *origin
	once sync.Once
}

func (b *countedBody) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.Reader.Read(p)
	b.o.sent.Add(int64(n))
	return n, err
}

func (b *countedBody) Close() error {
	b.once.Do(func() { b.o.open.Add(-1) })
	return nil
}

// node is one host with a running engine.
type node struct {
	host   host.Host
	engine *peer.Engine
	store  piece.Store
	owner  *owner
	cancel context.CancelFunc
	done   chan error
	dead   atomic.Bool
	failed chan *api.Failure
	// seedMetadata and seedDone count the calls of the observer.
	seedMetadata, seedDone atomic.Int64
}

func (n *node) SeedMetadata(task.ID, piece.Metadata) { n.seedMetadata.Add(1) }
func (n *node) SeedDone(task.ID)                     { n.seedDone.Add(1) }
func (n *node) SeedFailed(_ task.ID, asked *task.Spec, f *api.Failure) {
	n.owner.mu.Lock()
	if f != nil && f.Full && !n.owner.formerly {
		n.owner.seed, n.owner.unable = nil, true // the next host that asks gets it, as the scheduler has it
	} else {
		n.owner.refusal, n.owner.asked, n.owner.refused = f, asked, time.Now()
	}
	n.owner.mu.Unlock()
	select {
	case n.failed <- f:
	default:
	}
}

// stop ends a node cleanly and waits for it.
func (n *node) stop() error {
	if n.dead.Swap(true) {
		return nil
	}
	n.cancel()
	return <-n.done
}

type swarm struct {
	t      testing.TB
	net    *network
	keys   *keys
	owner  *owner
	origin *origin
	adjust func(*peer.Config)
	// real says that hosts talk over TCP on loopback.
	real  bool
	mu    sync.Mutex
	count int
}

func newSwarm(t testing.TB, content []byte) *swarm {
	return &swarm{
		t: t, net: &network{listeners: make(map[string]*listener)}, keys: newKeys(),
		owner:  &owner{events: make(map[host.ID][]api.Entry)},
		origin: &origin{content: content, mediaType: "application/octet-stream"},
	}
}

func (s *swarm) logger(name string) *slog.Logger {
	if os.Getenv("DARTER_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
}

// node starts one more host.
func (s *swarm) node(store piece.Store) *node {
	n := s.prepare(store)
	s.run(n)
	return n
}

// prepare makes one more host that does not run yet.
func (s *swarm) prepare(store piece.Store) *node {
	s.mu.Lock()
	name := fmt.Sprintf("node-%d", s.count)
	s.count++
	s.mu.Unlock()
	n := &node{owner: s.owner, store: store, done: make(chan error, 1), failed: make(chan *api.Failure, 8)}
	if store == nil {
		n.store = memstore.New(memstore.Config{})
	}
	n.host = host.Host{ID: host.NewID(), Name: name, Addr: name + ":65002"}
	cfg := peer.Config{
		Host: n.host, Store: n.store, Listener: s.net.listen(n.host.Addr), Dial: s.net.dial,
		Announcer: announcer{s.owner, n},
		Origin:    s.origin, Signer: s.keys, Verifier: s.keys, Observer: n, Logger: s.logger(name), UploadSlots: 4,
	}
	if s.real {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(s.t, err)
		n.host.Addr = l.Addr().String()
		cfg.Host, cfg.Listener = n.host, l
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
	if s.adjust != nil {
		s.adjust(&cfg)
	}
	n.engine = peer.New(cfg)
	return n
}

func (s *swarm) run(n *node) {
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	go func() { n.done <- n.engine.Run(ctx) }()
	s.owner.mu.Lock()
	s.owner.nodes = append(s.owner.nodes, n)
	s.owner.mu.Unlock()
	s.t.Cleanup(func() { require.NoError(s.t, n.stop()) })
}

func (s *swarm) seed() *node {
	n := s.node(nil)
	s.owner.mu.Lock()
	s.owner.seed = n
	s.owner.mu.Unlock()
	return n
}

func (s *swarm) spec() task.Spec {
	return task.Spec{ID: task.ID(fmt.Sprintf("sha256:%x", sha256.Sum256(s.origin.content))), Kind: task.Blob,
		Upstream: "registry.test", Repository: "lib/app"}
}

// read pulls the bytes [off, off+n) at a node.
func (s *swarm) read(ctx context.Context, n *node, spec task.Spec, off, length int64) ([]byte, error) {
	c, err := n.engine.Open(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	r := c.NewReader(ctx, off, length)
	defer r.Close()
	return io.ReadAll(r)
}

func (s *swarm) readAll(n *node) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return s.read(ctx, n, s.spec(), 0, int64(len(s.origin.content)))
}

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	rand.NewChaCha8(key).Read(b)
	return b
}
