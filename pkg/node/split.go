package node

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

// ProtocolAPI is what members ask for (ALPN) who come to a port for its API and not for pieces:
// net/http hangs up on those who ask for a protocol of another name.
const ProtocolAPI = "http/1.1"

// tellTime bounds how long a connection may take to tell what it is for, TLS handshake included.
const tellTime = 10 * time.Second

// split tells the connections of one port apart, so that a node can be asked as an owner where
// its pieces are got: over TLS by the protocol that was agreed on, else by the first byte, which
// of the piece wire is no letter. Each side is a listener of its own; the one for pieces is the
// port's: when it is closed, the port is.
type split struct {
	net.Listener
	pieces, api *side

	started sync.Once
	// mu is held to note who comes and goes.
	mu      sync.Mutex
	untold  map[net.Conn]struct{}
	closing bool
	wait    sync.WaitGroup
}

// newSplit splits a listener's connections; nothing is accepted before the first Accept.
func newSplit(l net.Listener) (pieces, api net.Listener) {
	s := &split{Listener: l, untold: map[net.Conn]struct{}{}}
	s.pieces, s.api = newSide(s), newSide(s)
	return s.pieces, s.api
}

// side is one of the two.
type side struct {
	s     *split
	conns chan net.Conn
	ended chan struct{}
	end   sync.Once
	err   error // why, before ended is closed
}

func newSide(s *split) *side {
	return &side{s: s, conns: make(chan net.Conn), ended: make(chan struct{})}
}

func (a *side) Accept() (net.Conn, error) {
	a.s.started.Do(func() { go a.s.run() })
	select {
	case c := <-a.conns:
		return c, nil
	case <-a.ended:
		return nil, a.err
	}
}

func (a *side) Addr() net.Addr { return a.s.Listener.Addr() }

func (a *side) close(err error) {
	a.end.Do(func() {
		a.err = err
		close(a.ended)
	})
}

// Close ends this side. Of the piece wire's it ends the port, and waits until nobody is left
// who has not told yet.
func (a *side) Close() error {
	a.close(net.ErrClosed)
	if a != a.s.pieces {
		return nil
	}
	err := a.s.Listener.Close()
	a.s.mu.Lock()
	a.s.closing = true
	for c := range a.s.untold {
		c.Close()
	}
	a.s.mu.Unlock()
	a.s.api.close(net.ErrClosed)
	a.s.wait.Wait()
	return err
}

// run accepts until the port is closed or fails.
func (s *split) run() {
	for {
		c, err := s.Listener.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() && !errors.Is(err, net.ErrClosed) {
				time.Sleep(acceptPause) // out of file descriptors, perhaps
				continue
			}
			s.pieces.close(err)
			s.api.close(err)
			return
		}
		if s.greet(c) {
			go s.ask(c)
		}
	}
}

// acceptPause is how long after a failure that may pass the next connection is accepted.
const acceptPause = 50 * time.Millisecond

// greet notes a connection that has not told yet; false where the port is closing.
func (s *split) greet(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		c.Close()
		return false
	}
	s.untold[c] = struct{}{}
	s.wait.Add(1)
	return true
}

// ask finds out what a connection is for, and hands it on.
func (s *split) ask(c net.Conn) {
	defer s.wait.Done()
	to, err := s.pieces, error(nil)
	if isAPI, e := forAPI(c); e != nil {
		err = e
	} else if isAPI {
		to = s.api
	}
	s.mu.Lock()
	delete(s.untold, c)
	closing := s.closing
	s.mu.Unlock()
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

// forAPI reports whether a connection is for the API. Nothing is taken from it that its server
// would miss.
func forAPI(c net.Conn) (is bool, err error) {
	defer source.Rescue(&err, "finding out what a connection is for")
	deadline := time.Now().Add(tellTime)
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

// peek looks at the first byte of a connection and leaves it there: wrapped in something that
// gives it back, the connection would lose sendfile.
func peek(c net.Conn) (byte, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return 0, errors.New("no socket")
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
		err = errors.New("it ended before it told what it is for")
	}
	return b[0], err
}
