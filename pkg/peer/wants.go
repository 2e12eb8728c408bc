package peer

import (
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// What callers want of a download: they leave offers, which the loop adopts, and open readers.

// urgentAfter is how long a reader waits for one piece before that piece goes before all others. After a shorter wait
// every reader in the cluster would request the same first pieces, which only the seed has: hosts must request
// different ones.
const urgentAfter = time.Second

// want is a range that a reader reads, or read a moment ago.
type want struct {
	reader     *Reader
	first, end piece.Index
	until      time.Time // when a range without reader is forgotten
	// at is the piece that the reader needs next, since when.
	at    piece.Index
	since time.Time
}

// wants is what callers want. The loop owns it.
type wants struct {
	// spec is the newest one that a caller came with.
	spec     task.Spec
	interest policy.Interest
	ranges   []want
	whole    int  // callers of [Engine.Fetch]
	yielding bool // the download gives up its space for another one
}

// everything reports whether the whole is wanted, with a reader or without.
func (w *wants) everything() bool { return w.interest == policy.Everything }

// adopt takes in an offer, and reports whether a caller wants the whole for the first time.
func (w *wants) adopt(spec task.Spec, whole bool) (more bool) {
	w.spec, w.yielding = spec, false
	switch {
	case whole:
		more = w.interest != policy.Everything
		w.interest = policy.Everything
	case w.interest == policy.Nothing:
		w.interest = policy.Ranges
	}
	return more
}

// readers is how many readers are open.
func (w *wants) readers() (n int) {
	for _, one := range w.ranges {
		if one.reader != nil {
			n++
		}
	}
	return n
}

// left notes that a reader was closed. Its range stays wanted for linger, in case the client returns,
// unless it was read to its end.
func (w *wants) left(now time.Time, r *Reader, linger time.Duration) {
	for i := range w.ranges {
		if one := &w.ranges[i]; one.reader == r {
			one.reader, one.until = nil, now.Add(linger)
			if r.pos.Load() >= r.end {
				one.until = now
			}
		}
	}
}

// forget drops ranges without a reader whose time is over, and reports whether there were any.
func (w *wants) forget(now time.Time) bool {
	kept := w.ranges[:0]
	for _, one := range w.ranges {
		if one.reader != nil || now.Before(one.until) {
			kept = append(kept, one)
		}
	}
	changed := len(kept) != len(w.ranges)
	w.ranges = kept
	return changed
}

// pieces is the set of wanted pieces, of n.
func (w *wants) pieces(n int) piece.Bitmap {
	wanted := piece.NewBitmap(n)
	if w.everything() || w.whole > 0 {
		wanted.SetAll()
	}
	for _, one := range w.ranges {
		for i := one.first; i < one.end; i++ {
			wanted.Set(i)
		}
	}
	return wanted
}

// offers is what callers left for the loop since it last looked. Safe for concurrent use.
type offers struct {
	// mu is held to leave or take an offer.
	mu    sync.Mutex
	spec  *task.Spec // the newest
	whole bool       // a caller wants everything
}

func (o *offers) add(spec task.Spec, whole bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.spec = &spec
	o.whole = o.whole || whole
}

func (o *offers) take() (spec *task.Spec, whole bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	spec, whole = o.spec, o.whole
	o.spec, o.whole = nil, false
	return spec, whole
}

func (o *offers) any() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.spec != nil
}

// offer leaves a caller's spec for the loop; whole says that everything is wanted, with a reader or
// without.
func (d *Download) offer(spec task.Spec, whole bool) {
	d.offers.add(spec, whole)
	d.nudge()
}

// takeOffer adopts what callers want and acts on it.
func (d *Download) takeOffer(now time.Time) {
	more := d.adoptOffer(now)
	d.notePassing()
	if !more || d.refuseToPass() {
		return
	}
	d.policy.Wanted(now)
	d.updateWanted(now)
	d.helloAgain()
}

// adoptOffer adopts what callers want, and reports whether that makes a seed of the download. It accesses fields only,
// so that the caller may hold the engine's mu.
func (d *Download) adoptOffer(now time.Time) (seed bool) {
	spec, whole := d.offers.take()
	if spec == nil {
		return false
	}
	if d.times.opened.IsZero() {
		d.times.opened = now
	}
	if whole {
		d.observed = observedNothing // the observer gets the result of every call
	}
	return d.wants.adopt(*spec, whole)
}

func (d *Download) addReader(now time.Time, r *Reader) {
	layout := d.proof.replica.Metadata().Layout()
	first, end := layout.Span(r.off, r.end-r.off)
	d.wants.ranges = append(d.wants.ranges, want{reader: r, first: first, end: end})
	d.remoteWindows.fresh.Store(true)
	d.adoptMetadata(now)
	d.updateWanted(now)
}

func (d *Download) updateWanted(now time.Time) {
	if d.pick == nil {
		return
	}
	wanted := d.wants.pieces(d.pick.Have().Len())
	if n := wanted.Len(); d.policy.AtOrigin() && n > 0 {
		// The origin gives the last piece only when all others are here, and those that a
		// neighbour has come from the neighbour.
		if last := piece.Index(n - 1); wanted.Has(last) && !d.pick.Offered(last) {
			wanted.SetAll()
		}
	}
	d.policy.WantsChanged()
	d.pick.Want(wanted)
	d.pass()
	d.feedOrigin()
	d.progress.signal()
	d.times.lastUse = now
}

// feedOrigin gives the origin's goroutine the pieces that only the origin can bring: those that are wanted
// and that no neighbour has. The last piece comes only after the check of the whole object, so a reader
// that wants it wants everything.
func (d *Download) feedOrigin() {
	needed := d.pick.Wanted().Clone()
	if needed.Count() == 0 && d.held() {
		// A caller that has the task open without a reader will open one in a moment: that would
		// need another request.
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
	d.origin.needed.Store(&needed)
	if d.parent != nil {
		d.parent.ahead.changed.signal() // a stream that waits for further GETs looks again
	}
}
