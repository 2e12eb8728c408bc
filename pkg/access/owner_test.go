package access_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// index is the manifest that the tag v1 means.
var index = []byte(`{"schemaVersion":2,"manifests":[]}`)

// tagged is a registry that has index, as the tag v1 and by its digest, for the requests that allow accepts. It
// records all requests.
func tagged(requests *[]source.RegistryRequest, allow func(source.RegistryRequest) bool) registryFunc {
	return func(_ context.Context, req source.RegistryRequest) (*http.Response, error) {
		*requests = append(*requests, req)
		res := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody,
			ContentLength: int64(len(index))}
		if !allow(req) {
			res.StatusCode = http.StatusUnauthorized
			return res, nil
		}
		res.Header.Set("Content-Type", oci.MediaTypeIndex)
		res.Header.Set("Docker-Content-Digest", string(oci.DigestOf(index)))
		return res, nil
	}
}

// tagLookup is a lookup of the tag v1 of app in r.test.
var tagLookup = api.Lookup{Version: 1, Kind: task.Manifest, Upstream: "r.test", Repository: "app", Reference: "v1"}

func TestAnOwnerUsesOnlyTheLookupsCredential(t *testing.T) {
	var requests []source.RegistryRequest
	owner := access.NewOwner(tagged(&requests, func(req source.RegistryRequest) bool {
		// The owner's own credentials may read everything.
		return !req.Bare && req.Header.Get("Authorization") == "" || req.Header.Get("Authorization") == "Bearer alice"
	}))
	defer owner.Close()
	l := tagLookup
	a := owner.Reply(t.Context(), l)
	require.NotNil(t, a.Refusal)
	assert.Equal(t, 401, a.Refusal.Status)
	require.NotEmpty(t, requests)
	for _, q := range requests {
		assert.True(t, q.Bare)
	}

	l.Authorization, l.MaxAgeMillis = "Bearer alice", 10_000
	a = owner.Reply(t.Context(), l)
	assert.Equal(t, oci.DigestOf(index), a.Digest)
	assert.True(t, a.Yours)
	l.Authorization = "Bearer bob"
	a = owner.Reply(t.Context(), l)
	assert.Equal(t, oci.DigestOf(index), a.Digest, "what the tag means is the same for all")
	assert.False(t, a.Yours, "bob's grant is a separate lookup")
	l.Reference, l.Authorization = string(oci.DigestOf(index)), ""
	assert.NotNil(t, owner.Reply(t.Context(), l).Refusal, "alice's grant is hers alone")

	for _, wrong := range []api.Lookup{
		{Kind: task.Manifest, Upstream: "a b", Repository: "app", Reference: "v1"},
		{Kind: task.Manifest, Upstream: "r.test", Repository: "../app", Reference: "v1"},
		{Kind: task.Blob, Upstream: "r.test", Repository: "app", Reference: "v1"},
		{Kind: task.Manifest, Upstream: "r.test", Repository: "app", Reference: "../v1"},
	} {
		requests = nil
		assert.NotEmpty(t, owner.Reply(t.Context(), wrong).Unreached)
		assert.Empty(t, requests)
	}
}

func TestAnOwnerSendsItsHeadersAtOnce(t *testing.T) {
	gate := make(chan struct{})
	var requests []source.RegistryRequest
	reply := tagged(&requests, func(source.RegistryRequest) bool { return true })
	owner := access.NewOwner(registryFunc(func(ctx context.Context, req source.RegistryRequest) (*http.Response,
		error) {
		<-gate
		return reply(ctx, req)
	}))
	defer owner.Close()
	srv := httptest.NewServer(owner)
	defer srv.Close()
	body := `{"version":1,"kind":"manifest","upstream":"r.test","repository":"app","reference":"v1"}`
	res, err := srv.Client().Post(srv.URL, "application/json", strings.NewReader(body))
	require.NoError(t, err, "the headers are here although the registry has not answered")
	defer res.Body.Close()
	close(gate)
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	a, err := api.DecodeLookupReply(b)
	require.NoError(t, err)
	assert.Equal(t, oci.DigestOf(index), a.Digest)

	for _, c := range []struct {
		method, body string
		status       int
	}{{"GET", "", 405}, {"POST", "{}", 400}, {"POST", strings.Repeat("a", api.LookupMax+1), 400}} {
		w := httptest.NewRecorder()
		owner.ServeHTTP(w, httptest.NewRequest(c.method, "/", strings.NewReader(c.body)))
		assert.Equal(t, c.status, w.Code)
	}
}

func TestAPanicOfAnOwnerIsAnUnreachedReply(t *testing.T) {
	owner := access.NewOwner(registryFunc(func(context.Context, source.RegistryRequest) (*http.Response, error) {
		panic("index out of range: hunter2")
	}))
	defer owner.Close()
	for _, reference := range []string{"v1", digest} {
		l := tagLookup
		l.Reference = reference
		a := owner.Reply(t.Context(), l)
		assert.Contains(t, a.Unreached, "a fault of this program")
		assert.NotContains(t, a.Unreached, "hunter2")
	}
}

// A registry that answers a range with the whole must show the blob, also to hosts that ask through an owner. A host of
// an earlier version does not read the doubt in the reply, so it must ask by itself.
func TestAnOwnerTellsADoubt(t *testing.T) {
	owner := access.NewOwner(registryFunc(func(_ context.Context, req source.RegistryRequest) (*http.Response, error) {
		res := &http.Response{StatusCode: http.StatusForbidden, Header: http.Header{}, Body: http.NoBody}
		if req.Method == http.MethodGet {
			res.StatusCode, res.ContentLength = http.StatusOK, 100
		}
		return res, nil
	}))
	defer owner.Close()
	blob := lookup(digest)
	blob.Kind, blob.Anonymous, blob.Authorization = task.Blob, true, ""
	asked := 0
	r := access.New(access.Config{
		Registry: registryFunc(func(context.Context, source.RegistryRequest) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusUnauthorized, Header: http.Header{}, Body: http.NoBody}, nil
		}),
		AskOwner: func(ctx context.Context, q api.Lookup) (api.LookupReply, error) {
			asked++
			old := q
			old.Doubts = false
			assert.NotEmpty(t, owner.Reply(ctx, old).Unreached)
			assert.Empty(t, owner.Reply(ctx, old).Digest)
			return owner.Reply(ctx, q), nil
		},
	})
	defer r.Close()
	for range 2 {
		got, err := r.Resolve(t.Context(), blob)
		require.NoError(t, err)
		assert.True(t, got.Doubted)
		assert.EqualValues(t, 100, got.Length)
	}
	assert.Equal(t, 1, asked)
}

// A member that keeps many lookups running takes bounded memory, and hosts of other addresses are answered.
func TestOneAddressKeepsFewLookupsRunning(t *testing.T) {
	const most = 20
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var asked atomic.Int64
		owner := access.NewOwner(registryFunc(func(ctx context.Context, _ source.RegistryRequest) (*http.Response, error) {
			asked.Add(1)
			<-ctx.Done()
			return nil, ctx.Err()
		}))
		owner.SetMost(most)
		post := func(from, repository string) string {
			w := httptest.NewRecorder()
			body := fmt.Sprintf(`{"version":1,"upstream":"registry.test","repository":%q,"kind":"manifest","reference":"v1"}`,
				repository)
			r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/", strings.NewReader(body))
			r.RemoteAddr = from
			owner.ServeHTTP(w, r)
			return w.Body.String()
		}
		var running sync.WaitGroup
		for i := range most {
			running.Go(func() { post("10.0.0.66:1", fmt.Sprint("lib/", i)) })
		}
		synctest.Wait()
		assert.EqualValues(t, most, asked.Load())
		assert.Contains(t, post("10.0.0.66:2", "lib/more"), "ask the registry")
		assert.EqualValues(t, most, asked.Load())
		running.Go(func() { post("10.0.0.1:1", "lib/other") })
		synctest.Wait()
		assert.EqualValues(t, most+1, asked.Load(), "another address")
		cancel()
		running.Wait()

		// All that ended make space for others.
		ctx, cancel = context.WithCancel(t.Context())
		running.Go(func() { post("10.0.0.66:3", "lib/again") })
		synctest.Wait()
		assert.EqualValues(t, most+2, asked.Load())
		cancel()
		running.Wait()
		owner.Close()
	})
}
