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
// part before the @ is for people. The error says which digest is needed and how to find it.
func ParseTarget(name string) (task.ID, error) {
	digest := name
	if i := strings.LastIndexByte(name, '@'); i >= 0 {
		digest = name[i+1:]
	}
	id, err := task.ParseID(digest)
	algorithm, _, _ := strings.Cut(digest, ":")
	switch {
	case err == nil:
		return id, nil
	case strings.Contains(digest, "://"):
		return "", fmt.Errorf("%w; a file is purged by its task, file:…, which dfget --progress=json prints", err)
	case digest != name, algorithm == "sha256", algorithm == "sha512", algorithm == "file":
		return "", fmt.Errorf("%w; write sha256: and 64 lower-case hex digits", err)
	}
	return "", fmt.Errorf("%w; a tag names another image when it moves, so purge takes the digest of a manifest or "+
		"layer: write %s@sha256:…, for example as \"docker buildx imagetools inspect\" or \"crane digest\" print it", err,
		strings.TrimSuffix(name, tagOf(name)))
}

// tagOf returns the tag of an image's name with its colon, empty if there is none.
func tagOf(name string) string {
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[i:]
	}
	return ""
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
	supernodes := "supernodes"
	if len(result.Reached) == 1 {
		supernodes = "supernode"
	}
	fmt.Fprintf(w, "purged %s: %s, %d %s took the order\n", id, here, len(result.Reached), supernodes)
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
