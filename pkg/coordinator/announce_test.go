package coordinator

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/announce"
	"github.com/darter-io/darter/pkg/api"
)

// A host and a restarted owner agree again.
func TestOwnerRestarts(t *testing.T) {
	// The address stays, and another coordinator serves it.
	var behind atomic.Pointer[rig]
	behind.Store(newRig(nil))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		behind.Load().HandleAnnounce(w, r)
	}))
	defer server.Close()
	addr := server.Listener.Addr().String()
	behind.Load().cfg.Owners = nil

	held, wanted := taskID("a"), taskID("b")
	client := announce.New(announce.Config{
		Host: member("1"), Generation: 1, Owners: []string{addr}, Client: server.Client(),
		Inventory: func() []api.Entry { return []api.Entry{{Task: held, Event: api.Completed, Have: 1}} },
	})
	defer server.Client().CloseIdleConnections()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- client.Run(ctx) }()

	a, _, err := client.Announce(ctx, wants(wanted, "token"))
	require.NoError(t, err)
	assert.Equal(t, member("0").ID, a.Neighbours[0].ID)
	assert.Equal(t, []string{"sha256:bbbbbbbbbbbb token"}, behind.Load().seeds())
	holding := func(r *rig) func() bool { return func() bool { return r.Stats().Holding == 1 } }
	require.Eventually(t, holding(behind.Load()), time.Minute, time.Millisecond, "the inventory arrives")

	fresh := newRig(nil)
	fresh.cfg.Owners = nil
	behind.Store(fresh)
	// The first entries after the restart have no spec. The owner requests the inventory, and the next
	// entries have it.
	_, _, err = client.Announce(ctx, api.Entry{Task: wanted, Event: api.Progress})
	require.NoError(t, err)
	require.Eventually(t, holding(fresh), time.Minute, time.Millisecond, "the inventory arrives again")
	a, _, err = client.Announce(ctx, api.Entry{Task: wanted, Event: api.Progress, Need: 1})
	require.NoError(t, err)
	assert.Len(t, a.Neighbours, 1)
	assert.Equal(t, []string{"sha256:bbbbbbbbbbbb token"}, fresh.seeds())

	cancel()
	require.NoError(t, <-ended)
	assert.Equal(t, 1, fresh.Stats().Hosts, "the host has said farewell")
}
