package daemon_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/node"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/test/registrytest"
)

// Two hosts use one key file, so the second one cannot detect a copy.
func TestDuplicateHostIDIsReplaced(t *testing.T) {
	for _, word := range []secret.String{"", "a secret that is long enough for a cluster"} {
		t.Run(map[bool]string{true: "without a secret", false: "with a secret"}[word == ""], func(t *testing.T) {
			r := registrytest.Start(t, registrytest.Config{})
			s, _ := lead(t, r, word)
			of := func(name string) config.Dfdaemon {
				cfg := settings(t, r, name)
				cfg.Cluster.Secret, cfg.Supernodes = word, []config.Address{config.Address(s.Addrs()["api"])}
				return cfg
			}
			first, second := of("first"), of("second")
			d, _ := start(t, first)
			soon(t, s.Addrs()["admin"], func(c *assert.CollectT, s api.Status) { assert.Equal(c, 1, s.Hosts) })
			require.NoError(t, os.MkdirAll(second.Node.DataDir, 0o700))
			require.NoError(t, os.Link(filepath.Join(first.Node.DataDir, "host-key"),
				filepath.Join(second.Node.DataDir, "host-key")))

			clone, err := daemon.New(second, log(t, "clone"))
			require.NoError(t, err)
			require.Equal(t, d.Status().Host.ID, clone.Status().Host.ID)
			err = clone.Run(context.Background())
			require.ErrorIs(t, err, node.ErrRenamed)
			require.ErrorContains(t, err, d.Addrs()["peer"], "where the other is")

			// cli.Main does the same.
			clone, _ = start(t, second)
			assert.NotEqual(t, d.Status().Host.ID, clone.Status().Host.ID)
			soon(t, s.Addrs()["admin"], func(c *assert.CollectT, status api.Status) {
				assert.Equal(c, 2, status.Hosts)
				if assert.Len(c, status.RefusedHosts, 1, "the owner reports the refusal") {
					assert.Equal(c, d.Status().Host.ID, status.RefusedHosts[0].ID)
					assert.Contains(c, status.RefusedHosts[0].Reason, d.Addrs()["peer"])
				}
			})
		})
	}
}

func TestWritableSecretsAreRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(cfg *config.Dfdaemon, path string)
	}{
		{"dockerConfig", func(cfg *config.Dfdaemon, path string) {
			cfg.Upstreams = []config.Upstream{{Host: "quay.io", DockerConfig: path}}
		}},
		{"clientKey", func(cfg *config.Dfdaemon, path string) {
			cfg.Upstreams = []config.Upstream{{Host: "quay.io", ClientKey: path}}
		}},
		{"passwordFile", func(cfg *config.Dfdaemon, path string) {
			cfg.Upstreams = []config.Upstream{{Host: "quay.io", Username: "u", PasswordFile: path}}
		}},
		{"proxy.caKey", func(cfg *config.Dfdaemon, path string) { cfg.Proxy.CAKey = path }},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "secret")
			require.NoError(t, os.WriteFile(path, []byte("{}"), 0o600))
			require.NoError(t, os.Chmod(path, 0o666))
			cfg := settings(t, nil, "node")
			c.set(&cfg, path)
			_, err := daemon.New(cfg, log(t, "node"))
			assert.ErrorContains(t, err, "chmod 600 "+path)
			assert.ErrorContains(t, err, c.name)
		})
	}
	t.Run("one that all may read is a warning in the status", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "config.json")
		require.NoError(t, os.WriteFile(path, []byte("{}"), 0o600))
		require.NoError(t, os.Chmod(path, 0o644))
		cfg := settings(t, nil, "node")
		cfg.Upstreams = []config.Upstream{{Host: "quay.io", DockerConfig: path}}
		d, err := daemon.New(cfg, log(t, "node"))
		require.NoError(t, err)
		defer d.Close()
		require.Len(t, d.Status().Warnings, 1)
		assert.Contains(t, d.Status().Warnings[0], "chmod 600 "+path)
	})
}
