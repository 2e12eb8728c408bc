package registry

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func auth(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

func written(t *testing.T, content string) *dockerConfig {
	d := &dockerConfig{path: filepath.Join(t.TempDir(), "config.json")}
	require.NoError(t, os.WriteFile(d.path, []byte(content), 0o600))
	return d
}

func TestCredentialsAreFoundWhereLoginsKeepThem(t *testing.T) {
	for name, c := range map[string]struct {
		file, registry, repository string
		want                       string // user, empty for none
	}{
		"docker login":            {`{"auths":{"quay.io":{"auth":"` + auth("u", "p") + `"}}}`, "quay.io", "a/b", "u"},
		"user and password apart": {`{"auths":{"quay.io":{"username":"u","password":"p"}}}`, "quay.io", "a/b", "u"},
		"an old Docker's URL": {`{"auths":{"https://quay.io/v1/":{"auth":"` + auth("u", "p") + `"}}}`,
			"quay.io", "a/b", "u"},
		"a URL of Kubernetes": {`{"auths":{"https://registry.test:5000/v2/":{"auth":"` + auth("u", "p") + `"}}}`,
			"registry.test:5000", "a/b", "u"},
		"another port": {`{"auths":{"registry.test:5000":{"auth":"` + auth("u", "p") + `"}}}`,
			"registry.test", "a/b", ""},
		"a host that begins so": {`{"auths":{"quay.io.evil.test":{"auth":"` + auth("u", "p") + `"}}}`,
			"quay.io", "a/b", ""},
		"Docker Hub": {`{"auths":{"https://index.docker.io/v1/":{"auth":"` + auth("u", "p") + `"}}}`, "docker.io",
			"library/a", "u"},
		"Docker Hub, as Podman has it": {`{"auths":{"docker.io":{"auth":"` + auth("u", "p") + `"}}}`, "docker.io",
			"library/a", "u"},
		"the longest path": {
			`{"auths":{"quay.io":{"auth":"` + auth("all", "p") + `"},"quay.io/a":{"auth":"` + auth("a", "p") +
				`"},"quay.io/a/b":{"auth":"` + auth("ab", "p") + `"}}}`, "quay.io", "a/b/c", "ab",
		},
		"a path of another": {`{"auths":{"quay.io/a":{"auth":"` + auth("a", "p") + `"}}}`, "quay.io", "ab/c", ""},
		"a path and the whole": {`{"auths":{"quay.io":{"auth":"` + auth("all", "p") + `"},"quay.io/a":{"auth":"` +
			auth("a", "p") + `"}}}`, "quay.io", "b/c", "all"},
		".dockercfg": {`{"quay.io":{"auth":"` + auth("u", "p") + `","email":"x"}}`, "quay.io", "a/b", "u"},
		"nothing":    {`{}`, "quay.io", "a/b", ""},
		"no entry":   {`{"auths":{}}`, "quay.io", "a/b", ""},
	} {
		got, ok, err := written(t, c.file).get(t.Context(), c.registry, c.repository)
		require.NoError(t, err, name)
		assert.Equal(t, c.want != "", ok, name)
		assert.Equal(t, c.want, got.Username, name)
		if ok {
			assert.Equal(t, "p", got.Password, name)
		}
	}
	got, ok, err := written(t, `{"auths":{"quay.io":{"auth":"`+auth("u",
		"")+`","identitytoken":"it"}}}`).get(t.Context(),
		"quay.io", "a")
	require.NoError(t, err)
	assert.True(t, ok)
	assert.Equal(t, "it", got.IdentityToken)
}

func TestAFileConcernsTheRegistriesItHoldsLoginsFor(t *testing.T) {
	for file, concerned := range map[string]bool{
		`{"auths":{"quay.io":{"auth":"` + auth("u", "p") + `"}}}`:   true,
		`{"auths":{"quay.io/a":{"auth":"` + auth("u", "p") + `"}}}`: true,
		`{"auths":{"quay.iox":{"auth":"` + auth("u", "p") + `"}}}`:  false,
		`{"credHelpers":{"quay.io":"no-helper-that-would-be-run"}}`: true,
		`{"credHelpers":{"ghcr.io":"no-helper-that-would-be-run"}}`: false,
		`{"credsStore":"no-helper-that-would-be-run"}`:              true,
		`{}`: false,
	} {
		d := written(t, file)
		assert.Equal(t, concerned, d.concerns("quay.io"), file)
		c, err := New(Config{Upstreams: map[string]Upstream{"quay.io": {DockerConfig: d.path}}})
		require.NoError(t, err)
		assert.Equal(t, concerned, c.Credentialed("quay.io"), file)
		assert.False(t, c.Credentialed("ghcr.io"))
		require.NoError(t, os.Remove(d.path))
		assert.True(t, d.concerns("quay.io"), "it may hold one")
	}
}

func TestAChangedCredentialsFileIsReadAgain(t *testing.T) {
	d := written(t, `{"auths":{"quay.io":{"auth":"`+auth("u", "first")+`"}}}`)
	got, _, err := d.get(t.Context(), "quay.io", "a")
	require.NoError(t, err)
	assert.Equal(t, "first", got.Password)
	require.NoError(t, os.WriteFile(d.path, []byte(`{"auths":{"quay.io":{"auth":"`+auth("u", "second one")+`"}}}`),
		0o600))
	got, _, err = d.get(t.Context(), "quay.io", "a")
	require.NoError(t, err)
	assert.Equal(t, "second one", got.Password)
	require.NoError(t, os.Remove(d.path))
	_, _, err = d.get(t.Context(), "quay.io", "a")
	require.ErrorIs(t, err, os.ErrNotExist, "a missing file is an error, not an empty one")
}

func TestABadDockerConfigurationIsNotQuoted(t *testing.T) {
	for _, content := range []string{`hunter2`, `["hunter2"]`, `{"auths":"hunter2"}`,
		`{"auths":{"quay.io":{"auth":"hunter2"}}}`, `{"hunter2":5}`, strings.Repeat(" ", dockerConfigMax+1)} {
		d := written(t, content)
		_, _, err := d.get(t.Context(), "quay.io", "a")
		require.ErrorContains(t, err, d.path)
		assert.NotContains(t, err.Error(), "hunter2")
		_, err = New(Config{Upstreams: map[string]Upstream{"quay.io": {DockerConfig: d.path}}})
		require.ErrorContains(t, err, "quay.io")
	}
	_, err := New(Config{Upstreams: map[string]Upstream{"quay.io": {DockerConfig: "/nowhere/config.json"}}})
	require.ErrorContains(t, err, "/nowhere/config.json")
	d := written(t, `{}`)
	_, err = New(Config{Upstreams: map[string]Upstream{"quay.io": {DockerConfig: d.path, Username: "u"}}})
	require.ErrorContains(t, err, "remove one of them")
	_, err = New(Config{Default: &Upstream{DockerConfig: d.path}})
	require.ErrorContains(t, err, "any host would get them")
}

// helper puts a docker-credential-test into the PATH that counts its runs in a file.
func helper(t *testing.T, script string) (runs func() int) {
	dir := t.TempDir()
	log := filepath.Join(dir, "runs")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "docker-credential-test"),
		[]byte("#!/bin/sh\necho $1 >> "+log+"\n"+script), 0o700))
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	return func() int {
		b, _ := os.ReadFile(log)
		return strings.Count(string(b), "get\n")
	}
}

func TestACredentialHelperIsAsked(t *testing.T) {
	runs := helper(t, `read server || true
case "$server" in
quay.io) echo '{"ServerURL":"quay.io","Username":"robot","Secret":"s3"}' ;;
https://index.docker.io/v1/) echo '{"Username":"<token>","Secret":"identity"}' ;;
none.test) echo "credentials not found in native keychain"; exit 1 ;;
long.test) yes hunter2 | head -c 100000 ;;
*) echo hunter2; exit 2 ;;
esac
`)
	d := written(t, `{"credHelpers":{"quay.io":"test","none.test":"test","broken.test":"test","long.test":"test","path.test":"/bin/x","absent.test":"absent"},"credsStore":"test","auths":{"docker.io":{}}}`)
	for range 3 {
		got, ok, err := d.get(t.Context(), "quay.io", "a/b")
		require.NoError(t, err)
		assert.True(t, ok)
		assert.Equal(t, authn.AuthConfig{Username: "robot", Password: "s3"}, got)
		_, ok, err = d.get(t.Context(), "none.test", "a/b")
		require.NoError(t, err)
		assert.False(t, ok)
	}
	assert.Equal(t, 2, runs(), "an answer is used for a while")
	got, ok, err := d.get(t.Context(), "docker.io", "library/a")
	require.NoError(t, err)
	assert.True(t, ok)
	assert.Equal(t, authn.AuthConfig{IdentityToken: "identity"}, got, "the store has what the list of logins lacks")
	for registry, want := range map[string]string{
		"broken.test": "docker-credential-test failed", "long.test": "no JSON", "path.test": "by a path",
		"absent.test": "docker-credential-absent failed",
	} {
		_, _, err := d.get(t.Context(), registry, "a")
		require.ErrorContains(t, err, want)
		assert.NotContains(t, err.Error(), "hunter2")
	}
	d.helpers.running["docker-credential-test quay.io"].until = time.Now()
	before := runs()
	_, _, err = d.get(t.Context(), "quay.io", "a/b")
	require.NoError(t, err)
	assert.Equal(t, before+1, runs(), "and runs again then, because some logins end soon")
}

func FuzzParseDockerConfig(f *testing.F) {
	for _, s := range []string{`{}`, `{"auths":{"quay.io":{"auth":"dTpw"}}}`, `{"quay.io":{"auth":"dTpw"}}`,
		`{"credHelpers":{"a":"b"},"credsStore":"c"}`, `null`, `{"auths":null}`} {
		f.Add([]byte(s), "quay.io")
	}
	f.Fuzz(func(t *testing.T, b []byte, key string) {
		file, err := parseDockerConfig(b)
		if err == nil && file == nil {
			t.Fatal("neither")
		}
		if err != nil {
			assert.NotContains(t, err.Error(), fmt.Sprintf("%q", b))
		}
		if server := serverOf(key); len(server) > len(key) {
			t.Fatalf("%q of %q", server, key)
		}
	})
}
