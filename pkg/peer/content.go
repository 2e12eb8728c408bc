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

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// Content is one task that somebody has open. Closing it is the opener's duty; the
// download goes on for others, and for a while for nobody, in case the client returns.
type Content struct {
	d    *Download
	spec task.Spec // of who opened it
	// cached says that everything was here when it was opened.
	cached bool
	once   sync.Once
}

// Facts are the length, layout and media type of the content.
func (c *Content) Facts() piece.Facts { return c.d.ledger.replica.Facts() }

// Sources tells where the bytes of the download came from so far.
func (c *Content) Sources() Sources { return c.d.sources() }

// Cached reports whether everything was here before this content was opened.
func (c *Content) Cached() bool { return c.cached }

// Close ends the use of the content; closing twice is no error.
func (c *Content) Close() error {
	c.once.Do(func() { c.d.e.release(c.d) })
	return nil
}

// NewReader returns a reader of the bytes [off, off+n), cut at the end of the content.
// It must be closed before its content is. Cancelling ctx ends its reads.
func (c *Content) NewReader(ctx context.Context, off, n int64) *Reader {
	length := c.Facts().Length
	off = max(0, min(off, length))
	r := &Reader{d: c.d, spec: &c.spec, ctx: ctx, off: off, end: off + max(0, min(n, length-off))}
	r.pos.Store(off)
	c.d.post(func() { c.d.addReader(r) })
	return r
}

// Reader streams verified bytes in order while the download runs. A read waits for its
// piece; it fails with the download's error, in the origin's words, and never yields a
// byte that was not verified. Not for concurrent use.
type Reader struct {
	d        *Download
	spec     *task.Spec
	ctx      context.Context
	off, end int64
	// pos is the next byte; the download's loop reads it to know what is urgent.
	pos    atomic.Int64
	closed bool
}

// wait returns how many bytes from pos on can be read now, as far as limit.
func (r *Reader) wait(pos, limit int64) (int64, error) {
	replica := r.d.ledger.replica
	layout := replica.Facts().Layout()
	for {
		changed := r.d.progress.wait()
		i, end := layout.At(pos), layout.At(limit-1)+1
		if replica.Has(i) {
			if !r.d.sound(i) {
				// Until the download is over: who opens the content again begins anew.
				select {
				case <-r.d.done:
				case <-r.ctx.Done():
				}
				return 0, errDamaged
			}
			for i++; i < end && replica.Has(i) && r.d.compared().has(i); {
				i++
			}
			return min(limit, layout.Offset(i)) - pos, nil
		}
		r.d.nudge()
		select {
		case <-changed:
		case <-r.d.done:
			return 0, r.d.failureOf(*r.spec)
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		}
	}
}

// missing turns the store's error into the reader's. A piece that the store had and lost
// again is no error: it comes anew.
func (r *Reader) missing(pos int64, err error) error {
	if errors.Is(err, piece.ErrMissing) && !r.d.ledger.replica.Has(r.d.ledger.replica.Facts().Layout().At(pos)) {
		return nil
	}
	if errors.Is(err, piece.ErrRemoved) || errors.Is(err, fs.ErrClosed) {
		// The download has ended, or is about to: its own reason says more.
		select {
		case <-r.d.done:
			return r.d.failureOf(*r.spec)
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
		n, err := r.wait(pos, min(r.end, pos+int64(len(p))))
		if err != nil {
			return 0, err
		}
		got, err := r.d.ledger.replica.ReadAt(p[:n], pos)
		r.pos.Add(int64(got))
		if got > 0 || err == nil {
			return got, nil
		}
		if err := r.missing(pos, err); err != nil {
			return 0, err
		}
	}
}

// WriteTo implements [io.WriterTo]: the bytes go from the store to w, without passing
// through this process where w and the store can (sendfile).
func (r *Reader) WriteTo(w io.Writer) (sum int64, err error) {
	for {
		pos := r.pos.Load()
		if pos >= r.end {
			return sum, nil
		}
		n, err := r.wait(pos, r.end)
		if err != nil {
			return sum, err
		}
		sent, err := r.d.ledger.replica.CopyTo(w, pos, n)
		r.pos.Add(sent)
		sum += sent
		if err != nil {
			err = r.missing(pos+sent, err)
		} else if sent != n {
			err = fmt.Errorf("reading task %s: %w", r.d.id, io.ErrShortWrite)
		}
		if err != nil {
			return sum, err
		}
	}
}

// Close ends the reader; closing twice is no error.
func (r *Reader) Close() error {
	if !r.closed {
		r.closed = true
		r.d.post(func() { r.d.removeReader(r) })
	}
	return nil
}

// broadcast wakes everybody who waits for the next change.
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
