package httpproxy_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/httpproxy"
)

// dialled is a transport that records destinations and connects to none.
type dialled struct{ to []string }

func (d *dialled) dial(_ context.Context, addr string) (net.Conn, error) {
	d.to = append(d.to, addr)
	return nil, errors.New("this test dials no server")
}

func (d *dialled) RoundTrip(r *http.Request) (*http.Response, error) {
	addr := r.URL.Host
	if r.URL.Port() == "" {
		addr = net.JoinHostPort(r.URL.Hostname(), "80")
	}
	_, err := d.dial(r.Context(), addr)
	return nil, err
}

// FuzzConnect sends any bytes to the proxy: it connects only to the allowed host and ports of the request's
// target, and answers every request.
func FuzzConnect(f *testing.F) {
	for _, s := range []string{
		"CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test:443\r\n\r\n",
		"CONNECT ok.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n",
		"CONNECT evil.test:443 HTTP/1.1\r\nHost: ok.test:443\r\n\r\n", "CONNECT ok.test:25 HTTP/1.1\r\n\r\n",
		"CONNECT user@ok.test:443 HTTP/1.1\r\n\r\n",
		"CONNECT ok.test:443@evil.test:443 HTTP/1.1\r\n\r\n", "CONNECT [::ffff:127.0.0.1]:443 HTTP/1.1\r\n\r\n",
		"CONNECT [::1%25lo]:443 HTTP/1.1\r\n\r\n",
		"CONNECT ok.test: HTTP/1.1\r\n\r\n", "CONNECT ok.test:0 HTTP/1.1\r\n\r\n",
		"CONNECT ok.test:65979 HTTP/1.1\r\n\r\n",
		"CONNECT ok.test:+443 HTTP/1.1\r\n\r\n",
		"CONNECT OK.test:443 HTTP/1.0\r\n\r\n", "CONNECT / HTTP/1.1\r\nHost: ok.test\r\n\r\n",
		"CONNECT http://ok.test:443/ HTTP/1.1\r\n\r\n",
		"GET http://ok.test/x HTTP/1.1\r\n\r\n", "GET http://ok.test:25/x HTTP/1.1\r\n\r\n",
		"GET http://user@ok.test/ HTTP/1.1\r\n\r\n", "GET http://evil.test\\@ok.test/ HTTP/1.1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: ok.test\r\n\r\n", "POST http://ok.test/ HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, said string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(said)))
		if err != nil {
			return
		}
		r.RemoteAddr = "127.0.0.1:1"
		var d dialled
		p := httpproxy.New(httpproxy.Config{
			NameHeader: "X-Upstream", Mirror: http.NotFoundHandler(), Mirrored: func(string) bool { return false },
			Reach: func(string) (*url.URL, http.RoundTripper, error) { return nil, nil, errors.New("none") },
			Allow: func(host string) error {
				if host != "ok.test" {
					return fmt.Errorf("%s is not allowed", host)
				}
				return nil
			},
			AllowPort: func(_ string, port uint16, secure bool) error {
				if secure && port != 443 || !secure && port != 80 {
					return fmt.Errorf("port %d is not allowed", port)
				}
				return nil
			},
			Dial: d.dial, Transport: &d,
		})
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		require.GreaterOrEqual(t, w.Code, 400, "%q", said)
		for _, to := range d.to {
			require.Contains(t, []string{"ok.test:443", "ok.test:80"}, strings.ToLower(to), "%q", said)
			require.Contains(t, strings.ToLower(r.RequestURI), "ok.test", "%q", said)
		}
	})
}
