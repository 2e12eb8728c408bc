package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/peer/picker"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/ratelimit"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// strikesMax is how many bad pieces a peer may send in one download. Once may be bad
	// luck, twice is a bad disk. The count dies with the download, so that a single
	// poisoned task cannot ban a host from the others.
	strikesMax = 2
	// banFor is how long a peer is left that sent wrong bytes twice. It may well have found
	// its disk damaged meanwhile and have the content anew.
	banFor = 5 * time.Second
	// givenMax bounds how many peers' pieces are remembered.
	givenMax = 1024
	// starveFirst and starveMax bound how soon a download that nobody can feed asks its
	// owner again.
	starveFirst = 100 * time.Millisecond
	starveMax   = time.Second
	// quiet is how long no neighbour may tell of a new piece before one who lacks pieces
	// takes it that none of them will.
	quiet = time.Second
	// lonely is how long a download goes without anybody to ask before it fails.
	lonely = 8 * time.Second
	// busyMin and busyMax bound how long a busy neighbour is left alone.
	busyMin = time.Millisecond
	busyMax = 250 * time.Millisecond
	// rejectFor is how long a neighbour is not asked again for a piece that it rejected.
	rejectFor = 2 * time.Second
	// aliveEvery is how often a seed says something while it brings what is missing.
	aliveEvery = time.Second
	// watchEvery is how often connections are looked at for silence and idleness.
	watchEvery = 250 * time.Millisecond
)

var (
	errBanned   = errors.New("it sent wrong bytes before")
	errDamaged  = errors.New("what was stored here is damaged and was dropped; ask again")
	errTwice    = errors.New("connected to it already")
	errTooMany  = errors.New("this task has connections enough")
	errStalled  = errors.New("it sent nothing of what it was asked for")
	errNoDigest = errors.New("piece came without a signed digest")
)

// want is a range that somebody reads or read a moment ago.
type want struct {
	reader     *Reader
	first, end piece.Index
	until      time.Time // when a range without reader is forgotten
	// at is the piece that the reader needs next, since when.
	at    piece.Index
	since time.Time
}

// urgentAfter is how long a reader waits for one piece before that piece jumps the queue.
// Sooner would make every reader in the cluster ask for the same lowest pieces, which
// only the seed has: each must spread them instead.
const urgentAfter = time.Second

// Download is one task on its way in or out. Its loop, [Download.run], owns all state
// that is not said to be shared, and decides everything; other goroutines post to it.
type Download struct {
	e      *Engine
	id     task.ID
	log    *slog.Logger
	ledger *ledger
	holds  int // contents and peers being welcomed; guarded by the engine's mu

	debug        bool // events are logged
	events       chan event
	nudged       chan struct{}
	done         chan struct{}
	closed       chan struct{} // after done: the store may evict the content
	progress     broadcast
	wg           sync.WaitGroup
	ctx          context.Context
	stats        counters
	rate         ratelimit.Limiter // of all that comes in
	limits       ratelimit.Chain   // with what the engine limits besides
	comparedOnce sync.Once
	comparedSet  *compared
	demanded     atomic.Bool // somebody waits for what the origin gives
	inlining     atomic.Bool // what came inside an answer is being stored, so it is not asked for
	// firstAsked is how the origin was asked first, nil where it was not; mixed says that it was asked for
	// another client later, or that some of the content was stored before.
	firstAsked atomic.Pointer[task.Spec]
	mixed      atomic.Bool
	// neededNow is what only the origin can bring, for its goroutine.
	neededNow atomic.Pointer[piece.Bitmap]
	view      atomic.Pointer[TaskStatus]
	// moved grows while bytes of a body come whose length nobody knows.
	moved atomic.Int64

	// offerMu is held to leave or take what callers want, which the loop then adopts.
	offerMu sync.Mutex
	offered *task.Spec // the newest spec that somebody came with
	whole   bool       // since the last look somebody wants everything

	// The loop owns the rest.
	spec       task.Spec
	wanted     bool // somebody came with a spec
	background bool // wanted whole, without a reader
	wants      []want
	pick       *picker.Picker
	spread     *picker.Spread
	proven     piece.Bitmap // pieces that are here and that somebody else can verify
	links      map[picker.Neighbour]*link
	nextLink   picker.Neighbour
	dialing    map[host.ID]bool
	avoid      map[host.ID]time.Time  // hosts that failed, and until when they are left alone
	banned     map[[20]byte]time.Time // who sent wrong bytes, and until when it is left alone
	// given are the pieces that each peer was sent; see remember.
	given    map[[20]byte]piece.Bitmap
	checking int // pieces that are read for that
	silent   []host.ID
	complete bool
	// pieceTime is the usual time from one piece to the next, whoever sends them.
	pieceTime time.Duration
	asked     time.Time // when somebody first came with a spec
	firstGot  time.Time
	lastGot   time.Time
	lastNews  time.Time // when a neighbour last told of a piece
	local     bool      // what is in other zones is brought by this zone's gateways
	err       error
	ownFault  bool // err is about this host's own disk
	// answered is the spec with which an origin was asked when err is its answer, nil where that is
	// not known; passed is how many such answers to others were passed by.
	answered *task.Spec
	passed   int

	announcing    bool
	yielding      bool // to make room for another content
	toldStarted   bool
	toldCompleted bool
	toldWhole     bool // neighbours know that no digest is needed here
	nextProgress  time.Time
	nextStarving  time.Time
	starveDelay   time.Duration
	lonelySince   time.Time
	ownerErr      error // of the last announce
	dialErr       error // of the last neighbour that was not reached

	nextWatch time.Time

	maySeed, seeding       bool
	leads                  bool      // maySeed was told because others ask this host whom to talk to
	disputed               bool      // no owner has told maySeed, and another host's thinks that others lead
	seedSince              time.Time // when maySeed was told
	again                  bool      // the origin will be asked anew, after it sent wrong content
	attested               bool      // it was tried to vouch for what nobody had vouched for
	toldMetadata, toldDone bool      // to the observer
	stopOrigin             context.CancelCauseFunc
	originRests            time.Time // until then it is not asked, unless somebody wants more
	lastUse                time.Time
}

func newDownload(e *Engine, spec task.Spec, now time.Time) *Download {
	d := &Download{
		e: e, id: spec.ID, log: e.log, ledger: newLedger(spec.ID, e.cfg.Store, e.cfg.Verifier, e.attempts[spec.ID].revoked),
		events: make(chan event, 256), nudged: make(chan struct{}, 1), done: make(chan struct{}), closed: make(chan struct{}),
		links: make(map[picker.Neighbour]*link), dialing: make(map[host.ID]bool), avoid: make(map[host.ID]time.Time),
		banned: make(map[[20]byte]time.Time), given: make(map[[20]byte]piece.Bitmap), starveDelay: starveFirst, pieceTime: 20 * time.Millisecond, lastUse: now,
	}
	d.ledger.create = e.create
	d.limits = d.intake()
	return d
}

// notify sends an event to the loop; it is dropped when the loop has ended.
func (d *Download) notify(ev event) {
	select {
	case d.events <- ev:
	case <-d.done:
	}
}

// post has the loop run a function.
func (d *Download) post(f func()) { d.notify(called{f}) }

// nudge makes the loop look around.
func (d *Download) nudge() {
	select {
	case d.nudged <- struct{}{}:
	default:
	}
}

// offer tells that somebody wants the task, how its origin may be asked, and whether
// everything is wanted, reader or not.
func (d *Download) offer(spec task.Spec, whole bool) {
	d.offerMu.Lock()
	d.offered = &spec
	d.whole = d.whole || whole
	d.offerMu.Unlock()
	d.nudge()
}

func (d *Download) hasOffer() bool {
	d.offerMu.Lock()
	defer d.offerMu.Unlock()
	return d.offered != nil
}

func (d *Download) ended() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// failure is why the download ended; it may be asked once done is closed.
func (d *Download) failure() error {
	if d.err == nil {
		return ErrStopped
	}
	return d.err
}

// othersMax is how many refusals in a row that were meant for others a content is wanted anew for.
const othersMax = 4

// errOthers is told in place of a refusal that was meant for others.
var errOthers = &api.Failure{
	Status: http.StatusServiceUnavailable, Message: "the content was being brought for others, who could not have it; ask again",
}

// failureOf is why the download ended, for who came with a spec: an origin's refusal may be about
// the credentials that it was shown, and who has others must not hear it.
func (d *Download) failureOf(spec task.Spec) error {
	var f *api.Failure
	if errors.As(d.err, &f) && f.Personal() && (d.answered == nil || !d.answered.SameAsker(spec)) {
		return errOthers
	}
	return d.failure()
}

func (d *Download) sources() Sources { return d.stats.sources() }

func (d *Download) status() TaskStatus {
	if v := d.view.Load(); v != nil {
		s := *v
		s.Sources = d.sources()
		return s
	}
	return TaskStatus{ID: d.id, Sources: d.sources()}
}

// run is the loop: it takes events and time, and decides. It ends when nobody needs the
// download any more, when it fails, or when ctx ends.
func (d *Download) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	d.ctx = ctx
	d.log = d.e.log.With("task", d.id.Short())
	d.debug = d.log.Enabled(ctx, slog.LevelDebug)
	timer := time.NewTimer(0)
	defer timer.Stop()
	if err := d.ledger.load(); err != nil {
		d.err = &api.Failure{Status: http.StatusInternalServerError, Message: err.Error()}
	}
	d.mixed.Store(d.ledger.hasMetadata())
	now := time.Now()
	for d.err == nil {
		var ev event
		select {
		case ev = <-d.events:
		case <-d.nudged:
		case <-timer.C:
		case <-ctx.Done():
			d.err = ErrStopped
		}
		now = time.Now()
		if ev != nil {
			d.handle(now, ev)
			d.drainEvents(now)
		}
		if d.err == nil {
			d.step(now)
		}
		if d.err == nil && d.idle(now) && d.e.retire(d, now) {
			break
		}
		timer.Reset(d.pause(now))
	}
	if d.err != nil {
		if d.e.bury(d, now) {
			d.helloAgain() // neighbours believe a seed that it gave up, and no other
		}
		d.tellFailure(now)
	}
	close(d.done)
	d.noteDemand(false)
	d.progress.signal()
	for _, l := range d.links {
		l.hurry()
	}
	d.e.stats.links.Add(-int64(len(d.links)))
	cancel()
	d.wg.Wait()
	if d.ledger.hasMetadata() {
		d.ledger.replica.Close()
	}
	d.e.left(d)
}

// drainEvents takes what else has come, so that decisions are made once for all of it.
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

// step looks at the state and does what is due.
func (d *Download) step(now time.Time) {
	d.takeOffer(now)
	d.adoptMetadata(now)
	if d.pick != nil {
		d.forgetWants(now)
		d.noteComplete(now)
		if !d.inlining.Load() {
			d.request(now)
		}
	}
	d.steerOrigin(now)
	d.noteDemand(d.awaited())
	d.report()
	d.announce(now)
	d.forsaken(now)
	if !now.Before(d.nextWatch) {
		d.nextWatch = now.Add(watchEvery)
		d.watch(now)
		if d.seeding && d.pick != nil {
			d.feedOrigin()
		}
		d.show()
	}
}

func (d *Download) show() {
	s := &TaskStatus{ID: d.id, Links: len(d.links), Seeding: d.seeding, Name: d.spec.Name(), LastGot: d.lastGot, lastUse: d.lastUse}
	if d.lastGot.IsZero() {
		s.LastGot = d.asked
	}
	for _, w := range d.wants {
		if w.reader != nil {
			s.Readers++
		}
	}
	if d.pick != nil {
		s.Metadata = d.ledger.replica.Metadata()
		s.Have, s.Pieces = d.pick.Have().Count(), d.pick.Have().Len()
	}
	s.Wanted = d.wanted && !d.complete && (s.Readers > 0 || d.seeds() || d.pick == nil)
	d.view.Store(s)
}

// takeOffer adopts what callers want and acts on it.
func (d *Download) takeOffer(now time.Time) {
	if !d.adoptOffer(now) {
		return
	}
	if d.disputed {
		d.letSeed(now)
	}
	d.updateWanted(now)
	d.helloAgain()
}

// adoptOffer adopts what callers want, and reports whether that makes a seed of the download. It
// touches fields alone: the engine's mu may be held.
func (d *Download) adoptOffer(now time.Time) (seed bool) {
	d.offerMu.Lock()
	spec, whole := d.offered, d.whole
	d.offered, d.whole = nil, false
	d.offerMu.Unlock()
	if spec != nil {
		d.spec, d.wanted, d.yielding = *spec, true, false
		if d.asked.IsZero() {
			d.asked = now
		}
	}
	if !whole {
		return false
	}
	d.toldMetadata, d.toldDone = false, false // who asked again is told again
	seed = !d.background
	d.background = true
	return seed
}

// seeds reports whether the owner counts on this download.
func (d *Download) seeds() bool { return d.background || d.seeding }

// report tells the observer how a seed goes on.
func (d *Download) report() {
	o := d.e.cfg.Observer
	if o == nil || !d.seeds() || d.pick == nil {
		return
	}
	if !d.toldMetadata {
		d.toldMetadata = true
		o.SeedMetadata(d.id, d.ledger.replica.Metadata())
	}
	if !d.toldDone && d.complete {
		d.toldDone = true
		o.SeedDone(d.id)
	}
}

// adoptMetadata begins to decide about pieces once the facts are known.
func (d *Download) adoptMetadata(now time.Time) {
	if d.pick != nil || !d.ledger.hasMetadata() {
		return
	}
	layout := d.ledger.replica.Metadata().Layout()
	have, known := d.ledger.replica.Have(), d.ledger.knownSet()
	cfg := d.e.cfg.Picker
	cfg.Seed = d.e.seed()
	d.pick = picker.New(cfg, layout, have)
	d.pick.Role(d.e.cfg.Host.ID, !d.local)
	d.spread = d.e.spreadOf(d.id, layout.Count(), now)
	d.proven = piece.NewBitmap(layout.Count())
	for i := range piece.Index(layout.Count()) {
		if known.Has(i) && have.Has(i) {
			d.proven.Set(i)
		}
	}
	d.updateWanted(now)
	d.show()
	for _, l := range d.links {
		d.introduce(now, l)
	}
}

func (d *Download) addReader(now time.Time, r *Reader) {
	layout := d.ledger.replica.Metadata().Layout()
	first, end := layout.Span(r.off, r.end-r.off)
	d.wants = append(d.wants, want{reader: r, first: first, end: end})
	d.adoptMetadata(now)
	d.updateWanted(now)
}

func (d *Download) removeReader(now time.Time, r *Reader) {
	for i := range d.wants {
		if w := &d.wants[i]; w.reader == r {
			w.reader, w.until = nil, now.Add(d.e.cfg.Linger)
			if r.pos.Load() >= r.end {
				w.until = now
			}
		}
	}
}

func (d *Download) forgetWants(now time.Time) {
	kept := d.wants[:0]
	for _, w := range d.wants {
		if w.reader != nil || now.Before(w.until) {
			kept = append(kept, w)
		}
	}
	if len(kept) != len(d.wants) {
		d.wants = kept
		d.updateWanted(now)
	}
}

func (d *Download) updateWanted(now time.Time) {
	if d.pick == nil {
		return
	}
	wanted := piece.NewBitmap(d.pick.Have().Len())
	if d.background {
		wanted.SetAll()
	}
	for _, w := range d.wants {
		for i := w.first; i < w.end; i++ {
			wanted.Set(i)
		}
	}
	if n := wanted.Len(); d.seeding && n > 0 {
		// The origin gives the last piece only when all others are here, and those that a
		// neighbour has come from the neighbour.
		if last := piece.Index(n - 1); wanted.Has(last) && !d.pick.Offered(last) {
			wanted.SetAll()
		}
	}
	d.originRests = time.Time{}
	d.pick.Want(wanted)
	d.feedOrigin()
	d.progress.signal()
	d.lastUse = now
}

// feedOrigin tells the origin's goroutine what only the origin can bring: what is wanted
// and no neighbour has. The last piece is given only after the whole content was checked, so
// who wants it wants everything.
func (d *Download) feedOrigin() {
	needed := d.pick.Wanted().Clone()
	if needed.Count() == 0 && d.e.held(d) {
		// Who has the content open but no reader yet will want something in a moment:
		// another request would have to be made for it.
		needed.SetAll()
	}
	if n := needed.Len(); n > 0 {
		if last := piece.Index(n - 1); needed.Has(last) && !d.pick.Offered(last) {
			needed.SetAll()
		}
	}
	for i := range piece.Index(needed.Len()) {
		if d.pick.Offered(i) {
			needed.Clear(i)
		}
	}
	d.neededNow.Store(&needed)
}

func (d *Download) noteComplete(now time.Time) {
	if d.complete || !d.pick.Have().Full() {
		return
	}
	d.complete = true
	d.progress.signal()
	d.show()
	if !d.ledger.cached {
		s := d.sources()
		d.tell(slog.LevelInfo, "content complete", append([]any{"name", d.spec.Name(), "bytes", d.ledger.replica.Metadata().Length,
			"peers", s.Peers, "seeds", s.Seeds, "origin", s.Origin, "inline", s.Inline, "links", len(d.links)}, d.times(now)...)...)
	}
}

// times tells how long the content took and what of it took longest, for the line of a log.
func (d *Download) times(now time.Time) (attrs []any) {
	if d.asked.IsZero() {
		return nil
	}
	total := now.Sub(d.asked)
	slowest, took := "first piece", total
	if !d.firstGot.IsZero() {
		took = d.firstGot.Sub(d.asked)
		attrs = append(attrs, "firstPiece", took.Round(time.Microsecond))
		if rest := total - took; rest > took {
			slowest, took = "the rest", rest
		}
	}
	return append(attrs, "total", total.Round(time.Microsecond), "slowest", slowest, "slowestTook", took.Round(time.Microsecond))
}

// idle reports whether nobody needs the download any more.
func (d *Download) idle(now time.Time) bool {
	if len(d.links) > 0 || len(d.dialing) > 0 || d.announcing || d.seeding || d.checking > 0 || len(d.wants) > 0 {
		return false
	}
	if d.background && !d.complete {
		return false
	}
	if d.complete && d.wanted && !d.toldCompleted && d.ledger.proven() && !d.ledger.cached {
		return false
	}
	return d.complete || d.yielding || now.Sub(d.lastUse) > d.e.cfg.Linger
}

// pause is how long the loop may sleep.
func (d *Download) pause(now time.Time) time.Duration {
	wake := now.Add(5 * time.Second)
	if !d.complete {
		wake = now.Add(watchEvery)
	}
	if d.pick != nil {
		if t := d.pick.NextFree(now); !t.IsZero() && t.Before(wake) {
			wake = t
		}
	}
	for _, t := range []time.Time{d.nextStarving, d.nextProgress} {
		if t.After(now) && t.Before(wake) && !d.complete {
			wake = t
		}
	}
	return max(wake.Sub(now), time.Millisecond)
}

// fail ends the download with an error that every reader is told.
func (d *Download) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// failFor ends the download because an origin answered so to who came with spec.
func (d *Download) failFor(spec task.Spec, f *api.Failure) {
	if d.err == nil {
		d.err, d.answered = f, &spec
	}
}

// tell writes the one line of a content on a host that is there to serve. Elsewhere somebody
// asked for the content, and whoever serves him writes the line.
func (d *Download) tell(level slog.Level, msg string, attrs ...any) {
	if !d.e.cfg.Seed {
		level = slog.LevelDebug
	}
	d.log.Log(d.ctx, level, msg, attrs...)
}

// failHere ends the download because of this host's own disk.
func (d *Download) failHere(err error) {
	d.ownFault = d.err == nil
	d.fail(&api.Failure{Status: http.StatusInsufficientStorage, Message: err.Error(), Full: true})
}

// forOthers is what other hosts are told of a failure: that this host's disk is full is not
// the origin's word, and no reason why they could not have the content.
func (d *Download) forOthers(f *api.Failure) *api.Failure {
	if !d.ownFault {
		return f
	}
	h := d.e.cfg.Host
	return &api.Failure{Status: http.StatusServiceUnavailable, Message: fmt.Sprintf("host %s (%s), which was to bring it, cannot keep it: %s", h.Name, h.ID.Short(), f.Message), Full: true}
}

// tellFailure tells observer and neighbours why a seed gives up.
func (d *Download) tellFailure(now time.Time) {
	var f *api.Failure
	switch {
	case errors.As(d.err, &f):
		d.tell(slog.LevelWarn, "download failed", append([]any{"name", d.spec.Name(), "error", d.err}, d.times(now)...)...)
	case errors.Is(d.err, ErrRevoked) && !d.again:
		f = &api.Failure{Status: http.StatusBadGateway, Message: d.err.Error()}
	default:
		return
	}
	if !d.seeds() {
		return
	}
	f = d.forOthers(f)
	// The observer first: an owner is asked by neighbours that hear of it whether it concerns them.
	if d.e.cfg.Observer != nil {
		d.e.cfg.Observer.SeedFailed(d.id, d.answered, f)
	}
	if d.err != ErrRevoked { // neighbours have heard of a revocation
		for _, l := range d.links {
			l.send(wire.Message{Type: wire.FailMessage, Failure: f})
		}
	}
}

// revoke drops what proved wrong, here and at every neighbour. The certificate of the key
// that signed it goes ahead, because a neighbour may not have met that key.
func (d *Download) revoke(now time.Time, list []piece.Revocation, cert []byte) {
	for _, r := range list {
		d.log.Warn("content revoked", "epoch", r.Epoch, "key", r.Key)
		d.e.noteRevoked(now, d.id, r, cert)
	}
	for _, l := range d.links {
		sendRevocations(l, list, cert)
	}
	d.discard(now)
}

func sendRevocations(l *link, list []piece.Revocation, cert []byte) {
	if cert != nil {
		l.send(wire.Message{Type: wire.DigestMessage, Digests: &wire.Digests{Certificates: [][]byte{cert}}})
	}
	for _, r := range list {
		l.send(wire.Message{Type: wire.RevokeMessage, Revocation: &r})
	}
}

// teach tells a neighbour that what it believes was revoked.
func (d *Download) teach(l *link, epoch uint64) {
	if r, cert, ok := d.e.revocation(d.id, epoch); ok {
		sendRevocations(l, []piece.Revocation{r}, cert)
	}
}

// discard drops what is here and ends every reader short.
func (d *Download) discard(now time.Time) {
	d.e.noteReplaced(d.id)
	if err := d.e.cfg.Store.Remove(d.id); err != nil {
		d.log.Error("cannot drop a revoked task", "error", err)
	}
	d.fail(ErrRevoked)
}

// hurt ends a download that a word about it made worthless, or that the own disk fails.
func (d *Download) hurt(now time.Time, err error) {
	switch {
	case errors.Is(err, errContradiction):
		d.log.Warn("content dropped", "error", err)
		d.discard(now)
	case errors.Is(err, errSpace):
		d.failHere(err)
	}
}

func (d *Download) jitter(n time.Duration) time.Duration {
	return time.Duration(float64(n) * rand.Float64())
}
