package node

import (
	"net/http"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/coordinator"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/pkg/telemetry"
)

// NewCoordinator returns a coordinator that seeds with the node's engine and counts in the node's metrics. The caller
// passes [Node.Watch] of it to [Node.Connect]. owners lists the API addresses of all live owners for the answers; nil
// if this host is the only one.
//
// preheats gives hosts their preheat orders; nil if this host gives none.
func (n *Node) NewCoordinator(owners func() []string, preheats coordinator.Preheats) *coordinator.Coordinator {
	var c *coordinator.Coordinator
	owner := telemetry.NewOwner(n.Metrics, func() telemetry.OwnerStats {
		s := c.Stats()
		return telemetry.OwnerStats{Hosts: max(0, s.Hosts-1), Seeding: s.Seeding}
	})
	c = coordinator.New(coordinator.Config{
		Host: n.Host, Store: checkedStore{n}, Owners: owners, Purges: n.Purge, Preheats: preheats,
		Lag: n.Lag, Now: n.Clock, Logger: n.Log,
		ClockRefused: func() { owner.ClockRefused() },
		Seed:         func(spec task.Spec) { n.Engine.Seed(spec) },
		Ahead:        func(id task.ID, windows []api.Window) *api.Tail { return n.Engine.Ahead(id, windows) },
		Observe: func(r api.AnnounceRequest, took time.Duration) {
			events := make([]string, len(r.Entries))
			for i, e := range r.Entries {
				events[i] = string(e.Event)
			}
			owner.Announced(took, events...)
		},
		Refused: func(why coordinator.Refusal) { owner.Refused(string(why)) },
	})
	n.owner = owner
	n.Purge.Lead(c.Hosts)
	n.Purge.OnDrop(c.Forget)
	return c
}

// checkedStore is the node's store for a coordinator, which puts the bytes of small tasks into its answers. It compares
// the bytes with their digests first.
type checkedStore struct{ n *Node }

func (s checkedStore) Open(id task.ID) (piece.Replica, error) {
	r, err := s.n.Store.Open(id)
	if err != nil {
		return nil, err
	}
	return s.n.Engine.Checked(r), nil
}

func (s checkedStore) Complete(id task.ID) bool { return s.n.Store.Complete(id) }

func (s checkedStore) Inventory() []piece.Entry { return s.n.Store.Inventory() }

// Watch returns an observer that counts the outcomes of seeds and passes them to a coordinator.
func (n *Node) Watch(c *coordinator.Coordinator) peer.Observer { return watcher{c, n.owner, n} }

type watcher struct {
	c     *coordinator.Coordinator
	owner *telemetry.Owner
	n     *Node
}

func (w watcher) SeedMetadata(id task.ID, f piece.Metadata) { w.c.SeedMetadata(id, f) }

func (w watcher) SeedDone(id task.ID) {
	w.owner.Seeded(telemetry.OK, id, nil)
	if spec, ok := w.n.Origins.Registries.opened.take(id); ok && w.n.Seeded != nil {
		w.n.Seeded(spec)
	}
	w.c.SeedDone(id)
}

func (w watcher) SeedFailed(id task.ID, asked *task.Spec, f *api.Failure) {
	result := telemetry.Refused
	if f == nil || f.Status >= http.StatusInternalServerError {
		result = telemetry.Failed
	}
	var err error
	if f != nil {
		err = f
	}
	w.owner.Seeded(result, id, err)
	w.c.SeedFailed(id, asked, f)
}
