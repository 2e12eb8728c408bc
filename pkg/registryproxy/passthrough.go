package registryproxy

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// heldBack is how much of the end of a blob is held back until the whole has matched its digest, in
	// bytes.
	heldBack = 64 << 10
	// emptyBodiesMax is how many bodies in a row a registry may end without one byte, or by silence.
	emptyBodiesMax = 3
)

// openPassthrough opens a blob at its registry, past every store, for a client that cannot go elsewhere while the disk
// of this host or of the seed is full. full is that error. openPassthrough returns it if the client can go elsewhere or
// if the registry does not state the length.
func (req *request) openPassthrough(spec task.Spec, length int64, full error) (Blob, error) {
	if req.cfg.Passthrough == nil || req.target.endpoint != endpointBlob || req.target.namespace != "" {
		return nil, full
	}
	if _, err := oci.NewHash(string(spec.ID)); err != nil {
		return nil, full
	}
	p := &passthrough{open: req.cfg.Passthrough, wrong: func() { req.tainted.put(spec.ID, time.Now()) }, spec: spec}
	// The window may be far behind the first byte that comes.
	req.holdWhile(func() policy.Signs {
		read := p.read.Load()
		return policy.Signs{Moved: read, Asking: read == 0, Came: read}
	})
	res, err := req.cfg.Passthrough(req.ctx, spec, 0)
	if err != nil {
		return nil, source.Failure(err)
	}
	if res.Length >= 0 {
		length = res.Length
	}
	if length <= 0 {
		res.Body.Close()
		return nil, full
	}
	req.pull.Passthrough = true
	p.metadata, p.body = piece.Metadata{Length: length, MediaType: res.MediaType}, res.Body
	return p, nil
}

// passthrough is a blob that no store keeps. One goroutine reads it.
type passthrough struct {
	open     func(context.Context, task.Spec, int64) (*source.Response, error)
	wrong    func() // called when the bytes proved wrong
	spec     task.Spec
	metadata piece.Metadata
	body     io.ReadCloser // for the first reader, from the beginning
	read     atomic.Int64  // bytes that came from the registry
}

// Metadata implements [Blob].
func (p *passthrough) Metadata() piece.Metadata { return p.metadata }

// NewReader implements [Blob].
func (p *passthrough) NewReader(ctx context.Context, off, n int64) Reader {
	h, _ := oci.NewHash(string(p.spec.ID))
	r := &passthroughReader{blob: p, ctx: ctx, from: off, to: off + n, hash: h, body: p.body}
	p.body = nil
	return r
}

// Close implements [Blob].
func (p *passthrough) Close() error {
	if p.body != nil {
		return p.body.Close()
	}
	return nil
}

// passthroughReader reads the whole blob and returns the window [from, to) of it. It holds the end of the
// window back until the whole has matched its digest.
type passthroughReader struct {
	blob     *passthrough
	ctx      context.Context
	from, to int64
	hash     hash.Hash
	body     io.ReadCloser
	at       int64 // bytes of the blob that were read
	empty    int   // bodies in a row without one byte, or that fell silent
	got      bool  // the body has brought a byte
	buf      []byte
	ready    []byte       // the part of buf that Read returns next
	held     bytes.Buffer // the window's end
	complete bool         // the whole has matched its digest
	err      error
}

// Read implements [io.Reader].
func (r *passthroughReader) Read(p []byte) (int, error) {
	for len(r.ready) == 0 {
		switch {
		case r.complete && r.held.Len() > 0:
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

// more reads on. After it there are bytes that Read may return, or the blob is complete, or there is an
// error.
func (r *passthroughReader) more() {
	length := r.blob.metadata.Length
	if r.at == length {
		if got := hex.EncodeToString(r.hash.Sum(nil)); !strings.HasSuffix(string(r.blob.spec.ID), ":"+got) {
			r.blob.wrong()
			r.err = fmt.Errorf("the registry sent a blob with digest %s for %s", got, r.blob.spec.ID)
			return
		}
		r.complete, r.err = true, io.EOF
		return
	}
	if r.body == nil {
		if r.empty++; r.empty > emptyBodiesMax {
			r.err = fmt.Errorf("the registry ends %s at byte %d of %d", r.blob.spec.ID, r.at, length)
			return
		}
		res, err := r.blob.open(r.ctx, r.blob.spec, r.at)
		if err == nil && res.Length >= 0 && res.Length != length {
			err = fmt.Errorf("the registry now says that %s has %d bytes, not %d", r.blob.spec.ID, res.Length, length)
			err = errors.Join(err, res.Body.Close())
		}
		if err != nil {
			r.err = err
			return
		}
		r.body, r.got = res.Body, false
	}
	if r.buf == nil {
		r.buf = make([]byte, 64<<10)
	}
	n, err := r.body.Read(r.buf[:min(int64(len(r.buf)), length-r.at)])
	if n > 0 {
		r.got = true
		r.blob.read.Add(int64(n))
		r.hash.Write(r.buf[:n])
		r.take(r.buf[:n])
	}
	if err != nil {
		if r.got && !errors.Is(err, os.ErrDeadlineExceeded) {
			r.empty = 0
		}
		r.body.Close()
		r.body = nil
		if r.ctx.Err() != nil {
			r.err = context.Cause(r.ctx)
		}
	}
}

// take sorts the last bytes: before the window, in it, held back, behind it.
func (r *passthroughReader) take(b []byte) {
	start := r.at
	r.at += int64(len(b))
	part := func(from, to int64) []byte {
		from, to = max(from-start, 0), min(to-start, int64(len(b)))
		if from >= to {
			return nil
		}
		return b[from:to]
	}
	hold := max(r.from, r.to-heldBack)
	r.ready = part(r.from, hold)
	r.held.Write(part(hold, r.to))
}

// WriteTo implements [io.WriterTo].
func (r *passthroughReader) WriteTo(w io.Writer) (n int64, err error) {
	buf := make([]byte, 64<<10)
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, buf)
}

// Close implements [io.Closer].
func (r *passthroughReader) Close() error {
	if r.body != nil {
		return r.body.Close()
	}
	return nil
}
