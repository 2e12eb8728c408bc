package registryproxy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
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
)

// tagged is a registry of one tag that can move. allow decides which requests it grants.
type tagged struct {
	mu       sync.Mutex
	manifest map[string][]byte // by tag
	etags    bool
	allow    func(q source.RegistryRequest) bool
	asked    map[string]int // "HEAD tag", "HEAD digest", "304"
	down     bool
	gate     chan struct{} // when not nil, answers wait for it
}

func (r *tagged) Do(ctx context.Context, q source.RegistryRequest) (*http.Response, error) {
	if r.gate != nil {
		<-r.gate
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asked == nil {
		r.asked = map[string]int{}
	}
	ref := q.Path[strings.LastIndex(q.Path, "/")+1:]
	kind := "tag"
	if !oci.IsTag(ref) {
		kind = "digest"
	}
	r.asked[q.Method+" "+kind]++
	if r.down {
		return nil, errors.New("dial tcp: connection refused")
	}
	rec := httptest.NewRecorder()
	content, ok := r.manifest[ref]
	for _, m := range r.manifest {
		if string(oci.DigestOf(m)) == ref {
			content, ok = m, true
		}
	}
	switch etag := `"` + string(oci.DigestOf(content)) + `"`; {
	case r.allow != nil && !r.allow(q):
		rec.Header().Set("WWW-Authenticate", `Bearer realm="https://r.test/token"`)
		rec.WriteHeader(http.StatusUnauthorized)
	case !ok:
		rec.WriteHeader(http.StatusNotFound)
	case r.etags && q.Header.Get("If-None-Match") == etag:
		r.asked["304"]++
		rec.WriteHeader(http.StatusNotModified)
	default:
		rec.Header().Set("Content-Type", oci.MediaTypeIndex)
		rec.Header().Set("Docker-Content-Digest", string(oci.DigestOf(content)))
		if r.etags {
			rec.Header().Set("ETag", etag)
		}
		if q.Method == http.MethodGet {
			rec.Write(content)
		}
	}
	res := rec.Result()
	res.ContentLength = int64(len(content))
	return res, nil
}

// counts returns the requests since the last call.
func (r *tagged) counts() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.asked
	r.asked = map[string]int{}
	return c
}

func (r *tagged) set(tag string, content []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.manifest == nil {
		r.manifest = map[string][]byte{}
	}
	r.manifest[tag] = content
}

var (
	oldIndex = []byte(`{"schemaVersion":2,"manifests":[],"annotations":{"a":"old"}}`)
	newIndex = []byte(`{"schemaVersion":2,"manifests":[],"annotations":{"a":"new"}}`)
)

func TestATagIsLookedUpOncePerLife(t *testing.T) {
	for _, etags := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var s swarm
			s.put(oldIndex, oci.MediaTypeIndex)
			s.put(newIndex, oci.MediaTypeIndex)
			r := &tagged{etags: etags}
			r.set("latest", oldIndex)
			p := newMirror(config{Upstream: r, Open: s.Open, Default: "r.test",
				Policy: access.Policy{TagLife: 10 * time.Second}})
			// The requests of containerd: HEAD by tag, GET by digest; and of Podman: GET by tag.
			pull := func() string {
				res := ask(p, http.MethodHead, "/v2/app/manifests/latest")
				require.Equal(t, 200, res.StatusCode)
				digest := res.Header.Get("Docker-Content-Digest")
				assert.Equal(t, oci.MediaTypeIndex, res.Header.Get("Content-Type"))
				got := body(t, ask(p, http.MethodGet, "/v2/app/manifests/"+digest))
				assert.Equal(t, got, body(t, ask(p, http.MethodGet, "/v2/app/manifests/latest")))
				return got
			}
			assert.Equal(t, string(oldIndex), pull())
			assert.Equal(t, map[string]int{"HEAD tag": 1}, r.counts())
			r.set("latest", newIndex)
			time.Sleep(10*time.Second - time.Millisecond)
			assert.Equal(t, string(oldIndex), pull())
			assert.Empty(t, r.counts())
			time.Sleep(time.Millisecond)
			assert.Equal(t, string(newIndex), pull())
			assert.Equal(t, map[string]int{"HEAD tag": 1}, r.counts())
			time.Sleep(10 * time.Second)
			assert.Equal(t, string(newIndex), pull())
			want := map[string]int{"HEAD tag": 1}
			if etags {
				want["304"] = 1
			}
			assert.Equal(t, want, r.counts(), "an unchanged manifest is not sent again")
		})
	}
}

func TestTagsDifferByRegistryRepositoryNameAndAccept(t *testing.T) {
	var s swarm
	s.put(oldIndex, oci.MediaTypeIndex)
	r := &tagged{}
	r.set("a", oldIndex)
	r.set("b", oldIndex)
	p := newMirror(config{Upstream: r, Open: s.Open, Default: "r.test", Policy: access.Policy{TagLife: time.Minute}})
	for _, c := range []struct{ target, accept string }{
		{"/v2/app/manifests/a", ""}, {"/v2/app/manifests/b", ""}, {"/v2/other/manifests/a", ""},
		{"/v2/app/manifests/a?ns=q.test", ""},
		{"/v2/app/manifests/a", oci.MediaTypeManifest}, {"/v2/app/manifests/a", oci.MediaTypeIndex + ", */*"},
	} {
		for i := range 2 {
			require.Equal(t, 200, ask(p, http.MethodHead, c.target, "Accept", c.accept).StatusCode)
			assert.Equal(t, map[bool]map[string]int{true: {"HEAD tag": 1}, false: {}}[i == 0], r.counts(), "%+v", c)
		}
	}
}

func TestAResolvedTagGrantsNothing(t *testing.T) {
	var s swarm
	s.put(oldIndex, oci.MediaTypeIndex)
	r := &tagged{allow: func(q source.RegistryRequest) bool { return q.Header.Get("Authorization") == "Bearer alice" }}
	r.set("v1", oldIndex)
	p := newMirror(config{Upstream: r, Open: s.Open, Default: "r.test", Policy: access.Policy{TagLife: time.Minute}})
	get := func(who string) *http.Response {
		return ask(p, http.MethodGet, "/v2/app/manifests/v1?ns=r.test", "Authorization", who)
	}
	require.Equal(t, 200, get("Bearer alice").StatusCode)
	r.counts()
	for _, who := range []string{"", "Bearer bob"} {
		res := get(who)
		assert.Equal(t, 401, res.StatusCode, who)
		assert.Equal(t, `Bearer realm="https://r.test/token"`, res.Header.Get("WWW-Authenticate"))
		assert.Equal(t, map[string]int{"HEAD digest": 1}, r.counts(), "the grant is looked up, the tag is known")
	}
	assert.Equal(t, 200, get("Bearer alice").StatusCode)
	assert.Empty(t, r.counts())
	// Bob's refusal does not bind alice.
	p.Forget()
	assert.Equal(t, 401, get("Bearer bob").StatusCode)
	assert.Equal(t, 200, get("Bearer alice").StatusCode)
}

func TestACrowdWithDifferentTokensResolvesATagTogether(t *testing.T) {
	for _, firstMay := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var s swarm
			s.put(oldIndex, oci.MediaTypeIndex)
			r := &tagged{gate: make(chan struct{}),
				allow: func(q source.RegistryRequest) bool {
					return firstMay || q.Header.Get("Authorization") != "Bearer 0"
				}}
			r.set("v1", oldIndex)
			p := newMirror(config{Upstream: r, Open: s.Open, Default: "r.test",
				Policy: access.Policy{TagLife: time.Minute}})
			var clients sync.WaitGroup
			statuses := make([]int, 50)
			for i := range statuses {
				clients.Go(func() {
					statuses[i] = ask(p, http.MethodGet, "/v2/app/manifests/v1?ns=r.test", "Authorization",
						fmt.Sprint("Bearer ", i)).StatusCode
				})
				synctest.Wait()
			}
			close(r.gate)
			clients.Wait()
			for i, status := range statuses {
				want := 200
				if i == 0 && !firstMay {
					want = 401
				}
				assert.Equal(t, want, status, i)
			}
			if firstMay {
				assert.Equal(t, map[string]int{"HEAD tag": 1, "HEAD digest": 49}, r.counts())
			}
		})
	}
}

func TestStaleTagsServeOnlyWhereTheOperatorAllows(t *testing.T) {
	for _, c := range []struct {
		stale time.Duration
		after time.Duration
		ok    bool
	}{{0, 20 * time.Second, false}, {time.Hour, 20 * time.Second, true}, {time.Minute, 2 * time.Minute, false}} {
		synctest.Test(t, func(t *testing.T) {
			var s swarm
			var seen pulls
			s.put(oldIndex, oci.MediaTypeIndex)
			r := &tagged{}
			r.set("v1", oldIndex)
			p := newMirror(config{
				Upstream: r, Open: s.Open, Default: "r.test", Observe: seen.observe,
				Policy: access.Policy{TagLife: 10 * time.Second, TagStale: c.stale, ServeCached: true},
			})
			get := func() *http.Response { return ask(p, http.MethodGet, "/v2/app/manifests/v1") }
			require.Equal(t, 200, get().StatusCode)
			time.Sleep(c.after)
			res := get()
			assert.Empty(t, res.Header.Get(registryproxy.HeaderStale), "the registry answers")
			r.down = true
			time.Sleep(c.after)
			res = get()
			if !c.ok {
				refusedAs(t, res, http.StatusBadGateway, "UNAVAILABLE")
				return
			}
			assert.Equal(t, string(oldIndex), body(t, res))
			assert.Equal(t, "20", res.Header.Get(registryproxy.HeaderStale))
			assert.Equal(t, 20*time.Second, seen.last(t).Stale)
			// A client without rights learns neither the digest of the tag nor that another client asked.
			res = ask(p, http.MethodGet, "/v2/app/manifests/v1", "Authorization", "Bearer stranger")
			assert.Equal(t, 502, res.StatusCode)
			assert.Empty(t, res.Header.Get(registryproxy.HeaderStale))
			assert.Zero(t, seen.last(t).Stale)
			said := body(t, res)
			assert.NotContains(t, said, string(oci.DigestOf(oldIndex)))
			assert.Contains(t, said, "asking r.test: dial tcp: connection refused")
			// The mirror does not serve a deleted tag from memory when the registry fails.
			r.down, r.manifest = false, nil
			assert.Equal(t, 404, get().StatusCode)
			r.down = true
			assert.Equal(t, 502, get().StatusCode)
		})
	}
}

// crowd is many mirrors whose shared lookups go to one owner, as JSON over HTTP.
type crowd struct {
	mirrors []*mirror
	owner   http.Handler
	dead    bool
}

func newCrowd(n int, r access.Registry, s *swarm, cfg config) *crowd {
	c := &crowd{owner: access.NewOwner(r)}
	cfg.Upstream, cfg.Open, cfg.Default, cfg.Shared = r, s.Open, "r.test", c.askOwner
	for range n {
		c.mirrors = append(c.mirrors, newMirror(cfg))
	}
	return c
}

func (c *crowd) askOwner(ctx context.Context, q api.Lookup) (api.LookupReply, error) {
	if c.dead {
		return api.LookupReply{}, errors.New("no owner")
	}
	b, _ := json.Marshal(q)
	w := httptest.NewRecorder()
	c.owner.ServeHTTP(w,
		httptest.NewRequest(http.MethodPost, api.PathLookups, strings.NewReader(string(b))).WithContext(ctx))
	if w.Code != 200 {
		return api.LookupReply{}, fmt.Errorf("status %d", w.Code)
	}
	return api.DecodeLookupReply(w.Body.Bytes())
}

// all asks all mirrors at once and returns the count of each status.
func (c *crowd) all(target string, authorization func(i int) string) map[int]int {
	var wg sync.WaitGroup
	var mu sync.Mutex
	count := map[int]int{}
	for i, p := range c.mirrors {
		wg.Go(func() {
			status := ask(p, http.MethodGet, target, "Authorization", authorization(i)).StatusCode
			mu.Lock()
			count[status]++
			mu.Unlock()
		})
	}
	wg.Wait()
	return count
}

func TestACrowdAsksTheRegistryOncePerSharedLookup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s swarm
		id := s.put(oldIndex, oci.MediaTypeIndex)
		r := &tagged{}
		r.set("v1", oldIndex)
		c := newCrowd(20, r, &s, config{Policy: access.Policy{TagLife: 10 * time.Second}})
		nobody := func(int) string { return "" }
		own := func(i int) string { return fmt.Sprint("Bearer ", i) }

		assert.Equal(t, map[int]int{200: 20}, c.all("/v2/app/manifests/v1", nobody))
		assert.Equal(t, map[string]int{"HEAD tag": 1}, r.counts(), "anonymous: one lookup in all")
		assert.Equal(t, map[int]int{200: 20}, c.all("/v2/app/manifests/"+string(id), nobody))
		assert.Equal(t, map[int]int{200: 20}, c.all("/v2/app/manifests/v1", nobody))
		assert.Empty(t, r.counts())

		assert.Equal(t, map[int]int{200: 20}, c.all("/v2/app/manifests/v1", own))
		assert.Equal(t, map[string]int{"HEAD digest": 20}, r.counts(), "each token is asked about, the tag is known")
		assert.Equal(t, map[int]int{200: 20}, c.all("/v2/app/manifests/v1", own))
		assert.Empty(t, r.counts())

		time.Sleep(10 * time.Second)
		s.put(newIndex, oci.MediaTypeIndex)
		r.set("v1", newIndex)
		assert.Equal(t, map[int]int{200: 20}, c.all("/v2/app/manifests/v1", own))
		assert.Equal(t, map[string]int{"HEAD tag": 1, "HEAD digest": 19}, r.counts(),
			"the one that resolved the tag got its grant with it")

		time.Sleep(time.Minute)
		assert.Equal(t, map[int]int{404: 20}, c.all("/v2/app/manifests/none", nobody))
		r.counts()
		assert.Equal(t, map[int]int{200: 20}, c.all("/v2/app/manifests/"+string(oci.DigestOf(newIndex)), nobody))
		assert.Equal(t, map[string]int{"HEAD digest": 1}, r.counts())
	})
}

func TestTheCrowdWaitsAsRetryAfterAsks(t *testing.T) {
	for _, c := range []struct {
		status     int
		times      int
		retryAfter string
		took       time.Duration
		want       map[int]int
		asked      int
	}{
		{429, 1, "2", 2 * time.Second, map[int]int{200: 20}, 2},
		{503, 1, "5", 5 * time.Second, map[int]int{200: 20}, 2},
		{429, 2, "2", 2 * time.Second, map[int]int{503: 20}, 2}, // containerd would repeat a 429 at once
		{429, 1, "6", 0, map[int]int{503: 20}, 1},
		{429, 1, "", 0, map[int]int{503: 20}, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			var s swarm
			s.put(oldIndex, oci.MediaTypeIndex)
			r := &tagged{}
			r.set("v1", oldIndex)
			refusals, asked := c.times, 0
			limited := upstreamOf(func(ctx context.Context, q source.RegistryRequest) (*http.Response, error) {
				asked++
				if refusals--; refusals < 0 {
					return r.Do(ctx, q)
				}
				time.Sleep(time.Millisecond) // so that the crowd comes together
				return &http.Response{StatusCode: c.status, Header: http.Header{"Retry-After": {c.retryAfter}},
					Body: http.NoBody}, nil
			})
			p := newCrowd(20, limited, &s, config{Policy: access.Policy{TagLife: 10 * time.Second}})
			began := time.Now()
			assert.Equal(t, c.want, p.all("/v2/app/manifests/v1?ns=r.test", func(int) string { return "" }))
			assert.Equal(t, c.took, time.Since(began).Truncate(time.Second))
			assert.Equal(t, c.asked, asked, "%+v", c)
		})
	}
}

func TestARefusedTagIsAskedOnceMoreForTheCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s swarm
		s.put(oldIndex, oci.MediaTypeIndex)
		r := &tagged{allow: func(q source.RegistryRequest) bool { return q.Header.Get("Authorization") != "" }}
		r.set("v1", oldIndex)
		slow := upstreamOf(func(ctx context.Context, q source.RegistryRequest) (*http.Response, error) {
			time.Sleep(time.Second)
			return r.Do(ctx, q)
		})
		c := newCrowd(20, slow, &s, config{Policy: access.Policy{TagLife: 10 * time.Second}})
		var early sync.WaitGroup
		early.Go(func() { assert.Equal(t, 401, ask(c.mirrors[0], http.MethodGet, "/v2/app/manifests/v1").StatusCode) })
		synctest.Wait()
		assert.Equal(t, map[int]int{200: 20}, c.all("/v2/app/manifests/v1", func(i int) string {
			return fmt.Sprint("Bearer ", i)
		}))
		early.Wait()
		assert.Equal(t, map[string]int{"HEAD tag": 3, "HEAD digest": 19}, r.counts(),
			"the anonymous lookup, the challenge, and one of the twenty")
	})
}

func TestATagsAgeCountsFromTheRegistrysReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s swarm
		s.put(oldIndex, oci.MediaTypeIndex)
		s.put(newIndex, oci.MediaTypeIndex)
		r := &tagged{}
		r.set("v1", oldIndex)
		c := newCrowd(2, r, &s, config{Policy: access.Policy{TagLife: 10 * time.Second}})
		get := func(i int) string { return body(t, ask(c.mirrors[i], http.MethodGet, "/v2/app/manifests/v1")) }
		assert.Equal(t, string(oldIndex), get(0))
		r.set("v1", newIndex)
		time.Sleep(6 * time.Second)
		assert.Equal(t, string(oldIndex), get(1), "six seconds old")
		time.Sleep(4 * time.Second)
		assert.Equal(t, string(newIndex), get(1), "ten seconds old, although this node has known it for four")
		assert.Equal(t, string(newIndex), get(0))
		assert.Equal(t, map[string]int{"HEAD tag": 2}, r.counts())
	})
}

func TestANodeWithOwnCredentialsAsksForItself(t *testing.T) {
	var s swarm
	s.put(oldIndex, oci.MediaTypeIndex)
	r := &tagged{}
	r.set("v1", oldIndex)
	c := newCrowd(3, r, &s, config{Credentialed: func(upstream string) bool { return upstream == "r.test" },
		Policy: access.Policy{TagLife: time.Minute}})
	assert.Equal(t, map[int]int{200: 3}, c.all("/v2/app/manifests/v1", func(int) string { return "" }))
	assert.Equal(t, map[string]int{"HEAD tag": 3}, r.counts())
}

func TestAHungCredentialHelperDelaysNoOtherClientOfATag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s swarm
		s.put(oldIndex, oci.MediaTypeIndex)
		r := &tagged{}
		r.set("v1", oldIndex)
		helped := make(chan struct{}) // closes when the credential helper of the node ends
		slow := upstreamOf(func(ctx context.Context, q source.RegistryRequest) (*http.Response, error) {
			if q.Header.Get("Authorization") == "" {
				select {
				case <-helped:
				case <-ctx.Done():
					return nil, context.Cause(ctx)
				}
			}
			return r.Do(ctx, q)
		})
		p := newMirror(config{
			Upstream: slow, Open: s.Open, Default: "r.test", Credentialed: func(string) bool { return true },
			Policy: access.Policy{TagLife: time.Minute},
		})
		waits := make(chan int, 1)
		go func() { waits <- ask(p, http.MethodGet, "/v2/app/manifests/v1").StatusCode }()
		synctest.Wait()
		began := time.Now()
		assert.Equal(t, 200, ask(p, http.MethodGet, "/v2/app/manifests/v1", "Authorization", "Bearer alice").StatusCode)
		assert.Zero(t, time.Since(began), "the client with credentials of its own waits for no helper")
		close(helped)
		assert.Equal(t, 200, <-waits)
	})
}

func TestWithoutAnOwnerEachNodeAsksTheRegistry(t *testing.T) {
	var s swarm
	s.put(oldIndex, oci.MediaTypeIndex)
	r := &tagged{}
	r.set("v1", oldIndex)
	c := newCrowd(3, r, &s, config{Policy: access.Policy{TagLife: time.Minute}})
	c.dead = true
	assert.Equal(t, map[int]int{200: 3}, c.all("/v2/app/manifests/v1", func(int) string { return "" }))
	assert.Equal(t, map[string]int{"HEAD tag": 3}, r.counts())
	// If an owner cannot reach the registry, the node still tries.
	c.dead, c.owner = false,
		access.NewOwner(upstreamOf(func(context.Context, source.RegistryRequest) (*http.Response, error) {
			return nil, errors.New("no route")
		}))
	for _, p := range c.mirrors {
		p.Forget()
	}
	assert.Equal(t, map[int]int{200: 3}, c.all("/v2/app/manifests/v1", func(int) string { return "" }))
}

// A registry that serves manifests by tags only grants each client the manifest by the tag.
func TestATagGrantsWhereNoDigestIsServed(t *testing.T) {
	var s swarm
	s.put(oldIndex, oci.MediaTypeIndex)
	known := answers(map[string]object{"r.test/v2/app/manifests/v1": {oldIndex, oci.MediaTypeIndex}})
	up := &upstreamFunc{answer: func(w http.ResponseWriter, q source.RegistryRequest) {
		if q.Header.Get("Authorization") == "Bearer bob" && strings.HasSuffix(q.Path, "/v1") {
			w.Header().Set("WWW-Authenticate", "Basic realm=r")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		known(w, q)
	}}
	p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test", Policy: access.Policy{TagLife: time.Hour}})
	for _, c := range []struct {
		token  string
		status int
	}{{"Bearer alice", 200}, {"Bearer carol", 200}, {"Bearer bob", 401}, {"Bearer alice", 200}} {
		res := ask(p, http.MethodGet, "/v2/app/manifests/v1", "Authorization", c.token)
		assert.Equal(t, c.status, res.StatusCode, c.token)
		assert.Equal(t, c.status == 401, res.Header.Get("WWW-Authenticate") != "", "the challenge for the tag")
	}
	for _, spec := range s.opened {
		assert.Equal(t, "v1", spec.Tag, "the seed may need it")
	}
}

// Some proxies send an ETag that stays while the tag moves, or say 304 and name another digest.
func TestAnETagThatStaysHidesNoMovedTag(t *testing.T) {
	digest := func(b []byte) string { return `"` + string(oci.DigestOf(b)) + `"` }
	for _, c := range []struct{ name, before, after string }{
		{"a constant", `"1"`, `"1"`},
		{"a weak constant", `W/"1"`, `W/"1"`},
		{"the digest of the first manifest", digest(oldIndex), digest(oldIndex)},
		{"the digest of another manifest", digest(newIndex), digest(newIndex)},
	} {
		for _, named := range []bool{true, false} { // whether the digest is also in Docker-Content-Digest
			var s swarm
			s.put(oldIndex, oci.MediaTypeIndex)
			s.put(newIndex, oci.MediaTypeIndex)
			now, etag := oldIndex, c.before
			up := &upstreamFunc{answer: func(w http.ResponseWriter, q source.RegistryRequest) {
				w.Header().Set("ETag", etag)
				w.Header().Set("Content-Type", oci.MediaTypeIndex)
				if named || strings.Contains(c.name, "first") {
					w.Header().Set("Docker-Content-Digest", string(oci.DigestOf(now)))
				}
				if q.Header.Get("If-None-Match") == etag {
					w.WriteHeader(http.StatusNotModified)
					return
				}
				w.Write(now)
			}}
			p := newMirror(config{Upstream: up, Open: s.Open, Default: "r.test"})
			assert.Equal(t, string(oldIndex), body(t, ask(p, http.MethodGet, "/v2/app/manifests/v1")), c.name)
			now, etag = newIndex, c.after
			assert.Equal(t, string(newIndex), body(t, ask(p, http.MethodGet, "/v2/app/manifests/v1")), c.name)
		}
	}
}
