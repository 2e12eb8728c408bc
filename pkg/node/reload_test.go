package node

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
)

func TestARunningNodeTakesNewLimitsAndRegistriesAllOrNone(t *testing.T) {
	cfg := settings(t)
	cfg.Upload.UploadSlots = 3
	n := build(t, cfg)
	defer func() { require.NoError(t, n.Close()) }()
	assert.Equal(t, 3, n.Engine.Stats().UploadSlotsMax)

	next := Limits{
		Upload: config.Upload{UploadSlots: 7}, Rates: config.Limits{Upload: 1 << 20, Origin: 1e8 / 8}, Cache: config.Cache{Quota: 128 << 20, HighWater: 0.9, LowWater: 0.5},
		Origins: config.Origins{Upstreams: []config.Upstream{{Host: "ghcr.io"}}},
	}
	bad := next
	bad.Origins.Upstreams = []config.Upstream{{Host: "ghcr.io", CA: filepath.Join(t.TempDir(), "missing.pem")}}
	require.ErrorContains(t, n.Reload(bad), "missing.pem")
	assert.Equal(t, 3, n.Engine.Stats().UploadSlotsMax)
	assert.Equal(t, int64(64<<20), n.Store.Usage().Quota)
	require.NoError(t, n.Origins.Registries.Allow("quay.io"))

	require.NoError(t, n.Reload(next))
	assert.Equal(t, 7, n.Engine.Stats().UploadSlotsMax)
	assert.Equal(t, api.Limits{Upload: 1 << 20, Origin: 1e8 / 8}, n.Status().Limits)
	var page bytes.Buffer
	require.NoError(t, WriteStatus(&page, n.Status(), time.Now()))
	assert.Regexp(t, `(?m)^limits +upload 1MiB/s, origin 12500kB/s$`, page.String())
	assert.Equal(t, int64(128<<20), n.Store.Usage().Quota)
	assert.NoError(t, n.Origins.Registries.Allow("ghcr.io"))
	assert.Error(t, n.Origins.Registries.Allow("quay.io"))
}

func TestAReloadReadsPasswordsAnew(t *testing.T) {
	var got string
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, ok := r.BasicAuth(); ok {
			got = password
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer web.Close()
	file := filepath.Join(t.TempDir(), "password")
	cfg := settings(t)
	cfg.Origins.Upstreams = []config.Upstream{{Host: "registry.test", URLs: []string{web.URL}, Username: "node", PasswordFile: file}}
	require.NoError(t, os.WriteFile(file, []byte("first"), 0o600))
	n := build(t, cfg)
	defer func() { require.NoError(t, n.Close()) }()
	ask := func() string {
		res, err := n.Origins.Registries.Forward(t.Context(), source.Question{Upstream: "registry.test", Method: http.MethodGet, Path: "/v2/a/tags/list"})
		require.NoError(t, err)
		res.Body.Close()
		return got
	}
	assert.Equal(t, "first", ask())
	require.NoError(t, os.WriteFile(file, []byte("second"), 0o600))
	assert.Equal(t, "first", ask())
	require.NoError(t, n.Reload(Limits{Cache: cfg.Cache, Origins: cfg.Origins}))
	assert.Equal(t, "second", ask())
	n.Origins.close()
}

func TestEachRegistryIsAskedThroughItsOwnProxy(t *testing.T) {
	serve := func(name string) *httptest.Server {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, name+" was asked for "+r.Host)
		}))
		t.Cleanup(s.Close)
		return s
	}
	proxy, environment, direct := serve("proxy"), serve("environment"), serve("registry")
	t.Setenv("HTTP_PROXY", environment.URL)
	t.Setenv("NO_PROXY", "")
	here := direct.Listener.Addr().String()
	cfg := settings(t)
	cfg.Origins.Upstreams = []config.Upstream{
		{Host: "own.test", PlainHTTP: true, Proxy: secret.String("http://user:password@" + proxy.Listener.Addr().String())},
		{Host: "none.test", URLs: []string{direct.URL}, Proxy: "none"},
		{Host: "environment.test", PlainHTTP: true},
	}
	n := build(t, cfg)
	defer func() { require.NoError(t, n.Close()) }()
	for host, want := range map[string]string{
		"own.test": "proxy was asked for own.test", "none.test": "registry was asked for " + here, "environment.test": "environment was asked for environment.test",
	} {
		res, err := n.Origins.Registries.Forward(t.Context(), source.Question{Upstream: host, Method: http.MethodGet, Path: "/v2/a/tags/list"})
		require.NoError(t, err)
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		res.Body.Close()
		assert.Equal(t, want, string(b))
	}
	n.Origins.close()
}

// recorder is a program that keeps the settings it is given.
type recorder struct {
	started  chan struct{}
	reloaded chan config.Dfdaemon
}

func (r recorder) Run(ctx context.Context) error {
	close(r.started)
	<-ctx.Done()
	return nil
}

func (r recorder) Reload(settings any) error {
	r.reloaded <- *settings.(*config.Dfdaemon)
	return nil
}

// told is a log that a test reads while it is written.
type told struct {
	mu    sync.Mutex
	text  bytes.Buffer
	lines chan struct{}
}

func (l *told) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(b)
	l.lines <- struct{}{}
	return len(b), nil
}

func (l *told) take() string {
	<-l.lines
	l.mu.Lock()
	defer l.mu.Unlock()
	s, err := l.text.ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return s
}

func TestSIGHUPAppliesWhatCanChangeAndNamesWhatNeedsARestart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "settings.yaml")
	write := func(text string) { require.NoError(t, os.WriteFile(file, []byte(text), 0o600)) }
	write("peer: {uploadSlots: 5}\n")
	cfg := new(config.Dfdaemon)
	run := recorder{make(chan struct{}), make(chan config.Dfdaemon, 1)}
	p := Program{
		Name: "dfdaemon", Settings: cfg, Log: &cfg.Log, Status: &cfg.API.Listen, StatusFlag: "api-listen",
		New: func(Runtime) (Runner, error) { return run, nil },
	}
	log := &told{lines: make(chan struct{}, 100)}
	cmd := p.command(io.Discard, log, nil)
	cmd.SetArgs([]string{"--config", file})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(ctx) }()
	<-run.started
	hup := func() { require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGHUP)) }

	write("peer: {uploadSlots: 9}\nmirror: {listen: '127.0.0.1:7'}\nlog: {level: debug}\n")
	hup()
	assert.Equal(t, 9, (<-run.reloaded).Peer.UploadSlots)
	line := log.take()
	assert.Contains(t, line, "settings reloaded")
	assert.Contains(t, line, `in_force="[peer.uploadSlots log.level]"`)
	line = log.take()
	assert.Contains(t, line, "need a restart")
	assert.Contains(t, line, "[mirror.listen]")

	write("peer: {uploadSlots: 0}\n")
	hup()
	line = log.take()
	assert.Contains(t, line, "settings not reloaded")
	assert.Contains(t, line, "peer.uploadSlots: 0 is not between 1 and 1024")
	assert.Empty(t, run.reloaded)

	write("peer: {uploadSlots: 5}\n")
	hup()
	assert.Equal(t, 5, (<-run.reloaded).Peer.UploadSlots)
	assert.Contains(t, log.take(), "peer.uploadSlots", "going back to what was there at the start is a change, too")
	cancel()
	require.NoError(t, <-ended)
}
