package purge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/task"
)

// operatorWait is how long an operator's command waits for the reports of hosts.
const operatorWait = 10 * time.Second

// ParseTarget reads what an operator wants to purge: a digest, or an image with its digest, of which the
// part before the @ is for people.
func ParseTarget(name string) (task.ID, error) {
	if i := strings.LastIndexByte(name, '@'); i >= 0 {
		name = name[i+1:]
	}
	return task.ParseID(name)
}

// Operator purges by a running program of this machine.
type Operator struct {
	// Program is "supernode" or "dfdaemon"; Addr is where its admin or local API listens.
	Program, Addr string
}

// Purge purges a task and prints the result. The first error ends the command; problem says what is left
// to do of an order that was taken.
func (o Operator) Purge(ctx context.Context, id task.ID, stdout io.Writer) (problem, err error) {
	result, err := apiclient.Local(o.Addr).Purge(ctx, id, operatorWait)
	var status *apiclient.StatusError
	var body *apiclient.BodyError
	switch {
	case errors.As(err, &status):
		return nil, fmt.Errorf("asking %s at %s: %s: %s", o.Program, o.Addr, status.Status, status.Text)
	case errors.As(err, &body):
		return nil, fmt.Errorf("asking %s at %s: %w", o.Program, o.Addr, body.Err)
	case err != nil:
		return nil, fmt.Errorf("no %s answers at %s (%w); is it running, and is this its address?", o.Program,
			o.Addr, err)
	}
	printResult(stdout, id, result)
	var problems []error
	if len(result.Failed) > 0 && len(result.Reached) == 0 && o.Program == "dfdaemon" {
		problems = append(problems, fmt.Errorf(
			"%s is purged on this host alone: no supernode took the order; run the command again when one answers", id))
	}
	if n := failures(result); n > 0 {
		problems = append(problems, fmt.Errorf(
			"%s is not deleted on %d of the hosts; repair what the lines above name: each host tries again by itself",
			id, n))
	}
	return errors.Join(problems...), nil
}

// printResult prints what became of an order.
func printResult(w io.Writer, id task.ID, result api.PurgeResult) {
	here := "deleted here"
	if result.Pending != "" {
		here = "NOT YET deleted here"
	}
	fmt.Fprintf(w, "purged %s: %s, %d supernodes took the order\n", id, here, len(result.Reached))
	if result.Pending != "" {
		fmt.Fprintf(w, "this host: %s\n", result.Pending)
	}
	for _, addr := range slices.Sorted(maps.Keys(result.Failed)) {
		fmt.Fprintf(w, "supernode %s did not take the order, or could not delete its replica: %s\n", addr,
			result.Failed[addr])
	}
	p := result.Progress
	if p == nil {
		return
	}
	fmt.Fprintf(w, "of the hosts that announce, %d deleted it or held nothing of it, %d not yet\n", p.Dropped,
		len(p.Others)+p.Missing)
	for _, h := range p.Others {
		switch h.State {
		case api.PurgeUnconfirmed:
			fmt.Fprintf(w, "host %s has not confirmed yet: it learns of the order with its next announce\n", h.Host)
		default:
			fmt.Fprintf(w, "host %s could not delete it: %s\n", h.Host, h.Why)
		}
	}
}

// failures counts the hosts that know an order and could not carry it out.
func failures(result api.PurgeResult) (n int) {
	if result.Pending != "" {
		n++
	}
	if result.Progress != nil {
		for _, h := range result.Progress.Others {
			if h.State == api.PurgeFailed {
				n++
			}
		}
	}
	return n
}
