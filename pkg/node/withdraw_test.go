package node

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
)

// commanded runs the command against a program that gives an answer.
func commanded(t *testing.T, answer api.Withdrawn) (stdout string, err error) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, http.MethodDelete, r.Method)
		assert.NotEmpty(t, r.URL.Query().Get("wait"))
		assert.NoError(t, json.NewEncoder(w).Encode(answer))
	}))
	defer s.Close()
	at := config.Address(s.Listener.Addr().String())
	var out strings.Builder
	err = WithdrawCommand("dfdaemon", &at, "api-listen").Run(context.Background(), []string{"quay.test/app@" + string(idOf("0a"))}, &out)
	return out.String(), err
}

func TestTheWithdrawCommandTellsWhatHappened(t *testing.T) {
	t.Run("all dropped it", func(t *testing.T) {
		out, err := commanded(t, api.Withdrawn{Task: idOf("0a"), Told: []string{"s:1"}, Followed: &api.Followed{Dropped: 3}})
		require.NoError(t, err)
		assert.Contains(t, out, "here, and 1 supernodes know")
		assert.Contains(t, out, "3 dropped it or had nothing of it, 0 not yet")
	})
	t.Run("one could not, one has not heard", func(t *testing.T) {
		out, err := commanded(t, api.Withdrawn{Task: idOf("0a"), Told: []string{"s:1"}, Followed: &api.Followed{Dropped: 1, Others: []api.HostFollowed{
			{Host: "n2", State: api.FollowFailed, Why: "input/output error"}, {Host: "n3", State: api.FollowUnheard},
		}}})
		require.ErrorContains(t, err, "is not dropped on 1 host;")
		assert.Contains(t, out, "1 dropped it or had nothing of it, 2 not yet")
		assert.Contains(t, out, "host n2 could not drop it: input/output error")
		assert.Contains(t, out, "host n3 has not said so yet")
	})
	t.Run("not even this host", func(t *testing.T) {
		out, err := commanded(t, api.Withdrawn{Task: idOf("0a"), Pending: "device or resource busy", Failed: map[string]string{"s:1": "connection refused"}})
		require.ErrorContains(t, err, "no supernode heard of it")
		require.ErrorContains(t, err, "is not dropped on 1 host;")
		assert.Contains(t, out, "NOT YET here")
		assert.Contains(t, out, "this host: device or resource busy")
		assert.Contains(t, out, "supernode s:1 does not know yet")
	})
}

func TestAnOwnerThatNamesNobodyHasHeardOfNobody(t *testing.T) {
	assert.False(t, heardOfAll(api.Followed{}, true), "it was started a moment ago: this host itself is missing")
	assert.True(t, heardOfAll(api.Followed{}, false), "a supernode to which nobody announces")
	assert.True(t, heardOfAll(api.Followed{Dropped: 1}, true))
	assert.True(t, heardOfAll(api.Followed{Others: []api.HostFollowed{{State: api.FollowFailed}}}, true))
	assert.False(t, heardOfAll(api.Followed{Dropped: 1, Others: []api.HostFollowed{{State: api.FollowUnheard}}}, true))
	assert.False(t, heardOfAll(api.Followed{Dropped: 1, Missing: 1}, true))
}

func TestStatusTellsOfClocksAndOfWhatIsNotDropped(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	var out strings.Builder
	require.NoError(t, WriteStatus(&out, api.Status{
		Program: "supernode", Started: now.Add(72 * time.Hour), Uptime: 90, Clocks: "why a host was refused",
		Owners:       []api.OwnerStatus{{Addr: "a:1", Alive: true, Skew: 7200}, {Addr: "b:1", Alive: true, Skew: -7200}, {Addr: "c:1", Alive: true, Skew: 3}},
		Unfollowed:   []api.Unfollowed{{Task: idOf("0a"), Why: "busy"}},
		UnfollowedBy: []api.HostFollowed{{Host: "n2", Why: "full"}},
		Seeds:        &api.Outcomes{Last: now.Add(time.Hour)},
	}, now))
	for _, want := range []string{"up 1m30s", "a:1 answers, ITS CLOCK IS 2h0m0s AHEAD OF this one", "b:1 answers, ITS CLOCK IS 2h0m0s BEHIND this one", "why a host was refused",
		"was withdrawn and cannot be dropped yet: busy", "by host n2: full", "the last 0s ago"} {
		assert.Contains(t, out.String(), want)
	}
	assert.NotRegexp(t, `c:1 answers,`, out.String())
}
