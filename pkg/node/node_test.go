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
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/owners"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// settings of a node on loopback, in a directory of the test's.
func settings(t *testing.T) Config {
	return Config{
		Program: "test", Node: config.Node{Name: "n1", Zone: "z", DataDir: filepath.Join(t.TempDir(), "data")},
		Listen: "127.0.0.1:0", Cache: config.Cache{Quota: 64 << 20, HighWater: 0.95, LowWater: 0.85},
		Origins: config.Origins{Upstreams: []config.Upstream{{Host: "Quay.io"}, {Host: "index.docker.io"}}},
	}
}

// alone announces to nobody.
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

func TestANodeKeepsItsIDAndOwnsItsDirectoryAlone(t *testing.T) {
	cfg := settings(t)
	n := build(t, cfg)
	id := n.Host.ID
	_, err := New(cfg)
	require.ErrorContains(t, err, "stop it, or give this one a directory of its own")

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

func TestADirectoryThatCannotBeUsedIsToldPlainly(t *testing.T) {
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

func TestWithoutAQuotaTheCacheMayTakeHalfOfWhatIsFree(t *testing.T) {
	dir := t.TempDir()
	before, err := halfOfFree(dir)
	require.NoError(t, err)
	assert.Positive(t, before)
	require.NoError(t, os.Truncate(mustCreate(t, dir, "sparse"), 1<<40))
	after, err := halfOfFree(dir)
	require.NoError(t, err)
	assert.InDelta(t, 1<<39, after-before, 1<<30, "what the cache holds counts as its own; the rest of the machine moves the figure a little")
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
	assert.ErrorContains(t, o.Registries.Allow("169.254.169.254"), "its operator can list it")
	cfg.Origins.AllowUnlisted = true
	o, err = newOrigins(cfg)
	require.NoError(t, err)
	assert.NoError(t, o.Registries.Allow("anything.test"))

	cfg.Origins.Upstreams = []config.Upstream{{Host: "a.test", Username: "u", PasswordFile: filepath.Join(t.TempDir(), "none")}}
	_, err = newOrigins(cfg)
	assert.ErrorContains(t, err, "upstreams: password of a.test")
}

func TestAFailureBeneathEndsTheServersAndIsTold(t *testing.T) {
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

func TestPartsOutliveTheServersThatDrain(t *testing.T) {
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

// serve runs a server whose handler says when it is in and waits to be let out.
func serve(t *testing.T, drain time.Duration) (url string, in chan struct{}, out chan struct{}, stop context.CancelFunc, ended chan error) {
	n := &Node{Log: slog.New(slog.DiscardHandler)}
	n.drain.Store(int64(drain))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	in, out, ended = make(chan struct{}), make(chan struct{}), make(chan error, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "8")
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		in <- struct{}{}
		select {
		case <-out:
			_, _ = io.WriteString(w, "half")
		case <-r.Context().Done():
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	go func() { ended <- n.Server("test", l, h)(ctx) }()
	return "http://" + l.Addr().String(), in, out, stop, ended
}

func fetch(url string) <-chan string {
	body := make(chan string, 1)
	go func() {
		tr := &http.Transport{DisableKeepAlives: true}
		req, _ := http.NewRequest(http.MethodGet, url, nil)
		res, err := tr.RoundTrip(req)
		if err != nil {
			body <- err.Error()
			return
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		body <- string(b)
	}()
	return body
}

func TestARunningRequestMayEndWellWhileItsServerDrains(t *testing.T) {
	url, in, out, stop, ended := serve(t, time.Minute)
	body := fetch(url)
	<-in
	stop()
	// The port is given back at once: others are refused and go elsewhere.
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err == nil {
			c.Close()
		}
		return err != nil
	}, 30*time.Second, time.Millisecond)
	close(out)
	assert.Equal(t, "halfhalf", <-body)
	require.NoError(t, <-ended)
}

func TestADrainTakesNoLongerThanItMay(t *testing.T) {
	url, in, _, stop, ended := serve(t, 10*time.Millisecond)
	body := fetch(url)
	<-in
	stop()
	require.NoError(t, <-ended)
	assert.Equal(t, "half", <-body, "cut short")
}

func TestAWebPageCannotAnnounce(t *testing.T) {
	h := MembersOnly(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for header, status := range map[string]int{"": 200, "User-Agent": 200, "Origin": 403, "Sec-Fetch-Site": 403} {
		r := httptest.NewRequest(http.MethodPost, api.PathAnnounce, strings.NewReader("{}"))
		if header != "" {
			r.Header.Set(header, "null")
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		assert.Equal(t, status, w.Code, header)
	}
}

func TestAPageOfAnotherNameCannotSpeakToALocalAPI(t *testing.T) {
	h := LocalOnly(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for name, want := range map[string]int{
		"127.0.0.1:65003": 200, "[::1]:65003": 200, "localhost:65003": 200, "LOCALHOST": 200, "127.0.0.1": 200, "[::1]": 200,
		"evil.test:65003": 421, "evil.test": 421, "127.0.0.1.evil.test": 421, "localhost.evil.test:1": 421, "": 421,
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = name
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		assert.Equal(t, want, w.Code, "%q", name)
	}
}

func TestTheAddressToAdvertiseIsOneThatOthersCanUse(t *testing.T) {
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
			got, err := Advertise(row.listening, row.wanted, row.towards)
			require.NoError(t, err)
			assert.Equal(t, row.want, got)
		})
	}
	got, err := Advertise(tcp("::"), "", nil)
	require.NoError(t, err)
	assert.NotContains(t, got, "[::]")
	assert.NotContains(t, got, "0.0.0.0:")
}

func TestHealthTellsWhatIsMissing(t *testing.T) {
	n := build(t, settings(t))
	n.NewCoordinator(nil) // for its metrics
	r := NewRouter()
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
			`darter_received_bytes_total{source="peers"} 0`, "darter_store_quota_bytes 6.7108864e+07", "darter_build_info{", "darter_upload_slots 3",
			"darter_hosts 1", "go_goroutines", "process_resident_memory_bytes",
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

func TestAStatusIsReadAtAGlance(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := api.Status{
		Program: "dfdaemon", Version: "v1", Started: now.Add(-90 * time.Minute), Ready: true,
		Host:     host.Host{ID: "00112233445566778899aabbccddeeff", Name: "node7", Zone: "rack3"},
		Received: api.Sources{Peers: 700 << 20, Seeds: 200 << 20, Origin: 100 << 20, Cache: 5 << 20}, Sent: 3 << 30, Served: 1 << 30,
		Cache:  api.CacheStatus{Dir: "/var/lib/darter/dfdaemon", Tasks: 12, Bytes: 1 << 30, Quota: 4 << 30},
		Owners: []api.OwnerStatus{{Addr: "10.0.0.1:65000", Alive: true}, {Addr: "10.0.0.2:65000", Error: "connection refused"}},
		Listen: map[string]string{"mirror": "127.0.0.1:65001", "peer": "10.0.0.7:65002", "mirror of quay.io": "127.0.0.1:65011", "mirror of ghcr.io": "127.0.0.1:65012"},
	}
	var out bytes.Buffer
	require.NoError(t, WriteStatus(&out, s, now))
	assert.Equal(t, `dfdaemon   ready, up 1h30m0s, version v1
node       node7 (00112233), zone rack3
mirror     127.0.0.1:65001
mirror     127.0.0.1:65012, of ghcr.io for who names none
mirror     127.0.0.1:65011, of quay.io for who names none
peer       10.0.0.7:65002
supernode  10.0.0.1:65000 answers
supernode  10.0.0.2:65000 DOES NOT ANSWER: connection refused
cache      1.0 GiB in 12 tasks (25% of 4.0 GiB), /var/lib/darter/dfdaemon
received   700 MiB from peers, 200 MiB from supernodes, 100 MiB from origins (90% from the cluster)
given      3.0 GiB to other nodes, 1.0 GiB to local clients, of that 5.0 MiB from the cache
now        0 downloads run, 0 contents open
`, out.String())

	s.Pulls = &api.Outcomes{OK: 12, Refused: 1, Failed: 2, Canceled: 3, Last: now.Add(-4 * time.Second),
		Failure: &api.Failed{At: now.Add(-95 * time.Minute), Name: "quay.io/a/b", Error: "reading sha256:aa:\nno route to host"}}
	s.Downloads = 4
	s.Running = []api.RunningStatus{
		{ID: "sha256:0123456789abcdef", Name: "quay.io/a/b", Length: 4 << 20, Have: 1 << 20, Received: api.Sources{Peers: 1 << 20, Origin: 1 << 20}, Quiet: 12.3},
		{ID: "sha256:1123456789abcdef", Name: "quay.io/a/b", Length: -1, Quiet: 1},
	}
	out.Reset()
	require.NoError(t, WriteStatus(&out, s, now))
	assert.Contains(t, out.String(), `pulls      12 ended well, 1 refused, 2 failed, 3 left by the client, the last 4s ago
FAILED     1h35m ago: quay.io/a/b: reading sha256:aa: no route to host
now        2 downloads run, 4 contents open
           quay.io/a/b sha256:0123456789ab: 25% of 4.0 MiB, 50% of it from the cluster, NOTHING COMES for 12s
           quay.io/a/b sha256:1123456789ab: nothing is known of it yet
`)
	s.Running = slices.Repeat(s.Running, 10)
	out.Reset()
	require.NoError(t, WriteStatus(&out, s, now))
	assert.Contains(t, out.String(), "           and 10 more (--json lists them)\n")
	assert.Equal(t, runningShown, strings.Count(out.String(), "quay.io/a/b sha256:0")+strings.Count(out.String(), "quay.io/a/b sha256:1"))

	s = api.Status{Program: "dfdaemon", Missing: []string{"its disk", "its registry"}, BadPieces: 2, Embedded: true}
	out.Reset()
	require.NoError(t, WriteStatus(&out, s, now))
	assert.Contains(t, out.String(), "dfdaemon   NOT READY, up ")
	assert.Contains(t, out.String(), "LACKS      its disk\nLACKS      its registry\n")
	assert.Contains(t, out.String(), "none configured: this node leads its own tasks")
	assert.Contains(t, out.String(), "2 pieces did not match")

	s = api.Status{Program: "supernode", Ready: true, Hosts: 1, Downloads: 1, Seeds: &api.Outcomes{OK: 7},
		Running: []api.RunningStatus{{ID: "sha256:2123456789abcdef", Length: 4, Have: 2, Received: api.Sources{Origin: 2}}}, Cache: api.CacheStatus{Tasks: 1}, Received: api.Sources{Origin: 1 << 20}, Sent: 1 << 30}
	out.Reset()
	require.NoError(t, WriteStatus(&out, s, now))
	for _, want := range []string{"hosts      1 announces here", "0 B in 1 task (", "1.0 MiB from origins\n", "given      1.0 GiB to nodes\n", "seeds      7 brought, 0 refused, 0 failed\n", "now        1 download runs, 1 content open\n           sha256:2123456789ab: 50% of 4 B\n"} {
		assert.Contains(t, out.String(), want)
	}
	assert.NotContains(t, out.String(), "supernode  no other", "it does not gossip")

	s.Listen = map[string]string{"gossip": ":65006"}
	out.Reset()
	require.NoError(t, WriteStatus(&out, s, now))
	assert.Contains(t, out.String(), "gossip     :65006\nsupernode  no other is known\nhosts ")
	s.Owners = []api.OwnerStatus{{Addr: "10.0.0.2:65000", Alive: true}, {Addr: "10.0.0.3:65006", Error: "no route to host"}}
	out.Reset()
	require.NoError(t, WriteStatus(&out, s, now))
	assert.Contains(t, out.String(), "supernode  10.0.0.2:65000 answers\nsupernode  10.0.0.3:65006 DOES NOT ANSWER: no route to host\nhosts ")
}

func TestWhatIsNoProgramOfOursIsToldSo(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"another path":   http.NotFound,
		"no JSON":        func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") },
		"another's JSON": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"status": "ok"}`) },
		"a cut off JSON": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"program": "dfdaemon"`) },
		"an inner error": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "oh", 500) },
		"a dfdaemon's": func(w http.ResponseWriter, r *http.Request) {
			assert.Equal(t, api.PathStatus, r.URL.Path)
			io.WriteString(w, `{"program": "dfdaemon", "of": "a later version"}`)
		},
	} {
		web := httptest.NewServer(h)
		at := config.Address(web.Listener.Addr().String())
		s, err := FetchStatus(t.Context(), "dfdaemon", at)
		web.Close()
		if name == "a dfdaemon's" {
			require.NoError(t, err)
			assert.Equal(t, "dfdaemon", s.Program)
			continue
		}
		assert.ErrorContains(t, err, "what listens at "+string(at)+" answers ", name)
		assert.ErrorContains(t, err, "api.listen", name)
		_, err = FetchStatus(t.Context(), "dfdaemon", at)
		assert.ErrorContains(t, err, "no dfdaemon answers at "+string(at))
	}
}

func TestALocalAPIIsNotForWebPages(t *testing.T) {
	asked := func(wrap func(http.Handler) http.Handler, headers ...string) int {
		r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1:65003/api/v1/files", nil)
		r.Host = "127.0.0.1:65003"
		for _, h := range headers {
			name, value, _ := strings.Cut(h, ": ")
			r.Header.Set(name, value)
		}
		w := httptest.NewRecorder()
		wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, r)
		return w.Code
	}
	chrome := []string{"User-Agent: Mozilla/5.0 (X11; Linux x86_64)", "Accept-Language: de"}
	for _, row := range []struct {
		name         string
		headers      []string
		local, files int
	}{
		{"curl", []string{"User-Agent: curl/8"}, 200, 200},
		{"PowerShell, which says that it is a browser", []string{"User-Agent: Mozilla/5.0 (Linux) PowerShell/7"}, 200, 200},
		{"a script of a page", []string{"Origin: https://evil.test"}, 403, 403},
		{"a script of a sandboxed page", []string{"Origin: null"}, 403, 403},
		{"an image in a page", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"}, 403, 403},
		{"an image in a page of the same machine", []string{"Sec-Fetch-Site: same-site"}, 403, 403},
		{"another port of the same machine", []string{"Origin: http://127.0.0.1:8080"}, 403, 403},
		{"an old browser that says where it comes from", []string{"Referer: http://evil.test/"}, 200, 403},
		{"an old browser", chrome, 200, 403},
		{"a person who types the address", append([]string{"Sec-Fetch-Site: none"}, chrome...), 200, 403},
		{"the page of the local API itself", []string{"Sec-Fetch-Site: same-origin", "Origin: http://127.0.0.1:65003"}, 200, 403},
	} {
		t.Run(row.name, func(t *testing.T) {
			assert.Equal(t, row.local, asked(LocalOnly, row.headers...))
			assert.Equal(t, row.local, asked(NoPages, row.headers...))
			assert.Equal(t, row.files, asked(NoBrowsers, row.headers...))
		})
	}
}
