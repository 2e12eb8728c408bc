package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/pkg/telemetry"
)

// statusGone is what the mirror notes for a client that left before its answer.
const statusGone = 499

// pulls counts what local clients were given and tells of it, a line a pull or file.
type pulls struct {
	metrics *telemetry.Pulls
	log     *slog.Logger
	// embedded says that this node leads its own tasks.
	embedded func() bool
	served   atomic.Int64 // bytes given to clients
	cached   atomic.Int64 // those of them that were here already
}

// mirrored takes in a request to the mirror that has ended.
func (p *pulls) mirrored(x registryproxy.Pull) {
	if x.Stale > 0 {
		p.metrics.Unconfirmed(telemetry.Tag)
	}
	if x.Unverified {
		p.metrics.Unconfirmed(telemetry.Grant)
	}
	kind, isContent := map[string]task.Kind{"blob": task.Blob, "manifest": task.Manifest}[x.Endpoint]
	if !isContent || x.Method != http.MethodGet {
		p.log.Debug("mirror was asked", "endpoint", x.Endpoint, "method", x.Method, "upstream", x.Upstream,
			"repository", x.Repository, "reference", x.Reference, "status", x.Status, "total", x.Total)
		return
	}
	out := telemetry.Pull{
		Task: x.Task, Kind: kind, Name: x.Upstream + "/" + x.Repository, FirstByte: x.FirstByte,
		Total: x.Total, Err: x.Err,
		Stages: stages(x),
	}
	if out.Task == "" {
		out.Name += "@" + x.Reference
	}
	switch {
	case x.Status == statusGone, left(x.Err):
		out.Result = telemetry.Canceled
	case x.Status >= http.StatusInternalServerError, x.Status < http.StatusBadRequest && x.Err != nil:
		out.Result = telemetry.Failed
	case x.Status >= http.StatusBadRequest:
		out.Result = telemetry.Refused
	default:
		out.Result = telemetry.OK
	}
	if c, ok := x.Blob.(content); ok {
		out.Bytes = p.split(x.Bytes, c.Sources(), c.Cached())
	}
	if x.Passthrough {
		out.Bytes = api.Sources{Origin: x.Bytes}
	}
	p.finished(out)
}

// left reports whether an error is that of a client that went away while it was written to.
func left(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, context.Canceled)
}

func (p *pulls) finished(x telemetry.Pull) {
	p.served.Add(x.Bytes.Total())
	p.cached.Add(x.Bytes.Cache)
	p.metrics.Finished(p.log, x)
}

// stages says what a client of the mirror waited for, one stage beginning where the one before
// it ended; the last one that was reached took the rest of the time.
func stages(x registryproxy.Pull) (list []telemetry.Stage) {
	began := time.Duration(0)
	for _, s := range []struct {
		name  string
		ended time.Duration
	}{{"asking the registry", x.Granted}, {"first facts", x.Opened}, {"first byte", x.FirstByte}, {"body", 0}} {
		if s.ended == 0 {
			return append(list, telemetry.Stage{Name: s.name, Took: x.Total - began})
		}
		list = append(list, telemetry.Stage{Name: s.name, Took: s.ended - began})
		began = s.ended
	}
	return list
}

// split says where the bytes that a client was given came from. A download has many readers
// and its bytes come in any order: each reader's are taken to be of the same mixture.
func (p *pulls) split(n int64, s api.Sources, cached bool) (b api.Sources) {
	all := s.Peers + s.Seeds + s.Origin
	switch {
	case cached:
		return api.Sources{Cache: n}
	case all == 0 && p.embedded(): // small content is given before it is counted
		return api.Sources{Origin: n}
	case all == 0:
		return api.Sources{Seeds: n}
	}
	b.Peers = int64(float64(n) * float64(s.Peers) / float64(all))
	b.Seeds = int64(float64(n) * float64(s.Seeds) / float64(all))
	b.Origin = n - b.Peers - b.Seeds
	if s.Origin == 0 { // what rounding left
		b.Seeds, b.Origin = b.Seeds+b.Origin, 0
	}
	return b
}
