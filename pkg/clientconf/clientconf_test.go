package clientconf

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var mirror = Mirror{Addr: "127.0.0.1:65001", Upstreams: []Upstream{
	{Host: "docker.io"}, {Host: "quay.io"}, {Host: "registry.test:5000", PlainHTTP: true},
}}

// machine makes a root with files in it; a value that begins with "->" is a symbolic link.
func machine(t *testing.T, files map[string]string) Files {
	t.Helper()
	f := Files{Root: t.TempDir()}
	for name, text := range files {
		full := filepath.Join(f.Root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(full), 0o755))
		if to, ok := strings.CutPrefix(text, "->"); ok {
			require.NoError(t, os.Symlink(to, full))
			continue
		}
		require.NoError(t, os.WriteFile(full, []byte(text), 0o640))
	}
	return f
}

// state is everything below a root: files, links, modes.
func state(t *testing.T, f Files) map[string]string {
	t.Helper()
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(f.Root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, f.Root)
		info, err := d.Info()
		if err != nil {
			return err
		}
		out[name] = info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			out[name] += " " + string(b)
			return err
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			out[name] += " " + to
			return err
		}
		return nil
	}))
	return out
}

func configure(t *testing.T, c Client, f Files) Plan {
	t.Helper()
	plan, err := Configure(c, f, mirror, Options{})
	require.NoError(t, err)
	require.NoError(t, plan.Apply(f))
	return plan
}

func read(t *testing.T, f Files, path string) string {
	t.Helper()
	b, err := f.read(path)
	require.NoError(t, err)
	return string(b)
}

const (
	debian16 = `version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd"
`
	default17 = `version = 2
# the registry
[plugins."io.containerd.grpc.v1.cri".registry]
      config_path = "" # none yet
      [plugins."io.containerd.grpc.v1.cri".registry.auths]
      [plugins."io.containerd.grpc.v1.cri".registry.mirrors]
`
	default2 = `version = 3

[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = ''
`
	dotted = "version = 2\n[plugins]\n\"io.containerd.grpc.v1.cri\".registry.config_path = ''\n"
	ours   = "/etc/containerd/certs.d"
)

// oddities are machines as they are found in the wild and worse.
var oddities = map[string]map[string]string{
	"nothing": {},
	"empty files": {containerdConfig: "", dockerConfig: "", buildkitConfig: "", registriesConf: "",
		ours + "/quay.io/hosts.toml": "", dockerCerts + "/quay.io/hosts.toml": ""},
	"blank files": {containerdConfig: " \n\t\n", dockerConfig: "\n \n", buildkitConfig: "\n"},
	"comments alone": {containerdConfig: "# nothing\n# yet", buildkitConfig: "# none",
		ours + "/docker.io/hosts.toml": "# none yet\n\n"},
	"debian": {containerdConfig: debian16, dockerConfig: "{\n  \"log-driver\": \"journald\"\n}\n"},
	"no newline at end": {containerdConfig: strings.TrimSuffix(debian16, "\n"), dockerConfig: `{"debug":true}`,
		buildkitConfig: "debug = true", ours + "/quay.io/hosts.toml": `server = "https://quay.io"`},
	"no newline after key": {containerdConfig: strings.TrimSuffix(default2, "\n"),
		buildkitConfig: "[registry.\"docker.io\"]\n  mirrors = [\"a.test\"]"},
	"CRLF": {containerdConfig: strings.ReplaceAll(default17, "\n", "\r\n"),
		dockerConfig: "{\r\n\t\"registry-mirrors\": [\r\n\t\t\"https://a.test\"\r\n\t]\r\n}\r\n",
		ours + "/docker.io/hosts.toml": "server = 'https://registry-1.docker.io'\r\n\r\n# a neighbour\r\n" +
			"[host.'https://a.test']\r\ncapabilities = ['pull']\r\n"},
	"mixed line ends": {containerdConfig: "version = 2\r\nroot = '/r'\n"},
	"dotted keys":     {containerdConfig: dotted},
	"other mirrors": {dockerConfig: `{"registry-mirrors": ["https://a.test", "https://b.test/"], "debug": false}`,
		buildkitConfig: "[registry.\"docker.io\"]\nmirrors = [\n  \"a.test\", # one\n  'b.test', ]\nhttp = false\n" +
			"[worker.oci]\nenabled = true\n"},
	"an empty list": {dockerConfig: "{\n  \"registry-mirrors\": [],\n  \"debug\": false\n}",
		buildkitConfig: "[registry.'quay.io']\nmirrors = []\n"},
	"a list alone":     {dockerConfig: `{ "registry-mirrors" : [ ] }`},
	"an empty object":  {dockerConfig: "{}\n"},
	"a wide object":    {dockerConfig: "{\n\n}"},
	"as we would":      {dockerConfig: "{}", containerdConfig: "version = 2\n"},
	"a mark":           {dockerConfig: "\ufeff{\"debug\": true}"},
	"a mark and blank": {dockerConfig: "\ufeff \n"},
	"mirrors last":     {dockerConfig: "{\"debug\": true,\n \"registry-mirrors\": [ \"https://a.test\" ] }\n"},
	"hosts of others": {ours + "/docker.io/hosts.toml": "server = \"https://registry-1.docker.io\"\n\n" +
		"[host.\"https://a.test\"]\n  capabilities = [\"pull\"]\n  [host.\"https://a.test\".header]\n    x = \"y\"\n",
		ours + "/registry.test_5000_/hosts.toml": "ca = \"/etc/ca.pem\"\n",
		ours + "/_default/hosts.toml":            "[host.'https://all.test']\n"},
	"certificates": {dockerCerts + "/quay.io/ca.crt": "PEM", dockerCerts + "/quay.io/client.cert": "PEM",
		dockerCerts + "/quay.io/client.key": "PEM", ours + "/quay.io/ca.crt": "PEM"},
	"another config path": {containerdConfig: "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n" +
		"config_path = '/a:/b'\n", "/b/quay.io/hosts.toml": "# b\n"},
	"version 1": {containerdConfig: "disabled_plugins = [\"cri\"]\n#[plugins]\n"},
	"links": {containerdConfig: "->/opt/conf/containerd.toml", "/opt/conf/containerd.toml": default2,
		dockerConfig: "->../../opt/daemon.json", "/opt/daemon.json": "{}", buildkitConfig: "->nowhere.toml",
		ours + "/quay.io": "->/opt/quay", "/opt/quay/x": ""},
	"drop-ins of others": {
		registriesDir + "/000-shortnames.conf": "[aliases]\n\"alpine\" = \"docker.io/library/alpine\"\n",
		registriesConf:                         "unqualified-search-registries = ['docker.io']\n"},
}

func TestRemoveRestores(t *testing.T) {
	for name, files := range oddities {
		for _, c := range Clients() {
			t.Run(name+"/"+string(c), func(t *testing.T) {
				f := machine(t, files)
				before := state(t, f)
				configure(t, c, f)
				assert.NotEqual(t, before, state(t, f))

				plan, err := Remove(c, f, mirror, Options{})
				require.NoError(t, err)
				require.NoError(t, plan.Apply(f))
				after := state(t, f)
				if _, had := before["/etc/docker"]; c == Docker && !had {
					// Docker's file has no place to note which directories were made for it.
					delete(after, "/etc/docker")
					delete(before, "/etc")
					delete(after, "/etc")
				}
				assert.Equal(t, before, after)

				again, err := Remove(c, f, mirror, Options{})
				require.NoError(t, err)
				assert.Empty(t, again.Changes)
			})
		}
	}
}

func TestConfigureTwice(t *testing.T) {
	for name, files := range oddities {
		for _, c := range Clients() {
			t.Run(name+"/"+string(c), func(t *testing.T) {
				f := machine(t, files)
				configure(t, c, f)
				once := state(t, f)
				again := configure(t, c, f)
				assert.Empty(t, again.Changes)
				assert.Empty(t, again.Restart)
				assert.Empty(t, string(again.Diff()))
				assert.Equal(t, once, state(t, f))
			})
		}
	}
}

func TestConfigureKeepsSettings(t *testing.T) {
	for name, files := range oddities {
		t.Run(name, func(t *testing.T) {
			f := machine(t, files)
			configure(t, Containerd, f)
			configure(t, Docker, f)
			configure(t, BuildKit, f)

			var conf map[string]any
			require.NoError(t, toml.Unmarshal([]byte(read(t, f, containerdConfig)), &conf))
			var daemon map[string]any
			require.NoError(t, json.Unmarshal([]byte(strings.TrimPrefix(read(t, f, dockerConfig), string(bom))),
				&daemon))
			assert.Equal(t, "http://127.0.0.1:65001", daemon["registry-mirrors"].([]any)[0], "the mirror comes first")
			if strings.Contains(files[dockerConfig], "debug") {
				assert.Contains(t, daemon, "debug")
			}
			var build struct {
				Registry map[string]struct {
					Mirrors []string
					HTTP    bool
				}
			}
			require.NoError(t, toml.Unmarshal([]byte(read(t, f, buildkitConfig)), &build))
			for _, u := range mirror.Upstreams {
				assert.Equal(t, "127.0.0.1:65001", build.Registry[u.Host].Mirrors[0])
			}
			assert.True(t, build.Registry["127.0.0.1:65001"].HTTP)
			if strings.Contains(files[buildkitConfig], "b.test") {
				assert.Equal(t, []string{"127.0.0.1:65001", "a.test", "b.test"}, build.Registry["docker.io"].Mirrors)
			}
		})
	}
}

func TestRemoveKeepsLaterChanges(t *testing.T) {
	f := machine(t, map[string]string{containerdConfig: strings.TrimSuffix(debian16, "\n"), dockerConfig: "{\n\n}"})
	configure(t, Containerd, f)
	configure(t, Docker, f)
	real, err := f.resolve(containerdConfig)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(real, []byte(read(t, f, containerdConfig)+"[debug]\nlevel = \"debug\"\n"), 0o644))
	real, err = f.resolve(dockerConfig)
	require.NoError(t, err)
	require.NoError(t,
		os.WriteFile(real, []byte(strings.Replace(read(t, f, dockerConfig), "{", `{"debug": true,`, 1)), 0o644))

	for _, c := range []Client{Containerd, Docker} {
		plan, err := Remove(c, f, mirror, Options{})
		require.NoError(t, err)
		require.NoError(t, plan.Apply(f))
	}
	assert.Equal(t, debian16+"[debug]\nlevel = \"debug\"\n", read(t, f, containerdConfig))
	assert.JSONEq(t, `{"debug": true}`, read(t, f, dockerConfig))
	assert.False(t, f.has(dockerConfig+keptSuffix))
}

func TestConfigureReplacesOldAddress(t *testing.T) {
	f := machine(t, map[string]string{containerdConfig: debian16})
	before := state(t, f)
	configure(t, Containerd, f)
	other := Mirror{Addr: "127.0.0.1:7001", Upstreams: mirror.Upstreams[:1], DigestsOnly: true}
	plan, err := Configure(Containerd, f, other, Options{})
	require.NoError(t, err)
	require.NoError(t, plan.Apply(f))
	assert.Empty(t, plan.Restart, "hosts.toml is read at each pull")
	assert.False(t, f.has(ours+"/quay.io"), "the directory was made for the mirror and goes with it")
	hosts := read(t, f, ours+"/docker.io/hosts.toml")
	assert.Contains(t, hosts, `[host."http://127.0.0.1:7001"]`)
	assert.Contains(t, hosts, `capabilities = ["pull"]`)
	assert.NotContains(t, hosts, "65001")
	plan, err = Remove(Containerd, f, other, Options{})
	require.NoError(t, err)
	require.NoError(t, plan.Apply(f))
	assert.Equal(t, before, state(t, f))
}

func TestContainerdVersions(t *testing.T) {
	for name, c := range map[string]struct{ was, want string }{
		"none at all": {"",
			"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"},
		"version 2 without the section": {debian16,
			"[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"},
		"version 2 with an empty path": {default17,
			"# was:       config_path = \"\" # none yet\n      config_path = \"/etc/containerd/certs.d\"\n"},
		"version 3": {default2, "# was:     config_path = ''\n    config_path = \"/etc/containerd/certs.d\"\n"},
		"version 4": {"version = 4\n",
			"[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"},
		"version 1":    {"oom_score = 0\n", "[plugins.cri.registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"},
		"a dotted key": {dotted, "\"io.containerd.grpc.v1.cri\".registry.config_path = \"/etc/containerd/certs.d\"\n"},
		"a section without the key": {"version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\n",
			blockBegin + "\nconfig_path = \"/etc/containerd/certs.d\"\n"},
		"a string over several lines": {
			"version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"\"\"\"\"\"\nx = 1\n",
			"x = 1\n"},
		"a header in an odd spelling": {"version = 2\n[ plugins . 'io.containerd.grpc.v1.cri' . registry ] # here\n",
			"# here\n" + blockBegin},
		"a header that looks like ours ": {"version = 2\nx = " +
			"'''\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n'''\n", "'''\n" + blockBegin},
	} {
		t.Run(name, func(t *testing.T) {
			f := machine(t, map[string]string{containerdConfig: c.was})
			plan := configure(t, Containerd, f)
			text := read(t, f, containerdConfig)
			assert.Contains(t, text, c.want)
			assert.Equal(t, "systemctl restart containerd", plan.Restart)
		})
	}
}

func TestConfigPath(t *testing.T) {
	f := machine(t, map[string]string{
		containerdConfig: "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = " +
			"'/a:/b'\n",
		"/b/quay.io/hosts.toml": "server = 'https://quay.io'\n",
	})
	plan := configure(t, Containerd, f)
	assert.Empty(t, plan.Restart)
	assert.Contains(t, read(t, f, "/a/docker.io/hosts.toml"), mirror.url())
	assert.Contains(t, read(t, f, "/b/quay.io/hosts.toml"), mirror.url())
	assert.False(t, f.has("/a/quay.io"), "containerd looks in the first directory that knows the registry")
	assert.False(t, f.has("/a:/b"))
}

func TestConfigPathOfImport(t *testing.T) {
	drop := func(config, path string) string { return config + "config_path = '" + path + "'\n" }
	const two, three = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\n",
		"version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n"
	for name, c := range map[string]struct {
		main   string
		others map[string]string
		// at is where hosts.toml goes; edited says that the main file has to say so, too.
		at     string
		edited bool
	}{
		"none has one": {"version = 3\nimports = ['conf.d/*.toml']\n",
			map[string]string{"conf.d/a.toml": "version = 3\nroot = '/r'\n"}, ours, true},
		"one that is named": {"version = 2\nimports = ['/x/*.toml']\n",
			map[string]string{"/x/a.toml": drop(two, "/a"), "/x/no.conf": drop(two, "/no")}, "/a", false},
		"the last of two": {drop(three, "/main") + "[x]\n",
			map[string]string{"conf.d/a.toml": drop(three, "/a"), "conf.d/b.toml": drop(two, "/b")}, "/b", false},
		"relative to the main file": {"imports = ['more/a.toml']\nversion = 3\n",
			map[string]string{"more/a.toml": drop(three, "/a")}, "/a", false},
		"the usual one, of containerd 2": {"version = 3\n",
			map[string]string{"conf.d/a.toml": drop(three, "/a")}, "/a", false},
		"the usual one, or containerd 1": {"version = 2\n", map[string]string{"conf.d/a.toml": drop(two, "/a")},
			"/a", true},
		"an empty list of imports": {"version = 3\nimports = []\n",
			map[string]string{"conf.d/a.toml": drop(three, "/a")}, ours, true},
		"the usual one, with a containerd 1 that has its own": {drop(two, "/main"),
			map[string]string{"conf.d/a.toml": drop(two, "/a")}, "/main", false},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{containerdConfig: c.main}
			for name, text := range c.others {
				if !filepath.IsAbs(name) {
					name = filepath.Join("/etc/containerd", name)
				}
				files[name] = text
			}
			f := machine(t, files)
			before := state(t, f)
			plan := configure(t, Containerd, f)
			assert.Contains(t, read(t, f, c.at+"/quay.io/hosts.toml"), mirror.url())
			assert.Equal(t, c.edited, strings.Contains(read(t, f, containerdConfig), "config_path = \""+c.at+"\""))
			assert.Equal(t, c.edited, plan.Restart != "")
			assert.Empty(t, configure(t, Containerd, f).Changes)
			undo, err := Remove(Containerd, f, mirror, Options{})
			require.NoError(t, err)
			require.NoError(t, undo.Apply(f))
			assert.Equal(t, before, state(t, f))
		})
	}
}

func TestRemoveAfterImportChange(t *testing.T) {
	f := machine(t, map[string]string{containerdConfig: "version = 3\n"})
	before := state(t, f)
	configure(t, Containerd, f)
	drop := filepath.Join(f.Root, "/etc/containerd/conf.d/a.toml")
	require.NoError(t, os.MkdirAll(filepath.Dir(drop), 0o755))
	require.NoError(t, os.WriteFile(drop,
		[]byte("version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/a'\n"), 0o600))
	configure(t, Containerd, f)
	assert.True(t, f.has("/a/quay.io/hosts.toml"))
	undo, err := Remove(Containerd, f, mirror, Options{})
	require.NoError(t, err)
	require.NoError(t, undo.Apply(f))
	require.NoError(t, os.RemoveAll(filepath.Dir(drop)))
	assert.Equal(t, before, state(t, f))
}

func TestHostsFileServer(t *testing.T) {
	f := machine(t, map[string]string{dockerCerts + "/quay.io/ca.crt": "PEM",
		dockerCerts + "/quay.io/client.cert": "PEM", dockerCerts + "/quay.io/client.key": "PEM"})
	configure(t, Containerd, f)
	configure(t, Docker, f)
	assert.Equal(t, blockBegin+attrNew+`3
server = "https://registry-1.docker.io"

[host."http://127.0.0.1:65001"]
capabilities = ["pull", "resolve"]
dial_timeout = "200ms"
# <<< darter
`, read(t, f, ours+"/docker.io/hosts.toml"))
	assert.Contains(t, read(t, f, ours+"/registry.test:5000/hosts.toml"), `server = "http://registry.test:5000"`)
	assert.Contains(t, read(t, f, dockerCerts+"/quay.io/hosts.toml"),
		"server = \"https://quay.io\"\nca = [\"/etc/docker/certs.d/quay.io/ca.crt\"]\n"+
			"client = [[\"/etc/docker/certs.d/quay.io/client.cert\", \"/etc/docker/certs.d/quay.io/client.key\"]]\n")
}

func TestHostsFileOrder(t *testing.T) {
	f := machine(t, map[string]string{ours + "/docker.io/hosts.toml": "server = \"https://registry-1.docker.io\"\n\n" +
		"# a neighbour\n[host.\"https://a.test\"]\n"})
	configure(t, Containerd, f)
	assert.Equal(t, "server = \"https://registry-1.docker.io\"\n\n"+blockBegin+`
[host."http://127.0.0.1:65001"]
capabilities = ["pull", "resolve"]
dial_timeout = "200ms"
# <<< darter
# a neighbour
[host."https://a.test"]
`, read(t, f, ours+"/docker.io/hosts.toml"))
}

func TestConfigureErrors(t *testing.T) {
	for name, c := range map[string]struct {
		client Client
		files  map[string]string
		says   string
	}{
		"mirrors inline": {Containerd, map[string]string{containerdConfig: default17 +
			"[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = ['https://a.test']\n"},
			"its own mirrors .* for docker.io.*Move each into"},
		"certificates inline": {Containerd, map[string]string{containerdConfig: "version = 3\n" +
			"[plugins.'io.containerd.cri.v1.images'.registry.configs.'quay.io'.tls]\nca_file = 'x'\n"},
			"has certificates for quay.io"},
		"mirrors in an import": {Containerd, map[string]string{"/etc/containerd/conf.d/m.toml": "version = 3\n" +
			"[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'quay.io']\nendpoint = ['https://a.test']\n"},
			"conf.d/m.toml has its own mirrors"},
		"no TOML in an import": {Containerd, map[string]string{"/etc/containerd/conf.d/m.toml": "version = \n"},
			"m.toml, which .* imports: not TOML"},
		"no TOML":            {Containerd, map[string]string{containerdConfig: "version = \n"}, "not TOML"},
		"a mark before TOML": {Containerd, map[string]string{containerdConfig: "\ufeffversion = 2\n"}, "not TOML"},
		"an inline table": {Containerd, map[string]string{containerdConfig: "version = 2\nplugins = {}\n"},
			"set config_path = .* by hand"},
		"inline hosts": {Containerd,
			map[string]string{ours + "/docker.io/hosts.toml": "host = {'https://a.test' = {}}\n"},
			"add .* by hand"},
		"a block without end": {Containerd, map[string]string{containerdConfig: blockBegin + "\n"},
			"begins in line 1 .* has no end"},
		"not JSON":    {Docker, map[string]string{dockerConfig: "{debug: true}"}, "not JSON"},
		"a JSON list": {Docker, map[string]string{dockerConfig: "[]"}, "not a JSON object"},
		"mirrors as text": {Docker, map[string]string{dockerConfig: `{"registry-mirrors": "https://a.test"}`},
			"not a list of URLs"},
		"mirrors of null": {Docker, map[string]string{dockerConfig: `{"registry-mirrors": null}`},
			"not a list of URLs"},
		"mirrors twice": {Docker,
			map[string]string{dockerConfig: `{"registry-mirrors": [], "registry-mirrors": []}`}, "twice"},
		"two objects": {Docker, map[string]string{dockerConfig: `{}{}`}, "text after"},
		"a flag of dockerd": {Docker, map[string]string{"/etc/systemd/system/docker.service.d/m.conf": "[Service]\n" +
			"ExecStart=/usr/bin/dockerd --registry-mirror=https://a.test\n"}, "--registry-mirror"},
		"the old form": {Podman, map[string]string{registriesConf: "[registries.search]\nregistries = ['docker.io']\n"},
			"has the old form"},
		"a stranger's file": {CRIO, map[string]string{registriesDir + "/" + registriesName: "# mine\n"},
			"another program wrote"},
		"all taken": {Podman, map[string]string{registriesConf: "[[registry]]\nlocation='docker.io'\n[[registry]]\n" +
			"location='quay.io'\n[[registry]]\nprefix='registry.test:5000'\n"}, "would be empty"},
		"inline registries": {BuildKit, map[string]string{buildkitConfig: "registry = {}\n"}, "by hand"},
		"a directory":       {Docker, map[string]string{dockerConfig + "/x": ""}, "is not a regular file"},
		"links in a ring":   {Docker, map[string]string{dockerConfig: "->daemon.json"}, "too many symbolic links"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Configure(c.client, machine(t, c.files), mirror, Options{})
			require.Error(t, err)
			assert.Regexp(t, c.says, err.Error())
		})
	}
}

func TestNotes(t *testing.T) {
	for name, c := range map[string]struct {
		client Client
		files  map[string]string
		says   string
	}{
		"a _default loses its say": {Containerd,
			map[string]string{ours + "/_default/hosts.toml": "[host.'https://all.test']\n"},
			"_default/hosts.toml applies to registries without a directory of their own. These registries get one " +
				"now, so it " +
				"no longer applies to them: docker.io, quay.io, registry.test:5000\\. "},
		"CRI is off": {Containerd, map[string]string{containerdConfig: "disabled_plugins = ['cri']\n"},
			"disables the CRI plugin"},
		"docker's own reach": {Docker, nil, "apply only to Docker Hub"},
		"a registry table": {Podman, map[string]string{registriesDir + "/900-mine.conf": "[[registry]]\n" +
			"location = 'quay.io'\nblocked = true\n"}, "900-mine.conf has its own .* for quay.io"},
		"a builder in a container": {BuildKit, nil, "network=host"},
	} {
		t.Run(name, func(t *testing.T) {
			plan, err := Configure(c.client, machine(t, c.files), mirror, Options{})
			require.NoError(t, err)
			assert.Regexp(t, c.says, strings.Join(plan.Notes, "\n"))
		})
	}
}

func TestPodmanLocation(t *testing.T) {
	f := machine(t, map[string]string{registriesDir + "/900-mine.conf": "[[registry]]\nlocation = 'quay.io'\n"})
	configure(t, Podman, f)
	var got struct {
		Registry []struct {
			Prefix, Location string
			Insecure         bool
			Mirror           []struct {
				Location string
				Insecure bool
			}
		}
	}
	require.NoError(t, toml.Unmarshal([]byte(read(t, f, registriesDir+"/"+registriesName)), &got))
	require.Len(t, got.Registry, 2, "what others say of quay.io stays in force")
	assert.Equal(t, "docker.io", got.Registry[0].Prefix)
	assert.Equal(t, "127.0.0.1:65001/docker.io", got.Registry[0].Mirror[0].Location)
	assert.True(t, got.Registry[0].Mirror[0].Insecure)
	assert.False(t, got.Registry[0].Insecure)
	assert.Equal(t, "127.0.0.1:65001/registry.test_5000", got.Registry[1].Mirror[0].Location)
	assert.True(t, got.Registry[1].Insecure)
}

func TestHandmadeMirror(t *testing.T) {
	f := machine(t, map[string]string{
		ours + "/docker.io/hosts.toml": "server = 'https://registry-1.docker.io'\n[host.'http://127.0.0.1:65001']\n" +
			"capabilities = ['pull']\n",
		dockerConfig:   `{"registry-mirrors": ["http://127.0.0.1:65001/"]}`,
		buildkitConfig: "[registry.'docker.io']\nmirrors = ['127.0.0.1:65001']\n",
	})
	hub := Mirror{Addr: mirror.Addr, Upstreams: mirror.Upstreams[:1]}
	before := state(t, f)
	for _, c := range []Client{Docker, BuildKit} {
		plan, err := Configure(c, f, hub, Options{})
		require.NoError(t, err)
		assert.Empty(t, plan.Changes, c)
	}
	plan, err := Configure(Containerd, f, hub, Options{})
	require.NoError(t, err)
	require.Len(t, plan.Changes, 1, "the config_path alone")
	assert.Equal(t, containerdConfig, plan.Changes[0].Path)
	assert.Equal(t, before, state(t, f), "planning writes nothing")
}

func TestModeAndLinks(t *testing.T) {
	f := machine(t, map[string]string{dockerConfig: "->/opt/daemon.json", "/opt/daemon.json": "{}"})
	configure(t, Docker, f)
	info, err := os.Lstat(filepath.Join(f.Root, dockerConfig))
	require.NoError(t, err)
	assert.NotZero(t, info.Mode()&fs.ModeSymlink)
	info, err = os.Stat(filepath.Join(f.Root, "/opt/daemon.json"))
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o640), info.Mode().Perm())
	left, err := filepath.Glob(filepath.Join(f.Root, "/opt/.*"))
	require.NoError(t, err)
	assert.Empty(t, left, "no half-written file stays")
}

func TestKeptOriginalMode(t *testing.T) {
	f := machine(t, map[string]string{dockerConfig: "{\n\n}"})
	configure(t, Docker, f)
	info, err := os.Stat(filepath.Join(f.Root, dockerConfig+keptSuffix))
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o640), info.Mode().Perm())
}

func TestConcurrentChange(t *testing.T) {
	f := machine(t, map[string]string{dockerConfig: "{}"})
	plan, err := Configure(Docker, f, mirror, Options{})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(f.Root, dockerConfig), []byte(`{"debug":true}`), 0o644))
	assert.ErrorContains(t, plan.Apply(f), "run the command again")
	assert.Equal(t, `{"debug":true}`, read(t, f, dockerConfig))
}

func TestLinksStayInRoot(t *testing.T) {
	outside := t.TempDir()
	f := machine(t, map[string]string{dockerConfig: "->" + outside + "/daemon.json",
		buildkitConfig: "->../../../../../../../../../" + outside + "/b.toml"})
	configure(t, Docker, f)
	configure(t, BuildKit, f)
	left, err := os.ReadDir(outside)
	require.NoError(t, err)
	assert.Empty(t, left)
	assert.FileExists(t, filepath.Join(f.Root, outside, "daemon.json"))
	assert.FileExists(t, filepath.Join(f.Root, outside, "b.toml"))
}

// BuildKit gets what it needs for its own requests to a registry; what the user has set stays.
func TestBuildKitReachesTheRegistry(t *testing.T) {
	m := Mirror{Addr: "127.0.0.1:65001", Upstreams: []Upstream{{Host: "plain.test:5000", PlainHTTP: true},
		{Host: "own.test", CA: "/etc/ca.pem", ClientCert: "/etc/c.pem", ClientKey: "/etc/k.pem"}, {Host: "quay.io"}}}
	type registry struct {
		Mirrors []string
		HTTP    *bool
		CA      []string
		Keypair []struct{ Key, Cert string }
	}
	yes, no := true, false
	for name, c := range map[string]struct {
		file string
		http *bool
	}{
		"no file":         {"", &yes},
		"its table":       {"[registry.\"plain.test:5000\"]\ninsecure = true\n", &yes},
		"its mirror":      {"[registry.\"plain.test:5000\"]\nmirrors = [\"127.0.0.1:65001\"]", &yes},
		"its own setting": {"[registry.\"plain.test:5000\"]\nhttp = false\n[worker]\n", &no},
	} {
		t.Run(name, func(t *testing.T) {
			f := machine(t, map[string]string{buildkitConfig: c.file})
			before := state(t, f)
			plan, err := Configure(BuildKit, f, m, Options{})
			require.NoError(t, err)
			require.NoError(t, plan.Apply(f))
			var build struct{ Registry map[string]registry }
			require.NoError(t, toml.Unmarshal([]byte(read(t, f, buildkitConfig)), &build))
			assert.Equal(t, c.http, build.Registry["plain.test:5000"].HTTP)
			assert.Equal(t, "127.0.0.1:65001", build.Registry["plain.test:5000"].Mirrors[0])
			assert.Equal(t, []string{"/etc/ca.pem"}, build.Registry["own.test"].CA)
			require.Len(t, build.Registry["own.test"].Keypair, 1)
			assert.Equal(t, "/etc/k.pem", build.Registry["own.test"].Keypair[0].Key)
			assert.Equal(t, "/etc/c.pem", build.Registry["own.test"].Keypair[0].Cert)
			assert.Nil(t, build.Registry["quay.io"].HTTP)
			assert.True(t, *build.Registry["127.0.0.1:65001"].HTTP)
			again, err := Configure(BuildKit, f, m, Options{})
			require.NoError(t, err)
			assert.Empty(t, again.Changes)
			gone, err := Remove(BuildKit, f, m, Options{})
			require.NoError(t, err)
			require.NoError(t, gone.Apply(f))
			assert.Equal(t, before, state(t, f))
		})
	}
}

// containerd 2.2 and newer read the directories of hosts.toml files by default, so that nothing needs a restart.
func TestContainerdWithoutConfigPath(t *testing.T) {
	const at22 = "containerd github.com/containerd/containerd/v2 v2.2.0 0123456789abcdef"
	for name, c := range map[string]struct {
		version, file string
		edits         bool
	}{
		"2.2":                    {at22, "version = 3\n", false},
		"2.2, no file":           {at22, "", false},
		"2.10 of a distribution": {"containerd github.com/containerd/containerd 2.10.1~ds1-1 2.10.1~ds1-1", "", false},
		"3.0":                    {"containerd github.com/containerd/containerd/v3 v3.0.0-rc.1", "", false},
		"2.1":                    {"containerd github.com/containerd/containerd/v2 v2.1.4 0123", "version = 3\n", true},
		"1.7":                    {"containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6", "", true},
		"unknown":                {"", "version = 3\n", true},
		"2.2 with an empty path": {at22, default2, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := machine(t, map[string]string{containerdConfig: c.file})
			before := state(t, f)
			o := Options{Version: c.version}
			plan, err := Configure(Containerd, f, mirror, o)
			require.NoError(t, err)
			require.NoError(t, plan.Apply(f))
			assert.Equal(t, c.edits, strings.Contains(read(t, f, containerdConfig), beginPrefix))
			assert.Equal(t, c.edits, plan.Restart != "")
			assert.Contains(t, read(t, f, ours+"/quay.io/hosts.toml"), "127.0.0.1:65001")
			again, err := Configure(Containerd, f, mirror, o)
			require.NoError(t, err)
			assert.Empty(t, again.Changes)
			gone, err := Remove(Containerd, f, mirror, o)
			require.NoError(t, err)
			require.NoError(t, gone.Apply(f))
			assert.Equal(t, before, state(t, f))
		})
	}
	// After an upgrade the part of an older containerd stays, and counts.
	f := machine(t, map[string]string{containerdConfig: debian16})
	configure(t, Containerd, f)
	plan, err := Configure(Containerd, f, mirror, Options{Version: at22})
	require.NoError(t, err)
	assert.Empty(t, plan.Changes)
}

// An init container of Kubernetes may write nothing but hosts.toml files: the rest of the root is read-only there.
func TestHostsOnly(t *testing.T) {
	const site = "server = \"https://quay.io\"\n\n[host.\"https://mirror.corp\"]\ncapabilities = [\"pull\"]\n"
	const other = "/etc/cri/hosts.d"
	const mirrors = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\n" +
		"endpoint = [\"https://mirror.corp\"]\n"
	named := "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"" + other + "\"\n"
	for name, c := range map[string]struct {
		files     map[string]string
		o         Options
		dir, note string
	}{
		"no config.toml is mounted": {nil, Options{}, ours, "Older ones read it only if config_path"},
		"config.toml names no path": {map[string]string{containerdConfig: debian16}, Options{}, ours, "Older ones"},
		"containerd 2.2": {map[string]string{containerdConfig: "version = 3\n"},
			Options{Version: "containerd containerd v2.2.0 0"}, ours, ""},
		"config.toml names another path":  {map[string]string{containerdConfig: named}, Options{}, other, ""},
		"an imported file names it":       {map[string]string{"/etc/containerd/conf.d/a.toml": named}, Options{}, other, ""},
		"the operator names it":           {map[string]string{containerdConfig: named}, Options{HostsDir: "/x/certs.d"}, "/x/certs.d", ""},
		"config.toml has its own mirrors": {map[string]string{containerdConfig: mirrors}, Options{}, ours, "has its own mirrors"},
		"config.toml is broken":           {map[string]string{containerdConfig: "version = ["}, Options{}, ours, "config.toml: "},
	} {
		t.Run(name, func(t *testing.T) {
			f := machine(t, c.files)
			require.NoError(t, os.MkdirAll(filepath.Join(f.Root, c.dir, "quay.io"), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(f.Root, c.dir, "quay.io", hostsFile), []byte(site), 0o640))
			before := state(t, f)
			c.o.HostsOnly = true
			plan, err := Configure(Containerd, f, mirror, c.o)
			require.NoError(t, err)
			for _, change := range plan.Changes {
				assert.Equal(t, c.dir, filepath.Dir(filepath.Dir(change.Path)))
			}
			assert.Len(t, plan.Changes, 3)
			assert.Empty(t, plan.Restart)
			if c.note == "" {
				assert.Empty(t, plan.Notes)
			} else {
				assert.Contains(t, strings.Join(plan.Notes, "\n"), c.note)
			}
			require.NoError(t, plan.Apply(f))
			text := read(t, f, c.dir+"/quay.io/hosts.toml")
			assert.Less(t, strings.Index(text, mirror.Addr), strings.Index(text, "mirror.corp"), "the mirror is first")
			again, err := Configure(Containerd, f, mirror, c.o)
			require.NoError(t, err)
			assert.Empty(t, again.Changes)
			gone, err := Remove(Containerd, f, mirror, c.o)
			require.NoError(t, err)
			assert.Empty(t, gone.Notes)
			require.NoError(t, gone.Apply(f))
			assert.Equal(t, before, state(t, f))
		})
	}
	f := machine(t, nil)
	_, err := Configure(Docker, f, mirror, Options{HostsOnly: true})
	require.ErrorContains(t, err, "hosts-only is about the hosts.toml files of containerd, and docker has none")
	_, err = Configure(Containerd, f, mirror, Options{HostsOnly: true, HostsDir: "certs.d"})
	require.ErrorContains(t, err, "is not an absolute path")
}
