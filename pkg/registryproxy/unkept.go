package registryproxy

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// unkeptHeld is how much of the end of a content is held back until the whole matched its
	// digest, in bytes.
	unkeptHeld = 64 << 10
	// unkeptTries is how often in a row a registry may end a body without giving one byte.
	unkeptTries = 3
)

// noRoom reports whether a content cannot be had because a disk is full, be it this host's or
// that of the one that was to bring it.
func noRoom(err error) bool {
	var f *api.Failure
	return errors.As(err, &f) && f.Full
}

// unkept opens a content that there is no room for, for a client that could not go elsewhere: it
// comes from its registry past every store. The error is why there was no room where the client
// can go elsewhere, or where the registry does not say how long it is.
func (x *exchange) unkept(spec task.Spec, length int64, why error) (Content, error) {
	if x.cfg.Direct == nil || x.t.endpoint != endpointBlob || x.t.namespace != "" {
		return nil, why
	}
	if _, err := oci.NewHash(string(spec.ID)); err != nil {
		return nil, why
	}
	res, err := x.cfg.Direct(x.ctx, spec, 0)
	if err != nil {
		return nil, source.Failure(err)
	}
	if res.Length >= 0 {
		length = res.Length
	}
	if length <= 0 {
		res.Body.Close()
		return nil, why
	}
	x.pull.Direct = true
	return &unkept{open: x.cfg.Direct, wrong: func() { x.doubts.note(spec.ID, time.Now()) }, spec: spec, facts: piece.Facts{Length: length, MediaType: res.MediaType}, body: res.Body}, nil
}

// unkept is a content that is nowhere kept. One goroutine reads it.
type unkept struct {
	open  func(context.Context, task.Spec, int64) (*source.Response, error)
	wrong func() // is told when the bytes proved wrong
	spec  task.Spec
	facts piece.Facts
	body  io.ReadCloser // of the first reader that comes, from the beginning
}

// Facts implements [Content].
func (u *unkept) Facts() piece.Facts { return u.facts }

// NewReader implements [Content].
func (u *unkept) NewReader(ctx context.Context, off, n int64) Reader {
	h, _ := oci.NewHash(string(u.spec.ID))
	r := &unkeptReader{u: u, ctx: ctx, from: off, to: off + n, hash: h, body: u.body}
	u.body = nil
	return r
}

// Close implements [Content].
func (u *unkept) Close() error {
	if u.body != nil {
		return u.body.Close()
	}
	return nil
}

// unkeptReader reads the whole content and gives the window [from, to) of it, the end of which
// it holds back until the whole has matched its digest.
type unkeptReader struct {
	u        *unkept
	ctx      context.Context
	from, to int64
	hash     hash.Hash
	body     io.ReadCloser
	at       int64 // of the content: so much was read
	barren   int   // bodies in a row that gave nothing
	buf      []byte
	ready    []byte       // of buf, to be given
	held     bytes.Buffer // the window's end
	proven   bool
	err      error
}

// Read implements [io.Reader].
func (r *unkeptReader) Read(p []byte) (int, error) {
	for len(r.ready) == 0 {
		switch {
		case r.proven && r.held.Len() > 0:
			return r.held.Read(p)
		case r.err != nil:
			return 0, r.err
		}
		r.more()
	}
	n := copy(p, r.ready)
	r.ready = r.ready[n:]
	return n, nil
}

// more reads on: what may be given is ready then, or the content is proven, or there is an
// error.
func (r *unkeptReader) more() {
	length := r.u.facts.Length
	if r.at == length {
		if got := hex.EncodeToString(r.hash.Sum(nil)); !strings.HasSuffix(string(r.u.spec.ID), ":"+got) {
			r.u.wrong()
			r.err = fmt.Errorf("the registry sent content with digest %s for %s", got, r.u.spec.ID)
			return
		}
		r.proven, r.err = true, io.EOF
		return
	}
	if r.body == nil {
		if r.barren++; r.barren > unkeptTries {
			r.err = fmt.Errorf("the registry ends %s at byte %d of %d", r.u.spec.ID, r.at, length)
			return
		}
		res, err := r.u.open(r.ctx, r.u.spec, r.at)
		if err == nil && res.Length >= 0 && res.Length != length {
			err = errors.Join(fmt.Errorf("the registry says now that %s has %d bytes, not %d", r.u.spec.ID, res.Length, length), res.Body.Close())
		}
		if err != nil {
			r.err = err
			return
		}
		r.body = res.Body
	}
	if r.buf == nil {
		r.buf = make([]byte, 64<<10)
	}
	n, err := r.body.Read(r.buf[:min(int64(len(r.buf)), length-r.at)])
	if n > 0 {
		r.barren = 0
		r.hash.Write(r.buf[:n])
		r.take(r.buf[:n])
	}
	if err != nil {
		r.body.Close()
		r.body = nil
		if r.ctx.Err() != nil {
			r.err = context.Cause(r.ctx)
		}
	}
}

// take sorts what was read last: before the window, in it, held back, behind it.
func (r *unkeptReader) take(b []byte) {
	start := r.at
	r.at += int64(len(b))
	part := func(from, to int64) []byte {
		from, to = max(from-start, 0), min(to-start, int64(len(b)))
		if from >= to {
			return nil
		}
		return b[from:to]
	}
	hold := max(r.from, r.to-unkeptHeld)
	r.ready = part(r.from, hold)
	r.held.Write(part(hold, r.to))
}

// WriteTo implements [io.WriterTo].
func (r *unkeptReader) WriteTo(w io.Writer) (n int64, err error) {
	buf := make([]byte, 64<<10)
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, buf)
}

// Close implements [io.Closer].
func (r *unkeptReader) Close() error {
	if r.body != nil {
		return r.body.Close()
	}
	return nil
}
