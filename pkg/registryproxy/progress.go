package registryproxy

import (
	"context"
	"time"

	"github.com/darter-io/darter/pkg/task"
)

// progressMax bounds how long a client waits for its first byte while bytes of a blob of unknown length
// arrive: then it may go elsewhere, and finds the blob here when it comes back.
const progressMax = 10 * time.Minute

// extendWhileProgressing moves the client's deadline while bytes of a blob of unknown length arrive, until
// stop. From then on the deadline is as that of any other client.
func (req *request) extendWhileProgressing(id task.ID) (stop func()) {
	if req.cfg.Progress == nil {
		return func() {}
	}
	ctx, cancel := context.WithTimeout(req.ctx, progressMax)
	done := make(chan struct{})
	go func() {
		defer close(done)
		look := time.NewTicker(req.wait / 8)
		defer look.Stop()
		last := req.cfg.Progress(id)
		for {
			select {
			case <-ctx.Done():
				return
			case <-look.C:
			}
			now := req.cfg.Progress(id)
			if now == last {
				continue
			}
			last = now
			if !req.deadline.Reset(req.wait) {
				return // too late: the client is being refused
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}
