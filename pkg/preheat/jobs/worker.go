package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// callTimeout bounds one call to another member.
	callTimeout = 5 * time.Second
	// ownersMax bounds the owners whose orders a host keeps.
	ownersMax = 64
	// objectsAtOnce is how many objects of one job a host fetches at once.
	objectsAtOnce = 4
	// stepEvery is how often a host compares what it holds with its orders, and retryMax the longest pause after a
	// failure.
	stepEvery = time.Second
	retryMax  = 30 * time.Second
)

// WorkerConfig is what a Worker works with.
type WorkerConfig struct {
	// Fetch stores an object whole, by way of the swarm, below the priority of pulls.
	Fetch func(ctx context.Context, spec task.Spec) error
	// Complete reports whether the store holds an object whole, without reading a disk. Bytes is how much of one that is
	// on its way has come.
	Complete func(id task.ID) bool
	Bytes    func(id task.ID) int64
	// Owns reports whether this supernode owns a task; nil for a host that is no supernode.
	Owns func(id task.ID) bool
	// Host is this host, Labels are its own.
	Host   host.ID
	Labels map[string]string
	// AnnounceNow has the owners hear of a change at once; nil: they hear of it with the next announce.
	AnnounceNow func()
	Logger      *slog.Logger
}

// Worker carries out the preheat orders of this host: it fetches what it is told to, and reports what it holds. It
// keeps credentials in memory alone, as long as their order holds. Safe for concurrent use.
type Worker struct {
	cfg  WorkerConfig
	wake chan struct{}

	// mu is held to look up and change, never while something is fetched.
	mu    sync.Mutex
	taken map[string]string           // marks whose orders this host knows, by owner
	lists map[string]map[string]order // orders by owner and job
	over  map[string]order            // of jobs that ended, which owners name once
	works map[string]*work            // by job
	sent  map[string]reported         // what each owner got last
	cache struct {                    // of Reports
		at   time.Time
		list []preheat.Report
	}
}

// order is an order with its end.
type order struct {
	preheat.Order
	until time.Time
}

// work is a job on this host.
type work struct {
	order
	stop     context.CancelFunc // nil while nothing is fetched
	attempts int
	err      string
	retry    time.Time
}

// NewWorker returns a Worker that fetches nothing before Run.
func NewWorker(cfg WorkerConfig) *Worker {
	return &Worker{cfg: cfg, wake: make(chan struct{}, 1), taken: map[string]string{},
		lists: map[string]map[string]order{}, over: map[string]order{},
		works: map[string]*work{}, sent: map[string]reported{}}
}

// repeatEvery is how often an owner gets reports that have not changed: a pull announces many times a second.
const repeatEvery = 4 * time.Second

// Fill adds to an announce what this host holds of its jobs, if that has changed or was last sent a while ago.
func (w *Worker) Fill(owner string, r *api.AnnounceRequest) {
	list, now := w.Reports(), time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if last := w.sent[owner]; now.Sub(last.at) < repeatEvery && reflect.DeepEqual(last.list, list) {
		return
	}
	if len(w.sent) >= ownersMax {
		clear(w.sent)
	}
	w.sent[owner] = reported{now, list}
	r.Preheats, r.Labels = list, w.cfg.Labels
}

// reported are the reports that an owner got.
type reported struct {
	at   time.Time
	list []preheat.Report
}

// Learn fetches an owner's orders if this host does not know the mark in the owner's answer.
func (w *Worker) Learn(ctx context.Context, owner, mark string, c apiclient.Client) (learned bool) {
	w.mu.Lock()
	known := w.taken[owner]
	w.mu.Unlock()
	if mark == known || mark == api.PreheatLater {
		return false
	}
	var list []preheat.Order
	if mark != "" {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		var err error
		if list, err = c.PreheatOrders(ctx, w.cfg.Host); err != nil {
			w.cfg.Logger.Warn("cannot fetch preheat orders: trying again with the next announce", "owner", owner, "error", err)
			return false
		}
	}
	w.Take(owner, mark, list)
	return mark != ""
}

// Take replaces the orders of one owner.
func (w *Worker) Take(owner, mark string, list []preheat.Order) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.taken) >= ownersMax && w.taken[owner] == "" {
		clear(w.taken)
		clear(w.lists)
	}
	w.taken[owner] = mark
	own := map[string]order{}
	for _, o := range list {
		own[o.Job] = order{o, now.Add(time.Duration(min(o.LifeMillis, int64(preheat.DeadlineMax+2*preheat.Keep)/1e6)) *
			time.Millisecond)}
		if o.Ended && (len(w.over) < preheat.JobsMax || w.over[o.Job].Job != "") {
			w.over[o.Job] = own[o.Job]
		}
	}
	w.lists[owner] = own
	w.choose(now)
	w.cache.at = time.Time{}
	w.poke()
}

// Adopt is Take for the supernode's own service, which offers the same orders again and again.
func (w *Worker) Adopt(mark string, list []preheat.Order) {
	w.mu.Lock()
	known := w.taken[ownSelf]
	w.mu.Unlock()
	if mark != known {
		w.Take(ownSelf, mark, list)
	}
}

// ownSelf stands for the service of this host among owners.
const ownSelf = "self"

// choose finds the order that counts for each job: the end of a job, else the last wish of an operator, else one to
// fetch. mu is held.
func (w *Worker) choose(now time.Time) {
	maps.DeleteFunc(w.over, func(_ string, o order) bool { return now.After(o.until) })
	best := maps.Clone(w.over)
	for owner, list := range w.lists {
		for job, o := range list {
			if now.After(o.until) {
				delete(list, job)
				continue
			}
			b, ok := best[job]
			later := o.Ended && !b.Ended || o.Ended == b.Ended && (o.Rev > b.Rev || o.Rev == b.Rev && o.Run && !b.Run)
			if !ok || later {
				best[job] = o
			}
		}
		if len(list) == 0 && w.taken[owner] == "" {
			delete(w.lists, owner)
		}
	}
	for job, x := range w.works {
		if _, ok := best[job]; !ok {
			if x.stop != nil {
				x.stop()
			}
			delete(w.works, job)
		}
	}
	for job, o := range best {
		if w.works[job] == nil {
			w.works[job] = &work{}
		}
		x := w.works[job]
		if o.Rev > x.Rev { // an operator wants another try
			x.attempts, x.err, x.retry = 0, "", time.Time{}
		}
		x.order = o
	}
}

func (w *Worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run fetches until ctx ends.
func (w *Worker) Run(ctx context.Context) error {
	var fetching sync.WaitGroup
	defer fetching.Wait()
	tick := time.NewTicker(stepEvery)
	defer tick.Stop()
	for {
		w.step(ctx, &fetching, time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		case <-tick.C:
		}
	}
}

// step begins what is due and stops what is no longer wanted.
func (w *Worker) step(ctx context.Context, fetching *sync.WaitGroup, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.choose(now)
	for _, x := range w.works {
		wanted := x.Run && !x.Ended
		switch {
		case !wanted && x.stop != nil:
			x.stop()
		case wanted && x.stop == nil && !now.Before(x.retry) && len(w.missing(x.Order)) > 0:
			own, stop := context.WithCancel(ctx)
			x.stop = stop
			o := x.Order
			fetching.Go(func() {
				defer stop()
				w.done(o.Job, own, w.fetch(own, o))
			})
		}
	}
}

// wants reports whether an object of an order is for this host.
func (w *Worker) wants(o preheat.Order, id task.ID) bool {
	return !o.Owned || w.cfg.Owns == nil || w.cfg.Owns(id)
}

// missing lists the objects of an order that the store does not hold whole.
func (w *Worker) missing(o preheat.Order) (list []preheat.Object) {
	for _, x := range o.Objects {
		if w.wants(o, x.ID) && !w.cfg.Complete(x.ID) {
			list = append(list, x)
		}
	}
	return list
}

// fetch fetches what is missing, and returns the first error after it tried everything.
func (w *Worker) fetch(ctx context.Context, o preheat.Order) error {
	var g errgroup.Group
	g.SetLimit(objectsAtOnce)
	var mu sync.Mutex // held to note an error
	var first error
	for _, x := range w.missing(o) {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := w.cfg.Fetch(ctx, Spec(o, x)); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if first == nil {
					first = fmt.Errorf("%s %s of %s/%s: %w", x.Kind, x.ID.Short(), o.Upstream, o.Repository, err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if left := w.missing(o); first == nil && len(left) > 0 {
		return fmt.Errorf("%d objects were evicted again, as %s: the cache is too small for the image; raise cache.quota",
			len(left), left[0].ID.Short())
	}
	return first
}

// Spec is the task of an object of an order.
func Spec(o preheat.Order, x preheat.Object) task.Spec {
	s := task.Spec{ID: x.ID, Kind: x.Kind, Upstream: o.Upstream, Repository: o.Repository, Promised: x.Size,
		Authorization: secret.String(o.Authorization)}
	if x.Kind == task.Manifest && x.MediaType != "" {
		s.Accept = []string{x.MediaType, "*/*"}
	}
	return s
}

// done notes how an attempt ended.
func (w *Worker) done(job string, ctx context.Context, err error) {
	w.mu.Lock()
	x := w.works[job]
	stopped := ctx.Err() != nil
	if x != nil {
		x.stop = nil
		switch {
		case err == nil:
			x.err = ""
		case !stopped:
			x.attempts++
			x.err = preheat.Cut(api.OneLine(err.Error()))
			x.retry = time.Now().Add(min(time.Second<<min(x.attempts, 10), retryMax))
		}
	}
	w.cache.at = time.Time{}
	w.mu.Unlock()
	w.poke()
	switch {
	case stopped:
		return
	case err != nil && !errors.Is(err, context.Canceled):
		w.cfg.Logger.Warn("preheat failed: trying again", "job", job, "error", err)
	default:
		w.cfg.Logger.Info("preheat done", "job", job)
	}
	if w.cfg.AnnounceNow != nil {
		w.cfg.AnnounceNow()
	}
}

// reportEvery bounds how often the store is asked for the same report.
const reportEvery = 500 * time.Millisecond

// Reports tells what the host holds of each job now.
func (w *Worker) Reports() []preheat.Report {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if now.Sub(w.cache.at) < reportEvery {
		return w.cache.list
	}
	w.cache.at, w.cache.list = now, nil
	for _, job := range slices.Sorted(maps.Keys(w.works)) {
		if len(w.cache.list) < preheat.ReportsMax {
			w.cache.list = append(w.cache.list, w.report(w.works[job]))
		}
	}
	return w.cache.list
}

func (w *Worker) report(x *work) preheat.Report {
	r := preheat.Report{Job: x.Job, Digest: x.Digest, State: preheat.Success, Ended: x.Ended,
		Attempts: x.attempts, Error: x.err}
	for i, o := range x.Objects {
		if !w.wants(x.Order, o.ID) {
			continue
		}
		r.Total += o.Size
		if w.cfg.Complete(o.ID) {
			r.Hold(i)
			r.Bytes += o.Size
			continue
		}
		r.Bytes += min(w.cfg.Bytes(o.ID), o.Size)
		r.State = preheat.Running
	}
	switch {
	case r.State == preheat.Success:
		r.Error = ""
	case x.stop == nil && x.err != "":
		r.State = preheat.Failed
	case !x.Run || x.Ended:
		r.State = preheat.Pending
	}
	return r
}
