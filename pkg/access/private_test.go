package access_test

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

const tokens = `Bearer realm="https://auth.test/token",scope="repository:app:pull"`

// guarded is a registry that refuses requests without credentials, and counts them.
type guarded struct {
	status    atomic.Int32
	challenge atomic.Value // a string
	asked     atomic.Int32
	// probes counts the requests with the anonymous token.
	probes atomic.Int32
}

func newGuarded(status int32, challenge string) *guarded {
	g := &guarded{}
	g.status.Store(status)
	g.challenge.Store(challenge)
	return g
}

func (g *guarded) Do(_ context.Context, req source.RegistryRequest) (*http.Response, error) {
	res := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Docker-Content-Digest": {digest}},
		Body: http.NoBody}
	if req.Header.Get("Authorization") == "" {
		g.asked.Add(1)
		if req.Anonymous {
			g.probes.Add(1)
		}
		res.StatusCode = int(g.status.Load())
		if c := g.challenge.Load().(string); c != "" && res.StatusCode == http.StatusUnauthorized {
			res.Header.Set("WWW-Authenticate", c)
		}
	}
	return res, nil
}

// anonymous is a lookup without credentials, which asks with the anonymous token.
func anonymous(reference string) access.Lookup {
	l := lookup(reference)
	l.Authorization, l.Anonymous = "", true
	return l
}

// After a repository refused anonymous access, the Resolver does not ask the registry for each blob: clients that
// answer its challenge get the challenge again for ten seconds.
func TestAnAnonymousRefusalIsRepeatedBriefly(t *testing.T) {
	for name, owner := range map[string]bool{"asked by this host": false, "asked by the owner": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGuarded(401, tokens)
				cfg := access.Config{Registry: g}
				o := access.NewOwner(g)
				defer o.Close()
				if owner {
					cfg.AskOwner = func(ctx context.Context, l api.Lookup) (api.LookupReply, error) {
						return o.Reply(ctx, l), nil
					}
				}
				r := access.New(cfg)
				defer r.Close()
				forget := func() { r.Forget(); o.Forget() }
				// ask returns the status and how many requests the lookup caused.
				ask := func(l access.Lookup) (status int, asked int32) {
					t.Helper()
					before := g.asked.Load()
					_, err := r.Resolve(t.Context(), l)
					var refused *access.RefusedError
					if err == nil {
						return http.StatusOK, g.asked.Load() - before
					}
					require.ErrorAs(t, err, &refused)
					if refused.Status == http.StatusUnauthorized {
						assert.Equal(t, tokens, refused.Header.Get("WWW-Authenticate"))
					}
					return refused.Status, g.asked.Load() - before
				}
				repeats := func(l access.Lookup, why string) {
					t.Helper()
					status, asked := ask(l)
					assert.Equal(t, http.StatusUnauthorized, status, why)
					assert.Zero(t, asked, why)
				}
				asks := func(want int, l access.Lookup, why string) {
					t.Helper()
					status, asked := ask(l)
					assert.Equal(t, want, status, why)
					assert.Positive(t, asked, why)
				}
				asks(401, anonymous(digest), "the first lookup")
				blob := anonymous("sha256:" + strings.Repeat("b", 64))
				blob.Kind = task.Blob
				repeats(blob, "a blob")
				repeats(anonymous("v1"), "a tag")
				unable := anonymous("v1")
				unable.Unchallenged = true
				asks(401, unable, "a client that takes up no challenge")
				plain := anonymous(digest)
				plain.Anonymous = false
				asks(401, plain, "a lookup without the anonymous token")
				other := anonymous(digest)
				other.Repository = "other"
				asks(401, other, "another repository")
				status, _ := ask(lookup(digest))
				assert.Equal(t, http.StatusOK, status, "a client with credentials")
				time.Sleep(11 * time.Second)
				asks(401, anonymous(digest), "after ten seconds")

				g.status.Store(200)
				repeats(anonymous(digest), "the repository became public a moment ago")
				asks(200, unable, "for a client that takes up no challenge it is public")
				status, _ = ask(anonymous("v1"))
				assert.Equal(t, http.StatusOK, status, "and then for all")

				g.status.Store(401)
				forget()
				asks(401, anonymous(digest), "private again")
				forget()
				asks(401, anonymous(digest), "a reload forgets the refusal")
				forget()
				g.status.Store(403)
				asks(403, anonymous(digest), "without a challenge")
				asks(403, anonymous(digest), "there is none to repeat")
			})
		})
	}
}

// If a host sends its own credentials for a client without any, the reply says nothing about anonymous access.
func TestARefusalToThisHostIsNotRepeated(t *testing.T) {
	g := newGuarded(401, tokens)
	r := access.New(access.Config{Registry: g, Credentialed: func(string) bool { return true }})
	defer r.Close()
	for range 2 {
		before := g.asked.Load()
		_, err := r.Resolve(t.Context(), anonymous(digest))
		require.Error(t, err)
		assert.Greater(t, g.asked.Load(), before)
	}
}

// After a client's login, the Resolver does not ask whether anonymous access to the manifest is possible, if it refused
// this client before with the anonymous token, or if the registry gives none.
func TestARefusalSparesTheProbe(t *testing.T) {
	const password = `Basic realm="r"`
	for name, c := range map[string]struct {
		challenge string
		first     access.Lookup
		probes    bool
	}{
		"with the anonymous token":        {tokens, anonymous("v1"), false},
		"without it, asked for one":       {tokens, plain("v1"), true},
		"without it, asked for passwords": {password, plain("v1"), false},
		"asked for either":                {password + ", " + tokens, plain("v1"), true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGuarded(401, c.challenge)
				r := access.New(access.Config{Registry: g, Policy: access.Policy{ServeCached: true}})
				defer r.Close()
				_, err := r.Resolve(t.Context(), c.first)
				require.Error(t, err)
				before := g.probes.Load()
				_, err = r.Resolve(t.Context(), lookup("v1"))
				require.NoError(t, err)
				synctest.Wait()
				assert.Equal(t, c.probes, g.probes.Load() > before)
			})
		})
	}
}

func plain(reference string) access.Lookup {
	l := anonymous(reference)
	l.Anonymous = false
	return l
}

// Clients that ask without any token hear a repository's challenge again for ten seconds, and take it up: containerd
// asks for the tag and for the manifest without credentials first.
func TestAChallengeForATokenIsRepeatedBriefly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuarded(401, tokens)
		r := access.New(access.Config{Registry: g})
		defer r.Close()
		asks := func(want int, l access.Lookup, asked bool, why string) {
			t.Helper()
			before := g.asked.Load()
			_, err := r.Resolve(t.Context(), l)
			status := http.StatusOK
			var refused *access.RefusedError
			if err != nil {
				require.ErrorAs(t, err, &refused)
				status = refused.Status
				assert.Equal(t, []string{tokens}, refused.Header.Values("WWW-Authenticate"), why)
			}
			assert.Equal(t, want, status, why)
			assert.Equal(t, asked, g.asked.Load() > before, why)
		}
		asks(401, plain("v1"), true, "the first request")
		asks(401, plain(digest), false, "another object of the repository")
		asks(200, lookup(digest), false, "a client with a token asks, and is judged by it")
		asks(401, anonymous(digest), true, "anonymous access is another question")
		other := plain(digest)
		other.Repository = "other"
		asks(401, other, true, "another repository")
		unable := plain(digest)
		unable.Unchallenged = true
		asks(401, unable, true, "a client that takes up no challenge")
		time.Sleep(11 * time.Second)
		asks(401, plain(digest), true, "after ten seconds")
		r.Forget()
		asks(401, plain("v1"), true, "after a reload")
		g.status.Store(200)
		asks(200, unable, true, "public now")
		g.status.Store(401)
		asks(401, plain("sha256:"+strings.Repeat("c", 64)), true, "a grant ends the repetition")
	})
}
