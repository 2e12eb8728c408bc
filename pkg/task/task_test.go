package task_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
)

var (
	hex64  = strings.Repeat("0123456789abcdef", 4)
	hex128 = hex64 + hex64
)

func TestParseID(t *testing.T) {
	for _, good := range []string{"sha256:" + hex64, "sha512:" + hex128, "file:" + hex64} {
		id, err := task.ParseID(good)
		require.NoError(t, err)
		assert.Equal(t, good, string(id))
	}
	for _, bad := range []string{
		"", ":", "sha256", "sha256:", hex64, "sha256:" + hex128, "sha512:" + hex64, "file:" + hex128, "md5:" + hex64,
		"SHA256:" + hex64,
		"sha256:" + strings.ToUpper(hex64), "sha256:" + hex64[1:] + "g", "sha256:" + hex64[1:] + "/",
		"sha256:" + hex64[1:] + "\x00", "sha256:../" + hex64[3:],
		" sha256:" + hex64, "sha256:" + hex64 + " ", "sha256::" + hex64[1:],
	} {
		_, err := task.ParseID(bad)
		assert.ErrorIs(t, err, task.ErrInvalidID, "%q", bad)
	}
	_, err := task.ParseID(strings.Repeat("x", 1<<20))
	assert.Less(t, len(err.Error()), 300, "what comes from outside is told cut")
}

func FuzzParseID(f *testing.F) {
	f.Add("sha256:" + hex64)
	f.Add("file:" + hex64)
	f.Add("sha256:../../" + hex64[6:])
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := task.ParseID(s); err == nil {
			assert.Equal(t, s, string(id))
			assert.Regexp(t, "^(sha256|file):[0-9a-f]{64}$|^sha512:[0-9a-f]{128}$", s)
		}
	})
}

// Each field of a file that differs gives another task. Two fields with the same joined text do not give one task.
func TestFileID(t *testing.T) {
	base := task.File{URL: "https://files.test/a", Validator: `"v1"`, Length: 5, Tag: "t", Application: "app"}
	_, err := task.ParseID(string(base.ID()))
	require.NoError(t, err)
	same := base
	assert.Equal(t, base.ID(), same.ID())
	seen := map[task.ID]string{base.ID(): "the file itself"}
	another := func(what string, f task.File) {
		was, found := seen[f.ID()]
		assert.False(t, found, "%s is the same task as %s", what, was)
		seen[f.ID()] = what
	}
	v := reflect.ValueOf(&base).Elem()
	for i := range v.NumField() {
		changed := base
		field := reflect.ValueOf(&changed).Elem().Field(i)
		switch field.Kind() {
		case reflect.String:
			field.SetString(field.String() + "x")
		case reflect.Int64:
			field.SetInt(field.Int() + 1)
		default:
			t.Fatalf("field %s is of a kind that this test does not change", v.Type().Field(i).Name)
		}
		another(v.Type().Field(i).Name, changed)
	}
	another("nothing", task.File{})
	another("an unknown length", task.File{Length: -1})
	for _, f := range []task.File{
		{URL: "ab"}, {URL: "a", Validator: "b"}, {Validator: "ab"}, {Tag: "ab"}, {Tag: "a", Application: "b"},
		{Application: "ab"},
		{URL: "1:a"}, {URL: "a", Validator: "1:b"}, {URL: "a1:b"},
	} {
		another(fmt.Sprintf("%+v", f), f)
	}
	assert.Equal(t, task.ID("file:ac515f90b5f6334941fd878db4dcefc1825c7e3d77532e27f538fd65a16a09df"),
		task.File{URL: "https://files.test/a", Validator: `"v1"`, Length: 5}.ID(),
		"every release must name a file alike, or nodes of two do not share it")
}

func TestSwarm(t *testing.T) {
	seen := map[[20]byte]bool{}
	for _, id := range []task.ID{task.ID("sha256:" + hex64), task.ID("file:" + hex64), task.ID("sha512:" + hex128)} {
		seen[id.Swarm()] = true
	}
	assert.Len(t, seen, 3, "the same digits under another algorithm are another content")
	assert.Equal(t, "4744ff346783300ce8e770abf8fe424315d3226e", fmt.Sprintf("%x", task.ID("sha256:"+hex64).Swarm()))
}

func TestWholeDigest(t *testing.T) {
	digest, ok := task.ID("sha256:" + hex64).Digest()
	assert.True(t, ok)
	assert.Equal(t, "sha256:"+hex64, digest)
	_, ok = task.ID("file:" + hex64).Digest()
	assert.False(t, ok)

	file := task.Spec{ID: task.ID("file:" + hex64)}
	_, ok = file.WholeDigest()
	assert.False(t, ok)
	file.Digest = "sha512:" + hex128
	digest, ok = file.WholeDigest()
	assert.True(t, ok)
	assert.Equal(t, file.Digest, digest, "what a user asked for is checked")
	digest, ok = task.Spec{ID: task.ID("sha256:" + hex64)}.WholeDigest()
	assert.True(t, ok)
	assert.Equal(t, "sha256:"+hex64, digest)
}

func TestShort(t *testing.T) {
	assert.Equal(t, "sha256:0123456789ab", task.ID("sha256:"+hex64).Short())
	assert.Equal(t, "file:01", task.ID("file:01").Short())
	assert.Equal(t, ":", task.ID("").Short())
}

func TestSpecHidesCredentials(t *testing.T) {
	s := task.Spec{ID: "file:1", Authorization: "hunter2", Header: map[string]secret.String{"X-Token": "hunter2"}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		assert.NotContains(t, fmt.Sprintf(verb, s), "hunter2", verb)
		assert.NotContains(t, fmt.Sprintf(verb, &s), "hunter2", verb)
	}
}

func TestSpecName(t *testing.T) {
	for want, spec := range map[string]task.Spec{
		"quay.io/a/b":               {Upstream: "quay.io", Repository: "a/b"},
		"https://files.test:8443/f": {URL: "https://nina:geheim@files.test:8443/f?X-Amz-Signature=abc#part"},
		"http://files.test/a@b/c":   {URL: "http://files.test/a@b/c"},
		"http://files.test":         {URL: "http://files.test?token=abc"},
		"":                          {},
	} {
		assert.Equal(t, want, spec.Name())
	}
}

// Specs to which an origin may answer otherwise are those of different askers.
func TestSameAsker(t *testing.T) {
	base := task.Spec{ID: task.ID("sha256:" + hex64), Kind: task.Manifest, Upstream: "r.test", Repository: "team/app",
		Authorization: "Bearer a", Tag: "v1", Promised: 5, Header: map[string]secret.String{"A": "b"}}
	assert.True(t, base.SameAsker(base))
	for name, change := range map[string]func(*task.Spec){
		"registry":    func(s *task.Spec) { s.Upstream = "other.test" },
		"repository":  func(s *task.Spec) { s.Repository = "team/other" },
		"URL":         func(s *task.Spec) { s.URL = "https://files.test/a?signature=b" },
		"credentials": func(s *task.Spec) { s.Authorization = "Bearer b" },
		"promise":     func(s *task.Spec) { s.Promised = 6 },
		"headers":     func(s *task.Spec) { s.Header = nil },
		"tag":         func(s *task.Spec) { s.Tag = "v2" },
		"no tag":      func(s *task.Spec) { s.Tag = "" },
	} {
		other := base
		change(&other)
		assert.False(t, base.SameAsker(other), name)
		assert.False(t, other.SameAsker(base), name)
	}
	for name, change := range map[string]func(*task.Spec){
		"Accept": func(s *task.Spec) { s.Accept = []string{"*/*"} },
		"hint":   func(s *task.Spec) { s.Hint = 7 },
	} {
		other := base
		change(&other)
		assert.True(t, base.SameAsker(other), name)
	}
}
