package httpserver

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/telemetry"
)

// handshaker is a listener that delivers connections after their TLS handshake. So no server gets a connection whose
// handshake never ends, and one place logs all failed handshakes.
type handshaker struct {
	net.Listener
	d     *Limiter
	conns chan net.Conn
	ended chan struct{}

	started, end sync.Once
	wait         sync.WaitGroup
	err          error // why, before ended is closed
	// mu is held to add and remove connections whose handshake runs.
	mu      sync.Mutex
	open    map[net.Conn]struct{}
	closing bool
}

// Handshake returns a listener that delivers connections of l after their TLS handshake. raw is the result of
// [Limiter.Limit] that l wraps.
func (d *Limiter) Handshake(l, raw net.Listener) net.Listener {
	if g, ok := raw.(*limited); ok {
		g.secure.Store(true)
	}
	return &handshaker{Listener: l, d: d, conns: make(chan net.Conn), ended: make(chan struct{}),
		open: map[net.Conn]struct{}{}}
}

// Accept returns the next connection whose handshake is complete.
func (s *handshaker) Accept() (net.Conn, error) {
	s.started.Do(func() { s.wait.Go(s.run) })
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.ended:
		return nil, s.err
	}
}

func (s *handshaker) stop(err error) {
	s.end.Do(func() {
		s.err = err
		close(s.ended)
	})
}

// Close ends the listener and all handshakes, and waits for them.
func (s *handshaker) Close() error {
	s.started.Do(func() {}) // run does not start any more
	err := s.Listener.Close()
	s.stop(net.ErrClosed)
	s.mu.Lock()
	s.closing = true
	for c := range s.open {
		c.Close()
	}
	s.mu.Unlock()
	s.wait.Wait()
	return err
}

func (s *handshaker) run() {
	for {
		c, err := s.Listener.Accept()
		if err != nil {
			s.stop(err)
			return
		}
		t, ok := c.(*tls.Conn)
		if !ok {
			s.give(c)
			continue
		}
		s.mu.Lock()
		closing := s.closing
		if !closing {
			s.open[c.(*tls.Conn).NetConn()] = struct{}{}
		}
		s.mu.Unlock()
		if closing {
			c.Close()
			continue
		}
		s.wait.Go(func() { s.handshake(t) })
	}
}

func (s *handshaker) handshake(t *tls.Conn) {
	raw := t.NetConn()
	ctx, cancel := context.WithTimeout(context.Background(), s.d.handshake)
	err := t.HandshakeContext(ctx)
	cancel()
	s.mu.Lock()
	delete(s.open, raw)
	closing := s.closing
	s.mu.Unlock()
	switch {
	case closing:
		raw.Close()
	case err != nil:
		var notTLS tls.RecordHeaderError
		if errors.As(err, &notTLS) && notTLS.Conn != nil && speaksHTTP(notTLS.RecordHeader) {
			// The same response as net/http's, so that the client learns the reason.
			_ = raw.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = io.WriteString(raw,
				"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
		}
		raw.Close()
		remote := raw.RemoteAddr().String()
		if host, _, e := net.SplitHostPort(remote); e == nil {
			remote = host
		}
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			// The other side closed it: a probe of the port, or a member that timed out.
			s.d.metrics.Count(telemetry.ConnOther)
			return
		}
		why, explained := reason(err)
		s.d.refused(why, s.Addr(), remote, explained)
	default:
		if held := limitedOf(t); held != nil {
			held.stand(busy)
		}
		s.give(t)
	}
}

// speaksHTTP reports whether the first bytes of a connection are those of an HTTP request.
func speaksHTTP(first [5]byte) bool {
	switch string(first[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET":
		return true
	}
	return false
}

func (s *handshaker) give(c net.Conn) {
	select {
	case s.conns <- c:
	case <-s.ended:
		c.Close()
	}
}

// reason returns why a TLS handshake failed, and an error with the remedy.
func reason(err error) (telemetry.ConnRefusal, error) {
	text := err.Error()
	var timeout net.Error
	var notTLS tls.RecordHeaderError
	explained := identity.Explain(err)
	switch {
	case strings.Contains(text, "didn't provide a certificate"):
		return telemetry.ConnNoCertificate, errors.Join(err,
			errors.New("its other end has no cluster secret, or is no Darter program"))
	case errors.Is(explained, identity.ErrNotMember) && errors.As(err, &notTLS):
		return telemetry.ConnNoTLS, explained
	case errors.Is(explained, identity.ErrNotMember), strings.Contains(text, "unknown certificate authority"),
		strings.Contains(text, "bad certificate"):
		return telemetry.ConnOtherSecret, explained
	case strings.Contains(text, "expired"), strings.Contains(text, "not yet valid"):
		return telemetry.ConnClock, explained
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded), errors.Is(err,
		net.ErrClosed):
		return telemetry.ConnSilent, err
	}
	return telemetry.ConnOther, explained
}
