package httporigin_test

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/darter-io/darter/pkg/source/httporigin"
)

// trip answers requests without a socket.
type trip func(*http.Request) (*http.Response, error)

func (f trip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// drip is a body that brings so many bytes at a time, a second apart.
type drip struct{ left, each int }

func (d *drip) Read(p []byte) (int, error) {
	if d.left == 0 {
		return 0, io.EOF
	}
	time.Sleep(time.Second)
	n := min(d.each, d.left, len(p))
	d.left -= n
	return n, nil
}

func (d *drip) Close() error { return nil }

// TestACrawlingBodyEnds decides by the rate of a body, not by its single bytes.
func TestACrawlingBodyEnds(t *testing.T) {
	for name, c := range map[string]struct {
		length, each int
		within       time.Duration // 0: it comes whole
	}{
		"a byte a second":            {1000, 1, 11 * time.Second},
		"100 bytes a second":         {100_000, 100, 11 * time.Second},
		"2 KiB a second":             {100 << 10, 2 << 10, 0},
		"its end within the time":    {9, 1, 0},
		"a pause, and then the rest": {30 << 10, 10 << 10, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, err := httporigin.NewClient(httporigin.Config{IdleTimeout: 10 * time.Second})
				require.NoError(t, err)
				u, err := url.Parse("http://files.test/x")
				require.NoError(t, err)
				answer := trip(func(r *http.Request) (*http.Response, error) {
					return &http.Response{
						StatusCode: http.StatusOK, Header: http.Header{"Content-Length": {strconv.Itoa(c.length)}},
						ContentLength: int64(c.length), Body: &drip{c.length, c.each}, Request: r,
					}, nil
				})
				res, err := client.Open(t.Context(), httporigin.Get{Request: httporigin.Request{URL: u, RoundTripper: answer}})
				require.NoError(t, err)
				defer res.Body.Close()
				began := time.Now()
				n, err := io.Copy(io.Discard, res.Body)
				if c.within == 0 {
					require.NoError(t, err)
					assert.EqualValues(t, c.length, n)
					return
				}
				require.ErrorIs(t, err, os.ErrDeadlineExceeded)
				assert.Contains(t, err.Error(), "received")
				assert.LessOrEqual(t, time.Since(began), c.within)
			})
		})
	}
}

// TestDeadConnectionsEnd asks the kernel whether it ends connections to a machine that is gone.
func TestDeadConnectionsEnd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	for _, trusted := range [][]string{nil, {l.Addr().String()}} {
		client, err := httporigin.NewClient(httporigin.Config{
			AllowAddrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Trusted: trusted,
		})
		require.NoError(t, err)
		conn, err := client.Dial(t.Context(), l.Addr().String())
		require.NoError(t, err)
		defer conn.Close()
		raw, err := conn.(*net.TCPConn).SyscallConn()
		require.NoError(t, err)
		var millis int
		require.NoError(t, raw.Control(func(fd uintptr) {
			millis, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		}))
		require.NoError(t, err)
		assert.Equal(t, 30_000, millis)
	}
}
