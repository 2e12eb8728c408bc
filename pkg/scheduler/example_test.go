package scheduler_test

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/scheduler"
	"github.com/darter-io/darter/pkg/task"
)

// The first host that wants a task sends the owner's own host to the origin, and gets it as a
// neighbour. The next one gets both.
func Example() {
	s := scheduler.New(scheduler.Config{Self: member("owner")})
	now := time.Unix(0, 0)
	layer := &task.Spec{ID: "sha256:layer", Kind: task.Blob, Upstream: "quay.io", Repository: "app"}

	for _, name := range []string{"node1", "node2"} {
		answer, err := s.Announce(now, scheduler.Report{Host: member(name), Entries: []scheduler.Entry{
			{Task: layer.ID, Event: scheduler.Started, Spec: layer, Need: 4},
		}})
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, spec := range answer.Seeds {
			fmt.Println("the owner gets", spec.ID, "from", spec.Upstream)
		}
		fmt.Println(name, "exchanges pieces with", names(answer.Assignments[0]))
	}
	// Output:
	// the owner gets sha256:layer from quay.io
	// node1 exchanges pieces with owner (seed)
	// node2 exchanges pieces with owner (seed), node1 (zone)
}

// A host that holds a task keeps the owner away from the origin for as long as it announces. When it
// falls silent and another host starves, the origin is next.
func ExampleScheduler_Tick() {
	s := scheduler.New(scheduler.Config{Self: member("owner"), Expiry: 15 * time.Second})
	begin := time.Unix(0, 0)
	layer := &task.Spec{ID: "sha256:layer"}
	announce := func(after time.Duration, name string, e scheduler.Entry) {
		e.Task = layer.ID
		answer, err := s.Announce(begin.Add(after), scheduler.Report{Host: member(name), Entries: []scheduler.Entry{e}})
		fmt.Println(name, "is given", names(answer.Assignments[0]), "seeds:", len(answer.Seeds), err)
	}

	announce(0, "node1", scheduler.Entry{Event: scheduler.Completed, Have: 9})
	announce(time.Second, "node2", scheduler.Entry{Event: scheduler.Started, Spec: layer, Need: 4})
	announce(10*time.Second, "node2", scheduler.Entry{Event: scheduler.Progress, Have: 3})
	fmt.Println("gone:", s.Tick(begin.Add(15*time.Second)).Gone)
	announce(16*time.Second, "node2", scheduler.Entry{Event: scheduler.Starving, Spec: layer, Have: 3, Need: 4})
	// Output:
	// node1 is given nobody seeds: 0 <nil>
	// node2 is given node1 (holder) seeds: 0 <nil>
	// node2 is given nobody seeds: 0 <nil>
	// gone: [node1]
	// node2 is given owner (seed) seeds: 1 <nil>
}

// The cause of a failure reaches each host that waited with its next announce. A failure of the scope OfRequest
// reaches only hosts with the same credentials; another client's token may still work.
func ExampleScheduler_Failed() {
	s := scheduler.New(scheduler.Config{Self: member("owner")})
	now := time.Unix(0, 0)
	alice := &task.Spec{ID: "sha256:layer", Upstream: "quay.io", Repository: "app", Authorization: "Bearer alice"}
	bob := &task.Spec{ID: "sha256:layer", Upstream: "quay.io", Repository: "app", Authorization: "Bearer bob"}
	announce := func(name string, spec *task.Spec) {
		answer, err := s.Announce(now, scheduler.Report{Host: member(name), Entries: []scheduler.Entry{
			{Task: spec.ID, Event: scheduler.Started, Spec: spec},
		}})
		fmt.Println(name, "failure:", answer.Assignments[0].Failure, "seeds:", len(answer.Seeds), err)
	}

	announce("node1", alice)
	s.Failed(now, alice.ID, errors.New("401 Unauthorized"), alice, scheduler.OfRequest)
	announce("node1", alice)
	announce("node2", bob)
	// Output:
	// node1 failure: <nil> seeds: 1 <nil>
	// node1 failure: 401 Unauthorized seeds: 0 <nil>
	// node2 failure: <nil> seeds: 1 <nil>
}

// With hosts in several zones, a few gateways of each zone bring the pieces into it. The other
// hosts stay in their zone.
func ExampleConfig_gateways() {
	s := scheduler.New(scheduler.Config{Self: member("owner"), Gateways: 1})
	layer := &task.Spec{ID: "sha256:layer"}
	for _, name := range []string{"east1", "west1", "west2"} {
		h := member(name)
		h.Zone = name[:4]
		answer, err := s.Announce(time.Unix(0, 0), scheduler.Report{Host: h, Entries: []scheduler.Entry{
			{Task: layer.ID, Event: scheduler.Started, Spec: layer, Need: 4},
		}})
		a := answer.Assignments[0]
		fmt.Println(name, "stays in its zone:", a.Local, "neighbours:", names(a), err)
	}
	// Output:
	// east1 stays in its zone: false neighbours: owner (seed) <nil>
	// west1 stays in its zone: false neighbours: owner (seed), east1 (remote) <nil>
	// west2 stays in its zone: true neighbours: west1 (zone) <nil>
}

func member(name string) host.Host { return host.Host{ID: host.ID(name), Addr: name + ":65002"} }

// names are an assignment's neighbours with the reason for each.
func names(a scheduler.Assignment) string {
	var out []string
	for _, n := range a.Neighbours {
		out = append(out, fmt.Sprintf("%s (%s)", n.ID, n.Reason))
	}
	if out == nil {
		return "nobody"
	}
	return strings.Join(out, ", ")
}
