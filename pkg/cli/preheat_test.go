package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/preheat/jobs"
)

// preheated runs the command against a supernode that answers with gates, one after the other.
func preheated(t *testing.T, args []string, gates ...preheat.Gate) (stdout string, asked jobs.Request, err error) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPost && r.URL.Path == api.PathPreheatJobs:
			assert.NoError(t, json.NewDecoder(r.Body).Decode(&asked))
			w.WriteHeader(http.StatusCreated)
			assert.NoError(t, json.NewEncoder(w).Encode(preheat.Job{ID: "j1"}))
		case strings.HasSuffix(r.URL.Path, "/j1/gate") && len(gates) > 0:
			g := gates[0]
			gates = gates[min(1, len(gates)-1):]
			if !g.Ready {
				w.WriteHeader(http.StatusTooEarly)
			}
			assert.NoError(t, json.NewEncoder(w).Encode(g))
		case r.URL.Path == api.PathPreheatJobs:
			assert.NoError(t, json.NewEncoder(w).Encode([]preheat.Job{{ID: "j1", State: preheat.Running}}))
		default:
			w.WriteHeader(http.StatusNotFound)
			assert.NoError(t, json.NewEncoder(w).Encode(map[string]string{"error": "no such job"}))
		}
	}))
	defer server.Close()
	f, set := new(preheatFlags), pflag.NewFlagSet("x", pflag.ContinueOnError)
	f.add(set)
	require.NoError(t, set.Parse(args))
	var out bytes.Buffer
	err = f.run(t.Context(), apiclient.Local(strings.TrimPrefix(server.URL, "http://")), set.Args(), &out)
	return out.String(), asked, err
}

func TestPreheatExitCodes(t *testing.T) {
	running := preheat.Gate{State: preheat.Running, Of: 2, Hosts: []preheat.GateHost{{Host: "n1", Why: "it fetches"}}}
	end := func(state preheat.State, has int, ready bool) preheat.Gate {
		return preheat.Gate{Job: "j1", State: state, Has: has, Of: 2, Min: 100, Ready: ready,
			Hosts: []preheat.GateHost{{Host: "n1\x1b", Why: "no space", State: preheat.Failed}, {Host: "n2",
				State: preheat.Success}}}
	}
	for name, c := range map[string]struct {
		last preheat.Gate
		code int
	}{
		"success":   {end(preheat.Success, 2, true), 0},
		"partial":   {end(preheat.Failed, 1, false), 3},
		"lost":      {end(preheat.Success, 1, false), 3},
		"failed":    {end(preheat.Failed, 0, false), 4},
		"cancelled": {end(preheat.Cancelled, 1, false), 5},
	} {
		out, _, err := preheated(t, []string{"quay.io/app:1", "--wait"}, running, c.last)
		var own exitError
		if errors.As(err, &own); c.code == 0 {
			require.NoError(t, err, name)
		}
		assert.Equal(t, c.code, own.code, name)
		assert.Contains(t, out, "running: 0 of 2 nodes have it", name)
		assert.Contains(t, out, "no space", "who has not and why")
		assert.NotContains(t, out, "\x1b", "a node's name does not reach the terminal raw")
	}
	out, _, err := preheated(t, []string{"-o", "json", "wait", "j1"}, running, end(preheat.Success, 2, true))
	require.NoError(t, err)
	var g preheat.Gate
	require.NoError(t, json.Unmarshal([]byte(out), &g), "JSON alone")
	assert.Equal(t, 2, g.Has)
	_, _, err = preheated(t, []string{"cancel", "j2"})
	assert.ErrorContains(t, err, "no such job")
	_, _, err = preheated(t, []string{"forget", "j1"})
	var usage errUsage
	require.ErrorAs(t, err, &usage)
	out, _, err = preheated(t, []string{"list"})
	require.NoError(t, err)
	assert.Contains(t, out, "j1")
}

func TestPreheatRequest(t *testing.T) {
	dir := t.TempDir()
	login := filepath.Join(dir, "config.json")
	require.NoError(t, os.WriteFile(login, []byte(`{"auths":{"https://quay.io/v1/":{"auth":"dTpw"}}}`), 0o600))
	out, q, err := preheated(t, []string{"quay.io/app:1", "--zone", "a,b", "--wave", "5%,25,100%", "--min", "99%",
		"--deadline", "20m", "--label", "disk=ssd", "--platform", "linux/amd64", "--docker-config", login})
	require.NoError(t, err)
	assert.Equal(t, "j1\n", out)
	assert.Equal(t, []float64{5, 25, 100}, q.Waves)
	assert.Equal(t, []string{"a", "b"}, q.Scope.Zones)
	assert.Equal(t, map[string]string{"disk": "ssd"}, q.Scope.Labels)
	assert.InDelta(t, 99, q.Min, 0)
	assert.Equal(t, map[string]string{"Authorization": "Basic dTpw"}, q.Headers)
	for _, bad := range [][]string{{"quay.io/App"}, {"quay.io/app", "--wave", "5,4"}, {"quay.io/app", "--wave", "x"},
		{"quay.io/app", "--deadline", "noon"}, {"quay.io/app", "--label", "ssd"}, {"quay.io/app", "-o", "xml"},
		{"other.io/app", "--docker-config", login}, {"cancel"}, {"wait"}} {
		_, _, err := preheated(t, bad)
		var usage errUsage
		assert.ErrorAs(t, err, &usage, "%v", bad)
	}
	at := time.Date(2026, 8, 1, 19, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{"18:00": at.Add(23 * time.Hour), "20:30": at.Add(90 * time.Minute),
		"1h": at.Add(time.Hour), "2026-08-02T00:00:00Z": at.Add(5 * time.Hour)} {
		got, err := deadline(text, at)
		require.NoError(t, err)
		assert.True(t, want.Equal(got), "%s: %s", text, got)
	}
}
