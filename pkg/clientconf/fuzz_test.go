package clientconf

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// fuzzEdit holds one edit of one format to what planner.file and planner.restore rely on:
// no text makes it panic; what add writes can be read by the client; adding twice is adding
// once; and remove takes out what add put in, or planner.file keeps the original.
func fuzzEdit(t *testing.T, e edit, old []byte, valid func([]byte) error, says func([]byte) bool) {
	t.Helper()
	if _, err := e.remove(old); err != nil {
		return // planner.file gives up before it adds
	}
	next, err := e.add(old)
	if err != nil {
		return
	}
	require.NoError(t, valid(next), "the client cannot read what add wrote: %q", next)
	require.True(t, says(next), "the mirror is not named: %q", next)
	again, err := e.add(next)
	require.NoError(t, err, "adding twice to %q", next)
	require.Equal(t, string(next), string(again), "adding twice is not adding once")
	back, err := e.remove(next)
	require.NoError(t, err)
	once, err := e.remove(back)
	require.NoError(t, err)
	require.Equal(t, string(back), string(once), "removing twice is not removing once")
}

func validTOML(text []byte) error { return toml.Unmarshal(text, &map[string]any{}) }

// oddTexts are the seeds of a format: the oddities of that file, and worse.
func oddTexts(f *testing.F, file string, more ...string) {
	for _, files := range oddities {
		for name, text := range files {
			if strings.HasSuffix(name, file) {
				f.Add(text)
			}
		}
	}
	for _, text := range more {
		f.Add(text)
	}
}

func FuzzDockerDaemonJSON(f *testing.F) {
	e := daemonJSON{mirror.url()}
	oddTexts(
		f,
		dockerConfig,
		`{"registry-mirrors": [null, "https://a.test"]}`,
		`{"registry-mirrors": [null, "http://127.0.0.1:65001"]}`,
		`{"registry-mirrors": ["http://127.0.0.1:65001/", null]}`,
		`{"registry-mirrors": ["a\"b", "\u0068ttp://127.0.0.1:65001"]}`,
		`{"registry\u002dmirrors": ["https://a.test"]}`,
		`{"a": {"registry-mirrors": []}, "registry-mirrors": ["", "x"]}`,
		`{"REGISTRY-MIRRORS": ["https://a.test"]}`,
		`{"registry-mirrors": {}}`,
		`[]`,
		`{}{}`,
		"{\"a\": 1e999}",
		`{"a":"\ud800"}`,
	)
	f.Fuzz(func(t *testing.T, old string) {
		valid := func(text []byte) error {
			var v json.RawMessage // a number may be too large for a float64
			return json.Unmarshal([]byte(strings.TrimPrefix(string(text), string(bom))), &v)
		}
		says := func(text []byte) bool {
			s, err := scan(text)
			if err != nil {
				return false
			}
			for _, m := range s.mirrors {
				if strings.TrimSuffix(m, "/") == e.url {
					return true
				}
			}
			return false
		}
		fuzzEdit(t, e, []byte(old), valid, says)
	})
}

func FuzzContainerdConfigTOML(f *testing.F) {
	oddTexts(
		f,
		containerdConfig,
		"plugins = {}",
		"[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = '''\nx'''",
		"a = \"\"\"\n[plugins]\n\"\"\"",
		"[[plugins]]\n",
		"version = 2 # >>> darter:\n",
		"x = [ # [\n]\n",
		"'a=b' = 1\n",
		"\"\\\"=\" = 2",
	)
	f.Fuzz(func(t *testing.T, old string) {
		for _, fresh := range []int{-1, 0} {
			e := configPath{
				fresh:   fresh,
				section: []string{"plugins", "io.containerd.grpc.v1.cri", "registry"},
				value:   containerdCerts,
			}
			fuzzEdit(t, e, []byte(old), validTOML, func(text []byte) bool {
				doc, err := parseTOML(text)
				return err == nil && doc.get(append(e.section, "config_path")...) == containerdCerts
			})
		}
	})
}

func FuzzHostsTOML(f *testing.F) {
	oddTexts(
		f,
		hostsFile,
		"server = 'x'\n#\n# c\n[host]\n",
		"[host.'http://127.0.0.1:65001']\n",
		"host = 1",
		"[[host]]",
		"host.'http://127.0.0.1:65001'.ca = 'x'\n",
	)
	f.Fuzz(func(t *testing.T, old string) {
		e := hostsEdit{fresh: -1, mirror: mirror, server: []string{`server = "https://quay.io"`}}
		fuzzEdit(t, e, []byte(old), validTOML, func(text []byte) bool {
			doc, err := parseTOML(text)
			return err == nil && (doc.get("host", mirror.url()) != nil || doc.get("server") == mirror.url())
		})
	})
}

func FuzzBuildkitTOML(f *testing.F) {
	oddTexts(
		f,
		buildkitConfig,
		"registry = 1",
		"[registry.\"docker.io\"]\nmirrors = [1, 'a']\n",
		"[registry]\n'docker.io' = {mirrors = []}\n",
		"registry.'docker.io'.mirrors = ['''x''']",
	)
	f.Fuzz(func(t *testing.T, old string) {
		fuzzEdit(t, buildkitEdit{fresh: -1, mirror: mirror}, []byte(old), validTOML, func(text []byte) bool {
			doc, err := parseTOML(text)
			return err == nil && doc.get("registry", mirror.Addr) != nil
		})
	})
}

func FuzzRegistriesYAML(f *testing.F) {
	oddTexts(
		f,
		"registries.yaml",
		"mirrors:\n  docker.io:\n    endpoint:\n      - https://a.test\nconfigs:\n  a.test:\n    tls: {}\n",
		"mirrors:\n  docker.io:\n    endpoint:\n      - http://127.0.0.1:65001/\n",
		"mirrors: {}\n",
		"mirrors: &a\n  docker.io: *a\n",
		"mirrors:\n  docker.io: &x {endpoint: [a]}\n  quay.io: *x\n",
		"mirrors:\n  ? - a\n  : b\n",
		"mirrors:\n: b\nconfigs:\n  ? \n",
		"mirrors:\r\n  docker.io:\r\n    endpoint:\r\n    - a\r\n",
		"\xef\xbb\xbfmirrors:\n\n---\nmirrors:\n",
		"- mirrors",
		"\t",
	)
	f.Fuzz(func(t *testing.T, old string) {
		valid := func(text []byte) error { return yaml.Unmarshal(text, new(registriesTree)) }
		fuzzEdit(t, registriesYAML{fresh: -1, mirror: mirror}, []byte(old), valid, func(text []byte) bool {
			var is registriesTree
			if yaml.Unmarshal(text, &is) != nil {
				return false
			}
			for _, u := range mirror.Upstreams {
				if !slices.ContainsFunc(is.Mirrors[u.Host].Endpoint, func(s string) bool {
					return strings.TrimSuffix(s, "/") == mirror.url()
				}) {
					return false
				}
			}
			return true
		})
	})
}

// FuzzRegistriesConf reads the other files in the directory of Podman's drop-in.
func FuzzRegistriesConf(f *testing.F) {
	oddTexts(
		f,
		registriesConf,
		"[[registry]]\nprefix = 1\n",
		"registry = [1]",
		"registry = 'x'",
		"[[registry]]\nlocation = 'quay.io'\n",
		"[registries.search]\n",
	)
	f.Fuzz(func(t *testing.T, other string) {
		files := machine(t, map[string]string{registriesConf: strings.TrimPrefix(other, "->")})
		plan, err := Configure(Podman, files, mirror, Options{})
		if err != nil {
			return
		}
		for _, c := range plan.Changes {
			require.NoError(t, validTOML(c.New))
			require.NotEqual(t, registriesConf, c.Path, "a file of others was changed")
		}
	})
}
