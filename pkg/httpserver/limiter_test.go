package httpserver

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/telemetry"
)

// lockedBuffer receives the log lines of many goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func testLimiter() (*Limiter, *lockedBuffer, *prometheus.Registry) {
	lines, reg := new(lockedBuffer), prometheus.NewRegistry()
	return NewLimiter(slog.New(slog.NewTextHandler(lines, nil)), telemetry.NewConnRefusals(reg)), lines, reg
}

func turnedAway(t *testing.T, reg *prometheus.Registry, why telemetry.ConnRefusal) int {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "darter_connections_refused_total" && m.GetLabel()[0].GetValue() == string(why) {
				return int(m.GetCounter().GetValue())
			}
		}
	}
	return -1
}

const limiterSecret = secret.String("9f8e4c1d7a2b6350e1f4a9c8d7b6053f2e1a8c9b4d7f6e5a")

func keyHolder(t *testing.T, word secret.String) *identity.Identity {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	id, err := identity.New(identity.Config{Secret: word, HostID: host.OfKey(key.Public().(ed25519.PublicKey)),
		Key: key})
	require.NoError(t, err)
	return id
}

// testServer serves a handler as a node does.
func testServer(l net.Listener, h http.Handler, limiter *Limiter, drain time.Duration) Server {
	log := slog.New(slog.DiscardHandler)
	if limiter == nil {
		limiter = NewLimiter(log, nil)
	}
	return Server{Name: "test", Listener: l, Handler: h, Limiter: limiter,
		Drain: func() time.Duration { return drain }, Logger: log}
}

// port is a served listener of a node.
type port struct {
	addr  string
	lines *lockedBuffer
	reg   *prometheus.Registry
	dial  func(ctx context.Context, network, addr string) (net.Conn, error)
}

// open serves an echo of bodies on a listener like a node's. The timeouts are short: the tests check
// that the other end closes, not when.
func open(t *testing.T, secure bool, most connMax) *port {
	t.Helper()
	p := &port{}
	var limiter *Limiter
	limiter, p.lines, p.reg = testLimiter()
	limiter.handshake, limiter.header, limiter.body = 200*time.Millisecond, 200*time.Millisecond, 200*time.Millisecond
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := limiter.limit(raw, most)
	var d net.Dialer
	p.addr, p.dial = raw.Addr().String(), d.DialContext
	if secure {
		id := keyHolder(t, limiterSecret)
		l = limiter.Handshake(id.WrapListener(l, "http/1.1"), l)
		p.dial = keyHolder(t, limiterSecret).WrapDialer(d.DialContext, "http/1.1")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestTimeout)
			return
		}
		_, _ = w.Write(b)
	})
	mux.HandleFunc("/deaf", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "not read") })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- testServer(l, mux, limiter, 0).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-ended)
	})
	return p
}

// ends waits until the other end closes a connection. The limit is long because the machine may be
// loaded; without a timeout in the program, the connection would never end.
func ends(t *testing.T, c net.Conn) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
	_, err := io.Copy(io.Discard, c)
	var timeout net.Error
	assert.False(t, errors.As(err, &timeout) && timeout.Timeout(), "it lives after a minute: %v", err)
}

// honest pulls once through a connection of its own.
func (p *port) honest(t *testing.T) {
	t.Helper()
	tr := &http.Transport{DialContext: p.dial, DialTLSContext: p.dial, DisableKeepAlives: true}
	res, err := (&http.Client{Transport: tr}).Post("http://"+p.addr+"/echo", "text/plain", strings.NewReader("honest"))
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	assert.Equal(t, "honest", string(b))
}

func TestStrangersHoldNoConnection(t *testing.T) {
	wide := connMax{total: 1000, each: 1000, fresh: 1000, freshEach: 1000}
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %t", secure), func(t *testing.T) {
			p := open(t, secure, wide)
			say := func(t *testing.T, text string) net.Conn {
				t.Helper()
				c, err := p.dial(t.Context(), "tcp", p.addr)
				require.NoError(t, err)
				t.Cleanup(func() { c.Close() })
				// On a busy machine, the port may have ended the connection already. ends checks that it did.
				_, _ = io.WriteString(c, text)
				return c
			}
			t.Run("that says nothing", func(t *testing.T) {
				c, err := net.Dial("tcp", p.addr)
				require.NoError(t, err)
				defer c.Close()
				ends(t, c)
			})
			t.Run("that sends a header byte by byte", func(t *testing.T) {
				c := say(t, "POST /ec")
				go drip(c)
				ends(t, c)
			})
			t.Run("that sends a body byte by byte", func(t *testing.T) {
				c := say(t, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
				go drip(c)
				ends(t, c)
				assert.Positive(t, turnedAway(t, p.reg, telemetry.ConnSlow))
			})
			t.Run("that promises a body and sends none", func(t *testing.T) {
				ends(t, say(t, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"))
			})
			t.Run("with a body that no handler reads", func(t *testing.T) {
				ends(t, say(t, "POST /deaf HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"))
			})
			t.Run("that begins TLS and goes no further", func(t *testing.T) {
				c, err := net.Dial("tcp", p.addr)
				require.NoError(t, err)
				defer c.Close()
				_, err = c.Write([]byte{22, 3, 1, 1, 0})
				require.NoError(t, err)
				ends(t, c)
			})
			p.honest(t)
		})
	}
}

// drip sends a byte each fifty milliseconds until it cannot.
func drip(c net.Conn) {
	for {
		if _, err := c.Write([]byte("x")); err != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestLongBodyIsNotSlow(t *testing.T) {
	p := open(t, false, connMax{total: 100, each: 100, fresh: 100, freshEach: 100})
	pr, pw := io.Pipe()
	go func() {
		for range 10 { // longer in all than the door waits for one that stands still
			pw.Write(make([]byte, 8<<10))
			time.Sleep(60 * time.Millisecond)
		}
		pw.Close()
	}()
	res, err := http.Post("http://"+p.addr+"/echo", "text/plain", pr)
	require.NoError(t, err)
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	require.NoError(t, err)
	assert.EqualValues(t, 80<<10, n)

	t.Run("and its connection serves the next request", func(t *testing.T) {
		c, err := net.Dial("tcp", p.addr)
		require.NoError(t, err)
		defer c.Close()
		r := bufio.NewReader(c)
		for range 3 {
			_, err = io.WriteString(c, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
			require.NoError(t, err)
			res, err := http.ReadResponse(r, nil)
			require.NoError(t, err)
			b, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			assert.Equal(t, "hi", string(b))
			time.Sleep(300 * time.Millisecond) // longer than a body may stand still
		}
	})
}

// A client that speaks TLS to a port without it is logged and counted, and no other one is.
func TestTLSAtAPlainPort(t *testing.T) {
	p := open(t, false, connMax{total: 64, each: 64, fresh: 32, freshEach: 32})
	p.honest(t)
	assert.Zero(t, turnedAway(t, p.reg, telemetry.ConnTLS))
	_, err := tls.Dial("tcp", p.addr, &tls.Config{InsecureSkipVerify: true})
	require.Error(t, err)
	assert.Equal(t, 1, turnedAway(t, p.reg, telemetry.ConnTLS))
	assert.Contains(t, p.lines.String(), "it speaks TLS, and this port does not")
}

func TestSilentConnectionsBlockNoOthers(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %t", secure), func(t *testing.T) {
			p := open(t, secure, connMax{total: 64, each: 64, fresh: 32, freshEach: 32})
			var all []net.Conn
			for range 300 {
				c, err := net.Dial("tcp", p.addr)
				require.NoError(t, err)
				defer c.Close()
				all = append(all, c)
			}
			p.honest(t)
			for _, c := range all {
				ends(t, c)
			}
			assert.GreaterOrEqual(t, turnedAway(t, p.reg, telemetry.ConnCrowded), 1)
			assert.LessOrEqual(t, strings.Count(p.lines.String(), "connection turned away"), 4,
				"a line a minute and reason")
		})
	}
}

func TestHalfARequestHoldsNoPlace(t *testing.T) {
	for name, text := range map[string]string{
		"a byte": "G", "half a header": "POST /echo HTTP/1.1\r\nHost: x\r\nX-Half:",
		"no body":                       "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
		"no body, and no handler reads": "POST /deaf HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			p := open(t, false, connMax{total: 16, each: 16, fresh: 16, freshEach: 16})
			for range 40 {
				c, err := net.Dial("tcp", p.addr)
				require.NoError(t, err)
				defer c.Close()
				_, err = io.WriteString(c, text)
				require.NoError(t, err)
			}
			time.Sleep(20 * time.Millisecond) // the server may read what came
			p.honest(t)
		})
	}
}

func TestIdleConnectionsAreClosedFirst(t *testing.T) {
	p := open(t, false, connMax{total: 16, each: 16, fresh: 16, freshEach: 16})
	for range 40 {
		c, err := net.Dial("tcp", p.addr)
		require.NoError(t, err)
		defer c.Close()
		_, err = io.WriteString(c, "GET /deaf HTTP/1.1\r\nHost: x\r\n\r\n")
		require.NoError(t, err)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		require.NoError(t, err)
		assert.Equal(t, http.StatusOK, res.StatusCode)
	}
}

// failingListener fails as if the process had no free file descriptor, or with err.
type failingListener struct {
	net.Listener
	left atomic.Int32
	err  error
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.left.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: cmp.Or(l.err, error(syscall.EMFILE))}
	}
	return l.Listener.Accept()
}

func TestOutOfFilesIsLoggedOnceAMinute(t *testing.T) {
	d, lines, _ := testLimiter()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	failing := &failingListener{Listener: raw}
	failing.left.Store(8)
	l := d.limit(failing, connMax{total: 8, each: 8, fresh: 8, freshEach: 8})
	defer l.Close()
	c, err := net.Dial("tcp", raw.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	got, err := l.Accept()
	require.NoError(t, err)
	got.Close()
	assert.Equal(t, 1, strings.Count(lines.String(), "cannot accept connections"))
	assert.Contains(t, lines.String(), "ulimit")
	g := l.(*limited)
	assert.Zero(t, g.open)
	assert.Empty(t, g.from)
}

func TestAcceptGoesOnAfterAPassingError(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
		syscall.EPERM, syscall.ENETDOWN, syscall.EHOSTUNREACH, syscall.ECONNABORTED} {
		d, _, _ := testLimiter()
		raw, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		failing := &failingListener{Listener: raw, err: os.NewSyscallError("accept4", errno)}
		failing.left.Store(1)
		l := d.limit(failing, connMax{total: 8, each: 8, fresh: 8, freshEach: 8})
		c, err := net.Dial("tcp", raw.Addr().String())
		require.NoError(t, err)
		got, err := l.Accept()
		require.NoError(t, err, errno)
		got.Close()
		c.Close()
		failing.err = os.NewSyscallError("accept4", syscall.EINVAL)
		failing.left.Store(1)
		_, err = l.Accept()
		require.ErrorIs(t, err, syscall.EINVAL, "a socket that no longer listens")
		l.Close()
	}
}

func TestRefusedConnectionsAreCounted(t *testing.T) {
	p := open(t, true, connMax{total: 100, each: 100, fresh: 100, freshEach: 100})
	var d net.Dialer
	old := func() time.Time { return time.Now().Add(-30 * 24 * time.Hour) }
	for _, c := range []struct {
		name string
		why  telemetry.ConnRefusal
		say  string
		come func(t *testing.T)
	}{
		{"without a certificate", telemetry.ConnNoCertificate, "no cluster secret", func(t *testing.T) {
			c, err := tls.Dial("tcp", p.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
			if err == nil {
				ends(t, c)
				c.Close()
			}
		}},
		{"with another secret", telemetry.ConnOtherSecret, "secret", func(t *testing.T) {
			_, err := keyHolder(t, "0123456789abcdef0f1e2d3c4b5a69788796a5b4c3d2e1f0").WrapDialer(d.DialContext)(
				t.Context(), "tcp", p.addr)
			assert.ErrorContains(t, err, "another cluster secret", "its own log says so, too")
		}},
		{"without TLS", telemetry.ConnNoTLS, "speaks no TLS", func(t *testing.T) {
			c, err := net.Dial("tcp", p.addr)
			require.NoError(t, err)
			defer c.Close()
			_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			require.NoError(t, err)
			ends(t, c)
		}},
		{"with a clock that is far off", telemetry.ConnClock, "clock", func(t *testing.T) {
			_, key, err := ed25519.GenerateKey(rand.Reader)
			require.NoError(t, err)
			id, err := identity.New(identity.Config{Secret: limiterSecret,
				HostID: host.OfKey(key.Public().(ed25519.PublicKey)),
				Key:    key, Now: old})
			require.NoError(t, err)
			config := id.ClientTLS()
			config.Time = time.Now
			config.NextProtos = []string{"http/1.1"}
			c, err := tls.Dial("tcp", p.addr, config)
			require.NoError(t, err)
			defer c.Close()
			ends(t, c)
		}},
		{"silent", telemetry.ConnSilent, "", func(t *testing.T) {
			c, err := net.Dial("tcp", p.addr)
			require.NoError(t, err)
			defer c.Close()
			ends(t, c)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := turnedAway(t, p.reg, c.why)
			c.come(t)
			require.Eventually(t, func() bool { return turnedAway(t, p.reg, c.why) > before }, time.Minute,
				time.Millisecond)
			// The limiter counts a connection before it logs it.
			require.Eventually(t, func() bool {
				return strings.Contains(p.lines.String(), "from=127.0.0.1 why="+string(c.why))
			}, time.Minute, time.Millisecond)
			assert.Contains(t, p.lines.String(), c.say)
		})
	}
	t.Run("one that goes by itself is no line", func(t *testing.T) {
		before := turnedAway(t, p.reg, telemetry.ConnOther)
		c, err := net.Dial("tcp", p.addr)
		require.NoError(t, err)
		c.Close()
		require.Eventually(t, func() bool { return turnedAway(t, p.reg, telemetry.ConnOther) > before }, time.Minute,
			time.Millisecond)
		assert.NotContains(t, p.lines.String(), "why=other ")
	})
	assert.Equal(t, 9, testutil.CollectAndCount(p.reg), "all reasons are there from the start")
	p.honest(t)
}
