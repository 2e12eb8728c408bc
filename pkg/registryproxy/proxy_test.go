package registryproxy_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

var missing = "sha256:" + strings.Repeat("0", 64)

func TestTheUpstreamIsHeaderNamespacePathOrDefault(t *testing.T) {
	const m = "/manifests/v1"
	for _, c := range []struct {
		target string
		header [2]string
		want   string // upstream and path of the request to the registry; empty: refused
		ns     string // OCI-Namespace of the answer
	}{
		{target: "/v2/lib/app" + m + "?ns=quay.io", want: "quay.io/v2/lib/app" + m, ns: "quay.io"},
		{target: "/v2/lib/app" + m + "?ns=registry.test%3A5000", want: "registry.test:5000/v2/lib/app" + m,
			ns: "registry.test:5000"},
		{target: "/v2/library/alpine" + m + "?ns=docker.io", want: "docker.io/v2/library/alpine" + m, ns: "docker.io"},
		{target: "/v2/alpine" + m + "?ns=registry-1.docker.io", want: "docker.io/v2/library/alpine" + m,
			ns: "registry-1.docker.io"},
		{target: "/v2/app" + m + "?ns=intern", want: "intern/v2/app" + m, ns: "intern"},
		// With ns or a header the path is the repository to the letter, also where its first part is the registry's own
		// name.
		{target: "/v2/quay.io/app" + m + "?ns=quay.io", want: "quay.io/v2/quay.io/app" + m, ns: "quay.io"},
		{target: "/v2/quay.io/lib/app" + m + "?ns=quay.io", want: "quay.io/v2/quay.io/lib/app" + m, ns: "quay.io"},
		{target: "/v2/registry.test:5000/app" + m + "?ns=registry.test%3A5000"}, // no repository has a colon
		{target: "/v2/registry.test_5000/app" + m + "?ns=registry.test%3A5000",
			want: "registry.test:5000/v2/registry.test_5000/app" + m, ns: "registry.test:5000"},
		{target: "/v2/docker.io/alpine" + m + "?ns=docker.io", want: "docker.io/v2/docker.io/alpine" + m,
			ns: "docker.io"},
		{target: "/v2/localhost/app" + m + "?ns=localhost", want: "localhost/v2/localhost/app" + m, ns: "localhost"},
		{target: "/v2/ghcr.io/app" + m, header: [2]string{"X-Darter-Upstream", "ghcr.io"},
			want: "ghcr.io/v2/ghcr.io/app" + m},
		{target: "/v2/ghcr.io/app" + m, header: [2]string{"X-Dragonfly-Registry", "https://ghcr.io"},
			want: "ghcr.io/v2/ghcr.io/app" + m},
		// A client that wants that image without ?ns= repeats the name.
		{target: "/v2/quay.io/quay.io/app" + m, want: "quay.io/v2/quay.io/app" + m},
		{target: "/v2/my.project/app" + m + "?ns=quay.io", want: "quay.io/v2/my.project/app" + m, ns: "quay.io"},
		// A header was written for the mirror, ns comes by itself.
		{target: "/v2/lib/app" + m + "?ns=quay.io", header: [2]string{"X-Darter-Upstream", "ghcr.io"},
			want: "ghcr.io/v2/lib/app" + m},
		{target: "/v2/lib/app" + m + "?ns=quay.io", header: [2]string{"X-Darter-Upstream", "quay.io"},
			want: "quay.io/v2/lib/app" + m, ns: "quay.io"},
		{target: "/v2/ghcr.io/app" + m + "?ns=quay.io", header: [2]string{"X-Dragonfly-Registry", "https://ghcr.io"},
			want: "ghcr.io/v2/ghcr.io/app" + m},
		{target: "/v2/lib/app" + m + "?ns=quay.io&ns=quay.io", want: "quay.io/v2/lib/app" + m, ns: "quay.io"},
		{target: "/v2/lib/app" + m + "?ns=", want: "default.test/v2/lib/app" + m},
		{target: "/v2/lib/app" + m + "?ns=quay.io&ns=ghcr.io"},
		{target: "/v2/lib/app" + m + "?ns=a%20b", header: [2]string{"X-Darter-Upstream", "ghcr.io"}},
		{target: "/v2/lib/app" + m, header: [2]string{"X-Dragonfly-Registry", "https://ghcr.io"},
			want: "ghcr.io/v2/lib/app" + m},
		{target: "/v2/lib/app" + m, header: [2]string{"X-Dragonfly-Registry", "https://index.docker.io"},
			want: "docker.io/v2/lib/app" + m},
		{target: "/v2/my.project/app" + m, header: [2]string{"X-Darter-Upstream", "ghcr.io:443"},
			want: "ghcr.io:443/v2/my.project/app" + m},
		{target: "/v2/quay.io/lib/app" + m, want: "quay.io/v2/lib/app" + m},
		{target: "/v2/registry.test:5000/lib/app" + m, want: "registry.test:5000/v2/lib/app" + m},
		{target: "/v2/registry.test_5000/lib/app" + m, want: "registry.test:5000/v2/lib/app" + m},
		{target: "/v2/localhost/app" + m, want: "localhost/v2/app" + m},
		{target: "/v2/docker.io/alpine" + m, want: "docker.io/v2/library/alpine" + m},
		{target: "/v2/lib/app" + m, want: "default.test/v2/lib/app" + m},
		{target: "/v2/lib%2Fapp" + m, want: "default.test/v2/lib/app" + m},
		{target: "/v2/lib/app" + m + "?ns=a%20b"},
		{target: "/v2/lib/app" + m + "?ns=quay.io;x=y"},
		{target: "/v2/lib/app" + m + "?ns=quay.io%zz"},
		{target: "/v2/ghcr.io/lib/app" + m + "?a=b&ns=quay.io;"},
		{target: "/v2/lib/app" + m + "?ns=http%3A%2F%2Fquay.io"},
		{target: "/v2/lib/app" + m, header: [2]string{"X-Darter-Upstream", "https://me:pw@ghcr.io"}},
		{target: "/v2/quay.io:99999/app" + m},
	} {
		up := &upstreamFunc{answer: answers(nil)}
		p := newMirror(config{Upstream: up, Open: (&swarm{}).Open, Default: "default.test"})
		res := ask(p, http.MethodGet, c.target, c.header[0], c.header[1])
		if c.want == "" {
			refusedAs(t, res, http.StatusBadRequest, "NAME_INVALID")
			assert.Empty(t, up.requests(), c.target)
			continue
		}
		require.NotEmpty(t, up.requests(), c.target)
		assert.Equal(t, c.want, up.requests()[0].Upstream+up.requests()[0].Path, c.target)
		assert.Equal(t, c.ns, res.Header.Get("OCI-Namespace"), c.target)
	}
}

func TestWithoutADefaultARequestMustNameItsRegistry(t *testing.T) {
	p := newMirror(config{Upstream: &upstreamFunc{}, Open: (&swarm{}).Open})
	said := refusedAs(t, ask(p, http.MethodGet, "/v2/lib/app/manifests/v1"), http.StatusNotFound, "NAME_UNKNOWN")
	assert.Contains(t, said, "?ns=")
}

func TestARegistryThatIsNotAllowedIsNeverAsked(t *testing.T) {
	up := &upstreamFunc{answer: answers(nil)}
	p := newMirror(config{Upstream: up, Open: (&swarm{}).Open, Allow: func(upstream string) error {
		if upstream != "quay.io" {
			return fmt.Errorf("%s is not in mirror.upstreams; add it there to allow it", upstream)
		}
		return nil
	}})
	said := refusedAs(t, ask(p, http.MethodGet, "/v2/latest/meta-data/manifests/v1?ns=169.254.169.254"),
		http.StatusForbidden, "DENIED")
	assert.Contains(t, said, "169.254.169.254 is not in mirror.upstreams; add it there")
	assert.Empty(t, up.requests())
	ask(p, http.MethodGet, "/v2/lib/app/manifests/v1?ns=quay.io")
	assert.NotEmpty(t, up.requests())
}

func TestEveryRequestGetsARegistrysResponse(t *testing.T) {
	var s swarm
	manifest, layer := []byte(`{"schemaVersion":2,"config":{}}`), blob(5000)
	m, b := s.put(manifest, oci.MediaTypeManifest), s.put(layer, oci.MediaTypeBlob)
	up := &upstreamFunc{answer: answers(map[string]object{
		"r.test/v2/lib/app/manifests/v1":           {manifest, oci.MediaTypeManifest},
		"r.test/v2/lib/app/manifests/" + string(m): {manifest, oci.MediaTypeManifest},
		"r.test/v2/lib/app/blobs/" + string(b):     {layer, "application/x-what-the-registry-says"},
	})}
	p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})

	for _, c := range []struct {
		path, code string
		status     int
		mediaType  string
		digest     task.ID
		data       []byte
	}{
		{"lib/app/manifests/v1", "", 200, oci.MediaTypeManifest, m, manifest},
		{"lib/app/manifests/" + string(m), "", 200, oci.MediaTypeManifest, m, manifest},
		{"lib/app/blobs/" + string(b), "", 200, oci.MediaTypeBlob, b, layer},
		{"lib/app/manifests/v2", "MANIFEST_UNKNOWN", 404, "", "", nil},
		{"lib/app/manifests/" + missing, "MANIFEST_UNKNOWN", 404, "", "", nil},
		{"lib/app/blobs/" + missing, "BLOB_UNKNOWN", 404, "", "", nil},
		{"lib/other/blobs/" + string(b), "BLOB_UNKNOWN", 404, "", "", nil},
		{"lib/app/manifests/.INVALID", "MANIFEST_UNKNOWN", 404, "", "", nil},
		{"lib/app/manifests/sha256:abc", "DIGEST_INVALID", 400, "", "", nil},
		{"lib/app/blobs/sha256:" + strings.Repeat("A", 64), "DIGEST_INVALID", 400, "", "", nil},
		{"lib/app/blobs/file:" + strings.Repeat("a", 64), "DIGEST_INVALID", 400, "", "", nil},
		{"lib/app/blobs/v1", "DIGEST_INVALID", 400, "", "", nil},
		{"lib/app/referrers/v1", "DIGEST_INVALID", 400, "", "", nil},
		{"lib/APP/manifests/v1", "NAME_INVALID", 400, "", "", nil},
		{"LIB/app/manifests/v1", "NAME_INVALID", 400, "", "", nil},
		{"lib//app/blobs/" + string(b), "NAME_INVALID", 400, "", "", nil},
		{"a/" + strings.Repeat("b", 255) + "/manifests/v1", "NAME_INVALID", 400, "", "", nil},
		{"_catalog", "NAME_UNKNOWN", 404, "", "", nil},
		{"lib/app/unknown/v1", "NAME_UNKNOWN", 404, "", "", nil},
		{"../../etc/passwd", "NAME_UNKNOWN", 404, "", "", nil},
	} {
		get := ask(p, http.MethodGet, "/v2/"+c.path)
		head := ask(p, http.MethodHead, "/v2/"+c.path)
		assert.Equal(t, get.Header, head.Header, "HEAD and GET of %s", c.path)
		assert.Equal(t, get.StatusCode, head.StatusCode, c.path)
		assert.Empty(t, body(t, head), c.path)
		if c.code != "" {
			refusedAs(t, get, c.status, c.code)
			continue
		}
		require.Equal(t, c.status, get.StatusCode, c.path)
		assert.Equal(t, string(c.data), body(t, get), c.path)
		assert.Equal(t, http.Header{
			"Accept-Ranges": {"bytes"}, "Content-Length": {fmt.Sprint(len(c.data))}, "Content-Type": {c.mediaType},
			"Docker-Content-Digest":           {string(c.digest)},
			"Docker-Distribution-Api-Version": {"registry/2.0"}, "Etag": {`"` + string(c.digest) + `"`},
		}, get.Header, c.path)
	}
	for _, path := range []string{"/", "/v1/", "/v2x", "/metrics"} {
		refusedAs(t, ask(p, http.MethodGet, path), http.StatusNotFound, "NAME_UNKNOWN")
	}
}

func TestAHeadDownloadsNothing(t *testing.T) {
	var s swarm
	layer := blob(5000)
	b := s.put(layer, oci.MediaTypeBlob)
	up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" +
		string(b): {layer, oci.MediaTypeBlob}})}
	p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
	assert.Equal(t, 200, ask(p, http.MethodHead, "/v2/app/blobs/"+string(b)).StatusCode)
	assert.Empty(t, s.opened)
	assert.Equal(t, 200, ask(p, http.MethodGet, "/v2/app/blobs/"+string(b)).StatusCode)
	assert.Len(t, s.opened, 1)
}

func TestEveryFormOfARangeIsAWindowOfTheContent(t *testing.T) {
	var s swarm
	layer := blob(10000)
	b := s.put(layer, oci.MediaTypeBlob)
	empty := s.put(nil, oci.MediaTypeBlob)
	up := &upstreamFunc{answer: answers(map[string]object{
		"r.test/v2/app/blobs/" + string(b):         {layer, oci.MediaTypeBlob},
		"r.test/v2/app/blobs/" + string(empty):     {nil, oci.MediaTypeBlob},
		"r.test/v2/app/manifests/" + string(b):     {layer, oci.MediaTypeIndex},
		"r.test/v2/app/manifests/" + string(empty): {nil, oci.MediaTypeIndex},
	})}
	p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
	for _, c := range []struct {
		asked, ifRange string
		status         int
		contentRange   string
		want           []byte
	}{
		{"bytes=100-199", "", 206, "bytes 100-199/10000", layer[100:200]},
		{"bytes=0-", "", 206, "bytes 0-9999/10000", layer},
		{"bytes=9000-", "", 206, "bytes 9000-9999/10000", layer[9000:]},
		{"bytes=-10", "", 206, "bytes 9990-9999/10000", layer[9990:]},
		{"bytes=9990-20000", "", 206, "bytes 9990-9999/10000", layer[9990:]},
		{"bytes=10000-", "", 416, "bytes */10000", nil},
		{"bytes=200-100", "", 416, "bytes */10000", nil},
		{"bytes=x", "", 416, "bytes */10000", nil},
		{"bytes=-0", "", 416, "bytes */10000", nil},
		{"lines=1-2", "", 200, "", layer},
		{"bytes=5-6", `"` + string(b) + `"`, 206, "bytes 5-6/10000", layer[5:7]},
		{"bytes=5-6", `"another"`, 200, "", layer},
		{"bytes=5-6", `W/"` + string(b) + `"`, 200, "", layer}, // a weak validator never matches (RFC 9110 §13.1.5)
		{"bytes=5-6", "Sun, 06 Nov 1994 08:49:37 GMT", 200, "", layer},
		{"bytes=0-99999999999999999999", "", 206, "bytes 0-9999/10000", layer},
		{"bytes=-20000", "", 206, "bytes 0-9999/10000", layer},
		{"bytes=9999-9999", "", 206, "bytes 9999-9999/10000", layer[9999:]},
		{"bytes=5-6,20000-", "", 206, "bytes 5-6/10000", layer[5:7]},
		{"bytes=20000-,30000-", "", 416, "bytes */10000", nil},
		{"bytes=-", "", 416, "bytes */10000", nil},
		{"Bytes=5-6", "", 206, "bytes 5-6/10000", layer[5:7]},
		{"bytes=0-9000,100-9999", "", 200, "", layer}, // together more than the whole
	} {
		for _, kind := range []string{"blobs", "manifests"} {
			res := ask(p, http.MethodGet, "/v2/app/"+kind+"/"+string(b), "Range", c.asked, "If-Range", c.ifRange,
				"Accept-Encoding", "gzip, zstd")
			require.Equal(t, c.status, res.StatusCode, c.asked)
			assert.Equal(t, c.contentRange, res.Header.Get("Content-Range"), c.asked)
			assert.Empty(t, res.Header.Get("Content-Encoding"))
			if c.want == nil {
				refusedAs(t, res, c.status, "RANGE_INVALID")
				continue
			}
			assert.Equal(t, string(c.want), body(t, res), c.asked)
			assert.Equal(t, fmt.Sprint(len(c.want)), res.Header.Get("Content-Length"))
		}
	}
	// A parallel containerd says bytes=0- to everything, an empty blob included.
	res := ask(p, http.MethodGet, "/v2/app/blobs/"+string(empty), "Range", "bytes=0-")
	assert.Equal(t, 200, res.StatusCode)
	assert.Equal(t, "0", res.Header.Get("Content-Length"))
	// A range of a HEAD means nothing (RFC 9110 §14.2).
	res = ask(p, http.MethodHead, "/v2/app/blobs/"+string(b), "Range", "bytes=5-6")
	assert.Equal(t, 200, res.StatusCode)
	assert.Equal(t, "10000", res.Header.Get("Content-Length"))
}

func TestAMatchingETagGets304(t *testing.T) {
	var s swarm
	b := s.put(blob(10), "")
	up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + string(b): {blob(10), ""}})}
	p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
	for tag, status := range map[string]int{`"` + string(b) + `"`: 304, `"x", W/"` + string(b) + `"`: 304, "*": 304,
		`"x"`: 200, "": 200} {
		assert.Equal(t, status, ask(p, http.MethodGet, "/v2/app/blobs/"+string(b), "If-None-Match", tag).StatusCode,
			tag)
	}
}

func TestTheRegistrysChallengeReachesTheClientUnchanged(t *testing.T) {
	challenges := []string{`Bearer realm="https://r.test/token",service="r",scope="repository:app:pull"`,
		`Basic realm="r"`}
	up := &upstreamFunc{answer: func(w http.ResponseWriter, r source.RegistryRequest) {
		w.Header()["Www-Authenticate"] = challenges
		w.Header().Set("Set-Cookie", "a=b")
		w.WriteHeader(http.StatusUnauthorized)
	}}
	var s swarm
	b := s.put(blob(10), "")
	p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
	for _, path := range []string{"manifests/v1", "manifests/" + string(b), "blobs/" + string(b), "tags/list",
		"referrers/" + string(b)} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			res := ask(p, method, "/v2/app/"+path)
			require.Equal(t, 401, res.StatusCode, path)
			assert.Equal(t, challenges, res.Header.Values("WWW-Authenticate"), path)
			assert.Empty(t, res.Header.Get("Set-Cookie"))
			if method == http.MethodGet {
				refusedAs(t, res, 401, "UNAUTHORIZED")
			}
		}
	}
	assert.Empty(t, s.opened)
}

func TestAClientWithoutChallengesReadsPublicImages(t *testing.T) {
	var s swarm
	layer := blob(10)
	b := s.put(layer, "")
	up := &upstreamFunc{answer: func(w http.ResponseWriter, q source.RegistryRequest) {
		if q.Anonymous && strings.HasPrefix(q.Path, "/v2/public/") {
			w.Header().Set("Content-Length", "10")
			return
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer anonymous=%v", q.Anonymous))
		w.WriteHeader(http.StatusUnauthorized)
	}}
	for _, c := range []struct {
		target, authorization string
		status, asked         int
	}{
		{"/v2/public/blobs/" + string(b), "", 200, 1},
		{"/v2/public/tags/list", "", 200, 1},
		{"/v2/private/blobs/" + string(b), "", 401, 2},
		// containerd answers the challenge, and a client with a token has answered it.
		{"/v2/public/blobs/" + string(b) + "?ns=r.test", "", 401, 1},
		{"/v2/public/blobs/" + string(b), "Bearer x", 401, 1},
		{"/v2/", "", 401, 1},
	} {
		up.forget()
		p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
		res := ask(p, http.MethodGet, c.target, "Authorization", c.authorization)
		assert.Equal(t, c.status, res.StatusCode, c.target)
		assert.Len(t, up.requests(), c.asked, c.target)
		if c.status == 401 {
			assert.Equal(t, "Bearer anonymous=false", res.Header.Get("WWW-Authenticate"),
				"the challenge to the client itself")
		}
	}
}

func TestARefusedClientGetsNothingFromTheSwarm(t *testing.T) {
	var s swarm
	b := s.put(blob(10), "")
	for status, code := range map[int]string{401: "UNAUTHORIZED", 403: "DENIED", 404: "", 500: "UNKNOWN",
		503: "UNAVAILABLE"} {
		up := &upstreamFunc{answer: func(w http.ResponseWriter, r source.RegistryRequest) { w.WriteHeader(status) }}
		p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
		res := ask(p, http.MethodGet, "/v2/app/blobs/"+string(b))
		said := ""
		if code == "" {
			said = body(t, res)
			assert.Equal(t, status, res.StatusCode)
		} else {
			said = refusedAs(t, res, status, code)
		}
		assert.Contains(t, said, fmt.Sprintf("r.test answered %d", status))
		assert.Contains(t, said, "/v2/app/blobs/"+string(b))
	}
	assert.Empty(t, s.opened)
}

func TestAGrantHoldsForOneRepositoryOfOneRegistry(t *testing.T) {
	var s swarm
	private := blob(100)
	b := s.put(private, "")
	up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/public/blobs/" + string(b): {private, ""}})}
	p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
	assert.Equal(t, 200, ask(p, http.MethodGet, "/v2/public/blobs/"+string(b)).StatusCode)
	for _, path := range []string{"/v2/private/blobs/" + string(b), "/v2/public/blobs/" + string(b) + "?ns=other.test",
		"/v2/public/manifests/" + string(b)} {
		assert.Equal(t, 404, ask(p, http.MethodGet, path).StatusCode, path)
		assert.Equal(t, 404, ask(p, http.MethodHead, path).StatusCode, path)
	}
	assert.Len(t, s.opened, 1)
}

func TestCredentialsAndAcceptReachRegistryAndOrigin(t *testing.T) {
	var s swarm
	manifest, layer := []byte(`{"manifests":[]}`), blob(10)
	m, b := s.put(manifest, oci.MediaTypeIndex), s.put(layer, "")
	up := &upstreamFunc{answer: answers(map[string]object{
		"r.test/v2/app/manifests/v1":       {manifest, oci.MediaTypeIndex},
		"r.test/v2/app/blobs/" + string(b): {layer, ""},
	})}
	p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
	ask(p, http.MethodGet, "/v2/app/manifests/v1?x=y", "Authorization", "Bearer abc", "Accept", "a/b, c/d", "Accept",
		"*/*", "Cookie", "c", "Accept-Encoding", "gzip")
	ask(p, http.MethodGet, "/v2/app/blobs/"+string(b), "Authorization", "Bearer abc")
	ask(p, http.MethodGet, "/v2/app/manifests/v1")

	require.Len(t, up.requests(), 3)
	assert.Equal(t, source.RegistryRequest{
		Upstream: "r.test", Method: http.MethodHead, Path: "/v2/app/manifests/v1",
		Header: http.Header{"Authorization": {"Bearer abc"}, "Accept": {"a/b, c/d", "*/*"}},
	}, up.requests()[0])
	assert.Equal(t, http.Header{"Authorization": {"Bearer abc"}}, up.requests()[1].Header)
	assert.Equal(t, http.Header{"Accept": oci.ManifestTypes()}, up.requests()[2].Header)
	require.Len(t, s.opened, 3)
	assert.Equal(t, task.Spec{
		ID: m, Kind: task.Manifest, Upstream: "r.test", Repository: "app", Hint: int64(len(manifest)),
		Accept: []string{"a/b, c/d", "*/*"}, Tag: "v1", Authorization: "Bearer abc",
	}, s.opened[0])
	assert.Equal(t, task.Spec{ID: b, Kind: task.Blob, Upstream: "r.test", Repository: "app", Hint: 10,
		Authorization: "Bearer abc"}, s.opened[1])
}

func TestATagWithoutADigestHeaderIsHashed(t *testing.T) {
	manifest := []byte(`{"schemaVersion":2,"manifests":[]}`)
	for name, head := range map[string]func(http.ResponseWriter){
		"no digest":      func(w http.ResponseWriter) { w.WriteHeader(200) },
		"a wrong digest": func(w http.ResponseWriter) { w.Header().Set("Docker-Content-Digest", "sha256:abc") },
		"no HEAD":        func(w http.ResponseWriter) { w.WriteHeader(http.StatusMethodNotAllowed) },
	} {
		var s swarm
		m := s.put(manifest, oci.MediaTypeIndex)
		up := &upstreamFunc{answer: func(w http.ResponseWriter, r source.RegistryRequest) {
			if r.Method == http.MethodHead {
				head(w)
				return
			}
			w.Header().Set("Content-Type", oci.MediaTypeIndex)
			w.Write(manifest)
		}}
		p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
		res := ask(p, http.MethodGet, "/v2/app/manifests/v1")
		require.Equal(t, 200, res.StatusCode, name)
		assert.Equal(t, string(m), res.Header.Get("Docker-Content-Digest"), name)
		assert.Equal(t, oci.MediaTypeIndex, res.Header.Get("Content-Type"), name)
		assert.Equal(t, string(manifest), body(t, res), name)
	}
}

// endless is a registry whose manifests have no digest, no length and no end.
type endless struct{ sent atomic.Int64 }

func (e *endless) Do(_ context.Context, q source.RegistryRequest) (*http.Response, error) {
	res := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, ContentLength: -1, Body: http.NoBody}
	if q.Method == http.MethodGet {
		res.Body = io.NopCloser(e)
	}
	return res, nil
}

func (e *endless) Read(b []byte) (int, error) {
	e.sent.Add(int64(len(b)))
	return len(b), nil
}

func TestAManifestWithoutEndIsRefused(t *testing.T) {
	up := &endless{}
	p := newMirror(config{Upstream: up, Open: (&swarm{}).Open, Default: "r.test"})
	said := refusedAs(t, ask(p, http.MethodGet, "/v2/app/manifests/v1"), http.StatusBadGateway, "UNAVAILABLE")
	assert.Contains(t, said, "larger than")
	assert.LessOrEqual(t, up.sent.Load(), int64(oci.ManifestMax+1<<20))
}

// A manifest that hosts do not share comes from its registry for each client, with the client's own credentials.
func TestAHugeManifestIsPassedOn(t *testing.T) {
	content := []byte(`{"schemaVersion":2}`)
	up := &upstreamFunc{answer: func(w http.ResponseWriter, q source.RegistryRequest) {
		assert.Equal(t, "Bearer mine", q.Header.Get("Authorization"))
		w.Header().Set("Content-Type", oci.MediaTypeManifest)
		w.Header().Set("Docker-Content-Digest", string(oci.DigestOf(content)))
		if q.Method == http.MethodHead {
			w.Header().Set("Content-Length", fmt.Sprint(oci.ManifestMax+1))
			return
		}
		w.Write(content)
	}}
	var s swarm
	p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
	for _, reference := range []string{"v1", string(oci.DigestOf(content))} {
		res := ask(p, http.MethodGet, "/v2/app/manifests/"+reference, "Authorization", "Bearer mine")
		require.Equal(t, 200, res.StatusCode)
		assert.Equal(t, oci.MediaTypeManifest, res.Header.Get("Content-Type"))
		assert.Equal(t, string(content), body(t, res))
	}
	assert.Empty(t, s.opened)
}

// A huge manifest is passed on, too, if its registry names no digest. Its length tells, so that no lookup reads it.
func TestAHugeManifestWithoutDigestIsPassedOn(t *testing.T) {
	content := []byte(`{"schemaVersion":2}`)
	for name, head := range map[string]int{"by HEAD": 200, "by GET": 405} {
		t.Run(name, func(t *testing.T) {
			var gets atomic.Int32
			up := &upstreamFunc{answer: func(w http.ResponseWriter, q source.RegistryRequest) {
				if q.Header.Get("Authorization") != "Bearer mine" {
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				w.Header().Set("Content-Type", oci.MediaTypeManifest)
				first := q.Method == http.MethodHead || gets.Add(1) == 1 && head != 200
				if q.Method == http.MethodHead && head != 200 {
					w.WriteHeader(head)
					return
				}
				if first {
					w.Header().Set("Content-Length", fmt.Sprint(oci.ManifestMax+1))
					return
				}
				w.Write(content)
			}}
			var s swarm
			p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
			res := ask(p, http.MethodGet, "/v2/app/manifests/v1", "Authorization", "Bearer mine")
			require.Equal(t, 200, res.StatusCode)
			assert.Equal(t, string(content), body(t, res))
			assert.Empty(t, s.opened)
			assert.Equal(t, 401, ask(p, http.MethodGet, "/v2/app/manifests/v1").StatusCode, "for another client it asks")
		})
	}
}

func TestARegistryWithoutHeadIsAskedForOneByteOfABlob(t *testing.T) {
	var s swarm
	b := s.put(blob(100), "")
	up := &upstreamFunc{answer: func(w http.ResponseWriter, r source.RegistryRequest) {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusNotImplemented)
			return
		}
		assert.Equal(t, "bytes=0-0", r.Header.Get("Range"))
		w.Header().Set("Content-Length", "1")
		w.WriteHeader(http.StatusPartialContent)
	}}
	p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		res := ask(p, method, "/v2/app/blobs/"+string(b))
		require.Equal(t, 200, res.StatusCode)
		assert.Equal(t, "100", res.Header.Get("Content-Length"))
	}
}

func TestAManifestKeepsItsMediaType(t *testing.T) {
	index := []byte(`{"schemaVersion":2,"manifests":[]}`)
	for _, c := range []struct{ said, stored, want string }{
		{"application/vnd.oci.image.index.v1+json", "application/octet-stream",
			"application/vnd.oci.image.index.v1+json"},
		{"", "application/x-to-the-Letter; a=b", "application/x-to-the-Letter; a=b"},
		{"application/octet-stream", "application/octet-stream", oci.MediaTypeIndex},
		{"", "", oci.MediaTypeIndex},
	} {
		var s swarm
		m := s.put(index, c.stored)
		up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/manifests/v1": {index, c.said}})}
		p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			res := ask(p, method, "/v2/app/manifests/v1")
			require.Equal(t, 200, res.StatusCode)
			assert.Equal(t, c.want, res.Header.Get("Content-Type"), "%s %+v", method, c)
			assert.Equal(t, string(m), res.Header.Get("Docker-Content-Digest"))
		}
	}
}

func TestTheOriginsErrorIsPassedOn(t *testing.T) {
	own := `{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}`
	layer := blob(10)
	b := oci.DigestOf(layer)
	up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + string(b): {layer, ""}})}
	for _, c := range []struct {
		err     error
		query   string
		status  int
		code    string
		exactly string
		has     string
	}{
		{err: &api.Failure{Status: 429, Body: []byte(own), Message: "GET …: 429",
			Header: map[string]string{"Retry-After": "7"}}, status: 429, exactly: own},
		// containerd would repeat a 429 in a loop; it names ns.
		{err: &api.Failure{Status: 429, Body: []byte(own), Message: "GET …: 429"}, query: "?ns=r.test",
			status: 503, exactly: own},
		{err: &api.Failure{Status: 403, Body: []byte("<html>no</html>"), Message: "GET …: 403 Forbidden"}, status: 403,
			exactly: "<html>no</html>"},
		{err: &api.Failure{Status: 502, Message: "dial tcp 10.0.0.1:443: connection refused"}, status: 502,
			code: "UNAVAILABLE", has: "dial tcp 10.0.0.1:443: connection refused"},
		{err: &api.Failure{Status: 302, Message: "odd"}, status: 502, code: "UNAVAILABLE", has: "odd"},
		{err: fmt.Errorf("opening the replica: %w", piece.ErrNoSpace), status: 503, code: "UNAVAILABLE",
			has: "no space left in the piece store"},
	} {
		s := swarm{err: c.err}
		p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
		res := ask(p, http.MethodGet, "/v2/app/blobs/"+string(b)+c.query)
		if c.exactly != "" {
			assert.Equal(t, c.status, res.StatusCode)
			assert.Equal(t, c.exactly, body(t, res))
		} else {
			assert.Contains(t, refusedAs(t, res, c.status, c.code), c.has)
		}
		if f, ok := c.err.(*api.Failure); ok {
			assert.Equal(t, f.Header["Retry-After"], res.Header.Get("Retry-After"))
		}
	}
}

func TestNoClientIsRefusedForAnothersCredentials(t *testing.T) {
	layer := blob(10)
	b := oci.DigestOf(layer)
	up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + string(b): {layer, ""}})}
	for _, refusals := range []int{1, 2} {
		opened := 0
		p := newMirror(config{Upstream: up, Default: "r.test",
			Open: func(_ context.Context, spec task.Spec) (registryproxy.Blob, error) {
				if opened++; opened <= refusals {
					return nil, spoken(&api.Failure{Status: 401, Message: "the token of another has ended",
						Header: map[string]string{"WWW-Authenticate": "Bearer x"}}, spec)
				}
				return &fakeBlob{data: layer}, nil
			}})
		res := ask(p, http.MethodGet, "/v2/app/blobs/"+string(b), "Authorization", "Bearer mine")
		if refusals == 1 {
			assert.Equal(t, string(layer), body(t, res))
			continue
		}
		refusedAs(t, res, http.StatusUnauthorized, "UNAUTHORIZED")
		assert.Equal(t, "Bearer x", res.Header.Get("WWW-Authenticate"))
		assert.Equal(t, 2, opened)
		for _, k := range []string{"ETag", "Docker-Content-Digest", "Accept-Ranges"} {
			assert.Empty(t, res.Header.Get(k), k)
		}
	}
}

func TestAnUnreachableRegistryIsReportedAtOnce(t *testing.T) {
	up := &upstreamFunc{err: errors.New("dial tcp 192.0.2.1:443: connect: connection refused")}
	p := newMirror(config{Upstream: up, Open: (&swarm{}).Open, Default: "r.test"})
	for _, path := range []string{"", "app/manifests/v1", "app/blobs/" + missing, "app/tags/list",
		"app/referrers/" + missing} {
		said := refusedAs(t, ask(p, http.MethodGet, "/v2/"+path), http.StatusBadGateway, "UNAVAILABLE")
		assert.Contains(t, said, "asking r.test: ")
		assert.Contains(t, said, "192.0.2.1:443: connect: connection refused")
	}
}

func TestEveryClientHasADeadline(t *testing.T) {
	layer := blob(10)
	b := oci.DigestOf(layer)
	known := answers(map[string]object{"r.test/v2/app/blobs/" + string(b): {layer, ""}})
	for name, c := range map[string]struct {
		up     *upstreamFunc
		open   func(context.Context, task.Spec) (registryproxy.Blob, error)
		target string
		wait   time.Duration
	}{
		"a registry that is silent": {&upstreamFunc{}, nil, "manifests/v1", 10 * time.Second},
		"a registry that is silent, to ns": {&upstreamFunc{}, nil, "blobs/" + missing + "?ns=r.test",
			10 * time.Second},
		"a client that cannot go elsewhere": {&upstreamFunc{}, nil, "blobs/" + missing, time.Minute},
		"a swarm that knows nothing": {&upstreamFunc{answer: known},
			func(ctx context.Context, _ task.Spec) (registryproxy.Blob, error) {
				<-ctx.Done()
				return nil, context.Cause(ctx)
			}, "blobs/" + string(b) + "?ns=r.test", 10 * time.Second},
		"a swarm that has no byte": {&upstreamFunc{answer: known},
			func(context.Context, task.Spec) (registryproxy.Blob, error) {
				return &fakeBlob{data: layer, stall: true}, nil
			}, "blobs/" + string(b) + "?ns=r.test", 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newMirror(config{Upstream: c.up, Open: c.open, Default: "r.test"})
				began := time.Now()
				said := refusedAs(t, ask(p, http.MethodGet, "/v2/app/"+c.target), http.StatusGatewayTimeout,
					"UNAVAILABLE")
				assert.Equal(t, c.wait, time.Since(began))
				assert.Contains(t, said, "r.test gave no byte of /v2/app/")
			})
		})
	}
}

func TestABodyMayTakeLongerThanTheFirstByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		layer := blob(10000)
		b := oci.DigestOf(layer)
		up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + string(b): {layer, ""}})}
		content := &slowBlob{fakeBlob: fakeBlob{data: layer}, pause: time.Minute}
		p := newMirror(config{Upstream: up, Default: "r.test",
			Open: func(context.Context, task.Spec) (registryproxy.Blob, error) { return content, nil }})
		res := ask(p, http.MethodGet, "/v2/app/blobs/"+string(b)+"?ns=r.test")
		assert.Equal(t, string(layer), body(t, res))
	})
}

// slowBlob pauses between the first bytes and the rest.
type slowBlob struct {
	fakeBlob
	pause time.Duration
}

func (c *slowBlob) NewReader(ctx context.Context, off, n int64) registryproxy.Reader {
	return &slowReader{Reader: c.fakeBlob.NewReader(ctx, off, n), c: c, ctx: ctx}
}

type slowReader struct {
	registryproxy.Reader
	c   *slowBlob
	ctx context.Context
}

func (r *slowReader) WriteTo(w io.Writer) (int64, error) {
	select {
	case <-time.After(r.c.pause):
		return r.Reader.WriteTo(w)
	case <-r.ctx.Done():
		return 0, context.Cause(r.ctx)
	}
}

func TestABlobThatFailsBeforeItsFirstByteIsAnError(t *testing.T) {
	layer := blob(10)
	b := oci.DigestOf(layer)
	up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + string(b): {layer, ""}})}
	p := newMirror(config{Upstream: up, Default: "r.test",
		Open: func(context.Context, task.Spec) (registryproxy.Blob, error) {
			return &fakeBlob{data: layer, err: &api.Failure{Status: 502, Message: "the body ended after 0 bytes"}}, nil
		}})
	said := refusedAs(t, ask(p, http.MethodGet, "/v2/app/blobs/"+string(b)), http.StatusBadGateway, "UNAVAILABLE")
	assert.Contains(t, said, "the body ended after 0 bytes")
}

func TestAPushIsRefusedClearly(t *testing.T) {
	up := &upstreamFunc{}
	p := newMirror(config{Upstream: up, Open: (&swarm{}).Open, Default: "r.test"})
	for _, c := range [][2]string{
		{"POST", "/v2/app/blobs/uploads/"}, {"GET", "/v2/app/blobs/uploads/abc"},
		{"PATCH", "/v2/app/blobs/uploads/abc"},
		{"PUT", "/v2/app/manifests/v1"},
		{"DELETE", "/v2/app/manifests/v1"}, {"DELETE", "/v2/app/blobs/" + missing}, {"POST", "/v2/"},
		{"OPTIONS", "/v2/app/tags/list"},
	} {
		res := ask(p, c[0], c[1])
		assert.Contains(t, refusedAs(t, res, http.StatusMethodNotAllowed, "UNSUPPORTED"), "push to the registry itself")
		assert.Equal(t, "GET, HEAD", res.Header.Get("Allow"))
	}
	assert.Empty(t, up.requests())
}

func TestARequestIsBounded(t *testing.T) {
	p := newMirror(config{Upstream: &upstreamFunc{}, Open: (&swarm{}).Open, Default: "r.test"})
	refusedAs(t, ask(p, http.MethodGet, "/v2/app/tags/list?last="+strings.Repeat("a", 9000)),
		http.StatusRequestURITooLong, "UNKNOWN")
	refusedAs(t, ask(p, http.MethodGet, "/v2/app/manifests/v1", "Accept", strings.Repeat("a", 70000)),
		http.StatusRequestHeaderFieldsTooLarge, "UNKNOWN")
	r := httptest.NewRequest(http.MethodGet, "/v2/app/manifests/v1", strings.NewReader(strings.Repeat("a", 5000)))
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	refusedAs(t, w.Result(), http.StatusRequestEntityTooLarge, "UNKNOWN")
}

func TestTagsAndReferrersAreForwardedWithLinks(t *testing.T) {
	up := &upstreamFunc{answer: func(w http.ResponseWriter, r source.RegistryRequest) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		w.Header().Set("OCI-Filters-Applied", "artifactType")
		w.Header().Set("Link", `</v2/lib/app/tags/list?last=b&n=2>; rel="next"`)
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Content-Length", "13")
		if r.Method == http.MethodGet {
			io.WriteString(w, `{"tags":["a"]`)
		}
	}}
	p := newMirror(config{Upstream: up, Open: (&swarm{}).Open, Default: "r.test"})
	for target, link := range map[string]string{
		"/v2/lib/app/tags/list?n=2&last=a":                            "/v2/lib/app/tags/list?last=b&n=2",
		"/v2/lib/app/tags/list?n=2&last=a&ns=r.test":                  "/v2/lib/app/tags/list?last=b&n=2&ns=r.test",
		"/v2/r.test/lib/app/tags/list?n=2&last=a":                     "/v2/r.test/lib/app/tags/list?last=b&n=2",
		"/v2/r.test/lib/app/referrers/" + missing + "?artifactType=x": "/v2/r.test/lib/app/tags/list?last=b&n=2",
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			res := ask(p, method, target)
			require.Equal(t, 200, res.StatusCode)
			assert.Equal(t, "<"+link+`>; rel="next"`, res.Header.Get("Link"), target)
			assert.Equal(t, "application/vnd.oci.image.index.v1+json", res.Header.Get("Content-Type"))
			assert.Equal(t, "artifactType", res.Header.Get("OCI-Filters-Applied"))
			assert.Equal(t, "13", res.Header.Get("Content-Length"))
			assert.Empty(t, res.Header.Get("Set-Cookie"))
			last := up.requests()[len(up.requests())-1]
			assert.Equal(t, "r.test", last.Upstream)
			assert.Equal(t, method, last.Method)
			assert.NotContains(t, last.Query, "ns=")
			if strings.Contains(target, "referrers") {
				assert.Equal(t, "/v2/lib/app/referrers/"+missing+" artifactType=x", last.Path+" "+last.Query)
			} else {
				assert.Equal(t, "/v2/lib/app/tags/list last=a&n=2", last.Path+" "+last.Query)
			}
		}
	}
}

func TestAListThatIsRedirectedIsAnErrorAndNoEmptyList(t *testing.T) {
	up := &upstreamFunc{answer: func(w http.ResponseWriter, r source.RegistryRequest) {
		w.WriteHeader(http.StatusFound)
	}}
	p := newMirror(config{Upstream: up, Open: (&swarm{}).Open, Default: "r.test"})
	refusedAs(t, ask(p, http.MethodGet, "/v2/app/tags/list"), http.StatusBadGateway, "UNAVAILABLE")
}

func TestAPingIsForwardedToTheNamedRegistry(t *testing.T) {
	up := &upstreamFunc{answer: func(w http.ResponseWriter, r source.RegistryRequest) {
		w.Header().Set("WWW-Authenticate", "Basic realm="+r.Upstream+r.Path)
		w.WriteHeader(http.StatusUnauthorized)
	}}
	p := newMirror(config{Upstream: up, Open: (&swarm{}).Open, Default: "r.test"})
	for target, upstream := range map[string]string{"/v2/": "r.test", "/v2": "r.test", "/v2/?ns=quay.io": "quay.io",
		"/v2/ghcr.io/": "ghcr.io", "/v2/ghcr.io": "ghcr.io"} {
		res := ask(p, http.MethodGet, target)
		assert.Equal(t, 401, res.StatusCode, target)
		assert.Equal(t, "Basic realm="+upstream+"/v2/", res.Header.Get("WWW-Authenticate"), target)
	}
	before := len(up.requests())
	podman := ask(p, http.MethodGet, "/v2/", "Docker-Distribution-API-Version", "registry/2.0")
	assert.Equal(t, 200, podman.StatusCode)
	assert.Equal(t, "{}", body(t, podman))
	assert.Len(t, up.requests(), before)
	podman = ask(p.For("own.test"), http.MethodGet, "/v2/", "Docker-Distribution-API-Version", "registry/2.0")
	assert.Equal(t, 401, podman.StatusCode, "a listener of one registry")
	assert.Equal(t, "Basic realm=own.test/v2/", podman.Header.Get("WWW-Authenticate"))
	before++
	none := newMirror(config{Upstream: up, Open: (&swarm{}).Open})
	assert.Equal(t, 200, ask(none, http.MethodGet, "/v2/").StatusCode)
	assert.Len(t, up.requests(), before)
}

func TestAPingIsRepeatedWhileTheRegistryIsUnreachable(t *testing.T) {
	status := 200
	up := &upstreamFunc{answer: func(w http.ResponseWriter, r source.RegistryRequest) {
		w.Header().Set("WWW-Authenticate", "Basic realm="+r.Upstream)
		w.WriteHeader(status)
		io.WriteString(w, "{}")
	}}
	p := newMirror(config{Upstream: up, Open: (&swarm{}).Open, Default: "r.test"})
	down := func(down bool) {
		if up.fail(nil); down {
			up.fail(errors.New("connection refused"))
		}
	}
	down(true)
	assert.Equal(t, 502, ask(p, http.MethodGet, "/v2/").StatusCode, "there is no ping to repeat")
	for _, status = range []int{200, 401} {
		down(false)
		assert.Equal(t, status, ask(p, http.MethodGet, "/v2/").StatusCode)
		down(true)
		res := ask(p, http.MethodGet, "/v2/")
		assert.Equal(t, status, res.StatusCode)
		assert.Equal(t, "0", res.Header.Get(registryproxy.HeaderStale))
		if status == 401 {
			assert.Equal(t, "Basic realm=r.test", res.Header.Get("WWW-Authenticate"))
		}
		assert.Equal(t, 502, ask(p, http.MethodGet, "/v2/?ns=quay.io").StatusCode, "another registry")
		assert.Equal(t, 502, ask(p, http.MethodGet, "/v2/", "Authorization", "Bearer x").StatusCode,
			"whether credentials are good only the registry knows")
	}
	down(false)
	status = 503
	assert.Equal(t, 503, ask(p, http.MethodGet, "/v2/").StatusCode, "an answer, whatever it is, stands")
	down(true)
	assert.Equal(t, 401, ask(p, http.MethodGet, "/v2/").StatusCode, "an error is not remembered as a ping")
}

func TestEveryRequestIsObservedOnce(t *testing.T) {
	var s swarm
	var seen pulls
	layer := blob(10000)
	b := s.put(layer, "")
	up := &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + string(b): {layer, ""}})}
	p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test", Observe: seen.observe})

	ask(p, http.MethodGet, "/v2/app/blobs/"+string(b), "Range", "bytes=5-", "User-Agent", "containerd/2.4")
	got := seen.last(t)
	assert.Positive(t, got.Granted)
	assert.GreaterOrEqual(t, got.Opened, got.Granted)
	assert.GreaterOrEqual(t, got.FirstByte, got.Opened)
	assert.GreaterOrEqual(t, got.Total, got.FirstByte)
	assert.Same(t, s.contents[b], got.Blob)
	got.Granted, got.Opened, got.FirstByte, got.Total, got.Blob = 0, 0, 0, 0, nil
	assert.Equal(t, registryproxy.Pull{
		Endpoint: "blob", Method: "GET", Upstream: "r.test", Repository: "app", Reference: string(b), Task: b,
		Client: "containerd/2.4", Status: 206, Ranged: true, Bytes: 9995,
	}, got)

	ask(p, http.MethodGet, "/v2/app/manifests/v1?ns=quay.io")
	got = seen.last(t)
	assert.Equal(t, 404, got.Status)
	assert.Equal(t, "quay.io app v1 manifest",
		strings.Join([]string{got.Upstream, got.Repository, got.Reference, got.Endpoint}, " "))
	assert.ErrorContains(t, got.Err, "quay.io answered 404 Not Found to /v2/app/manifests/v1")
	assert.Zero(t, got.Granted, "there was no grant")
	ask(p, http.MethodGet, "/nonsense")
	assert.Equal(t, 404, seen.last(t).Status)
	assert.Len(t, seen.all, 3)
}

func FuzzServeHTTP(f *testing.F) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for _, path := range []string{"/v2/", "/v2/lib/app/manifests/v1", "/v2/quay.io/lib/app/blobs/" + digest,
		"/v2/a/blobs/uploads/", "/v2/a_1/tags/list", "/v2/../x/manifests/y", "/v2/a/referrers/" + digest} {
		f.Add(path, "ns=quay.io", "", "bytes=1-2", `"x"`)
		f.Add(path, "", "https://ghcr.io", "", digest)
	}
	f.Fuzz(func(t *testing.T, path, query, header, asked, tag string) {
		// Servers accept no longer headers than that.
		if !strings.HasPrefix(path, "/") ||
			len(path)+len(query)+len(header)+len(asked)+len(tag) > http.DefaultMaxHeaderBytes {
			return
		}
		// In virtual time no timeout fires because the machine is busy. Every goroutine of a request must end before the next
		// request.
		synctest.Test(t, func(t *testing.T) { fuzzRequest(t, path, query, header, asked, tag) })
	})
}

func fuzzRequest(t *testing.T, path, query, header, asked, tag string) {
	began := time.Now()
	var s swarm
	layer := blob(100)
	up := &upstreamFunc{answer: func(w http.ResponseWriter, r source.RegistryRequest) {
		host, err := oci.ParseHost(r.Upstream)
		require.NoError(t, err)
		require.Equal(t, host, r.Upstream)
		require.True(t, strings.HasPrefix(r.Path, "/v2/"), r.Path)
		for _, part := range []string{"..", "//", "?", "#", "%", " ", "\n"} {
			require.NotContains(t, r.Path, part)
		}
		w.Header().Set("Link", "<"+path+"?"+query+">")
		w.Header().Set("Docker-Content-Digest", tag)
		w.Write(layer)
	}}
	s.put(layer, header)
	p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.URL.Path, r.URL.RawQuery = path, query
	r.Header = http.Header{"X-Darter-Upstream": {header}, "Range": {asked}, "If-None-Match": {tag}, "If-Range": {tag}}
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	require.Zero(t, time.Since(began), "nothing here is worth waiting for")
	require.Equal(t, "registry/2.0", w.Header().Get("Docker-Distribution-API-Version"))
	for _, o := range s.opened {
		_, err := oci.ParseDigest(string(o.ID))
		require.NoError(t, err)
	}
}

// A client acts on the code of an error: oras takes NAME_UNKNOWN for a missing repository, and any other 404 to
// referrers for a registry without that API; crane asks again after UNKNOWN.
func TestErrorsAreInTheRegistrysWords(t *testing.T) {
	paths := []string{"app/manifests/v1", "app/manifests/" + missing, "app/blobs/" + missing, "app/tags/list",
		"app/referrers/" + missing}
	for _, c := range []struct {
		status                                   int
		contentType, words, passedType, passedOn string
	}{
		{404, "text/plain; charset=utf-8", "404 page not found\n", "", ""},
		{404, "application/json", `{"message":"no such thing"}`, "", ""},
		{404, "application/problem+json", `{"title":"none"}`, "", ""},
		{404, "application/json", `{"errors":[]}`, "", ""},
		{404, "application/json", `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"my words"}]}`, "", ""},
		{404, "text/plain", `{"errors":[{"code":"NAME_UNKNOWN"}]}`, "application/json", ""},
		{400, "", "bad", "text/plain; charset=utf-8", ""},
		{403, "text/html", "<script>no</script>", "text/plain; charset=utf-8", ""},
		{500, "text/plain; charset=utf-8", "oops", "", ""},
		{404, "", "", "text/plain; charset=utf-8", "r.test answered 404 Not Found to "},
		{400, "", "", "text/plain; charset=utf-8", "r.test answered 400 Bad Request to "},
	} {
		up := &upstreamFunc{answer: func(w http.ResponseWriter, q source.RegistryRequest) {
			if c.contentType != "" {
				w.Header().Set("Content-Type", c.contentType)
			}
			w.WriteHeader(c.status)
			io.WriteString(w, c.words)
		}}
		p := newMirror(config{Upstream: up, Open: (&swarm{}).Open, Default: "r.test"})
		for _, path := range paths {
			res := ask(p, http.MethodGet, "/v2/"+path)
			assert.Equal(t, c.status, res.StatusCode, path)
			assert.Equal(t, cmp.Or(c.passedType, c.contentType), res.Header.Get("Content-Type"), "%s: %s", path, c.words)
			if c.passedOn == "" {
				assert.Equal(t, c.words, body(t, res), path)
			} else {
				assert.Equal(t, c.passedOn+"/v2/"+path+"\n", body(t, res))
			}
		}
	}
}

// The digest of a signed manifest of schema 1 is that of its payload. The client compares it so; the swarm cannot.
func TestASignedManifestIsPassedOn(t *testing.T) {
	const mediaType = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	signed := []byte(`{"schemaVersion":1,"fsLayers":[],"signatures":[]}`)
	payload := oci.DigestOf([]byte(`{"schemaVersion":1,"fsLayers":[]}`))
	up := &upstreamFunc{answer: func(w http.ResponseWriter, q source.RegistryRequest) {
		if q.Header.Get("Authorization") != "Bearer mine" {
			w.Header().Set("WWW-Authenticate", "Basic realm=r")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Docker-Content-Digest", string(payload))
		w.Header().Set("Content-Length", fmt.Sprint(len(signed)))
		w.Write(signed)
	}}
	var s swarm
	p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test", Policy: access.Policy{TagLife: time.Hour}})
	for _, reference := range []string{"v1", string(payload), "v1"} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			res := ask(p, method, "/v2/app/manifests/"+reference, "Authorization", "Bearer mine")
			require.Equal(t, 200, res.StatusCode)
			assert.Equal(t, mediaType, res.Header.Get("Content-Type"))
			assert.Equal(t, string(payload), res.Header.Get("Docker-Content-Digest"))
			if method == http.MethodGet {
				assert.Equal(t, string(signed), body(t, res))
			}
		}
		refused := ask(p, http.MethodGet, "/v2/app/manifests/"+reference, "Authorization", "Bearer other")
		assert.Equal(t, 401, refused.StatusCode)
	}
	assert.Empty(t, s.opened)
}

// partBlob records which windows may come before the whole is checked.
type partBlob struct {
	*fakeBlob
	early int
}

func (b *partBlob) NewPartReader(ctx context.Context, off, n int64) registryproxy.Reader {
	b.early++
	return b.NewReader(ctx, off, n)
}

// Only the client of a range that names its end in each part checks the bytes that it gets.
func TestRangesThatNameTheirEndsComeEarly(t *testing.T) {
	content := blob(1000)
	id := oci.DigestOf(content)
	up := &upstreamFunc{answer: func(w http.ResponseWriter, _ source.RegistryRequest) {
		w.Header().Set("Content-Length", "1000")
	}}
	one := &partBlob{fakeBlob: &fakeBlob{data: content}}
	p := newMirror(config{Upstream: up, Default: "r.test",
		Open: func(context.Context, task.Spec) (registryproxy.Blob, error) { return one, nil }})
	for asked, early := range map[string]int{
		"":                     0,
		"bytes=0-":             0,
		"bytes=0-999":          0, // the whole
		"bytes=0-5000":         0,
		"bytes=1-999":          1,
		"bytes=-10":            1,
		"bytes=990-":           0,
		"bytes=990- ,":         0,
		"bytes=990-,5000-6000": 0, // the second does not exist
		"bytes=0-9,20-29":      2,
		"bytes=0-9,20-":        0,
		"bytes=20-,0-9":        0,
		"bytes=0-9,-5":         2,
	} {
		one.early = 0
		res := ask(p, http.MethodGet, "/v2/app/blobs/"+string(id), "Range", asked)
		require.Less(t, res.StatusCode, 300, asked)
		assert.Equal(t, early, one.early, "%q", asked)
	}
}
