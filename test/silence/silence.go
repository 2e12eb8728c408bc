// Package silence relays connections between a client and a server, and measures the longest time that the client waits
// for a byte.
//
// It never changes the relayed bytes, and ends each connection as the server did: with FIN or with RST. Start at
// [Relay.Serve].
package silence

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Relay relays connections. Dial must be set.
type Relay struct {
	// Dial connects to the server.
	Dial func(context.Context) (net.Conn, error)

	// mu guards the fields below and is never held while bytes move.
	mu      sync.Mutex
	longest time.Duration
	open    map[*wait]struct{}
}

// wait holds the times of one connection: of the client's last bytes (asked) and of the server's (answered).
type wait struct{ asked, answered time.Time }

// since returns the start of the silence, the zero time before the first request.
func (w *wait) since() time.Time {
	if w.asked.IsZero() {
		return time.Time{}
	}
	if w.answered.After(w.asked) {
		return w.answered
	}
	return w.asked
}

// Longest returns the longest time that a client waited for the next byte of an answer. It omits a wait that no byte
// ended: the client's own timeout reports that.
func (r *Relay) Longest() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.longest
}

// Reset starts a new measurement.
func (r *Relay) Reset() {
	r.mu.Lock()
	r.longest = 0
	now := time.Now()
	for w := range r.open {
		if !w.asked.IsZero() {
			w.answered = now
		}
	}
	r.mu.Unlock()
}

// Serve accepts connections until the listener is closed, which is no error.
func (r *Relay) Serve(l net.Listener) error {
	for {
		client, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go r.pass(client)
	}
}

func (r *Relay) pass(client net.Conn) {
	defer client.Close()
	server, err := r.Dial(context.Background())
	if err != nil {
		reset(client) // similar to a refused connection
		return
	}
	defer server.Close()
	w := &wait{}
	r.mu.Lock()
	if r.open == nil {
		r.open = map[*wait]struct{}{}
	}
	r.open[w] = struct{}{}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.open, w)
		r.mu.Unlock()
	}()

	go func() {
		_ = pump(server, client, func() { r.note(func(now time.Time) { w.asked = now }) })
		half(server)
	}()
	err = pump(client, server, func() {
		r.note(func(now time.Time) {
			r.ended(now, w)
			w.answered = now
		})
	})
	if err != nil {
		reset(client)
		return
	}
	half(client)
	// The server has ended its answer. Read and discard further bytes of the client; otherwise closing would reset it.
	_ = client.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.Copy(io.Discard, client)
}

// ended records a silence that ended now.
func (r *Relay) ended(now time.Time, w *wait) {
	if s := w.since(); !s.IsZero() && now.Sub(s) > r.longest {
		r.longest = now.Sub(s)
	}
}

func (r *Relay) note(f func(now time.Time)) {
	r.mu.Lock()
	f(time.Now())
	r.mu.Unlock()
}

// pump copies until the end. It calls passed before it forwards each block.
func pump(to, from net.Conn, passed func()) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			passed()
			if _, err := to.Write(buf[:n]); err != nil {
				return nil // the receiver has left
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func half(c net.Conn) {
	if t, ok := c.(interface{ CloseWrite() error }); ok {
		_ = t.CloseWrite()
	}
}

func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
		_ = t.Close()
	}
}
