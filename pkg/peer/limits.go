package peer

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/ratelimit"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// Limits are rates of content, in bytes per second; 0 is no limit. What hosts say to each
// other beside the content is not counted, nor what local readers take.
type Limits struct {
	Upload   int64 `json:"upload"`   // of pieces to all other hosts
	Download int64 `json:"download"` // of pieces from all other hosts, and of content from origins
	Task     int64 `json:"task"`     // of one task's download, from wherever it comes
	Origin   int64 `json:"origin"`   // of content from origins
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
	return Limits{Upload: e.rates.upload.Rate(), Download: e.rates.download.Rate(), Task: e.rates.task, Origin: e.rates.origin.Rate()}
}

// SetLimits changes the rates, at once and also for what is on its way.
func (e *Engine) SetLimits(l Limits) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rates.upload.Set(l.Upload)
	e.rates.download.Set(l.Download)
	e.rates.origin.Set(l.Origin)
	e.rates.task = max(0, l.Task)
	for _, d := range e.downloads {
		d.rate.Set(l.Task)
	}
}

// intake is what all content of this download is held to when it comes in.
func (d *Download) intake() ratelimit.Chain { return ratelimit.Chain{&d.rate, &d.e.rates.download} }

// fromOrigin holds the body of an origin to the limits.
func (d *Download) fromOrigin(ctx context.Context, body io.Reader) io.Reader {
	return append(d.intake(), &d.e.rates.origin).Reader(ctx, body)
}

// Unkept opens a content at its origin that no store is to keep: held to the limits all the
// same, and counted among what this host got from origins.
func (e *Engine) Unkept(ctx context.Context, spec task.Spec, offset int64) (*source.Response, error) {
	if e.cfg.Origin == nil {
		return nil, errors.New("this host asks no origin")
	}
	res, err := e.cfg.Origin.Open(ctx, spec, offset)
	if err != nil {
		return nil, err
	}
	limited := ratelimit.Chain{&e.rates.download, &e.rates.origin}.Reader(ctx, res.Body)
	res.Body = &unkept{Reader: limited, Closer: res.Body, count: &e.stats.origin}
	return res, nil
}

// unkept is a body whose bytes are counted.
type unkept struct {
	io.Reader
	io.Closer
	count *atomic.Int64
}

func (u *unkept) Read(p []byte) (int, error) {
	n, err := u.Reader.Read(p)
	u.count.Add(int64(n))
	return n, err
}

// takeIn reads a block as fast as the limits let it come. Where there are some it comes in
// small parts, so that TCP holds the sender back rather than fills this host's memory.
func (d *Download) takeIn(c *wire.Conn, block []byte) error {
	for len(block) > 0 {
		part := min(len(block), d.limits.Quantum())
		d.passBy(int64(part))
		if err := c.ReadPayload(block[:part]); err != nil {
			return err
		}
		block = block[part:]
	}
	return nil
}

// passBy counts n bytes of content that come in against the limits. A download that is over
// waits for nothing: only the other sides' last words are still read.
func (d *Download) passBy(n int64) { _ = d.limits.Wait(d.ctx, int(n)) }

// giveOut is how many of n bytes of an answer may leave now, a block at most; it waits until
// they may, or the download is over. What else is to be said to the same peer waits no
// longer than that.
func (d *Download) giveOut(n int64) int64 {
	n = min(n, wire.BlockSize, int64(d.e.rates.upload.Quantum()))
	_ = d.e.rates.upload.Wait(d.ctx, int(n))
	return n
}
