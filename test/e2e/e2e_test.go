//go:build linux

// Package e2e pulls real images with real clients, on nodes in network namespaces, through Darter's own programs, and
// kills these during the pulls.
//
// The registry counts the bytes that it sends; a test never trusts a client's count. It needs root and containerd; see
// test/lab for machines without. Start at the tests.
package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/test/lab"
	"github.com/darter-io/darter/test/programs"
	"github.com/darter-io/darter/test/race"
	"github.com/darter-io/darter/test/registrytest"
)

// bin is the directory of this tree's programs.
var bin string

func TestMain(m *testing.M) {
	code := func() int {
		dir, err := os.MkdirTemp("", "darter-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		bin = dir
		return m.Run()
	}()
	os.Exit(code)
}

// The ports of the programs are the same on every node: each node has its own network.
const (
	registryPort = "5000"
	adminPort    = "5001"
)

// clientsOf returns the number of pulling nodes: under the race detector one that is killed and two others.
func clientsOf() int {
	if race.Enabled {
		return 3
	}
	return 5
}

// cluster is a registry, a supernode and pulling nodes, each on its own machine.
type cluster struct {
	*lab.Lab
	t testing.TB

	registry  string // as images name it
	url       string // where it is
	admins    string // where it is scripted; empty is 127.0.0.1:adminPort
	secret    string // file
	supernode *lab.Proc
	machine   *lab.Node // the supernode's
	nodes     []*puller
}

// puller is a node with a containerd and a dfdaemon.
type puller struct {
	*lab.Node
	containerd *lab.Containerd
	dfdaemon   *lab.Proc
	args       []string
}

// raced is the reason why the race detector runs only the tests of [build].
const raced = "the race detector covers Darter's programs in the tests with only containerd"

// build makes a cluster of n pulling nodes. With fallback, containerd uses the registry if its dfdaemon refuses.
func build(t *testing.T, n int, fallback bool) *cluster {
	t.Helper()
	lab.Need(t, lab.Network, lab.Runtime)
	programs.NoRaces(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	require.NoError(t, programs.Build(ctx, bin, "./cmd/supernode", "./cmd/dfdaemon",
		"./test/registrytest/cmd/registry"))

	c := &cluster{Lab: lab.New(t, lab.Config{Nodes: n + 1}), t: t}
	c.registry = c.Registry.Addr + ":" + registryPort
	c.url = "http://" + c.registry
	_, err := c.Registry.Start("registry", filepath.Join(bin, "registry"), "-listen", c.registry, "-admin",
		"127.0.0.1:"+adminPort, "-storage", c.Registry.Addr+":0", "-dir", filepath.Join(c.Registry.Dir, "content"))
	require.NoError(t, err)
	require.NoError(t, c.Registry.WaitFor(ctx, "http://"+c.registry+"/v2/", time.Minute))

	c.secret = filepath.Join(c.Dir, "secret")
	require.NoError(t, os.WriteFile(c.secret, []byte("the secret of this test's cluster\n"), 0o600))
	c.machine = c.Nodes[0]
	c.startSupernode()
	for _, node := range c.Nodes[1:] {
		p := &puller{Node: node}
		p.args = c.dfdaemon(node)
		p.startDfdaemon(t)
		var err error
		p.containerd, err = node.Containerd()
		require.NoError(t, err)
		server := "127.0.0.1:65001"
		if fallback {
			server = c.registry
		}
		require.NoError(t, p.containerd.Mirror(c.registry, server, "http://127.0.0.1:65001"))
		c.nodes = append(c.nodes, p)
	}
	return c
}

// dfdaemon returns the arguments of a node's dfdaemon.
func (c *cluster) dfdaemon(node *lab.Node) []string {
	return programs.Dfdaemon{
		Name: node.Name, DataDir: filepath.Join(node.Dir, "dfdaemon"),
		Mirror: "127.0.0.1:65001", API: "127.0.0.1:65003", Peer: node.Addr + ":65002",
		Supernode: c.machine.Addr + ":65000", SecretFile: c.secret,
		Registry: c.registry, RegistryBase: c.url,
	}.Args()
}

func (c *cluster) startSupernode(more ...string) {
	c.t.Helper()
	s := programs.Supernode{
		Name: "supernode", DataDir: filepath.Join(c.machine.Dir, "supernode"),
		API: c.machine.Addr + ":65000", Peer: c.machine.Addr + ":65004", Admin: "127.0.0.1:65005", SecretFile: c.secret,
		Registry: c.registry, RegistryBase: c.url,
	}
	var err error
	c.supernode, err = c.machine.Start("supernode", filepath.Join(bin, "supernode"), append(s.Args(), more...)...)
	require.NoError(c.t, err)
	waitReady(c.t, c.machine, c.supernode, s.Admin)
}

func (p *puller) startDfdaemon(t testing.TB) {
	t.Helper()
	var err error
	p.dfdaemon, err = p.Start("dfdaemon", filepath.Join(bin, "dfdaemon"), p.args...)
	require.NoError(t, err)
	waitReady(t, p.Node, p.dfdaemon, "127.0.0.1:65003")
}

func waitReady(t testing.TB, n *lab.Node, p *lab.Proc, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, programs.WaitReady(ctx, n.Client(), addr, p.Done()), "%s of %s", p.Name, n.Name)
}

// admin sends a request to the registry's admin API.
func (c *cluster) admin(method, path string, in, out any) {
	c.t.Helper()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		require.NoError(c.t, err)
		body = bytes.NewReader(b)
	}
	at := cmp.Or(c.admins, "127.0.0.1:"+adminPort)
	req, err := http.NewRequestWithContext(c.t.Context(), method, "http://"+at+path, body)
	require.NoError(c.t, err)
	resp, err := c.Registry.Client().Do(req)
	require.NoError(c.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(c.t, err)
	require.Equal(c.t, http.StatusOK, resp.StatusCode, "%s %s: %s", method, path, b)
	if out != nil {
		require.NoError(c.t, json.Unmarshal(b, out))
	}
}

// push pushes a new image to the registry and resets the counts.
func (c *cluster) push(repository string, layers ...int64) registrytest.PushAnswer {
	c.t.Helper()
	return c.pushSeed(7, repository, layers...)
}

// pushSeed is push with a seed; images of different seeds share no blob.
func (c *cluster) pushSeed(seed uint64, repository string, layers ...int64) registrytest.PushAnswer {
	c.t.Helper()
	var pushed registrytest.PushAnswer
	c.admin(http.MethodPost, "/push",
		registrytest.PushOrder{Repository: repository, Tag: "v1", Seed: seed, Layers: layers}, &pushed)
	c.admin(http.MethodPost, "/reset", nil, nil)
	return pushed
}

func (c *cluster) counts() (counts registrytest.Counts) {
	c.t.Helper()
	c.admin(http.MethodGet, "/counts", nil, &counts)
	return counts
}

// ref returns an image's name.
func (c *cluster) ref(p registrytest.PushAnswer) string {
	return c.registry + "/" + p.Repository + ":" + p.Tag
}

// pullLimit bounds a pull on a busy machine; a longer one counts as stuck.
const pullLimit = 2 * time.Minute

// pull pulls on all nodes concurrently and returns their errors.
func (c *cluster) pull(ref string) []error {
	ctx, cancel := context.WithTimeoutCause(c.t.Context(), pullLimit,
		fmt.Errorf("the pull is stuck: no end after %v", pullLimit))
	defer cancel()
	errs := make([]error, len(c.nodes))
	var g errgroup.Group
	for i, n := range c.nodes {
		g.Go(func() error {
			errs[i] = n.containerd.Pull(ctx, ref)
			return nil
		})
	}
	g.Wait()
	return errs
}

// requireUnpacked compares the unpacked files of an image with the pushed ones.
func (c *cluster) requireUnpacked(n *puller, pushed registrytest.PushAnswer) {
	c.t.Helper()
	files, err := n.containerd.Unpacked(c.t.Context(), c.ref(pushed))
	require.NoError(c.t, err)
	got := map[string]string{}
	for name, f := range files {
		if f.Type.IsRegular() && f.Type&fs.ModeSymlink == 0 {
			got[name] = hex.EncodeToString(f.SHA256[:])
		}
	}
	require.NotEmpty(c.t, got)
	require.Equal(c.t, pushed.Files, got, "the files of %s on %s", c.ref(pushed), n.Name)
}

// status returns a dfdaemon's status.
func (c *cluster) status(n *puller) (api.Status, error) {
	return programs.Status(c.t.Context(), n.Client(), "127.0.0.1:65003")
}

// requireOneGETEach requires that the registry received one GET for each blob and manifest of an image.
func requireOneGETEach(t testing.TB, counts registrytest.Counts, pushed registrytest.PushAnswer) {
	t.Helper()
	for _, o := range pushed.Objects {
		assert.Equal(t, 1, counts.Object(o.Digest).GETs, "GETs of %s %s", o.Kind, o.Digest)
	}
}

// The containerds pull concurrently, and the registry sends one copy.
func TestContainerds(t *testing.T) {
	c := build(t, clientsOf(), true)
	pushed := c.push("lib/app", 40e6/race.Divisor, 25e6/race.Divisor, 12e6/race.Divisor, 3e6, 100e3)
	before, err := c.Registry.Traffic()
	require.NoError(t, err)

	for i, err := range c.pull(c.ref(pushed)) {
		require.NoError(t, err, "node %d", i+1)
	}

	counts := c.counts()
	after, err := c.Registry.Traffic()
	require.NoError(t, err)
	image := float64(pushed.Bytes)
	front := float64(counts.Egress) / image
	wire := float64(after.Sent-before.Sent) / image
	t.Logf("image %d bytes; the registry sent %.4f × by its own count, %.4f × by its interface",
		pushed.Bytes, front, wire)
	assert.LessOrEqual(t, front, 1.02, "bytes of bodies over bytes of the image")
	assert.LessOrEqual(t, wire, 1.08, "bytes of the interface over bytes of the image")
	requireOneGETEach(t, counts, pushed)

	for _, n := range c.nodes {
		c.requireUnpacked(n, pushed)
		s, err := c.status(n)
		require.NoError(t, err)
		assert.Zero(t, s.Received.Origin, "%s asked the registry itself", n.Name)
		assert.GreaterOrEqual(t, s.Received.Peers+s.Received.Seeds, pushed.Layers()[0].Size, "%s", n.Name)
		assert.Zero(t, s.BadPieces)
	}

	// Pull an unknown tag: the client gets the registry's own error.
	for i, err := range c.pull(c.registry + "/lib/unknown:v1") {
		require.ErrorContains(t, err, "not found", "node %d", i+1)
	}
}

// received returns the verified bytes that a node received since its dfdaemon started.
func received(s api.Status) int64 { return s.Received.Peers + s.Received.Seeds + s.Received.Origin }

// awaitReceived waits until a node has received some bytes of an image.
func (c *cluster) awaitReceived(n *puller, bytes int64) int64 {
	c.t.Helper()
	deadline := time.Now().Add(pullLimit)
	for {
		s, err := c.status(n)
		require.NoError(c.t, err)
		if got := received(s); got >= bytes {
			return got
		}
		require.True(c.t, time.Now().Before(deadline), "%s received %d bytes, not yet %d", n.Name, received(s), bytes)
		time.Sleep(20 * time.Millisecond)
	}
}

// slowly limits the registry's rate, so that a pull takes some seconds; 0 ends the limit.
func (c *cluster) slowly(bytesPerSecond int64) {
	c.admin(http.MethodPost, fmt.Sprintf("/shape?all=%d&connection=0", bytesPerSecond), nil, nil)
}

// A pull survives the end of its supernode.
func TestSupernodeKilled(t *testing.T) {
	c := build(t, clientsOf(), false)
	pushed := c.push("lib/app", 30e6, 10e6, 1e6)
	c.slowly(2e6) // a busy machine must get to the kill before the pull ends
	var errs []error
	done := make(chan struct{})
	go func() {
		defer close(done)
		errs = c.pull(c.ref(pushed))
	}()
	c.awaitReceived(c.nodes[0], pushed.Bytes/4)
	select {
	case <-done:
		require.FailNow(t, "the pull was over before the supernode was killed")
	default:
	}
	require.NoError(t, c.supernode.Kill())
	killed := time.Now()
	c.slowly(0)
	<-done
	t.Logf("the pulls ended %v after the death", time.Since(killed).Round(time.Millisecond))
	for i, err := range errs {
		if err != nil {
			t.Logf("node %d: %v", i+1, err)
			assert.NotContains(t, err.Error(), "stuck")
		}
	}

	for i, err := range c.pull(c.ref(pushed)) {
		require.NoError(t, err, "the second try of node %d", i+1)
	}
	for _, n := range c.nodes {
		c.requireUnpacked(n, pushed)
	}
	t.Logf("the registry sent %.3f × the image", float64(c.counts().Egress)/float64(pushed.Bytes))
}

// A dfdaemon that is killed during a pull resumes and downloads no piece twice.
func TestDfdaemonKilled(t *testing.T) {
	c := build(t, clientsOf(), false)
	pushed := c.push("lib/app", 30e6, 10e6, 1e6)
	c.slowly(2e6) // a busy machine must get to the kill before the pull ends
	victim := c.nodes[0]
	var errs []error
	done := make(chan struct{})
	go func() {
		defer close(done)
		errs = c.pull(c.ref(pushed))
	}()
	before := c.awaitReceived(victim, pushed.Bytes/3)
	require.NoError(t, victim.dfdaemon.Kill())
	select {
	case <-done:
		require.FailNow(t, "the pull was over before the dfdaemon was killed")
	default:
	}
	c.slowly(0)
	victim.startDfdaemon(t)
	<-done
	for i, err := range errs[1:] {
		require.NoError(t, err, "node %d, which was not killed", i+2)
	}
	if errs[0] != nil {
		t.Logf("the pull of the killed one ended with: %v", errs[0])
		ctx, cancel := context.WithTimeout(t.Context(), pullLimit)
		defer cancel()
		require.NoError(t, victim.containerd.Pull(ctx, c.ref(pushed)), "the second try")
	}
	c.requireUnpacked(victim, pushed)

	s, err := c.status(victim)
	require.NoError(t, err)
	again := received(s)
	t.Logf("of %d bytes, %d were received before the kill and %d after it", pushed.Bytes, before, again)
	// The kill may interrupt the download or write of a few pieces.
	assert.LessOrEqual(t, before+again, pushed.Bytes+1<<20, "nothing is fetched twice")
	counts := c.counts()
	assert.LessOrEqual(t, float64(counts.Egress)/float64(pushed.Bytes), 1.02, "nor by the supernode from the registry")
	requireOneGETEach(t, counts, pushed)
	for _, line := range strings.Split(victim.dfdaemon.Log(), "\n") {
		assert.NotContains(t, line, "the secret of this test's cluster")
	}
}
