package daemon_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/node"
	"github.com/darter-io/darter/test/registrytest"
)

// jammed makes a node's cache one in which nothing can be deleted, until the function that it
// returns is called: what is deleted passes through its tmp/.
func jammed(t *testing.T, dir string) (free func()) {
	tmp := filepath.Join(dir, "cache", "tmp")
	require.NoError(t, os.Rename(tmp, tmp+".away"))
	require.NoError(t, os.WriteFile(tmp, nil, 0o600))
	return func() {
		require.NoError(t, os.Remove(tmp))
		require.NoError(t, os.Rename(tmp+".away", tmp))
	}
}

// followed gives an operator's order and waits for the hosts' word.
func followed(t *testing.T, at, digest string) (out api.Withdrawn) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, "http://"+at+api.PathContent+"/"+digest+"?wait=15s", nil)
	require.NoError(t, err)
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	require.Equal(t, http.StatusOK, res.StatusCode)
	require.NoError(t, json.NewDecoder(res.Body).Decode(&out))
	return out
}

func TestAWithdrawalThatADiskRefusesCountsAsNotDone(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 700_000)
	bad := p.Layers()[0].Digest
	super, _ := lead(t, r, wordOfTheCluster)
	var nodes []*daemon.Daemon
	var settingsOf []config.Dfdaemon
	for _, name := range []string{"good", "stuck"} {
		cfg := settings(t, r, name)
		cfg.Cluster.Secret, cfg.Supernodes = wordOfTheCluster, []config.Address{config.Address(super.Addrs()["api"])}
		d, _ := start(t, cfg)
		nodes, settingsOf = append(nodes, d), append(settingsOf, cfg)
		require.NoError(t, pull(t.Context(), d.Addrs()["mirror"], r, p))
	}
	free := jammed(t, settingsOf[1].Node.DataDir)

	for _, at := range []string{super.Addrs()["admin"], nodes[0].Addrs()["api"]} {
		done := followed(t, at, bad)
		assert.Empty(t, done.Failed)
		assert.Empty(t, done.Pending)
		require.NotNil(t, done.Followed)
		assert.Equal(t, 1, done.Followed.Dropped)
		require.Len(t, done.Followed.Others, 1)
		assert.Equal(t, api.FollowFailed, done.Followed.Others[0].State)
		assert.Equal(t, "stuck", done.Followed.Others[0].Host)
		assert.Contains(t, done.Followed.Others[0].Why, "not a directory")
	}
	assert.False(t, holds(t, nodes[1].Addrs()["api"], bad), "it is not given out, dropped or not")
	for at, words := range map[string]string{super.Addrs()["admin"]: "by host stuck", nodes[1].Addrs()["api"]: "was withdrawn and cannot be dropped yet"} {
		soon(t, at, func(c *assert.CollectT, s api.Status) {
			var text strings.Builder
			assert.NoError(c, node.WriteStatus(&text, s, time.Now()))
			assert.Contains(c, text.String(), words)
		})
	}

	free()
	soon(t, nodes[1].Addrs()["api"], func(c *assert.CollectT, s api.Status) { assert.Empty(c, s.Unfollowed) })
	soon(t, super.Addrs()["admin"], func(c *assert.CollectT, s api.Status) { assert.Empty(c, s.UnfollowedBy) })
	left, err := filepath.Glob(filepath.Join(settingsOf[1].Node.DataDir, "cache", "tasks", "*", strings.Replace(bad, ":", "-", 1)))
	require.NoError(t, err)
	assert.Empty(t, left)
	done := followed(t, super.Addrs()["admin"], bad)
	assert.Equal(t, 2, done.Followed.Dropped)
	assert.Empty(t, done.Followed.Others)

	layer(t, r, nodes[1].Addrs()["mirror"], p, bad)
	assert.True(t, holds(t, nodes[1].Addrs()["api"], bad), "brought again, it stays")
}

func TestAWithdrawalIsEndedBeforeARestartServes(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 700_000)
	bad := p.Layers()[0].Digest
	cfg := settings(t, r, "one")
	d, stop := start(t, cfg)
	require.NoError(t, pull(t.Context(), d.Addrs()["mirror"], r, p))
	free := jammed(t, cfg.Node.DataDir)
	done := followed(t, d.Addrs()["api"], bad)
	assert.Contains(t, done.Pending, "not dropped yet")
	stop()
	free()

	back, err := daemon.New(cfg, log(t, "back"))
	require.NoError(t, err)
	assert.Equal(t, len(p.Objects), back.Status().Cache.Tasks, "it comes back with what could not be deleted")
	assert.Len(t, back.Status().Unfollowed, 1)
	run(t, back)
	layer(t, r, back.Addrs()["mirror"], p, bad)
	assert.Equal(t, 2, r.Counts().Object(bad).GETs, "what was withdrawn was not served again")
	assert.Empty(t, status(t, back.Addrs()["api"]).Unfollowed)
}
