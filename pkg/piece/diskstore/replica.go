package diskstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"
	"syscall"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// replica is one use of an open task.
type replica struct {
	c      *openTask
	closed atomic.Bool
}

func (r *replica) ID() task.ID              { return r.c.id }
func (r *replica) Metadata() piece.Metadata { return r.c.facts }

// failure returns why r is no longer usable, or nil. The caller holds c.mu.
func (r *replica) failure() error {
	if r.closed.Load() {
		return fs.ErrClosed
	}
	return r.c.err
}

func (r *replica) use() error {
	r.c.mu.RLock()
	defer r.c.mu.RUnlock()
	return r.failure()
}

func (r *replica) Have() piece.Bitmap {
	r.c.mu.RLock()
	defer r.c.mu.RUnlock()
	if r.failure() != nil {
		return piece.NewBitmap(r.c.have.Len())
	}
	return r.c.have.Clone()
}

func (r *replica) Has(i piece.Index) bool {
	r.c.mu.RLock()
	defer r.c.mu.RUnlock()
	return r.failure() == nil && r.c.have.Has(i)
}

func (r *replica) Digest(i piece.Index) (piece.Digest, bool) {
	r.c.mu.RLock()
	defer r.c.mu.RUnlock()
	if r.failure() != nil || !r.c.have.Has(i) {
		return piece.Digest{}, false
	}
	return r.c.digests[i], true
}

func (r *replica) WritePiece(i piece.Index, data []byte, d piece.Digest) error {
	l := r.c.layout
	if i < 0 || int(i) >= l.Count() || int64(len(data)) != l.Size(i) {
		return fmt.Errorf("writing piece %d of task %s: %w: got %d bytes, expected %d",
			i, r.c.id.Short(), piece.ErrInvalidMetadata, len(data), l.Size(i))
	}
	if err := r.c.write(r, i, data, d); err != nil {
		return fmt.Errorf("writing piece %d of task %s: %w", i, r.c.id.Short(), r.cause(Remedy(r.c.s.cfg.Dir, err)))
	}
	return nil
}

// cause returns the reason why the replica ended, if it did: it is the cause of the disk's error.
func (r *replica) cause(err error) error {
	if end := r.use(); end != nil {
		return end
	}
	return err
}

// available returns how many of the bytes [off, off+n) can be read from off on, and ErrMissing if not all of them.
func (r *replica) available(off, n int64) (int64, error) {
	c := r.c
	first, end := c.layout.Span(off, n)
	c.mu.RLock()
	defer c.mu.RUnlock()
	if err := r.failure(); err != nil {
		return 0, fmt.Errorf("reading task %s: %w", c.id.Short(), err)
	}
	for i := first; i < end; i++ {
		if !c.have.Has(i) {
			return max(c.layout.Offset(i)-off, 0),
				fmt.Errorf("reading task %s: piece %d: %w", c.id.Short(), i, piece.ErrMissing)
		}
	}
	return n, nil
}

func (r *replica) ReadAt(p []byte, off int64) (int, error) {
	c := r.c
	if off < 0 {
		return 0, fmt.Errorf("reading task %s at offset %d", c.id.Short(), off)
	}
	n, missing := r.available(off, min(int64(len(p)), max(c.layout.Length-off, 0)))
	if n > 0 {
		c.e.lastRead.Store(c.s.tick())
		k, err := c.data.ReadAt(p[:n], off)
		if int64(k) < n {
			return k, r.readError(off+int64(k), err)
		}
	}
	switch {
	case missing != nil:
		return int(n), missing
	case n < int64(len(p)):
		return int(n), io.EOF
	}
	return int(n), nil
}

func (r *replica) CopyTo(w io.Writer, off, n int64) (int64, error) {
	c := r.c
	if err := c.layout.Within(off, n); err != nil {
		return 0, fmt.Errorf("reading task %s: %w", c.id.Short(), err)
	}
	if _, err := r.available(off, n); err != nil || n == 0 {
		return 0, err
	}
	c.e.lastRead.Store(c.s.tick())
	f, err := c.description()
	if err != nil {
		return 0, fmt.Errorf("reading task %s: %w", c.id.Short(), r.cause(err))
	}
	defer func() { _ = c.giveBack(f) }() // read-only, so an error of Close loses no data
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		return 0, r.readError(off, err)
	}
	written, err := c.send(w, f, n)
	switch {
	case err == nil && written == n:
		return written, nil
	case err == nil || errors.Is(err, syscall.EIO):
		return written, r.readError(off+written, err)
	}
	return written, fmt.Errorf("sending bytes of task %s: %w", c.id.Short(), err)
}

// send copies n bytes from f to w. A w with a ReadFrom gets the file itself, so that the kernel can move the bytes.
func (c *openTask) send(w io.Writer, f File, n int64) (int64, error) {
	if _, ok := w.(io.ReaderFrom); ok {
		return io.Copy(w, io.LimitReader(f, n))
	}
	buf := c.s.buffers.Get().(*[]byte)
	defer c.s.buffers.Put(buf)
	return io.CopyBuffer(w, io.LimitReader(f, n), *buf)
}

// readError drops the piece at off, which the disk could not read, and returns the error for its reader.
func (r *replica) readError(off int64, err error) error {
	if end := r.use(); end != nil {
		return fmt.Errorf("reading task %s: %w", r.c.id.Short(), end)
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // the file became shorter
	}
	r.c.dropUnreadable(off, err)
	return fmt.Errorf("reading task %s: piece %d: %w", r.c.id.Short(), r.c.layout.At(off), err)
}

func (r *replica) AddRuns(runs []piece.DigestRun, certificates [][]byte) error {
	if err := r.c.addRuns(r, runs, certificates); err != nil {
		return fmt.Errorf("adding runs to task %s: %w", r.c.id.Short(), err)
	}
	return nil
}

func (r *replica) Runs() ([]piece.DigestRun, [][]byte) {
	c := r.c
	c.mu.RLock()
	defer c.mu.RUnlock()
	if r.failure() != nil {
		return nil, nil
	}
	var runs []piece.DigestRun
	var certificates [][]byte
	for _, run := range c.runs {
		runs = append(runs, cloneRun(run))
	}
	for _, der := range c.certificates {
		certificates = append(certificates, bytes.Clone(der))
	}
	return runs, certificates
}

func (r *replica) Close() error {
	if !r.closed.Swap(true) {
		r.c.s.release(r.c)
	}
	return nil
}
