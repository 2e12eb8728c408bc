package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/peer/picker"
	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/ratelimit"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// strikesMax is how many bad pieces a peer may send in one download. Once may be bad
	// luck, twice is a bad disk. The count dies with the download, so that a single
	// poisoned task cannot ban a host from the others.
	strikesMax = 2
	// banFor is how long this host refuses a peer that sent wrong bytes twice. Meanwhile the peer can find the damage on
	// its disk and download the object again.
	banFor = 5 * time.Second
	// givenMax bounds the peers for which a download remembers the pieces that it sent.
	givenMax = 1024
	// busyMin and busyMax bound how long a busy neighbour is left alone.
	busyMin = time.Millisecond
	busyMax = 250 * time.Millisecond
	// rejectFor is how long a neighbour is not asked again for a piece that it rejected.
	rejectFor = 2 * time.Second
	// aliveEvery is how often a seed sends a message while pieces are missing.
	aliveEvery = time.Second
	// watchEvery is how often the loop looks for connections that are silent or idle.
	watchEvery = 250 * time.Millisecond
)

var (
	errBanned   = errors.New("it sent wrong bytes before")
	errDamaged  = errors.New("the stored copy was damaged and was deleted; try again")
	errTwice    = errors.New("this host is connected to it already")
	errTooMany  = errors.New("this task has enough connections")
	errStalled  = errors.New("it sent none of the requested bytes")
	errNoDigest = errors.New("piece came without a signed digest")
)

// Download is one task that this host downloads or serves. Its loop, [Download.run], decides everything and owns all
// state that is not marked as shared; other goroutines send events to it.
type Download struct {
	// Set when the download begins.
	e      *Engine
	id     task.ID
	log    *slog.Logger
	debug  bool // events are logged
	ctx    context.Context
	wg     sync.WaitGroup
	closed chan struct{} // after done: the store may evict the blob
	holds  int           // callers and peers being welcomed; guarded by the engine's mu

	// Shared with other goroutines. Each type says how.
	inbox
	offers        offers
	proof         *proof
	stored        stored
	stats         counters
	intake        intake
	origin        origin
	signs         signs
	remoteWindows remoteWindows
	tail          tail
	progress      broadcast
	mayPass       atomic.Bool // the object may pass by the store
	inlining      atomic.Bool // the bytes of a reply are being stored, so the loop requests nothing
	snapshot      atomic.Pointer[TaskStatus]

	// The loop owns the rest.
	policy   *policy.Policy
	phase    policy.Phase // see enter
	wants    wants
	pick     *picker.Picker // nil in the phase Unknown
	conns    conns
	serving  serving
	times    times
	end      outcome
	observed observed
	ownerErr error         // of the last announce
	parent   *originParent // that runs now, or nil
	// ownerReads says that, by the last reply, the owner reads the origin for all hosts.
	ownerReads bool
}

// inbox takes events for a loop. Safe for concurrent use.
type inbox struct {
	events chan event
	nudged chan struct{}
	done   chan struct{} // closes when the loop has ended
}

// notify sends an event to the loop; it is dropped when the loop has ended.
func (b *inbox) notify(ev event) {
	select {
	case b.events <- ev:
	case <-b.done:
	}
}

// nudge starts a turn of the loop.
func (b *inbox) nudge() {
	select {
	case b.nudged <- struct{}{}:
	default:
	}
}

func (b *inbox) ended() bool {
	select {
	case <-b.done:
		return true
	default:
		return false
	}
}

// times are the times of a download's last events.
type times struct {
	opened     time.Time // when a caller first came
	firstPiece time.Time
	lastPiece  time.Time
	lastHave   time.Time // when a neighbour last announced a piece
	lastUse    time.Time
	nextWatch  time.Time
	// pieceTime is the usual time from one piece to the next, from any host.
	pieceTime time.Duration
}

// got notes when a piece came.
func (t *times) got(now time.Time) {
	if !t.lastPiece.IsZero() {
		t.pieceTime += (min(now.Sub(t.lastPiece), busyMax) - t.pieceTime) / 8
	}
	t.lastPiece, t.lastUse = now, now
	if t.firstPiece.IsZero() {
		t.firstPiece = now
	}
}

// attrs returns log attributes: how long the download took, and its longest part.
func (t *times) attrs(now time.Time) (attrs []any) {
	if t.opened.IsZero() {
		return nil
	}
	total := now.Sub(t.opened)
	slowest, took := "first piece", total
	if !t.firstPiece.IsZero() {
		took = t.firstPiece.Sub(t.opened)
		attrs = append(attrs, "firstPiece", took.Round(time.Microsecond))
		if rest := total - took; rest > took {
			slowest, took = "the rest", rest
		}
	}
	return append(attrs, "total", total.Round(time.Microsecond), "slowest", slowest, "slowestTook",
		took.Round(time.Microsecond))
}

func newDownload(e *Engine, spec task.Spec) *Download {
	d := &Download{
		e: e, id: spec.ID, log: e.log, closed: make(chan struct{}),
		inbox: inbox{events: make(chan event, 256), nudged: make(chan struct{}, 1), done: make(chan struct{})},
		proof: newProof(spec.ID, e.cfg.Store, e.cfg.Verifier, e.attempts[spec.ID].revoked),
		policy: policy.New(policy.Config{
			Neighbours: e.cfg.Neighbours, ProgressInterval: e.cfg.ProgressInterval, Linger: e.cfg.Linger,
			Origin: e.cfg.Origin != nil, Seed: e.cfg.Seed,
		}),
		conns:   newConns(),
		serving: serving{given: make(map[[20]byte]piece.Bitmap)},
		times:   times{pieceTime: 20 * time.Millisecond},
	}
	d.conns.told.seed = e.cfg.Seed
	d.proof.create = d.makeReplica
	d.stored = stored{e: e, id: spec.ID, proof: d.proof}
	d.intake.limits = ratelimit.Chain{&d.intake.rate, &e.rates.download}
	return d
}

// enter changes the phase. Pieces come in the phase Partial; one that the disk loses leads back to it.
func (d *Download) enter(p policy.Phase) { d.phase = p }

func (d *Download) complete() bool { return d.phase == policy.Complete }

// view returns the state by which the policy decides.
func (d *Download) view() policy.View {
	v := policy.View{
		Interest: d.wants.interest, Phase: d.phase, Signed: d.complete() && d.proof.coversAll(), Cached: d.proof.cached,
		Ranges: len(d.wants.ranges) + d.wants.whole, Conns: len(d.conns.open), Dialing: len(d.conns.dialing),
		Checking: d.serving.checking,
		Yielding: d.wants.yielding, OwnerFailed: d.ownerErr != nil, LastHave: d.times.lastHave,
		LastPiece: d.times.lastPiece,
		LastUse:   d.times.lastUse,
		Held:      d.held, Rank: d.rank, Outranked: d.outranked,
	}
	if d.pick != nil && !d.complete() {
		v.Wants, v.Hungry = d.pick.Wants(), d.pick.Starving()
		v.Waits = len(d.awaitedWindows()) > 0
	}
	for _, c := range d.conns.open {
		if c.remote.gotHello {
			v.Hellos++
		}
		if c.remote.seed {
			v.Seeds++
		}
	}
	return v
}

// decided logs a decision of the policy and what it saw, as its scenarios write it.
func (d *Download) decided(now time.Time, what fmt.Stringer, v policy.View) {
	if d.debug {
		d.log.Debug("decided", "what", what.String(), "view", v.Text(now))
	}
}

func (d *Download) held() bool { return d.e.held(d) }

// run is the loop: each turn takes the events that have come, and the time, and decides. It ends when
// the policy says that the download is over, when it fails, or when ctx ends.
func (d *Download) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	d.ctx = ctx
	d.log = d.e.log.With("task", d.id.Short())
	d.debug = d.log.Enabled(ctx, slog.LevelDebug)
	timer := time.NewTimer(0)
	defer timer.Stop()
	if err := d.proof.load(); err != nil {
		d.end.failHere(fmt.Errorf("%w: %w", errSpace, err))
	}
	d.origin.mixed.Store(d.proof.hasMetadata())
	now := time.Now()
	d.times.lastUse = now
	for d.end.err == nil {
		var ev event
		select {
		case ev = <-d.events:
		case <-d.nudged:
		case <-timer.C:
		case <-ctx.Done():
			d.fail(ErrStopped)
		}
		now = time.Now()
		if ev != nil {
			d.handle(now, ev)
			d.drainEvents(now)
		}
		if d.end.err == nil {
			v := d.step(now)
			if d.end.err == nil && d.policy.Over(now, v) && d.e.retire(d, now) {
				break
			}
		}
		timer.Reset(d.pause(now))
	}
	if d.end.err != nil {
		if d.e.bury(d, now) {
			d.helloAgain() // neighbours take a failure from a seed only
		}
		d.tellFailure(now)
	}
	close(d.done)
	d.origin.note(&d.e.waited, false)
	d.progress.signal()
	for _, c := range d.conns.open {
		c.drainSoon()
	}
	d.e.stats.conns.Add(-int64(len(d.conns.open)))
	cancel()
	d.wg.Wait()
	d.tail.free(&d.e.tails)
	if d.proof.hasMetadata() {
		if d.passes() != nil {
			d.e.passing.Add(-1)
		}
		d.proof.replica.Close()
	}
	d.e.left(d)
}

// drainEvents handles the other events that have come, so that one turn decides for all of them.
func (d *Download) drainEvents(now time.Time) {
	for range cap(d.events) {
		select {
		case ev := <-d.events:
			d.handle(now, ev)
		default:
			return
		}
	}
}

// step does what is due in a turn. It returns what the policy saw.
func (d *Download) step(now time.Time) policy.View {
	d.excuse(now)
	d.takeOffer(now)
	d.adoptMetadata(now)
	d.dialLater(now)
	if d.pick != nil {
		if d.wants.forget(now) {
			d.updateWanted(now)
		}
		d.pass()
		d.noteComplete(now)
		if !d.inlining.Load() {
			d.request(now)
		}
	}
	v := d.view()
	d.steerOrigin(now, v)
	d.tellRole()
	d.origin.note(&d.e.waited, d.awaited())
	d.noteSigns()
	if d.remoteWindows.fresh.Swap(false) || !now.Before(d.times.nextWatch) {
		d.steerAhead(now)
	}
	d.report()
	d.announce(now, v)
	d.giveUp(now, v)
	if !now.Before(d.times.nextWatch) {
		d.times.nextWatch = now.Add(watchEvery)
		d.watch(now)
		if d.policy.AtOrigin() && d.pick != nil {
			d.feedOrigin()
		}
		d.show()
	}
	return v
}

// seeds reports whether the owner counts on this download as a seed.
func (d *Download) seeds() bool { return d.wants.everything() || d.policy.AtOrigin() }

// adoptMetadata creates the picker once the metadata is known.
func (d *Download) adoptMetadata(now time.Time) {
	if d.pick != nil || !d.proof.hasMetadata() {
		return
	}
	layout := d.proof.replica.Metadata().Layout()
	have, known := d.proof.replica.Have(), d.proof.knownSet()
	cfg := d.e.cfg.Picker
	cfg.Seed = d.e.seed()
	d.pick = picker.New(cfg, layout, have)
	d.enter(policy.Partial)
	d.pick.Role(d.e.cfg.Host.ID, !d.conns.local)
	d.serving.spread = d.e.spreadOf(d.id, layout.Count(), now)
	d.serving.shown = piece.NewBitmap(layout.Count())
	for i := range piece.Index(layout.Count()) {
		if known.Has(i) && have.Has(i) {
			d.serving.shown.Set(i)
		}
	}
	d.updateWanted(now)
	d.show()
	for _, c := range d.conns.open {
		d.introduce(now, c)
	}
}

func (d *Download) noteComplete(now time.Time) {
	if d.complete() || !d.pick.Have().Full() || d.passes() != nil {
		return
	}
	d.enter(policy.Complete)
	d.progress.signal()
	d.show()
	if !d.proof.cached {
		s, inline := d.sources(), d.stats.inline.Load()
		d.tell(slog.LevelInfo, "download complete",
			append([]any{"name", d.wants.spec.Name(), "bytes", d.proof.replica.Metadata().Length,
				"peers", s.Peers, "seeds",
				s.Seeds - inline, "origin", s.Origin, "inline", inline, "conns", len(d.conns.open)},
				d.times.attrs(now)...)...)
	}
}

// pause is how long the loop may sleep.
func (d *Download) pause(now time.Time) time.Duration {
	wake := now.Add(5 * time.Second)
	if !d.complete() {
		wake = now.Add(watchEvery)
	}
	if later := d.conns.later; len(later.hosts) > 0 && later.at.Before(wake) {
		wake = later.at
	}
	if d.pick != nil {
		if t := d.pick.NextFree(now); !t.IsZero() && t.Before(wake) {
			wake = t
		}
	}
	return max(d.policy.Wake(now, wake, d.phase).Sub(now), time.Millisecond)
}

// jitter is a random part of n.
func jitter(n time.Duration) time.Duration { return time.Duration(float64(n) * rand.Float64()) }
