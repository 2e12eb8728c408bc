package coordinator

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/task"
)

// TestWindowsReachTheEngine passes the windows of other hosts on, and a part of the last piece back.
func TestWindowsReachTheEngine(t *testing.T) {
	var got []api.Window
	tail := &api.Tail{Offset: 90, Data: []byte("the end")}
	c := New(Config{Host: member("0"), Seed: func(task.Spec) {}, Ahead: func(id task.ID, w []api.Window) *api.Tail {
		assert.Equal(t, taskID("a"), id)
		got = append(got, w...)
		return tail
	}})
	serve := func(n int) api.Assignment {
		e := wants(taskID("a"), "")
		for i := range n {
			e.Windows = append(e.Windows, api.Window{Offset: int64(i), Length: 1})
		}
		response, err := c.ServeAnnounce(t.Context(),
			api.AnnounceRequest{Version: 1, Host: member("1"), Generation: 7, Entries: []api.Entry{e}})
		require.NoError(t, err)
		return response.Assignments[0]
	}
	a := serve(0)
	assert.Nil(t, a.Tail)
	assert.Empty(t, got)
	assert.True(t, a.Reading, "the owner's own engine was told to fetch it")

	a = serve(api.WindowsMax)
	assert.Equal(t, tail, a.Tail)
	assert.Len(t, got, api.WindowsMax)

	a = serve(api.WindowsMax + 1)
	require.NotNil(t, a.Failure)
	assert.Contains(t, a.Failure.Message, "windows")
	assert.Len(t, got, api.WindowsMax)

	e := wants(taskID("a"), "")
	for _, w := range []api.Window{{Offset: -1, Length: 1}, {Offset: 1, Length: -1}, {Offset: 1}} {
		e.Windows = []api.Window{w}
		response, err := c.ServeAnnounce(t.Context(),
			api.AnnounceRequest{Version: 1, Host: member("1"), Generation: 7, Entries: []api.Entry{e}})
		require.NoError(t, err)
		require.NotNil(t, response.Assignments[0].Failure)
		assert.Len(t, got, api.WindowsMax, "the engine receives no impossible window")
	}

	e.Windows = []api.Window{{Offset: 1, Length: 1}}
	own, _, err := c.Announce(t.Context(), e)
	require.NoError(t, err)
	assert.Nil(t, own.Tail, "the owner's engine knows its own windows")
}
