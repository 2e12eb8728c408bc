package peer

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// Fetch downloads a whole object into the store without a reader, and returns nil once every piece is stored and
// verified. At the origin it gives way to downloads that a reader or a neighbour awaits. It waits until ctx ends; the
// download then ends, too, unless another caller wants it. Failures are those of [Engine.Open]; a store without space
// for the object is an *[api.Failure] with Full.
func (e *Engine) Fetch(ctx context.Context, spec task.Spec) (err error) {
	select {
	case <-e.started:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for range policy.RefusalsMax {
		if err = e.fetch(ctx, spec); !errors.Is(err, errOthers) {
			break
		}
	}
	return err
}

func (e *Engine) fetch(ctx context.Context, spec task.Spec) error {
	why := forReader
	if e.cfg.Seed {
		why = forSeed // the owner hears that it holds the object
	}
	d, err := e.download(spec, why)
	if err != nil {
		return err
	}
	defer e.release(d)
	if why == forReader {
		d.notify(wholeWanted{1})
		defer d.notify(wholeWanted{-1})
	}
	for {
		changed := d.progress.wait()
		if d.stores() {
			return nil
		}
		if d.passes() != nil { // for a reader, who goes on
			return &api.Failure{Status: http.StatusInsufficientStorage, Full: true, Message: fmt.Sprintf(
				"%v: task %s passes by the store, and cannot be kept whole", piece.ErrNoSpace, d.id.Short())}
		}
		select {
		case <-changed:
		case <-d.done:
			if d.stores() {
				return nil
			}
			return d.end.failureFor(spec)
		case <-ctx.Done():
			return fmt.Errorf("fetching task %s: %w", spec.ID.Short(), context.Cause(ctx))
		}
	}
}

// stores reports whether the store holds every piece.
func (d *Download) stores() bool {
	return d.proof.hasMetadata() && d.passes() == nil && d.proof.replica.Have().Full()
}

// addWhole adds or removes callers that want the whole object in the store.
func (d *Download) addWhole(n int) {
	d.wants.whole += n
	d.notePassing()
	d.updateWanted(d.times.lastUse)
}
