//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/test/lab"
	"github.com/darter-io/darter/test/race"
)

// The registries of the proxy mode's test.
const (
	plain  = "plain.example:5000"
	blind  = "other.example:6443"
	denied = "denied.example:7443"
)

// withProxies makes a cluster with a dfdaemon in proxy mode and a dockerd on two nodes.
func withProxies(t *testing.T) (c *cluster, all []*lab.Node, tunnels []*lab.Proc) {
	c = freshly(t, 3)
	c.serve(t, "plain", ":5000", "127.0.0.1:5011")
	c.serve(t, "other", ":6443", "127.0.0.1:5012", "other.example")
	c.serve(t, "denied", ":7443", "127.0.0.1:5013", "denied.example")
	for _, n := range c.Nodes {
		appendTo(t, n, "/etc/hosts", fmt.Sprintf("%s plain.example\n", c.Registry.Addr))
		c.trust(t, n, "other", "other.example")
		c.trust(t, n, "denied", "denied.example")
	}
	c.secret = filepath.Join(c.Dir, "cluster-secret")
	require.NoError(t, os.WriteFile(c.secret, []byte("the secret of this test's cluster\n"), 0o600))
	supernode, err := c.Nodes[0].Start("supernode", filepath.Join(bin, "supernode"),
		"--cluster-secret-file="+c.secret, "--upstreams=registry.example,"+plain+"=http://"+plain)
	require.NoError(t, err)
	waitReady(t, c.Nodes[0], supernode, "127.0.0.1:65005")

	for _, n := range c.Nodes[1:] {
		all = append(all, n)
		write(t, n, "/etc/darter/dfdaemon.yaml", fmt.Sprintf(`cluster: {secretFile: %s}
supernodes: [%s:65000]
upstreams:
- host: registry.example
- {host: %q, plainHTTP: true}
proxy:
  listen: 127.0.0.1:65007
  ca: /etc/darter/proxy.crt
  caKey: /etc/darter/proxy.key
  tunnel: listed
  tunnelHosts: [other.example]
  tunnelPorts: [6443]
`, c.secret, c.Nodes[0].Addr, plain))
		dfdaemon := filepath.Join(bin, "dfdaemon")
		out, err := run(t, n, dfdaemon, "proxy-ca", "--proxy-ca=/etc/darter/proxy.crt",
			"--proxy-ca-key=/etc/darter/proxy.key", "--proxy-hosts=registry.example", "--upstreams=registry.example")
		require.NoError(t, err)
		// Its output has the command for Docker.
		_, command, ok := strings.Cut(out, "for Docker: ")
		require.True(t, ok, out)
		_, err = run(t, n, "sh", "-c", command)
		require.NoError(t, err)
		p, err := n.Start("dfdaemon", dfdaemon, "--config=/etc/darter/dfdaemon.yaml")
		require.NoError(t, err)
		waitReady(t, n, p, "127.0.0.1:65003")
		tunnels = append(tunnels, p)

		write(t, n, "/etc/docker/daemon.json", fmt.Sprintf(
			`{"bridge": "none", "iptables": false, "ip6tables": false, "insecure-registries": [%q]}`+"\n", plain))
		_, err = n.Start("dockerd", "env",
			"HTTP_PROXY=http://127.0.0.1:65007", "HTTPS_PROXY=http://127.0.0.1:65007", "dockerd")
		require.NoError(t, err)
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			_, err := run(t, n, "docker", "version")
			assert.NoError(c, err)
		}, time.Minute, 100*time.Millisecond)
	}
	return c, all, tunnels
}

// TestDockerProxyMode runs real dockerds, whose graph driver has mirrors only for Docker Hub, with the proxy mode: one
// registry behind TLS that the proxy intercepts with the operator's authority, one in plain HTTP, one behind a blind
// tunnel, and one that the proxy refuses.
func TestDockerProxyMode(t *testing.T) {
	race.Skip(t, raced)
	lab.Need(t, lab.Docker)
	c, all, tunnels := withProxies(t)
	at := func(admin string) *cluster { return &cluster{Lab: c.Lab, t: t, admins: admin} }
	docker := func(n *lab.Node, args ...string) (string, error) {
		return run(t, n, "docker", append([]string{"--config", filepath.Join(n.Dir, "docker")}, args...)...)
	}
	login := func(n *lab.Node, registry, password string) error {
		_, err := run(t, n, "sh", "-c",
			fmt.Sprintf("echo %s | docker --config %s login --username alice --password-stdin %s",
				password, filepath.Join(n.Dir, "docker"), registry))
		return err
	}
	pull := func(ref string) {
		t.Helper()
		var g errgroup.Group
		for _, n := range all {
			g.Go(func() error { _, err := docker(n, "pull", "--quiet", ref); return err })
		}
		require.NoError(t, g.Wait())
	}

	t.Run("TLS with the operator's authority", func(t *testing.T) {
		pushed := c.pushSeed(1, "team/app", 4e6, 1e6, 50e3)
		for _, n := range all {
			_, err := docker(n, "pull", "registry.example/team/app:v1")
			require.Error(t, err, "without a login the registry refuses, too")
			require.Error(t, login(n, "registry.example", "underland"))
		}
		assert.Zero(t, c.counts().Object(pushed.Layers()[0].Digest).Bytes)
		for _, n := range all {
			require.NoError(t, login(n, "registry.example", "wonderland"))
		}
		pull("registry.example/team/app:v1")
		requireOneGETEachLayer(t, c, pushed.Layers()[0].Digest, pushed.Layers()[1].Digest, pushed.Layers()[2].Digest)
		for _, n := range all {
			s, err := c.status(&puller{Node: n})
			require.NoError(t, err)
			assert.Positive(t, s.Served)
		}
		// A cached image needs the registry's permission.
		_, err := docker(all[0], "logout", "registry.example")
		require.NoError(t, err)
		_, err = docker(all[0], "rmi", "registry.example/team/app:v1")
		require.NoError(t, err)
		_, err = docker(all[0], "pull", "registry.example/team/app:v1")
		require.Error(t, err, "from the cache")
		require.NoError(t, login(all[0], "registry.example", "wonderland"))
		pull("registry.example/team/app:v1")
		requireOneGETEachLayer(t, c, pushed.Layers()[0].Digest, pushed.Layers()[1].Digest, pushed.Layers()[2].Digest)
	})
	t.Run("a push goes to the registry itself", func(t *testing.T) {
		_, err := docker(all[0], "tag", "registry.example/team/app:v1", "registry.example/mine/app:v2")
		require.NoError(t, err)
		_, err = docker(all[0], "push", "--quiet", "registry.example/mine/app:v2")
		require.NoError(t, err)
		_, err = docker(all[1], "pull", "--quiet", "registry.example/mine/app:v2")
		require.NoError(t, err, "the other node pulls it")
	})
	t.Run("plain HTTP", func(t *testing.T) {
		registry := at("127.0.0.1:5011")
		pushed := registry.pushSeed(2, "org/app", 2e6, 50e3)
		pull(plain + "/org/app:v1")
		requireOneGETEachLayer(t, registry, pushed.Layers()[0].Digest, pushed.Layers()[1].Digest)
	})
	t.Run("a blind tunnel", func(t *testing.T) {
		registry := at("127.0.0.1:5012")
		pushed := registry.pushSeed(3, "org/app", 2e6, 50e3)
		pull(blind + "/org/app:v1")
		for _, l := range pushed.Layers() {
			assert.Equal(t, len(all), registry.counts().Object(l.Digest).GETs,
				"each node downloads it itself, with the registry's own certificate")
		}
	})
	t.Run("a host that is not listed", func(t *testing.T) {
		registry := at("127.0.0.1:5013")
		registry.pushSeed(4, "org/app", 50e3)
		for _, n := range all {
			_, err := docker(n, "pull", denied+"/org/app:v1")
			require.ErrorContains(t, err, "Forbidden")
		}
		assert.Zero(t, registry.counts().Requests, "no request reached it")
	})
	for i, n := range all {
		for _, secret := range []string{"wonderland", "underland"} {
			assert.NotContains(t, tunnels[i].Log(), secret, "%s logs no password", n.Name)
		}
	}
}

func requireOneGETEachLayer(t *testing.T, registry *cluster, digests ...string) {
	t.Helper()
	counts := registry.counts()
	for _, d := range digests {
		assert.Equal(t, 1, counts.Object(d).GETs, "GETs of layer %s", d)
	}
}
