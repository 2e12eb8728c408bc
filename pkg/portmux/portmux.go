// Package portmux serves two protocols on one port: the piece wire, and the API of a host that stands in for
// an owner.
//
// It takes no byte from a connection that its server would miss, and a connection that has not shown its
// protocol yet holds up no other. Start at [New].
package portmux

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/darter-io/darter/pkg/source"
)

// ProtocolAPI is what members negotiate (ALPN) with a port for its API and not for pieces: net/http closes
// connections of a protocol of another name.
const ProtocolAPI = "http/1.1"

// decideTimeout bounds how long a connection may take to show its protocol, TLS handshake included.
const decideTimeout = 10 * time.Second

// mux sorts the connections of one port: over TLS by the protocol that was negotiated, else by the first
// byte, which is no letter on the piece wire.
type mux struct {
	net.Listener
	pieces, api *side

	started sync.Once
	wait    sync.WaitGroup
	// mu is held to note connections that come, are decided, or are closed.
	mu        sync.Mutex
	undecided map[net.Conn]struct{}
	closing   bool
}

// New sorts a listener's connections into two listeners. It accepts nothing before the first Accept. Closing
// pieces closes the port, and waits until every goroutine of the mux has ended.
func New(l net.Listener) (pieces, api net.Listener) {
	m := &mux{Listener: l, undecided: map[net.Conn]struct{}{}}
	m.pieces, m.api = newSide(m), newSide(m)
	return m.pieces, m.api
}

// side is the listener of one protocol.
type side struct {
	m     *mux
	conns chan net.Conn
	ended chan struct{}
	end   sync.Once
	err   error // why, before ended is closed
}

func newSide(m *mux) *side {
	return &side{m: m, conns: make(chan net.Conn), ended: make(chan struct{})}
}

// Accept implements [net.Listener].
func (s *side) Accept() (net.Conn, error) {
	s.m.started.Do(func() { s.m.wait.Go(s.m.run) })
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.ended:
		return nil, s.err
	}
}

// Addr implements [net.Listener].
func (s *side) Addr() net.Addr { return s.m.Listener.Addr() }

func (s *side) close(err error) {
	s.end.Do(func() {
		s.err = err
		close(s.ended)
	})
}

// Close ends this side. On the side of the pieces it closes the port and every undecided connection, and
// waits for the mux.
func (s *side) Close() error {
	s.close(net.ErrClosed)
	if s != s.m.pieces {
		return nil
	}
	s.m.started.Do(func() {}) // run does not start any more
	err := s.m.Listener.Close()
	s.m.mu.Lock()
	s.m.closing = true
	for c := range s.m.undecided {
		c.Close()
	}
	s.m.mu.Unlock()
	s.m.api.close(net.ErrClosed)
	s.m.wait.Wait()
	return err
}

// run accepts until the port is closed or fails.
func (m *mux) run() {
	for {
		c, err := m.Listener.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() && !errors.Is(err, net.ErrClosed) {
				time.Sleep(acceptPause) // out of file descriptors, perhaps
				continue
			}
			m.pieces.close(err)
			m.api.close(err)
			return
		}
		if m.note(c) {
			m.wait.Go(func() { m.decide(c) })
		}
	}
}

// acceptPause is the time between a temporary failure to accept and the next attempt.
const acceptPause = 50 * time.Millisecond

// note keeps an undecided connection, or closes it and returns false if the port is closing.
func (m *mux) note(c net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closing {
		c.Close()
		return false
	}
	m.undecided[c] = struct{}{}
	return true
}

// decide finds out the protocol of a connection and hands it on.
func (m *mux) decide(c net.Conn) {
	to, err := m.pieces, error(nil)
	if isAPI, e := forAPI(c); e != nil {
		err = e
	} else if isAPI {
		to = m.api
	}
	m.mu.Lock()
	delete(m.undecided, c)
	closing := m.closing
	m.mu.Unlock()
	if err != nil || closing {
		c.Close()
		return
	}
	select {
	case to.conns <- c:
	case <-to.ended:
		c.Close()
	}
}

// forAPI reports whether a connection is for the API. It leaves every byte to the connection's server.
func forAPI(c net.Conn) (is bool, err error) {
	defer source.Rescue(&err, "finding out the protocol of a connection")
	deadline := time.Now().Add(decideTimeout)
	if t, ok := c.(*tls.Conn); ok {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		if err := t.HandshakeContext(ctx); err != nil {
			return false, err
		}
		return t.ConnectionState().NegotiatedProtocol == ProtocolAPI, nil
	}
	_ = c.SetReadDeadline(deadline)
	b, err := peek(c)
	_ = c.SetReadDeadline(time.Time{})
	return 'A' <= b && b <= 'Z', err
}

// peek returns the first byte of a connection and leaves it there. A wrapper that gives the byte back would
// cost the connection its sendfile.
func peek(c net.Conn) (byte, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return 0, errors.New("the connection is no socket")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var b [1]byte
	var n int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, failed = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
			if !errors.Is(failed, syscall.EINTR) {
				return !errors.Is(failed, syscall.EAGAIN)
			}
		}
	})
	if err = errors.Join(err, failed); err == nil && n == 0 {
		err = errors.New("the connection ended before it showed its protocol")
	}
	return b[0], err
}
