package daemon_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/test/programs"
	"github.com/darter-io/darter/test/registrytest"
)

const wordOfTheCluster = secret.String("5f1cb1a0d28e4a6f9b0c3d7e11aa22bb33cc44dd55ee66ff7788990011223344")

// purge sends an operator's order to a local or admin API.
func purge(t *testing.T, at, digest string) (out api.PurgeResult) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, "http://"+at+api.PathPurge+"/"+digest, nil)
	require.NoError(t, err)
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	require.Equal(t, http.StatusOK, res.StatusCode)
	require.NoError(t, json.NewDecoder(res.Body).Decode(&out))
	return out
}

// holds reports whether a host stores a part of a task.
func holds(t require.TestingT, at, digest string) bool {
	res, err := http.Get("http://" + at + api.PathTasks + "/" + digest)
	require.NoError(t, err)
	defer res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// gone waits until a host has deleted a task.
func gone(t *testing.T, at, digest, why string) {
	t.Helper()
	assert.EventuallyWithT(t, func(c *assert.CollectT) { assert.False(c, holds(c, at, digest)) }, time.Minute,
		50*time.Millisecond, why)
}

func layer(t *testing.T, r *registrytest.Registry, mirror string, p registrytest.Pushed, digest string) {
	t.Helper()
	at := fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", mirror, p.Repository, digest, r.Host())
	err := get(t.Context(), at, digest, "application/octet-stream", nil)
	for again := 0; err != nil && strings.Contains(err.Error(), "was purged while it was read") && again < 10; again++ {
		// The host deletes the purged task a moment before a new pull can get it.
		time.Sleep(100 * time.Millisecond)
		err = get(t.Context(), at, digest, "application/octet-stream", nil)
	}
	require.NoError(t, err)
}

func TestPurgeReachesEveryCache(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 700_000, 500_000)
	bad, good := p.Layers()[0].Digest, p.Layers()[1].Digest
	addrs, err := programs.FreeAddrs(2)
	require.NoError(t, err)
	one, stopOne := lead(t, r, wordOfTheCluster, "DARTER_GOSSIP_LISTEN="+addrs[0], "DARTER_GOSSIP_JOIN="+addrs[1])
	two, _ := lead(t, r, wordOfTheCluster, "DARTER_GOSSIP_LISTEN="+addrs[1], "DARTER_GOSSIP_JOIN="+addrs[0])

	var nodes []*daemon.Daemon
	var away config.Dfdaemon
	var goAway func()
	for i := range 3 {
		cfg := settings(t, r, fmt.Sprintf("n%d", i))
		cfg.Cluster.Secret = wordOfTheCluster
		cfg.Supernodes = []config.Address{config.Address(one.Addrs()["api"]), config.Address(two.Addrs()["api"])}
		d, stop := start(t, cfg)
		nodes = append(nodes, d)
		away, goAway = cfg, stop
		require.NoError(t, pull(t.Context(), d.Addrs()["mirror"], r, p))
	}
	require.Equal(t, 1, r.Counts().Object(bad).GETs)
	goAway()
	// The supernodes must know each other to forward the order.
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		done := purge(t, one.Addrs()["admin"], bad)
		assert.Len(c, done.Reached, 1, "%v", done.Failed)
	}, time.Minute, 100*time.Millisecond)
	assert.False(t, holds(t, one.Addrs()["admin"], bad), "dropped when the order is answered")
	assert.False(t, holds(t, two.Addrs()["admin"], bad), "and where it was passed on")
	for _, d := range nodes[:2] {
		gone(t, d.Addrs()["api"], bad, "nodes hear of it with their next announce")
		assert.True(t, holds(t, d.Addrs()["api"], good), "nothing else is dropped")
	}

	// A later pull gets it from the registry, once, and stores it.
	layer(t, r, nodes[0].Addrs()["mirror"], p, bad)
	layer(t, r, nodes[1].Addrs()["mirror"], p, bad)
	assert.Equal(t, 2, r.Counts().Object(bad).GETs)

	// The supernode that received the order is gone; the other one sends it to the host that was away.
	stopOne()
	back, err := daemon.New(away, log(t, "back"))
	require.NoError(t, err)
	assert.Equal(t, len(p.Objects), back.Status().Cache.Tasks, "it comes back with what it held")
	run(t, back)
	gone(t, back.Addrs()["api"], bad, "and is told")
	assert.True(t, holds(t, back.Addrs()["api"], good))
	assert.True(t, holds(t, nodes[0].Addrs()["api"], bad), "what was brought since then stays")
}

func TestPurgeCutsAReader(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 3_000_000)
	digest := p.Layers()[0].Digest
	r.Fail(registrytest.Fault{Action: registrytest.ActStall, Match: "GET " + p.Repository + "/blobs/" + digest,
		At: 1 << 20, Times: 1})
	d, _ := start(t, settings(t, r, "one"))
	at := fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", d.Addrs()["mirror"], p.Repository, digest, r.Host())

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- get(ctx, at, digest, "application/octet-stream", func() { close(began) }) }()
	<-began
	assert.Empty(t, purge(t, d.Addrs()["api"], digest).Failed)
	assert.ErrorContains(t, <-ended, "unexpected EOF")
	layer(t, r, d.Addrs()["mirror"], p, digest)
	assert.Equal(t, 2, r.Counts().Object(digest).GETs)
}

func TestPurgeOfNoDigest(t *testing.T) {
	d, _ := start(t, settings(t, nil, "one"))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete,
		"http://"+d.Addrs()["api"]+api.PathPurge+"/latest", nil)
	require.NoError(t, err)
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	assert.Equal(t, http.StatusBadRequest, res.StatusCode)
}
