//go:build linux

package e2e

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/test/lab"
	"github.com/darter-io/darter/test/programs"
	"github.com/darter-io/darter/test/race"
	"github.com/darter-io/darter/test/registrytest"
	"github.com/darter-io/darter/test/silence"
)

// The tools' mirror is the relay that measures silence; it forwards to the dfdaemon's own mirror.
const (
	toolMirror = "127.0.0.1:65009"
	ownMirror  = "127.0.0.1:65001"
)

// alice may pull private images; wrong is her name with a wrong password.
var (
	alice = lab.Login{User: "alice", Password: "wonderland"}
	wrong = lab.Login{User: "alice", Password: "underland"}
)

// user is a tool on a node with a dfdaemon.
type user struct {
	*puller
	kind    lab.Kind
	tool    lab.Tool
	version string
	silence *silence.Relay
}

// tools is a cluster with a different tool on every node.
type tools struct {
	*cluster
	users   []*user
	process *lab.Proc // the registry
	// pushed is the image of the current row.
	pushed *registrytest.PushAnswer
	// dockerLimit bounds dockerd's own retries in it, if they may take longer than pullLimit.
	dockerLimit time.Duration
	// bystanderImage is the bystander's image.
	bystanderImage *registrytest.PushAnswer
}

// needTools skips the test if a tool is missing.
func needTools(t *testing.T) {
	race.Skip(t, raced)
	lab.Need(t, lab.Network, lab.Runtime, lab.Docker, lab.Containers, lab.Containerd2)
}

// buildForTools builds the programs once for all labs: one may run them while the next one begins.
var buildForTools = sync.OnceValue(func() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	return programs.Build(ctx, bin, "./cmd/supernode", "./cmd/dfdaemon", "./test/registrytest/cmd/registry")
})

// withTools makes a cluster with one node for each kind of tool. Its registry is docker.io for all of them. With
// fallback, the tools that can use the registry after the mirror's refusal are configured to.
func withTools(t *testing.T, fallback bool) *tools {
	t.Helper()
	needTools(t)
	require.NoError(t, buildForTools())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	c := &tools{cluster: &cluster{Lab: lab.New(t, lab.Config{Nodes: len(lab.Kinds()) + 1}), t: t}}
	c.registry, c.url = "docker.io", "http://"+c.Registry.Addr+":"+registryPort
	c.startRegistry()
	c.secret = filepath.Join(c.Dir, "secret")
	require.NoError(t, os.WriteFile(c.secret, []byte("the secret of this test's cluster\n"), 0o600))
	c.machine = c.Lab.Nodes[0]
	c.startSupernode()
	server := ""
	if fallback {
		server = c.Registry.Addr + ":" + registryPort
	}
	var g errgroup.Group
	for i, kind := range lab.Kinds() {
		u := &user{puller: &puller{Node: c.Lab.Nodes[i+1]}, kind: kind}
		u.args = c.dfdaemon(u.Node)
		u.startDfdaemon(t)
		u.silence = &silence.Relay{Dial: func(ctx context.Context) (net.Conn, error) {
			return u.Dial(ctx, "tcp", ownMirror)
		}}
		l, err := u.Listen(toolMirror)
		require.NoError(t, err)
		t.Cleanup(func() { l.Close() })
		go u.silence.Serve(l)
		c.users = append(c.users, u)
		g.Go(func() (err error) {
			if u.tool, err = u.Tool(kind, toolMirror, server); err == nil {
				u.version, err = u.tool.Version(ctx)
			}
			return err
		})
	}
	require.NoError(t, g.Wait())
	for _, u := range c.users {
		t.Logf("%s has %s %s", u.Name, u.kind, u.version)
	}
	return c
}

// startRegistry starts the registry, with the images of an earlier start.
func (c *tools) startRegistry() {
	c.t.Helper()
	users := filepath.Join(c.Dir, "users.json")
	b, err := json.Marshal(map[string]registrytest.User{
		alice.User: {Password: alice.Password, Pull: []string{"*"}}, "": {Pull: []string{"lib/*"}},
	})
	require.NoError(c.t, err)
	require.NoError(c.t, os.WriteFile(users, b, 0o600))
	c.process, err = c.Registry.Start("registry", filepath.Join(bin, "registry"),
		"-listen", c.Registry.Addr+":"+registryPort, "-admin", "127.0.0.1:"+adminPort, "-storage",
		c.Registry.Addr+":5002",
		"-dir", filepath.Join(c.Registry.Dir, "content"), "-auth", "bearer", "-users", users)
	require.NoError(c.t, err)
	require.NoError(c.t, c.Registry.WaitFor(c.t.Context(), c.url+"/token", time.Minute))
}

// outcome is the result of a pull.
type outcome struct {
	err     error
	took    time.Duration
	silence time.Duration
}

// pulls pulls an image with some tools concurrently.
func (c *tools) pulls(users []*user, ref string, who lab.Login) map[lab.Kind]outcome {
	out := make([]outcome, len(users))
	var g errgroup.Group
	for i, u := range users {
		u.silence.Reset()
		limit := pullLimit
		if u.kind == lab.KindDocker {
			limit = max(limit, c.dockerLimit)
		}
		g.Go(func() error {
			ctx, cancel := context.WithTimeoutCause(c.t.Context(), limit,
				fmt.Errorf("the pull is stuck: no end after %v", limit))
			defer cancel()
			began := time.Now()
			err := u.tool.Pull(ctx, ref, who)
			out[i] = outcome{err, time.Since(began), u.silence.Longest()}
			return nil
		})
	}
	g.Wait()
	ended := map[lab.Kind]outcome{}
	for i, u := range users {
		ended[u.kind] = out[i]
	}
	return ended
}

// requireFiles requires that a tool unpacked the pushed files.
func (c *tools) requireFiles(u *user, pushed registrytest.PushAnswer) {
	c.t.Helper()
	files, err := u.tool.Files(c.t.Context(), c.ref(pushed))
	require.NoError(c.t, err, "%s", u.kind)
	got := map[string]string{}
	for name, f := range files {
		if f.Type.IsRegular() && f.Type&fs.ModeSymlink == 0 {
			got[name] = hex.EncodeToString(f.SHA256[:])
		}
	}
	require.Equal(c.t, pushed.Files, got, "the files of %s with %s", c.ref(pushed), u.kind)
}

// only returns the users of some kinds.
func (c *tools) only(keep func(lab.Kind) bool) (out []*user) {
	for _, u := range c.users {
		if keep(u.kind) {
			out = append(out, u)
		}
	}
	return out
}

// ofContainers reports whether a tool uses containers/image, which sends a mirror no credentials.
func ofContainers(k lab.Kind) bool {
	return k == lab.KindPodman || k == lab.KindBuildah || k == lab.KindSkopeo
}

func ownLogin(k lab.Kind) bool { return !ofContainers(k) }

// Every tool pulls through its mirror, and the registry sends one copy.
func TestTools(t *testing.T) {
	c := withTools(t, true)

	public := c.push("lib/app", 20e6, 8e6, 1e6, 50e3)
	for kind, o := range c.pulls(c.users, c.ref(public), lab.Login{}) {
		require.NoError(t, o.err, "%s", kind)
	}
	counts := c.counts()
	ratio := float64(counts.Egress) / float64(public.Bytes)
	t.Logf("public, %d tools: the registry sent %.4f × the image", len(c.users), ratio)
	assert.LessOrEqual(t, ratio, 1.02)
	requireOneGETEach(t, counts, public)
	for _, u := range c.users {
		c.requireFiles(u, public)
	}

	private := c.push("team/app", 10e6, 4e6, 50e3)
	refused := func(when string) {
		t.Helper()
		for _, who := range []lab.Login{wrong, {}} {
			for kind, o := range c.pulls(c.users, c.ref(private), who) {
				require.Error(t, o.err, "%s, %s with login %q", when, kind, who)
				assert.NotContains(t, o.err.Error(), "stuck")
			}
		}
	}
	refused("before the first pull")
	assert.Zero(t, c.counts().Object(private.Layers()[0].Digest).Bytes, "no client gets bytes")
	for kind, o := range c.pulls(c.only(ownLogin), c.ref(private), alice) {
		require.NoError(t, o.err, "%s", kind)
	}
	counts = c.counts()
	for _, l := range private.Layers() {
		assert.Equal(t, 1, counts.Object(l.Digest).GETs, "GETs of %s", l.Digest)
		assert.LessOrEqual(t, float64(counts.Object(l.Digest).Bytes), 1.02*float64(l.Size))
	}
	t.Logf("private, %d tools: the registry sent %.4f × the image", len(c.only(ownLogin)),
		float64(counts.Egress)/float64(private.Bytes))
	for _, u := range c.only(ownLogin) {
		c.requireFiles(u, private)
	}
	// After the mirror's refusal, the others go to the registry and log in there.
	for kind, o := range c.pulls(c.only(ofContainers), c.ref(private), alice) {
		require.NoError(t, o.err, "%s", kind)
	}
	for _, u := range c.only(ofContainers) {
		c.requireFiles(u, private)
	}

	cached := c.push("team/other", 3e6, 50e3)
	private = cached
	for kind, o := range c.pulls(c.only(ownLogin), c.ref(private), alice) {
		require.NoError(t, o.err, "%s", kind)
	}
	refused("from the cache")
	for _, u := range c.users {
		for _, secret := range []string{alice.Password, wrong.Password, "the secret of this test's cluster"} {
			assert.NotContains(t, u.dfdaemon.Log(), secret)
		}
	}
}
