package cli

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/task"
)

func TestWriteStatusClocksAndPurges(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	var out strings.Builder
	require.NoError(t, WriteStatus(&out, api.Status{
		Program: "supernode", Started: now.Add(72 * time.Hour), Uptime: 90, Clocks: "why a host was refused",
		Owners: []api.OwnerStatus{{Addr: "a:1", Alive: true, Skew: 7200}, {Addr: "b:1", Alive: true, Skew: -7200},
			{Addr: "c:1", Alive: true, Skew: 3}},
		PurgeFailures:     []api.PurgeFailure{{Task: "sha256:" + task.ID(strings.Repeat("0a", 32)), Why: "busy"}},
		HostPurgeFailures: []api.HostPurge{{Host: "n2", Why: "full"}},
		Seeds:             &api.Outcomes{Last: now.Add(time.Hour)},
	}, now))
	for _, want := range []string{"up 1m30s", "a:1 answers, ITS CLOCK IS 2h0m0s AHEAD OF this one",
		"b:1 answers, ITS CLOCK IS 2h0m0s BEHIND this one", "why a host was refused",
		"purged task sha256:0a0a0a0a0a0a, trying again: busy", "by host n2: full", "the last 0s ago"} {
		assert.Contains(t, out.String(), want)
	}
	assert.NotRegexp(t, `c:1 answers,`, out.String())
}

func TestWriteStatusSecrets(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	page := func(s api.Status) string {
		var out strings.Builder
		require.NoError(t, WriteStatus(&out, s, now))
		return out.String()
	}
	one := api.SecretStatus{Fingerprint: "0a1b2c3d4e5f", First: true, Connections: 1, Last: now.Add(-time.Minute),
		Address: "10.0.0.1:4"}
	assert.NotRegexp(t, `(?m)^secret`, page(api.Status{}))
	assert.Regexp(t, `(?m)^secret +0a1b2c3d4e5f$`, page(api.Status{Secrets: []api.SecretStatus{one}}))
	text := page(api.Status{RenewingProofs: true, Secrets: []api.SecretStatus{one, {Fingerprint: "f5e4d3c2b1a0"},
		{Fingerprint: "aaaaaaaaaaaa", Removed: true, Connections: 2}}})
	for _, want := range []string{"0a1b2c3d4e5f the first, which this host uses: 1 connection of others, " +
		"last used 1m0s ago by 10.0.0.1:4",
		"f5e4d3c2b1a0 also accepted: 0 connections of others, not used since the start",
		"aaaaaaaaaaaa REMOVED: 2 connections", "remove no secret before the end"} {
		assert.Contains(t, text, want)
	}
}

func TestWriteStatus(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := api.Status{
		Program: "dfdaemon", Version: "v1", Started: now.Add(-90 * time.Minute), Ready: true,
		Host:     host.Host{ID: "00112233445566778899aabbccddeeff", Name: "node7", Zone: "rack3"},
		Received: api.Sources{Peers: 700 << 20, Seeds: 200 << 20, Origin: 100 << 20, Cache: 5 << 20}, Sent: 3 << 30,
		Served: 1 << 30,
		Cache:  api.CacheStatus{Dir: "/var/lib/darter/dfdaemon", Tasks: 12, Bytes: 1 << 30, Quota: 4 << 30},
		Owners: []api.OwnerStatus{{Addr: "10.0.0.1:65000", Alive: true},
			{Addr: "10.0.0.2:65000", Error: "connection refused"}},
		Listen: map[string]string{"mirror": "127.0.0.1:65001", "peer": "10.0.0.7:65002",
			"mirror of quay.io": "127.0.0.1:65011", "mirror of ghcr.io": "127.0.0.1:65012"},
	}
	var out bytes.Buffer
	require.NoError(t, WriteStatus(&out, s, now))
	assert.Equal(t, `dfdaemon   ready, up 1h30m0s, version v1
node       node7 (00112233), zone rack3
mirror     127.0.0.1:65001
mirror     127.0.0.1:65012, for ghcr.io if a request names no registry
mirror     127.0.0.1:65011, for quay.io if a request names no registry
peer       10.0.0.7:65002
supernode  10.0.0.1:65000 answers
supernode  10.0.0.2:65000 DOES NOT ANSWER: connection refused
cache      1.0 GiB in 12 tasks (25% of 4.0 GiB), /var/lib/darter/dfdaemon
received   700 MiB from peers, 200 MiB from supernodes, 100 MiB from origins (90% from the cluster)
sent       3.0 GiB to other nodes, 1.0 GiB to local clients, of that 5.0 MiB from the cache
now        0 downloads run, 0 tasks open
`, out.String())

	s.Pulls = &api.Outcomes{OK: 12, Refused: 1, Failed: 2, Canceled: 3, Last: now.Add(-4 * time.Second),
		Failure: &api.Failed{At: now.Add(-95 * time.Minute), Name: "quay.io/a/b",
			Error: "reading sha256:aa:\nno route to host"}}
	s.Downloads = 4
	s.Running = []api.RunningStatus{
		{ID: "sha256:0123456789abcdef", Name: "quay.io/a/b", Length: 4 << 20, Have: 1 << 20,
			Received: api.Sources{Peers: 1 << 20, Origin: 1 << 20}, Quiet: 12.3},
		{ID: "sha256:1123456789abcdef", Name: "quay.io/a/b", Length: -1, Quiet: 1},
	}
	out.Reset()
	require.NoError(t, WriteStatus(&out, s, now))
	assert.Contains(t, out.String(), `pulls      12 succeeded, 1 refused, 2 failed, 3 canceled by the client, the last 4s ago
FAILED     1h35m ago: quay.io/a/b: reading sha256:aa: no route to host
now        2 downloads run, 4 tasks open
           quay.io/a/b sha256:0123456789ab: 25% of 4.0 MiB, 50% of it from the cluster, NO PIECE for 12s
           quay.io/a/b sha256:1123456789ab: its length is unknown yet
`)
	s.Running = slices.Repeat(s.Running, 10)
	out.Reset()
	require.NoError(t, WriteStatus(&out, s, now))
	assert.Contains(t, out.String(), "           and 10 more (--json lists them)\n")
	assert.Equal(t, runningShown, strings.Count(out.String(), "quay.io/a/b sha256:0")+
		strings.Count(out.String(), "quay.io/a/b sha256:1"))

	s = api.Status{Program: "dfdaemon", Missing: []string{"its disk", "its registry"}, BadPieces: 2, Embedded: true}
	out.Reset()
	require.NoError(t, WriteStatus(&out, s, now))
	assert.Contains(t, out.String(), "dfdaemon   NOT READY, up ")
	assert.Contains(t, out.String(), "LACKS      its disk\nLACKS      its registry\n")
	assert.Contains(t, out.String(), "none configured: this node leads its own tasks")
	assert.Contains(t, out.String(), "2 pieces did not match")

	s = api.Status{Program: "supernode", Ready: true, Hosts: 1, Downloads: 1, Seeds: &api.Outcomes{OK: 7},
		Running: []api.RunningStatus{{ID: "sha256:2123456789abcdef", Length: 4, Have: 2,
			Received: api.Sources{Origin: 2}}},
		Cache: api.CacheStatus{Tasks: 1}, Received: api.Sources{Origin: 1 << 20}, Sent: 1 << 30}
	out.Reset()
	require.NoError(t, WriteStatus(&out, s, now))
	for _, want := range []string{"hosts      1 announces here", "0 B in 1 task (", "1.0 MiB from origins\n",
		"sent       1.0 GiB to nodes\n", "seeds      7 fetched, 0 refused, 0 failed\n",
		"now        1 download runs, 1 task open\n           sha256:2123456789ab: 50% of 4 B\n"} {
		assert.Contains(t, out.String(), want)
	}
	assert.NotContains(t, out.String(), "supernode  no other", "it does not gossip")

	s.Listen = map[string]string{"gossip": ":65006"}
	out.Reset()
	require.NoError(t, WriteStatus(&out, s, now))
	assert.Contains(t, out.String(), "gossip     :65006\nsupernode  no other is known\nhosts ")
	s.Owners = []api.OwnerStatus{{Addr: "10.0.0.2:65000", Alive: true},
		{Addr: "10.0.0.3:65006", Error: "no route to host"}}
	out.Reset()
	require.NoError(t, WriteStatus(&out, s, now))
	assert.Contains(t, out.String(),
		"supernode  10.0.0.2:65000 answers\nsupernode  10.0.0.3:65006 DOES NOT ANSWER: no route to host\nhosts ")
}
