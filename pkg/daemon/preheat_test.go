package daemon_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/preheat/jobs"
	"github.com/darter-io/darter/pkg/supernode"
	"github.com/darter-io/darter/test/programs"
	"github.com/darter-io/darter/test/registrytest"
)

// fleet is a cluster with two supernodes.
type fleet struct {
	r     *registrytest.Registry
	tops  []*supernode.Supernode
	dirs  []string
	stops []func()
	nodes []*daemon.Daemon
	ends  []func()
}

func newFleet(t *testing.T, r *registrytest.Registry, nodes int, adjust ...func(i int, c *config.Dfdaemon)) *fleet {
	addrs, err := programs.FreeAddrs(2)
	require.NoError(t, err)
	f := &fleet{r: r}
	for i := range 2 {
		cfg := supernodeSettings(t, config.Upstream{Host: r.Host(), URLs: []string{r.URL()}, PlainHTTP: true},
			wordOfTheCluster, "DARTER_GOSSIP_LISTEN="+addrs[i], "DARTER_GOSSIP_JOIN="+addrs[1-i])
		s, stop := startSupernode(t, cfg)
		f.tops, f.stops, f.dirs = append(f.tops, s), append(f.stops, stop), append(f.dirs, cfg.Node.DataDir)
	}
	for i := range nodes {
		cfg := settings(t, r, fmt.Sprintf("n%d", i))
		cfg.Cluster.Secret = wordOfTheCluster
		for _, s := range f.tops {
			cfg.Supernodes = append(cfg.Supernodes, config.Address(s.Addrs()["api"]))
		}
		for _, a := range adjust {
			a(i, &cfg)
		}
		d, end := start(t, cfg)
		f.nodes, f.ends = append(f.nodes, d), append(f.ends, end)
	}
	for _, s := range f.tops {
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			at := status(t, s.Addrs()["admin"])
			assert.Equal(c, nodes, at.Hosts)
			assert.Len(c, at.Owners, 1)
		}, time.Minute, 20*time.Millisecond, "the supernodes know all hosts and each other")
	}
	return f
}

// admin calls the operators' API of a supernode.
func (f *fleet) admin(i int) apiclient.Client { return apiclient.Local(f.tops[i].Addrs()["admin"]) }

// begin begins a job at the first supernode.
func (f *fleet) begin(t *testing.T, p registrytest.Pushed, change ...func(*jobs.Request)) preheat.Job {
	q := jobs.Request{Spec: preheat.Spec{Kind: preheat.Image, Reference: f.r.Host() + "/" + p.Repository + ":v1"}}
	for _, c := range change {
		c(&q)
	}
	job, err := f.admin(0).CreatePreheat(t.Context(), q)
	require.NoError(t, err)
	return job
}

// gate waits until the gate of a job at a supernode is as expected.
func (f *fleet) gate(t *testing.T, i int, job string, check func(*assert.CollectT, preheat.Gate)) (last preheat.Gate) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		g, err := f.admin(i).PreheatGate(t.Context(), job)
		require.NoError(c, err)
		last = g
		check(c, g)
	}, 2*time.Minute, 50*time.Millisecond)
	return last
}

func ended(c *assert.CollectT, g preheat.Gate) {
	require.Equal(c, preheat.Success, g.State, "%+v", g)
	require.True(c, g.Ready)
}

func TestPreheatReachesEveryNode(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 3_000_000, 1_000_000, 20_000)
	f := newFleet(t, r, 4, func(i int, c *config.Dfdaemon) { c.Node.Zone = []string{"a", "b"}[i%2] })
	job := f.begin(t, p)
	for i := range f.tops {
		g := f.gate(t, i, job.ID, ended)
		assert.Equal(t, 4, g.Has)
		assert.Equal(t, 4, g.Of)
		assert.Len(t, g.Objects, len(p.Objects))
		assert.Equal(t, 4*p.Bytes(), g.Bytes)
		assert.Len(t, g.Zones, 2)
	}
	for _, d := range f.nodes {
		for _, o := range p.Objects {
			assert.True(t, holds(t, d.Addrs()["api"], o.Digest), "%s lacks %s", d.Addrs()["api"], o.Digest)
		}
		assert.Zero(t, status(t, d.Addrs()["api"]).Received.Origin)
	}
	sent := r.Counts().Egress
	t.Logf("%d nodes got %d bytes each, and the registry sent %d", len(f.nodes), p.Bytes(), sent)
	assert.GreaterOrEqual(t, sent, p.Bytes())
	assert.Less(t, sent, p.Bytes()+8_000, "a second copy of the manifest alone, if two supernodes own it")
	for _, o := range p.Layers() {
		assert.Equal(t, 1, r.Counts().Object(o.Digest).GETs)
	}
	number := fmt.Sprint(job.Number)
	named, err := f.admin(1).Preheat(t.Context(), number)
	require.NoError(t, err)
	assert.Equal(t, job.ID, named.ID, "callers that want an integer find it by its number")
	assert.Len(t, named.Tasks, 4*len(p.Objects))
	for _, x := range named.Tasks {
		assert.Equal(t, preheat.Success, x.State)
		assert.Equal(t, x.Total, x.Bytes)
	}
	// The gate tells what is true now: one node deletes a layer.
	purge(t, f.nodes[0].Addrs()["api"], p.Layers()[0].Digest)
	f.gate(t, 1, job.ID, func(c *assert.CollectT, g preheat.Gate) {
		require.False(c, g.Ready)
		require.Equal(c, 0, g.Has, "the order reached all of them")
		require.Equal(c, preheat.OutcomeFailed, g.Outcome)
	})
	reply, err := f.admin(0).Do(t.Context(), apiclient.Call{Method: http.MethodGet,
		Path: "/api/v1/preheat/jobs/" + job.ID + "/gate", Limit: 1 << 20})
	require.NoError(t, err)
	assert.Equal(t, http.StatusTooEarly, reply.Code)
}

// TestPreheatSurvivesItsSupernode: the supernode that took a job dies while layers come.
func TestPreheatSurvivesItsSupernode(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 4_000_000, 2_000_000)
	f := newFleet(t, r, 3)
	r.Shape(1e6, 0)
	job := f.begin(t, p)
	f.gate(t, 1, job.ID, func(c *assert.CollectT, g preheat.Gate) { require.Positive(c, g.Bytes, "%+v", g) })
	f.stops[0]()
	r.Shape(0, 0)
	g := f.gate(t, 1, job.ID, ended)
	assert.Equal(t, 3, g.Has)
	for _, d := range f.nodes {
		for _, o := range p.Objects {
			assert.True(t, holds(t, d.Addrs()["api"], o.Digest))
		}
	}
	t.Logf("the registry sent %.3f copies", float64(r.Counts().Egress)/float64(p.Bytes()))
	assert.Less(t, float64(r.Counts().Egress), 1.7*float64(p.Bytes()))
}

func TestPreheatWavesAndLabels(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 300_000)
	f := newFleet(t, r, 4, func(i int, c *config.Dfdaemon) {
		if i < 3 {
			c.Node.Labels = []string{"disk=ssd"}
		}
		if i == 0 {
			c.Cache.Quota = 100_000 // the layer has no room
		}
	})
	job := f.begin(t, p, func(q *jobs.Request) {
		q.Scope.Labels = map[string]string{"disk": "ssd"}
		q.Min = 50 // the node that fails may be one of the two of the first wave
		q.Waves = []float64{34, 100}
	})
	g := f.gate(t, 1, job.ID, func(c *assert.CollectT, g preheat.Gate) {
		require.Equal(c, 2, g.Has, "%+v", g)
		require.True(c, g.Ready)
		require.Equal(c, preheat.Failed, g.Hosts[0].State, "%+v", g.Hosts)
	})
	assert.Equal(t, 3, g.Of, "the node without the label is not in scope")
	assert.Equal(t, "n0", g.Hosts[0].Host)
	assert.Contains(t, g.Hosts[0].Why, "no space", "who has not, and why")
	assert.False(t, holds(t, f.nodes[3].Addrs()["api"], p.Layers()[0].Digest))
}

// TestPreheatKeepsCredentialsSecret: nodes fetch a private image with the job's password. No disk gets it, and the
// mirror refuses the image to a client without a grant of the registry.
func TestPreheatKeepsCredentialsSecret(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Basic,
		Users: map[string]registrytest.User{"ci": {Password: "hunter2hunter2", Pull: []string{"*"}}}})
	p := image(t, r, 400_000)
	f := newFleet(t, r, 2)
	refused := f.begin(t, p)
	f.gate(t, 0, refused.ID, func(c *assert.CollectT, g preheat.Gate) {
		require.Equal(c, preheat.Failed, g.State, "%+v", g)
		require.Contains(c, g.Error, "401", "the registry's refusal ends the job at once")
	})
	header := "Basic " + base64.StdEncoding.EncodeToString([]byte("ci:hunter2hunter2"))
	job := f.begin(t, p, func(q *jobs.Request) { q.Headers = map[string]string{"Authorization": header} })
	f.gate(t, 1, job.ID, ended)
	_, secret, _ := strings.Cut(header, " ")
	for _, dir := range f.dirs {
		b, err := os.ReadFile(filepath.Join(dir, "preheats.json"))
		require.NoError(t, err)
		assert.NotContains(t, string(b), secret)
		assert.Contains(t, string(b), job.ID)
	}
	shown, err := f.admin(0).Preheat(t.Context(), job.ID)
	require.NoError(t, err)
	assert.NotContains(t, fmt.Sprintf("%+v", shown), secret)
	for _, o := range p.Layers() {
		url := fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", f.nodes[0].Addrs()["mirror"], p.Repository, o.Digest, r.Host())
		assert.ErrorContains(t, get(t.Context(), url, o.Digest, o.MediaType, nil), "401", "a client without credentials")
	}
	alone, _ := lead(t, r, "")
	_, err = apiclient.Local(alone.Addrs()["admin"]).CreatePreheat(t.Context(), jobs.Request{
		Spec:    preheat.Spec{Kind: preheat.Image, Reference: r.Host() + "/" + p.Repository + ":v1"},
		Headers: map[string]string{"Authorization": header}})
	assert.ErrorContains(t, err, "needs a cluster secret", "credentials never travel in plain text")
}

// TestPreheatPausesAndEnds: an operator pauses and cancels; a webhook hears of the end.
func TestPreheatPausesAndEnds(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 2_000_000)
	f := newFleet(t, r, 2)
	r.Shape(1e5, 0)
	job := f.begin(t, p)
	paused, err := f.admin(1).PausePreheat(t.Context(), job.ID, true)
	require.NoError(t, err)
	assert.Equal(t, preheat.Paused, paused.State)
	f.gate(t, 0, job.ID, func(c *assert.CollectT, g preheat.Gate) { require.Equal(c, preheat.Paused, g.State) })
	_, err = f.admin(0).PausePreheat(t.Context(), job.ID, false)
	require.NoError(t, err)
	f.gate(t, 1, job.ID, func(c *assert.CollectT, g preheat.Gate) {
		require.Contains(c, []preheat.State{preheat.Running, preheat.Pending}, g.State)
	})
	_, err = f.admin(1).CancelPreheat(t.Context(), job.ID)
	require.NoError(t, err)
	for i := range f.tops {
		f.gate(t, i, job.ID, func(c *assert.CollectT, g preheat.Gate) { require.Equal(c, preheat.Cancelled, g.State) })
	}
	list, err := f.admin(1).Preheats(t.Context())
	require.NoError(t, err)
	assert.True(t, slices.ContainsFunc(list, func(j preheat.Job) bool { return j.ID == job.ID }))
	_, err = f.admin(1).CancelPreheat(t.Context(), "none")
	assert.ErrorContains(t, err, "404")
	res, err := http.Get("http://" + f.tops[1].Addrs()["admin"] + "/metrics")
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	assert.Contains(t, string(b), `darter_preheat_jobs{state="cancelled"} 1`)
}

// TestPreheatOfSeeds: with one-seed, each object comes to the supernode that owns it, from which a node pulls later.
func TestPreheatOfSeeds(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 900_000, 700_000, 500_000, 300_000)
	f := newFleet(t, r, 1)
	job := f.begin(t, p, func(q *jobs.Request) { q.Scope.Kind = preheat.OneSeed })
	for i := range f.tops {
		g := f.gate(t, i, job.ID, ended)
		assert.Equal(t, 2, g.Of, "the supernodes, and no node")
	}
	for _, o := range p.Layers() {
		assert.Equal(t, 1, r.Counts().Object(o.Digest).GETs, "one copy in the cluster")
		assert.False(t, holds(t, f.nodes[0].Addrs()["api"], o.Digest))
	}
	require.NoError(t, pull(t.Context(), f.nodes[0].Addrs()["mirror"], r, p))
	for _, o := range p.Layers() {
		assert.Equal(t, 1, r.Counts().Object(o.Digest).GETs, "the node pulls it from the supernode that has it")
	}

	all := f.begin(t, p, func(q *jobs.Request) { q.Scope.Kind = preheat.AllSeeds })
	f.gate(t, 1, all.ID, ended)
	for _, o := range p.Layers() {
		for _, s := range f.tops {
			assert.True(t, holds(t, s.Addrs()["admin"], o.Digest))
		}
		assert.Equal(t, 1, r.Counts().Object(o.Digest).GETs, "the other supernode gets it from the node that has it")
	}
}
