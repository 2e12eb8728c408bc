package httporigin_test

import (
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/source/httporigin"
)

func TestHostsThatSpeakOnlyHTTP2(t *testing.T) {
	var protos []int
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		protos = append(protos, r.ProtoMajor)
		if r.ProtoMajor < 2 {
			w.WriteHeader(http.StatusHTTPVersionNotSupported)
			return
		}
		w.Header().Set("ETag", `"v1"`)
		_, _ = io.WriteString(w, "content")
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	require.NoError(t, os.WriteFile(ca, block, 0o600))
	o := origin(t, func(c *httporigin.Config) { c.CAFile = ca })
	for range 2 {
		res, err := o.Open(t.Context(), file(s.URL+"/file"), 0)
		require.NoError(t, err)
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		assert.Equal(t, "content", string(b))
		require.NoError(t, res.Body.Close())
	}
	assert.Equal(t, []int{1, 2, 2}, protos, "the host is remembered")
}
