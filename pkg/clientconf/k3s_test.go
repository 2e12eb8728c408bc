package clientconf

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// k3s asks the mirror first, and all else in its file stays as it was.
func TestK3s(t *testing.T) {
	m := Mirror{Addr: "127.0.0.1:65001", Upstreams: []Upstream{{Host: "docker.io"},
		{Host: "plain.test:5000", PlainHTTP: true}, {Host: "own.test", CA: "/etc/ca.pem"}}}
	for name, c := range map[string]struct {
		file  string
		first []string // the endpoints of docker.io
	}{
		"no file":       {"", nil},
		"comments":      {"# nothing yet", nil},
		"other mirrors": {"mirrors:\n    \"*\":\n    ghcr.io:\n        endpoint: [\"https://a.test\"]\n", nil},
		"its endpoints": {"mirrors:\n  docker.io:\n    endpoint:\n    # near\n    - https://a.test # one\n" +
			"    - \"https://b.test\"\n    rewrite:\n      \"^x\": y\n", []string{"https://a.test", "https://b.test"}},
		"configs first":  {"configs:\n  \"a.test\":\n    auth:\n      username: u\nmirrors:\n", nil},
		"no mirrors":     {"---\nconfigs:\n  own.test:\n    tls:\n      insecure_skip_verify: true", nil},
		"the mirror":     {"mirrors:\n  docker.io:\n    endpoint: [\"http://127.0.0.1:65001/\"]\n", nil},
		"windows' lines": {"mirrors:\r\n  ghcr.io:\r\n    endpoint:\r\n    - https://a.test\r\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"/etc/systemd/system/k3s-agent.service": ""}
			if c.file != "" {
				files["/etc/rancher/k3s/registries.yaml"] = c.file
			}
			f := machine(t, files)
			before := state(t, f)
			plan, err := Configure(K3s, f, m, Options{})
			require.NoError(t, err)
			assert.Equal(t, "systemctl restart k3s-agent", plan.Restart)
			require.NoError(t, plan.Apply(f))
			text := read(t, f, "/etc/rancher/k3s/registries.yaml")
			var is registriesTree
			require.NoError(t, yaml.Unmarshal([]byte(text), &is), text)
			ours := "http://127.0.0.1:65001"
			if name != "the mirror" {
				assert.Equal(t, append([]string{ours}, c.first...), is.Mirrors["docker.io"].Endpoint, text)
			}
			assert.Equal(t, []string{ours, "http://plain.test:5000"}, is.Mirrors["plain.test:5000"].Endpoint)
			assert.Equal(t, []string{ours}, is.Mirrors["own.test"].Endpoint)
			tls := map[string]any{"ca_file": "/etc/ca.pem"}
			if name == "no mirrors" {
				tls = map[string]any{"insecure_skip_verify": true}
			}
			assert.Equal(t, map[string]any{"tls": tls}, is.Configs["own.test"])
			again, err := Configure(K3s, f, m, Options{})
			require.NoError(t, err)
			assert.Empty(t, again.Changes)
			gone, err := Remove(K3s, f, m, Options{})
			require.NoError(t, err)
			require.NoError(t, gone.Apply(f))
			assert.Equal(t, before, state(t, f))
		})
	}
	for name, file := range map[string]string{
		"flow":           "mirrors: {docker.io: {endpoint: [https://a.test]}}\n",
		"flow at top":    "{mirrors: {}}\n",
		"flow endpoints": "mirrors:\n  docker.io:\n    endpoint: [https://a.test]\n",
		"empty flow":     "mirrors: {}\n",
		"no YAML":        "mirrors: [\n",
		"a list":         "- mirrors\n",
		"two documents":  "mirrors:\n---\nmirrors:\n  a.test:\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := machine(t, map[string]string{"/etc/rancher/rke2/registries.yaml": file})
			_, err := Configure(RKE2, f, m, Options{})
			if name == "two documents" && err == nil {
				return // the client reads the first one, too
			}
			require.ErrorContains(t, err, "/etc/rancher/rke2/registries.yaml: ")
			require.ErrorContains(t, err, "under mirrors for each registry by hand")
		})
	}
}
