package api_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/task"
)

func TestLookupHidesItsSecret(t *testing.T) {
	q := api.Lookup{Kind: task.Manifest, Upstream: "r.test", Repository: "app", Reference: "v1",
		Authorization: "Bearer geheim"}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("sent", "lookup", q)
	for _, said := range []string{fmt.Sprint(q), fmt.Sprintf("%+v", q), fmt.Sprintf("%#v", q), log.String()} {
		assert.NotContains(t, said, "geheim")
		assert.Contains(t, said, "r.test/app:v1")
	}
}

func TestLookupRoundTrip(t *testing.T) {
	q := api.Lookup{Version: 1, Kind: task.Manifest, Upstream: "r.test", Repository: "app", Reference: "v1",
		Accept: []string{"a", "b"}, Authorization: "Bearer x", Anonymous: true, MaxAgeMillis: 5}
	b, err := json.Marshal(q)
	require.NoError(t, err)
	got, err := api.DecodeLookup(b)
	require.NoError(t, err)
	assert.True(t, assert.ObjectsAreEqual(q, got))
	digest := task.ID("sha256:" + strings.Repeat("a", 64))
	for _, a := range []api.LookupReply{
		{Version: 1, Digest: digest, Length: 7, MediaType: "m", Yours: true, AgeMillis: 3},
		{Version: 1, Refusal: &api.RegistryError{Status: 401,
			Header: map[string][]string{"Www-Authenticate": {"Bearer a", "Basic b"}}, Body: []byte("no")}},
		{Version: 1, Unreached: "connection refused"},
	} {
		b, err := json.Marshal(a)
		require.NoError(t, err)
		got, err := api.DecodeLookupReply(b)
		require.NoError(t, err)
		assert.Equal(t, a, got)
	}
}

func TestDecodeLookupRefuses(t *testing.T) {
	for _, b := range []string{
		``, `[]`, `{}`, `{"version":9,"kind":"blob"}`, `{"version":1,"kind":"file"}`,
		`{"version":1,"kind":"blob","maxAgeMillis":-1}`,
		`{"version":1,"kind":"blob","accept":[` + strings.Repeat(`"a",`, 64) + `"a"]}`,
		`{"version":1,"kind":"blob","reference":"` + strings.Repeat("a", api.LookupMax) + `"}`,
	} {
		_, err := api.DecodeLookup([]byte(b))
		assert.Error(t, err, "%.60s", b)
	}
	for _, b := range []string{
		``, `{}`, `{"version":1}`, `{"version":1,"digest":"../x"}`, `{"version":1,"refusal":{"status":200}}`,
		`{"version":1,"length":-1,"unreached":"x"}`,
		`{"version":7,"unreached":"x"}`, `{"version":1,"unreached":"` + strings.Repeat("a", api.LookupReplyMax) + `"}`,
	} {
		_, err := api.DecodeLookupReply([]byte(b))
		assert.Error(t, err, "%.60s", b)
	}
	a, err := api.DecodeLookupReply([]byte(`{"version":1,"digest":"sha256:` + strings.Repeat("a", 64) +
		`","refusal":{"status":401,"header":{"Set-Cookie":["x"],"Retry-After":["1"]},"body":"eHg="}}`))
	require.NoError(t, err)
	assert.Equal(t, api.LookupReply{Version: 1, Refusal: &api.RegistryError{Status: 401,
		Header: map[string][]string{"Retry-After": {"1"}}, Body: []byte("xx")}}, a, "a refusal permits nothing")
}

func FuzzDecodeLookups(f *testing.F) {
	f.Add([]byte(`{"version":1,"kind":"manifest","upstream":"r","reference":"v1","accept":["a"]}`))
	f.Add([]byte(`{"version":1,"refusal":{"status":401,"header":{"Www-Authenticate":["x"]},"body":"eA=="}}`))
	f.Add([]byte(`{"version":1,"digest":"sha256:` + strings.Repeat("a", 64) + `","length":5}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, err := api.DecodeLookup(b); err == nil {
			require.LessOrEqual(t, len(q.Accept), 64)
		}
		if a, err := api.DecodeLookupReply(b); err == nil {
			require.Equal(t, 1, countTrue(a.Digest != "", a.Refusal != nil, a.Unreached != ""))
			require.GreaterOrEqual(t, a.Length, int64(0))
		}
	})
}

func countTrue(all ...bool) (n int) {
	for _, b := range all {
		if b {
			n++
		}
	}
	return n
}
