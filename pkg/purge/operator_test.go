package purge

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/task"
)

// operate purges by a program that gives an answer.
func operate(t *testing.T, answer api.PurgeResult) (stdout string, problem error) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, http.MethodDelete, r.Method)
		assert.NotEmpty(t, r.URL.Query().Get("wait"))
		assert.NoError(t, json.NewEncoder(w).Encode(answer))
	}))
	defer s.Close()
	var out strings.Builder
	id, err := ParseTarget("quay.test/app@" + string(idOf("0a")))
	require.NoError(t, err)
	problem, err = Operator{Program: "dfdaemon", Addr: s.Listener.Addr().String()}.Purge(context.Background(), id, &out)
	require.NoError(t, err)
	return out.String(), problem
}

func TestOperatorPrintsTheResult(t *testing.T) {
	t.Run("all deleted it", func(t *testing.T) {
		out, err := operate(t, api.PurgeResult{Task: idOf("0a"), Reached: []string{"s:1"},
			Progress: &api.PurgeProgress{Dropped: 3}})
		require.NoError(t, err)
		assert.Contains(t, out, "deleted here, 1 supernode took the order")
		assert.Contains(t, out, "3 deleted it or held nothing of it, 0 not yet")
	})
	t.Run("one failed, one has not confirmed", func(t *testing.T) {
		out, err := operate(t, api.PurgeResult{Task: idOf("0a"), Reached: []string{"s:1"},
			Progress: &api.PurgeProgress{Dropped: 1, Others: []api.HostPurge{
				{Host: "n2", State: api.PurgeFailed, Why: "input/output error"},
				{Host: "n3", State: api.PurgeUnconfirmed},
			}}})
		require.ErrorContains(t, err, "is not deleted on 1 of the hosts;")
		assert.Contains(t, out, "1 deleted it or held nothing of it, 2 not yet")
		assert.Contains(t, out, "host n2 could not delete it: input/output error")
		assert.Contains(t, out, "host n3 has not confirmed yet")
	})
	t.Run("this host failed", func(t *testing.T) {
		out, err := operate(t, api.PurgeResult{Task: idOf("0a"), Pending: "device or resource busy",
			Failed: map[string]string{"s:1": "connection refused"}})
		require.ErrorContains(t, err, "no supernode took the order")
		require.ErrorContains(t, err, "is not deleted on 1 of the hosts;")
		assert.Contains(t, out, "NOT YET deleted here")
		assert.Contains(t, out, "this host: device or resource busy")
		assert.Contains(t, out, "supernode s:1 did not take the order")
	})
}

func TestReported(t *testing.T) {
	assert.False(t, reported(api.PurgeProgress{}, true), "the owner has just started: this host itself is missing")
	assert.True(t, reported(api.PurgeProgress{}, false), "a supernode to which no host announces")
	assert.True(t, reported(api.PurgeProgress{Dropped: 1}, true))
	assert.True(t, reported(api.PurgeProgress{Others: []api.HostPurge{{State: api.PurgeFailed}}}, true))
	assert.False(t, reported(api.PurgeProgress{Dropped: 1, Others: []api.HostPurge{{State: api.PurgeUnconfirmed}}},
		true))
	assert.False(t, reported(api.PurgeProgress{Dropped: 1, Missing: 1}, true))
}

// The error of a name that is no digest says what to write.
func TestParseTargetErrors(t *testing.T) {
	for name, want := range map[string]string{
		"alpine:3":                     "write alpine@sha256:…",
		"alpine":                       "write alpine@sha256:…",
		"registry.test:5000/app":       "write registry.test:5000/app@sha256:…",
		"quay.test/app:v1":             "write quay.test/app@sha256:…",
		"quay.test/app@sha256:abc":     "write sha256: and 64 lower-case hex digits",
		"sha256:ABC":                   "write sha256: and 64 lower-case hex digits",
		"https://files.test/model.bin": "a file is purged by its task, file:…",
	} {
		_, err := ParseTarget(name)
		require.ErrorIs(t, err, task.ErrInvalidID)
		assert.ErrorContains(t, err, want)
	}
}
