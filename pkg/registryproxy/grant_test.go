package registryproxy_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
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
	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// jwt is an unsigned token with the given claims.
func jwt(claims string) string {
	part := base64.RawURLEncoding.EncodeToString
	return "Bearer " + part([]byte(`{"alg":"none"}`)) + "." + part([]byte(claims)) + ".c2ln"
}

func jwtUntil(t time.Time) string { return jwt(fmt.Sprintf(`{"exp":%d,"jti":"1"}`, t.Unix())) }

// fixture is a mirror in front of one fake registry with one layer in "app".
type fixture struct {
	*mirror
	swarm swarm
	up    *upstreamFunc
	layer task.ID
}

func newFixture(cfg config) *fixture {
	r := &fixture{}
	r.layer = r.swarm.put(blob(100), "")
	r.up = &upstreamFunc{answer: answers(map[string]object{"r.test/v2/app/blobs/" + string(r.layer): {blob(100), ""}})}
	cfg.Upstream, cfg.Open, cfg.Default = r.up, r.swarm.Open, "r.test"
	r.mirror = newMirror(cfg)
	return r
}

// asks counts the requests to the registry since the last call.
func (r *fixture) asks() int {
	r.up.mu.Lock()
	defer r.up.mu.Unlock()
	n := len(r.up.asked)
	r.up.asked = nil
	return n
}

func (r *fixture) get(path string, header ...string) *http.Response {
	return ask(r.mirror, http.MethodGet, "/v2/"+path, header...)
}

func TestAGrantLivesAsLongAsItsToken(t *testing.T) {
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("alice:a"))
	for name, c := range map[string]struct {
		authorization func(now time.Time) string
		longest, life time.Duration
	}{
		"a token that states its end": {func(now time.Time) string { return jwtUntil(now.Add(5 * time.Minute)) }, 0,
			5 * time.Minute},
		"a token that lives very long": {func(now time.Time) string { return jwtUntil(now.Add(5000 * time.Hour)) }, 0,
			time.Hour},
		"a token and a short policy": {func(now time.Time) string { return jwtUntil(now.Add(time.Hour)) },
			time.Second, time.Second},
		"a token with a fraction": {func(now time.Time) string {
			return jwt(fmt.Sprintf(`{"exp":%d.5}`, now.Unix()+30))
		}, 0,
			30 * time.Second},
		"an opaque token": {func(time.Time) string { return "Bearer 0123456789" }, 0, time.Minute},
		"an opaque token, a short policy": {func(time.Time) string { return "Bearer 0123456789" }, time.Second,
			time.Second},
		"a token without an end":           {func(time.Time) string { return jwt(`{"sub":"alice"}`) }, 0, time.Minute},
		"a token with a senseless end":     {func(time.Time) string { return jwt(`{"exp":1e300}`) }, 0, time.Minute},
		"a token with an end before times": {func(time.Time) string { return jwt(`{"exp":-5}`) }, 0, time.Minute},
		"three parts that are no token":    {func(time.Time) string { return "Bearer a.b.c" }, 0, time.Minute},
		"a password":                       {func(time.Time) string { return basic }, 0, time.Minute},
		"nothing":                          {func(time.Time) string { return "" }, 0, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newFixture(config{Policy: access.Policy{GrantLife: c.longest}})
				who := c.authorization(time.Now())
				pull := func() int {
					require.Equal(t, 200, r.get("app/blobs/"+string(r.layer), "Authorization", who).StatusCode)
					return r.asks()
				}
				assert.Equal(t, 1, pull())
				time.Sleep(c.life - time.Millisecond)
				assert.Equal(t, 0, pull(), "just before its end")
				time.Sleep(2 * time.Millisecond)
				assert.Equal(t, 1, pull(), "just after")
			})
		})
	}
}

// dated is a registry whose clock differs from this node's by so much.
func dated(up *upstreamFunc, off time.Duration) {
	up.mu.Lock()
	answer := up.answer
	up.mu.Unlock()
	up.reply(func(w http.ResponseWriter, q source.RegistryRequest) {
		w.Header().Set("Date", time.Now().Add(off).UTC().Format(http.TimeFormat))
		answer(w, q)
	})
}

func TestAnExpiredTokenGrantsNothingWithAWrongClock(t *testing.T) {
	for name, off := range map[string]time.Duration{"three days behind": 72 * time.Hour, "right": 0,
		"three days ahead": -72 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newFixture(config{Policy: access.Policy{ServeCached: true}})
				dated(r.up, off)
				there := time.Now().Add(off)
				who := jwt(fmt.Sprintf(`{"iat":%d,"exp":%d}`, there.Unix(), there.Add(5*time.Minute).Unix()))
				get := func() int { return r.get("app/blobs/"+string(r.layer), "Authorization", who).StatusCode }
				require.Equal(t, 200, get())
				require.Equal(t, 1, r.asks())
				time.Sleep(5*time.Minute - time.Second)
				require.Equal(t, 200, get())
				require.Zero(t, r.asks(), "the token has not ended")
				time.Sleep(2 * time.Second)
				r.up.fail(errors.New("connection refused"))
				require.Equal(t, 502, get(), "it has, and its grant with it")
			})
		})
	}
}

func TestAnExpiredTokenIsLookedUpEachTime(t *testing.T) {
	r := newFixture(config{Policy: access.Policy{ServeCached: true}})
	// A registry with a slow clock still accepts the token, as it may.
	who := jwtUntil(time.Now().Add(-time.Minute))
	for range 3 {
		assert.Equal(t, 200, r.get("app/blobs/"+string(r.layer), "Authorization", who).StatusCode)
		assert.Equal(t, 1, r.asks())
	}
	r.up.fail(errors.New("connection refused"))
	assert.Equal(t, 502, r.get("app/blobs/"+string(r.layer), "Authorization", who).StatusCode)
}

func TestAGrantHoldsForItsOwnKeyAlone(t *testing.T) {
	r := newFixture(config{})
	everything := r.up.answer
	layer := string(r.layer)
	require.Equal(t, 200, r.get("app/blobs/"+layer, "Authorization", "Bearer alice").StatusCode)
	r.asks()
	// From now on the registry refuses all requests: responses come from memory.
	r.up.reply(func(w http.ResponseWriter, q source.RegistryRequest) { w.WriteHeader(http.StatusForbidden) })
	for name, c := range map[string]struct{ path, authorization string }{
		"another token":                {"app/blobs/" + layer, "Bearer bob"},
		"the same token as a password": {"app/blobs/" + layer, "Basic alice"},
		"no token":                     {"app/blobs/" + layer, ""},
		"another repository":           {"other/blobs/" + layer, "Bearer alice"},
		"another registry":             {"app/blobs/" + layer + "?ns=other.test", "Bearer alice"},
		"another registry by path":     {"other.test/app/blobs/" + layer, "Bearer alice"},
		"another port":                 {"app/blobs/" + layer + "?ns=r.test:5000", "Bearer alice"},
		"the same digest as manifest":  {"app/manifests/" + layer, "Bearer alice"},
		"another digest":               {"app/blobs/" + missing, "Bearer alice"},
	} {
		res := r.get(c.path, "Authorization", c.authorization)
		assert.Equal(t, 403, res.StatusCode, name)
		assert.Positive(t, r.asks(), name)
	}
	assert.Equal(t, 200, r.get("app/blobs/"+layer, "Authorization", "Bearer alice").StatusCode, "the grant itself")
	assert.Equal(t, 200, r.get("app/blobs/"+layer+"?ns=r.test", "Authorization", "Bearer alice").StatusCode,
		"the same registry by another spelling")
	assert.Equal(t, 0, r.asks())
	r.up.reply(everything)
	r.Forget()
	assert.Equal(t, 200, r.get("app/blobs/"+layer, "Authorization", "Bearer alice").StatusCode)
	assert.Equal(t, 1, r.asks())
}

func TestRefusalsAreNotRemembered(t *testing.T) {
	r := newFixture(config{})
	known := r.up.answer
	for _, c := range []struct{ status, asks int }{
		{401, 1}, {403, 2}, {404, 2}, {429, 1}, {500, 2}, {503, 2}, // a GET may be answered otherwise than a HEAD
	} {
		r.up.reply(func(w http.ResponseWriter, q source.RegistryRequest) {
			w.Header().Set("WWW-Authenticate", "Basic realm=r")
			w.WriteHeader(c.status)
		})
		for range 2 {
			assert.Equal(t, c.status, r.get("app/blobs/"+string(r.layer), "Authorization", "Bearer x").StatusCode)
			assert.Equal(t, c.asks, r.asks(), c.status)
		}
	}
	r.up.reply(known)
	assert.Equal(t, 200, r.get("app/blobs/"+string(r.layer), "Authorization", "Bearer x").StatusCode)
}

func TestARefusalDropsGrants(t *testing.T) {
	for _, c := range []struct {
		status      int
		also, also2 bool // whether the credential keeps its other grant in the repository, and the one in another
	}{{401, false, true}, {403, true, true}, {404, true, true}, {500, true, true}} {
		synctest.Test(t, func(t *testing.T) {
			r := newFixture(config{})
			other := r.swarm.put(blob(50), "")
			yes := func(w http.ResponseWriter, q source.RegistryRequest) { w.WriteHeader(200) }
			r.up.reply(yes)
			pull := func(path string, id task.ID) bool {
				res := r.get(path+"/blobs/"+string(id), "Authorization", "Bearer alice")
				return res.StatusCode == 200
			}
			require.True(t, pull("app", r.layer))
			time.Sleep(40 * time.Second)
			require.True(t, pull("app", other))
			require.True(t, pull("app2", other))
			time.Sleep(40 * time.Second) // the first needs a new lookup, the others do not
			r.up.reply(func(w http.ResponseWriter, q source.RegistryRequest) { w.WriteHeader(c.status) })
			r.asks()
			require.False(t, pull("app", r.layer))
			assert.Equal(t, c.also, pull("app", other), c.status)
			assert.Equal(t, c.also2, pull("app2", other), c.status)
		})
	}
}

func TestEqualLookupsAreCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFixture(config{})
		known, gate := r.up.answer, make(chan struct{})
		r.up.reply(func(w http.ResponseWriter, q source.RegistryRequest) {
			<-gate
			known(w, q)
		})
		var clients sync.WaitGroup
		statuses := make(chan int, 400)
		for range 200 {
			clients.Go(func() {
				statuses <- r.get("app/blobs/"+string(r.layer)+"?ns=r.test", "Authorization", "Bearer same").StatusCode
			})
			clients.Go(func() {
				statuses <- r.get("app/blobs/"+missing+"?ns=r.test", "Authorization", "Bearer same").StatusCode
			})
		}
		synctest.Wait()
		close(gate)
		clients.Wait()
		count := map[int]int{}
		for range 400 {
			count[<-statuses]++
		}
		assert.Equal(t, map[int]int{200: 200, 404: 200}, count)
		assert.Equal(t, 3, r.asks(), "one HEAD for the present object, and a HEAD and a GET for the missing one")
	})
}

func TestALeavingClientCancelsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFixture(config{})
		known, gate := r.up.answer, make(chan struct{})
		var ended error
		up := upstreamOf(func(ctx context.Context, q source.RegistryRequest) (*http.Response, error) {
			select {
			case <-gate:
			case <-ctx.Done():
				ended = ctx.Err()
				return nil, ctx.Err()
			}
			return (&upstreamFunc{answer: known}).Do(ctx, q)
		})
		p := newMirror(config{Upstream: up, Open: r.swarm.Open, Default: "r.test"})
		var clients sync.WaitGroup
		begin := func(status *int) context.CancelFunc {
			ctx, leave := context.WithCancel(t.Context())
			clients.Go(func() {
				w := httptest.NewRecorder()
				p.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v2/app/blobs/"+string(r.layer),
					nil).WithContext(ctx))
				*status = w.Code
			})
			synctest.Wait()
			return leave
		}
		var first, second, third int
		leaveFirst, leaveSecond := begin(&first), begin(&second)
		leaveFirst() // that client had sent the lookup
		synctest.Wait()
		assert.NoError(t, ended)
		leaveSecond()
		synctest.Wait()
		assert.ErrorIs(t, ended, context.Canceled, "no client waits any more")
		defer begin(&third)()
		close(gate)
		clients.Wait()
		assert.Equal(t, 200, third)
	})
}

// upstreamOf is an Upstream that is one function.
type upstreamOf func(ctx context.Context, q source.RegistryRequest) (*http.Response, error)

func (f upstreamOf) Do(ctx context.Context, q source.RegistryRequest) (*http.Response, error) {
	return f(ctx, q)
}

func TestExpiredGrantsServeOnlyWhereTheOperatorAllows(t *testing.T) {
	gone := func(u *upstreamFunc) { u.fail(errors.New("dial tcp: connection refused")) }
	gateway := func(u *upstreamFunc) {
		u.reply(func(w http.ResponseWriter, q source.RegistryRequest) { w.WriteHeader(http.StatusServiceUnavailable) })
	}
	for name, down := range map[string]func(*upstreamFunc){"no answer": gone, "only a gateway answers": gateway} {
		for _, serve := range []bool{false, true} {
			t.Run(fmt.Sprint(name, serve), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var seen pulls
					r := newFixture(config{Observe: seen.observe})
					r.SetPolicy(access.Policy{ServeCached: serve})
					layer := "app/blobs/" + string(r.layer)
					token := jwtUntil(time.Now().Add(2 * time.Hour))
					for _, who := range []string{"Bearer opaque", token} {
						require.Equal(t, 200, r.get(layer, "Authorization", who).StatusCode)
					}
					down(r.up)
					assert.Equal(t, 200, r.get(layer, "Authorization", "Bearer opaque").StatusCode, "still counts")
					assert.Empty(t, seen.last(t).Unverified)

					time.Sleep(90 * time.Minute)
					for _, who := range []string{"Bearer opaque", token} {
						res := r.get(layer, "Authorization", who)
						assert.Equal(t, serve, res.StatusCode == 200, who)
						assert.Equal(t, serve, res.Header.Get(registryproxy.HeaderUnverified) != "")
						assert.Equal(t, serve, seen.last(t).Unverified == access.Remembered)
						assert.Positive(t, r.asks(), "it is asked first")
					}
					assert.NotEqual(t, 200, r.get(layer, "Authorization", "Bearer never seen").StatusCode)
					assert.NotEqual(t, 200, r.get("other/blobs/"+string(r.layer), "Authorization",
						"Bearer opaque").StatusCode)
					time.Sleep(31 * time.Minute)
					assert.NotEqual(t, 200, r.get(layer, "Authorization", token).StatusCode, "the token has expired")
				})
			})
		}
	}
}

// If expired grants are used while the registry is unreachable, the mirror has to know what anonymous clients may read:
// it asks for that when a client comes without credentials, also if the client could answer a challenge.
func TestServingCachedAsksForAnonymousAccess(t *testing.T) {
	for _, serve := range []bool{false, true} {
		t.Run(fmt.Sprint(serve), func(t *testing.T) {
			r := newFixture(config{Policy: access.Policy{ServeCached: serve}})
			has := r.up.answer
			var asked atomic.Int32
			r.up.reply(func(w http.ResponseWriter, q source.RegistryRequest) {
				asked.Add(1)
				assert.Equal(t, serve, q.Anonymous)
				has(w, q)
			})
			assert.Equal(t, 200, r.get("app/blobs/"+string(r.layer)+"?ns=r.test").StatusCode)
			assert.EqualValues(t, 1, asked.Load())
		})
	}
}

func TestAChallengeForAPasswordOutlivesItsRegistry(t *testing.T) {
	const password = "Basic YWxpY2U6cHc="
	for name, row := range map[string]struct {
		challenge string
		serve     bool
		first     int // what a client without credentials gets while the registry is down
	}{
		"a password":                    {`Basic realm="r.test"`, true, 401},
		"a password, in another case":   {`basic realm="r.test"`, true, 401},
		"a token":                       {`Bearer realm="https://r.test/token"`, true, 502},
		"a password, nothing is served": {`Basic realm="r.test"`, false, 502},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newFixture(config{Policy: access.Policy{ServeCached: row.serve}})
				has := r.up.answer
				r.up.reply(func(w http.ResponseWriter, q source.RegistryRequest) {
					if q.Header.Get("Authorization") == "" {
						w.Header().Set("WWW-Authenticate", row.challenge)
						w.WriteHeader(http.StatusUnauthorized)
						return
					}
					has(w, q)
				})
				layer := "app/blobs/" + string(r.layer)
				require.Equal(t, 401, r.get(layer).StatusCode)
				require.Equal(t, 200, r.get(layer, "Authorization", password).StatusCode)
				r.up.fail(errors.New("dial tcp: connection refused"))
				time.Sleep(90 * time.Minute)
				res := r.get(layer)
				assert.Equal(t, row.first, res.StatusCode)
				if row.first == 401 {
					assert.Equal(t, []string{row.challenge}, res.Header.Values("WWW-Authenticate"))
				}
				assert.Equal(t, row.serve, r.get(layer, "Authorization", password).StatusCode == 200)
				wrong := r.get(layer, "Authorization", "Basic Ym9iOnB3")
				assert.Equal(t, 502, wrong.StatusCode, "no other password opens it, and the client hears why")
			})
		})
	}
}

// family is an image whose manifests name each other.
type family struct {
	index, manifest, config, layer, foreign, subject, outside task.ID
}

// put places the family in a swarm; the registry of the answer knows only the index and the
// manifest.
func (f *family) put(s *swarm) map[string]object {
	f.config, f.layer = s.put([]byte(`{"config":1}`), ""), s.put(blob(3000), "")
	f.foreign, f.subject, f.outside = s.put(blob(31), ""), s.put(blob(32), oci.MediaTypeManifest), s.put(blob(33), "")
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":12},
		"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":%q,"size":3000},
		{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":%q,"size":31,"urls":["https://elsewhere.test/x"]}],
		"subject":{"mediaType":%q,"digest":%q,"size":32}}`, oci.MediaTypeManifest, f.config, f.layer, f.foreign,
		oci.MediaTypeManifest, f.subject)
	f.manifest = s.put(manifest, oci.MediaTypeManifest)
	index := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		oci.MediaTypeIndex, oci.MediaTypeManifest, f.manifest, len(manifest))
	f.index = s.put(index, oci.MediaTypeIndex)
	return map[string]object{
		"r.test/v2/app/manifests/v1":                 {index, oci.MediaTypeIndex},
		"r.test/v2/app/manifests/" + string(f.index): {index, oci.MediaTypeIndex},
	}
}

func TestAManifestGrantsItsReferences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFixture(config{})
		var f family
		r.up.reply(answers(f.put(&r.swarm)))
		who := []string{"Authorization", jwtUntil(time.Now().Add(5 * time.Minute))}
		image := []string{"app/manifests/" + string(f.manifest), "app/blobs/" + string(f.config),
			"app/blobs/" + string(f.layer)}
		for _, path := range image {
			assert.Equal(t, 404, r.get(path, who...).StatusCode, "before a manifest granted it")
		}
		require.Equal(t, 200, r.get("app/manifests/v1", who...).StatusCode)
		r.asks()
		for _, path := range image {
			assert.Equal(t, 200, r.get(path, who...).StatusCode, path)
		}
		assert.Zero(t, r.asks())
		// A descriptor names a size, so a HEAD needs neither the registry nor the swarm, but the mirror does not present that
		// size as the registry's.
		opened := len(r.swarm.opened)
		res := ask(r.mirror, http.MethodHead, "/v2/app/blobs/"+string(f.layer), who...)
		assert.Equal(t, "3000", res.Header.Get("Content-Length"))
		assert.Equal(t, oci.MediaTypeManifest,
			ask(r.mirror, http.MethodHead, "/v2/app/manifests/"+string(f.manifest), who...).Header.Get("Content-Type"))
		assert.Len(t, r.swarm.opened, opened)
		assert.Zero(t, r.swarm.opened[opened-1].Length)

		for name, c := range map[string]struct{ path, authorization string }{
			"another credential":          {"app/blobs/" + string(f.layer), "Bearer bob"},
			"no credential":               {"app/blobs/" + string(f.layer), ""},
			"another repository":          {"app2/blobs/" + string(f.layer), who[1]},
			"another registry":            {"app/blobs/" + string(f.layer) + "?ns=other.test", who[1]},
			"a layer from elsewhere":      {"app/blobs/" + string(f.foreign), who[1]},
			"what a manifest refers to":   {"app/manifests/" + string(f.subject), who[1]},
			"what no manifest names":      {"app/blobs/" + string(f.outside), who[1]},
			"a layer asked as a manifest": {"app/manifests/" + string(f.layer), who[1]},
			"a manifest asked as a layer": {"app/blobs/" + string(f.manifest), who[1]},
		} {
			assert.Equal(t, 404, r.get(c.path, "Authorization", c.authorization).StatusCode, name)
			assert.Equal(t, 2, r.asks(), "a HEAD and a GET: "+name)
		}
		time.Sleep(5*time.Minute + time.Second)
		assert.Equal(t, 404, r.get(image[2], who...).StatusCode, "the grant ended with the manifest's")
	})
}

func TestReferencesEndWithTheManifestsGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFixture(config{})
		var f family
		r.up.reply(answers(f.put(&r.swarm)))
		pull := func(path string) int { return r.get(path, "Authorization", "Bearer opaque").StatusCode }
		require.Equal(t, 200, pull("app/manifests/"+string(f.index)))
		time.Sleep(50 * time.Second)
		require.Equal(t, 200, pull("app/manifests/"+string(f.manifest)))
		require.Equal(t, 200, pull("app/blobs/"+string(f.layer)))
		time.Sleep(11 * time.Second)
		assert.Equal(t, 404, pull("app/blobs/"+string(f.layer)), "a minute after the registry's last reply")
		// The index's own grant is renewed, and with it the grants of its references.
		require.Equal(t, 200, pull("app/manifests/"+string(f.index)))
		require.Equal(t, 200, pull("app/manifests/"+string(f.manifest)))
		assert.Equal(t, 200, pull("app/blobs/"+string(f.layer)))
	})
}

// distribution takes a Docker image that names manifests, and a Docker list that names layers,
// and looks for neither.
func TestAManifestGrantsOnlyVerifiedReferences(t *testing.T) {
	for name, c := range map[string]struct{ mediaType, fields, path string }{
		"manifests of an image": {oci.MediaTypeDockerManifest, `"config":{},"layers":[],"manifests":[%s]`,
			"manifests"},
		"layers of a list":       {oci.MediaTypeDockerList, `"manifests":[],"layers":[%s]`, "blobs"},
		"layers without a list":  {oci.MediaTypeDockerList, `"config":{},"layers":[%s]`, "blobs"},
		"layers under two names": {oci.MediaTypeManifest, `"config":{},"layers":[%s],"Layers":[]`, "blobs"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newFixture(config{})
			private := r.swarm.put([]byte("another's"), "")
			named := fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":9}`, oci.MediaTypeManifest, private)
			manifest := []byte(`{"schemaVersion":2,"mediaType":"` + c.mediaType + `",` + fmt.Sprintf(c.fields,
				named) + `}`)
			id := r.swarm.put(manifest, c.mediaType)
			r.up.reply(answers(map[string]object{"r.test/v2/app/manifests/" + string(id): {manifest, c.mediaType}}))
			require.Equal(t, 200, r.get("app/manifests/"+string(id)).StatusCode)
			assert.Equal(t, 404, r.get("app/"+c.path+"/"+string(private)).StatusCode)
		})
	}
}

func TestAManifestOfAnUnlistedRegistryGrantsNothing(t *testing.T) {
	r := newFixture(config{Vouches: func(upstream string) bool { return upstream != "r.test" }})
	var f family
	r.up.reply(answers(f.put(&r.swarm)))
	require.Equal(t, 200, r.get("app/manifests/v1").StatusCode)
	assert.Equal(t, 404, r.get("app/manifests/"+string(f.manifest)).StatusCode)
}

func TestATokenRefusedByTheOriginLosesItsGrants(t *testing.T) {
	r := newFixture(config{})
	path := "app/blobs/" + string(r.layer)
	require.Equal(t, 200, r.get(path, "Authorization", "Bearer x").StatusCode)
	r.swarm.err = &api.Failure{Status: 401, Message: "the token has ended",
		Header: map[string]string{"Www-Authenticate": "Bearer y"}}
	r.asks()
	res := r.get(path, "Authorization", "Bearer x")
	assert.Equal(t, 401, res.StatusCode)
	assert.Equal(t, "Bearer y", res.Header.Get("WWW-Authenticate"))
	assert.Zero(t, r.asks())
	r.swarm.err = nil
	r.get(path, "Authorization", "Bearer x")
	assert.Equal(t, 1, r.asks())
}

func TestAnonymousGrantsServeClientsThatTakeChallenges(t *testing.T) {
	r := newFixture(config{})
	r.up.reply(func(w http.ResponseWriter, q source.RegistryRequest) {
		if !q.Anonymous {
			w.Header().Set("WWW-Authenticate", "Bearer realm")
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	path := "app/blobs/" + string(r.layer)
	assert.Equal(t, 401, r.get(path+"?ns=r.test").StatusCode)
	assert.Equal(t, 200, r.get(path).StatusCode)
	r.asks()
	assert.Equal(t, 200, r.get(path+"?ns=r.test").StatusCode)
	assert.Equal(t, 200, r.get(path).StatusCode)
	assert.Zero(t, r.asks())
	assert.Equal(t, 401, r.get(strings.Replace(path, string(r.layer), missing, 1)+"?ns=r.test").StatusCode)
	assert.Equal(t, 200, r.get(path).StatusCode, "a challenge to one client leaves anonymous grants alone")
	assert.Equal(t, 1, r.asks())
}

func TestAnUnlistedRegistryProvesOwnership(t *testing.T) {
	for _, size := range []int{1000, 1_000_000} {
		var s swarm
		secret := blob(size)
		id := s.put(secret, "") // cached from a private registry
		show := func(b []byte, ranges bool) func(http.ResponseWriter, source.RegistryRequest) {
			return func(w http.ResponseWriter, q source.RegistryRequest) {
				if !ranges {
					q.Header.Del("Range")
				}
				r := httptest.NewRequest(http.MethodGet, "/", nil)
				r.Header = q.Header
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
			}
		}
		wrong := bytes.Repeat([]byte{'x'}, size)
		for name, c := range map[string]struct {
			answer func(http.ResponseWriter, source.RegistryRequest)
			status int
			asked  int // by two GETs
		}{
			"it has it":                    {show(secret, true), 200, 2},
			"it has it and takes no Range": {show(secret, false), 200, 2},
			"it permits everything": {func(w http.ResponseWriter, q source.RegistryRequest) {
				w.WriteHeader(200)
			}, 404, 3},
			"it has other bytes":           {show(wrong, true), 404, 3},
			"it has other bytes, no Range": {show(wrong, false), 404, 3},
			"it has only the beginning":    {show(secret[:size/100], false), 404, 4},
			"it sends another window": {func(w http.ResponseWriter, q source.RegistryRequest) {
				if q.Method == http.MethodHead {
					return
				}
				w.Header().Set("Content-Range", "bytes 0-9/10")
				w.WriteHeader(206)
				w.Write(secret)
			}, 404, 3},
			"it shows nothing for the asked": {func(w http.ResponseWriter, q source.RegistryRequest) {
				if q.Method == http.MethodGet {
					w.WriteHeader(403)
				}
			}, 404, 3},
		} {
			up := &upstreamFunc{answer: c.answer}
			p := newMirror(config{Upstream: up, Open: s.Open,
				Vouches: func(upstream string) bool { return upstream == "listed.test" }})
			for range 2 {
				res := ask(p, http.MethodGet, "/v2/evil/blobs/"+string(id)+"?ns=evil.test")
				assert.Equal(t, c.status, res.StatusCode, "%s, %d bytes", name, size)
				if c.status == 200 {
					assert.Equal(t, string(secret), body(t, res))
				}
			}
			assert.Len(t, up.requests(), c.asked, name)
		}
		p := newMirror(config{Upstream: &upstreamFunc{answer: func(w http.ResponseWriter, q source.RegistryRequest) {}},
			Open: s.Open, Vouches: func(upstream string) bool { return upstream == "listed.test" }})
		assert.Equal(t, 200, ask(p, http.MethodGet, "/v2/app/blobs/"+string(id)+"?ns=listed.test").StatusCode)
	}
}

func TestAReplyFromBeforeForgetIsNotRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFixture(config{Policy: access.Policy{TagLife: time.Hour}})
		manifest := r.swarm.put(oldIndex, oci.MediaTypeIndex)
		known, gate := answers(map[string]object{
			"r.test/v2/app/blobs/" + string(r.layer):      {blob(100), ""},
			"r.test/v2/app/manifests/v1":                  {oldIndex, oci.MediaTypeIndex},
			"r.test/v2/app/manifests/" + string(manifest): {oldIndex, oci.MediaTypeIndex},
		}), make(chan struct{})
		r.up.reply(func(w http.ResponseWriter, q source.RegistryRequest) {
			<-gate
			known(w, q)
		})
		var before sync.WaitGroup
		paths := []string{"app/blobs/" + string(r.layer), "app/manifests/v1"}
		for _, path := range paths {
			before.Go(func() {
				assert.Equal(t, 200, r.get(path, "Authorization", "Bearer x").StatusCode)
			})
		}
		synctest.Wait()
		r.Forget() // as a reload of the registry's settings does
		close(gate)
		before.Wait()
		r.asks()
		r.up.reply(func(w http.ResponseWriter, q source.RegistryRequest) { w.WriteHeader(http.StatusForbidden) })
		for _, path := range paths {
			assert.Equal(t, 403, r.get(path, "Authorization", "Bearer x").StatusCode, path)
			assert.Equal(t, 2, r.asks(), path)
		}
	})
}
