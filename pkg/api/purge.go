package api

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/darter-io/darter/pkg/task"
)

// Paths of purging. They and the JSON keys keep the words of version 1: old and new programs run side by side.
const (
	// PathPurgeOrders takes a member's new orders (POST, a PurgeOrders) and gives those that an owner
	// knows (GET). With ?mark= the answer is 204 if the owner knows nothing but the orders of that mark.
	PathPurgeOrders = "/api/v1/withdrawals"
	// PathPurge + "/" + task ID, by DELETE, purges a task from the whole cluster on behalf of an
	// operator. The answer is a PurgeResult.
	PathPurge = "/api/v1/content"
	// PathPurgeProgress + "/" + task ID gives members the state of the hosts that announce to an owner
	// (GET). The answer is a PurgeProgress.
	PathPurgeProgress = "/api/v1/withdrawals/followed"
)

// Bounds on purging.
const (
	// PurgeOrderLife is how long hosts pass an order on. A host that was away for longer keeps its replica.
	PurgeOrderLife = 7 * 24 * time.Hour
	// PurgeOrdersMax is how many orders a host remembers; PurgeOrdersSize bounds their JSON, in bytes.
	PurgeOrdersMax  = 4096
	PurgeOrdersSize = 2 << 20
	// PurgeFailuresMax is how many failures a host reports in one announce, and PurgeFailureWhyMax
	// bounds the reason of each, in bytes.
	PurgeFailuresMax   = 16
	PurgeFailureWhyMax = 1000
	// PurgeHostsMax is how many hosts a PurgeProgress names.
	PurgeHostsMax = 64
)

// PurgeOrder orders each host to delete the replica that it held of a task when it learned of the order.
// It forbids nothing: a later pull gets the task from its origin, if the origin still gives it.
type PurgeOrder struct {
	Task task.ID `json:"task"`
	// At names the order, together with Task. It is the time by the clock of the host that made the order,
	// moved on if an order of that name is known already. Hosts compare it for equality alone; those of
	// version 1 that do not know AgeMillis compare it with their own clocks.
	At time.Time `json:"at"`
	// AgeMillis is how long ago the order was made, 1 or more. Each host that passes the order on adds the
	// time that it knew it, so that no clock matters. 0: a host of the version before passed it on, and At
	// is all there is to judge its age by.
	AgeMillis int64 `json:"ageMillis,omitempty"`
	// Pending is in a host's own file alone: the host learned of the order and has not deleted the replica yet.
	Pending bool `json:"pending,omitempty"`
}

// PurgeOrders are all orders that a host remembers.
type PurgeOrders struct {
	Version int          `json:"version"`
	List    []PurgeOrder `json:"list,omitempty"`
	// Saved is in a host's own file alone: its clock when it wrote the ages.
	Saved time.Time `json:"saved,omitzero"`
}

// PurgeFailure is an order that a host knows and could not carry out so far.
type PurgeFailure struct {
	Task task.ID `json:"task"`
	// Why is the failure for people; the host tries again by itself.
	Why string `json:"why"`
}

// PurgeState is how far a host has carried out the orders of an owner.
type PurgeState string

// The states of a host.
const (
	// PurgeDropped: it deleted its replica, or held none.
	PurgeDropped PurgeState = "dropped"
	// PurgeFailed: it knows the order and could not delete its replica yet.
	PurgeFailed PurgeState = "failed"
	// PurgeUnconfirmed: it has not reported yet that it knows the order.
	PurgeUnconfirmed PurgeState = "unheard"
)

// HostPurge is one host's state.
type HostPurge struct {
	Host  string     `json:"host"` // its name, or its ID if it has none
	State PurgeState `json:"state"`
	Why   string     `json:"why,omitempty"`
}

// PurgeProgress is how far the hosts that announce to an owner are with one task.
type PurgeProgress struct {
	Version int `json:"version"`
	// Dropped counts the hosts in that state; Others are the rest, at most PurgeHostsMax of them.
	Dropped int         `json:"dropped"`
	Others  []HostPurge `json:"others,omitempty"`
	// Missing counts the hosts of other states that Others leaves out.
	Missing int `json:"missing,omitempty"`
}

// PurgeResult is the answer to an operator's order.
type PurgeResult struct {
	Task task.ID `json:"task"`
	// Reached are the supernodes that took the order. Failed are the others, with the reason; they learn of
	// the order from their peers once they are back.
	Reached []string          `json:"told,omitempty"`
	Failed  map[string]string `json:"failed,omitempty"`
	// Pending is why this host has not deleted its replica yet; it tries again by itself. Empty: it has.
	Pending string `json:"pending,omitempty"`
	// Progress is what the hosts of the cluster reported while the request waited for them; nil if no owner answered.
	Progress *PurgeProgress `json:"followed,omitempty"`
}

// DecodePurgeOrders reads orders of at most PurgeOrdersSize bytes.
func DecodePurgeOrders(b []byte) (PurgeOrders, error) {
	if len(b) > PurgeOrdersSize {
		return PurgeOrders{}, fmt.Errorf("purge orders of more than %d bytes", PurgeOrdersSize)
	}
	var wire struct {
		PurgeOrders
		List json.RawMessage `json:"list"`
	}
	if err := json.Unmarshal(b, &wire); err != nil {
		return PurgeOrders{}, fmt.Errorf("reading purge orders: %w", err)
	}
	out := wire.PurgeOrders
	if out.Version < 1 || out.Version > Version+1 {
		return PurgeOrders{}, fmt.Errorf("purge orders of version %d, this host speaks %d", out.Version, Version)
	}
	if wire.List != nil {
		var err error
		if out.List, err = UnmarshalList[PurgeOrder](wire.List, PurgeOrdersMax, 1024); err != nil {
			return PurgeOrders{}, fmt.Errorf("reading purge orders: %w", err)
		}
	}
	for _, o := range out.List {
		if _, err := task.ParseID(string(o.Task)); err != nil {
			return PurgeOrders{}, fmt.Errorf("reading purge orders: %w", err)
		}
		// A time that JSON cannot hold would keep each host that knows it from saving and from passing on any order.
		if _, err := o.At.UTC().MarshalJSON(); err != nil {
			return PurgeOrders{}, fmt.Errorf("reading purge orders: the time of one: %w", err)
		}
	}
	return out, nil
}
