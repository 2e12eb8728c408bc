package coordinator

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/announce"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/scheduler"
	"github.com/darter-io/darter/pkg/task"
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

// An announce with more entries than are decided at a time is answered like one with few, and a status lists all hosts.
func TestManyEntriesAndHosts(t *testing.T) {
	r := newRig(nil)
	var entries []api.Entry
	for i := range 2*lockedMax + 7 {
		e := api.Entry{Task: task.ID(fmt.Sprintf("sha256:%064x", i)), Event: api.Completed, Have: 1}
		if i%10 == 0 {
			e.Task = "broken"
		}
		entries = append(entries, e)
	}
	answer := r.serve(t, member("1"), entries...)
	assert.True(t, answer.Resync)
	for i, a := range answer.Assignments {
		assert.Equal(t, i%10 == 0, a.Failure != nil, "entry %d", i)
	}
	assert.Equal(t, 2*lockedMax+7-52, r.Stats().Holding)

	wanted := map[host.ID]bool{member("1").ID: true}
	for i := range 1500 {
		h := host.Host{ID: host.ID(fmt.Sprintf("%032x", i+1)), Name: "same", Addr: "10.1.1.1:65002"}
		r.sched.Announce(time.Now(), scheduler.Report{Host: h, Generation: 1, Source: h.Name + fmt.Sprint(i/1000)})
		wanted[h.ID] = true
	}
	listed := r.Hosts()
	for _, h := range listed {
		assert.True(t, wanted[h.ID], "host %s is listed once", h.ID)
		delete(wanted, h.ID)
	}
	assert.Empty(t, wanted)
	assert.True(t, slices.IsSortedFunc(listed, func(a, b api.HostStatus) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	}))
}
