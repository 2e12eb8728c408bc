package doors_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/preheat/doors"
	"github.com/darter-io/darter/pkg/preheat/rules"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/telemetry"
)

const (
	token    = "token-0123456789abcdef"
	password = "password-0123456789abcdef"
	custom   = "custom-0123456789abcdef"
	// harborToken is the registry token that Harbor sends in an order.
	harborToken = "eyJ-harbor-registry-token"
	digest      = "sha256:4bcff63911fcb4448bd4fdacec207030997caf25e9bea4045fa6c8c44de311d1"
)

// jobs holds jobs in memory; a test ends them.
type jobs struct {
	// mu guards the fields below.
	mu      sync.Mutex
	list    []preheat.Job
	err     error
	created chan preheat.Job // receives each job if it is not nil
}

func (s *jobs) Create(_ context.Context, spec preheat.Spec) (preheat.Job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return preheat.Job{}, s.err
	}
	n := len(s.list) + 1
	j := preheat.Job{ID: fmt.Sprintf("%032x", n), Number: int64(n), Spec: spec, State: preheat.Pending,
		Created: time.Now(), Updated: time.Now()}
	s.list = append(s.list, j)
	if s.created != nil {
		s.created <- j
	}
	return j, nil
}

func (s *jobs) Get(id string) (preheat.Job, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range s.list {
		if j.ID == id || fmt.Sprint(j.Number) == id {
			return j, true
		}
	}
	return preheat.Job{}, false
}

// change changes the last job.
func (s *jobs) change(f func(*preheat.Job)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.list[len(s.list)-1])
}

func (s *jobs) all() []preheat.Job {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]preheat.Job{}, s.list...)
}

func (s *jobs) end(state preheat.State, problem string) {
	s.change(func(j *preheat.Job) { j.State, j.Error, j.Finished = state, problem, time.Now() })
}

func settings() doors.Settings {
	return doors.Settings{
		Credentials: doors.Credentials{Tokens: []secret.String{"older-0123456789abcdef", token}, User: "harbor",
			Password: password, Header: "X-Preheat", Value: custom},
		Rules: rules.Rules{{Images: []string{"harbor.example.com/shop/**"}, Zones: []string{"east"}}},
	}
}

func listed(registry string) bool { return registry == "harbor.example.com" }

// world is the doors with what they need.
type world struct {
	*doors.Doors
	jobs *jobs
	log  *bytes.Buffer
	reg  *prometheus.Registry
	h    http.Handler
}

func open(t *testing.T, s doors.Settings) *world {
	t.Helper()
	w := &world{jobs: new(jobs), log: new(bytes.Buffer), reg: prometheus.NewRegistry()}
	var err error
	w.Doors, err = doors.New(doors.Config{Jobs: w.jobs, Listed: listed, Metrics: telemetry.NewDoors(w.reg),
		Logger: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Settings: s})
	require.NoError(t, err)
	w.h = w.Handler()
	return w
}

// count is the value of the metric for a door and what became of an order.
func (w *world) count(t *testing.T, door telemetry.Door, entry telemetry.Entry) int {
	t.Helper()
	families, err := w.reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == string(door) && m.GetLabel()[1].GetValue() == string(entry) {
				return int(m.GetCounter().GetValue())
			}
		}
	}
	t.Fatalf("no series for %s and %s", door, entry)
	return 0
}

// call sends a request with a right credential unless the headers hold another Authorization.
func (w *world) call(method, path, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json")
	r.Header.Set("Authorization", "Bearer "+token)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	rec := httptest.NewRecorder()
	w.h.ServeHTTP(rec, r)
	return rec
}

// harbor calls as Harbor's client does: every other status than 2xx is an error with the body.
func (w *world) harbor(t *testing.T, method, path, body string, into any) (int, error) {
	rec := w.call(method, path, body)
	if rec.Code/100 != 2 {
		return rec.Code, fmt.Errorf("%s %q error: %d %s", method, path, rec.Code, rec.Body)
	}
	if into != nil {
		require.NoError(t, json.Unmarshal(rec.Body.Bytes(), into), rec.Body)
	}
	return rec.Code, nil
}

func jobOrder(tag string) string {
	return `{"type":"preheat","args":{"type":"image","url":"https://harbor.example.com/v2/library/nginx/manifests/` + tag +
		`","tag":"","filtered_query_params":"","headers":{"Authorization":"Bearer ` + harborToken +
		`"},"scope":"all_peers","concurrent_count":0,"timeout":0},"scheduler_cluster_ids":[1]}`
}

func preheatOrder(tag, digest string) string {
	return `{"type":"image","url":"https://harbor.example.com/v2/library/nginx/manifests/` + tag +
		`","headers":{"Authorization":"Bearer ` + harborToken + `"},"image":"library/nginx","tag":"` + tag +
		`","digest":"` + digest + `"}`
}

func krakenOrder(repository, tag string) string {
	return `{"Events":[{"Id":"x","TimeStamp":"2026-08-01T10:00:00Z","Action":"push","Target":{"MediaType":` +
		`"application/vnd.docker.distribution.manifest.v2+json","Digest":"` + digest + `","Repository":"` + repository +
		`","Url":"https://harbor.example.com/v2/` + repository + `/manifests/` + tag + `","Tag":"` + tag +
		`"},"Request":null,"Actor":null}]}`
}

func notification(repository, tag string) string {
	return `{"events":[{"id":"1","timestamp":"2026-08-01T10:00:00Z","action":"push","target":{"mediaType":` +
		`"application/vnd.oci.image.manifest.v1+json","digest":"` + digest + `","size":7,"repository":"` + repository +
		`","url":"https://harbor.example.com/v2/` + repository + `/manifests/` + digest + `","tag":"` + tag + `"}}]}`
}

func harborEvent(tag string) string {
	return `{"type":"PUSH_ARTIFACT","occur_at":1680501893,"operator":"ci","event_data":{"resources":[{"digest":"` +
		digest +
		`","tag":"` + tag + `","resource_url":"harbor.example.com/shop/web:` + tag +
		`"}],"repository":{"name":"web","namespace":"shop","repo_full_name":"shop/web"}}}`
}

// jobStatus is what Harbor 2.12 and later read of a job.
type jobStatus struct {
	ID      int       `json:"id"`
	Created time.Time `json:"created_at"`
	Updated time.Time `json:"updated_at"`
	State   string    `json:"state"`
	Result  struct {
		States []struct {
			Error   string `json:"error"`
			Results []struct {
				Cluster int              `json:"scheduler_cluster_id"`
				Success []map[string]any `json:"success_tasks"`
				Failure []map[string]any `json:"failure_tasks"`
			} `json:"results"`
		} `json:"job_states"`
	} `json:"result"`
}

// pollEvery and pollMax are those of Harbor's jobservice.
const (
	pollEvery = 10 * time.Second
	pollMax   = 1801 * time.Second
)

func TestJobsDialect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, settings())
		_, err := w.harbor(t, "GET", "/healthy", "", nil)
		require.NoError(t, err)
		var s jobStatus
		_, err = w.harbor(t, "POST", "/oapi/v1/jobs", jobOrder("1.25"), &s)
		require.NoError(t, err)
		assert.Equal(t, 1, s.ID)
		assert.Equal(t, "PENDING", s.State)
		assert.False(t, s.Created.IsZero() || s.Updated.IsZero())
		j := w.jobs.all()[0]
		assert.Equal(t, "harbor.example.com/library/nginx:1.25", j.Spec.Reference)
		assert.Equal(t, preheat.AllNodes, j.Spec.Scope.Kind)
		assert.Equal(t, "Bearer "+harborToken, j.Spec.Headers["Authorization"].Reveal())
		time.AfterFunc(15*time.Second, func() { w.jobs.change(func(j *preheat.Job) { j.State = preheat.Running }) })
		time.AfterFunc(25*time.Second, func() { w.jobs.change(func(j *preheat.Job) { j.State = preheat.Paused }) })
		time.AfterFunc(35*time.Second, func() {
			w.jobs.change(func(j *preheat.Job) {
				j.Tasks = []preheat.TaskState{{Host: "node-1", IP: "10.0.0.1", URL: "u", State: preheat.Success}}
			})
			w.jobs.end(preheat.Success, "")
		})
		var states []string
		for s.State == "PENDING" {
			time.Sleep(pollEvery)
			_, err = w.harbor(t, "GET", fmt.Sprintf("/oapi/v1/jobs/%d", s.ID), "", &s)
			require.NoError(t, err)
			states = append(states, s.State)
		}
		assert.Equal(t, []string{"PENDING", "PENDING", "PENDING", "SUCCESS"}, states)
		assert.Equal(t, "node-1", s.Result.States[0].Results[0].Success[0]["hostname"])
		assert.Equal(t, 1, w.count(t, telemetry.DoorJobs, telemetry.EntryJob))

		// The tag can mean another image now.
		_, err = w.harbor(t, "POST", "/oapi/v1/jobs", jobOrder("1.25"), &s)
		require.NoError(t, err)
		assert.Equal(t, 2, s.ID)

		_, err = w.harbor(t, "GET", "/oapi/v1/jobs/99", "", nil)
		require.ErrorContains(t, err, "no job 99 is known")
	})
}

// TestJobsEndBeforeHarborStops: Harbor polls for 30 minutes, and the job ends before, with a reason.
func TestJobsEndBeforeHarborStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, settings())
		began := time.Now()
		var s jobStatus
		_, err := w.harbor(t, "POST", "/oapi/v1/jobs", jobOrder("1.25"), &s)
		require.NoError(t, err)
		deadline := w.jobs.all()[0].Spec.Deadline
		time.AfterFunc(time.Until(deadline), func() { w.jobs.end(preheat.Failed, "node-7 has no image: disk full") })
		for s.State == "PENDING" && time.Since(began) < pollMax {
			time.Sleep(pollEvery)
			_, err = w.harbor(t, "GET", "/oapi/v1/jobs/1", "", &s)
			require.NoError(t, err)
		}
		assert.Equal(t, "FAILURE", s.State)
		assert.Equal(t, "node-7 has no image: disk full", s.Result.States[0].Error)
		assert.Less(t, time.Since(began), pollMax)
	})
}

func TestPreheatsDialect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, settings())
		_, err := w.harbor(t, "GET", "/_ping", "", nil)
		require.NoError(t, err)
		var created struct{ ID string }
		order := func() int {
			created.ID = ""
			status, err := w.harbor(t, "POST", "/preheats", preheatOrder("1.25", digest), &created)
			require.NoError(t, err)
			require.NotEmpty(t, created.ID)
			return status
		}
		poll := func() (s struct{ ID, StartTime, FinishTime, ErrorMsg, Status string }) {
			_, err := w.harbor(t, "GET", "/preheats/"+created.ID, "", &s)
			require.NoError(t, err)
			assert.Equal(t, created.ID, s.ID)
			began, err := time.Parse(time.RFC3339, s.StartTime)
			require.NoError(t, err)
			assert.False(t, began.IsZero())
			return s
		}
		assert.Equal(t, http.StatusOK, order())
		first := created.ID
		assert.Equal(t, "WAITING", poll().Status)
		w.jobs.change(func(j *preheat.Job) { j.State = preheat.Running })
		assert.Equal(t, "RUNNING", poll().Status)
		assert.Equal(t, http.StatusOK, order(), "it runs: Harbor follows the same job")
		assert.Equal(t, first, created.ID)
		time.Sleep(time.Minute)
		w.jobs.end(preheat.Success, "")
		s := poll()
		assert.Equal(t, "SUCCESS", s.Status)
		_, err = time.Parse(time.RFC3339, s.FinishTime)
		require.NoError(t, err)
		assert.Equal(t, http.StatusAlreadyReported, order(), "it is preheated")
		assert.Equal(t, first, created.ID)
		assert.Len(t, w.jobs.all(), 1)

		time.Sleep(11 * time.Minute) // nodes can have lost it
		assert.Equal(t, http.StatusOK, order())
		assert.NotEqual(t, first, created.ID)
		w.jobs.end(preheat.Failed, "disk full")
		s = poll()
		assert.Equal(t, "FAILED", s.Status)
		assert.Equal(t, "disk full", s.ErrorMsg)
		assert.Equal(t, http.StatusOK, order(), "what failed is tried again")
		assert.Len(t, w.jobs.all(), 3)
		assert.Equal(t, preheat.AllSeeds, w.jobs.all()[0].Spec.Scope.Kind)
	})
}

func TestKrakenDialect(t *testing.T) {
	w := open(t, settings())
	_, err := w.harbor(t, "GET", "/health", "", nil)
	require.NoError(t, err)
	_, err = w.harbor(t, "POST", "/registry/notifications", krakenOrder("library/nginx", "1.25"), nil)
	require.NoError(t, err)
	require.Len(t, w.jobs.all(), 1, "no rule is needed: a policy of Harbor selected the image")
	assert.Equal(t, "harbor.example.com/library/nginx:1.25@"+digest, w.jobs.all()[0].Spec.Reference)
	assert.Empty(t, w.jobs.all()[0].Spec.Headers)
	_, err = w.harbor(t, "POST", "/registry/notifications", krakenOrder("shop/web", "1"), nil)
	require.NoError(t, err)
	assert.Equal(t, preheat.Scope{Kind: preheat.AllNodes, Zones: []string{"east"}}, w.jobs.all()[1].Spec.Scope)

	_, err = w.harbor(t, "POST", "/registry/notifications",
		strings.ReplaceAll(krakenOrder("a", "1"), "harbor.example.com", "evil.test"), nil)
	require.ErrorContains(t, err, "is not in the upstreams", "Harbor must not take it for a success")
	_, err = w.harbor(t, "POST", "/registry/notifications", strings.Replace(krakenOrder("a", "1"), "push", "pull", 1), nil)
	require.ErrorContains(t, err, "not a push")
	w.jobs.err = errors.New("no supernode holds jobs")
	_, err = w.harbor(t, "POST", "/registry/notifications", krakenOrder("b", "1"), nil)
	require.ErrorContains(t, err, "503")
	require.ErrorContains(t, err, "no supernode holds jobs")
	assert.Len(t, w.jobs.all(), 2)
}

func TestWebhooks(t *testing.T) {
	const events = "application/vnd.docker.distribution.events.v2+json"
	for _, row := range []struct{ path, kind, body, unruled string }{
		{"/webhooks/distribution", events, notification("shop/web", "v1"), notification("other/web", "v1")},
		{"/registry/notifications", events, notification("shop/web", "v1"), notification("other/web", "v1")},
		{"/webhooks/harbor", "application/json", harborEvent("v1"),
			strings.ReplaceAll(harborEvent("v1"), "shop/web", "other/web")},
	} {
		t.Run(row.path, func(t *testing.T) {
			w := open(t, settings())
			post := func(body string) *httptest.ResponseRecorder {
				return w.call("POST", row.path, body, "Content-Type", row.kind)
			}
			rec := post(row.body)
			assert.Equal(t, http.StatusAccepted, rec.Code, rec.Body)
			require.Len(t, w.jobs.all(), 1)
			spec := w.jobs.all()[0].Spec
			assert.Equal(t, "harbor.example.com/shop/web:v1@"+digest, spec.Reference)
			assert.Equal(t, preheat.Scope{Kind: preheat.AllNodes, Zones: []string{"east"}}, spec.Scope)
			assert.Empty(t, spec.Headers)

			// The sender repeats what fails, so none of these may fail.
			rec = post(row.unruled)
			assert.Equal(t, http.StatusOK, rec.Code)
			assert.Contains(t, rec.Body.String(), "no rule matches")
			rec = post(strings.ReplaceAll(row.body, "harbor.example.com", "169.254.169.254"))
			assert.Equal(t, http.StatusOK, rec.Code)
			assert.Contains(t, rec.Body.String(), "is not in the upstreams")
			rec = post(row.body)
			assert.Equal(t, http.StatusAccepted, rec.Code)
			assert.Len(t, w.jobs.all(), 1)

			w.jobs.err = errors.New("no supernode holds jobs")
			rec = post(strings.ReplaceAll(row.body, `v1`, `v2`))
			assert.Equal(t, http.StatusServiceUnavailable, rec.Code, "the sender shall repeat it")
		})
	}
	w := open(t, settings())
	internal := strings.ReplaceAll(notification("shop/web", "v1"), "https://harbor.example.com", "http://10.2.3.4:5000")
	rec := w.call("POST", "/webhooks/distribution?registry=harbor.example.com", internal)
	assert.Equal(t, http.StatusAccepted, rec.Code, rec.Body)
	rec = w.call("POST", "/webhooks/distribution?registry=evil.test", internal)
	assert.Equal(t, http.StatusOK, rec.Code)
	assert.Len(t, w.jobs.all(), 1)
}

func TestManyNotificationsAreOneJob(t *testing.T) {
	w := open(t, settings())
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 125 {
				rec := w.call("POST", "/webhooks/distribution", notification("shop/web", "v1"))
				assert.Equal(t, http.StatusAccepted, rec.Code)
			}
		})
	}
	group.Wait()
	assert.Len(t, w.jobs.all(), 1)
	assert.Equal(t, 1, w.count(t, telemetry.DoorDistribution, telemetry.EntryJob))
	assert.Equal(t, 999, w.count(t, telemetry.DoorDistribution, telemetry.EntryKnown))
}

// untouched is a body that no door may read.
type untouched struct{ t *testing.T }

func (u untouched) Read([]byte) (int, error) {
	u.t.Error("the body was read before the credential was known to be right")
	return 0, io.EOF
}

func TestCredentials(t *testing.T) {
	all := []string{"GET /healthy", "GET /_ping", "GET /health", "POST /oapi/v1/jobs", "GET /oapi/v1/jobs/1",
		"POST /preheats", "GET /preheats/1", "POST /registry/notifications", "POST /webhooks/distribution",
		"POST /webhooks/harbor", "GET /", "GET /metrics", "DELETE /preheats"}
	w := open(t, settings())
	send := func(where string, set func(*http.Request)) *httptest.ResponseRecorder {
		method, path, _ := strings.Cut(where, " ")
		r := httptest.NewRequest(method, path, untouched{t})
		set(r)
		rec := httptest.NewRecorder()
		w.h.ServeHTTP(rec, r)
		return rec
	}
	for name, set := range map[string]func(*http.Request){
		"none":               func(*http.Request) {},
		"an empty token":     func(r *http.Request) { r.Header.Set("Authorization", "Bearer ") },
		"another token":      func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token[:21]+"x") },
		"a shorter token":    func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token[:21]) },
		"a longer token":     func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token+"x") },
		"token as password":  func(r *http.Request) { r.SetBasicAuth("harbor", token) },
		"another user":       func(r *http.Request) { r.SetBasicAuth("admin", password) },
		"no password":        func(r *http.Request) { r.SetBasicAuth("harbor", "") },
		"the password alone": func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+password) },
		"a wrong header":     func(r *http.Request) { r.Header.Set("X-Preheat", "wrong") },
		"in the query":       func(r *http.Request) { r.URL.RawQuery = "token=" + token },
	} {
		w = open(t, settings())
		for _, where := range all {
			rec := send(where, set)
			require.Equal(t, http.StatusUnauthorized, rec.Code, "%s: %s", where, name)
			assert.Contains(t, rec.Body.String(), "the credential is missing or wrong")
		}
	}
	for _, set := range []func(*http.Request){
		func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) },
		func(r *http.Request) { r.Header.Set("Authorization", "bearer "+token) },
		func(r *http.Request) { r.Header.Set("Authorization", "Bearer older-0123456789abcdef") },
		func(r *http.Request) { r.Header.Set("Authorization", token) },
		func(r *http.Request) { r.SetBasicAuth("harbor", password) },
		func(r *http.Request) { r.Header.Set("X-Preheat", custom) },
	} {
		assert.Equal(t, http.StatusOK, send("GET /healthy", set).Code)
	}

	s := settings()
	s.Credentials.Tokens, s.Credentials.Header = []secret.String{"newer-0123456789abcdef"}, ""
	require.NoError(t, w.Reload(s))
	assert.Equal(t, http.StatusUnauthorized, w.call("GET", "/healthy", "").Code)
	assert.Equal(t, http.StatusOK, w.call("GET", "/healthy", "", "Authorization", "Bearer newer-0123456789abcdef").Code)
	assert.Equal(t, http.StatusUnauthorized, w.call("GET", "/healthy", "", "Authorization", "x", "X-Preheat", "").Code)
	require.ErrorIs(t, w.Reload(doors.Settings{}), doors.ErrNoCredential)
	assert.Equal(t, http.StatusOK, w.call("GET", "/healthy", "", "Authorization", "Bearer newer-0123456789abcdef").Code)
}

func TestNoDoorWithoutACredential(t *testing.T) {
	for says, c := range map[string]doors.Credentials{
		"set preheat.doors.tokenFile":                       {},
		"preheat.doors.tokenFile: 5 characters":             {Tokens: []secret.String{token, "short"}},
		"preheat.doors.passwordFile: 0 characters":          {User: "harbor"},
		"preheat.doors.headerFile: 0 characters":            {Header: "X-Token"},
		`preheat.doors.header: "X Y" is no name`:            {Header: "X Y", Value: custom},
		"tokenFile: it has characters that a header cannot": {Tokens: []secret.String{"0123456789\n0123456789"}},
	} {
		_, err := doors.New(doors.Config{Jobs: new(jobs), Listed: listed, Settings: doors.Settings{Credentials: c}})
		require.ErrorContains(t, err, says)
		assert.NotContains(t, err.Error(), "short")
	}
}

func TestHostileRequests(t *testing.T) {
	w := open(t, settings())
	huge := strings.Repeat("a", 2<<20)
	for _, row := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"POST", "/oapi/v1/jobs", jobOrder(huge), 413, "larger than an order"},
		{"POST", "/preheats", preheatOrder(huge, digest), 413, "larger than an order"},
		{"POST", "/registry/notifications", krakenOrder("a", huge), 413, "larger than an order"},
		{"POST", "/webhooks/distribution", notification("a", huge), 413, "larger than an order"},
		{"POST", "/webhooks/harbor", harborEvent(huge), 413, "larger than an order"},
		{"POST", "/oapi/v1/jobs", "", 400, "not JSON"},
		{"POST", "/oapi/v1/jobs", strings.Repeat("[", 100000), 400, "not JSON"},
		{"POST", "/oapi/v1/jobs", `{"type":"preheat","args":[]}`, 400, "args is a JSON array"},
		{"POST", "/preheats", `{"type":"image","url":{}}`, 400, "url is a JSON object"},
		{"POST", "/webhooks/harbor", `"push"`, 400, "is a JSON string"},
		{"POST", "/webhooks/distribution", `{"events":{}}`, 400, "events is a JSON object"},
		{"POST", "/oapi/v1/jobs", strings.ReplaceAll(jobOrder("1"), "harbor.example.com", "evil.test"), 403, "evil.test"},
		{"POST", "/oapi/v1/jobs", strings.ReplaceAll(jobOrder("1"), "harbor.example.com", "169.254.169.254"), 403,
			"not in the upstreams"},
		{"POST", "/preheats", strings.ReplaceAll(preheatOrder("1", digest), "harbor.example.com", "localhost:65005"), 403,
			"not in the upstreams"},
		{"POST", "/oapi/v1/jobs", strings.ReplaceAll(jobOrder("1"), "library/", "library%2f"), 400, "is escaped"},
		{"POST", "/oapi/v1/jobs", strings.ReplaceAll(jobOrder("1"), "library/", "library/../"), 400, "invalid repository"},
		{"POST", "/oapi/v1/jobs", strings.ReplaceAll(jobOrder("1"), `"image"`, `"file"`), 422, "only image"},
		{"POST", "/oapi/v1/jobs", strings.Replace(jobOrder("1"), `"scope"`, `"platform":"x","scope"`, 1), 400,
			"write linux/amd64"},
		{"GET", "/oapi/v1/jobs/1%2f..%2f2", "", 404, "no such path"},
		{"GET", "/oapi/v1/jobs/..", "", 400, "id of a job"},
		{"GET", "/oapi/v1/jobs/-1", "", 400, "id of a job"},
		{"GET", "/oapi/v1/jobs/1e3", "", 400, "id of a job"},
		{"GET", "/oapi/v1/jobs/99999999999999999999", "", 400, "id of a job"},
		{"GET", "/preheats/../../etc/passwd", "", 404, "no such path"},
		{"GET", "/preheats/" + huge, "", 400, "id of a job"},
		{"GET", "/preheats/%00", "", 400, "id of a job"},
		{"GET", "/metrics", "", 404, "no such path"},
		{"GET", "/preheats", "", 405, "does not take the method GET"},
		{"POST", "/preheats/", "", 404, "no such path"},
	} {
		rec := w.call(row.method, row.path, row.body)
		name := row.method + " " + row.path[:min(60, len(row.path))] + " " + row.body[:min(80, len(row.body))]
		assert.Equal(t, row.status, rec.Code, "%s: %s", name, rec.Body)
		var answer struct{ Error string }
		require.NoError(t, json.Unmarshal(rec.Body.Bytes(), &answer), name)
		assert.Contains(t, answer.Error, row.says, name)
		assert.Less(t, len(answer.Error), 600, name)
	}
	rec := w.call("POST", "/oapi/v1/jobs", "x", "Content-Encoding", "gzip")
	assert.Equal(t, http.StatusUnsupportedMediaType, rec.Code)
	assert.Empty(t, w.jobs.all(), "none of them became a job")
	assert.Equal(t, 0, w.count(t, telemetry.DoorJobs, telemetry.EntryJob))
	assert.NotZero(t, w.count(t, telemetry.DoorJobs, telemetry.EntryRefused))
}

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, settings())
		statuses := map[int]int{}
		for i := range 1500 {
			statuses[w.call("POST", "/oapi/v1/jobs", jobOrder(fmt.Sprint("v", i))).Code]++
		}
		assert.Equal(t, map[int]int{http.StatusOK: 1000, http.StatusTooManyRequests: 500}, statuses)
		assert.Equal(t, 500, w.count(t, telemetry.DoorJobs, telemetry.EntryLimited))
		time.Sleep(time.Minute)
		_, err := w.harbor(t, "POST", "/oapi/v1/jobs", jobOrder("later"), nil)
		require.NoError(t, err)
		for range 3000 {
			statuses[w.call("GET", "/oapi/v1/jobs/1", "").Code]++
		}
		assert.Equal(t, 500+1001, statuses[http.StatusTooManyRequests])

		for range 200 {
			statuses[w.call("GET", "/healthy", "", "Authorization", "Bearer wrong").Code]++
		}
		assert.Equal(t, 100, statuses[http.StatusUnauthorized])
		time.Sleep(time.Second)
		_, err = w.harbor(t, "GET", "/healthy", "", nil)
		require.NoError(t, err, "wrong credentials of others shut out nobody")
	})
}

func TestSecretsStaySecret(t *testing.T) {
	w := open(t, settings())
	said := w.call("POST", "/oapi/v1/jobs", jobOrder("1")).Body.String() +
		w.call("GET", "/oapi/v1/jobs/1", "").Body.String() +
		w.call("POST", "/preheats", preheatOrder("1", digest)).Body.String() +
		w.call("POST", "/preheats", preheatOrder("1 2", digest)).Body.String() +
		w.call("POST", "/oapi/v1/jobs", strings.ReplaceAll(jobOrder("1"), "Bearer ", "Evil ")).Body.String() +
		w.call("GET", "/healthy", "", "Authorization", "Bearer wrong-0123456789").Body.String()
	b, err := json.Marshal(w.jobs.all())
	require.NoError(t, err)
	said += string(b) + w.log.String() + fmt.Sprintf("%+v %#v", w.jobs.all(), w.jobs.all())
	require.Contains(t, said, "preheat ordered")
	for _, s := range []string{harborToken, token, password, custom, "wrong-0123456789"} {
		assert.NotContains(t, said, s)
	}
}

func TestMetricsExistFromTheStart(t *testing.T) {
	w := open(t, settings())
	n, err := testutil.GatherAndCount(w.reg)
	require.NoError(t, err)
	for range 20 {
		w.call("POST", "/oapi/v1/jobs", jobOrder("1"))
		w.call("GET", "/other", "")
	}
	after, err := testutil.GatherAndCount(w.reg)
	require.NoError(t, err)
	assert.Equal(t, n, after)
}
