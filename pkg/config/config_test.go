package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/secret"
)

const someSecret = "correct horse battery staple and a spare shoe"

// load fills a fresh T from a file's text, an environment and a command line.
func load[T any](t *testing.T, program, file string, environ, args []string) (*T, *Form, error) {
	t.Helper()
	cfg := new(T)
	form := NewForm(program, cfg)
	fs := pflag.NewFlagSet(program, pflag.ContinueOnError)
	form.Bind(fs)
	if file != "" {
		path := filepath.Join(t.TempDir(), "darter.yaml")
		require.NoError(t, os.WriteFile(path, []byte(file), 0o600))
		args = append(args, "--config", path)
	}
	if err := fs.Parse(args); err != nil {
		return cfg, form, FlagError(fs, err)
	}
	return cfg, form, form.Load(environ)
}

func TestPrecedence(t *testing.T) {
	const file = "cache:\n  quota: 2GiB\n"
	env := []string{"DARTER_CACHE_QUOTA=3GiB", "HOME=/nowhere"}
	args := []string{"--cache-quota=4GiB"}
	for _, row := range []struct {
		name, file string
		env, args  []string
		want       Size
	}{
		{"default", "", nil, nil, 0},
		{"file", file, nil, nil, 2 << 30},
		{"variable over file", file, env, nil, 3 << 30},
		{"flag over all", file, env, args, 4 << 30},
		{"flag over variable", "", env, args, 4 << 30},
		{"an empty key in the file is the default", "cache:\n  quota:\n", nil, nil, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			cfg, _, err := load[Dfdaemon](t, "dfdaemon", row.file, row.env, row.args)
			require.NoError(t, err)
			assert.Equal(t, row.want, cfg.Cache.Quota)
			assert.InDelta(t, 0.95, cfg.Cache.HighWater, 0, "a neighbour keeps its default")
		})
	}
}

func TestFileNamedByVariable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.yaml")
	require.NoError(t, os.WriteFile(path, []byte("node: {name: n7}\n"), 0o600))
	cfg, _, err := load[Dfdaemon](t, "dfdaemon", "", []string{EnvFile + "=" + path}, nil)
	require.NoError(t, err)
	assert.Equal(t, "n7", cfg.Node.Name)
}

func TestListOverride(t *testing.T) {
	cfg, _, err := load[Dfdaemon](t, "dfdaemon", "supernodes: [a:1, b:2]\n", nil,
		[]string{"--supernodes=c:3", "--supernodes", "d:4,[::1]:5"})
	require.NoError(t, err)
	assert.Equal(t, []Address{"c:3", "d:4", "[::1]:5"}, cfg.Supernodes)
	cfg, _, err = load[Dfdaemon](t, "dfdaemon", "supernodes: [a:1, b:2]\n", []string{"DARTER_SUPERNODES=c:3, d:4"}, nil)
	require.NoError(t, err)
	assert.Equal(t, []Address{"c:3", "d:4"}, cfg.Supernodes)
}

func TestUpstreamForms(t *testing.T) {
	cfg, _, err := load[Supernode](t, "supernode", `
upstreams:
  - host: registry.test:5000
    urls: [http://10.0.0.1:5000, http://10.0.0.2:5000]
    plainHTTP: true
    username: robot
    passwordFile: /run/secrets/robot
    proxy: none
  - host: private.test
    dockerConfig: /run/secrets/.dockerconfigjson
    realms: [login.test]
  - quay.io
`, nil, nil)
	require.NoError(t, err)
	assert.Equal(t, []Upstream{
		{Host: "registry.test:5000", URLs: []string{"http://10.0.0.1:5000", "http://10.0.0.2:5000"}, PlainHTTP: true,
			Username: "robot", PasswordFile: "/run/secrets/robot", Proxy: "none"},
		{Host: "private.test", DockerConfig: "/run/secrets/.dockerconfigjson", Realms: []string{"login.test"}},
		{Host: "quay.io"},
	}, cfg.Upstreams)

	cfg, _, err = load[Supernode](t, "supernode", "", nil,
		[]string{"--upstreams=registry.test=http://127.0.0.1:5000,quay.io"})
	require.NoError(t, err)
	assert.Equal(t, []Upstream{{Host: "registry.test", URLs: []string{"http://127.0.0.1:5000"}, PlainHTTP: true},
		{Host: "quay.io"}}, cfg.Upstreams)

	cfg, _, err = load[Supernode](t, "supernode", "", nil, nil)
	require.NoError(t, err)
	assert.Equal(t, "docker.io", cfg.Upstreams[0].Host, "public registries by default")
	assert.False(t, cfg.AllowUnlisted)
}

func TestUnknownNames(t *testing.T) {
	for _, row := range []struct {
		name, file string
		env, args  []string
		want       string
	}{
		{"key", "cache:\n  qouta: 2GiB\n", nil, nil,
			`darter.yaml:2: unknown key "cache.qouta"; did you mean "cache.quota"?`},
		{"key at the wrong place", "quota: 2GiB\n", nil, nil, `unknown key "quota"; did you mean "cache.quota"?`},
		{"section", "casche:\n  quota: 2GiB\n", nil, nil, `unknown key "casche"; did you mean "cache"?`},
		{"key of an upstream", "upstreams:\n- host: a.b\n  plainhttp: true\n", nil, nil,
			`entry 1: line 3: unknown key "plainhttp"; did you mean "plainHTTP"?`},
		{"nothing near", "zebra: 1\n", nil, nil, `unknown key "zebra"`},
		{"variable", "", []string{"DARTER_CACHE_QOUTA=1GiB"}, nil,
			`unknown environment variable DARTER_CACHE_QOUTA; did you mean "DARTER_CACHE_QUOTA"?`},
		{"variable without its section", "", []string{"DARTER_QUOTA=1GiB"}, nil,
			`unknown environment variable DARTER_QUOTA; did you mean "DARTER_CACHE_QUOTA"?`},
		{"flag", "", nil, []string{"--cache-qouta=1GiB"}, "unknown flag: --cache-qouta; did you mean --cache-quota?"},
		{"flag without its section", "", nil, []string{"--quota=1GiB"},
			"unknown flag: --quota; did you mean --cache-quota?"},
		{"flag in the file's spelling", "", nil, []string{"--cache.highWater=1"}, "did you mean --cache-high-water?"},
		{"flag that is nothing", "", nil, []string{"--zebra=1"}, "unknown flag: --zebra"},
		{"level", "log: {level: wran}\n", nil, nil,
			`"wran" is not one of debug, info, warn, error; did you mean "warn"?`},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, _, err := load[Dfdaemon](t, "dfdaemon", row.file, row.env, row.args)
			require.ErrorContains(t, err, row.want)
		})
	}
}

func TestForeignVariables(t *testing.T) {
	_, _, err := load[Dfdaemon](t, "dfdaemon", "", []string{
		"DARTER_SUPERNODE_SERVICE_HOST=10.1.2.3", "DARTER_SUPERNODE_SERVICE_PORT=65000",
		"DARTER_SUPERNODE_SERVICE_PORT_API=65000",
		"DARTER_SUPERNODE_PORT=tcp://10.1.2.3:65000", "DARTER_SUPERNODE_PORT_65000_TCP=tcp://10.1.2.3:65000",
		"DARTER_SUPERNODE_PORT_65000_TCP_ADDR=10.1.2.3",
		"DARTER_ADMIN_LISTEN=127.0.0.1:65005", // the supernode's
		"DARTER_DAEMON=127.0.0.1:65003",       // dfget's
	}, nil)
	require.NoError(t, err)
}

func TestInvalidValues(t *testing.T) {
	for _, row := range []struct{ file, want string }{
		{"cache: {quota: 4 gigs}", `cache.quota (from `},
		{"cache: {quota: 4 gigs}", `"4 gigs" is not a size; write for example 500MB, 64MiB or 4GiB`},
		{"cache: {quota: 100Mbit}", `is not a size`},
		{"cache: {quota: -1}", `is not a size`},
		{"cache: {quota: 1MiB}", "use 64MiB or more"},
		{"cache: {lowWater: 0.99}", "must satisfy 0 < lowWater <= highWater <= 1"},
		{"cache: {lowWater: NaN}", "is not a number"},
		{"files: {allowAddresses: [localhost]}", "is not a network; write for example 10.0.0.0/8"},
		{"cache: {quota: [1GiB]}", "takes one value, not a list"},
		{"cache: 4GiB", "cache is a section and takes keys, not a value"},
		{"node: {name: {a: b}}", "node.name takes a value, not keys of its own"},
		{"limits: {upload: 10kB/s}",
			"limits.upload: 10kB/s is so slow that other nodes give up; write at least 64KiB/s, or unlimited"},
		{"limits: {task: 100}", "limits.task: 100B/s is so slow"},
		{"limits: {origin: 5 apples}", "is not a rate; write for example 100MiB/s, 800Mbit/s or unlimited"},
		{"drainTimeout: 20", `"20" is not a duration; write for example 500ms, 30s`},
		{"drainTimeout: -1s", "drainTimeout: must be 0 or more"},
		{"cluster: {insecure: jein}", `"jein" is neither true nor false`},
		{"peer: {listen: '::1'}", `"::1" has no port; write [::1]:PORT`},
		{"peer: {listen: '127.0.0.1'}", `write 127.0.0.1:PORT`},
		{"peer: {listen: '127.0.0.1:http'}", `port "http" is not a number up to 65535`},
		{"peer: {listen: '127.0.0.1:70000'}", `port "70000" is not a number up to 65535`},
		{"peer: {listen: 'http://127.0.0.1:80'}", `is a URL; write host:port`},
		{"peer: {advertise: '0.0.0.0:65002'}", "not an address that others can connect to"},
		{"api: {listen: '0.0.0.0:65003'}", "use 127.0.0.1:65003"},
		{"supernodes: [':65000']", "does not say where to connect"},
		{"cluster: {secret: short}", "use 32 or more, for example of: openssl rand -hex 32"},
		{"cluster: {secret: '[redacted]'}", "not the secret"},
		{"cluster: {secretFile: /does/not/exist}", "cluster.secretFile: stat /does/not/exist"},
		{"upstreams: [{urls: [x]}]", "host is missing"},
		{"upstreams: [{host: a.b, realms: {c.d: e.f}}]", "line 1: realms takes a value, not keys of its own"},
		{"upstreams: [{host: a.b, urls: [a.b]}]", `"a.b" is not a URL; write for example https://registry.test:5000`},
		{"upstreams: [{host: 'https://a.b'}]", `is not a host name`},
		{"upstreams: [{host: a.b, urls: ['https://u:p@a.b']}]", `use username and passwordFile`},
		{"upstreams: [{host: a.b, firstByte: 5ms}]", `firstByte: 5ms is too short`},
		{"upstreams: [{host: a.b, clientCert: x}]", `clientCert and clientKey belong together`},
		{"upstreams: [{host: a.b, username: x}]", `username and passwordFile belong together`},
		{"upstreams: [{host: a.b, proxy: x}]", `proxy is not a URL`},
		{"upstreams: [a.b, a.b]", "a.b is there twice"},
		{"node: {name: a}\nnode: {name: b}", `:2: key "node" is there twice`},
		{"- a", "made of keys and values"},
		{"a: b\n---\nc: d", "more than one YAML document"},
		{"node: [", "yaml: line 1"},
	} {
		t.Run(row.file, func(t *testing.T) {
			_, _, err := load[Dfdaemon](t, "dfdaemon", row.file, nil, nil)
			require.ErrorContains(t, err, row.want)
			assert.NotContains(t, err.Error(), "u:p@", "no password in an error")
		})
	}
}

func TestInvalidError(t *testing.T) {
	var invalid *InvalidError
	cfg, _, err := load[Dfdaemon](t, "dfdaemon",
		"api: {listen: '127.0.0.1:7'}\ncluster: {secretFile: /does/not/exist}\n", nil, nil)
	require.ErrorAs(t, err, &invalid)
	assert.EqualError(t, err, "cluster.secretFile: stat /does/not/exist: no such file or directory")
	assert.Equal(t, Address("127.0.0.1:7"), cfg.API.Listen, "they were read all the same")
	for _, file := range []string{"api: {listne: x}", "api: {listen: x}", "api: ["} {
		_, _, err = load[Dfdaemon](t, "dfdaemon", file, nil, nil)
		require.Error(t, err)
		assert.False(t, errors.As(err, &invalid), file)
	}
}

func TestListenWithoutSecret(t *testing.T) {
	for _, row := range []struct {
		name, file, peer, want string
	}{
		{"default without a secret", "", "127.0.0.1:65002", ""},
		{"default with a secret", "cluster: {secret: " + someSecret + "}", ":65002", ""},
		{"insecure", "cluster: {insecure: true}", ":65002", ""},
		{"open without a secret", "peer: {listen: ':65002'}", "", "or set cluster.insecure (--cluster-insecure)"},
		{"all of IPv4 without a secret", "peer: {listen: '0.0.0.0:65002'}", "", "can be reached from other machines"},
		{"a name without a secret", "peer: {listen: 'node7:65002'}", "", "can be reached from other machines"},
		{"loopback of IPv6", "peer: {listen: '[::1]:1'}", "[::1]:1", ""},
		{"another loopback address", "peer: {listen: '127.0.0.9:1'}", "127.0.0.9:1", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			cfg, _, err := load[Dfdaemon](t, "dfdaemon", row.file, nil, nil)
			if row.want != "" {
				require.ErrorContains(t, err, row.want)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, Address(row.peer), cfg.Peer.Listen)
		})
	}
}

func TestSecret(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(path, []byte(someSecret+"\n"), 0o600))
	for _, row := range []struct {
		name, file string
		env        []string
		want       string
	}{
		{"digits stay digits", "cluster: {secret: 00112233445566778899001122334455}", nil,
			"00112233445566778899001122334455"},
		{"file of its own", "cluster: {secretFile: " + path + "}", nil, someSecret},
		{"variable", "", []string{"DARTER_CLUSTER_SECRET=" + someSecret}, someSecret},
	} {
		t.Run(row.name, func(t *testing.T) {
			cfg, form, err := load[Supernode](t, "supernode", row.file, row.env, nil)
			require.NoError(t, err)
			assert.Equal(t, row.want, cfg.Cluster.Secret.Reveal())
			var out bytes.Buffer
			require.NoError(t, form.Print(&out))
			assert.NotContains(t, out.String(), row.want)
			assert.Contains(t, out.String(), "secret: '[redacted]'")
		})
	}
	t.Run("a changed file changes a running program", func(t *testing.T) {
		_, before, err := load[Supernode](t, "supernode", "cluster: {secretFile: "+path+"}", nil, nil)
		require.NoError(t, err)
		other := strings.Repeat("0123456789abcdef", 2)
		require.NoError(t, os.WriteFile(path, []byte(other+"\n"+someSecret+"\n"), 0o600))
		var cfg Supernode
		after := before.Again(&cfg)
		require.NoError(t, after.Load(nil))
		assert.Equal(t, other+"\n"+someSecret, cfg.Cluster.Secret.Reveal())
		now, restart := before.Changed(after)
		assert.Equal(t, []Change{{"cluster.secret", "'[redacted]'", "'[redacted]'"}}, now)
		assert.Empty(t, restart)
	})
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	NewForm("supernode", new(Supernode)).Bind(fs)
	assert.Nil(t, fs.Lookup("cluster-secret"), "arguments can be read by every user of the machine")
	assert.NotNil(t, fs.Lookup("cluster-secret-file"))
}

func TestPrintRoundTrip(t *testing.T) {
	cfg, form, err := load[Dfdaemon](t, "dfdaemon", `
node: {name: "yes", zone: 012, dataDir: /tmp/d}
mirror: {listeners: ["127.0.0.1:65011=quay.io"]}
cache: {quota: 1500MB}
supernodes: ["[fd00::1]:65000"]
upstreams: [{host: "r:5000", urls: ["http://r:5000"], plainHTTP: true}]
drainTimeout: 90s
files: {allowAddresses: ["127.0.0.0/8", "::1"]}
`, []string{"DARTER_LOG_LEVEL=debug"}, []string{"--log-format=json"})
	require.NoError(t, err)
	var out bytes.Buffer
	require.NoError(t, form.Print(&out))
	assert.Contains(t, out.String(), "level: debug # from DARTER_LOG_LEVEL")
	assert.Contains(t, out.String(), "format: json # from --log-format")
	assert.Contains(t, out.String(), "drainTimeout: 1m30s # from ")
	assert.Contains(t, out.String(), "quota: 1500MB")

	again, _, err := load[Dfdaemon](t, "dfdaemon", out.String(), nil, nil)
	require.NoError(t, err, out.String())
	assert.Equal(t, cfg, again)
}

// A value may be spelled like the section that follows it.
func TestPrintOfAValueLikeASection(t *testing.T) {
	cfg, form, err := load[Dfget](t, "dfget", "", nil, []string{"-o", "cluster", "--cluster-insecure"})
	require.NoError(t, err)
	var out bytes.Buffer
	require.NoError(t, form.Print(&out))
	again, _, err := load[Dfget](t, "dfget", out.String(), nil, nil)
	require.NoError(t, err, out.String())
	assert.Equal(t, cfg, again)
}

func TestSizesAndRates(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "512": 512, "64KiB": 64 << 10, "1.5GiB": 3 << 29, "500MB": 500e6, "4 GiB": 4 << 30,
		"2tib": 2 << 40,
		"7B":   7, "1kB": 1000,
	} {
		var s, back Size
		require.NoError(t, s.UnmarshalText([]byte(text)), text)
		assert.Equal(t, Size(want), s, text)
		require.NoError(t, back.UnmarshalText([]byte(s.String())), s.String())
		assert.Equal(t, s, back, s.String())
	}
	for text, want := range map[string]int64{
		"0": 0, "unlimited": 0, "100MiB/s": 100 << 20, "100MiB": 100 << 20, "800Mbit/s": 100e6,
		"1Gbit/s": 125e6, "12": 12,
	} {
		var r, back Rate
		require.NoError(t, r.UnmarshalText([]byte(text)), text)
		assert.Equal(t, Rate(want), r, text)
		require.NoError(t, back.UnmarshalText([]byte(r.String())), r.String())
		assert.Equal(t, r, back, r.String())
	}
	for _, text := range []string{"", "GiB", "1.2.3GiB", "1e99TiB", "0.3B", "-5MiB", "5 apples", "99999999TiB",
		"NaN", "Inf"} {
		assert.Error(t, new(Size).UnmarshalText([]byte(text)), text)
		assert.Error(t, new(Rate).UnmarshalText([]byte(text)), text)
	}
}

// A rate in "mb" is refused, because it can mean bits or bytes; a size in it cannot.
func TestAmbiguousRates(t *testing.T) {
	for text, want := range map[string]string{
		"100mb":    `"100mb" can mean bits or bytes; write 100MB/s for bytes or 100Mbit/s for bits`,
		"1.5 Gb/s": `"1.5 Gb/s" can mean bits or bytes; write 1.5GB/s for bytes or 1.5Gbit/s for bits`,
		"800kb/s":  `"800kb/s" can mean bits or bytes; write 800kB/s for bytes or 800kbit/s for bits`,
		"10mib":    `"10mib" can mean bits or bytes; write 10MiB/s for bytes or 10Mbit/s for bits`,
	} {
		assert.EqualError(t, new(Rate).UnmarshalText([]byte(text)), want)
		if !strings.HasSuffix(text, "/s") {
			assert.NoError(t, new(Size).UnmarshalText([]byte(text)), text)
		}
	}
}

func TestDfgetHeaders(t *testing.T) {
	cfg, form, err := load[Dfget](t, "dfget", "", nil, []string{"-H", "Authorization: Bearer a,b", "-H",
		"accept: text/html", "-o", "x", "--limit-rate", "80Mbit/s", "--timeout=2h"})
	require.NoError(t, err)
	assert.Equal(t, []Header{{"Authorization", secret.String("Bearer a,b")}, {"Accept", "text/html"}}, cfg.Header)
	assert.Equal(t, Rate(10e6), cfg.LimitRate)
	assert.Equal(t, 2*time.Hour, cfg.Timeout)
	var out bytes.Buffer
	require.NoError(t, form.Print(&out))
	assert.NotContains(t, out.String(), "Bearer")
	assert.Contains(t, out.String(), "Authorization: [redacted]")

	for args, want := range map[string]string{
		"-H nocolon":             "a header is written",
		"--digest=md5:00":        "write sha256: and 64 lower-case hex digits",
		"--digest=sha256:00":     "write sha256: and 64",
		"--user=me":              "there is a user but no password",
		"--password-file=x":      "there is a password but no user",
		"--retries=-1":           "retries: must be 0 or more",
		"--progress=rainbow":     `"rainbow" is not one of auto, bar, plain, json, none`,
		"--limit-rate=very-fast": `"very-fast" is not a rate`,
		"--daemon=/run/x.sock":   `write host:port`,
		"--config=/does/not/be":  "give another one with --config or DARTER_CONFIG",
	} {
		_, _, err := load[Dfget](t, "dfget", "", nil, strings.Fields(args))
		assert.ErrorContains(t, err, want, args)
	}
}

func TestChanged(t *testing.T) {
	_, before, err := load[Dfdaemon](t, "dfdaemon", "cluster: {secret: "+someSecret+"}", nil, nil)
	require.NoError(t, err)
	_, after, err := load[Dfdaemon](t, "dfdaemon",
		"cluster: {secret: "+someSecret+"2}\nlog: {level: debug}\npeer: {listen: ':7'}", nil, nil)
	require.NoError(t, err)
	now, restart := before.Changed(after)
	assert.Equal(t, []Change{{"cluster.secret", "'[redacted]'", "'[redacted]'"}, {"log.level", "info", "debug"}}, now)
	assert.Equal(t, []Change{{"peer.listen", ":65002", ":7"}}, restart)
	_, after, err = load[Dfdaemon](t, "dfdaemon", "cluster: {secret: "+someSecret+"}\nupstreams: [{host: a.b, proxy: "+
		"'http://u:p1@x'}]\nfiles: {allowHosts: [a.b, c.d], proxy: 'http://u:p1@x'}", nil, nil)
	require.NoError(t, err)
	_, other, err := load[Dfdaemon](t, "dfdaemon", "cluster: {secret: "+someSecret+
		"}\nupstreams: [{host: a.b, proxy: 'http://u:p2@x'}]\nfiles: {allowHosts: [a.b], proxy: 'http://u:p2@x'}", nil,
		nil)
	require.NoError(t, err)
	now, restart = after.Changed(other)
	assert.Empty(t, restart)
	require.Len(t, now, 3, "another password alone is a change, too: %v", now)
	assert.NotContains(t, fmt.Sprint(now), "p1")
	assert.Equal(t, Change{"files.allowHosts", "[a.b, c.d]", "[a.b]"}, now[1])
	now, restart = before.Changed(before)
	assert.Empty(t, now)
	assert.Empty(t, restart)
}

func FuzzFile(f *testing.F) {
	for _, seed := range []string{"", "a: b", "cache: {quota: 1GiB}", "a: &a [*a]", "a: &a {b: *a}", "? [x]\n: y",
		"upstreams: [a=b]", "<<: {a: b}", "\xff"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "darter.yaml")
		require.NoError(t, os.WriteFile(path, b, 0o600))
		_ = NewForm("dfdaemon", new(Dfdaemon)).Load([]string{EnvFile + "=" + path}) // must not panic
	})
}

func TestMirrorListeners(t *testing.T) {
	for _, way := range []struct {
		file string
		args []string
	}{
		{"mirror:\n  listeners:\n  - {listen: \"127.0.0.1:65011\", upstream: quay.io}\n" +
			"  - 127.0.0.1:65012=Registry-1.docker.io\n", nil},
		{"", []string{"--mirror-listeners=127.0.0.1:65011=quay.io,127.0.0.1:65012=docker.io"}},
	} {
		cfg, _, err := load[Dfdaemon](t, "dfdaemon", way.file, nil, way.args)
		require.NoError(t, err)
		require.NoError(t, cfg.Validate())
		assert.Equal(t, []MirrorListener{{"127.0.0.1:65011", "quay.io"}, {"127.0.0.1:65012", "docker.io"}},
			cfg.Mirror.Listeners)
	}
	for _, wrong := range []string{"127.0.0.1:65011", "127.0.0.1:65011=a b", "=quay.io", "nowhere=quay.io"} {
		_, _, err := load[Dfdaemon](t, "dfdaemon", "", nil, []string{"--mirror-listeners=" + wrong})
		require.Error(t, err, wrong)
	}
	for file, want := range map[string]string{
		"mirror: {defaultUpstream: \"http://quay.io\"}\n": "mirror.defaultUpstream",
		"mirror: {rightsLife: 1ms}\n":                     "mirror.rightsLife",
		"mirror: {tagLife: 2h}\n":                         "mirror.tagLife",
		"mirror: {tagStale: -1s}\n":                       "mirror.tagStale",
		"mirror: {rightsUnreachable: maybe}\n":            "refuse, serve-cached",
	} {
		_, _, err := load[Dfdaemon](t, "dfdaemon", file, nil, nil)
		require.ErrorContains(t, err, want)
	}
}

// The default file is read if it exists and no other one is named.
func TestDefaultFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	usual, named := write("usual.yaml", "cache: {quota: 2GiB}"), write("named.yaml", "cache: {quota: 3GiB}")
	for name, c := range map[string]struct {
		file      string
		env, args []string
		want      Size
	}{
		"it exists":     {usual, nil, nil, 2 << 30},
		"it does not":   {filepath.Join(dir, "none", "x.yaml"), nil, nil, 0},
		"a flag":        {usual, nil, []string{"--cache-quota=4GiB"}, 4 << 30},
		"--config":      {usual, nil, []string{"--config", named}, 3 << 30},
		"DARTER_CONFIG": {usual, []string{"DARTER_CONFIG=" + named}, nil, 3 << 30},
		"no file":       {usual, nil, []string{"--config=/dev/null"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := new(Dfdaemon)
			form := NewForm("dfdaemon", cfg)
			form.ReadDefaultFile()
			assert.Equal(t, "/etc/darter/dfdaemon.yaml", form.fallback)
			form.fallback = c.file
			flags := pflag.NewFlagSet("dfdaemon", pflag.ContinueOnError)
			form.Bind(flags)
			assert.Contains(t, flags.Lookup("config").Usage, c.file+", if it exists")
			require.NoError(t, flags.Parse(c.args))
			require.NoError(t, form.Load(c.env))
			assert.Equal(t, c.want, cfg.Cache.Quota)
			again := new(Dfdaemon)
			require.NoError(t, form.Again(again).Load(c.env))
			assert.Equal(t, c.want, again.Cache.Quota)
		})
	}
	form := NewForm("dfdaemon", new(Dfdaemon))
	form.fallback = write("broken.yaml", "cache: {quotas: 2GiB}")
	require.ErrorContains(t, form.Load(nil), "quotas")
}

func TestFirstByteOfAnUpstream(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	require.NoError(t, os.WriteFile(file, []byte("upstreams: [{host: a.test, firstByte: 7m}, {host: b.test}]"), 0o600))
	var cfg Dfdaemon
	require.NoError(t, NewForm("dfdaemon", &cfg).Load([]string{"DARTER_CONFIG=" + file}))
	require.Len(t, cfg.Upstreams, 2)
	assert.Equal(t, 7*time.Minute, cfg.Upstreams[0].FirstByte)
	assert.Zero(t, cfg.Upstreams[1].FirstByte, "the default is the registry client's")
}

// Every duration that a program accepts is at least 0: a negative one would mean something else in each place.
func TestNegativeDurations(t *testing.T) {
	seen := 0
	for program, target := range map[string]func() any{
		"dfdaemon":  func() any { return new(Dfdaemon) },
		"supernode": func() any { return new(Supernode) },
		"dfget":     func() any { return new(Dfget) },
	} {
		for _, s := range settingsOf(target()) {
			if s.element() != durationType {
				continue
			}
			seen++
			for text, ok := range map[string]bool{"-1ns": false, "-1h": false, s.preset: true} {
				err := NewForm(program, target()).Load([]string{s.env() + "=" + text})
				if ok {
					assert.NoError(t, err, s.key)
				} else {
					assert.ErrorContains(t, err, s.key+": must be", "%s of %s", text, program)
				}
			}
		}
	}
	assert.GreaterOrEqual(t, seen, 8)
}

// An address to connect to needs a host and a port, in every program.
func TestAddressesToConnectTo(t *testing.T) {
	gossip := "DARTER_GOSSIP_LISTEN=127.0.0.1:65006"
	for _, row := range []struct {
		program, key string
		target       func() any
		env          []string
	}{
		{"dfdaemon", "supernodes", func() any { return new(Dfdaemon) }, []string{"DARTER_SUPERNODES="}},
		{"supernode", "gossip.join", func() any { return new(Supernode) }, []string{gossip, "DARTER_GOSSIP_JOIN="}},
		{"dfget", "supernodes", func() any { return new(Dfget) }, []string{"DARTER_SUPERNODES="}},
	} {
		t.Run(row.program, func(t *testing.T) {
			load := func(address string) error {
				env := slices.Clone(row.env)
				env[len(env)-1] += "10.0.0.1:65000," + address
				return NewForm(row.program, row.target()).Load(env)
			}
			require.NoError(t, load("10.0.0.2:65000"))
			for _, bad := range []string{":65000", "10.0.0.2:0", "[]:65000"} {
				require.ErrorContains(t, load(bad), row.key+": ", bad)
				require.ErrorContains(t, load(bad), "does not say where to connect", bad)
			}
		})
	}
	require.ErrorContains(t, NewForm("dfget", new(Dfget)).Load([]string{"DARTER_DAEMON=127.0.0.1:0"}),
		"daemon: 127.0.0.1:0 has no port to connect to")
}

// The downward API of Kubernetes gives an IP address of either family, and a template cannot choose the brackets.
func TestAddressInBrackets(t *testing.T) {
	for text, want := range map[string]Address{
		"[10.0.0.7]:65002": "10.0.0.7:65002", "10.0.0.7:65002": "10.0.0.7:65002", "[fd00::7]:65002": "[fd00::7]:65002",
		"[node7]:65002": "node7:65002", "[]:65002": ":65002",
	} {
		cfg, _, err := load[Dfdaemon](t, "dfdaemon", "", []string{"DARTER_SUPERNODES=" + text,
			"DARTER_CLUSTER_INSECURE=true", "DARTER_PEER_LISTEN=" + text}, nil)
		if want.Host() == "" {
			require.ErrorContains(t, err, "does not say where to connect", text)
			continue
		}
		require.NoError(t, err, text)
		assert.Equal(t, []Address{want}, cfg.Supernodes)
		assert.Equal(t, want, cfg.Peer.Listen)
	}
}
