package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// Content is one task that a caller has open, and must close. The download goes on for other callers, and
// for Config.Linger without one, in case the client returns.
type Content struct {
	d    *Download
	spec task.Spec // of the caller that opened it
	// cached says that everything was here when it was opened.
	cached bool
	once   sync.Once
}

// Metadata returns the length, piece size and media type.
func (c *Content) Metadata() piece.Metadata { return c.d.proof.replica.Metadata() }

// Sources counts the bytes of the download so far, by source.
func (c *Content) Sources() api.Sources { return c.d.sources() }

// Cached reports whether every piece was stored before this content was opened.
func (c *Content) Cached() bool { return c.cached }

// Complete reports whether everything is here now.
func (c *Content) Complete() bool { return c.d.proof.replica.Have().Full() }

// Own reports whether all bytes so far came to this host from the origin, requested with the credentials
// of the caller that opened this content.
func (c *Content) Own() bool {
	s, first := c.d.sources(), c.d.origin.asked.Load()
	return first != nil && first.SameAsker(c.spec) && !c.d.origin.mixed.Load() && s.Peers+s.Seeds == 0
}

// Close ends the use of the content. Closing it twice is no error.
func (c *Content) Close() error {
	c.once.Do(func() { c.d.e.release(c.d) })
	return nil
}

// NewReader returns a reader of the bytes [off, off+n), cut at the end of the content.
// It must be closed before its content is. Cancelling ctx ends its reads.
func (c *Content) NewReader(ctx context.Context, off, n int64) *Reader {
	length := c.Metadata().Length
	off = max(0, min(off, length))
	r := &Reader{d: c.d, spec: &c.spec, ctx: ctx, off: off, end: off + max(0, min(n, length-off))}
	r.pos.Store(off)
	c.d.notify(readerOpened{r})
	return r
}

// Reader streams verified bytes in order while the download runs. A read waits for its
// piece; it fails with the download's error, with the origin's own message, and never yields a
// byte that was not verified. Not for concurrent use.
type Reader struct {
	d        *Download
	spec     *task.Spec
	ctx      context.Context
	off, end int64
	// pos is the next byte; the download's loop reads it to know what is urgent.
	pos atomic.Int64
	// block is what was read last, from the offset begin on, in buf.
	begin      int64
	block, buf []byte
	unread     piece.Index // behind the piece that the disk did not give back last
	closed     bool
}

// wait returns when the piece at pos is here.
func (r *Reader) wait(pos int64) error {
	replica := r.d.proof.replica
	i := replica.Metadata().Layout().At(pos)
	for {
		changed := r.d.progress.wait()
		if replica.Has(i) {
			return nil
		}
		r.d.nudge()
		select {
		case <-changed:
		case <-r.d.done:
			return r.d.end.failureFor(*r.spec)
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		}
	}
}

// next returns the bytes from pos to the end of their block, or of what is to be read. They are
// good until the next call. It returns none where a piece was lost and comes again.
func (r *Reader) next(pos int64) ([]byte, error) {
	if err := r.wait(pos); err != nil {
		return nil, err
	}
	if pos < r.begin || pos >= r.begin+int64(len(r.block)) {
		if r.buf == nil {
			r.buf = r.d.e.buffers.get(blockSize)
		}
		r.block = nil
		begin, block, err := r.d.stored.readBlock(r.buf, pos)
		switch {
		case errors.Is(err, errDamaged):
			r.drop(r.d.proof.replica.Metadata().Layout().At(pos))
			return nil, errDamaged
		case err != nil:
			return nil, r.missing(pos, err)
		}
		r.begin, r.block = begin, block
	}
	return r.block[pos-r.begin : min(int64(len(r.block)), r.end-r.begin)], nil
}

// drop reports a damaged piece and waits until the download is over, so that a caller that opens the
// task again starts over.
func (r *Reader) drop(i piece.Index) {
	r.d.notify(pieceDamaged{i})
	select {
	case <-r.d.done:
	case <-r.ctx.Done():
	}
}

// missing turns the store's error into the reader's. A piece that the store had and lost
// again is no error: the download brings it again. Nor is one that the disk did not give back, once: most
// bad sectors are good again after a write. Where this one is not, the loop drops the task,
// and the next request has it put elsewhere.
func (r *Reader) missing(pos int64, err error) error {
	if i := r.d.proof.replica.Metadata().Layout().At(pos); !r.d.proof.replica.Has(i) {
		if errors.Is(err, piece.ErrMissing) {
			return nil
		}
		over := errors.Is(err, piece.ErrRemoved) || errors.Is(err, piece.ErrClosed) || errors.Is(err, fs.ErrClosed)
		switch {
		case over:
		case r.unread != i+1:
			r.unread = i + 1
			return nil
		default:
			r.drop(i)
			return fmt.Errorf("%w: %w", errDamaged, err)
		}
	}
	if errors.Is(err, piece.ErrRemoved) || errors.Is(err, fs.ErrClosed) {
		// The download has ended, or is about to: its own error says more.
		select {
		case <-r.d.done:
			return r.d.end.failureFor(*r.spec)
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		case <-time.After(time.Second):
		}
	}
	return err
}

// Read implements [io.Reader].
func (r *Reader) Read(p []byte) (int, error) {
	for {
		pos := r.pos.Load()
		if pos >= r.end {
			return 0, io.EOF
		}
		if len(p) == 0 {
			return 0, nil
		}
		b, err := r.next(pos)
		if n := copy(p, b); n > 0 || err != nil {
			r.pos.Add(int64(n))
			return n, err
		}
	}
}

// WriteTo implements [io.WriterTo]. The bytes pass through this process, because only those that
// were compared in its own memory are known to be right when they leave.
func (r *Reader) WriteTo(w io.Writer) (sum int64, err error) {
	for {
		pos := r.pos.Load()
		if pos >= r.end {
			return sum, nil
		}
		b, err := r.next(pos)
		if err != nil {
			return sum, err
		}
		if len(b) == 0 {
			continue
		}
		n, err := w.Write(b)
		r.pos.Add(int64(n))
		sum += int64(n)
		if err == nil && n < len(b) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return sum, fmt.Errorf("sending bytes of task %s: %w", r.d.id, err)
		}
	}
}

// Close ends the reader; closing twice is no error.
func (r *Reader) Close() error {
	if !r.closed {
		r.closed = true
		if r.buf != nil {
			r.d.e.buffers.put(r.buf)
			r.buf, r.block = nil, nil
		}
		r.d.notify(readerClosed{r})
	}
	return nil
}

// broadcast wakes all goroutines that wait for the next change.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait returns a channel that closes at the next change after this call.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) signal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
