package peer

import (
	"context"

	"github.com/darter-io/darter/pkg/source"
)

// safely is run, where a panic at what the origin sent is the error: nobody else watches this
// goroutine, and the process has other downloads.
func (o *originParent) safely(ctx context.Context) (err error) {
	defer source.Rescue(&err, "bringing task "+o.d.id.Short()+" from its origin")
	return o.run(ctx)
}
