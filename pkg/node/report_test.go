package node

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/task"
)

func TestWriteStatusClocksAndPurges(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	var out strings.Builder
	require.NoError(t, WriteStatus(&out, api.Status{
		Program: "supernode", Started: now.Add(72 * time.Hour), Uptime: 90, Clocks: "why a host was refused",
		Owners:            []api.OwnerStatus{{Addr: "a:1", Alive: true, Skew: 7200}, {Addr: "b:1", Alive: true, Skew: -7200}, {Addr: "c:1", Alive: true, Skew: 3}},
		PurgeFailures:     []api.PurgeFailure{{Task: "sha256:" + task.ID(strings.Repeat("0a", 32)), Why: "busy"}},
		HostPurgeFailures: []api.HostPurge{{Host: "n2", Why: "full"}},
		Seeds:             &api.Outcomes{Last: now.Add(time.Hour)},
	}, now))
	for _, want := range []string{"up 1m30s", "a:1 answers, ITS CLOCK IS 2h0m0s AHEAD OF this one", "b:1 answers, ITS CLOCK IS 2h0m0s BEHIND this one", "why a host was refused",
		"purged task sha256:0a0a0a0a0a0a, trying again: busy", "by host n2: full", "the last 0s ago"} {
		assert.Contains(t, out.String(), want)
	}
	assert.NotRegexp(t, `c:1 answers,`, out.String())
}
