// Package announce tells the owners of tasks what happens on this host, and brings back
// whom to talk to.
//
// A pull never dies because owners do: who does not answer is passed over for the next in
// the order that all hosts agree on. Where no owner is left, the hosts that owners named for that
// case stand in, and the last resort is a coordinator of one's own.
// What a host holds is told to the first two owners of each task, so that the second knows
// it when the first dies. Start at [Client.Announce].
package announce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/rendezvous"
	"github.com/darter-io/darter/pkg/task"
)

// ErrStopped tells that the client's Run has ended.
var ErrStopped = errors.New("announce client was stopped")

// ErrInUse tells that an owner knows another live host by this host's ID.
var ErrInUse = errors.New("this host's ID is another host's")

const (
	// ownersMax bounds the list of owners that an answer may bring.
	ownersMax = 64
	// batchMax is how many entries go in one announce. It is far below api.EntriesMax, so
	// that an inventory of thousands lets the announce of a pull in between.
	batchMax = 512
	// inlineBatch is how many entries in one announce may be answered with content.
	inlineBatch = 64
	// backoffMin and backoffMax bound how soon an owner that failed is tried again.
	backoffMin, backoffMax = 500 * time.Millisecond, 4 * time.Second
	// deadAfter is how long an owner fails before the others are told what it knew.
	deadAfter = 10 * time.Second
	// forgetAfter is how long a task that is announced no more keeps its spec here: an
	// engine keeps a download that nobody reads for a minute or so.
	forgetAfter = 2 * time.Minute
	// intervalFirst is when to announce again while no owner has told it.
	intervalFirst = time.Second
	// roundPause is between two rounds of asking owners that answer wrongly or not at all.
	roundPause = 100 * time.Millisecond
	// leaveTimeout bounds the farewell.
	leaveTimeout = time.Second
)

// Announcer takes in the news of one task and answers it.
type Announcer interface {
	Announce(ctx context.Context, e api.Entry) (api.Assignment, owners.Leader, error)
}

// Purges is what package purge adds to announces and takes from their answers.
type Purges interface {
	// Fill adds to an announce which orders of its owner this host has taken in, and its failures.
	Fill(owner string, r *api.AnnounceRequest)
	// Learn takes in the owner's orders if its mark is new; c calls the owner. It returns true if the owner
	// should hear of it at once.
	Learn(ctx context.Context, owner, mark string, c apiclient.Client) (learned bool)
}

// Config is what a Client is made of.
type Config struct {
	Host host.Host
	// Generation is drawn at the host's start; see [api.AnnounceRequest].
	Generation uint64
	// Owners are the API addresses (host:port) to begin with; answers bring the live list.
	// Empty: everything goes to Local.
	Owners []string
	// Scheme is "https" where the cluster has a secret, else "http", the default.
	Scheme string
	// Client sends requests; default [http.DefaultClient]. It should keep connections.
	Client *http.Client
	// Inventory lists what the host holds, for owners that do not know it; nil: nothing.
	Inventory func() []api.Entry
	// Purges takes part in each announce; nil: nothing about purging is sent or learned.
	Purges Purges
	// Now is the wall clock that owners' are compared with. Default [time.Now].
	Now func() time.Time
	// Local is the host's own coordinator. It is asked for the tasks that this host leads, as
	// an owner or a standby, and when nobody else answers; nil: there is none.
	Local Announcer
	// Standby says that this host takes the announces of others, at the address of Host.
	Standby bool
	// Standbys are those that owners named to a former life of this host; Named is told when they
	// name others. Nil tells nobody.
	Standbys []string
	Named    func([]string)
	// InUse is told when an owner says that this host's ID is another live host's; the error
	// wraps [ErrInUse] and holds the owner's words. Nil tells nobody. It must not block.
	InUse func(error)
	// Patience is how long owners that are silent, but refuse nothing, are asked before
	// Local is: a pull starves machines of CPU, and an owner that is slow is not dead. If
	// every host took it for dead at once, every host would go to the registry. Default 4 s.
	// Three quarters of it have to do where standbys are known: a mistake costs a further copy
	// then, and not one for each host.
	Patience time.Duration
	// Budget is how long one owner may take to answer before the next is asked; the only
	// one has half of Patience. Shorter passes over owners that are merely busy. Default 1 s.
	Budget time.Duration
	// Logger takes what happens; nil discards it.
	Logger *slog.Logger
}

// Client announces. Safe for concurrent use.
type Client struct {
	cfg Config
	log *slog.Logger
	// clear says once that there is no TLS.
	clear sync.Once

	// changed tells Run that owners came or went; ended is closed when Run has ended.
	changed chan struct{}
	ended   chan struct{}

	// mu is held to look up and queue, never while anything is sent or logged: a log that blocks
	// must not keep announces waiting.
	mu sync.Mutex
	// listed are the owners that the last news of them named.
	listed []string
	owners map[string]*owner
	active map[task.ID]*activity
	// standbys are the hosts that owners named last. While all owners are lost, standing is
	// true, and those of them that are not this host are in owners, too.
	standbys []string
	standing bool
}

// activity is a task that this host downloads now.
type activity struct {
	// spec goes to every owner that takes the task over. It holds credentials.
	spec *api.Spec
	// owner was told last; local for the host's own coordinator, none for nobody.
	owner string
	last  time.Time
}

// The names in activity.owner that are no addresses.
const (
	none  = ""
	local = "local"
)

// here stands for this host in lists of owners.
var here = &owner{addr: local}

// New returns a Client; nothing is sent before Run.
func New(cfg Config) *Client {
	if cfg.Scheme == "" {
		cfg.Scheme = "http"
	}
	if cfg.Client == nil {
		cfg.Client = http.DefaultClient
	}
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
	c := &Client{
		cfg:     cfg,
		log:     cfg.Logger,
		changed: make(chan struct{}, 1),
		ended:   make(chan struct{}),
		listed:  slices.Compact(slices.Sorted(slices.Values(cfg.Owners))),
		owners:  make(map[string]*owner),
		active:  make(map[task.ID]*activity),
	}
	for _, addr := range cfg.Standbys {
		if len(c.standbys) < api.StandbysMax && isAddress(addr) {
			c.standbys = append(c.standbys, addr)
		}
	}
	for _, addr := range cfg.Owners {
		if !c.isHere(addr) {
			c.owners[addr] = newOwner(addr)
		}
	}
	return c
}

// Run keeps the owners informed until ctx ends; then it says farewell to them, for at most
// a second, and returns nil.
func (c *Client) Run(ctx context.Context) error {
	var senders sync.WaitGroup
	running := make(map[*owner]context.CancelFunc)
	forget := time.NewTicker(forgetAfter / 4)
	defer forget.Stop()
	for {
		c.mu.Lock()
		for o, stop := range running {
			if c.owners[o.addr] != o {
				stop()
				delete(running, o)
			}
		}
		for _, o := range c.owners {
			if running[o] == nil {
				own, stop := context.WithCancel(ctx)
				running[o] = stop
				senders.Go(func() { c.serve(own, o) })
			}
		}
		c.mu.Unlock()

		select {
		case <-c.changed:
			continue
		case now := <-forget.C:
			c.forget(now)
			continue
		case <-ctx.Done():
		}
		break
	}
	for _, stop := range running {
		stop()
	}
	close(c.ended)
	senders.Wait()
	c.leave(context.WithoutCancel(ctx))
	// An owner that ends soon, too, waits for a connection that was made and never used.
	c.cfg.Client.CloseIdleConnections()
	return nil
}

// Owners tells how the owners that this host knows are, in the order of their addresses. One
// that was not asked yet is neither alive nor has it failed.
func (c *Client) Owners() []api.OwnerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]api.OwnerStatus, 0, len(c.owners))
	for _, o := range c.owners {
		s := api.OwnerStatus{Addr: o.addr, Alive: o.met && !o.down(), Standby: o.standby, Skew: o.skew.Seconds()}
		if o.down() {
			s.Error = o.err.Error()
			if cause := errors.Unwrap(o.err); cause != nil {
				s.Error = cause.Error() // the rest says what the address says
			}
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b api.OwnerStatus) int { return strings.Compare(a.Addr, b.Addr) })
	return out
}

// Standbys lists the hosts that are asked while no owner answers, this one perhaps among them.
func (c *Client) Standbys() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.standbys)
}

// forget drops the specs of tasks that are not announced any more.
func (c *Client) forget(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, t := range c.active {
		if now.Sub(t.last) >= forgetAfter {
			delete(c.active, id)
		}
	}
}

// Announce tells the task's owner and returns its answer. Owners are asked in the order of
// the task until one answers, each for at most Budget. When every owner refuses connections or
// has been silent for Patience, standbys are asked in the same way. The host's own coordinator is
// the last resort of a download that starts or starves, when that is true of standbys, too.
// Before Run, an announce waits for it.
//
// Credentials go to owners over TLS only: without it, the host leads the tasks itself that it has
// credentials for.
//
// The leader says whose coordinator answered. The error tells of every owner that was tried; it is
// ctx's when that ended, and [ErrStopped] when Run has.
func (c *Client) Announce(ctx context.Context, e api.Entry) (api.Assignment, owners.Leader, error) {
	if c.exposes(e) {
		if c.cfg.Local == nil {
			return api.Assignment{}, owners.LastResort, fmt.Errorf("announcing task %s: %w", e.Task.Short(), errClear)
		}
		a, err := c.askLocal(ctx, e, []error{errClear})
		return a, owners.LastResort, err
	}
	for wait := c.patience(); ; wait = c.cfg.Patience {
		a, leader, err := c.askOwners(ctx, e, wait)
		switch {
		case !errors.Is(err, errLost):
			return a, leader, err
		case c.callStandbys():
		default:
			if !c.anyDown() { // of those that are, it was told
				c.log.Warn("owner did not hear of a content in time, so this host leads it", "task", e.Task.Short(), "error", err)
			}
			a, err := c.askLocal(ctx, e, []error{err})
			return a, owners.LastResort, err
		}
	}
}

// anyDown reports whether an owner failed to answer lately.
func (c *Client) anyDown() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.owners {
		if o.down() {
			return true
		}
	}
	return false
}

// errLost tells that every owner refuses connections or was silent for too long.
var errLost = errors.New("no owner answered in time")

// askOwners asks the owners of a task, round after round, for as long as wait. The error is an
// [errLost] when then or before all of them are lost.
func (c *Client) askOwners(ctx context.Context, e api.Entry, wait time.Duration) (api.Assignment, owners.Leader, error) {
	patient, end := context.WithTimeoutCause(ctx, wait, errLost)
	defer end()
	var failures []error
	// In the first round every owner is asked, however long that takes.
	for asking := ctx; ; asking = patient {
		route, standing := c.route(e.Task)
		if len(route) > 0 {
			failures = nil
		}
		for _, o := range route {
			if o == here {
				a, err := c.askLocal(ctx, e, failures)
				return a, owners.Self, err
			}
			a, err := c.ask(asking, o, e)
			if err == nil {
				return a, owners.Other, nil
			}
			if ctx.Err() != nil || errors.Is(err, ErrStopped) {
				return api.Assignment{}, owners.Other, fmt.Errorf("announcing task %s: %w", e.Task.Short(), err)
			}
			failures = append(failures, err)
		}
		if !standing && c.isStanding() {
			continue // they were called meanwhile
		}
		urgent := e.Event == api.Started || e.Event == api.Starving
		switch {
		case len(failures) == 0 && c.cfg.Local == nil:
			failures = []error{errors.New("no owner is known")}
			fallthrough
		case c.cfg.Local == nil, len(route) > 0 && !urgent:
			return api.Assignment{}, owners.Other, fmt.Errorf("announcing task %s: %w", e.Task.Short(), errors.Join(failures...))
		case c.lost():
			return api.Assignment{}, owners.Other, errors.Join(append(failures, errLost)...)
		}
		select {
		case <-patient.Done():
			if ctx.Err() != nil {
				return api.Assignment{}, owners.Other, fmt.Errorf("announcing task %s: %w", e.Task.Short(), context.Cause(ctx))
			}
			return api.Assignment{}, owners.Other, errors.Join(append(failures, errLost)...)
		case <-time.After(roundPause):
		case <-c.ended:
			return api.Assignment{}, owners.Other, fmt.Errorf("announcing task %s: %w", e.Task.Short(), ErrStopped)
		}
	}
}

// askLocal asks the host's own coordinator, after the owners failed.
func (c *Client) askLocal(ctx context.Context, e api.Entry, failures []error) (api.Assignment, error) {
	e = c.prepare(e, local)
	a, _, err := c.cfg.Local.Announce(ctx, e)
	if err != nil {
		return api.Assignment{}, fmt.Errorf("announcing task %s to the own coordinator: %w", e.Task.Short(), errors.Join(append(failures, err)...))
	}
	c.told(ctx, e, local)
	return a, nil
}

// lost reports whether every owner refuses connections, or has not answered for so long
// that nobody should wait for it.
func (c *Client) lost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.allLost()
}

// allLost is lost, standbys among the owners when they are called; mu is held.
func (c *Client) allLost() bool {
	for _, o := range c.owners {
		if !o.lost(c.patienceNow()) {
			return false
		}
	}
	return true
}

// ask asks one owner.
func (c *Client) ask(ctx context.Context, o *owner, e api.Entry) (api.Assignment, error) {
	said := c.prepare(e, o.addr)
	a, err := c.tell(ctx, o, said)
	if err != nil {
		return a, err
	}
	c.told(ctx, said, o.addr)
	return a, nil
}

// route lists the owners to ask for a task: those that answer, in the task's order, then
// those that are silent. One that is lost is asked only where there is no last resort. It
// tells, too, whether standbys are among them.
func (c *Client) route(id task.ID) (route []*owner, standing bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var down []*owner
	for _, o := range c.order(id) {
		switch {
		case !o.down():
			route = append(route, o)
		case c.cfg.Local == nil || !o.lost(c.patienceNow()):
			down = append(down, o)
		}
	}
	return append(route, down...), c.standing
}

// order returns the owners of a task, from the first to the last, this host among them where
// it is one. Those that were configured but are not in the live list come after it, then
// standbys when they are called. mu is held.
func (c *Client) order(id task.ID) []*owner { return c.ordered(string(id)) }

// ordered is order for any key.
func (c *Client) ordered(key string) (order []*owner) {
	add := func(addrs []string) {
		for _, addr := range rendezvous.Order(key, addrs) {
			switch o := c.owners[addr]; {
			case c.isHere(addr):
				order = append(order, here)
			case o != nil:
				order = append(order, o)
			}
		}
	}
	add(c.listed)
	var rest []string
	for addr, o := range c.owners {
		if !o.standby && !slices.Contains(c.listed, addr) {
			rest = append(rest, addr)
		}
	}
	add(rest)
	if c.standing {
		add(slices.DeleteFunc(slices.Clone(c.standbys), func(addr string) bool {
			o := c.owners[addr]
			return o != nil && !o.standby // it is there already
		}))
	}
	return order
}

// prepare completes an entry for an owner that may not know of the task yet: whoever takes
// a task over must hear that it was started, and how the content is brought.
func (c *Client) prepare(e api.Entry, to string) api.Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.active[e.Task]
	switch e.Event {
	case api.Started, api.Starving, api.Progress:
	default:
		return e
	}
	if e.Spec != nil {
		if t == nil {
			t = &activity{}
			c.active[e.Task] = t
		}
		t.spec, t.last = e.Spec, time.Now()
	}
	if t == nil {
		return e
	}
	if e.Event == api.Starving || t.owner != to {
		e.Spec = t.spec
	}
	if e.Event == api.Progress && t.owner != to {
		e.Event = api.Started
	}
	return e
}

// told notes which owner knows of a task now, from the entry as it was sent, and tells
// those that need not care any more or should know as well.
func (c *Client) told(ctx context.Context, e api.Entry, to string) {
	c.mu.Lock()
	former := none
	if t := c.active[e.Task]; t != nil {
		former, t.last = t.owner, time.Now()
		if e.Spec != nil {
			// Without it, an owner that was restarted meanwhile knows only half of it.
			t.owner = to
		}
	}
	switch e.Event {
	case api.Completed, api.Stopped:
		delete(c.active, e.Task)
		for _, o := range c.firstTwo(e.Task) {
			if o.addr != to && o.addr != former && o != here {
				o.enqueue(&call{entry: e})
			}
		}
	default:
		// The former owner must not send others here in its own swarm, nor keep a seed
		// for it.
		e = api.Entry{Task: e.Task, Event: api.Stopped}
	}
	if former == to {
		former = none
	}
	if o := c.owners[former]; o != nil && !o.down() {
		o.enqueue(&call{entry: e})
	}
	c.mu.Unlock()
	if former == local {
		if _, _, err := c.cfg.Local.Announce(ctx, e); err != nil {
			c.log.Debug("own coordinator was not told of a task's new owner", "task", e.Task, "error", err)
		}
	}
}

// firstTwo returns the first owners of a task among those that answer. mu is held.
func (c *Client) firstTwo(id task.ID) (two []*owner) {
	for _, o := range c.order(id) {
		if !o.down() {
			if two = append(two, o); len(two) == 2 {
				break
			}
		}
	}
	return two
}

// budget is how long one owner may take: Budget where another can be asked instead, else
// half of Patience. Asking the same one more often would only make it shake hands again.
func (c *Client) budget() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	alive := 0
	for _, o := range c.owners {
		if !o.lost(c.patienceNow()) {
			alive++
		}
	}
	if alive > 1 {
		return c.cfg.Budget
	}
	return max(c.cfg.Budget, c.patienceNow()/2)
}

// tell queues an entry for an owner and waits for its answer, within the budget.
func (c *Client) tell(ctx context.Context, o *owner, e api.Entry) (api.Assignment, error) {
	waits := &call{entry: e, done: make(chan result, 1)}
	limit := c.budget()
	c.mu.Lock()
	o.enqueue(waits)
	c.mu.Unlock()
	budget := time.NewTimer(limit)
	defer budget.Stop()
	var err error
	select {
	case r := <-waits.done:
		return r.assignment, r.err
	case <-budget.C:
		err = fmt.Errorf("owner %s did not answer within %s", o.addr, limit)
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-c.ended:
		err = ErrStopped
	}
	c.mu.Lock()
	o.queue = slices.DeleteFunc(o.queue, func(q *call) bool { return q == waits })
	c.mu.Unlock()
	return api.Assignment{}, err
}

// list takes a new list of live owners. mu is held.
func (c *Client) list(addrs []string) {
	c.listed = addrs
	for _, addr := range addrs {
		if !c.isHere(addr) && (c.owners[addr] == nil || c.owners[addr].standby) {
			c.owners[addr] = newOwner(addr)
		}
	}
	for addr, o := range c.owners {
		if !slices.Contains(addrs, addr) && !slices.Contains(c.cfg.Owners, addr) {
			c.dismiss(o)
		}
	}
	c.change()
}

// dismiss takes an owner out. mu is held.
func (c *Client) dismiss(o *owner) {
	delete(c.owners, o.addr)
	o.fail(fmt.Errorf("owner %s is no owner any more", o.addr))
}

// change tells Run that owners came or went.
func (c *Client) change() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}
