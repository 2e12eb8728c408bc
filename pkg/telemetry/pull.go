package telemetry

import (
	"log/slog"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/task"
)

// bySource calls visit with each source's name in metrics and its bytes.
func bySource(b api.Sources, visit func(Source, int64)) {
	visit(FromPeers, b.Peers)
	visit(FromSeed, b.Seeds)
	visit(FromOrigin, b.Origin)
	visit(FromCache, b.Cache)
}

// Stage is a part of a pull with the time that the client waited for it.
type Stage struct {
	Name string
	Took time.Duration
}

// Pull is a client's download of one blob, manifest or file that has ended.
type Pull struct {
	Task task.ID
	Kind task.Kind
	// Name is upstream and repository, or a URL without its secrets.
	Name   string
	Result Result
	// Bytes are those that the client received, by where this host got them.
	Bytes api.Sources
	// FirstByte is the time until the client received its first byte; 0 if it received none.
	FirstByte, Total time.Duration
	// Stages in any order; the log line names the slowest.
	Stages []Stage
	// Unverified is why the client got it although its registry was unreachable; empty: that answered. Stale is the age
	// of the tag's meaning then, 0 without a tag.
	Unverified string
	Stale      time.Duration
	// Err is why the pull failed.
	Err error
}

// Slowest returns the stage that took longest, or zero.
func (p Pull) Slowest() (s Stage) {
	for _, x := range p.Stages {
		if x.Took > s.Took {
			s = x
		}
	}
	return s
}

// Finished counts a pull and logs its one line. A nil group only logs, a nil logger only counts.
func (p *Pulls) Finished(l *slog.Logger, pull Pull) {
	p.count(pull)
	if l == nil {
		return
	}
	var attrs []any
	if pull.Task != "" { // empty if it was rejected before its task was known
		attrs = append(attrs, "task", pull.Task)
	}
	attrs = append(attrs,
		"kind", pull.Kind, "name", pull.Name, "result", pull.Result, "bytes", pull.Bytes.Total(),
		slog.Group("from", "peers", pull.Bytes.Peers, "seed", pull.Bytes.Seeds, "origin", pull.Bytes.Origin,
			"cache", pull.Bytes.Cache),
	)
	if pull.FirstByte > 0 {
		attrs = append(attrs, "firstByte", round(pull.FirstByte))
	}
	attrs = append(attrs, "total", round(pull.Total))
	if s := pull.Slowest(); s.Took > 0 {
		attrs = append(attrs, "slowest", s.Name, "slowestTook", round(s.Took))
	}
	if pull.Unverified != "" {
		attrs = append(attrs, "unverified", pull.Unverified)
	}
	if pull.Stale > 0 {
		attrs = append(attrs, "staleTag", round(pull.Stale))
	}
	if pull.Err != nil {
		attrs = append(attrs, "error", pull.Err)
	}
	if pull.Result == Failed {
		l.Warn("pull finished", attrs...)
		return
	}
	l.Info("pull finished", attrs...)
}

// round rounds a duration for people: to microseconds below a second, to milliseconds above.
func round(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Microsecond)
	}
	return d.Round(time.Millisecond)
}
