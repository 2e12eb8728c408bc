package peer

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// A body of unknown length is spooled: this host can cut and sign pieces only once its end gives the
// length.

// spoolMax is how long such a body may be, in bytes, where the quota does not end it sooner.
const spoolMax = 32 << 30

// hintSlack and twice the length that a HEAD named bound a body without a length of its own. Some registries answer a
// HEAD with a wrong length, and the digest decides; but a body without end must not fill half of the quota.
const hintSlack = 16 << 20

// spoolBlock is how much of it is read and kept at a time.
const spoolBlock = 256 << 10

// tooLongError means that an origin sends more than this host accepts.
type tooLongError struct {
	what string
	most int64
}

// manifestTooLong is for a manifest that no host shares, whether its length is known or not.
var manifestTooLong = &tooLongError{what: "a manifest", most: oci.ManifestMax}

func (e *tooLongError) Error() string {
	return fmt.Sprintf("%s is longer than the %d bytes that it may have", e.what, e.most)
}

// longest is how many bytes the object of a spec may have where its length is unknown.
func (e *Engine) longest(spec task.Spec) *tooLongError {
	if spec.Kind == task.Manifest && oci.ManifestMax < e.cfg.SpoolMax {
		return manifestTooLong
	}
	longest := &tooLongError{
		what: "a body whose length neither Content-Length nor a manifest names",
		most: e.cfg.SpoolMax,
	}
	if hinted := 2*spec.Hint + hintSlack; spec.Hint > 0 && hinted < longest.most {
		longest.what = fmt.Sprintf("a body without Content-Length, of which a HEAD named %d bytes,", spec.Hint)
		longest.most = hinted
	}
	return longest
}

// spool keeps a body of unknown length until its end. The caller closes it.
func (o *originParent) spool(ctx context.Context, body io.Reader) (piece.Spool, error) {
	kept, err := o.d.e.spool()
	if err != nil {
		return nil, fmt.Errorf("%w: content of unknown length: %w", errSpace, err)
	}
	if err := o.fill(ctx, kept, body); err != nil {
		_ = kept.Close() // nothing that was written is wanted
		return nil, err
	}
	return kept, nil
}

// fill reads a body to its end, or as far as one of unknown length may go. It compares the whole with
// its digest, so that no host gets the length of another object.
func (o *originParent) fill(ctx context.Context, kept piece.Spool, body io.Reader) error {
	longest := o.d.e.longest(o.spec)
	var whole hash.Hash
	digest, named := o.spec.WholeDigest()
	if named {
		var err error
		if whole, err = oci.NewHash(digest); err != nil {
			return err
		}
	}
	buf := o.d.e.buffers.get(spoolBlock)
	defer o.d.e.buffers.put(buf)
	for {
		begun := time.Now()
		n, err := body.Read(buf)
		if kept.Len()+int64(n) > longest.most {
			return longest
		}
		if n > 0 {
			if err := o.d.e.withSpace(o.d.id, func() error { _, err := kept.Write(buf[:n]); return err }); err != nil {
				return fmt.Errorf("%w: %w", errSpace, err)
			}
			if named {
				whole.Write(buf[:n])
			}
			o.d.origin.read.Add(int64(n))
			o.d.origin.giveWay(ctx, &o.d.e.waited, time.Since(begun))
		}
		switch {
		case errors.Is(err, io.EOF) && named:
			return checkSum(digest, whole)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("reading content of unknown length: %w", err)
		}
	}
}

// spool returns an empty spool of the store, or a file in the spool directory if the store keeps no spools.
func (e *Engine) spool() (piece.Spool, error) {
	if s, ok := e.cfg.Store.(piece.Spooler); ok {
		return s.Spool()
	}
	f, err := os.CreateTemp(e.cfg.SpoolDir, "darter-spool-")
	if err != nil {
		return nil, err
	}
	// The kernel frees the file when the process ends, even in a crash.
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &fileSpool{f: f}, nil
}

// fileSpool is a spool that no quota counts.
type fileSpool struct {
	f      *os.File
	n      int64
	closed bool
}

func (s *fileSpool) Write(b []byte) (int, error) {
	if _, err := s.f.WriteAt(b, s.n); err != nil {
		return 0, err
	}
	s.n += int64(len(b))
	return len(b), nil
}

func (s *fileSpool) Len() int64        { return s.n }
func (s *fileSpool) Reader() io.Reader { return io.NewSectionReader(s.f, 0, s.n) }

func (s *fileSpool) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	return s.f.Close()
}

// read is how much of a body of unknown length this host has read, as a seed.
func (d *Download) read() int64 {
	if !d.policy.AtOrigin() || d.pick != nil {
		return 0
	}
	return d.origin.read.Load()
}

// sendAlive sends what a seed promises to send every second: its progress in a body of unknown length while that grows,
// otherwise a keep-alive.
func (c *conn) sendAlive() {
	if read := c.d.read(); read > 0 && read != c.announced.read {
		c.announced.read = read
		c.send(c.d.hello())
		return
	}
	c.send(wire.Message{Type: wire.KeepAlive})
}

// heardRead notes a seed's progress in a body of unknown length.
func (c *conn) heardRead(read int64) {
	if c.remote.seed && c.d.pick == nil && read != c.remote.read {
		c.remote.read = read
		c.d.signs.moved.Add(1)
	}
}
