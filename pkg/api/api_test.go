package api_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
)

// The secrets of a spec are in its JSON and in no printed form.
func TestSpecHidesItsSecrets(t *testing.T) {
	const word = "hunter2"
	spec := &api.Spec{ID: "file:1", Kind: "file", Authorization: "Bearer " + word,
		Header: map[string]string{"X-Key": word}}
	entry := api.Entry{Task: "file:1", Spec: spec}
	request := api.AnnounceRequest{Entries: []api.Entry{entry}}
	var out bytes.Buffer
	for _, h := range []slog.Handler{slog.NewJSONHandler(&out, nil), slog.NewTextHandler(&out, nil)} {
		slog.New(h).Info("x", "spec", spec, "value", *spec, "entry", entry, "pointer", &entry, "request", request,
			"requests", &request)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		for _, v := range []any{spec, *spec, entry, &entry, request, &request} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	assert.NotContains(t, out.String(), word)
	assert.NotContains(t, out.String(), "68756e74657232")
	assert.Contains(t, out.String(), "file:1")

	b, err := json.Marshal(request)
	require.NoError(t, err)
	var back api.AnnounceRequest
	require.NoError(t, json.Unmarshal(b, &back))
	assert.Equal(t, request, back)
}
