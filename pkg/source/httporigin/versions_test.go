package httporigin_test

import (
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
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

// A host that speaks HTTP/2 alone refuses the offer of HTTP/1.1 by a TLS alert (RFC 7301 §3.2).
func TestHostsThatRefuseHTTP1InTheHandshake(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprint(w, r.Proto)
	}))
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{}
	// Go's own server lets a client of HTTP/1.1 in; another protocol in its place makes it send the alert.
	s.TLS.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c := s.TLS.Clone()
		c.GetConfigForClient = nil
		if !slices.Contains(hello.SupportedProtos, "h2") {
			c.NextProtos = []string{"other"}
		}
		return c, nil
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	require.NoError(t, os.WriteFile(ca, block, 0o600))
	o := origin(t, func(c *httporigin.Config) { c.CAFile = ca })
	res, err := o.Open(t.Context(), file(s.URL+"/file"), 0)
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	assert.Equal(t, "HTTP/2.0", string(b))
}

// A gateway may agree to no protocol in the handshake, and then answer HTTP/1.1 with a frame of HTTP/2.
func TestHostsThatAnswerByFrames(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor < 2 {
			if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
				_, _ = c.Write([]byte("\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\xfa")) // settings
				c.Close()
			}
			return
		}
		_, _ = fmt.Fprint(w, r.Proto)
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
		assert.Equal(t, "HTTP/2.0", string(b))
		require.NoError(t, res.Body.Close())
	}
}
