//go:build linux

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/lab"
	"github.com/darter-io/darter/test/programs"
	"github.com/darter-io/darter/test/race"
)

// TestContainerdConfigShapes asks real containerds of both versions where they look for mirrors, for every shape of
// their configuration: it must be certs.d, or the owner's own path.
func TestContainerdConfigShapes(t *testing.T) {
	race.Skip(t, raced)
	lab.Need(t, lab.Runtime, lab.Containerd2)
	containerd2, err := lab.Containerd2Dir()
	require.NoError(t, err)
	require.NoError(t, programs.Build(t.Context(), bin, "./cmd/dfdaemon"))
	two, err := exec.CommandContext(t.Context(), filepath.Join(containerd2, "containerd"), "config", "default").Output()
	require.NoError(t, err)
	one, err := exec.CommandContext(t.Context(), "containerd", "config", "default").Output()
	require.NoError(t, err)

	const usual = "/etc/containerd/certs.d"
	versions := map[string]string{"containerd 1": "containerd",
		"containerd 2": filepath.Join(containerd2, "containerd")}
	for name, c := range map[string]struct {
		files map[string]string
		path  string
		// only is the containerd that can read the file; empty means both.
		only string
	}{
		"no file":       {nil, usual, ""},
		"an empty file": {map[string]string{"config.toml": ""}, usual, ""},
		"version 1":     {map[string]string{"config.toml": "oom_score = 0\n"}, usual, ""},
		"version 1 with a table": {map[string]string{
			"config.toml": "[plugins.cri]\nsandbox_image = 'pause:1'\n[plugins.cri.registry]\n",
		}, usual, ""},
		"version 2":                  {map[string]string{"config.toml": debianContainerd}, usual, ""},
		"all that containerd 1 sets": {map[string]string{"config.toml": string(one)}, usual, ""},
		"version 3": {map[string]string{
			"config.toml": "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'native'\n",
		}, usual, "containerd 2"},
		"version 4":                  {map[string]string{"config.toml": "version = 4\n"}, usual, "containerd 2"},
		"all that containerd 2 sets": {map[string]string{"config.toml": string(two)}, usual, "containerd 2"},
		"another path": {map[string]string{
			"config.toml": "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = '/a:/b'\n",
		}, "/a:/b", ""},
		"an import with a path": {map[string]string{
			"config.toml": "version = 2\nimports = ['more/a.toml']\n",
			"more/a.toml": "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = '/more'\n",
		}, "/more", ""},
		"an import without one": {map[string]string{
			"config.toml": "version = 2\nimports = ['more/a.toml']\n",
			"more/a.toml": "version = 2\n[metrics]\naddress = ''\n",
		}, usual, ""},
	} {
		for version, containerd := range versions {
			if c.only != "" && c.only != version {
				continue
			}
			t.Run(name+"/"+version, func(t *testing.T) {
				root := t.TempDir()
				etc := filepath.Join(root, "etc", "containerd")
				for file, text := range c.files {
					file = filepath.Join(etc, file)
					require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
					require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
				}
				out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "dfdaemon"), "configure", "containerd",
					"--root="+root, "--upstreams=quay.io").CombinedOutput()
				require.NoError(t, err, "%s", out)
				dump, err := exec.CommandContext(t.Context(), containerd, "-c", filepath.Join(etc, "config.toml"),
					"config", "dump").Output()
				require.NoError(t, err, "%s", dump)
				var read struct {
					Plugins map[string]struct {
						Registry struct {
							ConfigPath string `toml:"config_path"`
						} `toml:"registry"`
					} `toml:"plugins"`
				}
				require.NoError(t, toml.Unmarshal(dump, &read))
				plugin := map[string]string{"containerd 1": "io.containerd.grpc.v1.cri",
					"containerd 2": "io.containerd.cri.v1.images"}[version]
				assert.Equal(t, c.path, read.Plugins[plugin].Registry.ConfigPath)
				dirs := filepath.SplitList(c.path)
				assert.FileExists(t, filepath.Join(root, dirs[0], "quay.io", "hosts.toml"))
			})
		}
	}
}
