package daemon_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/supernode"
	"github.com/darter-io/darter/pkg/telemetry"
	"github.com/darter-io/darter/test/registrytest"
)

// journal is a program's log.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func (j *journal) logger(t *testing.T, level slog.Level) *slog.Logger {
	l, err := telemetry.NewLogger(j, level, "text")
	require.NoError(t, err)
	return l
}

// of returns the lines about a digest.
func (j *journal) of(digest string) (lines []string) {
	short := strings.TrimPrefix(digest, "sha256:")[:12]
	for line := range strings.Lines(j.String()) {
		if strings.Contains(line, short) {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestOneLogLinePerPull(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 3e6, 2e6)
	var top config.Supernode
	require.NoError(t, config.NewForm("supernode", &top).Load([]string{
		"DARTER_NODE_DATA_DIR=" + filepath.Join(t.TempDir(), "s"), "DARTER_CACHE_QUOTA=1GiB",
		"DARTER_API_LISTEN=127.0.0.1:0",
		"DARTER_PEER_LISTEN=127.0.0.1:0", "DARTER_ADMIN_LISTEN=127.0.0.1:0",
	}))
	top.Upstreams = []config.Upstream{{Host: r.Host(), URLs: []string{r.URL()}, PlainHTTP: true}}
	var lead, led, alone journal
	s, err := supernode.New(top, lead.logger(t, slog.LevelInfo))
	require.NoError(t, err)
	run(t, s)
	cfg := settings(t, r, "led")
	cfg.Supernodes = []config.Address{config.Address(s.Addrs()["api"])}
	follower, err := daemon.New(cfg, led.logger(t, slog.LevelInfo))
	require.NoError(t, err)
	run(t, follower)
	single, err := daemon.New(settings(t, r, "alone"), alone.logger(t, slog.LevelInfo))
	require.NoError(t, err)
	run(t, single)

	get := func(d *daemon.Daemon, digest string) int {
		res, err := http.Get(fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", d.Addrs()["mirror"], p.Repository,
			digest, r.Host()))
		require.NoError(t, err)
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, res.Body)
		return res.StatusCode
	}
	// The line follows a moment after the client's last byte.
	one := func(j *journal, digest string, words ...string) {
		t.Helper()
		require.Eventually(t, func() bool { return len(j.of(digest)) > 0 }, time.Minute, time.Millisecond, j)
		lines := j.of(digest)
		assert.Len(t, lines, 1, "%s", lines)
		for _, w := range words {
			assert.Contains(t, lines[0], w)
		}
	}
	good := p.Layers()[0].Digest
	require.Equal(t, http.StatusOK, get(follower, good))
	require.Equal(t, http.StatusOK, get(single, good))
	one(&led, good, "level=INFO", "result=ok", "bytes=3000", "firstByte=", "total=", "slowest=", "from.origin=0")
	one(&alone, good, "level=INFO", "result=ok", "from.seed=0")
	one(&lead, good, "level=INFO", "download complete", "origin=3000", "name="+r.Host()+"/"+p.Repository, "firstPiece=",
		"total=", "slowest=", "slowestTook=")

	bad := p.Layers()[1].Digest
	r.Fail(registrytest.Fault{Action: registrytest.ActStatus, Status: 500, Match: "GET " + p.Repository +
		"/blobs/" + bad})
	assert.GreaterOrEqual(t, get(follower, bad), 500)
	assert.GreaterOrEqual(t, get(single, bad), 500)
	one(&led, bad, "level=WARN", "result=failed", "error=", "total=", "slowest=")
	one(&alone, bad, "level=WARN", "result=failed", "error=", "total=", "slowest=")
	one(&lead, bad, "level=WARN", "download failed", "name="+r.Host()+"/"+p.Repository,
		"total=", `slowest="first piece"`)

	// The status shows the outcomes.
	name := r.Host() + "/" + p.Repository
	for _, d := range []*daemon.Daemon{follower, single} {
		soon(t, d.Addrs()["api"], func(c *assert.CollectT, s api.Status) {
			if got := s.Pulls; assert.NotNil(c, got) && assert.NotNil(c, got.Failure) {
				assert.Equal(c, []int64{1, 0, 1, 0}, []int64{got.OK, got.Refused, got.Failed, got.Canceled})
				assert.Equal(c, name, got.Failure.Name)
				assert.Contains(c, got.Failure.Error, "500")
				assert.WithinDuration(c, time.Now(), got.Last, time.Minute)
			}
		})
	}
	soon(t, s.Addrs()["admin"], func(c *assert.CollectT, s api.Status) {
		if got := s.Seeds; assert.NotNil(c, got) && assert.NotNil(c, got.Failure) {
			assert.Equal(c, []int64{1, 0, 1, 0}, []int64{got.OK, got.Refused, got.Failed, got.Canceled})
			assert.Contains(c, got.Failure.Name, bad[:19])
			assert.Contains(c, got.Failure.Error, "500")
		}
	})
}

// TestStatusShowsStalledDownloads uses a registry that stops in the middle of a layer.
func TestStatusShowsStalledDownloads(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 8e6)
	s, _ := lead(t, r, "")
	cfg := settings(t, r, "waiting")
	cfg.Supernodes = []config.Address{config.Address(s.Addrs()["api"])}
	d, _ := start(t, cfg)
	layer := p.Layers()[0]
	r.Fail(registrytest.Fault{Action: registrytest.ActStall, At: 1e6,
		Match: "GET " + p.Repository + "/blobs/" + layer.Digest})
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet,
		fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", d.Addrs()["mirror"], p.Repository, layer.Digest, r.Host()), nil)
	require.NoError(t, err)
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	for _, at := range []string{d.Addrs()["api"], s.Addrs()["admin"]} {
		soon(t, at, func(c *assert.CollectT, s api.Status) {
			if assert.Len(c, s.Running, 1) {
				got := s.Running[0]
				assert.EqualValues(c, layer.Digest, got.ID)
				assert.Equal(c, r.Host()+"/"+p.Repository, got.Name)
				assert.Equal(c, layer.Size, got.Length)
				assert.Greater(c, got.Have, int64(5e5))
				assert.Less(c, got.Have, got.Length)
				assert.Equal(c, got.Have, got.Received.Seeds+got.Received.Peers+got.Received.Origin)
				assert.Greater(c, got.Quiet, 0.5)
			}
		})
	}
	leave()
	soon(t, d.Addrs()["api"], func(c *assert.CollectT, s api.Status) {
		assert.Empty(c, s.Running, "no client waits for it any more")
		assert.EqualValues(c, 1, s.Pulls.Canceled)
	})
}
