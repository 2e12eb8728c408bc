package peer

import (
	"io"
	"sync/atomic"

	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/task"
)

// signs show callers that wait for their first byte how the task comes. Safe for concurrent use.
type signs struct {
	// moved grows while bytes come, here or at a neighbour.
	moved  atomic.Int64
	asking atomic.Bool
	came   atomic.Int64
}

// Signs returns what this host sees of a task on its way; all are zero where it is not.
func (e *Engine) Signs(id task.ID) policy.Signs {
	e.mu.Lock()
	d := e.downloads[id]
	e.mu.Unlock()
	if d == nil {
		return policy.Signs{}
	}
	return policy.Signs{Moved: d.signs.moved.Load(), Asking: d.signs.asking.Load(), Came: d.signs.came.Load()}
}

// noteSigns updates the signs after a turn of the loop.
func (d *Download) noteSigns() {
	asking := d.policy.Reading() == policy.Running || d.ownerReads && d.ownerErr == nil
	came := d.origin.read.Load()
	if d.pick != nil {
		layout := d.proof.replica.Metadata().Layout()
		came = max(came, int64(d.pick.Have().Count())*layout.PieceSize)
		for _, c := range d.conns.open {
			came = max(came, int64(c.remote.have.Count())*layout.PieceSize)
		}
		came = min(came, layout.Length)
	}
	for _, c := range d.conns.open {
		asking = asking || c.remote.alive && c.remote.seed && !c.remote.has(d)
		came = max(came, c.remote.read)
	}
	d.signs.asking.Store(asking && !d.complete())
	d.signs.came.Store(came)
}

// has reports whether a neighbour holds the whole of a download.
func (r *remote) has(d *Download) bool {
	return r.hasAll || d.pick != nil && r.have.Len() > 0 && r.have.Full()
}

// moving counts the bytes of an origin's body as signs.
type moving struct {
	io.Reader
	moved *atomic.Int64
}

func (m moving) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	m.moved.Add(int64(n))
	return n, err
}
