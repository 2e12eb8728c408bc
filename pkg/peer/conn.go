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

// writeTimeout bounds how long one block may wait in a socket: a peer that reads less than a block in this time only
// keeps others from a slot.
const writeTimeout = 20 * time.Second

// havesMax bounds how many haves become one event.
const havesMax = 1024

// drainTimeout is the same once the download is over, so that its end does not wait for a peer that
// reads nothing.
const drainTimeout = time.Second

// conn is one connection in one download: a goroutine that reads and one that writes. It decides nothing:
// it sends what it reads to the download's loop, as events.
type conn struct {
	d         *Download
	n         picker.Neighbour
	wire      *wire.Conn
	initiated bool // by this side

	// The loop owns these.
	remote    remote
	announced announced
	seen      seen
	strikes   int      // bad pieces it sent
	rejects   []reject // what it rejected lately, the oldest first
	sending   int      // jobs that have not ended

	queue
	blocks blocks
}

// remote is what a neighbour announced of itself and of what it has.
type remote struct {
	host     host.ID // empty until its Hello
	gotHello bool    // its Hello came: it reads the messages of the extension
	seed     bool    // it chooses the pieces it sends
	gaveUp   bool    // as a seed it reported that its origin refused
	leaving  wire.Leaving
	zone     string
	gateway  bool // it brings pieces into its zone
	origin   wire.Origin
	vain     bool // this host waited in vain for what it reads of the origin
	alive    bool // as a seed it sends a message every second until it has everything
	// read is how much of a body of unknown length it last reported.
	read int64
	// have is what it has, once the metadata is known; bits, hasAll and haves are what it announced before.
	have   piece.Bitmap
	bits   []bool
	hasAll bool
	haves  []piece.Index
}

// announced is what this host announced to a neighbour.
type announced struct {
	pieces    piece.Bitmap
	runs      map[int]bool         // the numbers of the runs that it knows, from any host
	keys      map[piece.KeyID]bool // keys whose certificate it knows
	noDigests bool                 // it needs none
	read      int64                // of a body of unknown length
	at        time.Time            // when this host last sent it a sign of life
}

// seen holds a neighbour's last signs of life.
type seen struct {
	born     time.Time
	idleFrom time.Time
	// received counts bytes of pieces, heard all bytes; receivedAt and heardAt are when the counts last grew.
	received   int64
	receivedAt time.Time
	heard      int64
	heardAt    time.Time
	haveAt     time.Time // when it last announced a piece
}

// stage is the state of a connection. It only moves forward.
type stage int

const (
	// stageOpen: it reads and writes.
	stageOpen stage = iota
	// stageDraining: it ends once everything queued is out.
	stageDraining
	// stageMute: the connection sends nothing any more, so that a new job must not wait for its turn. It still reads for a
	// moment.
	stageMute
	// stageClosed: the socket is closed.
	stageClosed
)

// queue is what the goroutines of a connection and the loop hand to each other.
type queue struct {
	wake chan struct{}
	// mu is held to hand messages, jobs and requests from one goroutine to another.
	mu      sync.Mutex
	stage   stage
	err     error // that ended it
	out     []wire.Message
	spare   []wire.Message // what out was before
	jobs    []*job
	pending []*inbound // in the order asked; the loop adds, the reading goroutine removes
}

// reach moves on to a stage, and reports whether it was not reached before. The caller holds mu.
func (q *queue) reach(s stage) bool {
	if q.stage >= s {
		return false
	}
	q.stage = s
	return true
}

// reject is a piece that a neighbour announced and did not send.
type reject struct {
	index piece.Index
	at    time.Time
}

// job is a request that is being served. It holds one upload slot.
type job struct {
	conn             *conn
	index            piece.Index
	begin, next, end int64
	any              bool // the other side left the choice to this host
	corked           bool // small packets wait for the rest; the writing goroutine owns it
	rank             int  // order among the waiting jobs: the share of the object that the other side has
	lane             *lane
	// The connection's mu guards the rest. A job waits for its turn to send; one that was
	// dropped after it started is cut at its next block.
	queued, turn, yielded, started, dropped, over bool
	since                                         time.Time // when its turn came
}

// turnMax is how long a job keeps others from sending.
const turnMax = 500 * time.Millisecond

// inbound is a request of this host that has not ended. Its last block, a reject or a busy ends it. A cancelled request
// stays until its end, too: otherwise its late blocks would answer an any-request.
type inbound struct {
	// The connection's mu guards these.
	index   piece.Index
	any     bool // not bound to a piece yet
	dropped bool // cancelled: this host reads its bytes and discards them

	known bool // the loop knows index; it owns this

	// The reading goroutine owns these.
	buf   []byte
	got   int64
	begun time.Time // when its first block came
}

// blocks hashes a piece while its blocks come, so that each block is still in the processor's cache. The blocks of a
// piece come one after the other, so one hash does for a connection. The reading goroutine owns it.
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
		return piece.Sum(in.buf) // blocks of several pieces alternated
	}
	b.of = nil
	b.hash.Sum(d[:0])
	return d
}

func newConn(d *Download, w *wire.Conn, initiated bool) *conn {
	return &conn{
		d: d, wire: w, initiated: initiated, queue: queue{wake: make(chan struct{}, 1)},
		announced: announced{runs: make(map[int]bool), keys: make(map[piece.KeyID]bool)},
	}
}

// queueMax bounds the messages that wait for a peer that does not read. The largest likely object has fewer pieces, and
// so fewer haves.
const queueMax = 1 << 17

// send queues messages; it never blocks.
func (c *conn) send(ms ...wire.Message) {
	c.sendAlong(ms...)
	c.poke()
}

// sendAlong queues messages that leave with the next one that is sent.
func (c *conn) sendAlong(ms ...wire.Message) {
	c.mu.Lock()
	full := len(c.out)+len(ms) > queueMax
	if !full && c.stage < stageMute {
		c.out = append(c.out, ms...)
	}
	c.mu.Unlock()
	if full {
		c.close(fmt.Errorf("%w: it reads nothing", errStalled))
	}
}

// serve queues a job behind the messages queued before it. It returns false if the connection is over; then the caller
// must end the job.
func (c *conn) serve(j *job) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stage >= stageMute {
		return false
	}
	c.jobs = append(c.jobs, j)
	c.poke()
	return true
}

func (c *conn) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// drainSoon drains a connection whose download is over: no more pieces, and the messages in the queue only
// to a peer that reads them soon.
func (c *conn) drainSoon() {
	c.leave(wire.LeavesTask)
	c.mu.Lock()
	c.reach(stageDraining)
	for _, j := range c.jobs {
		j.dropped = true
	}
	c.mu.Unlock()
	_ = c.wire.WriteWithin(drainTimeout)
	c.poke()
}

// expect notes a request before it is sent.
func (c *conn) expect(in *inbound) {
	in.known = !in.any
	c.mu.Lock()
	c.pending = append(c.pending, in)
	c.mu.Unlock()
}

// drop cancels the request for piece i, if the loop knows of one. The reading goroutine discards the bytes that still
// come.
func (c *conn) drop(i piece.Index) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, in := range c.pending {
		if in.known && !in.dropped && in.index == i {
			in.dropped = true
			return true
		}
	}
	return false
}

// requested is how many requests for piece i wait for it, as far as the loop knows.
func (c *conn) requested(i piece.Index) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, in := range c.pending {
		if in.known && !in.dropped && in.index == i {
			n++
		}
	}
	return n
}

// settle removes the oldest request that matches, because it has ended.
func (c *conn) settle(match func(*inbound) bool) *inbound {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.IndexFunc(c.pending, match)
	if at < 0 {
		return nil
	}
	in := c.pending[at]
	c.pending = slices.Delete(c.pending, at, at+1)
	c.d.e.buffers.put(in.buf)
	in.buf = nil
	return in
}

// expecting is how many requests wait for their pieces.
func (c *conn) expecting() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, in := range c.pending {
		if !in.dropped {
			n++
		}
	}
	return n
}

// close ends both goroutines; the reading one reports it to the loop.
func (c *conn) close(err error) {
	c.mu.Lock()
	if c.stage < stageMute {
		c.err = err
	}
	first := c.reach(stageClosed)
	c.mu.Unlock()
	if !first {
		return
	}
	c.wire.Close()
	c.poke()
}

// hangUp ends the writing half. The reading one goes on for a moment, because the other
// side's last messages, why it failed or what it revokes, may be on their way.
func (c *conn) hangUp(err error) {
	c.mu.Lock()
	if c.stage < stageClosed {
		c.err = err
	}
	c.reach(stageMute)
	jobs := c.jobs
	c.jobs, c.out = nil, nil
	c.mu.Unlock()
	for _, j := range jobs {
		c.end(j, false)
	}
	c.wire.HangUp(drainTimeout)
}

// run reads until the connection ends, and waits for the writing goroutine.
func (c *conn) run() {
	var wg sync.WaitGroup
	wg.Go(c.write)
	err := c.read()
	c.close(err)
	wg.Wait()
	c.mu.Lock()
	for _, in := range c.pending {
		c.d.e.buffers.put(in.buf)
		in.buf = nil
	}
	c.mu.Unlock()
	c.d.notify(connClosed{c, c.err})
}

func (c *conn) read() (err error) {
	defer source.Rescue(&err, "reading a peer's messages of task "+c.d.id.Short())
	var haves []piece.Index
	for {
		m, err := c.wire.Next()
		if err != nil {
			return err
		}
		switch m.Type {
		case wire.Skipped:
		case wire.Have:
			// One event for all that came together.
			if haves = append(haves, m.Index); len(haves) < havesMax && c.wire.HaveNext() {
				break
			}
			batch := haves
			haves = nil
			c.d.notify(havesReceived{c, batch})
		case wire.Piece:
			if err := c.receive(m); err != nil {
				return err
			}
		case wire.DigestMessage:
			// Verified here and not in the loop, because their pieces can be the next messages.
			numbers, err := c.d.proof.add(m.Digests.Runs, m.Digests.Certificates)
			c.d.notify(digestsReceived{c, numbers, m.Digests.Whole})
			var stale *staleError
			switch {
			case errors.As(err, &stale):
				c.d.notify(digestsStale{c, stale.epoch})
			case err != nil:
				c.d.notify(digestsFailed{err})
				return err
			}
		case wire.Reject:
			in := c.settle(func(in *inbound) bool { return !in.any && in.index == m.Index })
			c.d.notify(requestRejected{c, in})
		case wire.BusyMessage:
			isAny := m.Busy.Index == wire.BusyAny
			in := c.settle(func(in *inbound) bool { return in.any == isAny && (isAny || in.index == m.Busy.Index) })
			c.d.notify(requestBusy{c, in, m.Busy.Delay})
		case wire.Suggest:
			if in := c.bindNext(m.Index); in != nil {
				c.d.notify(requestBound{c, in})
			}
		default:
			c.d.notify(messageReceived{c, m})
		}
	}
}

// receive takes one block. A piece is complete when its last block came: it is hashed and
// stored here, so that the loop never waits for a disk.
func (c *conn) receive(m wire.Message) error {
	in, dropped := c.bind(m)
	if in == nil || dropped {
		c.d.intake.skip(c.d.ctx, m.Length) // Next skips the payload
	}
	if in == nil {
		return nil // never asked for
	}
	size := c.d.proof.replica.Metadata().Layout().Size(in.index)
	if m.Begin != in.got || m.Begin+m.Length > size {
		return fmt.Errorf("%w: block [%d, %d) of piece %d where %d was due", wire.ErrProtocol, m.Begin,
			m.Begin+m.Length, in.index, in.got)
	}
	if in.got == 0 {
		in.begun = time.Now()
	}
	if !dropped {
		if in.buf == nil {
			in.buf = c.d.e.buffers.get(size)
		}
		block := in.buf[in.got : in.got+m.Length]
		if err := c.d.intake.read(c.d.ctx, c.wire, block); err != nil {
			return err
		}
		c.blocks.add(in, block)
	}
	if dropped {
		c.d.e.stats.duplicate.Add(m.Length)
	}
	if in.got += m.Length; in.got < size {
		return nil
	}
	c.mu.Lock()
	c.pending = slices.DeleteFunc(c.pending, func(o *inbound) bool { return o == in })
	// The request was cancelled during its first block or later, so the buffer can have a gap.
	dropped = dropped || in.dropped
	c.mu.Unlock()
	var err error
	if !dropped {
		err = c.d.store(in.index, in.buf, c.blocks.sum(in))
	}
	c.d.e.buffers.put(in.buf)
	in.buf = nil
	if !dropped {
		c.d.notify(requestDone{c, in, err})
	}
	return nil
}

// bind finds the request that a block answers, and whether it was cancelled. The first
// block of a piece that was not asked for by name answers the oldest any-request.
func (c *conn) bind(m wire.Message) (in *inbound, dropped bool) {
	if !c.d.proof.hasMetadata() || int(m.Index) >= c.d.proof.replica.Metadata().Layout().Count() {
		return nil, false
	}
	c.mu.Lock()
	for _, in := range c.pending {
		if !in.any && in.index == m.Index {
			dropped = in.dropped
			c.mu.Unlock()
			return in, dropped
		}
	}
	at := slices.IndexFunc(c.pending, func(in *inbound) bool { return in.any })
	if at < 0 || m.Begin != 0 {
		c.mu.Unlock()
		return nil, false
	}
	in = c.pending[at]
	in.any, in.index = false, m.Index
	c.mu.Unlock()
	c.d.notify(requestBound{c, in})
	return in, false
}

// bindNext turns the oldest any-request into one for piece i: a seed says what it will
// send. It returns nil where there is none, or no such piece.
func (c *conn) bindNext(i piece.Index) *inbound {
	if !c.d.proof.hasMetadata() || i < 0 || int(i) >= c.d.proof.replica.Metadata().Layout().Count() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, in := range c.pending {
		if in.any {
			in.any, in.index = false, i
			return in
		}
	}
	return nil
}

func (c *conn) write() {
	for {
		<-c.wake
		for {
			out, j, ok := c.take()
			if !ok {
				c.hangUp(nil)
				return
			}
			if len(out) == 0 && j == nil {
				c.reuse(out)
				break
			}
			if err := c.writeSome(out, j); err != nil {
				c.hangUp(err)
				return
			}
			c.reuse(out)
		}
	}
}

// reuse keeps the memory of written messages for the next ones.
func (c *conn) reuse(out []wire.Message) {
	const most = 64
	if cap(out) == 0 || cap(out) > most {
		return
	}
	clear(out)
	c.mu.Lock()
	c.spare = out
	c.mu.Unlock()
}

// take returns what is to be written next: all messages, and then one block of one job.
func (c *conn) take() (out []wire.Message, j *job, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stage == stageClosed {
		return nil, nil, false
	}
	// The slice that was written before is used again.
	out, c.out = c.out, c.spare[:0]
	c.spare = nil
	waiting := len(c.jobs) > 0
	if waiting {
		first := c.jobs[0]
		if !first.queued {
			first.queued = true
			first.since = time.Now()
			first.turn = first.lane.line.Take(c.d.id, first.rank, first, func() { c.granted(first) })
		}
		if first.turn || first.dropped {
			first.started = true
			j = first
		}
	}
	return out, j, c.stage == stageOpen || waiting || len(out) > 0
}

// granted gives a job its turn to send.
func (c *conn) granted(j *job) {
	c.mu.Lock()
	j.turn, j.since = true, time.Now()
	over := j.over
	j.yielded = over
	c.mu.Unlock()
	if over {
		j.lane.line.Give()
		return
	}
	c.poke()
}

// leave queues the announcement that this side closes the connection. Without it the neighbour would report this host
// as silent.
func (c *conn) leave(why wire.Leaving) {
	hello := c.d.hello()
	hello.Hello.Leaving = why
	c.send(hello)
}

// drain closes the connection after it has sent the queued messages.
func (c *conn) drain(why wire.Leaving) {
	c.leave(why)
	c.mu.Lock()
	c.reach(stageDraining)
	c.mu.Unlock()
	c.poke()
}

func (c *conn) writeSome(out []wire.Message, j *job) error {
	_ = c.wire.WriteWithin(writeTimeout)
	if c.d.ended() {
		_ = c.wire.WriteWithin(drainTimeout)
	}
	for _, m := range out {
		if err := c.wire.Send(m); err != nil {
			return err
		}
	}
	if j == nil {
		return c.wire.Flush()
	}
	layout := c.d.proof.replica.Metadata().Layout()
	if c.isDropped(j) {
		return c.finish(j, false)
	}
	if len(out) > 0 && c.d.e.rates.upload.Rate() > 0 {
		if err := c.wire.Flush(); err != nil {
			return err
		}
	}
	n := c.d.giveOut(j.end - j.next)
	if c.isDropped(j) {
		return c.finish(j, false)
	}
	if !j.corked && n > 4<<10 && n == min(wire.BlockSize, j.end-j.begin) {
		j.corked = true
		c.wire.Cork(true)
	}
	err := c.wire.SendBlock(j.index, j.next, c.d.proof.replica, layout.Offset(j.index)+j.next, n)
	if err != nil {
		if errors.Is(err, piece.ErrMissing) {
			c.d.notify(pieceLost{j.index})
		}
		return fmt.Errorf("sending piece %d: %w", j.index, err)
	}
	j.next += n
	c.d.e.stats.sent.Add(n)
	if j.next < j.end {
		return nil
	}
	return c.finish(j, true)
}

func (c *conn) isDropped(j *job) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return j.dropped
}

func (c *conn) finish(j *job, sent bool) error {
	var err error
	if !sent {
		err = c.wire.Send(wire.Message{Type: wire.Reject, Index: j.index, Begin: j.begin, Length: j.end - j.begin})
	}
	err = errors.Join(err, c.wire.Flush())
	if j.corked {
		c.wire.Cork(false)
	}
	c.mu.Lock()
	c.jobs = slices.DeleteFunc(c.jobs, func(o *job) bool { return o == j })
	c.mu.Unlock()
	c.end(j, sent && err == nil)
	return err
}

// end gives a job's slot back. The loop itself must not call it: it would wait for itself.
func (c *conn) end(j *job, sent bool) {
	c.yield(j, true)
	j.lane.slots.Release(c.d.id, c)
	c.d.notify(uploadEnded{c, j, sent})
}

// yield gives a job's turn to send to the next job that waits for one.
func (c *conn) yield(j *job, over bool) {
	c.mu.Lock()
	j.over = j.over || over
	turn := j.turn && !j.yielded
	j.yielded = j.turn
	c.mu.Unlock()
	if turn {
		j.lane.line.Give()
	}
}

// passTurn takes the turn from a receiver that is slow: its job continues at the same time as the
// others, and they do not wait for it.
func (c *conn) passTurn(now time.Time) {
	c.mu.Lock()
	var slow *job
	if len(c.jobs) > 0 && c.jobs[0].turn && now.Sub(c.jobs[0].since) > turnMax {
		slow = c.jobs[0]
	}
	c.mu.Unlock()
	if slow != nil {
		c.yield(slow, false)
	}
}

// cancel ends a running job at its next block. It takes a job that has not begun out of the queue and returns it: the
// caller must end it.
func (c *conn) cancel(index piece.Index, begin int64) *job {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.IndexFunc(c.jobs, func(j *job) bool { return j.index == index && j.begin == begin })
	if at < 0 {
		return nil
	}
	j := c.jobs[at]
	if j.started {
		j.dropped = true
		return nil
	}
	c.jobs = slices.Delete(c.jobs, at, at+1)
	return j
}

// displaced takes out a job that another one displaced from the send queue, and the jobs behind it. The caller must end
// them. It returns nil if the job has ended or its connection ends it.
func (c *conn) displaced(j *job) (jobs []*job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.Index(c.jobs, j)
	if at < 0 || j.dropped {
		return nil
	}
	jobs = slices.Clone(c.jobs[at:])
	c.jobs = slices.Delete(c.jobs, at, len(c.jobs))
	return jobs
}

var errSelf = errors.New("connected to itself")
