package apiclient

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
)

func TestFetchStatus(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"another path":   http.NotFound,
		"no JSON":        func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") },
		"another's JSON": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"status": "ok"}`) },
		"a cut off JSON": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"program": "dfdaemon"`) },
		"an inner error": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "oh", 500) },
		"a dfdaemon's": func(w http.ResponseWriter, r *http.Request) {
			assert.Equal(t, api.PathStatus, r.URL.Path)
			io.WriteString(w, `{"program": "dfdaemon", "of": "a later version"}`)
		},
	} {
		web := httptest.NewServer(h)
		at := web.Listener.Addr().String()
		s, err := FetchStatus(t.Context(), "dfdaemon", at)
		web.Close()
		if name == "a dfdaemon's" {
			require.NoError(t, err)
			assert.Equal(t, "dfdaemon", s.Program)
			continue
		}
		assert.ErrorContains(t, err, at+" is not a Darter status address (it answers ", name)
		assert.ErrorContains(t, err, "api.listen", name)
		_, err = FetchStatus(t.Context(), "dfdaemon", at)
		assert.ErrorContains(t, err, "no dfdaemon answers at "+at)
	}
}
