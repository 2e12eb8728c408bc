package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
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

	events       chan func()
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
	// neededNow is what only the origin can bring, for its goroutine.
	neededNow atomic.Pointer[piece.Bitmap]
	view      atomic.Pointer[TaskStatus]

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
	lastGot   time.Time
	lastNews  time.Time // when a neighbour last told of a piece
	local     bool      // what is in other zones is brought by this zone's gateways
	err       error
	ownFault  bool // err is about this host's own disk

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

	nextWatch time.Time

	maySeed, seeding    bool
	seedSince           time.Time // when maySeed was told
	again               bool      // the origin will be asked anew, after it sent wrong content
	attested            bool      // it was tried to vouch for what nobody had vouched for
	toldFacts, toldDone bool      // to the observer
	stopOrigin          context.CancelCauseFunc
	lastUse             time.Time
}

func newDownload(e *Engine, spec task.Spec) *Download {
	d := &Download{
		e: e, id: spec.ID, log: e.log.With("task", spec.ID.Short()), ledger: newLedger(spec.ID, e.cfg.Store, e.cfg.Verifier, e.attempts[spec.ID].revoked),
		events: make(chan func(), 256), nudged: make(chan struct{}, 1), done: make(chan struct{}), closed: make(chan struct{}),
		links: make(map[picker.Neighbour]*link), dialing: make(map[host.ID]bool), avoid: make(map[host.ID]time.Time),
		banned: make(map[[20]byte]time.Time), given: make(map[[20]byte]piece.Bitmap), starveDelay: starveFirst, pieceTime: 20 * time.Millisecond, lastUse: time.Now(),
	}
	d.ledger.create = e.create
	d.limits = d.intake()
	return d
}

// post hands an event to the loop; it is dropped when the loop has ended.
func (d *Download) post(f func()) {
	select {
	case d.events <- f:
	case <-d.done:
	}
}

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
	timer := time.NewTimer(0)
	defer timer.Stop()
	if err := d.ledger.load(); err != nil {
		d.err = &api.Failure{Status: http.StatusInternalServerError, Message: err.Error()}
	}
	for d.err == nil {
		select {
		case f := <-d.events:
			f()
			d.drainEvents()
		case <-d.nudged:
		case <-timer.C:
		case <-ctx.Done():
			d.err = ErrStopped
		}
		now := time.Now()
		if d.err == nil {
			d.step(now)
		}
		if d.err == nil && d.idle(now) && d.e.retire(d) {
			break
		}
		timer.Reset(d.pause(now))
	}
	if d.err != nil {
		d.e.bury(d)
		d.tellFailure()
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
	if d.ledger.hasFacts() {
		d.ledger.replica.Close()
	}
	close(d.closed)
}

// drainEvents takes what else has come, so that decisions are made once for all of it.
func (d *Download) drainEvents() {
	for range cap(d.events) {
		select {
		case f := <-d.events:
			f()
		default:
			return
		}
	}
}

// step looks at the state and does what is due.
func (d *Download) step(now time.Time) {
	d.takeOffer()
	d.adoptFacts(now)
	if d.pick != nil {
		d.forgetWants(now)
		d.noteComplete()
		d.request(now)
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
	s := &TaskStatus{ID: d.id, Links: len(d.links), Seeding: d.seeding, lastUse: d.lastUse}
	for _, w := range d.wants {
		if w.reader != nil {
			s.Readers++
		}
	}
	if d.pick != nil {
		s.Facts = d.ledger.replica.Facts()
		s.Have, s.Pieces = d.pick.Have().Count(), d.pick.Have().Len()
	}
	d.view.Store(s)
}

func (d *Download) takeOffer() {
	d.offerMu.Lock()
	spec, whole := d.offered, d.whole
	d.offered, d.whole = nil, false
	d.offerMu.Unlock()
	if spec != nil {
		d.spec, d.wanted, d.yielding = *spec, true, false
	}
	if whole {
		d.toldFacts, d.toldDone = false, false // who asked again is told again
	}
	if whole && !d.background {
		d.background = true
		d.updateWanted(time.Now())
		d.helloAgain()
	}
}

// seeds reports whether the owner counts on this download.
func (d *Download) seeds() bool { return d.background || d.seeding }

// report tells the observer how a seed goes on.
func (d *Download) report() {
	o := d.e.cfg.Observer
	if o == nil || !d.seeds() || d.pick == nil {
		return
	}
	if !d.toldFacts {
		d.toldFacts = true
		o.SeedFacts(d.id, d.ledger.replica.Facts())
	}
	if !d.toldDone && d.complete {
		d.toldDone = true
		o.SeedDone(d.id)
	}
}

// adoptFacts begins to decide about pieces once the facts are known.
func (d *Download) adoptFacts(now time.Time) {
	if d.pick != nil || !d.ledger.hasFacts() {
		return
	}
	layout := d.ledger.replica.Facts().Layout()
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
	for _, l := range d.links {
		d.introduce(l)
	}
}

func (d *Download) addReader(r *Reader) {
	layout := d.ledger.replica.Facts().Layout()
	first, end := layout.Span(r.off, r.end-r.off)
	d.wants = append(d.wants, want{reader: r, first: first, end: end})
	d.adoptFacts(time.Now())
	d.updateWanted(time.Now())
}

func (d *Download) removeReader(r *Reader) {
	for i := range d.wants {
		if w := &d.wants[i]; w.reader == r {
			w.reader, w.until = nil, time.Now().Add(d.e.cfg.Linger)
			if r.pos.Load() >= r.end {
				w.until = time.Now()
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

// request asks for pieces while asking makes sense.
func (d *Download) request(now time.Time) {
	layout := d.ledger.replica.Facts().Layout()
	var urgent []piece.Index
	for j := range d.wants {
		w := &d.wants[j]
		if w.reader == nil {
			continue
		}
		at := layout.At(w.reader.pos.Load())
		if at < w.end && d.pick.Have().Has(at) && !d.ledger.replica.Has(at) {
			d.lost(at)
		}
		i := d.pick.Have().NextMissing(at)
		if i != w.at || w.since.IsZero() {
			w.at, w.since = i, now
		}
		seeks := w.first > 0 && i == w.first
		if i < w.end && (seeks || now.Sub(w.since) > urgentAfter) {
			urgent = append(urgent, i)
		}
	}
	d.pick.Urgent(urgent)
	for {
		r, ok := d.pick.Next(now)
		if !ok {
			return
		}
		l := d.links[r.From]
		if l.expecting() == 0 {
			l.since = now
		}
		l.expect(&inbound{index: r.Piece, any: r.Any})
		if r.Any {
			l.send(wire.Message{Type: wire.AnyMessage, Any: &wire.Any{Exclude: r.Exclude, Starving: r.Starving}})
		} else {
			l.send(wire.Message{Type: wire.Request, Index: r.Piece, Length: layout.Size(r.Piece)})
		}
		d.pick.Asked(r)
	}
}

// store verifies and keeps one piece. Connections call it, not the loop.
func (d *Download) store(i piece.Index, data []byte) error {
	want, ok := d.ledger.digest(i)
	if !ok {
		return errNoDigest
	}
	if d.ledger.replica.Has(i) {
		return nil // somebody else was faster
	}
	if got := piece.Sum(data); got != want {
		return &piece.DigestError{Index: i, Want: want, Got: got}
	}
	if err := d.keep(i, data, want); err != nil {
		return fmt.Errorf("keeping piece %d of task %s: %w", i, d.id, err)
	}
	d.progress.signal()
	return nil
}

// arrived ends a request whose piece came.
func (d *Download) arrived(l *link, in *inbound, err error) {
	d.pick.Done(l.n, in.index)
	var bad *piece.DigestError
	switch {
	case err == nil:
		d.got(in.index, l)
	case errors.As(err, &bad):
		d.blame(l, bad)
	case errors.Is(err, errNoDigest):
		l.close(fmt.Errorf("%w: piece %d: %w", wire.ErrProtocol, in.index, err))
	default:
		d.failHere(err)
	}
}

func (d *Download) blame(l *link, bad *piece.DigestError) {
	d.e.stats.bad.Add(1)
	l.strikes++
	d.log.Warn("peer sent wrong bytes", "host", l.host, "addr", l.conn.RemoteAddr(), "piece", bad.Index, "strikes", l.strikes)
	if l.strikes >= strikesMax {
		d.banned[l.conn.PeerID()] = time.Now().Add(banFor)
		d.shun(l.host)
		l.close(fmt.Errorf("%w: %w", errBanned, bad))
		return
	}
	// The others get their chance first. It still counts as having the piece: where nobody
	// else has, its second answer tells bad luck from a bad disk, and then the owner hears
	// of it. Were the piece taken off it, everybody would wait for somebody to bring it.
	d.pick.Busy(l.n, time.Now().Add(busyMax))
}

// shun reports a host to the owner and leaves it alone for a while.
func (d *Download) shun(h host.ID) {
	if h == "" {
		return
	}
	d.silent = append(d.silent, h)
	d.avoid[h] = time.Now().Add(5 * time.Second)
}

// got notes a piece that is here now; from is nil when the origin gave it.
func (d *Download) got(i piece.Index, from *link) {
	size := d.ledger.replica.Facts().Layout().Size(i)
	if d.pick.Have().Has(i) {
		if from != nil {
			d.e.stats.duplicate.Add(size)
		}
		return
	}
	switch {
	case from == nil: // counted where it was stored
	case from.seed:
		d.count(func(c *counters) *atomic.Int64 { return &c.seeds }, size)
	default:
		d.count(func(c *counters) *atomic.Int64 { return &c.peers }, size)
	}
	d.pick.Got(i)
	d.starveDelay = starveFirst
	now := time.Now()
	if !d.lastGot.IsZero() {
		d.pieceTime += (min(now.Sub(d.lastGot), busyMax) - d.pieceTime) / 8
	}
	d.lastGot, d.lastUse = now, now
	for _, l := range d.links {
		d.drop(l, i)
	}
	d.publish(i)
}

// lost notes that the store took a piece back: it comes anew, and is not offered meanwhile.
func (d *Download) lost(i piece.Index) {
	if d.pick == nil || !d.pick.Have().Has(i) || d.ledger.replica.Has(i) {
		return
	}
	d.log.Warn("stored piece lost", "piece", i)
	d.pick.Lost(i)
	d.proven.Clear(i)
	d.complete, d.toldCompleted = false, false
	d.progress.signal()
}

// drop cancels what was asked of a neighbour and came from elsewhere.
func (d *Download) drop(l *link, i piece.Index) {
	if l.drop(i) {
		d.pick.Done(l.n, i)
		l.send(wire.Message{Type: wire.Cancel, Index: i, Length: d.ledger.replica.Facts().Layout().Size(i)})
	}
}

func (d *Download) count(which func(*counters) *atomic.Int64, n int64) {
	which(&d.stats).Add(n)
	which(&d.e.stats).Add(n)
}

// publish tells every neighbour of a piece, if it is here and proven. The signed digest
// follows when the piece is asked for, ahead of its first block: sent with the have, it
// would come to everybody from everybody. Who has the piece learns only how far this host
// is, so that it can serve those first who have least: that waits for the next message.
func (d *Download) publish(i piece.Index) {
	if !d.pick.Have().Has(i) || d.ledger.proof(i) < 0 || !d.proven.Set(i) {
		return
	}
	for _, l := range d.links {
		if l.have.Len() == 0 {
			continue
		}
		l.told.Set(i)
		have := wire.Message{Type: wire.Have, Index: i}
		if l.seed || !l.have.Has(i) {
			l.send(have)
		} else {
			l.sendAlong(have)
		}
	}
}

// prove makes sure that a neighbour has the signed digest of piece i.
func (d *Download) prove(l *link, i piece.Index) {
	if n := d.ledger.proof(i); n >= 0 && !l.runs[n] {
		d.sendRuns(l, n)
	}
}

// sendRuns sends the runs that a neighbour lacks, once its Hello told that it reads them.
func (d *Download) sendRuns(l *link, numbers ...int) {
	if !l.helloed || l.knowsAll {
		return
	}
	const batch = 64 << 10 // bytes of digests in one message, about
	var now []int
	size := 0
	flush := func() {
		if len(now) == 0 {
			return
		}
		runs, certs := d.ledger.message(now, l.keys)
		l.send(wire.Message{Type: wire.DigestMessage, Digests: &wire.Digests{Runs: runs, Certificates: certs}})
		now, size = nil, 0
	}
	for _, n := range numbers {
		if l.runs[n] {
			continue
		}
		l.runs[n] = true
		now = append(now, n)
		if size += d.ledger.size(n); size >= batch {
			flush()
		}
	}
	flush()
}

// digests notes that signed runs came from l, or from the own origin when l is nil.
func (d *Download) digests(l *link, numbers []int, whole bool) {
	now := time.Now()
	if l != nil && whole {
		l.knowsAll = true
	}
	d.adoptFacts(now)
	if d.pick == nil {
		return
	}
	for _, n := range numbers {
		first, end, key := d.ledger.span(n)
		if l != nil {
			l.runs[n], l.keys[key] = true, true
		}
		for i := first; i < end; i++ {
			d.publish(i)
		}
	}
	if !d.toldWhole && d.ledger.proven() {
		// Nobody needs to send digests here any more.
		d.toldWhole = true
		for _, other := range d.links {
			other.send(wire.Message{Type: wire.DigestMessage, Digests: &wire.Digests{Whole: true}})
		}
	}
	// A neighbour that has heard no run does not even know the length.
	for _, other := range d.links {
		d.sendFirst(other)
	}
}

// sendFirst tells a neighbour that has heard no run yet the first one: it holds the facts,
// without which nothing can be asked for.
func (d *Download) sendFirst(l *link) {
	if len(l.runs) == 0 && d.ledger.any() {
		d.sendRuns(l, 0)
	}
}

// link adds a connection after its handshake; it fails when the download will not have it.
func (d *Download) link(c *wire.Conn, initiated bool, h host.ID) error {
	result := make(chan error, 1)
	d.post(func() { result <- d.addLink(c, initiated, h) })
	select {
	case err := <-result:
		return err
	case <-d.done:
		return d.failure()
	}
}

func (d *Download) addLink(c *wire.Conn, initiated bool, h host.ID) error {
	self, other := d.e.cfg.Host.ID.PeerID(), c.PeerID()
	switch {
	case other == self:
		return errSelf
	case time.Now().Before(d.banned[other]):
		return errBanned
	case d.yielding:
		return errYields
	case len(d.links) >= d.e.cfg.LinksMax:
		return errTooMany
	}
	for _, l := range d.links {
		if l.conn.PeerID() != other {
			continue
		}
		// Both dialled at once: both keep the connection that the lower name dialled.
		lower := string(self[:]) < string(other[:])
		// Who dials us again has lost its old connection, though we have not seen it end.
		if initiated == lower && l.initiated != initiated || !initiated && !l.initiated {
			l.close(errTwice)
			break
		}
		return errTwice
	}
	l := newLink(d, c, initiated)
	d.takeOffer() // a peer that the owner sent here must find a seed, not a bystander
	now := time.Now()
	l.n, l.host, l.born, l.idleFrom, l.since = d.nextLink, h, now, now, now
	d.nextLink++
	d.links[l.n] = l
	d.e.stats.links.Add(1)
	if hello, said := d.hello(), c.Said(); said == nil || *said != *hello.Hello {
		l.send(hello)
	}
	if d.pick != nil {
		d.introduce(l)
	} else {
		l.send(wire.Message{Type: wire.Bitfield})
	}
	d.wg.Go(l.run)
	return nil
}

func (d *Download) hello() wire.Message {
	return wire.Message{Type: wire.HelloMessage, Hello: &wire.Hello{
		Host: d.e.cfg.Host.ID, Version: wire.Version, Client: d.e.cfg.Client, Seed: d.isSeed(),
		Zone: d.e.cfg.Host.Zone, Gateway: d.isGateway(), Alive: true,
	}}
}

// isSeed reports whether this host chooses itself which pieces it sends.
func (d *Download) isSeed() bool { return d.seeds() || d.e.cfg.Seed }

// helloAgain tells neighbours that this host has become a seed, or a gateway, or no longer is.
func (d *Download) helloAgain() {
	for _, l := range d.links {
		l.send(d.hello())
	}
}

// introduce tells a neighbour what is here, and notes what it said before the facts were known.
func (d *Download) introduce(l *link) {
	n := d.pick.Have().Len()
	l.have, l.told = piece.NewBitmap(n), piece.NewBitmap(n)
	d.pick.Join(l.n, l.seed)
	d.put(l)
	for i, has := range l.bits {
		if has && i < n {
			d.has(l, piece.Index(i))
		}
	}
	for _, i := range l.haves {
		d.has(l, i)
	}
	if l.hasAll {
		d.hasAll(l)
	}
	l.bits, l.haves = nil, nil
	l.told = d.proven.Clone()
	var bits []bool
	if l.told.Count() > 0 {
		bits = make([]bool, n)
	}
	for i := range bits {
		bits[i] = l.told.Has(piece.Index(i))
	}
	l.send(wire.Message{Type: wire.Bitfield, Bits: bits})
	d.sendFirst(l)
}

func (d *Download) has(l *link, i piece.Index) {
	l.have.Set(i)
	d.pick.Has(l.n, i)
	d.lastNews = time.Now()
}

func (d *Download) hasAll(l *link) {
	for i := range piece.Index(l.have.Len()) {
		d.has(l, i)
	}
}

// handle takes one message of a neighbour.
func (d *Download) handle(l *link, m wire.Message) {
	if d.links[l.n] != l {
		return
	}
	known := d.pick != nil
	switch m.Type {
	case wire.HelloMessage:
		if h := m.Hello.Host; h != "" && h.PeerID() != l.conn.PeerID() {
			l.close(fmt.Errorf("%w: it is another host in its hello than in its handshake", wire.ErrProtocol))
			return
		}
		l.host = m.Hello.Host
		l.seed, l.helloed, l.alive = m.Hello.Seed, true, m.Hello.Alive
		l.zone, l.gateway = m.Hello.Zone, m.Hello.Gateway
		if d.pick != nil {
			d.pick.SetSeed(l.n, l.seed)
			d.put(l)
		}
		d.sendFirst(l)
		if d.toldWhole {
			l.send(wire.Message{Type: wire.DigestMessage, Digests: &wire.Digests{Whole: true}})
		}
	case wire.Bitfield:
		switch {
		case !known:
			l.bits, l.hasAll = m.Bits, m.All
		case m.All:
			d.hasAll(l)
		default:
			for i, has := range m.Bits {
				if has && i < l.have.Len() {
					d.has(l, piece.Index(i))
				}
			}
		}
	case wire.Request:
		d.serve(l, m)
	case wire.AnyMessage:
		d.serveAny(l, *m.Any)
	case wire.Cancel:
		if j := l.cancel(m.Index, m.Begin); j != nil {
			d.unserved(l, j)
			l.send(wire.Message{Type: wire.Reject, Index: j.index, Begin: j.begin, Length: j.end - j.begin})
		}
	case wire.FailMessage:
		if l.seed && !d.complete && !d.seeding {
			d.fail(m.Failure)
		}
	case wire.RevokeMessage:
		if err := d.e.cfg.Verifier.VerifyRevocation(d.id, *m.Revocation); err != nil {
			l.close(fmt.Errorf("%w: revocation: %w", wire.ErrProtocol, err))
			return
		}
		if d.ledger.concerns(m.Revocation.Epoch) {
			d.revoke([]piece.Revocation{*m.Revocation}, d.ledger.certificate(m.Revocation.Key))
		}
	}
}

// hasSome takes in that a neighbour has more pieces.
func (d *Download) hasSome(l *link, pieces []piece.Index) {
	if d.links[l.n] != l {
		return
	}
	for _, i := range pieces {
		switch {
		case d.pick != nil:
			d.has(l, i)
		case len(l.haves) < piece.CountMax:
			l.haves = append(l.haves, i)
		}
	}
}

// rejected ends a request that was told to have no answer.
func (d *Download) rejected(l *link, in *inbound) {
	if d.links[l.n] != l || in == nil || in.dropped {
		return
	}
	d.pick.Done(l.n, in.index)
	d.pick.Lacks(l.n, in.index)
	l.rejects = append(l.rejects, reject{in.index, time.Now()})
}

// forgive takes it anew that a neighbour has what it said it has and rejected a while ago:
// it may just have had no proof, or bring the piece anew. Were it never asked again, two
// hosts that once disagreed would wait for a third one for ever.
func (d *Download) forgive(l *link, now time.Time) {
	for len(l.rejects) > 0 && now.Sub(l.rejects[0].at) >= rejectFor {
		if i := l.rejects[0].index; d.pick != nil && l.have.Has(i) {
			d.pick.Has(l.n, i)
		}
		l.rejects = l.rejects[1:]
	}
}

// refused ends a request that the neighbour has no slot for.
func (d *Download) refused(l *link, in *inbound, asked time.Duration) {
	if d.links[l.n] != l || in == nil || in.dropped {
		return
	}
	d.e.stats.busyGot.Add(1)
	if in.any {
		d.pick.Refused(l.n)
	} else {
		d.pick.Done(l.n, in.index)
	}
	// Half a piece-time, give or take half of it, so that those who were refused at once
	// do not come back at once.
	delay := min(max(d.pieceTime/4+d.jitter(d.pieceTime/2), busyMin), busyMax)
	d.pick.Busy(l.n, time.Now().Add(max(delay, asked)))
}

// bound notes which piece an any-request turned out to be.
func (d *Download) bound(l *link, in *inbound) {
	if d.links[l.n] != l {
		return
	}
	in.told = true
	// Asked for by name of the same neighbour, too, it comes twice: which of the two a cancel
	// would hit cannot be told, so neither is cancelled before one is here.
	known := d.pick.Have().Has(in.index) || d.pick.Flying(in.index) && l.asked(in.index) == 1
	d.pick.Bound(l.n, in.index)
	if known {
		d.drop(l, in.index) // it came from elsewhere before this was told, or is about to
	}
}

// serve answers a request for a piece, or for a part of it, at once: with the piece, with
// a reject where it is not here, or with busy where all slots are taken.
func (d *Download) serve(l *link, m wire.Message) {
	refuse := wire.Message{Type: wire.Reject, Index: m.Index, Begin: m.Begin, Length: m.Length}
	if d.pick == nil || !d.proven.Has(m.Index) {
		l.send(refuse)
		return
	}
	size := d.ledger.replica.Facts().Layout().Size(m.Index)
	if m.Length <= 0 || m.Begin < 0 || m.Begin+m.Length > size {
		l.send(refuse)
		return
	}
	if !d.lane(l).slots.TryAcquire(d.id) {
		d.e.stats.busySent.Add(1)
		l.send(wire.Message{Type: wire.BusyMessage, Busy: &wire.Busy{Index: m.Index, Begin: m.Begin}, Length: m.Length})
		return
	}
	d.begin(l, &job{index: m.Index, begin: m.Begin, next: m.Begin, end: m.Begin + m.Length})
}

// serveAny answers a request for whatever piece, as a seed.
func (d *Download) serveAny(l *link, a wire.Any) {
	busy := wire.Message{Type: wire.BusyMessage, Busy: &wire.Busy{Index: wire.BusyAny}}
	lane := d.lane(l)
	if d.pick == nil || !lane.slots.TryAcquire(d.id) {
		d.e.stats.busySent.Add(1)
		l.send(busy)
		return
	}
	i, ok := d.spread.Pick(d.proven, l.have, a.Exclude, a.Starving)
	if !ok {
		lane.slots.Release(d.id)
		busy.Busy.Delay = max(busyMin, min(d.pieceTime, busyMax))
		l.send(busy)
		return
	}
	l.send(wire.Message{Type: wire.Suggest, Index: i})
	d.begin(l, &job{index: i, end: d.ledger.replica.Facts().Layout().Size(i), any: true})
}

func (d *Download) begin(l *link, j *job) {
	j.lane = d.lane(l)
	if !d.afar(l) {
		d.spread.Sent(j.index)
	}
	d.prove(l, j.index)
	d.remember(l, j)
	j.rank = l.have.Count() * 1000 / max(1, l.have.Len()) // tasks of any size compare
	l.sending++
	d.lastUse = time.Now()
	if !l.serve(j) {
		d.unserved(l, j)
	}
}

// unserved ends a job that was never begun.
func (d *Download) unserved(l *link, j *job) {
	l.yield(j, true)
	j.lane.slots.Release(d.id)
	d.served(l, j, false)
}

// served ends a job.
func (d *Download) served(l *link, j *job, sent bool) {
	l.sending--
	if !sent && j.next == j.begin && !d.afar(l) {
		d.spread.Unsent(j.index)
	}
}

// remember notes which pieces a peer is sent. Who is sent one again may have found it wrong.
func (d *Download) remember(l *link, j *job) {
	if j.begin > 0 || j.end < d.ledger.replica.Facts().Layout().Size(j.index) {
		return
	}
	who := l.conn.PeerID()
	if _, ok := d.given[who]; !ok {
		if len(d.given) >= givenMax {
			clear(d.given)
		}
		d.given[who] = piece.NewBitmap(d.pick.Have().Len())
	}
	if !d.given[who].Set(j.index) {
		d.check(j.index)
	}
}

// check reads a piece and compares it with its digest. One that is damaged says that the
// disk cannot be believed: all of the content goes, and is brought anew when it is wanted.
func (d *Download) check(i piece.Index) {
	want, ok := d.ledger.digest(i)
	if !ok || !d.complete {
		return
	}
	d.checking++
	d.wg.Go(func() {
		damaged := d.damaged(i, want)
		d.post(func() {
			d.checking--
			if damaged {
				d.dropDamaged(i)
			}
		})
	})
}

// unlink forgets a connection that has ended.
func (d *Download) unlink(l *link, err error) {
	if d.links[l.n] != l {
		return
	}
	delete(d.links, l.n)
	d.e.stats.links.Add(-1)
	if d.pick != nil {
		d.pick.Leave(l.n)
	}
	for _, other := range d.links {
		if other.conn.PeerID() == l.conn.PeerID() {
			return // one of two connections to the same host: it is not gone
		}
	}
	var timeout net.Error
	if errors.Is(err, wire.ErrProtocol) || errors.Is(err, errStalled) || errors.As(err, &timeout) && timeout.Timeout() {
		d.log.Info("peer left", "host", l.host, "addr", l.conn.RemoteAddr(), "error", err)
		d.shun(l.host)
		return
	}
	d.log.Debug("peer gone", "host", l.host, "addr", l.conn.RemoteAddr(), "error", err)
	if err != nil && l.host != "" && !d.complete {
		d.silent = append(d.silent, l.host)
	}
}

// watch leaves parents that send nothing and closes connections that nobody needs.
func (d *Download) watch(now time.Time) {
	active := d.active()
	for _, l := range d.links {
		expecting := l.expecting()
		switch received := l.conn.Received(); {
		case received != l.received, expecting == 0:
			l.received, l.since = received, now
		case now.Sub(l.since) > d.e.cfg.Stall:
			l.close(fmt.Errorf("%w for %s", errStalled, d.e.cfg.Stall))
		}
		l.hasten(now)
		d.forgive(l, now)
		d.listen(l, now, active)
		if !l.helloed && now.Sub(l.born) > wire.HandshakeTimeout {
			l.close(fmt.Errorf("%w: no extension handshake", errStalled))
		}
		if l.sending > 0 || expecting > 0 || active {
			l.idleFrom = now
		}
		if d.complete && l.have.Len() > 0 && l.have.Full() && l.sending == 0 || now.Sub(l.idleFrom) > d.e.cfg.Idle {
			l.drain()
		}
	}
	for h, until := range d.avoid {
		if now.After(until) {
			delete(d.avoid, h)
		}
	}
}

// listen keeps a seed's promise to say something every second while it brings what is missing,
// and leaves a seed that does not keep its own: it hangs, and nothing that was asked of it
// would show that, because nothing was.
func (d *Download) listen(l *link, now time.Time, active bool) {
	if d.isSeed() && !d.complete && now.Sub(l.spoke) >= aliveEvery {
		l.spoke = now
		l.send(wire.Message{Type: wire.KeepAlive})
	}
	heard := l.conn.Heard()
	if heard != l.heard || l.heardAt.IsZero() {
		l.heard, l.heardAt = heard, now
	}
	promised := l.alive && l.seed && !(l.have.Len() > 0 && l.have.Full())
	if active && promised && now.Sub(l.heardAt) > d.e.cfg.Stall+aliveEvery {
		l.close(fmt.Errorf("%w and said nothing for %s, as a seed that has more to bring", errStalled, now.Sub(l.heardAt).Round(time.Second)))
	}
}

func (d *Download) noteComplete() {
	if d.complete || !d.pick.Have().Full() {
		return
	}
	d.complete = true
	d.progress.signal()
	if !d.ledger.cached {
		s := d.sources()
		d.tell(slog.LevelInfo, "content complete", "bytes", d.ledger.replica.Facts().Length,
			"peers", s.Peers, "seeds", s.Seeds, "origin", s.Origin, "inline", s.Inline, "links", len(d.links))
	}
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
	d.fail(&api.Failure{Status: http.StatusInsufficientStorage, Message: err.Error()})
}

// forOthers is what other hosts are told of a failure: that this host's disk is full is not
// the origin's word, and no reason why they could not have the content.
func (d *Download) forOthers(f *api.Failure) *api.Failure {
	if !d.ownFault {
		return f
	}
	h := d.e.cfg.Host
	return &api.Failure{Status: http.StatusServiceUnavailable, Message: fmt.Sprintf("host %s (%s), which was to bring it, cannot keep it: %s", h.Name, h.ID.Short(), f.Message)}
}

// tellFailure tells observer and neighbours why a seed gives up.
func (d *Download) tellFailure() {
	var f *api.Failure
	switch {
	case errors.As(d.err, &f):
		d.tell(slog.LevelWarn, "download failed", "error", d.err)
	case errors.Is(d.err, ErrRevoked) && !d.again:
		f = &api.Failure{Status: http.StatusBadGateway, Message: d.err.Error()}
	default:
		return
	}
	if !d.seeds() {
		return
	}
	f = d.forOthers(f)
	if d.err != ErrRevoked { // neighbours have heard of a revocation
		for _, l := range d.links {
			l.send(wire.Message{Type: wire.FailMessage, Failure: f})
		}
	}
	if d.e.cfg.Observer != nil {
		d.e.cfg.Observer.SeedFailed(d.id, f)
	}
}

// revoke drops what proved wrong, here and at every neighbour. The certificate of the key
// that signed it goes ahead, because a neighbour may not have met that key.
func (d *Download) revoke(list []piece.Revocation, cert []byte) {
	for _, r := range list {
		d.log.Warn("content revoked", "epoch", r.Epoch, "key", r.Key)
		d.e.noteRevoked(d.id, r, cert)
	}
	for _, l := range d.links {
		sendRevocations(l, list, cert)
	}
	d.discard()
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
func (d *Download) discard() {
	if err := d.e.cfg.Store.Remove(d.id); err != nil {
		d.log.Error("cannot drop a revoked task", "error", err)
	}
	d.fail(ErrRevoked)
}

// hurt ends a download that a word about it made worthless, or that the own disk fails.
func (d *Download) hurt(err error) {
	switch {
	case errors.Is(err, errContradiction):
		d.log.Warn("content dropped", "error", err)
		d.discard()
	case errors.Is(err, errSpace):
		d.failHere(err)
	}
}

func (d *Download) jitter(n time.Duration) time.Duration {
	return time.Duration(float64(n) * rand.Float64())
}
