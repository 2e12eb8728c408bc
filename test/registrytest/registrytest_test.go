package registrytest_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/darter-io/darter/test/registrytest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction(registrytest.LeakIgnored))
}

var sizes = []int64{300 << 10, 100 << 10, 20 << 10}

// client returns a client with connections of its own, closed at the end of the test.
func client(t *testing.T) *http.Client {
	tr := &http.Transport{DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func image(t *testing.T) *registrytest.Image {
	img, err := registrytest.NewImage(1, sizes)
	require.NoError(t, err)
	return img
}

func push(t *testing.T, r *registrytest.Registry, repository string) registrytest.Pushed {
	p, err := r.Push(t.Context(), repository, "v1", image(t))
	require.NoError(t, err)
	return p
}

func get(t *testing.T, c *http.Client, url string, header ...string) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res, b, err
}

// An image is the same on every machine and unpacks to its Files.
func TestNewImage(t *testing.T) {
	a, b := image(t), image(t)
	require.NoError(t, validate.Image(a))
	da, err := a.Digest()
	require.NoError(t, err)
	db, err := b.Digest()
	require.NoError(t, err)
	assert.Equal(t, da, db)
	assert.Equal(t, a.Files, unpack(t, a))
	assert.NotContains(t, a.Files, "layers/0/readme.txt", "the last layer deletes it")
	c, err := registrytest.Describe(a)
	require.NoError(t, err)
	require.Len(t, c.Layers(), len(sizes))
	for i, l := range c.Layers() {
		assert.InDelta(t, sizes[i], l.Size, 4<<10)
	}
	other, err := registrytest.NewImage(2, sizes)
	require.NoError(t, err)
	do, err := other.Digest()
	require.NoError(t, err)
	assert.NotEqual(t, da, do)
}

// unpack applies the layers like a container runtime, for regular files only.
func unpack(t *testing.T, img v1.Image) map[string]string {
	layers, err := img.Layers()
	require.NoError(t, err)
	files := map[string]string{}
	for _, l := range layers {
		rc, err := l.Compressed()
		require.NoError(t, err)
		zr, err := gzip.NewReader(rc)
		require.NoError(t, err)
		for tr := tar.NewReader(zr); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
			if h.Typeflag != tar.TypeReg {
				continue
			}
			if deleted, ok := strings.CutPrefix(path.Base(h.Name), ".wh."); ok {
				delete(files, path.Join(path.Dir(h.Name), deleted))
				continue
			}
			sum := sha256.New()
			_, err = io.Copy(sum, tr)
			require.NoError(t, err)
			files[h.Name] = hex.EncodeToString(sum.Sum(nil))
		}
		require.NoError(t, rc.Close())
	}
	return files
}

// The registry counts every pulled byte and no pushed one.
func TestCounts(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	p := push(t, r, "lib/app")
	assert.Zero(t, r.Counts().Egress)
	tr := client(t).Transport
	ref, err := name.NewTag(r.Host() + "/lib/app:v1")
	require.NoError(t, err)
	img, err := remote.Image(ref, remote.WithTransport(tr), remote.WithContext(t.Context()))
	require.NoError(t, err)
	assert.Equal(t, image(t).Files, unpack(t, img))
	_, err = img.RawConfigFile()
	require.NoError(t, err)
	counts := r.Counts()
	for _, l := range p.Layers() {
		assert.Equal(t, registrytest.Tally{GETs: 1, Bytes: l.Size, Statuses: map[int]int{200: 1}},
			counts.Object(l.Digest))
	}
	assert.Equal(t, p.Bytes(), counts.Egress-pingBytes(t, r))
	assert.Greater(t, counts.Wire, counts.Egress)
	r.Reset()
	assert.Zero(t, r.Counts().Egress)
	assert.Empty(t, r.Counts().Objects)
}

// pingBytes returns the bytes of all pings so far.
func pingBytes(t *testing.T, r *registrytest.Registry) int64 {
	before := r.Counts()
	_, _, err := get(t, client(t), r.URL()+"/v2/")
	require.NoError(t, err)
	after := r.Counts()
	return (after.Egress - before.Egress) * int64(before.Pings)
}

func TestNewIndex(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Dir: t.TempDir()})
	idx, err := registrytest.NewIndex(3, []int64{8 << 10})
	require.NoError(t, err)
	p, err := r.PushIndex(t.Context(), "lib/multi", "v1", idx)
	require.NoError(t, err)
	require.Len(t, p.Objects, 1+2*3)
	assert.Equal(t, "index", p.Objects[0].Kind)
	b, err := r.Open("lib/multi", "manifests", "v1")
	require.NoError(t, err)
	assert.Equal(t, p.Digest, "sha256:"+hex.EncodeToString(sum(b)))
	assert.ElementsMatch(t, []string{"linux/amd64", "linux/arm64"}, platforms(idx.Images))
}

func platforms(m map[string]*registrytest.Image) (out []string) {
	for k := range maps.Keys(m) {
		out = append(out, k)
	}
	return out
}

func sum(b []byte) []byte {
	s := sha256.Sum256(b)
	return s[:]
}

// faulty starts a registry with one blob, and returns its bytes, digest and URL.
func faulty(t *testing.T) (r *registrytest.Registry, data []byte, digest, url string) {
	r = registrytest.Start(t, registrytest.Config{})
	data = bytes.Repeat([]byte("0123456789"), 10_000)
	digest, err := r.PushBlob(t.Context(), "lib/app", data)
	require.NoError(t, err)
	return r, data, digest, r.URL() + "/v2/lib/app/blobs/" + digest
}

// A fault changes the answers as it says, and as often.
func TestFaults(t *testing.T) {
	r, data, digest, url := faulty(t)
	c := client(t)

	t.Run("status", func(t *testing.T) {
		r.Fail(registrytest.Fault{Action: registrytest.ActStatus, Status: 429,
			Header: map[string]string{"Retry-After": "7"}, Times: 2})
		for range 2 {
			res, body, err := get(t, c, url)
			require.NoError(t, err)
			assert.Equal(t, 429, res.StatusCode)
			assert.Equal(t, "7", res.Header.Get("Retry-After"))
			assert.Contains(t, string(body), `"errors"`)
		}
		res, body, err := get(t, c, url)
		require.NoError(t, err)
		assert.Equal(t, 200, res.StatusCode)
		assert.Equal(t, data, body)
	})
	t.Run("ranges", func(t *testing.T) {
		res, body, err := get(t, c, url, "Range", "bytes=99990-")
		require.NoError(t, err)
		assert.Equal(t, 206, res.StatusCode)
		assert.Equal(t, data[99_990:], body)
		r.Fail(registrytest.Fault{Action: registrytest.ActIgnoreRange, Times: 1})
		res, body, err = get(t, c, url, "Range", "bytes=99990-")
		require.NoError(t, err)
		assert.Equal(t, 200, res.StatusCode)
		assert.Equal(t, data, body)
		r.Fail(registrytest.Fault{Action: registrytest.ActWrongRange, Times: 1})
		res, _, err = get(t, c, url, "Range", "bytes=99990-")
		require.NoError(t, err)
		assert.Equal(t, "bytes 99991-99999/100000", res.Header.Get("Content-Range"))
	})
	t.Run("no length", func(t *testing.T) {
		r.Fail(registrytest.Fault{Action: registrytest.ActNoLength, Times: 1})
		res, body, err := get(t, c, url)
		require.NoError(t, err)
		assert.EqualValues(t, -1, res.ContentLength)
		assert.Equal(t, data, body)
	})
	t.Run("wrong length", func(t *testing.T) {
		for length, want := range map[int64][]byte{10: data[:10],
			100_020: append(bytes.Clone(data), make([]byte, 20)...)} {
			r.Fail(registrytest.Fault{Action: registrytest.ActWrongLength, At: length, Times: 1})
			res, body, err := get(t, c, url, "Range", "bytes=1-2")
			require.NoError(t, err)
			assert.Equal(t, length, res.ContentLength)
			assert.Equal(t, want, body)
		}
		_, body, err := get(t, c, url)
		require.NoError(t, err)
		assert.Equal(t, data, body)
	})
	t.Run("redirect", func(t *testing.T) {
		r.Fail(registrytest.Fault{Action: registrytest.ActRedirect, Times: 2})
		r.Reset()
		res, body, err := get(t, c, url)
		require.NoError(t, err)
		assert.Equal(t, r.StorageHost(), res.Request.URL.Host)
		assert.Equal(t, data, body)
		counts := r.Counts()
		assert.Zero(t, counts.Leaks)
		assert.Equal(t, 1, counts.Object(digest).GETs)
		assert.GreaterOrEqual(t, counts.Object(digest).Bytes, int64(len(data)))
		// Another port of the same address is another host, but Go's client sends the header there.
		_, _, err = get(t, c, url, "Authorization", "Bearer x")
		require.NoError(t, err)
		assert.Equal(t, 1, r.Counts().Leaks)
	})
}

// A fault of the body damages it at the given byte, and as often as it says.
func TestBodyFaults(t *testing.T) {
	r, data, _, url := faulty(t)
	c := client(t)

	t.Run("corrupt", func(t *testing.T) {
		r.Fail(registrytest.Fault{Action: registrytest.ActCorrupt, At: 50_001, Times: 2})
		_, whole, err := get(t, c, url)
		require.NoError(t, err)
		want := bytes.Clone(data)
		want[50_001] ^= 0xff
		assert.Equal(t, want, whole)
		_, rest, err := get(t, c, url, "Range", "bytes=50000-")
		require.NoError(t, err)
		assert.Equal(t, want[50_000:], rest, "the same byte of the object, for every range")
	})
	t.Run("truncate", func(t *testing.T) {
		r.Fail(registrytest.Fault{Action: registrytest.ActTruncate, At: 12_345, Times: 1})
		res, body, err := get(t, c, url)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		assert.EqualValues(t, len(data), res.ContentLength)
		assert.Equal(t, data[:12_345], body)
	})
	t.Run("reset", func(t *testing.T) {
		r.Fail(registrytest.Fault{Action: registrytest.ActReset, At: 10, Times: 1})
		_, _, err := get(t, c, url)
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
	t.Run("stall", func(t *testing.T) {
		r.Fail(registrytest.Fault{Action: registrytest.ActStall, At: 1000, Times: 1})
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		require.NoError(t, err)
		res, err := c.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		head := make([]byte, 1000)
		_, err = io.ReadFull(res.Body, head)
		require.NoError(t, err)
		r.ClearFaults()
		rest, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		assert.Equal(t, data, append(head, rest...))
	})
}

func TestShape(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	digest, err := r.PushBlob(t.Context(), "lib/app", make([]byte, 128<<10))
	require.NoError(t, err)
	for _, shape := range [][2]int64{{1 << 20, 0}, {0, 1 << 20}} {
		r.Shape(shape[0], shape[1])
		began := time.Now()
		_, _, err = get(t, client(t), r.URL()+"/v2/lib/app/blobs/"+digest)
		require.NoError(t, err)
		// The first 64 KiB are a burst, the other 64 KiB take 1/16 s.
		assert.GreaterOrEqual(t, time.Since(began), 50*time.Millisecond, "shape %v", shape)
	}
}

// htpasswd users reach their own repositories only.
func TestBasicAuth(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Basic, Users: map[string]registrytest.User{
		"alice": {Password: "wonder", Pull: []string{"team/*"}},
		"":      {Pull: []string{"public/*"}},
	}})
	status := func(repository, user, password string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.URL()+"/v2/"+repository+"/manifests/v1",
			nil)
		require.NoError(t, err)
		req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
		if user != "" {
			req.SetBasicAuth(user, password)
		}
		res, err := client(t).Do(req)
		require.NoError(t, err)
		res.Body.Close()
		return res.StatusCode
	}
	for _, repository := range []string{"team/app", "public/app", "other/app"} {
		push(t, r, repository)
	}
	assert.Equal(t, 200, status("team/app", "alice", "wonder"))
	assert.Equal(t, 401, status("team/app", "alice", "wrong"))
	assert.Equal(t, 401, status("team/app", "", ""))
	assert.Equal(t, 403, status("other/app", "alice", "wonder"))
	assert.Equal(t, 200, status("public/app", "", ""))
}

// A token opens its own repositories until it expires.
func TestBearerAuth(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, TLS: true,
		Users: map[string]registrytest.User{
			"alice": {Password: "wonder", Pull: []string{"team/app"}},
			"":      {Pull: []string{"public/*"}},
		}})
	push(t, r, "team/app")
	push(t, r, "public/app")
	c := client(t)
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: r.CertPool()}

	res, _, err := get(t, c, r.URL()+"/v2/team/app/manifests/v1")
	require.NoError(t, err)
	assert.Equal(t, 401, res.StatusCode)
	assert.Equal(t, `Bearer realm="`+r.URL()+`/token",service="registrytest",scope="repository:team/app:pull"`,
		res.Header.Get("WWW-Authenticate"))

	token := func(scope, user, password string) string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
			r.URL()+"/token?service=registrytest&scope="+scope, nil)
		require.NoError(t, err)
		if user != "" {
			req.SetBasicAuth(user, password)
		}
		res, err := c.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		var answer struct{ Token string }
		require.NoError(t, json.NewDecoder(res.Body).Decode(&answer))
		return answer.Token
	}
	status := func(repository, token string) int {
		res, _, err := get(t, c, r.URL()+"/v2/"+repository+"/manifests/v1", "Authorization", "Bearer "+token, "Accept",
			"application/vnd.oci.image.manifest.v1+json")
		require.NoError(t, err)
		return res.StatusCode
	}
	mine := token("repository:team/app:pull", "alice", "wonder")
	assert.Equal(t, 200, status("team/app", mine))
	assert.Equal(t, 401, status("public/app", mine), "a token opens only the repository that it names")
	assert.Equal(t, 200, status("public/app", token("repository:public/app:pull", "", "")))
	assert.Equal(t, 401, status("team/app", token("repository:team/app:pull", "", "")))
	assert.Empty(t, token("repository:team/app:pull", "alice", "wrong"))
	r.RevokeTokens()
	assert.Equal(t, 401, status("team/app", mine), "it has expired")

	img, err := remote.Image(must(name.NewTag(r.Host()+"/team/app:v1")), remote.WithTransport(c.Transport),
		remote.WithAuth(&authn.Basic{Username: "alice", Password: "wonder"}), remote.WithContext(t.Context()))
	require.NoError(t, err)
	require.NoError(t, validate.Image(img))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestClientCert(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{TLS: true, ClientCert: true})
	c := client(t)
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: r.CertPool()}
	_, _, err := get(t, c, r.URL()+"/v2/")
	require.Error(t, err)
	cert, key, err := r.ClientCert("node-1")
	require.NoError(t, err)
	pair, err := tls.X509KeyPair(cert, key)
	require.NoError(t, err)
	c = client(t)
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: r.CertPool(),
		Certificates: []tls.Certificate{pair}}
	res, _, err := get(t, c, r.URL()+"/v2/")
	require.NoError(t, err)
	assert.Equal(t, 200, res.StatusCode)
}

func TestAdmin(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	admin := httptest.NewServer(r.Admin())
	defer admin.Close()
	c := client(t)
	do := func(method, path, body string) string {
		req, err := http.NewRequestWithContext(t.Context(), method, admin.URL+path, strings.NewReader(body))
		require.NoError(t, err)
		res, err := c.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.Equal(t, 200, res.StatusCode, "%s", b)
		return string(b)
	}
	var pushed registrytest.PushAnswer
	require.NoError(t, json.Unmarshal([]byte(do("POST", "/push",
		`{"repository":"lib/app","tag":"v1","seed":1,"layers":[307200,102400,20480]}`)), &pushed))
	assert.Equal(t, image(t).Files, pushed.Files)
	assert.Equal(t, pushed.Content.Bytes(), pushed.Bytes)
	do("POST", "/faults", `[{"action":"status","status":503,"times":1}]`)
	url := r.URL() + "/v2/lib/app/blobs/" + pushed.Layers()[0].Digest
	res, _, err := get(t, c, url)
	require.NoError(t, err)
	assert.Equal(t, 503, res.StatusCode)
	var counts registrytest.Counts
	require.NoError(t, json.Unmarshal([]byte(do("GET", "/counts", "")), &counts))
	assert.Equal(t, map[int]int{503: 1}, counts.Object(pushed.Layers()[0].Digest).Statuses)
	do("POST", "/reset", "")
	do("DELETE", "/faults", "")
	do("POST", "/shape?all=0&connection=0", "")
	assert.Zero(t, r.Counts().Requests)
}

func TestRunEndsWithContext(t *testing.T) {
	r, err := registrytest.Listen(registrytest.Config{})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	_, _, err = get(t, client(t), r.URL()+"/v2/")
	require.NoError(t, err)
	stop()
	require.NoError(t, <-done)
	_, _, err = get(t, client(t), r.URL()+"/v2/")
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}
