package peer

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/peer/picker"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
)

// writeTimeout bounds how long one block may hang in a socket: a reader that takes less
// than a block in this time is worse than none.
const writeTimeout = 20 * time.Second

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
	helloed  bool    // its Hello came, so it can be told more than BEP 3 knows
	seed     bool    // it chooses the pieces it sends
	bits     []bool  // its bitfield, until the facts are known
	hasAll   bool
	haves    []piece.Index
	have     piece.Bitmap // what it has, once the facts are known
	told     piece.Bitmap // what we told it we have
	runs     map[int]bool // numbers of the runs it knows
	strikes  int          // bad pieces it sent
	idleFrom time.Time
	sending  int // jobs that have not ended

	// mu is held to hand messages, jobs and requests from one goroutine to another.
	mu      sync.Mutex
	out     []wire.Message
	jobs    []*job
	pending []*inbound
	closed  bool
	// draining closes the connection once everything queued is out.
	draining bool
	err      error
	wake     chan struct{}
	// received and since tell when the last byte came; the loop owns them.
	received int64
	since    time.Time
}

// job is a request that is being served. It holds one upload slot.
type job struct {
	index            piece.Index
	begin, next, end int64
	any              bool // the asker left the choice to us
	// started and dropped are guarded by the link's mu: a job is cut at its next block.
	started, dropped bool
}

// inbound is a request of ours that is being answered.
type inbound struct {
	index   piece.Index
	any     bool // not bound to a piece yet
	asked   time.Time
	buf     []byte
	got     int64
	dropped bool // its bytes are read and thrown away
}

func newLink(d *Download, c *wire.Conn, initiated bool) *link {
	return &link{d: d, conn: c, initiated: initiated, runs: make(map[int]bool), wake: make(chan struct{}, 1)}
}

// send queues messages; it never blocks.
func (l *link) send(ms ...wire.Message) {
	l.mu.Lock()
	l.out = append(l.out, ms...)
	l.mu.Unlock()
	l.poke()
}

// serve queues a job behind the messages queued before it.
func (l *link) serve(j *job) {
	l.mu.Lock()
	l.jobs = append(l.jobs, j)
	l.mu.Unlock()
	l.poke()
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
	l.mu.Lock()
	l.pending = append(l.pending, in)
	l.mu.Unlock()
}

// unexpect takes a request back; its bytes, should they come, are thrown away.
func (l *link) unexpect(match func(*inbound) bool) *inbound {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := slices.IndexFunc(l.pending, match)
	if at < 0 {
		return nil
	}
	in := l.pending[at]
	in.dropped = true
	l.pending = slices.Delete(l.pending, at, at+1)
	return in
}

func (l *link) expecting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pending)
}

// close ends both goroutines; the loop hears of it from the reading one.
func (l *link) close(err error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.closed, l.err = true, err
	l.mu.Unlock()
	l.conn.Close()
	l.poke()
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
	l.d.post(func() { l.d.unlink(l, l.err) })
}

func (l *link) read() error {
	for {
		m, err := l.conn.Next()
		if err != nil {
			return err
		}
		switch m.Type {
		case wire.Skipped:
		case wire.Piece:
			if err := l.receive(m); err != nil {
				return err
			}
		case wire.DigestMessage:
			// Verified here, not in the loop: the pieces they speak of may be next.
			numbers, err := l.d.ledger.add(m.Digests.Runs, m.Digests.Certificates)
			l.d.post(func() { l.d.digests(l, numbers) })
			if err != nil {
				return err
			}
		default:
			l.d.post(func() { l.d.handle(l, m) })
		}
	}
}

// receive takes one block. A piece is complete when its last block came: it is hashed and
// stored here, so that the loop never waits for a disk.
func (l *link) receive(m wire.Message) error {
	in := l.bind(m)
	if in == nil {
		return nil // cancelled or never asked for; Next skips the payload
	}
	size := l.d.ledger.replica.Facts().Layout().Size(in.index)
	if m.Begin != in.got || m.Begin+m.Length > size {
		return fmt.Errorf("%w: block [%d, %d) of piece %d where %d was due", wire.ErrProtocol, m.Begin, m.Begin+m.Length, in.index, in.got)
	}
	if in.buf == nil {
		in.buf = l.d.e.buffers.get(size)
	}
	if err := l.conn.ReadPayload(in.buf[in.got : in.got+m.Length]); err != nil {
		return err
	}
	in.got += m.Length
	if in.got < size {
		return nil
	}
	l.mu.Lock()
	l.pending = slices.DeleteFunc(l.pending, func(o *inbound) bool { return o == in })
	dropped := in.dropped
	l.mu.Unlock()
	var err error
	if !dropped {
		err = l.d.store(in.index, in.buf)
	}
	l.d.e.buffers.put(in.buf)
	in.buf = nil
	l.d.post(func() { l.d.arrived(l, in, err) })
	return nil
}

// bind finds the request that a block answers. The first block of a piece that was not
// asked for by name answers the oldest any-request.
func (l *link) bind(m wire.Message) *inbound {
	if !l.d.ledger.hasFacts() || int(m.Index) >= l.d.ledger.replica.Facts().Layout().Count() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, in := range l.pending {
		if !in.any && in.index == m.Index {
			return in
		}
	}
	if m.Begin != 0 {
		return nil
	}
	for _, in := range l.pending {
		if in.any {
			in.any, in.index = false, m.Index
			l.d.post(func() { l.d.bound(l, m.Index) })
			return in
		}
	}
	return nil
}

func (l *link) write() {
	defer l.abandon()
	for {
		<-l.wake
		for {
			out, j, ok := l.take()
			if !ok {
				l.close(nil)
				return
			}
			if len(out) == 0 && j == nil {
				break
			}
			if err := l.writeSome(out, j); err != nil {
				l.close(err)
				return
			}
		}
	}
}

// take returns what is to be written next: all messages, and then one block of one job.
func (l *link) take() (out []wire.Message, j *job, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, nil, false
	}
	out, l.out = l.out, nil
	if len(l.jobs) > 0 {
		j = l.jobs[0]
		j.started = true
	}
	return out, j, !l.draining || j != nil || len(out) > 0
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
	layout := l.d.ledger.replica.Facts().Layout()
	n := min(wire.BlockSize, j.end-j.next)
	large := j.end-j.begin > 4<<10
	if large && j.next == j.begin {
		l.conn.Cork(true)
	}
	if l.isDropped(j) {
		return l.finish(j, large, false)
	}
	err := l.conn.SendBlock(j.index, j.next, l.d.ledger.replica, layout.Offset(j.index)+j.next, n)
	if err != nil {
		return fmt.Errorf("sending piece %d: %w", j.index, err)
	}
	j.next += n
	l.d.e.stats.sent.Add(n)
	if j.next < j.end {
		return nil
	}
	return l.finish(j, large, true)
}

func (l *link) isDropped(j *job) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return j.dropped
}

func (l *link) finish(j *job, corked, sent bool) error {
	err := l.conn.Flush()
	if corked {
		l.conn.Cork(false)
	}
	l.mu.Lock()
	l.jobs = slices.DeleteFunc(l.jobs, func(o *job) bool { return o == j })
	l.mu.Unlock()
	l.end(j, sent && err == nil)
	return err
}

// end gives a job's slot back.
func (l *link) end(j *job, sent bool) {
	l.d.e.slots.Release()
	l.d.post(func() { l.d.served(l, j, sent) })
}

// abandon ends every job of a connection that is over.
func (l *link) abandon() {
	l.mu.Lock()
	jobs := l.jobs
	l.jobs = nil
	l.mu.Unlock()
	for _, j := range jobs {
		l.end(j, false)
	}
}

// cancel drops a job, or cuts it at its next block.
func (l *link) cancel(index piece.Index, begin int64) {
	l.mu.Lock()
	at := slices.IndexFunc(l.jobs, func(j *job) bool { return j.index == index && j.begin == begin })
	var j *job
	if at >= 0 {
		if j = l.jobs[at]; j.started {
			j.dropped, j = true, nil
		} else {
			l.jobs = slices.Delete(l.jobs, at, at+1)
		}
	}
	l.mu.Unlock()
	if j != nil {
		l.end(j, false)
	}
}

var errSelf = errors.New("connected to itself")
