package peer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/task"
)

// TestTheEndOfThisHostIsNoWordOfTheOrigins has the origin's end reach the loop before the
// host's own, which is chance (see TestAStoppedSeedFailsNoPull).
func TestTheEndOfThisHostIsNoWordOfTheOrigins(t *testing.T) {
	for name, stopped := range map[string]bool{"the host ends": true, "the origin fails": false} {
		t.Run(name, func(t *testing.T) {
			e := New(Config{Host: host.Host{ID: host.NewID()}, Store: memstore.New(memstore.Config{}),
				Verifier: credulous{},
				Signer:   credulous{}})
			spec := task.Spec{ID: task.ID("sha256:" + strings.Repeat("0", 64)), Kind: task.Blob}
			d := newDownload(e, spec)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			d.ctx = ctx
			d.policy.OriginAsked()
			if stopped {
				cancel()
			}
			d.originEnded(time.Now(), &originParent{d: d, spec: spec},
				fmt.Errorf("reading the body: %w", context.Canceled))
			var f *api.Failure
			assert.Equal(t, stopped, errors.Is(d.end.err, ErrStopped), "%v", d.end.err)
			assert.Equal(t, !stopped, errors.As(d.end.err, &f), "what neighbours would be told: %v", d.end.err)
		})
	}
}
