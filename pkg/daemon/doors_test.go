package daemon_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/supernode"
	"github.com/darter-io/darter/test/programs"
	"github.com/darter-io/darter/test/registrytest"
)

// harborJob is what Harbor 2.12 and later read of a preheat job.
type harborJob struct {
	ID     int64  `json:"id"`
	State  string `json:"state"`
	Result struct {
		States []struct {
			Error   string `json:"error"`
			Results []struct {
				Success []struct {
					URL      string `json:"url"`
					Hostname string `json:"hostname"`
				} `json:"success_tasks"`
			} `json:"results"`
		} `json:"job_states"`
	} `json:"result"`
}

// doorsOf adds doors with a token to a supernode.
func doorsOf(t *testing.T, cfg *config.Supernode, token string, rules ...config.DoorRule) {
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte(token), 0o600))
	cfg.Preheat.Doors = config.Doors{Listen: "127.0.0.1:0", TokenFile: file, Scope: "all-seeds", Rules: rules}
}

// tasks are the tasks of a dfdaemon.
func tasks(t *testing.T, addr string) (list []api.TaskStatus) {
	res, err := http.Get("http://" + addr + api.PathTasks)
	require.NoError(t, err)
	defer res.Body.Close()
	require.NoError(t, json.NewDecoder(res.Body).Decode(&list))
	return list
}

// TestHarborPreheats orders an image as Harbor 2.12 does, with a token for a private repository, and polls until the
// supernode reports success. Then each node has the image, and the registry sent each byte once.
func TestHarborPreheats(t *testing.T) {
	t.Parallel()
	const word, token = "a secret that is long enough for a cluster", "door-token-0123456789"
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Basic,
		Users: map[string]registrytest.User{"robot": {Password: "secret", Pull: []string{"team/*"}}}})
	p := image(t, r, 3e6, 1e6)
	top := supernodeSettings(t, config.Upstream{Host: r.Host(), URLs: []string{r.URL()}, PlainHTTP: true}, word)
	doorsOf(t, &top, token)
	s, _ := startSupernode(t, top)
	var nodes []*daemon.Daemon
	for i := range 2 {
		cfg := settings(t, r, fmt.Sprintf("node%d", i))
		cfg.Cluster.Secret, cfg.Supernodes = word, []config.Address{config.Address(s.Addrs()["api"])}
		d, _ := start(t, cfg)
		nodes = append(nodes, d)
	}
	call := func(method, path, body string) (job harborJob) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.Addrs()["preheat"]+path,
			bytes.NewReader([]byte(body)))
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, res.StatusCode, "%s", b)
		require.NoError(t, json.Unmarshal(b, &job))
		return job
	}
	call("GET", "/healthy", "")
	require.EventuallyWithT(t, func(c *assert.CollectT) { assert.Equal(c, 2, s.Status().Hosts) }, time.Minute,
		10*time.Millisecond)
	job := call("POST", "/oapi/v1/jobs", fmt.Sprintf(`{"type":"preheat","args":{"type":"image","url":%q,
		"headers":{"Authorization":"Basic cm9ib3Q6c2VjcmV0"},"scope":"all_peers"},"scheduler_cluster_ids":null}`,
		r.URL()+"/v2/team/app/manifests/v1"))
	require.Positive(t, job.ID)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		job = call("GET", fmt.Sprintf("/oapi/v1/jobs/%d", job.ID), "")
		require.Contains(t, []string{"PENDING", "SUCCESS"}, job.State, "%+v", job)
		assert.Equal(c, "SUCCESS", job.State)
	}, 2*time.Minute, 20*time.Millisecond)
	hosts := map[string]bool{}
	for _, row := range job.Result.States[0].Results[0].Success {
		hosts[row.Hostname] = true
	}
	assert.True(t, hosts["node0"] && hosts["node1"], "%v", hosts)
	for _, d := range nodes {
		whole := map[string]bool{}
		for _, held := range tasks(t, d.Addrs()["api"]) {
			whole[string(held.ID)] = held.Pieces > 0 && held.Have == held.Pieces
		}
		for _, o := range p.Objects {
			assert.True(t, whole[o.Digest], "%s %s", o.Kind, o.Digest)
		}
	}
	once(t, r, p, "the registry sends each byte once")
}

// TestAPushReachesTheNodes pushes to a registry that notifies a supernode. Nothing else happens, and the node has the
// image.
func TestAPushReachesTheNodes(t *testing.T) {
	t.Parallel()
	const word, token = "a secret that is long enough for a cluster", "door-token-0123456789"
	addrs, err := programs.FreeAddrs(1)
	require.NoError(t, err)
	r := registrytest.Start(t, registrytest.Config{Notify: "http://" + addrs[0] + "/webhooks/distribution",
		NotifyToken: token})
	top := supernodeSettings(t, config.Upstream{Host: r.Host(), URLs: []string{r.URL()}, PlainHTTP: true}, word)
	doorsOf(t, &top, token, config.DoorRule{Images: []string{"*/team/**"}, Tags: []string{"v*"}})
	top.Preheat.Doors.Listen = config.Address(addrs[0])
	s, _ := startSupernode(t, top)
	cfg := settings(t, r, "node")
	cfg.Cluster.Secret, cfg.Supernodes = word, []config.Address{config.Address(s.Addrs()["api"])}
	d, _ := start(t, cfg)
	require.EventuallyWithT(t, func(c *assert.CollectT) { assert.Equal(c, 1, s.Status().Hosts) }, time.Minute,
		10*time.Millisecond)
	p := image(t, r, 1e6)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		whole := map[string]bool{}
		for _, held := range tasks(t, d.Addrs()["api"]) {
			whole[string(held.ID)] = held.Pieces > 0 && held.Have == held.Pieces
		}
		for _, o := range p.Objects {
			assert.True(c, whole[o.Digest], "%s %s", o.Kind, o.Digest)
		}
	}, 2*time.Minute, 20*time.Millisecond)
}

func TestDoorsOfASupernode(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, registrytest.Config{})
	top := supernodeSettings(t, config.Upstream{Host: r.Host(), URLs: []string{r.URL()}, PlainHTTP: true}, "")
	doorsOf(t, &top, "short")
	_, err := supernode.New(top, nil)
	require.ErrorContains(t, err, "preheat.doors.tokenFile: 5 characters can be guessed")
	top.Preheat.Doors.TokenFile = filepath.Join(t.TempDir(), "missing")
	_, err = supernode.New(top, nil)
	require.ErrorContains(t, err, "preheat.doors.tokenFile")

	const first, second = "first-token-0123456789", "second-token-0123456789"
	doorsOf(t, &top, first)
	s, _ := startSupernode(t, top)
	healthy := func(token string) int {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+s.Addrs()["preheat"]+"/healthy", nil)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		res.Body.Close()
		return res.StatusCode
	}
	assert.Equal(t, http.StatusOK, healthy(first))
	assert.Equal(t, http.StatusUnauthorized, healthy(second))
	doorsOf(t, &top, first+"\n"+second+"\n")
	require.NoError(t, s.Reload(&top))
	assert.Equal(t, http.StatusOK, healthy(first))
	assert.Equal(t, http.StatusOK, healthy(second))
	doorsOf(t, &top, second)
	require.NoError(t, s.Reload(&top))
	assert.Equal(t, http.StatusUnauthorized, healthy(first))
	doorsOf(t, &top, "short")
	require.ErrorContains(t, s.Reload(&top), "can be guessed")
	assert.Equal(t, http.StatusOK, healthy(second), "nothing changed")
}
