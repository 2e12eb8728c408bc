// Package coordinator is the code that an owner of tasks runs: it answers announces with the decisions of its
// scheduler, and orders its own engine to fetch a task from its origin when no live host holds it.
//
// A response never waits for an origin: the seed starts in the background, and metadata that arrive later
// follow on the piece wire. Start at [Coordinator.ServeAnnounce].
package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/lag"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/scheduler"
	"github.com/darter-io/darter/pkg/task"
)

// inlineTotal bounds the inline bytes of one response; the rest comes on the piece wire.
const inlineTotal = 4 << 20

// inlineWait is the longest time that a response waits for small tasks which this host fetches from their origins, so
// that it can hold their bytes. Longer spares more connections, and delays the host's other announces to this owner.
const inlineWait = 50 * time.Millisecond

// lockedMax is how many entries of an announce, or metadata, are handled while mu is held: 0.2 ms on one core.
const lockedMax = 256

const (
	// standbysNamed is how many standbys an owner names. One is enough to keep a crowd from the
	// origin, and several seldom die together; each gets the announces of all hosts then.
	standbysNamed = 3
	// standbysAfter is how long an owner must have run, in running time, before its standbys are settled. An idle
	// host announces every five seconds, and an owner that does not know all hosts names other standbys than the
	// other owners do. Until then it calls them early.
	standbysAfter = 6 * time.Second
	// earlyInterval is when a host announces again while standbys are early, so that all hosts soon know the same
	// ones; beyond earlyHosts hosts, the usual interval holds, because the announces would cost too much.
	earlyInterval = time.Second
	earlyHosts    = 1000
	// earlyPause times the hosts beyond earlyFree is the least time between two choices of early standbys, each of
	// which looks at every host.
	earlyPause = 100 * time.Microsecond
	earlyFree  = 64
)

// Store is the part of a piece store that a Coordinator uses.
type Store interface {
	// Open returns the replica of a task; the Coordinator closes it.
	Open(id task.ID) (piece.Replica, error)
	// Complete reports whether the store has all pieces of a task, as far as it remembers: it reads no disk.
	Complete(id task.ID) bool
	Inventory() []piece.Entry
}

// Purges connects a Coordinator's hosts to package purge. Its methods must not call the Coordinator.
type Purges interface {
	// Mark returns the purge mark for a response, empty if there is no order.
	Mark() string
	// Note records what an accepted announce reports. ForgetHost deletes the reports of a host that is gone.
	Note(r api.AnnounceRequest)
	ForgetHost(id host.ID)
}

// Preheats connects a Coordinator's hosts to their preheat orders. Its methods must not call the Coordinator.
type Preheats interface {
	// Mark returns the mark of the orders for a host, empty if there is none.
	Mark(id host.ID) string
	// Note records what an accepted announce reports.
	Note(r api.AnnounceRequest)
}

// Config holds the parts of a Coordinator.
type Config struct {
	// Host is the owner's own host, where its engine serves pieces.
	Host host.Host
	// Scheduler may set limits and times; Self is Host, and a Seed of 0 is drawn.
	Scheduler scheduler.Config
	// Seed orders the host's engine to fetch a task from its origin in the background. It returns at once;
	// the engine reports by SeedMetadata, SeedDone and SeedFailed. It may call the Coordinator.
	Seed func(spec task.Spec)
	// Ahead tells the host's engine for which windows of a task readers on another host wait. It returns the part of
	// the last piece that came ahead and that one of them asks for, or nil. It returns at once. Nil: windows are
	// ignored.
	Ahead func(id task.ID, windows []api.Window) *api.Tail
	// Store is the host's piece store; nil: there is none, and no response has inline bytes.
	Store Store
	// Owners lists the API addresses of all live owners for the responses; nil: none are listed.
	Owners func() []string
	// Purges provides the mark of the purge orders for the responses, and records what hosts report; nil: neither.
	Purges Purges
	// Preheats does the same for the preheat orders of each host; nil: there are none.
	Preheats Preheats
	// Lag measures this host: the hosts that announce are judged in its running time. Nil: this host never stops.
	Lag *lag.Meter
	// Now is this host's wall clock, to compare with other members'. Default [time.Now].
	Now func() time.Time
	// ClockRefused is called for each announce that is refused because of the host's clock; it may be nil.
	ClockRefused func()
	// Observe is called after every announce of another host, with the time to answer it. It may be nil, and must not
	// block.
	Observe func(r api.AnnounceRequest, took time.Duration)
	// Refused is called for refused announces, and for announces whose tasks exceed a bound. It may be nil, and must
	// not block.
	Refused func(r Refusal)
	// Logger receives the log; nil discards it.
	Logger *slog.Logger
}

// Coordinator answers announces. Safe for concurrent use.
type Coordinator struct {
	cfg Config
	log *slog.Logger

	// mu is held to call the scheduler and to look up metadata, never while the store is read or an
	// engine is called.
	mu    sync.Mutex
	sched *scheduler.Scheduler
	// metadata of tasks that a host wants or holds.
	metadata map[task.ID]piece.Metadata
	// settling closes when a small task is complete or failed; only tasks for which a response waits are in it.
	settling map[task.ID]chan struct{}
	// standbys as responses name them; the list is never changed. foundAt is when they were chosen, heard how many
	// hosts were new since the start, and settled whether that was long ago.
	standbys []string
	foundAt  time.Time
	heard    int
	settled  bool
	refusals refusedHosts
	bodies   bodies
	// clockWhy is the reason of the last refusal because of a clock, clockAt its time.
	clockWhy string
	clockAt  time.Time

	// clockLog bounds the log lines about hosts with other clocks.
	clockLog rate.Sometimes
}

// New returns a Coordinator that knows only its own host and the tasks of its store.
func New(cfg Config) *Coordinator {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Scheduler.Self = cfg.Host
	if cfg.Scheduler.Seed == 0 {
		cfg.Scheduler.Seed = rand.Uint64()
	}
	if cfg.Owners != nil {
		// Hosts find a new owner by their heartbeats. To standbys they announce at once.
		cfg.Scheduler.HearFirst = owners.RetryMax
	}
	c := &Coordinator{
		cfg:      cfg,
		log:      cfg.Logger,
		sched:    scheduler.New(cfg.Scheduler),
		metadata: make(map[task.ID]piece.Metadata), settling: make(map[task.ID]chan struct{}),
		clockLog: rate.Sometimes{Interval: clockEvery},
	}
	if c.cfg.Now == nil {
		c.cfg.Now = time.Now
	}
	if cfg.Store != nil {
		for _, e := range cfg.Store.Inventory() {
			if e.Complete {
				c.sched.Done(e.ID, e.Have)
			}
		}
	}
	return c
}

// Run advances the scheduler's time until ctx ends; it returns nil. Without Run, no response names a silent host, but
// the scheduler never forgets it.
func (c *Coordinator) Run(ctx context.Context) error {
	begun := c.cfg.Lag.Now()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			c.tick(ctx, c.cfg.Lag.Now())
			c.mu.Lock()
			now := c.cfg.Lag.Now()
			c.settled = c.settled || now.Sub(begun) >= standbysAfter
			c.findStandbys(now)
			c.mu.Unlock()
		}
	}
}

// tick takes mu for a part of the work at a time, so that announces wait for none of it long.
func (c *Coordinator) tick(ctx context.Context, now time.Time) {
	for more := true; more && ctx.Err() == nil; {
		c.mu.Lock()
		changes := c.sched.Tick(now)
		c.mu.Unlock()
		for _, id := range changes.Gone {
			c.forgetReports(id)
			c.log.Info("host fell silent", "host", id)
		}
		c.seed(changes.Seeds)
		more = changes.More
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := 0
	for id := range c.metadata {
		if !c.sched.Knows(id) {
			delete(c.metadata, id)
		}
		if seen++; seen%lockedMax == 0 {
			c.mu.Unlock()
			c.mu.Lock()
		}
	}
}

// findStandbys chooses the hosts that lead while no owner answers. mu is held.
func (c *Coordinator) findStandbys(now time.Time) {
	c.standbys, c.foundAt = c.sched.Standbys(now, standbysNamed), now
}

// nameStandbys puts the standbys into a response: already the first one holds them. unknown means that it answers a
// host that was not known before. mu is held.
func (c *Coordinator) nameStandbys(now time.Time, unknown bool, response *api.AnnounceResponse) {
	if c.settled {
		response.Standbys = c.standbys
		return
	}
	if unknown {
		if c.heard++; now.Sub(c.foundAt) >= time.Duration(c.heard-earlyFree)*earlyPause {
			c.findStandbys(now)
		}
	}
	response.EarlyStandbys = c.standbys
	if c.heard <= earlyHosts {
		response.IntervalMillis = min(response.IntervalMillis, int(earlyInterval.Milliseconds()))
	}
}

func (c *Coordinator) seed(specs []task.Spec) {
	for _, spec := range specs {
		c.log.Debug("ordering the seed to fetch from the origin",
			"task", spec.ID, "upstream", spec.Upstream, "repository", spec.Repository)
		c.cfg.Seed(spec)
	}
}

// Announce answers an entry of the host's own engine. An assignment with Seed orders the engine to fetch the task from
// its origin; Seed of the Config is not called for it. The leader is [owners.LastResort]: only the announce client
// knows whether other hosts announce here.
func (c *Coordinator) Announce(ctx context.Context, e api.Entry) (api.Assignment, owners.Leader, error) {
	if err := ctx.Err(); err != nil {
		return api.Assignment{}, owners.LastResort, fmt.Errorf("announcing task %s: %w", e.Task.Short(), err)
	}
	own := api.AnnounceRequest{Version: api.Version, Host: c.cfg.Host, Entries: []api.Entry{e}}
	response, err := c.answer(ctx, own, "")
	if err != nil {
		return api.Assignment{}, owners.LastResort, err
	}
	return response.Assignments[0], owners.LastResort, nil
}

// ServeAnnounce answers an announce of a host. It blocks for small files that begin only, for 50 ms at most and until
// ctx ends; ctx also carries the [Sender]. The error is a
// *[RequestError] if the whole request is invalid or names another host than its sender, and wraps [scheduler.ErrFull]
// if a bound admits no other host. An invalid entry gets a Failure and does not affect the others.
func (c *Coordinator) ServeAnnounce(ctx context.Context, r api.AnnounceRequest) (api.AnnounceResponse, error) {
	from := senderOf(ctx, r.Host)
	response, err := c.serve(ctx, r, from)
	if err != nil {
		c.refused(r.Host, from, err)
	}
	return response, err
}

func (c *Coordinator) serve(ctx context.Context, r api.AnnounceRequest, from Sender) (api.AnnounceResponse, error) {
	if c.cfg.Observe != nil {
		defer func(began time.Time) { c.cfg.Observe(r, time.Since(began)) }(time.Now())
	}
	if err := checkRequest(r); err != nil {
		return api.AnnounceResponse{}, err
	}
	if err := c.checkSender(r.Host, from); err != nil {
		return api.AnnounceResponse{}, err
	}
	if err := c.checkClock(r, from); err != nil {
		return api.AnnounceResponse{}, err
	}
	return c.answer(ctx, r, from.source())
}

// answer asks the scheduler and builds the response. source is the network that bounds count by, empty for the owner's
// own host.
func (c *Coordinator) answer(ctx context.Context, r api.AnnounceRequest, source string) (api.AnnounceResponse, error) {
	report := scheduler.Report{
		Host: r.Host, Generation: r.Generation, Source: source, Leaving: r.Leaving, Standby: r.Standby,
		Joined:  r.Joined,
		Woke:    c.cfg.Lag.Woke(),
		Entries: make([]scheduler.Entry, len(r.Entries)),
	}
	refused := make([]error, len(r.Entries))
	for i, e := range r.Entries {
		// A refused entry keeps its place, so that assignments are in order. Without an event the scheduler ignores it.
		if refused[i] = checkEntry(e); refused[i] == nil {
			report.Entries[i] = entry(e)
			if e.Event == api.Started || e.Event == api.Starving {
				c.checkHeld(e)
			}
		}
	}

	decided, err := c.decide(report)
	response := api.AnnounceResponse{Version: api.Version, IntervalMillis: int(decided.Interval.Milliseconds()),
		Resync: decided.Unknown, Assignments: make([]api.Assignment, len(r.Entries))}
	c.mu.Lock()
	c.nameStandbys(c.cfg.Lag.Now(), decided.Unknown, &response)
	c.mu.Unlock()
	// The scheduler relies on this call, also if it returned an error.
	c.seed(decided.Seeds)
	if err != nil {
		return api.AnnounceResponse{}, asRequestError(err)
	}
	if decided.Forgotten > 0 {
		c.forgotten(decided, source)
	}
	switch {
	case r.Leaving:
		c.log.Info("host leaves", "host", r.Host.ID, "name", r.Host.Name)
	case decided.Unknown:
		c.log.Info("host is new", "host", r.Host.ID, "name", r.Host.Name, "addr", r.Host.Addr, "zone", r.Host.Zone)
	}

	c.awaitSmall(ctx, r, decided.Assignments)
	if c.cfg.Owners != nil {
		response.Owners = c.cfg.Owners()
	}
	if c.cfg.Purges != nil {
		c.cfg.Purges.Note(r)
		response.PurgeMark = c.cfg.Purges.Mark()
	}
	if c.cfg.Preheats != nil && r.Host.ID != c.cfg.Host.ID {
		c.cfg.Preheats.Note(r)
		response.PreheatMark = c.cfg.Preheats.Mark(r.Host.ID)
	}
	inline := inlineTotal // bytes left
	for i, e := range r.Entries {
		a := &response.Assignments[i]
		if refused[i] != nil {
			a.Failure = &api.Failure{Status: http.StatusBadRequest, Message: refused[i].Error()}
			continue
		}
		*a = assignment(e.Task, decided.Assignments[i])
		if c.cfg.Ahead != nil && len(e.Windows) > 0 && r.Host.ID != c.cfg.Host.ID {
			if t := c.cfg.Ahead(e.Task, e.Windows); t != nil && len(t.Data) <= inline {
				a.Tail = t
				inline -= len(t.Data)
			}
		}
		if a.Failure != nil || e.Event != api.Started && e.Event != api.Starving {
			continue
		}
		a.Metadata = c.metadataOf(e.Task)
		other := r.Host.ID != c.cfg.Host.ID
		if e.Event == api.Started && other && a.Metadata != nil &&
			a.Metadata.Length <= int64(min(api.InlineMax, inline)) {
			a.Inline, a.Proof = c.readInline(e.Task, *a.Metadata)
			inline -= len(a.Inline)
		}
	}
	return response, nil
}

// decide has the scheduler answer a report, lockedMax entries at a time. After an error, the answer has what was
// decided before it.
func (c *Coordinator) decide(r scheduler.Report) (all scheduler.Answer, err error) {
	rest := r.Entries
	for first := true; err == nil && (first || len(rest) > 0); first = false {
		n := min(len(rest), lockedMax)
		r.Entries, rest = rest[:n], rest[n:]
		var a scheduler.Answer
		c.mu.Lock()
		a, err = c.sched.Announce(c.cfg.Lag.Now(), r)
		c.mu.Unlock()
		all.Assignments = append(all.Assignments, a.Assignments...)
		all.Seeds = append(all.Seeds, a.Seeds...)
		all.Interval = a.Interval
		all.Unknown = all.Unknown || a.Unknown
		if a.Forgotten > 0 {
			all.Forgotten += a.Forgotten
			all.Greedy = a.Greedy
		}
	}
	return all, err
}

// awaitSmall waits a moment for the small files among the entries that begin and that this host fetches from their
// origins now: the response then holds them, and the host needs no connection for each.
func (c *Coordinator) awaitSmall(ctx context.Context, r api.AnnounceRequest, decided []scheduler.Assignment) {
	if c.cfg.Store == nil || len(decided) != len(r.Entries) {
		return
	}
	waits := map[task.ID]chan struct{}{}
	c.mu.Lock()
	for i, e := range r.Entries {
		known := e.Event == api.Started && e.Spec != nil && e.Spec.Length > 0 && e.Spec.Length <= api.InlineMax
		if !known || !decided[i].Reading || c.sched.Holds(e.Task) || c.settling[e.Task] != nil {
			continue // another response waits for it: the bytes go to that one's host, and the rest by the swarm
		}
		waits[e.Task] = make(chan struct{})
		c.settling[e.Task] = waits[e.Task]
	}
	c.mu.Unlock()
	if len(waits) == 0 {
		return
	}
	timer := time.NewTimer(inlineWait)
	defer timer.Stop()
	for _, settled := range waits {
		select {
		case <-settled:
			continue
		case <-timer.C:
		case <-ctx.Done():
		}
		break
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, settled := range waits {
		if c.settling[id] == settled {
			delete(c.settling, id)
		}
	}
}

// settle ends the wait for a task. mu is held.
func (c *Coordinator) settle(id task.ID) {
	if settled := c.settling[id]; settled != nil {
		delete(c.settling, id)
		close(settled)
	}
}

// checkHeld tells the scheduler if the host's own store has evicted a task that was complete. Otherwise the owner would
// still count itself as a holder, and no host would fetch the task from its origin again. A host that starves got
// nothing from this one, so that the store looks at its disk, which may have lost the task.
func (c *Coordinator) checkHeld(e api.Entry) {
	if c.cfg.Store == nil {
		return
	}
	id := e.Task
	c.mu.Lock()
	holds := c.sched.Holds(id)
	c.mu.Unlock()
	if !holds {
		return
	}
	if c.cfg.Store.Complete(id) {
		if e.Event == api.Started {
			return
		}
		if replica, err := c.cfg.Store.Open(id); err == nil {
			full := replica.Have().Full()
			replica.Close()
			if full {
				return
			}
		}
	}
	c.log.Debug("task was evicted here", "task", id)
	c.mu.Lock()
	seeds := c.sched.Lost(c.cfg.Lag.Now(), id)
	c.mu.Unlock()
	c.seed(seeds)
}

// metadataOf returns the metadata that the engine received from an origin or that the store holds, or nil.
func (c *Coordinator) metadataOf(id task.ID) *piece.Metadata {
	c.mu.Lock()
	f, ok := c.metadata[id]
	c.mu.Unlock()
	if ok {
		return &f
	}
	if c.cfg.Store == nil {
		return nil
	}
	replica, err := c.cfg.Store.Open(id)
	if err != nil {
		return nil // the store may lack the task; the engine logs other errors
	}
	defer replica.Close()
	f = replica.Metadata()
	c.SeedMetadata(id, f)
	return &f
}

// readInline returns all bytes of a small task and their proof, or nil if the store does not hold all of it. A host
// rejects bytes that neither the task's digest nor a coordinator's signature proves.
func (c *Coordinator) readInline(id task.ID, f piece.Metadata) ([]byte, *api.Proof) {
	if c.cfg.Store == nil {
		return nil, nil
	}
	replica, err := c.cfg.Store.Open(id)
	if err != nil {
		return nil, nil
	}
	defer replica.Close()
	if replica.Metadata() != f || !replica.Have().Full() {
		return nil, nil
	}
	runs, certificates := replica.Runs()
	proof := api.NewProof(f, runs, certificates)
	if _, named := id.Digest(); !named && proof == nil {
		return nil, nil
	}
	content := make([]byte, f.Length)
	if n, err := replica.ReadAt(content, 0); n < len(content) {
		c.log.Warn("cannot read a small task for a response", "task", id, "error", err)
		return nil, nil
	}
	return content, proof
}

// SeedMetadata records the metadata that the engine received from a task's origin.
func (c *Coordinator) SeedMetadata(id task.ID, f piece.Metadata) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sched.Knows(id) {
		c.metadata[id] = f
	}
}

// SeedDone records that the host holds the whole task.
func (c *Coordinator) SeedDone(id task.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sched.Done(id, c.metadata[id].Layout().Count())
	c.settle(id)
}

// SeedFailed records that the engine could not fetch a task from its origin. Hosts that wait for the task get the
// origin's own response, unless this host's disk is the cause: then one of them fetches it instead. A refusal that may
// depend on the credentials goes only to hosts with the same ones. used is the spec of the request to the origin, which
// can differ from the spec that Seed received; nil if there was no request.
func (c *Coordinator) SeedFailed(id task.ID, used *task.Spec, f *api.Failure) {
	if f == nil {
		f = &api.Failure{Status: http.StatusBadGateway, Message: "the seed could not fetch the task from its origin"}
	}
	c.log.Debug("seed failed", "task", id, "status", f.Status, "error", f.Message)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settle(id)
	if f.Full {
		c.sched.Unable(c.cfg.Lag.Now(), id)
		return
	}
	// The metadata of a failed attempt may be wrong.
	delete(c.metadata, id)
	if used == nil && f.Upstream != "" {
		used = &task.Spec{ID: id, Upstream: f.Upstream, Repository: f.Repository}
	}
	scope := scheduler.OfRegistry
	switch {
	case f.Promise:
		scope = scheduler.OfAsker
	case f.Personal():
		scope = scheduler.OfRequest
	}
	c.sched.Failed(c.cfg.Lag.Now(), id, f, used, scope)
}

// Forget forgets a task and the hosts that hold it.
func (c *Coordinator) Forget(id task.ID) {
	c.mu.Lock()
	seeds := c.sched.Forget(c.cfg.Lag.Now(), id)
	delete(c.metadata, id)
	c.mu.Unlock()
	c.seed(seeds)
}

// Stats returns the scheduler's counts.
func (c *Coordinator) Stats() scheduler.Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sched.Stats()
}

// Hosts lists the hosts that announce here, by name; the owner's own is not among them.
func (c *Coordinator) Hosts() []api.HostStatus {
	out := []api.HostStatus{}
	for from, more := 0, true; more; more = from > 0 {
		var part []scheduler.HostInfo
		c.mu.Lock()
		part, from = c.sched.Hosts(from)
		lost := c.cfg.Lag.Lost()
		c.mu.Unlock()
		for _, h := range part {
			if h.ID != c.cfg.Host.ID {
				out = append(out, api.HostStatus{Host: h.Host, Tasks: h.Tasks, Seen: h.Seen.Add(lost)})
			}
		}
	}
	slices.SortFunc(out, func(a, b api.HostStatus) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(string(a.ID), string(b.ID)))
	})
	return slices.CompactFunc(out, func(a, b api.HostStatus) bool { return a.Host.ID == b.Host.ID })
}

// entry converts an entry for the scheduler.
func entry(e api.Entry) scheduler.Entry {
	out := scheduler.Entry{Task: e.Task, Event: scheduler.Event(e.Event), Have: e.Have, Silent: e.Silent, Left: e.Left,
		Seeds: e.Seeds, Moved: e.Moved, Need: e.Need}
	if e.Spec != nil {
		spec := e.Spec.Task()
		out.Spec = &spec
	}
	return out
}

// assignment converts an assignment for the wire.
func assignment(id task.ID, a scheduler.Assignment) api.Assignment {
	out := api.Assignment{Task: id, Seed: a.Seed, Reading: a.Reading, Local: a.Local, Parts: a.Parts}
	if a.Failure != nil && !errors.As(a.Failure, &out.Failure) {
		out.Failure = &api.Failure{Status: http.StatusBadGateway, Message: a.Failure.Error()}
	}
	for _, n := range a.Neighbours {
		out.Neighbours = append(out.Neighbours, api.Neighbour{Host: n.Host, Reason: string(n.Reason)})
	}
	return out
}
