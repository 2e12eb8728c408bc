package access_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// registryFunc is a registry made of one function.
type registryFunc func(ctx context.Context, req source.RegistryRequest) (*http.Response, error)

func (f registryFunc) Do(ctx context.Context, req source.RegistryRequest) (*http.Response, error) {
	return f(ctx, req)
}

// silent is a registry that never replies, and counts the requests that wait for it.
func silent(waiting chan<- string) registryFunc {
	return func(ctx context.Context, req source.RegistryRequest) (*http.Response, error) {
		waiting <- req.Path
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
}

var digest = "sha256:" + strings.Repeat("a", 64)

// lookup returns a lookup of a manifest in app of r.test.
func lookup(reference string) access.Lookup {
	l := access.Lookup{Upstream: "r.test", Repository: "app", Kind: task.Manifest, Reference: reference,
		Authorization: "Bearer x"}
	if strings.Contains(reference, ":") {
		l.ID = task.ID(reference)
	}
	return l
}

func TestCloseEndsLookups(t *testing.T) {
	for name, reference := range map[string]string{"of a tag": "v1", "of a digest": digest} {
		t.Run(name, func(t *testing.T) {
			waiting := make(chan string, 1)
			r := access.New(access.Config{Registry: silent(waiting)})
			failed := make(chan error, 1)
			go func() {
				_, err := r.Resolve(t.Context(), lookup(reference))
				failed <- err
			}()
			<-waiting
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- r.Run(ctx) }()
			stop()
			require.NoError(t, <-ended)
			require.ErrorIs(t, <-failed, access.ErrClosed)
			_, err := r.Resolve(t.Context(), lookup(reference))
			require.ErrorIs(t, err, access.ErrClosed)
		})
	}
}

func TestCloseEndsTheProbeOfPublicManifests(t *testing.T) {
	probes := make(chan string, 1)
	r := access.New(access.Config{
		Policy: access.Policy{ServeCached: true},
		Registry: registryFunc(func(ctx context.Context, req source.RegistryRequest) (*http.Response, error) {
			if req.Anonymous {
				return silent(probes)(ctx, req)
			}
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody}, nil
		}),
	})
	_, err := r.Resolve(t.Context(), lookup(digest))
	require.NoError(t, err)
	<-probes // the probe waits for the registry, in a goroutine that no client waits for
	r.Close()
}

func TestCloseWaitsForAnAbandonedCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := access.New(access.Config{
			Registry: registryFunc(func(context.Context, source.RegistryRequest) (*http.Response, error) {
				time.Sleep(time.Minute) // the registry does not notice that its context ended
				return nil, http.ErrServerClosed
			})})
		ctx, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		_, err := r.Resolve(ctx, lookup(digest))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		began := time.Now()
		r.Close()
		assert.Equal(t, 59*time.Second, time.Since(began))
	})
}

func TestAClosedOwnerReplies(t *testing.T) {
	o := access.NewOwner(silent(nil))
	o.Close()
	a := o.Reply(t.Context(), api.Lookup{Version: api.Version, Upstream: "r.test", Repository: "app",
		Kind:      task.Manifest,
		Reference: "v1"})
	assert.Contains(t, a.Unreached, "closed")
}

// replies answers each HEAD as a registry that has the digest, and counts the requests.
func replies(asked *atomic.Int32, status func(req source.RegistryRequest) int) registryFunc {
	return func(_ context.Context, req source.RegistryRequest) (*http.Response, error) {
		asked.Add(1)
		return &http.Response{StatusCode: status(req), Body: http.NoBody,
			Header: http.Header{"Docker-Content-Digest": {digest}}}, nil
	}
}

func TestTheOrderOfAcceptMeansNothing(t *testing.T) {
	var asked atomic.Int32
	r := access.New(access.Config{Policy: access.Policy{TagLife: time.Hour},
		Registry: replies(&asked, func(source.RegistryRequest) int { return http.StatusOK })})
	defer r.Close()
	for _, row := range []struct {
		accept []string
		asked  int32
	}{
		{[]string{"a/b", "c/d", "e/f;q=0.5"}, 1},
		{[]string{"e/f;q=0.5", "c/d", "a/b"}, 1},
		{[]string{"c/d, a/b", " E/F ; q=0.5,"}, 1},
		{[]string{"a/b,c/d,e/f;q=0.5,a/b"}, 1},
		{[]string{"a/b,c/d,e/f"}, 2},
		{[]string{"a/b"}, 3},
		{nil, 4},
	} {
		l := lookup("v1")
		l.Accept = row.accept
		_, err := r.Resolve(t.Context(), l)
		require.NoError(t, err)
		assert.Equal(t, row.asked, asked.Load(), "%q", row.accept)
	}
}

func TestAPrivateRepositoryIsProbedOnce(t *testing.T) {
	for name, row := range map[string]struct {
		status int
		once   bool
	}{
		"refused": {401, true}, "denied": {403, true}, "hidden": {404, true}, "unreachable": {503, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked atomic.Int32
				r := access.New(access.Config{Policy: access.Policy{ServeCached: true, GrantLife: time.Hour},
					Registry: registryFunc(func(_ context.Context, req source.RegistryRequest) (*http.Response, error) {
						status := http.StatusOK
						if req.Header.Get("Authorization") == "" {
							status = row.status
							if req.Anonymous {
								asked.Add(1)
							}
						}
						return &http.Response{StatusCode: status, Header: http.Header{}, Body: http.NoBody}, nil
					})})
				defer r.Close()
				pull := func(token string) {
					l := lookup(digest)
					l.Authorization = secret.String("Bearer " + token)
					_, err := r.Resolve(t.Context(), l)
					require.NoError(t, err)
					synctest.Wait()
				}
				pull("a")
				first := asked.Load()
				require.Positive(t, first)
				pull("b")
				pull("c")
				assert.Equal(t, row.once, asked.Load() == first, "%d requests, then %d", first, asked.Load())
				first = asked.Load()
				time.Sleep(2 * time.Hour)
				pull("d")
				assert.Greater(t, asked.Load(), first, "an old refusal is not believed")
			})
		})
	}
}

// A page of a login portal grants nothing: it is the answer to every GET, without the length of a blob.
func TestAPageGrantsNothing(t *testing.T) {
	page := "<html>log in</html>"
	var asked atomic.Int32
	r := access.New(access.Config{
		Registry: registryFunc(func(_ context.Context, req source.RegistryRequest) (*http.Response, error) {
			asked.Add(1)
			res := &http.Response{StatusCode: http.StatusForbidden, Header: http.Header{}, Body: http.NoBody}
			if req.Method == http.MethodGet {
				res.StatusCode, res.ContentLength = http.StatusOK, -1
				res.Body = io.NopCloser(strings.NewReader(page))
			}
			return res, nil
		})})
	defer r.Close()
	_, err := r.Resolve(t.Context(), lookup(digest))
	require.ErrorContains(t, err, "other bytes than the digest names")

	blob := lookup(digest)
	blob.Kind = task.Blob
	got, err := r.Resolve(t.Context(), blob)
	require.NoError(t, err)
	require.True(t, got.Doubted)
	ours := func(w oci.Window) ([]byte, error) { return bytes.Repeat([]byte("x"), int(w.Length)), nil }
	var missing *access.OwnershipError
	require.ErrorAs(t, r.ProveOwnership(t.Context(), blob, 100, true, ours), &missing)
}

// The doubt about a listed registry is whether it granted access to one credential.
func TestADoubtEndsForOneCredential(t *testing.T) {
	content := strings.Repeat("x", 100)
	r := access.New(access.Config{
		Registry: registryFunc(func(_ context.Context, req source.RegistryRequest) (*http.Response, error) {
			body := "<html>log in</html>"
			if req.Header.Get("Authorization") == "Bearer good" {
				body = content
			}
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, ContentLength: int64(len(body)),
				Body: io.NopCloser(strings.NewReader(body))}, nil
		})})
	defer r.Close()
	ours := func(w oci.Window) ([]byte, error) { return []byte(content)[w.Offset : w.Offset+w.Length], nil }
	prove := func(authorization secret.String) error {
		l := lookup(digest)
		l.Kind, l.Authorization = task.Blob, authorization
		return r.ProveOwnership(t.Context(), l, int64(len(content)), true, ours)
	}
	require.NoError(t, prove("Bearer good"))
	require.Error(t, prove(""))
	require.Error(t, prove("Bearer bad"))
	require.NoError(t, prove("Bearer good"))
}

// An error of a registry may name private objects: each client gets only the errors of its own credential.
func TestRegistrysWordsAreForTheirAsker(t *testing.T) {
	for _, status := range []int{400, 404, 429, 500, 503} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				says := registryFunc(func(_ context.Context, req source.RegistryRequest) (*http.Response, error) {
					time.Sleep(time.Second)
					words := "for " + req.Header.Get("Authorization")
					return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(words))}, nil
				})
				owner := access.NewOwner(says)
				defer owner.Close()
				r := access.New(access.Config{Registry: says,
					AskOwner: func(ctx context.Context, l api.Lookup) (api.LookupReply, error) { return owner.Reply(ctx, l), nil }})
				defer r.Close()
				for _, reference := range []string{"v1", digest} {
					for _, token := range []secret.String{"", "Bearer a", "Bearer b", "Bearer b"} {
						go func() {
							l := lookup(reference)
							l.Authorization = token
							_, err := r.Resolve(t.Context(), l)
							var refused *access.RefusedError
							if assert.ErrorAs(t, err, &refused) && len(refused.Body) > 0 {
								assert.Equal(t, "for "+token.Reveal(), string(refused.Body))
							}
						}()
					}
				}
				time.Sleep(time.Hour)
			})
		})
	}
}
