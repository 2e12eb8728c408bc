package coordinator

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/purge"
)

// purges is an owner's part in purging with a mark that the test sets.
type purges struct {
	*purge.Reports
	mark *string
}

func (p purges) Mark() string { return *p.mark }

func TestPurgeReportsOfHosts(t *testing.T) {
	mark := "m1"
	reports := &purge.Reports{}
	c := New(Config{Host: member("0"), Seed: newRig(nil).cfg.Seed, Purges: purges{reports, &mark}})
	id := taskID("a")
	report := func(digit, mark string, failures ...api.PurgeFailure) {
		r := api.AnnounceRequest{Version: 1, Host: member(digit), PurgeMark: mark, PurgeFailures: failures}
		require.Equal(t, http.StatusOK, announced(t, c, r).Code)
	}
	report("1", "m1")
	report("2", "")
	report("3", "m1", api.PurgeFailure{Task: id, Why: "busy"})
	report("4", "m1", api.PurgeFailure{Task: taskID("b"), Why: "another"})
	f := reports.Progress(c.Hosts(), mark, id)
	assert.Equal(t, 2, f.Dropped)
	assert.Equal(t, []api.HostPurge{{Host: "node2", State: api.PurgeUnconfirmed},
		{Host: "node3", State: api.PurgeFailed, Why: "busy"}}, f.Others)
	assert.Len(t, reports.Failures(c.Hosts()), 2)

	report("2", "m1")
	report("3", "m1")
	assert.Equal(t, 4, reports.Progress(c.Hosts(), mark, id).Dropped)
	mark = "m2"
	assert.Len(t, reports.Progress(c.Hosts(), mark, id).Others, 4, "no host has confirmed a later order")
	require.Equal(t, http.StatusOK,
		announced(t, c, api.AnnounceRequest{Version: 1, Host: member("4"), Leaving: true}).Code)
	assert.Len(t, reports.Progress(c.Hosts(), mark, id).Others, 3)
	assert.Empty(t, reports.Failures(c.Hosts()), "a host that left is not waited for")
}

func TestPurgeReportsAreBounded(t *testing.T) {
	c := newRig(nil)
	good := api.AnnounceRequest{Version: 1, Host: member("1"), PurgeMark: "m"}
	for range api.PurgeFailuresMax {
		good.PurgeFailures = append(good.PurgeFailures,
			api.PurgeFailure{Task: taskID("a"), Why: strings.Repeat("x", api.PurgeFailureWhyMax)})
	}
	require.Equal(t, http.StatusOK, announced(t, c.Coordinator, good).Code)
	for name, change := range map[string]func(*api.AnnounceRequest){
		"too many": func(r *api.AnnounceRequest) { r.PurgeFailures = append(r.PurgeFailures, r.PurgeFailures[0]) },
		"too long": func(r *api.AnnounceRequest) {
			r.PurgeFailures = []api.PurgeFailure{{Why: strings.Repeat("x", 8*api.PurgeFailureWhyMax)}}
		},
		"a mark too long": func(r *api.AnnounceRequest) { r.PurgeMark = strings.Repeat("m", 256) },
	} {
		bad := good
		change(&bad)
		assert.Equal(t, http.StatusBadRequest, announced(t, c.Coordinator, bad).Code, name)
	}
	var refused *RequestError
	_, err := decodeRequest(strings.NewReader(`{"version":1,"unfollowed":{}}`))
	assert.True(t, errors.As(err, &refused))
}
