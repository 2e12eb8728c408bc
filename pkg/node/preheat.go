package node

import (
	"context"
	"fmt"
	"net/http"

	"github.com/darter-io/darter/pkg/preheat/jobs"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/task"
)

// NewPreheatWorker returns what carries out this node's preheat orders; its Run is a part of the program.
// announceNow has the owners hear of a change at once, owns reports which tasks a supernode owns; both may be nil.
func (n *Node) NewPreheatWorker(announceNow func(), owns func(task.ID) bool) *jobs.Worker {
	return jobs.NewWorker(jobs.WorkerConfig{
		Host: n.Host.ID, Labels: n.cfg.Node.LabelMap(), Fetch: n.fetch, Complete: n.Store.Complete, Owns: owns,
		Bytes: func(id task.ID) int64 {
			t, ok := n.Engine.Task(id)
			if !ok {
				return 0
			}
			return int64(t.Have) * t.Metadata.PieceSize
		},
		AnnounceNow: announceNow, Logger: n.Log,
	})
}

// fetch stores a task whole.
func (n *Node) fetch(ctx context.Context, spec task.Spec) error { return n.Engine.Fetch(ctx, spec) }

// Labels are the labels of this node.
func (n *Node) Labels() map[string]string { return n.cfg.Node.LabelMap() }

// NewWebhooks returns the transport for the webhooks of preheats. Like that of files, it refuses local addresses that
// files.allowAddresses does not list.
func (n *Node) NewWebhooks() (http.RoundTripper, error) {
	c, err := httporigin.NewClient(common(n.cfg))
	if err != nil {
		return nil, fmt.Errorf("webhooks of preheats: %w", err)
	}
	return c.Transport(), nil
}
