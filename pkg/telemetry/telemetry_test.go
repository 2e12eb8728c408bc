package telemetry_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/pkg/telemetry"
	"github.com/darter-io/darter/pkg/version"
)

// everything registers all groups.
func everything() (*prometheus.Registry, *telemetry.Pulls, *telemetry.Owner) {
	reg := telemetry.NewRegistry(version.Read())
	telemetry.NewStore(reg, func() telemetry.StoreStats {
		return telemetry.StoreStats{Bytes: 10, Quota: 20, Tasks: 3, Evictions: 4}
	})
	telemetry.NewSwarm(reg, func() telemetry.SwarmStats {
		return telemetry.SwarmStats{Received: api.Sources{Peers: 100, Seeds: 90, Origin: 80}, Duplicate: 70, Sent: 60,
			BadPieces: 5, BusySent: 6, BusyReceived: 7, Slots: 4, SlotsUsed: 1, Connections: 8, Running: 9}
	})
	telemetry.NewMember(reg, func() telemetry.MemberStats {
		return telemetry.MemberStats{Skew: 3 * time.Second, Unfollowed: 2, OwnersReachable: 2, OwnersUnreachable: 1}
	})
	telemetry.NewSecrets(reg, func() []telemetry.SecretStats {
		return []telemetry.SecretStats{{Fingerprint: "0a1b2c3d4e5f", State: "first", Connections: 2, Handshakes: 3},
			{Fingerprint: "f5e4d3c2b1a0", State: "accepted"}}
	})
	telemetry.NewConnRefusals(reg)
	telemetry.NewPreheats(reg, func() map[string]int { return map[string]int{"running": 2} })
	telemetry.NewUpstreams(reg)
	telemetry.NewDoors(reg)
	return reg, telemetry.NewPulls(reg), telemetry.NewOwner(reg, func() telemetry.OwnerStats {
		return telemetry.OwnerStats{Seeding: 2, Hosts: 7}
	})
}

func TestMetricsPage(t *testing.T) {
	reg, _, _ := everything()
	families, err := reg.Gather()
	require.NoError(t, err)
	var have []string
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "darter_") {
			assert.Regexp(t, `^(go|process)_`, f.GetName())
			continue
		}
		require.NotEmpty(t, f.GetMetric(), f.GetName())
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+l.GetName()+"`")
		}
		have = append(have, fmt.Sprintf("| `%s` | %s | %s | %s |", f.GetName(), strings.ToLower(f.GetType().String()),
			strings.Join(labels, ", "), f.GetHelp()))
	}
	doc, err := os.ReadFile("../../docs/metrics.md")
	require.NoError(t, err)
	told := regexp.MustCompile("(?m)^\\| `darter_.*$").FindAllString(string(doc), -1)
	slices.Sort(told)
	slices.Sort(have)
	assert.Equal(t, strings.Join(have, "\n"), strings.Join(told, "\n"),
		"docs/metrics.md has other rows than the program")
}

func TestLabelValues(t *testing.T) {
	reg, pulls, owner := everything()
	before, err := testutil.GatherAndCount(reg)
	require.NoError(t, err)
	for i := range 50 {
		evil := fmt.Sprint("x", i)
		pulls.Finished(nil, telemetry.Pull{Kind: task.Kind(evil), Result: telemetry.Result(evil),
			FirstByte: 1, Total: 1})
		owner.Announced(time.Second, evil, string(api.Started))
		owner.Seeded(telemetry.Result(evil), "", nil)
	}
	after, err := testutil.GatherAndCount(reg)
	require.NoError(t, err)
	assert.Equal(t, before, after)
}

func TestUpstreamRequests(t *testing.T) {
	reg := prometheus.NewRegistry()
	u := telemetry.NewUpstreams(reg)
	for i := range 200 {
		u.List(fmt.Sprintf("r%03d.test", i))
	}
	series, err := testutil.GatherAndCount(reg)
	require.NoError(t, err)
	u.Count("r000.test", telemetry.PurposeBlob, 206)
	u.Count("r000.test", telemetry.PurposeToken, 401)
	u.Count("r199.test", telemetry.PurposeManifest, 0)
	u.Count("never.test", "evil", 999)
	u.Count("", telemetry.PurposeManifest, 404)
	now, err := testutil.GatherAndCount(reg)
	require.NoError(t, err)
	assert.Equal(t, series, now, "the number of series is bounded by the list")
	assert.LessOrEqual(t, series, 65*4*8)
	rec := httptest.NewRecorder()
	telemetry.Admin(reg, &telemetry.Ready{}, version.Build{}, nil).ServeHTTP(rec,
		httptest.NewRequest("GET", "/metrics", nil))
	for _, line := range []string{
		`{kind="blob",registry="r000.test",status="2xx"} 1`, `{kind="token",registry="r000.test",status="401"} 1`,
		`{kind="manifest",registry="other",status="none"} 1`, `{kind="other",registry="other",status="none"} 1`,
		`{kind="manifest",registry="other",status="4xx"} 1`, `{kind="manifest",registry="r001.test",status="5xx"} 0`,
	} {
		assert.Contains(t, rec.Body.String(), "darter_upstream_requests_total"+line+"\n")
	}
	var none *telemetry.Upstreams
	none.List("a.test")
	none.Count("a.test", telemetry.PurposeBlob, 200)
}

func TestCounters(t *testing.T) {
	reg, pulls, owner := everything()
	pulls.Finished(nil, telemetry.Pull{Kind: task.Blob, Result: telemetry.OK, FirstByte: time.Millisecond,
		Total: time.Second, Bytes: api.Sources{Peers: 5, Seeds: 4, Origin: 3, Cache: 2}})
	pulls.Finished(nil, telemetry.Pull{Kind: task.Blob, Result: telemetry.Refused, Total: time.Second})
	for _, e := range []api.Event{api.Started, api.Progress, api.Completed, api.Stopped, api.Starving} {
		owner.Announced(time.Millisecond, string(e))
	}
	owner.Seeded(telemetry.Failed, "sha256:aa", errors.New("no route"))
	rec := httptest.NewRecorder()
	telemetry.Admin(reg, &telemetry.Ready{}, version.Build{}, nil).ServeHTTP(rec,
		httptest.NewRequest("GET", "/metrics", nil))
	require.Equal(t, 200, rec.Code)
	for _, line := range []string{
		`darter_pulls_total{kind="blob",result="ok"} 1`,
		`darter_pulls_total{kind="blob",result="refused"} 1`,
		`darter_pulls_total{kind="file",result="failed"} 0`,
		`darter_pull_bytes_total{source="peers"} 5`,
		`darter_pull_bytes_total{source="seed"} 4`,
		`darter_pull_bytes_total{source="origin"} 3`,
		`darter_pull_bytes_total{source="cache"} 2`,
		`darter_pull_first_byte_seconds_count{kind="blob"} 1`,
		`darter_pull_seconds_count{kind="manifest"} 0`,
		`darter_owners{state="reachable"} 2`,
		`darter_owners{state="unreachable"} 1`,
		`darter_upstream_requests_total{kind="token",registry="other",status="none"} 0`,
		`darter_pull_seconds_count{kind="blob"} 1`,
		`darter_received_bytes_total{source="peers"} 100`,
		`darter_received_bytes_total{source="seed"} 90`,
		`darter_received_bytes_total{source="origin"} 80`,
		`darter_duplicate_bytes_total 70`,
		`darter_sent_bytes_total 60`,
		`darter_pieces_bad_total 5`,
		`darter_busy_total{direction="told"} 6`,
		`darter_busy_total{direction="heard"} 7`,
		`darter_connections 8`,
		`darter_downloads 9`,
		`darter_upload_slots 4`,
		`darter_upload_slots_used 1`,
		`darter_store_bytes 10`,
		`darter_store_quota_bytes 20`,
		`darter_store_tasks 3`,
		`darter_store_evictions_total 4`,
		`darter_announces_total{event="starving"} 1`,
		`darter_announces_total{event="other"} 0`,
		`darter_announce_seconds_count 5`,
		`darter_seeds_total{result="failed"} 1`,
		`darter_seeds_running 2`,
		`darter_hosts 7`,
	} {
		assert.Contains(t, rec.Body.String(), "\n"+line+"\n")
	}
}

func TestNilGroups(t *testing.T) {
	var (
		pulls *telemetry.Pulls
		owner *telemetry.Owner
	)
	pulls.Finished(nil, telemetry.Pull{})
	owner.Announced(0, "started")
	owner.Seeded(telemetry.OK, "", nil)
}

func logger(t *testing.T, w io.Writer, format string) *slog.Logger {
	t.Helper()
	l, err := telemetry.NewLogger(w, slog.LevelDebug, format)
	require.NoError(t, err)
	return l
}

func TestLogRedacts(t *testing.T) {
	const word = "hunter2"
	s := secret.String(word)
	link := "https://user:" + word + "@store.test/a?X-Amz-Signature=" + word + "#" + word
	parsed, err := url.Parse(link)
	require.NoError(t, err)
	request, err := http.NewRequest("GET", link, nil)
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+word)
	response := &http.Response{Status: "401 Unauthorized", Request: request, Header: http.Header{"Set-Cookie": {word}}}
	urlErr := fmt.Errorf("fetching: %w", &url.Error{Op: "Get", URL: link,
		Err: &url.Error{Op: "Get", URL: "https://b.test/?sig=" + word, Err: errors.New("dial: refused")}})
	broken := &url.Error{Op: "parse", URL: "://" + word, Err: errors.New("missing scheme")}
	spec := task.Spec{ID: "file:1", Authorization: s, Header: map[string]secret.String{"X-Key": s}}
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		l := logger(t, &out, format)
		l.With("with", s).WithGroup("g").Info("all of them",
			"secret", s, "pointer", &s, "list", []secret.String{s}, "map", map[string]secret.String{"k": s},
			"spec", spec,
			"specs", &spec,
			"wire", api.NewSpec(spec), "announce", api.AnnounceRequest{Entries: []api.Entry{{Spec: api.NewSpec(spec)}}},
			"header", request.Header, "url", parsed, "value", *parsed, "request", request, "response", response,
			"err", urlErr, "joined", errors.Join(errors.New("x"), urlErr), "broken", broken,
			"Authorization", "Bearer "+word, "password", word, "token", word, "cookie", word,
			slog.Group("inner", "header", http.Header{"Cookie": {word}}, "err", urlErr))
		assert.NotContains(t, out.String(), word, format)
		for _, kept := range []string{"all of them", "store.test", "b.test", "dial: refused", "401 Unauthorized",
			"fetching: ", "file:1", "[redacted]"} {
			assert.Contains(t, out.String(), kept, format)
		}
	}
}

// lines delivers the written text line by line.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

func TestStandardLog(t *testing.T) {
	flags, output := log.Flags(), log.Writer()
	defer func() {
		log.SetFlags(flags)
		log.SetOutput(output)
	}()
	out := make(lines, 8)
	telemetry.TakeStandardLog(logger(t, out, "json"))
	// An origin that sends a body where there may be none: net/http quotes it.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	go func() {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nhunter2")
		_, _ = io.Copy(io.Discard, c)
	}()
	client := &http.Client{Transport: &http.Transport{}}
	response, err := client.Head("http://" + listener.Addr().String())
	require.NoError(t, err)
	response.Body.Close()
	var line map[string]any
	text := <-out
	require.NoError(t, json.Unmarshal([]byte(text), &line))
	assert.Equal(t, "WARN", line["level"])
	assert.Contains(t, line["text"], "Unsolicited response")
	assert.NotContains(t, text, "hunter2")
}

func TestLogKeepsTheRest(t *testing.T) {
	var out bytes.Buffer
	var none *url.Error
	l := logger(t, &out, "json")
	l.Info("x", "err", errors.New("plain"), "header", http.Header{"Content-Type": {"text/plain"}},
		"token", 5, "nothing",
		nil, "none", error(none), "noURL", (*url.URL)(nil), "noRequest", (*http.Request)(nil),
		"took", 1500*time.Millisecond)
	var line map[string]any
	require.NoError(t, json.Unmarshal(out.Bytes(), &line))
	assert.Equal(t, "plain", line["err"])
	assert.Equal(t, map[string]any{"Content-Type": "text/plain"}, line["header"])
	assert.EqualValues(t, 5, line["token"])
	assert.InDelta(t, 1.5, line["took"], 1e-9)
}

func TestLevelChange(t *testing.T) {
	var out bytes.Buffer
	var level slog.LevelVar
	l, err := telemetry.NewLogger(&out, &level, "text")
	require.NoError(t, err)
	l.Debug("first")
	level.Set(slog.LevelDebug)
	l.Debug("second")
	assert.NotContains(t, out.String(), "first")
	assert.Contains(t, out.String(), "second")
}

func TestUnknownLevelsAndFormats(t *testing.T) {
	for text, want := range map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo,
		"WARN":  slog.LevelWarn,
		"error": slog.LevelError} {
		got, err := telemetry.ParseLevel(text)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	_, err := telemetry.ParseLevel("loud")
	require.ErrorContains(t, err, `"loud"`)
	_, err = telemetry.NewLogger(io.Discard, slog.LevelInfo, "xml")
	require.ErrorContains(t, err, `"xml"`)
}

func TestPullLine(t *testing.T) {
	var out bytes.Buffer
	reg := prometheus.NewRegistry()
	pulls := telemetry.NewPulls(reg)
	pulls.Finished(logger(t, &out, "json"), telemetry.Pull{
		Task: "sha256:aa", Kind: task.Blob, Name: "registry.test/lib/app", Result: telemetry.OK,
		Bytes:     api.Sources{Peers: 700, Seeds: 200, Origin: 100},
		FirstByte: 12*time.Millisecond + 345*time.Nanosecond, Total: 2*time.Second + 345*time.Nanosecond,
		Stages: []telemetry.Stage{{"authorize", time.Millisecond}, {"transfer", 1900 * time.Millisecond},
			{"announce", 9 * time.Millisecond}},
	})
	assert.Equal(t, 1, strings.Count(out.String(), "\n"))
	var line map[string]any
	require.NoError(t, json.Unmarshal(out.Bytes(), &line))
	delete(line, "time")
	assert.Equal(t, map[string]any{
		"level": "INFO", "msg": "pull finished", "task": "sha256:aa", "kind": "blob", "name": "registry.test/lib/app",
		"result": "ok", "bytes": 1000.0,
		"from":      map[string]any{"peers": 700.0, "seed": 200.0, "origin": 100.0, "cache": 0.0},
		"firstByte": 0.012, "total": 2.0,
		"slowest": "transfer", "slowestTook": 1.9,
	}, line)

	out.Reset()
	pulls.Finished(logger(t, &out, "text"), telemetry.Pull{Task: "sha256:aa", Kind: task.Blob, Result: telemetry.Failed,
		Err: errors.New("no peer answered")})
	assert.Contains(t, out.String(), `level=WARN msg="pull finished"`)
	assert.Contains(t, out.String(), `error="no peer answered"`)
	assert.NotContains(t, out.String(), "firstByte", "there was none")
}

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
	return rec.Code, rec.Body.String()
}

func TestReady(t *testing.T) {
	var ready telemetry.Ready
	store, owner := errors.New("still re-hashing"), error(&url.Error{Op: "Get", URL: "http://a.test/?token=hunter2",
		Err: errors.New("refused")})
	ready.Add("mirror", func(context.Context) error { return nil })
	ready.Add("store", func(context.Context) error { return store })
	ready.Add("owner", func(context.Context) error { return owner })
	h := telemetry.Admin(prometheus.NewRegistry(), &ready, version.Build{}, nil)
	code, body := get(t, h, "/readyz")
	assert.Equal(t, 503, code)
	assert.Equal(t, "missing store: still re-hashing\nmissing owner: Get \"http://a.test/\": refused\nok mirror\n",
		body)
	require.Len(t, ready.Missing(t.Context()), 2)
	assert.Equal(t, "store", ready.Missing(t.Context())[0].Name)

	store, owner = nil, nil
	code, body = get(t, h, "/readyz")
	assert.Equal(t, 200, code)
	assert.Equal(t, "ok mirror\nok store\nok owner\nready\n", body)

	code, body = get(t, h, "/healthz")
	assert.Equal(t, 200, code, "healthy all the time")
	assert.Equal(t, "ok\n", body)
}

func TestReadyTimeout(t *testing.T) {
	var ready telemetry.Ready
	ready.Add("owner", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	missing := ready.Missing(ctx)
	require.Len(t, missing, 1)
	assert.ErrorIs(t, missing[0].Err, context.DeadlineExceeded)
}

func TestAdmin(t *testing.T) {
	reg, _, _ := everything()
	h := telemetry.Admin(reg, &telemetry.Ready{}, version.Build{Version: "v9.8.7", Go: "go1"}, nil)
	for path, want := range map[string]string{
		"/": "v9.8.7", "/metrics": "darter_build_info{", "/debug/pprof/": "goroutine", "/debug/pprof/cmdline": ".test",
		"/debug/pprof/goroutine?debug=1": "goroutine profile", "/debug/pprof/symbol": "num_symbols",
	} {
		code, body := get(t, h, path)
		assert.Equal(t, 200, code, path)
		assert.Contains(t, body, want, path)
	}
	code, _ := get(t, h, "/nothing")
	assert.Equal(t, 404, code)
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("POST", "/healthz", nil))
	assert.Equal(t, 405, rec.Code)
}

func TestOutcomes(t *testing.T) {
	pulls := telemetry.NewPulls(prometheus.NewRegistry())
	assert.Zero(t, *pulls.Outcomes())
	for _, r := range []telemetry.Result{telemetry.OK, telemetry.OK, telemetry.Refused, telemetry.Canceled} {
		pulls.Finished(nil, telemetry.Pull{Result: r})
	}
	assert.Nil(t, pulls.Outcomes().Failure)
	pulls.Finished(nil, telemetry.Pull{Name: "files.test/f", Result: telemetry.Failed,
		Err: &url.Error{Op: "Get", URL: "http://a.test/?token=hunter2", Err: errors.New("no route")}})
	before := pulls.Outcomes()
	assert.Equal(t, []int64{2, 1, 1, 1}, []int64{before.OK, before.Refused, before.Failed, before.Canceled})
	assert.WithinDuration(t, time.Now(), before.Last, time.Minute)
	assert.Equal(t, "files.test/f", before.Failure.Name)
	assert.Contains(t, before.Failure.Error, "no route")
	assert.NotContains(t, before.Failure.Error, "hunter2")

	pulls.Finished(nil, telemetry.Pull{Result: telemetry.Failed, Err: errors.New(strings.Repeat("long ", 10_000))})
	assert.Less(t, len(pulls.Outcomes().Failure.Error), 2000)
	assert.Equal(t, "files.test/f", before.Failure.Name, "what was told does not change")
	pulls.Finished(nil, telemetry.Pull{Result: telemetry.Failed})
	assert.NotEmpty(t, pulls.Outcomes().Failure.Error)

	owner := telemetry.NewOwner(prometheus.NewRegistry(), func() telemetry.OwnerStats { return telemetry.OwnerStats{} })
	owner.Seeded(telemetry.Failed, task.ID("sha256:"+strings.Repeat("ab", 32)), errors.New("no route"))
	assert.Equal(t, "sha256:abababababab", owner.Outcomes().Failure.Name)
	var none *telemetry.Pulls
	assert.Nil(t, none.Outcomes())
	var nobody *telemetry.Owner
	assert.Nil(t, nobody.Outcomes())
}

// Strangers may ask the health port often, and a check writes to the disk.
func TestChecksOncePerSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ready telemetry.Ready
		asked := 0
		var fault error
		ready.Add("disk", func(ctx context.Context) error {
			asked++
			time.Sleep(100 * time.Millisecond)
			return cmp.Or(fault, ctx.Err())
		})
		h := telemetry.Health(prometheus.NewRegistry(), &ready, slog.New(slog.DiscardHandler))
		get := func(ctx context.Context) (int, string) {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/readyz", nil))
			return w.Code, w.Body.String()
		}
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				code, body := get(t.Context())
				assert.Equal(t, 200, code)
				assert.Equal(t, "ok disk\nready\n", body)
			})
		}
		all.Wait()
		assert.Equal(t, 1, asked)
		fault = errors.New("full")
		code, _ := get(t.Context())
		assert.Equal(t, 200, code, "an answer may be a second old")
		time.Sleep(time.Second)
		code, body := get(t.Context())
		assert.Equal(t, 503, code)
		assert.Equal(t, "missing disk: full\n", body)
		assert.Equal(t, 2, asked)

		// A client that leaves during a check does not fail the next one's answer.
		fault = nil
		time.Sleep(time.Second)
		gone, leave := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer leave()
		all.Go(func() { get(gone) })
		time.Sleep(75 * time.Millisecond)
		code, body = get(t.Context())
		assert.Equal(t, 200, code, body)
		all.Wait()
		assert.Equal(t, 3, asked)
	})
}
