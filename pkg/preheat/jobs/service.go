// Package jobs keeps the preheat jobs of a cluster and carries them out: the supernodes' part is a [Service], that of
// every host a [Worker].
//
// Every supernode knows every job, answers for it and gives hosts their orders; only the one that is first in
// rendezvous order of the job decides what changes it. Credentials of a job are never written to a disk: supernodes
// keep them in memory and give them to each other and to the hosts that fetch, over TLS alone. Start at
// [Service.Create].
package jobs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/atomicfile"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/rendezvous"
)

const (
	// journalFile is where a supernode keeps its jobs, in its data directory, without their credentials.
	journalFile = "preheats.json"
	// planEvery is how often a supernode looks what follows, compareEvery how often it compares jobs with another one.
	planEvery    = time.Second
	compareEvery = 2 * time.Second
	// resolvePause and resolvePauseMax bound the pause before the reference of a job is looked up again.
	resolvePause, resolvePauseMax = time.Second, 30 * time.Second
	// ageMax is the age of a job that a former process began: every host that is known counts.
	ageMax = preheat.DeadlineMax + preheat.Keep
	// stepPause is the least time between two plans: many hosts report at once.
	stepPause = 50 * time.Millisecond
	// webhookTimeout bounds one call of a webhook, webhookTries how often one is called.
	webhookTimeout = 10 * time.Second
	webhookTries   = 5
)

// Config is what a Service works with.
type Config struct {
	Dir string
	// Host is this supernode, Self the address of its API as in Owners, which lists the live supernodes; nil for one
	// alone.
	Host   host.Host
	Labels map[string]string
	Self   string
	Owners func() []string
	// Scheme and Transport reach other supernodes; Secure says that nobody else can read what is sent.
	Scheme    string
	Secure    bool
	Transport func() *http.Transport
	// Webhooks reaches the webhooks of jobs. Every member can give a supernode a job, so it must refuse the addresses that
	// no request of a member may reach.
	Webhooks http.RoundTripper
	// Allow returns nil for a registry to which this cluster sends requests.
	Allow    func(upstream string) error
	Registry Registry
	// Worker carries out the orders for this supernode itself.
	Worker *Worker
	// Now is the wall clock.
	Now    func() time.Time
	Logger *slog.Logger
}

// Service keeps jobs. Safe for concurrent use.
type Service struct {
	cfg  Config
	log  *slog.Logger
	wake chan struct{}
	// began is when this service began to hear hosts.
	began time.Time

	// saving is held while the journal is written.
	saving sync.Mutex
	// mu is held to look up and change, for less than a millisecond: plans are made of a [view], without it. It is never
	// held while something is sent or written.
	mu sync.Mutex
	// The values of records and hosts never change: a change puts another value into the map.
	records map[string]*preheat.Record
	hosts   map[host.ID]*seen
	plans   map[host.ID]plan
	// born is when this supernode first knew each job, by its own clock; zero if a former process did. Clocks differ, so
	// the time in a record is compared with no announce.
	born map[string]time.Time
	// seeds are the other supernodes by the address of their API.
	seeds map[string]host.ID
	// planned are the hosts that were known when the plans were made.
	planned map[host.ID]bool
	// over are the jobs that ended, by ID; another map replaces it, and overRev grows, when one ends or is forgotten.
	over    []*preheat.Record
	overRev int
	// made counts the plans of Run, for tests: a job that ended needs none.
	made int
	// resolving and calling are the jobs whose reference is looked up and whose webhook is called now; tries counts the
	// attempts, and due is when the next one may begin.
	resolving, calling map[string]bool
	tries              map[string]int
	due                map[string]time.Time
	unsaved            bool
}

// seen is what a host last announced.
type seen struct {
	host    host.Host
	labels  map[string]string
	seed    bool
	life    uint64
	at      time.Time
	reports map[string]*preheat.Report
	// former are the jobs of which the process before this one on the host reported.
	former map[string]bool
	// owed are the jobs that ended and of which the host shall hear; they are those of overRev, with the mark owedMark.
	owed     []*preheat.Record
	owedMark string
	overRev  int
}

// plan holds the orders for a host of the jobs that run.
type plan struct {
	mark   string
	orders []preheat.Order
}

// view is what the service knew at one moment. It never changes, so the service reads it without the lock.
type view struct {
	now     time.Time
	records []*preheat.Record // by ID
	born    map[string]time.Time
	hosts   []*seen
	// strangers are the supernodes that gossip knows and that have told nothing yet.
	strangers []string
	owners    []string
}

// Open reads the journal.
func Open(cfg Config) (*Service, error) {
	s := &Service{cfg: cfg, log: cfg.Logger, wake: make(chan struct{}, 1), began: cfg.Now(),
		records: map[string]*preheat.Record{}, born: map[string]time.Time{},
		hosts: map[host.ID]*seen{}, seeds: map[string]host.ID{}, plans: map[host.ID]plan{},
		resolving: map[string]bool{}, calling: map[string]bool{},
		tries: map[string]int{}, due: map[string]time.Time{}}
	path := filepath.Join(cfg.Dir, journalFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the preheat jobs: %w", err)
	}
	file, err := DecodeRecords(b)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w; delete the file to forget all preheat jobs", path, err)
	}
	for _, r := range file.List {
		s.records[r.ID] = &r.Record
	}
	s.gather()
	return s, nil
}

// ErrPlaintext refuses credentials where members could not send them to each other in secret.
var ErrPlaintext = errors.New("a preheat with credentials needs a cluster secret: without one, supernodes would send " +
	"them to the nodes in plain text; set cluster.secretFile, or let the nodes use their own credentials")

// ErrFull means that all jobs that supernodes remember still run.
var ErrFull = errors.New("too many preheats run; cancel one, or wait until one ends")

// Create begins a job, and returns once it is on the disk. The error wraps [preheat.ErrInvalid] for a spec that no job
// can have.
func (s *Service) Create(ctx context.Context, spec preheat.Spec) (preheat.Job, error) {
	now := s.cfg.Now()
	if err := spec.ValidateAt(now); err != nil {
		return preheat.Job{}, err
	}
	if spec.Kind == preheat.File {
		return preheat.Job{}, fmt.Errorf("%w: %w", preheat.ErrInvalid, preheat.ErrFile)
	}
	target, err := spec.Target()
	if err == nil {
		err = s.cfg.Allow(target.Upstream)
	}
	if err != nil {
		return preheat.Job{}, fmt.Errorf("%w: %w", preheat.ErrInvalid, err)
	}
	for name := range spec.Headers {
		if !strings.EqualFold(name, "Authorization") {
			return preheat.Job{}, fmt.Errorf("%w: header %.60q; a registry gets Authorization alone", preheat.ErrInvalid, name)
		}
	}
	if spec.Webhook != "" && !s.cfg.Secure {
		return preheat.Job{}, fmt.Errorf("%w: a webhook needs a cluster secret: without one, everybody who reaches a "+
			"supernode could have it call any address; set cluster.secretFile, or poll the gate", preheat.ErrInvalid)
	}
	if len(spec.Headers) > 0 && !s.cfg.Secure {
		return preheat.Job{}, fmt.Errorf("%w: %w", preheat.ErrInvalid, ErrPlaintext)
	}
	var id [16]byte
	rand.Read(id[:])
	r := preheat.New(hex.EncodeToString(id[:]), spec, now)
	s.mu.Lock()
	running := 0
	for _, x := range s.records {
		if !x.State().Ended() {
			running++
		}
	}
	if running >= preheat.JobsMax {
		s.mu.Unlock()
		return preheat.Job{}, ErrFull
	}
	s.put(&r)
	s.born[r.ID] = now
	s.mu.Unlock()
	if err := s.save(); err != nil {
		s.mu.Lock()
		delete(s.records, r.ID)
		delete(s.born, r.ID)
		s.mu.Unlock()
		return preheat.Job{}, fmt.Errorf("the supernode cannot store the job, so it does not begin: %w", err)
	}
	s.log.Info("preheat begins", "job", r.ID, "name", spec.Name(), "scope", r.Spec.Scope.Kind, "deadline",
		r.Spec.Deadline)
	s.spread(ctx, r)
	s.poke()
	return r.Job(now, preheat.Plan{}), nil
}

// find returns a job by its ID or number. mu is held.
func (s *Service) find(id string) *preheat.Record {
	if r := s.records[id]; r != nil {
		return r
	}
	for _, r := range s.records {
		if strconv.FormatInt(r.Number(), 10) == id {
			return r
		}
	}
	return nil
}

// look returns what is known now. It holds the lock for the time of two short copies.
func (s *Service) look() (v view) {
	if s.cfg.Owners != nil {
		v.owners = s.cfg.Owners()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.viewed(v.owners)
}

// viewed is look for a caller that holds mu.
func (s *Service) viewed(owners []string) view {
	v := view{now: s.cfg.Now(), owners: owners, records: make([]*preheat.Record, 0, len(s.records)),
		born: maps.Clone(s.born), hosts: make([]*seen, 0, len(s.hosts))}
	for _, r := range s.records {
		v.records = append(v.records, r)
	}
	slices.SortFunc(v.records, byID)
	for _, h := range s.hosts {
		v.hosts = append(v.hosts, h)
	}
	for _, addr := range owners {
		if addr != s.cfg.Self && s.hosts[s.seeds[addr]] == nil {
			v.strangers = append(v.strangers, addr)
		}
	}
	return v
}

func byID(a, b *preheat.Record) int { return strings.Compare(a.ID, b.ID) }

// lookup returns a job by its ID or its decimal number, and what is known now.
func (s *Service) lookup(id string) (*preheat.Record, view) {
	s.mu.Lock()
	r := s.find(id)
	s.mu.Unlock()
	if r == nil {
		return nil, view{}
	}
	return r, s.look()
}

// Get returns a job by its ID or its decimal number, with the objects on each host.
func (s *Service) Get(id string) (preheat.Job, bool) {
	r, v := s.lookup(id)
	if r == nil {
		return preheat.Job{}, false
	}
	return r.Job(v.now, r.Plan(v.now, v.hostsOf(r))), true
}

// List lists all jobs without their tasks, the newest first.
func (s *Service) List() []preheat.Job {
	v, out := s.look(), []preheat.Job{}
	for _, r := range v.records {
		out = append(out, r.Job(v.now, preheat.Plan{}))
	}
	slices.SortFunc(out, func(a, b preheat.Job) int {
		return cmp.Or(b.Created.Compare(a.Created), strings.Compare(a.ID, b.ID))
	})
	return out
}

// Gate tells who has everything of a job now.
func (s *Service) Gate(id string) (preheat.Gate, bool) {
	r, v := s.lookup(id)
	if r == nil {
		return preheat.Gate{}, false
	}
	p := r.Plan(v.now, v.hostsOf(r))
	hears := s.hears(v.now)
	p.Ready = p.Ready && !hears
	g := r.Gate(v.now, p)
	if hears {
		g.Error = "this supernode has just started, and does not know all nodes yet: ask again in some seconds"
	}
	if r.Lacks() && !r.State().Ended() {
		g.Error = "the credentials of the job are gone, because every supernode was restarted: start it again"
	}
	return g, true
}

// hears reports whether this process has not run long enough to know all hosts: each announces at least once within
// [preheat.SilentAfter]. Until then, the hosts that happened to announce first are not enough to call a job done, also
// one that began since.
func (s *Service) hears(now time.Time) bool { return now.Sub(s.began) < preheat.SilentAfter }

// Change is an operator's wish.
type Change int

// The wishes.
const (
	Cancel Change = iota
	Pause
	Resume
)

// Change changes a job. ok is false if there is none of that name.
func (s *Service) Change(ctx context.Context, id string, wish Change) (job preheat.Job, ok bool) {
	now := s.cfg.Now()
	s.mu.Lock()
	r := s.find(id)
	if r == nil {
		s.mu.Unlock()
		return job, false
	}
	changed := *r
	if !changed.State().Ended() {
		if changed.Cancelled = wish == Cancel; !changed.Cancelled {
			changed.Control = preheat.Control{Rev: r.Control.Rev + 1, Paused: wish == Pause}
		}
		s.put(&changed)
	}
	s.mu.Unlock()
	s.spread(ctx, changed)
	s.poke()
	return changed.Job(now, preheat.Plan{}), true
}

func (s *Service) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Note records an announce that this supernode accepted.
func (s *Service) Note(r api.AnnounceRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Leaving {
		delete(s.hosts, r.Host.ID)
		return
	}
	if s.note(r.Host, r.Generation, r.Labels, false, r.Preheats, s.cfg.Now()) {
		s.poke()
	}
}

// note records what a host said in the life of its process, and reports whether the plan may change. mu is held.
func (s *Service) note(h host.Host, life uint64, labels map[string]string, seed bool, list []preheat.Report,
	now time.Time) (changed bool) {
	was := s.hosts[h.ID]
	is := &seen{host: h, labels: labels, seed: seed, life: life, at: now, overRev: -1}
	changed = was == nil && len(s.records) > 0
	if len(list) == 0 && was != nil && was.life == life {
		is.reports, is.labels = was.reports, was.labels // it sends them every few seconds
		is.owed, is.owedMark, is.overRev = was.owed, was.owedMark, was.overRev
	} else {
		is.reports = make(map[string]*preheat.Report, len(list))
	}
	if was != nil && was.life == life {
		is.former = was.former
	} else if was != nil {
		is.former = maps.Clone(was.former)
		for id := range was.reports {
			if is.former == nil {
				is.former = map[string]bool{}
			}
			is.former[id] = s.records[id] != nil
		}
	}
	for i := range list {
		r := &list[i]
		if s.records[r.Job] == nil {
			continue
		}
		is.reports[r.Job] = r
		if was == nil || was.reports[r.Job] == nil || was.reports[r.Job].State != r.State {
			changed = true
		}
	}
	s.owe(is)
	s.hosts[h.ID] = is
	return changed
}

// owe finds the jobs that ended and of which a host shall hear, if they can have changed: those in whose scope it is
// and whose end it has not confirmed. mu is held.
func (s *Service) owe(h *seen) {
	if h.overRev == s.overRev {
		return
	}
	h.overRev, h.owed, h.owedMark = s.overRev, nil, ""
	x := preheat.Host{Host: h.host, Labels: h.labels, Seed: h.seed}
	for _, r := range s.over {
		report := h.reports[r.ID]
		told := report != nil && report.Ended && (r.Resolved == nil || report.Digest == r.Resolved.Digest)
		if told || !r.Spec.Scope.Matches(x) {
			continue
		}
		if r.Spec.Scope.All() || report != nil || h.former[r.ID] {
			h.owed = append(h.owed, r)
		}
	}
	if len(h.owed) == 0 {
		return
	}
	sum := sha256.New()
	for _, r := range h.owed {
		fmt.Fprintln(sum, r.ID)
		if r.Resolved != nil {
			fmt.Fprintln(sum, r.Resolved.Digest)
		}
	}
	h.owedMark = hex.EncodeToString(sum.Sum(nil)[:12])
}

// Mark returns the mark of the orders for a host, and [api.PreheatLater] for one that no plan has seen yet: after a
// restart, a host must not drop what it does.
func (s *Service) Mark(id host.ID) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.records) > 0 && !s.planned[id] {
		return api.PreheatLater
	}
	return s.mark(id)
}

// mark joins the marks of the jobs that run and of those that ended. mu is held.
func (s *Service) mark(id host.ID) string {
	mark := s.plans[id].mark
	if h := s.hosts[id]; h != nil {
		if h.overRev != s.overRev {
			h = new(*h)
			s.owe(h)
			s.hosts[id] = h
		}
		mark += h.owedMark
	}
	return mark
}

// orders are those for a host, with the mark of the same moment.
func (s *Service) orders(id host.ID) (list []preheat.Order, mark string) {
	s.mu.Lock()
	list, mark = s.plans[id].orders, s.mark(id)
	var owed []*preheat.Record
	if h := s.hosts[id]; h != nil {
		owed = h.owed
	}
	s.mu.Unlock()
	list, now := slices.Clip(list), s.cfg.Now()
	for _, r := range owed {
		if o, ok := r.Order(now, preheat.Member{}); ok {
			list = append(list, o)
		}
	}
	return list, mark
}

// hostsOf lists the hosts that announced while the job was there.
func (v view) hostsOf(r *preheat.Record) []preheat.Host {
	out := make([]preheat.Host, 0, len(v.hosts)+len(v.strangers))
	born := v.born[r.ID].Add(-preheat.SilentAfter)
	for _, h := range v.hosts {
		if h.at.Before(born) {
			continue
		}
		out = append(out, preheat.Host{Host: h.host, Labels: h.labels, Seed: h.seed, Seen: h.at, Report: h.reports[r.ID]})
	}
	for _, addr := range v.strangers { // they are in scope all the same
		out = append(out, preheat.Host{Host: host.Host{ID: host.ID(addr), Name: addr, Addr: addr}, Seed: true, Seen: v.now})
	}
	return out
}

// put replaces a job by a changed one. mu is held.
func (s *Service) put(r *preheat.Record) {
	was := s.records[r.ID]
	s.records[r.ID], s.unsaved = r, true
	if r.End != nil && (was == nil || was.End == nil || was.Resolved != r.Resolved) {
		s.gather()
	}
}

// gather collects the jobs that ended. mu is held.
func (s *Service) gather() {
	s.over, s.overRev = nil, s.overRev+1
	for _, r := range s.records {
		if r.End != nil {
			s.over = append(s.over, r)
		}
	}
	slices.SortFunc(s.over, byID)
}

// leads reports whether this supernode decides about a job.
func (s *Service) leads(id string, owners []string) bool {
	return len(owners) == 0 || !slices.Contains(owners, s.cfg.Self) || rendezvous.Order(id, owners)[0] == s.cfg.Self
}

// Run decides and gives orders until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var background sync.WaitGroup
	defer background.Wait()
	tick := time.NewTicker(planEvery)
	defer tick.Stop()
	compare := time.NewTicker(compareEvery)
	defer compare.Stop()
	for {
		s.step(ctx, &background)
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(stepPause):
			}
		case <-tick.C:
		case <-compare.C:
			for _, addr := range s.compared() {
				background.Go(func() { s.compareWith(ctx, addr) })
			}
		}
	}
}

// compared lists the supernodes to compare jobs with now: all while a job runs, else one.
func (s *Service) compared() []string {
	list := s.others()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		if !r.State().Ended() {
			return list
		}
	}
	if len(list) == 0 {
		return nil
	}
	i := mathrand.IntN(len(list))
	return list[i : i+1]
}

// decision is what follows for one job.
type decision struct {
	was  *preheat.Record
	next preheat.Record
	plan preheat.Plan
	// leads: this supernode may change the job.
	leads bool
}

// step makes the plan of this moment: what changes, and the orders of all hosts. A job that ended is planned again only
// to tell its webhook.
func (s *Service) step(ctx context.Context, background *sync.WaitGroup) {
	var owners []string
	if s.cfg.Owners != nil {
		owners = s.cfg.Owners()
	}
	own := s.cfg.Worker.Reports()
	s.mu.Lock()
	now := s.cfg.Now()
	s.note(s.cfg.Host, 0, s.cfg.Labels, true, own, now)
	s.forget(now)
	v := s.viewed(owners)
	s.mu.Unlock()

	orders := map[host.ID][]preheat.Order{}
	var decisions []decision
	hears := s.hears(now)
	for _, r := range v.records {
		told := r.Called || r.Spec.Webhook == ""
		if r.End != nil && told {
			continue
		}
		hosts := v.hostsOf(r)
		d := decision{was: r, next: *r, plan: r.Plan(now, hosts)}
		if d.leads = s.leads(r.ID, owners); d.leads && !hears && d.next.Follow(d.plan) {
			d.plan = d.next.Plan(now, hosts)
		}
		decisions = append(decisions, d)
		for _, m := range d.plan.Members {
			if d.next.End != nil {
				break
			}
			if o, ok := d.next.Order(now, m); ok {
				orders[m.ID] = append(orders[m.ID], o)
			}
		}
	}
	plans := make(map[host.ID]plan, len(orders))
	for id, list := range orders {
		plans[id] = plan{markOf(list), list}
	}
	planned := make(map[host.ID]bool, len(v.hosts))
	for _, h := range v.hosts {
		planned[h.host.ID] = true
	}

	var changed, resolving, calling []decision
	s.mu.Lock()
	for _, d := range decisions {
		at := s.records[d.was.ID]
		if !d.leads || at == nil {
			continue
		}
		if d.next.Open != d.was.Open || d.next.End != d.was.End {
			if at != d.was { // something else changed meanwhile
				d.next = at.Merge(d.next)
			}
			s.put(&d.next)
			changed = append(changed, d)
		}
		s.begin(d, now, &resolving, &calling)
	}
	s.plans, s.planned = plans, planned
	s.made += len(decisions)
	save := s.unsaved
	s.unsaved = false
	s.mu.Unlock()

	if save {
		_ = s.save() // it has logged the error, and the next step tries again
	}
	mine, mark := s.orders(s.cfg.Host.ID)
	s.cfg.Worker.Adopt(mark, mine)
	for _, d := range changed {
		if d.next.End != nil {
			s.log.Info("preheat ended", "job", d.next.ID, "name", d.next.Spec.Name(), "state", d.next.End.State, "has",
				d.plan.Has, "of", len(d.plan.Members), "error", d.next.End.Error)
		} else {
			s.log.Info("preheat opens a wave", "job", d.next.ID, "wave", d.next.Open+1, "has", d.plan.Has, "of",
				len(d.plan.Members))
		}
		background.Go(func() { s.spread(ctx, d.next) })
	}
	for _, d := range resolving {
		background.Go(func() { s.resolve(ctx, d.next.ID, d.next.Spec) })
	}
	for _, d := range calling {
		background.Go(func() { s.call(ctx, d.next.ID, d.next.Spec.Webhook, d.next.Gate(now, d.plan)) })
	}
}

// begin notes which calls the leader of a job begins now: to read its manifest, and to call its webhook. mu is held.
func (s *Service) begin(d decision, now time.Time, resolving, calling *[]decision) {
	id, r := d.was.ID, &d.next
	if now.Before(s.due[id]) {
		return
	}
	if r.State() == preheat.Pending && !r.Lacks() && !s.resolving[id] {
		s.resolving[id] = true
		*resolving = append(*resolving, d)
	}
	if r.End != nil && r.Spec.Webhook != "" && !r.Called && !s.calling[id] && !s.hears(now) {
		s.calling[id] = true
		*calling = append(*calling, d)
	}
}

// markOf identifies orders; the life of an order, which shrinks, does not count.
func markOf(list []preheat.Order) string {
	h := sha256.New()
	for _, o := range list {
		fmt.Fprintf(h, "%s %d %t %t %d %t\n", o.Job, o.Rev, o.Run, o.Ended, len(o.Objects), o.Authorization != "")
		fmt.Fprintln(h, o.Digest)
	}
	return hex.EncodeToString(h.Sum(nil)[:12])
}

// resolve reads the manifests of a job, once.
func (s *Service) resolve(ctx context.Context, id string, spec preheat.Spec) {
	ctx, cancel := context.WithDeadline(ctx, spec.Deadline.Add(time.Second))
	defer cancel()
	found, err := resolve(ctx, s.cfg.Registry, spec)
	var refused *RefusedError
	s.mu.Lock()
	delete(s.resolving, id)
	at := s.records[id]
	if at == nil {
		s.mu.Unlock()
		return
	}
	changed, now := *at, s.cfg.Now()
	if err == nil && s.objects()+len(found.Objects) > preheat.ObjectsInAll {
		refused = &RefusedError{fmt.Errorf("all preheats together have more than %d objects; wait until older ones are "+
			"forgotten, %s after their end", preheat.ObjectsInAll, preheat.Keep)}
		err = refused
	}
	switch {
	case err == nil:
		changed.Resolved = found
		delete(s.tries, id)
	case errors.As(err, &refused):
		changed.End = cmp.Or(changed.End, &preheat.End{State: preheat.Failed, At: now.UTC(),
			Error: preheat.Cut(api.OneLine(err.Error()))})
	default:
		s.tries[id]++
		s.due[id] = now.Add(min(resolvePause<<min(s.tries[id], 6), resolvePauseMax))
	}
	s.put(&changed)
	s.mu.Unlock()
	if err != nil {
		s.log.Warn("preheat cannot read its manifests", "job", id, "name", spec.Name(), "final", refused != nil, "error", err)
	} else {
		s.log.Info("preheat read its manifests", "job", id, "digest", found.Digest, "objects", len(found.Objects),
			"bytes", changed.Bytes())
	}
	s.spread(ctx, changed)
	s.poke()
}

// objects counts the objects of all jobs. mu is held.
func (s *Service) objects() (n int) {
	for _, r := range s.records {
		if r.Resolved != nil {
			n += len(r.Resolved.Objects)
		}
	}
	return n
}

// call tells a webhook how a job ended.
func (s *Service) call(ctx context.Context, id, at string, g preheat.Gate) {
	err := s.post(ctx, at, g)
	s.mu.Lock()
	delete(s.calling, id)
	s.tries[id]++
	tries := s.tries[id]
	s.due[id] = s.cfg.Now().Add(min(resolvePause<<min(tries, 6), resolvePauseMax))
	r := s.records[id]
	over := err == nil || tries >= webhookTries
	var changed preheat.Record
	if r != nil && over {
		changed = *r
		changed.Called = true
		s.put(&changed)
	}
	s.mu.Unlock()
	if err != nil {
		s.log.Warn("the webhook of a preheat does not take the result", "job", id, "again", !over, "error", err)
	}
	if changed.ID != "" {
		s.spread(ctx, changed)
	}
}

// post sends a gate to a webhook, which must answer with 2xx. It follows no redirect.
func (s *Service) post(ctx context.Context, at string, g preheat.Gate) error {
	b, err := json.Marshal(g)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, webhookTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at, bytes.NewReader(b))
	if err != nil {
		return errors.New("its URL is wrong")
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := s.cfg.Webhooks.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("it answers %s", res.Status)
	}
	return nil
}

// forget forgets jobs that are long over, and hosts that no job counts. mu is held.
func (s *Service) forget(now time.Time) {
	var over []*preheat.Record
	had := len(s.records)
	for id, r := range s.records {
		switch {
		case r.State().Ended() && now.After(cmp.Or(r.Ended(), r.Spec.Deadline).Add(preheat.Keep)),
			now.After(r.Spec.Deadline.Add(preheat.Keep)):
			delete(s.records, id)
			delete(s.tries, id)
			delete(s.due, id)
			delete(s.born, id)
			s.unsaved = true
		case r.State().Ended():
			over = append(over, r)
		}
	}
	slices.SortFunc(over, func(a, b *preheat.Record) int {
		return cmp.Or(a.Ended().Compare(b.Ended()), strings.Compare(a.ID, b.ID))
	})
	for len(s.records) > preheat.JobsMax && len(over) > 0 {
		delete(s.records, over[0].ID)
		delete(s.born, over[0].ID)
		over, s.unsaved = over[1:], true
	}
	if len(s.records) != had {
		s.gather()
	}
	for id, h := range s.hosts {
		if now.Sub(h.at) > preheat.Keep {
			delete(s.hosts, id)
		}
	}
}

// save writes the journal, as a whole or not at all.
func (s *Service) save() error {
	s.saving.Lock()
	defer s.saving.Unlock()
	b, err := json.Marshal(s.Records(false))
	if err == nil {
		err = atomicfile.Write(filepath.Join(s.cfg.Dir, journalFile), b)
	}
	if err != nil {
		s.log.Error("cannot store the preheat jobs: after a restart of every supernode they would be lost", "error", err)
		s.mu.Lock()
		s.unsaved = true
		s.mu.Unlock()
	}
	return err
}

// others lists the other live supernodes.
func (s *Service) others() []string {
	if s.cfg.Owners == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(s.cfg.Owners()), func(addr string) bool { return addr == s.cfg.Self })
}

// spread gives a record to all other supernodes, with its credentials.
func (s *Service) spread(ctx context.Context, r preheat.Record) {
	var sending sync.WaitGroup
	for _, addr := range s.others() {
		sending.Go(func() {
			if err := s.send(ctx, addr, r); err != nil && ctx.Err() == nil {
				s.log.Debug("preheat not sent", "supernode", addr, "job", r.ID, "error", err)
			}
		})
	}
	sending.Wait()
}

func (s *Service) send(ctx context.Context, addr string, r preheat.Record) error {
	return s.reach(ctx, addr, func(ctx context.Context, c apiclient.Client) error {
		reply, err := c.Do(ctx, apiclient.Call{Method: http.MethodPost, Path: api.PathPreheatRecords,
			Body: Records{Version: api.Version, List: []WireRecord{s.wire(r, s.age(r.ID), true)}}})
		if err != nil {
			return err
		}
		return reply.Err(http.StatusNoContent)
	})
}

// age is for how long this supernode has known a job, at most ageMax.
func (s *Service) age(id string) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return min(s.cfg.Now().Sub(s.born[id]), ageMax)
}

// reach makes one call to another supernode.
func (s *Service) reach(ctx context.Context, addr string, f func(context.Context, apiclient.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	tr := s.cfg.Transport()
	defer tr.CloseIdleConnections()
	return f(ctx, apiclient.Client{Base: s.cfg.Scheme + "://" + addr, Transport: tr})
}

// compareWith takes the jobs of another supernode and what it holds, and gives it the credentials that it lacks.
func (s *Service) compareWith(ctx context.Context, addr string) {
	var got Records
	err := s.reach(ctx, addr, func(ctx context.Context, c apiclient.Client) error {
		reply, err := c.Do(ctx, apiclient.Call{Method: http.MethodGet, Path: api.PathPreheatRecords,
			Limit: api.PreheatRecordsSize})
		if err != nil {
			return err
		}
		if err := reply.Err(http.StatusOK); err != nil {
			return err
		}
		got, err = DecodeRecords(reply.Body)
		return err
	})
	if err != nil {
		if ctx.Err() == nil {
			s.log.Debug("preheats not compared", "supernode", addr, "error", err)
		}
		return
	}
	s.merge(got.List)
	var lacking []preheat.Record
	s.mu.Lock()
	if got.Host != nil {
		s.seeds[addr] = got.Host.ID
		s.note(*got.Host, 0, got.Labels, true, got.Reports, s.cfg.Now())
	}
	theirs := map[string]WireRecord{}
	for _, r := range got.List {
		theirs[r.ID] = r
	}
	for id, r := range s.records {
		x, known := theirs[id]
		if !known || r.Secret && !r.Lacks() && !x.Holds {
			lacking = append(lacking, *r)
		}
	}
	s.mu.Unlock()
	for _, r := range lacking {
		if err := s.send(ctx, addr, r); err != nil {
			return
		}
	}
}

// merge joins the records of another supernode with those that are known.
func (s *Service) merge(list []WireRecord) {
	changed := false
	for _, x := range list {
		r := x.Record
		if !s.cfg.Secure {
			r.Spec.Webhook = "" // see Create
		}
		age := time.Duration(max(0, min(x.AgeMillis, ageMax.Milliseconds()))) * time.Millisecond
		for !s.mergeOne(r, age, &changed) {
		}
	}
	if changed {
		s.poke()
	}
}

// mergeOne joins one record with what is known of its job; it returns false if that changed meanwhile. It compares
// without the lock, because a record can have thousands of objects.
func (s *Service) mergeOne(r preheat.Record, age time.Duration, changed *bool) (done bool) {
	s.mu.Lock()
	known, count := s.records[r.ID], len(s.records)
	full := r.Resolved != nil && (known == nil || known.Resolved == nil) &&
		s.objects()+len(r.Resolved.Objects) > preheat.ObjectsInAll+preheat.ObjectsMax
	s.mu.Unlock()
	if full || s.cfg.Now().After(r.Spec.Deadline.Add(preheat.Keep)) || known == nil && count >= 2*preheat.JobsMax {
		return true
	}
	if known != nil {
		if r = known.Merge(r); reflect.DeepEqual(r, *known) {
			return true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records[r.ID] != known {
		return false
	}
	s.put(&r)
	if known == nil {
		s.born[r.ID] = s.cfg.Now().Add(-age)
	}
	*changed = true
	return true
}
