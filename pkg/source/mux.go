package source

import (
	"context"
	"fmt"

	"github.com/darter-io/darter/pkg/task"
)

// Mux is an origin that passes each task to the origin of its kind. Nothing may change it once it is in
// use.
type Mux map[task.Kind]Origin

// Open implements [Origin].
func (m Mux) Open(ctx context.Context, spec task.Spec, offset int64) (*Response, error) {
	o, err := m.of(spec)
	if err != nil {
		return nil, err
	}
	return o.Open(ctx, spec, offset)
}

// OpenPart implements [PartOrigin].
func (m Mux) OpenPart(ctx context.Context, spec task.Spec, offset, end int64) (*Response, error) {
	o, err := m.of(spec)
	if err != nil {
		return nil, err
	}
	return OpenPart(ctx, o, spec, offset, end)
}

func (m Mux) of(spec task.Spec) (Origin, error) {
	o, ok := m[spec.Kind]
	if !ok {
		return nil, fmt.Errorf("opening task %s: no origin of kind %.40q is configured", spec.ID.Short(), spec.Kind)
	}
	return o, nil
}
