package daemon_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/dfget"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/supernode"
	"github.com/darter-io/darter/test/programs"
	"github.com/darter-io/darter/test/registrytest"
)

func TestMain(m *testing.M) {
	// A probe of memberlist ends by itself within seconds; Shutdown does not wait for it.
	goleak.VerifyTestMain(idleClosed{m}, goleak.IgnoreTopFunction(registrytest.LeakIgnored),
		goleak.IgnoreAnyFunction(registrytest.LeakIgnoredNotify),
		goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

// idleClosed runs the tests, and then closes idle connections before goleak counts goroutines.
type idleClosed struct{ *testing.M }

func (m idleClosed) Run() int {
	defer http.DefaultClient.CloseIdleConnections()
	return m.M.Run()
}

// log writes to the test's log until the test is over; watch sees each line.
func log(t *testing.T, name string, watch ...func(line []byte)) *slog.Logger {
	var mu sync.Mutex
	over := false
	t.Cleanup(func() { mu.Lock(); over = true; mu.Unlock() })
	return slog.New(slog.NewTextHandler(writer(func(b []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		if !over {
			t.Logf("%s: %s", name, bytes.TrimSpace(b))
		}
		for _, see := range watch {
			see(b)
		}
		return len(b), nil
	}), nil))
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// run runs a program until the function that it returns is called or the test is over.
func run(t *testing.T, program interface{ Run(context.Context) error }) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- program.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			assert.NoError(t, err)
		case <-time.After(time.Minute):
			t.Error("it did not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

// settings returns the defaults, on free loopback ports, for one registry.
func settings(t *testing.T, r *registrytest.Registry, name string) config.Dfdaemon {
	var cfg config.Dfdaemon
	require.NoError(t, config.NewForm("dfdaemon", &cfg).Load([]string{
		"DARTER_NODE_NAME=" + name, "DARTER_NODE_DATA_DIR=" + filepath.Join(t.TempDir(), name),
		"DARTER_CACHE_QUOTA=1GiB",
		"DARTER_MIRROR_LISTEN=127.0.0.1:0", "DARTER_API_LISTEN=127.0.0.1:0", "DARTER_PEER_LISTEN=127.0.0.1:0",
		"DARTER_DRAIN_TIMEOUT=10s",
	}))
	cfg.Files.AllowAddresses = []config.Network{{Prefix: netip.MustParsePrefix("127.0.0.0/8")}}
	if r != nil {
		cfg.Upstreams = []config.Upstream{{Host: r.Host(), URLs: []string{r.URL()}, PlainHTTP: true}}
	}
	return cfg
}

// start runs a dfdaemon.
func start(t *testing.T, cfg config.Dfdaemon, watch ...func(line []byte)) (d *daemon.Daemon, stop func()) {
	d, err := daemon.New(cfg, log(t, cfg.Node.Name, watch...))
	require.NoError(t, err)
	return d, run(t, d)
}

// image is an image of a registry.
func image(t *testing.T, r *registrytest.Registry, layers ...int64) registrytest.Pushed {
	img, err := registrytest.NewImage(7, layers)
	require.NoError(t, err)
	p, err := r.Push(t.Context(), "team/app", "v1", img)
	require.NoError(t, err)
	r.Reset()
	return p
}

// pull pulls the image through a mirror, all blobs at once, and checks each digest.
func pull(ctx context.Context, mirror string, r *registrytest.Registry, p registrytest.Pushed) error {
	var g errgroup.Group
	for _, o := range p.Objects {
		g.Go(func() error {
			kind := "blobs"
			if o.Kind == "manifest" {
				kind = "manifests"
			}
			url := fmt.Sprintf("http://%s/v2/%s/%s/%s?ns=%s", mirror, p.Repository, kind, o.Digest, r.Host())
			err := get(ctx, url, o.Digest, o.MediaType, nil)
			// On a loaded machine, the first byte may take longer than the mirror waits.
			for try := 0; try < 12 && err != nil && strings.Contains(err.Error(), "gave no byte of"); try++ {
				err = get(ctx, url, o.Digest, o.MediaType, nil)
			}
			return err
		})
	}
	return g.Wait()
}

func get(ctx context.Context, url, digest, mediaType string, began func()) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", mediaType+", */*")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(res.Body)
		return fmt.Errorf("%s: %s: %s", url, res.Status, b)
	}
	h := sha256.New()
	if began != nil {
		_, err = io.CopyN(h, res.Body, 1)
		began()
	}
	if err == nil {
		_, err = io.Copy(h, res.Body)
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); err == nil && got != digest {
		err = fmt.Errorf("%s has digest %s", url, got)
	}
	return err
}

// once proves that the registry sent each byte once, except for pings of 2 bytes.
func once(t *testing.T, r *registrytest.Registry, p registrytest.Pushed, why string) {
	t.Helper()
	sent := r.Counts().Egress
	assert.GreaterOrEqual(t, sent, p.Bytes())
	assert.Less(t, sent, p.Bytes()+100, why)
}

// soon waits until a status is as expected: a download counts its last bytes a moment after a
// client received them.
func soon(t *testing.T, addr string, check func(*assert.CollectT, api.Status)) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) { check(c, status(t, addr)) }, time.Minute, 10*time.Millisecond)
}

func status(t *testing.T, addr string) (s api.Status) {
	res, err := http.Get("http://" + addr + api.PathStatus)
	require.NoError(t, err)
	defer res.Body.Close()
	require.NoError(t, json.NewDecoder(res.Body).Decode(&s))
	return s
}

func TestDaemonAloneIsAPullThroughCache(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 3e6, 1e6, 50e3)
	cfg := settings(t, r, "alone")
	d, stop := start(t, cfg)

	require.NoError(t, pull(t.Context(), d.Addrs()["mirror"], r, p))
	once(t, r, p, "each byte left the registry once")
	soon(t, d.Addrs()["api"], func(c *assert.CollectT, s api.Status) {
		assert.Equal(c, api.Sources{Origin: p.Bytes()}, s.Received)
		assert.Equal(c, p.Bytes(), s.Served)
	})
	s := status(t, d.Addrs()["api"])
	assert.True(t, s.Ready)
	assert.True(t, s.Embedded)
	assert.Equal(t, len(p.Objects), s.Cache.Tasks)

	require.NoError(t, pull(t.Context(), d.Addrs()["mirror"], r, p))
	once(t, r, p, "the second pull came from the cache")
	soon(t, d.Addrs()["api"], func(c *assert.CollectT, s api.Status) { assert.Equal(c, p.Bytes(), s.Received.Cache) })

	stop()
	d, _ = start(t, cfg)
	require.NoError(t, pull(t.Context(), d.Addrs()["mirror"], r, p))
	once(t, r, p, "and so did the one after a restart")
	assert.Equal(t, s.Host.ID, status(t, d.Addrs()["api"]).Host.ID)
}

// lead runs a supernode on free loopback ports.
func lead(t *testing.T, r *registrytest.Registry, word secret.String,
	more ...string) (s *supernode.Supernode, stop func()) {
	return leadTo(t, config.Upstream{Host: r.Host(), URLs: []string{r.URL()}, PlainHTTP: true}, word, more...)
}

// leadTo is lead with an upstream of any kind.
func leadTo(t *testing.T, upstream config.Upstream, word secret.String,
	more ...string) (s *supernode.Supernode, stop func()) {
	return startSupernode(t, supernodeSettings(t, upstream, word, more...))
}

func supernodeSettings(
	t *testing.T, upstream config.Upstream, word secret.String, more ...string,
) (top config.Supernode) {
	require.NoError(t, config.NewForm("supernode", &top).Load(append([]string{
		"DARTER_NODE_DATA_DIR=" + filepath.Join(t.TempDir(), "s"), "DARTER_CACHE_QUOTA=1GiB",
		"DARTER_API_LISTEN=127.0.0.1:0",
		"DARTER_PEER_LISTEN=127.0.0.1:0", "DARTER_ADMIN_LISTEN=127.0.0.1:0", "DARTER_CLUSTER_SECRET=" + word.Reveal(),
	}, more...)))
	top.Upstreams = []config.Upstream{upstream}
	return top
}

func startSupernode(t *testing.T, cfg config.Supernode) (s *supernode.Supernode, stop func()) {
	s, err := supernode.New(cfg, log(t, "supernode"))
	require.NoError(t, err)
	return s, run(t, s)
}

// A dfdaemon that knows one supernode learns of the others and continues with them.
func TestSupernodesReplaceEachOther(t *testing.T) {
	t.Parallel()
	const word = "a secret that is long enough for a cluster"
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 1e6, 20e3)
	addrs, err := programs.FreeAddrs(2)
	require.NoError(t, err)
	first, stop := lead(t, r, word, "DARTER_GOSSIP_LISTEN="+addrs[0], "DARTER_GOSSIP_JOIN="+addrs[1])
	second, _ := lead(t, r, word, "DARTER_GOSSIP_LISTEN="+addrs[1], "DARTER_GOSSIP_JOIN="+addrs[0])
	cfg := settings(t, r, "node")
	cfg.Cluster.Secret, cfg.Supernodes = word, []config.Address{config.Address(first.Addrs()["api"])}
	d, _ := start(t, cfg)
	soon(t, second.Addrs()["admin"], func(c *assert.CollectT, s api.Status) {
		assert.Equal(c, 1, s.Hosts, "the daemon announces to the one that it was not told of")
		assert.Equal(c, []api.OwnerStatus{{Addr: first.Addrs()["api"], Alive: true}}, s.Owners)
		assert.Equal(c, addrs[1], s.Listen["gossip"])
	})
	stop()
	soon(t, second.Addrs()["admin"], func(c *assert.CollectT, s api.Status) {
		if assert.Len(c, s.Owners, 1, "status names a supernode that is gone") {
			assert.Equal(c, addrs[0], s.Owners[0].Addr)
			assert.False(c, s.Owners[0].Alive)
			assert.NotEmpty(c, s.Owners[0].Error)
		}
	})
	require.NoError(t, pull(t.Context(), d.Addrs()["mirror"], r, p))
	once(t, r, p, "the second supernode brings it")
	soon(t, second.Addrs()["admin"], func(c *assert.CollectT, s api.Status) {
		assert.Equal(c, p.Bytes(), s.Received.Origin)
	})
}

func TestClusterFetchesEachByteOnce(t *testing.T) {
	t.Parallel()
	for _, word := range []secret.String{"", "a secret that is long enough for a cluster"} {
		t.Run(fmt.Sprintf("secret %t", word != ""), func(t *testing.T) {
			r := registrytest.Start(t, registrytest.Config{})
			p := image(t, r, 6e6, 2e6, 50e3)
			s, _ := lead(t, r, word)

			const nodes = 3
			var daemons []*daemon.Daemon
			for i := range nodes {
				cfg := settings(t, r, fmt.Sprintf("node%d", i))
				cfg.Cluster.Secret, cfg.Supernodes = word, []config.Address{config.Address(s.Addrs()["api"])}
				d, _ := start(t, cfg)
				daemons = append(daemons, d)
			}
			var g errgroup.Group
			for _, d := range daemons {
				g.Go(func() error { return pull(t.Context(), d.Addrs()["mirror"], r, p) })
			}
			require.NoError(t, g.Wait())
			once(t, r, p, "each byte left the registry once")
			for _, d := range daemons {
				soon(t, d.Addrs()["api"], func(c *assert.CollectT, got api.Status) {
					assert.False(c, got.Embedded)
					assert.Equal(c, []api.OwnerStatus{{Addr: s.Addrs()["api"], Alive: true}}, got.Owners)
					assert.Zero(c, got.Received.Origin, "%s asked the registry itself", got.Host.Name)
					assert.GreaterOrEqual(c, got.Received.Peers+got.Received.Seeds, p.Bytes())
				})
			}
			soon(t, s.Addrs()["admin"], func(c *assert.CollectT, up api.Status) {
				assert.Equal(c, p.Bytes(), up.Received.Origin)
				assert.Equal(c, nodes, up.Hosts)
				assert.True(c, up.Ready)
			})
			res, err := http.Get("http://" + s.Addrs()["admin"] + api.PathHosts)
			require.NoError(t, err)
			defer res.Body.Close()
			var hosts []api.HostStatus
			require.NoError(t, json.NewDecoder(res.Body).Decode(&hosts))
			require.Len(t, hosts, nodes)
			for i, h := range hosts {
				assert.Equal(t, fmt.Sprintf("node%d", i), h.Name)
				assert.Equal(t, daemons[i].Addrs()["peer"], h.Addr)
				assert.Equal(t, len(p.Objects), h.Tasks)
			}
			if word != "" {
				res, err := http.Get("http://" + s.Addrs()["api"] + api.PathStatus)
				if err == nil {
					_ = res.Body.Close()
					_, err = http.Get("https://" + s.Addrs()["api"] + api.PathStatus)
				}
				assert.Error(t, err, "a client that is no member gets no answer")
			}
		})
	}
}

func TestDaemonServesWithoutSupernode(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 1e6, 20e3)
	cfg := settings(t, r, "orphan")
	cfg.Supernodes = []config.Address{"127.0.0.1:1", "127.0.0.1:2"}
	d, _ := start(t, cfg)
	// A test in pkg/announce, in virtual time, shows that the client does not wait after a refused connection.
	require.NoError(t, pull(t.Context(), d.Addrs()["mirror"], r, p))
	once(t, r, p, "and asks for each byte once")
	soon(t, d.Addrs()["api"], func(c *assert.CollectT, s api.Status) {
		assert.True(c, s.Embedded)
		if assert.Len(c, s.Owners, 2) {
			assert.Equal(c, "127.0.0.1:1", s.Owners[0].Addr)
			assert.Contains(c, s.Owners[0].Error, "connection refused")
		}
	})
}

func TestDrainLetsAPullFinish(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 2e6)
	d, stop := start(t, settings(t, r, "draining"))
	r.Shape(4e6, 0) // half a second for the layer
	layer := p.Layers()[0]
	stopped := make(chan struct{})
	err := get(t.Context(), fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", d.Addrs()["mirror"], p.Repository,
		layer.Digest,
		r.Host()), layer.Digest, layer.MediaType, func() {
		go func() {
			stop()
			close(stopped)
		}()
	})
	require.NoError(t, err)
	<-stopped
}

func TestRunLeavesNoGoroutine(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 1e6, 20e3)
	before := goleak.IgnoreCurrent()
	s, stopS := lead(t, r, "a secret that is long enough for a cluster")
	cfg := settings(t, r, "leaving")
	cfg.Cluster.Secret, cfg.Supernodes = "a secret that is long enough for a cluster",
		[]config.Address{config.Address(s.Addrs()["api"])}
	d, stopD := start(t, cfg)
	require.NoError(t, pull(t.Context(), d.Addrs()["mirror"], r, p))
	stopD()
	stopS()
	http.DefaultClient.CloseIdleConnections()
	goleak.VerifyNone(t, before, goleak.IgnoreTopFunction(registrytest.LeakIgnored))
}

func TestOneDaemonPerDirectory(t *testing.T) {
	cfg := settings(t, nil, "twice")
	start(t, cfg)
	_, err := daemon.New(cfg, nil)
	require.ErrorContains(t, err, "give this process a directory of its own")
}

func TestDfgetThroughTheDaemon(t *testing.T) {
	content := bytes.Repeat([]byte("some file "), 300_000)
	gets := 0
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			gets++
		}
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	defer origin.Close()
	d, _ := start(t, settings(t, nil, "files"))
	var s config.Dfget
	require.NoError(t, config.NewForm("dfget", &s).Load(nil))
	s.Daemon, s.Output, s.Netrc = config.Address(d.Addrs()["api"]), filepath.Join(t.TempDir(), "f"), "none"
	for _, want := range []string{"100% from the origin", "from the node's cache"} {
		var told bytes.Buffer
		err := dfget.New(dfget.Config{URLs: []string{origin.URL + "/f"}, Settings: s, Stderr: &told}).Run(t.Context())
		require.NoError(t, err)
		got, err := os.ReadFile(s.Output)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(content, got))
		assert.Contains(t, told.String(), want)
	}
	assert.Equal(t, 1, gets)
	soon(t, d.Addrs()["api"], func(c *assert.CollectT, s api.Status) {
		assert.Equal(c, int64(len(content)), s.Received.Cache)
	})
	assert.True(t, strings.HasPrefix(d.Addrs()["api"], "127.0.0.1:"))
}
