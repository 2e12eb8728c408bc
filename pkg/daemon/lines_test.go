package daemon_test

import (
	"bytes"
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

// of returns the lines that speak of a digest.
func (j *journal) of(digest string) (lines []string) {
	short := strings.TrimPrefix(digest, "sha256:")[:12]
	for line := range strings.Lines(j.String()) {
		if strings.Contains(line, short) {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestAPullLeavesOneLineOnEachHostWhateverBecomesOfIt(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 3e6, 2e6)
	var top config.Supernode
	require.NoError(t, config.NewForm("supernode", &top).Load([]string{
		"DARTER_NODE_DATA_DIR=" + filepath.Join(t.TempDir(), "s"), "DARTER_CACHE_QUOTA=1GiB", "DARTER_API_LISTEN=127.0.0.1:0",
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
		res, err := http.Get(fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", d.Addrs()["mirror"], p.Repository, digest, r.Host()))
		require.NoError(t, err)
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, res.Body)
		return res.StatusCode
	}
	// The line comes a moment after the client has its last byte.
	one := func(j *journal, digest string, words ...string) {
		t.Helper()
		require.Eventually(t, func() bool { return len(j.of(digest)) > 0 }, 10*time.Second, time.Millisecond, j)
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
	one(&lead, good, "level=INFO", "content complete", "origin=3000")

	bad := p.Layers()[1].Digest
	r.Fail(registrytest.Fault{Action: registrytest.ActStatus, Status: 500, Match: "GET " + p.Repository + "/blobs/" + bad})
	assert.GreaterOrEqual(t, get(follower, bad), 500)
	assert.GreaterOrEqual(t, get(single, bad), 500)
	one(&led, bad, "level=WARN", "result=failed", "error=")
	one(&alone, bad, "level=WARN", "result=failed", "error=")
	one(&lead, bad, "level=WARN", "download failed")
}
