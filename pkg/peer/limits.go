package peer

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync/atomic"

	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/ratelimit"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// Limits are rates of objects' bytes, in bytes per second; 0 is no limit. Other messages between hosts do
// not count, nor what local readers read.
type Limits struct {
	Upload   int64 `json:"upload"`   // of pieces to all other hosts
	Download int64 `json:"download"` // of pieces from all other hosts, and of bodies from origins
	Task     int64 `json:"task"`     // of one task's download, from all sources
	Origin   int64 `json:"origin"`   // of bodies from origins
}

// rates are the limits at work: all connections of the engine share them.
type rates struct {
	upload, download, origin ratelimit.Limiter
	task                     int64 // for each download's own; guarded by the engine's mu
}

// Limits are the rates in force.
func (e *Engine) Limits() Limits {
	e.mu.Lock()
	defer e.mu.Unlock()
	return Limits{Upload: e.rates.upload.Rate(), Download: e.rates.download.Rate(), Task: e.rates.task,
		Origin: e.rates.origin.Rate()}
}

// SetLimits changes the rates at once, also of transfers that run.
func (e *Engine) SetLimits(l Limits) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rates.upload.Set(l.Upload)
	e.rates.download.Set(l.Download)
	e.rates.origin.Set(l.Origin)
	e.rates.task = max(0, l.Task)
	for _, d := range e.downloads {
		d.intake.rate.Set(l.Task)
	}
}

// intake limits the rate of incoming bytes. Safe for concurrent use.
type intake struct {
	rate   ratelimit.Limiter // of this download
	limits ratelimit.Chain   // that limiter and those of the engine
}

// read reads a block as fast as the limits allow. With a limit it reads small parts, so that TCP slows the sender down
// and this host's memory does not fill.
func (in *intake) read(ctx context.Context, c *wire.Conn, block []byte) error {
	for len(block) > 0 {
		part := min(len(block), in.limits.Quantum())
		in.skip(ctx, int64(part))
		if err := c.ReadPayload(block[:part]); err != nil {
			return err
		}
		block = block[part:]
	}
	return nil
}

// skip counts n bytes that come in against the limits. A download that is over waits for nothing:
// only the other sides' last messages are still read.
func (in *intake) skip(ctx context.Context, n int64) { _ = in.limits.Wait(ctx, int(n)) }

// fromOrigin limits the rate of an origin's body, and shows that bytes come.
func (d *Download) fromOrigin(ctx context.Context, body io.Reader) io.Reader {
	return append(slices.Clone(d.intake.limits), &d.e.rates.origin).Reader(ctx, moving{body, &d.signs.moved})
}

// Passthrough opens an object at its origin without storing it. The limits apply, and its bytes count as
// bytes from origins.
func (e *Engine) Passthrough(ctx context.Context, spec task.Spec, offset int64) (*source.Response, error) {
	if e.cfg.Origin == nil {
		return nil, errors.New("this host asks no origin")
	}
	res, err := e.cfg.Origin.Open(ctx, spec, offset)
	if err != nil {
		return nil, err
	}
	limited := ratelimit.Chain{&e.rates.download, &e.rates.origin}.Reader(ctx, res.Body)
	res.Body = &counted{Reader: limited, Closer: res.Body, count: &e.stats.origin}
	return res, nil
}

// counted is a body whose bytes are counted.
type counted struct {
	io.Reader
	io.Closer
	count *atomic.Int64
}

func (u *counted) Read(p []byte) (int, error) {
	n, err := u.Reader.Read(p)
	u.count.Add(int64(n))
	return n, err
}

// giveOut returns how many of n bytes may leave now, a block at most. It waits until they may, or the
// download is over. Other messages to the same peer wait no longer than that.
func (d *Download) giveOut(n int64) int64 {
	n = min(n, wire.BlockSize, int64(d.e.rates.upload.Quantum()))
	_ = d.e.rates.upload.Wait(d.ctx, int(n))
	return n
}
