// Package purge deletes a task from every host of a cluster on an operator's order.
//
// A host never counts as done before its replica is deleted, and carries out each order exactly once. The
// layers below delete their own data behind [Dropper] and hooks; this package has the orders, their
// journal, the exchange between hosts, the hosts' reports and the operator's client.
//
// Start at [Service.Purge], then [Journal.Add].
package purge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// callTimeout bounds one call to another member.
	callTimeout = 3 * time.Second
	// compareEvery is how often a supernode compares its orders with those of another one, so that a
	// supernode that was away learns of the orders made meanwhile.
	compareEvery = 2 * time.Second
	// progressMax bounds waiting for the reports of hosts: an idle one announces every five seconds.
	// progressEvery is the time between two looks.
	progressMax   = 15 * time.Second
	progressEvery = 200 * time.Millisecond
)

// Config is what a Service is made of.
type Config struct {
	// Dir is the node's data directory, where the journal is.
	Dir string
	// Dropper deletes replicas of this host.
	Dropper Dropper
	// Leads: every host of the cluster announces to this one, so that it knows their reports itself.
	Leads bool
	// Scheme and Transport reach other members: "https" if the cluster has a secret. The Service closes the
	// connections of a Transport that it made.
	Scheme    string
	Transport func() *http.Transport
	// Now is the wall clock that other members' are compared with.
	Now    func() time.Time
	Logger *slog.Logger
}

// Service is a host's part in purging. Safe for concurrent use.
type Service struct {
	*Journal

	cfg     Config
	reports Reports
	// hosts lists the hosts that announce here; nil: this host is no owner.
	hosts func() []api.HostStatus

	// mu is held to look up or to note one mark.
	mu sync.Mutex
	// taken are the marks whose orders this host knows, by the owner's address.
	taken map[string]string
}

// Open reads the journal. [Journal.Resume] must run before anything is served.
func Open(cfg Config) (*Service, error) {
	j, err := openJournal(cfg.Dir, cfg.Logger)
	if err != nil {
		return nil, err
	}
	j.dropper = cfg.Dropper
	return &Service{Journal: j, cfg: cfg, taken: map[string]string{}}, nil
}

// OnDrop has f called for each task that is purged, once its replica is deleted. It must be called before
// anything is served.
func (s *Service) OnDrop(f func(task.ID)) { s.hooks = append(s.hooks, f) }

// Lead makes the host an owner: hosts lists those that announce here. It must be called before anything is
// served.
func (s *Service) Lead(hosts func() []api.HostStatus) { s.hosts = hosts }

// Note records the reports in an announce that this owner accepted.
func (s *Service) Note(r api.AnnounceRequest) { s.reports.Note(r) }

// ForgetHost forgets what a host that is gone reported.
func (s *Service) ForgetHost(id host.ID) { s.reports.ForgetHost(id) }

// Progress is how far the hosts that announce here are with a task.
func (s *Service) Progress(id task.ID) api.PurgeProgress {
	if s.hosts == nil {
		return api.PurgeProgress{Version: api.Version}
	}
	hosts := s.hosts()
	return s.reports.Progress(hosts, s.Mark(), id)
}

// HostFailures lists the hosts that announce here and could not carry out an order so far.
func (s *Service) HostFailures() []api.HostPurge {
	if s.hosts == nil {
		return nil
	}
	return s.reports.Failures(s.hosts())
}

// Purge drops a task here and sends the order to supernodes, which pass it on to all others. Then it waits
// for the reports of the cluster's hosts, at most for wait. The error is of the journal's disk; a replica
// that could not be deleted is in the result.
func (s *Service) Purge(ctx context.Context, id task.ID, supernodes []string,
	wait time.Duration) (api.PurgeResult, error) {
	list := []api.PurgeOrder{s.Order(id)}
	out := api.PurgeResult{Task: id}
	err := s.Add(list)
	if errors.Is(err, ErrNotDropped) {
		out.Pending, err = err.Error(), nil
	}
	var mu sync.Mutex // held to note one answer
	var wg sync.WaitGroup
	for _, addr := range supernodes {
		wg.Go(func() {
			err := s.call(ctx, addr, func(ctx context.Context, c apiclient.Client) error {
				return c.SendPurgeOrders(ctx, list)
			})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				out.Reached = append(out.Reached, addr)
				return
			}
			if out.Failed == nil {
				out.Failed = map[string]string{}
			}
			out.Failed[addr] = err.Error()
		})
	}
	wg.Wait()
	slices.Sort(out.Reached)
	if wait > 0 {
		out.Progress = s.awaitReports(ctx, id, out.Reached, wait)
	}
	return out, err
}

// call makes one call to another member, over a connection of its own.
func (s *Service) call(ctx context.Context, addr string, f func(context.Context, apiclient.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	tr := s.cfg.Transport()
	defer tr.CloseIdleConnections()
	return f(ctx, apiclient.Client{Base: s.cfg.Scheme + "://" + addr, Transport: tr})
}

// awaitReports waits until every host has reported about a task, for at most wait. It returns the last
// progress; nil if no owner answered.
func (s *Service) awaitReports(
	ctx context.Context, id task.ID, supernodes []string, wait time.Duration,
) (last *api.PurgeProgress) {
	ctx, cancel := context.WithTimeout(ctx, min(wait, progressMax))
	defer cancel()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		p, err := s.askProgress(ctx, id, supernodes)
		if err == nil {
			last = &p
		}
		if err == nil && reported(p, !s.cfg.Leads && len(supernodes) > 0) {
			return last
		}
		select {
		case <-ctx.Done():
			return last
		case <-tick.C:
		}
	}
}

// reported reports whether no host is left whose report is missing. announces: this host announces to that
// owner, too, so an owner that names no host has just started.
func reported(p api.PurgeProgress, announces bool) bool {
	if announces && p.Dropped+len(p.Others)+p.Missing == 0 {
		return false
	}
	return p.Missing == 0 && !slices.ContainsFunc(p.Others, func(h api.HostPurge) bool {
		return h.State == api.PurgeUnconfirmed
	})
}

// askProgress asks an owner: this host, or the first supernode that answers.
func (s *Service) askProgress(ctx context.Context, id task.ID, supernodes []string) (p api.PurgeProgress, err error) {
	if s.cfg.Leads || len(supernodes) == 0 {
		return s.Progress(id), nil
	}
	for _, addr := range supernodes {
		err = s.call(ctx, addr, func(ctx context.Context, c apiclient.Client) (err error) {
			p, err = c.PurgeProgress(ctx, id)
			return err
		})
		if err == nil {
			return p, nil
		}
	}
	return p, err
}

// take adds the orders of an owner. A replica that could not be deleted is no error here: the node
// tries again by itself, and its announces report it.
func (s *Service) take(list []api.PurgeOrder) error {
	if err := s.Add(list); !errors.Is(err, ErrNotDropped) {
		return err
	}
	return nil
}

// Fill adds to an announce to an owner which of its orders this host knows, and which it could not
// carry out.
func (s *Service) Fill(owner string, r *api.AnnounceRequest) {
	s.mu.Lock()
	r.PurgeMark = s.taken[owner]
	s.mu.Unlock()
	r.PurgeFailures = s.Failures()
}

// takenMax bounds the owners whose marks are kept: some that are gone, and those that are there.
const takenMax = 1024

// Learn fetches an owner's orders if this host does not know the mark in the owner's answer. It
// returns true if the next announce should tell the owner so at once. The next answer repeats what failed.
func (s *Service) Learn(ctx context.Context, owner, mark string, c apiclient.Client) (learned bool) {
	s.mu.Lock()
	known := s.taken[owner]
	s.mu.Unlock()
	if mark == "" || mark == known {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := c.PurgeOrders(ctx, known)
	if err == nil {
		err = s.take(list)
	}
	if err != nil {
		s.log.Warn("cannot fetch or store purge orders: trying again with the next announce", "owner", owner,
			"error", err)
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.taken) >= takenMax {
		clear(s.taken)
	}
	s.taken[owner] = mark
	return true
}

// Compare fetches the orders of other owners, one owner after the other, until ctx ends. transport reaches
// them.
func (s *Service) Compare(ctx context.Context, others func() []string, transport http.RoundTripper) error {
	clocks := rate.Sometimes{Interval: time.Minute}
	tick := time.NewTicker(compareEvery)
	defer tick.Stop()
	for {
		if list := others(); len(list) > 0 {
			addr := list[rand.IntN(len(list))]
			err := s.compareWith(ctx, apiclient.Client{Base: s.cfg.Scheme + "://" + addr, Transport: transport})
			if err != nil && ctx.Err() == nil {
				s.log.Debug("purge orders not compared", "owner", addr, "error", err)
				if identity.OfClocks(err) {
					clocks.Do(func() {
						s.log.Warn("another supernode's clock is too far from this one's", "owner", addr, "error", err)
					})
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (s *Service) compareWith(ctx context.Context, c apiclient.Client) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := c.PurgeOrders(ctx, s.Mark())
	if err != nil {
		return fmt.Errorf("asking for purge orders: %w", err)
	}
	return s.take(list)
}
