// Package peer is the engine that downloads and serves: one per node, for readers and for other peers,
// and from the origin where an owner makes this host a seed.
//
// The engine stores, serves and hands to readers only bytes that it compared with a digest. That digest
// is one that a coordinator signed, the one in the task's name, or, for bytes that this host itself read
// from the origin, their own: this host signs it. Bytes inside an owner's reply are no exception: without
// a signed digest they are stored only where the whole matches the digest in the task's name. A reader
// never gets the end of an object that does not match its digest, but for [Content.NewPartReader].
//
// A seed is a peer whose parent is the origin: there is no second download path. One loop owns one
// download and decides; other goroutines read and write connections and disks. Start at [Engine.Open],
// then [Download.run], events.go, announce.go, conns.go, conn.go and pieces.go, in this order;
// docs/life-of-a-pull.md describes the whole path of a pull.
package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/lag"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/peer/picker"
	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/peer/upload"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// ErrStopped means that the engine was stopped.
var ErrStopped = errors.New("the peer engine was stopped")

// Announcer sends announces to a task's owner and returns its reply: the neighbours to talk to.
type Announcer interface {
	// The leader says whose coordinator replied.
	Announce(ctx context.Context, e api.Entry) (api.Assignment, owners.Leader, error)
}

// Signer signs digests of pieces as a coordinator.
type Signer interface {
	// SignRun and SignRevocation set r's Key and Signature.
	SignRun(id task.ID, r *piece.DigestRun)
	SignRevocation(id task.ID, r *piece.Revocation)
	// Certificate returns the DER certificate of the key. The caller must not change the bytes.
	Certificate() []byte
}

// Verifier checks the signatures of coordinators. Safe for concurrent use.
type Verifier interface {
	// AddCertificate adds the key of a DER certificate, if it is a coordinator's. It does not keep der.
	AddCertificate(der []byte) (piece.KeyID, error)
	// Current returns the certificate to send in place of der: another one of the same key if the secret of the cluster
	// has changed since.
	Current(der []byte) []byte
	// VerifyRun and VerifyRevocation return nil if a known coordinator signed r for this task.
	VerifyRun(id task.ID, r piece.DigestRun) error
	VerifyRevocation(id task.ID, r piece.Revocation) error
}

// Observer receives the state of the downloads that this host seeds. It must not block.
type Observer interface {
	// SeedMetadata reports the metadata, SeedDone that all pieces are stored and signed.
	SeedMetadata(id task.ID, f piece.Metadata)
	SeedDone(id task.ID)
	// SeedFailed reports a failure. asked is the spec with which this host asked the origin, nil where it
	// asked none.
	SeedFailed(id task.ID, asked *task.Spec, f *api.Failure)
}

// Config are the parts and settings of an engine.
type Config struct {
	// Host is this host as others see it.
	Host host.Host
	// Store keeps the pieces. The engine does not close it.
	Store piece.Store
	// Listener accepts peers; nil for a host that only dials. The engine closes it.
	Listener net.Listener
	// Dial reaches another host's piece wire.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// HostOf returns the host that the other side of a connection authenticated as; nil where connections
	// are not authenticated.
	HostOf    func(net.Conn) (host.ID, error)
	Announcer Announcer
	// Origin brings objects when an owner makes this host a seed; nil for a host that never seeds.
	Origin source.Origin
	// Signer is needed where Origin is.
	Signer   Signer
	Verifier Verifier
	Observer Observer
	Picker   picker.Config
	// Seed makes this host a seed of all tasks that it holds: it spreads distinct pieces. True for a supernode.
	Seed bool
	// UploadSlots is how many neighbours are served at once; see [upload.Slots]. In addition a third of
	// it serves other zones. Default 3.
	UploadSlots int
	// UploadLines is how many accepted pieces move at the same time in this zone, and as many to other zones; see
	// [upload.SendQueue]. Default 2.
	UploadLines int
	// Copies is how often this host, as a seed, sends a piece to askers that have other
	// sources. Default [picker.CopiesMax].
	Copies int
	// Limits are the rates to keep to; [Engine.SetLimits] changes them. Default none.
	Limits Limits
	// ConnsMax is how many connections one task may hold. Each costs some 40 KB and a
	// share of every announcement of a piece. Default 40.
	ConnsMax int
	// Neighbours is how many connections a download tries to keep. Fewer than 12 slow the
	// swarm's tail, more only cost. Default 16.
	Neighbours int
	// Linger is how long a download goes on for a reader that left, in case the client
	// returns with a Range; default 10 s. Idle is how long a task without reader keeps
	// its connections open; default 60 s.
	Linger, Idle time.Duration
	// Stall is how long a parent may send nothing of a requested piece before this host closes the
	// connection. Default 3 s.
	Stall time.Duration
	// Lag measures this host: other hosts are not blamed for the time for which it did not run. Nil: it never stops.
	Lag *lag.Meter
	// ProgressInterval is how often an active download announces. Default 1 s.
	ProgressInterval time.Duration
	// SpoolDir takes bodies of unknown length, where Store is no [piece.Spooler]; the quota does not
	// count them. Default: the system's.
	SpoolDir string
	// SpoolMax is how long such a body may be, in bytes. More lets an origin that never ends
	// hold more of the quota for longer, less refuses large files of unknown length. Default 32 GiB.
	SpoolMax int64
	// PieceSize returns the piece size of objects that this host brings from an origin. Default
	// [piece.SizeFor]; simulations take smaller pieces on slower links.
	PieceSize func(length int64) int64
	// Client names the program to its peers.
	Client string
	// NamesKey returns the members' HMAC key of [task.Spec.Asker]; nil: there is none.
	NamesKey func() []byte
	Logger   *slog.Logger
}

func (c *Config) defaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.Linger, 10*time.Second)
	set(&c.Idle, 60*time.Second)
	set(&c.Stall, 3*time.Second)
	set(&c.ProgressInterval, time.Second)
	if c.UploadSlots == 0 {
		c.UploadSlots = upload.SlotsDefault
	}
	if c.UploadLines == 0 {
		c.UploadLines = 2
	}
	if c.Copies == 0 {
		c.Copies = picker.CopiesMax
	}
	if c.ConnsMax == 0 {
		c.ConnsMax = 40
	}
	if c.Neighbours == 0 {
		c.Neighbours = 16
	}
	if c.SpoolMax == 0 {
		c.SpoolMax = spoolMax
	}
	if c.PieceSize == nil {
		c.PieceSize = piece.SizeFor
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Engine downloads and serves for one host. Its methods are safe for concurrent use.
type Engine struct {
	cfg       Config
	log       *slog.Logger
	near      lane // serves neighbours in this host's zone
	afar      lane // and those in others
	rates     rates
	waited    waited
	pretends  rate.Sometimes // bounds the log lines about members that pose as others
	ahead     atomic.Int64   // further GETs that run
	tails     atomic.Int64   // bytes of last pieces that came ahead
	passing   atomic.Int64   // objects that pass by the store
	buffers   buffers
	inventory *inventory
	stats     counters
	started   chan struct{}
	ctx       context.Context // of Run; set before started closes
	wg        sync.WaitGroup

	// mu is held to find, add or end a download, never while bytes move. Code that holds it must not wait and must not
	// call the engine, the store, the log or a connection; of a download it may access fields only.
	mu        sync.Mutex
	downloads map[task.ID]*Download
	leaving   map[*Download]bool     // removed from downloads; replica and connections are not closed yet
	swarms    map[[20]byte]swarmTask // tasks by their name in a handshake; see nameTask
	swarmsMax int                    // a longer swarms starts a sweep
	sweep     int                    // counts the sweeps
	attempts  map[task.ID]attempt
	spreads   map[task.ID]spreadPast
	failures  map[task.ID]failure
	compared  map[task.ID]*compared
	epoch     uint64      // the last attempt's
	early     []task.Spec // seeds asked for before Run
	stopped   bool
}

// New returns an engine in which nothing moves until [Engine.Run].
func New(cfg Config) *Engine {
	cfg.defaults()
	e := &Engine{
		cfg: cfg, log: cfg.Logger, pretends: rate.Sometimes{Interval: acceptQuiet},
		near: newLane(cfg.UploadSlots, cfg.UploadLines),
		afar: newLane(afarSlots(cfg.UploadSlots), cfg.UploadLines), started: make(chan struct{}),
		downloads: make(map[task.ID]*Download), leaving: make(map[*Download]bool), swarms: make(map[[20]byte]swarmTask),
		attempts: make(map[task.ID]attempt), spreads: make(map[task.ID]spreadPast),
		failures: make(map[task.ID]failure), compared: make(map[task.ID]*compared),
	}
	e.SetLimits(cfg.Limits)
	held := cfg.Store.Inventory()
	e.swarmsMax = swarmsMin + 2*len(held)
	for _, entry := range held {
		e.nameTask(entry.ID)
	}
	e.inventory = newInventory(held)
	return e
}

// Run accepts peers and drives downloads until ctx ends; then it ends every download,
// waits for them and returns nil, or returns the listener's error.
func (e *Engine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e.mu.Lock()
	e.ctx = ctx
	early := e.early
	e.early = nil
	close(e.started)
	e.mu.Unlock()
	for _, spec := range early {
		e.Seed(spec)
	}
	e.wg.Go(func() { e.announceInventory(ctx) })
	var err error
	if e.cfg.Listener == nil {
		<-ctx.Done()
	} else {
		stop := context.AfterFunc(ctx, func() { e.cfg.Listener.Close() })
		err = e.accept(ctx)
		stop()
		e.cfg.Listener.Close()
	}
	e.mu.Lock()
	e.stopped = true
	e.mu.Unlock()
	cancel()
	e.wg.Wait()
	return err
}

// Open opens a task, and begins its download if there is none. It waits until the metadata is known, ctx ends, or the
// download fails. An origin's refusal is an *[api.Failure]; Open never returns a refusal of other credentials than
// spec's. The caller closes the Content.
func (e *Engine) Open(ctx context.Context, spec task.Spec) (c *Content, err error) {
	select {
	case <-e.started:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for range policy.RefusalsMax {
		// Each refusal of other credentials ends a download, so this caller's turn comes.
		if c, err = e.open(ctx, spec); !errors.Is(err, errOthers) {
			break
		}
	}
	return c, err
}

func (e *Engine) open(ctx context.Context, spec task.Spec) (*Content, error) {
	d, err := e.download(spec, forReader)
	if err != nil {
		return nil, err
	}
	c := &Content{d: d, spec: spec}
	select {
	case <-d.proof.ready:
		c.cached = d.proof.cached || d.proof.replica.Have().Full()
		return c, nil
	default:
	}
	select {
	case <-d.proof.ready:
		c.cached = d.proof.cached
		return c, nil
	case <-d.done:
		err = d.end.failureFor(spec)
	case <-ctx.Done():
		err = fmt.Errorf("opening task %s: %w", spec.ID, context.Cause(ctx))
	}
	c.Close()
	return nil, err
}

// Seed begins a download of the whole object without a reader, if it is not stored. A call before Run takes effect when
// Run begins. Seed never blocks, so that an owner may call it while it answers. The observer receives the result of
// every call, also when everything is stored already.
func (e *Engine) Seed(spec task.Spec) {
	e.mu.Lock()
	select {
	case <-e.started:
		e.mu.Unlock()
	default:
		e.early = append(e.early, spec)
		e.mu.Unlock()
		return
	}
	d, err := e.download(spec, forSeed)
	if err != nil {
		e.log.Warn("seed not started", "task", spec.ID, "error", err)
		if e.cfg.Observer != nil {
			e.cfg.Observer.SeedFailed(spec.ID, nil, e.unableToKeep(err.Error()))
		}
		return
	}
	e.release(d)
}

// Metadata returns the metadata of a task that is stored or on its way, if it is known.
func (e *Engine) Metadata(id task.ID) (piece.Metadata, bool) {
	e.mu.Lock()
	d := e.downloads[id]
	e.mu.Unlock()
	if d != nil && d.proof.hasMetadata() {
		return d.proof.replica.Metadata(), true
	}
	r, err := e.cfg.Store.Open(id)
	if err != nil {
		return piece.Metadata{}, false
	}
	defer r.Close()
	return r.Metadata(), true
}

// ReadAll returns an object that is stored completely and not longer than limit bytes. It compares every
// piece with its digest; it drops a damaged object and returns nothing.
func (e *Engine) ReadAll(id task.ID, limit int64) ([]byte, bool) {
	r, err := e.cfg.Store.Open(id)
	if err != nil {
		return nil, false
	}
	defer r.Close()
	if f := r.Metadata(); f.Length > limit || !r.Have().Full() {
		return nil, false
	}
	b, err := readSpan(r, 0, r.Metadata().Length)
	if errors.Is(err, errDamaged) {
		e.drop(id, err)
	}
	return b, err == nil
}

// Inventory lists what this host holds for others, as entries of an announce.
func (e *Engine) Inventory() (list []api.Entry) {
	for _, entry := range e.cfg.Store.Inventory() {
		event := api.Progress
		if entry.Complete {
			event = api.Completed
		}
		list = append(list, api.Entry{Task: entry.ID, Event: event, Have: entry.Have})
	}
	return list
}

// SetUploadSlots changes how many pieces this host sends at once; running uploads continue.
func (e *Engine) SetUploadSlots(n int) {
	e.near.slots.Resize(n)
	e.afar.slots.Resize(afarSlots(n))
}

// purpose is what a caller holds a download for.
type purpose int

const (
	forPeer   purpose = iota // to serve stored pieces
	forReader                // to download what readers read
	forSeed                  // to download everything
)

// download finds or begins the download of a task and holds it; [Engine.release] ends the hold. A download that begins
// for a peer wants nothing and announces nothing.
func (e *Engine) download(spec task.Spec, why purpose) (*Download, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopped {
		return nil, ErrStopped
	}
	d := e.downloads[spec.ID]
	if d == nil {
		d = newDownload(e, spec)
		d.intake.rate.Set(e.rates.task)
		e.downloads[spec.ID] = d
		e.nameTask(spec.ID)
		e.wg.Go(func() { d.run(e.ctx) })
	}
	d.holds++
	if why != forPeer {
		d.offer(spec, why == forSeed)
	}
	return d, nil
}

func (e *Engine) release(d *Download) {
	e.mu.Lock()
	d.holds--
	e.mu.Unlock()
	d.nudge()
}

// retire takes a download out of memory unless a caller holds it, or left an offer since the loop last
// looked.
func (e *Engine) retire(d *Download, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if d.holds > 0 || d.offers.any() {
		return false
	}
	if e.downloads[d.id] == d {
		delete(e.downloads, d.id)
		e.nameTask(d.id) // a sweep may have asked the store before this download wrote to it
	}
	e.leaving[d] = true
	e.keepSpread(d, now)
	return true
}

// left notes that a download has closed its replica and its connections.
func (e *Engine) left(d *Download) {
	e.mu.Lock()
	delete(e.leaving, d)
	e.mu.Unlock()
	close(d.closed)
}

// held reports whether a caller has the download open.
func (e *Engine) held(d *Download) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return d.holds > 0
}

// bury takes a failed download out of memory. Callers that hold it get its error, and later callers begin a new
// download. For [failureMemory], late peers get the reason why a seed gave up. bury reports whether the last offer made
// a seed of the download.
func (e *Engine) bury(d *Download, now time.Time) (seed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.downloads[d.id] == d {
		delete(e.downloads, d.id)
		e.nameTask(d.id)
	}
	e.leaving[d] = true
	seed = d.adoptOffer(now)
	var words *api.Failure
	if !errors.As(d.end.err, &words) || !d.seeds() || words.Personal() {
		return seed // hosts with other credentials must not get this refusal
	}
	for id, f := range e.failures {
		if now.After(f.until) {
			delete(e.failures, id)
		}
	}
	e.failures[d.id] = failure{d.forOthers(words), now.Add(failureMemory)}
	return seed
}

// seed draws a seed for the random choices of one download, so that two hosts choose differently.
func (e *Engine) seed() uint64 {
	if e.cfg.Picker.Seed != 0 {
		return e.cfg.Picker.Seed
	}
	return rand.Uint64()
}

// buffers pools the memory in which pieces arrive, by size.
type buffers struct{ pools sync.Map }

func (b *buffers) get(size int64) []byte {
	if pool, ok := b.pools.Load(size); ok {
		if p, ok := pool.(*sync.Pool).Get().(*[]byte); ok {
			return (*p)[:size]
		}
	}
	return make([]byte, size)
}

func (b *buffers) put(buf []byte) {
	if cap(buf) < piece.SizeMin || cap(buf)&(cap(buf)-1) != 0 {
		return // a last piece: no other piece has its size
	}
	pool, _ := b.pools.LoadOrStore(int64(cap(buf)), new(sync.Pool))
	buf = buf[:cap(buf)]
	pool.(*sync.Pool).Put(&buf)
}

// namesKey returns the key of [Config].NamesKey.
func (e *Engine) namesKey() []byte {
	if e.cfg.NamesKey == nil {
		return nil
	}
	return e.cfg.NamesKey()
}
