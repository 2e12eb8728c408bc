package coordinator

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
)

// announced sends an announce to a coordinator over HTTP.
func announced(t *testing.T, c *Coordinator, r api.AnnounceRequest) *httptest.ResponseRecorder {
	b, err := json.Marshal(r)
	require.NoError(t, err)
	w := httptest.NewRecorder()
	c.HandleAnnounce(w, httptest.NewRequest(http.MethodPost, api.PathAnnounce, bytes.NewReader(b)))
	return w
}

// A host whose clock is too far off is refused and forgotten.
func TestHostClock(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	refused := 0
	c := New(Config{Host: member("0"), Seed: newRig(nil).cfg.Seed, Now: func() time.Time { return now },
		ClockRefused: func() { refused++ }})
	request := api.AnnounceRequest{Version: 1, Host: member("1"), Clock: now.Add(-20 * time.Hour),
		Entries: []api.Entry{{Task: taskID("a"), Event: api.Completed, Have: 1}}}
	answer := announced(t, c, request)
	require.Equal(t, http.StatusOK, answer.Code)
	assert.Equal(t, now.Format(time.RFC3339Nano), answer.Header().Get(api.HeaderClock))
	require.Len(t, c.Hosts(), 1)
	require.Equal(t, 1, c.Stats().Holding)

	for _, clock := range []time.Time{now.Add(-72 * time.Hour), now.Add(72 * time.Hour)} {
		request.Clock = clock
		answer = announced(t, c, request)
		assert.Equal(t, api.StatusClock, answer.Code)
		assert.Equal(t, now.Format(time.RFC3339Nano), answer.Header().Get(api.HeaderClock),
			"so that the host names both clocks itself")
		assert.Contains(t, answer.Body.String(), "this owner's clock says "+now.Format(time.RFC3339))
		assert.Contains(t, answer.Body.String(), clock.Format(time.RFC3339))
		assert.Empty(t, c.Hosts())
		assert.Zero(t, c.Stats().Holding, "no host gets it as a neighbour")
	}
	assert.Equal(t, 2, refused)
	assert.Contains(t, c.Clocks(), "host node1")
	request.Clock = time.Time{}
	assert.Equal(t, http.StatusOK, announced(t, c, request).Code, "a former version tells none")
	request.Clock, request.Leaving = now.Add(-72*time.Hour), true
	assert.Equal(t, http.StatusOK, announced(t, c, request).Code, "a farewell is one by any clock")
}

// Another host with the same ID, a copy or a liar, does not end a membership by a wrong clock.
func TestAWrongClockEndsNoOthersMembership(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	c := New(Config{Host: member("0"), Seed: newRig(nil).cfg.Seed, Now: func() time.Time { return now }})
	honest := api.AnnounceRequest{Version: 1, Host: member("1"), Generation: 7, Clock: now,
		Entries: []api.Entry{{Task: taskID("a"), Event: api.Completed, Have: 1}}}
	require.Equal(t, http.StatusOK, announced(t, c, honest).Code)
	other := honest
	other.Generation, other.Host.Addr, other.Clock = 8, "10.9.9.9:65002", now.Add(-72*time.Hour)
	answer := announced(t, c, other)
	assert.Equal(t, api.StatusClock, answer.Code, "its clock must be set first")
	assert.Len(t, c.Hosts(), 1)
	assert.Equal(t, 1, c.Stats().Holding)
	assert.NotContains(t, announced(t, c, honest).Body.String(), "resync")
}

// A host with a wrong clock keeps its ID.
func TestHostClockKeepsID(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	var why []Refusal
	c := New(Config{Host: member("0"), Seed: newRig(nil).cfg.Seed, Now: func() time.Time { return now },
		Refused: func(r Refusal) { why = append(why, r) }})
	answer := announced(t, c, api.AnnounceRequest{Version: 1, Host: member("1"), Clock: now.Add(-25 * time.Hour)})
	assert.NotEqual(t, api.StatusInUse, answer.Code, "a host that hears that takes another ID")
	assert.Equal(t, []Refusal{RefusedClock}, why)
}
