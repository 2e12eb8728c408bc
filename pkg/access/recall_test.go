package access_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// fading is a registry with a token service. Both can go; a client with credentials reads everything.
type fading struct {
	mu sync.Mutex
	// gone and tokenless say that the registry or its token service does not answer, private that it refuses anonymous
	// access, hidden that it answers 404 instead.
	gone, tokenless, private, hidden bool
	// slow is how long it takes for an answer.
	slow  time.Duration
	asked []source.RegistryRequest
}

func (f *fading) set(change func(*fading)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fading) Do(ctx context.Context, req source.RegistryRequest) (*http.Response, error) {
	f.mu.Lock()
	now := fading{gone: f.gone, tokenless: f.tokenless, private: f.private,
		hidden: f.hidden, slow: f.slow}
	f.asked = append(f.asked, req)
	f.mu.Unlock()
	select {
	case <-time.After(now.slow):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	res := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Docker-Content-Digest": {digest}},
		Body: http.NoBody}
	bare := req.Header.Get("Authorization") == ""
	switch {
	case now.gone, now.tokenless && bare && req.Anonymous:
		return nil, errors.New("connection refused")
	case bare && now.hidden:
		res.StatusCode = http.StatusNotFound
	case bare && (!req.Anonymous || now.private):
		res.StatusCode = http.StatusUnauthorized
		res.Header.Set("WWW-Authenticate", tokens)
	}
	return res, nil
}

// remembering returns a resolver that keeps for an hour what anonymous clients could read.
func remembering(f access.Registry, cluster bool) *access.Resolver {
	return access.New(access.Config{Registry: f, Cluster: func(string) bool { return cluster },
		Policy: access.Policy{PublicLife: time.Hour, ClusterTagLife: time.Hour}})
}

func TestWhatWasPublicOutlivesItsRegistry(t *testing.T) {
	for name, c := range map[string]struct {
		// between happens after a client read the manifest, and before the registry goes; after is how long ago the registry
		// said that anonymous clients may read it.
		between func(*testing.T, *fading, *access.Resolver)
		after   time.Duration
		lookup  access.Lookup
		served  bool
	}{
		"within its time":      {lookup: anonymous(digest), served: true},
		"by tag":               {lookup: anonymous("v1"), served: true},
		"for a token, too":     {lookup: lookup(digest), served: true},
		"after its time":       {after: time.Hour, lookup: anonymous(digest)},
		"a tag after its time": {after: time.Hour, lookup: anonymous("v1")},
		"in another repository": {lookup: func() access.Lookup {
			l := anonymous(digest)
			l.Repository = "other"
			return l
		}()},
		"of another registry": {lookup: func() access.Lookup {
			l := anonymous(digest)
			l.Upstream = "other.test"
			return l
		}()},
		"after a reload": {lookup: anonymous(digest), served: true,
			between: func(_ *testing.T, _ *fading, r *access.Resolver) { r.Forget() }},
		"after a purge": {lookup: anonymous(digest),
			between: func(_ *testing.T, _ *fading, r *access.Resolver) { r.Purge(task.ID(digest)) }},
		"after its token service went first": {lookup: anonymous(digest), served: true,
			between: func(t *testing.T, f *fading, r *access.Resolver) {
				f.set(func(f *fading) { f.tokenless = true })
				_, err := r.Resolve(t.Context(), anonymous(digest))
				require.Error(t, err, "this is the challenge of a client without a token, and takes nothing back")
			}},
		"after it was made private": {lookup: anonymous(digest),
			between: func(t *testing.T, f *fading, r *access.Resolver) {
				f.set(func(f *fading) { f.private = true })
				_, err := r.Resolve(t.Context(), anonymous(digest))
				require.Error(t, err)
			}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fading{}
				r := remembering(f, false)
				defer r.Close()
				_, err := r.Resolve(t.Context(), anonymous("v1"))
				require.NoError(t, err)
				time.Sleep(2*time.Minute + c.after) // its grant has ended
				if c.between != nil {
					c.between(t, f, r)
				}
				time.Sleep(20 * time.Second)
				f.set(func(f *fading) { f.gone = true })
				got, err := r.Resolve(t.Context(), c.lookup)
				if !c.served {
					require.Error(t, err)
					assert.True(t, access.Unreachable(err))
					return
				}
				require.NoError(t, err)
				assert.Equal(t, access.Public, got.Unverified)
				assert.Equal(t, c.lookup.ID == "", got.Stale > 0)
			})
		})
	}
}

func TestAManifestsPastIsThatOfItsBlobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		layer := "sha256:" + strings.Repeat("b", 64)
		manifest := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":` +
			`{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + layer + `","size":5},"layers":[]}`)
		f := &fading{}
		r := remembering(f, false)
		defer r.Close()
		l := anonymous(string(oci.DigestOf(manifest)))
		got, err := r.Resolve(t.Context(), l)
		require.NoError(t, err)
		r.AdoptManifest(got.Grant, "application/vnd.oci.image.manifest.v1+json", manifest)
		time.Sleep(2 * time.Minute)
		f.set(func(f *fading) { f.gone = true })
		l.Kind, l.Reference, l.ID = task.Blob, layer, task.ID(layer)
		again, err := r.Resolve(t.Context(), l)
		require.NoError(t, err)
		assert.Equal(t, access.Public, again.Unverified)
		l.Repository = "other"
		_, err = r.Resolve(t.Context(), l)
		require.Error(t, err, "the same blob of another repository may be private")
	})
}

func TestATokenServiceIsGoneAlone(t *testing.T) {
	for _, cluster := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := &fading{private: true}
			r := remembering(f, cluster)
			defer r.Close()
			_, err := r.Resolve(t.Context(), lookup("v1"))
			require.NoError(t, err)
			synctest.Wait()
			_, err = r.Resolve(t.Context(), plain("v1"))
			var refused *access.RefusedError
			require.ErrorAs(t, err, &refused, "both answer: the client gets its challenge")
			require.False(t, access.Unreachable(err))
			f.set(func(f *fading) { f.tokenless = true })
			time.Sleep(time.Minute)
			got, err := r.Resolve(t.Context(), plain("v1"))
			if !cluster {
				require.ErrorAs(t, err, &refused)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, access.Cluster, got.Unverified)
			assert.NotZero(t, got.Stale)
		})
	}
}

func TestASilentRegistryIsDoneWithout(t *testing.T) {
	for name, c := range map[string]struct {
		known, answers bool
		after          time.Duration
		basis          access.Basis
	}{
		"what was public counts after ten seconds":     {known: true, after: 10 * time.Second, basis: access.Public},
		"a slow one is waited for if nothing is known": {after: time.Minute},
		"a slow one that answers others is waited for": {known: true, answers: true, after: time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fading{}
				r := remembering(f, false)
				defer r.Close()
				if c.known {
					_, err := r.Resolve(t.Context(), anonymous(digest))
					require.NoError(t, err)
				}
				time.Sleep(2 * time.Minute)
				f.set(func(f *fading) { f.slow = time.Minute })
				if c.answers {
					for i := range 12 {
						time.AfterFunc(time.Duration(i)*5*time.Second-time.Second, func() {
							res, err := r.Send(context.Background(), source.RegistryRequest{Upstream: "r.test",
								Method: http.MethodGet, Path: "/v2/"})
							if err == nil {
								res.Body.Close()
							}
						})
					}
					time.Sleep(time.Minute) // from now on it answers every five seconds
				}
				began := time.Now()
				got, err := r.Resolve(t.Context(), anonymous(digest))
				require.NoError(t, err)
				assert.Equal(t, c.basis, got.Unverified)
				assert.Equal(t, c.after, time.Since(began))
			})
		})
	}
}

// An owner replies from its memory without a request, and only what registries answered to it.
func TestAnOwnerRemembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fading{}
		o := access.NewOwner(f)
		o.Remember(access.NewMemory())
		defer o.Close()
		q := tagLookup
		q.Authorization = "Bearer alice"
		require.Equal(t, task.ID(digest), o.Reply(t.Context(), q).Digest)
		byAnonymous := q
		byAnonymous.Authorization, byAnonymous.Anonymous, byAnonymous.Reference = "", true, digest
		require.Equal(t, task.ID(digest), o.Reply(t.Context(), byAnonymous).Digest)
		o.Forget()
		f.set(func(f *fading) { f.asked = nil })
		q.Authorization, q.LastKnown = "", true
		time.Sleep(time.Minute)
		a := o.Reply(t.Context(), q)
		assert.True(t, a.LastKnown)
		assert.Equal(t, task.ID(digest), a.Digest)
		assert.EqualValues(t, 60_000, a.AgeMillis)
		assert.True(t, a.Public, "a client without credentials got it")
		q.Repository = "other"
		assert.NotEmpty(t, o.Reply(t.Context(), q).Unreached)
		assert.Empty(t, f.asked)
	})
}

// A client that leaves while the token service is asked says nothing of that service: the next client is refused what
// the registry refuses it.
func TestALeavingClientMakesNoOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fading{private: true}
		r := remembering(f, true)
		defer r.Close()
		_, err := r.Resolve(t.Context(), lookup(digest))
		require.NoError(t, err)
		synctest.Wait()
		_, err = r.Resolve(t.Context(), plain(digest))
		require.Error(t, err)
		f.set(func(f *fading) { f.slow = time.Second })
		leaves, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		_, err = r.Resolve(leaves, plain(digest))
		require.Error(t, err)
		f.set(func(f *fading) { f.slow = 0 })
		_, err = r.Resolve(t.Context(), plain(digest))
		require.Error(t, err)
		assert.False(t, access.Unreachable(err))
	})
}

// declining is a registry that answers, and whose token service refuses the node's own login.
type declining struct{ *fading }

func (d declining) Do(ctx context.Context, req source.RegistryRequest) (*http.Response, error) {
	if req.Header.Get("Authorization") == "" {
		return nil, &source.StatusError{Method: http.MethodGet, URL: "https://auth.test/token",
			Status: http.StatusUnauthorized}
	}
	res, err := d.fading.Do(ctx, req)
	if err == nil && req.Header.Get("Authorization") == "Bearer bogus" {
		res.StatusCode = http.StatusUnauthorized
		res.Header.Set("WWW-Authenticate", tokens)
	}
	return res, err
}

// A token service that refuses the node's login is not gone: access: cluster is for outages alone.
func TestARefusedLoginIsNoOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := access.New(access.Config{Registry: declining{&fading{}}, Cluster: func(string) bool { return true },
			Credentialed: func(string) bool { return true },
			Policy:       access.Policy{PublicLife: time.Hour, ClusterTagLife: time.Hour}})
		defer r.Close()
		_, err := r.Resolve(t.Context(), lookup(digest))
		require.NoError(t, err)
		synctest.Wait()
		_, err = r.Resolve(t.Context(), plain(digest))
		require.Error(t, err, "a client without credentials, for which the node logs in")
		bogus := lookup(digest)
		bogus.Authorization = "Bearer bogus"
		_, err = r.Resolve(t.Context(), bogus)
		var refused *access.RefusedError
		require.ErrorAs(t, err, &refused)
		assert.False(t, access.Unreachable(err))
	})
}

// swapping is a registry whose node loses its own login while it answers.
type swapping struct {
	*fading
	own *atomic.Bool
}

func (s swapping) Do(ctx context.Context, req source.RegistryRequest) (*http.Response, error) {
	if s.own.Swap(false) {
		req.Header = http.Header{"Authorization": {"Bearer the node's"}}
	}
	return s.fading.Do(ctx, req)
}

// An object that the node's own login could read was not public, also if a reload removes the login before the answer.
func TestALoginTakenAwayMakesNothingPublic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, own := &fading{private: true}, &atomic.Bool{}
		own.Store(true)
		r := access.New(access.Config{Registry: swapping{f, own}, Policy: access.Policy{PublicLife: time.Hour},
			Credentialed: func(string) bool { return own.Load() }})
		defer r.Close()
		_, err := r.Resolve(t.Context(), plain(digest))
		require.NoError(t, err)
		r.Forget()
		f.set(func(f *fading) { f.gone = true })
		_, err = r.Resolve(t.Context(), plain(digest))
		require.Error(t, err)
	})
}

// A refusal that this host knows of is later than what another host remembers.
func TestAnOwnersPastDoesNotUndoARefusal(t *testing.T) {
	for name, c := range map[string]struct{ before, hidden bool }{
		"asked for the first time":                    {},
		"known already":                               {before: true},
		"asked for the first time, hidden behind 404": {hidden: true},
		"known already, hidden behind 404":            {before: true, hidden: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fading{}
				began := time.Now()
				r := access.New(access.Config{Registry: f, Policy: access.Policy{PublicLife: time.Hour},
					Recall: func(context.Context, api.Lookup) []api.LookupReply {
						age := time.Since(began).Milliseconds()
						return []api.LookupReply{{Version: 1, LastKnown: true, Digest: task.ID(digest), Public: true,
							AgeMillis: age, PublicAgeMillis: age}}
					}})
				defer r.Close()
				if c.before {
					f.set(func(f *fading) { f.gone = true })
					got, err := r.Resolve(t.Context(), anonymous(digest))
					require.NoError(t, err)
					require.Equal(t, access.Public, got.Unverified)
				}
				time.Sleep(time.Minute)
				f.set(func(f *fading) { f.gone, f.private, f.hidden = false, true, c.hidden })
				_, err := r.Resolve(t.Context(), anonymous(digest))
				require.Error(t, err)
				time.Sleep(time.Minute)
				f.set(func(f *fading) { f.gone = true })
				_, err = r.Resolve(t.Context(), anonymous(digest))
				require.Error(t, err)
			})
		})
	}
}

// odd is a registry whose token service fails for one repository, or for requests with one Accept.
type odd struct{ *fading }

func (o odd) Do(ctx context.Context, req source.RegistryRequest) (*http.Response, error) {
	bare := req.Header.Get("Authorization") == "" && req.Anonymous
	if bare && (strings.HasPrefix(req.Path, "/v2/odd/") || req.Header.Get("Accept") == "odd") {
		return nil, errors.New("the token service answered 500")
	}
	return o.fading.Do(ctx, req)
}

// A client chooses the names and the Accept that it sends: with those for which it gets no token, it makes no outage
// for others.
func TestAnOddRequestMakesNoOutage(t *testing.T) {
	for name, change := range map[string]func(*access.Lookup){
		"repository": func(l *access.Lookup) { l.Repository = "odd" },
		"Accept":     func(l *access.Lookup) { l.Accept = []string{"odd"} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := remembering(odd{&fading{private: true}}, true)
				defer r.Close()
				_, err := r.Resolve(t.Context(), lookup(digest))
				require.NoError(t, err)
				synctest.Wait()
				l := plain(digest)
				change(&l)
				_, err = r.Resolve(t.Context(), l)
				require.Error(t, err)
				_, err = r.Resolve(t.Context(), plain(digest))
				require.Error(t, err)
				assert.False(t, access.Unreachable(err))
			})
		})
	}
}

// uneven is a registry that answers slowly for one repository, as one that fetches it from elsewhere.
type uneven struct {
	*fading
	slow atomic.Bool
}

func (u *uneven) Do(ctx context.Context, req source.RegistryRequest) (*http.Response, error) {
	if u.slow.Load() && strings.HasPrefix(req.Path, "/v2/slow/") {
		select {
		case <-time.After(time.Minute):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return u.fading.Do(ctx, req)
}

// A repository for which a registry is slow is no outage of the others.
func TestASlowRepositoryIsDoneWithoutAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &uneven{fading: &fading{private: true}}
		r := remembering(u, true)
		defer r.Close()
		slow := lookup(digest)
		slow.Repository = "slow"
		for _, l := range []access.Lookup{slow, lookup(digest)} {
			_, err := r.Resolve(t.Context(), l)
			require.NoError(t, err)
		}
		time.Sleep(time.Minute)
		u.slow.Store(true)
		slow.Authorization = ""
		got, err := r.Resolve(t.Context(), slow)
		require.NoError(t, err)
		assert.Equal(t, access.Cluster, got.Unverified)
		_, err = r.Resolve(t.Context(), plain(digest))
		require.Error(t, err, "the registry refuses it at once")
		assert.False(t, access.Unreachable(err))
	})
}

// narrow is a registry that ends the connection of a request with long headers, as one of HTTP/2 bounds them.
type narrow struct{ *fading }

func (n narrow) Do(ctx context.Context, req source.RegistryRequest) (*http.Response, error) {
	if len(req.Header.Get("Accept"))+len(req.Header.Get("Authorization")) > 10<<10 {
		return nil, errors.New("http2: request header list larger than peer's advertised limit")
	}
	return n.fading.Do(ctx, req)
}

// A client whose own headers fail its request makes no outage.
func TestLongHeadersMakeNoOutage(t *testing.T) {
	for name, change := range map[string]func(*access.Lookup){
		"Accept":        func(l *access.Lookup) { l.Accept = []string{strings.Repeat("a", 20<<10)} },
		"Authorization": func(l *access.Lookup) { l.Authorization = secret.String("Bearer " + strings.Repeat("a", 20<<10)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fading{private: true}
				r := remembering(narrow{f}, true)
				defer r.Close()
				_, err := r.Resolve(t.Context(), lookup(digest))
				require.NoError(t, err)
				synctest.Wait()
				l := plain(digest)
				change(&l)
				_, err = r.Resolve(t.Context(), l)
				require.Error(t, err)
				assert.ErrorContains(t, err, "headers")
			})
		})
	}
}

// The registry's answer counts if it comes while owners are still asked what they remember.
func TestAnAnswerDuringARecallCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		forbids := registryFunc(func(context.Context, source.RegistryRequest) (*http.Response, error) {
			time.Sleep(3 * time.Second)
			return &http.Response{StatusCode: http.StatusForbidden, Header: http.Header{}, Body: http.NoBody}, nil
		})
		r := access.New(access.Config{Registry: forbids, Cluster: func(string) bool { return true },
			Policy: access.Policy{PublicLife: time.Hour},
			Recall: func(context.Context, api.Lookup) []api.LookupReply {
				time.Sleep(12 * time.Second)
				return []api.LookupReply{{Version: 1, LastKnown: true, Digest: task.ID(digest), AgeMillis: 1}}
			}})
		defer r.Close()
		_, err := r.Resolve(t.Context(), plain(digest))
		require.Error(t, err)
		var refused *access.RefusedError
		require.ErrorAs(t, err, &refused)
	})
}
