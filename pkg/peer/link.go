package peer

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"slices"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/peer/picker"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/source"
)

// writeTimeout bounds how long one block may hang in a socket: a reader that takes less
// than a block in this time is worse than none.
const writeTimeout = 20 * time.Second

// havesMax bounds how many haves become one event.
const havesMax = 1024

// drainTimeout is the same once the download is over, so that nobody waits for the last
// words to a dead peer.
const drainTimeout = time.Second

// link is one connection in one download: a goroutine that reads and one that writes. It
// decides nothing; what it is asked for and what it is told goes to the download's loop.
type link struct {
	d         *Download
	n         picker.Neighbour
	conn      *wire.Conn
	initiated bool // by this side

	// The loop owns these.
	host     host.ID // empty until its Hello
	born     time.Time
	helloed  bool   // its Hello came, so it can be told more than BEP 3 knows
	seed     bool   // it chooses the pieces it sends
	gaveUp   bool   // it said as a seed that its origin refused the content
	zone     string // its own, and whether it brings pieces there; from its Hello
	gateway  bool
	bits     []bool // its bitfield, until the facts are known
	hasAll   bool
	haves    []piece.Index
	have     piece.Bitmap         // what it has, once the facts are known
	told     piece.Bitmap         // what we told it we have
	runs     map[int]bool         // numbers of the runs it knows
	keys     map[piece.KeyID]bool // keys whose certificate it knows
	knowsAll bool                 // it needs no digests
	strikes  int                  // bad pieces it sent
	rejects  []reject             // what it rejected lately, the oldest first
	alive    bool                 // as a seed it says something every second until it has everything
	heard    int64                // bytes that had come from it
	heardAt  time.Time            // when there were more than before
	spoke    time.Time            // when it was last told that we are alive
	idleFrom time.Time
	// toldMoved and heardMoved are what either side was told last of a body of unknown length.
	toldMoved, heardMoved int64
	sending               int // jobs that have not ended

	// mu is held to hand messages, jobs and requests from one goroutine to another.
	mu      sync.Mutex
	out     []wire.Message
	spare   []wire.Message // what out was before
	jobs    []*job
	pending []*inbound // in the order asked; the loop adds, the reading goroutine removes
	closed  bool
	// draining ends the connection once everything queued is out; mute says that nothing
	// goes out any more, so that a job which comes now must not wait for its turn.
	draining, mute bool
	err            error
	wake           chan struct{}
	blocks         blocks
	// received and since tell when the last byte of a piece came; the loop owns them.
	received int64
	since    time.Time
}

// reject is a piece that a neighbour said it has and did not give.
type reject struct {
	index piece.Index
	at    time.Time
}

// job is a request that is being served. It holds one upload slot.
type job struct {
	link             *link
	index            piece.Index
	begin, next, end int64
	any              bool // the asker left the choice to us
	corked           bool // the writing goroutine's: small packets wait for the rest
	rank             int  // among those that wait for their turn: the share that the asker has
	lane             *lane
	// The rest is guarded by the link's mu. A job waits for its turn to send; one that was
	// dropped after it started is cut at its next block.
	queued, turn, yielded, started, dropped, over bool
	since                                         time.Time // when its turn came
}

// turnMax is how long a job keeps others from sending.
const turnMax = 500 * time.Millisecond

// inbound is a request of ours that is being answered. Every request has one end: its last
// block, a reject or a busy. A request that was cancelled waits for its end, too: else its
// late blocks would be taken for the answer to an any-request.
type inbound struct {
	// The link's mu guards these.
	index   piece.Index
	any     bool // not bound to a piece yet
	dropped bool // cancelled: its bytes are read and thrown away

	told bool // the loop knows index; it owns this

	// The reading goroutine owns these.
	buf   []byte
	got   int64
	begun time.Time // when its first block came
}

// blocks hashes a piece while its blocks come, each as long as the processor's cache holds it.
// The blocks of a piece come one after the other, so one hash does for a connection. The
// reading goroutine owns it.
type blocks struct {
	hash hash.Hash
	of   *inbound // nil between two pieces
}

// add takes in a block, if all before it were of the same piece.
func (b *blocks) add(in *inbound, block []byte) {
	switch {
	case in.got == 0 && b.hash == nil:
		b.hash = sha256.New()
		b.of = in
	case in.got == 0:
		b.hash.Reset()
		b.of = in
	case b.of != in:
		return
	}
	b.hash.Write(block)
}

// sum is the digest of a piece of which all blocks have come.
func (b *blocks) sum(in *inbound) (d piece.Digest) {
	if b.of != in {
		return piece.Sum(in.buf) // blocks of several pieces came by turns
	}
	b.of = nil
	b.hash.Sum(d[:0])
	return d
}

func newLink(d *Download, c *wire.Conn, initiated bool) *link {
	return &link{d: d, conn: c, initiated: initiated, runs: make(map[int]bool), keys: make(map[piece.KeyID]bool), wake: make(chan struct{}, 1)}
}

// queueMax bounds how many messages wait for a peer that does not read: more haves than
// the largest content that is likely has pieces.
const queueMax = 1 << 17

// send queues messages; it never blocks.
func (l *link) send(ms ...wire.Message) {
	l.sendAlong(ms...)
	l.poke()
}

// sendAlong queues messages that leave with the next one that is sent.
func (l *link) sendAlong(ms ...wire.Message) {
	l.mu.Lock()
	full := len(l.out)+len(ms) > queueMax
	if !full && !l.mute {
		l.out = append(l.out, ms...)
	}
	l.mu.Unlock()
	if full {
		l.close(fmt.Errorf("%w: it reads nothing", errStalled))
	}
}

// serve queues a job behind the messages queued before it, or reports that the connection
// is over: then the job is still the caller's to end.
func (l *link) serve(j *job) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mute {
		return false
	}
	l.jobs = append(l.jobs, j)
	l.poke()
	return true
}

func (l *link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// hurry drains a connection whose download is over: no more pieces, and a last word only
// to a peer that listens.
func (l *link) hurry() {
	l.mu.Lock()
	l.draining = true
	for _, j := range l.jobs {
		j.dropped = true
	}
	l.mu.Unlock()
	l.conn.SetWriteDeadline(time.Now().Add(drainTimeout))
	l.poke()
}

// expect notes a request before it is sent.
func (l *link) expect(in *inbound) {
	in.told = !in.any
	l.mu.Lock()
	l.pending = append(l.pending, in)
	l.mu.Unlock()
}

// drop cancels the request for piece i, if the loop knows of one: its bytes, should they
// come, are thrown away.
func (l *link) drop(i piece.Index) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, in := range l.pending {
		if in.told && !in.dropped && in.index == i {
			in.dropped = true
			return true
		}
	}
	return false
}

// asked is how many requests for piece i wait for it, as far as the loop knows.
func (l *link) asked(i piece.Index) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, in := range l.pending {
		if in.told && !in.dropped && in.index == i {
			n++
		}
	}
	return n
}

// settle removes the oldest request that matches: its end has come.
func (l *link) settle(match func(*inbound) bool) *inbound {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := slices.IndexFunc(l.pending, match)
	if at < 0 {
		return nil
	}
	in := l.pending[at]
	l.pending = slices.Delete(l.pending, at, at+1)
	l.d.e.buffers.put(in.buf)
	in.buf = nil
	return in
}

// expecting is how many requests wait for their pieces.
func (l *link) expecting() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, in := range l.pending {
		if !in.dropped {
			n++
		}
	}
	return n
}

// close ends both goroutines; the loop hears of it from the reading one.
func (l *link) close(err error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	if l.closed = true; !l.mute {
		l.err = err
	}
	l.mu.Unlock()
	l.conn.Close()
	l.poke()
}

// hangUp ends the writing half. The reading one goes on for a moment, because the other
// side's last words, why it failed or what it revokes, may be on their way.
func (l *link) hangUp(err error) {
	l.mu.Lock()
	if !l.closed {
		l.err = err
	}
	l.mute = true
	jobs := l.jobs
	l.jobs, l.out = nil, nil
	l.mu.Unlock()
	for _, j := range jobs {
		l.end(j, false)
	}
	l.conn.HangUp(drainTimeout)
}

// run reads until the connection ends, and waits for the writing goroutine.
func (l *link) run() {
	var wg sync.WaitGroup
	wg.Go(l.write)
	err := l.read()
	l.close(err)
	wg.Wait()
	l.mu.Lock()
	for _, in := range l.pending {
		l.d.e.buffers.put(in.buf)
		in.buf = nil
	}
	l.mu.Unlock()
	l.d.notify(connClosed{l, l.err})
}

func (l *link) read() (err error) {
	defer source.Rescue(&err, "reading what a peer says of task "+l.d.id.Short())
	var haves []piece.Index
	for {
		m, err := l.conn.Next()
		if err != nil {
			return err
		}
		switch m.Type {
		case wire.Skipped:
		case wire.Have:
			// One event for all that came together.
			if haves = append(haves, m.Index); len(haves) < havesMax && l.conn.HaveNext() {
				break
			}
			batch := haves
			haves = nil
			l.d.notify(havesReceived{l, batch})
		case wire.Piece:
			if err := l.receive(m); err != nil {
				return err
			}
		case wire.DigestMessage:
			// Verified here, not in the loop: the pieces they speak of may be next.
			numbers, err := l.d.ledger.add(m.Digests.Runs, m.Digests.Certificates)
			l.d.notify(digestsReceived{l, numbers, m.Digests.Whole})
			var stale *staleError
			switch {
			case errors.As(err, &stale):
				l.d.notify(digestsStale{l, stale.epoch})
			case err != nil:
				l.d.notify(digestsFailed{err})
				return err
			}
		case wire.Reject:
			in := l.settle(func(in *inbound) bool { return !in.any && in.index == m.Index })
			l.d.notify(requestRejected{l, in})
		case wire.BusyMessage:
			isAny := m.Busy.Index == wire.BusyAny
			in := l.settle(func(in *inbound) bool { return in.any == isAny && (isAny || in.index == m.Busy.Index) })
			l.d.notify(requestBusy{l, in, m.Busy.Delay})
		case wire.Suggest:
			if in := l.bindNext(m.Index); in != nil {
				l.d.notify(requestBound{l, in})
			}
		default:
			l.d.notify(messageReceived{l, m})
		}
	}
}

// receive takes one block. A piece is complete when its last block came: it is hashed and
// stored here, so that the loop never waits for a disk.
func (l *link) receive(m wire.Message) error {
	in, dropped := l.bind(m)
	if in == nil || dropped {
		l.d.passBy(m.Length) // Next skips the payload
	}
	if in == nil {
		return nil // never asked for
	}
	size := l.d.ledger.replica.Metadata().Layout().Size(in.index)
	if m.Begin != in.got || m.Begin+m.Length > size {
		return fmt.Errorf("%w: block [%d, %d) of piece %d where %d was due", wire.ErrProtocol, m.Begin, m.Begin+m.Length, in.index, in.got)
	}
	if in.got == 0 {
		in.begun = time.Now()
	}
	if !dropped {
		if in.buf == nil {
			in.buf = l.d.e.buffers.get(size)
		}
		block := in.buf[in.got : in.got+m.Length]
		if err := l.d.takeIn(l.conn, block); err != nil {
			return err
		}
		l.blocks.add(in, block)
	}
	if dropped {
		l.d.e.stats.duplicate.Add(m.Length)
	}
	if in.got += m.Length; in.got < size {
		return nil
	}
	l.mu.Lock()
	l.pending = slices.DeleteFunc(l.pending, func(o *inbound) bool { return o == in })
	// Cancelled in its first block or later: a gap may be in the buffer.
	dropped = dropped || in.dropped
	l.mu.Unlock()
	var err error
	if !dropped {
		err = l.d.store(in.index, in.buf, l.blocks.sum(in))
	}
	l.d.e.buffers.put(in.buf)
	in.buf = nil
	if !dropped {
		l.d.notify(requestDone{l, in, err})
	}
	return nil
}

// bind finds the request that a block answers, and whether it was cancelled. The first
// block of a piece that was not asked for by name answers the oldest any-request.
func (l *link) bind(m wire.Message) (in *inbound, dropped bool) {
	if !l.d.ledger.hasMetadata() || int(m.Index) >= l.d.ledger.replica.Metadata().Layout().Count() {
		return nil, false
	}
	l.mu.Lock()
	for _, in := range l.pending {
		if !in.any && in.index == m.Index {
			dropped = in.dropped
			l.mu.Unlock()
			return in, dropped
		}
	}
	at := slices.IndexFunc(l.pending, func(in *inbound) bool { return in.any })
	if at < 0 || m.Begin != 0 {
		l.mu.Unlock()
		return nil, false
	}
	in = l.pending[at]
	in.any, in.index = false, m.Index
	l.mu.Unlock()
	l.d.notify(requestBound{l, in})
	return in, false
}

// bindNext turns the oldest any-request into one for piece i: a seed says what it will
// send. It returns nil where there is none, or no such piece.
func (l *link) bindNext(i piece.Index) *inbound {
	if !l.d.ledger.hasMetadata() || i < 0 || int(i) >= l.d.ledger.replica.Metadata().Layout().Count() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, in := range l.pending {
		if in.any {
			in.any, in.index = false, i
			return in
		}
	}
	return nil
}

func (l *link) write() {
	for {
		<-l.wake
		for {
			out, j, ok := l.take()
			if !ok {
				l.hangUp(nil)
				return
			}
			if len(out) == 0 && j == nil {
				l.reuse(out)
				break
			}
			if err := l.writeSome(out, j); err != nil {
				l.hangUp(err)
				return
			}
			l.reuse(out)
		}
	}
}

// reuse keeps the memory of messages that are written for the next ones.
func (l *link) reuse(out []wire.Message) {
	const most = 64
	if cap(out) == 0 || cap(out) > most {
		return
	}
	clear(out)
	l.mu.Lock()
	l.spare = out
	l.mu.Unlock()
}

// take returns what is to be written next: all messages, and then one block of one job.
func (l *link) take() (out []wire.Message, j *job, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, nil, false
	}
	// The slice that was written before is used again.
	out, l.out = l.out, l.spare[:0]
	l.spare = nil
	waiting := len(l.jobs) > 0
	if waiting {
		first := l.jobs[0]
		if !first.queued {
			first.queued = true
			first.since = time.Now()
			first.turn = first.lane.line.Take(l.d.id, first.rank, first, func() { l.granted(first) })
		}
		if first.turn || first.dropped {
			first.started = true
			j = first
		}
	}
	return out, j, !l.draining || waiting || len(out) > 0
}

// granted tells that it is a job's turn to send.
func (l *link) granted(j *job) {
	l.mu.Lock()
	j.turn, j.since = true, time.Now()
	over := j.over
	j.yielded = over
	l.mu.Unlock()
	if over {
		j.lane.line.Give()
		return
	}
	l.poke()
}

// drain closes the connection politely: what is queued goes out first.
func (l *link) drain() {
	l.mu.Lock()
	l.draining = true
	l.mu.Unlock()
	l.poke()
}

func (l *link) writeSome(out []wire.Message, j *job) error {
	l.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if l.d.ended() {
		l.conn.SetWriteDeadline(time.Now().Add(drainTimeout))
	}
	for _, m := range out {
		if err := l.conn.Send(m); err != nil {
			return err
		}
	}
	if j == nil {
		return l.conn.Flush()
	}
	layout := l.d.ledger.replica.Metadata().Layout()
	if l.isDropped(j) {
		return l.finish(j, false)
	}
	if len(out) > 0 && l.d.e.rates.upload.Rate() > 0 {
		if err := l.conn.Flush(); err != nil {
			return err
		}
	}
	n := l.d.giveOut(j.end - j.next)
	if l.isDropped(j) {
		return l.finish(j, false)
	}
	if !j.corked && n > 4<<10 && n == min(wire.BlockSize, j.end-j.begin) {
		j.corked = true
		l.conn.Cork(true)
	}
	err := l.conn.SendBlock(j.index, j.next, l.d.ledger.replica, layout.Offset(j.index)+j.next, n)
	if err != nil {
		if errors.Is(err, piece.ErrMissing) {
			l.d.notify(pieceLost{j.index})
		}
		return fmt.Errorf("sending piece %d: %w", j.index, err)
	}
	j.next += n
	l.d.e.stats.sent.Add(n)
	if j.next < j.end {
		return nil
	}
	return l.finish(j, true)
}

func (l *link) isDropped(j *job) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return j.dropped
}

func (l *link) finish(j *job, sent bool) error {
	var err error
	if !sent {
		err = l.conn.Send(wire.Message{Type: wire.Reject, Index: j.index, Begin: j.begin, Length: j.end - j.begin})
	}
	err = errors.Join(err, l.conn.Flush())
	if j.corked {
		l.conn.Cork(false)
	}
	l.mu.Lock()
	l.jobs = slices.DeleteFunc(l.jobs, func(o *job) bool { return o == j })
	l.mu.Unlock()
	l.end(j, sent && err == nil)
	return err
}

// end gives a job's slot back. The loop itself must not call it: it would wait for itself.
func (l *link) end(j *job, sent bool) {
	l.yield(j, true)
	j.lane.slots.Release(l.d.id)
	l.d.notify(uploadEnded{l, j, sent})
}

// yield gives a job's turn to send to whoever waits for one.
func (l *link) yield(j *job, over bool) {
	l.mu.Lock()
	j.over = j.over || over
	turn := j.turn && !j.yielded
	j.yielded = j.turn
	l.mu.Unlock()
	if turn {
		j.lane.line.Give()
	}
}

// hasten takes the turn from a receiver that is slow: it goes on beside the others, and
// they do not wait for it.
func (l *link) hasten(now time.Time) {
	l.mu.Lock()
	var slow *job
	if len(l.jobs) > 0 && l.jobs[0].turn && now.Sub(l.jobs[0].since) > turnMax {
		slow = l.jobs[0]
	}
	l.mu.Unlock()
	if slow != nil {
		l.yield(slow, false)
	}
}

// cancel cuts a job at its next block. One that was not begun it returns: it is out of
// the queue, and the caller's to end.
func (l *link) cancel(index piece.Index, begin int64) *job {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := slices.IndexFunc(l.jobs, func(j *job) bool { return j.index == index && j.begin == begin })
	if at < 0 {
		return nil
	}
	j := l.jobs[at]
	if j.started {
		j.dropped = true
		return nil
	}
	l.jobs = slices.Delete(l.jobs, at, at+1)
	return j
}

// displaced takes out a job that lost its place in the line; it is the caller's to end, unless
// it has ended, or is about to because its download is over.
func (l *link) displaced(j *job) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := slices.Index(l.jobs, j)
	if at < 0 || j.dropped {
		return false
	}
	l.jobs = slices.Delete(l.jobs, at, at+1)
	return true
}

var errSelf = errors.New("connected to itself")
