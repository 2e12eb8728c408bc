package node

import (
	"context"

	"github.com/darter-io/darter/pkg/task"
)

// dropper deletes purged tasks: first the running download and the replica that the engine knows, then what
// is left on the disk.
type dropper struct{ n *Node }

// Drop implements [purge.Dropper].
func (d dropper) Drop(id task.ID, rest bool) error {
	if !rest {
		if err := d.n.Engine.Drop(id); err != nil {
			return err
		}
	}
	return d.n.Store.Sweep(id)
}

// ComparePurgeOrders returns the part that fetches the purge orders of other owners, and compares clocks on
// the way.
func (n *Node) ComparePurgeOrders(others func() []string) Part {
	return func(ctx context.Context) error {
		transport := comparing{n.StandingTransport(), n}
		defer transport.CloseIdleConnections()
		return n.Purge.Compare(ctx, others, transport)
	}
}

// Scheme is that of the members' APIs.
func (n *Node) Scheme() string {
	if n.Identity.Secure() {
		return "https"
	}
	return "http"
}
