package oci_test

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/task"
)

func TestEveryNameOfARegistryHasOneSpelling(t *testing.T) {
	for in, want := range map[string]string{
		"quay.io":              "quay.io",
		"Quay.IO":              "quay.io",
		"registry.test:5000":   "registry.test:5000",
		"localhost":            "localhost",
		"127.0.0.1:5000":       "127.0.0.1:5000",
		"[::1]:5000":           "[::1]:5000",
		"[::1]":                "[::1]",
		"docker.io":            "docker.io",
		"index.docker.io":      "docker.io",
		"registry-1.docker.io": "docker.io",
		"docker.io:443":        "docker.io",
		"docker.io:5000":       "docker.io:5000",
	} {
		got, err := oci.ParseHost(in)
		require.NoError(t, err, in)
		assert.Equal(t, want, got)
	}
	for _, in := range []string{
		"", "a b", "quay.io/", "http://quay.io", "user@quay.io", "quay.io:0", "quay.io:65536", "quay.io:", ":5000",
		"-quay.io", "quay..io", "[::1", "[:::]", "quay.io\n", "quay.io?x", strings.Repeat("a", 400), "../etc", "..",
	} {
		_, err := oci.ParseHost(in)
		assert.ErrorIs(t, err, oci.ErrInvalidHost, "%q", in)
	}
}

func TestARegistryMayBeNamedByItsURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://quay.io":         "quay.io",
		"https://index.docker.io": "docker.io",
		"http://reg.test:5000/":   "reg.test:5000",
		"quay.io":                 "quay.io",
	} {
		got, err := oci.ParseHostURL(in)
		require.NoError(t, err, in)
		assert.Equal(t, want, got)
	}
	for _, in := range []string{"", "ftp://quay.io", "https://me:pw@quay.io", "https://quay.io/v2/x",
		"https://", "://x"} {
		_, err := oci.ParseHostURL(in)
		assert.ErrorIs(t, err, oci.ErrInvalidHost, "%q", in)
	}
}

func TestDockerHubIsReachedAtItsEndpoint(t *testing.T) {
	assert.Equal(t, "registry-1.docker.io", oci.Endpoint("docker.io"))
	assert.Equal(t, "quay.io", oci.Endpoint("quay.io"))
	name, err := oci.ParseRepository("docker.io", "alpine")
	require.NoError(t, err)
	assert.Equal(t, "library/alpine", name)
	name, err = oci.ParseRepository("quay.io", "alpine")
	require.NoError(t, err)
	assert.Equal(t, "alpine", name)
}

func TestARepositoryNameIsWhatTheSpecificationAllows(t *testing.T) {
	for _, name := range []string{"a", "a/b/c", "a.b/c__d/e---f", "my.project/app", "0/1"} {
		got, err := oci.ParseRepository("quay.io", name)
		require.NoError(t, err, name)
		assert.Equal(t, name, got)
	}
	for _, name := range []string{"", "/", "a/", "/a", "a//b", "A/b", "a b", "a___b", "a..b", "../b", "-a", "a-",
		strings.Repeat("a", 256)} {
		_, err := oci.ParseRepository("quay.io", name)
		assert.ErrorIs(t, err, oci.ErrInvalidRepository, "%q", name)
	}
}

func TestAPrefixIsARegistryWhenItLooksLikeAHost(t *testing.T) {
	for name, want := range map[string][2]string{
		"quay.io/coreos/etcd":     {"quay.io", "coreos/etcd"},
		"localhost/app":           {"localhost", "app"},
		"localhost:5000/app":      {"localhost:5000", "app"},
		"registry:5000/app":       {"registry:5000", "app"},
		"registry.test:5000/a/b":  {"registry.test:5000", "a/b"},
		"library/alpine":          {},
		"alpine":                  {},
		"quay.io":                 {},
		"localhosts/app":          {},
		"my-project/quay.io/repo": {},
	} {
		prefix, repository, ok := oci.SplitPrefix(name)
		assert.Equal(t, want, [2]string{prefix, repository}, name)
		assert.Equal(t, want[0] != "", ok, name)
	}
	for prefix, want := range map[string]string{
		"quay.io": "quay.io", "registry.test:5000": "registry.test:5000", "registry.test_5000": "registry.test:5000",
		"localhost_5000": "localhost:5000", "127.0.0.1_5000": "127.0.0.1:5000",
	} {
		host, err := oci.ParsePrefix(prefix)
		require.NoError(t, err)
		assert.Equal(t, want, host)
		assert.True(t, oci.LooksLikeHost(prefix))
	}
	for _, prefix := range []string{"my.project_a", "a.b_c_5000", "a.b__5000", "a.b:5_5", "a.b_99999"} {
		_, err := oci.ParsePrefix(prefix)
		assert.ErrorIs(t, err, oci.ErrInvalidHost, prefix)
	}
}

func TestOnlyAContentDigestIsADigest(t *testing.T) {
	sha256, sha512 := "sha256:"+strings.Repeat("a", 64), "sha512:"+strings.Repeat("b", 128)
	for _, s := range []string{sha256, sha512} {
		id, err := oci.ParseDigest(s)
		require.NoError(t, err)
		assert.EqualValues(t, s, id)
	}
	for _, s := range []string{
		"", "sha256:", "sha256:abc", strings.ToUpper(sha256), "sha256:" + strings.Repeat("A", 64),
		"md5:" + strings.Repeat("a", 32),
		"file:" + strings.Repeat("a", 64), sha256 + "0", "sha384:" + strings.Repeat("a", 96),
	} {
		_, err := oci.ParseDigest(s)
		assert.ErrorIs(t, err, oci.ErrInvalidDigest, "%q", s)
	}
	assert.EqualValues(t, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
		oci.DigestOf([]byte("abc")))
	assert.True(t, oci.IsTag("v1.2_x-y"))
	assert.False(t, oci.IsTag(".hidden"))
	assert.False(t, oci.IsTag(strings.Repeat("a", 129)))
	assert.False(t, oci.IsTag(sha256))
}

func TestABlobsTypeSaysNothingOfAManifest(t *testing.T) {
	for _, mediaType := range append(oci.ManifestTypes()[:4], "application/json; charset=utf-8",
		"application/vnd.docker.distribution.manifest.v1+prettyjws") {
		assert.True(t, oci.NamesContent(mediaType), mediaType)
	}
	for _, mediaType := range []string{"", "application/octet-stream", "application/octet-stream; x=y", ";", "a/b; c"} {
		assert.False(t, oci.NamesContent(mediaType), mediaType)
	}
}

func TestARangeHeaderBecomesWindows(t *testing.T) {
	type windows = []oci.Window
	for _, c := range []struct {
		header string
		total  int64
		want   windows
		err    error
	}{
		{"", 10, nil, nil},
		{"bytes=0-", 10, windows{{0, 10}}, nil},
		{"bytes=2-5", 10, windows{{2, 4}}, nil},
		{"bytes=9-9", 10, windows{{9, 1}}, nil},
		{"bytes=4-", 10, windows{{4, 6}}, nil},
		{"bytes=-3", 10, windows{{7, 3}}, nil},
		{"bytes=-30", 10, windows{{0, 10}}, nil},
		{"bytes=4-99", 10, windows{{4, 6}}, nil},
		{"bytes=0-99999999999999999999999", 10, windows{{0, 10}}, nil},
		{"bytes=-99999999999999999999999", 10, windows{{0, 10}}, nil},
		{"Bytes = 0-1 ,\t3-4, ,-1", 10, windows{{0, 2}, {3, 2}, {9, 1}}, nil},
		{"bytes=0-1,20-", 10, windows{{0, 2}}, nil},
		{"items=0-1", 10, nil, nil},
		{"bytes=0-", 0, nil, nil},
		{"bytes=10-", 10, nil, oci.ErrRangeUnsatisfiable},
		{"bytes=99999999999999999999999-", 10, nil, oci.ErrRangeUnsatisfiable},
		{"bytes=-0", 10, nil, oci.ErrRangeUnsatisfiable},
		{"bytes=10-,30-40", 10, nil, oci.ErrRangeUnsatisfiable},
		{"bytes=5-2", 10, nil, oci.ErrRangeMalformed},
		{"bytes=", 10, nil, oci.ErrRangeMalformed},
		{"bytes=,", 10, nil, oci.ErrRangeMalformed},
		{"bytes=-", 10, nil, oci.ErrRangeMalformed},
		{"bytes=a-b", 10, nil, oci.ErrRangeMalformed},
		{"bytes=+1-2", 10, nil, oci.ErrRangeMalformed},
		{"bytes=1--2", 10, nil, oci.ErrRangeMalformed},
		{"bytes=0-1,x", 10, nil, oci.ErrRangeMalformed},
		{"bytes", 10, nil, oci.ErrRangeMalformed},
		{"bytes=" + strings.Repeat("0-,", oci.RangesMax+1), 10, nil, oci.ErrRangeMalformed},
	} {
		got, err := oci.ParseRange(c.header, c.total)
		assert.Equal(t, c.want, got, "%.60s", c.header)
		assert.ErrorIs(t, err, c.err, "%.60s", c.header)
	}
	assert.Equal(t, "bytes 2-5/10", oci.Window{Offset: 2, Length: 4}.ContentRange(10))
	assert.Equal(t, "bytes */10", oci.UnsatisfiedRange(10))
}

var manyDigits = regexp.MustCompile(`[0-9]{18}`)

func FuzzParseRange(f *testing.F) {
	for _, header := range []string{"bytes=0-", "bytes=2-5", "bytes=-3", "bytes=0-1,4-5", "bytes=9-1", "bytes=99-",
		"x=1-2", "bytes=", "", "bytes=18446744073709551616-"} {
		f.Add(header, int64(10))
	}
	f.Fuzz(func(t *testing.T, header string, total int64) {
		windows, err := oci.ParseRange(header, total)
		if err != nil {
			assert.Empty(t, windows)
			return
		}
		for _, w := range windows {
			require.True(t, w.Length > 0 && w.Offset >= 0 && w.Offset <= total-w.Length, "%q of %d gives %+v",
				header, total, w)
		}
		// A single range means what the standard library makes of it; numbers that it
		// cannot read are ours to clip.
		if len(windows) != 1 || strings.Contains(header, ",") || total > 1<<20 ||
			!strings.HasPrefix(header, "bytes=") ||
			manyDigits.MatchString(header) {
			return
		}
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Range", header)
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(strings.Repeat("x", int(total))))
		require.Equal(t, http.StatusPartialContent, w.Code, "%q", header)
		require.Equal(t, w.Header().Get("Content-Range"), windows[0].ContentRange(total), "%q", header)
	})
}

func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"quay.io", "docker.io:443", "[::1]:5000", "https://index.docker.io/", "http://a@b",
		"localhost", "A.b:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, err := oci.ParseHostURL(s)
		if err != nil {
			assert.ErrorIs(t, err, oci.ErrInvalidHost)
			return
		}
		require.LessOrEqual(t, len(host), oci.HostMax)
		require.NotContains(t, host, "/")
		again, err := oci.ParseHost(host)
		require.NoError(t, err, "%q came from %q", host, s)
		require.Equal(t, host, again, "one spelling")
	})
}

func FuzzParseRepository(f *testing.F) {
	for _, s := range []string{"quay.io/coreos/etcd", "alpine", "a//b", "../../etc/passwd", "A/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name := s
		if _, repository, ok := oci.SplitPrefix(s); ok {
			name = repository
		}
		got, err := oci.ParseRepository(oci.DockerHub, name)
		if err != nil {
			assert.ErrorIs(t, err, oci.ErrInvalidRepository)
			return
		}
		require.NotContains(t, got, "..")
		again, err := oci.ParseRepository(oci.DockerHub, got)
		require.NoError(t, err)
		require.Equal(t, got, again)
	})
}

func TestSniffManifest(t *testing.T) {
	for content, want := range map[string]string{
		`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json"}`: oci.MediaTypeIndex,
		`{"schemaVersion":2,"manifests":[]}`:                                        oci.MediaTypeIndex,
		`{"schemaVersion":2,"config":{},"layers":[]}`:                               oci.MediaTypeManifest,
		`{"schemaVersion":1,"fsLayers":[]}`:                                         "application/vnd.docker.distribution.manifest.v1+prettyjws",
		`{"schemaVersion":2}`:                                                       "",
		`{"mediaType":"application/octet-stream"}`:                                  "",
		`no manifest`: "",
		"":            "",
	} {
		assert.Equal(t, want, oci.SniffManifest([]byte(content)), content)
	}
}

func FuzzSniffManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{},"mediaType":"a/b"}`))
	f.Add([]byte(`{"manifests":[{}]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		if got := oci.SniffManifest(content); got != "" {
			require.True(t, oci.NamesContent(got))
			require.LessOrEqual(t, len(got), 255)
		}
	})
}

func TestReferencesListsWhatARegistryVerifies(t *testing.T) {
	digest := func(c string) string { return "sha256:" + strings.Repeat(c, 64) }
	// The registry does not have b.
	a, b := `{"digest":"`+digest("a")+`","size":5,"mediaType":"l"}`,
		`{"digest":"`+digest("b")+`","size":7,"mediaType":"l"}`
	blobA, blobB := oci.Reference{ID: task.ID(digest("a")), Size: 5, MediaType: "l"},
		oci.Reference{ID: task.ID(digest("b")), Size: 7, MediaType: "l"}
	childA := blobA
	childA.Manifest = true
	docker, list := `"mediaType":"`+oci.MediaTypeDockerManifest+`",`, `"mediaType":"`+oci.MediaTypeDockerList+`",`
	for name, c := range map[string]struct {
		told, content string
		want          []oci.Reference
	}{
		"an image": {"", `{"schemaVersion":2,"config":` + a + `,"layers":[` + b + `],"subject":{"digest":"` +
			digest("c") +
			`"}}`, []oci.Reference{blobA, blobB}},
		"an index": {oci.MediaTypeIndex, `{"schemaVersion":2,"manifests":[` + a + `]}`, []oci.Reference{childA}},
		"an image of Docker": {oci.MediaTypeDockerManifest, `{"schemaVersion":2,` + docker + `"config":` + a + `}`,
			[]oci.Reference{blobA}},
		"a list of Docker": {oci.MediaTypeDockerList + "; charset=utf-8",
			`{"schemaVersion":2,` + list + `"manifests":[` + a + `],"config":null}`, []oci.Reference{childA}},
		"a media type that names no manifest": {"text/plain", `{"schemaVersion":2,"manifests":[` + a + `]}`,
			[]oci.Reference{childA}},
		"layers from elsewhere": {"",
			`{"schemaVersion":2,"layers":[{"digest":"` + digest("a") + `","urls":["https://x"]},{"digest":"` +
				digest("b") +
				`","mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar"},{"digest":"` + digest("c") +
				`","mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}]}`, nil},
		"nonsense in it": {"", `{"schemaVersion":2,"layers":[{"digest":"sha256:x"},{"digest":"` + digest("a") +
			`","size":-1},{},7,{"digest":8}]}`, nil},
		"no manifest": {"", `[1]`, nil},
		"nothing":     {"", ``, nil},
		"no version":  {"", `{"layers":[` + b + `]}`, nil},

		"an image with manifests": {"",
			`{"schemaVersion":2,` + docker + `"config":` + a + `,"layers":[],"manifests":[` + b + `]}`, nil},
		"a list with layers": {"",
			`{"schemaVersion":2,` + list + `"manifests":[` + a + `],"layers":[` + b + `]}`, nil},
		"a list with layers alone": {"", `{"schemaVersion":2,` + list + `"config":` + a + `,"layers":[` +
			b + `]}`, nil},
		"an image with manifests alone": {"", `{"schemaVersion":2,` + docker + `"manifests":[` + b + `]}`, nil},
		"an image that was called a list": {oci.MediaTypeDockerList,
			`{"schemaVersion":2,` + docker + `"layers":[` + b + `]}`, nil},
		"an artifact of another kind": {"", `{"schemaVersion":2,"mediaType":"a/b","layers":[` + b + `]}`, nil},
		"layers twice":                {"", `{"schemaVersion":2,"layers":[` + b + `],"layers":[` + a + `]}`, nil},
		"layers in capitals too":      {"", `{"schemaVersion":2,"layers":[` + b + `],"LAYERS":[` + a + `]}`, nil},
		"layers in capitals alone":    {"", `{"schemaVersion":2,"config":` + a + `,"Layers":[` + b + `]}`, nil},
		"layers with a long s":        {"", `{"schemaVersion":2,"config":` + a + `,"layerſ":[` + b + `]}`, nil},
		"more behind it":              {"", `{"schemaVersion":2,"layers":[` + b + `]}{}`, nil},
		"a digest twice": {"", `{"schemaVersion":2,"layers":[{"digest":"` + digest("b") + `","digest":"` + digest("a") +
			`"},` + a + `]}`, []oci.Reference{blobA}},
		"a digest in capitals too": {"", `{"schemaVersion":2,"layers":[{"digest":"` + digest("b") + `","Digest":"` +
			digest("a") + `"},` + a + `]}`, []oci.Reference{blobA}},
	} {
		assert.Equal(t, c.want, oci.References(c.told, []byte(c.content)), name)
	}
	many := `{"schemaVersion":2,"layers":[` + strings.Repeat(`{"digest":"`+digest("a")+`"},`, oci.ReferencesMax+1) +
		`{}]}`
	assert.Len(t, oci.References("", []byte(many)), oci.ReferencesMax)
}

func FuzzReferences(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"sha256:` + strings.Repeat("a", 64) +
		`","size":5},"layers":[{"urls":["x"]}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:` + strings.Repeat("a", 64) + `"}],"layers":null}`))
	f.Add([]byte(`{"manifests":null,"layers":{}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, r := range oci.References("", content) {
			if _, err := oci.ParseDigest(string(r.ID)); err != nil || r.Size < 0 {
				t.Fatalf("%+v: %v", r, err)
			}
		}
	})
}

func TestADigestsAlgorithmHasItsHashAndNoOtherHasOne(t *testing.T) {
	for algorithm, size := range map[string]int{"sha256": 32, "sha512": 64} {
		h, err := oci.NewHash(algorithm + ":00")
		require.NoError(t, err)
		assert.Equal(t, size, h.Size())
	}
	for _, digest := range []string{"", "md5:00", "SHA256:00"} {
		_, err := oci.NewHash(digest)
		assert.ErrorIs(t, err, oci.ErrInvalidDigest, digest)
	}
}
