package purge

import (
	"cmp"
	"slices"
	"sync"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/task"
)

// Reports is what hosts reported about purge orders in their last announces to this owner. Safe for
// concurrent use.
type Reports struct {
	// mu is held to note one report or to read all, never while something else is called.
	mu   sync.Mutex
	last map[host.ID]report
}

// report is one host's.
type report struct {
	mark     string
	failures []api.PurgeFailure
}

// Note records an announce that the owner accepted. It forgets a host that leaves.
func (r *Reports) Note(a api.AnnounceRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case a.Leaving:
		delete(r.last, a.Host.ID)
	case a.PurgeMark != "" || len(a.PurgeFailures) > 0:
		if r.last == nil {
			r.last = map[host.ID]report{}
		}
		r.last[a.Host.ID] = report{a.PurgeMark, a.PurgeFailures}
	}
}

// ForgetHost forgets what a host reported, because it is gone.
func (r *Reports) ForgetHost(id host.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.last, id)
}

// Progress returns how far hosts are with a task. A host is done if it took in the orders of this owner's
// mark and reports no failure with the task.
func (r *Reports) Progress(hosts []api.HostStatus, mark string, id task.ID) api.PurgeProgress {
	out := api.PurgeProgress{Version: api.Version}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range hosts {
		last := r.last[h.ID]
		at := api.HostPurge{Host: cmp.Or(h.Name, string(h.ID)), State: api.PurgeDropped}
		failed := slices.IndexFunc(last.failures, func(f api.PurgeFailure) bool { return f.Task == id })
		if failed >= 0 {
			at.State, at.Why = api.PurgeFailed, last.failures[failed].Why
		} else if last.mark != mark {
			at.State = api.PurgeUnconfirmed
		}
		switch {
		case at.State == api.PurgeDropped:
			out.Dropped++
		case len(out.Others) < api.PurgeHostsMax:
			out.Others = append(out.Others, at)
		default:
			out.Missing++
		}
	}
	return out
}

// Failures lists the hosts that could not carry out an order so far, at most [api.PurgeHostsMax]. Why
// begins with the task.
func (r *Reports) Failures(hosts []api.HostStatus) (out []api.HostPurge) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range hosts {
		for _, f := range r.last[h.ID].failures {
			if len(out) < api.PurgeHostsMax {
				why := f.Task.Short() + ": " + f.Why
				out = append(out, api.HostPurge{Host: cmp.Or(h.Name, string(h.ID)), State: api.PurgeFailed, Why: why})
			}
		}
	}
	return out
}
