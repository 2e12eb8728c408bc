package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
)

// fakeRegistry holds manifests by their digests, and tags.
type fakeRegistry struct {
	tags      map[string]task.ID
	manifests map[task.ID]string
	types     map[task.ID]string
	referrers string
	reads     int
	down      error
}

func newFake() *fakeRegistry {
	return &fakeRegistry{tags: map[string]task.ID{}, manifests: map[task.ID]string{}, types: map[task.ID]string{}}
}

func (f *fakeRegistry) Find(_ context.Context, _ preheat.Target, ref string, _ secret.String) (task.ID, error) {
	if f.down != nil {
		return "", f.down
	}
	if id, ok := f.tags[ref]; ok {
		return id, nil
	}
	return "", AsRefusal(http.StatusNotFound, errors.New("no such tag"))
}

func (f *fakeRegistry) Manifest(_ context.Context, spec task.Spec) ([]byte, string, error) {
	f.reads++
	m, ok := f.manifests[spec.ID]
	if !ok {
		return nil, "", AsRefusal(http.StatusNotFound, errors.New("no such manifest"))
	}
	return []byte(m), f.types[spec.ID], nil
}

func (f *fakeRegistry) Referrers(context.Context, preheat.Target, task.ID, secret.String) ([]byte, bool, error) {
	return []byte(f.referrers), f.referrers != "", nil
}

func (f *fakeRegistry) add(mediaType, content string) task.ID {
	id := oci.DigestOf([]byte(content))
	f.manifests[id], f.types[id] = content, mediaType
	return id
}

func descriptor(mediaType string, id task.ID, size int, platform string) string {
	out := fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d`, mediaType, id, size)
	if os, arch, ok := strings.Cut(platform, "/"); ok {
		arch, variant, _ := strings.Cut(arch, "/")
		out += fmt.Sprintf(`,"platform":{"os":%q,"architecture":%q,"variant":%q}`, os, arch, variant)
	}
	return out + "}"
}

// image adds an image with layers of its own and one that all images share.
func (f *fakeRegistry) image(name string) task.ID {
	blob := func(s string) task.ID { return oci.DigestOf([]byte(s)) }
	return f.add(oci.MediaTypeManifest, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s,%s]}`,
		oci.MediaTypeManifest, descriptor("c", blob("config "+name), 10, ""), descriptor("l", blob("layer "+name), 100, ""),
		descriptor("l", blob("shared"), 1000, "")))
}

func (f *fakeRegistry) index(children ...string) task.ID {
	return f.add(oci.MediaTypeIndex, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, oci.MediaTypeIndex,
		strings.Join(children, ",")))
}

func spec(change ...func(*preheat.Spec)) preheat.Spec {
	s := preheat.Spec{Kind: preheat.Image, Reference: "registry.test/app:v1"}
	for _, c := range change {
		c(&s)
	}
	return s
}

func TestResolve(t *testing.T) {
	f := newFake()
	amd, arm, sig := f.image("amd"), f.image("arm"), f.image("signature")
	inner := f.index(descriptor(oci.MediaTypeManifest, arm, 1, "linux/arm64/v8"))
	f.tags["v1"] = f.index(descriptor(oci.MediaTypeManifest, amd, 1, "linux/amd64"),
		descriptor(oci.MediaTypeIndex, inner, 1, ""))
	objects := func(s preheat.Spec) (n int, bytes int64) {
		got, err := resolve(t.Context(), f, s)
		require.NoError(t, err)
		assert.Equal(t, f.tags["v1"], got.Digest)
		seen := map[task.ID]bool{}
		for _, o := range got.Objects {
			assert.False(t, seen[o.ID], "each object once")
			seen[o.ID] = true
			if o.Kind == task.Manifest {
				assert.Equal(t, int64(len(f.manifests[o.ID])), o.Size)
				assert.NotEmpty(t, o.MediaType)
			}
			bytes += o.Size
		}
		return len(got.Objects), bytes
	}
	n, _ := objects(spec())
	assert.Equal(t, 2+2+2+3, n, "two indexes, two images, two configs, three layers")
	n, _ = objects(spec(func(s *preheat.Spec) { s.Platforms = []string{"linux/amd64"} }))
	assert.Equal(t, 2+1+1+2, n, "an index inside of an index states no platform of its own")
	n, _ = objects(spec(func(s *preheat.Spec) { s.Platforms = []string{"linux/arm64/v8"} }))
	assert.Equal(t, 2+1+1+2, n)
	f.referrers = fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, oci.MediaTypeIndex,
		descriptor(oci.MediaTypeManifest, sig, 1, ""))
	n, _ = objects(spec(func(s *preheat.Spec) { s.Referrers = true }))
	assert.Equal(t, 9+3, n, "a signature with its config and layer; the shared layer is there")
	f.referrers = ""
	f.tags[strings.Replace(string(amd), ":", "-", 1)] = f.index(descriptor(oci.MediaTypeManifest, sig, 1, ""))
	n, _ = objects(spec(func(s *preheat.Spec) { s.Referrers = true }))
	assert.Equal(t, 9+4, n, "a registry without the API has a tag for it")
}

func TestResolveRefusals(t *testing.T) {
	f := newFake()
	var refused *RefusedError
	_, err := resolve(t.Context(), f, spec())
	require.ErrorAs(t, err, &refused, "no such tag")
	f.tags["v1"] = f.index(descriptor(oci.MediaTypeManifest, f.image("x"), 1, "linux/amd64"))
	_, err = resolve(t.Context(), f, spec(func(s *preheat.Spec) { s.Platforms = []string{"windows/amd64"} }))
	require.ErrorAs(t, err, &refused)
	require.ErrorContains(t, err, "no manifest for windows/amd64")
	deep := f.image("deep")
	for range depthMax + 2 {
		deep = f.index(descriptor(oci.MediaTypeIndex, deep, 1, ""))
	}
	f.tags["v1"] = deep
	_, err = resolve(t.Context(), f, spec())
	require.ErrorAs(t, err, &refused)
	var many []string
	for i := range oci.ReferencesMax {
		many = append(many, descriptor("l", oci.DigestOf(fmt.Append(nil, i)), 1, ""))
	}
	f.tags["v1"] = f.add(oci.MediaTypeManifest, `{"schemaVersion":2,"layers":[`+strings.Join(many, ",")+`]}`)
	_, err = resolve(t.Context(), f, spec())
	require.ErrorAs(t, err, &refused, "a manifest that names too much")
	f.down = errors.New("connection refused")
	_, err = resolve(t.Context(), f, spec())
	require.Error(t, err)
	assert.False(t, errors.As(err, new(*RefusedError)), "another attempt may succeed")
}

// store is a host's store and engine.
type store struct {
	mu      sync.Mutex
	held    map[task.ID]bool
	specs   []task.Spec
	fail    error
	fetches int
}

func (s *store) Fetch(ctx context.Context, spec task.Spec) error {
	s.mu.Lock()
	s.fetches++
	s.specs = append(s.specs, spec)
	err := s.fail
	s.mu.Unlock()
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[spec.ID] = true
	return nil
}

// count is how many objects were requested.
func (s *store) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fetches
}

func (s *store) Complete(id task.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[id]
}

func newWorker(s *store) *Worker {
	return NewWorker(WorkerConfig{Host: host.NewID(), Fetch: s.Fetch, Complete: s.Complete,
		Bytes: func(task.ID) int64 { return 0 }, Logger: slog.New(slog.DiscardHandler)})
}

func orderOf(n int, change ...func(*preheat.Order)) preheat.Order {
	o := preheat.Order{Job: strings.Repeat("a", 32), Run: true, Upstream: "registry.test", Repository: "app",
		Authorization: "Bearer hunter2", LifeMillis: time.Hour.Milliseconds()}
	for i := range n {
		o.Objects = append(o.Objects, preheat.Object{ID: oci.DigestOf([]byte{byte(i)}), Kind: task.Blob, Size: 10})
	}
	for _, c := range change {
		c(&o)
	}
	return o
}

// TestWorker: a host fetches what it lacks, tries again after a failure, reports what is true, and stops on an order.
func TestWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{held: map[task.ID]bool{}, fail: errors.New("no route\nto host")}
		w := newWorker(s)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		report := func() preheat.Report {
			time.Sleep(reportEvery)
			list := w.Reports()
			require.Len(t, list, 1)
			return list[0]
		}
		w.Take("one", "m1", []preheat.Order{orderOf(3)})
		assert.Equal(t, preheat.Running, report().State)
		time.Sleep(time.Second)
		r := report()
		assert.Equal(t, preheat.Failed, r.State)
		assert.Contains(t, r.Error, "no route to host", "in one line")
		assert.Equal(t, 1, r.Attempts)
		s.mu.Lock()
		s.fail = nil
		s.mu.Unlock()
		time.Sleep(10 * time.Second)
		r = report()
		assert.Equal(t, preheat.Success, r.State)
		assert.Equal(t, int64(30), r.Bytes)
		assert.Empty(t, r.Error)
		s.mu.Lock()
		specs := slices.Clone(s.specs)
		s.mu.Unlock()
		for _, x := range specs {
			assert.Equal(t, secret.String("Bearer hunter2"), x.Authorization)
		}

		// The store evicts one: the report says so, and the host fetches it again.
		before := s.count()
		s.mu.Lock()
		delete(s.held, oci.DigestOf([]byte{1}))
		s.mu.Unlock()
		assert.Equal(t, preheat.Running, report().State)
		time.Sleep(5 * time.Second)
		assert.Equal(t, preheat.Success, report().State)
		assert.Equal(t, before+1, s.count())

		// An owner that is gone said run; another one says that the job has ended. Then nothing is fetched.
		w.Take("two", "m2", []preheat.Order{orderOf(3, func(o *preheat.Order) { o.Run, o.Ended = false, true })})
		s.mu.Lock()
		delete(s.held, oci.DigestOf([]byte{2}))
		s.mu.Unlock()
		time.Sleep(5 * time.Second)
		r = report()
		assert.Equal(t, preheat.Pending, r.State, "it tells what it lost")
		assert.Equal(t, int64(20), r.Bytes)
		assert.Equal(t, before+1, s.count())
		time.Sleep(2 * time.Hour)
		assert.Empty(t, w.Reports(), "the life of the orders is over")
		cancel()
		require.NoError(t, <-done)
	})
}

func TestWorkerStopsAndRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{held: map[task.ID]bool{}}
		w := newWorker(s)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		w.Take("one", "m1", []preheat.Order{orderOf(20)})
		time.Sleep(1500 * time.Millisecond)
		w.Take("one", "m2", []preheat.Order{orderOf(20, func(o *preheat.Order) { o.Run, o.Rev = false, 1 })})
		time.Sleep(10 * time.Second)
		assert.Less(t, s.count(), 12, "a pause stops what runs")
		var first, second, third api.AnnounceRequest
		w.Fill("one", &first)
		w.Fill("one", &second)
		assert.Len(t, first.Preheats, 1)
		assert.Empty(t, second.Preheats, "nothing changed a moment ago")
		time.Sleep(repeatEvery)
		w.Fill("one", &third)
		assert.Len(t, third.Preheats, 1)
		cancel()
		require.NoError(t, <-done)
	})
}

// service is a supernode alone, at a wall clock.
func service(t *testing.T, dir string, f *fakeRegistry) *Service {
	s, err := Open(Config{Dir: dir, Host: host.Host{ID: host.NewID(), Name: "s", Addr: "127.0.0.1:1"}, Secure: true,
		Allow: func(u string) error {
			if u != "registry.test" {
				return errors.New("not listed")
			}
			return nil
		},
		Registry: f, Worker: newWorker(&store{held: map[task.ID]bool{}}), Now: time.Now,
		Webhooks: &http.Transport{DisableKeepAlives: true}, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	return s
}

// TestServiceRestart: the journal holds the jobs without their credentials, and the gate says that those are gone.
func TestServiceRestart(t *testing.T) {
	f := newFake()
	f.tags["v1"] = f.image("x")
	dir := t.TempDir()
	s := service(t, dir, f)
	job, err := s.Create(t.Context(), spec(func(s *preheat.Spec) {
		s.Headers = map[string]secret.String{"Authorization": "Bearer hunter2"}
	}))
	require.NoError(t, err)
	require.NoError(t, s.save())
	b, err := json.Marshal(s.Records(true))
	require.NoError(t, err)
	assert.NotContains(t, string(b), "hunter2", "an answer to a GET holds no credentials")
	again := service(t, dir, f)
	g, ok := again.Gate(job.ID)
	require.True(t, ok)
	assert.Contains(t, g.Error, "start it again")
	again.merge([]WireRecord{{Record: *s.records[job.ID]}})
	g, _ = again.Gate(job.ID)
	assert.NotContains(t, g.Error, "credentials", "another supernode still had them")
	again.unsaved = false
	again.merge([]WireRecord{{Record: *s.records[job.ID]}})
	assert.False(t, again.unsaved, "what is known writes no disk")
}

// TestRestartedServiceHearsHostsFirst: the first host to announce after a restart is not the whole cluster.
func TestRestartedServiceHearsHostsFirst(t *testing.T) {
	f := newFake()
	f.tags["v1"] = f.image("x")
	dir := t.TempDir()
	former := service(t, dir, f)
	job, err := former.Create(t.Context(), spec())
	require.NoError(t, err)
	former.mu.Lock()
	former.records[job.ID].Resolved = &preheat.Resolved{Digest: f.tags["v1"],
		Objects: []preheat.Object{{ID: f.tags["v1"], Kind: task.Manifest, Size: 1}}}
	former.mu.Unlock()
	require.NoError(t, former.save())

	s := service(t, dir, f)
	now := time.Now()
	s.cfg.Now = func() time.Time { return now }
	first := host.Host{ID: host.NewID(), Name: "n1", Addr: "10.0.0.1:1"}
	look := func(at time.Time) preheat.Gate {
		now = at
		s.Note(api.AnnounceRequest{Host: first, Generation: 1,
			Preheats: []preheat.Report{{Job: job.ID, Digest: f.tags["v1"], State: preheat.Success}}})
		var background sync.WaitGroup
		s.step(t.Context(), &background)
		background.Wait()
		g, ok := s.Gate(job.ID)
		require.True(t, ok)
		return g
	}
	g := look(s.began.Add(time.Second))
	assert.False(t, g.Ready)
	assert.Equal(t, preheat.Running, g.State)
	assert.Contains(t, g.Error, "just started")
	g = look(s.began.Add(preheat.SilentAfter))
	assert.True(t, g.Ready)
	assert.Equal(t, preheat.Success, g.State)
}

// TestYoungServiceJudgesNoJob: a job that began while its supernode did not know all hosts yet is prepared at once, and
// judged once they had the time to announce.
func TestYoungServiceJudgesNoJob(t *testing.T) {
	f := newFake()
	f.tags["v1"] = f.image("x")
	s := service(t, t.TempDir(), f)
	now := s.began.Add(time.Second)
	s.cfg.Now = func() time.Time { return now }
	job, err := s.Create(t.Context(), spec())
	require.NoError(t, err)
	for at, want := range []bool{false, true} {
		now = s.began.Add(time.Second + time.Duration(at)*preheat.SilentAfter)
		s.Note(api.AnnounceRequest{Host: host.Host{ID: "n1", Name: "n1", Addr: "10.0.0.1:1"}, Generation: 1,
			Preheats: []preheat.Report{{Job: job.ID, Digest: f.tags["v1"], State: preheat.Success}}})
		for range 2 { // the first one begins to read the manifest
			var background sync.WaitGroup
			s.step(t.Context(), &background)
			background.Wait()
		}
		w := httptest.NewRecorder()
		s.ServeGate(w, job.ID)
		var g preheat.Gate
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &g))
		assert.Equal(t, want, w.Code == http.StatusOK, "%d %s", w.Code, w.Body)
		assert.Equal(t, want, g.State == preheat.Success)
		assert.Equal(t, f.tags["v1"], g.Digest, "it is prepared")
	}
}

// TestCreateIsDurable: a job that was answered is in the journal; one that cannot be stored does not begin.
func TestCreateIsDurable(t *testing.T) {
	dir := t.TempDir()
	s := service(t, dir, newFake())
	job, err := s.Create(t.Context(), spec())
	require.NoError(t, err)
	_, ok := service(t, dir, newFake()).Get(job.ID)
	assert.True(t, ok, "the process died right after its answer")
	s.cfg.Dir = filepath.Join(dir, "gone")
	w := httptest.NewRecorder()
	body := `{"kind":"image","reference":"registry.test/app","scope":{}}`
	s.ServeCreate(w, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body)))
	assert.Equal(t, http.StatusServiceUnavailable, w.Code)
	assert.Len(t, s.List(), 1, "it does not begin after its refusal")
}

func TestCreateRefuses(t *testing.T) {
	s := service(t, t.TempDir(), newFake())
	for name, bad := range map[string]preheat.Spec{
		"registry": {Kind: preheat.Image, Reference: "evil.test/app:v1"},
		"file":     {Kind: preheat.File, URL: "https://files.test/a"},
		"deadline": spec(func(s *preheat.Spec) { s.Deadline = time.Now().Add(-time.Hour) }),
		"far":      spec(func(s *preheat.Spec) { s.Deadline = time.Now().Add(preheat.DeadlineMax + time.Hour) }),
		"header":   spec(func(s *preheat.Spec) { s.Headers = map[string]secret.String{"Host": "x"} }),
	} {
		_, err := s.Create(t.Context(), bad)
		assert.ErrorIs(t, err, preheat.ErrInvalid, name)
	}
	open := service(t, t.TempDir(), newFake())
	open.cfg.Secure = false
	hooked := spec(func(s *preheat.Spec) { s.Webhook = "https://hooks.test/" })
	_, err := open.Create(t.Context(), hooked)
	assert.ErrorContains(t, err, "a webhook needs a cluster secret")
	foreign := preheat.New(strings.Repeat("0123456789abcdef", 2), hooked, time.Now())
	open.merge([]WireRecord{{Record: foreign}})
	assert.Empty(t, open.records[foreign.ID].Spec.Webhook, "everybody can send a record there")
	for body, want := range map[string]int{`{"kind":"image","reference":"registry.test/app","scope":{}}`: 201,
		`{"kind":"image","refrence":"registry.test/app"}`: 400, `{`: 400,
		`{"kind":"image","reference":"registry.test/app","scope":{},"deadlineIn":"soon"}`: 400} {
		w := httptest.NewRecorder()
		s.ServeCreate(w, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body)))
		assert.Equal(t, want, w.Code, "%s: %s", body, w.Body)
	}
	var doc struct{ Paths map[string]any }
	w := httptest.NewRecorder()
	ServeOpenAPI(w)
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &doc))
	assert.Contains(t, doc.Paths, api.PathPreheatJobs+"/{id}/gate")
}

// TestServiceLeads: the service reads manifests, gives each host its own orders, ends the job and calls its webhook.
func TestServiceLeads(t *testing.T) {
	f := newFake()
	f.tags["v1"] = f.image("x")
	told := make(chan preheat.Gate, 1)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var g preheat.Gate
		if assert.NoError(t, json.NewDecoder(r.Body).Decode(&g)) {
			told <- g
		}
	}))
	defer hook.Close()
	s := service(t, t.TempDir(), f)
	s.began = s.began.Add(-preheat.SilentAfter)
	node, other := host.Host{ID: host.NewID(), Name: "n1", Addr: "10.0.0.1:1", Zone: "a"}, host.NewID()
	s.Note(api.AnnounceRequest{Host: node, Generation: 1})
	assert.Empty(t, s.Mark(node.ID))
	job, err := s.Create(t.Context(), spec(func(s *preheat.Spec) { s.Webhook = hook.URL }))
	require.NoError(t, err)
	assert.Equal(t, api.PreheatLater, s.Mark(node.ID), "no plan has seen it")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	orders := func(id host.ID) (list api.PreheatOrders) {
		w := httptest.NewRecorder()
		s.ServeOrders(w, httptest.NewRequest(http.MethodGet, "/?host="+string(id), nil))
		list, err := api.DecodePreheatOrders(w.Body.Bytes())
		require.NoError(t, err)
		return list
	}
	require.Eventually(t, func() bool {
		s.Note(api.AnnounceRequest{Host: node, Generation: 1})
		return len(orders(node.ID).List) == 1
	}, time.Minute, 20*time.Millisecond)
	assert.True(t, orders(node.ID).List[0].Run)
	assert.Empty(t, orders(other).List, "a host that is not in scope gets nothing")
	s.Note(api.AnnounceRequest{Host: node, Generation: 1,
		Preheats: []preheat.Report{{Job: job.ID, Digest: f.tags["v1"], State: preheat.Success}}})
	g := <-told
	assert.Equal(t, preheat.OutcomeSuccess, g.Outcome)
	assert.True(t, g.Ready)
	s.Note(api.AnnounceRequest{Host: node, Generation: 1})
	g, _ = s.Gate(job.ID)
	assert.True(t, g.Ready, "an announce without reports changes nothing")
	s.Note(api.AnnounceRequest{Host: node, Generation: 2})
	g, _ = s.Gate(job.ID)
	assert.False(t, g.Ready, "what a host said before its restart does not count")
	s.Note(api.AnnounceRequest{Host: node, Generation: 2, Leaving: true})
	g, _ = s.Gate(job.ID)
	assert.Zero(t, g.Of)
	cancel()
	require.NoError(t, <-done)
}

// crowd is a service with hosts that announced, and jobs that run for all of them.
func crowd(t testing.TB, hosts, running, ended int) (*Service, []api.AnnounceRequest) {
	s, err := Open(Config{Dir: t.TempDir(), Host: host.Host{ID: host.NewID(), Name: "s", Addr: "127.0.0.1:1"},
		Self: "self", Registry: newFake(), Worker: newWorker(&store{held: map[task.ID]bool{}}), Now: time.Now,
		Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	s.began = s.began.Add(-time.Hour)
	id := oci.DigestOf([]byte("x"))
	for i := range running + ended {
		r := preheat.New(fmt.Sprintf("%032x", i*7919), spec(), time.Now())
		r.Resolved = &preheat.Resolved{Digest: id, Objects: []preheat.Object{{ID: id, Kind: task.Manifest, Size: 1}}}
		if i >= running {
			r.End = &preheat.End{State: preheat.Success, At: time.Now()}
		}
		s.merge([]WireRecord{{Record: r}})
	}
	var all []api.AnnounceRequest
	for i := range hosts {
		q := api.AnnounceRequest{Generation: 1, Host: host.Host{ID: host.NewID(), Name: fmt.Sprintf("n%04d", i),
			Addr: "10.0.0.1:1", Zone: string(rune('a' + i%4))}}
		for j := range running + ended {
			q.Preheats = append(q.Preheats, preheat.Report{Job: fmt.Sprintf("%032x", j*7919),
				Digest: id, State: preheat.Running})
		}
		s.Note(q)
		all = append(all, q)
	}
	return s, all
}

// TestPlansHoldNoLock: whatever a plan costs, no announce waits for it. A plan lists the live supernodes first.
func TestPlansHoldNoLock(t *testing.T) {
	s, all := crowd(t, 10, 3, 3)
	asked := 0
	s.cfg.Owners = func() []string {
		asked++
		if assert.True(t, s.mu.TryLock(), "a plan is made under the lock") {
			s.mu.Unlock()
		}
		return []string{"self", "other"}
	}
	var background sync.WaitGroup
	s.step(t.Context(), &background)
	background.Wait()
	for id := range s.records {
		_, ok := s.Gate(id)
		require.True(t, ok)
		_, ok = s.Get(id)
		require.True(t, ok)
	}
	assert.Positive(t, asked)
	list, _ := s.orders(all[0].Host.ID)
	assert.Len(t, list, 6)
}

// TestEndedJobsAreNotPlanned: a supernode remembers many jobs that ended; they cost its plans nothing.
func TestEndedJobsAreNotPlanned(t *testing.T) {
	s, _ := crowd(t, 5, 2, preheat.JobsMax-2)
	var background sync.WaitGroup
	for range 3 {
		s.step(t.Context(), &background)
	}
	background.Wait()
	assert.Equal(t, 3*2, s.made)
}

// BenchmarkStep is a plan for 1,000 hosts and 20 jobs, and one with 256 jobs that ended.
// "locked" is the longest time of those for which it held the lock.
func BenchmarkStep(b *testing.B) {
	for _, c := range []struct{ running, ended int }{{20, 0}, {0, preheat.JobsMax}} {
		b.Run(fmt.Sprintf("%d running, %d ended", c.running, c.ended), func(b *testing.B) {
			s, _ := crowd(b, 1000, c.running, c.ended)
			require.NoError(b, s.save())
			var background sync.WaitGroup
			stop, worst := make(chan struct{}), make(chan time.Duration)
			go func() {
				var longest time.Duration
				for {
					select {
					case <-stop:
						worst <- longest
						return
					case <-time.After(20 * time.Microsecond):
					}
					at := time.Now()
					s.mu.Lock()
					longest = max(longest, time.Since(at))
					s.mu.Unlock()
				}
			}()
			for b.Loop() {
				s.step(b.Context(), &background)
			}
			close(stop)
			b.ReportMetric(float64((<-worst).Microseconds()), "µs-locked")
			background.Wait()
		})
	}
}

// TestHostsHearOfAnEndOnce: a host that knows that a job ended gets no order of it again, and reports what it holds all
// the same. Another process of the host knows nothing, and hears of it once.
func TestHostsHearOfAnEndOnce(t *testing.T) {
	for _, count := range []int{0, 1} {
		s, all := crowd(t, 1, 1, 1)
		for id, r := range s.records {
			s.records[id] = new(*r)
			s.records[id].Spec.Scope.Count = count
		}
		s.gather()
		background, q := sync.WaitGroup{}, all[0]
		s.Note(q)
		s.step(t.Context(), &background)
		background.Wait()
		w := newWorker(&store{held: map[task.ID]bool{}})
		list, mark := s.orders(q.Host.ID)
		require.Len(t, list, 2)
		w.Take("s", mark, list)
		q.Preheats = w.Reports()
		s.Note(q)
		list, after := s.orders(q.Host.ID)
		require.Len(t, list, 1)
		assert.False(t, list[0].Ended)
		assert.NotEqual(t, mark, after)
		w.Take("s", after, list)
		assert.Len(t, w.Reports(), 2, "the gate of a job that ended tells the truth, too")
		q.Preheats = nil
		s.Note(q)
		list, _ = s.orders(q.Host.ID)
		assert.Len(t, list, 1, "an announce without reports takes nothing back")
		q.Generation++
		s.Note(q)
		list, _ = s.orders(q.Host.ID)
		assert.Len(t, list, 2)
	}
}

// TestClocksOfSupernodesDiffer: a host that fell silent long before a job began is not in its scope, and one that
// announced a moment ago is, whatever the clock of the supernode that took the job says.
func TestClocksOfSupernodesDiffer(t *testing.T) {
	for _, off := range []time.Duration{-time.Hour, time.Hour} {
		s, _ := crowd(t, 0, 0, 0)
		now := time.Now()
		s.cfg.Now = func() time.Time { return now }
		announce := func(name string) {
			s.Note(api.AnnounceRequest{Generation: 1, Host: host.Host{ID: host.ID(name), Name: name, Addr: "10.0.0.1:1"}})
		}
		announce("gone")
		now = now.Add(10 * time.Minute)
		announce("here")
		r := preheat.New(strings.Repeat("a", 32), spec(), now.Add(off-time.Minute))
		b, err := json.Marshal(Records{Version: api.Version, List: []WireRecord{{Record: r, AgeMillis: 60_000}}})
		require.NoError(t, err)
		w := httptest.NewRecorder()
		s.ServeRecords(w, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(string(b))))
		require.Equal(t, http.StatusNoContent, w.Code)
		g, ok := s.Gate(r.ID)
		require.True(t, ok)
		if assert.Len(t, g.Hosts, 1, "a clock that is %s off", off) {
			assert.Equal(t, "here", g.Hosts[0].Host)
		}
	}
}
