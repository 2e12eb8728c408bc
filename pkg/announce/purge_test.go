package announce

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/purge"
	"github.com/darter-io/darter/pkg/task"
)

func TestPurgeOrdersAreFetchedOncePerMark(t *testing.T) {
	want := api.PurgeOrder{Task: task.ID("sha256:" + strings.Repeat("0a", 32)), At: time.Now().UTC()}
	var announces, asked atomic.Int32
	mux := http.NewServeMux()
	mux.HandleFunc(api.PathAnnounce, func(w http.ResponseWriter, _ *http.Request) {
		announces.Add(1)
		assert.NoError(t, json.NewEncoder(w).Encode(api.AnnounceResponse{Version: api.Version, IntervalMillis: 1,
			PurgeMark: "m1"}))
	})
	mux.HandleFunc(api.PathPurgeOrders, func(w http.ResponseWriter, r *http.Request) {
		assert.Empty(t, r.URL.Query().Get("mark"), "nothing is known yet")
		if asked.Add(1) == 1 {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		assert.NoError(t, json.NewEncoder(w).Encode(api.PurgeOrders{Version: api.Version,
			List: []api.PurgeOrder{want}}))
	})
	s := httptest.NewServer(mux)
	defer s.Close()
	service, err := purge.Open(purge.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	got := make(chan task.ID, 8)
	service.OnDrop(func(id task.ID) { got <- id })
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	c := New(Config{
		Host: host.Host{ID: host.NewID(), Addr: "127.0.0.1:1"}, Owners: []string{s.Listener.Addr().String()},
		Client: &http.Client{Transport: transport},
		Purges: service,
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	assert.Equal(t, want.Task, <-got)
	seen := announces.Load()
	require.Eventually(t, func() bool { return announces.Load() > seen+5 }, time.Minute, time.Millisecond)
	cancel()
	require.NoError(t, <-ended)
	assert.Empty(t, got)
	assert.EqualValues(t, 2, asked.Load())
}
