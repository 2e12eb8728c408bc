package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/task"
)

// TestOtherBytesOfAStoredPieceAreWrong has the stream and a further GET, or a neighbour, bring a piece at the same
// time: the store keeps the first, and the stream has hashed its own.
func TestOtherBytesOfAStoredPieceAreWrong(t *testing.T) {
	e := New(Config{Host: host.Host{ID: host.NewID()}, Store: memstore.New(memstore.Config{}), Verifier: credulous{},
		Signer: credulous{}})
	spec := task.Spec{ID: task.ID("sha256:" + strings.Repeat("0", 64)), Kind: task.Blob}
	d := newDownload(e, spec)
	require.NoError(t, d.proof.setMetadata(piece.MetadataFor(2*piece.SizeMin, "")))
	o := &originParent{d: d, spec: spec, epoch: 1}
	first, other := bytes.Repeat([]byte("a"), piece.SizeMin), bytes.Repeat([]byte("b"), piece.SizeMin)
	d.proof.replica = &overtaken{d.proof.replica, func() { require.NoError(t, o.keep(0, first)) }}
	var wrong *errWrongContent
	require.ErrorAs(t, o.keep(0, other), &wrong, "it would be signed as checked")
	require.NoError(t, o.keep(0, first))
}

// TestARequestEndsBeforeWhatIsHere compares the end of the request with the piece at which the stream would break off:
// without an end, more bytes would be on their way then.
func TestARequestEndsBeforeWhatIsHere(t *testing.T) {
	e := New(Config{Host: host.Host{ID: host.NewID()}, Store: memstore.New(memstore.Config{}), Verifier: credulous{},
		Signer: credulous{}})
	spec := task.Spec{ID: task.ID("sha256:" + strings.Repeat("0", 64)), Kind: task.Blob}
	d := newDownload(e, spec)
	require.NoError(t, d.proof.setMetadata(piece.MetadataFor(100*piece.SizeMin, "")))
	data := make([]byte, piece.SizeMin)
	for _, i := range []piece.Index{7, 8, 20, 21, 22, 95, 96, 97, 98, 99} {
		require.NoError(t, d.stored.keep(i, data, piece.Sum(data)))
	}
	o := &originParent{d: d, spec: spec, epoch: 1}
	for at, stop := range map[piece.Index]piece.Index{0: 0, 5: 20, 19: 20, 23: 95, 94: 95} {
		assert.Equal(t, stop, o.stop(at), "from %d", at)
	}
	o.ahead.noteWhole()
	assert.Zero(t, o.stop(5), "the origin sends the whole")
}

// overtaken is a replica into which another goroutine writes just before the first write.
type overtaken struct {
	piece.Replica
	before func()
}

func (r *overtaken) WritePiece(i piece.Index, data []byte, d piece.Digest) error {
	if before := r.before; before != nil {
		r.before = nil
		before()
	}
	return r.Replica.WritePiece(i, data, d)
}

// TestStoppingIsNoFailureOfTheOrigin has the end of the origin's body reach the loop before the end of the host,
// which happens at random (see TestAStoppedSeedFailsNoPull).
func TestStoppingIsNoFailureOfTheOrigin(t *testing.T) {
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
			d.policy.OriginBegun()
			if stopped {
				cancel()
			}
			d.originEnded(time.Now(), &originParent{d: d, spec: spec},
				fmt.Errorf("reading the body: %w", context.Canceled))
			var f *api.Failure
			assert.Equal(t, stopped, errors.Is(d.end.err, ErrStopped), "%v", d.end.err)
			assert.Equal(t, !stopped, errors.As(d.end.err, &f), "the failure for neighbours: %v", d.end.err)
		})
	}
}
