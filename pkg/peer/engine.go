// Package peer is the engine that downloads and serves: one per node, for readers, for
// other peers, and, where it is told to be a seed, from the origin.
//
// Nothing is stored, served or read that was not verified against a digest: one that a
// coordinator signed, one in the task's name, or one of what the origin gave to this very node.
// No owner's bare word is taken for a byte. A reader never sees the
// end of a content that did not match its digest. A seed is a peer whose parent is the
// origin: there is no second download path. One loop owns one download and decides;
// connections and disks work beside it. Start at [Engine.Open], then [Download.run];
// docs/life-of-a-pull.md tells the whole way.
package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/peer/picker"
	"github.com/darter-io/darter/pkg/peer/upload"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// ErrStopped tells that the engine was stopped.
var ErrStopped = errors.New("the peer engine was stopped")

// Announcer tells a task's owner what happens here and brings back whom to talk to.
type Announcer interface {
	// The leader says whose coordinator answered.
	Announce(ctx context.Context, e api.Entry) (api.Assignment, owners.Leader, error)
}

// Signer vouches for pieces as a coordinator.
type Signer interface {
	SignRun(id task.ID, r *piece.DigestRun)
	SignRevocation(id task.ID, r *piece.Revocation)
	Certificate() []byte
}

// Verifier knows which coordinators to believe. Safe for concurrent use.
type Verifier interface {
	AddCertificate(der []byte) (piece.KeyID, error)
	VerifyRun(id task.ID, r piece.DigestRun) error
	VerifyRevocation(id task.ID, r piece.Revocation) error
}

// Observer is told what becomes of the downloads that this host seeds. It must not block.
type Observer interface {
	SeedMetadata(id task.ID, f piece.Metadata)
	SeedDone(id task.ID)
	// SeedFailed is told with what the origin was asked, nil where no origin was.
	SeedFailed(id task.ID, asked *task.Spec, f *api.Failure)
}

// Config are the parts and settings of an engine.
type Config struct {
	Host  host.Host
	Store piece.Store
	// Listener accepts peers; nil for a host that only dials. The engine closes it.
	Listener net.Listener
	// Dial reaches another host's piece wire.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// HostOf tells which host a connection's other end proved to be; nil where nothing is proved.
	HostOf    func(net.Conn) (host.ID, error)
	Announcer Announcer
	// Origin is asked when an owner says so; nil for a host that never seeds.
	Origin source.Origin
	// Signer is needed where Origin is.
	Signer   Signer
	Verifier Verifier
	Observer Observer
	Picker   picker.Config
	// Seed says that this host is there to serve: it is a seed of all that it holds, and
	// spreads distinct pieces. True for a supernode.
	Seed bool
	// UploadSlots is how many requests are accepted at once; see [upload.Slots]. A third of
	// it beside is for other zones. Default 3.
	UploadSlots int
	// UploadLines is how many of either move at the same time; see [upload.Line]. Default 2.
	UploadLines int
	// Copies is how often this host, as a seed, sends a piece to askers that have other
	// sources. Default [picker.CopiesMax].
	Copies int
	// Limits are the rates to keep to; [Engine.SetLimits] changes them. Default none.
	Limits Limits
	// LinksMax is how many connections one task may hold. Each costs some 40 KB and a
	// share of every announcement of a piece. Default 40.
	LinksMax int
	// Neighbours is how many connections a download tries to keep. Fewer than 12 slow the
	// swarm's tail, more only cost. Default 16.
	Neighbours int
	// Linger is how long a download goes on for a reader that left, in case the client
	// returns with a Range; default 10 s. Idle is how long a task without reader keeps
	// its connections open; default 60 s.
	Linger, Idle time.Duration
	// Stall is how long a parent may send nothing of what it was asked for before it is
	// left. Default 3 s.
	Stall time.Duration
	// ProgressInterval is how often an active download announces. Default 1 s.
	ProgressInterval time.Duration
	// SpoolDir takes content whose length nobody knows, where Store is no [piece.Spooler]; the
	// quota does not count it. Default: the system's.
	SpoolDir string
	// SpoolMax is how long such a content may be, in bytes. More lets an origin that never ends
	// hold more of the quota for longer, less refuses large files of unknown length. Default 32 GiB.
	SpoolMax int64
	// PieceSize cuts contents that this host brings from an origin. Default
	// [piece.SizeFor]; simulations take smaller pieces on slower links.
	PieceSize func(length int64) int64
	// Client names the program to its peers.
	Client string
	Logger *slog.Logger
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
	if c.LinksMax == 0 {
		c.LinksMax = 40
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

// Sources counts bytes of verified pieces by where they came from.
type Sources struct {
	Peers  int64 `json:"peers"`  // from other nodes
	Seeds  int64 `json:"seeds"`  // from supernodes and other seeds
	Origin int64 `json:"origin"` // from the origin, by this node itself
	Inline int64 `json:"inline"` // inside an owner's answer
}

// Stats are an engine's counters since its start.
type Stats struct {
	Sources
	Sent        int64 `json:"sent"`        // bytes of pieces sent to other hosts
	BadPieces   int64 `json:"badPieces"`   // pieces whose bytes did not match their digest
	Duplicate   int64 `json:"duplicate"`   // bytes that came although they were there
	BusySent    int64 `json:"busySent"`    // requests refused for want of a slot
	BusyGot     int64 `json:"busyGot"`     // requests of ours that were refused
	Downloads   int   `json:"downloads"`   // tasks in memory
	Links       int64 `json:"links"`       // connections open
	UploadSlots int   `json:"uploadSlots"` // taken
	// UploadSlotsMax is how many there are.
	UploadSlotsMax int `json:"uploadSlotsMax"`
}

type counters struct {
	peers, seeds, origin, inline atomic.Int64
	sent, bad, duplicate         atomic.Int64
	busySent, busyGot, links     atomic.Int64
}

func (c *counters) sources() Sources {
	return Sources{Peers: c.peers.Load(), Seeds: c.seeds.Load(), Origin: c.origin.Load(), Inline: c.inline.Load()}
}

// Engine downloads and serves for one host. Its methods are safe for concurrent use.
type Engine struct {
	cfg     Config
	log     *slog.Logger
	near    lane // serves neighbours in this host's zone
	afar    lane // and those in others
	rates   rates
	demand  demand
	buffers buffers
	news    *news
	stats   counters
	started chan struct{}
	ctx     context.Context // of Run; set before started closes
	wg      sync.WaitGroup

	// mu is held to find, add or end a download, never while bytes move. Nothing is called
	// meanwhile that may wait or come back to the engine: no store, no log, no connection, and
	// of a download only what touches its fields.
	mu        sync.Mutex
	downloads map[task.ID]*Download
	leaving   map[*Download]bool     // out of downloads, but what they hold is not closed yet
	swarms    map[[20]byte]swarmTask // tasks by their name in a handshake; see know
	swarmsMax int                    // more of them are swept
	sweep     int                    // counts the sweeps
	attempts  map[task.ID]attempt
	spreads   map[task.ID]spreadPast
	failures  map[task.ID]failure
	compared  map[task.ID]*compared
	epoch     uint64      // the last attempt's
	early     []task.Spec // seeds asked for before Run
	stopped   bool
}

// attempt remembers that an origin's content proved wrong, so that it is asked anew only
// once in a while, and what was said of it is not believed again.
type attempt struct {
	count   int
	last    time.Time
	revoked []piece.Revocation
	certs   map[piece.KeyID][]byte // of who revoked
	// replaced says that readers may have had other bytes than come now; see Replaced.
	replaced bool
}

// failure remembers why this host, as a seed, gave a task up, for peers that come late.
type failure struct {
	words *api.Failure
	until time.Time
}

// failureMemory is how long a seed tells late peers why it gave up, before it would try
// again for them.
const failureMemory = 2 * time.Second

// New returns an engine in which nothing moves until [Engine.Run].
func New(cfg Config) *Engine {
	cfg.defaults()
	e := &Engine{
		cfg: cfg, log: cfg.Logger, near: newLane(cfg.UploadSlots, cfg.UploadLines), afar: newLane(afarSlots(cfg.UploadSlots), cfg.UploadLines), started: make(chan struct{}),
		downloads: make(map[task.ID]*Download), leaving: make(map[*Download]bool), swarms: make(map[[20]byte]swarmTask), attempts: make(map[task.ID]attempt), spreads: make(map[task.ID]spreadPast),
		failures: make(map[task.ID]failure), compared: make(map[task.ID]*compared),
	}
	e.SetLimits(cfg.Limits)
	held := cfg.Store.Inventory()
	e.swarmsMax = swarmsMin + 2*len(held)
	for _, entry := range held {
		e.know(entry.ID)
	}
	e.news = newNews(held)
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
	e.wg.Go(func() { e.tellNews(ctx) })
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

// Accepting goes on after a failure that passes, as when no file is left: at once, then up to
// acceptPauseMax later, with a log line a minute.
const acceptPauseMin, acceptPauseMax, acceptQuiet = 5 * time.Millisecond, time.Second, time.Minute

func (e *Engine) accept(ctx context.Context) error {
	var told time.Time
	pause, failures := acceptPauseMin, 0
	for {
		raw, err := e.cfg.Listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() {
				failures++
				if now := time.Now(); now.Sub(told) >= acceptQuiet {
					e.log.Warn("cannot accept peers, trying again", "error", err, "failures", failures)
					told, failures = now, 0
				}
				select {
				case <-time.After(pause):
				case <-ctx.Done():
				}
				pause = min(2*pause, acceptPauseMax)
				continue
			}
			return fmt.Errorf("accepting peers on %s: %w", e.cfg.Listener.Addr(), err)
		}
		pause = acceptPauseMin
		e.wg.Go(func() {
			if err := e.welcome(ctx, raw); err != nil {
				raw.Close()
				e.log.Debug("peer turned away", "addr", raw.RemoteAddr(), "error", err)
			}
		})
	}
}

// welcome shakes hands with a peer and hands it to the download it asks for.
func (e *Engine) welcome(ctx context.Context, raw net.Conn) (err error) {
	defer source.Rescue(&err, "welcoming a peer")
	conn, swarm, err := wire.Accept(ctx, raw, e.cfg.Host.ID.PeerID())
	if err != nil {
		return err
	}
	if err := e.proved(raw, conn); err != nil {
		return err
	}
	id, ok := e.here(swarm)
	if words := e.failed(id); !ok && words != nil {
		return e.dismiss(conn, words)
	}
	if !ok {
		return fmt.Errorf("it asks for a task that is not here: swarm %x", swarm)
	}
	d, err := e.download(task.Spec{ID: id}, forPeer)
	if err != nil {
		return err
	}
	defer e.release(d)
	return d.link(conn, false, "")
}

// proved refuses a peer that calls itself another host in its handshake than its certificate does.
func (e *Engine) proved(raw net.Conn, conn *wire.Conn) error {
	if e.cfg.HostOf == nil {
		return nil
	}
	id, err := e.cfg.HostOf(raw)
	if err != nil {
		return err
	}
	if id.PeerID() != conn.PeerID() {
		return fmt.Errorf("%w: host %s calls itself another in its handshake", wire.ErrProtocol, id)
	}
	return nil
}

// Open returns the content of a task, beginning its download where needed. It waits until
// the facts are known, ctx ends, or the download fails; an origin's refusal is an
// *[api.Failure], and none that was meant for other credentials than spec's. The caller closes
// the content.
func (e *Engine) Open(ctx context.Context, spec task.Spec) (c *Content, err error) {
	select {
	case <-e.started:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for range othersMax {
		// Each time somebody has got an answer and goes, so one's own turn comes.
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
	case <-d.ledger.ready:
		c.cached = d.ledger.cached || d.ledger.replica.Have().Full()
		return c, nil
	default:
	}
	select {
	case <-d.ledger.ready:
		c.cached = d.ledger.cached
		return c, nil
	case <-d.done:
		err = d.failureOf(spec)
	case <-ctx.Done():
		err = fmt.Errorf("opening task %s: %w", spec.ID, context.Cause(ctx))
	}
	c.Close()
	return nil, err
}

// Seed begins a download of the whole content without a reader, if it is not here; before
// Run it is remembered. It never blocks, so that an owner may call it while it answers. The
// observer is told of every call how it goes on, also when everything is here already.
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
		return
	}
	e.release(d)
}

// Metadata returns the facts of a task that is here or on its way, if they are known.
func (e *Engine) Metadata(id task.ID) (piece.Metadata, bool) {
	e.mu.Lock()
	d := e.downloads[id]
	e.mu.Unlock()
	if d != nil && d.ledger.hasMetadata() {
		return d.ledger.replica.Metadata(), true
	}
	r, err := e.cfg.Store.Open(id)
	if err != nil {
		return piece.Metadata{}, false
	}
	defer r.Close()
	return r.Metadata(), true
}

// ReadAll returns a content that is here completely and not longer than limit bytes. Every piece is
// compared with its digest; a content that is damaged is dropped, and not returned.
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

// Inventory lists what this host holds for others, as announces want it.
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

// SetUploadSlots changes how many pieces are sent at once; what is being sent goes on.
func (e *Engine) SetUploadSlots(n int) {
	e.near.slots.Resize(n)
	e.afar.slots.Resize(afarSlots(n))
}

// Stats returns the counters.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	downloads := len(e.downloads)
	e.mu.Unlock()
	c := &e.stats
	return Stats{
		Sources: c.sources(), Sent: c.sent.Load(), BadPieces: c.bad.Load(), Duplicate: c.duplicate.Load(),
		BusySent: c.busySent.Load(), BusyGot: c.busyGot.Load(), Downloads: downloads, Links: c.links.Load(), UploadSlots: e.near.slots.Active(), UploadSlotsMax: e.near.slots.Max(),
	}
}

// TaskStatus is one download as a person or the console sees it.
type TaskStatus struct {
	ID       task.ID        `json:"id"`
	Metadata piece.Metadata `json:"facts"`
	Have     int            `json:"have"`
	Pieces   int            `json:"pieces"`
	Readers  int            `json:"readers"`
	Seeding  bool           `json:"seeding"` // from the origin
	Sources  Sources        `json:"sources"`
	Links    int            `json:"links"`
	// Name is the spec's; Wanted says that somebody waits for what is missing. LastGot is when
	// the last piece came, or while there is none, when the content was asked for.
	Name    string    `json:"name,omitempty"`
	Wanted  bool      `json:"wanted"`
	LastGot time.Time `json:"lastGot,omitzero"`
	lastUse time.Time
}

// Tasks lists the downloads in memory, in no order.
func (e *Engine) Tasks() []TaskStatus {
	e.mu.Lock()
	all := make([]*Download, 0, len(e.downloads))
	for _, d := range e.downloads {
		all = append(all, d)
	}
	e.mu.Unlock()
	list := make([]TaskStatus, 0, len(all))
	for _, d := range all {
		list = append(list, d.status())
	}
	return list
}

// purpose is what somebody holds a download for.
type purpose int

const (
	forPeer   purpose = iota // to give what is here
	forReader                // to bring what is read
	forSeed                  // to bring everything
)

// download finds or begins the download of a task and holds it; [Engine.release] lets go.
// A download that is begun for a peer wants nothing and announces nothing.
func (e *Engine) download(spec task.Spec, why purpose) (*Download, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopped {
		return nil, ErrStopped
	}
	d := e.downloads[spec.ID]
	if d == nil {
		d = newDownload(e, spec, time.Now())
		d.rate.Set(e.rates.task)
		e.downloads[spec.ID] = d
		e.know(spec.ID)
		e.wg.Go(func() { d.run(e.ctx) })
	}
	d.holds++
	if why != forPeer {
		d.offer(spec, why == forSeed)
	}
	return d, nil
}

// swarmTask is the task of a swarm, and the sweep before which it was last in use.
type swarmTask struct {
	id    task.ID
	sweep int
}

// swarmsMin is how many names are kept in any case.
const swarmsMin = 1024

// know enters a task's name in handshakes. From time to time those of tasks that are gone
// are dropped. The caller holds mu, or is alone.
func (e *Engine) know(id task.ID) {
	e.swarms[id.Swarm()] = swarmTask{id, e.sweep}
	if len(e.swarms) > e.swarmsMax {
		e.swarmsMax *= 2 // one sweep at a time
		e.sweep++
		sweep := e.sweep
		e.wg.Go(func() { e.sweepNames(sweep) })
	}
}

// sweepNames drops the names of tasks that are gone: those that are not stored, and were in no
// use since this sweep began.
func (e *Engine) sweepNames(sweep int) {
	stored := make(map[task.ID]bool)
	for _, entry := range e.cfg.Store.Inventory() {
		stored[entry.ID] = true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for swarm, t := range e.swarms {
		_, gaveUp := e.failures[t.id]
		if t.sweep < sweep && !stored[t.id] && e.downloads[t.id] == nil && !gaveUp {
			delete(e.swarms, swarm)
		}
	}
	e.swarmsMax = swarmsMin + 2*len(e.swarms)
}

// here finds the task of a swarm, and reports whether it is in memory or in the store.
func (e *Engine) here(swarm [20]byte) (id task.ID, ok bool) {
	e.mu.Lock()
	t, ok := e.swarms[swarm]
	id = t.id
	running := e.downloads[id] != nil
	e.mu.Unlock()
	if !ok || running {
		return id, ok
	}
	r, err := e.cfg.Store.Open(id)
	if err != nil {
		return id, false
	}
	r.Close()
	return id, true
}

func (e *Engine) release(d *Download) {
	e.mu.Lock()
	d.holds--
	e.mu.Unlock()
	d.nudge()
}

// retire takes a download out of memory unless somebody holds it, or came and went
// since the loop looked last.
func (e *Engine) retire(d *Download, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if d.holds > 0 || d.hasOffer() {
		return false
	}
	if e.downloads[d.id] == d {
		delete(e.downloads, d.id)
		e.know(d.id) // a sweep may have asked the store before this download wrote to it
	}
	e.leaving[d] = true
	e.keepSpread(d, now)
	return true
}

// left notes that nothing of a download is open any more.
func (e *Engine) left(d *Download) {
	e.mu.Lock()
	delete(e.leaving, d)
	e.mu.Unlock()
	close(d.closed)
}

// held reports whether somebody has the download open.
func (e *Engine) held(d *Download) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return d.holds > 0
}

// bury takes a download out of memory that has failed. Who came for it until now shares its
// fate; who comes later begins anew, but for a moment peers are told why a seed gave up. It
// reports whether the last of those that came made a seed of the download.
func (e *Engine) bury(d *Download, now time.Time) (seed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.downloads[d.id] == d {
		delete(e.downloads, d.id)
		e.know(d.id)
	}
	e.leaving[d] = true
	seed = d.adoptOffer(now)
	var words *api.Failure
	if !errors.As(d.err, &words) || !d.seeds() || words.Personal() {
		return seed // who comes with other credentials must not hear of a refusal
	}
	for id, f := range e.failures {
		if now.After(f.until) {
			delete(e.failures, id)
		}
	}
	e.failures[d.id] = failure{d.forOthers(words), now.Add(failureMemory)}
	return seed
}

// failed returns why this host gave a task up a moment ago, or nil.
func (e *Engine) failed(id task.ID) *api.Failure {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := e.failures[id]; time.Now().Before(f.until) {
		return f.words
	}
	return nil
}

// dismiss tells a late peer why this seed gave up.
func (e *Engine) dismiss(conn *wire.Conn, words *api.Failure) error {
	conn.SetWriteDeadline(time.Now().Add(drainTimeout))
	hello := &wire.Hello{Host: e.cfg.Host.ID, Version: wire.Version, Client: e.cfg.Client, Seed: true}
	for _, m := range []wire.Message{{Type: wire.HelloMessage, Hello: hello}, {Type: wire.FailMessage, Failure: words}} {
		if err := conn.Send(m); err != nil {
			return err
		}
	}
	if err := conn.Flush(); err != nil {
		return err
	}
	conn.HangUp(drainTimeout)
	for {
		if _, err := conn.Next(); err != nil {
			return conn.Close()
		}
	}
}

// wrong counts that the origin's content did not match its digest and reports whether it
// may be asked once more.
func (e *Engine) wrong(now time.Time, id task.ID) (again bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.attempt(now, id)
	a.count++
	e.attempts[id] = a
	return a.count < 2
}

// noteRevoked remembers a revocation: a neighbour that has not heard of it yet would tell
// a download that begins anew the same wrong digests, and is told better.
func (e *Engine) noteRevoked(now time.Time, id task.ID, r piece.Revocation, cert []byte) {
	const revokedMax = 64
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.attempt(now, id)
	if !slices.ContainsFunc(a.revoked, func(o piece.Revocation) bool { return o.Epoch == r.Epoch }) && len(a.revoked) < revokedMax {
		a.revoked = append(slices.Clip(a.revoked), r)
		if a.certs == nil {
			a.certs = make(map[piece.KeyID][]byte)
		}
		a.certs[r.Key] = cert
	}
	e.attempts[id] = a
}

// revocation returns what revoked an epoch of a task, with the certificate of its key.
func (e *Engine) revocation(id task.ID, epoch uint64) (r piece.Revocation, cert []byte, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.attempts[id]
	for _, r := range a.revoked {
		if r.Epoch == epoch {
			return r, a.certs[r.Key], true
		}
	}
	return r, nil, false
}

// newEpoch names a new attempt to bring a content: the time, but never the same twice.
func (e *Engine) newEpoch() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.epoch = max(e.epoch+1, uint64(time.Now().UnixNano()))
	return e.epoch
}

// attempt returns what is remembered of a task's wrong contents, as of now, and forgets
// that of tasks long past. The caller holds mu.
func (e *Engine) attempt(now time.Time, id task.ID) attempt {
	for id, a := range e.attempts {
		if now.Sub(a.last) > attemptMemory {
			delete(e.attempts, id)
		}
	}
	a := e.attempts[id]
	a.last = now
	return a
}

// seed draws a seed for the choices of one download, so that two hosts choose apart.
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
		return // the last piece of something: its size does not come again
	}
	pool, _ := b.pools.LoadOrStore(int64(cap(buf)), new(sync.Pool))
	buf = buf[:cap(buf)]
	pool.(*sync.Pool).Put(&buf)
}
