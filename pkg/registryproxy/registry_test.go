package registryproxy_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/source/registry"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/test/registrytest"
)

// mirrorOf runs a proxy on a socket whose upstreams are real registries over plain HTTP,
// and whose contents are read from them whole.
func mirrorOf(t *testing.T, cfg config) string {
	t.Helper()
	client, err := registry.New(registry.Config{
		Default: &registry.Upstream{PlainHTTP: true, Proxy: "none"},
		HTTP:    httporigin.Config{AllowAddrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
	})
	require.NoError(t, err)
	t.Cleanup(client.CloseIdleConnections)
	cfg.Upstream = client
	cfg.Open = func(ctx context.Context, spec task.Spec) (registryproxy.Blob, error) {
		res, err := client.Open(ctx, spec, 0)
		if err != nil {
			return nil, spoken(source.Failure(err), spec)
		}
		defer res.Body.Close()
		data, err := io.ReadAll(res.Body)
		if err != nil {
			return nil, source.Failure(err)
		}
		return &fakeBlob{data: data, mediaType: res.MediaType}, nil
	}
	srv := httptest.NewServer(newMirror(cfg))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

func fetch(t *testing.T, method, target string, header ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequest(method, target, nil)
	require.NoError(t, err)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	require.NoError(t, err)
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	res.Body = io.NopCloser(bytes.NewReader(b))
	return res
}

func TestTheMirrorAnswersAsItsRegistryDoes(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	index, err := registrytest.NewIndex(1, []int64{20_000})
	require.NoError(t, err)
	pushed, err := r.PushIndex(t.Context(), "lib/app", "v1", index)
	require.NoError(t, err)
	mirror := mirrorOf(t, config{Default: r.Host()})

	paths := []string{"lib/app/manifests/v1", "lib/app/manifests/v2", "lib/none/manifests/v1",
		"lib/app/manifests/" + missing, "lib/app/blobs/" + missing, "lib/none/blobs/" + missing, "lib/app/tags/list",
		"lib/none/tags/list", "lib/app/tags/list?n=-1", "lib/app/manifests/.x", ""}
	for _, o := range pushed.Objects {
		kind := "blobs/"
		if o.Kind == "index" || o.Kind == "manifest" {
			kind = "manifests/"
		}
		paths = append(paths, "lib/app/"+kind+o.Digest, "lib/none/"+kind+o.Digest)
	}
	accept := strings.Join(oci.ManifestTypes(), ", ")
	compared := 0
	for _, path := range paths {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			ranges := []string{"", "bytes=0-", "bytes=3-9", "bytes=-5", "bytes=100000-", "bytes=9-3", "bytes=x"}
			if !strings.Contains(path, "/blobs/sha256") || method == http.MethodHead {
				ranges = ranges[:1] // distribution takes no Range for a manifest, we do
			}
			for _, asked := range ranges {
				what := strings.Join([]string{method, path, asked}, " ")
				want := fetch(t, method, r.URL()+"/v2/"+path, "Accept", accept, "Range", asked)
				got := fetch(t, method, "http://"+mirror+"/v2/"+path, "Accept", accept, "Range", asked)
				require.Equal(t, want.StatusCode, got.StatusCode, what)
				compared++
				if want.StatusCode >= 400 {
					continue
				}
				for _, k := range []string{"Content-Type", "Content-Length", "Content-Range", "Docker-Content-Digest",
					"Etag", "Link"} {
					assert.Equal(t, want.Header.Get(k), got.Header.Get(k), "%s of %s", k, what)
				}
				assert.Equal(t, body(t, want), body(t, got), what)
			}
		}
	}
	assert.Greater(t, compared, 60)
}

func TestARealClientPullsThroughThePathOfTheMirror(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	index, err := registrytest.NewIndex(2, []int64{50_000, 10_000})
	require.NoError(t, err)
	for _, tag := range []string{"v1", "v2", "v3", "v4", "v5"} {
		_, err = r.PushIndex(t.Context(), "lib/app", tag, index)
		require.NoError(t, err)
	}
	r.Reset()
	mirror := mirrorOf(t, config{})
	image := mirror + "/" + strings.Replace(r.Host(), ":", "_", 1) + "/lib/app"

	ref, err := name.ParseReference(image+":v1", name.Insecure)
	require.NoError(t, err)
	got, err := remote.Index(ref)
	require.NoError(t, err)
	require.NoError(t, validate.Index(got))
	want, err := index.Digest()
	require.NoError(t, err)
	digest, err := crane.Digest(image+":v1", crane.Insecure)
	require.NoError(t, err)
	assert.Equal(t, want.String(), digest)
	img, err := crane.Pull(image+"@"+digest, crane.Insecure)
	require.NoError(t, err)
	require.NoError(t, validate.Image(img))

	repo, err := name.NewRepository(image, name.Insecure)
	require.NoError(t, err)
	tags, err := remote.List(repo, remote.WithPageSize(2))
	require.NoError(t, err)
	assert.Equal(t, []string{"v1", "v2", "v3", "v4", "v5"}, tags)

	_, err = crane.Digest(image+":none", crane.Insecure)
	require.ErrorContains(t, err, "MANIFEST_UNKNOWN: manifest unknown", "the registry's own words")
	err = crane.Push(img, image+":mine", crane.Insecure)
	require.ErrorContains(t, err, "push to the registry itself")
}

func TestAMovedTagIsSeenAtOnceWithoutATagLife(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	mirror := mirrorOf(t, config{Default: r.Host()})
	for seed := range uint64(2) {
		img, err := registrytest.NewImage(seed, []int64{5000})
		require.NoError(t, err)
		pushed, err := r.Push(t.Context(), "lib/app", "latest", img)
		require.NoError(t, err)
		got, err := crane.Digest(mirror+"/lib/app:latest", crane.Insecure)
		require.NoError(t, err)
		assert.Equal(t, pushed.Digest, got)
	}
}

var challengePart = regexp.MustCompile(`(\w+)="([^"]*)"`)

// token gets the token that a challenge asks for, as containerd does.
func token(t *testing.T, challenge, user, password string) string {
	t.Helper()
	require.True(t, strings.HasPrefix(challenge, "Bearer "), challenge)
	part := map[string]string{}
	for _, m := range challengePart.FindAllStringSubmatch(challenge, -1) {
		part[m[1]] = m[2]
	}
	req, err := http.NewRequest(http.MethodGet,
		part["realm"]+"?"+url.Values{"service": {part["service"]}, "scope": {part["scope"]}}.Encode(), nil)
	require.NoError(t, err)
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	var answer struct{ Token string }
	require.NoError(t, json.NewDecoder(res.Body).Decode(&answer))
	return "Bearer " + answer.Token
}

func TestAPrivateBlobNeedsTheRegistrysPermission(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: map[string]registrytest.User{
		"":      {Pull: []string{"public/*"}},
		"alice": {Password: "a", Pull: []string{"public/*", "private/*"}},
		"bob":   {Password: "b", Pull: []string{"public/*"}},
	}})
	mirror := "http://" + mirrorOf(t, config{}) + "/v2/"
	secret, both := blob(1000), blob(2000)
	onlyPrivate, err := r.PushBlob(t.Context(), "private/app", secret)
	require.NoError(t, err)
	inBoth, err := r.PushBlob(t.Context(), "private/app", both)
	require.NoError(t, err)
	_, err = r.PushBlob(t.Context(), "public/app", both)
	require.NoError(t, err)
	ns := "?ns=" + url.QueryEscape(r.Host())

	// An anonymous client gets the challenge of the registry's own token service.
	private := mirror + "private/app/blobs/" + onlyPrivate + ns
	res := fetch(t, http.MethodGet, private)
	refusedAs(t, res, http.StatusUnauthorized, "UNAUTHORIZED")
	challenge := res.Header.Get("WWW-Authenticate")
	assert.Equal(t,
		fetch(t, http.MethodGet, r.URL()+"/v2/private/app/blobs/"+onlyPrivate).Header.Get("WWW-Authenticate"),
		challenge)

	alice := token(t, challenge, "alice", "a")
	for _, c := range []struct {
		who, path, authorization string
		status                   int
	}{
		{"alice", "private/app/blobs/" + onlyPrivate, alice, 200},
		{"alice", "private/app/blobs/" + inBoth, alice, 200},
		{"bob", "private/app/blobs/" + onlyPrivate, token(t, challenge, "bob", "b"), 401},
		{"nobody", "private/app/blobs/" + onlyPrivate, token(t, challenge, "", ""), 401},
		{"a forger", "private/app/blobs/" + onlyPrivate, "Bearer " + strings.Repeat("x", 300), 401},
		// Alice's token is for the private repository. It does not open the public one, and the token for the public one does
		// not open the private one.
		{"alice", "public/app/blobs/" + onlyPrivate, alice, 401},
		{"nobody", "private/app/blobs/" + inBoth, "", 401},
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			res := fetch(t, method, mirror+c.path+ns, "Authorization", c.authorization)
			assert.Equal(t, c.status, res.StatusCode, "%s %s by %s", method, c.path, c.who)
		}
	}
	public := mirror + "public/app/blobs/" + inBoth + ns
	challenge = fetch(t, http.MethodGet, public).Header.Get("WWW-Authenticate")
	anonymous := token(t, challenge, "", "")
	assert.Equal(t, 200, fetch(t, http.MethodGet, public, "Authorization", anonymous).StatusCode)
	// A blob of the private repository alone is not in the public one.
	assert.Equal(t, 404,
		fetch(t, http.MethodGet, mirror+"public/app/blobs/"+onlyPrivate+ns, "Authorization", anonymous).StatusCode)
	assert.Equal(t, 401,
		fetch(t, http.MethodGet, mirror+"private/app/blobs/"+inBoth+ns, "Authorization", anonymous).StatusCode)

	r.RevokeTokens()
	assert.Equal(t, 401, fetch(t, http.MethodGet, private, "Authorization", alice).StatusCode, "a token that has ended")
}

func TestAPublicImageByPathNeedsNoLogin(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer,
		Users: map[string]registrytest.User{"": {Pull: []string{"public/*"}}}})
	img, err := registrytest.NewImage(4, []int64{5000})
	require.NoError(t, err)
	for _, repository := range []string{"public/app", "private/app"} {
		_, err = r.Push(t.Context(), repository, "v1", img)
		require.NoError(t, err)
	}
	mirror := mirrorOf(t, config{}) + "/" + strings.Replace(r.Host(), ":", "_", 1)
	got, err := crane.Pull(mirror+"/public/app:v1", crane.Insecure)
	require.NoError(t, err)
	require.NoError(t, validate.Image(got))
	_, err = crane.Pull(mirror+"/private/app:v1", crane.Insecure)
	require.ErrorContains(t, err, "UNAUTHORIZED")
}

func TestABlobThatTheRegistryRedirectsIsServed(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	layer := blob(10_000)
	digest, err := r.PushBlob(t.Context(), "lib/app", layer)
	require.NoError(t, err)
	r.Fail(registrytest.Fault{Action: registrytest.ActRedirect, Match: "lib/app/blobs"})
	mirror := "http://" + mirrorOf(t, config{Default: r.Host()}) + "/v2/lib/app/blobs/"
	for _, method := range []string{http.MethodHead, http.MethodGet} {
		res := fetch(t, method, mirror+digest, "Authorization",
			"Basic "+base64.StdEncoding.EncodeToString([]byte("a:b")))
		assert.Equal(t, 200, res.StatusCode)
		assert.Equal(t, "10000", res.Header.Get("Content-Length"))
		if method == http.MethodGet {
			assert.Equal(t, string(layer), body(t, res))
		}
	}
	assert.Zero(t, r.Counts().Leaks, "the storage host saw credentials")
	assert.Equal(t, 404, fetch(t, http.MethodGet, mirror+missing).StatusCode)
}

func TestARealClientLogsInByBasicThroughTheMirror(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Basic,
		Users: map[string]registrytest.User{"alice": {Password: "a", Pull: []string{"*"}}}})
	img, err := registrytest.NewImage(3, []int64{5000})
	require.NoError(t, err)
	_, err = r.Push(t.Context(), "lib/app", "v1", img)
	require.NoError(t, err)
	mirror := mirrorOf(t, config{Default: r.Host()})
	for password, ok := range map[string]bool{"a": true, "wrong": false} {
		got, err := crane.Pull(mirror+"/lib/app:v1", crane.Insecure,
			crane.WithAuth(&authn.Basic{Username: "alice", Password: password}))
		if !ok {
			require.ErrorContains(t, err, "401")
			continue
		}
		require.NoError(t, err)
		require.NoError(t, validate.Image(got))
	}
}

func TestFaultsOfTheRegistryAreReportedQuickly(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	digest, err := r.PushBlob(t.Context(), "lib/app", blob(1000))
	require.NoError(t, err)
	mirror := "http://" + mirrorOf(t, config{Default: r.Host()}) + "/v2/lib/app/"
	ns := "?ns=" + url.QueryEscape(r.Host())
	for _, c := range []struct{ status, podman, containerd int }{{429, 429, 503}, {500, 500, 500}, {503, 503, 503},
		{403, 403, 403}} {
		r.Fail(registrytest.Fault{Action: registrytest.ActStatus, Match: "lib/app/blobs/", Status: c.status,
			Header: map[string]string{"Retry-After": "30"}})
		for query, want := range map[string]int{"": c.podman, ns: c.containerd} {
			res := fetch(t, http.MethodGet, mirror+"blobs/"+digest+query)
			assert.Equal(t, want, res.StatusCode)
			assert.Equal(t, "30", res.Header.Get("Retry-After"))
		}
		r.ClearFaults()
	}
	// Distribution has no referrers: its 404 sends the client to the tag schema.
	assert.Equal(t, 404, fetch(t, http.MethodGet, mirror+"referrers/"+digest).StatusCode)
	gone := "http://" + mirrorOf(t, config{}) + "/v2/127.0.0.1:1/lib/app/blobs/" + digest
	said := refusedAs(t, fetch(t, http.MethodGet, gone), http.StatusBadGateway, "UNAVAILABLE")
	assert.Contains(t, said, "127.0.0.1:1: connect: connection refused")
}

// crane takes the mirror for one registry: its ping finds no challenge there, so that it sends its password to the
// registry in the path, which wants a token.
func TestARealClientLogsInByTokenThroughThePath(t *testing.T) {
	users := map[string]registrytest.User{"alice": {Password: "a", Pull: []string{"team/*"}},
		"bob": {Password: "b", Pull: []string{"other/*"}}}
	r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer, Users: users})
	img, err := registrytest.NewImage(3, []int64{5000, 6000})
	require.NoError(t, err)
	_, err = r.Push(t.Context(), "team/app", "v1", img)
	require.NoError(t, err)
	mirror := mirrorOf(t, config{}) + "/" + strings.Replace(r.Host(), ":", "_", 1)
	pull := func(user, password string) error {
		got, err := crane.Pull(mirror+"/team/app:v1", crane.Insecure,
			crane.WithAuth(&authn.Basic{Username: user, Password: password}))
		if err == nil {
			err = validate.Image(got)
		}
		return err
	}
	require.NoError(t, pull("alice", "a"))
	r.Reset()
	require.NoError(t, pull("alice", "a"))
	assert.LessOrEqual(t, r.Counts().Tokens, 1, "the token is remembered")
	for user, password := range map[string]string{"alice": "wrong", "bob": "b", "carol": ""} {
		require.Error(t, pull(user, password), user)
	}
	r.RevokeTokens()
	require.NoError(t, pull("alice", "a"), "a token that has ended is renewed")
	ref, err := name.ParseReference(mirror+"/team/app:v1", name.Insecure)
	require.NoError(t, err)
	tags, err := remote.List(ref.Context(), remote.WithAuth(&authn.Basic{Username: "alice", Password: "a"}))
	require.NoError(t, err)
	assert.Equal(t, []string{"v1"}, tags)
}
