package coordinator

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
)

// announced has a coordinator serve an announce over HTTP.
func announced(t *testing.T, c *Coordinator, r api.AnnounceRequest) *httptest.ResponseRecorder {
	b, err := json.Marshal(r)
	require.NoError(t, err)
	w := httptest.NewRecorder()
	c.HandleAnnounce(w, httptest.NewRequest(http.MethodPost, api.PathAnnounce, bytes.NewReader(b)))
	return w
}

func TestAHostWithAnotherClockIsRefusedAndForgotten(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	refused := 0
	c := New(Config{Host: member("0"), Seed: newRig(nil).cfg.Seed, Now: func() time.Time { return now }, Apart: func() { refused++ }})
	request := api.AnnounceRequest{Version: 1, Host: member("1"), Clock: now.Add(-20 * time.Hour), Entries: []api.Entry{{Task: taskID("a"), Event: api.Completed, Have: 1}}}
	answer := announced(t, c, request)
	require.Equal(t, http.StatusOK, answer.Code)
	assert.Equal(t, now.Format(time.RFC3339Nano), answer.Header().Get(api.HeaderClock))
	require.Len(t, c.Hosts(), 1)
	require.Equal(t, 1, c.Stats().Holding)

	for _, clock := range []time.Time{now.Add(-72 * time.Hour), now.Add(72 * time.Hour)} {
		request.Clock = clock
		answer = announced(t, c, request)
		assert.Equal(t, api.StatusClock, answer.Code)
		assert.Equal(t, now.Format(time.RFC3339Nano), answer.Header().Get(api.HeaderClock), "so that the host names both clocks itself")
		assert.Contains(t, answer.Body.String(), "this owner's clock says "+now.Format(time.RFC3339))
		assert.Contains(t, answer.Body.String(), clock.Format(time.RFC3339))
		assert.Empty(t, c.Hosts())
		assert.Zero(t, c.Stats().Holding, "nobody is sent to it")
	}
	assert.Equal(t, 2, refused)
	assert.Contains(t, c.Clocks(), "host node1")
	request.Clock = time.Time{}
	assert.Equal(t, http.StatusOK, announced(t, c, request).Code, "a former version tells none")
	request.Clock, request.Leaving = now.Add(-72*time.Hour), true
	assert.Equal(t, http.StatusOK, announced(t, c, request).Code, "a farewell is one by any clock")
}

func TestAClockIsNoStolenID(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	var why []Refusal
	c := New(Config{Host: member("0"), Seed: newRig(nil).cfg.Seed, Now: func() time.Time { return now }, Refused: func(r Refusal) { why = append(why, r) }})
	answer := announced(t, c, api.AnnounceRequest{Version: 1, Host: member("1"), Clock: now.Add(-25 * time.Hour)})
	assert.NotEqual(t, api.StatusInUse, answer.Code, "a host that hears that takes another ID")
	assert.Equal(t, []Refusal{RefusedClock}, why)
}

func TestAnOwnerKnowsWhichHostsDroppedAContent(t *testing.T) {
	mark := "m1"
	c := New(Config{Host: member("0"), Seed: newRig(nil).cfg.Seed, Withdrawn: func() string { return mark }})
	id := taskID("a")
	say := func(digit, mark string, trouble ...api.Unfollowed) {
		r := api.AnnounceRequest{Version: 1, Host: member(digit), Withdrawn: mark, Unfollowed: trouble}
		require.Equal(t, http.StatusOK, announced(t, c, r).Code)
	}
	say("1", "m1")
	say("2", "")
	say("3", "m1", api.Unfollowed{Task: id, Why: "busy"})
	say("4", "m1", api.Unfollowed{Task: taskID("b"), Why: "another"})
	f := c.Followed(id)
	assert.Equal(t, 2, f.Dropped)
	assert.Equal(t, []api.HostFollowed{{Host: "node2", State: api.FollowUnheard}, {Host: "node3", State: api.FollowFailed, Why: "busy"}}, f.Others)
	assert.Len(t, c.Unfollowed(), 2)

	say("2", "m1")
	say("3", "m1")
	assert.Equal(t, 4, c.Followed(id).Dropped)
	mark = "m2"
	assert.Len(t, c.Followed(id).Others, 4, "of a later order they have not heard yet")
	require.Equal(t, http.StatusOK, announced(t, c, api.AnnounceRequest{Version: 1, Host: member("4"), Leaving: true}).Code)
	assert.Len(t, c.Followed(id).Others, 3)
	assert.Empty(t, c.Unfollowed(), "who is gone is in nobody's way")
}

func TestWhatHostsSayOfWithdrawalsIsBounded(t *testing.T) {
	c := newRig(nil)
	good := api.AnnounceRequest{Version: 1, Host: member("1"), Withdrawn: "m"}
	for range api.UnfollowedMax {
		good.Unfollowed = append(good.Unfollowed, api.Unfollowed{Task: taskID("a"), Why: strings.Repeat("x", api.UnfollowedWhy)})
	}
	require.Equal(t, http.StatusOK, announced(t, c.Coordinator, good).Code)
	for name, change := range map[string]func(*api.AnnounceRequest){
		"too many": func(r *api.AnnounceRequest) { r.Unfollowed = append(r.Unfollowed, r.Unfollowed[0]) },
		"too long": func(r *api.AnnounceRequest) {
			r.Unfollowed = []api.Unfollowed{{Why: strings.Repeat("x", 8*api.UnfollowedWhy)}}
		},
		"a mark too long": func(r *api.AnnounceRequest) { r.Withdrawn = strings.Repeat("m", 256) },
	} {
		bad := good
		change(&bad)
		assert.Equal(t, http.StatusBadRequest, announced(t, c.Coordinator, bad).Code, name)
	}
	var refused *RequestError
	_, err := decodeRequest(strings.NewReader(`{"version":1,"unfollowed":{}}`))
	assert.True(t, errors.As(err, &refused))
}
