package daemon_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/portmux"
	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/test/registrytest"
)

// front is a port before a registry and its token service. It keeps the port when they are gone, so that no other
// program takes it.
type front struct {
	net.Listener
	gone atomic.Bool
}

// frontOf starts a front.
func frontOf(t *testing.T, r *registrytest.Registry) *front {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	f := &front{Listener: l}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { f.pass(ctx, c, r.Host()) })
		}
	})
	return f
}

// pass passes one connection on, until one side ends or the registry is gone.
func (f *front) pass(ctx context.Context, c net.Conn, to string) {
	defer c.Close()
	if f.gone.Load() {
		return
	}
	back, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer back.Close()
	defer context.AfterFunc(ctx, func() { c.Close(); back.Close() })()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer c.Close()
		_, _ = io.Copy(c, back)
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := c.Read(buf)
		if err != nil || f.gone.Load() {
			break
		}
		if _, err := back.Write(buf[:n]); err != nil {
			break
		}
	}
	back.Close()
	<-ended
}

// outage is a warm cluster of a supernode and two nodes, whose registry can go.
type outage struct {
	registry *registrytest.Registry
	front    *front
	lead     string
	reload   func()
	ask      *http.Client // as a member
	nodes    []*daemon.Daemon
}

const outageWord = secret.String("a secret that is long enough for a cluster")

// settings are those of a node of the cluster.
func (o *outage) settings(t *testing.T, name string, access config.Access) config.Dfdaemon {
	cfg := settings(t, o.registry, name)
	cfg.Cluster.Secret, cfg.Supernodes = outageWord, []config.Address{config.Address(o.lead)}
	cfg.Upstreams = []config.Upstream{o.upstream(access)}
	return cfg
}

func (o *outage) upstream(access config.Access) config.Upstream {
	return config.Upstream{Host: o.registry.Host(), URLs: []string{"http://" + o.front.Addr().String()}, PlainHTTP: true,
		Access: access}
}

func startOutage(t *testing.T) *outage {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: map[string]registrytest.User{
		"": {Pull: []string{"public/*"}}, "alice": {Password: "a", Pull: []string{"*"}}}})
	o := &outage{registry: r, front: frontOf(t, r)}
	cfg := supernodeSettings(t, o.upstream(""), outageWord)
	s, _ := startSupernode(t, cfg)
	o.lead, o.reload = s.Addrs()["api"], func() { require.NoError(t, s.Reload(&cfg)) }
	id, err := identity.New(identity.Config{Secret: outageWord, HostID: host.ID(strings.Repeat("ab", 16))})
	require.NoError(t, err)
	tr := &http.Transport{DialTLSContext: id.WrapDialer(new(net.Dialer).DialContext, portmux.ProtocolAPI)}
	t.Cleanup(tr.CloseIdleConnections)
	o.ask = &http.Client{Transport: tr}
	for i := range 2 {
		cfg := o.settings(t, fmt.Sprint("warm", i), "")
		cfg.Mirror.RightsUnreachable = config.ServeCached // it learns what is public from clients with tokens, too
		d, _ := start(t, cfg)
		o.nodes = append(o.nodes, d)
	}
	return o
}

// push pushes an image of one layer; equal seeds make equal images.
func (o *outage) push(t *testing.T, repository string, seed uint64) registrytest.Pushed {
	img, err := registrytest.NewImage(seed, []int64{200e3})
	require.NoError(t, err)
	p, err := o.registry.Push(t.Context(), repository, "v1", img)
	require.NoError(t, err)
	return p
}

// warm pulls an image on both nodes as a user; the user "" has the anonymous token.
func (o *outage) warm(t *testing.T, p registrytest.Pushed, user, password string) {
	for _, d := range o.nodes {
		c := runtime{mirror: d.Addrs()["mirror"], ns: o.registry.Host(), late: new(atomic.Int64)}
		res, _, err := c.do(http.MethodHead, p.Repository+"/manifests/v1")
		require.NoError(t, err)
		if res.StatusCode == http.StatusUnauthorized { // the other node may know that anonymous clients may read it
			require.NoError(t, c.login(res.Header.Get("WWW-Authenticate"), user, password))
		}
		require.NoError(t, c.pull(p.Repository, "v1", "", ""))
	}
}

// remembered waits until the supernode remembers of a manifest what a check expects.
func (o *outage) remembered(t *testing.T, repository, digest string, check func(api.LookupReply) bool) {
	b, err := json.Marshal(api.Lookup{Version: api.Version, Upstream: o.registry.Host(), Repository: repository,
		Kind: task.Manifest, Reference: digest, LastKnown: true, Doubts: true})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		res, err := o.ask.Post("https://"+o.lead+api.PathLookups, "application/json", bytes.NewReader(b))
		if err != nil {
			return false
		}
		defer res.Body.Close()
		var a api.LookupReply
		return json.NewDecoder(res.Body).Decode(&a) == nil && check(a)
	}, time.Minute, 10*time.Millisecond)
}

// manifestOf is the digest of an image's manifest.
func manifestOf(p registrytest.Pushed) string {
	for _, o := range p.Objects {
		if o.Kind == "manifest" {
			return o.Digest
		}
	}
	return ""
}

// pulls reports how a client without credentials pulls an image through a node: by tag and by digest, and each
// response's header about the registry.
func (o *outage) pulls(t *testing.T, d *daemon.Daemon, p registrytest.Pushed) (statuses []int, why, stale string) {
	c := runtime{mirror: d.Addrs()["mirror"], ns: o.registry.Host(), late: new(atomic.Int64)}
	references := []string{"manifests/v1", "manifests/" + manifestOf(p)}
	for _, l := range p.Layers() {
		references = append(references, "blobs/"+l.Digest)
	}
	for _, ref := range references {
		res, body, err := c.do(http.MethodGet, p.Repository+"/"+ref)
		require.NoError(t, err)
		if res.StatusCode == http.StatusOK && strings.Contains(ref, ":") {
			assert.Equal(t, ref[strings.Index(ref, "/")+1:], string(oci.DigestOf(body)))
		}
		if res.StatusCode != http.StatusOK && ref == "manifests/v1" {
			assert.NotContains(t, string(body), manifestOf(p), "a client that may not read it learns no digest")
		}
		if res.StatusCode != http.StatusOK {
			assert.Contains(t, string(body), "access: ", "the error says what the operator can do")
		}
		if ref == "manifests/v1" {
			why, stale = res.Header.Get(registryproxy.HeaderUnverified), res.Header.Get(registryproxy.HeaderStale)
		}
		statuses = append(statuses, res.StatusCode)
	}
	return statuses, why, stale
}

// A registry and its token service go while a cluster is warm, and a node joins that never pulled anything.
func TestARegistryGoesAndANodeJoins(t *testing.T) {
	t.Parallel()
	o := startOutage(t)
	public, private := o.push(t, "public/app", 7), o.push(t, "private/own", 8)
	shared := o.push(t, "private/app", 7) // every blob of it is in public/app, too
	o.warm(t, public, "", "")
	o.warm(t, private, "alice", "a")
	o.warm(t, shared, "alice", "a")
	o.remembered(t, "public/app", manifestOf(public), func(a api.LookupReply) bool { return a.Public })
	o.remembered(t, "private/own", manifestOf(private), func(a api.LookupReply) bool { return a.LastKnown && !a.Public })
	o.front.gone.Store(true)
	o.reload() // it forgets what counts for a minute without the registry, and nothing else

	ok, refused := []int{200, 200, 200}, []int{502, 502, 502}
	cfg := o.settings(t, "verify", "")
	d, _ := start(t, cfg)
	verifies := func(when string) {
		for _, p := range []registrytest.Pushed{private, shared} {
			statuses, _, _ := o.pulls(t, d, p)
			assert.Equal(t, refused, statuses, "%s: %s", p.Repository, when)
		}
	}
	verifies("before the public image came")
	statuses, why, stale := o.pulls(t, d, public)
	assert.Equal(t, ok, statuses)
	assert.Equal(t, "registry unreachable; public before", why)
	assert.NotEmpty(t, stale)
	verifies("a private image has the same blobs")
	require.NoError(t, d.Reload(&cfg))
	statuses, _, _ = o.pulls(t, d, public)
	assert.Equal(t, ok, statuses, "a reload forgets nothing of it")
	verifies("after a reload")

	open := o.settings(t, "cluster", config.AccessCluster)
	all, _ := start(t, open)
	for _, p := range []registrytest.Pushed{private, shared, public} {
		statuses, why, stale := o.pulls(t, all, p)
		assert.Equal(t, ok, statuses, p.Repository)
		assert.NotEmpty(t, why)
		assert.NotEmpty(t, stale)
	}
	verifies("another node gives its clients what the cluster holds")
	c := runtime{mirror: all.Addrs()["mirror"], ns: o.registry.Host()}
	res, _, err := c.do(http.MethodGet, "private/other/blobs/"+private.Layers()[0].Digest)
	require.NoError(t, err)
	assert.Equal(t, 502, res.StatusCode, "nobody remembers that this repository had it")

	require.NoError(t, all.Reload(&open))
	statuses, _, _ = o.pulls(t, all, private)
	assert.Equal(t, ok, statuses, "a reload forgets nothing of it")
	open.Upstreams = []config.Upstream{o.upstream("verify")}
	require.NoError(t, all.Reload(&open))
	statuses, _, _ = o.pulls(t, all, private)
	assert.Equal(t, refused, statuses, "the operator took it back")

	cfg.Mirror.PublicUnreachable = time.Nanosecond
	require.NoError(t, d.Reload(&cfg))
	statuses, _, _ = o.pulls(t, d, public)
	assert.Equal(t, refused, statuses, "the time has run out")
	open.Upstreams, open.Mirror.ClusterTags = []config.Upstream{o.upstream("cluster")}, 0
	open.Mirror.PublicUnreachable = 0
	require.NoError(t, all.Reload(&open))
	statuses, _, _ = o.pulls(t, all, private)
	assert.Equal(t, []int{502, 200, 200}, statuses, "the tag is too old, and its digest is not")
}
