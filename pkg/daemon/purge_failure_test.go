package daemon_test

import (
	"encoding/json"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/cli"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/node"
	"github.com/darter-io/darter/pkg/piece/diskstore"
	"github.com/darter-io/darter/test/registrytest"
)

// jammed is a disk that refuses to move or delete files of tasks while it is stuck.
type jammed struct {
	diskstore.OS
	stuck atomic.Bool
}

func (j *jammed) holds(name string) bool { return j.stuck.Load() && strings.Contains(name, "/tasks/") }

func (j *jammed) Rename(from, to string) error {
	if j.holds(from) {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.EIO}
	}
	return j.OS.Rename(from, to)
}

func (j *jammed) RemoveAll(name string) error {
	if j.holds(name) {
		return &os.PathError{Op: "unlinkat", Path: name, Err: syscall.EIO}
	}
	return j.OS.RemoveAll(name)
}

func (j *jammed) OpenFile(name string, flag int, perm fs.FileMode) (diskstore.File, error) {
	if flag&os.O_TRUNC != 0 && j.holds(name) {
		return nil, &os.PathError{Op: "open", Path: name, Err: syscall.EIO}
	}
	return j.OS.OpenFile(name, flag, perm)
}

// startOn runs a dfdaemon whose cache is on a disk.
func startOn(t *testing.T, cfg config.Dfdaemon, disk diskstore.FS) (d *daemon.Daemon, stop func()) {
	d, err := daemon.New(cfg, log(t, cfg.Node.Name), node.WithStoreFS(disk))
	require.NoError(t, err)
	return d, run(t, d)
}

// purgeAndWait sends an operator's order and waits for the hosts' reports.
func purgeAndWait(t *testing.T, at, digest string) (out api.PurgeResult) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete,
		"http://"+at+api.PathPurge+"/"+digest+"?wait=15s", nil)
	require.NoError(t, err)
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	require.Equal(t, http.StatusOK, res.StatusCode)
	require.NoError(t, json.NewDecoder(res.Body).Decode(&out))
	return out
}

func TestPurgeThatADiskRefuses(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 700_000)
	bad := p.Layers()[0].Digest
	super, _ := lead(t, r, wordOfTheCluster)
	var nodes []*daemon.Daemon
	var settingsOf []config.Dfdaemon
	var disks []*jammed
	for _, name := range []string{"good", "stuck"} {
		cfg := settings(t, r, name)
		cfg.Cluster.Secret, cfg.Supernodes = wordOfTheCluster, []config.Address{config.Address(super.Addrs()["api"])}
		disk := &jammed{}
		d, _ := startOn(t, cfg, disk)
		disks = append(disks, disk)
		nodes, settingsOf = append(nodes, d), append(settingsOf, cfg)
		require.NoError(t, pull(t.Context(), d.Addrs()["mirror"], r, p))
	}
	disks[1].stuck.Store(true)

	for _, at := range []string{super.Addrs()["admin"], nodes[0].Addrs()["api"]} {
		done := purgeAndWait(t, at, bad)
		assert.Empty(t, done.Failed)
		assert.Empty(t, done.Pending)
		require.NotNil(t, done.Progress)
		assert.Equal(t, 1, done.Progress.Dropped)
		require.Len(t, done.Progress.Others, 1)
		assert.Equal(t, api.PurgeFailed, done.Progress.Others[0].State)
		assert.Equal(t, "stuck", done.Progress.Others[0].Host)
		assert.Contains(t, done.Progress.Others[0].Why, "input/output error")
	}
	assert.False(t, holds(t, nodes[1].Addrs()["api"], bad), "it is not given out, dropped or not")
	for at, words := range map[string]string{super.Addrs()["admin"]: "by host stuck",
		nodes[1].Addrs()["api"]: "trying again"} {
		soon(t, at, func(c *assert.CollectT, s api.Status) {
			var text strings.Builder
			assert.NoError(c, cli.WriteStatus(&text, s, time.Now()))
			assert.Contains(c, text.String(), words)
		})
	}

	disks[1].stuck.Store(false)
	soon(t, nodes[1].Addrs()["api"], func(c *assert.CollectT, s api.Status) { assert.Empty(c, s.PurgeFailures) })
	soon(t, super.Addrs()["admin"], func(c *assert.CollectT, s api.Status) { assert.Empty(c, s.HostPurgeFailures) })
	left, err := filepath.Glob(filepath.Join(settingsOf[1].Node.DataDir, "cache", "tasks", "*",
		strings.Replace(bad, ":", "-", 1)))
	require.NoError(t, err)
	assert.Empty(t, left)
	done := purgeAndWait(t, super.Addrs()["admin"], bad)
	assert.Equal(t, 2, done.Progress.Dropped)
	assert.Empty(t, done.Progress.Others)

	layer(t, r, nodes[1].Addrs()["mirror"], p, bad)
	assert.True(t, holds(t, nodes[1].Addrs()["api"], bad), "brought again, it stays")
}

func TestPurgeEndsBeforeARestartServes(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 700_000)
	bad := p.Layers()[0].Digest
	cfg := settings(t, r, "one")
	disk := &jammed{}
	d, stop := startOn(t, cfg, disk)
	require.NoError(t, pull(t.Context(), d.Addrs()["mirror"], r, p))
	disk.stuck.Store(true)
	done := purgeAndWait(t, d.Addrs()["api"], bad)
	assert.Contains(t, done.Pending, "not deleted yet")
	stop()

	back, err := daemon.New(cfg, log(t, "back"))
	require.NoError(t, err)
	assert.Equal(t, len(p.Objects), back.Status().Cache.Tasks, "it comes back with what could not be deleted")
	assert.Len(t, back.Status().PurgeFailures, 1)
	run(t, back)
	layer(t, r, back.Addrs()["mirror"], p, bad)
	assert.Equal(t, 2, r.Counts().Object(bad).GETs, "what was withdrawn was not served again")
	assert.Empty(t, status(t, back.Addrs()["api"]).PurgeFailures)
}
