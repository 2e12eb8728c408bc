package httporigin_test

import (
	"crypto/tls"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"

	"github.com/darter-io/darter/pkg/source/httporigin"
)

func TestHostsThatSpeakOnlyHTTP2(t *testing.T) {
	var protos []int
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor < 2 {
			w.WriteHeader(http.StatusHTTPVersionNotSupported)
			return
		}
		protos = append(protos, r.ProtoMajor)
		w.Header().Set("ETag", `"v1"`)
		_, _ = io.WriteString(w, "content")
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	require.NoError(t, os.WriteFile(ca, block, 0o600))
	for name, url := range map[string]string{"by a status": s.URL, "by frames": "https://" + framing(t, s)} {
		t.Run(name, func(t *testing.T) {
			protos = nil
			o := origin(t, func(c *httporigin.Config) { c.CAFile = ca })
			for range 2 {
				res, err := o.Open(t.Context(), file(url+"/file"), 0)
				require.NoError(t, err)
				b, err := io.ReadAll(res.Body)
				require.NoError(t, err)
				assert.Equal(t, "content", string(b))
				require.NoError(t, res.Body.Close())
			}
			assert.Equal(t, []int{2, 2}, protos)
		})
	}
}

// framing listens as a server of HTTP/2 that sends its frames whatever was negotiated.
func framing(t *testing.T, s *httptest.Server) (addr string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				conn := tls.Server(c, &tls.Config{Certificates: s.TLS.Certificates, NextProtos: []string{"h2"}})
				defer conn.Close()
				if conn.HandshakeContext(t.Context()) == nil {
					(&http2.Server{}).ServeConn(conn, &http2.ServeConnOpts{Handler: s.Config.Handler})
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return l.Addr().String()
}
