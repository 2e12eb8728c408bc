package order_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/preheat/order"
)

const (
	digest      = "sha256:4bcff63911fcb4448bd4fdacec207030997caf25e9bea4045fa6c8c44de311d1"
	otherDigest = "sha256:9999999999999999999999999999999999999999999999999999999999999999"
)

// listed is the operator's list of these tests.
func listed(registry string) bool {
	switch registry {
	case "harbor.example.com", "registry.test:5000", "docker.io", "plain.test:80", "internal", "[2001:db8::7]:5000":
		return true
	}
	return false
}

// job is the body that Harbor 2.12 and later send.
func job(url, headers, scope string) string {
	return fmt.Sprintf(`{"type":"preheat","args":{"type":"image","url":%q,"tag":"","filtered_query_params":"",
		"headers":%s,"scope":%q,"concurrent_count":0,"timeout":0},"scheduler_cluster_ids":null}`, url, headers, scope)
}

func TestParseJob(t *testing.T) {
	const url = "https://harbor.example.com/v2/library/nginx/manifests/1.25"
	o, err := order.ParseJob([]byte(job(url, `{"Authorization":"Bearer t0k.en"}`, "all_peers")), listed)
	require.NoError(t, err)
	assert.Equal(t, order.Order{Registry: "harbor.example.com", Repository: "library/nginx", Tag: "1.25",
		Scope: preheat.AllNodes, Authorization: "Bearer t0k.en"}, o)
	assert.NotContains(t, fmt.Sprintf("%v %+v %#v", o, o, o), "t0k.en")

	for scope, want := range map[string]preheat.ScopeKind{"": "", "single_seed_peer": preheat.OneSeed,
		"all_seed_peers": preheat.AllSeeds} {
		o, err := order.ParseJob([]byte(job(url, "null", scope)), listed)
		require.NoError(t, err)
		assert.Equal(t, want, o.Scope, scope)
		assert.Empty(t, o.Authorization)
	}
	for _, row := range []struct {
		name, body, says string
		is               error
	}{
		{"no JSON", `{"type":`, "not JSON", order.ErrMalformed},
		{"more than one value", job(url, "{}", "") + "{}", "not JSON", order.ErrMalformed},
		{"a list", `[]`, "the body is a JSON array", order.ErrMalformed},
		{"a number for the url", `{"type":"preheat","args":{"type":"image","url":17}}`, "args.url is a JSON number",
			order.ErrMalformed},
		{"numbers in headers", `{"type":"preheat","args":{"type":"image","headers":{"Authorization":5}}}`,
			"is a JSON number", order.ErrMalformed},
		{"another type of job", `{"type":"sync_peers"}`, "only preheat", order.ErrUnsupported},
		{"a file", `{"type":"preheat","args":{"type":"file","url":"https://harbor.example.com/f"}}`, "only image",
			order.ErrUnsupported},
		{"another scope", job(url, "{}", "everybody"), "all_seed_peers", order.ErrUnsupported},
		{"a line break in the credential", job(url, `{"Authorization":"Bearer a\r\nX: y"}`, ""),
			"characters that a header cannot have", order.ErrMalformed},
		{"another kind of credential", job(url, `{"Authorization":"Negotiate abc"}`, ""), "neither Bearer nor Basic",
			order.ErrMalformed},
		{"two credentials", job(url, `{"Authorization":"Bearer a","authorization":"Bearer b"}`, ""), "twice",
			order.ErrMalformed},
		{"a huge credential", job(url, `{"Authorization":"Bearer `+strings.Repeat("a", 9000)+`"}`, ""), "9007 bytes",
			order.ErrMalformed},
	} {
		t.Run(row.name, func(t *testing.T) {
			o, err := order.ParseJob([]byte(row.body), listed)
			require.ErrorIs(t, err, row.is)
			assert.ErrorContains(t, err, row.says)
			assert.Less(t, len(err.Error()), 400)
			assert.Zero(t, o)
		})
	}
	o, err = order.ParseJob([]byte(job(url, `{"Authorization":"Bearer "}`, "")), listed)
	require.NoError(t, err, "a public project has no token")
	assert.Empty(t, o.Authorization)
}

func TestManifestURLs(t *testing.T) {
	for _, row := range []struct{ url, want, says string }{
		{"https://harbor.example.com/v2/library/nginx/manifests/1.25", "harbor.example.com/library/nginx:1.25", ""},
		{"https://HARBOR.example.com:443/v2/a/manifests/b", "harbor.example.com/a:b", ""},
		{"http://harbor.example.com/v2/a/manifests/b", "harbor.example.com/a:b", ""},
		{"http://plain.test/v2/a/manifests/b", "plain.test:80/a:b", ""},
		{"https://registry.test:5000/v2/a/b/c/manifests/" + digest, "registry.test:5000/a/b/c@" + digest, ""},
		{"https://[2001:db8::7]:5000/v2/a/manifests/b", "[2001:db8::7]:5000/a:b", ""},
		{"https://registry-1.docker.io/v2/alpine/manifests/3", "docker.io/library/alpine:3", ""},
		{"https://harbor.example.com/v2/a/manifests/manifests/1", "harbor.example.com/a/manifests:1", ""},

		{"", "", "cannot be parsed"},
		{"harbor.example.com/v2/a/manifests/b", "", "cannot be parsed"},
		{"//harbor.example.com/v2/a/manifests/b", "", "begins with"},
		{"ftp://harbor.example.com/v2/a/manifests/b", "", `begins with "ftp"`},
		{"file:///etc/passwd", "", "cannot be parsed"},
		{"https:harbor.example.com/v2/a/manifests/b", "", "cannot be parsed"},
		{"https://harbor.example.com/v2/a/blobs/" + digest, "", "names no manifest"},
		{"https://harbor.example.com/api/v2/a/manifests/b", "", "names no manifest"},
		{"https://user:pass@harbor.example.com/v2/a/manifests/b", "", "a user, a query or a fragment"},
		{"https://harbor.example.com/v2/a/manifests/b?ns=evil.test", "", "a user, a query or a fragment"},
		{"https://harbor.example.com/v2/a/manifests/b?", "", "a user, a query or a fragment"},
		{"https://harbor.example.com/v2/a/manifests/b#x", "", "a user, a query or a fragment"},
		{"https://harbor.example.com/v2/a/manifests/b#", "", "a user, a query or a fragment"},
		{"https://harbor.example.com/v2/a%2fb/manifests/c", "", "is escaped"},
		{"https://harbor.example.com/v2/a%2Fb/manifests/c", "", "is escaped"},
		{"https://harbor.example.com/v2/a/manifests/%62", "", "is escaped"},
		{"https://harbor.example.com/v2/../admin/manifests/b", "", "invalid repository"},
		{"https://harbor.example.com/v2/a/../b/manifests/c", "", "invalid repository"},
		{"https://harbor.example.com/v2/a//b/manifests/c", "", "invalid repository"},
		{"https://harbor.example.com/v2//a/manifests/c", "", "invalid repository"},
		{"https://harbor.example.com/v2/manifests/c", "", "names no manifest"},
		{"https://harbor.example.com/v2/a/manifests/", "", "is no tag"},
		{"https://harbor.example.com/v2/a/manifests/b/c", "", "is no tag"},
		{"https://harbor.example.com/v2/a/manifests/..", "", "is no tag"},
		{"https://harbor.example.com/v2/a/manifests/sha256:12", "", "invalid digest"},
		{"https://harbor.example.com/v2/A/manifests/b", "", "invalid repository"},

		{"https://evil.test/v2/a/manifests/b", "", `registry "evil.test" is not in the upstreams`},
		{"https://harbor.example.com:8443/v2/a/manifests/b", "", "is not in the upstreams"},
		{"https://harbor.example.com:80/v2/a/manifests/b", "", "is not in the upstreams"},
		{"https://harbor.example.com.evil.test/v2/a/manifests/b", "", "is not in the upstreams"},
		{"https://harbor.example.com@evil.test/v2/a/manifests/b", "", "a user, a query or a fragment"},
		{`https://harbor.example.com\@evil.test/v2/a/manifests/b`, "", "cannot be parsed"},
		{"https://harbor.example.com./v2/a/manifests/b", "", "invalid registry name"},
		{"http://169.254.169.254/v2/a/manifests/b", "", "is not in the upstreams"},
		{"http://[::ffff:169.254.169.254]/v2/a/manifests/b", "", "invalid registry name"},
		{"http://metadata.google.internal/v2/a/manifests/b", "", "is not in the upstreams"},
		{"http://127.0.0.1:65005/v2/a/manifests/b", "", "is not in the upstreams"},
		{"http://localhost/v2/a/manifests/b", "", "is not in the upstreams"},
		{"http://0x7f000001/v2/a/manifests/b", "", "is not in the upstreams"},
		{"https://internal/v2/a/manifests/b", "", "neither a dot nor a port"},
		{"https://harbor.example.com/v2/" + strings.Repeat("a", 3000) + "/manifests/b", "", "may have 2048"},
	} {
		t.Run(row.url[:min(len(row.url), 80)], func(t *testing.T) {
			o, err := order.ParseJob([]byte(job(row.url, "{}", "")), listed)
			if row.says != "" {
				require.ErrorContains(t, err, row.says)
				assert.Less(t, len(err.Error()), 500)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, row.want, o.Reference())
			target, err := preheat.Spec{Kind: preheat.Image, Reference: o.Reference()}.Target()
			require.NoError(t, err)
			assert.Equal(t, o.Registry, target.Upstream, "the reference means the same registry")
			assert.Equal(t, o.Repository, target.Repository)
		})
	}
}

func TestParsePreheat(t *testing.T) {
	body := func(digest string) []byte {
		return fmt.Appendf(nil, `{"type":"image","url":"https://harbor.example.com/v2/library/nginx/manifests/1.25",
			"headers":{"Authorization":"Bearer t"},"image":"library/nginx","tag":"1.25","digest":%q}`, digest)
	}
	o, err := order.ParsePreheat(body(digest), listed)
	require.NoError(t, err)
	assert.Equal(t, "harbor.example.com/library/nginx:1.25@"+digest, o.Reference())
	assert.Equal(t, "Bearer t", o.Authorization.Reveal())
	o, err = order.ParsePreheat(body(""), listed)
	require.NoError(t, err)
	assert.Equal(t, "harbor.example.com/library/nginx:1.25", o.Reference())
	_, err = order.ParsePreheat(body("sha256:12"), listed)
	require.ErrorIs(t, err, order.ErrMalformed)
	_, err = order.ParsePreheat([]byte(`{"type":"image","url":["a"]}`), listed)
	require.ErrorContains(t, err, "url is a JSON array")
	_, err = order.ParsePreheat([]byte(`{"type":"image","digest":"`+otherDigest+`",
		"url":"https://harbor.example.com/v2/a/manifests/`+digest+`"}`), listed)
	require.ErrorContains(t, err, "the digest is not that of the url")
}

// kraken is the body that Harbor's driver for Kraken sends.
func kraken(url, repository, tag string) string {
	return fmt.Sprintf(`{"Events":[{"Id":"qwertzuiop","TimeStamp":"2026-08-01T10:00:00.123456789Z","Action":"push",
		"Target":{"MediaType":"application/vnd.docker.distribution.manifest.v2+json","Digest":%q,"Repository":%q,
		"Url":%q,"Tag":%q},"Request":null,"Actor":null}]}`, digest, repository, url, tag)
}

// pushEvent is an event of distribution/v3.
func pushEvent(action, mediaType, repository, url, tag string) string {
	return fmt.Sprintf(`{"id":"320678d8-ca14-430f-8bb6-4ca139cd83f7","timestamp":"2026-08-01T10:00:00.1+02:00",
		"action":%q,"target":{"mediaType":%q,"digest":%q,"size":708,"length":708,"repository":%q,"url":%q,"tag":%q,
		"references":[]},"request":{"id":"6df24a34","addr":"192.0.2.7:3000","host":"harbor.example.com","method":"PUT",
		"useragent":"curl"},"actor":{},"source":{"addr":"x:5000","instanceID":"1"}}`, action, mediaType, digest, repository,
		url, tag)
}

func TestParseNotification(t *testing.T) {
	const (
		manifest = oci.MediaTypeManifest
		byDigest = "https://harbor.example.com/v2/shop/web/manifests/" + digest
		byTag    = "https://harbor.example.com/v2/library/nginx/manifests/1.25"
	)
	events, err := order.ParseNotification([]byte(kraken(byTag, "library/nginx", "1.25")), "", listed)
	require.NoError(t, err)
	require.Len(t, events, 1)
	require.NoError(t, events[0].Err)
	assert.Equal(t, "harbor.example.com/library/nginx:1.25@"+digest, events[0].Order.Reference())

	one := func(event, named string) order.Event {
		events, err := order.ParseNotification([]byte(`{"events":[`+event+`]}`), named, listed)
		require.NoError(t, err)
		require.Len(t, events, 1)
		return events[0]
	}
	e := one(pushEvent("push", manifest, "shop/web", byDigest, "v1"), "")
	require.NoError(t, e.Err)
	assert.Equal(t, "harbor.example.com/shop/web:v1@"+digest, e.Order.Reference())
	e = one(pushEvent("push", manifest, "shop/web", "http://10.1.2.3:5000/v2/shop/web/manifests/"+digest, "v1"),
		"registry.test:5000")
	require.NoError(t, e.Err, "the webhook's URL names the registry")
	assert.Equal(t, "registry.test:5000/shop/web:v1@"+digest, e.Order.Reference())

	for _, row := range []struct{ name, event, named, ignored, err string }{
		{"a pull", pushEvent("pull", manifest, "shop/web", byDigest, "v1"), "", "not a push", ""},
		{"a deletion", pushEvent("delete", manifest, "shop/web", byDigest, "v1"), "", "not a push", ""},
		{"a blob", pushEvent("push", "application/octet-stream", "shop/web", byDigest, ""), "", "no manifest", ""},
		{"a manifest of an index", pushEvent("push", manifest, "shop/web", byDigest, ""), "", "without a tag", ""},
		{"another registry", pushEvent("push", manifest, "a", "https://evil.test/v2/a/manifests/"+digest, "v1"), "", "",
			"not in the upstreams"},
		{"a metadata service", pushEvent("push", manifest, "a", "http://169.254.169.254/v2/a/manifests/"+digest, "v1"), "",
			"", "not in the upstreams"},
		{"another registry in the webhook's URL", pushEvent("push", manifest, "shop/web", byDigest, "v1"), "evil.test", "",
			"not in the upstreams"},
		{"another repository than the URL", pushEvent("push", manifest, "shop/evil", byDigest, "v1"), "", "",
			"not those of its url"},
		{"another digest than the URL", pushEvent("push", manifest, "shop/web",
			"https://harbor.example.com/v2/shop/web/manifests/"+otherDigest, "v1"), "", "", "not those of its url"},
		{"another tag than the URL", pushEvent("push", manifest, "library/nginx", byTag, "v1"), "", "",
			"not those of its url"},
		{"a path", pushEvent("push", manifest, "../admin", byDigest, "v1"), "registry.test:5000", "", "invalid repository"},
		{"a number for the action", `{"action":5}`, "", "", "action is a JSON number"},
		{"a wrong time", `{"timestamp":"yesterday"}`, "", "", "wrong form"},
		{"a text", `"event"`, "", "", "is a JSON string"},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := one(row.event, row.named)
			if row.err != "" {
				require.ErrorContains(t, e.Err, row.err)
				return
			}
			require.NoError(t, e.Err)
			assert.Contains(t, e.Ignored, row.ignored)
			assert.NotEmpty(t, e.Ignored)
		})
	}
	for body, says := range map[string]string{
		`{}`: "no event", `{"events":[]}`: "no event", `{"events":5}`: "events is a JSON number", `null`: "no event",
		`{"events":[` + strings.Repeat("1,", 300) + `1]}`: "at most 256",
	} {
		_, err := order.ParseNotification([]byte(body), "", listed)
		require.ErrorIs(t, err, order.ErrMalformed)
		assert.ErrorContains(t, err, says)
	}
}

// harborEvent is the body of Harbor's webhook.
func harborEvent(kind, url, tag string) string {
	return fmt.Sprintf(`{"type":%q,"occur_at":1680501893,"operator":"robot$ci","event_data":{"resources":[{"digest":%q,
		"tag":%q,"resource_url":%q}],"repository":{"date_created":1680501893,"name":"web","namespace":"shop",
		"repo_full_name":"shop/web","repo_type":"private"}}}`, kind, digest, tag, url)
}

func TestParseHarborEvent(t *testing.T) {
	one := func(body, named string) order.Event {
		events, err := order.ParseHarborEvent([]byte(body), named, listed)
		require.NoError(t, err)
		require.Len(t, events, 1)
		return events[0]
	}
	const want = "harbor.example.com/shop/web:v1@" + digest
	e := one(harborEvent("PUSH_ARTIFACT", "harbor.example.com/shop/web:v1", "v1"), "")
	require.NoError(t, e.Err)
	assert.Equal(t, want, e.Order.Reference())
	e = one(fmt.Sprintf(`{"specversion":"1.0","id":"66e18103-09c1-41f6-982f-37df223f3eeb",
		"source":"/projects/2/webhook/policies/15","type":"harbor.artifact.pushed","datacontenttype":"application/json",
		"time":"2026-08-01T10:00:00Z","operator":"admin","data":{"resources":[{"digest":%q,"tag":"v1",
		"resource_url":"harbor.example.com/shop/web:v1"}],"repository":{"repo_full_name":"shop/web"}}}`, digest), "")
	require.NoError(t, e.Err)
	assert.Equal(t, want, e.Order.Reference())
	e = one(harborEvent("PUSH_ARTIFACT", "harbor-core:8080/shop/web:v1", "v1"), "harbor.example.com")
	require.NoError(t, e.Err, "the webhook's URL names the registry")
	assert.Equal(t, want, e.Order.Reference())

	assert.Contains(t, one(harborEvent("PULL_ARTIFACT", "harbor.example.com/shop/web:v1", "v1"), "").Ignored, "not a push")
	assert.Contains(t, one(harborEvent("PUSH_ARTIFACT", "harbor.example.com/shop/web@"+digest, digest), "").Ignored,
		"without a tag")
	for url, says := range map[string]string{
		"evil.test/shop/web:v1": "not in the upstreams", "169.254.169.254/shop/web:v1": "not in the upstreams",
		"harbor.example.com/shop/evil:v1": "names another image", "": "names another image",
		"user@harbor.example.com/shop/web:v1": "invalid registry name",
	} {
		require.ErrorContains(t, one(harborEvent("PUSH_ARTIFACT", url, "v1"), "").Err, says, url)
	}
	for body, says := range map[string]string{
		`{}`: "no type", `{"type":"PUSH_ARTIFACT"}`: "names nothing",
		`{"type":"PUSH_ARTIFACT","event_data":{}}`: "no event",
		`{"type":7}`: "type is a JSON number", `{"type":"PUSH_ARTIFACT","event_data":{"resources":[{"tag":1}]}}`: "number",
	} {
		_, err := order.ParseHarborEvent([]byte(body), "", listed)
		require.ErrorIs(t, err, order.ErrMalformed)
		assert.ErrorContains(t, err, says, body)
	}
}

func TestAnswerJob(t *testing.T) {
	created := time.Date(2026, 8, 1, 12, 0, 0, 0, time.FixedZone("CEST", 7200))
	j := preheat.Job{ID: strings.Repeat("0a", 16), Number: 17, State: preheat.Running, Created: created,
		Updated: created.Add(5 * time.Second), Tasks: []preheat.TaskState{
			{URL: "https://harbor.example.com/v2/a/blobs/" + digest, Host: "node-1", IP: "10.0.0.1", State: preheat.Success},
			{URL: "u", Host: "node-2", IP: "10.0.0.2", State: preheat.Failed, Error: "disk full"},
			{URL: "u", Host: "node-3", State: preheat.Running},
		}}
	text := func(v any) string {
		b, err := json.Marshal(v)
		require.NoError(t, err)
		return string(b)
	}
	const rows = `"results":[{"scheduler_cluster_id":1,"success_tasks":[{"url":"https://harbor.example.com/v2/a/blobs/` +
		digest + `","hostname":"node-1","ip":"10.0.0.1"}],"failure_tasks":[{"url":"u","hostname":"node-2",` +
		`"ip":"10.0.0.2","description":"disk full"}]}]`
	assert.JSONEq(t, `{"id":17,"created_at":"2026-08-01T10:00:00Z","updated_at":"2026-08-01T10:00:05Z",
		"state":"PENDING","result":{"job_states":[{"error":"",`+rows+`}]}}`, text(order.AnswerJob(j)))
	assert.JSONEq(t, `{"ID":"`+j.ID+`","startTime":"2026-08-01T10:00:00Z","errorMsg":"","Status":"RUNNING"}`,
		text(order.AnswerPreheat(j)))

	for state, want := range map[preheat.State][2]string{
		preheat.Pending: {"PENDING", "WAITING"}, preheat.Running: {"PENDING", "RUNNING"},
		preheat.Paused: {"PENDING", "RUNNING"}, preheat.Success: {"SUCCESS", "SUCCESS"},
		preheat.Failed: {"FAILURE", "FAILED"}, preheat.Cancelled: {"FAILURE", "FAILED"},
		"a later version's": {"PENDING", "RUNNING"},
	} {
		j.State = state
		assert.Equal(t, want[0], order.AnswerJob(j).State, state)
		assert.Equal(t, want[1], order.AnswerPreheat(j).Status, state)
		failed := want[0] == "FAILURE"
		assert.Equal(t, failed, order.AnswerJob(j).Result.JobStates[0].Error != "", state)
		assert.Equal(t, failed, order.AnswerPreheat(j).ErrorMsg != "", state)
	}
	j.State, j.Error, j.Finished = preheat.Failed, "node-2: disk full", created.Add(time.Minute)
	assert.Equal(t, "node-2: disk full", order.AnswerJob(j).Result.JobStates[0].Error)
	assert.Equal(t, "2026-08-01T10:01:00Z", order.AnswerPreheat(j).FinishTime)

	j.Tasks = nil
	assert.Contains(t, text(order.AnswerJob(j)), `"success_tasks":[],"failure_tasks":[]`)
	for range 3000 {
		j.Tasks = append(j.Tasks, preheat.TaskState{State: preheat.Success}, preheat.TaskState{State: preheat.Failed})
	}
	assert.Less(t, len(text(order.AnswerJob(j))), 200<<10, "the answer is bounded")
}
