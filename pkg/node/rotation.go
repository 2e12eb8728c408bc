package node

import (
	"bytes"
	"context"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/pkg/telemetry"
)

// removedGrace is how long connections stay open that a removed secret proved: their other ends have it to connect
// again with another secret, after a request that runs or at the end of a task.
const removedGrace = time.Minute

// rotation is what a change of the cluster secret needs of a running node.
type rotation struct {
	changed chan struct{}
	// changes counts the changes of the secrets, followed those of which all work is done.
	changes, followed atomic.Int64

	// mu is held to add and list transports.
	mu         sync.Mutex
	transports []*http.Transport
}

func (r *rotation) init() {
	r.changed = make(chan struct{}, 1)
	r.changes.Store(1) // a node can start in the middle of a change
}

// renewing reports whether stored signatures lack certificates under the first secret.
func (r *rotation) renewing() bool { return r.changes.Load() != r.followed.Load() }

// StandingTransport is [Node.Transport] for a part that sends requests all the time, so that its connections never end
// by themselves: a change of the cluster secret closes the idle ones. It is kept as long as the node.
func (n *Node) StandingTransport() *http.Transport {
	t := n.Transport()
	n.rotation.mu.Lock()
	defer n.rotation.mu.Unlock()
	n.rotation.transports = append(n.rotation.transports, t)
	return t
}

func (r *rotation) closeIdle() {
	r.mu.Lock()
	list := slices.Clone(r.transports)
	r.mu.Unlock()
	for _, t := range list {
		t.CloseIdleConnections()
	}
}

// NamesKey is [identity.Identity.NamesKey] as bytes.
func (n *Node) NamesKey() []byte { return []byte(n.Identity.NamesKey().Reveal()) }

// setSecret changes the cluster secrets; text holds one in each line.
func (n *Node) setSecret(text secret.String) error {
	changed, err := n.Identity.SetSecret(text)
	if err != nil || !changed {
		return err
	}
	accepted := n.Identity.Accepted()
	n.Log.Info("the cluster secrets have changed", "first", accepted[0], "accepted", accepted)
	n.rotation.changes.Add(1)
	select {
	case n.rotation.changed <- struct{}{}:
	default:
	}
	return nil
}

// followSecrets is the part that moves connections and stored signatures to the first secret after a change.
func (n *Node) followSecrets(ctx context.Context) error {
	again := time.NewTimer(removedGrace)
	defer again.Stop()
	for {
		if n.Identity.AnyStale() {
			n.rotation.closeIdle()
		}
		if change := n.rotation.changes.Load(); change != n.rotation.followed.Load() {
			if n.renewProofs(ctx) {
				n.rotation.followed.Store(change)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.rotation.changed:
			again.Reset(removedGrace)
		case <-again.C:
			if closed := n.Identity.CloseRemoved(); closed > 0 {
				n.Log.Info("connections were closed because their cluster secret was removed", "connections", closed)
			}
			again.Reset(removedGrace)
		}
	}
}

// renewProofs gives the stored signatures certificates under the first secret, so that they outlive the others. It
// reports false if it ended before the last task, because of ctx or of another change.
func (n *Node) renewProofs(ctx context.Context) bool {
	if accepted := n.Identity.Accepted(); len(accepted) < 2 {
		return true
	}
	begun, renewed, failed := time.Now(), 0, 0
	var last error
	for _, e := range n.Store.Inventory() {
		if ctx.Err() != nil || len(n.rotation.changed) > 0 {
			return false
		}
		switch more, err := n.renewProof(e.ID); {
		case err != nil:
			failed, last = failed+1, err
		case more:
			renewed++
		}
	}
	if failed > 0 {
		n.Log.Warn("signatures of stored tasks end with the old cluster secret: after its removal their blobs are "+
			"fetched again if neighbours want them", "tasks", failed, "error", last)
	}
	n.Log.Info("the signatures of stored tasks are valid under the first cluster secret", "first",
		n.Identity.Accepted()[0], "renewed", renewed, "took", time.Since(begun).Round(time.Millisecond))
	return true
}

// renewProof adds to a stored task the certificates that replace those of an old secret.
func (n *Node) renewProof(id task.ID) (renewed bool, err error) {
	r, err := n.Store.Open(id)
	if err != nil {
		return false, nil // evicted meanwhile, or unreadable, which its next reader reports
	}
	defer r.Close()
	_, certs := r.Runs()
	var fresh [][]byte
	for _, der := range certs {
		now := n.Verifier.Current(der)
		same := func(o []byte) bool { return bytes.Equal(o, now) }
		if !slices.ContainsFunc(certs, same) && !slices.ContainsFunc(fresh, same) {
			fresh = append(fresh, now)
		}
	}
	if len(fresh) == 0 {
		return false, nil
	}
	return true, r.AddRuns(nil, fresh)
}

// secretStatus tells which secrets are in use.
func (n *Node) secretStatus() (list []api.SecretStatus) {
	for _, s := range n.Identity.Secrets() {
		list = append(list, api.SecretStatus{Fingerprint: s.Fingerprint, First: s.First, Removed: s.Removed,
			Connections: s.Connections, Last: s.Last, Address: s.Address})
	}
	return list
}

func (n *Node) secretStats() (list []telemetry.SecretStats) {
	for _, s := range n.Identity.Secrets() {
		state := "accepted"
		if s.First {
			state = "first"
		} else if s.Removed {
			state = "removed"
		}
		list = append(list, telemetry.SecretStats{Fingerprint: s.Fingerprint, State: state,
			Connections: s.Connections, Handshakes: s.Handshakes})
	}
	return list
}
