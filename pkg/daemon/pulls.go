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

// statusGone is the mirror's status for a client that closed the connection before the response.
const statusGone = 499

// pulls counts the bytes that local clients received, and logs one line per pull or file.
type pulls struct {
	metrics *telemetry.Pulls
	log     *slog.Logger
	// embedded reports whether this node leads its own tasks.
	embedded func() bool
	served   atomic.Int64 // bytes sent to clients
	cached   atomic.Int64 // those of them that were in the store before
}

// mirrored records an ended request to the mirror.
func (p *pulls) mirrored(x registryproxy.Pull) {
	if x.Stale > 0 {
		p.metrics.Unconfirmed(telemetry.Tag)
	}
	if x.Unverified != "" {
		p.metrics.Unconfirmed(telemetry.Grant)
	}
	kind, isTask := map[string]task.Kind{"blob": task.Blob, "manifest": task.Manifest}[x.Endpoint]
	if !isTask || x.Method != http.MethodGet {
		p.log.Debug("mirror request ended", "endpoint", x.Endpoint, "method", x.Method, "upstream", x.Upstream,
			"repository", x.Repository, "reference", x.Reference, "status", x.Status, "total", x.Total)
		return
	}
	out := telemetry.Pull{
		Task: x.Task, Kind: kind, Name: x.Upstream + "/" + x.Repository, FirstByte: x.FirstByte,
		Total: x.Total, Err: x.Err, Stages: stages(x), Unverified: string(x.Unverified), Stale: x.Stale,
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

// left reports whether an error means that the client closed the connection during the response.
func left(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, context.Canceled)
}

func (p *pulls) finished(x telemetry.Pull) {
	p.served.Add(x.Bytes.Total())
	p.cached.Add(x.Bytes.Cache)
	p.metrics.Finished(p.log, x)
}

// stages lists what a client of the mirror waited for. Each stage begins when the one before it ends. The last stage
// that the request reached takes the rest of the time.
func stages(x registryproxy.Pull) (list []telemetry.Stage) {
	began := time.Duration(0)
	for _, s := range []struct {
		name  string
		ended time.Duration
	}{{"asking the registry", x.Granted}, {"metadata", x.Opened}, {"first byte", x.FirstByte}, {"body", 0}} {
		if s.ended == 0 {
			return append(list, telemetry.Stage{Name: s.name, Took: x.Total - began})
		}
		list = append(list, telemetry.Stage{Name: s.name, Took: s.ended - began})
		began = s.ended
	}
	return list
}

// split divides the n bytes that a client received by source. A download has many readers and its bytes arrive in any
// order, so split assumes the download's proportions for each reader.
func (p *pulls) split(n int64, s api.Sources, cached bool) (b api.Sources) {
	all := s.Peers + s.Seeds + s.Origin
	switch {
	case cached:
		return api.Sources{Cache: n}
	case all == 0 && p.embedded(): // small tasks are sent before their bytes are counted
		return api.Sources{Origin: n}
	case all == 0:
		return api.Sources{Seeds: n}
	}
	b.Peers = int64(float64(n) * float64(s.Peers) / float64(all))
	b.Seeds = int64(float64(n) * float64(s.Seeds) / float64(all))
	b.Origin = n - b.Peers - b.Seeds
	if s.Origin == 0 { // the rest of rounding
		b.Seeds, b.Origin = b.Seeds+b.Origin, 0
	}
	return b
}
