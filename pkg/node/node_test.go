package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/httpserver"
	"github.com/darter-io/darter/pkg/owners"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// settings of a node on loopback, in a directory of the test's.
func settings(t *testing.T) Config {
	return Config{
		Role:   Role{Program: "test", UploadSlots: Dfdaemon.UploadSlots},
		Node:   config.Node{Name: "n1", Zone: "z", DataDir: filepath.Join(t.TempDir(), "data")},
		Listen: "127.0.0.1:0", Cache: config.Cache{Quota: 64 << 20, HighWater: 0.95, LowWater: 0.85},
		Files:   config.Files{AllowHosts: []string{"*"}},
		Origins: config.Origins{Upstreams: []config.Upstream{{Host: "Quay.io"}, {Host: "index.docker.io"}}},
	}
}

// alone announces to no owner.
type alone struct{}

func (alone) Announce(_ context.Context, e api.Entry) (api.Assignment, owners.Leader, error) {
	return api.Assignment{Task: e.Task}, owners.LastResort, nil
}

func build(t *testing.T, cfg Config) *Node {
	n, err := New(cfg)
	require.NoError(t, err)
	n.Connect(alone{}, nil)
	return n
}

func TestNodeKeepsItsID(t *testing.T) {
	cfg := settings(t)
	n := build(t, cfg)
	id := n.Host.ID
	_, err := New(cfg)
	require.ErrorContains(t, err, "stop it, or give this process a directory of its own")

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx, nil, nil) }()
	cancel()
	require.NoError(t, <-ended)

	n = build(t, cfg)
	assert.Equal(t, id, n.Host.ID)
	s := n.Status()
	assert.Equal(t, "z", s.Host.Zone)
	assert.Equal(t, int64(64<<20), s.Cache.Quota)
	require.NoError(t, n.Close())
}

// The error of an address that cannot be listened on names what is wrong with it, and its setting.
func TestListenErrors(t *testing.T) {
	n := build(t, settings(t))
	defer n.Close()
	taken, err := n.Listen("api.listen", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	for at, want := range map[string]string{
		taken.Addr().String(): "if another program has the port, choose another one with api.listen",
		"8.8.8.8:0":           "no network interface of this machine has that address (ip addr lists them): set another one",
	} {
		_, err := n.Listen("api.listen", config.Address(at))
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "api.listen: listen tcp "+at)
	}
	assert.Contains(t, ListenRemedy("mirror.listen", syscall.EACCES), "ports below 1024 need root")
	assert.Contains(t, ListenRemedy("mirror.listen", &net.DNSError{}), "in mirror.listen")
}

func TestUnusableDirectory(t *testing.T) {
	cfg := settings(t)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	cfg.Node.DataDir = filepath.Join(file, "data")
	_, err := New(cfg)
	require.ErrorContains(t, err, "node.dataDir: ")
	assert.ErrorContains(t, err, "a file is in the way at "+cfg.Node.DataDir)

	cfg = settings(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	cfg.Listen = config.Address(l.Addr().String())
	_, err = New(cfg)
	require.ErrorContains(t, err, "choose another one with peer.listen")
	cfg.Listen = "0.0.0.0:0"
	_, err = New(cfg)
	require.ErrorContains(t, err, "peer.listen: refusing to listen without a cluster secret")
	cfg.Listen = "127.0.0.1:0"
	n, err := New(cfg)
	require.NoError(t, err, "what failed kept nothing")
	require.NoError(t, n.Close())
}

func TestDefaultQuotaIsHalfOfTheFreeSpace(t *testing.T) {
	dir := t.TempDir()
	before, err := halfOfFree(dir)
	require.NoError(t, err)
	assert.Positive(t, before)
	require.NoError(t, os.Truncate(mustCreate(t, dir, "sparse"), 1<<40))
	after, err := halfOfFree(dir)
	require.NoError(t, err)
	assert.InDelta(t, 1<<39, after-before, 1<<30,
		"what the cache holds counts as its own; the rest of the machine moves the figure a little")
}

func mustCreate(t *testing.T, dir, name string) string {
	path := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	return path
}

func TestOnlyTheListedRegistriesAreAllowed(t *testing.T) {
	cfg := settings(t)
	o, err := newOrigins(cfg)
	require.NoError(t, err)
	assert.NoError(t, o.Registries.Allow("quay.io"))
	assert.NoError(t, o.Registries.Allow("docker.io"))
	assert.ErrorContains(t, o.Registries.Allow("169.254.169.254"), "its operator can add it")
	cfg.Origins.AllowUnlisted = true
	o, err = newOrigins(cfg)
	require.NoError(t, err)
	assert.NoError(t, o.Registries.Allow("anything.test"))

	cfg.Origins.Upstreams = []config.Upstream{{Host: "a.test", Username: "u",
		PasswordFile: filepath.Join(t.TempDir(), "none")}}
	_, err = newOrigins(cfg)
	assert.ErrorContains(t, err, "upstreams: password of a.test")
}

func TestFailedPartEndsTheServers(t *testing.T) {
	n := build(t, settings(t))
	broken := errors.New("the disk burns")
	served := false
	err := n.Run(t.Context(), []Part{func(ctx context.Context) error {
		<-ctx.Done()
		served = true
		return nil
	}}, []Part{func(context.Context) error { return broken }})
	require.ErrorIs(t, err, broken)
	assert.True(t, served)
}

func TestPartsOutliveDrainingServers(t *testing.T) {
	n := build(t, settings(t))
	ctx, cancel := context.WithCancel(t.Context())
	serverEnded := make(chan struct{})
	err := n.Run(ctx, []Part{func(ctx context.Context) error {
		cancel()
		<-ctx.Done()
		close(serverEnded)
		return nil
	}}, []Part{func(ctx context.Context) error {
		<-ctx.Done()
		select {
		case <-serverEnded:
		default:
			return errors.New("ended before the server")
		}
		return nil
	}})
	require.NoError(t, err)
}

func TestAdvertise(t *testing.T) {
	tcp := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 7} }
	for _, row := range []struct {
		name      string
		listening net.Addr
		wanted    config.Address
		towards   []config.Address
		want      string
	}{
		{"the operator's word", tcp("0.0.0.0"), "node7.test:9", nil, "node7.test:9"},
		{"the address listened on", tcp("10.1.2.3"), "", nil, "10.1.2.3:7"},
		{"one of IPv6", tcp("::1"), "", nil, "[::1]:7"},
		{"the one used towards a supernode", tcp("0.0.0.0"), "", []config.Address{"127.0.0.5:65000"}, "127.0.0.1:7"},
		{"of all, IPv6 too", tcp("::"), "", []config.Address{"127.0.0.5:65000"}, "127.0.0.1:7"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := Advertise(t.Context(), row.listening, row.wanted, row.towards, slog.New(slog.DiscardHandler))
			require.NoError(t, err)
			assert.Equal(t, row.want, got)
		})
	}
	got, err := Advertise(t.Context(), tcp("::"), "", nil, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	assert.NotContains(t, got, "[::]")
	assert.NotContains(t, got, "0.0.0.0:")
}

// A name server that never answers does not keep a program from starting.
func TestAdvertiseWithoutAnsweringDNS(t *testing.T) {
	silentDNS(t)
	var log bytes.Buffer
	got, err := Advertise(t.Context(), &net.TCPAddr{IP: net.IPv6unspecified, Port: 7}, "",
		[]config.Address{"supernode-0.test:65000", "supernode-1.test:65000"}, slog.New(slog.NewTextHandler(&log, nil)))
	require.NoError(t, err)
	assert.NotContains(t, got, "[::]")
	assert.Equal(t, 1, strings.Count(log.String(), "level=WARN"), log.String())
	assert.Contains(t, log.String(), "set peer.advertise")
}

// silentDNS gives the process a name server that never answers. It sends each begin of a look-up to asked.
func silentDNS(t *testing.T) (asked chan string) {
	asked = make(chan string, 100)
	was := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = was })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, at string) (net.Conn, error) {
		asked <- at
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	return asked
}

// A name that cannot be looked up takes no time from the others: the address of another one is found.
func TestAdvertiseBesideASilentName(t *testing.T) {
	silentDNS(t)
	var log bytes.Buffer
	got, err := Advertise(t.Context(), &net.TCPAddr{IP: net.IPv6unspecified, Port: 7}, "",
		[]config.Address{"supernode-0.test:65000", "127.0.0.5:65000"}, slog.New(slog.NewTextHandler(&log, nil)))
	require.NoError(t, err)
	assert.Equal(t, "127.0.0.1:7", got)
	assert.Empty(t, log.String())
}

// The end of the start ends each look-up of a name, and nothing is left of the node.
func TestStartEndsWithItsContext(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"the name of a supernode": func(c *Config) {
			c.Listen, c.Cluster.Insecure, c.Towards = "0.0.0.0:0", true, []config.Address{"supernode-0.test:65000"}
		},
		"a name to listen on": func(c *Config) { c.Listen, c.Cluster.Insecure = "this-host.test:0", true },
	} {
		t.Run(name, func(t *testing.T) {
			asked := silentDNS(t)
			cfg := settings(t)
			change(&cfg)
			ctx, cancel := context.WithCancel(t.Context())
			failed := make(chan error, 1)
			go func() {
				_, err := New(cfg, WithStart(ctx))
				failed <- err
			}()
			<-asked
			cancel()
			require.Error(t, <-failed)
			cfg.Listen = "127.0.0.1:0"
			require.NoError(t, build(t, cfg).Close(), "the directory is free again")
		})
	}
}

func TestHealthNamesWhatIsMissing(t *testing.T) {
	n := build(t, settings(t))
	n.NewCoordinator(nil, nil) // for its metrics
	r := httpserver.NewRouter()
	n.RouteStatus(r, n.Status)
	n.RouteAdmin(r)
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	code, body := get("/readyz")
	assert.Equal(t, 200, code, body)
	friend := errors.New("nobody answers")
	n.Ready.Add("a friend", func(context.Context) error { return friend })
	code, body = get("/readyz")
	assert.Equal(t, 503, code)
	assert.Contains(t, body, "missing a friend: nobody answers")
	_, body = get(api.PathStatus)
	assert.Contains(t, body, `"ready":false,"missing":["a friend: nobody answers"]`)
	friend = nil
	_, body = get(api.PathStatus)
	assert.Contains(t, body, `"ready":true`)
	require.NoError(t, os.RemoveAll(n.cfg.Node.DataDir))
	_, body = get("/readyz")
	assert.Contains(t, body, "missing data directory")

	for path, wants := range map[string][]string{
		"/healthz":                       {"ok\n"},
		"/":                              {"/metrics"},
		"/debug/pprof/":                  {"goroutine"},
		"/debug/pprof/goroutine?debug=1": {"goroutine profile"},
		api.PathTasks:                    {"[]"},
		"/metrics": {
			`darter_received_bytes_total{source="peers"} 0`, "darter_store_quota_bytes 6.7108864e+07",
			"darter_build_info{",
			"darter_upload_slots 3",
			"darter_hosts 0", `darter_owners{state="unreachable"} 0`,
			`darter_upstream_requests_total{kind="blob",registry="other",status="5xx"} 0`,
			"go_goroutines", "process_resident_memory_bytes",
		},
	} {
		code, body := get(path)
		assert.Equal(t, 200, code, path)
		for _, want := range wants {
			assert.Contains(t, body, want, path)
		}
	}
	code, _ = get(api.PathTasks + "/sha256:xx")
	assert.Equal(t, 400, code)
	code, _ = get(api.PathTasks + "/sha256:" + strings.Repeat("0", 64))
	assert.Equal(t, 404, code)
	code, _ = get("/nowhere")
	assert.Equal(t, 404, code)
	require.NoError(t, n.Close())
}

// The port for other machines shows health and metrics, and takes no order.
func TestHealthPort(t *testing.T) {
	cfg := settings(t)
	cfg.Health = "127.0.0.1:0"
	n := build(t, cfg)
	n.NewCoordinator(nil, nil) // for its metrics
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx, nil, nil) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	ask := func(method, path, hostName string, header ...string) (int, string) {
		req, err := http.NewRequest(method, "http://"+n.Addrs()["health"]+path, nil)
		require.NoError(t, err)
		req.Host = hostName
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := client.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, string(body)
	}
	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": "ready\n", "/metrics": "darter_build_info{"} {
		code, body := ask("GET", path, "darter-supernode.darter.svc") // Prometheus may use a name
		assert.Equal(t, 200, code, path)
		assert.Contains(t, body, want)
		code, _ = ask("DELETE", path, "")
		assert.Equal(t, 405, code, path)
	}
	for _, path := range []string{"/", "/debug/pprof/", "/debug/pprof/cmdline", api.PathStatus, api.PathTasks, api.PathHosts,
		api.PathAnnounce, api.PathPurgeOrders, api.PathFiles} {
		code, _ := ask("GET", path, "")
		assert.Equal(t, 404, code, path)
		code, _ = ask("POST", path, "")
		assert.Equal(t, 404, code, path)
	}
	code, _ := ask("DELETE", api.PathPurge+"/sha256:"+strings.Repeat("0", 64), "")
	assert.Equal(t, 404, code)
	code, _ = ask("GET", "/metrics", "page.example", "Sec-Fetch-Site", "same-origin")
	assert.Equal(t, 421, code, "a page that has its own name lead here")
	cancel()
	require.NoError(t, <-ended)

	cfg.Health = "8.8.8.8:0"
	_, err := New(cfg)
	require.ErrorContains(t, err, "health.listen: listen tcp 8.8.8.8:0")
	cfg.Health = ""
	n = build(t, cfg)
	assert.NotContains(t, n.Addrs(), "health")
	require.NoError(t, n.Close(), "the failed start kept nothing")
}

func TestOwnersAreCounted(t *testing.T) {
	reachable, unreachable := countOwners([]api.OwnerStatus{{Addr: "a", Alive: true}, {Addr: "b"}, {Addr: "c"},
		{Addr: "d", Alive: true, Standby: true}, {Addr: "e", Standby: true}})
	assert.Equal(t, []int{1, 2}, []int{reachable, unreachable}, "a standby is no supernode")
}
