package source

import (
	"context"
	"fmt"

	"github.com/darter-io/darter/pkg/task"
)

// Mux is an origin that passes each kind of task to the origin that speaks to its kind. It
// is not changed once it is in use.
type Mux map[task.Kind]Origin

// Open implements [Origin].
func (m Mux) Open(ctx context.Context, spec task.Spec, offset int64) (*Response, error) {
	o, ok := m[spec.Kind]
	if !ok {
		return nil, fmt.Errorf("opening task %s: no origin for content of kind %.40q is configured", spec.ID.Short(), spec.Kind)
	}
	return o.Open(ctx, spec, offset)
}
