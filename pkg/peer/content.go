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

// Content is a task that a caller has opened and must close. The download goes on for other callers, and for
// Config.Linger without any, because a client may return.
type Content struct {
	d    *Download
	spec task.Spec // the caller's
	// cached is true if every piece was stored when the caller opened the task.
	cached bool
	once   sync.Once
}

// Metadata returns the length, piece size and media type.
func (c *Content) Metadata() piece.Metadata { return c.d.proof.replica.Metadata() }

// Sources counts the bytes of the download so far, by source.
func (c *Content) Sources() api.Sources { return c.d.sources() }

// Cached reports whether every piece was stored before this caller opened the task.
func (c *Content) Cached() bool { return c.cached }

// Complete reports whether every piece is stored now.
func (c *Content) Complete() bool { return c.d.proof.replica.Have().Full() }

// Own reports whether this host received all bytes so far from the origin, with the credentials of this caller.
func (c *Content) Own() bool {
	s, first := c.d.sources(), c.d.origin.firstSpec.Load()
	return first != nil && first.SameAsker(c.spec) && !c.d.origin.mixed.Load() && s.Peers+s.Seeds == 0
}

// Close ends the caller's use of the task. Closing it twice is no error.
func (c *Content) Close() error {
	c.once.Do(func() { c.d.e.release(c.d) })
	return nil
}

// NewReader returns a reader of the bytes [off, off+n), cut at the end of the task. The caller closes it before the
// Content. Cancelling ctx ends its reads.
func (c *Content) NewReader(ctx context.Context, off, n int64) *Reader {
	return c.newReader(ctx, off, n, false)
}

// NewPartReader is NewReader for a caller that compares the bytes with a digest of its own, or puts them
// together with others and compares those: it may get the last bytes of the content before the whole was
// checked.
func (c *Content) NewPartReader(ctx context.Context, off, n int64) *Reader {
	return c.newReader(ctx, off, n, true)
}

func (c *Content) newReader(ctx context.Context, off, n int64, early bool) *Reader {
	length := c.Metadata().Length
	off = max(0, min(off, length))
	r := &Reader{d: c.d, spec: &c.spec, ctx: ctx, early: early, off: off, end: off + max(0, min(n, length-off))}
	r.pos.Store(off)
	c.d.notify(readerOpened{r})
	return r
}

// Reader streams verified bytes in order while the download runs. A read waits for its piece. It fails with the
// download's error and the origin's own message. It returns no unverified byte, but for the last piece to a caller of
// [Content.NewPartReader]. Not for concurrent use.
type Reader struct {
	d        *Download
	spec     *task.Spec
	ctx      context.Context
	off, end int64
	early    bool // it may read the last piece before the whole is verified
	// pos is the next byte; the download's loop reads it to find the urgent pieces.
	pos atomic.Int64
	// block is the last block read, at the offset begin, in buf.
	begin      int64
	block, buf []byte
	unread     piece.Index // the index after the last piece that the disk failed to read
	closed     bool
}

// wait returns nil when the piece at pos is stored.
func (r *Reader) wait(pos int64) error {
	replica := r.d.proof.replica
	i := replica.Metadata().Layout().At(pos)
	for {
		changed := r.d.progress.wait()
		if replica.Has(i) || r.ahead(pos) != nil {
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

// next returns the bytes from pos to the end of their block or of the reader. They are valid until the next call. It
// returns none if the store lost the piece and the download fetches it again.
func (r *Reader) next(pos int64) ([]byte, error) {
	if err := r.wait(pos); err != nil {
		return nil, err
	}
	if b := r.ahead(pos); b != nil {
		return b, nil
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

// ahead returns the bytes from pos on that came of the last piece before the whole was verified, if the reader may
// have them and the piece is not stored yet.
func (r *Reader) ahead(pos int64) []byte {
	if !r.early || r.d.ended() || r.d.proof.replica.Has(r.d.proof.replica.Metadata().Layout().At(pos)) {
		return nil
	}
	return r.d.tail.get(pos, r.end-pos)
}

// drop reports a damaged piece and waits for the end of the download, so that a caller that opens the task again starts
// a new one.
func (r *Reader) drop(i piece.Index) {
	r.d.notify(pieceDamaged{i})
	select {
	case <-r.d.done:
	case <-r.ctx.Done():
	}
}

// missing turns the store's error into the reader's. It is nil for a piece that the store has lost, which the download
// fetches again, and for the first failed read of a piece: a write repairs most bad sectors. After the second failed
// read, the loop drops the task, and the next request stores it in another place.
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
		// The download has ended or ends soon; its own error is more precise.
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

// WriteTo implements [io.WriterTo]. It does not use sendfile: only bytes that were compared in this process's memory
// are known to be right when they are sent.
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

// broadcast wakes all goroutines that wait for a change.
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
