package registry_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/source/registry"
	"github.com/darter-io/darter/pkg/source/sourcetest"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/test/registrytest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction(registrytest.LeakIgnored))
}

var loopback = httporigin.Config{AllowAddrs: []netip.Prefix{sourcetest.Loopback}}

func client(t *testing.T, cfg registry.Config) *registry.Client {
	c, err := registry.New(cfg)
	require.NoError(t, err)
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// of is a client of one registry.
func of(t *testing.T, r *registrytest.Registry, u registry.Upstream) *registry.Client {
	u.Proxy = "none"
	if r.CA() != nil {
		u.CAFile = filepath.Join(t.TempDir(), "ca.pem")
		require.NoError(t, os.WriteFile(u.CAFile, r.CA(), 0o600))
	} else {
		u.PlainHTTP = true
	}
	return client(t, registry.Config{Upstreams: map[string]registry.Upstream{r.Host(): u}})
}

func TestBlobsAndManifestsKeepTheContract(t *testing.T) {
	for _, kind := range []task.Kind{task.Blob, task.Manifest} {
		for _, authorization := range []secret.String{"", "Bearer " + sourcetest.Secret} {
			t.Run(fmt.Sprintf("%s, own token %t", kind, authorization != ""), func(t *testing.T) {
				sourcetest.Run(t, func(t *testing.T, s *sourcetest.Server) sourcetest.Subject {
					host := s.Listener.Addr().String()
					cfg := loopback
					cfg.HeaderTimeout, cfg.IdleTimeout = s.Timeout, s.Timeout
					sum := sha256.Sum256(s.Content)
					return sourcetest.Subject{
						Origin: client(t,
							registry.Config{Upstreams: map[string]registry.Upstream{host: {PlainHTTP: true,
								Proxy: "none"}}, HTTP: cfg}),
						DigestNamed: true,
						Spec: task.Spec{
							ID: task.ID("sha256:" + hex.EncodeToString(sum[:])), Kind: kind, Upstream: host,
							Repository:    "lib/app",
							Authorization: authorization,
						},
					}
				})
			})
		}
	}
}

var content = []byte(strings.Repeat("darter ", 5000))

// blob pushes a blob and returns its spec.
func blob(t *testing.T, r *registrytest.Registry, repository string) task.Spec {
	digest, err := r.PushBlob(t.Context(), repository, content)
	require.NoError(t, err)
	return task.Spec{ID: task.ID(digest), Kind: task.Blob, Upstream: r.Host(), Repository: repository}
}

func bring(t *testing.T, c *registry.Client, spec task.Spec, offset int64) error {
	res, err := c.Open(t.Context(), spec, offset)
	if err != nil {
		assert.NotContains(t, err.Error(), "hunter2")
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil {
		assert.Equal(t, content[offset:], b)
	}
	return err
}

func statusOf(err error) int {
	if err == nil {
		return http.StatusOK
	}
	return source.Failure(err).Status
}

var users = map[string]registrytest.User{
	"alice": {Password: "hunter2", Pull: []string{"team/*"}},
	"":      {Pull: []string{"public/*"}},
}

func TestTheNodesCredentialsLogIn(t *testing.T) {
	for _, auth := range []registrytest.Auth{registrytest.Basic, registrytest.Bearer} {
		t.Run(string(auth), func(t *testing.T) {
			r := registrytest.Start(t, registrytest.Config{Auth: auth, TLS: true, Users: users})
			team, other, public := blob(t, r, "team/app"), blob(t, r, "other/app"), blob(t, r, "public/app")
			right := of(t, r, registry.Upstream{Username: "alice", Password: "hunter2"})
			require.NoError(t, bring(t, right, team, 0))
			require.NoError(t, bring(t, right, team, 1000))
			assert.Contains(t, []int{401, 403}, statusOf(bring(t, right, other, 0)))
			wrong := of(t, r, registry.Upstream{Username: "alice", Password: "hunter22"})
			assert.Equal(t, http.StatusUnauthorized, statusOf(bring(t, wrong, team, 0)))
			nobody := of(t, r, registry.Upstream{})
			require.NoError(t, bring(t, nobody, public, 0))
			assert.Equal(t, http.StatusUnauthorized, statusOf(bring(t, nobody, team, 0)))
		})
	}
}

func TestOneLoginServesManyReadersUntilItsTokenEnds(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	spec := blob(t, r, "team/app")
	c := of(t, r, registry.Upstream{Username: "alice", Password: "hunter2"})
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() { assert.NoError(t, bring(t, c, spec, 0)) })
	}
	readers.Wait()
	assert.Equal(t, 1, r.Counts().Tokens)
	r.RevokeTokens()
	require.NoError(t, bring(t, c, spec, 1000))
	assert.Equal(t, 2, r.Counts().Tokens)
}

func TestAnIdentityTokenLogsInToo(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	spec := blob(t, r, "team/app")
	require.NoError(t,
		bring(t, of(t, r, registry.Upstream{IdentityToken: secret.String(r.IdentityToken("alice"))}), spec, 0))
	assert.Equal(t, http.StatusUnauthorized,
		statusOf(bring(t, of(t, r, registry.Upstream{IdentityToken: "hunter2"}), spec, 0)))
}

// token is what a client of the mirror would have got for itself.
func token(t *testing.T, r *registrytest.Registry, repository string) secret.String {
	u := r.URL() + "/token?service=registrytest&scope=repository:" + repository + ":pull"
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u, nil)
	require.NoError(t, err)
	req.SetBasicAuth("alice", "hunter2")
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	res, err := tr.RoundTrip(req)
	require.NoError(t, err)
	defer res.Body.Close()
	var answer struct{ Token string }
	require.NoError(t, json.NewDecoder(res.Body).Decode(&answer))
	return secret.String("Bearer " + answer.Token)
}

func TestAClientsOwnTokenIsUsedAndTheNodesIsNot(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	spec := blob(t, r, "team/app")
	c := of(t, r, registry.Upstream{Username: "alice", Password: "hunter2"})
	r.Reset()
	spec.Authorization = "Bearer hunter2"
	err := bring(t, c, spec, 0)
	var refused *source.StatusError
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, http.StatusUnauthorized, refused.Status)
	assert.Contains(t, refused.Header.Get("Www-Authenticate"), `scope="repository:team/app:pull"`,
		"the challenge is for the client")
	spec.Authorization = token(t, r, "team/app")
	require.NoError(t, bring(t, c, spec, 0))
	counts := r.Counts()
	assert.Equal(t, 1, counts.Tokens, "the client's own")
	assert.Zero(t, counts.Pings)
}

func TestABlobThatIsRedirectedComesWithoutTheToken(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	spec := blob(t, r, "team/app")
	r.Fail(registrytest.Fault{Action: registrytest.ActRedirect})
	c := client(t, registry.Config{
		Upstreams: map[string]registry.Upstream{r.Host(): {PlainHTTP: true, Proxy: "none", Username: "alice",
			Password: "hunter2"}}, HTTP: loopback,
	})
	require.NoError(t, bring(t, c, spec, 0))
	require.NoError(t, bring(t, c, spec, 1000))
	own := spec
	own.Authorization = token(t, r, "team/app")
	require.NoError(t, bring(t, c, own, 1000))
	assert.Zero(t, r.Counts().Leaks)

	strict := of(t, r, registry.Upstream{Username: "alice", Password: "hunter2"})
	var refused *httporigin.AddrError
	require.ErrorAs(t, bring(t, strict, spec, 0), &refused,
		"a registry redirects to loopback only if the operator allows it")
}

func TestOpenWaitsOnceAsRetryAfterAsks(t *testing.T) {
	for _, row := range []struct {
		status, times int
		retryAfter    string
		gets          int
		ok            bool
	}{
		{429, 1, "1", 2, true},
		{503, 1, "1", 2, true},
		{429, 2, "1", 2, false},
		{429, 1, "6", 1, false},
		{429, 1, "", 1, false},
		{429, 1, "Sun, 06 Nov 1994 08:49:37 GMT", 1, false},
		{500, 1, "1", 2, true},
		{500, 2, "", 2, false},
		{507, 1, "", 2, true},
		{501, 1, "", 1, false},
	} {
		t.Run(fmt.Sprintf("%d × %d, Retry-After %q", row.times, row.status, row.retryAfter), func(t *testing.T) {
			t.Parallel()
			r := registrytest.Start(t, registrytest.Config{})
			digest, err := r.PushBlob(t.Context(), "lib/app", []byte("patience"))
			require.NoError(t, err)
			r.Fail(registrytest.Fault{
				Action: registrytest.ActStatus, Status: row.status, Times: row.times,
				Header: map[string]string{"Retry-After": row.retryAfter},
			})
			res, err := of(t, r, registry.Upstream{}).Open(t.Context(),
				task.Spec{ID: task.ID(digest), Kind: task.Blob, Upstream: r.Host(), Repository: "lib/app"}, 0)
			assert.Equal(t, row.gets, r.Counts().Object(digest).GETs)
			if !row.ok {
				var refused *source.StatusError
				require.ErrorAs(t, err, &refused)
				assert.Equal(t, row.status, refused.Status)
				return
			}
			require.NoError(t, err)
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			assert.Equal(t, "patience", string(b))
		})
	}
}

func TestManifestsComeByDigestInTheFormsAccepted(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	img, err := registrytest.NewImage(1, []int64{8 << 10})
	require.NoError(t, err)
	p, err := r.Push(t.Context(), "lib/app", "v1", img)
	require.NoError(t, err)
	want, err := img.RawManifest()
	require.NoError(t, err)
	spec := task.Spec{ID: task.ID(p.Digest), Kind: task.Manifest, Upstream: r.Host(), Repository: "lib/app",
		Length: int64(len(want))}
	res, err := of(t, r, registry.Upstream{}).Open(t.Context(), spec, 0)
	require.NoError(t, err)
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	assert.Equal(t, want, got)
	assert.Equal(t, "application/vnd.oci.image.manifest.v1+json", res.MediaType)
}

func TestOnlyRegistriesOfTheListAreAsked(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	spec := blob(t, r, "lib/app")
	listed := client(t, registry.Config{Upstreams: map[string]registry.Upstream{"quay.io": {}}})
	err := bring(t, listed, spec, 0)
	var refused *registry.UpstreamError
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, r.Host(), refused.Upstream)
	assert.Equal(t, http.StatusForbidden, statusOf(err))
	assert.Contains(t, string(source.Failure(err).Body), "DENIED")
	require.ErrorAs(t, listed.Allow("ghcr.io"), &refused)
	require.NoError(t, listed.Allow("quay.io"))
	require.Error(t, listed.Allow("quay.io/../x"))
	assert.Equal(t, []string{"quay.io"}, listed.Upstreams())

	others := client(t, registry.Config{Default: &registry.Upstream{PlainHTTP: true, Proxy: "none"}})
	require.NoError(t, others.Allow("ghcr.io"))
	var addr *httporigin.AddrError
	require.ErrorAs(t, bring(t, others, spec, 0), &addr, "this machine's own services are no registries")
	require.NoError(t, bring(t,
		client(t, registry.Config{Default: &registry.Upstream{PlainHTTP: true, Proxy: "none"}, HTTP: loopback}), spec,
		0))
	assert.Equal(t, 1, r.Counts().Object(string(spec.ID)).GETs)
}

func TestHostileNamesStayAtTheRegistry(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	good := blob(t, r, "lib/app")
	c := of(t, r, registry.Upstream{})
	r.Reset()
	for _, change := range []func(*task.Spec){
		func(s *task.Spec) { s.Repository = "../lib/app" },
		func(s *task.Spec) { s.Repository = "lib/app?x" },
		func(s *task.Spec) { s.Repository = "" },
		func(s *task.Spec) { s.ID = "file:" + s.ID[7:] },
		func(s *task.Spec) { s.ID = "sha256:../../x" },
		func(s *task.Spec) { s.Kind = task.Plain },
		func(s *task.Spec) { s.Upstream = "user@" + s.Upstream },
	} {
		spec := good
		change(&spec)
		require.Error(t, bring(t, c, spec, 0), "%+v", spec)
	}
	for _, q := range []source.RegistryRequest{
		{Method: "GET", Path: "/token"}, {Method: "GET", Path: "/v2/../token"},
		{Method: "GET", Path: "/v2//x/tags/list"},
		{Method: "DELETE", Path: "/v2/lib/app/manifests/v1"}, {Path: "/v2/"},
	} {
		q.Upstream = r.Host()
		_, err := c.Do(t.Context(), q)
		require.Error(t, err, "%+v", q)
	}
	assert.Zero(t, r.Counts().Requests)
}

func ask(t *testing.T, c *registry.Client, q source.RegistryRequest) (*http.Response, string) {
	res, err := c.Do(t.Context(), q)
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res, string(b)
}

func TestDoReturnsAnyStatusOfTheRegistry(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	img, err := registrytest.NewImage(1, []int64{8 << 10})
	require.NoError(t, err)
	p, err := r.Push(t.Context(), "team/app", "v1", img)
	require.NoError(t, err)
	plain := of(t, r, registry.Upstream{})
	tag := source.RegistryRequest{Upstream: r.Host(), Method: http.MethodHead, Path: "/v2/team/app/manifests/v1",
		Header: http.Header{"Accept": {"application/vnd.oci.image.manifest.v1+json"}}}

	res, _ := ask(t, plain, tag)
	assert.Equal(t, http.StatusUnauthorized, res.StatusCode)
	assert.Contains(t, res.Header.Get("Www-Authenticate"), `Bearer realm="`+r.URL()+`/token"`)
	assert.Zero(t, r.Counts().Tokens, "the challenge is the client's to take up")

	own := tag
	own.Header = http.Header{"Accept": tag.Header["Accept"], "Authorization": {token(t, r, "team/app").Reveal()},
		"X-Secret": {"no business of a registry"}}
	res, _ = ask(t, plain, own)
	assert.Equal(t, http.StatusOK, res.StatusCode)
	assert.Equal(t, p.Digest, res.Header.Get("Docker-Content-Digest"))
	assert.Equal(t, "application/vnd.oci.image.manifest.v1+json", res.Header.Get("Content-Type"))
	assert.Positive(t, res.ContentLength)
	own.Header.Set("If-None-Match", res.Header.Get("Etag"))
	res, _ = ask(t, plain, own)
	assert.Equal(t, http.StatusNotModified, res.StatusCode)

	node := of(t, r, registry.Upstream{Username: "alice", Password: "hunter2"})
	res, _ = ask(t, node, tag)
	assert.Equal(t, http.StatusOK, res.StatusCode)
	res, list := ask(t, node, source.RegistryRequest{Upstream: r.Host(), Method: http.MethodGet,
		Path: "/v2/team/app/tags/list", Query: "n=10"})
	assert.Equal(t, http.StatusOK, res.StatusCode)
	assert.JSONEq(t, `{"name":"team/app","tags":["v1"]}`, list)
	res, _ = ask(t, node, source.RegistryRequest{Upstream: r.Host(), Method: http.MethodGet, Path: "/v2/"})
	assert.Equal(t, http.StatusOK, res.StatusCode)
	res, body := ask(t, node, source.RegistryRequest{Upstream: r.Host(), Method: http.MethodGet,
		Path: "/v2/team/app/manifests/v2", Header: tag.Header})
	assert.Equal(t, http.StatusNotFound, res.StatusCode)
	assert.Contains(t, body, "MANIFEST_UNKNOWN")

}

func TestARedirectIsFollowedToItsAnswer(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	spec := blob(t, r, "team/app")
	c := client(t, registry.Config{
		Upstreams: map[string]registry.Upstream{r.Host(): {PlainHTTP: true, Proxy: "none", Username: "alice",
			Password: "hunter2"}}, HTTP: loopback,
	})
	q := source.RegistryRequest{Upstream: r.Host(), Method: http.MethodHead, Path: "/v2/team/app/blobs/" +
		string(spec.ID)}
	for _, row := range []struct {
		storage int // its answer to a HEAD, 0 for its own
		status  int
		what    string
	}{
		{0, 200, "a storage that takes a HEAD"},
		{404, 404, "a registry that redirects whatever it is asked for"},
		{403, 405, "a storage whose URLs are signed for GET"},
		{401, 405, "another host's challenge, which is none to our client"},
		{501, 405, "a storage without HEAD"},
		{503, 503, "a storage in trouble"},
	} {
		r.Fail(registrytest.Fault{Action: registrytest.ActRedirect, Match: "HEAD"})
		if row.storage != 0 {
			r.Fail(registrytest.Fault{
				Action: registrytest.ActStatus, Match: "HEAD", Status: row.storage, Storage: true,
				Header: map[string]string{"Www-Authenticate": `Bearer realm="https://evil.test"`},
			})
		}
		res, _ := ask(t, c, q)
		assert.Equal(t, row.status, res.StatusCode, row.what)
		assert.Empty(t, res.Header.Get("Www-Authenticate"), row.what)
		if row.status == 200 {
			assert.EqualValues(t, len(content), res.ContentLength)
		}
		r.ClearFaults()
	}
	assert.Zero(t, r.Counts().Leaks)

	// A GET, too, comes back without what another host wants of the client.
	r.Fail(registrytest.Fault{Action: registrytest.ActRedirect})
	r.Fail(registrytest.Fault{Action: registrytest.ActStatus, Status: 401, Storage: true,
		Header: map[string]string{"Www-Authenticate": `Bearer realm="https://evil.test"`}})
	var refused *source.StatusError
	require.ErrorAs(t, bring(t, c, spec, 0), &refused)
	assert.Equal(t, http.StatusForbidden, refused.Status)
	assert.Empty(t, refused.Header.Get("Www-Authenticate"))
}

func TestAnErrorNamesItsRequestOnce(t *testing.T) {
	s := httptest.NewServer(nil)
	s.Close()
	host := s.Listener.Addr().String()
	c := client(t, registry.Config{Upstreams: map[string]registry.Upstream{host: {PlainHTTP: true, Proxy: "none"}}})
	_, err := c.Do(t.Context(), source.RegistryRequest{Upstream: host, Method: http.MethodHead,
		Path: "/v2/a/tags/list"})
	require.ErrorContains(t, err, "HEAD "+s.URL+"/v2/a/tags/list: ")
	require.ErrorContains(t, err, "connection refused")
	assert.Equal(t, 1, strings.Count(err.Error(), "/v2/a/tags/list"), "%v", err)
}

func TestOnlyListedHeadersPassInEitherDirection(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.Empty(t, r.Header.Get("X-Secret"))
		assert.Empty(t, r.Header.Get("Cookie"))
		assert.Equal(t, "identity", r.Header.Get("Accept-Encoding"))
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Docker-Content-Digest", "d")
	}))
	t.Cleanup(s.Close)
	host := s.Listener.Addr().String()
	c := client(t, registry.Config{Upstreams: map[string]registry.Upstream{host: {PlainHTTP: true, Proxy: "none"}}})
	res, _ := ask(t, c, source.RegistryRequest{Upstream: host, Method: http.MethodGet, Path: "/v2/a/tags/list",
		Header: http.Header{
			"X-Secret": {"s"}, "Cookie": {"c"}, "Accept-Encoding": {"gzip"},
		}})
	assert.Equal(t, "d", res.Header.Get("Docker-Content-Digest"))
	assert.Empty(t, res.Header.Get("Set-Cookie"))
}

func TestTheNextURLReplacesAFailingOne(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	spec := blob(t, r, "cache/lib/app")
	spec.Upstream, spec.Repository = "registry.test", "lib/app"
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	dead := "http://" + l.Addr().String()
	require.NoError(t, l.Close())
	sick := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(sick.Close)
	c := client(t, registry.Config{Upstreams: map[string]registry.Upstream{
		"registry.test": {URLs: []string{dead, sick.URL, r.URL() + "/cache"}, Proxy: "none"}}})
	require.NoError(t, bring(t, c, spec, 0))
	require.NoError(t, bring(t, c, spec, 1000))
	q := source.RegistryRequest{Upstream: "registry.test", Method: http.MethodHead,
		Path: "/v2/lib/app/blobs/" + string(spec.ID)}
	res, _ := ask(t, c, q)
	assert.Equal(t, http.StatusOK, res.StatusCode)

	only := client(t, registry.Config{Upstreams: map[string]registry.Upstream{
		"registry.test": {URLs: []string{dead, sick.URL}, Proxy: "none"}}})
	assert.Equal(t, http.StatusServiceUnavailable, statusOf(bring(t, only, spec, 0)))
	res, _ = ask(t, only, q)
	assert.Equal(t, http.StatusServiceUnavailable, res.StatusCode)

	r.Fail(registrytest.Fault{Action: registrytest.ActStatus, Status: 404})
	last := client(t, registry.Config{Upstreams: map[string]registry.Upstream{
		"registry.test": {URLs: []string{r.URL() + "/cache", sick.URL}, Proxy: "none"}}})
	assert.Equal(t, http.StatusNotFound, statusOf(bring(t, last, spec, 0)), "an error status is a reply")
}

func TestTheNodesCertificateGoesToItsRegistry(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{TLS: true, ClientCert: true})
	spec := blob(t, r, "lib/app")
	require.Error(t, bring(t, of(t, r, registry.Upstream{}), spec, 0))
	cert, key, err := r.ClientCert("node")
	require.NoError(t, err)
	u := registry.Upstream{CertFile: filepath.Join(t.TempDir(), "cert"), KeyFile: filepath.Join(t.TempDir(), "key")}
	require.NoError(t, os.WriteFile(u.CertFile, cert, 0o600))
	require.NoError(t, os.WriteFile(u.KeyFile, key, 0o600))
	c := of(t, r, u)
	require.NoError(t, bring(t, c, spec, 0))

	// But not in the name of a client that wants more than a pull, even on an open connection.
	base, rt, err := c.Reach(spec.Upstream)
	require.NoError(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
		base.JoinPath("/v2/lib/app/blobs/uploads/").String(), nil)
	require.NoError(t, err)
	res, err := rt.RoundTrip(req)
	if err == nil {
		res.Body.Close()
	}
	require.ErrorContains(t, err, "certificate required")
}

func TestARegistryOfHTTPSIsNeverAskedInTheClear(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("asked for %s", r.URL)
	}))
	t.Cleanup(s.Close)
	host := s.Listener.Addr().String()
	c := client(t, registry.Config{Upstreams: map[string]registry.Upstream{host: {Proxy: "none", Username: "alice",
		Password: "hunter2"}}})
	spec := task.Spec{ID: task.ID("sha256:" + strings.Repeat("0", 64)), Kind: task.Blob, Upstream: host,
		Repository: "lib/app"}
	require.Error(t, bring(t, c, spec, 0))
}

func TestAPrivateRealmNeedsTheOperatorsSetting(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	spec := blob(t, r, "team/app")
	// A registry whose token service is on another port of the same private address.
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !assert.Equal(t, "kept", req.URL.Query().Get("own")) || !assert.Empty(t, req.URL.Query().Get("realm")) {
			return
		}
		r.ServeHTTP(w, req)
	}))
	t.Cleanup(service.Close)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.ServeHTTP(rewriter{w, service.URL + "/token?own=kept"}, req)
	}))
	t.Cleanup(front.Close)
	spec.Upstream = front.Listener.Addr().String()
	u := registry.Upstream{PlainHTTP: true, Proxy: "none", Username: "alice", Password: "hunter2"}
	cfg := registry.Config{Upstreams: map[string]registry.Upstream{spec.Upstream: u}, HTTP: loopback}
	err := bring(t, client(t, cfg), spec, 0)
	require.ErrorContains(t, err, "private")
	u.AllowPrivateRealm = true
	cfg.Upstreams[spec.Upstream] = u
	require.NoError(t, bring(t, client(t, cfg), spec, 0))
}

// rewriter puts another realm into challenges.
type rewriter struct {
	http.ResponseWriter
	realm string
}

func (w rewriter) WriteHeader(status int) {
	if v := w.Header().Get("Www-Authenticate"); strings.HasPrefix(v, "Bearer ") {
		_, rest, _ := strings.Cut(v, `",`)
		w.Header().Set("Www-Authenticate", `Bearer realm="`+w.realm+`",`+rest)
	}
	w.ResponseWriter.WriteHeader(status)
}

func TestErrorsOfATokenServiceHoldNoSecret(t *testing.T) {
	for name, answer := range map[string]string{
		"no token":  `{"refresh_token":"hunter2"}`,
		"no JSON":   `hunter2`,
		"too large": strings.Repeat("hunter2", 20_000),
	} {
		t.Run(name, func(t *testing.T) {
			var s *httptest.Server
			s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if req.URL.Path == "/token" {
					_, _ = io.WriteString(w, answer)
					return
				}
				w.Header().Set("Www-Authenticate", `Bearer realm="`+s.URL+`/token",service="s"`)
				w.WriteHeader(http.StatusUnauthorized)
			}))
			t.Cleanup(s.Close)
			host := s.Listener.Addr().String()
			c := client(t, registry.Config{Upstreams: map[string]registry.Upstream{host: {PlainHTTP: true,
				Proxy:    "none",
				Username: "alice", Password: "hunter2"}}})
			err := bring(t, c, task.Spec{ID: task.ID("sha256:" + strings.Repeat("0", 64)), Kind: task.Blob,
				Upstream:   host,
				Repository: "lib/app"}, 0)
			require.ErrorContains(t, err, host)
			require.ErrorContains(t, err, "lib/app")
		})
	}
}

func TestARegistryMayBeginToRequireTokens(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	spec := blob(t, r, "team/app")
	var open atomic.Bool
	open.Store(true)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if open.Load() {
			if req.URL.Path != "/v2/" {
				_, _ = w.Write(content)
			}
			return
		}
		r.ServeHTTP(w, req)
	}))
	t.Cleanup(s.Close)
	spec.Upstream = s.Listener.Addr().String()
	c := client(t, registry.Config{Upstreams: map[string]registry.Upstream{spec.Upstream: {PlainHTTP: true,
		Proxy:    "none",
		Username: "alice", Password: "hunter2"}}})
	require.NoError(t, bring(t, c, spec, 0))
	open.Store(false)
	assert.Equal(t, http.StatusUnauthorized, statusOf(bring(t, c, spec, 0)))
	require.NoError(t, bring(t, c, spec, 0), "the next one logs in again")
}

func TestAConfigurationThatCannotWorkIsRefusedByName(t *testing.T) {
	for name, cfg := range map[string]registry.Config{
		"upstream registry.test: one of its URLs": {
			Upstreams: map[string]registry.Upstream{"registry.test": {URLs: []string{"https://u:hunter2@x"}}}},
		"upstream registry.test: one of": {Upstreams: map[string]registry.Upstream{
			"registry.test": {URLs: []string{"registry.test"}}}},
		"upstream registry.test: the path": {Upstreams: map[string]registry.Upstream{
			"registry.test": {URLs: []string{"https://x/Ä"}}}},
		"upstream registry.test: reading": {Upstreams: map[string]registry.Upstream{"registry.test": {CAFile: "none"}}},
		"twice": {Upstreams: map[string]registry.Upstream{"docker.io": {},
			"index.docker.io": {}}},
		`"a/b"`:                   {Upstreams: map[string]registry.Upstream{"a/b": {}}},
		"any host would get them": {Default: &registry.Upstream{Username: "alice", Password: "hunter2"}},
		"registries that are not listed: reading": {Default: &registry.Upstream{CAFile: "none"}},
	} {
		_, err := registry.New(cfg)
		require.ErrorContains(t, err, name)
		assert.NotContains(t, err.Error(), "hunter2")
	}
}

func TestDockerHubIsOneRegistryUnderAllItsNames(t *testing.T) {
	asked := make(chan string, 10)
	hub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked <- r.URL.Path }))
	t.Cleanup(hub.Close)
	u, err := url.Parse(hub.URL)
	require.NoError(t, err)
	c := client(t, registry.Config{Upstreams: map[string]registry.Upstream{"docker.io": {URLs: []string{u.String()},
		Proxy: "none"}}})
	for _, name := range []string{"docker.io", "index.docker.io", "registry-1.docker.io"} {
		spec := task.Spec{ID: task.ID("sha256:" + strings.Repeat("0", 64)), Kind: task.Blob, Upstream: name,
			Repository: "alpine", Authorization: "Bearer x"}
		res, err := c.Open(t.Context(), spec, 0)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		assert.Equal(t, "/v2/library/alpine/blobs/"+string(spec.ID), <-asked)
	}
}

func TestAManifestComesByTagWhereNoDigestIsServed(t *testing.T) {
	manifest := []byte(`{"schemaVersion":2,"manifests":[]}`)
	now := manifest
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		if r.URL.Path != "/v2/app/manifests/v1" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		_, _ = w.Write(now)
	}))
	t.Cleanup(s.Close)
	host := s.Listener.Addr().String()
	c := client(t, registry.Config{Upstreams: map[string]registry.Upstream{host: {PlainHTTP: true, Proxy: "none"}}})
	sum := sha256.Sum256(manifest)
	spec := task.Spec{ID: task.ID("sha256:" + hex.EncodeToString(sum[:])), Kind: task.Manifest, Upstream: host,
		Repository: "app", Tag: "v1"}
	for offset := range int64(2) {
		res, err := c.Open(t.Context(), spec, offset)
		require.NoError(t, err)
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		assert.Equal(t, manifest[offset:], b)
		assert.EqualValues(t, len(manifest), res.Length)
		assert.Equal(t, "application/vnd.oci.image.index.v1+json", res.MediaType)
		require.NoError(t, res.Body.Close())
	}
	now = []byte(`{"schemaVersion":2,"manifests":[{}]}`)
	for _, tag := range []string{"v1", "../v1", ""} {
		spec.Tag = tag
		_, err := c.Open(t.Context(), spec, 0)
		assert.Equal(t, http.StatusNotFound, statusOf(err), "the tag %q means another manifest, or none", tag)
	}
}

func TestAWrongLengthOfAHeadDoesNotCount(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	spec := blob(t, r, "lib/app")
	spec.Hint = int64(len(content)) + 7
	c := of(t, r, registry.Upstream{})
	require.NoError(t, bring(t, c, spec, 0))
	require.NoError(t, bring(t, c, spec, 1000))
	r.Fail(registrytest.Fault{Action: registrytest.ActNoLength})
	require.NoError(t, bring(t, c, spec, 0), "the digest decides")
}

// Artifactory and Nexus have the API of each repository below a path of its own, as containerd's override_path says.
func TestAPathWithV2IsTakenAsItIs(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	spec := blob(t, r, "team/app")
	const root = "/artifactory/api/docker/hub"
	var strange []string
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		below, ok := strings.CutPrefix(req.URL.Path, root)
		if !ok && req.URL.Path != "/token" {
			strange = append(strange, req.URL.Path)
			http.NotFound(w, req)
			return
		}
		if ok {
			req.URL.Path = below
		}
		w.Header().Set("Link", `<`+root+`/v2/team/app/tags/list?n=1>; rel="next"`)
		r.ServeHTTP(w, req)
	}))
	t.Cleanup(front.Close)
	for path, repository := range map[string]string{"/v2": "team/app", "/v2/": "team/app", "/v2/team": "app"} {
		c := client(t, registry.Config{Upstreams: map[string]registry.Upstream{"registry.test": {
			URLs: []string{front.URL + root + path}, Proxy: "none", Username: "alice", Password: "hunter2",
		}}})
		spec.Upstream, spec.Repository = "registry.test", repository
		require.NoError(t, bring(t, c, spec, 0), path)
		res, _ := ask(t, c, source.RegistryRequest{Upstream: "registry.test", Method: http.MethodHead,
			Path: "/v2/" + repository + "/blobs/" + string(spec.ID)})
		assert.Equal(t, http.StatusOK, res.StatusCode)
		if repository == "team/app" {
			assert.Equal(t, `</v2/team/app/tags/list?n=1>; rel="next"`, res.Header.Get("Link"))
		}
		res, _ = ask(t, c, source.RegistryRequest{Upstream: "registry.test", Method: http.MethodGet, Path: "/v2/"})
		assert.Equal(t, http.StatusOK, res.StatusCode, "the version check")
	}
	assert.Empty(t, strange)
}

// A digest protects a blob on its way over plain HTTP, and nothing a manifest's tag. A repository may have a part
// "blobs" in its name.
func TestOnlyBlobsComeOverPlainHTTP(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(plain.Close)
	front := httptest.NewTLSServer(http.RedirectHandler(plain.URL, http.StatusFound))
	t.Cleanup(front.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})
	require.NoError(t, os.WriteFile(ca, block, 0o600))
	host := front.Listener.Addr().String()
	c := client(t, registry.Config{HTTP: loopback,
		Upstreams: map[string]registry.Upstream{host: {Proxy: "none", CAFile: ca}}})
	digest := "sha256:" + strings.Repeat("a", 64)
	for path, follows := range map[string]bool{
		"/v2/app/blobs/" + digest:             true,
		"/v2/app/manifests/blobs/" + digest:   true,
		"/v2/app/manifests/v1":                false,
		"/v2/app/manifests/" + digest:         false,
		"/v2/app/blobs/x/manifests/v1":        false,
		"/v2/blobs/blobs/manifests/" + digest: false,
		"/v2/app/blobs/x/tags/list":           false,
	} {
		res, err := c.Do(t.Context(), source.RegistryRequest{Upstream: host, Method: http.MethodGet, Path: path})
		assert.Equal(t, follows, err == nil, "%s: %v", path, err)
		if err == nil {
			res.Body.Close()
		}
	}
}
