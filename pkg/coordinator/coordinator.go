// Package coordinator is what the owner of tasks runs: it answers announces from what its
// scheduler decides, and sends its own engine to an origin when nobody holds a content.
//
// An answer never waits for an origin: the seed starts while the answer is on its way, and
// what is not known yet follows on the piece wire. Start at [Coordinator.ServeAnnounce].
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
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/scheduler"
	"github.com/darter-io/darter/pkg/task"
)

// inlineTotal bounds the content inside one answer, in bytes; who asks for more in one
// announce gets the rest from the piece wire.
const inlineTotal = 4 << 20

const (
	// standbysNamed is how many hosts are told to be asked while no owner answers. One is enough
	// to keep a crowd from the origin, and more die less easily together; each gets the
	// announces of all hosts then.
	standbysNamed = 3
	// standbysAfter is how long an owner must have run before it names any: an idle host
	// announces every five seconds, and who has not heard all of them names others than its
	// fellow owners do.
	standbysAfter = 6 * time.Second
)

// Store is what a Coordinator asks of its host's piece store.
type Store interface {
	Open(id task.ID) (piece.Replica, error)
	Inventory() []piece.Entry
}

// Purges is what a Coordinator passes between its hosts and package purge. It must not call back.
type Purges interface {
	Mark() string
	// Note takes in what an accepted announce reports, ForgetHost what a host that is gone reported.
	Note(r api.AnnounceRequest)
	ForgetHost(id host.ID)
}

// Config is what a Coordinator is made of.
type Config struct {
	// Host is the owner's own host, where its engine serves pieces.
	Host host.Host
	// Scheduler may set limits and times; Self is Host, and a Seed of 0 is drawn.
	Scheduler scheduler.Config
	// Seed makes the host's engine bring a content from its origin in the background. It
	// returns at once; how it ends is told by SeedMetadata, SeedDone and SeedFailed. It may
	// call the Coordinator.
	Seed func(spec task.Spec)
	// Store is the host's piece store; nil when there is none, and then small content is
	// never sent inside an answer.
	Store Store
	// Owners lists the API addresses of all live owners for the answers; nil tells none.
	Owners func() []string
	// Purges gives the mark of the purge orders for the answers, and takes in what hosts report; nil: neither.
	Purges Purges
	// Now is the wall clock that other members' are compared with. Default [time.Now].
	Now func() time.Time
	// Apart is told of each host that is refused because of its clock; nil tells nobody.
	Apart func()
	// Observe is told of every announce of another host and how long its answer took; nil
	// tells nobody. It must not block.
	Observe func(r api.AnnounceRequest, took time.Duration)
	// Refused is told of announces that were refused, and of tasks that a bound kept out; nil
	// tells nobody. It must not block.
	Refused func(r Refusal)
	// Logger takes what happens; nil discards it.
	Logger *slog.Logger
}

// Coordinator answers announces. Safe for concurrent use.
type Coordinator struct {
	cfg Config
	log *slog.Logger

	// mu is held to ask the scheduler and to look up facts, never while the store is
	// read or an engine is called.
	mu    sync.Mutex
	sched *scheduler.Scheduler
	// facts of contents that somebody wants or holds.
	facts map[task.ID]piece.Metadata
	// standbys as they are told in answers; the list is never changed.
	standbys  []string
	offenders offenders
	// apartWhy is why a host was refused last because of its clock, apartAt when.
	apartWhy string
	apartAt  time.Time

	// apart keeps a crowd of hosts with other clocks from filling the log.
	apart rate.Sometimes
}

// New returns a Coordinator that knows what its own store holds, and nobody else yet.
func New(cfg Config) *Coordinator {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Scheduler.Self = cfg.Host
	if cfg.Scheduler.Seed == 0 {
		cfg.Scheduler.Seed = rand.Uint64()
	}
	c := &Coordinator{
		cfg:   cfg,
		log:   cfg.Logger,
		sched: scheduler.New(cfg.Scheduler),
		facts: make(map[task.ID]piece.Metadata),
		apart: rate.Sometimes{Interval: apartEvery},
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

// Run lets time pass for the scheduler until ctx ends; it returns nil. Without it, hosts
// that fall silent are still left out of answers, but never forgotten.
func (c *Coordinator) Run(ctx context.Context) error {
	begun := time.Now()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			c.tick(now)
			if now.Sub(begun) >= standbysAfter {
				c.findStandbys(now)
			}
		}
	}
}

func (c *Coordinator) tick(now time.Time) {
	c.mu.Lock()
	changes := c.sched.Tick(now)
	for id := range c.facts {
		if !c.sched.Knows(id) {
			delete(c.facts, id)
		}
	}
	c.mu.Unlock()
	for _, id := range changes.Gone {
		c.forgetReports(id)
		c.log.Info("host fell silent", "host", id)
	}
	c.seed(changes.Seeds)
}

// findStandbys looks who is to be asked while no owner answers.
func (c *Coordinator) findStandbys(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.standbys = c.sched.Standbys(now, standbysNamed)
}

func (c *Coordinator) seed(specs []task.Spec) {
	for _, spec := range specs {
		c.log.Debug("bringing content from its origin", "task", spec.ID, "upstream", spec.Upstream, "repository", spec.Repository)
		c.cfg.Seed(spec)
	}
}

// Announce takes in the news of the host's own engine. An answer with Seed means that the
// engine must go to the origin itself; Seed of the Config is not called for it. The leader is
// [owners.LastResort]: a Coordinator does not know which hosts send announces here, only the
// announce client does.
func (c *Coordinator) Announce(ctx context.Context, e api.Entry) (api.Assignment, owners.Leader, error) {
	if err := ctx.Err(); err != nil {
		return api.Assignment{}, owners.LastResort, fmt.Errorf("announcing task %s: %w", e.Task.Short(), err)
	}
	response, err := c.answer(api.AnnounceRequest{Version: api.Version, Host: c.cfg.Host, Entries: []api.Entry{e}}, "")
	if err != nil {
		return api.Assignment{}, owners.LastResort, err
	}
	return response.Assignments[0], owners.LastResort, nil
}

// ServeAnnounce takes in the news of a host; it does not wait for anything, so ctx is asked
// for the [Sender] alone. The error is a *[RequestError] when the request as a whole is wrong or
// speaks for another host, and wraps [scheduler.ErrFull] when there is no room for another host.
// An entry that is wrong by itself is answered with a Failure and hinders no other.
func (c *Coordinator) ServeAnnounce(ctx context.Context, r api.AnnounceRequest) (api.AnnounceResponse, error) {
	from := senderOf(ctx, r.Host)
	response, err := c.serve(r, from)
	if err != nil {
		c.refused(r.Host, from, err)
	}
	return response, err
}

func (c *Coordinator) serve(r api.AnnounceRequest, from Sender) (api.AnnounceResponse, error) {
	if c.cfg.Observe != nil {
		defer func(began time.Time) { c.cfg.Observe(r, time.Since(began)) }(time.Now())
	}
	if err := checkRequest(r); err != nil {
		return api.AnnounceResponse{}, err
	}
	if err := c.checkSender(r.Host, from); err != nil {
		return api.AnnounceResponse{}, err
	}
	if err := c.checkClock(r); err != nil {
		return api.AnnounceResponse{}, err
	}
	return c.answer(r, from.source())
}

// answer decides; source is where the report came from, empty for the owner's own host.
func (c *Coordinator) answer(r api.AnnounceRequest, source string) (api.AnnounceResponse, error) {
	report := scheduler.Report{
		Host: r.Host, Generation: r.Generation, Source: source, Leaving: r.Leaving, Standby: r.Standby, Entries: make([]scheduler.Entry, len(r.Entries)),
	}
	refused := make([]error, len(r.Entries))
	for i, e := range r.Entries {
		// An entry that is refused keeps its place, so that answers are in order; without
		// an event the scheduler passes over it.
		if refused[i] = checkEntry(e); refused[i] == nil {
			report.Entries[i] = entry(e)
			if e.Event == api.Started || e.Event == api.Starving {
				c.checkHeld(e.Task)
			}
		}
	}

	c.mu.Lock()
	decided, err := c.sched.Announce(time.Now(), report)
	standbys := c.standbys
	c.mu.Unlock()
	// Before anything else, also before an error: the scheduler counts on it.
	c.seed(decided.Seeds)
	if err != nil {
		return api.AnnounceResponse{}, asRequestError(err)
	}
	if decided.Forgotten > 0 {
		c.crowded(decided, source)
	}
	switch {
	case r.Leaving:
		c.log.Info("host leaves", "host", r.Host.ID, "name", r.Host.Name)
	case decided.Unknown:
		c.log.Info("host is new", "host", r.Host.ID, "name", r.Host.Name, "addr", r.Host.Addr, "zone", r.Host.Zone)
	}

	response := api.AnnounceResponse{
		Version:        api.Version,
		IntervalMillis: int(decided.Interval.Milliseconds()),
		Resync:         decided.Unknown,
		Assignments:    make([]api.Assignment, len(r.Entries)),
		Standbys:       standbys,
	}
	if c.cfg.Owners != nil {
		response.Owners = c.cfg.Owners()
	}
	if c.cfg.Purges != nil {
		c.cfg.Purges.Note(r)
		response.PurgeMark = c.cfg.Purges.Mark()
	}
	room := inlineTotal
	for i, e := range r.Entries {
		a := &response.Assignments[i]
		if refused[i] != nil {
			a.Failure = &api.Failure{Status: http.StatusBadRequest, Message: refused[i].Error()}
			continue
		}
		*a = assignment(e.Task, decided.Assignments[i])
		if a.Failure != nil || e.Event != api.Started && e.Event != api.Starving {
			continue
		}
		a.Metadata = c.factsOf(e.Task)
		if e.Event == api.Started && r.Host.ID != c.cfg.Host.ID && a.Metadata != nil && a.Metadata.Length <= int64(min(api.InlineMax, room)) {
			a.Inline, a.Proof = c.content(e.Task, *a.Metadata)
			room -= len(a.Inline)
		}
	}
	return response, nil
}

// checkHeld tells the scheduler when the host's own store has evicted a content that was
// complete. Else the owner would go on to count itself as a holder, whom it always
// believes, and nobody would ask the origin again.
func (c *Coordinator) checkHeld(id task.ID) {
	if c.cfg.Store == nil {
		return
	}
	c.mu.Lock()
	holds := c.sched.Holds(id)
	c.mu.Unlock()
	if !holds {
		return
	}
	if replica, err := c.cfg.Store.Open(id); err == nil {
		full := replica.Have().Full()
		replica.Close()
		if full {
			return
		}
	}
	c.log.Debug("content was evicted here", "task", id)
	c.mu.Lock()
	seeds := c.sched.Lost(time.Now(), id)
	c.mu.Unlock()
	c.seed(seeds)
}

// factsOf returns what the engine was told by an origin or the store remembers, or nil.
func (c *Coordinator) factsOf(id task.ID) *piece.Metadata {
	c.mu.Lock()
	f, ok := c.facts[id]
	c.mu.Unlock()
	if ok {
		return &f
	}
	if c.cfg.Store == nil {
		return nil
	}
	replica, err := c.cfg.Store.Open(id)
	if err != nil {
		return nil // it need not have it, and why it cannot be read is the engine's business
	}
	defer replica.Close()
	f = replica.Metadata()
	c.SeedMetadata(id, f)
	return &f
}

// content returns the whole of a small content and who vouches for it, or nil when the store does
// not hold it so. What neither its name nor a coordinator vouches for is not worth its way.
func (c *Coordinator) content(id task.ID, f piece.Metadata) ([]byte, *api.Proof) {
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
		c.log.Warn("small content could not be read for an answer", "task", id, "error", err)
		return nil, nil
	}
	return content, proof
}

// SeedMetadata takes in what the engine learnt of a content from its origin.
func (c *Coordinator) SeedMetadata(id task.ID, f piece.Metadata) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sched.Knows(id) {
		c.facts[id] = f
	}
}

// SeedDone takes in that the host holds a whole content now.
func (c *Coordinator) SeedDone(id task.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sched.Done(id, c.facts[id].Layout().Count())
}

// SeedFailed takes in that a content could not be brought from its origin. Who waits for it
// is told in the origin's own words; a refusal that may be about the credentials is told
// only to those who come with the same ones. Asked is what the origin was asked with, which need not be
// what Seed was called with; nil where no origin was asked.
func (c *Coordinator) SeedFailed(id task.ID, asked *task.Spec, f *api.Failure) {
	if f == nil {
		f = &api.Failure{Status: http.StatusBadGateway, Message: "content could not be brought from its origin"}
	}
	c.log.Debug("origin gave no content", "task", id, "status", f.Status, "error", f.Message)
	c.mu.Lock()
	defer c.mu.Unlock()
	// What this attempt said of the content is worth no more than the attempt.
	delete(c.facts, id)
	if asked == nil && f.Upstream != "" {
		asked = &task.Spec{ID: id, Upstream: f.Upstream, Repository: f.Repository}
	}
	c.sched.Failed(time.Now(), id, f, asked, f.Personal())
}

// Forget forgets a task and the hosts that hold it.
func (c *Coordinator) Forget(id task.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sched.Forget(time.Now(), id)
	delete(c.facts, id)
}

// Stats counts what the scheduler knows.
func (c *Coordinator) Stats() scheduler.Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sched.Stats()
}

// Hosts lists the hosts that announce here, by name; the owner's own is not among them.
func (c *Coordinator) Hosts() []api.HostStatus {
	c.mu.Lock()
	all := c.sched.Hosts()
	c.mu.Unlock()
	out := make([]api.HostStatus, 0, len(all))
	for _, h := range all {
		if h.ID != c.cfg.Host.ID {
			out = append(out, api.HostStatus{Host: h.Host, Tasks: h.Tasks, Seen: h.Seen})
		}
	}
	slices.SortFunc(out, func(a, b api.HostStatus) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(string(a.ID), string(b.ID)))
	})
	return out
}

// entry is an entry in the scheduler's words.
func entry(e api.Entry) scheduler.Entry {
	out := scheduler.Entry{Task: e.Task, Event: scheduler.Event(e.Event), Have: e.Have, Silent: e.Silent, Need: e.Need}
	if e.Spec != nil {
		spec := e.Spec.Task()
		out.Spec = &spec
	}
	return out
}

// assignment is an answer in the words of the wire.
func assignment(id task.ID, a scheduler.Assignment) api.Assignment {
	out := api.Assignment{Task: id, Seed: a.Seed, Local: a.Local}
	if a.Failure != nil && !errors.As(a.Failure, &out.Failure) {
		out.Failure = &api.Failure{Status: http.StatusBadGateway, Message: a.Failure.Error()}
	}
	for _, n := range a.Neighbours {
		out.Neighbours = append(out.Neighbours, api.Neighbour{Host: n.Host, Reason: string(n.Reason)})
	}
	return out
}
