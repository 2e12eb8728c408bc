package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// A window of a blob far ahead of the seed's stream comes by a further GET: policy.Ahead decides which. The
// stream leaves its pieces out, so that each byte is fetched once. docs/decisions/0010-windows-ahead.md tells why.

const (
	// windowLife is how long another host's window counts: the host announces it again while a reader waits.
	windowLife = 3 * time.Second
	// windowsKept bounds the windows of other hosts that a seed remembers for one task.
	windowsKept = 256
	// aheadFailures is how many further GETs of one blob may fail before its stream brings everything.
	aheadFailures = 2
	// aheadRunning bounds the further GETs of a host.
	aheadRunning = 32
	// tailsMax bounds the last pieces that a host keeps in memory because they came ahead, in bytes.
	tailsMax = 64 << 20
	// tailMost is how many bytes of a last piece one reply of an owner holds.
	tailMost = 1 << 20
	// segmentsMax is how many parts of one last piece a host keeps.
	segmentsMax = 16
	// windowNear is how long a reader waits for the piece behind one that is here, or that a neighbour has, before this
	// host announces its window to the owner: a reader that follows a stream waits for each piece.
	windowNear = 500 * time.Millisecond
	// paceMin is how long a body must have come for its rate to be known.
	paceMin = 200 * time.Millisecond
)

// errWait says that all that is missing is on its way by further GETs.
var errWait = errors.New("the rest is on its way")

// fetches are the further GETs of an origin. Safe for concurrent use.
type fetches struct {
	// mu is held to look up or change a span, never while bytes are read.
	mu     sync.Mutex
	spans  []*policy.Span // each from the piece that its GET brings next
	failed int
	whole  bool // the origin sends the whole whatever is asked
	closed bool // the stream has ended
	last   []byte
	// at is the piece that the stream brings next.
	at      piece.Index
	pace    pace
	changed broadcast // a further GET has ended, or other pieces are needed
	wg      sync.WaitGroup
}

// pace measures how fast a body comes. Safe for concurrent use.
type pace struct {
	begun atomic.Int64 // in nanoseconds since 1970, when the body was opened
	bytes atomic.Int64
}

func (p *pace) begin() {
	p.bytes.Store(0)
	p.begun.Store(time.Now().UnixNano())
}

// rate is in bytes per second, 0 while it is unknown.
func (p *pace) rate(now time.Time) float64 {
	begun, bytes := p.begun.Load(), p.bytes.Load()
	took := time.Duration(now.UnixNano() - begun)
	if begun == 0 || bytes == 0 || took < paceMin {
		return 0
	}
	return float64(bytes) / took.Seconds()
}

// paced counts the bytes of the stream's body.
func (o *originParent) paced(r io.Reader) io.Reader {
	o.ahead.pace.begin()
	return moving{r, &o.ahead.pace.bytes}
}

// claimed returns the spans that further GETs bring now.
func (f *fetches) claimed() []policy.Span {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]policy.Span, len(f.spans))
	for i, s := range f.spans {
		out[i] = *s
	}
	return out
}

func claims(spans []policy.Span, i piece.Index) bool {
	return slices.ContainsFunc(spans, func(s policy.Span) bool { return s.First <= i && i < s.End })
}

// stream notes which piece the stream brings next.
func (f *fetches) stream(i piece.Index) {
	f.mu.Lock()
	f.at = i
	f.mu.Unlock()
}

// keepLast keeps the last piece in memory until the whole is checked.
func (f *fetches) keepLast(data []byte) {
	f.mu.Lock()
	f.last = slices.Clone(data)
	f.mu.Unlock()
}

func (f *fetches) lastPiece() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// noteWhole notes that the origin ignores ranges: another request would cost it the whole.
func (f *fetches) noteWhole() {
	f.mu.Lock()
	f.failed, f.whole = aheadFailures, true
	f.mu.Unlock()
}

func (f *fetches) sendsWhole() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.whole
}

// close waits for the further GETs, whose context has ended. None begins after it.
func (f *fetches) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.wg.Wait()
}

// begin starts a further GET of s, unless the stream has ended.
func (o *originParent) begin(ctx context.Context, s policy.Span) {
	f := &o.ahead
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	for _, other := range f.spans {
		if other.First < s.First && s.First < other.End {
			other.End = s.First
		}
	}
	span := &s
	f.spans = append(f.spans, span)
	o.d.e.ahead.Add(1)
	f.wg.Go(func() {
		err := o.fetchSafely(ctx, span)
		f.mu.Lock()
		f.spans = slices.DeleteFunc(f.spans, func(other *policy.Span) bool { return other == span })
		if err != nil {
			f.failed++
		}
		f.mu.Unlock()
		o.d.e.ahead.Add(-1)
		if err != nil && ctx.Err() == nil {
			o.d.log.Debug("further request to the origin failed", "error", err)
		}
		f.changed.signal()
		o.d.nudge()
	})
}

func (o *originParent) fetchSafely(ctx context.Context, s *policy.Span) (err error) {
	defer source.Rescue(&err, "bringing a part of task "+o.d.id.Short()+" from its origin")
	return o.fetch(ctx, s)
}

// errNoRanges means that an origin sends the whole whatever is asked.
var errNoRanges = errors.New("the origin ignores ranges")

// fetch brings the pieces of a span. The span may become shorter meanwhile.
func (o *originParent) fetch(ctx context.Context, s *policy.Span) error {
	f := &o.ahead
	replica := o.d.proof.replica
	layout := replica.Metadata().Layout()
	last := piece.Index(layout.Count()) - 1
	f.mu.Lock()
	span := *s
	f.mu.Unlock()
	spec := o.spec
	spec.Length = layout.Length
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	end := min(layout.Offset(span.End), layout.Length)
	resp, err := source.OpenPart(ctx, o.d.e.cfg.Origin, spec, layout.Offset(span.First), end)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.Skips {
		f.noteWhole()
		return errNoRanges
	}
	if resp.Length >= 0 && resp.Length != layout.Length {
		return &source.LengthError{Want: layout.Length, Got: resp.Length}
	}
	body := o.d.fromOrigin(ctx, resp.Body)
	buf := o.d.e.buffers.get(min(layout.PieceSize, layout.Length))
	defer o.d.e.buffers.put(buf)
	for i := span.First; ; i++ {
		f.mu.Lock()
		s.First = i
		over := i >= s.End
		f.mu.Unlock()
		if over || i < last && replica.Has(i) {
			return nil
		}
		data := buf[:layout.Size(i)]
		if _, err := io.ReadFull(body, data); err != nil {
			return fmt.Errorf("reading piece %d of task %s from its origin: %w", i, o.d.id, err)
		}
		if i == last {
			f.keepLast(data)
			o.d.tail.put(layout.Offset(last), f.lastPiece())
			o.d.progress.signal()
			return nil
		}
		if err := o.keep(i, data); err != nil {
			return err
		}
	}
}

// steerAhead begins the further GETs that the policy decides on.
func (d *Download) steerAhead(now time.Time) {
	o := d.parent
	if _, named := d.id.Digest(); o == nil || d.pick == nil || d.complete() || !named {
		return
	}
	windows := d.windows(now)
	if len(windows) == 0 {
		return
	}
	layout := d.proof.replica.Metadata().Layout()
	last := piece.Index(layout.Count()) - 1
	full := false // the host keeps as many last pieces as it may
	for d.e.ahead.Load() < aheadRunning {
		f := &o.ahead
		v := policy.AheadView{PieceSize: layout.PieceSize, Have: d.proof.replica.Have(), Rate: f.pace.rate(now),
			Fetches: f.claimed(), Windows: windows}
		f.mu.Lock()
		v.Stream, v.Last = f.at, f.last != nil || full
		failed := f.failed
		f.mu.Unlock()
		s, ok := policy.Ahead(v)
		if !ok || failed >= aheadFailures {
			return
		}
		if s.First == last && !d.tail.reserve(&d.e.tails, layout.Size(last)) {
			full = true
			continue
		}
		d.log.Debug("asking the origin ahead of the stream", "first", s.First, "end", s.End)
		o.begin(o.ctx, s)
		if f.closedNow() {
			return
		}
	}
}

func (f *fetches) closedNow() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

// windows are those for which readers wait, here and on other hosts, and that no neighbour has.
func (d *Download) windows(now time.Time) (list []policy.Window) {
	layout := d.proof.replica.Metadata().Layout()
	add := func(w policy.Window) {
		i := d.pick.Have().NextMissing(w.First)
		same := func(o policy.Window) bool { return o.Span == w.Span && o.Tail == w.Tail && o.Begins == w.Begins }
		if i < w.End && !d.pick.Offered(i) && !slices.ContainsFunc(list, same) {
			list = append(list, w)
		}
	}
	for _, w := range d.wants.ranges {
		if w.reader != nil && w.first < w.end {
			pos := w.reader.pos.Load()
			first := max(w.first, min(layout.At(pos), w.end-1))
			add(policy.Window{Span: policy.Span{First: first, End: w.end}, Tail: w.reader.early,
				Begins: pos == w.reader.off, Waited: now.Sub(w.since)})
		}
	}
	for _, w := range d.remoteWindows.take(now) {
		if layout.Within(w.Offset, w.Length) != nil || w.Length == 0 {
			continue
		}
		first, end := layout.Span(w.Offset, w.Length)
		add(policy.Window{Span: policy.Span{First: first, End: end}, Tail: w.Tail, Begins: w.Begins,
			Waited: now.Sub(w.since)})
	}
	return list
}

// remoteWindows are the windows for which readers on other hosts wait. Safe for concurrent use.
type remoteWindows struct {
	// fresh says that a window is new since the loop last looked.
	fresh atomic.Bool

	// mu is held to add or take windows.
	mu   sync.Mutex
	list []remoteWindow
}

type remoteWindow struct {
	api.Window
	since, until time.Time
}

// put takes in windows.
func (r *remoteWindows) put(now time.Time, windows []api.Window) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range windows {
		at := slices.IndexFunc(r.list, func(o remoteWindow) bool { return o.Window == w })
		switch {
		case at >= 0:
			r.list[at].until = now.Add(windowLife)
		case len(r.list) < windowsKept:
			r.list = append(r.list, remoteWindow{w, now, now.Add(windowLife)})
			r.fresh.Store(true)
		}
	}
}

// take returns the windows that still count.
func (r *remoteWindows) take(now time.Time) []remoteWindow {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = slices.DeleteFunc(r.list, func(w remoteWindow) bool { return now.After(w.until) })
	return slices.Clone(r.list)
}

// Ahead notes for which windows of a task readers on another host wait. It returns the part of its last piece that came
// ahead and that one of them asks for, or nil. It never blocks, so that an owner may call it while it answers.
func (e *Engine) Ahead(id task.ID, windows []api.Window) *api.Tail {
	e.mu.Lock()
	d := e.downloads[id]
	e.mu.Unlock()
	if d == nil {
		return nil
	}
	d.remoteWindows.put(time.Now(), windows)
	d.nudge()
	for _, w := range windows {
		if b := d.tail.get(w.Offset, min(w.Length, tailMost)); w.Tail && len(b) > 0 {
			return e.signTail(id, w.Offset, b)
		}
	}
	return nil
}

// awaitedWindows are those for which readers here wait and that no neighbour has, for the owner.
func (d *Download) awaitedWindows() (list []api.Window) {
	if d.pick == nil || d.complete() || d.policy.AtOrigin() {
		return nil
	}
	layout := d.proof.replica.Metadata().Layout()
	last := piece.Index(layout.Count()) - 1
	for _, w := range d.wants.ranges {
		if w.reader == nil || w.reader.off == 0 || len(list) == api.WindowsMax {
			continue // a stream comes from the beginning by itself
		}
		pos := w.reader.pos.Load()
		if pos >= w.reader.end {
			continue
		}
		i := d.pick.Have().NextMissing(layout.At(pos))
		if i >= w.end || d.pick.Offered(i) || d.pick.InFlight(i) {
			continue
		}
		if i > 0 && time.Since(w.since) < windowNear && (d.pick.Have().Has(i-1) || d.pick.Offered(i-1)) {
			continue
		}
		pos = max(pos, layout.Offset(i))
		tail := w.reader.early && i == last
		if tail && d.tail.get(pos, 1) != nil {
			continue
		}
		one := api.Window{Offset: pos, Length: w.reader.end - pos, Tail: w.reader.early,
			Begins: w.reader.pos.Load() == w.reader.off}
		if !slices.Contains(list, one) {
			list = append(list, one)
		}
	}
	return list
}

// signTail vouches for a part of a last piece.
func (e *Engine) signTail(id task.ID, off int64, data []byte) *api.Tail {
	f := piece.MetadataFor(int64(len(data)), "")
	layout := f.Layout()
	r := piece.DigestRun{Metadata: f, Epoch: 1, Final: true}
	for i := range piece.Index(layout.Count()) {
		r.Digests = append(r.Digests, piece.Sum(data[layout.Offset(i):][:layout.Size(i)]))
	}
	e.cfg.Signer.SignRun(api.TailTask(id, off), &r)
	proof := api.NewProof(f, []piece.DigestRun{r}, [][]byte{e.cfg.Signer.Certificate()})
	return &api.Tail{Offset: off, Data: data, Proof: proof}
}

// checkTail fails if no coordinator signed the bytes, or if they are not a part of the last piece: only the task's own
// runs prove other pieces. The loop must not call it, because it checks signatures.
func (d *Download) checkTail(t *api.Tail) error {
	layout := d.proof.replica.Metadata().Layout()
	last := piece.Index(layout.Count()) - 1
	if layout.Within(t.Offset, int64(len(t.Data))) != nil || t.Offset < layout.Offset(last) || t.Proof == nil {
		return fmt.Errorf("%d bytes at %d are not of the last piece, or come without proof", len(t.Data), t.Offset)
	}
	if err := t.Proof.Check(); err != nil {
		return err
	}
	r, err := t.Proof.Run()
	if err != nil {
		return err
	}
	for _, der := range t.Proof.Certificates {
		if _, err := d.e.cfg.Verifier.AddCertificate(der); err != nil {
			return fmt.Errorf("certificate of a coordinator: %w", err)
		}
	}
	if err := d.e.cfg.Verifier.VerifyRun(api.TailTask(d.id, t.Offset), r); err != nil {
		return err
	}
	part := r.Metadata.Layout()
	if part.Length != int64(len(t.Data)) {
		return fmt.Errorf("%d bytes under a proof of %d", len(t.Data), part.Length)
	}
	for i, want := range r.Digests {
		i := piece.Index(i)
		if got := piece.Sum(t.Data[part.Offset(i):][:part.Size(i)]); got != want {
			return &piece.DigestError{Index: i, Want: want, Got: got}
		}
	}
	return nil
}

// tail holds parts of a last piece that came before the whole was checked. Only readers that compare the bytes with
// digests of their own get them, and no store holds them. Safe for concurrent use.
type tail struct {
	mu       sync.Mutex
	segments []segment
	reserved int64
}

type segment struct {
	begin int64
	data  []byte
}

// put keeps a part that fits into what is reserved, in place of the oldest ones.
func (t *tail) put(begin int64, data []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := int64(len(data))
	for _, s := range t.segments {
		n += int64(len(s.data))
	}
	for len(t.segments) > 0 && (n > t.reserved || len(t.segments) == segmentsMax) {
		n -= int64(len(t.segments[0].data))
		t.segments = t.segments[1:]
	}
	if n <= t.reserved {
		t.segments = append(t.segments, segment{begin, data})
	}
}

// get returns at most n bytes from an offset on, none if they did not come.
func (t *tail) get(off, n int64) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.segments {
		if n > 0 && off >= s.begin && off < s.begin+int64(len(s.data)) {
			b := s.data[off-s.begin:]
			return b[:min(int64(len(b)), n)]
		}
	}
	return nil
}

// reserve takes n bytes of the host's memory for last pieces, until free.
func (t *tail) reserve(all *atomic.Int64, n int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reserved > 0 {
		return true
	}
	if all.Add(n) > tailsMax {
		all.Add(-n)
		return false
	}
	t.reserved = n
	return true
}

func (t *tail) free(all *atomic.Int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all.Add(-t.reserved)
	t.reserved, t.segments = 0, nil
}
