// Package announce reports to the owners of tasks what happens on this host, and returns their assignments. It also
// sends lookups to owners.
//
// A pull never fails because owners die: package owners decides which owner each announce goes to, then which standby,
// and the last resort is a coordinator of the host's own. The first two owners of each task receive what the host
// holds, so that the second one knows it when the first one dies.
// Start at [Client.Announce].
package announce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/lag"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/task"
)

// ErrStopped means that the client's Run has ended.
var ErrStopped = errors.New("announce client was stopped")

// ErrInUse means that an owner knows another live host with this host's ID.
var ErrInUse = errors.New("another live host uses this host's ID")

const (
	// ownersMax bounds the list of owners in a response.
	ownersMax = 64
	// batchMax is how many entries go in one announce. It is far below api.EntriesMax, so that the
	// announce of a pull need not wait for an inventory of thousands.
	batchMax = 512
	// inlineBatch is how many entries in one announce may get bytes inline.
	inlineBatch = 64
	// forgetAfter is how long the client keeps the spec of a task after its last announce: an engine
	// keeps a download without a reader for a minute or so.
	forgetAfter = 2 * time.Minute
	// intervalFirst is when to announce again while no owner has named a time.
	intervalFirst = time.Second
	// roundPause is the pause between two rounds of requests to owners that answer wrongly or not at all.
	roundPause = 100 * time.Millisecond
	// leaveTimeout bounds the last announce.
	leaveTimeout = time.Second
)

// Announcer receives an entry and returns the assignment for it.
type Announcer interface {
	Announce(ctx context.Context, e api.Entry) (api.Assignment, owners.Leader, error)
}

// Purges is what packages purge and preheat add to announces and take from their answers.
type Purges interface {
	// Fill adds to an announce which of the owner's orders this host knows, and its failures.
	Fill(owner string, r *api.AnnounceRequest)
	// Learn fetches the owner's orders if its mark is new; c calls the owner. It returns true if the next announce to the
	// owner should follow at once.
	Learn(ctx context.Context, owner, mark string, c apiclient.Client) (learned bool)
}

// Config holds the parts and settings of a Client.
type Config struct {
	Host host.Host
	// Generation is drawn at the host's start; see [api.AnnounceRequest].
	Generation uint64
	// Owners are the API addresses (host:port) to begin with; responses bring the live list.
	// Empty: everything goes to Local.
	Owners []string
	// Scheme is "https" where the cluster has a secret, otherwise "http", the default.
	Scheme string
	// Client sends requests; default [http.DefaultClient]. It should keep connections.
	Client *http.Client
	// Inventory lists what the host holds, for owners that do not know it; nil: nothing.
	Inventory func() []api.Entry
	// Purges takes part in each announce; nil: nothing about purging is sent or learned.
	Purges Purges
	// Preheats takes part in each announce in the same way; nil: the host fetches nothing on orders.
	Preheats Purges
	// Now is this host's wall clock, to compare with the owners'. Default [time.Now].
	Now func() time.Time
	// Local is the host's own coordinator, for tasks that this host leads as an owner or a standby,
	// and for those that no other host leads; nil: there is none.
	Local Announcer
	// Standby means that this host takes the announces of others, at the address of Host.
	Standby bool
	// Standbys are those that owners named before this host's last restart. The client calls Named
	// when owners name others; nil: it does not. Named may write to a disk: no announce waits for it,
	// but Run does.
	Standbys []string
	Named    func([]string)
	// InUse is called when an owner says that this host's ID is another live host's; the error wraps
	// [ErrInUse] and the owner's message. It may be nil, and must not block.
	InUse func(error)
	// Patience is how long the client tries silent owners before Local leads: a pull takes CPU from
	// all programs, and a slow owner is not dead. If every host took it for dead at once, every host
	// would go to the registry. Default 4 s. With standbys, three quarters of it are enough: a wrong
	// guess then costs one more copy, not one for each host.
	Patience time.Duration
	// Budget is how long one owner may take to answer before the client asks the next; the only owner
	// has half of Patience. Shorter passes over owners that are merely busy. Default 1 s.
	Budget time.Duration
	// Lag measures this host: Patience, Budget and other waits for owners are in its running time. Nil: this host never
	// stops.
	Lag *lag.Meter
	// Logger receives the log; nil discards it.
	Logger *slog.Logger
}

// Client sends a host's announces. Safe for concurrent use.
type Client struct {
	cfg Config
	log *slog.Logger
	// warnPlaintext logs once that there is no TLS.
	warnPlaintext sync.Once

	// changed wakes Run when owners join or leave; ended is closed when Run has ended.
	changed chan struct{}
	ended   chan struct{}
	// named wakes the goroutine that passes new standbys to Config.Named.
	named chan struct{}

	// mu is held to decide and to queue, never while anything is sent or logged: a log that blocks
	// must not delay announces.
	mu        sync.Mutex
	view      *owners.View
	senders   map[string]*sender // those of the view's members, by address
	downloads downloads
}

// New returns a Client; it sends nothing before Run.
func New(cfg Config) *Client {
	if cfg.Scheme == "" {
		cfg.Scheme = "http"
	}
	if cfg.Client == nil {
		cfg.Client = http.DefaultClient
	}
	// No owner redirects. A redirect would lead credentials of clients to any host, or this host to any address.
	direct := *cfg.Client
	direct.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	cfg.Client = &direct
	if cfg.Budget <= 0 {
		cfg.Budget = time.Second
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 4 * time.Second
	}
	if cfg.Inventory == nil {
		cfg.Inventory = func() []api.Entry { return nil }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	standbys := slices.DeleteFunc(slices.Clone(cfg.Standbys), func(addr string) bool { return !isAddress(addr) })
	view := owners.Config{
		LastResort: cfg.Local != nil, Owners: cfg.Owners, Standbys: standbys[:min(len(standbys), api.StandbysMax)],
		Patience: cfg.Patience, Budget: cfg.Budget,
	}
	if cfg.Local != nil {
		view.Self = cfg.Host.Addr
	}
	c := &Client{
		cfg:     cfg,
		log:     cfg.Logger,
		changed: make(chan struct{}, 1), named: make(chan struct{}, 1),
		ended:     make(chan struct{}),
		view:      owners.New(view),
		senders:   make(map[string]*sender),
		downloads: make(downloads),
	}
	for _, addr := range c.view.Members() {
		c.senders[addr] = newSender(addr)
	}
	return c
}

// Run keeps the owners informed until ctx ends; then it tells them that the host leaves, for at
// most a second, and returns nil.
func (c *Client) Run(ctx context.Context) error {
	var sending sync.WaitGroup
	if c.cfg.Named != nil {
		sending.Go(c.passStandbys)
	}
	running := make(map[*sender]context.CancelFunc)
	forget := time.NewTicker(forgetAfter / 4)
	defer forget.Stop()
	for ctx.Err() == nil {
		c.mu.Lock()
		for s, stop := range running {
			if c.senders[s.addr] != s {
				stop()
				delete(running, s)
			}
		}
		for _, s := range c.senders {
			if running[s] == nil {
				own, stop := context.WithCancel(ctx)
				running[s] = stop
				sending.Go(func() { c.serve(own, s) })
			}
		}
		c.mu.Unlock()

		select {
		case <-c.changed:
		case now := <-forget.C:
			c.mu.Lock()
			c.downloads.forget(now)
			c.mu.Unlock()
		case <-ctx.Done():
		}
	}
	for _, stop := range running {
		stop()
	}
	close(c.ended)
	sending.Wait()
	c.leave(context.WithoutCancel(ctx))
	// An owner that stops, too, would wait for a connection that was made and never used.
	c.cfg.Client.CloseIdleConnections()
	return nil
}

// passStandbys calls Config.Named with the latest standbys after each change, until Run ends. It is
// apart from the senders, since a slow disk would otherwise make owners look silent.
func (c *Client) passStandbys() {
	for {
		select {
		case <-c.named:
			c.cfg.Named(c.Standbys())
		case <-c.ended:
			select {
			case <-c.named:
				c.cfg.Named(c.Standbys())
			default:
			}
			return
		}
	}
}

// apply applies an event to the view, and starts and stops senders accordingly. mu is held. The
// caller passes the changes to [Client.report] once it has released mu.
func (c *Client) apply(e owners.Event) owners.Changes {
	changes := c.view.Apply(c.cfg.Lag.Now(), e)
	for _, addr := range changes.Left {
		c.downloads.disown(addr)
		c.senders[addr].fail(fmt.Errorf("owner %s is no owner any more", addr))
		delete(c.senders, addr)
	}
	for _, addr := range changes.Joined {
		c.senders[addr] = newSender(addr)
	}
	if changes.Died {
		for _, s := range c.senders {
			s.resync = true
		}
	}
	if len(changes.Left)+len(changes.Joined) > 0 {
		select {
		case c.changed <- struct{}{}:
		default:
		}
	}
	return changes
}

// report logs what an event of an owner changed, and passes new standbys on; err is why the owner
// failed. mu is not held.
func (c *Client) report(owner string, changes owners.Changes, err error) {
	switch {
	case changes.Suspected && identity.OfClocks(err):
		c.log.Warn("this host does not use an owner whose clock is too far from its own", "owner", owner, "error", err)
	case changes.Suspected:
		c.log.Warn("owner does not answer", "owner", owner, "error", err)
	case changes.Outage > 0:
		c.log.Info("owner answers again", "owner", owner, "after", changes.Outage.Round(time.Millisecond))
	}
	if changes.Called {
		c.log.Warn("no owner answers, so standbys lead", "standbys", c.Standbys())
	}
	if changes.Standbys != nil {
		select {
		case c.named <- struct{}{}:
		default:
		}
	}
}

// AnnounceNow announces to all owners now, without waiting for the interval.
func (c *Client) AnnounceNow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.senders {
		s.poke()
	}
}

// Owners reports the state of the owners that this host knows, in the order of their addresses. An
// untried owner is neither alive nor has it failed.
func (c *Client) Owners() []api.OwnerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.view.Owners(c.cfg.Lag.Now())
	out := make([]api.OwnerStatus, 0, len(all))
	for _, o := range all {
		s := api.OwnerStatus{
			Addr: o.Addr, Alive: o.State == owners.Alive, Standby: o.Standby, Skew: c.senders[o.Addr].skew.Seconds(),
		}
		if o.Err != nil {
			s.Error = o.Err.Error()
			if cause := errors.Unwrap(o.Err); cause != nil {
				s.Error = cause.Error() // the rest repeats the address
			}
		}
		out = append(out, s)
	}
	return out
}

// Order lists the owners of a task, in the order in which they lead it.
func (c *Client) Order(id task.ID) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view.Order(string(id))
}

// Standbys lists the hosts that lead while no owner answers; this host may be one.
func (c *Client) Standbys() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view.Standbys()
}

// Announce sends an entry to the task's owner and returns its assignment. It asks the owners in the
// order of the task until one answers, each for at most Budget. When every owner refuses connections or
// has been silent for Patience, it asks the standbys in the same way. The host's own coordinator is
// the last resort of a download that starts or starves, when that is true of the standbys, too.
// Before Run, an announce waits for it.
//
// Credentials go to owners over TLS only: without it, the host itself leads the tasks that it has
// credentials for.
//
// The leader says whose coordinator answered. The error names every owner that was tried; it is
// ctx's when that ended, and [ErrStopped] when Run has.
func (c *Client) Announce(ctx context.Context, e api.Entry) (api.Assignment, owners.Leader, error) {
	if c.staysHere(e) {
		if c.cfg.Local == nil {
			return api.Assignment{}, owners.LastResort, fmt.Errorf("announcing task %s: %w", e.Task.Short(),
				errPlaintext)
		}
		a, err := c.askLocal(ctx, e, []error{errPlaintext})
		return a, owners.LastResort, err
	}
	for {
		c.mu.Lock()
		wait, lead := c.view.Patience(), c.view.Lead()
		c.mu.Unlock()
		a, leader, err := c.askOwners(ctx, e, wait, lead)
		if errors.Is(err, errLead) {
			continue
		}
		if errors.Is(err, errRefused) {
			a, err = c.askLocal(ctx, e, []error{err})
			return a, owners.LastResort, err
		}
		if !errors.Is(err, errLost) {
			return a, leader, err
		}
		c.mu.Lock()
		changes, fails, changed := c.apply(owners.NoneAnswered{}), c.view.AnyFails(), c.view.Lead() != lead
		c.mu.Unlock()
		c.report("", changes, nil)
		if changed { // by this announce, or by another one at the same time
			continue
		}
		if !fails { // otherwise the failure of an owner is in the log already
			c.log.Warn("owner did not receive a task in time, so this host leads it", "task", e.Task.Short(),
				"error", err)
		}
		a, err = c.askLocal(ctx, e, []error{err})
		return a, owners.LastResort, err
	}
}

// errLost means that every owner refuses connections or was silent for too long.
var errLost = errors.New("no owner answered in time")

// errRefused means that every owner is alive and refused the entry, so no other host can lead its task.
var errRefused = errors.New("every owner refused it")

// errLead means that other hosts lead since a moment ago: standbys, or owners again. They have not been asked yet.
var errLead = errors.New("other hosts lead now")

// askOwners asks the owners of a task, round after round, for as long as wait. The error wraps
// [errLost] when all of them are lost, or wait is over, [errRefused] when all refused the entry, and [errLead] when
// other hosts than lead says began to lead: then the caller begins again with the time that they get.
func (c *Client) askOwners(
	ctx context.Context, e api.Entry, wait time.Duration, lead owners.Lead,
) (api.Assignment, owners.Leader, error) {
	failed := func(err error) (api.Assignment, owners.Leader, error) {
		return api.Assignment{}, owners.Other, fmt.Errorf("announcing task %s: %w", e.Task.Short(), err)
	}
	patient, end := c.cfg.Lag.WithTimeout(ctx, wait, errLost)
	defer end()
	var failures []error
	refusals := 0
	// The first round asks every owner, however long that takes.
	for asking := ctx; ; asking = patient {
		c.mu.Lock()
		route, changed := c.view.Route(c.cfg.Lag.Now(), string(e.Task)), c.view.Lead() != lead
		c.mu.Unlock()
		if changed {
			return failed(errLead)
		}
		if len(route) > 0 {
			failures, refusals = nil, 0
		}
		for _, addr := range route {
			if c.isSelf(addr) {
				// An owner that answers again dismisses the standbys, and with it the request to the one before this host.
				if c.leadChanged(lead) {
					return failed(errLead)
				}
				a, err := c.askLocal(ctx, e, failures)
				return a, owners.Self, err
			}
			a, err := c.ask(asking, addr, e)
			if err == nil {
				return a, owners.Other, nil
			}
			if ctx.Err() != nil || errors.Is(err, ErrStopped) {
				return failed(err)
			}
			failures = append(failures, err)
			if refused := (*refusedError)(nil); errors.As(err, &refused) {
				refusals++
			}
		}
		c.mu.Lock()
		changed = c.view.Lead() != lead
		lost := c.view.AllLost(c.cfg.Lag.Now())
		c.mu.Unlock()
		if changed {
			return failed(errLead)
		}
		urgent := e.Event == api.Started || e.Event == api.Starving
		switch {
		case c.cfg.Local == nil && len(failures) == 0:
			return failed(errors.New("no owner is known"))
		case c.cfg.Local == nil, len(route) > 0 && !urgent:
			return failed(errors.Join(failures...))
		case !lost && refusals > 0 && refusals == len(route):
			return api.Assignment{}, owners.Other, errors.Join(append(failures, errRefused)...)
		case lost:
			return api.Assignment{}, owners.Other, errors.Join(append(failures, errLost)...)
		}
		select {
		case <-patient.Done():
			if ctx.Err() != nil {
				return failed(context.Cause(ctx))
			}
			return api.Assignment{}, owners.Other, errors.Join(append(failures, errLost)...)
		case <-time.After(roundPause):
		case <-c.ended:
			return failed(ErrStopped)
		}
	}
}

// leadChanged reports whether other hosts lead than lead says.
func (c *Client) leadChanged(lead owners.Lead) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view.Lead() != lead
}

// isSelf reports whether this host itself receives announces at an address.
func (c *Client) isSelf(addr string) bool { return c.cfg.Local != nil && addr == c.cfg.Host.Addr }

// askLocal asks the host's own coordinator, after the owners failed.
func (c *Client) askLocal(ctx context.Context, e api.Entry, failures []error) (api.Assignment, error) {
	c.mu.Lock()
	e = c.downloads.prepare(time.Now(), e, local)
	c.mu.Unlock()
	a, _, err := c.cfg.Local.Announce(ctx, e)
	if err != nil {
		err = errors.Join(append(failures, err)...)
		return api.Assignment{}, fmt.Errorf("announcing task %s to this host's own coordinator: %w",
			e.Task.Short(), err)
	}
	c.delivered(ctx, e, local)
	return a, nil
}

// ask queues an entry for one owner and waits for its assignment, for at most the owner's budget.
func (c *Client) ask(ctx context.Context, addr string, e api.Entry) (api.Assignment, error) {
	waits := &call{done: make(chan result, 1)}
	c.mu.Lock()
	s := c.senders[addr]
	if s == nil {
		c.mu.Unlock()
		return api.Assignment{}, fmt.Errorf("owner %s is no owner any more", addr)
	}
	waits.entry = c.downloads.prepare(time.Now(), e, addr)
	limit := c.view.Budget(c.cfg.Lag.Now())
	s.enqueue(waits)
	c.mu.Unlock()
	late := fmt.Errorf("owner %s did not answer within %s", addr, limit)
	budget, cancel := c.cfg.Lag.WithTimeout(ctx, limit, late)
	defer cancel()
	var err error
	select {
	case r := <-waits.done:
		if r.err == nil {
			c.delivered(ctx, waits.entry, addr)
		}
		return r.assignment, r.err
	case <-budget.Done():
		err = context.Cause(budget)
	case <-c.ended:
		err = ErrStopped
	}
	c.mu.Lock()
	s.queue = slices.DeleteFunc(s.queue, func(q *call) bool { return q == waits })
	c.mu.Unlock()
	return api.Assignment{}, err
}

// delivered notes which owner knows of a task now, from the entry as it was sent. It sends the end of the download to
// the other owners that must know it: the former one, and the first two of a task that is complete or gone.
func (c *Client) delivered(ctx context.Context, e api.Entry, to string) {
	c.mu.Lock()
	former := c.downloads.delivered(time.Now(), e, to)
	switch e.Event {
	case api.Completed, api.Stopped:
		first := c.firstTwo(e.Task)
		for addr, s := range c.senders {
			more := e.Event == api.Stopped && s.more && c.answers(s)
			if addr != to && addr != former && (slices.Contains(first, addr) || more) {
				s.enqueue(&call{entry: e})
			}
		}
	default:
		// The former owner must not send others here in its own swarm, nor keep a seed for it.
		e = api.Entry{Task: e.Task, Event: api.Stopped, Moved: true}
	}
	if s := c.senders[former]; s != nil && c.view.State(c.cfg.Lag.Now(), former) <= owners.Alive {
		s.enqueue(&call{entry: e})
	}
	c.mu.Unlock()
	if former == local {
		if _, _, err := c.cfg.Local.Announce(ctx, e); err != nil {
			c.log.Debug("own coordinator does not know that a task has another owner", "task", e.Task, "error", err)
		}
	}
}

// firstTwo returns the first owners of a task among those that answer; this host may be one. mu is held.
func (c *Client) firstTwo(id task.ID) []string {
	answering := c.view.Answering(string(id))
	return answering[:min(len(answering), 2)]
}
