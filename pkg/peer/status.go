package peer

import (
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// Stats are an engine's counters since its start.
type Stats struct {
	api.Sources       // bytes of verified pieces; Cache is 0
	Inline      int64 `json:"inline"`      // those of Seeds that came inside an owner's answer
	Sent        int64 `json:"sent"`        // bytes of pieces sent to other hosts
	BadPieces   int64 `json:"badPieces"`   // pieces whose bytes did not match their digest
	Duplicate   int64 `json:"duplicate"`   // bytes of pieces that were stored already
	BusySent    int64 `json:"busySent"`    // requests that this host refused because no slot was free
	BusyGot     int64 `json:"busyGot"`     // requests of this host that others refused
	Downloads   int   `json:"downloads"`   // tasks in memory
	Conns       int64 `json:"links"`       // open connections
	UploadSlots int   `json:"uploadSlots"` // taken
	// UploadSlotsMax is how many there are.
	UploadSlotsMax int `json:"uploadSlotsMax"`
}

type counters struct {
	peers, seeds, origin, inline atomic.Int64
	sent, bad, duplicate         atomic.Int64
	busySent, busyGot, conns     atomic.Int64
}

func (c *counters) sources() api.Sources {
	return api.Sources{Peers: c.peers.Load(), Seeds: c.seeds.Load() + c.inline.Load(), Origin: c.origin.Load()}
}

// Stats returns the counters.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	downloads := len(e.downloads)
	e.mu.Unlock()
	c := &e.stats
	return Stats{
		Sources: c.sources(), Inline: c.inline.Load(), Sent: c.sent.Load(), BadPieces: c.bad.Load(),
		Duplicate: c.duplicate.Load(),
		BusySent:  c.busySent.Load(), BusyGot: c.busyGot.Load(), Downloads: downloads, Conns: c.conns.Load(),
		UploadSlots: e.near.slots.Active(), UploadSlotsMax: e.near.slots.Max(),
	}
}

// TaskStatus is one download as a person or the console sees it.
type TaskStatus struct {
	ID       task.ID        `json:"id"`
	Metadata piece.Metadata `json:"facts"`   // zero while it is unknown
	Have     int            `json:"have"`    // stored pieces
	Pieces   int            `json:"pieces"`  // all pieces, 0 while the metadata is unknown
	Readers  int            `json:"readers"` // open readers
	Seeding  bool           `json:"seeding"` // from the origin
	Sources  api.Sources    `json:"sources"`
	Conns    int            `json:"links"` // open connections
	// Name is the spec's; Wanted says that a caller waits for missing pieces. LastGot is when the last
	// piece came, or while there is none, when a caller first came.
	Name    string    `json:"name,omitempty"`
	Wanted  bool      `json:"wanted"`
	LastGot time.Time `json:"lastGot,omitzero"`
	lastUse time.Time
}

// Tasks lists the downloads in memory, in no order.
func (e *Engine) Tasks() []TaskStatus {
	e.mu.Lock()
	all := make([]*Download, 0, len(e.downloads))
	for _, d := range e.downloads {
		all = append(all, d)
	}
	e.mu.Unlock()
	list := make([]TaskStatus, 0, len(all))
	for _, d := range all {
		list = append(list, d.status())
	}
	return list
}

// Task returns the state of one task that the engine downloads or serves.
func (e *Engine) Task(id task.ID) (TaskStatus, bool) {
	e.mu.Lock()
	d := e.downloads[id]
	e.mu.Unlock()
	if d == nil {
		return TaskStatus{}, false
	}
	return d.status(), true
}

func (d *Download) sources() api.Sources { return d.stats.sources() }

func (d *Download) status() TaskStatus {
	if v := d.snapshot.Load(); v != nil {
		s := *v
		s.Sources = d.sources()
		return s
	}
	return TaskStatus{ID: d.id, Sources: d.sources()}
}

func (d *Download) show() {
	s := &TaskStatus{ID: d.id, Conns: len(d.conns.open), Seeding: d.policy.AtOrigin(), Name: d.wants.spec.Name(),
		LastGot: d.times.lastPiece, lastUse: d.times.lastUse}
	if d.times.lastPiece.IsZero() {
		s.LastGot = d.times.opened
	}
	s.Readers = d.wants.readers()
	if d.pick != nil {
		s.Metadata = d.proof.replica.Metadata()
		s.Have, s.Pieces = d.pick.Have().Count(), d.pick.Have().Len()
	}
	s.Wanted = d.wants.interest != policy.Nothing && !d.complete() && (s.Readers > 0 || d.seeds() || d.pick == nil)
	d.snapshot.Store(s)
}
