// Package doors serves the APIs with which other programs order preheats: Harbor's three dialects for preheat
// providers, notifications of distribution/v3, and Harbor's webhook, all at one address.
//
// It answers nothing without a credential, and reads no body before it has compared that. An order reaches no registry
// that the operator did not list; its credential is neither logged nor sent to any other host. Each error is a text
// that Harbor's administrator can act on. Start at [New] and [Doors.Handler].
package doors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/preheat/order"
	"github.com/darter-io/darter/pkg/preheat/rules"
	"github.com/darter-io/darter/pkg/telemetry"
)

// Jobs creates and finds preheat jobs.
type Jobs interface {
	// Create begins a job and returns before it ends. The error is for people and names what to do; it wraps
	// [preheat.ErrInvalid] if no job can have the spec.
	Create(ctx context.Context, spec preheat.Spec) (preheat.Job, error)
	// Get finds a job by its ID, or by its Number in decimal.
	Get(id string) (preheat.Job, bool)
}

// Config of the doors.
type Config struct {
	Jobs Jobs
	// Listed reports whether the operator listed a registry.
	Listed order.Listed
	// Metrics and Logger may be nil.
	Metrics *telemetry.Doors
	Logger  *slog.Logger
	Settings
}

// Settings are what [Doors.Reload] changes.
type Settings struct {
	Credentials Credentials
	Rules       rules.Rules
	// Scope is that of an order of Harbor that names none and matches no rule; empty for all supernodes.
	Scope preheat.ScopeKind
}

// Bounds. Harbor's jobservice sends ten orders at once, and polls each every 10 s.
const (
	// requestRate and requestBurst bound the requests with a right credential, jobRate and jobBurst the jobs of them.
	requestRate, requestBurst = 500, 2000
	jobRate, jobBurst         = 20, 1000
	// deniedRate and deniedBurst bound the answers to wrong credentials.
	deniedRate, deniedBurst = 10, 100
	// bodiesMax bounds the bodies in memory at one time.
	bodiesMax = 64
	// rememberedMax bounds the images whose last job is remembered.
	rememberedMax = 4096
	// freshFor is how long a successful job answers further orders of the same bytes. Later, hosts can have lost them.
	freshFor = 10 * time.Minute
	// patience is how long a job of Harbor may run: Harbor polls for 30 minutes, and then calls it failed without a
	// reason.
	patience = 29 * time.Minute
	// createMax bounds the creation of a job. Harbor waits for 30 s.
	createMax = 20 * time.Second
)

// Doors serves all doors. Safe for concurrent use.
type Doors struct {
	cfg      Config
	log      *slog.Logger
	settings atomic.Pointer[Settings]
	// requests, jobs, denied and lines are the rates of requests, of new jobs, of wrong credentials, and of log lines.
	requests, jobs, denied, lines *rate.Limiter
	bodies                        chan struct{}
	// running are the creations that run, by their image and scope, and remembered the jobs of those before.
	running    singleflight.Group
	remembered *lru.Cache[string, string]
}

// New returns the doors. The error says what to set.
func New(cfg Config) (*Doors, error) {
	remembered, err := lru.New[string, string](rememberedMax)
	if err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Doors{cfg: cfg, log: cfg.Logger, remembered: remembered, bodies: make(chan struct{}, bodiesMax),
		requests: rate.NewLimiter(requestRate, requestBurst), jobs: rate.NewLimiter(jobRate, jobBurst),
		denied: rate.NewLimiter(deniedRate, deniedBurst), lines: rate.NewLimiter(1, 20)}
	if err := d.Reload(cfg.Settings); err != nil {
		return nil, err
	}
	return d, nil
}

// Reload replaces the settings for requests that come from now on. The error says what to set; nothing changes then.
func (d *Doors) Reload(s Settings) error {
	if err := s.Credentials.Check(); err != nil {
		return err
	}
	if s.Scope == "" {
		s.Scope = preheat.AllSeeds
	}
	d.settings.Store(&s)
	return nil
}

// Handler serves the doors.
func (d *Doors) Handler() http.Handler { return d.guard(d.routes()) }

// outcome is what became of one order.
type outcome struct {
	Image   string `json:"image,omitempty"`
	Job     string `json:"job,omitempty"`
	Ignored string `json:"ignored,omitempty"`
	Error   string `json:"error,omitempty"`

	job   preheat.Job
	entry telemetry.Entry
	err   error
}

// errLimited reports more jobs than the doors take.
var errLimited = errors.New("too many preheats are ordered at once; order it again in a minute")

// take makes a job of an order, or finds the one that does the same.
func (d *Doors) take(ctx context.Context, door telemetry.Door, from order.Source, o order.Order) (out outcome) {
	out.Image = o.Reference()
	defer func() { d.tell(door, out) }()
	p := d.settings.Load()
	spec, ignored := order.Decide(o, from, p.Rules, p.Scope)
	if ignored != "" {
		out.Ignored, out.entry = ignored, telemetry.EntryIgnored
		return out
	}
	if err := spec.Validate(); err != nil {
		return out.failed(telemetry.EntryRefused, err)
	}
	create := func() (any, error) { return d.create(ctx, from, spec) }
	if o.Digest == "" {
		// A tag can have moved since the last order.
		return out.of(create())
	}
	key := fmt.Sprintf("%s %#v %q", spec.Reference, spec.Scope, spec.Platforms)
	mine := false // of several orders at once, one creates the job
	v, err, _ := d.running.Do(key, func() (any, error) {
		mine = true
		if j, ok := d.known(key); ok {
			return found{j, true}, nil
		}
		v, err := create()
		if err == nil {
			d.remembered.Add(key, v.(found).job.ID)
		}
		return v, err
	})
	if f, ok := v.(found); ok && !mine {
		v = found{f.job, true}
	}
	return out.of(v, err)
}

// found is a job; known is true if it was there before.
type found struct {
	job   preheat.Job
	known bool
}

// known finds the job that an earlier order for the same bytes and hosts began.
func (d *Doors) known(key string) (preheat.Job, bool) {
	id, ok := d.remembered.Get(key)
	if !ok {
		return preheat.Job{}, false
	}
	j, ok := d.cfg.Jobs.Get(id)
	fresh := j.State == preheat.Success && time.Since(j.Finished) < freshFor
	return j, ok && (!j.State.Ended() || fresh)
}

func (d *Doors) create(ctx context.Context, from order.Source, spec preheat.Spec) (any, error) {
	if !d.jobs.Allow() {
		return nil, errLimited
	}
	if from == order.Policy {
		spec.Deadline = time.Now().Add(patience)
	}
	// A second order for the same image can wait for this one, so it does not end with its client.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), createMax)
	defer cancel()
	j, err := d.cfg.Jobs.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	return found{job: j}, nil
}

// of adds a job, or why there is none.
func (out outcome) of(v any, err error) outcome {
	switch {
	case errors.Is(err, errLimited):
		return out.failed(telemetry.EntryLimited, err)
	case errors.Is(err, preheat.ErrInvalid):
		return out.failed(telemetry.EntryRefused, err)
	case err != nil:
		return out.failed(telemetry.EntryFailed, err)
	}
	f := v.(found)
	out.job, out.Job, out.entry = f.job, f.job.ID, telemetry.EntryJob
	if f.known {
		out.entry = telemetry.EntryKnown
	}
	return out
}

func (out outcome) failed(entry telemetry.Entry, err error) outcome {
	out.entry, out.err, out.Error = entry, err, err.Error()
	return out
}

// tell counts an order and logs it, but no more than about one line a second.
func (d *Doors) tell(door telemetry.Door, out outcome) {
	d.cfg.Metrics.Count(door, out.entry)
	level, text := slog.LevelInfo, "preheat ordered"
	switch out.entry {
	case telemetry.EntryKnown, telemetry.EntryIgnored:
		level = slog.LevelDebug
	case telemetry.EntryJob:
	default:
		level, text = slog.LevelWarn, "preheat refused"
	}
	if !d.log.Enabled(context.Background(), level) || !d.lines.Allow() {
		return
	}
	attrs := []any{"door", string(door), "image", out.Image, "job", out.Job, "entry", string(out.entry)}
	if out.err != nil {
		attrs = append(attrs, "error", out.err)
	}
	if out.entry == telemetry.EntryJob {
		attrs = append(attrs, "scope", string(out.job.Spec.Scope.Kind), "zones", strings.Join(out.job.Spec.Scope.Zones, ","))
	}
	d.log.Log(context.Background(), level, text, attrs...)
}
