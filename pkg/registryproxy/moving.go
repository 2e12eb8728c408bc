package registryproxy

import (
	"context"
	"time"

	"github.com/darter-io/darter/pkg/task"
)

// movingMax bounds how long a client waits for its first byte while bytes of a content of unknown
// length come in: then it may go elsewhere, and finds the content here when it comes back.
const movingMax = 10 * time.Minute

// waitOn lets the client wait on while bytes of a content come in whose length nobody knows. Stop
// ends that; from then on the client waits as long as any other.
func (x *exchange) waitOn(id task.ID) (stop func()) {
	if x.cfg.Moving == nil {
		return func() {}
	}
	ctx, cancel := context.WithTimeout(x.ctx, movingMax)
	done := make(chan struct{})
	go func() {
		defer close(done)
		look := time.NewTicker(x.limit / 8)
		defer look.Stop()
		last := x.cfg.Moving(id)
		for {
			select {
			case <-ctx.Done():
				return
			case <-look.C:
			}
			now := x.cfg.Moving(id)
			if now == last {
				continue
			}
			last = now
			if !x.late.Reset(x.limit) {
				return // it is too late: the client is being refused
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}
