package peer

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// panicking is an origin whose response makes the reader panic.
type panicking struct{}

func (panicking) Open(context.Context, task.Spec, int64) (*source.Response, error) { panic("a fault") }

func TestAPanicAtAnOriginsAnswerEndsItsDownload(t *testing.T) {
	id := task.ID("sha256:" + strings.Repeat("00", 32))
	store := memstore.New(memstore.Config{})
	d := &Download{
		e: &Engine{cfg: Config{Origin: panicking{}, Store: store}}, id: id, log: slog.New(slog.DiscardHandler),
		proof: newProof(id, store, nil, nil),
	}
	err := (&originParent{d: d, spec: task.Spec{ID: id, Kind: task.Blob}}).safely(t.Context())
	var caught *source.PanicError
	require.ErrorAs(t, err, &caught)
	require.Equal(t, "a fault", caught.Value, "it is the origin's, not one of this test")
}
