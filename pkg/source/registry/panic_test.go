package registry

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/task"
)

func TestAPanicAtAResponseIsAnError(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer srv.Close()
	c, err := New(Config{Upstreams: map[string]Upstream{"r.test": {URLs: []string{srv.URL}}},
		HTTP: httporigin.Config{Proxy: "none"}})
	require.NoError(t, err)
	defer c.CloseIdleConnections()
	c.sessions = nil // a fault: the next login writes into it, and panics
	_, err = c.Open(t.Context(), task.Spec{Kind: task.Blob, Upstream: "r.test", Repository: "app",
		ID: task.ID("sha256:" + strings.Repeat("00", 32))}, 0)
	var caught *source.PanicError
	require.True(t, errors.As(err, &caught), "%v", err)
	_, err = c.Do(t.Context(), source.RegistryRequest{Upstream: "r.test", Method: http.MethodHead,
		Path: "/v2/app/manifests/v1", Anonymous: true})
	require.True(t, errors.As(err, &caught), "%v", err)
}
