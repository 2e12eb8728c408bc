package httpproxy_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/httpproxy"
)

// raw sends a request line unchanged to the proxy and returns the status of the response.
func raw(t *testing.T, w *world, method, target, host string) int {
	t.Helper()
	conn, err := net.Dial("tcp", w.proxy.Listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\n\r\n", method, target, host)
	require.NoError(t, err)
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	require.NoError(t, err)
	return res.StatusCode
}

func TestTunnelsAreLimitedToHostAndPort(t *testing.T) {
	var asked, dialled []string
	w := start(t, nil, func(c *httpproxy.Config) {
		c.AllowPort = func(host string, port uint16, secure bool) error {
			asked = append(asked, fmt.Sprintf("%s %d %v", host, port, secure))
			if port == 443 && secure || port == 80 && !secure {
				return nil
			}
			return errors.New("list the port")
		}
		c.Dial = func(_ context.Context, addr string) (net.Conn, error) {
			dialled = append(dialled, addr)
			return nil, errors.New("no server is there")
		}
	})
	for _, c := range []struct {
		target string
		status int // 502: the proxy allowed it, and nothing listens
		asked  string
	}{
		{"files.test:443", 502, "files.test 443 true"},
		{"FILES.test:443", 502, "files.test 443 true"},
		{"files.test:0443", 502, "files.test 443 true"},
		{"[2001:db8::1]:443", 502, "2001:db8::1 443 true"},
		{"files.test:22", 403, "files.test 22 true"},
		{"files.test:80", 403, "files.test 80 true"},
		{"files.test:65535", 403, "files.test 65535 true"},
		{"[2001:db8::1]:25", 403, "2001:db8::1 25 true"},
		{"files.test", 400, ""},
		{"files.test:", 400, ""},
		{":443", 400, ""},
		{"files.test:0", 400, ""},
		{"files.test:65979", 400, ""}, // 443 modulo 65536
		{"files.test:-1", 400, ""},
		{"files.test:+443", 400, ""},
		{"files.test:https", 400, ""},
		{"user@files.test:443", 400, ""},
		{"user:pw@files.test:443", 400, ""},
		{"2001:db8::1:443", 400, ""},
		{"[files.test]:443", 400, ""},
		{"[2001:db8::1%25eth0]:443", 400, ""},
		{"files.test:443:443", 400, ""},
	} {
		t.Run(c.target, func(t *testing.T) {
			asked, dialled = nil, nil
			status := raw(t, w, http.MethodConnect, c.target, "files.test:443")
			assert.Equal(t, c.status, status)
			if c.asked == "" {
				assert.Empty(t, asked)
			} else {
				assert.Equal(t, []string{c.asked}, asked)
			}
			assert.Equal(t, c.status == 502, len(dialled) == 1, "%v", dialled)
		})
	}
	t.Run("the target counts, not the Host header", func(t *testing.T) {
		dialled = nil
		assert.Equal(t, 403, raw(t, w, http.MethodConnect, "files.test:22", "files.test:443"))
		assert.Empty(t, dialled)
	})
	for target, status := range map[string]int{
		"http://files.test:22/x": 403, "http://files.test:443/x": 403, "http://files.test:0/x": 400,
		"http://user@files.test/x": 400, "http://[2001:db8::1]:8080/": 403,
	} {
		t.Run(target, func(t *testing.T) {
			dialled = nil
			assert.Equal(t, status, raw(t, w, http.MethodGet, target, "files.test"))
			assert.Empty(t, dialled)
		})
	}
}
